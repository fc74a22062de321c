//! Preallocated packet buffers and the handles that own them. (Skeleton: the io helper writes this.)

use std::ops::{Deref, DerefMut};

/// A packet in its buffer. Owned and move-only; derefs to the packet's bytes; dropping it gives the buffer back.
#[derive(Debug)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// Cuts the packet to `len` bytes (trailing padding goes). Longer than it is: no change.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
