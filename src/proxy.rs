//! The proxy: a packet, the tables and `now` go in, a verdict comes out.
//!
//! ```text
//! outbound   DNS? -> falls through
//!            an ICMP echo request from a client to outside? -> recorded, rewritten: Forward
//!            anything else -> falls through
//! inbound    an echo reply that an outstanding echo waits for? -> rewritten: Deliver
//!            an ICMP error that quotes an outstanding echo? -> rewritten, and the quote too: Tell
//!            anything else -> dropped by reason: it is none of ours
//! ```
//!
//! No I/O, no clock, no log, and no allocation for a packet on a live mapping. The proxy never counts what it drops
//! either: the verdict says why, and the worker counts.
//!
//! [`Proxy`] is shared by all threads. Each thread takes one [`Handle`], and opens a [`Batch`] for each bunch of packets:
//! the batch has the time and pins the map, so it is short-lived, and not `Send`.
//!
//! Every client's ident is replaced by one of the gateway's own, because two clients choose the same (ident, sequence) all the
//! time (some systems always use ident 1, a ping in a container has its process id, 1). The sequence is left alone: what
//! routes by flow outside must see one mapping as one flow.

mod errors;
mod fragments;
mod inbound;
mod outbound;
mod pairing;
mod settings;
mod setup;
mod verdict;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::clock::Instant;
use crate::policy::{Policy, Refusal};
use crate::table::SlotIndex;
use crate::table::addresses::Addresses;
pub use crate::table::echoes::Recorded;
use crate::table::echoes::{BucketIndex, Consumed, EchoKey, Echoes};
use crate::table::forward::Guard;
use crate::table::fragments::{self as table_fragments, Fragments};
use crate::table::identifications::Identifications;
pub use crate::table::idents::IdentPolicy;
use crate::table::idents::{self, Idents, Lifetimes, Mappings};
use crate::table::slots::SLOT_BYTES;
use crate::wire::error;
use crate::wire::icmpv4::Echo;
use crate::wire::ipv4::Ipv4;
pub use settings::{Settings, Ttl};
pub use setup::{Found, Foundation, Keys, Tables};
pub use verdict::{Inbound, Outbound, Passing, Reason};

/// New mappings and expiries a batch at most: a burst of new clients must not stall the live ones.
pub const CREATIONS_MAX: usize = 32;

/// The longest that a batch may take. A hold-down exceeds an echo's longest life by two of them.
pub const BATCH_TIME_MAX: Duration = Duration::from_millis(500);

/// Into so many ranges the identifications are divided that handles which only receive give.
const RECEIVER_RANGES: usize = 4;

/// Echoes whose lines are read ahead at once.
const AHEAD: usize = 64;

/// What the tables hold, and what that costs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sizes {
    /// Mappings that can live at once.
    pub mappings_max: usize,
    /// Bytes of the slots.
    pub slots_bytes: usize,
    /// Echoes that can be outstanding at once.
    pub echoes_max: usize,
    /// Bytes of the table of outstanding echoes.
    pub echoes_bytes: usize,
    /// Bytes of the clients' lines.
    pub clients_bytes: usize,
    /// Bytes of what is kept of requests in fragments, all threads' together.
    pub fragments_bytes: usize,
    /// New mappings a second that every address sustains for ever: its idents / (idle + hold-down).
    pub mappings_per_second_and_address: f64,
    /// The hold-down in force.
    pub hold_down: Duration,
}

/// The shared part: policy and tables.
#[derive(Debug)]
pub struct Proxy {
    policy: Policy,
    inside_mtu: usize,
    icmp_errors: bool,
    quoted_checksum: bool,
    ttl: Ttl,
    pass_own: bool,
    workers: usize,
    preserves_idents: bool,
    idents_per_address: usize,
    fragment_seed: u64,
    mappings: Mappings,
    echoes: Echoes,
    lifetimes: Lifetimes,
    echo_timeout: Duration,
    /// How many handles that only receive there have been.
    receivers: AtomicUsize,
    /// What a handle is made of, until it is taken.
    owners: Mutex<Vec<Option<Owner>>>,
}

/// What one thread owns: the idents of its shards, its progress in sweeping their echoes, and its part of the requests in
/// fragments.
#[derive(Debug)]
struct Owner {
    number: usize,
    fragments: Fragments,
    identifications: Identifications,
    idents: Idents,
    shards: Vec<usize>,
    /// Next bucket to sweep, counted over all the owner's shards.
    sweep_next: usize,
    swept: Instant,
    /// Buckets that may still hold an echo of a mapping that has ended.
    unswept: usize,
    /// A panic went through a batch, and may have left the idents half changed: nobody gets them again.
    torn: bool,
}

impl Proxy {
    /// The handle of worker `worker`, from 0; `None` while somebody has it, and for a number beyond
    /// [`Settings::workers`]. Dropped, it can be taken again, with all that it owned: a thread may end and another take its
    /// place. (Not after a panic in the middle of a batch.)
    pub fn handle(self: &Arc<Proxy>, worker: usize) -> Option<Handle> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = owners.get_mut(worker)?.take()?;
        Some(Handle { proxy: Arc::clone(self), owner, worker: Some(worker) })
    }

    /// A handle for a thread that only receives: it owns no idents, so it makes no mappings and has nothing to expire.
    /// As many as there are such threads; they do not count as [`Settings::workers`]. Of four that are asked for one after the
    /// other none gives a reply that has to be cut for its client the identification of another's; with more of them two may,
    /// and the client then loses both replies now and then.
    pub fn receiver(self: &Arc<Proxy>) -> Handle {
        let mut owner = self.owner_of_nothing();
        // Relaxed: the numbers need to differ and nothing else.
        let range = self.receivers.fetch_add(1, Ordering::Relaxed) % RECEIVER_RANGES;
        owner.identifications = Identifications::new(range, RECEIVER_RANGES, &mut idents::generator(None));
        Handle { proxy: Arc::clone(self), owner, worker: None }
    }

    fn owner_of_nothing(&self) -> Owner {
        let addresses = self.mappings.addresses.len();
        let mut rng = idents::generator(None);
        let identifications = Identifications::new(0, 1, &mut rng);
        let idents = Idents::new(addresses, &[], &IdentPolicy::default(), self.lifetimes, rng);
        Owner::new(self.workers, Fragments::new(0), identifications, idents, Vec::new())
    }

    /// The gateway's addresses outside, by their numbers. Whoever sees that the host has one no more says so here
    /// ([`Addresses::set_lost`]).
    pub fn addresses(&self) -> &Addresses {
        &self.mappings.addresses
    }

    /// By which the fragments of a request are given to one of the threads: for [`crate::io::steering`], so that they come to
    /// that one by themselves.
    pub fn fragment_seed(&self) -> u64 {
        self.fragment_seed
    }

    /// Whether errors about proxied echoes are brought to the clients.
    pub fn icmp_errors(&self) -> bool {
        self.icmp_errors
    }

    /// The gateway's addresses by their numbers, as they are now.
    pub fn outside_addresses(&self) -> Vec<OutsideAddress> {
        let addresses = &self.mappings.addresses;
        let of = |(number, address)| OutsideAddress {
            address,
            draining: addresses.is_draining(number),
            lost: addresses.is_lost(number),
            idents_used: self.idents_per_address.saturating_sub(addresses.ready(number) as usize),
        };
        (0..).zip(addresses.list()).map(of).collect()
    }

    /// What the tables hold and cost.
    pub fn sizes(&self) -> Sizes {
        let slots = self.mappings.slots.len();
        Sizes {
            mappings_max: self.mappings.addresses.len() * self.idents_per_address,
            slots_bytes: slots * SLOT_BYTES,
            echoes_max: self.echoes.bytes() / size_of::<u64>(),
            echoes_bytes: self.echoes.bytes(),
            clients_bytes: self.mappings.clients.bytes(),
            fragments_bytes: self.workers * table_fragments::bytes(self.policy.client_addresses()),
            mappings_per_second_and_address: self.idents_per_address as f64
                / (self.lifetimes.idle + self.lifetimes.hold_down).as_secs_f64(),
            hold_down: self.lifetimes.hold_down,
        }
    }

    /// Echoes outstanding now, by counting them: for audits, not for the packet path.
    pub fn outstanding(&self) -> usize {
        self.echoes.occupied()
    }

    fn address_number(&self, address: Ipv4Addr) -> Option<u8> {
        self.mappings.addresses.number_of(address)
    }

    /// The client's place, if it may ping the remote.
    #[inline]
    fn may_ping(&self, source: Ipv4Addr, remote: Ipv4Addr) -> Result<u64, Refusal> {
        self.policy.check(source, remote, &self.mappings.addresses)
    }
}

/// One of the gateway's addresses outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The configuration names it no more: its mappings go on, and no new ones are made on it.
    pub draining: bool,
    /// The host has it no more.
    pub lost: bool,
    /// Idents that are somebody's, or rest before they can be anybody's.
    pub idents_used: usize,
}

/// One thread's way into the proxy.
#[derive(Debug)]
pub struct Handle {
    proxy: Arc<Proxy>,
    owner: Owner,
    /// None: it only receives.
    worker: Option<usize>,
}

impl Handle {
    /// Opens a batch at `now`. Drop it before waiting for packets.
    pub fn batch(&mut self, now: Instant) -> Batch<'_> {
        let guard = self.proxy.mappings.forward.guard();
        Batch { proxy: &self.proxy, owner: &mut self.owner, guard, now, creations_left: CREATIONS_MAX }
    }

    /// How long this thread may sleep before it must open a batch and call [`Batch::expire`]; `None`: as long as it
    /// likes.
    pub fn sleep_max(&self, now: Instant) -> Option<Duration> {
        // No longer than the stamps of what is outstanding can be told from younger ones.
        let sweep = (self.owner.unswept > 0).then_some(self.proxy.echo_timeout);
        self.owner.idents.sleep_max(now).into_iter().chain(sweep).min()
    }

    /// Mappings of this thread's shards that are live now.
    pub fn mappings(&self) -> usize {
        self.owner.idents.live()
    }

    /// Idents of this thread's shards that are in their hold-down now.
    pub fn held(&self) -> usize {
        self.owner.idents.held()
    }

    /// Walks this thread's part of the tables and tells the first contradiction: for tests, since it takes its time.
    #[doc(hidden)]
    pub fn audit(&self) -> Result<(), String> {
        self.owner.idents.audit(&self.proxy.mappings, &self.owner.shards)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(worker) = self.worker.filter(|_| !self.owner.torn) else { return };
        let owner = std::mem::replace(&mut self.owner, self.proxy.owner_of_nothing());
        let mut owners = self.proxy.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners[worker] = Some(owner);
    }
}

/// A bunch of packets at one moment.
///
/// It stays on its thread, where it pins the map:
///
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<echogate::proxy::Batch<'static>>();
/// ```
///
/// The proxy is shared, and a handle goes to the thread that will use it:
///
/// ```
/// fn is_sync<T: Sync>() {}
/// fn is_send<T: Send>() {}
/// is_sync::<echogate::proxy::Proxy>();
/// is_send::<echogate::proxy::Handle>();
/// ```
#[derive(Debug)]
pub struct Batch<'h> {
    proxy: &'h Proxy,
    owner: &'h mut Owner,
    guard: Guard<'h>,
    now: Instant,
    creations_left: usize,
}

/// What `expire` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Mappings that had been idle too long.
    pub mappings: usize,
    /// Echoes that nobody had answered.
    pub echoes: u64,
}

impl Batch<'_> {
    /// Reads ahead the memory that `outbound` will need for these packets, all those of a batch, before the first is judged;
    /// changes nothing. It has their cache misses overlap.
    pub fn touch_outbound<'p>(&self, packets: impl IntoIterator<Item = &'p [u8]>) {
        let mappings = &self.proxy.mappings;
        self.read_ahead(packets.into_iter().filter_map(|packet| {
            let packet = Ipv4::check(packet).ok()?;
            let echo = Echo::check(packet.payload()).ok()?;
            mappings.clients.read_ahead(mappings.clients.index(self.proxy.policy.place(packet.source())));
            // It may not be the client's any more: what is read for nothing does no harm.
            let index = mappings.forward.get(packet.source(), echo.ident(), &self.guard)?;
            Some(EchoKey { index, sequence: echo.sequence(), remote: packet.destination() })
        }));
    }

    /// As [`Batch::touch_outbound`], for `inbound`.
    pub fn touch_inbound<'p>(&self, packets: impl IntoIterator<Item = &'p [u8]>) {
        self.read_ahead(packets.into_iter().filter_map(|packet| {
            let packet = Ipv4::check(packet).ok()?;
            self.echo_key(&packet, packet.destination(), packet.source())
        }));
    }

    /// Reads the echoes' lines. First it is worked out where they are, then they are read with little in between: the CPU looks
    /// a few hundred instructions ahead, which is hardly two packets' work, and starts no load that is farther off.
    #[inline]
    fn read_ahead(&self, keys: impl Iterator<Item = EchoKey>) {
        let (echoes, slots) = (&self.proxy.echoes, &self.proxy.mappings.slots);
        let mut lines = [(BucketIndex::default(), SlotIndex::new(0, 0)); AHEAD];
        let mut keys = keys.map(|key| (echoes.bucket(key), key.index));
        loop {
            let mut found = 0;
            for (line, place) in lines.iter_mut().zip(&mut keys) {
                *line = place;
                found += 1;
            }
            for (bucket, index) in &lines[..found] {
                echoes.read_ahead(*bucket);
                slots.read_ahead(*index);
            }
            if found < AHEAD {
                return;
            }
        }
    }

    /// Takes back the record of a packet that `outbound` forwarded and that could not be sent. Whether it was there.
    pub fn withdraw(&mut self, packet: &[u8]) -> bool {
        let Ok(packet) = Ipv4::check(packet) else { return false };
        let Some(key) = self.echo_key(&packet, packet.source(), packet.destination()) else { return false };
        self.proxy.echoes.consume(key, self.now) != Consumed::Unknown
    }

    /// The key of the echo that the packet asks or answers, if `own` is an address of the gateway.
    fn echo_key(&self, packet: &Ipv4<&[u8]>, own: Ipv4Addr, remote: Ipv4Addr) -> Option<EchoKey> {
        if packet.is_later_fragment() {
            return None;
        }
        let echo = Echo::check(packet.payload()).ok()?;
        let index = SlotIndex::new(self.proxy.address_number(own)?, echo.ident());
        Some(EchoKey { index, sequence: echo.sequence(), remote })
    }

    /// Makes the error for [`Outbound::Refuse`]'s `tell_from`: unreachable, code 13, about `packet`, which is as it was
    /// offered. It is for the server to give it to the packet's client. Returns the error's length in `error`; `None` if
    /// that is shorter than [`error::LEN_MAX`] and too short, or if nothing here can be quoted.
    pub fn prohibited(&self, packet: &[u8], tell_from: u8, error: &mut [u8]) -> Option<usize> {
        let gateway = self.address(tell_from)?;
        error::about(packet, gateway, error::Message::Prohibited, error)
    }

    /// The time of this batch.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The number of this gateway address.
    pub fn address_number(&self, address: Ipv4Addr) -> Option<u8> {
        self.proxy.address_number(address)
    }

    /// The gateway address of this number.
    pub fn address(&self, number: u8) -> Option<Ipv4Addr> {
        self.proxy.mappings.addresses.get(number)
    }

    /// Ends what is due: idle mappings and hold-downs, [`CREATIONS_MAX`] of each at most, and unanswered echoes: as many
    /// buckets as the time since the last call asks for, after a long sleep all of this thread's.
    pub fn expire(&mut self) -> Expired {
        let in_use = self.owner.idents.live() + self.owner.idents.held() > 0;
        let mappings = self.owner.idents.expire(&self.proxy.mappings, self.now, CREATIONS_MAX, &self.guard);
        Expired { mappings, echoes: self.owner.sweep(&self.proxy.echoes, self.proxy.echo_timeout, self.now, in_use) }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.owner.torn |= thread::panicking();
    }
}

impl Owner {
    /// One of tables that are empty.
    fn new(
        number: usize,
        fragments: Fragments,
        identifications: Identifications,
        idents: Idents,
        shards: Vec<usize>,
    ) -> Owner {
        let (sweep_next, swept, unswept, torn) = (0, Instant::START, 0, false);
        Owner { number, fragments, identifications, idents, shards, sweep_next, swept, unswept, torn }
    }

    /// Sweeps as much of the owner's echoes as the clock asks: all of it every echo timeout, whatever the load; so no
    /// stamp, which wraps after four of them, is ever misread. `in_use`: some of the owner's idents are mapped or rest.
    fn sweep(&mut self, echoes: &Echoes, timeout: Duration, now: Instant, in_use: bool) -> u64 {
        let total = self.shards.len() * echoes.shard_buckets();
        if total == 0 {
            return 0;
        }
        let elapsed = now.since(self.swept);
        let due = if elapsed >= timeout {
            self.swept = now;
            total
        } else {
            let due = total as u128 * elapsed.as_nanos() / timeout.as_nanos();
            // The time that made no whole bucket adds up for the next call.
            let used = due * timeout.as_nanos() / total as u128;
            self.swept = self.swept + Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
            usize::try_from(due).unwrap_or(total)
        };
        // Of a mapping that rests no more every echo is over: once round from here finds all of them.
        self.unswept = if in_use { total } else { self.unswept.min(total).saturating_sub(due) };
        let mut left = due;
        let mut unanswered = 0;
        while left > 0 {
            let (shard, from) = (self.sweep_next / echoes.shard_buckets(), self.sweep_next % echoes.shard_buckets());
            let count = left.min(echoes.shard_buckets() - from);
            unanswered += echoes.sweep(self.shards[shard], from, count, now);
            self.sweep_next = (self.sweep_next + count) % total;
            left -= count;
        }
        unanswered
    }
}

#[cfg(test)]
mod tests;
