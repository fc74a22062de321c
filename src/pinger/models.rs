//! Models of the slots' protocol: what a ping's caller and the engine may do to one another, under every interleaving
//! (`scripts/models`; `src/table/models.rs` says what such a model is worth). The slots are the pinger's own code; the queue of free ones and the waker
//! are models of what their crates promise (`sync`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use loom::sync::Mutex;
use loom::thread;

use super::error::PingError;
use super::slots::{Key, Outcome, Slots};
use crate::error::SetupError;
use crate::models::explore;

/// An outcome that can be told from others.
fn outcome(number: usize) -> Outcome {
    Err(PingError::TooMany { limit: number })
}

fn number(outcome: Outcome) -> usize {
    match outcome {
        Err(PingError::TooMany { limit }) => limit,
        other => panic!("an outcome that nobody gave: {other:?}"),
    }
}

/// Slots for one ping at a time, and one under way.
fn slots() -> (Arc<Slots>, Key) {
    let slots = Slots::new(1);
    let key = slots.acquire().expect("a free slot");
    (Arc::new(slots), key)
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Flag>) {
        self.0.store(true, Ordering::SeqCst); // std's: the checker does not see it
    }
}

/// There is one order in which the threads begin.
const AS_WRITTEN: &[()] = &[()];

#[test]
fn of_a_cancel_and_a_result_one_wins_and_the_slot_is_free() {
    explore(AS_WRITTEN, 7, |()| {
        let (slots, key) = slots();
        let cause = Arc::new(SetupError::new("a result that can be counted"));
        let engine = {
            let slots = Arc::clone(&slots);
            let outcome = Err(PingError::Broken(Arc::clone(&cause)));
            thread::spawn(move || slots.finish(key, outcome))
        };
        slots.cancel(key);
        engine.join().expect("no panic");
        assert_eq!((slots.in_use(), Arc::strong_count(&cause)), (0, 1), "the slot is free, and keeps no result");
        let next = slots.acquire().expect("the slot is free");
        assert!(slots.poll(next, Waker::noop()).is_none());
        assert!(slots.finish(next, outcome(2)));
        assert_eq!(slots.poll(next, Waker::noop()).map(number), Some(2));
    });
}

#[test]
fn a_result_is_found_or_wakes_whoever_looked_too_early() {
    explore(AS_WRITTEN, 25, |()| {
        let (slots, key) = slots();
        let engine = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || assert!(slots.finish(key, outcome(1))))
        };
        let flag = Arc::new(Flag::default());
        let found = slots.poll(key, &Waker::from(Arc::clone(&flag)));
        engine.join().expect("no panic");
        let found = match found {
            Some(found) => found,
            None => {
                assert!(flag.0.load(Ordering::SeqCst), "nobody would look again");
                slots.poll(key, Waker::noop()).expect("it is there")
            }
        };
        assert_eq!((number(found), slots.in_use()), (1, 0));
    });
}

/// The engine has a result for a ping whose caller drops it and at once begins another, in the same slot, which the engine
/// finishes too if it has heard of it; and then there is yet something about the first.
#[test]
fn what_was_for_a_dropped_ping_never_reaches_the_slots_next_one() {
    explore(AS_WRITTEN, 1868, |()| {
        let (slots, first) = slots();
        let commands = Arc::new(Mutex::new(None));
        let engine = {
            let (slots, commands) = (Arc::clone(&slots), Arc::clone(&commands));
            thread::spawn(move || {
                slots.finish(first, outcome(1));
                let second: Option<Key> = commands.lock().expect("no panic").take();
                if let Some(second) = second {
                    assert!(slots.finish(second, outcome(2)), "nobody has cancelled it");
                    assert!(!slots.finish(first, outcome(3)), "it is not there any more");
                }
                second.is_some()
            })
        };
        slots.cancel(first);
        let second = slots.acquire().expect("the slot is free");
        *commands.lock().expect("no panic") = Some(second);
        let early = slots.poll(second, Waker::noop());
        let finished = engine.join().expect("no panic");
        let found = early.or_else(|| slots.poll(second, Waker::noop()));
        assert_eq!(found.map(number), finished.then_some(2));
        if !finished {
            slots.cancel(second);
        }
        assert_eq!(slots.in_use(), 0);
    });
}

/// Two callers, one slot: whoever gets it has it alone, and the engine's result for one is not the other's. `end` is what the
/// first does when it has its result.
fn two_callers(end: fn(&Slots, Key)) {
    explore(AS_WRITTEN, 13, move |()| {
        let (slots, first) = slots();
        let other = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                slots.acquire().is_none_or(|key| {
                    assert!(slots.poll(key, Waker::noop()).is_none(), "another's result");
                    assert!(slots.finish(key, outcome(2)), "nobody has cancelled it");
                    slots.poll(key, Waker::noop()).map(number) == Some(2)
                })
            })
        };
        assert!(slots.finish(first, outcome(1)));
        end(&slots, first);
        assert!(other.join().expect("no panic"), "its own result");
        assert_eq!(slots.in_use(), 0);
        assert!(slots.acquire().is_some(), "a failed attempt left the count as it was");
        assert!(!slots.finish(first, outcome(3)), "whoever has the slot now, it is not the first");
    });
}

#[test]
fn a_slot_whose_result_is_taken_is_the_next_callers_alone() {
    two_callers(|slots, first| assert_eq!(slots.poll(first, Waker::noop()).map(number), Some(1)));
}

#[test]
fn a_slot_that_is_dropped_with_its_result_is_the_next_callers_alone() {
    two_callers(Slots::cancel);
}

#[test]
fn of_two_that_want_the_last_slot_one_at_most_gets_it() {
    explore(AS_WRITTEN, 4, |()| {
        let (slots, used) = slots();
        slots.cancel(used);
        let other = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.acquire().is_some())
        };
        let (one, other) = (slots.acquire().is_some(), other.join().expect("no panic"));
        assert!(!(one && other), "more are under way than may be");
        assert_eq!(slots.in_use(), usize::from(one || other));
    });
}
