//! What a client may have, from both sides: no more than its share may leave, and what is surely within it must.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::policy::Limits;

/// Longer than a packet can wait in the gateway before it is judged: a second for its first fragment, and three while a worker
/// stands still, twice.
const WAITS: Duration = Duration::from_secs(8);
/// By how much floating-point numbers may be wrong, in packets, mappings and bytes.
const INEXACT: f64 = 0.02;

/// Errors of the gateway's own that a client is told.
const ERRORS_PER_SECOND: f64 = 10.0;
const ERRORS_BURST: f64 = 20.0;

/// Three buckets that fill at a client's rates.
#[derive(Clone, Copy, Debug)]
struct Buckets {
    packets: f64,
    bytes: f64,
    mappings: f64,
    at: Instant,
}

impl Buckets {
    fn full(limits: Limits, at: Instant) -> Buckets {
        Buckets {
            packets: limits.packets_burst.into(),
            bytes: limits.bytes_burst.into(),
            mappings: limits.mappings_burst.into(),
            at,
        }
    }

    fn fill(&mut self, limits: Limits, now: Instant) {
        let (full, passed) = (Buckets::full(limits, now), now.since(self.at).as_secs_f64());
        let filled = |level: f64, rate: u32, full: f64| full.min(level + passed * f64::from(rate));
        self.packets = filled(self.packets, limits.packets_per_second, full.packets);
        self.bytes = filled(self.bytes, limits.bytes_per_second, full.bytes);
        self.mappings = filled(self.mappings, limits.mappings_per_second, full.mappings);
        self.at = now;
    }
}

/// What of its share a client has left at least: everything that comes from it has taken its part, whatever became of it.
#[derive(Debug)]
struct Least {
    buckets: Buckets,
    /// Until when something of its may still wait to be judged: nothing is filled in before.
    waits_until: Instant,
    /// When each of its idents was last asked under.
    idents: HashMap<u16, Instant>,
}

/// What comes from a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comes {
    pub(super) client: Ipv4Addr,
    pub(super) bytes: usize,
    /// Of an echo request.
    pub(super) ident: Option<u16>,
    /// It is on a mapping that is there.
    pub(super) live: bool,
}

/// All clients' shares.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// What they have left at most: only what has left the gateway has taken its part.
    most: HashMap<Ipv4Addr, Buckets>,
    least: HashMap<Ipv4Addr, Least>,
    /// How many errors each may still be told, and as of when.
    errors: HashMap<Ipv4Addr, (f64, Instant)>,
}

impl Shares {
    /// Another process: shares begin anew. (What is left at least may have been more.)
    pub(super) fn begin_anew(&mut self) {
        self.most.clear();
        self.errors.clear();
    }

    /// A client's packet has left.
    pub(super) fn spends(
        &mut self,
        limits: Limits,
        now: Instant,
        client: Ipv4Addr,
        bytes: usize,
    ) -> Result<(), String> {
        let most = self.most.entry(client).or_insert_with(|| Buckets::full(limits, now));
        most.fill(limits, now);
        most.packets -= 1.0;
        most.bytes -= bytes as f64;
        let over = limits.packets_per_second > 0 && most.packets < -INEXACT
            || limits.bytes_per_second > 0 && most.bytes < -INEXACT * 100.0;
        if over { Err(format!("{client} has more than its share: {most:?}")) } else { Ok(()) }
    }

    /// The gateway tells a client of an error of its own.
    pub(super) fn told(&mut self, now: Instant, client: Ipv4Addr) -> Result<(), String> {
        let (left, at) = self.errors.entry(client).or_insert((ERRORS_BURST, now));
        *left = ERRORS_BURST.min(*left + now.since(*at).as_secs_f64() * ERRORS_PER_SECOND) - 1.0;
        *at = now;
        if *left < -INEXACT { Err(format!("{client} is told too many errors")) } else { Ok(()) }
    }

    /// A client has a new mapping.
    pub(super) fn enters(&mut self, limits: Limits, now: Instant, client: Ipv4Addr) -> Result<(), String> {
        let most = self.most.entry(client).or_insert_with(|| Buckets::full(limits, now));
        most.fill(limits, now);
        most.mappings -= 1.0;
        let over = limits.mappings_per_second > 0 && most.mappings < -INEXACT;
        if over { Err(format!("{client} has more new mappings than its share: {most:?}")) } else { Ok(()) }
    }

    /// Something comes from a client. Whether its share surely has room for it, and for a new mapping if it needs one.
    pub(super) fn comes(&mut self, limits: Limits, idle: Duration, now: Instant, comes: Comes) -> bool {
        let Comes { client, bytes, ident, live } = comes;
        let least = self.least.entry(client).or_insert_with(|| Least {
            buckets: Buckets::full(limits, now),
            waits_until: Instant::START,
            idents: HashMap::new(),
        });
        if now >= least.waits_until {
            least.buckets.at = least.buckets.at.max(least.waits_until);
            least.buckets.fill(limits, now);
        }
        let settled = now >= least.waits_until;
        let Buckets { packets, bytes: room, mappings, .. } = &mut least.buckets;
        let mut fits = settled
            && (limits.packets_per_second == 0 || *packets >= 1.0 + INEXACT)
            && (limits.bytes_per_second == 0 || *room >= bytes as f64 + INEXACT * 100.0);
        *packets = (*packets - 1.0).max(0.0);
        *room = (*room - bytes as f64).max(0.0);
        if !live {
            // Its owner looks for idle mappings eight times in as long as they may be idle, and may stand still meanwhile.
            least.idents.retain(|_, used| now.since(*used) < idle + idle / 8 + WAITS);
            let others = least.idents.keys().filter(|other| Some(**other) != ident).count();
            fits &= limits.mappings_per_second == 0 || *mappings >= 1.0 + INEXACT;
            fits &= limits.mappings == 0 || others < limits.mappings as usize;
            *mappings = (*mappings - 1.0).max(0.0);
        }
        if let Some(ident) = ident {
            least.idents.insert(ident, now);
        }
        fits
    }

    /// Something of a client's may wait in the gateway, and take its part later.
    pub(super) fn waits(&mut self, now: Instant, client: Ipv4Addr) {
        if let Some(least) = self.least.get_mut(&client) {
            least.waits_until = least.waits_until.max(now + WAITS);
        }
    }
}
