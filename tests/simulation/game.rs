//! What one seed stands for: how large the gateway is, what it allows, and how bad its world is.

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::io::FallThrough;
use echogate::io::memory::Faults;
use echogate::policy::{Limits, ORDINARY};
use echogate::proxy::{Settings, Ttl};
use echogate::table::clients::Allowance;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::model::Rules;

/// No longer mapping's life, echo timeout and hold-down than this: a pause that is longer ends all that is under way.
pub(super) const LONG: Duration = Duration::from_secs(130);

#[derive(Debug)]
pub(super) struct Game {
    pub(super) seed: u64,
    pub(super) settings: Settings,
    pub(super) limits: Option<Limits>,
    pub(super) fall_through: FallThrough,
    pub(super) clients: Vec<Ipv4Addr>,
    pub(super) remotes: Vec<Ipv4Addr>,
    /// Idents that a client uses.
    pub(super) idents: u16,
    /// Clients use a sequence again before it is answered.
    pub(super) repeats: bool,
    pub(super) inside: Faults,
    pub(super) outside: Faults,
    /// Somebody means ill; and what is no proxy's business.
    pub(super) hostile: bool,
    /// Packets from the wrong worker's queue, workers that stop for a while, links and addresses that go.
    pub(super) trouble: bool,
    /// The time that a round of packets lasts.
    pub(super) round: Duration,
    /// Clients send some requests in fragments.
    pub(super) fragments: bool,
    /// Among them, where somebody means ill, some that must not leave.
    pub(super) bad_fragments: bool,
    /// Idents are few.
    few_idents: bool,
}

pub(super) fn gateway(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 1 + number)
}

/// Where nobody may ping.
pub(super) fn denied(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 9, host)
}

fn is_denied(address: Ipv4Addr) -> bool {
    address.octets()[..3] == denied(0).octets()[..3]
}

pub(super) fn is_client(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    (a, b, c) == (10, 66, 0)
}

impl Game {
    /// The game of a seed.
    pub(super) fn from_seed(seed: u64) -> Game {
        let mut game = Game::first_kind(seed);
        game.vary();
        game
    }

    /// Most games go without damage to requests, under which the model knows less; some without fragments, which may wait, so that what a
    /// client has left is known exactly; some shares are of bytes, or bound new mappings more than mappings; and some tables are so small that echoes give way to others.
    fn vary(&mut self) {
        let rng = &mut StdRng::seed_from_u64(self.seed ^ 0x7661_7279);
        self.bad_fragments = true;
        if rng.random_bool(0.6) {
            self.inside.corruption = 0.0;
        }
        self.fragments = rng.random_bool(if self.limits.is_some() { 0.4 } else { 0.8 });
        if let Some(limits) = &mut self.limits {
            if rng.random_bool(0.4) {
                (limits.bytes_per_second, limits.bytes_burst) =
                    (rng.random_range(500..20_000), rng.random_range(1500..6000));
            }
            if rng.random_bool(0.5) {
                (limits.mappings_per_second, limits.mappings_burst) = (rng.random_range(1..5), rng.random_range(1..8));
                limits.mappings = rng.random_range(10..100);
            }
            self.settings.allowance = Allowance::from(*limits);
        }
        if rng.random_bool(0.3) {
            self.settings.echo_words_log2 = 14;
            if rng.random_bool(0.5) {
                // Hardly anybody is answered.
                self.outside.loss = 0.9;
                self.repeats = false;
            }
        }
    }

    /// As games were before there was [`Game::vary`], so that those that found something are played as they were then.
    pub(super) fn first_kind(seed: u64) -> Game {
        let rng = &mut StdRng::seed_from_u64(seed ^ 0x6563_686f);
        let addresses = rng.random_range(1..=3);
        let gateways: Vec<_> = (0..addresses).map(gateway).collect();
        let mut settings = Settings::new(vec!["10.66.0.0/24".parse().expect("a prefix")], gateways);
        settings.seed = Some(seed);
        settings.workers = rng.random_range(1..=3);
        settings.echo_words_log2 = 16;
        settings.denied = vec!["198.18.9.0/24".parse().expect("a prefix")];
        settings.ttl = if rng.random_bool(0.3) { Ttl::Decrement } else { Ttl::AlreadyDecremented };
        settings.pass_own = rng.random_bool(0.3);
        settings.icmp_errors = rng.random_bool(0.9);
        settings.idents.preserve = rng.random_bool(0.2);
        if rng.random_bool(0.6) {
            // Mappings end, idents rest and replies are late in the middle of the traffic.
            settings.mapping_idle = Duration::from_millis(rng.random_range(100..3000));
            settings.echo_timeout = Duration::from_millis(rng.random_range(30..1500));
            settings.hold_down = rng
                .random_bool(0.3)
                .then(|| settings.echo_timeout * 2 + Duration::from_millis(rng.random_range(1100..3000)));
        }
        let few_idents = rng.random_bool(0.3);
        if few_idents {
            // What is left: a few for each shard, and so for each worker.
            settings.idents.reserved = vec![0..=0x1000, 0x1000 + 64 * rng.random_range(1..4_u16)..=u16::MAX];
        }
        let limits = rng.random_bool(0.3).then(|| Limits {
            packets_per_second: rng.random_range(5..500),
            packets_burst: rng.random_range(5..100),
            mappings_per_second: rng.random_range(1..50),
            mappings_burst: rng.random_range(1..50),
            mappings: rng.random_range(1..12),
            ..ORDINARY
        });
        settings.allowance = limits.map_or(Allowance::UNLIMITED, Allowance::from);
        let faults =
            if rng.random_bool(0.2) { [Faults::default(), Faults::default()] } else { [faults(rng), faults(rng)] };
        let [inside, outside] = faults;
        let hosts = rng.random_range(2..if few_idents { 60 } else { 16 });
        Game {
            seed,
            limits,
            fall_through: *[FallThrough::Reinject, FallThrough::Drop].choose(rng).expect("two"),
            clients: (0..hosts).map(|host| Ipv4Addr::new(10, 66, 0, 2 + host)).collect(),
            remotes: (0..rng.random_range(1..5)).map(|host| Ipv4Addr::new(198, 18, 1, 2 + host)).collect(),
            idents: if few_idents || limits.is_some() { rng.random_range(2..40) } else { rng.random_range(1..4) },
            repeats: rng.random_bool(0.5),
            inside,
            outside,
            hostile: rng.random_bool(0.7),
            trouble: rng.random_bool(0.7),
            round: Duration::from_millis(rng.random_range(2..40)),
            fragments: true,
            bad_fragments: false,
            few_idents,
            settings,
        }
    }

    /// By how much later than it is waited for a reply may be matched: stamps are the coarser, the smaller the table is.
    pub(super) fn late_at_most(&self) -> Duration {
        self.settings.echo_timeout / (4 << (self.settings.echo_words_log2 - 14))
    }

    /// What the model must know. The times are those that are promised, not those that the gateway has worked out.
    pub(super) fn rules(&self) -> Rules {
        let settings = &self.settings;
        // An ident rests for a second more than its echoes can be matched.
        let rest = settings.echo_timeout + Duration::from_secs(1);
        Rules {
            gateways: settings.addresses.clone(),
            echo_timeout: settings.echo_timeout,
            echo_life: settings.echo_timeout + self.late_at_most(),
            idle: settings.mapping_idle,
            hold_down: settings.hold_down.unwrap_or(rest),
            limits: self.limits,
            icmp_errors: settings.icmp_errors,
            hops: u8::from(settings.ttl == Ttl::Decrement),
            inside_mtu: settings.inside_mtu,
            outside_mtu: self.outside.mtu,
            ample: !self.few_idents && !settings.idents.preserve,
            reinjects: self.fall_through == FallThrough::Reinject,
            pass_own: settings.pass_own,
            damage: self.inside.corruption > 0.0,
            patient: !self.few_idents && self.inside.corruption == 0.0 && self.limits.is_none(),
            astray: self.trouble,
            is_client,
            is_denied,
        }
    }
}

fn faults(rng: &mut StdRng) -> Faults {
    let mut often = |most: f64| if rng.random_bool(0.6) { rng.random_range(0.0..most) } else { 0.0 };
    let (loss, duplication, reordering) = (often(0.2), often(0.2), often(0.3));
    let (corruption, send_error) = (often(0.1), often(0.1));
    Faults {
        loss,
        duplication,
        reordering,
        corruption,
        delay: Duration::from_millis(rng.random_range(0..30)),
        jitter: Duration::from_millis(rng.random_range(0..60)),
        send_error,
        // Every one that there is.
        send_errnos: (1..=133).collect(),
        mtu: rng.random_bool(0.3).then(|| rng.random_range(300..1500)),
    }
}
