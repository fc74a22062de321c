//! The whole gateway (worker, proxy, tables) over in-memory I/O and virtual time, from a seed.
//!
//! A model that knows the truth plays the clients and the remotes, which put fragments together, over a wire that loses, duplicates, reorders, delays
//! and damages packets and makes sends fail. It checks every packet that leaves the gateway: a request carries the
//! gateway's address and a client's own payload to the remote that the client asked; a reply reaches the client that
//! asked, once, under the ident and sequence it chose, with the payload as the wire delivered it. In the end every packet
//! is accounted for.
//!
//! A failure prints its seed; `ECHOGATE_SEED=n cargo test --test memory` plays that one again.
//!
//! The simulator (`tests/simulation`) is the same made whole: its world is worse, and its model knows when a reply must come and when an
//! ident has rested, which this one does not. This one is the older and the smaller: one worker with ordinary settings, and a model that
//! is read at one sitting and was written apart from the other. Where only one of the two complains, it may be the model that is wrong.
//! And some cases that no game is about stand here by themselves: all 65,536 idents used up between two workers, a worker that polls
//! before it sleeps, the order in which pieces leave.

#![expect(clippy::unwrap_used, reason = "a test ends at what should not be")]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use echogate::clock::{Clock, Instant, Manual};
use echogate::error::SetupError;
use echogate::io::memory::{Faults, MemoryIo, Wire, Written};
use echogate::io::{Events, FallThrough, Frame, PacketIo, PoolSize, Side, Waker};
use echogate::metrics::{Counters, Snapshot};
use echogate::policy::Allowance;
use echogate::proxy::{Proxy, Settings};
use echogate::wire::build::{self, Datagram};
use echogate::wire::fragment;
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::{self, Ipv4};
use echogate::wire::quote::Quote;
use echogate::worker::{Post, Worker};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const POISON: u8 = 0xa5;

/// A round of the game lasts this long.
const ROUND: Duration = Duration::from_millis(20);

/// What a client sent: client, its ident, its sequence, remote.
type Asked = (Ipv4Addr, u16, u16, Ipv4Addr);

struct World {
    rng: StdRng,
    wire: Wire,
    clock: Arc<Manual>,
    /// Requests on their way, by the number that their payload begins with.
    asked: HashMap<u64, Asked>,
    /// How often remotes have seen each echo, less how often a reply to it was delivered. By the echo, not by the
    /// request's number: to the network, a request sent again under the same sequence is the same echo.
    replies_left: HashMap<Asked, u32>,
    number: u64,
    /// All that was ever asked, for what is told about it.
    ever_asked: HashSet<Asked>,
    /// How many datagrams in fragments each client has sent: its identifications, which are others' too.
    identifications: HashMap<Ipv4Addr, u16>,
    /// What remotes have of datagrams that came in fragments, by remote and identification.
    assembly: HashMap<(Ipv4Addr, u16), Vec<Vec<u8>>>,
    assembled: u64,
    /// Whether clients use a sequence again before it is answered.
    repeat: bool,
    answered: u64,
    passed_by: u64,
    delivered: u64,
    /// Errors from routers that reached their clients, and errors that the gateway sent.
    told: [u64; 2],
}

fn client(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, 0, host)
}

fn remote(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, host)
}

/// A payload that names its request, has a length of its own and never a poisoned byte.
fn payload(number: u64) -> Vec<u8> {
    let length = if number.is_multiple_of(13) { 8 * (number % 97) } else { number % 97 };
    let fill = (0..length).map(|at| match (number.wrapping_mul(31) + at).to_le_bytes()[0] {
        POISON => 0,
        byte => byte,
    });
    number.to_be_bytes().map(|byte| if byte == POISON { 0 } else { byte }).into_iter().chain(fill).collect()
}

fn number_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}

impl World {
    fn new(seed: u64, faults: Faults) -> World {
        let repeat = faults != Faults::default();
        let clock = Arc::new(Manual::default());
        let wire = Wire::new(seed, Arc::clone(&clock), faults.clone(), faults);
        World {
            rng: StdRng::seed_from_u64(seed),
            wire,
            clock,
            asked: HashMap::new(),
            replies_left: HashMap::new(),
            number: 0,
            ever_asked: HashSet::new(),
            identifications: HashMap::new(),
            assembly: HashMap::new(),
            assembled: 0,
            repeat,
            answered: 0,
            passed_by: 0,
            delivered: 0,
            told: [0; 2],
        }
    }

    /// A few packets from clients: equal idents and sequences on purpose, and among them what is not for the proxy.
    fn clients_send(&mut self) {
        for _ in 0..self.rng.random_range(0..40) {
            let client = client(self.rng.random_range(2..10));
            let remote = remote(self.rng.random_range(2..6));
            let packet = match self.rng.random_range(0..20) {
                0 => Datagram::new(client, remote, ipv4::UDP, vec![0, 9, 0, 53, 0, 8, 0, 0]).build(),
                1 => (0..self.rng.random_range(0..80)).map(|_| self.rng.random()).collect(),
                2 => build::echo_request(Ipv4Addr::new(10, 67, 0, 2), remote, 1, 1, 64, b"spoofed"),
                3..8 => {
                    self.send_in_fragments(client, remote);
                    continue;
                }
                _ => self.request(client, remote),
            };
            self.wire.push(Side::Inside, &packet);
        }
    }

    /// A request in fragments, in order or not.
    fn send_in_fragments(&mut self, client: Ipv4Addr, remote: Ipv4Addr) {
        let whole = self.request(client, remote);
        let whole = Ipv4::check(&whole[..]).unwrap();
        let counter = self.identifications.entry(client).or_default();
        *counter += 1;
        let identification = *counter;
        let payload = whole.payload();
        let length = (payload.len() / self.rng.random_range(1..10)).next_multiple_of(8);
        let mut fragments: Vec<Vec<u8>> = (0..payload.len().div_ceil(length))
            .map(|number| {
                let part = number * length..payload.len().min((number + 1) * length);
                let fragment = Datagram::new(client, remote, ipv4::ICMP, payload[part.clone()].to_vec());
                let more_fragments = part.end < payload.len();
                Datagram { identification, more_fragments, fragment_offset: part.start, ..fragment }.build()
            })
            .collect();
        if self.rng.random_bool(0.3) {
            fragments.shuffle(&mut self.rng);
        }
        fragments.iter().for_each(|fragment| self.wire.push(Side::Inside, fragment));
    }

    /// A fragment reaches its remote. The whole datagram, if it was the last that was missing.
    fn put_together(&mut self, fragment: &Ipv4<&[u8]>) -> Option<Vec<u8>> {
        let key = (fragment.destination(), fragment.identification());
        let whole = [fragment.header(), fragment.payload()].concat();
        let parts = self.assembly.entry(key).or_default();
        parts.push(whole);
        let mut views: Vec<_> = parts.iter().map(|part| Ipv4::check(&part[..]).unwrap()).collect();
        views.sort_by_key(Ipv4::fragment_offset);
        let mut payload = Vec::new();
        for part in &views {
            assert!(part.fragment_offset() >= payload.len(), "fragments overlap under {key:?}: two clients' are one");
            if part.fragment_offset() > payload.len() {
                return None;
            }
            payload.extend_from_slice(part.payload());
        }
        if views.last()?.more_fragments() {
            return None;
        }
        self.assembly.remove(&key);
        self.assembled += 1;
        Some(Datagram::new(fragment.source(), fragment.destination(), ipv4::ICMP, payload).build())
    }

    fn request(&mut self, client: Ipv4Addr, remote: Ipv4Addr) -> Vec<u8> {
        self.number += 1;
        while self.number.to_be_bytes().contains(&POISON) {
            self.number += 1;
        }
        let ident = self.rng.random_range(1..3);
        let sequence =
            if self.repeat { self.rng.random_range(0..500) } else { u16::try_from(self.number % 65_536).unwrap_or(0) };
        self.asked.insert(self.number, (client, ident, sequence, remote));
        self.ever_asked.insert((client, ident, sequence, remote));
        let message = build::echo_message(EchoKind::Request, ident, sequence, &payload(self.number));
        let dont_fragment = self.rng.random_bool(0.5);
        Datagram { dont_fragment, ..Datagram::new(client, remote, ipv4::ICMP, message) }.build()
    }

    /// Checks an ICMP error to a client: that it is about a request of that very client's. None if it is no error.
    fn about(&self, error: &Ipv4<&[u8]>) -> Option<()> {
        let quote = Quote::check(error.payload()).ok()?;
        assert!(quote.is_intact());
        assert_eq!(quote.source(), error.destination(), "an error about somebody else's request");
        // Without all of the message nobody knows whether it was damaged on its way to the gateway.
        let quoted = Ipv4::check(&error.payload()[8..])
            .ok()
            .and_then(|packet| Echo::check(packet.payload()).ok().map(|echo| echo.is_intact()));
        if quoted == Some(true) {
            let about = (quote.source(), quote.ident(), quote.sequence(), quote.destination());
            assert!(self.ever_asked.contains(&about), "an error about what nobody asked: {about:?}");
        }
        Some(())
    }

    /// A router further on has something to say about a request.
    fn complain(&mut self, request: &[u8]) {
        let quoted = if self.rng.random_bool(0.5) { &request[..28] } else { &request[..request.len().min(548)] };
        let (icmp_type, code, rest) =
            [(11, 0, 0), (3, 1, 0), (3, 4, 1400), (12, 0, 20 << 24)][self.rng.random_range(0..4)];
        let message = build::error_message(icmp_type, code, rest, quoted);
        let error = Datagram::new(Ipv4Addr::new(203, 0, 113, 1), GATEWAY, ipv4::ICMP, message).build();
        self.wire.push(Side::Outside, &error);
    }

    /// Checks what left the gateway for outside, and lets the remotes answer it.
    fn remotes_answer(&mut self) {
        for Written { bytes, way, errno, .. } in self.wire.take(Side::Outside) {
            let packet = Ipv4::check(&bytes[..]).expect("what is sent is IPv4");
            assert_eq!((packet.source(), way), (GATEWAY, Some((0, packet.destination()))));
            if self.about(&packet).is_some() {
                self.told[1] += u64::from(errno == 0);
                continue;
            }
            if packet.is_fragment() && errno != 0 {
                continue;
            }
            let whole = if packet.is_fragment() { self.put_together(&packet) } else { Some(bytes.clone()) };
            let Some(whole) = whole else { continue };
            let packet = Ipv4::check(&whole[..]).unwrap();
            let echo = Echo::check(packet.payload()).expect("what is sent is an echo or an error");
            assert_eq!(echo.kind(), EchoKind::Request);
            if errno != 0 || !echo.is_intact() {
                continue; // The remote never sees it, or drops it.
            }
            let number = number_of(echo.payload()).expect("an intact request is one of ours");
            let asked @ (_, _, sequence, remote) = self.asked[&number];
            assert_eq!((packet.destination(), echo.sequence()), (remote, sequence));
            if self.was_damaged_unseen(number, echo.payload()) {
                continue;
            }
            let reply = build::echo_reply(remote, GATEWAY, echo.ident(), sequence, 60, echo.payload());
            *self.replies_left.entry(asked).or_default() += 1;
            self.answered += 1;
            self.wire.push(Side::Outside, &reply);
            if self.rng.random_bool(0.05) {
                self.attack(&reply);
            }
            if self.rng.random_bool(0.1) {
                self.complain(&whole);
            }
        }
    }

    /// Whether the wire has damaged a payload in bits of two fragments whose changes make up for one another in the checksum. It flips
    /// one bit of a packet at most; any other difference is the gateway's.
    fn was_damaged_unseen(&self, number: u64, found: &[u8]) -> bool {
        let expected = payload(number);
        let flipped: u32 = found.iter().zip(&expected).map(|(found, expected)| (found ^ expected).count_ones()).sum();
        let alike = found.len() == expected.len() && (flipped == 0 || self.repeat && flipped == 2);
        assert!(alike, "the payload of {number} was altered: {found:?} and not {expected:?}");
        flipped > 0
    }

    /// A forged reply: a valid one with its source or sequence changed, or to an ident of nobody's.
    fn attack(&mut self, reply: &[u8]) {
        let mut forged = reply.to_vec();
        let mut packet = Ipv4::check(&mut forged[..]).unwrap();
        match self.rng.random_range(0..2) {
            0 => packet.set_source(Ipv4Addr::new(203, 0, 113, 66)),
            _ => packet.set_destination(Ipv4Addr::new(198, 18, 0, 99)),
        }
        self.wire.push(Side::Outside, &forged);
    }

    /// Checks what the gateway wrote to the TUN: replies to those who asked, or packets that fell through.
    fn clients_receive(&mut self) {
        for Written { bytes, errno, .. } in self.wire.take(Side::Inside) {
            let Some(packet) = Ipv4::check(&bytes[..]).ok().filter(|packet| packet.header_is_intact()) else {
                self.passed_by += 1;
                continue; // Not IPv4, or damaged under way: it fell through as it was.
            };
            let echo = match Echo::check(packet.payload()) {
                Ok(echo) if packet.protocol() == ipv4::ICMP && echo.kind() == EchoKind::Reply => echo,
                _ if packet.source() == Ipv4Addr::new(203, 0, 113, 1) => {
                    self.about(&packet).expect("the router sends nothing else");
                    self.told[0] += u64::from(errno == 0);
                    continue;
                }
                _ => {
                    self.passed_by += 1;
                    continue;
                }
            };
            if errno != 0 || !echo.is_intact() {
                continue;
            }
            let number = number_of(echo.payload()).expect("an intact reply carries one of our payloads");
            let asked @ (client, ident, sequence, remote) = self.asked[&number];
            assert_eq!(
                (packet.destination(), echo.ident(), echo.sequence(), packet.source()),
                (client, ident, sequence, remote),
                "reply {number} is somebody else's"
            );
            if self.was_damaged_unseen(number, echo.payload()) {
                continue;
            }
            let left = self.replies_left.get_mut(&asked).expect("a reply to what no remote has seen");
            *left = left.checked_sub(1).expect("a reply was delivered more often than it was sent for");
            self.delivered += 1;
        }
    }
}

/// Plays `rounds` rounds and returns the counters at the end, everything settled.
fn play(seed: u64, faults: Faults, rounds: u32) -> (Snapshot, World) {
    let mut world = World::new(seed, faults);
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    settings.seed = Some(seed);
    // Who is refused in mid-request has asked, and nobody will answer.
    settings.allowance = if world.repeat { settings.allowance } else { Allowance::UNLIMITED };
    if world.repeat {
        // Mappings end, idents rest and replies are late within the seconds that a game lasts.
        settings.mapping_idle = Duration::from_millis(300);
        settings.echo_timeout = Duration::from_millis(50);
    }
    let size = PoolSize { buffers: 600, buffer_bytes: 2048 };
    let io = MemoryIo::new(world.wire.clone(), size, size).unwrap();
    let counters = Counters::new(1, 1);
    let handle = Proxy::new(&settings).unwrap().handle(0).unwrap();
    let mut worker = Worker::new(io, handle, Post::alone(), counters.worker(0), FallThrough::Reinject);

    let clock = Arc::clone(&world.clock);
    for round in 0..rounds {
        if round % 100 < 80 {
            world.clients_send();
        }
        let until = clock.now() + ROUND;
        while clock.now() < until {
            worker.turn(&*clock, Some(until.since(clock.now()))).unwrap();
            world.remotes_answer();
            world.clients_receive();
        }
        if round % 50 == 0 {
            worker.audit().unwrap();
        }
    }
    while world.wire.arriving(Side::Inside) + world.wire.arriving(Side::Outside) > 0 {
        worker.turn(&*clock, Some(Duration::from_millis(20))).unwrap();
        world.remotes_answer();
        world.clients_receive();
    }
    worker.turn(&*clock, Some(Duration::ZERO)).unwrap();
    worker.drain(&*clock).unwrap();
    world.remotes_answer();
    world.clients_receive();
    worker.audit().unwrap();
    (counters.snapshot(), world)
}

fn seeds() -> Vec<u64> {
    match std::env::var("ECHOGATE_SEED") {
        Ok(seed) => vec![seed.parse().expect("ECHOGATE_SEED is a number")],
        Err(_) => (1..=12).collect(),
    }
}

fn faulty(seed: u64) -> Faults {
    let mut rng = StdRng::seed_from_u64(!seed);
    Faults {
        loss: rng.random_range(0.0..0.1),
        duplication: rng.random_range(0.0..0.1),
        reordering: rng.random_range(0.0..0.2),
        corruption: rng.random_range(0.0..0.05),
        delay: Duration::from_millis(rng.random_range(0..30)),
        jitter: Duration::from_millis(rng.random_range(0..40)),
        send_error: rng.random_range(0.0..0.05),
        send_errnos: vec![1, 5, 11, 90, 101, 105, 113],
        mtu: Some(600),
    }
}

#[test]
fn on_a_perfect_wire_every_reply_is_delivered() {
    for seed in seeds() {
        println!("seed {seed}");
        let (totals, world) = play(seed, Faults::default(), 300);
        assert_eq!((world.delivered, totals.outstanding), (world.answered, 0), "{totals:?}");
        assert!(world.delivered > 1000, "{totals:?}");
        assert!(world.assembled > 300 && world.assembly.is_empty(), "{} {totals:?}", world.assembled);
        conserved(&totals, &world);
    }
}

#[test]
fn on_a_faulty_wire_no_reply_goes_astray_and_every_packet_is_accounted_for() {
    for seed in seeds() {
        println!("seed {seed}");
        let (totals, world) = play(seed, faulty(seed), 400);
        assert!(world.delivered > 1000 && world.passed_by > 0, "{totals:?}");
        assert!(world.assembled > 100 && totals.cut_off.packets > 0, "{} {totals:?}", world.assembled);
        // A router's error whose header was damaged on its way is told, but nobody knows it again.
        assert!(world.told[0] <= totals.told.packets && world.told[1] == totals.originated.packets, "{totals:?}");
        assert!(world.told.iter().all(|told| *told > 10), "{totals:?}");
        assert!(totals.unanswered > 0 && totals.mappings < totals.mappings_peak, "{totals:?}");
        conserved(&totals, &world);
    }
}

fn conserved(totals: &Snapshot, world: &World) {
    assert_eq!(totals.packets_in(), totals.packets_accounted(), "{totals:?}");
    assert_eq!(totals.inside_in.packets, world.wire.arrived(Side::Inside));
    assert_eq!(totals.outside_in.packets, world.wire.arrived(Side::Outside));
}

#[test]
fn equal_seeds_play_equal_games() {
    let (first, _) = play(7, faulty(7), 100);
    let (second, _) = play(7, faulty(7), 100);
    assert_eq!(first, second);
}

/// A worker with no ident left hands a new client's request to the next; when nobody has one, it is refused.
#[test]
fn a_request_that_one_worker_has_no_ident_for_is_served_by_another() {
    let clock = Arc::new(Manual::default());
    let mut settings = Settings::new(vec!["10.64.0.0/14".parse().unwrap()], vec![GATEWAY]);
    settings.workers = 2;
    let proxy = Proxy::new(&settings).unwrap();
    let counters = Counters::new(2, 1);
    let wakers = [Waker::new().unwrap(), Waker::new().unwrap()];
    let size = PoolSize { buffers: 600, buffer_bytes: 2048 };
    let wires = [1, 2].map(|seed| Wire::new(seed, Arc::clone(&clock), Faults::default(), Faults::default()));
    let mut workers: Vec<_> = Post::ring(&wakers)
        .into_iter()
        .enumerate()
        .map(|(number, post)| {
            let io = MemoryIo::new(wires[number].clone(), size, size).unwrap();
            let handle = proxy.handle(number).unwrap();
            Worker::new(io, handle, post, counters.worker(number), FallThrough::Reinject)
        })
        .collect();

    // Every request reaches the first worker, which owns half of the idents. All at one moment: none expires.
    let request = |number: u32| {
        let client = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number);
        build::echo_request(client, remote(2), 1, 1, 64, b"payload")
    };
    let total = (1 << 16) + 100;
    for number in 0..total {
        wires[0].push(Side::Inside, &request(number));
        if number % 20 == 0 || number + 1 == total {
            for _ in 0..6 {
                for (worker, wire) in workers.iter_mut().zip(&wires) {
                    wire.wake(); // as the handing worker's waker does for a real one
                    worker.turn(&*clock, Some(Duration::ZERO)).unwrap();
                }
            }
        }
    }
    for worker in &mut workers {
        worker.drain(&*clock).unwrap();
        worker.audit().unwrap();
    }
    let totals = counters.snapshot();
    assert_eq!((totals.mappings, totals.outside_out.packets), (1 << 16, 1 << 16), "{totals:?}");
    assert_eq!(totals.drops, [("no_ident".to_string(), 100)]);
    assert_eq!(counters.worker_snapshot(1).mappings, 1 << 15);
    assert_eq!(totals.packets_in(), totals.packets_accounted());
}

/// A clock that a microsecond takes away at each look.
struct Passing(Arc<Manual>);

impl Clock for Passing {
    fn now(&self) -> Instant {
        self.0.advance(Duration::from_micros(1));
        self.0.now()
    }
}

/// Notes how long it was asked to wait at most, each time.
struct Noting {
    io: MemoryIo,
    waits: Rc<RefCell<Vec<Option<Duration>>>>,
}

impl PacketIo for Noting {
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        self.waits.borrow_mut().push(timeout);
        self.io.wait(events, timeout)
    }

    fn send_inside(&mut self, frame: Frame) {
        self.io.send_inside(frame);
    }

    fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr) {
        self.io.send_outside(frame, address, remote);
    }

    fn copy_of(&self, side: Side, packet: &[u8]) -> Option<Frame> {
        self.io.copy_of(side, packet)
    }

    fn mtu_towards(&self, address: u8, remote: Ipv4Addr) -> Option<u16> {
        self.io.mtu_towards(address, remote)
    }

    fn stop_receiving(&mut self) {
        self.io.stop_receiving();
    }

    fn in_flight(&self) -> usize {
        self.io.in_flight()
    }
}

#[test]
fn a_worker_that_polls_busily_sleeps_only_after_it_has_looked_long_enough() {
    let manual = Arc::new(Manual::default());
    let clock = Passing(Arc::clone(&manual));
    let wire = Wire::new(7, manual, Faults::default(), Faults::default());
    let size = PoolSize { buffers: 64, buffer_bytes: 2048 };
    let settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    let proxy = Proxy::new(&settings).unwrap();
    let counters = Counters::new(1, 1);
    let waits = Rc::new(RefCell::new(Vec::new()));
    let io = Noting { io: MemoryIo::new(wire.clone(), size, size).unwrap(), waits: Rc::clone(&waits) };
    let worker = Worker::new(io, proxy.handle(0).unwrap(), Post::alone(), counters.worker(0), FallThrough::Reinject);
    let mut worker = worker.with_busy_poll(Duration::from_micros(100));
    let turn = |worker: &mut Worker<'_, Noting>| {
        worker.turn(&clock, Some(Duration::from_millis(10))).unwrap();
        let asked = waits.take();
        asked.into_iter().partition::<Vec<_>, _>(|wait| *wait == Some(Duration::ZERO))
    };

    let (looks, sleeps) = turn(&mut worker);
    assert!((50..=101).contains(&looks.len()), "a look takes a microsecond: {looks:?}");
    assert_eq!(sleeps, [Some(Duration::from_millis(10))]);

    wire.push(Side::Inside, &build::echo_request(client(2), remote(2), 1, 1, 64, b"payload"));
    while counters.snapshot().outside_out.packets == 0 {
        let (looks, sleeps) = turn(&mut worker);
        assert!(!looks.is_empty() && sleeps.is_empty(), "what comes meanwhile wakes nobody: {looks:?} {sleeps:?}");
    }
    worker.drain(&clock).unwrap();
}

/// RFC 4787 REQ-13a: what is too large for the way out leaves in fragments, and they in order: whole requests, and a client's own
/// fragments, the last of which would have fitted. But for the very first: it takes a send that fails to learn of it.
#[test]
fn pieces_of_what_is_too_large_leave_in_order() {
    let clock = Arc::new(Manual::default());
    let narrow = Faults { mtu: Some(600), ..Faults::default() };
    let wire = Wire::new(1, Arc::clone(&clock), Faults::default(), narrow);
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.allowance = Allowance::UNLIMITED;
    let size = PoolSize { buffers: 600, buffer_bytes: 2048 };
    let io = MemoryIo::new(wire.clone(), size, size).unwrap();
    let counters = Counters::new(1, 1);
    let handle = Proxy::new(&settings).unwrap().handle(0).unwrap();
    let mut worker = Worker::new(io, handle, Post::alone(), counters.worker(0), FallThrough::Reinject);

    for sequence in 0..20_u16 {
        let message = build::echo_message(EchoKind::Request, 1, sequence, &vec![7; 3300]);
        let datagram =
            Datagram { identification: sequence, ..Datagram::new(client(2), remote(2), ipv4::ICMP, message) };
        let whole = datagram.build();
        let packet = Ipv4::check(&whole[..]).unwrap();
        for part in fragment::parts(&packet, 1500).unwrap() {
            let mut piece = vec![0; packet.header_len() + part.len()];
            assert!(fragment::write(&packet, part, &mut piece));
            wire.push(Side::Inside, &piece);
        }
        wire.push(Side::Inside, &build::echo_request(client(3), remote(2), 1, sequence, 64, &[7; 1400]));
        for _ in 0..6 {
            worker.turn(&*clock, Some(Duration::ZERO)).unwrap();
        }
        // By the identifications they left with: where each piece begins and ends.
        let mut left: HashMap<u16, Vec<(usize, usize)>> = HashMap::new();
        for written in wire.take(Side::Outside).into_iter().filter(|written| written.errno == 0) {
            let piece = Ipv4::check(&written.bytes[..]).unwrap();
            assert!(piece.total_len() <= 600 && piece.header_is_intact());
            let end = piece.fragment_offset() + piece.payload().len();
            left.entry(piece.identification()).or_default().push((piece.fragment_offset(), end));
        }
        for pieces in left.values_mut() {
            if sequence == 0 {
                pieces.sort_unstable();
            }
            assert!(pieces[0].0 == 0 && pieces.windows(2).all(|pair| pair[0].1 == pair[1].0), "{sequence}: {pieces:?}");
        }
        let mut lengths: Vec<usize> = left.values().map(|pieces| pieces[pieces.len() - 1].1).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [8 + 1400, 8 + 3300], "{sequence}");
    }
    worker.drain(&*clock).unwrap();
    assert_eq!(counters.snapshot().packets_in(), counters.snapshot().packets_accounted());
}
