//! How long a packet process has said nothing, in the keeper's own time.
//!
//! A clock alone would not do. Where a machine stands still as a whole (a container that is paused, a virtual machine that moves, more
//! to do than there is time for) the packet process says nothing for as long as the keeper hears nothing, and would be killed for it in the
//! moment in which everything goes on. So the keeper looks once a second, and a look that comes late counts no more than [`LOOK_MAX`]:
//! what adds up is time in which a packet process could have spoken, if it was treated as its keeper was.
//!
//! A packet process that gets no CPU for all that time while its keeper does is not told from one that hangs. Another one in its place
//! will have none either, and after a few of them pings take the kernel's path, as they should.

use std::time::{Duration, Instant};

/// How long it may be.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How often to look, and the most that a look counts.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    looked: Instant,
    counted: Duration,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Silence {
        Silence { looked: now, counted: Duration::ZERO }
    }

    /// When to look next.
    pub(super) fn next_look(&self) -> Instant {
        self.looked + LOOK
    }

    /// Looks; `heard`: when something was heard last. Whether it has lasted too long.
    pub(super) fn look(&mut self, heard: Instant, now: Instant) -> bool {
        let since = now.duration_since(self.looked).min(LOOK_MAX);
        self.counted = if heard > self.looked { Duration::ZERO } else { self.counted + since };
        self.looked = now;
        self.counted >= SILENCE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_says_nothing_is_noticed_after_the_time_and_one_that_speaks_never() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(start);
        for second in 1..100 {
            assert!(!silence.look(at(second) - LOOK / 2, at(second)));
        }
        // From the first look at which nothing new had been heard.
        let noticed = (100..200).find(|second| silence.look(at(98), at(*second)));
        assert_eq!(noticed, Some(99 + SILENCE_MAX.as_secs()));
    }

    #[test]
    fn a_time_in_which_the_keeper_did_not_run_either_counts_little() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut now = start;
        // Paused four times in a row, for an hour each, before anything could be heard.
        for _ in 0..4 {
            now += Duration::from_secs(3600);
            assert!(!silence.look(start, now));
        }
        assert!(!silence.look(now + LOOK / 2, now + LOOK), "it speaks");
        assert_eq!(silence.next_look(), now + 2 * LOOK);
    }

    /// The supervisor hears that all is well a quarter of its patience late, and nothing while a packet process is silent, ends and is
    /// replaced: it must not end the keeper for what the keeper is just mending.
    #[test]
    fn the_units_watchdog_waits_longer_than_the_keeper_needs_to_replace_a_packet_process_twice() {
        let unit = include_str!("../../packaging/echogate.service");
        let patience = unit.lines().find_map(|line| line.strip_prefix("WatchdogSec=")).expect("it has a watchdog");
        let patience = Duration::from_secs(patience.parse().expect("seconds"));
        let needed = SILENCE_MAX + LOOK_MAX + super::super::child::ENDING_MAX + 2 * super::super::STARTING_MAX;
        assert!(patience * 3 / 4 > needed, "{patience:?} for {needed:?}");
    }
}
