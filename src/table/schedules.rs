//! Histories of the tables that are too long for every interleaving of them to be tried: `scripts/schedules` runs them under
//! shuttle, each execution another history under another schedule, both by the seed. The code is the tables' own, but for the
//! map (`forward_model.rs`) and for sizes: two words a bucket, four slots.
//!
//! A history has phases. In one, two owners of idents and one or two threads that only receive do what they like at once, on
//! clocks that differ by up to a batch, which is what the tables assume of threads; between phases time passes: a second, or
//! until echoes are late, mappings idle, or idents rested. A remote's address tells who asks it, so whoever uses an echo up
//! knows whose the identity must be.
//!
//! What they cannot show: the checker runs one operation after another, so a wrong ordering of memory is for `models.rs`. And
//! they are samples, by chance and by priorities (PCT): a number of executions, no proof.
//!
//! The count of executions and the seed come from the environment; a failure prints the schedule that repeats it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use super::addresses::Addresses;
use super::clients::{Allowance, ClientIndex, Clients, Rate};
use super::echoes::{Consumed, EchoKey, Echoes, Recorded};
use super::forward::Forward;
use super::idents::{Asker, IdentPolicy, Idents, Lifetimes, Mappings};
use super::slots::{Slots, State};
use super::{SHARDS, SlotIndex};
use crate::clock::Instant;

const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(10, 66, 0, 3)];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CLIENT_IDENT: u16 = 1;
const OWNERS: usize = 2;
const SLOTS: usize = 4;
/// Echoes that a client can ask for under one ident: more than a bucket holds, together with the other client's.
const ECHOES: usize = 2;

const TIMEOUT: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(60);
const BATCH: Duration = Duration::from_millis(500);
const BURST: u32 = 4;
const ALLOWANCE: Allowance = Allowance { packets: Rate::new(1, BURST), mappings_max: 1, ..Allowance::UNLIMITED };

/// PCT's bound on how many changes of priority a failure needs.
const PCT_DEPTH: usize = 5;

/// The tables, and what was done to them: by std's atomics, which the checker does not see.
struct World {
    mappings: Mappings,
    echoes: Echoes,
    /// By slot, client and echo.
    keys: [[[EchoKey; ECHOES]; CLIENTS.len()]; SLOTS],
    hold_down: Duration,
    tally: Tally,
}

/// What came of it.
#[derive(Default, Debug)]
struct Tally {
    /// Echoes that took a free word, and those that left one.
    taken: AtomicU64,
    left: AtomicU64,
    /// Requests recorded and replies matched, by the place of their key.
    recorded: [AtomicU64; SLOTS * CLIENTS.len() * ECHOES],
    matched: [AtomicU64; SLOTS * CLIENTS.len() * ECHOES],
    /// Packets that each client was charged for in this phase.
    charged: [AtomicU64; CLIENTS.len()],
}

fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl World {
    fn new() -> (Arc<World>, [Idents; OWNERS]) {
        let mut rng = StdRng::seed_from_u64(thread_rng().r#gen());
        let echoes = Echoes::with_shards(1, 5, TIMEOUT, &mut rng);
        let hold_down = echoes.hold_down_min(BATCH);
        let slots: [SlotIndex; SLOTS] = std::array::from_fn(slot_index);
        let mappings = Mappings {
            slots: Slots::with_len((SLOTS - 1) * SHARDS + 1),
            forward: Forward::new(SLOTS),
            clients: Clients::new(CLIENTS.len() as u64),
            addresses: Addresses::new(&[GATEWAY]),
        };
        let owners = std::array::from_fn(|owner| {
            let rng = StdRng::seed_from_u64(thread_rng().r#gen());
            let own = slots.into_iter().skip(owner).step_by(OWNERS).collect();
            let lifetimes = Lifetimes { idle: IDLE, hold_down };
            let idents = Idents::with_ready(vec![own], &IdentPolicy::default(), lifetimes, rng);
            idents.announce(&mappings.addresses);
            idents
        });
        let keys = slots.map(|index| keys_of(&echoes, index));
        (Arc::new(World { mappings, echoes, keys, hold_down, tally: Tally::default() }), owners)
    }

    fn line(&self, client: usize) -> ClientIndex {
        self.mappings.clients.index(u32::from(CLIENTS[client]).into())
    }

    /// A client's request, at a worker that can make it a mapping.
    fn request(&self, owner: &mut Idents, client: usize, echo: usize, now: Instant) {
        let Mappings { slots, forward, clients, .. } = &self.mappings;
        let guard = forward.guard();
        let found = self.mappings.find(CLIENTS[client], CLIENT_IDENT, &guard);
        let line = self.line(client);
        if clients.charge(line, &ALLOWANCE, 84, now).is_err() {
            return;
        }
        bump(&self.tally.charged[client], 1);
        let index = match found {
            Some(index) => {
                slots.touch(index, now);
                index
            }
            None => {
                if clients.enter(line, &ALLOWANCE, now, |_| 0).is_err() {
                    return;
                }
                let asker = Asker { client: CLIENTS[client], line, client_ident: CLIENT_IDENT };
                match owner.make(&self.mappings, 0, asker, now, &guard) {
                    Ok(index) => index,
                    Err(_) => return,
                }
            }
        };
        let (taken, left) = match self.echoes.record(self.key(index, client, echo), now) {
            Recorded::New => (1, 0),
            Recorded::OverExpired | Recorded::Evicted(_) => (1, 1),
            Recorded::Again => (0, 0),
            Recorded::Contended => return,
        };
        bump(&self.tally.taken, taken);
        bump(&self.tally.left, left);
        bump(&self.tally.recorded[place(slot_of(index), client, echo)], 1);
    }

    /// A remote's reply, at any worker.
    fn reply(&self, slot: usize, client: usize, echo: usize, now: Instant) {
        let key = self.keys[slot][client][echo];
        let consumed = self.echoes.consume(key, now);
        bump(&self.tally.left, u64::from(consumed != Consumed::Unknown));
        if consumed == Consumed::Matched {
            let identity = self.mappings.slots.identity(key.index);
            assert!(
                identity.client() == CLIENTS[client] && matches!(identity.state(), State::Live | State::Held),
                "what {} asked goes to {identity:?}",
                CLIENTS[client]
            );
            bump(&self.tally.matched[place(slot, client, echo)], 1);
        }
    }

    /// An error about an echo: it is told to who asked.
    fn error(&self, slot: usize, client: usize, echo: usize, now: Instant) {
        let key = self.keys[slot][client][echo];
        if self.echoes.is_outstanding(key, now) {
            let identity = self.mappings.slots.identity(key.index);
            assert_eq!(identity.client(), CLIENTS[client], "an error about another's request");
        }
    }

    /// The one bucket in which all echoes under this slot are.
    fn sweep(&self, slot: usize, now: Instant) {
        let bucket = self.echoes.place(self.keys[slot][0][0]).0;
        bump(&self.tally.left, self.echoes.sweep(0, bucket, 1, now));
    }

    fn expire(&self, owner: &mut Idents, now: Instant) {
        owner.expire(&self.mappings, now, SLOTS, &self.mappings.forward.guard());
    }

    fn key(&self, index: SlotIndex, client: usize, echo: usize) -> EchoKey {
        self.keys[slot_of(index)][client][echo]
    }

    /// A few steps of one thread; who owns idents makes and ends mappings, too.
    fn steps(&self, mut owner: Option<Idents>, now: Instant) -> Option<Idents> {
        let mut rng = thread_rng();
        for _ in 0..rng.gen_range(1..=4) {
            let (slot, client, echo) =
                (rng.gen_range(0..SLOTS), rng.gen_range(0..CLIENTS.len()), rng.gen_range(0..ECHOES));
            match (rng.gen_range(0..8), &mut owner) {
                (0..4, Some(owner)) => self.request(owner, client, echo, now),
                (4, Some(owner)) => self.expire(owner, now),
                (5, _) => self.sweep(slot, now),
                (6, _) => self.error(slot, client, echo, now),
                _ => self.reply(slot, client, echo, now),
            }
        }
        owner
    }

    /// What must hold whenever nobody is at work.
    fn audit(&self, owners: &[Idents]) {
        let Mappings { slots, clients, .. } = &self.mappings;
        owners.iter().for_each(|owner| assert_eq!(owner.audit(&self.mappings, &[]), Ok(())));
        let live: usize = owners.iter().map(Idents::live).sum();
        assert_eq!(clients.mappings_sum(), live as u64, "the clients' counts");
        for (client, address) in CLIENTS.into_iter().enumerate() {
            let live = (0..SLOTS).map(slot_index);
            let live = live.filter(|index| slots.identity(*index).is_live_for(address, CLIENT_IDENT)).count();
            assert!(live <= 1, "{address} has {live} live mappings of one ident");
            // A batch is half a second: it is due not one more.
            let charged = self.tally.charged[client].swap(0, Ordering::Relaxed);
            assert!(charged <= u64::from(BURST) + 1, "{charged} packets of a burst of {BURST}");
        }
        let [taken, left] = [&self.tally.taken, &self.tally.left].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!(self.echoes.occupied() as u64, taken - left, "{taken} words taken, {left} left");
        for (recorded, matched) in self.tally.recorded.iter().zip(&self.tally.matched) {
            let [recorded, matched] = [recorded, matched].map(|counter| counter.load(Ordering::Relaxed));
            assert!(matched <= recorded, "{matched} replies to {recorded} requests");
        }
    }
}

/// All of one shard, so that there are few echoes' buckets to walk.
fn slot_index(slot: usize) -> SlotIndex {
    SlotIndex::new(0, u16::try_from(slot * SHARDS).expect("few slots"))
}

fn slot_of(index: SlotIndex) -> usize {
    usize::from(index.ident()) / SHARDS
}

fn place(slot: usize, client: usize, echo: usize) -> usize {
    (slot * CLIENTS.len() + client) * ECHOES + echo
}

/// By client: keys that all share one bucket of the slot's shard.
fn keys_of(echoes: &Echoes, index: SlotIndex) -> [[EchoKey; ECHOES]; CLIENTS.len()] {
    let key = |client: usize, sequence| EchoKey {
        index,
        sequence,
        remote: Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 1, 0)) + u32::from(client.to_le_bytes()[0])),
    };
    let bucket = echoes.place(key(0, 0)).0;
    std::array::from_fn(|client| {
        let mut same =
            (0..=u16::MAX).map(|sequence| key(client, sequence)).filter(|key| echoes.place(*key).0 == bucket);
        std::array::from_fn(|_| same.next().expect("more sequences than buckets"))
    })
}

/// One execution, with so many threads at once. How many replies were matched.
fn history(threads: usize) -> u64 {
    let (world, owners) = World::new();
    let mut owners = Vec::from(owners);
    let mut base = Instant::START + Duration::from_secs(600);
    for _ in 0..thread_rng().gen_range(2..=4) {
        let mut own = owners.drain(..).map(Some).collect::<Vec<_>>();
        own.resize_with(threads, || None);
        let running: Vec<_> = own
            .into_iter()
            .map(|owner| {
                let world = Arc::clone(&world);
                let now = base + BATCH.mul_f64(f64::from(thread_rng().gen_range(0..=2_u8)) / 2.0);
                thread::spawn(move || world.steps(owner, now))
            })
            .collect();
        owners.extend(running.into_iter().filter_map(|thread| thread.join().expect("did not panic")));
        world.audit(&owners);
        let pause = [Duration::from_secs(1), Duration::from_secs(59), TIMEOUT, world.hold_down];
        base = base + BATCH + pause[thread_rng().gen_range(0..pause.len())];
        // Once a timeout is the owners' duty: after that a stamp would wrap.
        (0..SLOTS).for_each(|slot| world.sweep(slot, base));
    }
    for pause in [IDLE + BATCH, world.hold_down] {
        base = base + pause;
        owners.iter_mut().for_each(|owner| world.expire(owner, base));
        (0..SLOTS).for_each(|slot| world.sweep(slot, base));
        world.audit(&owners);
    }
    let left = (owners.iter().map(|owner| owner.live() + owner.held()).sum::<usize>(), world.echoes.occupied());
    assert!(left == (0, 0) && world.mappings.forward.is_empty(), "mappings and echoes that are left: {left:?}");
    world.tally.matched.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs so many executions of a history; each is counted when it has come to its end.
fn run(name: &str, threads: usize, scheduler: impl Scheduler + 'static, executions: u64) {
    let mut config = Config::new();
    config.stack_size = 1 << 17; // an unoptimised build's frames
    let (ended, matched) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count, sum) = (Arc::clone(&ended), Arc::clone(&matched));
    Runner::new(scheduler, config).run(move || {
        bump(&sum, history(threads));
        bump(&count, 1);
    });
    let [ended, matched] = [ended, matched].map(|counter| counter.load(Ordering::Relaxed));
    println!("{name}: {ended} schedules of {threads} threads, {matched} replies matched, 0 violations");
    assert_eq!(ended, executions, "schedules that came to their end");
    assert!(matched > executions / 100, "too little happens: {matched} replies");
}

/// A quarter of the executions: a test for each of two ways to choose and two numbers of threads.
fn quarter() -> (usize, u64) {
    let executions = number("ECHOGATE_SCHEDULES", 8_000) / 4;
    (usize::try_from(executions).expect("64 bits"), executions)
}

fn seed() -> u64 {
    number("ECHOGATE_SEED", 10)
}

#[test]
fn three_threads_by_chance() {
    let (most, executions) = quarter();
    run("by chance", 3, RandomScheduler::new_from_seed(seed(), most), executions);
}

#[test]
fn four_threads_by_chance() {
    let (most, executions) = quarter();
    run("by chance", 4, RandomScheduler::new_from_seed(seed() + 1, most), executions);
}

#[test]
fn three_threads_by_priorities() {
    let (most, executions) = quarter();
    run("by priorities", 3, PctScheduler::new_from_seed(seed() + 2, PCT_DEPTH, most), executions);
}

#[test]
fn four_threads_by_priorities() {
    let (most, executions) = quarter();
    run("by priorities", 4, PctScheduler::new_from_seed(seed() + 3, PCT_DEPTH, most), executions);
}
