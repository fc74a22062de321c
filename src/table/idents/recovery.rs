//! Taking up the mappings that another process has left in the slots.
//!
//! The slots are the truth, and all of it: who is ready, live and held, the way to each mapping, and how many a client has are
//! worked out again by one scan, before the first packet. What a process that was killed may have left half done, and what
//! becomes of it:
//!
//! | left | becomes |
//! | --- | --- |
//! | a last use that lies ahead | now |
//! | a slot that does not fit its seal | resting: its ident is nobody's for a hold-down |
//! | a live slot whose client is none any more | held |
//! | one whose ident is reserved now | held, and then free, and never ready |
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
use crate::table::clients::{Allowance, ClientIndex, Pairing};
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
            // Of what is reserved now some may be left from before: it is nobody's any more.
            let free = owned(address, shards, &everything).filter(|index| {
                let is_reserved = policy.is_reserved(index.ident());
                found.take_up(*index, |client| line_of(client).filter(|_| !is_reserved), &guard) && !is_reserved
            });
            ready.push(free.collect());
        }
        drop(guard);
        let Found { live, mut rest, torn, .. } = found;
        rest.sort_unstable_by_key(|&(_, until)| until);
        let recovered = Recovered { mappings: live.len(), held: rest.len(), torn };
        let mut idents = Idents::with_ready(ready, policy, lifetimes, rng);
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
        if identity.state() != State::Free && slots.idle_ms(index, self.now) == 0 {
            // No seal covers it: one that lies ahead would keep a mapping for weeks.
            slots.touch(index, self.now);
        }
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
        let Mappings { slots, forward, clients, addresses } = self.mappings;
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
        // No limit: what it has it keeps. Where it has mappings on two addresses one of them drains: the other is its own.
        let own = |pairing: Pairing| match pairing.address() {
            Some(other) if addresses.is_draining(index.address()) => other,
            _ => index.address(),
        };
        let _ = clients.enter(line, &Allowance::UNLIMITED, self.now, own);
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

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::table::Storage;
    use crate::table::addresses::Addresses;
    use crate::table::idents::{Asker, generator};
    use crate::table::slots::{Slot, Slots};

    const LIFETIMES: Lifetimes = Lifetimes { idle: Duration::from_secs(60), hold_down: Duration::from_secs(61) };
    const SHARDS: [usize; 2] = [5, 6];
    const KEY: u64 = 0x5eed;

    fn client(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 66, 0, host)
    }

    fn at(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(1000 + seconds)
    }

    /// Memory that outlives those who use it, and what each of them has of it.
    struct Memory {
        slots: &'static [Slot],
        addresses: &'static [AtomicU32],
        marks: &'static [AtomicU32],
    }

    struct User {
        mappings: Mappings,
        idents: Idents,
        recovered: Recovered,
    }

    impl Memory {
        fn new() -> Memory {
            Memory::of_addresses(1)
        }

        /// The first one or two addresses.
        fn of_addresses(count: usize) -> Memory {
            let slots: Vec<Slot> = (0..count << 16).map(|_| Slot::default()).collect();
            let words = |values: [u32; 2]| &*Box::leak(Box::new(values.map(AtomicU32::new)));
            let addresses = &words([0xc612_0001, 0xc612_0002])[..count];
            Memory { slots: Vec::leak(slots), addresses, marks: words([0, 0]) }
        }

        fn mappings(&self) -> Mappings {
            let addresses = Addresses::over(Storage::Lent(self.addresses), Storage::Lent(self.marks));
            Mappings::over(Slots::over(self.slots, KEY), addresses, 256)
        }

        fn take_up(&self, now: Instant, policy: &IdentPolicy, clients: &[u8]) -> User {
            let mappings = self.mappings();
            let line = |client: Ipv4Addr| {
                let host = client.octets()[3];
                clients.contains(&host).then(|| mappings.clients.index(host.into()))
            };
            let (idents, recovered) =
                Idents::recover(&mappings, &SHARDS, policy, LIFETIMES, generator(Some(7)), now, line);
            idents.announce(&mappings.addresses);
            let user = User { mappings, idents, recovered };
            assert_eq!(user.idents.audit(&user.mappings, &SHARDS), Ok(()));
            user
        }

        fn used_by(&self, now: Instant) -> User {
            self.take_up(now, &IdentPolicy::default(), &[1, 2, 3])
        }
    }

    impl User {
        fn make(&mut self, host: u8, client_ident: u16, now: Instant) -> SlotIndex {
            self.make_on(0, host, client_ident, now)
        }

        fn make_on(&mut self, address: u8, host: u8, client_ident: u16, now: Instant) -> SlotIndex {
            let line = self.mappings.clients.index(host.into());
            self.mappings.clients.enter(line, &Allowance::UNLIMITED, now, |_| address).unwrap();
            let asker = Asker { client: client(host), line, client_ident };
            self.idents.make(&self.mappings, address, asker, now, &self.mappings.forward.guard()).unwrap()
        }

        fn find(&self, host: u8, client_ident: u16) -> Option<SlotIndex> {
            self.mappings.find(client(host), client_ident, &self.mappings.forward.guard())
        }

        fn expire(&mut self, now: Instant) {
            for _ in 0..100 {
                self.idents.expire(&self.mappings, now, 1000, &self.mappings.forward.guard());
            }
        }

        fn mappings_of(&self, host: u8) -> u32 {
            self.mappings.clients.mappings(self.mappings.clients.index(host.into()))
        }
    }

    #[test]
    fn mappings_go_on_and_hold_downs_end_when_they_would_have_ended() {
        let memory = Memory::new();
        let mut first = memory.used_by(at(0));
        assert_eq!(first.recovered, Recovered::default());
        let [kept, idle] = [first.make(1, 7, at(0)), first.make(1, 8, at(0))];
        first.mappings.slots.touch(kept, at(60));
        first.expire(at(60));
        assert_eq!((first.idents.live(), first.idents.held()), (1, 1));
        drop(first);
        for restart in 0..3 {
            let user = memory.used_by(at(70 + restart));
            assert_eq!(user.recovered, Recovered { mappings: 1, held: 1, torn: 0 });
            assert_eq!((user.find(1, 7), user.find(1, 8), user.mappings_of(1)), (Some(kept), None, 1));
        }
        let mut last = memory.used_by(at(80));
        last.mappings.slots.touch(kept, at(100));
        last.expire(at(120));
        assert_eq!(last.mappings.slots.identity(idle).state(), State::Held, "60 of its 61 seconds");
        last.expire(at(122));
        assert_eq!(last.mappings.slots.identity(idle).state(), State::Free);
        last.expire(at(161));
        assert_eq!((last.find(1, 7), last.mappings_of(1), last.idents.held()), (None, 0, 1));
    }

    #[test]
    fn what_does_not_fit_its_seal_rests_and_is_nobodys() {
        let memory = Memory::new();
        let mut first = memory.used_by(at(0));
        let [whole, torn] = [first.make(1, 7, at(0)), first.make(2, 7, at(0))];
        first.mappings.slots.damage(torn);
        drop(first);
        let mut next = memory.used_by(at(1));
        assert_eq!(next.recovered, Recovered { mappings: 1, held: 1, torn: 1 });
        assert_eq!((next.find(1, 7), next.find(2, 7)), (Some(whole), None));
        assert_eq!(next.mappings.slots.identity(torn).state(), State::Resting);
        drop(next);
        next = memory.used_by(at(30));
        assert_eq!(next.recovered, Recovered { mappings: 1, held: 1, torn: 0 }, "it fits a seal now, and rests on");
        next.mappings.slots.touch(whole, at(61));
        next.expire(at(61));
        assert_eq!(next.mappings.slots.identity(torn).state(), State::Resting);
        next.expire(at(63));
        assert_eq!(next.mappings.slots.identity(torn).state(), State::Free);
        assert_eq!(next.idents.audit(&next.mappings, &SHARDS), Ok(()));
    }

    #[test]
    fn a_last_use_that_lies_ahead_keeps_no_mapping_and_no_ident() {
        let memory = Memory::new();
        let mut first = memory.used_by(at(0));
        let [live, held] = [first.make(1, 7, at(0)), first.make(2, 7, at(0))];
        first.mappings.slots.touch(live, at(1_000_000));
        first.mappings.slots.hold(held, at(1_000_000));
        drop(first);
        let mut next = memory.used_by(at(1));
        assert_eq!(next.recovered, Recovered { mappings: 1, held: 1, torn: 0 });
        next.expire(at(62));
        assert_eq!((next.find(1, 7), next.mappings_of(1), next.idents.live()), (None, 0, 0));
        next.expire(at(130));
        assert_eq!(next.idents.held(), 0);
    }

    #[test]
    fn who_is_no_client_any_more_and_reserved_idents_are_let_go() {
        let memory = Memory::new();
        let mut first = memory.used_by(at(0));
        let [kept, gone] = [first.make(1, 7, at(0)), first.make(2, 7, at(0))];
        let reserved = first.make(3, 7, at(0));
        drop(first);
        let policy = IdentPolicy { reserved: vec![reserved.ident()..=reserved.ident()], preserve: true };
        let mut next = memory.take_up(at(1), &policy, &[1, 3]);
        assert_eq!(next.recovered, Recovered { mappings: 1, held: 2, torn: 0 });
        assert_eq!((next.find(1, 7), next.find(2, 7), next.find(3, 7)), (Some(kept), None, None));
        // Replies on their way are delivered still.
        assert_eq!(next.mappings.slots.identity(gone).client(), client(2));
        assert_eq!(next.mappings.slots.identity(reserved).client(), client(3));
        assert_ne!(next.make(3, reserved.ident(), at(1)), reserved);
        next.expire(at(200));
        assert_eq!(next.mappings.slots.identity(reserved).state(), State::Free);
        assert_ne!(next.make(3, reserved.ident(), at(200)), reserved, "nor after its hold-down");
    }

    #[test]
    fn of_two_slots_for_one_client_and_ident_the_one_used_last_stays() {
        for later in [0, 1] {
            let memory = Memory::new();
            let mut first = memory.used_by(at(0));
            let one = first.make(1, 7, at(0));
            // As left by an owner that was killed before it gave back the one for which it was too late.
            first.mappings.forward.remove(client(1), 7, one, &first.mappings.forward.guard());
            let two = first.make(1, 7, at(0));
            let both = [one, two];
            first.mappings.slots.touch(both[later], at(1));
            drop(first);
            let next = memory.used_by(at(2));
            assert_eq!(next.recovered, Recovered { mappings: 1, held: 1, torn: 0 });
            assert_eq!((next.find(1, 7), next.mappings_of(1)), (Some(both[later]), 1));
        }
    }

    #[test]
    fn a_client_with_mappings_on_two_addresses_belongs_to_the_one_that_does_not_drain() {
        for drains in [0, 1] {
            let memory = Memory::of_addresses(2);
            let mut first = memory.used_by(at(0));
            first.make_on(0, 1, 7, at(0));
            first.make_on(1, 1, 8, at(0));
            first.mappings.addresses.set_draining(drains, true);
            drop(first);
            let clients = memory.used_by(at(1)).mappings.clients;
            let pairing = clients.pairing(clients.index(1));
            assert_eq!((pairing.mappings(), pairing.address()), (2, Some(1 - drains)));
        }
    }

    #[test]
    fn a_mapping_counts_on_the_line_that_its_client_has_now() {
        let memory = Memory::new();
        memory.used_by(at(0)).make(1, 7, at(0));
        let (mappings, policy) = (memory.mappings(), IdentPolicy::default());
        let line = mappings.clients.index(99);
        let (mut idents, _) =
            Idents::recover(&mappings, &SHARDS, &policy, LIFETIMES, generator(Some(7)), at(1), |_| Some(line));
        assert_eq!(mappings.clients.mappings(line), 1);
        assert_eq!(idents.expire(&mappings, at(61), 32, &mappings.forward.guard()), 1);
        assert_eq!(mappings.clients.mappings(line), 0);
    }

    /// Nothing is allocated later, and nothing in vain.
    #[test]
    fn there_is_room_for_all_idents_in_every_state_whatever_was_found() {
        let memory = Memory::of_addresses(2);
        memory.used_by(at(0)).make(1, 7, at(0));
        let idents = memory.used_by(at(1)).idents;
        let all = 2 * SHARDS.len() * 1024;
        let ready = idents.ready.iter().map(|ready| ready.list.capacity()).sum();
        for room in [ready, idents.live.capacity(), idents.held.capacity()] {
            assert!((all..2 * all).contains(&room), "{room} for {all}");
        }
    }

    #[test]
    fn what_several_owners_have_found_adds_up() {
        let mut found = Recovered { mappings: 1, held: 2, torn: 3 };
        found += Recovered { mappings: 10, held: 20, torn: 30 };
        assert_eq!(found, Recovered { mappings: 11, held: 22, torn: 33 });
    }

    #[test]
    fn other_shards_are_others() {
        let memory = Memory::new();
        let mut first = memory.used_by(at(0));
        first.make(1, 7, at(0));
        let policy = IdentPolicy::default();
        let mappings = &first.mappings;
        let line = |_| Some(mappings.clients.index(0));
        let (other, recovered) = Idents::recover(mappings, &[7], &policy, LIFETIMES, generator(Some(7)), at(1), line);
        assert_eq!((recovered, other.live()), (Recovered::default(), 0));
    }
}
