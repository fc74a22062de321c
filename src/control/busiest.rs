//! Who pings most and who is pinged most, from samples: the busiest addresses in bounded memory (Space-Saving, Metwally and
//! others 2005), over the last two windows.
//!
//! A full sketch gives the place of its least busy address to a new one, which takes over its count: so counts are never too
//! low, and too high by that much at most. Whoever has more than one in [`PLACES`] of the samples is in it for sure.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Instant;

/// Addresses that a sketch holds.
const PLACES: usize = 256;

/// How long a window is. What is told is of the last whole one and of the one begun.
const WINDOW: Duration = Duration::from_secs(10);

/// One side's busiest addresses.
#[derive(Debug)]
pub(super) struct Busiest {
    current: Sketch,
    last: Sketch,
    began: Instant,
    /// How long the last whole window was; none before there was one.
    last_time: Duration,
}

/// What samples say of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    /// Samples of it; and how many of them may have been another's.
    pub(super) count: u64,
    pub(super) error: u64,
    /// Replies to sampled requests, and the sum of their round trips in microseconds.
    pub(super) answered: u64,
    pub(super) answered_us: u64,
}

impl Busiest {
    pub(super) fn new(now: Instant) -> Busiest {
        let (current, last) = (Sketch::default(), Sketch::default());
        Busiest { current, last, began: now, last_time: Duration::ZERO }
    }

    pub(super) fn asked(&mut self, address: Ipv4Addr) {
        self.current.count(address);
    }

    pub(super) fn answered(&mut self, address: Ipv4Addr, after: Duration) {
        // Only of those that are busy: a reply makes nobody so.
        if let Some(tally) = self.current.tallies.get_mut(&address) {
            tally.answered += 1;
            tally.answered_us += u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        }
    }

    /// Begins a new window when it is time.
    pub(super) fn turn(&mut self, now: Instant) {
        let time = now.since(self.began);
        if time >= WINDOW {
            self.last = std::mem::take(&mut self.current);
            self.last_time = time;
            self.began = now;
        }
    }

    /// The busiest `count`, the first the busiest, and the time that their tallies are of.
    pub(super) fn top(&self, count: usize, now: Instant) -> (Vec<(Ipv4Addr, Tally)>, Duration) {
        let mut sum = self.last.tallies.clone();
        for (address, tally) in &self.current.tallies {
            let of_both = sum.entry(*address).or_default();
            of_both.count += tally.count;
            of_both.error += tally.error;
            of_both.answered += tally.answered;
            of_both.answered_us += tally.answered_us;
        }
        let mut top: Vec<(Ipv4Addr, Tally)> = sum.into_iter().collect();
        top.sort_by_key(|(address, tally)| (u64::MAX - tally.count, *address));
        top.truncate(count);
        (top, self.last_time + now.since(self.began))
    }
}

#[derive(Debug, Default)]
struct Sketch {
    tallies: HashMap<Ipv4Addr, Tally>,
}

impl Sketch {
    fn count(&mut self, address: Ipv4Addr) {
        if let Some(tally) = self.tallies.get_mut(&address) {
            tally.count += 1;
            return;
        }
        let mut inherited = 0;
        if self.tallies.len() == PLACES {
            // Of equals the smallest address, so that equal samples make equal sketches.
            let least = self.tallies.iter().min_by_key(|(address, tally)| (tally.count, **address));
            if let Some((least, count)) = least.map(|(address, tally)| (*address, tally.count)) {
                self.tallies.remove(&least);
                inherited = count;
            }
        }
        self.tallies.insert(address, Tally { count: inherited + 1, error: inherited, ..Tally::default() });
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number)
    }

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    #[test]
    fn the_busy_are_found_among_a_hundred_thousand_that_ping_once_and_no_count_is_too_low() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut busiest = Busiest::new(at(0));
        let mut truth = [0_u64; 8];
        for once in 0..100_000 {
            busiest.asked(address(1000 + once));
            // The first twice as often as the second, and so on.
            for (busy, count) in truth.iter_mut().enumerate() {
                if rng.random_bool(0.5_f64.powi(1 + i32::try_from(busy).expect("small"))) {
                    busiest.asked(address(u32::try_from(busy).expect("small")));
                    *count += 1;
                }
            }
        }
        assert!(busiest.current.tallies.len() <= PLACES);
        let (top, time) = busiest.top(5, at(5));
        assert_eq!(time, Duration::from_secs(5));
        for (place, (found, tally)) in top.iter().enumerate() {
            assert_eq!(*found, address(u32::try_from(place).expect("small")), "{top:?}");
            assert!(tally.count >= truth[place] && tally.count - tally.error <= truth[place], "{tally:?} {truth:?}");
        }
    }

    #[test]
    fn two_windows_are_told_and_the_third_is_forgotten() {
        let mut busiest = Busiest::new(at(0));
        busiest.asked(address(1));
        busiest.answered(address(1), Duration::from_millis(2));
        busiest.answered(address(9), Duration::from_millis(2));
        busiest.turn(at(10));
        busiest.asked(address(2));
        let (both, time) = busiest.top(9, at(15));
        let tally = Tally { count: 1, answered: 1, answered_us: 2000, ..Tally::default() };
        assert_eq!((&both[0], both[1].0, both.len()), (&(address(1), tally), address(2), 2));
        assert_eq!(time, Duration::from_secs(15));
        busiest.turn(at(20));
        let (later, _) = busiest.top(9, at(20));
        assert_eq!(later.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [address(2)]);
    }
}
