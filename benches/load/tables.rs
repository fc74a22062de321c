//! The tables alone: what of an echo is not rewriting. Outbound: the forward map, the slot's identity, the mark that it
//! was used, the outstanding echo. Inbound: the outstanding echo, the slot's identity.
//!
//! The forward map can be papaya's or a rival; slots and outstanding echoes are the same memory for all.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use echogate::clock;
use echogate::policy::Prefix;
use echogate::table::SlotIndex;
use echogate::table::clients::Allowance;
use echogate::table::echoes::{Consumed, EchoKey, Echoes};
use echogate::table::forward::Forward;
use echogate::table::idents::{self, Asker, IdentPolicy, Idents, Lifetimes, Mappings};
use echogate::table::slots::State;
use foldhash::quality::RandomState;
use papaya::LocalGuard;

use super::{BATCH, BatchTimes, CLIENTS, GATEWAY, Planned, Ring, Size, Timing, WORKERS, asker};

/// A map from (client, client ident) to slot.
pub(crate) trait Map: Sync {
    /// What is taken once a batch.
    type Guard<'m>
    where
        Self: 'm;
    fn guard(&self) -> Self::Guard<'_>;
    fn get(&self, client: Ipv4Addr, client_ident: u16, guard: &Self::Guard<'_>) -> Option<SlotIndex>;
}

impl Map for Forward {
    type Guard<'m> = LocalGuard<'m>;

    fn guard(&self) -> LocalGuard<'_> {
        self.guard()
    }

    fn get(&self, client: Ipv4Addr, client_ident: u16, guard: &LocalGuard<'_>) -> Option<SlotIndex> {
        self.get(client, client_ident, guard)
    }
}

fn key(client: Ipv4Addr, client_ident: u16) -> u64 {
    u64::from(u32::from(client)) << 16 | u64::from(client_ident)
}

/// One lock around the standard library's map, taken for each packet: held for a batch it would stop, for that long,
/// whoever makes a mapping.
pub(crate) struct Locked(RwLock<HashMap<u64, SlotIndex, RandomState>>);

impl Map for Locked {
    type Guard<'m> = ();

    fn guard(&self) {}

    fn get(&self, client: Ipv4Addr, client_ident: u16, (): &()) -> Option<SlotIndex> {
        self.0.read().expect("nobody panicked").get(&key(client, client_ident)).copied()
    }
}

/// A lock a shard of the map.
pub(crate) struct Dash(DashMap<u64, SlotIndex, RandomState>);

impl Map for Dash {
    type Guard<'m> = ();

    fn guard(&self) {}

    fn get(&self, client: Ipv4Addr, client_ident: u16, (): &()) -> Option<SlotIndex> {
        self.0.get(&key(client, client_ident)).map(|slot| *slot)
    }
}

/// The tables with all their mappings made.
pub(crate) struct Tables {
    pub(crate) mappings: Mappings,
    pub(crate) echoes: Echoes,
    pub(crate) locked: Locked,
    pub(crate) dash: Dash,
    /// By mapping.
    pub(crate) indexes: Vec<SlotIndex>,
}

impl Tables {
    pub(crate) fn new(size: Size) -> Tables {
        let now = clock::Instant::START;
        let timeout = Duration::from_secs(60);
        let mut rng = idents::generator(Some(7));
        let clients: Prefix = CLIENTS.parse().expect("a prefix");
        let mappings = Mappings::new(&[GATEWAY], clients.addresses());
        let lifetimes = Lifetimes { idle: timeout, hold_down: timeout };
        let mut owners: Vec<Idents> = (0..WORKERS)
            .map(|worker| {
                let shards: Vec<usize> = (worker..64).step_by(WORKERS).collect();
                Idents::new(1, &shards, &IdentPolicy::default(), lifetimes, idents::split(&mut rng))
            })
            .collect();
        let guard = mappings.forward.guard();
        let indexes: Vec<SlotIndex> = (0..size.mappings)
            .map(|mapping| {
                let (client, client_ident) = asker(mapping);
                let place = u32::from(client) - u32::from(clients.address());
                let line = mappings.clients.index(place.into());
                mappings.clients.enter(line, &Allowance::UNLIMITED, now, |_| 0).expect("no limit");
                let asker = Asker { client, line, client_ident };
                owners[mapping % WORKERS].make(&mappings, 0, asker, now, &guard).expect("idents for all")
            })
            .collect();
        drop(guard);
        // The rivals get the room that papaya has.
        let mut locked = HashMap::with_capacity_and_hasher(mappings.slots.len() * 4, RandomState::default());
        let dash = DashMap::with_capacity_and_hasher(mappings.slots.len() * 4, RandomState::default());
        for (mapping, &index) in indexes.iter().enumerate() {
            let (client, client_ident) = asker(mapping);
            locked.insert(key(client, client_ident), index);
            dash.insert(key(client, client_ident), index);
        }
        let echoes = Echoes::new(size.echo_words_log2, timeout, &mut rng);
        Tables { mappings, echoes, locked: Locked(RwLock::new(locked)), dash: Dash(dash), indexes }
    }

    /// Puts the ring's echoes that must be outstanding into the table, or takes them out.
    pub(crate) fn fill(&self, ring: &Ring) {
        for position in ring.window() {
            self.echoes.record(echo_key(&ring[position]), ring.now);
        }
    }

    pub(crate) fn drain(&self, ring: &Ring) {
        for position in ring.window() {
            self.echoes.consume(echo_key(&ring[position]), ring.now);
        }
    }

    /// Runs this many batches and times them. `ahead`: each batch's lines are read before they are used.
    pub(crate) fn run<M: Map>(&self, map: &M, ring: &mut Ring, batches: usize, ahead: bool) -> Timing {
        let mut times = BatchTimes::with_capacity(batches);
        for _ in 0..batches {
            let [record, consume] = ring.next_batch();
            let begin = Instant::now();
            let guard = map.guard();
            if ahead {
                self.touch_inbound(ring, &consume);
            }
            times.matched(self.inbound(ring, &consume));
            if ahead {
                self.touch_outbound(map, &guard, ring, &record);
            }
            self.outbound(map, &guard, ring, &record);
            drop(guard);
            times.push(begin.elapsed());
        }
        times.timing()
    }

    /// How many of a batch's replies have matched.
    fn inbound(&self, ring: &Ring, positions: &[usize; BATCH]) -> usize {
        let mut matched = 0;
        for &position in positions {
            let echo = &ring[position];
            if self.echoes.consume(echo_key(echo), ring.now) == Consumed::Matched {
                let identity = self.mappings.slots.identity(echo.index);
                assert!(identity.state() != State::Free);
                std::hint::black_box((identity.client(), identity.client_ident()));
                matched += 1;
            }
        }
        matched
    }

    fn outbound<M: Map>(&self, map: &M, guard: &M::Guard<'_>, ring: &Ring, positions: &[usize; BATCH]) {
        for &position in positions {
            let &Planned { client, client_ident, sequence, remote, .. } = &ring[position];
            let index = map.get(client, client_ident, guard).expect("live");
            assert!(self.mappings.slots.identity(index).is_live_for(client, client_ident));
            self.mappings.slots.touch(index, ring.now);
            std::hint::black_box(self.echoes.record(EchoKey { index, sequence, remote }, ring.now));
        }
    }

    fn touch_inbound(&self, ring: &Ring, positions: &[usize; BATCH]) {
        for &position in positions {
            let echo = &ring[position];
            self.echoes.read_ahead(self.echoes.bucket(echo_key(echo)));
            self.mappings.slots.read_ahead(echo.index);
        }
    }

    fn touch_outbound<M: Map>(&self, map: &M, guard: &M::Guard<'_>, ring: &Ring, positions: &[usize; BATCH]) {
        for &position in positions {
            let &Planned { client, client_ident, sequence, remote, .. } = &ring[position];
            if let Some(index) = map.get(client, client_ident, guard) {
                self.mappings.slots.read_ahead(index);
                self.echoes.read_ahead(self.echoes.bucket(EchoKey { index, sequence, remote }));
            }
        }
    }
}

fn echo_key(echo: &Planned) -> EchoKey {
    EchoKey { index: echo.index, sequence: echo.sequence, remote: echo.remote }
}
