//! What all models of protocols have in common (`src/table/models.rs`, `src/pinger/models.rs`; `scripts/models` runs them): how
//! one is explored.
//!
//! A model that explores nothing passes, and one that explores less than it did shows less. So each says how many executions it
//! has, to the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs the model in every way there is, from each of these beginnings, as many ways as are `expected`.
pub(crate) fn explore<B: Copy + Send + Sync + 'static>(
    beginnings: &[B],
    expected: usize,
    model: impl Fn(B) + Send + Sync + 'static,
) {
    let executions = Arc::new(AtomicUsize::new(0));
    let model = Arc::new(model);
    for &beginning in beginnings {
        let (executions, model) = (Arc::clone(&executions), Arc::clone(&model));
        loom::model(move || {
            executions.fetch_add(1, Ordering::Relaxed); // std's: the checker does not see it
            model(beginning);
        });
    }
    let executions = executions.load(Ordering::Relaxed);
    println!("{executions} executions");
    assert_eq!(executions, expected, "another model than was thought about: look again what it explores");
}
