//! Time as a value. Nothing on the packet path reads a clock: `now` is an argument, read once a batch.
//!
//! An [`Instant`] counts nanoseconds from an arbitrary start and never goes back. Jumps of the wall clock do not
//! touch it: the real clock is `CLOCK_MONOTONIC`.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A point in time, in nanoseconds since the clock's start. 64 bits last 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's start.
    pub const START: Instant = Instant(0);

    /// The instant `nanos` nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the start.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time from `earlier` to here; zero if `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time instead of wrapping.
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A source of instants. Two of them: [`Monotonic`] for real, [`Manual`] for tests and simulations.
pub trait Clock {
    /// The current instant; never earlier than one returned before.
    fn now(&self) -> Instant;
}

/// The machine's monotonic clock, counted from when this value was made, or from where it was told.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic {
    made: std::time::Instant,
    read: Instant,
}

impl Monotonic {
    /// A clock that starts now.
    #[expect(clippy::new_without_default, reason = "reads the clock: not a default value")]
    pub fn new() -> Monotonic {
        Monotonic::reading(Instant::START)
    }

    /// A clock that reads `now` now: for instants that have a meaning beyond this process.
    pub fn reading(now: Instant) -> Monotonic {
        Monotonic { made: std::time::Instant::now(), read: now }
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Instant {
        self.read + self.made.elapsed()
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct Manual(AtomicU64);

impl Manual {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: the value is all there is; no other memory is published with it.
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Instant {
        // Relaxed: see `advance`.
        Instant(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_moves_only_when_told() {
        let clock = Manual::default();
        assert_eq!(clock.now(), Instant::START);
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.now().as_millis(), 1500);
        assert_eq!(clock.now().since(Instant::from_nanos(1)), Duration::from_nanos(1_499_999_999));
    }

    #[test]
    fn instants_neither_wrap_nor_go_negative() {
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end + Duration::MAX, end);
        assert_eq!(Instant::START.since(end), Duration::ZERO);
    }

    #[test]
    fn monotonic_does_not_go_back() {
        let clock = Monotonic::new();
        let first = clock.now();
        assert!(clock.now() >= first);
    }
}
