//! The packet process that waits to take another one's place: when there is to be one, and what becomes of it.
//!
//! It is started once the one before it serves, not at once: its start takes some ten milliseconds of a CPU, which the packets need that
//! have waited in the meantime. One that ends while it waits costs nobody anything: it is said, and another one is tried, ever
//! later, since what has ended it may end that one too.
//!
//! It has been given the configuration and the descriptors, so it ends before either of them changes.

use std::time::{Duration, Instant};

use super::child::Spare;
use super::said::Fault;
use super::{FAILURE_TIME, complain};
use crate::error::SetupError;

/// How long after another one serves it is started.
const PAUSE: Duration = Duration::from_millis(50);

/// How long nobody is started after one has failed: doubled each time.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
const DOUBLINGS_MAX: u32 = 8;

/// Whoever waits, or is to wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    spare: Option<Spare>,
    wanted: Option<Instant>,
    /// In a row.
    failures: u32,
}

impl Waiting {
    /// There is to be one, in a moment.
    pub(super) fn want_soon(&mut self) {
        if self.spare.is_none() {
            self.want_after(PAUSE);
        }
    }

    /// When one is to be started.
    pub(super) fn wanted(&self) -> Option<Instant> {
        self.wanted
    }

    /// This one waits from now on; or none, for this reason.
    pub(super) fn set(&mut self, spare: Result<Spare, SetupError>) {
        self.wanted = None;
        match spare {
            Ok(spare) => self.spare = Some(spare),
            Err(why) => self.fail(&why),
        }
    }

    /// The one that waits, to begin.
    pub(super) fn take(&mut self) -> Option<Spare> {
        self.wanted = None;
        self.spare.take()
    }

    /// The one of this number has said what it lacks.
    pub(super) fn hear(&mut self, number: u64, fault: Fault) {
        if let Some(spare) = self.spare.as_mut().filter(|spare| spare.number == number) {
            spare.fault = Some(fault);
        }
    }

    /// The one of this number has hung up.
    pub(super) fn hear_end(&mut self, number: u64) {
        if let Some(mut spare) = self.spare.take_if(|spare| spare.number == number) {
            if spare.started.elapsed() >= FAILURE_TIME {
                self.failures = 0;
            }
            self.fail(&spare.why());
        }
    }

    /// Ends it, for what it knows is about to change; none is to be started now.
    pub(super) fn end(&mut self) {
        if let Some(spare) = self.take() {
            spare.end();
        }
    }

    fn fail(&mut self, why: &SetupError) {
        let pause = FAILURE_PAUSE * (1 << self.failures.min(DOUBLINGS_MAX));
        self.failures += 1;
        complain(why, "nobody waits to take the packet process's place, for a while");
        self.want_after(pause);
    }

    fn want_after(&mut self, pause: Duration) {
        self.wanted = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_it_is_tried_ever_later_and_not_for_ever_so() {
        let mut waiting = Waiting::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let before = Instant::now();
            waiting.set(Err(SetupError::new("no memory")));
            pauses.push(waiting.wanted().unwrap().duration_since(before).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256]);
        waiting.end();
        assert!(waiting.wanted().is_none() && waiting.take().is_none());
    }
}
