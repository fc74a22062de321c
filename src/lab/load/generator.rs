//! One source's side of a load: what it asks, and what it makes of the answers.
//!
//! Requests leave and replies are taken in batches, with one clock read a batch: a round trip includes the wait of its
//! request for its turn within the batch and that of its reply for the source's thread to run.
//!
//! A source with one address has a socket bound to it, and the kernel makes the headers. One with several writes the
//! IPv4 header itself (IP_HDRINCL) and takes whatever ICMP reaches its host.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Busy, LoadOptions, LoadReport, Shared, Source};
use crate::error::SetupError;
use crate::lab::payload::{self, Echo, HEADER, Verdict};
use crate::sys::net::{self, MESSAGES_MAX};
use crate::sys::{poll, process};

/// Sequences of a flow before they repeat.
const SEQUENCES: usize = 1 << 16;
const IPV4_HEADER: usize = 20;
/// How long a source listens, once none has anything under way, for what should not come.
const LISTEN_ON: Duration = Duration::from_millis(50);
/// The longest a source waits for a packet before it looks at the clock.
const WAIT: Duration = Duration::from_millis(1);

/// A flow: who asks whom with which ident.
type Flow = (Ipv4Addr, Ipv4Addr, u16);

/// One source's echoes in their order: each flow in turn, then the next sequence. A place counts from 0 and repeats after
/// [`Plan::cycle`].
struct Plan {
    flows: Vec<Flow>,
    numbers: HashMap<Flow, usize>,
    first_sequence: u16,
}

impl Plan {
    fn new(addresses: &[Ipv4Addr], remotes: &[Ipv4Addr], options: &LoadOptions) -> Plan {
        let mut flows = Vec::new();
        for ident in 1..=options.idents {
            for (number, remote) in remotes.iter().enumerate() {
                let asks = |place: usize| {
                    !options.one_remote_an_ident || (place + usize::from(ident)) % remotes.len() == number
                };
                let asking = addresses.iter().enumerate().filter(|(place, _)| asks(*place));
                flows.extend(asking.map(|(_, address)| (*address, *remote, ident)));
            }
        }
        let numbers = flows.iter().enumerate().map(|(number, flow)| (*flow, number)).collect();
        Plan { flows, numbers, first_sequence: options.first_sequence }
    }

    fn cycle(&self) -> usize {
        SEQUENCES * self.flows.len()
    }

    fn echo_at(&self, place: usize) -> Echo {
        let (client, remote, ident) = self.flows[place % self.flows.len()];
        let turn = u16::try_from(place / self.flows.len() % SEQUENCES).expect("less than 2^16");
        Echo { client, remote, ident, sequence: self.first_sequence.wrapping_add(turn) }
    }

    /// None: this client never asks this remote with this ident.
    fn place_of(&self, echo: Echo) -> Option<usize> {
        let number = self.numbers.get(&(echo.client, echo.remote, echo.ident))?;
        let turn = echo.sequence.wrapping_sub(self.first_sequence);
        Some(usize::from(turn) * self.flows.len() + number)
    }
}

#[derive(Clone, Copy)]
struct Pending {
    sent_at: Instant,
    /// In a closed loop, when it was sent.
    due_at: Instant,
    settled: bool,
}

/// What became of the wait for an echo when a reply to it came.
enum Settled {
    Now(Pending),
    Before,
    GivenUp,
}

/// One source: its socket, its echoes under way, its counts.
pub(super) struct Generator<'a> {
    options: &'a LoadOptions,
    name: &'a str,
    /// Its own addresses.
    addresses: &'a [Ipv4Addr],
    /// Everybody's.
    clients: &'a [Ipv4Addr],
    socket: Socket,
    /// Bytes in front of the ICMP message that are ours to write.
    header_len: usize,
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
    /// `place`: its number, and how many sources there are.
    pub(super) fn open(
        source: &Source<'a>,
        place: (usize, usize),
        clients: &'a [Ipv4Addr],
        remotes: &[Ipv4Addr],
        options: &'a LoadOptions,
    ) -> Result<Generator<'a>, SetupError> {
        let Source { name, namespace, addresses } = *source;
        let opened = match namespace {
            Some(namespace) => namespace.run(|| open_socket(addresses))?,
            None => open_socket(addresses),
        };
        let socket = opened.map_err(|cause| {
            SetupError::caused(format!("load: cannot open the raw socket of {name}"), cause)
                .remedy("CAP_NET_RAW (root), and an address that is local there")
        })?;
        let header_len = if addresses.len() > 1 { IPV4_HEADER } else { 0 };
        Ok(Generator {
            options,
            name,
            addresses,
            clients,
            socket,
            header_len,
            plan: Plan::new(addresses, remotes, options),
            recent: VecDeque::with_capacity(options.window),
            first_place: 0,
            in_flight: 0,
            pace: options.rate.map(|rate| pace(rate, place)),
            requests: Batch::new(header_len + HEADER + options.payload_len),
            // Room for a header with options and one byte more than was asked for: an overlong reply shows.
            arrivals: Batch::new(60 + HEADER + options.payload_len + 1),
            expected: vec![0; options.payload_len],
            report: LoadReport::default(),
        })
    }

    pub(super) fn run(mut self, start: Instant, shared: &Shared) -> Result<LoadReport, SetupError> {
        let mut busy = Some(Busy(&shared.busy));
        let mut all_quiet_since = None;
        if self.pace.is_some() {
            // Where it is refused, requests leave later than due: the schedule's error shows it.
            let _ = process::wait_exactly();
        }
        loop {
            let now = Instant::now();
            self.give_up(now, start);
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
                self.report.socket_drops = net::receive_drops(self.socket.as_fd()).unwrap_or(0).into();
                return Ok(self.report);
            }
            self.receive(start, sending)?;
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

    /// When this source's echo `number` is to leave, from the start; none in a closed loop.
    fn due_at(&self, number: u64) -> Option<Duration> {
        let (offset, interval) = self.pace?;
        let nanos = interval.as_nanos().saturating_mul(number.into());
        Some(offset + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How long to wait for packets: while there is something to send by the clock, no longer than until then.
    fn wait(&self, start: Instant, sending: bool) -> Duration {
        match self.due_at(self.report.sent) {
            Some(due) if sending && self.in_flight < self.options.window => {
                due.saturating_sub(start.elapsed()).min(WAIT)
            }
            _ => WAIT,
        }
    }

    /// Sends what is due. What the kernel has no room for is due again next time.
    fn send(&mut self, start: Instant) -> Result<(), SetupError> {
        let due = self.due(start.elapsed());
        if due == 0 {
            return Ok(());
        }
        let first = self.first_place + self.recent.len();
        let echoes = (first..first + due).map(|place| self.plan.echo_at(place));
        for (echo, datagram) in echoes.clone().zip(self.requests.slots()) {
            let (header, message) = datagram.split_at_mut(self.header_len);
            write_header(header, echo);
            payload::write_request(self.options.seed, echo, message);
        }
        let sent_at = Instant::now();
        let datagrams = self.requests.filled().zip(echoes.map(|echo| echo.remote));
        let sent = match net::send_many(self.socket.as_fd(), datagrams) {
            Ok(sent) => sent,
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => 0,
            Err(cause) => return Err(SetupError::caused(format!("load: {} cannot send", self.name), cause)),
        };
        for number in 0..sent {
            let due_at = self.due_at(self.report.sent + number as u64).map_or(sent_at, |due| start + due);
            if self.pace.is_some() {
                self.report.schedule_error.record(sent_at.saturating_duration_since(due_at));
            }
            self.recent.push_back(Pending { sent_at, due_at, settled: false });
        }
        self.in_flight += sent;
        self.report.sent += sent as u64;
        self.report.send_refused += (due - sent) as u64;
        Ok(())
    }

    /// Waits a moment for packets and judges all that are there.
    fn receive(&mut self, start: Instant, sending: bool) -> Result<(), SetupError> {
        let failed = |cause| SetupError::caused(format!("load: {} cannot receive", self.name), cause);
        poll::readable([self.socket.as_fd()], Some(self.wait(start, sending))).map_err(failed)?;
        let mut lengths = [0; MESSAGES_MAX];
        let count = match net::receive_many(self.socket.as_fd(), self.arrivals.slots(), &mut lengths) {
            Ok(count) => count,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => 0,
            Err(cause) => return Err(failed(cause)),
        };
        let now = Instant::now();
        for (number, length) in lengths[..count].iter().enumerate() {
            let datagram = &self.arrivals.buffers[number * self.arrivals.size..][..*length as usize];
            let verdict = payload::judge(self.options.seed, self.addresses, self.clients, datagram, &mut self.expected);
            self.count(verdict, now, start);
        }
        Ok(())
    }

    fn count(&mut self, verdict: Verdict, now: Instant, start: Instant) {
        match verdict {
            Verdict::Own(echo) => match self.settle(echo) {
                Settled::Now(pending) => {
                    self.report.received += 1;
                    self.report.elapsed = now - start;
                    self.report.round_trip.record(now - pending.sent_at);
                    if self.pace.is_some() {
                        self.report.from_due.record(now.saturating_duration_since(pending.due_at));
                    }
                }
                Settled::Before => {
                    self.report.stray += 1;
                    self.report.duplicates += 1;
                }
                Settled::GivenUp => self.report.stray += 1,
            },
            Verdict::WrongClient => self.report.wrong_client += 1,
            Verdict::Altered { claims } => {
                self.report.altered += 1;
                if let Some(echo) = claims
                    && let Settled::Now(pending) = self.settle(echo)
                {
                    self.lose(pending, start);
                }
            }
            Verdict::NoReply => self.report.no_reply += 1,
        }
    }

    /// Ends the wait for an echo.
    fn settle(&mut self, echo: Echo) -> Settled {
        let cycle = self.plan.cycle();
        let place = self.plan.place_of(echo).map(|place| (place + cycle - self.first_place) % cycle);
        match place.and_then(|place| self.recent.get_mut(place)) {
            None => Settled::GivenUp,
            Some(pending) if pending.settled => Settled::Before,
            Some(pending) => {
                pending.settled = true;
                self.in_flight -= 1;
                Settled::Now(*pending)
            }
        }
    }

    fn lose(&mut self, lost: Pending, start: Instant) {
        self.report.lost += 1;
        self.report.losses.record(lost.sent_at.saturating_duration_since(start));
    }

    /// Forgets what is older than the reply timeout, and what would be taken for an echo one cycle later.
    fn give_up(&mut self, now: Instant, start: Instant) {
        let cycle = self.plan.cycle();
        while let Some(oldest) = self.recent.front().copied()
            && (now - oldest.sent_at > self.options.reply_timeout || self.recent.len() + self.options.window > cycle)
        {
            if !oldest.settled {
                self.in_flight -= 1;
                self.lose(oldest, start);
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

/// When this source's first echo is due and how long it is to the next: sources take turns.
fn pace(rate: u64, (number, sources): (usize, usize)) -> (Duration, Duration) {
    let rate = rate.max(1);
    let nanos_for = |echoes: usize| {
        Duration::from_nanos(u64::try_from(echoes).unwrap_or(u64::MAX).saturating_mul(1_000_000_000) / rate)
    };
    (nanos_for(number), nanos_for(sources))
}

/// Lengths, identification and checksum are the kernel's to fill in.
fn write_header(header: &mut [u8], echo: Echo) {
    if let Some((header, _)) = header.split_first_chunk_mut::<IPV4_HEADER>() {
        *header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[12..16].copy_from_slice(&echo.client.octets());
        header[16..].copy_from_slice(&echo.remote.octets());
    }
}

fn open_socket(addresses: &[Ipv4Addr]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    match addresses {
        [address] => socket.bind(&SockAddr::from(SocketAddrV4::new(*address, 0)))?,
        _ => net::include_header(socket.as_fd())?,
    }
    // What arrives while the thread does not run waits here.
    net::set_receive_buffer(socket.as_fd(), 4 << 20)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTES: [Ipv4Addr; 3] =
        [Ipv4Addr::new(198, 18, 0, 2), Ipv4Addr::new(198, 18, 0, 3), Ipv4Addr::new(198, 18, 0, 4)];
    const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(10, 66, 0, 3)];

    #[test]
    fn every_place_has_one_echo_and_every_echo_its_place_from_whatever_sequence_on() {
        for (one_remote_an_ident, first_sequence) in [(false, 0), (true, 1), (true, 65_000)] {
            let options = LoadOptions { idents: 4, one_remote_an_ident, first_sequence, ..LoadOptions::default() };
            let plan = Plan::new(&CLIENTS, &REMOTES, &options);
            assert_eq!(plan.flows.len(), if one_remote_an_ident { 8 } else { 24 });
            assert_eq!(plan.echo_at(0).sequence, first_sequence);
            for place in (0..plan.cycle()).step_by(997) {
                assert_eq!(plan.place_of(plan.echo_at(place)), Some(place));
            }
        }
    }

    #[test]
    fn idents_with_one_remote_each_leave_no_remote_out() {
        let options = LoadOptions { idents: 3, one_remote_an_ident: true, ..LoadOptions::default() };
        let plan = Plan::new(&CLIENTS[..1], &REMOTES, &options);
        let asked: std::collections::HashSet<Ipv4Addr> = plan.flows.iter().map(|(_, remote, _)| *remote).collect();
        assert_eq!(asked, REMOTES.into());
        assert_eq!(plan.place_of(Echo { client: CLIENTS[0], remote: REMOTES[0], ident: 1, sequence: 0 }), None);
    }
}
