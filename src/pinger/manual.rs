//! A pinger whose engine is turned by hand, over sockets in memory and in virtual time: for tests and for the fuzzer. The
//! engine, the slots and the futures are the real ones; only thread, kernel and clock are the test's. No privilege, no network.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Pinger;
use super::engine::Engine;
use super::error::PingError;
use super::handle::{Handle, Settings, Shared};
use crate::clock::{Clock, Instant, Manual};
use crate::error::SetupError;
use crate::io;
use crate::io::ping::memory::{MemoryPingIo, Wire};

/// Strays that are kept: more than a test makes.
const STRAYS_MAX: usize = 1 << 12;

/// Turns in a row in which an engine may find something to do: more, and it spins.
const TURNS_MAX: u32 = 10_000;

/// See the module.
pub struct ManualPinger {
    pinger: Pinger,
    engine: Engine<MemoryPingIo>,
    wire: Wire,
    clock: Arc<Manual>,
}

/// Shared with the callers' side, which wants a clock of its own.
struct Shown(Arc<Manual>);

impl Clock for Shown {
    fn now(&self) -> Instant {
        self.0.now()
    }
}

impl ManualPinger {
    /// A pinger with all defaults, at the start of time. Equal seeds, calls and packets make equal runs.
    pub fn new(seed: u64) -> Result<ManualPinger, PingError> {
        ManualPinger::with(Settings { seed: Some(seed), strays_kept: STRAYS_MAX, ..Settings::default() })
    }

    fn with(settings: Settings) -> Result<ManualPinger, PingError> {
        let clock = Arc::new(Manual::default());
        let wire = Wire::new(Arc::clone(&clock));
        let shared = Shared::new(&settings, Box::new(Shown(Arc::clone(&clock))))?;
        let io = MemoryPingIo::new(wire.clone()).map_err(|error| PingError::Broken(Arc::new(error)))?;
        let mut engine = Engine::new(io, Arc::clone(&shared), settings);
        engine.open_first()?;
        let pinger = Pinger { handle: Handle::over(shared, io::Engine::Syscalls) };
        Ok(ManualPinger { pinger, engine, wire, clock })
    }

    /// What its callers have.
    pub fn pinger(&self) -> &Pinger {
        &self.pinger
    }

    /// What its sockets are connected to.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// How late it is.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Lets the engine do what there is to do now.
    pub fn turn(&mut self) -> Result<(), SetupError> {
        for _ in 0..TURNS_MAX {
            self.engine.turn()?;
            if self.wire.asleep().is_some() {
                return Ok(());
            }
        }
        Err(SetupError::new(format!("the engine has had something to do for {TURNS_MAX} turns")))
    }

    /// Lets time pass; the engine wakes whenever it wants to.
    pub fn advance(&mut self, by: Duration) -> Result<(), SetupError> {
        let until = self.now() + by;
        self.turn()?;
        while let Some(Some(next)) = self.wire.asleep()
            && next < until
        {
            self.clock.advance(next.since(self.now()).max(Duration::from_nanos(1)));
            self.turn()?;
        }
        self.clock.advance(until.since(self.now()));
        self.turn()
    }

    /// Lets time pass in which the engine's thread does not run.
    pub fn stall(&mut self, by: Duration) {
        self.clock.advance(by);
    }

    /// Whether what the engine knows agrees with itself; what contradicts.
    pub fn audit(&mut self) -> Result<(), String> {
        self.engine.audit()
    }

    /// Sequence numbers that no other ping can have now.
    pub fn numbers_in_use(&self) -> usize {
        self.engine.numbers_in_use()
    }
}

impl fmt::Debug for ManualPinger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManualPinger({:?})", self.pinger)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
