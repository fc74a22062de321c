//! Which address has which number, when the configuration names others than before.
//!
//! An address keeps its number for as long as there is anything on it, since slots and echoes are known by numbers. So one that is
//! named no more *drains*: it keeps its place, and no new mapping is made on it, until the last one and its hold-down have ended.
//! One that is added takes the place of an address that has drained, or a new one behind the others, for which the memory grows. One
//! that is named again while it drains is what it was.
//!
//! Decided and done by the process that keeps the memory, while nobody else uses it; only the memory may grow before.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{ADDRESSES, SLOTS_AN_ADDRESS, State, count_of};
use crate::error::SetupError;
use crate::table::addresses::Addresses;
use crate::table::slots::{Slots, State as Use};
use crate::table::{ADDRESSES_MAX, SlotIndex, Storage};

/// An address, by its position among them all: that is its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The address.
    pub address: Ipv4Addr,
    /// No new mappings are made on it.
    pub drains: bool,
}

impl State {
    /// The addresses by their numbers.
    pub fn places(&self) -> Vec<Place> {
        let marks = self.marks();
        let place = |(number, address)| Place { address, drains: marks.is_draining(number) };
        (0..).zip(self.addresses()).map(place).collect()
    }

    /// The places for these addresses in the stead of those there are. Changes nothing. The error: there are too many.
    pub fn arranged(&self, named: &[Ipv4Addr]) -> Result<Vec<Place>, SetupError> {
        arrange(&self.places(), |number| self.is_empty(number), named)
    }

    /// The same memory, with room for so many addresses.
    pub fn grown(&self, addresses: usize) -> Result<State, SetupError> {
        let region = self.region.grown(self.shape.bytes(addresses))?;
        let unfit = || SetupError::new("the memory of the tables is not what it was");
        State::over(region, &self.shape).ok_or_else(unfit)
    }

    /// Lets these be the addresses. Nobody may use the tables meanwhile, and there must be room for them.
    pub fn settle(self, places: &[Place]) -> Result<State, SetupError> {
        let unfit = || SetupError::new("the memory of the tables has no room for its addresses");
        let words = self.region.part::<AtomicU32>(ADDRESSES, places.len()).ok_or_else(unfit)?;
        let marks = self.marks();
        for ((number, word), place) in (0..).zip(words).zip(places) {
            // Whoever watches them says so, if it is.
            marks.set_lost(number, false);
            marks.set_draining(number, place.drains);
            word.store(place.address.into(), Ordering::Relaxed);
        }
        let count = u32::try_from(places.len()).map_err(|_| unfit())?;
        // Last: whoever is stopped before it leaves the addresses that there were, but for marks.
        count_of(&self.region).ok_or_else(unfit)?.store(count, Ordering::Relaxed);
        State::over(self.region, &self.shape).ok_or_else(unfit)
    }

    /// Whether nothing lives or rests on the address of this number.
    fn is_empty(&self, number: usize) -> bool {
        let Ok(number) = u8::try_from(number) else { return true };
        let slots = Slots::over(self.tables.slots, self.tables.keys.seal);
        let first = usize::from(number) * SLOTS_AN_ADDRESS;
        let has_slots = self.tables.slots.len() >= first + SLOTS_AN_ADDRESS;
        let is_free = |ident| slots.identity(SlotIndex::new(number, ident)).state() == Use::Free;
        !has_slots || (0..=u16::MAX).all(is_free)
    }

    fn marks(&self) -> Addresses {
        Addresses::over(Storage::Lent(self.tables.addresses), Storage::Lent(self.tables.marks))
    }
}

/// `is_empty`: of the addresses that drain already, by number.
fn arrange(now: &[Place], is_empty: impl Fn(usize) -> bool, named: &[Ipv4Addr]) -> Result<Vec<Place>, SetupError> {
    let mut places: Vec<Place> =
        now.iter().map(|place| Place { drains: !named.contains(&place.address), ..*place }).collect();
    let drained = |number: usize| now.get(number).is_some_and(|before| before.drains) && is_empty(number);
    for &address in named {
        if places.iter().any(|place| place.address == address) {
            continue;
        }
        let place = Place { address, drains: false };
        // One that is taken here drains no more, and is not taken twice.
        match (0..places.len()).find(|number| places[*number].drains && drained(*number)) {
            Some(number) => places[number] = place,
            None => places.push(place),
        }
    }
    while places.last().is_some_and(|last| last.drains) && drained(places.len() - 1) {
        places.pop();
    }
    if places.len() > ADDRESSES_MAX {
        let draining = places.iter().filter(|place| place.drains).count();
        let count = places.len() - draining;
        let what = format!("{count} outside addresses and {draining} that drain are more than {ADDRESSES_MAX}");
        return Err(SetupError::new(what).remedy("name fewer, or wait until they have drained (echogate stats)"));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 7, host)
    }

    fn place(host: u8, drains: bool) -> Place {
        Place { address: address(host), drains }
    }

    fn arranged(now: &[Place], empty: &[usize], named: &[u8]) -> Vec<Place> {
        let named: Vec<Ipv4Addr> = named.iter().copied().map(address).collect();
        arrange(now, |number| empty.contains(&number), &named).expect("they are few")
    }

    #[test]
    fn what_is_removed_drains_in_its_place_and_what_is_added_comes_behind() {
        let now = [place(1, false), place(2, false)];
        assert_eq!(arranged(&now, &[], &[2, 3]), [place(1, true), place(2, false), place(3, false)]);
        // What has just been removed may be in use a moment longer, whatever its slots say now.
        assert_eq!(arranged(&now, &[0, 1], &[3]), [place(1, true), place(2, true), place(3, false)]);
    }

    #[test]
    fn what_is_named_again_is_what_it_was() {
        assert_eq!(arranged(&[place(1, true), place(2, false)], &[], &[2, 1]), [place(1, false), place(2, false)]);
    }

    #[test]
    fn the_place_of_a_drained_one_is_taken_again_and_the_last_ones_go() {
        let now = [place(1, true), place(2, false), place(3, true), place(4, true)];
        assert_eq!(arranged(&now, &[0, 3], &[2, 5]), [place(5, false), place(2, false), place(3, true)]);
        assert_eq!(arranged(&now, &[0, 2, 3], &[2]), [place(1, true), place(2, false)]);
    }

    #[test]
    fn there_are_sixteen_with_those_that_drain() {
        let now: Vec<Place> = (1..=16).map(|host| place(host, false)).collect();
        let refused = arrange(&now, |_| true, &[address(1), address(17)]).unwrap_err().to_string();
        assert!(refused.starts_with("2 outside addresses and 15 that drain are more than 16\n"), "{refused}");
    }

    proptest! {
        #[test]
        fn whatever_is_named_has_a_place_and_whatever_is_in_use_keeps_its_own(
            now in proptest::collection::btree_map(1_u8..20, any::<bool>(), 1..8),
            empty in proptest::collection::vec(0_usize..8, 0..8),
            named in proptest::collection::btree_set(1_u8..20, 1..8),
        ) {
            let now: Vec<Place> = now.into_iter().map(|(host, drains)| place(host, drains)).collect();
            let named: Vec<u8> = named.into_iter().collect();
            let places = arranged(&now, &empty, &named);
            for host in &named {
                prop_assert_eq!(places.iter().filter(|place| place.address == address(*host)).count(), 1);
            }
            for (number, place) in places.iter().enumerate() {
                prop_assert_eq!(place.drains, !named.iter().any(|host| address(*host) == place.address));
                let before = now.get(number);
                let moved = before.is_some_and(|before| before.address != place.address);
                prop_assert!(!moved || before.is_some_and(|before| before.drains) && empty.contains(&number));
            }
            let gone = now.iter().skip(places.len()).enumerate();
            for (behind, before) in gone {
                prop_assert!(before.drains && empty.contains(&(places.len() + behind)));
            }
        }
    }
}
