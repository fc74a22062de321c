//! The forward map: (client, client ident) to the slot of its mapping.
//!
//! papaya: reads take no lock and write nothing shared. It is written when a mapping is made or expires, never per
//! packet. A guard pins its memory reclamation; the caller takes one a batch and drops it before it waits.
//!
//! Its capacity is four times the mapping limit: with less, the tombstones of expired mappings make it copy itself
//! whole at a constant number of mappings.

use std::net::Ipv4Addr;

use foldhash::quality::RandomState;
use papaya::HashMap;

use super::SlotIndex;

/// Pins the map for a batch.
pub type Guard<'m> = papaya::LocalGuard<'m>;

/// (client, client ident) to slot.
#[derive(Debug)]
pub struct Forward(HashMap<u64, SlotIndex, RandomState>);

fn key(client: Ipv4Addr, client_ident: u16) -> u64 {
    u64::from(u32::from(client)) << 16 | u64::from(client_ident)
}

impl Forward {
    /// An empty map that holds `mappings_max` without growing.
    pub fn new(mappings_max: usize) -> Forward {
        Forward(HashMap::builder().capacity(mappings_max * 4).hasher(RandomState::default()).build())
    }

    /// Pins the map for a batch.
    pub fn guard(&self) -> Guard<'_> {
        self.0.guard()
    }

    /// The slot last made for this client and ident. The caller compares the slot's identity: a mismatch is a miss.
    pub fn get(&self, client: Ipv4Addr, client_ident: u16, guard: &Guard<'_>) -> Option<SlotIndex> {
        self.0.get(&key(client, client_ident), guard).copied()
    }

    /// Points the client and ident at the slot, unless they point at one already: then that one is the error.
    pub(super) fn try_insert(
        &self,
        client: Ipv4Addr,
        client_ident: u16,
        index: SlotIndex,
        guard: &Guard<'_>,
    ) -> Result<(), SlotIndex> {
        self.0.try_insert(key(client, client_ident), index, guard).map(|_| ()).map_err(|occupied| *occupied.current)
    }

    /// Removes the entry if it still points at this slot.
    pub(super) fn remove(&self, client: Ipv4Addr, client_ident: u16, index: SlotIndex, guard: &Guard<'_>) {
        // An entry that points elsewhere is somebody's newer mapping and stays: the error is the wanted outcome.
        let _ = self.0.remove_if(&key(client, client_ident), |_, current| *current == index, guard);
    }

    /// How many entries there are (approximate while others write).
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const THREADS: u32 = 4;
    const ROUNDS: u32 = if cfg!(miri) { 640 } else { 64_000 }; // an interpreter is slow
    const KEYS: u32 = 16;
    /// A guard is renewed this often, so that entries are reclaimed while others look at them.
    const ROUNDS_A_GUARD: usize = 32;
    /// So often a thread lets others run while its entry is in the map: they would not meet on a machine whose cores are
    /// busy, where a whole turn of a thread can pass without another's.
    const ROUNDS_A_PAUSE: u32 = 61;

    /// Entries are numbered through, and each tells its key.
    fn entry(number: u32, key: u32) -> SlotIndex {
        SlotIndex(number * KEYS + key)
    }

    /// What all threads know of the map.
    struct Stress {
        map: Forward,
        /// By key: the entry that must be in the map, 0 for none.
        present: Vec<AtomicU32>,
        lost: AtomicU64,
    }

    impl Stress {
        fn get(&self, key: u32, guard: &Guard<'_>) -> Option<SlotIndex> {
            let found = self.map.get(Ipv4Addr::from(key), 7, guard);
            assert!(found.is_none_or(|index| index.0 % KEYS == key), "{found:?} is another key's");
            found
        }

        /// Inserts; who wins finds the entry until it removes it, and nobody else wins meanwhile.
        fn round(&self, number: u32, key: u32, guard: &Guard<'_>) {
            let client = Ipv4Addr::from(key);
            let own = entry(number, key);
            match self.map.try_insert(client, 7, own, guard) {
                Ok(()) => {
                    assert_eq!(self.present[key as usize].swap(own.0, Ordering::AcqRel), 0, "two entries of one key");
                    if number.is_multiple_of(ROUNDS_A_PAUSE) {
                        std::thread::yield_now();
                    }
                    assert_eq!(self.get(key, guard), Some(own), "the entry is lost");
                    self.map.remove(client, 7, SlotIndex(own.0 ^ KEYS), guard);
                    assert_eq!(self.get(key, guard), Some(own), "the entry went with another's");
                    self.present[key as usize].store(0, Ordering::Release);
                    self.map.remove(client, 7, own, guard);
                    assert_ne!(self.get(key, guard), Some(own), "the entry is still there");
                }
                Err(winner) => {
                    assert!(winner != own && winner.0 % KEYS == key, "{winner:?}");
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    #[test]
    fn each_client_and_ident_has_an_entry_of_its_own() {
        let map = Forward::new(0);
        let guard = map.guard();
        let ends = [(0, 0), (0, 1), (0, u16::MAX), (1, 0), (1, 1), (1 << 16, 0), (1 << 31, 0), (u32::MAX, u16::MAX)];
        let entries = ends.map(|(client, ident)| (Ipv4Addr::from(client), ident)).into_iter().zip((0..).map(SlotIndex));
        assert!(map.is_empty());
        for ((client, ident), index) in entries.clone() {
            assert_eq!(map.try_insert(client, ident, index, &guard), Ok(()));
        }
        assert_eq!((map.len(), map.is_empty()), (ends.len(), false));
        for ((client, ident), index) in entries {
            assert_eq!(map.get(client, ident, &guard), Some(index));
        }
    }

    /// What the tables rely on in papaya, many threads on few keys, from a capacity that must grow.
    #[test]
    fn an_entry_is_there_until_its_own_removal_whatever_others_do() {
        let present = (0..KEYS).map(|_| AtomicU32::new(0)).collect();
        let stress = Stress { map: Forward::new(0), present, lost: AtomicU64::new(0) };
        let together = Barrier::new(THREADS as usize);
        let (stress, together) = (&stress, &together);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    together.wait();
                    let mut rng = StdRng::seed_from_u64(thread.into());
                    for first in (1..=ROUNDS).step_by(ROUNDS_A_GUARD) {
                        let guard = stress.map.guard();
                        for round in (first..).take(ROUNDS_A_GUARD) {
                            stress.round(round * THREADS + thread, rng.random_range(..KEYS), &guard);
                        }
                    }
                });
            }
        });
        assert!(stress.map.is_empty());
        let lost = stress.lost.load(Ordering::Relaxed);
        assert!(lost > 0, "the threads never met");
        println!("{lost} of {} insertions found another's entry", ROUNDS * THREADS);
    }
}
