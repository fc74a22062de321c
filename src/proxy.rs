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
mod pairing;
mod settings;
mod setup;
mod verdict;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::canary::{Canary, is_loose};
use crate::clock::Instant;
use crate::policy::{Policy, Refusal};
use crate::table::SlotIndex;
use crate::table::addresses::Addresses;
use crate::table::clients::Allowance;
pub use crate::table::echoes::Recorded;
use crate::table::echoes::{BucketIndex, Consumed, EchoKey, Echoes};
use crate::table::forward::Guard;
use crate::table::fragments::{self as table_fragments, Fragments};
use crate::table::identifications::Identifications;
pub use crate::table::idents::IdentPolicy;
use crate::table::idents::{self, Asker, Idents, Lifetimes, Mappings};
use crate::table::slots::SLOT_BYTES;
use crate::wire::error;
use crate::wire::icmpv4::{self, Echo, EchoKind};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::transport;
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

/// The well-known port of DNS (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;

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
        self.owner.idents.audit(&self.proxy.mappings)
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
    /// Judges a packet from a client and, if it is to be forwarded, records and rewrites it in place.
    pub fn outbound(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::First)
    }

    /// As `outbound`, for a packet that another thread has sent [`Outbound::Elsewhere`].
    pub fn outbound_again(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::Again)
    }

    /// As `outbound`, for a packet that every other thread has sent [`Outbound::Elsewhere`]: refuses it if this one has no
    /// ident either.
    pub fn outbound_at_last(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::Last)
    }

    fn judge_outbound(&mut self, packet: &mut [u8], asked: Asked) -> Outbound {
        let mut packet = match Ipv4::check(packet) {
            Ok(packet) => packet,
            Err(ipv4::Malformed::Version) => return Outbound::FallThrough(Passing::NotIpv4),
            Err(malformed) => return Outbound::Drop(malformed.into()),
        };
        match self.business(&packet) {
            Ok(Business::Request { place }) => self.judge_request(&mut packet, place, asked),
            Ok(Business::Fragment) => self.outbound_fragment(&mut packet),
            Ok(Business::Others(passing)) => Outbound::FallThrough(passing),
            Err(reason @ Reason::RemoteDenied) => self.refuse(packet.source(), reason),
            Err(reason) => Outbound::Drop(reason),
        }
    }

    /// Admits a request that may leave, of the client at `place`, and rewrites it: a whole one, or its first fragment.
    fn judge_request(&mut self, packet: &mut Ipv4<&mut [u8]>, place: u64, asked: Asked) -> Outbound {
        let (client, remote) = (packet.source(), packet.destination());
        let length = packet.total_len();
        let Ok(mut echo) = Echo::check(packet.payload_mut()) else { return Outbound::Drop(Reason::IcmpTruncated) };

        let line = self.proxy.mappings.clients.index(place);
        let asker = Asker { client, line, client_ident: echo.ident() };
        let live = self.proxy.mappings.find(client, asker.client_ident, &self.guard);
        match live {
            // Its owner is about to end it.
            Some(index) if self.proxy.mappings.addresses.is_lost(index.address()) => {
                return self.refuse(client, Reason::AddressLost);
            }
            Some(_) => {}
            None => {
                if let Some(verdict) = self.before_making(asker, asked) {
                    return verdict;
                }
            }
        }
        let (_, allowance) = self.proxy.policy.allowance(client);
        let admitted = self.admit(live, asker, allowance, length).and_then(|index| {
            let key = EchoKey { index, sequence: echo.sequence(), remote };
            let recorded = self.proxy.echoes.record(key, self.now);
            if recorded == Recorded::Contended { Err(Reason::EchoContended) } else { Ok((index, recorded)) }
        });
        let (index, recorded) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => return self.refuse(client, reason),
        };
        echo.set_ident(index.ident());
        // What is whole for good needs no identification (RFC 6864, section 4.1); what can be cut up on its way needs one that
        // is unique among all that the gateway's address sends there, by whichever client (section 4.3).
        let divisible = (!packet.dont_fragment() || packet.is_fragment()) && !is_loose(Canary::SharedIdentification);
        let identification = divisible.then(|| self.owner.identifications.next(remote));
        self.leave_from(packet, index.address(), identification);
        Outbound::Forward { address: index.address(), remote, length, recorded }
    }

    /// What keeps this batch from making a mapping, if anything does.
    #[inline(never)]
    fn before_making(&self, asker: Asker, asked: Asked) -> Option<Outbound> {
        if self.creations_left == 0 {
            return Some(Outbound::Later);
        }
        let mappings = &self.proxy.mappings;
        let address = self.proxy.choose(asker.client, mappings.clients.pairing(asker.line));
        if mappings.addresses.is_closed(address) {
            return Some(self.refuse(asker.client, Reason::AddressLost));
        }
        // Whose the client's own ident is.
        let owner = SlotIndex::new(address, asker.client_ident).shard() % self.proxy.workers;
        if self.proxy.preserves_idents && asked == Asked::First && owner != self.owner.number {
            return Some(Outbound::BelongsTo { worker: owner });
        }
        (asked != Asked::Last && !self.owner.idents.is_ready(address)).then_some(Outbound::Elsewhere)
    }

    /// Makes the packet one of the gateway's own: under its address and, where it needs one, an identification.
    #[inline]
    fn leave_from(&self, packet: &mut Ipv4<&mut [u8]>, address: u8, identification: Option<u16>) {
        let source = self.proxy.mappings.addresses.get(address).unwrap_or(Ipv4Addr::UNSPECIFIED);
        match identification {
            Some(identification) => packet.set_source_anew(source, identification),
            None => packet.set_source(source),
        }
        if self.proxy.ttl == Ttl::Decrement {
            packet.decrement_ttl();
        }
    }

    #[cold]
    fn refuse(&self, client: Ipv4Addr, reason: Reason) -> Outbound {
        let (class, _) = self.proxy.policy.allowance(client);
        let tell_from = self.proxy.tell_from(client).filter(|_| self.may_be_told(client));
        Outbound::Refuse { reason, class, tell_from }
    }

    /// Whose business the packet is, or why it goes nowhere.
    #[inline]
    fn business(&self, packet: &Ipv4<&mut [u8]>) -> Result<Business, Reason> {
        if transport::destination_port(packet) == Some(DNS_PORT) {
            return Ok(Business::Others(Passing::Dns));
        }
        if packet.protocol() != ipv4::ICMP {
            return Ok(Business::Others(Passing::NotEchoRequest));
        }
        if self.proxy.policy.is_inside(packet.destination()) {
            return Ok(Business::Others(Passing::ToInside));
        }
        if self.proxy.pass_own && self.proxy.address_number(packet.destination()).is_some() {
            return Ok(Business::Others(Passing::ToOwn));
        }
        if packet.is_fragment() {
            return Ok(Business::Fragment);
        }
        match Echo::check(packet.payload()).map(|echo| echo.kind()) {
            Ok(EchoKind::Request) => self.may_leave(packet).map(|place| Business::Request { place }),
            Err(icmpv4::Malformed::Truncated) => Err(Reason::IcmpTruncated),
            Ok(EchoKind::Reply) | Err(icmpv4::Malformed::NotEcho | icmpv4::Malformed::Code) => {
                Ok(Business::Others(Passing::NotEchoRequest))
            }
        }
    }

    /// Whether an echo request, or a fragment of one, may go outside: then its client's place.
    #[inline]
    fn may_leave(&self, packet: &Ipv4<&mut [u8]>) -> Result<u64, Reason> {
        // The kernel writes a new header checksum when it sends: a damaged header must not leave as an intact one.
        if !packet.header_is_intact() {
            return Err(Reason::HeaderChecksum);
        }
        // It would get round the list of remotes (RFC 7126, sections 4.3 and 4.4).
        if packet.has_source_route() {
            return Err(Reason::SourceRoute);
        }
        if packet.ttl() <= self.proxy.ttl.spent() {
            return Err(Reason::TtlExpired);
        }
        Ok(self.proxy.may_ping(packet.source(), packet.destination())?)
    }

    /// Charges the client for the packet; then its live mapping, or a new one.
    #[inline]
    fn admit(
        &mut self,
        live: Option<SlotIndex>,
        asker: Asker,
        allowance: &Allowance,
        bytes: usize,
    ) -> Result<SlotIndex, Reason> {
        let mappings = &self.proxy.mappings;
        mappings.clients.charge(asker.line, allowance, bytes, self.now)?;
        if let Some(index) = live {
            mappings.slots.touch(index, self.now);
            return Ok(index);
        }
        self.make(asker, allowance)
    }

    #[inline(never)]
    fn make(&mut self, asker: Asker, allowance: &Allowance) -> Result<SlotIndex, Reason> {
        let mappings = &self.proxy.mappings;
        let choose = |pairing| self.proxy.choose(asker.client, pairing);
        let address = mappings.clients.enter(asker.line, allowance, self.now, choose)?;
        self.creations_left -= 1;
        Ok(self.owner.idents.make(mappings, address, asker, self.now, &self.guard)?)
    }

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

/// How many threads have been asked about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// None before.
    First,
    /// Some had no ident for it.
    Again,
    /// All others had none.
    Last,
}

/// Whose business an outbound packet is.
enum Business {
    /// A whole echo request that may leave, of the client at this place.
    Request { place: u64 },
    /// A fragment of ICMP: of what, only the first tells.
    Fragment,
    /// Somebody else's.
    Others(Passing),
}

#[cfg(test)]
mod tests;
