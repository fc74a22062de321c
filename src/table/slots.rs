//! Slots: one cache line a gateway ident and address, holding whose it is.
//!
//! The identity is one word, so that it is read and replaced whole:
//!
//! ```text
//! | client 32 | client ident 16 | epoch 14 | state 2 |
//! ```
//!
//! The life of a slot, and what may be done in each state:
//!
//! * `Free`: nobody's. Its ident is in the owner's ready pool.
//! * `Live`: a mapping. Requests leave under it, replies return through it.
//! * `Held`: the mapping has ended and the hold-down runs. A reply to a request sent before may still return through
//!   it; nothing new leaves under it. When the hold-down ends no echo can be outstanding, and the slot is free.
//!
//! Only the owner of the slot's shard writes identities, so plain stores do: no compare-and-swap, no ABA. The epoch
//! counts mappings, so that two of one client and ident in the same slot have different seals.
//!
//! Slots can outlive the process that wrote them (see [`super::Storage`]). So each carries a seal over its own number, its
//! client and its epoch, written when a mapping begins: what does not fit its seal has been left half written, or has been
//! damaged, and is nobody's mapping. It is `Resting` then: its ident is given to nobody for a hold-down, since nothing is
//! known of the echoes that left under it.

use std::net::Ipv4Addr;

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use super::clients::ClientIndex;
use super::{SlotIndex, Storage};
use crate::canary::{Canary, is_loose};
use crate::clock::Instant;

/// Whether a slot is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nobody's.
    Free,
    /// A mapping in use.
    Live,
    /// A mapping that has ended, its ident not yet to be used again.
    Held,
    /// Nobody knows whose: its ident is not yet to be used again.
    Resting,
}

/// A slot's identity word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64);

const STATE_BITS: u32 = 2;
const EPOCH_BITS: u32 = 14;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

impl Identity {
    fn new(client: Ipv4Addr, client_ident: u16, epoch: u64, state: State) -> Identity {
        let state = match state {
            State::Free => 0,
            State::Live => 1,
            State::Held => 2,
            State::Resting => 3,
        };
        Identity(
            u64::from(u32::from(client)) << 32
                | u64::from(client_ident) << (EPOCH_BITS + STATE_BITS)
                | (epoch & EPOCH_MASK) << STATE_BITS
                | state,
        )
    }

    /// The client whose mapping it is.
    pub fn client(self) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.0.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    /// The ident that the client chose.
    pub fn client_ident(self) -> u16 {
        let [.., high, low, _, _] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// How many mappings the slot has had since it last rested, modulo 2^14.
    pub fn epoch(self) -> u64 {
        self.0 >> STATE_BITS & EPOCH_MASK
    }

    /// Whether the slot is in use.
    pub fn state(self) -> State {
        match self.0 & 3 {
            1 => State::Live,
            2 => State::Held,
            3 => State::Resting,
            _ => State::Free,
        }
    }

    /// Whether it is the live mapping of this client and ident.
    #[inline]
    pub fn is_live_for(self, client: Ipv4Addr, client_ident: u16) -> bool {
        self.0 & !(EPOCH_MASK << STATE_BITS) == Identity::new(client, client_ident, 0, State::Live).0
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} ident {} epoch {}", self.state(), self.client(), self.client_ident(), self.epoch())
    }
}

/// One gateway ident on one gateway address.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    identity: AtomicU64,
    /// Of a live slot the last use, of another the end of its mapping, in milliseconds on the gateway's clock. It wraps
    /// after 49 days; whatever is not free is looked at far more often.
    last_use_ms: AtomicU32,
    /// The client's line, so that its end finds whose mapping it was.
    client: AtomicU32,
    /// What fits the slot's number and the identity that it last began with.
    seal: AtomicU64,
}

/// All slots of all gateway addresses.
#[derive(Debug)]
pub struct Slots {
    slots: Storage<Slot>,
    seal_key: u64,
}

/// Two odd constants whose bits look random (splitmix64's).
const MULTIPLIERS: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

/// The bytes of one slot.
pub const SLOT_BYTES: usize = size_of::<Slot>();

impl Slots {
    /// Free slots for `addresses` gateway addresses: 65,536 each.
    pub fn new(addresses: usize) -> Slots {
        Slots::with_len(addresses << 16)
    }

    /// The first `len` slots, free.
    pub(super) fn with_len(len: usize) -> Slots {
        Slots { slots: Storage::own(len), seal_key: 0 }
    }

    /// These slots, 65,536 an address, as they are. `seal_key`: what they have been sealed with ever since they were free.
    pub fn over(slots: &'static [Slot], seal_key: u64) -> Slots {
        Slots { slots: Storage::Lent(slots), seal_key }
    }

    /// Whose the slot is. Acquire: pairs with the Release of `occupy`, so that a use marked under an identity comes after
    /// the time it began with, and is not undone by that. (Whatever the map promises: we do not rest on it.)
    #[inline]
    pub fn identity(&self, index: SlotIndex) -> Identity {
        Identity(self.slots[index.position()].identity.load(Ordering::Acquire))
    }

    /// Reads the slot ahead of its use, so that a batch's cache misses overlap.
    #[inline]
    pub fn read_ahead(&self, index: SlotIndex) {
        // Relaxed: the value is not used.
        std::hint::black_box(self.slots[index.position()].identity.load(Ordering::Relaxed));
    }

    /// Starts a mapping in a free slot. The caller owns its shard.
    pub(super) fn occupy(
        &self,
        index: SlotIndex,
        client: Ipv4Addr,
        line: ClientIndex,
        client_ident: u16,
        now: Instant,
    ) {
        let slot = &self.slots[index.position()];
        let before = Identity(slot.identity.load(Ordering::Relaxed)); // only the owner writes it: that is us
        debug_assert_eq!(before.state(), State::Free);
        // Relaxed: published by the Release below.
        slot.last_use_ms.store(wrapped_millis(now), Ordering::Relaxed);
        slot.client.store(line.to_word(), Ordering::Relaxed);
        let identity = Identity::new(client, client_ident, before.epoch() + 1, State::Live);
        // Release: pairs with the Acquire of `identity`.
        slot.seal.store(self.seal(index, identity), Ordering::Relaxed);
        slot.identity.store(identity.0, Ordering::Release);
    }

    /// The line of the client whose mapping it is or was.
    pub(super) fn client(&self, index: SlotIndex) -> ClientIndex {
        // Relaxed: only the owner asks, who wrote it.
        ClientIndex::from_word(self.slots[index.position()].client.load(Ordering::Relaxed))
    }

    /// Ends a mapping: nothing new leaves under it. The caller owns its shard.
    pub(super) fn hold(&self, index: SlotIndex, now: Instant) -> Identity {
        self.touch(index, now);
        self.restate(index, State::Live, State::Held)
    }

    /// Makes sure that nobody gets what is asked for by this ident. The caller owns its shard.
    pub(super) fn rest(&self, index: SlotIndex, now: Instant) {
        let slot = &self.slots[index.position()];
        let identity = Identity::new(Ipv4Addr::UNSPECIFIED, 0, 0, State::Resting);
        // Relaxed, as in `occupy`: nobody else uses the table yet. The seal first, so that what is left is one that fits.
        slot.last_use_ms.store(wrapped_millis(now), Ordering::Relaxed);
        slot.seal.store(self.seal(index, identity), Ordering::Relaxed);
        slot.identity.store(identity.0, Ordering::Relaxed);
    }

    /// Whether whoever wrote the slot came to an end with it.
    pub(super) fn is_whole(&self, index: SlotIndex) -> bool {
        let identity = self.identity(index);
        let seal = self.slots[index.position()].seal.load(Ordering::Relaxed);
        identity.state() == State::Free || seal == self.seal(index, identity) || is_loose(Canary::BrokenSeal)
    }

    /// Leaves the slot as somebody would who was stopped in the middle.
    #[cfg(test)]
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn damage(&self, index: SlotIndex) {
        let seal = &self.slots[index.position()].seal;
        seal.store(seal.load(Ordering::Relaxed) ^ 1 << 20, Ordering::Relaxed);
    }

    /// Another line for the slot's client, where lines have been dealt anew. The caller owns its shard.
    pub(super) fn set_client(&self, index: SlotIndex, line: ClientIndex) {
        // Relaxed: only the owner asks.
        self.slots[index.position()].client.store(line.to_word(), Ordering::Relaxed);
    }

    /// What fits: all of the identity but the state, which changes alone.
    fn seal(&self, index: SlotIndex, identity: Identity) -> u64 {
        let mut mixed = identity.0 >> STATE_BITS ^ self.seal_key ^ (u64::from(index.0) << 32).rotate_left(23);
        for multiplier in MULTIPLIERS {
            mixed = (mixed ^ mixed >> 31).wrapping_mul(multiplier);
        }
        // Never that of a slot that nobody has written.
        (mixed ^ mixed >> 31) | 1
    }

    /// Ends the hold-down, or gives back a slot whose mapping was never used. The caller owns its shard.
    pub(super) fn free(&self, index: SlotIndex, from: State) {
        self.restate(index, from, State::Free);
    }

    fn restate(&self, index: SlotIndex, from: State, to: State) -> Identity {
        let slot = &self.slots[index.position()];
        let before = Identity(slot.identity.load(Ordering::Relaxed)); // only the owner writes it: that is us
        debug_assert_eq!(before.state(), from);
        let after = Identity::new(before.client(), before.client_ident(), before.epoch(), to);
        // Relaxed: only the word changes. Whoever must not miss an ending finds it through the map, whose writes publish it,
        // or by the hold-down, which is longer than any store takes to be seen.
        slot.identity.store(after.0, Ordering::Relaxed);
        before
    }

    /// Marks the mapping as used now.
    #[inline]
    pub fn touch(&self, index: SlotIndex, now: Instant) {
        if is_loose(Canary::ForgottenUse) {
            return;
        }
        let last_use = &self.slots[index.position()].last_use_ms;
        let now = wrapped_millis(now);
        // Relaxed both: a time stamp alone, read by the owner's sweep. The comparison keeps a busy mapping's line clean.
        if last_use.load(Ordering::Relaxed) != now {
            last_use.store(now, Ordering::Relaxed);
        }
    }

    /// Milliseconds since the mapping was used. A use that is later than `now` (another worker's batch) counts as 0.
    pub fn idle_ms(&self, index: SlotIndex, now: Instant) -> u32 {
        let last_use = self.slots[index.position()].last_use_ms.load(Ordering::Relaxed);
        let idle = wrapped_millis(now).wrapping_sub(last_use);
        if idle > u32::MAX / 2 { 0 } else { idle }
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "wraps on purpose")]
fn wrapped_millis(now: Instant) -> u32 {
    now.as_millis() as u32
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use std::time::Duration;

    const INDEX: SlotIndex = SlotIndex::new(0, 0xbeef);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const LINE: ClientIndex = ClientIndex::from_word(3);
    const SEAL_KEY: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn a_slot_is_one_cache_line() {
        assert_eq!(SLOT_BYTES, 64);
    }

    #[test]
    fn an_address_has_a_slot_for_each_ident() {
        let [none, two] = [0, 2].map(Slots::new);
        assert_eq!((none.len(), none.is_empty()), (0, true));
        assert_eq!((two.len(), two.is_empty()), (2 << 16, false));
    }

    #[test]
    fn an_index_gives_back_its_parts() {
        let index = SlotIndex::new(15, 0xbeef);
        assert_eq!((index.address(), index.ident(), index.shard()), (15, 0xbeef, 0xbeef & 63));
    }

    #[test]
    fn a_slot_lives_is_held_and_is_freed() {
        let slots = Slots::new(1);
        slots.occupy(INDEX, CLIENT, LINE, 0xffff, Instant::START);
        assert!(slots.identity(INDEX).is_live_for(CLIENT, 0xffff));
        assert!(!slots.identity(INDEX).is_live_for(CLIENT, 0));
        assert!(!slots.identity(INDEX).is_live_for(Ipv4Addr::new(10, 66, 0, 3), 0xffff));
        assert_eq!(slots.client(INDEX), LINE);
        slots.hold(INDEX, Instant::START);
        let held = slots.identity(INDEX);
        assert_eq!((held.state(), held.client(), held.client_ident()), (State::Held, CLIENT, 0xffff));
        assert!(!held.is_live_for(CLIENT, 0xffff));
        slots.free(INDEX, State::Held);
        assert_eq!(slots.identity(INDEX).state(), State::Free);
    }

    #[test]
    fn each_mapping_of_a_slot_has_its_own_epoch_and_the_epoch_wraps_inside_its_bits() {
        let slots = Slots::new(1);
        for mapping in 1..=20_000_u64 {
            slots.occupy(INDEX, CLIENT, LINE, 7, Instant::START);
            let identity = slots.identity(INDEX);
            assert_eq!(identity.epoch(), mapping % (1 << 14));
            assert!(identity.is_live_for(CLIENT, 7));
            slots.hold(INDEX, Instant::START);
            slots.free(INDEX, State::Held);
        }
    }

    #[test]
    fn idle_time_survives_the_wrap_of_its_32_bits() {
        let slots = Slots::new(1);
        let before_wrap = Instant::START + Duration::from_millis(u64::from(u32::MAX) - 5);
        slots.occupy(INDEX, CLIENT, LINE, 7, before_wrap);
        assert_eq!(slots.idle_ms(INDEX, before_wrap + Duration::from_millis(20)), 20);
        slots.touch(INDEX, before_wrap + Duration::from_millis(20));
        assert_eq!(slots.idle_ms(INDEX, before_wrap + Duration::from_millis(20)), 0);
        assert_eq!(slots.idle_ms(INDEX, before_wrap), 0, "a use in the future is a use now");
    }

    #[test]
    fn half_of_what_32_bits_tell_is_the_past_and_the_other_half_the_future() {
        let slots = Slots::new(1);
        slots.occupy(INDEX, CLIENT, LINE, 7, Instant::START);
        for (now, idle) in [(u32::MAX / 2, u32::MAX / 2), (u32::MAX / 2 + 1, 0)] {
            assert_eq!(slots.idle_ms(INDEX, Instant::START + Duration::from_millis(now.into())), idle);
        }
    }

    fn seal(key: u64, index: SlotIndex, identity: Identity) -> u64 {
        Slots { seal_key: key, ..Slots::new(0) }.seal(index, identity)
    }

    #[test]
    fn a_seal_fits_one_slot_and_mapping_under_one_key_whatever_its_state() {
        let (index, live) = (SlotIndex::new(3, 0xbeef), Identity::new(CLIENT, 0xffff, 9, State::Live));
        let own = seal(SEAL_KEY, index, live);
        for state in [State::Held, State::Resting] {
            assert_eq!(seal(SEAL_KEY, index, Identity::new(CLIENT, 0xffff, 9, state)), own);
        }
        for bit in 0..64 {
            assert_ne!(seal(SEAL_KEY ^ 1 << bit, index, live), own, "bit {bit} of the key");
        }
        for bit in 0..20 {
            assert_ne!(seal(SEAL_KEY, SlotIndex(index.0 ^ 1 << bit), live), own, "bit {bit} of the slot's number");
        }
        for bit in STATE_BITS..64 {
            assert_ne!(seal(SEAL_KEY, index, Identity(live.0 ^ 1 << bit)), own, "bit {bit} of the identity");
        }
    }

    /// Others read what this version has sealed: another number here is another layout (`LAYOUT`, in `crate::state`).
    #[test]
    fn the_way_of_sealing_is_that_of_the_layout() {
        let identity = Identity::new(CLIENT, 0xffff, 9, State::Live);
        assert_eq!(seal(SEAL_KEY, SlotIndex::new(3, 0xbeef), identity), 0x3ddd_9c79_23fb_d54f);
    }

    #[test]
    fn no_seal_is_that_of_a_slot_that_nobody_has_written() {
        // Under these keys all bits of this slot's seal would be zero, or all but the lowest.
        for key in [0, 0x0059_6ca1_2330_4294] {
            assert_ne!(seal(key, SlotIndex::new(0, 0), Identity(0)), 0);
        }
    }
}
