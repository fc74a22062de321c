//! Whose ident is whose: making and expiring mappings. One [`Idents`] a worker, which owns a set of shards.
//!
//! An ident goes ready -> live -> held -> ready. Ready idents are drawn at random (they must be hard to guess, RFC 6888
//! REQ-15); live ones stand in a dense list that a cursor walks, paced by the clock; held ones stand in a queue, since the
//! hold-down is the same for all. Everything is reserved at start.
//!
//! The order in expiry matters. Live -> held first, so that no request leaves under the ident any more; then the map's
//! entry goes, if it still points here; then the hold-down, longer than any echo can stay outstanding, so that every
//! reply that may still come finds the old client's identity; only then may the ident be another's.

mod recovery;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::addresses::Addresses;
use super::clients::{ClientIndex, Clients};
use super::forward::{Forward, Guard};
use super::slots::{Slots, State};
use super::{SHARDS, SlotIndex};
use crate::canary::{Canary, is_loose};
use crate::clock::Instant;

/// Why no mapping could be made. Nobody's live mapping is evicted to make room (RFC 6888 REQ-11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// This worker has no ident left on the client's gateway address.
    NoIdent,
    /// The map still held a mapping that another worker is ending.
    Contended,
}

/// What a mapping is found or made in: shared by all workers.
#[derive(Debug)]
pub struct Mappings {
    /// The truth.
    pub slots: Slots,
    /// The way to it.
    pub forward: Forward,
    /// Whose shares they count against.
    pub clients: Clients,
    /// What they are on.
    pub addresses: Addresses,
}

/// Who asks for a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The client's address.
    pub client: Ipv4Addr,
    /// The client's line, in which this mapping has been counted.
    pub line: ClientIndex,
    /// The ident that the client chose.
    pub client_ident: u16,
}

enum Made {
    New(SlotIndex),
    Found(SlotIndex),
}

/// How long idents stay in which state.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// A mapping ends when no request has used it for this long.
    pub idle: Duration,
    /// An ident rests this long after its mapping has ended.
    pub hold_down: Duration,
}

/// The idents of one worker's shards.
#[derive(Debug)]
pub struct Idents {
    /// By gateway address.
    ready: Vec<Ready>,
    live: Vec<SlotIndex>,
    /// With the time when the hold-down ends: in that order.
    held: VecDeque<(SlotIndex, Instant)>,
    policy: IdentPolicy,
    lifetimes: Lifetimes,
    cursor: usize,
    /// Up to when the walk over the live mappings has come.
    swept: Instant,
    /// Living mappings that the walk has still to pass: left over where more had ended than one batch may end.
    owed: usize,
    /// The lost addresses when the walk last began.
    lost: u32,
    rng: StdRng,
}

/// The idents of one gateway address that are nobody's.
#[derive(Debug)]
struct Ready {
    list: Vec<SlotIndex>,
    /// By ident: where in the list it stands, if it stands there. Empty unless idents are asked for by their number.
    places: Vec<u16>,
}

impl Ready {
    fn new(list: Vec<SlotIndex>, by_number: bool) -> Ready {
        let mut ready =
            Ready { list: Vec::with_capacity(list.len()), places: vec![0; if by_number { 1 << 16 } else { 0 }] };
        list.into_iter().for_each(|index| ready.put(index));
        ready
    }

    fn put(&mut self, index: SlotIndex) {
        self.list.push(index);
        self.note(self.list.len() - 1);
    }

    /// Takes the ident out that stands at this place.
    fn take(&mut self, place: usize) -> SlotIndex {
        let index = self.list.swap_remove(place);
        self.note(place);
        index
    }

    /// Remembers what stands at this place, if anything does.
    fn note(&mut self, place: usize) {
        let Some(index) = self.list.get(place) else { return };
        // A list has at most 65,536 places.
        if let (Some(noted), Ok(place)) = (self.places.get_mut(usize::from(index.ident())), u16::try_from(place)) {
            *noted = place;
        }
    }

    /// Where this one stands.
    fn place_of(&self, wanted: SlotIndex) -> Option<usize> {
        let place = usize::from(*self.places.get(usize::from(wanted.ident()))?);
        (self.list.get(place) == Some(&wanted)).then_some(place)
    }
}

/// Which idents there are, and which a mapping gets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdentPolicy {
    /// Idents that are left to the host.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// Whether a mapping gets the client's own ident where that is ready, instead of one that is hard to guess.
    pub preserve: bool,
}

impl IdentPolicy {
    /// Whether no mapping gets this ident.
    pub fn is_reserved(&self, ident: u16) -> bool {
        self.reserved.iter().any(|range| range.contains(&ident))
    }
}

/// Live mappings that one call looks at, at most.
const LOOKS_MAX: usize = 4096;

/// A whole walk over the live mappings takes the idle time divided by this.
const WALKS_PER_IDLE: u32 = 8;

/// While there are mappings, time is looked at this often.
const SLICE: Duration = Duration::from_millis(250);

impl Mappings {
    /// Empty tables for these gateway addresses and this many addresses of clients.
    pub fn new(addresses: &[Ipv4Addr], clients: u64) -> Mappings {
        Mappings::over(Slots::new(addresses.len()), Addresses::new(addresses), clients)
    }

    /// As `new`, over slots and addresses that are there.
    pub fn over(slots: Slots, addresses: Addresses, clients: u64) -> Mappings {
        let forward = Forward::new(slots.len());
        Mappings { slots, forward, clients: Clients::new(clients), addresses }
    }

    /// The live mapping of a client's ident.
    #[inline]
    pub fn find(&self, client: Ipv4Addr, client_ident: u16, guard: &Guard<'_>) -> Option<SlotIndex> {
        let index = self.forward.get(client, client_ident, guard)?;
        self.slots.identity(index).is_live_for(client, client_ident).then_some(index)
    }
}

pub use recovery::Recovered;

impl Idents {
    /// The idents of `shards` on `addresses` gateway addresses, but for the reserved ones, ready.
    pub fn new(addresses: usize, shards: &[usize], policy: &IdentPolicy, lifetimes: Lifetimes, rng: StdRng) -> Idents {
        let of_address = |address: u8| owned(address, shards, policy).collect();
        Idents::with_ready(numbers(addresses).map(of_address).collect(), policy, lifetimes, rng)
    }

    /// These idents, by gateway address.
    pub(super) fn with_ready(
        ready: Vec<Vec<SlotIndex>>,
        policy: &IdentPolicy,
        lifetimes: Lifetimes,
        rng: StdRng,
    ) -> Idents {
        let total = ready.iter().map(Vec::len).sum();
        let (live, held) = (Vec::with_capacity(total), VecDeque::with_capacity(total));
        let ready = ready.into_iter().map(|list| Ready::new(list, policy.preserve)).collect();
        let policy = policy.clone();
        Idents { ready, live, held, policy, lifetimes, cursor: 0, swept: Instant::START, owed: 0, lost: 0, rng }
    }

    /// Adds what is ready to the count of all owners: once, before the first mapping.
    pub fn announce(&self, addresses: &Addresses) {
        for (number, ready) in (0..).zip(&self.ready) {
            addresses.add_ready(number, ready.list.len());
        }
    }

    /// Makes a mapping on gateway address number `address`, or finds the one that another worker made meanwhile. Whoever
    /// asks has entered it in the client's line; unless a new mapping is made, it leaves again.
    pub fn make(
        &mut self,
        mappings: &Mappings,
        address: u8,
        asker: Asker,
        now: Instant,
        guard: &Guard<'_>,
    ) -> Result<SlotIndex, Refused> {
        let made = self.try_make(mappings, address, asker, now, guard);
        if !matches!(made, Ok(Made::New(_))) {
            mappings.clients.leave(asker.line);
        }
        made.map(|(Made::New(index) | Made::Found(index))| index)
    }

    fn try_make(
        &mut self,
        mappings: &Mappings,
        address: u8,
        asker: Asker,
        now: Instant,
        guard: &Guard<'_>,
    ) -> Result<Made, Refused> {
        let Asker { client, line, client_ident } = asker;
        let index = self.draw(address, client_ident).ok_or(Refused::NoIdent)?;
        mappings.addresses.take_ready(address);
        mappings.slots.occupy(index, client, line, client_ident, now);
        // At most two tries: the second after removing an entry whose mapping has ended but which is still in the map.
        for _ in 0..2 {
            match mappings.forward.try_insert(client, client_ident, index, guard) {
                Ok(()) => {
                    self.live.push(index);
                    return Ok(Made::New(index));
                }
                Err(winner) if mappings.slots.identity(winner).is_live_for(client, client_ident) => {
                    self.give_back(mappings, index);
                    return Ok(Made::Found(winner));
                }
                Err(ended) => mappings.forward.remove(client, client_ident, ended, guard),
            }
        }
        self.give_back(mappings, index);
        Err(Refused::Contended)
    }

    /// Whether an ident is ready on this gateway address.
    pub fn is_ready(&self, address: u8) -> bool {
        self.ready.get(usize::from(address)).is_some_and(|ready| !ready.list.is_empty())
    }

    /// The client's own if it is to be had by its number, or any.
    fn draw(&mut self, address: u8, client_ident: u16) -> Option<SlotIndex> {
        let ready = self.ready.get_mut(usize::from(address))?;
        let place = match ready.place_of(SlotIndex::new(address, client_ident)) {
            Some(place) => place,
            None if ready.list.is_empty() => return None,
            None => self.rng.random_range(..ready.list.len()),
        };
        Some(ready.take(place))
    }

    /// An ident is nobody's again; ready, unless it has become a reserved one meanwhile.
    fn put(&mut self, mappings: &Mappings, index: SlotIndex, from: State) {
        mappings.slots.free(index, from);
        if self.policy.is_reserved(index.ident()) {
            return;
        }
        self.ready[usize::from(index.address())].put(index);
        mappings.addresses.add_ready(index.address(), 1);
    }

    /// Nothing was sent under this ident: no hold-down.
    fn give_back(&mut self, mappings: &Mappings, index: SlotIndex) {
        self.put(mappings, index, State::Live);
    }

    /// Ends mappings that have been idle too long, or whose address is lost, and hold-downs that are over: as many as are due by the clock, at most
    /// `count_max`. Returns how many mappings it ended.
    pub fn expire(&mut self, mappings: &Mappings, now: Instant, count_max: usize, guard: &Guard<'_>) -> usize {
        for _ in 0..count_max {
            let Some(&(index, until)) = self.held.front() else { break };
            if until > now {
                break;
            }
            self.held.pop_front();
            self.put(mappings, index, mappings.slots.identity(index).state());
        }
        self.owed = (self.owed + self.due(now)).min(self.live.len());
        let lost = mappings.addresses.lost();
        if lost != self.lost {
            // Nobody can be asked or answered under those on a lost address: they are not waited for.
            (self.lost, self.owed) = (lost, self.live.len());
        }
        let mut ended = 0;
        for _ in 0..LOOKS_MAX {
            if self.owed == 0 || ended == count_max || self.live.is_empty() {
                break;
            }
            self.cursor = if self.cursor < self.live.len() { self.cursor } else { 0 };
            let index = self.live[self.cursor];
            let idle = u128::from(mappings.slots.idle_ms(index, now)) >= self.lifetimes.idle.as_millis();
            if !idle && lost >> index.address() & 1 == 0 {
                self.cursor += 1;
                self.owed -= 1;
            } else {
                // It takes itself out of the walk, which does not become longer by it.
                self.end(mappings, now, guard);
                ended += 1;
            }
        }
        ended
    }

    /// Ends the mapping under the cursor.
    fn end(&mut self, mappings: &Mappings, now: Instant, guard: &Guard<'_>) {
        let index = self.live.swap_remove(self.cursor);
        let identity = mappings.slots.hold(index, now);
        mappings.forward.remove(identity.client(), identity.client_ident(), index, guard);
        mappings.clients.leave(mappings.slots.client(index));
        let rest = if is_loose(Canary::StaleIdent) { Duration::ZERO } else { self.lifetimes.hold_down };
        self.held.push_back((index, now + rest));
    }

    /// How many live mappings the walk should have looked at since the last time.
    fn due(&mut self, now: Instant) -> usize {
        let walk = (self.lifetimes.idle / WALKS_PER_IDLE).max(Duration::from_millis(1)).as_nanos();
        let elapsed = now.since(self.swept).as_nanos();
        let live = self.live.len() as u128;
        if live == 0 || elapsed >= walk {
            self.swept = now;
            return self.live.len();
        }
        let due = live * elapsed / walk;
        // The time that made no whole mapping adds up for the next call.
        self.swept = self.swept + Duration::from_nanos(u64::try_from(due * walk / live).unwrap_or(u64::MAX));
        usize::try_from(due).unwrap_or(usize::MAX)
    }

    /// How long the owner may sleep before it must call `expire` again; `None` while there is nothing to expire.
    pub fn sleep_max(&self, now: Instant) -> Option<Duration> {
        if self.owed > 0 {
            return Some(Duration::ZERO);
        }
        let hold_down = self.held.front().map(|&(_, until)| until.since(now));
        let walk = (!self.live.is_empty()).then_some(SLICE);
        hold_down.into_iter().chain(walk).min()
    }

    /// Mappings live now.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Idents in their hold-down now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Walks the tables of the owner of these shards and tells the first contradiction: for tests and debugging, not for the packet
    /// path.
    pub fn audit(&self, mappings: &Mappings, shards: &[usize]) -> Result<(), String> {
        let guard = mappings.forward.guard();
        let mut seen = vec![false; mappings.slots.len()];
        let all =
            [(&self.live[..], State::Live)].into_iter().chain(self.ready.iter().map(|r| (&r.list[..], State::Free)));
        let held: Vec<SlotIndex> = self.held.iter().map(|&(index, _)| index).collect();
        for (indexes, state) in all.chain([(&held[..], State::Held)]) {
            for &index in indexes {
                let identity = mappings.slots.identity(index);
                let mapped = mappings.forward.get(identity.client(), identity.client_ident(), &guard) == Some(index);
                let state_found = if identity.state() == State::Resting { State::Held } else { identity.state() };
                let listed = std::mem::replace(&mut seen[index.position()], true);
                if state_found != state || (mapped != (state == State::Live)) || listed {
                    return Err(format!("{index:?} is {identity:?}, listed as {state:?}, in the map: {mapped}"));
                }
            }
        }
        let mut all = numbers(mappings.addresses.len()).flat_map(|address| owned(address, shards, &self.policy));
        match all.find(|index| !seen[index.position()]) {
            Some(lost) => Err(format!("{lost:?} is in no list: it is lost")),
            None => Ok(()),
        }
    }
}

/// The numbers of so many gateway addresses.
fn numbers(addresses: usize) -> impl Iterator<Item = u8> {
    (0..addresses).map(|address| u8::try_from(address).expect("at most 16 addresses"))
}

/// The idents of these shards on gateway address number `address`, but for the reserved ones.
fn owned(address: u8, shards: &[usize], policy: &IdentPolicy) -> impl Iterator<Item = SlotIndex> {
    let mut of_shard = [false; SHARDS];
    shards.iter().for_each(|shard| of_shard[*shard] = true);
    let mut reserved = vec![false; 1 << 16];
    policy
        .reserved
        .iter()
        .for_each(|range| reserved[usize::from(*range.start())..=usize::from(*range.end())].fill(true));
    let is_owned = move |ident: &u16| of_shard[usize::from(*ident) % SHARDS] && !reserved[usize::from(*ident)];
    (0..=u16::MAX).filter(is_owned).map(move |ident| SlotIndex::new(address, ident))
}

/// A generator for the tables' random choices: from the operating system, or from a test's seed.
pub fn generator(seed: Option<u64>) -> StdRng {
    match seed {
        Some(seed) => StdRng::seed_from_u64(seed),
        None => {
            let mut bytes = [0; 32];
            let mut system = rand::rngs::SysRng;
            rand::TryRng::try_fill_bytes(&mut system, &mut bytes).expect("the kernel's random generator answers");
            StdRng::from_seed(bytes)
        }
    }
}

/// Another generator, independent of the one it is drawn from.
pub fn split(rng: &mut StdRng) -> StdRng {
    StdRng::from_rng(rng)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
