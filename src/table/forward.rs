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
