//! Timers: a hashed wheel of doubly linked lists, so that setting and clearing one costs the same however many there are.
//!
//! A timer is a number (a flight's) and a time. Time is cut into ticks of 2^18 ns (0.26 ms), ticks into rounds of 2^14
//! (4.3 s); a timer stands in the list of its tick, and when it is of a later round it is passed over. A bit for each list
//! says whether anything is in it, so that finding the next tick to wake for is a matter of a few words.
//!
//! A timer runs out at the end of its tick: never early, and at most a tick late.

use crate::clock::Instant;

const TICK_LOG2: u32 = 18;
const TICKS_LOG2: u32 = 14;
const TICKS: usize = 1 << TICKS_LOG2;
const WORD_BITS: usize = 64;

/// No timer.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// The tick after which it has run out; counted from the clock's start.
    tick: u64,
    before: u32,
    after: u32,
    set: bool,
}

const UNSET: Timer = Timer { tick: 0, before: NONE, after: NONE, set: false };

#[derive(Debug)]
pub(super) struct Wheel {
    first: Box<[u32]>,
    /// A bit for each list that is not empty.
    occupied: Box<[u64]>,
    timers: Vec<Timer>,
    /// Ticks up to this one have been looked at.
    done: u64,
    set: usize,
}

fn place_of(tick: u64) -> usize {
    // Fourteen bits.
    usize::try_from(tick).unwrap_or(usize::MAX) & (TICKS - 1)
}

impl Wheel {
    pub(super) fn new(now: Instant) -> Wheel {
        Wheel {
            first: vec![NONE; TICKS].into(),
            occupied: vec![0; TICKS / WORD_BITS].into(),
            timers: Vec::new(),
            done: now.as_nanos() >> TICK_LOG2,
            set: 0,
        }
    }

    /// Sets timer `number`, which is not set, to run out at `at`.
    pub(super) fn set(&mut self, number: u32, at: Instant) {
        self.clear(number);
        let index = number as usize;
        if self.timers.len() <= index {
            self.timers.resize(index + 1, UNSET);
        }
        // Its own tick may have been looked at already: then the next one.
        let tick = (at.as_nanos() >> TICK_LOG2).max(self.done + 1);
        let place = place_of(tick);
        let after = self.first[place];
        self.timers[index] = Timer { tick, before: NONE, after, set: true };
        if let Some(after) = self.timers.get_mut(after as usize) {
            after.before = number;
        }
        self.first[place] = number;
        self.occupied[place / WORD_BITS] |= 1 << (place % WORD_BITS);
        self.set += 1;
    }

    /// Clears timer `number`, set or not.
    pub(super) fn clear(&mut self, number: u32) {
        let Some(timer) = self.timers.get_mut(number as usize).filter(|timer| timer.set) else { return };
        let Timer { tick, before, after, .. } = std::mem::replace(timer, UNSET);
        let place = place_of(tick);
        match self.timers.get_mut(before as usize) {
            Some(before) => before.after = after,
            None => self.first[place] = after,
        }
        if let Some(after) = self.timers.get_mut(after as usize) {
            after.before = before;
        }
        if self.first[place] == NONE {
            self.occupied[place / WORD_BITS] &= !(1 << (place % WORD_BITS));
        }
        self.set -= 1;
    }

    /// Whether timer `number` is set.
    pub(super) fn is_set(&self, number: u32) -> bool {
        self.timers.get(number as usize).is_some_and(|timer| timer.set)
    }

    /// Clears the timers that have run out by `now`, and appends their numbers to `over`.
    pub(super) fn turn(&mut self, now: Instant, over: &mut Vec<u32>) {
        // The tick that `now` is in has not ended.
        let until = (now.as_nanos() >> TICK_LOG2).saturating_sub(1);
        // After a pause of more than a round each list is looked at once.
        let from = (self.done + 1).max(until.saturating_sub(TICKS as u64 - 1));
        let already = over.len();
        for tick in from..=until {
            let place = place_of(tick);
            if self.occupied[place / WORD_BITS] & 1 << (place % WORD_BITS) == 0 {
                continue;
            }
            let mut number = self.first[place];
            while let Some(timer) = self.timers.get(number as usize) {
                if timer.tick <= until {
                    over.push(number);
                }
                number = timer.after;
            }
        }
        self.done = self.done.max(until);
        for number in &over[already..] {
            self.clear(*number);
        }
    }

    /// The time to turn it next: when the next timer runs out, or earlier. None if no timer is set.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.set == 0 {
            return None;
        }
        let start = place_of(self.done + 1);
        let words = self.occupied.len();
        for step in 0..=words {
            let word = (start / WORD_BITS + step) % words;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % WORD_BITS);
            } else if step == words {
                bits &= !(u64::MAX << (start % WORD_BITS));
            }
            if bits != 0 {
                let place = word * WORD_BITS + bits.trailing_zeros() as usize;
                let ahead = (place + TICKS - start) % TICKS;
                let tick = self.done + 1 + ahead as u64;
                return Some(Instant::from_nanos((tick + 1) << TICK_LOG2));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = 1 << TICK_LOG2;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn a_timer_runs_out_after_its_time_and_within_a_tick() {
        let mut wheel = Wheel::new(at(0));
        let due = 10 * TICK + 17;
        wheel.set(3, at(due));
        let mut over = Vec::new();
        wheel.turn(at(due), &mut over);
        assert!(over.is_empty());
        assert_eq!(wheel.next(), Some(at(11 * TICK)));
        wheel.turn(at(11 * TICK), &mut over);
        assert_eq!((over.as_slice(), wheel.next()), (&[3][..], None));
    }

    #[test]
    fn a_later_round_is_not_this_one() {
        let mut wheel = Wheel::new(at(0));
        let round = TICK * TICKS as u64;
        wheel.set(1, at(5 * TICK + round));
        wheel.set(2, at(5 * TICK));
        let mut over = Vec::new();
        wheel.turn(at(6 * TICK), &mut over);
        assert_eq!(over, [2]);
        wheel.turn(at(6 * TICK + round), &mut over);
        assert_eq!(over, [2, 1]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_list(
            steps in prop::collection::vec((0..40_u32, 0..12_000_u64, 0..3_000_u64, any::<bool>()), 1..200)
        ) {
            let mut now = 77_000_000_000_u64;
            let mut wheel = Wheel::new(at(now));
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (number, in_ms, pause_ms, clear) in steps {
                if clear {
                    wheel.clear(number);
                    model.remove(&number);
                } else {
                    let due = now + in_ms * 1_000_000;
                    wheel.set(number, at(due));
                    model.insert(number, due);
                }
                let next = wheel.next();
                prop_assert_eq!(next.is_some(), !model.is_empty());
                if let (Some(next), Some(earliest)) = (next, model.values().min()) {
                    prop_assert!(next.as_nanos() <= earliest + 2 * TICK, "it would wake too late");
                }
                now += pause_ms * 1_000_000;
                let mut over = Vec::new();
                wheel.turn(at(now), &mut over);
                for number in over {
                    let due = model.remove(&number);
                    prop_assert!(due.is_some_and(|due| due <= now), "early, or not set: {:?} at {}", due, now);
                }
                prop_assert!(model.values().all(|due| due + 2 * TICK > now), "left behind");
            }
        }
    }
}
