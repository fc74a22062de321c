//! Whether every worker moves.
//!
//! A worker counts its turns, which costs one addition a batch. A worker that has nothing to do sleeps and turns no more
//! often than the tables need: so whoever looks wakes each worker that has not turned since the last look, and at the
//! next look it has, unless it is stuck. A busy worker is never woken.

use std::time::Duration;

use super::Observer;
use crate::clock::Instant;

/// How often to look. An idle worker is woken as often.
pub const PULSE_INTERVAL: Duration = Duration::from_secs(1);

/// A worker that has not turned for so long, though woken, is stuck: some looks long, so that a machine with much to do
/// is not taken for one that stands still.
const STILL_MIN: Duration = Duration::from_secs(4);

/// A worker that does not move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Still {
    /// Its number.
    pub worker: usize,
    /// For how long.
    pub time: Duration,
}

/// Looks at the workers' turns now and then.
#[derive(Debug)]
pub struct Pulse {
    /// Each worker's turns when they were last seen to have changed, and when that was.
    moved: Vec<(u64, Instant)>,
}

impl Pulse {
    /// Begins to look now.
    pub fn new(observer: &Observer, now: Instant) -> Pulse {
        Pulse { moved: observer.turns().map(|turns| (turns, now)).collect() }
    }

    /// Looks, and wakes who has not turned since the last look. To be called every [`PULSE_INTERVAL`], or more often.
    pub fn look(&mut self, observer: &Observer, now: Instant) {
        self.look_at(observer.turns(), now, |worker| observer.wake(worker));
    }

    fn look_at(&mut self, turns: impl Iterator<Item = u64>, now: Instant, mut wake: impl FnMut(usize)) {
        for (worker, (turns, moved)) in turns.zip(&mut self.moved).enumerate() {
            if *moved == (turns, moved.1) {
                wake(worker);
            } else {
                *moved = (turns, now);
            }
        }
    }

    /// The worker that has stood still for longest, if one does not move.
    pub fn still(&self, now: Instant) -> Option<Still> {
        let still = self.moved.iter().enumerate().map(|(worker, (_, at))| Still { worker, time: now.since(*at) });
        still.filter(|still| still.time >= STILL_MIN).max_by_key(|still| still.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_sleeps_is_woken_and_one_that_does_not_turn_even_then_is_told() {
        let at = |seconds| Instant::START + Duration::from_secs(seconds);
        let mut pulse = Pulse { moved: vec![(0, at(0)); 3] };
        let (mut busy, mut sleeping, stuck) = (0, 0, 0);
        for second in 1..=8 {
            busy += 1000;
            let mut woken = Vec::new();
            pulse.look_at([busy, sleeping, stuck].into_iter(), at(second), |worker| woken.push(worker));
            assert!(!woken.contains(&0), "a busy worker is let alone");
            assert!(woken.contains(&2));
            sleeping += u64::from(woken.contains(&1));
            let expected = (second >= 4).then(|| Still { worker: 2, time: Duration::from_secs(second) });
            assert_eq!(pulse.still(at(second)), expected);
        }
        assert!(sleeping >= 4, "every second look finds it asleep");
        pulse.look_at([busy, sleeping, 1].into_iter(), at(9), |_| {});
        assert_eq!(pulse.still(at(9)), None, "it moves again");
    }
}
