//! Echo load and its check: every client asks several remotes, all with equal idents and sequences, and every byte of
//! every reply is compared with what it must be.
//!
//! One thread and one raw socket a client. Two modes: a closed loop (a reply makes room for the next request, `window`
//! of them under way) and, with [`LoadOptions::rate`], requests by the clock with the window as the limit. Flows
//! (ident, remote) take turns, so that a client's n-th echo determines its flow and sequence, and a reply's flow and
//! sequence determine n: the echoes under way are a short queue and not a table of all sequences.
//!
//! What arrives at a client is exactly one of: received, wrong client, altered, stray, no reply. Strays are replies of
//! the client's own to an echo that has its reply already, or that was given up. A request that the kernel refused to
//! take for want of room is tried again and is not "sent".
//!
//! Rejected: ping sockets. Their kernel side drops whatever is not addressed to their own ident before we could count it
//! as misdelivered.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::Wrapping;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Client;
use super::payload::{self, Echo, HEADER, Verdict};
use crate::error::SetupError;

/// The shortest payload, in bytes: long enough that no two echoes of a run have the same.
pub const PAYLOAD_MIN: usize = 16;

/// Sequences of a flow before they repeat.
const SEQUENCES: usize = 1 << 16;
/// How long a client listens, once no client has anything under way, for what should not come.
const LISTEN_ON: Duration = Duration::from_millis(50);
/// The longest a client waits for a packet before it looks at the clock; the kernel rounds it up to its tick.
const WAIT: Duration = Duration::from_millis(1);
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Sending ends after this time.
    pub duration: Duration,
    /// Sending ends after this many echoes a client, if that is sooner.
    pub echoes_per_client: Option<u64>,
    /// Echoes under way, at most, for each client.
    pub window: usize,
    /// Echoes a second of all clients together; none: as many as the window lets through.
    pub rate: Option<u64>,
    /// Idents of each client, the same for all: 1 and up.
    pub idents: u16,
    /// Bytes after the ICMP header.
    pub payload_len: usize,
    /// An echo without a reply for this long is given up: lost.
    pub reply_timeout: Duration,
    /// Makes the payloads of two runs in one lab different.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            duration: Duration::from_secs(5),
            echoes_per_client: None,
            window: 16,
            rate: None,
            idents: 1,
            payload_len: 56,
            reply_timeout: Duration::from_secs(1),
            seed: 1,
        }
    }
}

/// What clients sent and what came back: `sent = received + lost`, and every packet that arrived is in one of the counts
/// from `received` on.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Requests that the kernel took.
    pub sent: u64,
    /// Requests that the kernel refused for want of room (ENOBUFS, EAGAIN); each was tried again.
    pub send_refused: u64,
    /// Requests whose own reply did not come, came altered, or came too late.
    pub lost: u64,
    /// Replies that reached the client that asked, every byte right.
    pub received: u64,
    /// Another client's replies.
    pub wrong_client: u64,
    /// Replies that are nobody's as they arrived.
    pub altered: u64,
    /// Own replies that came twice or after their echo was given up.
    pub stray: u64,
    /// ICMP that is no echo reply: errors.
    pub no_reply: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// Round-trip times of `received`.
    pub round_trip: RoundTrips,
}

/// Round-trip times from 1 ns to 60 s, to three digits.
#[derive(Clone)]
pub struct RoundTrips(Histogram<u64>);

impl RoundTrips {
    fn new() -> RoundTrips {
        RoundTrips(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid"))
    }

    fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that this share of them, 0.0 to 1.0, does not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

impl fmt::Debug for RoundTrips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, median, max) = (self.count(), self.quantile(0.5), self.max());
        f.debug_struct("RoundTrips").field("count", &count).field("p50", &median).field("max", &max).finish()
    }
}

impl Default for LoadReport {
    /// Nothing sent, nothing received.
    fn default() -> LoadReport {
        LoadReport {
            sent: 0,
            send_refused: 0,
            lost: 0,
            received: 0,
            wrong_client: 0,
            altered: 0,
            stray: 0,
            no_reply: 0,
            elapsed: Duration::ZERO,
            round_trip: RoundTrips::new(),
        }
    }
}

impl LoadReport {
    /// Echo replies that arrived at clients, right or wrong.
    pub fn replies(&self) -> u64 {
        self.received + self.wrong_client + self.altered + self.stray
    }

    /// Right replies a second.
    pub fn echoes_per_second(&self) -> u64 {
        let rate = u128::from(self.received) * 1_000_000_000 / self.elapsed.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn add(&mut self, other: &LoadReport) {
        self.sent += other.sent;
        self.send_refused += other.send_refused;
        self.lost += other.lost;
        self.received += other.received;
        self.wrong_client += other.wrong_client;
        self.altered += other.altered;
        self.stray += other.stray;
        self.no_reply += other.no_reply;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.round_trip.0.add(&other.round_trip.0).expect("all histograms have the same bounds");
    }
}

/// A run on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Time since the start.
    pub elapsed: Duration,
    /// Requests sent so far.
    pub sent: u64,
    /// Right replies so far.
    pub received: u64,
}

/// Has all clients ask all remotes, until time or echoes are used up and every reply is there or given up. `watch` is
/// called a few times a second on the calling thread; its Break ends the sending.
pub fn run(
    clients: &[Client],
    remotes: &[Ipv4Addr],
    options: &LoadOptions,
    mut watch: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<LoadReport, SetupError> {
    if options.payload_len < PAYLOAD_MIN || options.window == 0 || options.idents == 0 || remotes.is_empty() {
        return Err(SetupError::new(format!(
            "lab: a load takes a remote, an ident, a window and payloads of {PAYLOAD_MIN} bytes or more"
        )));
    }
    let addresses: Vec<Ipv4Addr> = clients.iter().map(|client| client.address).collect();
    let generators = clients
        .iter()
        .enumerate()
        .map(|(number, client)| Generator::open(client, number, &addresses, remotes, options))
        .collect::<Result<Vec<_>, _>>()?;
    let shared = Shared { busy: AtomicUsize::new(generators.len()), ..Shared::default() };
    let start = Instant::now();
    thread::scope(|scope| {
        let shared = &shared;
        let running: Vec<_> =
            generators.into_iter().map(|generator| scope.spawn(move || generator.run(start, shared))).collect();
        while !running.iter().all(|client| client.is_finished()) {
            thread::sleep(WATCH_INTERVAL);
            if watch(&shared.progress(start.elapsed())).is_break() {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        running.into_iter().try_fold(LoadReport::default(), |mut total, client| {
            let report = client.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
            total.add(&report);
            Ok(total)
        })
    })
}

/// What the clients' threads and the watching one share. Relaxed throughout: each value stands for itself; the exact
/// counts come back by `join`.
#[derive(Default)]
struct Shared {
    sent: CachePadded<AtomicU64>,
    received: CachePadded<AtomicU64>,
    stop: CachePadded<AtomicBool>,
    /// Clients that still send or wait for a reply.
    busy: AtomicUsize,
}

/// Held by a client while it is busy; given back on every way out.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn progress(&self, elapsed: Duration) -> Progress {
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        Progress { elapsed, sent, received }
    }
}

/// One ident towards one remote.
struct Flow {
    remote: Ipv4Addr,
    to: SockAddr,
    ident: u16,
}

#[derive(Clone, Copy)]
struct Pending {
    sent_at: Instant,
    settled: bool,
}

/// One client: its socket, its echoes under way, its counts.
struct Generator<'a> {
    options: &'a LoadOptions,
    name: &'a str,
    client: Ipv4Addr,
    clients: &'a [Ipv4Addr],
    socket: Socket,
    flows: Vec<Flow>,
    flow_numbers: HashMap<(Ipv4Addr, u16), usize>,
    /// Echoes sent within the last `reply_timeout`, oldest first.
    recent: VecDeque<Pending>,
    /// The place of `recent`'s first in the cycle of `flows x SEQUENCES`.
    first_place: usize,
    next_flow: usize,
    next_sequence: Wrapping<u16>,
    in_flight: usize,
    /// When the first echo is due, and the time from one to the next.
    pace: Option<(Duration, Duration)>,
    message: Vec<u8>,
    datagram: Vec<u8>,
    expected: Vec<u8>,
    report: LoadReport,
}

impl<'a> Generator<'a> {
    fn open(
        client: &'a Client,
        number: usize,
        clients: &'a [Ipv4Addr],
        remotes: &[Ipv4Addr],
        options: &'a LoadOptions,
    ) -> Result<Generator<'a>, SetupError> {
        let name = client.namespace.name();
        let socket = client.namespace.run(|| open_socket(client.address))?.map_err(|cause| {
            SetupError::caused(format!("lab: cannot open the raw socket of {name}"), cause).remedy("CAP_NET_RAW")
        })?;
        let flows: Vec<Flow> = (1..=options.idents)
            .flat_map(|ident| remotes.iter().map(move |remote| (ident, *remote)))
            .map(|(ident, remote)| Flow { remote, to: SockAddr::from(SocketAddrV4::new(remote, 0)), ident })
            .collect();
        Ok(Generator {
            options,
            name,
            client: client.address,
            clients,
            socket,
            flow_numbers: flows.iter().enumerate().map(|(place, flow)| ((flow.remote, flow.ident), place)).collect(),
            flows,
            recent: VecDeque::with_capacity(options.window),
            first_place: 0,
            next_flow: 0,
            next_sequence: Wrapping(0),
            in_flight: 0,
            pace: options.rate.map(|rate| pace(rate, number, clients.len())),
            message: vec![0; HEADER + options.payload_len],
            // Room for a header with options and one byte more than was asked for: an overlong reply shows.
            datagram: vec![0; 60 + HEADER + options.payload_len + 1],
            expected: vec![0; options.payload_len],
            report: LoadReport::default(),
        })
    }

    fn run(mut self, start: Instant, shared: &Shared) -> Result<LoadReport, SetupError> {
        let mut busy = Some(Busy(&shared.busy));
        let mut all_quiet_since = None;
        loop {
            let now = Instant::now();
            self.give_up(now);
            let sending = self.may_send(now - start) && !shared.stop.load(Ordering::Relaxed);
            let before = (self.report.sent, self.report.received);
            while sending && self.in_flight < self.options.window && self.is_due(start.elapsed()) {
                if !self.send_next()? {
                    break;
                }
            }
            if !sending && self.in_flight == 0 {
                busy = None;
            }
            // Until the last client is done, its replies can still be brought to us.
            if busy.is_none()
                && shared.busy.load(Ordering::Relaxed) == 0
                && now - *all_quiet_since.get_or_insert(now) > LISTEN_ON
            {
                return Ok(self.report);
            }
            self.receive(start)?;
            shared.sent.fetch_add(self.report.sent - before.0, Ordering::Relaxed);
            shared.received.fetch_add(self.report.received - before.1, Ordering::Relaxed);
        }
    }

    fn may_send(&self, elapsed: Duration) -> bool {
        elapsed < self.options.duration && self.options.echoes_per_client.is_none_or(|most| self.report.sent < most)
    }

    fn is_due(&self, elapsed: Duration) -> bool {
        let enough = self.options.echoes_per_client.is_some_and(|most| self.report.sent >= most);
        let due = self.pace.is_none_or(|(offset, interval)| {
            let nanos = interval.as_nanos() * u128::from(self.report.sent) + offset.as_nanos();
            elapsed.as_nanos() >= nanos
        });
        due && !enough
    }

    /// False: the kernel had no room; the same echo is next again.
    fn send_next(&mut self) -> Result<bool, SetupError> {
        let flow = &self.flows[self.next_flow];
        let (remote, ident, sequence) = (flow.remote, flow.ident, self.next_sequence.0);
        let echo = Echo { client: self.client, remote, ident, sequence };
        payload::write_request(self.options.seed, echo, &mut self.message);
        let sent_at = Instant::now();
        match self.socket.send_to(&self.message, &flow.to) {
            Ok(_) => {}
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                self.report.send_refused += 1;
                return Ok(false);
            }
            Err(cause) => {
                return Err(SetupError::caused(format!("lab: {} cannot send to {remote}", self.name), cause));
            }
        }
        self.recent.push_back(Pending { sent_at, settled: false });
        self.in_flight += 1;
        self.report.sent += 1;
        self.next_flow += 1;
        if self.next_flow == self.flows.len() {
            self.next_flow = 0;
            self.next_sequence += 1;
        }
        Ok(true)
    }

    /// Waits a moment for one packet.
    fn receive(&mut self, start: Instant) -> Result<(), SetupError> {
        let length = match self.socket.read(&mut self.datagram) {
            Ok(length) => length,
            Err(cause) if matches!(cause.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(cause) => return Err(SetupError::caused(format!("lab: {} cannot receive", self.name), cause)),
        };
        let now = Instant::now();
        let datagram = &self.datagram[..length];
        match payload::judge(self.options.seed, self.client, self.clients, datagram, &mut self.expected) {
            Verdict::Own { remote, ident, sequence } => match self.settle(remote, ident, sequence) {
                Some(sent_at) => {
                    self.report.received += 1;
                    self.report.elapsed = now - start;
                    self.report.round_trip.record(now - sent_at);
                }
                None => self.report.stray += 1,
            },
            Verdict::WrongClient => self.report.wrong_client += 1,
            Verdict::Altered { claims } => {
                self.report.altered += 1;
                if let Some((remote, ident, sequence)) = claims
                    && self.settle(remote, ident, sequence).is_some()
                {
                    self.report.lost += 1;
                }
            }
            Verdict::NoReply => self.report.no_reply += 1,
        }
        Ok(())
    }

    /// Ends the wait for an echo; when it was sent, unless it was not under way.
    fn settle(&mut self, remote: Ipv4Addr, ident: u16, sequence: u16) -> Option<Instant> {
        let flow = self.flow_numbers.get(&(remote, ident))?;
        let place = usize::from(sequence) * self.flows.len() + flow;
        let cycle = SEQUENCES * self.flows.len();
        let pending = self.recent.get_mut((place + cycle - self.first_place) % cycle)?;
        if pending.settled {
            return None;
        }
        pending.settled = true;
        self.in_flight -= 1;
        Some(pending.sent_at)
    }

    /// Forgets what is older than the reply timeout, and what would be taken for an echo one cycle later.
    fn give_up(&mut self, now: Instant) {
        let cycle = SEQUENCES * self.flows.len();
        while let Some(oldest) = self.recent.front()
            && (now - oldest.sent_at > self.options.reply_timeout || self.recent.len() + self.options.window > cycle)
        {
            if !oldest.settled {
                self.in_flight -= 1;
                self.report.lost += 1;
            }
            self.recent.pop_front();
            self.first_place = (self.first_place + 1) % cycle;
        }
    }
}

/// When this client's first echo is due and how long it is to the next: clients take turns.
fn pace(rate: u64, number: usize, clients: usize) -> (Duration, Duration) {
    let rate = rate.max(1);
    let nanos_for = |echoes: usize| {
        Duration::from_nanos(u64::try_from(echoes).unwrap_or(u64::MAX).saturating_mul(1_000_000_000) / rate)
    };
    (nanos_for(number), nanos_for(clients))
}

fn open_socket(address: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(address, 0)))?;
    socket.set_read_timeout(Some(WAIT))?;
    // What arrives while the thread does not run waits here; the kernel cuts it down to net.core.rmem_max.
    socket.set_recv_buffer_size(4 << 20)?;
    Ok(socket)
}
