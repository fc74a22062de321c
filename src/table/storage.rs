//! Where a table lies: in memory of its own, or in memory that outlives the process that uses it.
//!
//! A table that lies elsewhere is lent for as long as the process runs. Whoever lends it has made sure that it is nothing but
//! atomics, so that whatever is in there is some value of theirs, however it came to be.

use std::ops::Deref;

/// A table's memory.
#[derive(Debug)]
pub enum Storage<T: 'static> {
    /// The process's own.
    Own(Box<[T]>),
    /// Lent, and shared with whoever lends it.
    Lent(&'static [T]),
}

impl<T: Default> Storage<T> {
    /// Memory of our own, as `T` begins.
    pub(super) fn own(len: usize) -> Storage<T> {
        Storage::Own((0..len).map(|_| T::default()).collect())
    }
}

impl<T> Deref for Storage<T> {
    type Target = [T];

    // Both have pointer and length in the same place: this is no branch, and costs a packet nothing.
    fn deref(&self) -> &[T] {
        match self {
            Storage::Own(own) => own,
            Storage::Lent(lent) => lent,
        }
    }
}
