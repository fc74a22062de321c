//! The gateway's addresses outside: which they are, which of them are lost or drain, and how many idents are ready on each.
//!
//! An address has a number, by which slots and send sockets know it, for as long as the gateway runs. What the number
//! stands for can change (the host's default address does), and an address can be lost (the host has it no more) and
//! come back. Both are rare, are written by one thread, and take effect packet by packet: a packet that is judged meanwhile
//! may still leave from the old address, and its send then fails.
//!
//! An address that the configuration names no more *drains*: its mappings go on for as long as they are used, and no new ones
//! are made on it. Which addresses drain is decided between two packet processes, not while packets are judged.

use std::net::Ipv4Addr;

use super::atomic::{AtomicU32, Ordering};
use super::{ADDRESSES_MAX, Storage};
use crate::canary::{Canary, is_loose};

/// All of them, by their numbers.
#[derive(Debug)]
pub struct Addresses {
    current: Storage<AtomicU32>,
    /// Idents that are ready on each, all owners' together.
    ready: Box<[AtomicU32]>,
    /// Two words, each by bit: which are lost, and which drain.
    marks: Storage<AtomicU32>,
}

/// The words of marks.
pub const MARKS: usize = 2;
const LOST: usize = 0;
const DRAINING: usize = 1;

impl Addresses {
    /// These, none lost; the first [`ADDRESSES_MAX`].
    pub fn new(addresses: &[Ipv4Addr]) -> Addresses {
        let current = addresses.iter().take(ADDRESSES_MAX).map(|address| AtomicU32::new(u32::from(*address)));
        Addresses::over(Storage::Own(current.collect()), Storage::own(MARKS))
    }

    /// Those that `current` has; `marks` ([`MARKS`] words) say by bit which of them are lost, and which drain.
    pub fn over(current: Storage<AtomicU32>, marks: Storage<AtomicU32>) -> Addresses {
        let ready = current.iter().map(|_| AtomicU32::new(0)).collect();
        Addresses { current, ready, marks }
    }

    /// All of them as they are now.
    pub fn list(&self) -> Vec<Ipv4Addr> {
        self.current.iter().map(|current| Ipv4Addr::from(current.load(Ordering::Relaxed))).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// The address of this number.
    #[inline]
    pub fn get(&self, number: u8) -> Option<Ipv4Addr> {
        // Relaxed, as all here: each word is all there is.
        Some(Ipv4Addr::from(self.current.get(usize::from(number))?.load(Ordering::Relaxed)))
    }

    /// The number of this address.
    #[inline]
    pub fn number_of(&self, address: Ipv4Addr) -> Option<u8> {
        let wanted = u32::from(address);
        (0..)
            .zip(self.current.iter())
            .find(|(_, current)| current.load(Ordering::Relaxed) == wanted)
            .map(|(number, _)| number)
    }

    /// Whether this is one of them.
    #[inline]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.number_of(address).is_some()
    }

    /// Lets the number stand for another address.
    pub fn replace(&self, number: u8, address: Ipv4Addr) {
        if let Some(current) = self.current.get(usize::from(number)) {
            current.store(address.into(), Ordering::Relaxed);
        }
    }

    /// Says whether the address of this number is lost. By one thread only.
    pub fn set_lost(&self, number: u8, lost: bool) {
        self.mark(LOST, number, lost);
    }

    /// Says whether the address of this number drains. By the thread that says which are lost.
    pub fn set_draining(&self, number: u8, draining: bool) {
        self.mark(DRAINING, number, draining);
    }

    fn mark(&self, word: usize, number: u8, marked: bool) {
        let bit = 1 << (u32::from(number) % u32::BITS);
        let before = self.marked(word);
        let after = if marked { before | bit } else { before & !bit };
        if let Some(word) = self.marks.get(word) {
            word.store(after, Ordering::Relaxed);
        }
    }

    #[inline]
    fn marked(&self, word: usize) -> u32 {
        self.marks.get(word).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The lost ones, by bit.
    #[inline]
    pub fn lost(&self) -> u32 {
        self.marked(LOST)
    }

    /// Whether the address of this number is lost.
    #[inline]
    pub fn is_lost(&self, number: u8) -> bool {
        self.lost() >> (u32::from(number) % u32::BITS) & 1 != 0
    }

    /// Whether the address of this number drains.
    pub fn is_draining(&self, number: u8) -> bool {
        self.marked(DRAINING) >> (u32::from(number) % u32::BITS) & 1 != 0
    }

    /// Whether no new mapping is made on the address of this number.
    pub fn is_closed(&self, number: u8) -> bool {
        self.is_lost(number) || self.is_draining(number) && !is_loose(Canary::NeverDrained)
    }

    /// How many idents are ready on the address of this number, whoever owns them.
    pub fn ready(&self, number: u8) -> u32 {
        self.ready.get(usize::from(number)).map_or(0, |ready| ready.load(Ordering::Relaxed))
    }

    /// Whether one is.
    pub fn has_ident(&self, number: u8) -> bool {
        self.ready(number) > 0
    }

    /// An owner has so many more idents ready.
    pub(super) fn add_ready(&self, number: u8, count: usize) {
        if let Some(ready) = self.ready.get(usize::from(number)) {
            ready.fetch_add(u32::try_from(count).unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// An owner has one ident less.
    pub(super) fn take_ready(&self, number: u8) {
        if let Some(ready) = self.ready.get(usize::from(number)) {
            ready.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_what_they_stand_for_changes() {
        let [a, b, c] = [1, 2, 3].map(|host| Ipv4Addr::new(198, 18, 7, host));
        let addresses = Addresses::new(&[a, b]);
        assert_eq!((addresses.number_of(b), addresses.number_of(c), addresses.get(2)), (Some(1), None, None));
        addresses.set_lost(1, true);
        assert_eq!([0, 1].map(|number| addresses.is_lost(number)), [false, true]);
        addresses.replace(1, c);
        addresses.set_lost(1, false);
        assert_eq!((addresses.number_of(b), addresses.number_of(c), addresses.lost()), (None, Some(1), 0));
        assert_eq!((addresses.list(), addresses.len(), addresses.is_empty()), (vec![a, c], 2, false));
        assert!(Addresses::new(&[]).is_empty());
    }

    #[test]
    fn what_is_lost_and_what_drains_are_marked_apart_and_both_are_closed() {
        let addresses = Addresses::new(&[1, 2, 3].map(|host| Ipv4Addr::new(198, 18, 7, host)));
        addresses.set_lost(1, true);
        addresses.set_draining(2, true);
        let marks = |number| (addresses.is_lost(number), addresses.is_draining(number), addresses.is_closed(number));
        assert_eq!([0, 1, 2].map(marks), [(false, false, false), (true, false, true), (false, true, true)]);
        addresses.set_draining(2, false);
        for _ in 0..2 {
            addresses.set_lost(2, true);
            assert_eq!((marks(2), addresses.lost()), ((true, false, true), 0b110), "however often it is said");
        }
    }
}
