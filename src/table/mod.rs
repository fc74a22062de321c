//! The tables: bounded, lock-free, sized at start.
//!
//! **The slot is the truth; the map only points at it.** A mapping is a [`slots::Slot`], found inbound by its index
//! (the gateway ident is the index) and outbound through [`forward::Forward`], a concurrent map from (client, client
//! ident) to the slot. Every hit of the map compares the slot's identity; a mismatch is a miss. What has been sent and
//! not answered is in [`echoes::Echoes`], whose key is exact, so that a reply is matched to its address, ident,
//! sequence and remote and to nothing else.
//!
//! Any thread may look up, touch, record and consume. Making and expiring a mapping need the owner of the ident's
//! shard, who holds [`idents::Idents`]; ownership gives locality and spares locks, never correctness.
//!
//! Safe code only. `now` is an argument everywhere.

pub mod addresses;
pub mod atomic;
pub mod clients;
pub mod echoes;
#[cfg_attr(any(loom, shuttle), path = "forward_model.rs")]
pub mod forward;
pub mod fragments;
pub mod identifications;
pub mod idents;
#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(test)]
#[cfg(shuttle)]
mod schedules;
pub mod slots;
mod storage;

pub use storage::Storage;

/// Idents are split into this many shards (`ident & 63`); a worker owns shards.
pub const SHARDS: usize = 64;

/// The most gateway addresses that the tables can number.
pub const ADDRESSES_MAX: usize = 16;

/// The number of a slot: the gateway address's number and the gateway ident.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotIndex(u32);

impl SlotIndex {
    /// The slot of `ident` on gateway address number `address` (below [`ADDRESSES_MAX`]).
    pub const fn new(address: u8, ident: u16) -> SlotIndex {
        assert!((address as usize) < ADDRESSES_MAX);
        SlotIndex((address as u32) << 16 | ident as u32)
    }

    /// The gateway address's number.
    pub const fn address(self) -> u8 {
        self.0.to_le_bytes()[2]
    }

    /// The gateway ident.
    pub const fn ident(self) -> u16 {
        let [low, high, _, _] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// The shard that the ident belongs to.
    pub const fn shard(self) -> usize {
        self.0 as usize % SHARDS
    }

    const fn position(self) -> usize {
        self.0 as usize
    }
}
