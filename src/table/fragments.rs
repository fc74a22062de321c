//! Requests that came in fragments: what was decided about each, once, by its first fragment, for those that follow it.
//!
//! Only the first fragment has the ICMP header: the ident, which is replaced, and the checksum over the whole request,
//! which follows by RFC 1624 from that alone. The others need the new source and the new identification. So nothing
//! is put together here: each fragment goes on by itself, in the order in which it came, and what this table keeps of
//! a request is 64 bytes.
//!
//! **Whose.** A request's fragments are all judged by one worker, whichever read them: [`worker_of`], the function
//! of source and identification by which the TUN's steering program chooses, so that they mostly come to it anyway. The
//! table is that worker's own.
//!
//! **Bounded, and each client's alone.** A client has a set of [`WAYS`] entries, found by its place among the clients.
//! Who sends more requests at once than that loses the oldest of its own. (Of more than [`SETS_MAX`] clients some
//! share a set.) Nothing is allocated, freed or swept; an entry is void when its time is over, counted from its beginning, not from
//! its last use.
//!
//! **Nothing twice.** Of each request the parts that have gone on are kept, as up to [`PARTS_MAX`] ranges. A fragment that
//! overlaps one is dropped (teardrop, and every other way of having two hosts see two different requests), and one
//! that does so in part, or contradicts the length, ends the request. When all parts have gone the entry is free.
//!
//! **Early ones** may be kept by whoever has the packets; the table says how many ([`EARLY_MAX`]) of a client, and for how
//! long ([`EARLY_TIME`]).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Instant;

/// Requests in fragments of one client at once.
pub const WAYS: usize = 8;

/// The most clients that have a set each.
pub const SETS_MAX: usize = 512;

/// How long a request's fragments may take, from its first on.
pub const DECISION_TIME: Duration = Duration::from_secs(10);

/// How long a fragment may wait for the first one.
pub const EARLY_TIME: Duration = Duration::from_secs(1);

/// Fragments of one client that may begin to wait within that time: as many as the largest request has on an Ethernet,
/// and some.
pub const EARLY_MAX: u16 = 64;

/// Ranges kept of one request: in order, and in reverse, it is one.
pub const PARTS_MAX: usize = 8;

/// What names a request in fragments, beside the protocol (RFC 791, section 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Series {
    /// Who sent it.
    pub client: Ipv4Addr,
    /// To whom.
    pub remote: Ipv4Addr,
    /// The client's identification.
    pub identification: u16,
}

/// What was decided about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It goes on from this gateway address (by number) under this identification.
    Carried {
        /// The number of the gateway address.
        address: u8,
        /// The identification that it leaves with.
        identification: u16,
    },
    /// It is none of ours.
    Passed,
    /// It is dropped; the number is whatever the caller knows the reason by.
    Dropped(u8),
}

/// Which part of the whole request a fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    start: u16,
    end: u16,
    last: bool,
}

/// Why a fragment does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// All of it has gone already: it came twice.
    Repeated,
    /// A part of it has gone already, or the length it tells is not the request's: the request is given up.
    Contradicts,
    /// The request is in too many pieces that do not meet: the request is given up.
    Scattered,
}

const UNIT: usize = 8;

/// The most bytes that a datagram with the shortest header carries.
const PAYLOAD_MAX: usize = 65_535 - 20;

impl Part {
    /// The part of a fragment that stands `offset` bytes into the whole and has `len`; none if no fragment can be so: an
    /// empty one, one of an odd length before others, one beyond the largest datagram.
    pub fn new(offset: usize, len: usize, more_follow: bool) -> Option<Part> {
        if len == 0 || (more_follow && !len.is_multiple_of(UNIT)) || offset + len > PAYLOAD_MAX {
            return None;
        }
        let unit = |bytes: usize| u16::try_from(bytes.div_ceil(UNIT)).ok();
        Some(Part { start: unit(offset)?, end: unit(offset + len)?, last: !more_follow })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Void,
    /// Only later fragments have come.
    Early,
    Decided(Decision),
}

/// One request.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Entry {
    series: Series,
    stage: Stage,
    begun: Instant,
    /// Where the last fragment ends, once that has come; 0 before.
    end: u16,
    ranges: u8,
    /// What has gone, in units of eight bytes: ascending, and no two of them meet.
    gone: [(u16, u16); PARTS_MAX],
}

const VOID: Entry = Entry {
    series: Series { client: Ipv4Addr::UNSPECIFIED, remote: Ipv4Addr::UNSPECIFIED, identification: 0 },
    stage: Stage::Void,
    begun: Instant::START,
    end: 0,
    ranges: 0,
    gone: [(0, 0); PARTS_MAX],
};

impl Entry {
    fn lives(&self, now: Instant) -> bool {
        match self.stage {
            Stage::Void => false,
            Stage::Early => now.since(self.begun) < EARLY_TIME,
            Stage::Decided(_) => now.since(self.begun) < DECISION_TIME,
        }
    }

    /// Notes that the part goes. Whether that was the last that was missing.
    fn note(&mut self, part: Part) -> Result<bool, Refused> {
        let Part { start, end, last } = part;
        let gone = &self.gone[..usize::from(self.ranges)];
        if gone.iter().any(|range| range.0 <= start && end <= range.1) {
            return Err(Refused::Repeated);
        }
        let beyond = self.end != 0 && (end > self.end || last);
        let furthest = gone.last().map_or(0, |range| range.1);
        if beyond || (last && furthest > end) || gone.iter().any(|range| range.0 < end && start < range.1) {
            return Err(Refused::Contradicts);
        }
        let place = gone.partition_point(|range| range.1 <= start);
        let meets_before = place > 0 && self.gone[place - 1].1 == start;
        let meets_after = place < gone.len() && self.gone[place].0 == end;
        match (meets_before, meets_after) {
            (true, true) => {
                self.gone[place - 1].1 = self.gone[place].1;
                self.gone.copy_within(place + 1.., place);
                self.ranges -= 1;
            }
            (true, false) => self.gone[place - 1].1 = end,
            (false, true) => self.gone[place].0 = start,
            (false, false) => {
                if gone.len() == PARTS_MAX {
                    return Err(Refused::Scattered);
                }
                self.gone.copy_within(place..PARTS_MAX - 1, place + 1);
                self.gone[place] = (start, end);
                self.ranges += 1;
            }
        }
        if last {
            self.end = end;
        }
        Ok(self.end != 0 && self.ranges == 1 && self.gone[0] == (0, self.end))
    }
}

/// One client's requests.
#[derive(Clone, Debug)]
struct Set {
    entries: [Entry; WAYS],
    /// Since when early fragments are counted, and how many there were.
    early_since: Instant,
    early: u16,
}

/// One worker's requests in fragments.
#[derive(Debug)]
pub struct Fragments {
    sets: Box<[Set]>,
    /// First fragments that were waited for, since somebody last asked.
    awaited: bool,
}

impl Fragments {
    /// An empty table for clients that can have this many addresses.
    pub fn new(clients: u64) -> Fragments {
        let sets = usize::try_from(clients).unwrap_or(SETS_MAX).min(SETS_MAX);
        let set = Set { entries: [VOID; WAYS], early_since: Instant::START, early: 0 };
        Fragments { sets: vec![set; sets].into(), awaited: false }
    }

    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// What was decided about the request, if it was. `place` is the client's among all clients' addresses.
    pub fn decision(&self, place: u64, series: Series, now: Instant) -> Option<Decision> {
        let set = self.sets.get(self.set(place))?;
        let entry = set.entries.iter().find(|entry| entry.series == series && entry.lives(now))?;
        match entry.stage {
            Stage::Decided(decision) => Some(decision),
            Stage::Void | Stage::Early => None,
        }
    }

    /// Keeps what was decided about the request, of which `first` is the first part.
    pub fn decide(&mut self, place: u64, series: Series, first: Part, decision: Decision, now: Instant) {
        let Some((entry, known)) = self.entry(place, series, now) else { return };
        let was_awaited = known && entry.stage == Stage::Early;
        *entry = Entry { series, stage: Stage::Decided(decision), begun: now, ..VOID };
        // Nothing has gone of it: no part can be refused.
        let complete = entry.note(first) == Ok(true);
        if complete {
            entry.stage = Stage::Void;
        }
        self.awaited |= was_awaited;
    }

    /// Notes that a part of a request that was decided about goes on.
    pub fn note(&mut self, place: u64, series: Series, part: Part, now: Instant) -> Result<(), Refused> {
        let Some((entry, true)) = self.entry(place, series, now) else { return Ok(()) };
        if entry.note(part)? {
            entry.stage = Stage::Void;
        }
        Ok(())
    }

    /// Gives a request up: what follows of it is dropped, by this number.
    pub fn give_up(&mut self, place: u64, series: Series, reason: u8, now: Instant) {
        if let Some((entry, true)) = self.entry(place, series, now) {
            entry.stage = Stage::Decided(Decision::Dropped(reason));
        }
    }

    /// Whether a fragment that came before the first may wait for it.
    pub fn may_wait(&mut self, place: u64, series: Series, now: Instant) -> bool {
        let set = self.set(place);
        let Some(set) = self.sets.get_mut(set) else { return false };
        if now.since(set.early_since) >= EARLY_TIME {
            (set.early_since, set.early) = (now, 0);
        }
        if set.early >= EARLY_MAX {
            return false;
        }
        set.early += 1;
        if let Some((entry, false)) = self.entry(place, series, now) {
            *entry = Entry { series, stage: Stage::Early, begun: now, ..VOID };
        }
        true
    }

    /// Whether a first fragment that others waited for has been decided about since this was last asked.
    pub fn take_awaited(&mut self) -> bool {
        std::mem::take(&mut self.awaited)
    }

    fn set(&self, place: u64) -> usize {
        usize::try_from(place % self.sets.len().max(1) as u64).unwrap_or(0)
    }

    /// The request's entry and true, or the one that it may have and false.
    fn entry(&mut self, place: u64, series: Series, now: Instant) -> Option<(&mut Entry, bool)> {
        let set = self.set(place);
        let entries = &mut self.sets.get_mut(set)?.entries;
        let known = entries.iter().position(|entry| entry.series == series && entry.lives(now));
        // A void one, or the oldest.
        let by_age = |entry: &&mut Entry| (entry.lives(now), entry.begun);
        match known {
            Some(known) => Some((&mut entries[known], true)),
            None => entries.iter_mut().min_by_key(by_age).map(|entry| (entry, false)),
        }
    }
}

/// Which of so many workers judges the fragments with this source and identification: what the steering program
/// computes from the same seed, and the kernel takes modulo the number of queues.
pub fn worker_of(source: Ipv4Addr, identification: u16, seed: u64, workers: usize) -> usize {
    let fold = |hash: u64| hash ^ hash >> 32;
    let key = (u64::from(u32::from(source)) << 32 | u64::from(identification >> 4)) ^ seed;
    let hash = fold(fold(key).wrapping_mul(0xBF58_476D_1CE4_E5B9)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 49;
    usize::try_from((hash + u64::from(identification & 15)) % workers.max(1) as u64).unwrap_or(0)
}
