//! The world around the gateway: who sends something to it ([`senders`]), the schedule by which workers turn, the trouble that comes
//! over them ([`troubles`]), and the balance in the end.

mod senders;
mod troubles;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use echogate::clock::{Clock, Instant, Manual};
use echogate::io::memory::{Faults, MemoryIo, Wire};
use echogate::io::{Pool, PoolSize, Side, Waker};
use echogate::metrics::{Counters, Snapshot};
use echogate::proxy::Proxy;
use echogate::worker::{Inbox, Post, Worker};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::game::{Game, LONG};
use super::memory::Memory;
use super::model::{Model, Turn};

const SIZE: PoolSize = PoolSize { buffers: 700, buffer_bytes: 4096 };

/// What one game came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    /// That came to the gateway.
    pub(super) packets: u64,
    pub(super) drops: BTreeMap<String, u64>,
    pub(super) seen: super::model::Seen,
    pub(super) time: Duration,
    /// Of workers that ended as they are told to, and of the whole gateway after it died.
    pub(super) restarts: u64,
    pub(super) deaths: u64,
    /// Over every byte that came to the gateway and left it, in order.
    pub(super) hash: u64,
}

/// So long after a worker has stood still nothing waits any more that came meanwhile.
const CALM: Duration = Duration::from_secs(1);

/// The most deaths of a game: each life has counters of its own.
const DEATHS_MAX: usize = 15;

pub(super) struct World<'c> {
    game: Game,
    rng: StdRng,
    clock: Arc<Manual>,
    wires: Vec<Wire>,
    memory: Memory,
    proxy: Arc<Proxy>,
    posts: Vec<Post>,
    inboxes: Vec<Inbox>,
    /// Of all lives, the first of them first.
    lives: &'c [Counters],
    life: usize,
    workers: Vec<Option<Worker<'c, MemoryIo>>>,
    pools: Vec<[Rc<Pool>; 2]>,
    model: Model,
    /// What remotes and others send later.
    later: BTreeMap<(Instant, u64), Vec<u8>>,
    order: u64,
    sequences: HashMap<(Ipv4Addr, u16), u16>,
    identifications: HashMap<Ipv4Addr, u16>,
    /// Requests that remotes have heard lately: what the forgers go by.
    overheard: Vec<Vec<u8>>,
    /// A worker does not turn before this.
    stopped: Vec<Instant>,
    evicted: u64,
    no_room: u64,
    restarts: u64,
    hash: DefaultHasher,
}

type Judged<T> = Result<T, String>;

/// Plays the game of a seed until so many packets have come to the gateway and all is settled.
pub(super) fn play(seed: u64, packets: u64) -> Judged<Outcome> {
    play_game(Game::from_seed(seed), packets)
}

pub(super) fn play_game(game: Game, packets: u64) -> Judged<Outcome> {
    let lives: Vec<Counters> = (0..=DEATHS_MAX).map(|_| Counters::new(game.settings.workers, 1)).collect();
    let mut world = World::new(game, &lives)?;
    world.play(packets)?;
    world.end()
}

impl<'c> World<'c> {
    fn new(game: Game, lives: &'c [Counters]) -> Judged<World<'c>> {
        let fault = |error: echogate::error::SetupError| error.to_string();
        let clock = Arc::new(Manual::default());
        let memory = Memory::new(&game.settings, game.seed)?;
        let (now, tables) = (clock.now(), memory.tables());
        let (proxy, _) = Proxy::over(&game.settings, tables, now, now).map_err(fault)?;
        let rules = game.rules();
        let (least, rests) = (rules.hold_down, proxy.sizes().hold_down);
        if rests < least || game.settings.hold_down.is_none() && rests > least + game.late_at_most() {
            return Err(format!("idents rest for {rests:?}, and should for {least:?}"));
        }
        for number in 0..u8::try_from(game.settings.addresses.len()).map_err(|_| "at most 16 addresses")? {
            // The memory is another game's.
            proxy.addresses().set_lost(number, false);
            proxy.addresses().set_draining(number, false);
        }
        let workers = game.settings.workers;
        let wakers: Vec<_> = (0..workers).map(|_| Waker::new().map_err(fault)).collect::<Judged<_>>()?;
        let posts = Post::ring(&wakers);
        let wire = |number: usize| {
            let wire = Wire::new(
                game.seed.wrapping_mul(31) + number as u64,
                Arc::clone(&clock),
                game.inside.clone(),
                game.outside.clone(),
            );
            wire.schedule();
            wire.keep_seen();
            wire
        };
        let mut world = World {
            rng: StdRng::seed_from_u64(game.seed),
            wires: (0..workers).map(wire).collect(),
            model: Model::new(rules, workers),
            inboxes: posts.iter().map(Post::inbox).collect(),
            posts,
            lives,
            life: 0,
            workers: (0..workers).map(|_| None).collect(),
            pools: Vec::new(),
            later: BTreeMap::new(),
            order: 0,
            sequences: HashMap::new(),
            identifications: HashMap::new(),
            overheard: Vec::new(),
            stopped: vec![Instant::START; workers],
            evicted: 0,
            no_room: 0,
            restarts: 0,
            hash: DefaultHasher::new(),
            clock,
            memory,
            proxy,
            game,
        };
        (0..workers).try_for_each(|worker| world.start(worker))?;
        Ok(world)
    }

    /// A worker begins, or begins again: on the tables as they are.
    fn start(&mut self, worker: usize) -> Judged<()> {
        let io = MemoryIo::new(self.wires[worker].clone(), SIZE, SIZE).map_err(|error| error.to_string())?;
        let pools = [Side::Inside, Side::Outside].map(|side| Rc::clone(io.pool(side)));
        self.pools.push(pools);
        let handle = self.proxy.handle(worker).ok_or("a worker's handle is not to be had")?;
        let counters = self.counters().worker(worker);
        let post = self.posts[worker].clone();
        self.workers[worker] = Some(Worker::new(io, handle, post, counters, self.game.fall_through));
        Ok(())
    }

    fn play(&mut self, packets: u64) -> Judged<()> {
        let arrived = |world: &World<'_>| {
            world.wires.iter().map(|wire| wire.arrived(Side::Inside) + wire.arrived(Side::Outside)).sum::<u64>()
        };
        let mut rounds = 0_u32;
        while arrived(self) < packets {
            // Some bursts, then a pause in which all mappings end, or some.
            for _ in 0..self.rng.random_range(5..60) {
                let most = if self.rng.random_bool(0.1) { 300 } else { 40 };
                for _ in 0..self.rng.random_range(0..most) {
                    self.client_sends()?;
                }
                if self.game.hostile {
                    self.forge();
                }
                self.pass(self.game.round)?;
            }
            if self.game.trouble {
                self.trouble()?;
            }
            let pause = self.game.settings.mapping_idle.mul_f64(self.rng.random_range(0.0..1.5));
            self.pass(pause)?;
            if self.rng.random_bool(0.3) {
                let pause = LONG * self.rng.random_range(2..8);
                self.pass(pause)?;
            }
            rounds += 1;
            if rounds > 10_000 {
                return Err("the game does not get anywhere".into());
            }
        }
        Ok(())
    }

    /// Lets all that is under way end, and draws the balance.
    fn end(mut self) -> Judged<Outcome> {
        for wire in &self.wires {
            wire.set_faults(Side::Inside, Faults::default());
            wire.set_faults(Side::Outside, Faults::default());
        }
        self.pass(LONG * 5)?;
        self.pass(LONG * 5)?;
        self.model.what_waited_has_left(self.clock.now())?;
        let before = self.counters().snapshot();
        if (before.mappings, before.outstanding) != (0, 0) || self.proxy.outstanding() != 0 {
            let (mappings, outstanding) = (before.mappings, before.outstanding);
            return Err(format!("at the end {mappings} mappings live and {outstanding} echoes are outstanding"));
        }
        for worker in 0..self.workers.len() {
            self.stop(worker)?;
        }
        for (pools, side) in self.pools.iter().flat_map(|pools| pools.iter().zip(["inside", "outside"])) {
            if pools.free() != pools.buffers() {
                return Err(format!("{} buffers {side} are lost", pools.buffers() - pools.free()));
            }
        }
        let lives: Vec<Snapshot> = self.lives[..=self.life].iter().map(Counters::snapshot).collect();
        let mut in_hand = 0;
        for (number, counters) in lives.iter().enumerate() {
            let (came, accounted) = (counters.packets_in(), counters.packets_accounted());
            // Who died had some in its hands, and nobody else has.
            if came < accounted || came != accounted && number == self.life {
                return Err(format!("{came} packets came, {accounted} are accounted for: {counters:?}"));
            }
            in_hand += came - accounted;
        }
        for side in [Side::Inside, Side::Outside] {
            let counted = |life: &Snapshot| if side == Side::Inside { life.inside_in } else { life.outside_in }.packets;
            let counted: u64 = lives.iter().map(counted).sum();
            let arrived: u64 = self.wires.iter().map(|wire| wire.arrived(side)).sum();
            if arrived != counted {
                return Err(format!("{arrived} packets arrived {side:?}, and {counted} are counted"));
            }
        }
        let mut drops = BTreeMap::<String, u64>::new();
        for (name, count) in lives.iter().flat_map(|life| &life.drops) {
            *drops.entry(name.clone()).or_default() += count;
        }
        self.nothing_is_kept_back_without_a_name(&drops, in_hand)?;
        Ok(Outcome {
            packets: lives.iter().map(Snapshot::packets_in).sum(),
            drops,
            seen: self.model.seen,
            time: self.clock.now().since(Instant::START),
            restarts: self.restarts,
            deaths: self.life as u64,
            hash: self.hash.finish(),
        })
    }

    /// Of this life.
    fn counters(&self) -> &'c Counters {
        &self.lives[self.life]
    }

    /// What an honest client sends and the gateway does not forward has one of the names that such a thing can have in this game.
    fn nothing_is_kept_back_without_a_name(&self, drops: &BTreeMap<String, u64>, in_hand: u64) -> Judged<()> {
        let rules = &self.model.rules;
        let fragments = self.game.fragments || rules.damage;
        // Each beginning of names, and whether there may be any such drop.
        let may_be = [
            ("over_", rules.limits.is_some()),
            ("no_ident", !rules.ample),
            ("fragment_", fragments),
            ("address_lost", self.game.trouble),
            ("ending", self.game.trouble),
            ("creations_backlog", true),
            ("hand_over_full", fragments || !rules.ample),
            ("mapping_contended", false),
            ("echo_contended", false),
        ];
        for (beginning, _) in may_be.iter().filter(|(_, may_be)| !may_be) {
            if let Some((name, count)) = drops.iter().find(|(name, _)| name.starts_with(beginning)) {
                return Err(format!("{count} dropped as {name}, which cannot be in this game"));
            }
        }
        // Whole requests are: what is dropped of a fragmented one excuses none of them.
        let kept_back = self.model.kept_back();
        let can_be_whole = |name: &str| {
            !name.starts_with("fragment_") && may_be.iter().any(|(beginning, _)| name.starts_with(beginning))
        };
        let named: u64 = drops.iter().filter(|(name, _)| can_be_whole(name)).map(|(_, count)| count).sum();
        if kept_back > named + in_hand {
            return Err(format!("{kept_back} whole requests did not leave, and {named} drops explain it: {drops:?}"));
        }
        Ok(())
    }

    /// Lets time pass, and all happen that is due meanwhile.
    fn pass(&mut self, time: Duration) -> Judged<()> {
        let until = self.clock.now() + time;
        loop {
            let now = self.clock.now();
            while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
                let packet = entry.remove();
                self.push_outside(&packet);
            }
            let mut any = false;
            for worker in 0..self.workers.len() {
                let due = self.wires[worker].due().is_some_and(|due| due <= now);
                if due && self.stopped[worker] <= now {
                    any |= self.turn(worker)?;
                }
            }
            if any {
                continue;
            }
            let ready = (0..self.workers.len()).filter_map(|worker| {
                // Due already and nothing happened: what is due waits for a buffer.
                let due = self.wires[worker].due()?.max(self.stopped[worker]);
                Some(if due <= now { now + Duration::from_millis(1) } else { due })
            });
            let next = ready.chain(self.later.keys().next().map(|(at, _)| *at)).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.clock.advance(next.since(now)),
                None => {
                    self.clock.advance(until.since(now));
                    return Ok(());
                }
            }
        }
    }

    /// One turn of one worker. Whether anything happened.
    fn turn(&mut self, worker: usize) -> Judged<bool> {
        let running = self.workers[worker].as_mut().ok_or("a worker is missing")?;
        running.turn(&*self.clock, None).map_err(|error| error.to_string())?;
        self.judge(worker, false)
    }

    /// Has the model judge what a worker has read and written since the last time.
    fn judge(&mut self, worker: usize, ending: bool) -> Judged<bool> {
        let wire = &self.wires[worker];
        let counted: Vec<_> = (0..self.workers.len()).map(|worker| self.counters().worker(worker)).collect();
        let evicted: u64 = counted.iter().flat_map(|counters| &counters.evicted).map(|count| count.get()).sum();
        let no_room: u64 =
            counted.iter().map(|counters| counters.hand_over_full.get() + counters.creations_backlog.get()).sum();
        let now = self.clock.now();
        let turn = Turn {
            worker,
            now,
            from_inside: wire.take_seen(Side::Inside),
            from_outside: wire.take_seen(Side::Outside),
            inside: wire.take(Side::Inside),
            outside: wire.take(Side::Outside),
            ending,
            calm: self.stopped[worker] + CALM <= now,
            evicted: evicted - std::mem::replace(&mut self.evicted, evicted),
            no_room: no_room - std::mem::replace(&mut self.no_room, no_room),
        };
        for bytes in turn.from_inside.iter().chain(&turn.from_outside) {
            self.hash.write(bytes);
        }
        for written in turn.inside.iter().chain(&turn.outside) {
            self.hash.write(&written.bytes);
            self.hash.write_i32(written.errno);
        }
        let any = !(turn.from_inside.is_empty()
            && turn.from_outside.is_empty()
            && turn.inside.is_empty()
            && turn.outside.is_empty());
        for heard in self.model.judge(turn)? {
            self.remote_hears(heard);
        }
        for (inbox, wire) in self.inboxes.iter().zip(&self.wires) {
            if !inbox.is_empty() {
                wire.wake();
            }
        }
        Ok(any)
    }

    /// A worker ends as the gateway's end has it end.
    fn stop(&mut self, worker: usize) -> Judged<()> {
        let Some(mut running) = self.workers[worker].take() else { return Ok(()) };
        running.audit()?;
        running.drain(&*self.clock).map_err(|error| error.to_string())?;
        running.audit()?;
        drop(running);
        self.judge(worker, true)?;
        Ok(())
    }
}
