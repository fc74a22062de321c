//! Ping sockets in memory, for tests and for the fuzzer: what arrives and what the error queues hold is handed over in bytes, as
//! the kernel hands it over, and read by the code that reads the kernel's. Whoever has the [`Wire`] is the kernel, and may lie.
//!
//! Time is a clock that somebody else moves. Nothing here waits: [`Wire::asleep`] tells until when a real engine would.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::errors::{Quote, report};
use super::{Arrival, Events, Kind, Outgoing, PingIo, Report, Sent};
use crate::clock::{Clock as _, Instant, Manual};
use crate::error::SetupError;
use crate::io::{Pool, PoolSize};

/// Arrivals that one wait brings, and reports that one reading brings: few, so that there are often more.
const BATCH_MAX: usize = 4;

/// The system's clock when the other one starts.
const WALL_CLOCK_START_NANOS: u64 = 1_700_000_000_000_000_000;

/// A message as recvmsg(2) brings it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// The sender's socket address; of an entry of the error queue, that of whom the request was for.
    pub name: Vec<u8>,
    /// Control messages.
    pub controls: Vec<u8>,
    /// The datagram from its ICMP header on; of an entry of the error queue, what it quotes of the request.
    pub bytes: Vec<u8>,
}

/// A request that left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The number of its socket.
    pub socket: usize,
    /// What the engine calls it: its departure is reported under this number.
    pub tag: u32,
    /// Whom it is for.
    pub to: Option<SocketAddr>,
    /// The ICMP message; ident and checksum are zero.
    pub bytes: Vec<u8>,
    /// When it left.
    pub at: Instant,
}

/// The world around one engine. Clones are handles to the same world.
#[derive(Clone, Debug)]
pub struct Wire(Rc<RefCell<World>>);

#[derive(Debug)]
struct World {
    clock: Arc<Manual>,
    sockets: Vec<Ends>,
    requests: Vec<Request>,
    /// With which the next sends fail, and how many.
    failing: (i32, u32),
    /// With which sockets of IPv6 cannot be opened.
    refusing_v6: Option<i32>,
    /// The engine has nothing to do before this, or ever; none if it has.
    asleep: Option<Option<Instant>>,
}

/// What one socket has for the engine.
#[derive(Debug)]
struct Ends {
    kind: Kind,
    arriving: VecDeque<Message>,
    errors: VecDeque<Message>,
    dropped: u32,
}

impl Wire {
    /// A world without sockets, in which it is as late as `clock` says.
    pub fn new(clock: Arc<Manual>) -> Wire {
        let (sockets, requests) = (Vec::new(), Vec::new());
        let world = World { clock, sockets, requests, failing: (0, 0), refusing_v6: None, asleep: None };
        Wire(Rc::new(RefCell::new(world)))
    }

    /// The sockets that the engine has opened.
    pub fn sockets(&self) -> Vec<Kind> {
        self.0.borrow().sockets.iter().map(|ends| ends.kind).collect()
    }

    /// The requests that have left since the last call.
    pub fn take(&self) -> Vec<Request> {
        mem::take(&mut self.0.borrow_mut().requests)
    }

    /// Lets a datagram arrive, if there is such a socket.
    pub fn push(&self, socket: usize, message: Message) {
        self.with(socket, |ends| ends.arriving.push_back(message));
    }

    /// Puts an entry into a socket's error queue.
    pub fn push_error(&self, socket: usize, message: Message) {
        self.with(socket, |ends| ends.errors.push_back(message));
    }

    /// Lets a socket have had no room for so many packets more.
    pub fn drop_packets(&self, socket: usize, packets: u32) {
        self.with(socket, |ends| ends.dropped = ends.dropped.wrapping_add(packets));
    }

    fn with(&self, socket: usize, act: impl FnOnce(&mut Ends)) {
        let mut world = self.0.borrow_mut();
        world.sockets.get_mut(socket).map(act);
    }

    /// Lets the next so many sends fail.
    pub fn fail_sends(&self, errno: i32, sends: u32) {
        self.0.borrow_mut().failing = (errno, sends);
    }

    /// Lets no socket of IPv6 be opened.
    pub fn refuse_v6(&self, errno: i32) {
        self.0.borrow_mut().refusing_v6 = Some(errno);
    }

    /// The system's clock, in nanoseconds.
    pub fn wall_clock_nanos(&self) -> u64 {
        WALL_CLOCK_START_NANOS.saturating_add(self.0.borrow().clock.now().as_nanos())
    }

    /// Until when the engine sleeps if nothing happens (`Some(None)`: for ever); none if it is not asleep.
    pub fn asleep(&self) -> Option<Option<Instant>> {
        self.0.borrow().asleep
    }
}

/// See the module.
#[derive(Debug)]
pub struct MemoryPingIo {
    wire: Wire,
    pool: Rc<Pool>,
    queued: Vec<(usize, u32, Box<Outgoing>)>,
}

impl MemoryPingIo {
    /// The engine's end of a wire.
    pub fn new(wire: Wire) -> Result<MemoryPingIo, SetupError> {
        let pool = Pool::new(PoolSize { buffers: BATCH_MAX, buffer_bytes: 1 << 16 })?;
        Ok(MemoryPingIo { wire, pool, queued: Vec::new() })
    }

    fn send_queued(&mut self, events: &mut Events) {
        let began_nanos = self.wire.wall_clock_nanos();
        let world = &mut *self.wire.0.borrow_mut();
        for (socket, tag, outgoing) in self.queued.drain(..) {
            let (errno, left) = world.failing;
            let errno = if left > 0 { errno } else { 0 };
            world.failing.1 = left.saturating_sub(1);
            if errno == 0 {
                let (to, bytes, at) = (outgoing.to(), outgoing.bytes().to_vec(), world.clock.now());
                world.requests.push(Request { socket, tag, to, bytes, at });
            }
            events.sent.push(Sent { socket, tag, errno, began_nanos, outgoing });
        }
    }

    /// Notes whether the engine sleeps now, having been told all that there is.
    fn rest(&mut self, has_events: bool, timeout: Option<Duration>) {
        let world = &mut *self.wire.0.borrow_mut();
        let is_busy = has_events || timeout.is_some_and(|timeout| timeout.is_zero());
        world.asleep = (!is_busy).then(|| timeout.map(|timeout| world.clock.now() + timeout));
    }
}

impl PingIo for MemoryPingIo {
    fn open(&mut self, kind: Kind, _receive_buffer_bytes: u32) -> io::Result<()> {
        if let Some(errno) = self.wire.0.borrow().refusing_v6.filter(|_| kind.v6) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let ends = Ends { kind, arriving: VecDeque::new(), errors: VecDeque::new(), dropped: 0 };
        self.wire.0.borrow_mut().sockets.push(ends);
        Ok(())
    }

    fn dropped(&self, socket: usize) -> u32 {
        self.wire.0.borrow().sockets[socket].dropped
    }

    fn read_reports(&mut self, socket: usize, reports: &mut Vec<Report>) -> bool {
        let errors = &mut self.wire.0.borrow_mut().sockets[socket].errors;
        let count = errors.len().min(BATCH_MAX);
        for message in errors.drain(..count) {
            reports.extend(report(&message.name, &message.controls, Quote::of(&message.bytes)));
        }
        count == BATCH_MAX
    }

    fn wall_clock_nanos(&self) -> u64 {
        self.wire.wall_clock_nanos()
    }

    fn send(&mut self, socket: usize, tag: u32, outgoing: Box<Outgoing>) {
        self.queued.push((socket, tag, outgoing));
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        self.send_queued(events);
        for (number, ends) in self.wire.0.borrow_mut().sockets.iter_mut().enumerate() {
            if !ends.errors.is_empty() {
                events.troubled.push(number);
            }
            while let Some(message) = ends.arriving.front()
                && let Some(frame) = self.pool.frame_from(&message.bytes[..message.bytes.len().min(1 << 16)])
            {
                let range = 0..frame.len();
                let parts = Arrival::parts(&message.name, &message.controls);
                events.arrivals.extend(parts.map(|parts| Arrival::new(number, parts, frame, range)));
                ends.arriving.pop_front();
            }
            events.more |= !ends.arriving.is_empty();
        }
        let has_events = !events.sent.is_empty() || !events.arrivals.is_empty() || !events.troubled.is_empty();
        self.rest(has_events || events.more, timeout);
        Ok(())
    }

    fn pause(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        self.send_queued(events);
        self.rest(!events.sent.is_empty(), timeout);
        Ok(())
    }
}
