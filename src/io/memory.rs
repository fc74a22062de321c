//! Both sides in memory, for tests and simulation: the same worker as over a real TUN and raw sockets, deterministic
//! from a seed and in virtual time.
//!
//! A [`Wire`] is the world around one gateway: a test pushes packets that are to arrive, and takes what the gateway
//! wrote. [`MemoryIo`] is the gateway's end of it. [`Faults`] act on what arrives (loss, duplication, reordering,
//! delay, corruption) and on sends (an errno). What the gateway wrote is recorded as it was written: a test that wants
//! answers to be lost too does so on their way in. So every count of the gateway's can be compared exactly.
//!
//! `wait` moves the clock: to the next arrival, or by the whole timeout if nothing arrives before it. Where several workers share a
//! clock, none of them may: [`Wire::schedule`] leaves the clock to the test, which learns from [`Wire::due`] when the gateway
//! has something to do next.
//!
//! Limits: packets queue without bound until the gateway has a free buffer (a kernel would drop them); a packet longer
//! than a buffer is cut, as the kernel does.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::buffers::{Pool, PoolSize};
use super::{BATCH_MAX, Events, Frame, PacketIo, Sent, Side};
use crate::clock::{Clock, Instant, Manual};
use crate::error::SetupError;

/// What may go wrong on one side. Probabilities are from 0 to 1 and for one packet; the default is a perfect side.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Faults {
    /// An arriving packet is lost.
    pub loss: f64,
    /// An arriving packet arrives twice.
    pub duplication: f64,
    /// An arriving packet is overtaken by up to eight later ones.
    pub reordering: f64,
    /// One bit of an arriving packet is flipped.
    pub corruption: f64,
    /// How long an arriving packet takes at least.
    pub delay: Duration,
    /// How much longer it may take, evenly distributed.
    pub jitter: Duration,
    /// A send fails, with an errno out of `send_errnos`.
    pub send_error: f64,
    /// The errnos of failing sends; without any, none fails.
    pub send_errnos: Vec<i32>,
    /// A longer packet cannot be sent (EMSGSIZE).
    pub mtu: Option<u16>,
}

/// A packet that the gateway wrote, or tried to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The packet as it was handed over.
    pub bytes: Vec<u8>,
    /// Outside only: the number of the gateway address it left from, and the remote it was sent to.
    pub way: Option<(u8, Ipv4Addr)>,
    /// 0, or the errno with which the send failed.
    pub errno: i32,
    /// When it was submitted.
    pub at: Instant,
}

/// The world around one gateway. Clones are handles to the same world.
#[derive(Clone, Debug)]
pub struct Wire(Rc<RefCell<World>>);

#[derive(Debug)]
struct World {
    clock: Arc<Manual>,
    rng: StdRng,
    inside: Way,
    outside: Way,
    woken: bool,
    /// Somebody else moves the clock.
    scheduled: bool,
    /// Until when the gateway sleeps if nothing happens; `None`: for ever.
    asleep_until: Option<Instant>,
}

/// One side's packets under way, and those that were written to it.
#[derive(Debug, Default)]
struct Way {
    faults: Faults,
    /// By time of arrival; the second key keeps the order among equals, and is where reordering happens.
    arriving: BTreeMap<(Instant, u64), Vec<u8>>,
    pushed: u64,
    arrived: u64,
    /// What arrived, as the gateway saw it; kept if somebody asks for it.
    seen: Option<Vec<Vec<u8>>>,
    written: Vec<Written>,
}

/// Between two packets pushed one after the other, in the second key of `arriving`: room for the overtaken.
const ORDER_STEP: u64 = 4;

impl Wire {
    /// A world with these faults. Equal seeds and equal pushes make equal runs.
    pub fn new(seed: u64, clock: Arc<Manual>, inside: Faults, outside: Faults) -> Wire {
        let way = |faults| Way { faults, ..Way::default() };
        Wire(Rc::new(RefCell::new(World {
            clock,
            rng: StdRng::seed_from_u64(seed),
            inside: way(inside),
            outside: way(outside),
            woken: false,
            scheduled: false,
            asleep_until: Some(Instant::START),
        })))
    }

    /// From now on the gateway's `wait` leaves the clock alone and returns at once.
    pub fn schedule(&self) {
        self.0.borrow_mut().scheduled = true;
    }

    /// When a gateway on a wire with a schedule has something to do next: now or earlier if it has already, `None` if it
    /// sleeps until somebody pushes a packet or wakes it.
    pub fn due(&self) -> Option<Instant> {
        let world = self.0.borrow();
        let woken = world.woken.then_some(Instant::START);
        woken.into_iter().chain(world.asleep_until).chain(world.next_arrival()).min()
    }

    /// Sends a packet on its way to the gateway: read from the TUN (inside) or received by the raw socket (outside),
    /// unless the side's faults prevent it.
    pub fn push(&self, side: Side, bytes: &[u8]) {
        let world = &mut *self.0.borrow_mut();
        let now = world.clock.now();
        let way = if side == Side::Inside { &mut world.inside } else { &mut world.outside };
        way.push(&mut world.rng, now, bytes);
    }

    /// What the gateway has written to `side` since the last call, in order, failed sends included.
    pub fn take(&self, side: Side) -> Vec<Written> {
        mem::take(&mut self.0.borrow_mut().way(side).written)
    }

    /// Keeps what arrives from now on, for [`Wire::take_seen`].
    pub fn keep_seen(&self) {
        let world = &mut *self.0.borrow_mut();
        (world.inside.seen, world.outside.seen) = (Some(Vec::new()), Some(Vec::new()));
    }

    /// What was handed to the gateway from `side` since the last call, in order and as it arrived.
    pub fn take_seen(&self, side: Side) -> Vec<Vec<u8>> {
        self.0.borrow_mut().way(side).seen.as_mut().map(mem::take).unwrap_or_default()
    }

    /// How many packets from `side` were handed to the gateway so far.
    pub fn arrived(&self, side: Side) -> u64 {
        self.0.borrow_mut().way(side).arrived
    }

    /// How many packets from `side` are still on their way to the gateway.
    pub fn arriving(&self, side: Side) -> usize {
        self.0.borrow_mut().way(side).arriving.len()
    }

    /// Replaces a side's faults for packets pushed and sent from now on.
    pub fn set_faults(&self, side: Side, faults: Faults) {
        self.0.borrow_mut().way(side).faults = faults;
    }

    /// Wakes the gateway, as another thread would.
    pub fn wake(&self) {
        self.0.borrow_mut().woken = true;
    }
}

impl World {
    fn way(&mut self, side: Side) -> &mut Way {
        match side {
            Side::Inside => &mut self.inside,
            Side::Outside => &mut self.outside,
        }
    }

    /// When the next packet arrives, if any is under way.
    fn next_arrival(&self) -> Option<Instant> {
        let first = |way: &Way| way.arriving.keys().next().map(|(at, _)| *at);
        first(&self.inside).into_iter().chain(first(&self.outside)).min()
    }

    /// Moves the clock to the next arrival, or by `timeout` if that is sooner.
    fn pass_time(&self, timeout: Option<Duration>) -> Result<(), SetupError> {
        let now = self.clock.now();
        // An arrival that is due already waits for a buffer: time passes all the same.
        let next = self.next_arrival().map(|at| at.since(now)).filter(|wait| !wait.is_zero());
        let wait = next.into_iter().chain(timeout).min();
        let wait =
            wait.ok_or_else(|| SetupError::new("waiting without a limit on a wire where nothing is under way"))?;
        self.clock.advance(wait);
        Ok(())
    }
}

impl Way {
    fn push(&mut self, rng: &mut StdRng, now: Instant, bytes: &[u8]) {
        if rng.random_bool(self.faults.loss) {
            return;
        }
        let copies = if rng.random_bool(self.faults.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let mut copy = bytes.to_vec();
            if rng.random_bool(self.faults.corruption) && !copy.is_empty() {
                let victim = rng.random_range(0..copy.len());
                copy[victim] ^= 1 << rng.random_range(0..8);
            }
            let late = self.faults.delay + self.faults.jitter.mul_f64(rng.random());
            self.pushed += 1;
            let mut order = self.pushed * ORDER_STEP;
            if rng.random_bool(self.faults.reordering) {
                // Behind one to eight packets that are yet to be pushed; never on a key of theirs.
                order += rng.random_range(1..=8) * ORDER_STEP + 1;
            }
            while self.arriving.contains_key(&(now + late, order)) {
                order += ORDER_STEP;
            }
            self.arriving.insert((now + late, order), copy);
        }
    }

    /// Hands packets that have arrived by `now` to the gateway, as long as there are buffers.
    fn deliver(&mut self, now: Instant, pool: &Rc<Pool>, into: &mut Vec<Frame>) -> bool {
        let mut any = false;
        for _ in 0..BATCH_MAX {
            let Some(entry) = self.arriving.first_entry().filter(|entry| entry.key().0 <= now) else { break };
            let bytes = entry.get();
            let Some(frame) = pool.frame_from(&bytes[..bytes.len().min(pool.buffer_bytes())]) else { break };
            let bytes = entry.remove();
            if let Some(seen) = &mut self.seen {
                seen.push(bytes);
            }
            into.push(frame);
            self.arrived += 1;
            any = true;
        }
        any
    }

    /// The errno of a send now: 0 mostly.
    fn send_errno(&self, rng: &mut StdRng, length: usize) -> i32 {
        if self.faults.mtu.is_some_and(|mtu| length > usize::from(mtu)) {
            return libc::EMSGSIZE;
        }
        let fails = rng.random_bool(self.faults.send_error);
        if fails { self.faults.send_errnos.choose(rng).copied().unwrap_or(0) } else { 0 }
    }
}

/// The gateway's end of a [`Wire`].
#[derive(Debug)]
pub struct MemoryIo {
    wire: Wire,
    inside: Rc<Pool>,
    outside: Rc<Pool>,
    queued: VecDeque<Sent>,
    /// Nothing is to be read any more.
    deaf: bool,
}

impl MemoryIo {
    /// The gateway's end, with its buffers.
    pub fn new(wire: Wire, inside: PoolSize, outside: PoolSize) -> Result<MemoryIo, SetupError> {
        let (inside, outside) = (Pool::new(inside)?, Pool::new(outside)?);
        Ok(MemoryIo { wire, inside, outside, queued: VecDeque::new(), deaf: false })
    }

    /// The buffers of one side.
    pub fn pool(&self, side: Side) -> &Rc<Pool> {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        }
    }

    /// Everything that can happen without time passing. Whether anything did.
    fn settle(&mut self, events: &mut Events) -> bool {
        let world = &mut *self.wire.0.borrow_mut();
        let now = world.clock.now();
        let mut any = !self.queued.is_empty();
        events.sent.extend(self.queued.drain(..));
        if !self.deaf {
            any |= world.inside.deliver(now, &self.inside, &mut events.from_inside);
            any |= world.outside.deliver(now, &self.outside, &mut events.from_outside);
        }
        events.woken |= world.woken;
        any | mem::take(&mut world.woken)
    }

    fn send(&mut self, to: Side, frame: Frame, way: Option<(u8, Ipv4Addr)>) {
        let world = &mut *self.wire.0.borrow_mut();
        let at = world.clock.now();
        let side = if to == Side::Inside { &mut world.inside } else { &mut world.outside };
        let errno = side.send_errno(&mut world.rng, frame.len());
        side.written.push(Written { bytes: frame.to_vec(), way, errno, at });
        world.asleep_until = Some(at);
        self.queued.push_back(Sent { to, frame, errno });
    }
}

impl PacketIo for MemoryIo {
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        let any = self.settle(events);
        let scheduled = self.wire.0.borrow().scheduled;
        if scheduled {
            let world = &mut *self.wire.0.borrow_mut();
            let now = world.clock.now();
            world.asleep_until = if any { Some(now) } else { timeout.map(|timeout| now + timeout) };
        } else if !any {
            self.wire.0.borrow().pass_time(timeout)?;
            self.settle(events);
        }
        Ok(())
    }

    fn send_inside(&mut self, frame: Frame) {
        self.send(Side::Inside, frame, None);
    }

    fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr) {
        self.send(Side::Outside, frame, Some((address, remote)));
    }

    fn copy_of(&self, side: Side, packet: &[u8]) -> Option<Frame> {
        self.pool(side).frame_from(packet)
    }

    fn mtu_towards(&self, _address: u8, _remote: Ipv4Addr) -> Option<u16> {
        self.wire.0.borrow().outside.faults.mtu
    }

    fn stop_receiving(&mut self) {
        self.deaf = true;
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: PoolSize = PoolSize { buffers: 512, buffer_bytes: 64 };
    const MS: Duration = Duration::from_millis(1);

    struct Scene {
        clock: Arc<Manual>,
        wire: Wire,
        io: MemoryIo,
        events: Events,
    }

    fn scene(seed: u64, outside: Faults) -> Scene {
        let clock = Arc::new(Manual::default());
        let wire = Wire::new(seed, Arc::clone(&clock), Faults::default(), outside);
        let io = MemoryIo::new(wire.clone(), SIZE, SIZE).unwrap();
        Scene { clock, wire, io, events: Events::default() }
    }

    impl Scene {
        fn wait(&mut self, timeout: Duration) {
            self.io.wait(&mut self.events, Some(timeout)).unwrap();
        }

        /// Pushes 1000 numbered packets from outside and collects (time, bytes) of what arrives.
        fn thousand(&mut self) -> Vec<(u64, Vec<u8>)> {
            let mut arrived = Vec::new();
            for number in 0..1000u32 {
                self.wire.push(Side::Outside, &number.to_be_bytes());
            }
            while self.wire.arriving(Side::Outside) > 0 {
                self.wait(MS);
                let at = self.clock.now().as_nanos();
                arrived.extend(self.events.from_outside.drain(..).map(|frame| (at, frame.to_vec())));
            }
            arrived
        }
    }

    #[test]
    fn a_perfect_wire_keeps_order_and_takes_no_time() {
        let mut scene = scene(1, Faults::default());
        let arrived = scene.thousand();
        assert_eq!(arrived, (0..1000u32).map(|n| (0, n.to_be_bytes().to_vec())).collect::<Vec<_>>());
        assert_eq!(scene.wire.arrived(Side::Outside), 1000);
    }

    #[test]
    fn a_batch_is_bounded_and_buffers_come_back() {
        let mut scene = scene(1, Faults::default());
        for _ in 0..600 {
            scene.wire.push(Side::Outside, b"x");
        }
        for expected in [BATCH_MAX, 2 * BATCH_MAX, 2 * BATCH_MAX] {
            scene.wait(MS);
            assert_eq!(scene.events.from_outside.len(), expected, "all 512 buffers are held after two batches");
        }
        assert_eq!(scene.clock.now().as_millis(), 1, "time passes while no buffer is free");
        scene.events.from_outside.clear();
        scene.wait(MS);
        assert_eq!(scene.events.from_outside.len(), 600 - 2 * BATCH_MAX);
    }

    #[test]
    fn faults_happen_as_often_as_asked() {
        let count = |faults| {
            let arrived = scene(7, faults).thousand();
            let intact = arrived.iter().filter(|(_, b)| b[..2] == [0, 0] && b[2] < 4).count();
            let ordered = arrived.windows(2).filter(|pair| pair[0].1 <= pair[1].1).count();
            (arrived.len(), intact, ordered)
        };
        let faults = Faults::default();
        let (lossy, ..) = count(Faults { loss: 0.3, ..faults.clone() });
        assert!((650..750).contains(&lossy), "{lossy}");
        let (doubled, ..) = count(Faults { duplication: 0.3, ..faults.clone() });
        assert!((1250..1350).contains(&doubled), "{doubled}");
        let (all, intact, _) = count(Faults { corruption: 0.3, ..faults.clone() });
        assert!(all == 1000 && (700..900).contains(&intact), "{all} {intact}");
        let (all, _, ordered) = count(Faults { reordering: 0.3, ..faults });
        assert!(all == 1000 && (500..900).contains(&ordered), "{all} {ordered}");
    }

    #[test]
    fn delay_and_jitter_bound_the_time() {
        let arrived = scene(3, Faults { delay: 5 * MS, jitter: 3 * MS, ..Faults::default() }).thousand();
        assert_eq!(arrived.len(), 1000);
        assert!(arrived.iter().all(|(at, _)| (5_000_000..=8_000_000).contains(at)));
        assert!(arrived.iter().any(|(at, _)| *at > 7_000_000));
    }

    #[test]
    fn equal_seeds_make_equal_runs() {
        let faults =
            Faults { loss: 0.1, duplication: 0.1, reordering: 0.1, corruption: 0.1, jitter: MS, ..Faults::default() };
        assert_eq!(scene(5, faults.clone()).thousand(), scene(5, faults.clone()).thousand());
        assert_ne!(scene(5, faults.clone()).thousand(), scene(6, faults).thousand());
    }

    #[test]
    fn sends_are_recorded_and_come_back_with_their_errno() {
        let mut scene = scene(1, Faults { send_error: 0.5, send_errnos: vec![105, 90], ..Faults::default() });
        let remote = Ipv4Addr::new(192, 0, 2, 1);
        for number in 0..100u8 {
            let frame = scene.io.pool(Side::Inside).frame_from(&[number]).unwrap();
            scene.io.send_outside(frame, 3, remote);
        }
        let frame = scene.io.pool(Side::Outside).frame_from(b"reply").unwrap();
        scene.io.send_inside(frame);
        assert_eq!(scene.io.in_flight(), 101);
        scene.wait(MS);
        assert_eq!((scene.io.in_flight(), scene.clock.now()), (0, Instant::START));
        let written = scene.wire.take(Side::Outside);
        assert!(written.iter().all(|written| written.way == Some((3, remote))));
        assert_eq!(
            written.iter().map(|written| (written.bytes.clone(), written.errno)).collect::<Vec<_>>(),
            scene.events.sent[..100].iter().map(|sent| (sent.frame.to_vec(), sent.errno)).collect::<Vec<_>>()
        );
        let failed = written.iter().filter(|written| written.errno != 0).count();
        assert!((30..70).contains(&failed) && written.iter().any(|written| written.errno == 90), "{failed}");
        assert_eq!(scene.wire.take(Side::Inside)[0].bytes, b"reply");
        assert!(scene.wire.take(Side::Inside).is_empty());
    }

    #[test]
    fn an_idle_wait_passes_the_timeout_and_a_wake_up_passes_none() {
        let mut scene = scene(1, Faults::default());
        scene.wait(40 * MS);
        assert_eq!(scene.clock.now().as_millis(), 40);
        scene.wire.wake();
        scene.wait(40 * MS);
        assert_eq!((scene.events.woken, scene.clock.now().as_millis()), (true, 40));
        assert!(scene.io.wait(&mut scene.events, None).is_err(), "nothing would ever happen");
    }
}
