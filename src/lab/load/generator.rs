//! One client's side of a load: what it asks, and what it makes of the answers.
//!
//! Requests leave and replies are taken in batches, with one clock read a batch: a round trip includes the wait of its
//! request for its turn within the batch and that of its reply for the client's thread to run.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Busy, LoadOptions, LoadReport, Shared};
use crate::error::SetupError;
use crate::lab::Client;
use crate::lab::payload::{self, Echo, HEADER, Verdict};
use crate::sys::net::{self, MESSAGES_MAX};
use crate::sys::poll;

/// Sequences of a flow before they repeat.
const SEQUENCES: usize = 1 << 16;
/// How long a client listens, once no client has anything under way, for what should not come.
const LISTEN_ON: Duration = Duration::from_millis(50);
/// The longest a client waits for a packet before it looks at the clock.
const WAIT: Duration = Duration::from_millis(1);

/// One client's echoes in their order: each flow (an ident towards a remote) in turn, then the next sequence. A place
/// counts from 0 and repeats after [`Plan::cycle`].
struct Plan {
    client: Ipv4Addr,
    flows: Vec<(Ipv4Addr, u16)>,
    numbers: HashMap<(Ipv4Addr, u16), usize>,
}

impl Plan {
    fn new(client: Ipv4Addr, remotes: &[Ipv4Addr], idents: u16) -> Plan {
        let flows: Vec<_> = (1..=idents).flat_map(|ident| remotes.iter().map(move |remote| (*remote, ident))).collect();
        let numbers = flows.iter().enumerate().map(|(number, flow)| (*flow, number)).collect();
        Plan { client, flows, numbers }
    }

    fn cycle(&self) -> usize {
        SEQUENCES * self.flows.len()
    }

    fn echo_at(&self, place: usize) -> Echo {
        let (remote, ident) = self.flows[place % self.flows.len()];
        let sequence = u16::try_from(place / self.flows.len() % SEQUENCES).expect("less than 2^16");
        Echo { client: self.client, remote, ident, sequence }
    }

    /// None: this client never asks this remote with this ident.
    fn place_of(&self, remote: Ipv4Addr, ident: u16, sequence: u16) -> Option<usize> {
        let number = self.numbers.get(&(remote, ident))?;
        Some(usize::from(sequence) * self.flows.len() + number)
    }
}

#[derive(Clone, Copy)]
struct Pending {
    sent_at: Instant,
    settled: bool,
}

/// One client: its socket, its echoes under way, its counts.
pub(super) struct Generator<'a> {
    options: &'a LoadOptions,
    name: &'a str,
    clients: &'a [Ipv4Addr],
    socket: Socket,
    plan: Plan,
    /// Echoes sent within the last `reply_timeout`, oldest first.
    recent: VecDeque<Pending>,
    /// The place in the plan of `recent`'s first.
    first_place: usize,
    in_flight: usize,
    /// When the first echo is due, and the time from one to the next.
    pace: Option<(Duration, Duration)>,
    requests: Batch,
    arrivals: Batch,
    expected: Vec<u8>,
    report: LoadReport,
}

impl<'a> Generator<'a> {
    pub(super) fn open(
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
        Ok(Generator {
            options,
            name,
            clients,
            socket,
            plan: Plan::new(client.address, remotes, options.idents),
            recent: VecDeque::with_capacity(options.window),
            first_place: 0,
            in_flight: 0,
            pace: options.rate.map(|rate| pace(rate, number, clients.len())),
            requests: Batch::new(HEADER + options.payload_len),
            // Room for a header with options and one byte more than was asked for: an overlong reply shows.
            arrivals: Batch::new(60 + HEADER + options.payload_len + 1),
            expected: vec![0; options.payload_len],
            report: LoadReport::default(),
        })
    }

    pub(super) fn run(mut self, start: Instant, shared: &Shared) -> Result<LoadReport, SetupError> {
        let mut busy = Some(Busy(&shared.busy));
        let mut all_quiet_since = None;
        loop {
            let now = Instant::now();
            self.give_up(now);
            let sending = self.may_send(now - start) && !shared.stop.load(Ordering::Relaxed);
            let before = (self.report.sent, self.report.received);
            if sending {
                self.send(start)?;
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

    /// How many echoes may leave now.
    fn due(&self, elapsed: Duration) -> usize {
        let sent = u128::from(self.report.sent);
        let left = self.options.echoes_per_client.map_or(u128::MAX, |most| u128::from(most).saturating_sub(sent));
        let paced = self.pace.map_or(u128::MAX, |(offset, interval)| match elapsed.checked_sub(offset) {
            Some(elapsed) => (elapsed.as_nanos() / interval.as_nanos().max(1) + 1).saturating_sub(sent),
            None => 0,
        });
        let room = self.options.window.saturating_sub(self.in_flight).min(MESSAGES_MAX);
        usize::try_from(left.min(paced)).map_or(room, |due| due.min(room))
    }

    /// Sends what is due. What the kernel has no room for is due again next time.
    fn send(&mut self, start: Instant) -> Result<(), SetupError> {
        let due = self.due(start.elapsed());
        if due == 0 {
            return Ok(());
        }
        let first = self.first_place + self.recent.len();
        let echoes = (first..first + due).map(|place| self.plan.echo_at(place));
        for (echo, message) in echoes.clone().zip(self.requests.slots()) {
            payload::write_request(self.options.seed, echo, message);
        }
        let sent_at = Instant::now();
        let datagrams = self.requests.filled().zip(echoes.map(|echo| echo.remote));
        let sent = match net::send_many(self.socket.as_fd(), datagrams) {
            Ok(sent) => sent,
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => 0,
            Err(cause) => return Err(SetupError::caused(format!("lab: {} cannot send", self.name), cause)),
        };
        self.recent.extend((0..sent).map(|_| Pending { sent_at, settled: false }));
        self.in_flight += sent;
        self.report.sent += sent as u64;
        self.report.send_refused += (due - sent) as u64;
        Ok(())
    }

    /// Waits a moment for packets and judges all that are there.
    fn receive(&mut self, start: Instant) -> Result<(), SetupError> {
        let failed = |cause| SetupError::caused(format!("lab: {} cannot receive", self.name), cause);
        poll::readable([self.socket.as_fd()], Some(WAIT)).map_err(failed)?;
        let mut lengths = [0; MESSAGES_MAX];
        let count = match net::receive_many(self.socket.as_fd(), self.arrivals.slots(), &mut lengths) {
            Ok(count) => count,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => 0,
            Err(cause) => return Err(failed(cause)),
        };
        let now = Instant::now();
        for (number, length) in lengths[..count].iter().enumerate() {
            let datagram = &self.arrivals.buffers[number * self.arrivals.size..][..*length as usize];
            let client = self.plan.client;
            let verdict = payload::judge(self.options.seed, client, self.clients, datagram, &mut self.expected);
            self.count(verdict, now, start);
        }
        Ok(())
    }

    fn count(&mut self, verdict: Verdict, now: Instant, start: Instant) {
        match verdict {
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
    }

    /// Ends the wait for an echo; when it was sent, unless it was not under way.
    fn settle(&mut self, remote: Ipv4Addr, ident: u16, sequence: u16) -> Option<Instant> {
        let place = self.plan.place_of(remote, ident, sequence)?;
        let cycle = self.plan.cycle();
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
        let cycle = self.plan.cycle();
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

/// Buffers of one size, side by side.
struct Batch {
    buffers: Vec<u8>,
    size: usize,
}

impl Batch {
    fn new(size: usize) -> Batch {
        Batch { buffers: vec![0; size * MESSAGES_MAX], size }
    }

    fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffers.chunks_mut(self.size)
    }

    fn filled(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.chunks(self.size)
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
    // What arrives while the thread does not run waits here.
    net::set_receive_buffer(socket.as_fd(), 4 << 20)?;
    Ok(socket)
}
