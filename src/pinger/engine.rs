//! The engine: the one thread that sends, receives and times.
//!
//! A turn, in this order: commands are taken, and what they ask for is queued to be sent; the wait sends it, and sleeps
//! until something arrives, a timer runs out or a command comes; the error queues are read (departures first of all, or a
//! reply could not be measured from its request's), then the replies; then the timers, by the time *before* the wait. So a
//! reply that had arrived before its ping's time was over is seen before that, however long this thread did not run.

mod answers;

use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::error::{self, PingError};
use super::flights::{Flight, Flights, Phase};
use super::handle::{Ask, Command, Settings, Shared};
use super::many::Gathering;
use super::options::{self, Target};
use super::payload::{self, COOKIE_LEN};
use super::resolve::{Job, Resolving};
use super::sequences::Sequences;
use super::slots::{Key, Outcome};
use super::wheel::Wheel;
use crate::clock::{Clock as _, Instant};
use crate::error::SetupError;
use crate::io::Engine as Chosen;
use crate::io::ping::{
    self, Events, Kind, Outgoing, PathMtu, PingIo, PingSocket, Report, Reports, SyscallsPingIo, UringPingIo,
};
use crate::sys::ping::wall_clock_nanos;
use crate::table::idents;

/// Requests that one turn begins: few enough that the first is on its way before the last has been written.
const BEGUN_MAX: usize = 32;

/// Attempts at one send. The first may fail with the error of another request; later ones only if more errors keep coming in.
const ATTEMPTS_MAX: u8 = 32;

/// Turns in a row in which a socket had something to report, and nothing was there: no longer pings' errors, but a socket that
/// fails, on which this thread would spin for ever.
const FUTILE_MAX: u32 = 1_000_000;

/// Turns in a row that leave the timers alone because more replies are waiting.
const TIMERS_LEFT_MAX: u32 = 8;

/// More arrivals than this in one turn: there may be others waiting.
const ARRIVALS_FULL: usize = 192;

/// How old the known number of a socket's drops may be.
const DROPS_AGE_MAX: Duration = Duration::from_millis(10);

const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_6: u8 = 128;

/// The whole life of the engine's thread.
pub(super) fn run(shared: Arc<Shared>, settings: Settings, ready: &Sender<Result<Chosen, PingError>>) {
    let broken = |error| PingError::Broken(Arc::new(error));
    let chosen = match ping::choose(settings.backend) {
        Ok(chosen) => chosen,
        Err(error) => return drop(ready.send(Err(broken(error)))),
    };
    match chosen {
        Chosen::Uring => serve(UringPingIo::new(shared.waker()), shared, settings, ready, chosen),
        Chosen::Syscalls => serve(SyscallsPingIo::new(shared.waker()), shared, settings, ready, chosen),
    }
}

fn serve<I: PingIo>(
    io: Result<I, SetupError>,
    shared: Arc<Shared>,
    settings: Settings,
    ready: &Sender<Result<Chosen, PingError>>,
    chosen: Chosen,
) {
    let opened = io.map_err(|error| PingError::Broken(Arc::new(error))).and_then(|io| {
        let mut engine = Engine::new(io, Arc::clone(&shared), settings);
        engine.open_first().map(|()| engine)
    });
    let mut engine = match opened {
        Ok(engine) => engine,
        Err(error) => return drop(ready.send(Err(error))),
    };
    // Whoever waits for it is gone only when the handle is.
    let _ = ready.send(Ok(chosen));
    let end = loop {
        if shared.must_stop() {
            break PingError::Cancelled;
        }
        // Unwind safe: after a panic nothing of the engine is used but to tell every ping that it is over.
        match panic::catch_unwind(AssertUnwindSafe(|| engine.turn())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => break PingError::Broken(Arc::new(error)),
            Err(_) => break PingError::Broken(Arc::new(SetupError::new("the pinger's thread panicked"))),
        }
    };
    if let PingError::Broken(error) = &end {
        tracing::warn!(%error, "the pinger ended");
    }
    shared.end(end.clone());
    engine.give_up(&end);
    drop(engine);
    shared.let_go();
}

/// One socket, as the engine sees it.
struct Channel {
    kind: Kind,
    sequences: Sequences,
    /// Its drops, as far as they are known, and since when.
    dropped: u32,
    dropped_at: Instant,
    /// ICMP errors that it has had, about whatever.
    errors: u64,
    /// Requests whose departure is to be told have been queued since the error queue was last read.
    departing: bool,
}

struct Engine<I> {
    io: I,
    shared: Arc<Shared>,
    receive_buffer_bytes: u32,
    transmit_times: bool,
    channels: Vec<Channel>,
    flights: Flights,
    wheel: Wheel,
    random: StdRng,
    resolving: Resolving,
    events: Events,
    reports: Reports,
    reported: Vec<Report>,
    /// Whose requests were too long in this turn, and what fits.
    too_long: Vec<(IpAddr, u32)>,
    over: Vec<u32>,
    #[expect(clippy::vec_box, reason = "what is being sent must not move")]
    spare: Vec<Box<Outgoing>>,
    /// Streams that have an outcome they have not been woken for.
    to_wake: Vec<Arc<Gathering>>,
    timers_left: u32,
    futile: u32,
}

impl<I: PingIo> Engine<I> {
    fn new(io: I, shared: Arc<Shared>, settings: Settings) -> Engine<I> {
        let now = shared.clock.now();
        Engine {
            io,
            shared,
            receive_buffer_bytes: settings.receive_buffer_bytes,
            transmit_times: settings.transmit_times && ping::knows_transmit_times(),
            channels: Vec::new(),
            flights: Flights::default(),
            wheel: Wheel::new(now),
            random: idents::generator(None),
            resolving: Resolving::new(settings.resolver),
            events: Events::default(),
            reports: Reports::new(),
            reported: Vec::new(),
            too_long: Vec::new(),
            over: Vec::new(),
            spare: Vec::new(),
            to_wake: Vec::new(),
            timers_left: 0,
            futile: 0,
        }
    }

    /// Opens the socket that most pings need, so that who may not ping hears of it at once. One sysctl rules both families,
    /// so IPv6 is asked only where there is no IPv4.
    fn open_first(&mut self) -> Result<(), PingError> {
        let kind = |v6| Kind { v6, path_mtu: PathMtu::System };
        match self.open(kind(false)) {
            Err(PingError::Broken(error)) if error.errno() == Some(libc::EAFNOSUPPORT) => self.open(kind(true)),
            result => result,
        }
        .map(drop)
    }

    /// Opens a further socket; its number.
    fn open(&mut self, kind: Kind) -> Result<usize, PingError> {
        let socket =
            PingSocket::open(kind, self.receive_buffer_bytes).map_err(|error| error::no_socket(kind, error))?;
        let dropped = socket.dropped();
        self.io.add(socket).map_err(|error| PingError::Broken(Arc::new(error)))?;
        let dropped_at = self.shared.clock.now();
        self.channels.push(Channel {
            kind,
            sequences: Sequences::new(),
            dropped,
            dropped_at,
            errors: 0,
            departing: false,
        });
        Ok(self.channels.len() - 1)
    }

    fn turn(&mut self) -> Result<(), SetupError> {
        let now = self.shared.clock.now();
        for _ in 0..BEGUN_MAX {
            let Some(command) = self.shared.next_command() else { break };
            match command {
                Command::Ping { key, ask, asked } => self.begin(key, ask, asked, now),
                Command::Resolved { flight, key, found } => self.resolved(flight, key, found),
            }
        }
        self.wake_streams();
        let timeout = match self.shared.may_sleep() {
            true => self.wheel.next().map(|next| next.since(now)),
            false => Some(Duration::ZERO),
        };
        let waited = self.io.wait(&mut self.events, timeout);
        self.shared.woke();
        waited?;
        self.settle(now);
        self.wake_streams();
        if self.futile > FUTILE_MAX {
            return Err(SetupError::new("a ping socket fails again and again, and does not say why"));
        }
        Ok(())
    }

    /// Deals with what a wait has brought.
    fn settle(&mut self, before: Instant) {
        let mut events = mem::take(&mut self.events);
        let had_reason = events.troubled.is_empty() || !events.arrivals.is_empty() || !events.sent.is_empty();
        self.futile = if had_reason { 0 } else { self.futile + 1 };
        for number in 0..self.channels.len() {
            let departing = mem::take(&mut self.channels[number].departing);
            if departing || events.troubled.contains(&number) {
                self.read_reports(number);
            }
        }
        events.troubled.clear();
        for sent in events.sent.drain(..) {
            self.sent(sent);
        }
        self.too_long.clear();
        let full = events.arrivals.len() >= ARRIVALS_FULL && self.timers_left < TIMERS_LEFT_MAX;
        if !events.arrivals.is_empty() {
            let (now, wall_nanos) = (self.shared.clock.now(), wall_clock_nanos());
            for arrival in events.arrivals.drain(..) {
                self.arrived(&arrival, now, wall_nanos);
            }
        }
        self.events = events;
        if full {
            self.timers_left += 1;
        } else {
            self.timers_left = 0;
            self.run_timers(before);
        }
    }

    fn begin(&mut self, key: Key, ask: Ask, asked: Instant, now: Instant) {
        let Ask { target, options, at, number: in_stream, refill, gathering } = ask;
        let begins = at.unwrap_or(asked);
        let (to, name) = match target {
            Target::Address(address) => (address, None),
            Target::Name(name) => (SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), Some(name)),
        };
        let flight = Flight {
            key,
            gathering,
            number: in_stream,
            refill,
            options,
            phase: Phase::Due,
            begins,
            deadline: begins + options.timeout,
            to,
            socket: 0,
            sequence: 0,
            cookie: [0; COOKIE_LEN],
            attempts: 0,
            sent: now,
            sent_wall_nanos: 0,
            departed_nanos: None,
            dropped_before: 0,
            errors_before: 0,
        };
        let (deadline, family) = (flight.deadline, options.family);
        let number = self.flights.insert(flight);
        let invalid = |what: String| PingError::InvalidOption(what.into());
        if options.timeout.is_zero() {
            self.fail(number, PingError::Timeout { after: Duration::ZERO });
        } else if let Some(name) = name {
            // In advance of its time, if there is some left: the name may take long.
            self.resolve(number, key, name, family);
            if let Some(flight) = self.flights.get(number) {
                flight.phase = Phase::Resolving;
            }
            self.wheel.set(number, deadline);
        } else if !family.admits(to.ip()) {
            self.fail(number, invalid(format!("{} is not of the wanted address family", to.ip())));
        } else if begins > now {
            self.wheel.set(number, begins);
        } else {
            self.launch(number);
        }
    }

    fn resolve(&mut self, flight: u32, key: Key, name: String, family: super::options::Family) {
        let (asking, telling) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        self.resolving.start(Job {
            name,
            family,
            wanted: Box::new(move || asking.slots.is_waiting(key)),
            done: Box::new(move |found| telling.command(Command::Resolved { flight, key, found })),
        });
    }

    fn resolved(&mut self, number: u32, key: Key, found: Result<SocketAddr, PingError>) {
        let Some(flight) = self.flights.get(number) else { return };
        // Its time may be over, and its number another's.
        if flight.key != key || flight.phase != Phase::Resolving {
            return;
        }
        match found {
            Ok(address) => {
                flight.to = address;
                flight.phase = Phase::Due;
                match flight.begins > self.shared.clock.now() {
                    true => self.wheel.set(number, flight.begins),
                    false => self.launch(number),
                }
            }
            Err(error) => self.fail(number, error),
        }
    }

    /// Gives a flight a socket and a number, and sends it.
    fn launch(&mut self, number: u32) {
        let Some(flight) = self.flights.get(number) else { return };
        if flight.refill
            && let Some((gathering, _)) = &flight.gathering
        {
            gathering.wake();
        }
        if !self.shared.slots.is_waiting(flight.key) {
            self.wheel.clear(number);
            return self.flights.remove(number);
        }
        flight.to = options::reachable(flight.to);
        let kind = Kind { v6: flight.to.is_ipv6(), path_mtu: flight.options.path_mtu };
        if flight.options.source.is_some_and(|source| source.is_ipv6() != kind.v6) {
            let what = "the source is not of the target's address family";
            return self.fail(number, PingError::InvalidOption(what.into()));
        }
        let open = self.channels.iter().position(|channel| channel.kind == kind && channel.sequences.has_free());
        let socket = match open.map_or_else(|| self.open(kind), Ok) {
            Ok(socket) => socket,
            Err(error) => return self.fail(number, error),
        };
        let Some((sequence, before)) = self.channels[socket].sequences.take(number) else { return };
        if let Some(before) = before {
            self.flights.remove(before);
        }
        let dropped_before = self.known_drops(socket);
        let cookie = self.random.next_u64().to_ne_bytes();
        let Some(flight) = self.flights.get(number) else { return };
        flight.phase = Phase::Flying;
        (flight.socket, flight.sequence, flight.cookie) = (socket, sequence, cookie);
        flight.dropped_before = dropped_before;
        let deadline = flight.deadline;
        self.wheel.set(number, deadline);
        let mut outgoing = self.spare.pop().unwrap_or_else(Outgoing::new);
        self.write(number, &mut outgoing);
        self.send(number, outgoing);
    }

    fn write(&mut self, number: u32, outgoing: &mut Outgoing) {
        let Some(flight) = self.flights.get(number) else { return };
        let (options, v6) = (flight.options, flight.to.is_ipv6());
        outgoing.address(flight.to);
        if let Some(ttl) = options.ttl {
            ping::set_ttl(outgoing, v6, ttl);
        }
        if let Some(tos) = options.tos {
            ping::set_tos(outgoing, v6, tos);
        }
        if options.source.is_some() || options.interface.is_some() {
            ping::set_source(outgoing, v6, options.source, options.interface);
        }
        if self.transmit_times {
            ping::ask_transmit_time(outgoing, number);
        }
        let request = if v6 { ECHO_REQUEST_6 } else { ECHO_REQUEST };
        payload::write_request(&options, request, flight.sequence, flight.cookie, outgoing.bytes_mut());
    }

    fn send(&mut self, number: u32, outgoing: Box<Outgoing>) {
        let Some(flight) = self.flights.get(number) else { return };
        flight.attempts += 1;
        flight.sent = self.shared.clock.now();
        flight.sent_wall_nanos = wall_clock_nanos();
        flight.departed_nanos = None;
        let socket = flight.socket;
        flight.errors_before = self.channels[socket].errors;
        self.channels[socket].departing |= self.transmit_times;
        self.io.send(socket, number, outgoing);
    }

    /// A send has ended.
    fn sent(&mut self, sent: ping::Sent) {
        let ping::Sent { socket, tag, errno, outgoing } = sent;
        if errno == 0 {
            self.shared.counters.sent.one();
            return self.spare.push(outgoing);
        }
        // Reading the queue has cleared whatever error was pending.
        self.read_reports(socket);
        let Some(flight) = self.flights.get(tag) else { return };
        let remote = flight.to.ip();
        let others_errors = self.channels[socket].errors != flight.errors_before;
        if flight.phase == Phase::Flying && (flight.attempts < 2 || others_errors && flight.attempts < ATTEMPTS_MAX) {
            return self.send(tag, outgoing);
        }
        self.spare.push(outgoing);
        self.shared.counters.send_failures.one();
        let too_long = self.too_long.iter().rev().find(|(to, _)| *to == remote);
        let mtu = too_long.filter(|_| errno == libc::EMSGSIZE).map(|(_, mtu)| *mtu);
        self.fail(tag, PingError::SendFailed { errno, mtu });
    }

    fn run_timers(&mut self, now: Instant) {
        let mut over = mem::take(&mut self.over);
        self.wheel.turn(now, &mut over);
        for number in over.drain(..) {
            let Some(flight) = self.flights.get(number) else { continue };
            match flight.phase {
                Phase::Due => self.launch(number),
                Phase::Resolving => {
                    let after = flight.options.timeout;
                    self.fail(number, PingError::Timeout { after });
                }
                Phase::Flying => {
                    // An error may lie there that nothing has woken us for.
                    let socket = flight.socket;
                    self.read_reports(socket);
                    if self.flights.get(number).is_some_and(|flight| flight.phase == Phase::Flying) {
                        self.time_out(number);
                    }
                }
                Phase::Cancelled => {
                    let (socket, sequence) = (flight.socket, flight.sequence);
                    self.channels[socket].sequences.give_back(sequence);
                }
                Phase::Answered | Phase::TimedOut | Phase::Failed => {}
            }
        }
        self.over = over;
    }

    fn time_out(&mut self, number: u32) {
        let Some(flight) = self.flights.get(number) else { return };
        let (after, socket, before) = (flight.options.timeout, flight.socket, flight.dropped_before);
        let drops = self.known_drops(socket).wrapping_sub(before);
        let error = match drops {
            0 => PingError::Timeout { after },
            drops => PingError::DroppedHere { after, drops },
        };
        self.finish(number, Phase::TimedOut, Err(error));
    }

    /// What a socket has dropped so far, asked now and then.
    fn known_drops(&mut self, socket: usize) -> u32 {
        let now = self.shared.clock.now();
        let channel = &mut self.channels[socket];
        if now.since(channel.dropped_at) >= DROPS_AGE_MAX {
            let dropped = self.io.sockets()[socket].dropped();
            self.shared.counters.dropped_here.add(u64::from(dropped.wrapping_sub(channel.dropped)));
            (channel.dropped, channel.dropped_at) = (dropped, now);
        }
        channel.dropped
    }

    fn fail(&mut self, number: u32, error: PingError) {
        self.finish(number, Phase::Failed, Err(error));
    }

    /// Ends a flight: `phase` is what it is then. Whether its caller was still there.
    fn finish(&mut self, number: u32, phase: Phase, outcome: Outcome) -> bool {
        let Some(flight) = self.flights.get(number) else { return false };
        let had_number = flight.phase == Phase::Flying;
        let gathering = flight.gathering.take();
        let told = self.shared.slots.finish(flight.key, outcome);
        if told && let Some((gathering, place)) = gathering {
            gathering.announce(place);
            // Of one stream there are often many in a row: it is woken once a turn.
            if !self.to_wake.last().is_some_and(|last| Arc::ptr_eq(last, &gathering)) {
                self.to_wake.push(gathering);
            }
        }
        if !had_number {
            self.wheel.clear(number);
            self.flights.remove(number);
        } else if told || phase == Phase::TimedOut {
            flight.phase = if told { phase } else { Phase::Cancelled };
            let (socket, sequence) = (flight.socket, flight.sequence);
            self.wheel.clear(number);
            self.channels[socket].sequences.give_back(sequence);
        } else {
            // The number rests until the timer, which stays set.
            flight.phase = Phase::Cancelled;
        }
        told
    }

    fn wake_streams(&mut self) {
        for gathering in self.to_wake.drain(..) {
            gathering.wake();
        }
    }

    /// Tells every ping under way that it is over.
    fn give_up(&mut self, error: &PingError) {
        for number in self.flights.numbers() {
            let Some(flight) = self.flights.get(number) else { continue };
            if matches!(flight.phase, Phase::Due | Phase::Resolving | Phase::Flying) {
                self.fail(number, error.clone());
            }
        }
        self.wake_streams();
    }
}
