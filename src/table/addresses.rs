//! The gateway's addresses outside: which they are, which of them are lost, and how many idents are ready on each.
//!
//! An address has a number, by which slots and send sockets know it, for as long as the gateway runs. What the number
//! stands for can change (the host's default address does), and an address can be lost (the host has it no more) and
//! come back. Both are rare, are written by one thread, and take effect packet by packet: a packet that is judged meanwhile
//! may still leave from the old address, and its send then fails.

use std::net::Ipv4Addr;

use super::atomic::{AtomicU32, Ordering};
use super::{ADDRESSES_MAX, Storage};

/// All of them, by their numbers.
#[derive(Debug)]
pub struct Addresses {
    current: Storage<AtomicU32>,
    /// Idents that are ready on each, all owners' together.
    ready: Box<[AtomicU32]>,
    /// One word: by bit.
    lost: Storage<AtomicU32>,
}

impl Addresses {
    /// These, none lost; the first [`ADDRESSES_MAX`].
    pub fn new(addresses: &[Ipv4Addr]) -> Addresses {
        let current = addresses.iter().take(ADDRESSES_MAX).map(|address| AtomicU32::new(u32::from(*address)));
        Addresses::over(Storage::Own(current.collect()), Storage::own(1))
    }

    /// Those that `current` has, and `lost` says of which they are lost.
    pub fn over(current: Storage<AtomicU32>, lost: Storage<AtomicU32>) -> Addresses {
        let ready = current.iter().map(|_| AtomicU32::new(0)).collect();
        Addresses { current, ready, lost }
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
        let bit = 1 << (u32::from(number) % u32::BITS);
        let before = self.lost();
        let after = if lost { before | bit } else { before & !bit };
        self.lost.iter().for_each(|word| word.store(after, Ordering::Relaxed));
    }

    /// The lost ones, by bit.
    #[inline]
    pub fn lost(&self) -> u32 {
        self.lost.first().map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Whether the address of this number is lost.
    #[inline]
    pub fn is_lost(&self, number: u8) -> bool {
        self.lost() >> (u32::from(number) % u32::BITS) & 1 != 0
    }

    /// Whether an ident is ready on the address of this number, whoever owns it.
    pub fn has_ident(&self, number: u8) -> bool {
        self.ready.get(usize::from(number)).is_some_and(|ready| ready.load(Ordering::Relaxed) > 0)
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
    }
}
