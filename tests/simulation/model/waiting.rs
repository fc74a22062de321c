//! What need not leave at once, and must all the same: a request in fragments of which every one has come, and one that waits for an
//! ident or goes to another worker for it. Within a second, if nothing goes wrong meanwhile and so little is under way that no
//! bounded queue between a worker and the next can be full; where idents are enough, and nobody has a share or is damaged; of
//! fragments if their client has no more of them unfinished, and has sent no more before their first ones, than the gateway keeps.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;

use super::super::eyes::Packet;

/// Nothing has to wait for longer.
const WAITS: Duration = Duration::from_secs(1);
/// What has been read in this time may still be on its way from worker to worker.
const UNDER_WAY: Duration = Duration::from_millis(5);
/// So many packets under way fit into any queue of the gateway's.
const CROWD: usize = 200;
/// Fragments wait for so long for the first one, and a little: and no more of them than these of one client, and of all.
const EARLY: Duration = Duration::from_millis(1100);
const EARLY_OF_CLIENT: usize = 60;
const EARLY_OF_ALL: usize = 400;
/// What is known of a request in fragments is known for so long, of the last few of a client.
const KNOWN: Duration = Duration::from_secs(10);
const KNOWN_OF_CLIENT: usize = 8;
/// A client may leave so many bytes unfinished in this time, and that is what each fragment counts for beside its own.
const UNFINISHED: Duration = Duration::from_secs(30);
const UNFINISHED_BYTES: usize = 370 << 10;
const OVERHEAD_BYTES: usize = 1024;

/// A request that its client sends in fragments.
type Series = (Ipv4Addr, Ipv4Addr, u16);

#[derive(Debug)]
struct Pieces {
    number: u64,
    missing: usize,
    parts: Vec<(usize, usize)>,
    since: Option<Instant>,
    /// When the first one came.
    first: Option<Instant>,
    /// It is dropped, or may be.
    spoilt: bool,
    /// Some of it came twice, and may have begun anew.
    twice: bool,
}

/// A request that has to leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) number: u64,
    /// Once more than this.
    pub(super) done: u32,
    /// Since when it has been on its way.
    pub(super) since: Instant,
    at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    series: Series,
    bytes: usize,
}

/// A client's requests in fragments that have begun and not left as a whole.
#[derive(Debug, Default)]
struct Unfinished {
    begun: VecDeque<Begun>,
    early: VecDeque<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    due: VecDeque<Due>,
    series: HashMap<Series, Pieces>,
    clients: HashMap<Ipv4Addr, Unfinished>,
    /// How many packets were read when, lately.
    read: VecDeque<(Instant, usize)>,
    early: VecDeque<Instant>,
    calm_since: Instant,
}

fn forget_before<T>(times: &mut VecDeque<T>, at: impl Fn(&T) -> Instant, now: Instant, after: Duration) {
    while times.front().is_some_and(|time| now.since(at(time)) > after) {
        times.pop_front();
    }
}

impl Waiting {
    /// A client is about to send this request in fragments; `spoilt`: which must not leave.
    pub(super) fn series(&mut self, packet: &Packet<'_>, number: u64, spoilt: bool) {
        let series = (packet.source, packet.destination, packet.identification);
        let pieces = Pieces {
            number,
            missing: packet.payload.len(),
            parts: Vec::new(),
            since: None,
            first: None,
            spoilt,
            twice: false,
        };
        self.series.insert(series, pieces);
    }

    /// Until then something is wrong, or has just been.
    pub(super) fn unrest(&mut self, until: Instant) {
        self.calm_since = self.calm_since.max(until);
    }

    /// The gateway has died, and forgotten all that waited.
    pub(super) fn dies(&mut self, now: Instant) {
        self.unrest(now);
        self.due.clear();
        self.series.clear();
        self.clients.clear();
    }

    /// Whether nothing is wrong, and no queue can be full.
    pub(super) fn is_calm(&self, now: Instant) -> bool {
        now > self.calm_since
    }

    /// A worker reads so many packets from inside.
    pub(super) fn reads(&mut self, now: Instant, packets: usize) {
        self.read.push_back((now, packets));
        forget_before(&mut self.read, |(at, _)| *at, now, UNDER_WAY);
        if self.read.iter().map(|(_, packets)| packets).sum::<usize>() > CROWD {
            self.unrest(now + UNDER_WAY * 2);
        }
    }

    /// A whole request that need not leave in this turn has been read; it had left so often for good.
    pub(super) fn waits(&mut self, now: Instant, number: u64, done: u32) {
        self.is_due(now, now, number, done);
    }

    /// It has to leave once more than that, and than those of its like that have to already.
    fn is_due(&mut self, since: Instant, now: Instant, number: u64, done: u32) {
        let likes = self.due.iter().filter(|due| due.number == number && due.done >= done).count();
        let done = done + u32::try_from(likes).unwrap_or(0);
        self.due.push_back(Due { number, done, since, at: now + WAITS });
    }

    /// A fragment of a client's has been read. `prompt`: whatever came before it to this worker has been judged. `done`: how often a
    /// request had left for good.
    pub(super) fn fragment(&mut self, now: Instant, packet: &Packet<'_>, prompt: bool, done: impl Fn(u64) -> u32) {
        let series = (packet.source, packet.destination, packet.identification);
        let client = self.clients.entry(packet.source).or_default();
        forget_before(&mut client.begun, |begun| begun.at, now, UNFINISHED);
        forget_before(&mut client.early, |early| *early, now, EARLY);
        forget_before(&mut self.early, |early| *early, now, EARLY);
        let part = (packet.offset, packet.offset + packet.payload.len());
        let bytes = packet.payload.len().next_multiple_of(8) + OVERHEAD_BYTES;
        let known = self.series.get_mut(&series);
        let again = known
            .as_ref()
            .is_none_or(|pieces| pieces.parts.iter().any(|(start, end)| *start < part.1 && part.0 < *end));
        match client.begun.iter_mut().rev().find(|begun| begun.series == series).filter(|_| !again) {
            Some(begun) => begun.bytes += bytes,
            None => client.begun.push_back(Begun { at: now, series, bytes }),
        }
        // One that follows a first one which may wait may be early, too; and one of what has left, or was forgotten.
        let first = known.as_ref().and_then(|pieces| pieces.first);
        let is_early = again || first.is_none_or(|first| !prompt && now.since(first) < UNDER_WAY);
        if packet.offset > 0 && is_early {
            client.early.push_back(now);
            self.early.push_back(now);
        }
        let Some(pieces) = known else { return };
        let since = *pieces.since.get_or_insert(now);
        pieces.twice |= again;
        pieces.spoilt |= again;
        if !again {
            pieces.missing = pieces.missing.saturating_sub(packet.payload.len());
        }
        pieces.parts.push(part);
        if packet.offset == 0 {
            pieces.first.get_or_insert(now);
        }
        let complete = (pieces.missing == 0 && !pieces.spoilt).then_some(pieces.number);
        let known = client.begun.iter().filter(|begun| now.since(begun.at) < KNOWN).count();
        let unfinished = client.begun.iter().map(|begun| begun.bytes).sum::<usize>();
        if known > KNOWN_OF_CLIENT || unfinished > UNFINISHED_BYTES || client.early.len() > EARLY_OF_CLIENT {
            let begun: Vec<Series> = client.begun.iter().map(|begun| begun.series).collect();
            begun.into_iter().for_each(|series| self.spoil(series));
        } else if let Some(number) = complete {
            self.is_due(since, now, number, done(number));
        }
        if self.early.len() > EARLY_OF_ALL {
            self.unrest(now + EARLY);
        }
    }

    fn spoil(&mut self, series: Series) {
        if let Some(pieces) = self.series.get_mut(&series).filter(|pieces| !pieces.spoilt) {
            pieces.spoilt = true;
            self.due.retain(|due| due.number != pieces.number);
        }
    }

    /// A part of this request could not be sent.
    pub(super) fn fails(&mut self, number: u64) {
        self.due.retain(|due| due.number != number);
        if let Some(pieces) = self.series.values_mut().find(|pieces| pieces.number == number) {
            pieces.spoilt = true;
        }
    }

    /// A request in fragments has left as a whole.
    pub(super) fn finished(&mut self, request: &Packet<'_>) {
        let series = (request.source, request.destination, request.identification);
        if self.series.get(&series).is_some_and(|pieces| !pieces.twice)
            && let Some(client) = self.clients.get_mut(&request.source)
        {
            client.begun.retain(|begun| begun.series != series);
        }
    }

    /// The next one that had to leave by now, if nothing has been wrong since it came.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Due> {
        while self.due.front().is_some_and(|due| due.at < now) {
            let due = self.due.pop_front()?;
            if due.since > self.calm_since {
                return Some(due);
            }
        }
        None
    }
}
