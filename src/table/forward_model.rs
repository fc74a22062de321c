//! The forward map in the checkers' builds: the same meaning and interface as `forward.rs`, of one word a client.
//!
//! The checker cannot see into papaya: it would explore nothing there and pass. So the models run over the least that a
//! correct concurrent map promises: who finds an entry sees what its maker did before, who takes a removed entry's place
//! sees what the remover did before, and who finds nothing has been promised nothing.

use std::marker::PhantomData;
use std::net::Ipv4Addr;

use super::SlotIndex;
use super::atomic::{AtomicU64, Ordering};

/// Pins nothing: there is no memory to reclaim.
#[derive(Debug)]
pub struct Guard<'m>(PhantomData<&'m Forward>);

impl Drop for Guard<'_> {
    // As the map's own: whoever drops one early means it.
    fn drop(&mut self) {}
}

/// (client, client ident) to slot, for two clients whose addresses are neighbours.
#[derive(Debug)]
pub struct Forward([AtomicU64; 2]);

impl Forward {
    /// An empty map.
    pub fn new(_mappings_max: usize) -> Forward {
        Forward([AtomicU64::new(0), AtomicU64::new(0)])
    }

    /// Pins the map for a batch.
    pub fn guard(&self) -> Guard<'_> {
        Guard(PhantomData)
    }

    fn cell(&self, client: Ipv4Addr) -> &AtomicU64 {
        &self.0[u32::from(client) as usize % 2]
    }

    /// The slot last made for this client and ident.
    pub fn get(&self, client: Ipv4Addr, client_ident: u16, _guard: &Guard<'_>) -> Option<SlotIndex> {
        // Acquire: pairs with the Release of `try_insert`.
        index_of(self.cell(client).load(Ordering::Acquire), client, client_ident)
    }

    /// Points the client and ident at the slot, unless they point at one already: then that one is the error.
    pub(super) fn try_insert(
        &self,
        client: Ipv4Addr,
        client_ident: u16,
        index: SlotIndex,
        _guard: &Guard<'_>,
    ) -> Result<(), SlotIndex> {
        let word = word(client, client_ident, index);
        // Release: pairs with the Acquire of `get`, Acquire: with the Release of `remove`; on failure with that of the
        // winner.
        match self.cell(client).compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(current) => Err(index_of(current, client, client_ident).expect("clients of a model share no word")),
        }
    }

    /// Removes the entry if it still points at this slot.
    pub(super) fn remove(&self, client: Ipv4Addr, client_ident: u16, index: SlotIndex, _guard: &Guard<'_>) {
        let word = word(client, client_ident, index);
        // Release: pairs with the Acquire of `try_insert`. An entry that points elsewhere stays.
        let _ = self.cell(client).compare_exchange(word, 0, Ordering::Release, Ordering::Relaxed);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|cell| cell.load(Ordering::Relaxed) != 0).count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Client 32, client ident 16, slot 15, occupied 1.
fn word(client: Ipv4Addr, client_ident: u16, index: SlotIndex) -> u64 {
    assert!(index.position() < 1 << 15, "a model has few slots");
    u64::from(u32::from(client)) << 32 | u64::from(client_ident) << 16 | (index.position() as u64) << 1 | 1
}

/// What the word says of this client and ident: nothing, if it is another's.
fn index_of(entry: u64, client: Ipv4Addr, client_ident: u16) -> Option<SlotIndex> {
    let ident = u16::try_from(entry >> 1 & 0x7fff).ok()?;
    let index = SlotIndex::new(0, ident);
    (entry == word(client, client_ident, index)).then_some(index)
}
