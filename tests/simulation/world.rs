//! The world around the gateway: clients, remotes, routers, and some who mean ill, each with what it sends; the schedule by
//! which workers turn; and the trouble that comes over them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use echogate::clock::{Clock, Instant, Manual};
use echogate::io::memory::{Faults, MemoryIo, Wire};
use echogate::io::{Pool, PoolSize, Side, Waker};
use echogate::metrics::{Counters, Snapshot};
use echogate::proxy::{Proxy, Settings};
use echogate::table::fragments::worker_of;
use echogate::wire::build::{self, Datagram};
use echogate::wire::icmpv4::EchoKind;
use echogate::wire::ipv4;
use echogate::worker::{Inbox, Post, Worker};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use super::eyes::Packet;
use super::game::{Game, LONG, denied, gateway};
use super::memory::Memory;
use super::model::{Heard, Model, Turn};
use super::payload::payload;

const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 67, 0, 2);
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
}

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
    restarts: u64,
}

type Judged<T> = Result<T, String>;

/// Plays the game of a seed until so many packets have come to the gateway and all is settled.
pub(super) fn play(seed: u64, packets: u64) -> Judged<Outcome> {
    let game = Game::from_seed(seed);
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
            model: Model::new(game.rules(&proxy), workers),
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
            restarts: 0,
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
        })
    }

    /// Of this life.
    fn counters(&self) -> &'c Counters {
        &self.lives[self.life]
    }

    /// What an honest client sends and the gateway does not forward has one of the names that such a thing can have.
    fn nothing_is_kept_back_without_a_name(&self, drops: &BTreeMap<String, u64>, in_hand: u64) -> Judged<()> {
        let may_be_kept_back = |name: &str| {
            ["over_", "fragment_", "send_", "no_ident", "address_lost", "creations_", "hand_over_", "ending"]
                .iter()
                .any(|beginning| name.starts_with(beginning))
        };
        let named: u64 = drops.iter().filter(|(name, _)| may_be_kept_back(name)).map(|(_, count)| count).sum();
        // In fragments, one that is missing keeps back the others; so does damage.
        let in_fragments = self.identifications.values().map(|count| u64::from(*count)).sum::<u64>();
        let kept_back = self.model.kept_back();
        if kept_back > named + in_fragments + in_hand {
            return Err(format!("{kept_back} requests did not leave, and {named} drops explain it: {drops:?}"));
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
        let evicted = (0..self.workers.len())
            .flat_map(|worker| &self.counters().worker(worker).evicted)
            .map(|count| count.get())
            .sum::<u64>();
        let turn = Turn {
            worker,
            now: self.clock.now(),
            from_inside: wire.take_seen(Side::Inside),
            from_outside: wire.take_seen(Side::Outside),
            inside: wire.take(Side::Inside),
            outside: wire.take(Side::Outside),
            ending,
            evicted: std::mem::replace(&mut self.evicted, evicted) != evicted,
        };
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

    /// The gateway is killed between two turns, some slots are left torn, and another one goes on over the same tables.
    fn die(&mut self) -> Judged<()> {
        let fault = |error: echogate::error::SetupError| error.to_string();
        for worker in &mut self.workers {
            drop(worker.take());
        }
        // What it had in its buffers went with it.
        self.pools.clear();
        let now = self.clock.now();
        let holders = self.model.held();
        let torn: Vec<(u8, u16)> = (0..self.rng.random_range(0..4))
            .filter_map(|_| holders.choose(&mut self.rng).copied())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        torn.iter().try_for_each(|(address, ident)| self.memory.tear(*address, *ident))?;
        self.model.dies(now, &torn);
        self.life += 1;
        let settings = Settings {
            // Another process draws other numbers.
            seed: self
                .game
                .settings
                .seed
                .map(|seed| seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(self.life as u64))),
            ..self.game.settings.clone()
        };
        let (proxy, found) = Proxy::over(&settings, self.memory.tables(), now, now).map_err(fault)?;
        self.proxy = proxy;
        self.counters().worker(0).outstanding.add(found.outstanding);
        self.counters().worker(0).unanswered.add(found.unanswered);
        self.evicted = 0;
        let wakers: Vec<_> = self.wires.iter().map(|_| Waker::new().map_err(fault)).collect::<Judged<_>>()?;
        self.posts = Post::ring(&wakers);
        self.inboxes = self.posts.iter().map(Post::inbox).collect();
        for worker in 0..self.workers.len() {
            self.start(worker)?;
            self.wires[worker].wake();
        }
        self.workers.iter().flatten().try_for_each(Worker::audit)
    }

    /// Something goes wrong that is nobody's packet.
    fn trouble(&mut self) -> Judged<()> {
        let worker = self.rng.random_range(0..self.workers.len());
        let span = Duration::from_millis(self.rng.random_range(1..3000));
        match self.rng.random_range(0..7) {
            // Longer, and the stamps of its echoes wrap.
            0 => self.stopped[worker] = self.clock.now() + span.min(self.game.settings.echo_timeout),
            1 => {
                let down = |faults: &Faults, errno| Faults {
                    loss: 1.0,
                    send_error: 1.0,
                    send_errnos: vec![errno],
                    ..faults.clone()
                };
                let (inside, outside) = (down(&self.game.inside, 5), down(&self.game.outside, 100));
                let both = self.rng.random_bool(0.3);
                for wire in &self.wires {
                    wire.set_faults(Side::Outside, outside.clone());
                    if both {
                        wire.set_faults(Side::Inside, inside.clone());
                    }
                }
                self.rounds_of_traffic(span)?;
                for wire in &self.wires {
                    wire.set_faults(Side::Outside, self.game.outside.clone());
                    wire.set_faults(Side::Inside, self.game.inside.clone());
                }
            }
            2 => {
                let number = self.rng.random_range(0..self.model.lost.len());
                let address = u8::try_from(number).map_err(|_| "at most 16 addresses")?;
                self.proxy.addresses().set_lost(address, true);
                self.model.lost[number].push(self.clock.now());
                self.rounds_of_traffic(span)?;
                self.proxy.addresses().set_lost(address, false);
            }
            3 => {
                self.stop(worker)?;
                self.start(worker)?;
                self.restarts += 1;
            }
            4 => {
                let number = self.rng.random_range(0..self.model.draining.len());
                let address = u8::try_from(number).map_err(|_| "at most 16 addresses")?;
                self.proxy.addresses().set_draining(address, true);
                self.model.draining[number] = true;
                self.rounds_of_traffic(span)?;
                self.model.draining[number] = false;
                self.proxy.addresses().set_draining(address, false);
            }
            5 if self.life < DEATHS_MAX => self.die()?,
            _ => {}
        }
        Ok(())
    }

    fn rounds_of_traffic(&mut self, time: Duration) -> Judged<()> {
        let until = self.clock.now() + time;
        while self.clock.now() < until {
            for _ in 0..self.rng.random_range(0..10) {
                self.client_sends()?;
            }
            self.pass(self.game.round)?;
        }
        Ok(())
    }

    fn client_sends(&mut self) -> Judged<()> {
        let client = *self.game.clients.choose(&mut self.rng).ok_or("no clients")?;
        let remote = *self.game.remotes.choose(&mut self.rng).ok_or("no remotes")?;
        let kind = if self.game.hostile { self.rng.random_range(0..24) } else { self.rng.random_range(10..24) };
        let length = self.length();
        match kind {
            0 => {
                let udp = vec![0, 9, 0, 53, 0, 8, 0, 0];
                self.push_inside(&Datagram::new(client, remote, ipv4::UDP, udp).build());
            }
            1 => {
                let noise: Vec<u8> = (0..self.rng.random_range(0..80)).map(|_| self.rng.random()).collect();
                self.push_inside(&noise);
            }
            2 => self.ask(STRANGER, remote, length, |_| {}, true)?,
            3 => self.ask(client, denied(7), length, |_| {}, true)?,
            4 => self.ask(client, gateway(0), length, |_| {}, true)?,
            5 => self.ask(gateway(0), remote, length, |_| {}, true)?,
            6 => {
                let ttl = if self.model.rules.hops > 0 { self.rng.random_range(0..2) } else { 0 };
                self.ask(client, remote, length, |packet| packet.ttl = ttl, true)?;
            }
            // A loose source route by way of somebody else.
            7 => self.ask(client, remote, length, |packet| packet.options = vec![131, 7, 4, 203, 0, 113, 9], true)?,
            8 => self.ask(client, Ipv4Addr::new(224, 0, 0, 1), length, |_| {}, true)?,
            9 => {
                let reply = build::echo_reply(client, remote, 1, 1, 64, b"a client answers somebody");
                self.push_inside(&reply);
            }
            10..14 => self.ask_in_fragments(client, remote)?,
            14 => {
                // Record route, and DF.
                let options = vec![7, 7, 4, 0, 0, 0, 0];
                self.ask(client, remote, length, |packet| packet.options.clone_from(&options), false)?;
            }
            _ => {
                let (df, tos, ttl) = (self.rng.random(), self.rng.random(), self.rng.random_range(2..=255));
                let identification = self.rng.random();
                let what = |packet: &mut Datagram| {
                    (packet.dont_fragment, packet.tos, packet.ttl) = (df, tos, ttl);
                    packet.identification = identification;
                };
                self.ask(client, remote, length, what, false)?;
            }
        }
        Ok(())
    }

    fn length(&mut self) -> usize {
        if self.rng.random_bool(0.05) { self.rng.random_range(0..2500) } else { self.rng.random_range(0..120) }
    }

    /// A request, its number, and what it is to be changed into.
    fn request(
        &mut self,
        client: Ipv4Addr,
        remote: Ipv4Addr,
        length: usize,
        change: impl Fn(&mut Datagram),
        forbidden: bool,
    ) -> Judged<Datagram> {
        let number = self.model.next_number();
        let ident = self.rng.random_range(1..=self.game.idents);
        let next = self.sequences.entry((client, ident)).or_default();
        *next = next.wrapping_add(1);
        let sequence = if self.game.repeats { self.rng.random_range(0..50) } else { *next };
        let message = build::echo_message(EchoKind::Request, ident, sequence, &payload(number, length));
        let mut packet = Datagram::new(client, remote, ipv4::ICMP, message);
        change(&mut packet);
        self.model.asks(number, packet.build(), forbidden)?;
        Ok(packet)
    }

    fn ask(
        &mut self,
        client: Ipv4Addr,
        remote: Ipv4Addr,
        length: usize,
        change: impl Fn(&mut Datagram),
        forbidden: bool,
    ) -> Judged<()> {
        let mut packet = self.request(client, remote, length, change, forbidden)?.build();
        if self.rng.random_bool(0.02) {
            // A link's padding.
            packet.extend(vec![super::payload::POISON; self.rng.random_range(1..30)]);
        }
        self.push_inside(&packet);
        Ok(())
    }

    /// A request in fragments, in order or not, all there or not. Identifications are a counter: other clients have them too.
    fn ask_in_fragments(&mut self, client: Ipv4Addr, remote: Ipv4Addr) -> Judged<()> {
        let length = self.rng.random_range(40..3000);
        let counter = self.identifications.entry(client).or_default();
        *counter = counter.wrapping_add(1);
        let identification = *counter;
        let whole = self.request(client, remote, length, |packet| packet.identification = identification, false)?;
        let payload = &whole.payload;
        let length = (payload.len() / self.rng.random_range(1..8)).next_multiple_of(8).max(16);
        let mut fragments: Vec<Vec<u8>> = (0..payload.len().div_ceil(length))
            .map(|number| {
                let part = number * length..payload.len().min((number + 1) * length);
                let more_fragments = part.end < payload.len();
                let fragment_offset = part.start;
                let payload = payload[part].to_vec();
                Datagram { more_fragments, fragment_offset, payload, ..whole.clone() }.build()
            })
            .collect();
        if self.rng.random_bool(0.3) {
            fragments.shuffle(&mut self.rng);
        }
        if self.rng.random_bool(0.1) {
            fragments.pop();
        }
        fragments.iter().for_each(|fragment| self.push_inside(fragment));
        Ok(())
    }

    /// To the queue that the steering program would choose, or to any.
    fn push_inside(&mut self, packet: &[u8]) {
        let workers = self.workers.len();
        let wrong = self.game.trouble && self.rng.random_bool(0.1);
        let worker = match Packet::see_long(packet).filter(|_| !wrong) {
            Some(packet) if packet.is_fragment() => {
                worker_of(packet.source, packet.destination, self.proxy.fragment_seed(), workers)
            }
            Some(packet) => usize::from(packet.source.octets()[3] ^ packet.destination.octets()[3]) % workers,
            None => self.rng.random_range(0..workers),
        };
        self.wires[worker].push(Side::Inside, packet);
    }

    /// To the worker whose ident it is, or to any.
    fn push_outside(&mut self, packet: &[u8]) {
        let workers = self.workers.len();
        let wrong = self.game.trouble && self.rng.random_bool(0.1);
        let ident = Packet::see_long(packet).filter(|_| !wrong).and_then(|packet| {
            let quoted = packet.quoted().map(|(_, echo)| echo.ident);
            quoted.or_else(|| packet.echo().map(|echo| echo.ident))
        });
        let worker = ident.map(|ident| usize::from(ident & 63) % workers);
        let worker = worker.unwrap_or_else(|| self.rng.random_range(0..workers));
        self.wires[worker].push(Side::Outside, packet);
    }

    fn send_later(&mut self, after: Duration, packet: Vec<u8>) {
        self.order += 1;
        self.later.insert((self.clock.now() + after, self.order), packet);
    }

    /// A remote hears a request: most answer, some late, some not at all; and a router may have something to say.
    fn remote_hears(&mut self, Heard { packet: heard, reached }: Heard) {
        let Some(packet) = Packet::see(&heard) else { return };
        let Some(echo) = packet.echo() else { return };
        let answer = build::echo_reply(packet.destination, packet.source, echo.ident, echo.sequence, 60, echo.body);
        if !reached {
            // It never came there. Who answers all the same knows more than anybody can.
            if self.game.hostile && self.rng.random_bool(0.3) {
                self.send_later(Duration::from_millis(5), answer);
            }
            return;
        }
        let timeout = self.game.settings.echo_timeout;
        match self.rng.random_range(0..20) {
            0 => {}
            1 => {
                let after = timeout.mul_f64(self.rng.random_range(0.5..1.5));
                self.send_later(after, answer);
            }
            2 if self.game.hostile => {
                self.send_later(timeout * 2, answer.clone());
                self.send_later(Duration::from_millis(1), answer);
            }
            3 => {
                let quoted = &heard[..heard.len().min(if self.rng.random_bool(0.5) { 28 } else { 548 })];
                let (icmp_type, code, rest) = *[(11, 0, 0), (3, 1, 0), (3, 4, 1400), (12, 0, 20 << 24)]
                    .choose(&mut self.rng)
                    .unwrap_or(&(11, 0, 0));
                let message = build::error_message(icmp_type, code, rest, quoted);
                let error = Datagram::new(ROUTER, packet.source, ipv4::ICMP, message).build();
                self.send_later(Duration::ZERO, error);
                self.send_later(Duration::from_millis(2), answer);
            }
            _ => {
                self.model.seen.answers += 1;
                self.push_outside(&answer);
            }
        }
        if self.overheard.len() < 64 {
            self.overheard.push(heard);
        } else {
            let victim = self.rng.random_range(0..64);
            self.overheard[victim] = heard;
        }
    }

    /// Somebody who has seen requests answers them with one thing wrong, or repeats what was said, or lies about them.
    fn forge(&mut self) {
        for _ in 0..self.rng.random_range(0..4) {
            let Some(overheard) = self.overheard.choose(&mut self.rng) else { return };
            let Some(packet) = Packet::see(overheard) else { return };
            let Some(echo) = packet.echo() else { return };
            let (mut remote, mut own, mut ident, mut sequence) =
                (packet.destination, packet.source, echo.ident, echo.sequence);
            match self.rng.random_range(0..6) {
                0 => remote = Ipv4Addr::from(u32::from(remote) ^ 1),
                1 => own = gateway(self.rng.random_range(0..4)),
                2 => ident ^= 1 << self.rng.random_range(0..16),
                3 => sequence ^= 1 << self.rng.random_range(0..16),
                4 => own = Ipv4Addr::new(198, 18, 0, 99),
                // Again, as it was.
                _ => {}
            }
            let forged = if self.rng.random_bool(0.5) {
                build::echo_reply(remote, own, ident, sequence, 60, echo.body)
            } else {
                let quoted = build::echo_request(own, remote, ident, sequence, 60, echo.body);
                let message = build::error_message(3, 1, 0, &quoted[..quoted.len().min(548)]);
                Datagram::new(ROUTER, own, ipv4::ICMP, message).build()
            };
            self.push_outside(&forged);
        }
    }
}
