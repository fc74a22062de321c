//! The tables' atomics: std's, or the checkers' in the builds that `scripts/models` (`--cfg loom`) and `scripts/schedules`
//! (`--cfg shuttle`) make.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(shuttle)]
pub use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(any(loom, shuttle)))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
