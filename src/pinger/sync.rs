//! What the slots synchronise with: std's and the crates', or the model checker's in the build that `scripts/models` makes
//! (`--cfg loom`).

#[cfg(not(loom))]
pub(super) use std::sync::{Mutex, MutexGuard, atomic::AtomicU64, atomic::AtomicUsize};

#[cfg(not(loom))]
pub(super) use atomic_waker::AtomicWaker;
#[cfg(not(loom))]
pub(super) use crossbeam::queue::SegQueue;
#[cfg(loom)]
pub(super) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU64, atomic::AtomicUsize};

#[cfg(loom)]
pub(super) use model::{AtomicWaker, SegQueue};

/// What the checker has none of, or under other names.
#[cfg(loom)]
mod model {
    use std::collections::VecDeque;
    use std::task::Waker;

    use loom::sync::Mutex;

    /// Registering and waking happen one after the other, and who comes second has seen the first: as with the crate's, whose
    /// every operation is a read-modify-write of one word.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicWaker(Mutex<Option<Waker>>);

    impl AtomicWaker {
        pub(crate) fn register(&self, waker: &Waker) {
            *self.0.lock().expect("no panic") = Some(waker.clone());
        }

        pub(crate) fn wake(&self) {
            if let Some(waker) = self.take() {
                waker.wake();
            }
        }

        pub(crate) fn take(&self) -> Option<Waker> {
            self.0.lock().expect("no panic").take()
        }
    }

    /// A queue that orders who pops after who pushed, and promises no more.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T>(Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> SegQueue<T> {
            SegQueue(Mutex::new(VecDeque::new()))
        }

        pub(crate) fn push(&self, value: T) {
            self.0.lock().expect("no panic").push_back(value);
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.0.lock().expect("no panic").pop_front()
        }
    }
}
