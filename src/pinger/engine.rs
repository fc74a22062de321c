//! The engine: the one thread that sends, receives and times.
//!
//! A turn, in this order: commands are taken, and what they ask for is queued to be sent; the wait sends it, and sleeps
//! until something arrives, a timer runs out or a command comes; the error queues are read (departures first of all, or a
//! reply could not be measured from its request's), then the replies; then the timers, by the time *before* the wait. So a
//! reply that had arrived before its ping's time was over is seen before that, however long this thread did not run.
//!
//! While nobody is in a hurry (`patience`), most turns do not look at what has arrived: they send, and sleep until the next
//! timer or command. A ping whose time runs out in such a turn is overdue: it times out in the next turn that looks, once
//! what had arrived has been seen.

mod answers;
mod audit;
mod requests;

use std::mem;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;
use rand::rngs::StdRng;

use super::error::{self, PingError};
use super::flights::{Flight, Flights, Phase};
use super::handle::{Command, Settings, Shared};
use super::many::Gathering;
use super::patience::Patience;
use super::resolve::Resolving;
use super::sequences::{NUMBERS, Sequences};
use super::slots::{Key, Outcome};
use super::wheel::Wheel;
use crate::clock::Instant;
use crate::error::SetupError;
use crate::io::Engine as Chosen;
use crate::io::ping::{self, Events, Kind, Outgoing, PathMtu, PingIo, Report, SyscallsPingIo, UringPingIo};
use crate::table::idents;

/// Requests that one turn begins: few enough that the first is on its way before the last has been written.
const BEGUN_MAX: usize = 32;

/// Attempts at one send. The first may fail with the error of another request; later ones only if more errors keep coming in.
const ATTEMPTS_MAX: u8 = 32;

/// Turns in a row in which a socket had something to report, and nothing was there: no longer pings' errors, but a socket that
/// fails, on which this thread would spin for ever.
const FUTILE_MAX: u32 = 1_000_000;

/// Turns in a row that leave the timers alone because more replies are waiting; each brings some dozens.
const TIMERS_LEFT_MAX: u32 = 64;

/// How old the known number of a socket's drops may be.
const DROPS_AGE_MAX: Duration = Duration::from_millis(10);

const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_6: u8 = 128;

/// The whole life of the engine's thread.
pub(super) fn run(shared: Arc<Shared>, mut settings: Settings, ready: &Sender<Result<Chosen, PingError>>) {
    let broken = |error| PingError::Broken(Arc::new(error));
    let chosen = match ping::choose(settings.backend) {
        Ok(chosen) => chosen,
        Err(error) => return drop(ready.send(Err(broken(error)))),
    };
    settings.transmit_times &= ping::knows_transmit_times();
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
    // A waker that panics is its task's own; each time at least one more ping has been told.
    while panic::catch_unwind(AssertUnwindSafe(|| shared.end(end.clone()))).is_err() {}
    for _ in 0..=engine.flights.numbers().len() {
        if panic::catch_unwind(AssertUnwindSafe(|| engine.give_up(&end))).is_ok() {
            break;
        }
    }
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
    /// Its error queue has been read in this turn.
    read: bool,
}

pub(super) struct Engine<I> {
    io: I,
    shared: Arc<Shared>,
    receive_buffer_bytes: u32,
    transmit_times: bool,
    /// Sockets of one kind: numbers for all pings that may be under way, and as many again for those that rest.
    sockets_max: usize,
    channels: Vec<Channel>,
    flights: Flights,
    wheel: Wheel,
    random: StdRng,
    resolving: Resolving,
    events: Events,
    reported: Vec<Report>,
    /// Whose requests were too long in this turn, and what fits.
    too_long: Vec<(IpAddr, u32)>,
    over: Vec<u32>,
    patience: Patience,
    /// Their time ran out in a turn that did not look at what had arrived.
    overdue: Vec<(u32, Key)>,
    #[expect(clippy::vec_box, reason = "what is being sent must not move")]
    spare: Vec<Box<Outgoing>>,
    /// Streams that have an outcome they have not been woken for.
    to_wake: Vec<Arc<Gathering>>,
    /// One of these outcomes is to be told at once.
    urgent: bool,
    timers_left: u32,
    futile: u32,
}

impl<I: PingIo> Engine<I> {
    pub(super) fn new(io: I, shared: Arc<Shared>, settings: Settings) -> Engine<I> {
        let now = shared.clock.now();
        Engine {
            io,
            shared,
            receive_buffer_bytes: settings.receive_buffer_bytes,
            transmit_times: settings.transmit_times,
            sockets_max: 2 * settings.in_flight_max.div_ceil(NUMBERS),
            channels: Vec::new(),
            flights: Flights::default(),
            wheel: Wheel::new(now),
            random: idents::generator(settings.seed),
            resolving: Resolving::new(settings.resolver),
            events: Events::default(),
            reported: Vec::new(),
            too_long: Vec::new(),
            over: Vec::new(),
            patience: Patience::new(now),
            overdue: Vec::new(),
            spare: Vec::new(),
            to_wake: Vec::new(),
            urgent: false,
            timers_left: 0,
            futile: 0,
        }
    }

    /// Opens the socket that most pings need, so that who may not ping hears of it at once. One sysctl rules both families,
    /// so IPv6 is asked only where there is no IPv4.
    pub(super) fn open_first(&mut self) -> Result<(), PingError> {
        let kind = |v6| Kind { v6, path_mtu: PathMtu::System };
        match self.open(kind(false)) {
            Err(PingError::Broken(error)) if error.errno() == Some(libc::EAFNOSUPPORT) => self.open(kind(true)),
            result => result,
        }
        .map(drop)
    }

    /// Opens a further socket; its number.
    fn open(&mut self, kind: Kind) -> Result<usize, PingError> {
        self.io.open(kind, self.receive_buffer_bytes).map_err(|error| error::no_socket(kind, error))?;
        let dropped = self.io.dropped(self.channels.len());
        let dropped_at = self.shared.clock.now();
        self.channels.push(Channel {
            kind,
            sequences: Sequences::new(),
            dropped,
            dropped_at,
            errors: 0,
            departing: false,
            read: false,
        });
        Ok(self.channels.len() - 1)
    }

    /// One turn, as the module tells it.
    pub(super) fn turn(&mut self) -> Result<(), SetupError> {
        let now = self.shared.clock.now();
        for _ in 0..BEGUN_MAX {
            let Some(command) = self.shared.next_command() else { break };
            match command {
                Command::Ping { key, ask, asked } => self.begin(key, ask, asked, now),
                Command::Resolved { flight, key, found } => self.resolved(flight, key, found),
            }
        }
        let next = self.wheel.next();
        let look = self.patience.is_due(now, next);
        self.tell_streams(false);
        let by = next.into_iter().chain(self.patience.look_by()).min();
        let may_sleep = self.shared.may_sleep();
        // What is overdue, or is looked at for patience's sake, is not to wait for something to arrive.
        let at_once = !may_sleep || look && (self.patience.look_by().is_some() || !self.overdue.is_empty());
        let timeout = if at_once { Some(Duration::ZERO) } else { by.map(|by| by.since(now)) };
        let waited = match look {
            true => self.io.wait(&mut self.events, timeout),
            false => self.io.pause(&mut self.events, timeout),
        };
        self.shared.woke();
        waited?;
        let seen_all = self.settle(now, look);
        self.tell_streams(seen_all);
        if self.futile > FUTILE_MAX {
            return Err(SetupError::new("a ping socket fails again and again, and does not say why"));
        }
        Ok(())
    }

    /// Deals with what a wait has brought. Whether all that had arrived has been seen: it was `looked` at, and is no more.
    fn settle(&mut self, before: Instant, looked: bool) -> bool {
        let mut events = mem::take(&mut self.events);
        let had_reason = events.troubled.is_empty() || !events.arrivals.is_empty() || !events.sent.is_empty();
        self.futile = if had_reason { 0 } else { self.futile + 1 };
        // Whatever is to be measured: a pause too brings what has been received without its doing.
        let measures = looked || !events.arrivals.is_empty();
        for number in 0..self.channels.len() {
            self.channels[number].read = false;
            let departing = measures && mem::take(&mut self.channels[number].departing);
            if departing || events.troubled.contains(&number) {
                self.read_reports(number);
            }
        }
        events.troubled.clear();
        for sent in events.sent.drain(..) {
            self.sent(sent);
        }
        self.too_long.clear();
        let more = mem::take(&mut events.more) && self.timers_left < TIMERS_LEFT_MAX;
        if !events.arrivals.is_empty() {
            let (now, wall_nanos) = (self.shared.clock.now(), self.io.wall_clock_nanos());
            for arrival in events.arrivals.drain(..) {
                self.arrived(&arrival, now, wall_nanos);
            }
        }
        self.events = events;
        if more {
            self.timers_left += 1;
            return false;
        }
        self.timers_left = 0;
        if looked {
            self.patience.looked(before);
        }
        self.run_timers(before, looked);
        looked
    }

    fn run_timers(&mut self, now: Instant, looked: bool) {
        if looked {
            self.time_out_overdue();
        }
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
                Phase::Flying if !looked => self.overdue.push((number, flight.key)),
                Phase::Flying => {
                    // Silence is said of nobody before the queue has been looked at: an error that a failing send has
                    // cleared wakes nobody, and a look a turn costs nothing beside what is told.
                    let socket = flight.socket;
                    if !self.channels[socket].read {
                        self.read_reports(socket);
                    }
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

    /// What had arrived has been seen; whoever still waits waits in vain.
    fn time_out_overdue(&mut self) {
        let mut overdue = mem::take(&mut self.overdue);
        for (number, key) in overdue.drain(..) {
            // It may be over, and its number another's.
            let waits = |flight: &mut Flight| flight.key == key && flight.phase == Phase::Flying;
            if self.flights.get(number).is_some_and(waits) {
                self.time_out(number);
            }
        }
        self.overdue = overdue;
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
            let dropped = self.io.dropped(socket);
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
        let (gathering, patience) = (flight.gathering.take(), flight.patience);
        let told = self.shared.slots.finish(flight.key, outcome);
        if told && let Some((gathering, place)) = gathering {
            gathering.announce(place);
            self.urgent |= patience.is_zero();
            // Of one stream there are often many in a row: it is woken once a turn.
            if !self.to_wake.last().is_some_and(|last| Arc::ptr_eq(last, &gathering)) {
                self.to_wake.push(gathering);
            }
        }
        if had_number {
            self.patience.end(patience);
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
            // The number rests until the timer; that of what is overdue has run out, and is set again.
            flight.phase = Phase::Cancelled;
            let deadline = flight.deadline;
            self.wheel.set(number, deadline);
        }
        told
    }

    /// Wakes those whose outcomes have come, unless they have time and there are more to come.
    fn tell_streams(&mut self, seen_all: bool) {
        if mem::take(&mut self.urgent) || seen_all || self.patience.look_by().is_none() {
            self.wake_streams();
        }
    }

    fn wake_streams(&mut self) {
        // One by one: should one's task panic, the others are still there.
        while let Some(gathering) = self.to_wake.pop() {
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
