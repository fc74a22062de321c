//! Requests that came in fragments: what was decided about each, once, by its first fragment, for those that follow it.
//!
//! Only the first fragment has the ICMP header: the ident, which is replaced, and the checksum over the whole request,
//! which follows by RFC 1624 from that alone. The others need the new source and the new identification. So nothing
//! is put together here: each fragment goes on by itself, in the order in which it came, and what this table keeps of
//! a request is 64 bytes.
//!
//! **Whose.** A request's fragments are all judged by one worker, whichever read them: [`worker_of`], the function
//! of the addresses by which the TUN's steering program chooses, so that they mostly come to it anyway. The table is that
//! worker's own.
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
//! **Unfinished ones** cost memory elsewhere: in the host's connection tracking, which puts fragments together on their way
//! out and has the same memory for the replies of everybody, and at the remote. A client's may occupy [`UNFINISHED_MAX`]
//! bytes there at once; what it has begun and not completed is forgotten as slowly as hosts forget it.
//!
//! **Early ones** may be kept by whoever has the packets; the table says how many ([`EARLY_MAX`]) of a client, and for how
//! long ([`EARLY_TIME`]).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Instant;

/// Requests in fragments of one client at once.
pub const WAYS: usize = 8;

/// The most clients that have a set each (2.25 MiB for each worker). Beyond, those whose places among the clients differ by a
/// multiple of it share one: whoever floods with fragments can then hold up the fragments of the others in it, and nothing else of
/// theirs.
pub const SETS_MAX: usize = 4096;

/// How long a request's fragments may take, from its first on.
pub const DECISION_TIME: Duration = Duration::from_secs(10);

/// How long a fragment may wait for the first one.
pub const EARLY_TIME: Duration = Duration::from_secs(1);

/// Fragments of one client that may begin to wait within that time: as many as the largest request has on an Ethernet (45),
/// and some. Around the end of that time twice as many wait at once: whoever keeps packets has room for more than those, or
/// one client could fill it.
pub const EARLY_MAX: u16 = 64;

/// Ranges kept of one request: in order, and in reverse, it is one.
pub const PARTS_MAX: usize = 8;

/// What a client's unfinished requests may occupy, in bytes: three of the largest in fragments of an Ethernet's size.
pub const UNFINISHED_MAX: u32 = 384 << 10;

/// How long hosts keep fragments (net.ipv4.ipfrag_time).
const KEPT_TIME: Duration = Duration::from_secs(30);

/// What a host needs for a fragment beside its bytes, at most.
const OVERHEAD_BYTES: u32 = 1024;

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
    /// The client has begun too many requests, or too large ones, and not completed them: the request is given up.
    Unfinished,
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

    /// What it occupies where it waits for the others.
    fn cost(self) -> u32 {
        u32::from(self.end - self.start) * 8 + OVERHEAD_BYTES
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
    /// What its parts have cost.
    cost: u32,
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
    cost: 0,
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
        // No range is empty, and none lies beyond the end: where one reaches it from the beginning it is the only one.
        Ok(self.gone[0] == (0, self.end))
    }
}

/// One client's requests.
#[derive(Clone, Debug)]
struct Set {
    entries: [Entry; WAYS],
    /// Since when early fragments are counted, and how many there were.
    early_since: Instant,
    early: u16,
    /// What the unfinished requests occupy, as of when.
    unfinished: u32,
    unfinished_at: Instant,
}

/// What is forgotten of a client's unfinished requests in this time: all of them in that for which hosts keep fragments.
fn forgotten_in(time: Duration) -> u32 {
    let forgotten = u128::from(UNFINISHED_MAX) * time.as_nanos() / KEPT_TIME.as_nanos();
    u32::try_from(forgotten).unwrap_or(u32::MAX)
}

impl Set {
    /// What the unfinished requests occupy now.
    fn unfinished(&self, now: Instant) -> u32 {
        self.unfinished.saturating_sub(forgotten_in(now.since(self.unfinished_at)))
    }

    fn set_unfinished(&mut self, unfinished: u32, now: Instant) {
        (self.unfinished, self.unfinished_at) = (unfinished, now);
    }
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
        let sets = sets(clients);
        let set = Set {
            entries: [VOID; WAYS],
            early_since: Instant::START,
            early: 0,
            unfinished: 0,
            unfinished_at: Instant::START,
        };
        Fragments { sets: vec![set; sets].into(), awaited: false }
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

    /// Whether the client may begin a request with this part, or has too many that are not complete.
    pub fn may_begin(&self, place: u64, first: Part, now: Instant) -> bool {
        self.sets.get(self.set(place)).is_some_and(|set| set.unfinished(now) + first.cost() <= UNFINISHED_MAX)
    }

    /// Keeps what was decided about the request, of which `first` is the first part.
    pub fn decide(&mut self, place: u64, series: Series, first: Part, decision: Decision, now: Instant) {
        let Some((entry, known)) = self.entry(place, series, now) else { return };
        let was_awaited = known && entry.stage == Stage::Early;
        *entry = Entry { series, stage: Stage::Decided(decision), begun: now, ..VOID };
        self.awaited |= was_awaited;
        if matches!(decision, Decision::Carried { .. }) {
            // Nothing has gone of it, and whether it may begin has been asked: it cannot be refused.
            let _ = self.note(place, series, first, now);
        }
    }

    /// Notes that a part of a request that was decided about goes on.
    pub fn note(&mut self, place: u64, series: Series, part: Part, now: Instant) -> Result<(), Refused> {
        let set = self.set(place);
        let Some(unfinished) = self.sets.get(set).map(|set| set.unfinished(now)) else { return Ok(()) };
        let Some((entry, true)) = self.entry(place, series, now) else { return Ok(()) };
        let complete = entry.note(part)?;
        entry.cost += part.cost();
        let occupied = unfinished + part.cost();
        let occupied = if complete {
            entry.stage = Stage::Void;
            // What has been forgotten since it began was its own, as far as is known: given back as well, it would be
            // the other requests' that are not complete.
            let still_counted = entry.cost.saturating_sub(forgotten_in(now.since(entry.begun)));
            occupied.saturating_sub(still_counted)
        } else {
            occupied
        };
        if occupied > UNFINISHED_MAX {
            return Err(Refused::Unfinished);
        }
        self.sets[set].set_unfinished(occupied, now);
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

/// How many sets for clients that can have this many addresses.
fn sets(clients: u64) -> usize {
    usize::try_from(clients).unwrap_or(SETS_MAX).min(SETS_MAX)
}

/// The bytes of one table for clients that can have this many addresses.
pub fn bytes(clients: u64) -> usize {
    sets(clients) * size_of::<Set>()
}

/// Which of so many workers judges the fragments between these two: what the steering program computes from the same seed,
/// and the kernel takes modulo the number of queues.
pub fn worker_of(source: Ipv4Addr, destination: Ipv4Addr, seed: u64, workers: usize) -> usize {
    let fold = |hash: u64| hash ^ hash >> 32;
    let destination = u64::from(u32::from(destination));
    let key = (u64::from(u32::from(source)) << 32 | destination >> 4) ^ seed;
    let hash = fold(fold(key).wrapping_mul(0xBF58_476D_1CE4_E5B9)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 49;
    usize::try_from((hash + (destination & 15)) % workers.max(1) as u64).unwrap_or(0)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    const CARRIED: Decision = Decision::Carried { address: 0, identification: 9 };
    const NOW: Instant = Instant::from_nanos(5_000_000_000);
    const MOMENT: Duration = Duration::from_nanos(1);

    fn series(identification: u16) -> Series {
        Series { client: CLIENT, remote: REMOTE, identification }
    }

    fn part(offset: usize, len: usize, more_follow: bool) -> Part {
        Part::new(offset, len, more_follow).unwrap()
    }

    fn decided(identification: u16) -> Fragments {
        let mut fragments = Fragments::new(256);
        fragments.decide(1, series(identification), part(0, 16, true), CARRIED, NOW);
        fragments
    }

    #[test]
    fn an_entry_is_one_cache_line() {
        assert_eq!(size_of::<Entry>(), 64);
    }

    #[test]
    fn parts_that_no_fragment_can_be_are_none() {
        for (offset, len, more_follow) in
            [(0, 0, true), (8, 0, false), (0, 12, true), (65_512, 8, false), (65_528, 8, true), (8, 65_512, false)]
        {
            assert_eq!(Part::new(offset, len, more_follow), None, "{offset} {len} {more_follow}");
        }
        assert!(Part::new(65_512, 3, false).is_some(), "the last bytes of the largest datagram");
    }

    #[test]
    fn what_was_decided_holds_for_the_request_alone_and_for_its_time() {
        let fragments = decided(1);
        assert_eq!(fragments.decision(1, series(1), NOW), Some(CARRIED));
        assert_eq!(fragments.decision(1, series(2), NOW), None);
        assert_eq!(fragments.decision(1, Series { remote: CLIENT, ..series(1) }, NOW), None);
        assert_eq!(fragments.decision(1, Series { client: REMOTE, ..series(1) }, NOW), None);
        assert_eq!(fragments.decision(1, series(1), NOW + (DECISION_TIME - MOMENT)), Some(CARRIED));
        assert_eq!(fragments.decision(1, series(1), NOW + DECISION_TIME), None);
    }

    #[test]
    fn teardrop_and_every_other_overlap_end_the_request_and_a_repetition_does_not() {
        for (offset, len, more_follow, refused) in [
            (0, 16, true, Refused::Repeated),
            (8, 8, true, Refused::Repeated),
            // Teardrop: it begins within what has come, and ends beyond or within.
            (8, 16, true, Refused::Contradicts),
            (8, 100, false, Refused::Contradicts),
            // It ends where others have come.
            (16, 20, false, Refused::Contradicts),
        ] {
            let mut fragments = decided(1);
            fragments.note(1, series(1), part(40, 8, true), NOW).unwrap();
            let noted = fragments.note(1, series(1), part(offset, len, more_follow), NOW);
            assert_eq!(noted, Err(refused), "{offset} {len} {more_follow}");
        }
        let mut fragments = decided(1);
        fragments.note(1, series(1), part(40, 3, false), NOW).unwrap();
        assert_eq!(fragments.note(1, series(1), part(48, 8, true), NOW), Err(Refused::Contradicts), "beyond the end");
        assert_eq!(fragments.note(1, series(1), part(56, 8, false), NOW), Err(Refused::Contradicts), "another end");
        fragments.give_up(1, series(1), 7, NOW);
        assert_eq!(fragments.decision(1, series(1), NOW), Some(Decision::Dropped(7)));
    }

    #[test]
    fn a_request_in_too_many_pieces_is_given_up_and_its_memory_does_not_grow() {
        let mut fragments = decided(1);
        let noted: Vec<_> =
            (1..12).map(|number| fragments.note(1, series(1), part(number * 24, 8, true), NOW)).collect();
        assert_eq!(noted.iter().filter(|noted| noted.is_ok()).count(), PARTS_MAX - 1);
        assert_eq!(noted.last(), Some(&Err(Refused::Scattered)));
    }

    /// One request comes whole, but slowly, and beside it others that never do.
    #[test]
    fn what_completes_late_gives_back_no_more_than_is_still_counted() {
        let begin = part(0, 64_000, true);
        let mut fragments = Fragments::new(256);
        for number in 1..=4 {
            assert!(fragments.may_begin(1, begin, NOW), "{number}");
            fragments.decide(1, series(number), begin, CARRIED, NOW);
        }
        let late = NOW + Duration::from_secs(9);
        let before = fragments.sets[1].unfinished(late);
        fragments.note(1, series(1), part(64_000, 8, false), late).unwrap();
        let after = fragments.sets[1].unfinished(late);
        // Three are still unfinished, and of the four's bytes nine seconds' worth are forgotten: more than the first one's.
        assert!(forgotten_in(Duration::from_secs(9)) > begin.cost());
        assert!(after >= before, "{before} became {after}");

        // At once, all of it is given back.
        let mut fragments = Fragments::new(256);
        fragments.decide(1, series(1), begin, CARRIED, NOW);
        fragments.note(1, series(1), part(64_000, 8, false), NOW).unwrap();
        assert_eq!(fragments.sets[1].unfinished(NOW), 0);
    }

    #[test]
    fn who_sends_more_requests_at_once_loses_the_oldest_of_its_own() {
        let mut fragments = decided(1);
        fragments.decide(2, Series { client: REMOTE, ..series(1) }, part(0, 8, true), CARRIED, NOW);
        for number in 2..=8 {
            let now = NOW + Duration::from_millis(number.into());
            fragments.decide(1, series(number), part(0, 8, true), CARRIED, now);
        }
        assert_eq!(fragments.decision(1, series(1), NOW), Some(CARRIED));
        fragments.decide(1, series(9), part(0, 8, true), CARRIED, NOW + Duration::from_millis(9));
        assert_eq!(fragments.decision(1, series(1), NOW), None);
        let left = (2..=9).filter(|number| fragments.decision(1, series(*number), NOW) == Some(CARRIED)).count();
        assert_eq!(left, WAYS);
        assert_eq!(fragments.decision(2, Series { client: REMOTE, ..series(1) }, NOW), Some(CARRIED));
    }

    #[test]
    fn early_ones_wait_in_bounds_and_are_called_when_their_first_has_come() {
        let mut fragments = Fragments::new(256);
        let waiting = (0..100).filter(|_| fragments.may_wait(1, series(1), NOW)).count();
        assert_eq!(waiting, usize::from(EARLY_MAX));
        assert!(fragments.may_wait(2, Series { client: REMOTE, ..series(1) }, NOW), "another client");
        assert!(fragments.may_wait(1, series(1), NOW + EARLY_TIME), "later");
        let now = NOW + EARLY_TIME;
        fragments.decide(1, series(2), part(0, 8, true), CARRIED, now);
        assert!(!fragments.take_awaited(), "nobody waited for that one");
        fragments.decide(1, series(1), part(0, 8, true), CARRIED, now);
        assert!(fragments.take_awaited() && !fragments.take_awaited());
        assert_eq!(fragments.decision(1, series(1), now), Some(CARRIED));
        fragments.decide(1, series(1), part(0, 8, true), CARRIED, now);
        assert!(!fragments.take_awaited(), "the first came twice: who waited has been called");
    }

    #[test]
    fn early_ones_wait_for_their_time_and_no_longer() {
        for (time, awaited) in [(EARLY_TIME - MOMENT, true), (EARLY_TIME, false)] {
            let mut fragments = Fragments::new(256);
            assert!(fragments.may_wait(1, series(1), NOW));
            fragments.decide(1, series(1), part(0, 8, true), CARRIED, NOW + time);
            assert_eq!(fragments.take_awaited(), awaited, "{time:?}");
        }
    }

    #[test]
    fn a_request_of_one_part_leaves_nothing_behind() {
        let mut fragments = Fragments::new(256);
        fragments.decide(1, series(1), part(0, 8, false), CARRIED, NOW);
        assert_eq!(fragments.decision(1, series(1), NOW), None);
    }

    #[test]
    fn what_is_begun_and_not_completed_is_bounded_and_what_is_completed_costs_nothing() {
        let mut fragments = Fragments::new(256);
        for identification in 0..1000 {
            fragments.decide(1, series(identification), part(0, 60_000, true), CARRIED, NOW);
            fragments.note(1, series(identification), part(60_000, 5000, false), NOW).unwrap();
        }
        let begin = |fragments: &mut Fragments, identification, now| {
            let first = part(0, 60_000, true);
            let may = fragments.may_begin(1, first, now);
            if may {
                fragments.decide(1, series(identification), first, CARRIED, now);
            }
            may
        };
        let begun = (0..1000).filter(|identification| begin(&mut fragments, *identification, NOW)).count();
        assert_eq!(begun, 6, "of 61,024 bytes in 393,216");
        assert_eq!(fragments.note(1, series(5), part(60_000, 5000, true), NOW), Ok(()));
        assert_eq!(fragments.note(1, series(5), part(65_000, 400, true), NOW).map_err(|_| ()), Ok(()));
        assert!(fragments.may_begin(2, part(0, 60_000, true), NOW), "another client");
        assert!(!begin(&mut fragments, 7, NOW + KEPT_TIME / 10) && begin(&mut fragments, 7, NOW + KEPT_TIME / 4));
    }

    #[test]
    fn a_client_may_leave_unfinished_exactly_as_much_as_is_said() {
        let mut fragments = Fragments::new(256);
        // With what a host needs beside its bytes each of them occupies 8 KiB, and 48 of them all there is.
        let piece = |number: usize| part(number * 7168, 7168, true);
        for identification in 0..6 {
            fragments.decide(1, series(identification), piece(0), CARRIED, NOW);
            for number in 1..8 {
                assert_eq!(fragments.note(1, series(identification), piece(number), NOW), Ok(()));
            }
        }
        assert_eq!(fragments.note(1, series(0), piece(8), NOW), Err(Refused::Unfinished));
        assert!(!fragments.may_begin(1, part(0, 8, true), NOW));
    }

    #[test]
    fn a_table_occupies_what_is_said() {
        assert_eq!(bytes(SETS_MAX as u64), (2 << 20) + (256 << 10), "2.25 MiB");
        assert_eq!((bytes(1) * SETS_MAX, bytes(u64::MAX)), (bytes(SETS_MAX as u64), bytes(SETS_MAX as u64)));
    }

    /// The steering program computes the same, or each later fragment takes a detour: see `crate::io::steering`.
    #[test]
    fn the_worker_of_two_hosts_is_the_one_that_the_steering_program_chooses() {
        const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 3);
        const SEED: u64 = 0x0123_4567_89ab_cdef;
        let remote = |host| Ipv4Addr::new(198, 18, 0, host);
        // Of so many workers that each has one value of the hash, and of three.
        for (source, destination, seed, hash, of_three) in [
            (CLIENT, remote(2), SEED, 0x2083, 1),
            (CLIENT, remote(15), SEED, 0x2090, 2),
            (CLIENT, remote(16), SEED, 0x3e56, 1),
            (OTHER_CLIENT, remote(2), SEED, 0x7adb, 2),
            (CLIENT, remote(2), 0, 0x0cc0, 0),
            (CLIENT, Ipv4Addr::new(203, 0, 113, 255), 0xfedc_ba98_7654_3210, 0x0bb8, 0),
        ] {
            assert_eq!(worker_of(source, destination, seed, 1 << 16), hash);
            assert_eq!(worker_of(source, destination, seed, 3), of_three);
        }
    }

    /// What the ranges ought to be: every unit by itself.
    #[derive(Default)]
    struct Model {
        gone: Vec<u16>,
        end: Option<u16>,
    }

    impl Model {
        fn note(&mut self, part: Part) -> Result<bool, Refused> {
            let units: Vec<u16> = (part.start..part.end).collect();
            if units.iter().all(|unit| self.gone.contains(unit)) {
                return Err(Refused::Repeated);
            }
            let overlaps = units.iter().any(|unit| self.gone.contains(unit));
            let beyond = self.end.is_some_and(|end| part.end > end || part.last);
            let short = part.last && self.gone.iter().any(|unit| *unit >= part.end);
            if overlaps || beyond || short {
                return Err(Refused::Contradicts);
            }
            self.gone.extend(units);
            self.end = self.end.or(part.last.then_some(part.end));
            Ok(self.end.is_some_and(|end| self.gone.len() == usize::from(end)))
        }
    }

    proptest! {
        /// A part that is repeated as a whole is told apart from one that meets several others only where ranges are whole.
        #[test]
        fn the_ranges_say_what_a_list_of_all_parts_says(
            parts in prop::collection::vec((0..16_usize, 1..6_usize, any::<bool>(), prop::num::u8::ANY), 1..40),
        ) {
            let (mut entry, mut model) = (VOID, Model::default());
            for (offset, len, _, last) in parts {
                let part = part(offset * 8, len * 8, last > 20);
                prop_assert_eq!(entry.note(part), model.note(part), "{:?} after {:?}", part, entry);
            }
        }

        /// Whatever the order, so long as it is not scattered, all parts go and the entry is free.
        #[test]
        fn in_every_order_a_request_is_complete_once_all_parts_have_gone(
            order in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut entry = VOID;
            for (gone, number) in order.into_iter().enumerate() {
                let noted = entry.note(part(number * 24, 24, number != 15));
                prop_assert_eq!(noted, Ok(gone == 15));
            }
        }
    }
}
