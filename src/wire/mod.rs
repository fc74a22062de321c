//! Packets as bytes: checked views that read and rewrite in place, and builders.
//!
//! A view is made by its `check`, which looks at every length that the packet states and holds them against the bytes
//! there are; what it found is remembered in the view. After that no accessor panics or reads outside the packet,
//! whatever was written through the view meanwhile. Setters carry the checksum along by RFC 1624 and never recompute
//! one, so that damage stays visible to whoever the packet is for.
//!
//! Rejected: structs parsed out and serialised again. That copies each packet twice, and has to get every field right
//! that nobody here cares about.

pub mod build;
pub mod error;
pub mod fragment;
pub mod icmpv4;
pub mod ipv4;
pub mod quote;
pub mod transport;

/// The big-endian 16-bit word at `at`. Panics outside `bytes`: only for offsets that a `check` has covered.
#[inline]
fn word_at(bytes: &[u8], at: usize) -> u16 {
    // As a slice: one bounds check and one load, where two indexes would be two of each.
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// Writes the big-endian 16-bit word at `at`. Panics outside `bytes`: only for offsets that a `check` has covered.
#[inline]
fn put_word(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}
