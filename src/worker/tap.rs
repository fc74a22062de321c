//! What a worker lets others see of single packets: a sample of the echoes, and on request a trace.
//!
//! The packet path pays for it with a counter outbound and one comparison inbound; the rest is for the packets that were
//! picked, and goes through a bounded queue that nobody has to read.
//!
//! * **Samples.** One outbound packet in [`SAMPLE_EVERY`], at random distances so that no rhythm of the traffic's is
//!   mistaken for its make-up, tells who pinged whom. If it left, its gateway ident and sequence are remembered, and the
//!   reply to it, known by the four bytes in which it has both, tells the round trip: from the batch that sent the one to
//!   the batch that brought the other. A place among the remembered is given anew only when its echo has been answered or is
//!   old: short round trips are not preferred to long ones.
//! * **Traces.** While somebody asks for them every packet is picked, and those of one client or remote are told with what
//!   became of them, at most 200 a second and worker.
//!
//! Limits: a reply that comes to another worker than the one that sent the request (only where the steering program cannot be
//! loaded) makes no round trip. A reply that is dropped names no client, so a trace of a client does not have it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::clock::Instant;
use crate::metrics::WorkerCounters;
use crate::proxy::{Inbound, Outbound, Reason};
use crate::wire::icmpv4::Echo;
use crate::wire::ipv4::{self, Ipv4};

/// One outbound packet in so many is sampled, on average.
pub const SAMPLE_EVERY: u32 = 64;

/// What may wait to be read, for all workers together.
const EVENTS_MAX: usize = 8192;

/// Packets of a trace that one worker tells in a window.
const TRACES_MAX: u32 = 200;

/// The time after which it may tell as many again.
const TRACE_WINDOW: Duration = Duration::from_secs(1);

/// Echoes whose reply is looked out for: a cache line of keys.
const PLACES: usize = 16;

/// An echo that has not been answered for so long gives its place up.
const WATCH_TIME_MAX: Duration = Duration::from_secs(5);

/// Where the four bytes of ident and sequence are in an echo without IP options.
const KEY: std::ops::Range<usize> = 24..28;

/// Something that a worker lets others see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A sampled request.
    Asked {
        /// Who asked.
        client: Ipv4Addr,
        /// Who was asked.
        remote: Ipv4Addr,
        /// Its length in bytes.
        bytes: u32,
        /// Whether it was sent.
        forwarded: bool,
    },
    /// The reply to a sampled request.
    Answered {
        /// Who asked.
        client: Ipv4Addr,
        /// Who answered.
        remote: Ipv4Addr,
        /// How long it took.
        after: Duration,
    },
    /// A packet of a trace.
    Trace(Trace),
}

/// A packet of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Whether it came from a client, and not from outside.
    pub outbound: bool,
    /// Its source, as it came.
    pub source: Ipv4Addr,
    /// Its destination, as it came.
    pub destination: Ipv4Addr,
    /// Ident and sequence, as they came; for an echo.
    pub echo: Option<(u16, u16)>,
    /// Its length in bytes.
    pub bytes: u32,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was handed to the kernel for its remote, under this ident of the gateway's if it is an echo.
    Forwarded {
        /// The gateway's ident.
        ident: Option<u16>,
    },
    /// A reply, or an error, that was handed to the kernel for this client.
    Delivered {
        /// Who gets it.
        client: Ipv4Addr,
    },
    /// It was none of the proxy's business.
    FellThrough,
    /// It waits for its turn, or another worker judges it.
    Waits,
    /// It was dropped.
    Dropped(Reason),
}

/// Whose packets are traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// Those of this client.
    Client(Ipv4Addr),
    /// Those to and from this remote.
    Remote(Ipv4Addr),
}

impl Subject {
    const CLIENT: u64 = 1 << 32;
    const REMOTE: u64 = 2 << 32;

    fn to_word(subject: Option<Subject>) -> u64 {
        match subject {
            None => 0,
            Some(Subject::Client(address)) => Subject::CLIENT | u64::from(u32::from(address)),
            Some(Subject::Remote(address)) => Subject::REMOTE | u64::from(u32::from(address)),
        }
    }

    fn from_word(word: u64) -> Option<Subject> {
        let [_, _, _, kind, a, b, c, d] = word.to_be_bytes();
        let address = Ipv4Addr::new(a, b, c, d);
        match u64::from(kind) << 32 {
            Subject::CLIENT => Some(Subject::Client(address)),
            Subject::REMOTE => Some(Subject::Remote(address)),
            _ => None,
        }
    }
}

/// What all workers' taps lead to. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Basin(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    events: ArrayQueue<Event>,
    subject: AtomicU64,
}

impl Basin {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "it allocates its whole size")]
    pub fn new() -> Basin {
        Basin(Arc::new(Shared { events: ArrayQueue::new(EVENTS_MAX), subject: AtomicU64::new(0) }))
    }

    /// The next event, in the order in which they came.
    pub fn take(&self) -> Option<Event> {
        self.0.events.pop()
    }

    /// Whether it is so full that it should be emptied soon.
    pub fn is_filling(&self) -> bool {
        self.0.events.len() > EVENTS_MAX / 8
    }

    /// Traces this subject's packets from the workers' next turns on, or nobody's.
    pub fn trace(&self, subject: Option<Subject>) {
        // Relaxed: the word is all there is.
        self.0.subject.store(Subject::to_word(subject), Ordering::Relaxed);
    }
}

/// One worker's tap.
#[derive(Debug)]
pub struct Tap {
    basin: Basin,
    /// Packets until one is picked.
    left: u32,
    random: u32,
    /// Ident and sequence of the echoes that are looked out for, as they are in the packet.
    keys: [u32; PLACES],
    watched: [Watched; PLACES],
    subject: Option<Subject>,
    window: Instant,
    told: u32,
}

/// An echo whose reply is looked out for.
#[derive(Clone, Copy, Debug)]
struct Watched {
    client: Ipv4Addr,
    remote: Ipv4Addr,
    sent: Instant,
}

/// What there is to know of a packet before it is judged and rewritten.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    echo: Option<(u16, u16)>,
    bytes: usize,
    sample: bool,
}

impl Seen {
    fn of(packet: &[u8], sample: bool) -> Option<Seen> {
        let bytes = packet.len();
        let packet = Ipv4::check(packet).ok()?;
        let is_first_icmp = packet.protocol() == ipv4::ICMP && !packet.is_later_fragment();
        let echo = Echo::check(packet.payload()).ok().filter(|_| is_first_icmp);
        let echo = echo.map(|echo| (echo.ident(), echo.sequence()));
        Some(Seen { source: packet.source(), destination: packet.destination(), echo, bytes, sample })
    }

    fn bytes(&self) -> u32 {
        u32::try_from(self.bytes).unwrap_or(u32::MAX)
    }
}

const fn place(key: u32) -> usize {
    // The golden ratio: idents and sequences are small numbers that differ in few bits.
    (key.wrapping_mul(0x9e37_79b1) >> (u32::BITS - PLACES.ilog2())) as usize
}

/// A key that is no echo's of this place.
const fn nobody(place: usize) -> u32 {
    if place == 0 { 1 } else { 0 }
}

const _: () = assert!(place(0) == 0 && place(1) != 0, "the keys for nobody are of other places");

fn key_of(packet: &[u8]) -> Option<u32> {
    packet.get(KEY).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)))
}

impl Tap {
    /// Worker number `worker`'s, into `basin`.
    pub fn new(basin: &Basin, worker: usize) -> Tap {
        let nothing = Watched { client: Ipv4Addr::UNSPECIFIED, remote: Ipv4Addr::UNSPECIFIED, sent: Instant::START };
        // Any odd number will do; workers differ so that they do not step together.
        let random = 0x2545_f491 ^ u32::try_from(worker).unwrap_or(0) << 8;
        Tap {
            basin: basin.clone(),
            left: SAMPLE_EVERY,
            random,
            keys: std::array::from_fn(nobody),
            watched: [nothing; PLACES],
            subject: None,
            window: Instant::START,
            told: 0,
        }
    }

    /// A turn begins: looks whether somebody is to be traced.
    pub fn begin_turn(&mut self, now: Instant) {
        // Relaxed: see `trace`.
        self.subject = Subject::from_word(self.basin.0.subject.load(Ordering::Relaxed));
        if self.subject.is_some() {
            // Every packet, so that none has to be asked whether it is traced.
            self.left = 1;
            if now.since(self.window) >= TRACE_WINDOW {
                self.window = now;
                self.told = 0;
            }
        }
    }

    /// Whether this outbound packet is to be looked at.
    #[inline]
    pub fn picks_outbound(&mut self) -> bool {
        self.left -= 1;
        self.left == 0
    }

    /// Whether this packet from outside is to be looked at.
    #[inline]
    pub fn picks_inbound(&self, packet: &[u8]) -> bool {
        key_of(packet).is_some_and(|key| self.keys[place(key)] == key) || self.subject.is_some()
    }

    /// Looks at a packet from a client that was picked, before it is judged.
    pub fn look_outbound(&mut self, packet: &[u8]) -> Option<Seen> {
        let drawn = self.draw();
        // Of those that are all picked one in so many is a sample; else whoever is picked is one.
        let (sample, distance) = match self.subject {
            Some(_) => (drawn.is_multiple_of(SAMPLE_EVERY), 1),
            None => (true, 1 + drawn % (2 * SAMPLE_EVERY - 1)),
        };
        self.left = distance;
        Seen::of(packet, sample)
    }

    /// A random number: xorshift.
    fn draw(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }

    /// What became of it. `packet`: as it is now.
    pub fn note_outbound(
        &mut self,
        seen: Seen,
        verdict: &Outbound,
        packet: &[u8],
        now: Instant,
        counters: &WorkerCounters,
    ) {
        let forwarded = matches!(verdict, Outbound::Forward { .. });
        if seen.sample && (forwarded || matches!(verdict, Outbound::Refuse { .. })) {
            let (client, remote, bytes) = (seen.source, seen.destination, seen.bytes());
            self.tell(Event::Asked { client, remote, bytes, forwarded }, counters);
        }
        if seen.sample && forwarded {
            self.look_out_for(seen, packet, now);
        }
        let traced = match self.subject {
            None => false,
            Some(Subject::Client(client)) => seen.source == client,
            Some(Subject::Remote(remote)) => seen.destination == remote,
        };
        if traced {
            let fate = match verdict {
                Outbound::Forward { .. } | Outbound::Carry { .. } => {
                    let ident =
                        Ipv4::check(packet).ok().and_then(|packet| Some(Echo::check(packet.payload()).ok()?.ident()));
                    Fate::Forwarded { ident: ident.filter(|_| forwarded) }
                }
                Outbound::FallThrough(_) => Fate::FellThrough,
                Outbound::Hold | Outbound::BelongsTo { .. } | Outbound::Later | Outbound::Elsewhere => Fate::Waits,
                Outbound::Refuse { reason, .. } | Outbound::Drop(reason) => Fate::Dropped(*reason),
            };
            self.trace(seen, true, fate, counters);
        }
    }

    fn look_out_for(&mut self, seen: Seen, packet: &[u8], now: Instant) {
        let without_options = packet.first() == Some(&0x45);
        let Some(key) = key_of(packet).filter(|_| without_options && seen.echo.is_some()) else { return };
        let place = place(key);
        let is_free = self.keys[place] == nobody(place) || now.since(self.watched[place].sent) > WATCH_TIME_MAX;
        if is_free {
            self.keys[place] = key;
            self.watched[place] = Watched { client: seen.source, remote: seen.destination, sent: now };
        }
    }

    /// Looks at a packet that is judged once more, if somebody is traced.
    pub fn look_again(&self, packet: &[u8]) -> Option<Seen> {
        self.subject.and_then(|_| Seen::of(packet, false))
    }

    /// Looks at a packet from outside that was picked, before it is judged: what it is, and its place among the remembered.
    pub fn look_inbound(&self, packet: &[u8]) -> (Option<Seen>, Option<usize>) {
        let place = key_of(packet).filter(|key| self.keys[place(*key)] == *key).map(place);
        (Seen::of(packet, false), place)
    }

    /// What became of it.
    pub fn note_inbound(
        &mut self,
        (seen, place): (Option<Seen>, Option<usize>),
        verdict: &Inbound,
        now: Instant,
        counters: &WorkerCounters,
    ) {
        let Some(seen) = seen else { return };
        if let (Inbound::Deliver { client, .. }, Some(place)) = (verdict, place) {
            let Watched { client: asker, remote, sent } = self.watched[place];
            // Equal in ident and sequence only: of another gateway address's, or to another remote.
            if (asker, remote) == (*client, seen.source) {
                self.keys[place] = nobody(place);
                let after = now.since(sent);
                counters.round_trips.count(after);
                self.tell(Event::Answered { client: asker, remote, after }, counters);
            }
        }
        let receiver = match verdict {
            Inbound::Deliver { client, .. } | Inbound::Tell { client, .. } => Some(*client),
            Inbound::Drop(_) => None,
        };
        let traced = match self.subject {
            None => false,
            Some(Subject::Client(client)) => receiver == Some(client),
            Some(Subject::Remote(remote)) => seen.source == remote,
        };
        if traced {
            let fate = match (verdict, receiver) {
                (Inbound::Drop(reason), _) => Fate::Dropped(*reason),
                (_, client) => Fate::Delivered { client: client.unwrap_or(Ipv4Addr::UNSPECIFIED) },
            };
            self.trace(seen, false, fate, counters);
        }
    }

    fn trace(&mut self, seen: Seen, outbound: bool, fate: Fate, counters: &WorkerCounters) {
        if self.told >= TRACES_MAX {
            counters.traces_missed.add(1);
            return;
        }
        self.told += 1;
        let Seen { source, destination, echo, .. } = seen;
        self.tell(Event::Trace(Trace { outbound, source, destination, echo, bytes: seen.bytes(), fate }), counters);
    }

    fn tell(&self, event: Event, counters: &WorkerCounters) {
        if self.basin.0.events.push(event).is_err() {
            let lost = if matches!(event, Event::Trace(_)) { &counters.traces_missed } else { &counters.samples_lost };
            lost.add(1);
        }
    }
}
