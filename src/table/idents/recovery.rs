//! Taking up the mappings that another process has left in the slots.
//!
//! The slots are the truth, and all of it: who is ready, live and held, the way to each mapping, and how many a client has are
//! worked out again by one scan, before the first packet. What a process that was killed may have left half done, and what
//! becomes of it:
//!
//! | left | becomes |
//! | --- | --- |
//! | a slot that does not fit its seal | resting: its ident is nobody's for a hold-down |
//! | a live slot whose client is none any more, or whose ident is reserved now | held |
//! | two live slots of one client and ident: one had just lost the race for it | the one used last stays, the other is held |
//! | a live slot that the map did not know yet, or that was taken and never used | a mapping like others; it ends when it is idle |
//!
//! Held and resting idents go on with the rest of their hold-down, whoever ends how often meanwhile.

use std::net::Ipv4Addr;
use std::time::Duration;

use rand::rngs::StdRng;

use super::{IdentPolicy, Idents, Lifetimes, Mappings, numbers, owned};
use crate::clock::Instant;
use crate::table::SlotIndex;
use crate::table::clients::{Allowance, ClientIndex};
use crate::table::forward::Guard;
use crate::table::slots::State;

/// What was found in the slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Mappings that go on.
    pub mappings: usize,
    /// Idents in their hold-down.
    pub held: usize,
    /// Slots that did not fit their seal.
    pub torn: usize,
}

impl std::ops::AddAssign for Recovered {
    fn add_assign(&mut self, other: Recovered) {
        self.mappings += other.mappings;
        self.held += other.held;
        self.torn += other.torn;
    }
}

impl Idents {
    /// As [`Idents::new`], with what `mappings` has of these shards. `line_of` is a client's line, if it is one. Before anybody
    /// uses the tables; by one owner after the other.
    pub fn recover(
        mappings: &Mappings,
        shards: &[usize],
        policy: &IdentPolicy,
        lifetimes: Lifetimes,
        rng: StdRng,
        now: Instant,
        line_of: impl Fn(Ipv4Addr) -> Option<ClientIndex>,
    ) -> (Idents, Recovered) {
        let everything = IdentPolicy::default();
        let mut ready = Vec::with_capacity(mappings.addresses.len());
        let mut found = Found { mappings, now, lifetimes, live: Vec::new(), rest: Vec::new(), torn: 0 };
        let guard = mappings.forward.guard();
        for address in numbers(mappings.addresses.len()) {
            // Of what is reserved now some may be left from before.
            let free = owned(address, shards, &everything).filter(|index| {
                let line = |client| line_of(client).filter(|_| !policy.is_reserved(index.ident()));
                found.take_up(*index, line, &guard) && !policy.is_reserved(index.ident())
            });
            ready.push(free.collect());
        }
        drop(guard);
        let Found { live, mut rest, torn, .. } = found;
        rest.sort_unstable_by_key(|&(_, until)| until);
        let recovered = Recovered { mappings: live.len(), held: rest.len(), torn };
        let mut idents = Idents::with_ready(ready, policy.preserve, lifetimes, rng);
        idents.live = live;
        idents.held = rest.into();
        idents.make_room(shards.len() * (1 << 16) / crate::table::SHARDS * mappings.addresses.len());
        (idents, recovered)
    }

    /// Reserves everything that so many idents may need, as `with_ready` does for those that are ready.
    fn make_room(&mut self, idents: usize) {
        self.live.reserve_exact(idents.saturating_sub(self.live.len()));
        self.held.reserve_exact(idents.saturating_sub(self.held.len()));
        let each = idents.checked_div(self.ready.len()).unwrap_or(0);
        for ready in &mut self.ready {
            ready.list.reserve_exact(each.saturating_sub(ready.list.len()));
        }
    }
}

/// What the scan has found so far.
struct Found<'m> {
    mappings: &'m Mappings,
    now: Instant,
    lifetimes: Lifetimes,
    live: Vec<SlotIndex>,
    rest: Vec<(SlotIndex, Instant)>,
    torn: usize,
}

impl Found<'_> {
    /// Whether the ident is nobody's.
    fn take_up(
        &mut self,
        index: SlotIndex,
        line_of: impl Fn(Ipv4Addr) -> Option<ClientIndex>,
        guard: &Guard<'_>,
    ) -> bool {
        let slots = &self.mappings.slots;
        if !slots.is_whole(index) {
            self.torn += 1;
            slots.rest(index, self.now);
        }
        let identity = slots.identity(index);
        match identity.state() {
            State::Free => return true,
            State::Held | State::Resting => self.rest_on(index),
            State::Live => match line_of(identity.client()) {
                None => self.hold(index),
                Some(line) => {
                    slots.set_client(index, line);
                    self.point_at(index, line, guard);
                }
            },
        }
        false
    }

    /// Makes a live slot the mapping of its client and ident.
    fn point_at(&mut self, index: SlotIndex, line: ClientIndex, guard: &Guard<'_>) {
        let Mappings { slots, forward, clients, .. } = self.mappings;
        let identity = slots.identity(index);
        if let Err(other) = forward.try_insert(identity.client(), identity.client_ident(), index, guard) {
            if slots.idle_ms(other, self.now) <= slots.idle_ms(index, self.now) {
                return self.hold(index);
            }
            forward.remove(identity.client(), identity.client_ident(), other, guard);
            // Just removed, and nobody else inserts: it is free now.
            let _ = forward.try_insert(identity.client(), identity.client_ident(), index, guard);
            self.live.retain(|live| *live != other);
            clients.leave(slots.client(other));
            self.hold(other);
        }
        // No limit: what it has it keeps.
        let _ = clients.enter(line, &Allowance::UNLIMITED, self.now, |_| index.address());
        self.live.push(index);
    }

    fn hold(&mut self, index: SlotIndex) {
        self.mappings.slots.hold(index, self.now);
        self.rest_on(index);
    }

    fn rest_on(&mut self, index: SlotIndex) {
        let rested = Duration::from_millis(self.mappings.slots.idle_ms(index, self.now).into());
        self.rest.push((index, self.now + self.lifetimes.hold_down.saturating_sub(rested)));
    }
}
