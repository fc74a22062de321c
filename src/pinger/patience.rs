//! When the engine looks at its sockets while nobody is in a hurry.
//!
//! A stream may say how long its answers may wait to be told ([`PingMany::told_within`](super::PingMany::told_within)). While
//! only pings of such streams are under way, replies do not wake the engine: it sleeps to the next timer, whatever arrives,
//! and looks at the sockets once within the shortest of those times. The round-trip times are none the worse for it: the
//! kernel has stamped when a request left and when its reply came.
//!
//! A look is best taken when the engine is awake anyway, to send; and as late as it may be. So within the second half of
//! the time the first waking counts, unless there is another one to come before the time is over.

use std::time::Duration;

use crate::clock::Instant;

#[derive(Debug)]
pub(super) struct Patience {
    /// Pings that have been sent and are not over, whose callers wait for them.
    prompt: usize,
    /// And those whose callers have time.
    patient: usize,
    /// How much, at least. Shorter than it might be when those with the least have had their outcome.
    shortest: Duration,
    looked: Instant,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Patience {
        Patience { prompt: 0, patient: 0, shortest: Duration::ZERO, looked: now }
    }

    /// A ping has been sent whose outcome may be told so late.
    pub(super) fn begin(&mut self, patience: Duration, now: Instant) {
        if patience.is_zero() {
            self.prompt += 1;
            return;
        }
        if self.patient == 0 {
            (self.shortest, self.looked) = (patience, now);
        }
        self.shortest = self.shortest.min(patience);
        self.patient += 1;
    }

    /// It is over.
    pub(super) fn end(&mut self, patience: Duration) {
        let count = if patience.is_zero() { &mut self.prompt } else { &mut self.patient };
        *count = count.saturating_sub(1);
    }

    /// The pings that have been sent and are not over.
    pub(super) fn under_way(&self) -> usize {
        self.prompt + self.patient
    }

    /// Until when what arrives may lie. None: it has to wake the engine.
    pub(super) fn look_by(&self) -> Option<Instant> {
        (self.prompt == 0 && self.patient > 0).then(|| self.looked + self.shortest)
    }

    /// Whether now is the time to look, if `next` is when the engine will be awake again for another reason.
    pub(super) fn is_due(&self, now: Instant, next: Option<Instant>) -> bool {
        self.look_by().is_none_or(|by| {
            let may_be_the_last = next.is_none_or(|next| next > by);
            now >= by || may_be_the_last && now >= self.looked + self.shortest / 2
        })
    }

    /// The sockets have been looked at, and had no more.
    pub(super) fn looked(&mut self, now: Instant) {
        self.looked = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn who_is_in_a_hurry_is_not_kept_waiting_by_who_is_not() {
        let mut patience = Patience::new(at(0));
        assert_eq!(patience.look_by(), None, "for what nobody waits for");
        patience.begin(10 * MS, at(100));
        assert_eq!(patience.look_by(), Some(at(110)));
        patience.begin(4 * MS, at(101));
        assert_eq!(patience.look_by(), Some(at(104)), "the least patience counts");
        patience.begin(Duration::ZERO, at(102));
        assert_eq!(patience.look_by(), None);
        patience.end(Duration::ZERO);
        assert_eq!(patience.look_by(), Some(at(104)));
        patience.end(10 * MS);
        patience.end(4 * MS);
        assert_eq!(patience.look_by(), None);
    }

    #[test]
    fn one_looks_when_one_is_awake_anyway_for_the_last_time() {
        let mut patience = Patience::new(at(0));
        patience.begin(10 * MS, at(100));
        assert!(!patience.is_due(at(104), None), "there is time");
        assert!(patience.is_due(at(106), None));
        assert!(!patience.is_due(at(106), Some(at(109))), "there is another waking before it is over");
        assert!(patience.is_due(at(106), Some(at(111))));
        assert!(patience.is_due(at(110), Some(at(110))), "time is over");
        patience.looked(at(110));
        assert!(!patience.is_due(at(111), None));
    }
}
