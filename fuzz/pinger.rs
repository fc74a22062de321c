//! The body of the target `pinger`: a pinger over sockets in memory, whose kernel, routers and hosts lie. What must hold of it is
//! judged by code of its own, which reads the bytes that were handed over and nothing of the engine's.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::vec;

use echogate::clock::Instant;
use echogate::io::ping::memory::{Message, Request};
use echogate::pinger::manual::ManualPinger;
use echogate::pinger::{Ping, PingError, PingMany, PingOptions, Reply};
use echogate::sys::control;
use echogate::sys::ping::{NAME_BYTES, write_name};

const HOSTS: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 0, 3)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 3)),
];

/// linux/errqueue.h: who has put an entry into an error queue.
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
const ORIGIN_TIMESTAMPING: u8 = 4;

/// A timer's tick, and what two clocks may differ by.
const TICK: Duration = Duration::from_micros(263);
const CLOCKS_APART_MAX: Duration = Duration::from_millis(1);

/// One unit of the steps' times.
const STEP: Duration = Duration::from_millis(20);

/// A history: each step is a byte that says what, a length, and what follows it. Whatever comes, a ping has a reply only if the
/// host that it asked has sent one that carries its sequence number and cookie, and an error only if somebody has sent one about
/// it; it is told in time; no round trip is longer than time has passed; every packet and every error is counted once; and
/// in the end every slot and every sequence number is free.
pub(crate) fn pinger(bytes: &[u8]) {
    let mut history = History {
        manual: ManualPinger::new(1).expect("nothing that can be refused"),
        asked: Vec::new(),
        streams: Vec::new(),
        packets: 0,
        errors: 0,
        sent: 0,
        failing: None,
    };
    let mut rest = bytes;
    while let Some((&step, tail)) = rest.split_first() {
        let length = tail.first().map_or(0, |length| usize::from(*length)).min(tail.len().saturating_sub(1));
        let (given, tail) = tail.split_at((length + 1).min(tail.len()));
        rest = tail;
        history.step(step, given.get(1..).unwrap_or_default());
    }
    history.end();
}

/// A ping, and what is known of it from outside.
struct Asked {
    host: IpAddr,
    deadline: Instant,
    /// None where it is its stream's, or is over.
    ping: Option<Ping>,
    /// Its stream may tell it late.
    is_patient: bool,
    is_over: bool,
    /// It had a reply.
    is_answered: bool,
    /// With which its sends fail.
    errno: Option<i32>,
    request: Option<Request>,
    /// When the first reply that is its own came.
    replied: Option<Instant>,
    /// The errors about it that somebody has sent: when, and who.
    blamed: Vec<(Instant, IpAddr)>,
}

/// A stream, and which of `asked` are its pings.
type Stream = (PingMany<vec::IntoIter<IpAddr>>, Range<usize>);

struct History {
    manual: ManualPinger,
    asked: Vec<Asked>,
    streams: Vec<Stream>,
    packets: u64,
    errors: u64,
    sent: u64,
    failing: Option<i32>,
}

impl History {
    fn step(&mut self, step: u8, given: &[u8]) {
        let byte = |at: usize| given.get(at).copied().unwrap_or(0);
        let rest = |at: usize| given.get(at..).unwrap_or_default();
        match step % 12 {
            0 => self.ask(&[HOSTS[usize::from(byte(0) % 4)]], byte(1), byte(2), None, byte(3)),
            1 => {
                let hosts: Vec<_> =
                    (0..=byte(0) % 4).map(|at| HOSTS[usize::from(byte(1).wrapping_add(at) % 4)]).collect();
                self.ask(&hosts, byte(2), byte(3), Some(STEP * byte(4).into()), byte(5));
            }
            2 => self.cancel(byte(0), byte(1)),
            3 => self.reply(byte(0), byte(1), byte(2), rest(3)),
            4 | 6 => {
                let host = name(HOSTS[usize::from(byte(1) % 4)]);
                let (controls, bytes) = rest(3).split_at(usize::from(byte(2)).min(rest(3).len()));
                let name = if byte(1) & 4 == 0 { host } else { bytes.to_vec() };
                let message = Message { name, controls: controls.to_vec(), bytes: bytes.to_vec() };
                let socket = usize::from(byte(0) % 3);
                if step % 12 == 4 { self.arrives(socket, message) } else { self.fails(socket, message) }
            }
            5 => self.error(byte(0), byte(1), byte(2), rest(3)),
            7 => self.departs(byte(0), rest(1)),
            8 => self.manual.advance(STEP * byte(0).into()).expect("an engine that works and comes to rest"),
            // The engine does not run, and nobody looks.
            9 => return self.manual.stall(STEP * byte(0).into()),
            10 => {
                let errno = [libc::EHOSTUNREACH, libc::EMSGSIZE, libc::EPERM, libc::ENOBUFS][usize::from(byte(0) % 4)];
                self.failing = Some(errno);
                self.manual.wire().fail_sends(errno, u32::from(byte(1)));
            }
            _ => self.manual.wire().drop_packets((byte(0) % 3).into(), byte(1).into()),
        }
        self.look();
    }

    /// `held_up` is how long the engine does not run after that.
    fn ask(&mut self, hosts: &[IpAddr], timeout: u8, size: u8, patience: Option<Duration>, held_up: u8) {
        let timeout = Duration::from_millis(1) + STEP / 2 * timeout.into();
        let options = PingOptions::new().timeout(timeout).size((size % 32).into()).expect("a size that is possible");
        let deadline = self.manual.now() + timeout;
        let first = self.asked.len();
        self.asked.extend(hosts.iter().map(|host| Asked {
            host: *host,
            deadline,
            ping: patience.is_none().then(|| self.manual.pinger().ping(*host, &options)),
            is_patient: patience.is_some_and(|patience| !patience.is_zero()),
            is_over: false,
            is_answered: false,
            errno: self.failing,
            request: None,
            replied: None,
            blamed: Vec::new(),
        }));
        if let Some(patience) = patience {
            let mut stream = self.manual.pinger().ping_many(hosts.to_vec(), &options).told_within(patience);
            let nothing_yet = stream.poll_answer(&mut Context::from_waker(Waker::noop()));
            assert!(nothing_yet.is_pending(), "{nothing_yet:?} before anything was sent");
            self.streams.push((stream, first..self.asked.len()));
        }
        self.manual.stall(STEP * held_up.into());
        self.manual.turn().expect("an engine that works and comes to rest");
        // What leaves now are these; not in their order where a send is tried again.
        let requests = self.manual.wire().take();
        self.sent += requests.len() as u64;
        assert!(requests.len() == hosts.len() || self.failing.is_some(), "not all are sent");
        for request in requests {
            let to = request.to.map(|to| to.ip());
            let asked = self.asked[first..].iter_mut().find(|asked| asked.request.is_none() && Some(asked.host) == to);
            asked.expect("nothing is sent that nobody asked for").request = Some(request);
        }
    }

    fn cancel(&mut self, which: u8, number: u8) {
        if which & 1 == 1 && !self.streams.is_empty() {
            let (_, mine) = self.streams.remove(usize::from(number) % self.streams.len());
            self.asked[mine].iter_mut().for_each(|asked| asked.is_over = true);
        } else if !self.asked.is_empty() {
            let at = usize::from(number) % self.asked.len();
            self.asked[at].is_over |= self.asked[at].ping.take().is_some();
        }
    }

    /// One of those that have left, and its request.
    fn one(&self, number: u8) -> Option<&Request> {
        let requests: Vec<_> = self.asked.iter().filter_map(|asked| asked.request.as_ref()).collect();
        (!requests.is_empty()).then(|| requests[usize::from(number) % requests.len()])
    }

    /// The reply to a request, altered as `how` says.
    fn reply(&mut self, number: u8, how: u8, at: u8, given: &[u8]) {
        let Some(Request { socket, to: Some(to), bytes, .. }) = self.one(number).cloned() else { return };
        let mut bytes = bytes;
        bytes[0] = if to.is_ipv6() { 129 } else { 0 };
        let place = usize::from(at) % bytes.len();
        if how & 1 != 0 {
            bytes[place] ^= given.first().map_or(1, |byte| byte | 1);
        }
        if how & 2 != 0 {
            bytes.truncate(place);
        }
        if how & 4 != 0 {
            bytes.extend_from_slice(given);
        }
        let from = if how & 8 == 0 { to.ip() } else { HOSTS[usize::from(at % 4)] };
        let socket = if how & 16 == 0 { socket } else { usize::from(at % 3) };
        let controls = self.stamp(how >> 5, given);
        self.arrives(socket, Message { name: name(from), controls, bytes });
    }

    /// SCM_TIMESTAMPING, with the time that is right, or with one that is not.
    fn stamp(&self, which: u8, given: &[u8]) -> Vec<u8> {
        let now = self.manual.wire().wall_clock_nanos();
        let nanos = match which {
            0 | 1 => now,
            2 => now.saturating_add(1 << 40),
            3 => now.saturating_sub(1 << 40),
            4 => now.saturating_sub(100_000),
            _ => 0,
        };
        let mut times = [nanos / 1_000_000_000, nanos % 1_000_000_000, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
        if which == 5 {
            times.iter_mut().zip(given).for_each(|(time, given)| *time = *given);
        }
        written(&[(libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &times)])
    }

    /// An entry of the error queue about a request, altered as `how` says.
    fn error(&mut self, number: u8, icmp_type: u8, how: u8, given: &[u8]) {
        let Some(Request { socket, to: Some(to), bytes, .. }) = self.one(number).cloned() else { return };
        let byte = |at: usize| given.get(at).copied().unwrap_or(0);
        let mut bytes = bytes;
        if how & 1 != 0 {
            let place = usize::from(byte(0)) % bytes.len();
            bytes[place] ^= byte(1) | 1;
        }
        if how & 2 != 0 {
            bytes.truncate(byte(2).into());
        }
        let about = if how & 4 == 0 { to.ip() } else { HOSTS[usize::from(byte(0) % 4)] };
        let socket = if how & 8 == 0 { socket } else { usize::from(byte(0) % 3) };
        let origin = if how & 16 == 0 { ORIGIN_ICMP + u8::from(to.is_ipv6()) } else { byte(3) };
        let mut extended = vec![0; 4];
        extended.extend([origin, icmp_type, byte(4), 0, byte(5), 0, 0, 0, 0, 0, 0, 0]);
        extended.extend(name(HOSTS[usize::from(byte(6) % 4)]));
        if how & 32 != 0 {
            extended.truncate(byte(0).into());
        }
        let level = if to.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let kind = if to.is_ipv6() { libc::IPV6_RECVERR } else { libc::IP_RECVERR };
        self.fails(socket, Message { name: name(about), controls: written(&[(level, kind, &extended)]), bytes });
    }

    /// The kernel says when a request left: the truth, or not.
    fn departs(&mut self, number: u8, given: &[u8]) {
        let Some(Request { socket, tag, .. }) = self.one(number).cloned() else { return };
        let byte = |at: usize| given.get(at).copied().unwrap_or(0);
        let mut extended = vec![0; 4];
        extended.extend([ORIGIN_TIMESTAMPING, 0, 0, 0, 0, 0, 0, 0]);
        extended.extend((tag ^ u32::from(byte(1))).to_ne_bytes());
        let mut controls = self.stamp(byte(0), given);
        controls.extend(written(&[(libc::IPPROTO_IP, libc::IP_RECVERR, &extended)]));
        self.fails(socket, Message { name: Vec::new(), controls, bytes: Vec::new() });
    }

    /// Lets a datagram arrive, and notes whose reply it is.
    fn arrives(&mut self, socket: usize, message: Message) {
        let Some(kind) = self.manual.wire().sockets().get(socket).copied() else { return };
        let from = address(&message.name);
        self.packets += u64::from(from.is_some());
        let now = self.manual.now();
        let expected = if kind.v6 { [129, 0] } else { [0, 0] };
        for asked in &mut self.asked {
            let Some(request) = asked.request.as_ref().filter(|request| request.socket == socket) else { continue };
            let cookie = &request.bytes[8..request.bytes.len().min(16)];
            let is_its = message.bytes.len() >= 8
                && message.bytes[..2] == expected
                && message.bytes[6..8] == request.bytes[6..8]
                && message.bytes[8..].starts_with(cookie)
                && from == Some(asked.host);
            if is_its {
                asked.replied.get_or_insert(now);
            }
        }
        self.manual.wire().push(socket, message);
        self.manual.turn().expect("an engine that works and comes to rest");
    }

    /// Puts an entry into an error queue, and notes whom it is about.
    fn fails(&mut self, socket: usize, message: Message) {
        let Some(kind) = self.manual.wire().sockets().get(socket).copied() else { return };
        let now = self.manual.now();
        if let Some((icmp_type, offender)) = icmp_error(&message.controls) {
            self.errors += 1;
            let (to, quote) = (address(&message.name), &message.bytes[..message.bytes.len().min(16)]);
            let request_type = if kind.v6 { [128, 0] } else { [8, 0] };
            let is_advice = !kind.v6 && (icmp_type == 4 || icmp_type == 5);
            for asked in self.asked.iter_mut().filter(|_| quote.len() >= 8 && !is_advice) {
                let Some(request) = asked.request.as_ref().filter(|request| request.socket == socket) else { continue };
                let is_about = quote[..2] == request_type
                    && quote[6..8] == request.bytes[6..8]
                    && request.bytes[8..].iter().zip(&quote[8..]).all(|(sent, quoted)| sent == quoted)
                    && to == Some(asked.host);
                if is_about {
                    asked.blamed.push((now, offender));
                }
            }
        }
        self.manual.wire().push_error(socket, message);
        self.manual.turn().expect("an engine that works and comes to rest");
    }

    /// Asks every ping how it went, and holds that against what has been handed over.
    fn look(&mut self) {
        self.manual.turn().expect("an engine that works and comes to rest");
        self.manual.audit().expect("flights, numbers and timers that agree");
        let now = self.manual.now();
        let mut context = Context::from_waker(Waker::noop());
        for asked in &mut self.asked {
            if let Some(ping) = &mut asked.ping
                && let Poll::Ready(outcome) = Pin::new(ping).poll(&mut context)
            {
                asked.ping = None;
                asked.judge(&outcome, now);
            }
        }
        for (stream, mine) in &mut self.streams {
            while let Poll::Ready(Some(answer)) = stream.poll_answer(&mut context) {
                let at = mine.start + usize::try_from(answer.number).expect("a handful");
                self.asked[at].judge(&answer.outcome, now);
            }
        }
        for asked in self.asked.iter().filter(|asked| !asked.is_over && !asked.is_patient) {
            assert_eq!(asked.replied, None, "{} has replied, and nobody is told", asked.host);
            assert_eq!(asked.blamed, [], "somebody has said what is wrong, and nobody is told");
            assert!(asked.deadline + 2 * TICK > now, "its time is over, and nobody is told");
        }
        let (tally, answered) = (self.manual.pinger().tally(), self.asked.iter().filter(|asked| asked.is_answered));
        assert_eq!(tally.replies, answered.count() as u64, "a reply is counted once");
        assert_eq!(tally.sent, self.sent);
        assert!(tally.errors + tally.unmatched_errors <= self.errors);
    }

    /// Nobody waits any more.
    fn end(mut self) {
        self.look();
        self.streams.clear();
        self.asked.iter_mut().for_each(|asked| asked.ping = None);
        assert_eq!(self.manual.pinger().in_flight(), 0, "slots that are not free");
        self.manual.advance(STEP * 600).expect("an engine that works and comes to rest");
        self.manual.audit().expect("flights, numbers and timers that agree");
        assert_eq!(self.manual.numbers_in_use(), 0, "sequence numbers that nobody gives back");
        let tally = self.manual.pinger().tally();
        let named = tally.replies + tally.duplicates + tally.late + tally.cancelled;
        let refused = tally.other_source + tally.wrong_cookie + tally.unknown_sequence + tally.malformed;
        assert_eq!((tally.received, named + refused), (self.packets, self.packets), "each packet once: {tally:?}");
        assert_eq!(tally.errors + tally.unmatched_errors, self.errors, "each error once: {tally:?}");
    }
}

impl Asked {
    fn judge(&mut self, outcome: &Result<Reply, PingError>, now: Instant) {
        assert!(!self.is_over, "two outcomes of one ping");
        self.is_over = true;
        match outcome {
            Ok(reply) => {
                self.is_answered = true;
                let request = self.request.as_ref().expect("a reply to what was sent");
                assert!(self.replied.is_some(), "{reply:?} that {} has not sent", self.host);
                assert_eq!((reply.from, &reply.sequence.to_be_bytes()[..]), (self.host, &request.bytes[6..8]));
                assert!(reply.rtt <= now.since(request.at) + CLOCKS_APART_MAX, "{reply:?} in less time than that");
            }
            Err(PingError::Timeout { .. } | PingError::DroppedHere { .. }) => {
                assert!(self.deadline <= now, "too early");
                assert!(self.replied.is_none_or(|at| at >= self.deadline), "{} has replied in time", self.host);
                assert!(self.blamed.iter().all(|(at, _)| *at >= self.deadline), "somebody has said what is wrong");
            }
            Err(PingError::SendFailed { errno, .. }) => assert_eq!(Some(*errno), self.errno),
            Err(error) => {
                let sender = error.sender().expect("nothing else can go wrong");
                assert!(self.blamed.iter().any(|(_, offender)| *offender == sender), "{error:?}, by nobody");
            }
        }
    }
}

fn name(host: IpAddr) -> Vec<u8> {
    let mut name = [0; NAME_BYTES];
    let len = write_name(SocketAddr::new(host, 0), &mut name);
    name[..len].to_vec()
}

/// Whose socket address it is, as bits/socket.h and netinet/in.h have it.
fn address(name: &[u8]) -> Option<IpAddr> {
    let family = libc::c_int::from(u16::from_ne_bytes(name.get(..2)?.try_into().ok()?));
    if family == libc::AF_INET {
        return Some(<[u8; 4]>::try_from(name.get(4..8)?).ok()?.into());
    }
    let octets = <[u8; 16]>::try_from(name.get(8..24)?).ok()?;
    (family == libc::AF_INET6 && name.len() >= NAME_BYTES).then(|| octets.into())
}

fn written(messages: &[(libc::c_int, libc::c_int, &[u8])]) -> Vec<u8> {
    let mut buffer = [0; 512];
    let mut used = 0;
    for (level, kind, data) in messages {
        used = control::write(&mut buffer, used, *level, *kind, data).expect("room");
    }
    buffer[..used].to_vec()
}

/// The type and the sender of the ICMP error that control messages tell of, read as cmsg(3) and ip(7) have it.
fn icmp_error(mut controls: &[u8]) -> Option<(u8, IpAddr)> {
    loop {
        let length = usize::from_ne_bytes(controls.get(..8)?.try_into().ok()?);
        let data = controls.get(16..length)?;
        let what = (controls.get(8..12)?, controls.get(12..16)?);
        let is = |level: libc::c_int, kind: libc::c_int| what == (&level.to_ne_bytes()[..], &kind.to_ne_bytes()[..]);
        let is_queued = is(libc::IPPROTO_IP, libc::IP_RECVERR) || is(libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        if is_queued && data.len() >= 16 {
            let is_icmp = data[4] == ORIGIN_ICMP || data[4] == ORIGIN_ICMP6;
            return is_icmp.then_some(data[5]).zip(address(&data[16..]));
        }
        controls = controls.get(length.next_multiple_of(8)..)?;
    }
}
