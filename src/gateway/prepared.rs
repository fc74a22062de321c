//! The packets' part of a gateway that another process has set up and keeps, up to the moment in which it may use the tables.
//!
//! What takes time does not need them: descriptors are looked at, the tables' memory is mapped and every page of it is there, each worker
//! has its thread, its ring and its buffers. So a process can wait in this state until another one that uses the tables
//! has ended; what is left is one scan of them. Nothing is written to the tables and nothing is received until then.

use std::os::fd::OwnedFd;

use super::workers::Workers;
use super::{Gateway, Holding, Steps, kept, settings};
use crate::clock::{Clock as _, Monotonic};
use crate::config::Config;
use crate::error::SetupError;
use crate::io::{self, Engine};
use crate::proxy::{Found, Foundation};
use crate::state::{self, State};

/// Everything but the use of the tables.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    engine: Engine,
    state: State,
    foundation: Foundation,
    workers: Workers,
    clock: Monotonic,
}

impl Prepared {
    /// Workers over descriptors and tables that another process keeps. What is missing of the set-up (the diversion, the watch over
    /// the addresses) is with whoever keeps it. `trial`: what [`io::uring::probe`] has shown in this process.
    pub fn new(
        config: &Config,
        tables: OwnedFd,
        find: impl FnMut(&str) -> Option<OwnedFd>,
        trial: Result<(), SetupError>,
        steps: &mut Steps,
    ) -> Result<Prepared, SetupError> {
        let mut config = config.clone();
        let state = State::open(tables, &kept::shape(&config));
        let state = state.map_err(|foreign| SetupError::new(format!("the tables are not to be used: {foreign}")))?;
        // With those that drain, which the configuration names no more.
        config.outside.addresses = state.addresses();
        config.validate()?;
        let holding = Holding::adopt(config.run.workers as usize, find)?;
        if !holding.sends_from(config.outside.addresses.len()) {
            return Err(SetupError::new("the send sockets are not those of the tables' addresses"));
        }
        steps.end_of("descriptors");
        state.bring_in();
        let foundation = Foundation::over(&settings(&config), state.tables())?;
        steps.end_of("memory");
        let engine = io::choose_by(config.run.io, || trial)?;
        let clock = state::clock()?;
        let workers = Workers::assemble(&config, engine, holding, clock)?;
        steps.end_of("workers");
        Ok(Prepared { config, engine, state, foundation, workers, clock })
    }

    /// Goes on with what is in the tables, which nobody else uses any more.
    pub fn serve(self, steps: &mut Steps) -> Result<Gateway, SetupError> {
        let Prepared { config, engine, state, foundation, workers, clock } = self;
        let (proxy, found) = foundation.take_up(state.last_used(), clock.now());
        steps.end_of("tables");
        // Before they are answered or given up, which is counted where it happens.
        let counters = workers.counters().worker(0);
        counters.outstanding.add(found.outstanding);
        counters.unanswered.add(found.unanswered);
        let mut gateway = Gateway::serve(&config, engine, &proxy, workers, clock)?;
        steps.end_of("handles");
        if found.slots.torn > 0 {
            tracing::warn!(slots = found.slots.torn, "some mappings were damaged: their clients get others");
        }
        if found != Found::default() {
            let (mappings, echoes) = (found.slots.mappings, found.outstanding);
            tracing::info!(mappings, echoes, "goes on with what was there");
        }
        gateway.state = Some(state);
        Ok(gateway)
    }
}
