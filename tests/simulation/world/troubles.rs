//! What goes wrong that is nobody's packet.

use std::collections::BTreeSet;
use std::time::Duration;

use echogate::clock::Clock;
use echogate::io::memory::Faults;
use echogate::io::{Side, Waker};
use echogate::proxy::{Proxy, Settings};
use echogate::worker::{Post, Worker};
use rand::RngExt;
use rand::seq::IndexedRandom;

use super::{CALM, DEATHS_MAX, Judged, World};

impl World<'_> {
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
        (self.evicted, self.no_room) = (0, 0);
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
    pub(super) fn trouble(&mut self) -> Judged<()> {
        let worker = self.rng.random_range(0..self.workers.len());
        let span = Duration::from_millis(self.rng.random_range(1..3000));
        match self.rng.random_range(0..7) {
            // Longer, and the stamps of its echoes wrap.
            0 => {
                let until = self.clock.now() + span.min(self.game.settings.echo_timeout);
                self.stopped[worker] = until;
                self.model.unrest(until + CALM);
            }
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
                self.model.gone[number] = true;
                self.rounds_of_traffic(span)?;
                self.model.gone[number] = false;
                self.proxy.addresses().set_lost(address, false);
            }
            3 => {
                self.stop(worker)?;
                self.start(worker)?;
                self.restarts += 1;
                self.model.unrest(self.clock.now());
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
        // And what is under way when it ends.
        self.model.unrest(until + CALM);
        while self.clock.now() < until {
            for _ in 0..self.rng.random_range(0..10) {
                self.client_sends()?;
            }
            self.pass(self.game.round)?;
        }
        self.model.unrest(self.clock.now() + CALM);
        Ok(())
    }
}
