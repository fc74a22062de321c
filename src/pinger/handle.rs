//! The callers' side: how a ping gets to the engine, and how the engine begins and ends.

use std::fmt;
use std::net::SocketAddr;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task;
use std::thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam::channel;
use crossbeam::queue::{ArrayQueue, SegQueue};

use super::IN_FLIGHT_MAX_DEFAULT;
use super::counters::Counters;
use super::engine;
use super::error::PingError;
use super::many::Gathering;
use super::options::{PingOptions, Target};
use super::reply::Stray;
use super::resolve::Resolver;
use super::slots::{Key, Outcome, Slots};
use crate::clock::{Clock, Instant, Monotonic};
use crate::error::SetupError;
use crate::io::{Backend, Engine, Waker};

const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

/// What a pinger is made with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) backend: Backend,
    pub(super) receive_buffer_bytes: u32,
    pub(super) in_flight_max: usize,
    pub(super) transmit_times: bool,
    pub(super) strays_kept: usize,
    pub(super) resolver: Resolver,
    /// What cookies come from, where they are to come again: the system's generator if not said.
    pub(super) seed: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            backend: Backend::Auto,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
            in_flight_max: IN_FLIGHT_MAX_DEFAULT,
            transmit_times: true,
            strays_kept: 0,
            resolver: Resolver::default(),
            seed: None,
        }
    }
}

/// A ping to be.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) target: Target,
    pub(super) options: PingOptions,
    /// When it is to be sent; at once, if not said.
    pub(super) at: Option<Instant>,
    /// Its number in its stream.
    pub(super) number: u64,
    /// Whether its sending is announced: the stream then hands over more.
    pub(super) refill: bool,
    /// How late its outcome may be told.
    pub(super) patience: Duration,
    /// Where its end is announced besides its slot.
    pub(super) gathering: Option<(Arc<Gathering>, u32)>,
}

/// What the engine is told.
#[derive(Debug)]
pub(super) enum Command {
    Ping {
        key: Key,
        ask: Ask,
        /// When it was asked for: its time counts from there, or from when it is due.
        asked: Instant,
    },
    Resolved {
        flight: u32,
        key: Key,
        found: Result<SocketAddr, PingError>,
    },
}

/// What callers, engine and resolvers share.
pub(super) struct Shared {
    pub(super) slots: Slots,
    pub(super) counters: Counters,
    pub(super) strays: Option<ArrayQueue<Stray>>,
    /// Who waits for strays.
    pub(super) strays_waker: AtomicWaker,
    pub(super) clock: Box<dyn Clock + Send + Sync>,
    commands: SegQueue<Command>,
    /// The engine waits, or is about to.
    asleep: AtomicBool,
    waker: Waker,
    stop: AtomicBool,
    /// Why no ping can be had any more, once that is so.
    ended: OnceLock<PingError>,
    /// The engine's thread has let go of everything.
    gone: (Mutex<bool>, Condvar),
}

impl Shared {
    pub(super) fn new(settings: &Settings, clock: Box<dyn Clock + Send + Sync>) -> Result<Arc<Shared>, PingError> {
        Ok(Arc::new(Shared {
            slots: Slots::new(settings.in_flight_max),
            counters: Counters::default(),
            strays: (settings.strays_kept > 0).then(|| ArrayQueue::new(settings.strays_kept)),
            strays_waker: AtomicWaker::new(),
            clock,
            commands: SegQueue::new(),
            asleep: AtomicBool::new(false),
            waker: Waker::new().map_err(|error| PingError::Broken(Arc::new(error)))?,
            stop: AtomicBool::new(false),
            ended: OnceLock::new(),
            gone: (Mutex::new(false), Condvar::new()),
        }))
    }

    pub(super) fn command(&self, command: Command) {
        self.commands.push(command);
        // SeqCst: pairs with the fence in `may_sleep`. Of the two, the engine sees the command or we see it asleep.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it. Swapped, so that of many callers one pays for the wake-up.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    pub(super) fn next_command(&self) -> Option<Command> {
        self.commands.pop()
    }

    /// Says that the engine is going to sleep; whether it may.
    pub(super) fn may_sleep(&self) -> bool {
        // Relaxed: the fence orders it.
        self.asleep.store(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `command`.
        fence(Ordering::SeqCst);
        self.commands.is_empty() && !self.must_stop()
    }

    pub(super) fn woke(&self) {
        // Relaxed: who sees the old value wakes once too often.
        self.asleep.store(false, Ordering::Relaxed);
    }

    pub(super) fn must_stop(&self) -> bool {
        // Acquire: pairs with the Release of `Handle::stop`.
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// From now on every ping fails with `error`, those included that have been handed over and not been taken.
    pub(super) fn end(&self, error: PingError) {
        let error = self.ended.get_or_init(|| error).clone();
        // SeqCst: pairs with the fence in `Handle::ask`. Of the two, the caller sees the end or we see its ping.
        fence(Ordering::SeqCst);
        while let Some(command) = self.commands.pop() {
            if let Command::Ping { key, ask, .. } = command
                && self.slots.finish(key, Err(error.clone()))
                && let Some((gathering, place)) = ask.gathering
            {
                gathering.announce(place);
                gathering.wake();
            }
        }
    }

    /// The last that the engine's thread does.
    pub(super) fn let_go(&self) {
        *self.gone.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.gone.1.notify_all();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} under way", self.slots.in_use())
    }
}

/// One engine, as its callers hold it. Dropping the last ends it.
#[derive(Debug)]
pub(super) struct Handle {
    shared: Arc<Shared>,
    engine: Engine,
    /// The process that the engine's thread is in.
    process: u32,
}

impl Handle {
    /// Starts an engine and waits until it is ready.
    pub(super) fn start(settings: Settings) -> Result<Arc<Handle>, PingError> {
        let broken = |error| PingError::Broken(Arc::new(error));
        let shared = Shared::new(&settings, Box::new(Monotonic::new()))?;
        let (ready, readiness) = channel::bounded(1);
        let for_engine = Arc::clone(&shared);
        thread::Builder::new()
            .name("pinger".to_owned())
            .spawn(move || engine::run(for_engine, settings, &ready))
            .map_err(|error| broken(SetupError::caused("cannot start the pinger's thread", error)))?;
        let ended = || broken(SetupError::new("the pinger's thread ended before it was ready"));
        let engine = readiness.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Handle::over(shared, engine))
    }

    /// The handle of an engine that somebody else has made.
    pub(super) fn over(shared: Arc<Shared>, engine: Engine) -> Arc<Handle> {
        Arc::new(Handle { shared, engine, process: process::id() })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn now(&self) -> Instant {
        self.shared.clock.now()
    }

    /// Hands a ping to the engine.
    pub(super) fn ask(self: &Arc<Handle>, ask: Ask) -> Result<Ticket, PingError> {
        let shared = &self.shared;
        if let Some(error) = shared.ended.get() {
            return Err(error.clone());
        }
        self.is_here()?;
        let key = shared.slots.acquire().ok_or(PingError::TooMany { limit: shared.slots.limit() })?;
        let ticket = Ticket { handle: Arc::clone(self), key: Some(key) };
        shared.command(Command::Ping { key, ask, asked: self.now() });
        // `command` has a fence of its own: see `Shared::end`.
        match shared.ended.get() {
            // Dropping the ticket frees the slot.
            Some(error) => Err(error.clone()),
            None => Ok(ticket),
        }
    }

    /// A forked process has this value, and no engine: whoever waited for it would wait for ever.
    fn is_here(&self) -> Result<(), PingError> {
        if process::id() == self.process {
            return Ok(());
        }
        Err(PingError::Broken(Arc::new(
            SetupError::new("this process was forked from the one that this pinger works in")
                .remedy("make a pinger after the fork"),
        )))
    }

    /// Ends the engine and waits for its end.
    pub(super) fn stop(&self, patience: Duration) {
        // Release: pairs with the Acquire of `must_stop`.
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        let gone = self.shared.gone.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.shared.gone.1.wait_timeout_while(gone, patience, |gone| !*gone);
    }
}

impl Drop for Handle {
    /// Does not wait for the engine's end: it may be dropped by a task that must not wait.
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// A ping under way, for whoever waits for it. Dropping it cancels the ping.
#[derive(Debug)]
pub(super) struct Ticket {
    handle: Arc<Handle>,
    /// None when the outcome has been taken.
    key: Option<Key>,
}

impl Ticket {
    /// The outcome, once; or has `waker` woken when there is one.
    pub(super) fn poll(&mut self, waker: &task::Waker) -> Option<Outcome> {
        let Some(outcome) = self.handle.shared.slots.poll(self.key?, waker) else {
            return self.handle.is_here().err().map(Err);
        };
        self.key = None;
        Some(outcome)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.handle.shared.slots.cancel(key);
        }
    }
}
