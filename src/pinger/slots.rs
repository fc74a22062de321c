//! Where a ping's caller and the engine meet: one slot a ping under way.
//!
//! A slot's word holds a generation and a state, and the word alone decides who has the slot:
//!
//! ```text
//!            acquire                 finish
//!   FREE g ----------> WAITING g ------------> DONE g
//!     ^                    |                      |
//!     +--- g + 1, cancel --+------ g + 1, take ---+
//! ```
//!
//! * `acquire` and `take` are the caller's, who is alone with the slot then. `finish` is the engine's, with the generation
//!   that the request had. `cancel` is one compare-and-swap from WAITING g: it succeeds, and whatever the engine still
//!   has under g is void; or the ping is DONE, and the caller takes the result. No message, no wait for the engine.
//! * A result is a value of many words, and is handed over in a lock beside the word. The engine, the only one who
//!   puts results there, holds the lock from before it writes to after its compare-and-swap; if that fails (cancelled,
//!   and perhaps taken by another ping already) it takes the result out again. Nobody reads a result before DONE. So
//!   the lock is as good as never contended; it is what hands over a large value without `unsafe`.
//! * The lock orders what is in it, and the queue of free slots who comes after whom. The orderings of the word say the same once
//!   more: with all of them Relaxed no model fails. They stand so that each step is right by what is beside it.
//! * Slots stand in chunks that double in size and never move, so that a number is found without a lock while more are
//!   added.
//!
//! `models` has the protocol tried in every order (`scripts/models`).

use std::sync::atomic::Ordering;
use std::sync::{OnceLock, PoisonError};
use std::task::Waker;

use super::error::PingError;
use super::reply::Reply;
use super::sync::{AtomicU64, AtomicUsize, AtomicWaker, Mutex, MutexGuard, SegQueue};

/// What a ping comes to.
pub(super) type Outcome = Result<Reply, PingError>;

/// Two under the model checker, for which each is work.
const FIRST_CHUNK_LOG2: u32 = if cfg!(loom) { 1 } else { 8 };
const CHUNKS: usize = 24;

const STATE: u64 = 0b11;
const FREE: u64 = 0;
const WAITING: u64 = 1;
const DONE: u64 = 2;
const GENERATION: u64 = STATE + 1;

/// The number of a slot and the generation under which it was acquired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    number: u32,
    /// The generation, its state bits zero. 62 bits: it does not come round.
    generation: u64,
}

#[derive(Debug, Default)]
struct Slot {
    word: AtomicU64,
    waker: AtomicWaker,
    result: Mutex<Option<Outcome>>,
}

impl Slot {
    fn result(&self) -> MutexGuard<'_, Option<Outcome>> {
        // A panic while it was held leaves a whole value or none.
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// Slots that exist; those above have never been used.
    made: AtomicUsize,
    free: SegQueue<u32>,
    in_use: AtomicUsize,
    limit: usize,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Slots {
        Slots {
            chunks: [const { OnceLock::new() }; CHUNKS],
            made: AtomicUsize::new(0),
            free: SegQueue::new(),
            in_use: AtomicUsize::new(0),
            limit,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Slots in use now.
    pub(super) fn in_use(&self) -> usize {
        // Relaxed: a number for people and for the limit, which publishes nothing.
        self.in_use.load(Ordering::Relaxed)
    }

    /// A slot for a new ping, unless as many as may be are in use.
    pub(super) fn acquire(&self) -> Option<Key> {
        // Relaxed, here and below: see `in_use`. Counted before it is taken, so that no two pass the limit together.
        if self.in_use.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            // Relaxed: only the number counts; its chunk is published by the OnceLock.
            None => u32::try_from(self.made.fetch_add(1, Ordering::Relaxed)).ok()?,
        };
        let slot = self.slot(number);
        // Relaxed: the queue has ordered us after whoever freed it; nobody else writes to a free slot's word.
        let generation = slot.word.load(Ordering::Relaxed) & !STATE;
        // Release: pairs with `finish`'s Acquire.
        slot.word.store(generation | WAITING, Ordering::Release);
        Some(Key { number, generation })
    }

    /// Gives a ping its result, unless it was cancelled: whether it was not.
    pub(super) fn finish(&self, key: Key, outcome: Outcome) -> bool {
        let slot = self.slot(key.number);
        let mut result = slot.result();
        let displaced = result.replace(outcome);
        let finished = slot.word.compare_exchange(
            key.generation | WAITING,
            key.generation | DONE,
            // AcqRel: the result is published to `poll`'s Acquire; and we come after `acquire`'s Release.
            Ordering::AcqRel,
            // Relaxed: nothing is done with the slot then.
            Ordering::Relaxed,
        );
        if finished.is_err() {
            *result = displaced;
            return false;
        }
        drop(result);
        slot.waker.wake();
        true
    }

    /// Whether the ping is still waited for.
    pub(super) fn is_waiting(&self, key: Key) -> bool {
        // Relaxed: a hint that saves work; `finish` decides.
        self.slot(key.number).word.load(Ordering::Relaxed) == key.generation | WAITING
    }

    /// Takes the result, which ends the ping, or has `waker` woken when there is one.
    pub(super) fn poll(&self, key: Key, waker: &Waker) -> Option<Outcome> {
        let slot = self.slot(key.number);
        slot.waker.register(waker);
        // Acquire: pairs with `finish`'s Release. After the registration, or a result in between would wake nobody.
        if slot.word.load(Ordering::Acquire) != key.generation | DONE {
            return None;
        }
        let outcome = slot.result().take();
        // Release: pairs, by the queue of free slots, with the next `acquire`.
        slot.word.store(key.generation.wrapping_add(GENERATION) | FREE, Ordering::Release);
        self.release(key.number);
        outcome
    }

    /// Ends the ping: nobody wants its result any more.
    pub(super) fn cancel(&self, key: Key) {
        let slot = self.slot(key.number);
        let free = key.generation.wrapping_add(GENERATION) | FREE;
        let cancelled = slot.word.compare_exchange(
            key.generation | WAITING,
            free,
            // Release: pairs, by the queue of free slots, with the next `acquire`. Acquire on failure: pairs with
            // `finish`'s Release; the result is ours to drop.
            Ordering::Release,
            Ordering::Acquire,
        );
        if cancelled.is_err() {
            drop(slot.result().take());
            // Release: as above.
            slot.word.store(free, Ordering::Release);
        }
        self.release(key.number);
    }

    fn release(&self, number: u32) {
        // Or the task that was waiting would live until the slot's next use.
        drop(self.slot(number).waker.take());
        // Relaxed: see `in_use`.
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        self.free.push(number);
    }

    fn slot(&self, number: u32) -> &Slot {
        // Chunk n has 2^(FIRST_CHUNK_LOG2 + n) slots and begins at that minus 2^FIRST_CHUNK_LOG2.
        let place = u64::from(number) + (1 << FIRST_CHUNK_LOG2);
        let log2 = place.ilog2();
        let chunk = (log2 - FIRST_CHUNK_LOG2) as usize;
        let within = place - (1 << log2);
        let slots = self.chunks[chunk].get_or_init(|| (0..1_u64 << log2).map(|_| Slot::default()).collect());
        // Below 2^log2, which is the chunk's length.
        &slots[usize::try_from(within).unwrap_or(usize::MAX)]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;
    use std::thread;

    use super::*;

    fn failed() -> Outcome {
        Err(PingError::Cancelled)
    }

    #[test]
    fn a_result_goes_to_the_ping_that_it_was_for() {
        let slots = Slots::new(10);
        let (first, second) = (slots.acquire().unwrap(), slots.acquire().unwrap());
        assert!(slots.poll(first, Waker::noop()).is_none());
        assert!(slots.finish(second, Err(PingError::TooMany { limit: 7 })));
        assert!(slots.poll(first, Waker::noop()).is_none());
        assert!(matches!(slots.poll(second, Waker::noop()), Some(Err(PingError::TooMany { limit: 7 }))));
        assert_eq!(slots.in_use(), 1);
    }

    #[test]
    fn what_is_late_for_a_cancelled_ping_does_not_reach_the_slots_next_one() {
        let slots = Slots::new(1);
        let cancelled = slots.acquire().unwrap();
        assert!(slots.acquire().is_none(), "the limit holds");
        slots.cancel(cancelled);
        let next = slots.acquire().unwrap();
        assert!(!slots.finish(cancelled, failed()));
        assert!(!slots.is_waiting(cancelled) && slots.is_waiting(next));
        assert!(slots.poll(next, Waker::noop()).is_none());
        assert!(slots.finish(next, failed()));
        slots.cancel(next);
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn a_number_is_found_in_every_chunk() {
        let slots = Slots::new(usize::MAX);
        let keys: Vec<Key> = (0..5000).map(|_| slots.acquire().unwrap()).collect();
        for key in &keys {
            assert!(slots.finish(*key, failed()));
        }
        assert!(keys.iter().all(|key| slots.poll(*key, Waker::noop()).is_some()));
        assert_eq!(slots.in_use(), 0);
    }

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Flag>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_freed_slot_keeps_no_task_alive() {
        let slots = Slots::new(1);
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let key = slots.acquire().unwrap();
        assert!(slots.poll(key, &Arc::clone(&flag).into()).is_none());
        assert_eq!(Arc::strong_count(&flag), 2);
        slots.cancel(key);
        assert_eq!(Arc::strong_count(&flag), 1);
    }

    #[test]
    fn of_a_cancel_and_a_result_at_once_one_wins_and_the_slot_is_free() {
        let slots = Slots::new(4);
        for _ in 0..2000 {
            let key = slots.acquire().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| slots.finish(key, failed()));
                scope.spawn(|| slots.cancel(key));
            });
            assert_eq!(slots.in_use(), 0);
            // Left behind, it would be read as the next ping's.
            assert!(slots.slot(key.number).result().is_none());
        }
    }
}
