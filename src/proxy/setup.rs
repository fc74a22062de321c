//! What a proxy is made of: tables of its own, or tables that another one has left.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::{BATCH_TIME_MAX, Owner, Proxy, Settings};
use crate::clock::Instant;
use crate::error::SetupError;
use crate::policy::Policy;
use crate::policy::remotes::Remotes;
use crate::table::addresses::Addresses;
use crate::table::atomic::AtomicU32;
use crate::table::echoes::{self, Echoes, Stock};
use crate::table::fragments::Fragments;
use crate::table::identifications::Identifications;
use crate::table::idents::{self, Idents, Lifetimes, Mappings, Recovered};
use crate::table::slots::{Slot, Slots};
use crate::table::{SHARDS, Storage};

/// Tables that outlive the proxy, as another one may have left them.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// 65,536 for each address.
    pub slots: &'static [Slot],
    /// As many as [`echoes::buckets`] tells for the setting.
    pub buckets: &'static [echoes::Bucket],
    /// The gateway's addresses by their numbers, and by bit which of them are lost and which drain: they are taken from here.
    pub addresses: &'static [AtomicU32],
    /// [`MARKS`](crate::table::addresses::MARKS) words.
    pub marks: &'static [AtomicU32],
    /// What they have been used with.
    pub keys: Keys,
}

/// What nobody outside may know, and what cannot change as long as the tables are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// Scrambles the keys of outstanding echoes.
    pub echoes: echoes::RoundKeys,
    /// Seals the slots.
    pub seal: u64,
    /// See [`Proxy::fragment_seed`].
    pub fragments: u64,
}

impl Keys {
    /// New ones, from the operating system.
    pub fn draw() -> Keys {
        let mut rng = idents::generator(None);
        Keys { echoes: echoes::round_keys(&mut rng), seal: rng.random(), fragments: rng.random() }
    }
}

/// What a proxy has found in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// In the slots.
    pub slots: Recovered,
    /// Echoes that are outstanding.
    pub outstanding: u64,
    /// Echoes that nobody had answered in time.
    pub unanswered: u64,
}

impl Proxy {
    /// Sizes and allocates the tables. The error names the setting that is impossible.
    pub fn new(settings: &Settings) -> Result<Arc<Proxy>, SetupError> {
        settings.check()?;
        let mut rng = idents::generator(settings.seed);
        let echoes = Echoes::new(settings.echo_words_log2, settings.echo_timeout, &mut rng);
        Ok(Foundation::new(settings, echoes, None, rng)?.finish(None).0)
    }

    /// A proxy over tables that are there, and goes on with what is in them. They were in use until about `used`, by the clock
    /// of `now`; `settings` may differ from those of then in all but the number of addresses, the echo timeout and the
    /// number of words for echoes. Nobody else may use the tables any more.
    pub fn over(
        settings: &Settings,
        tables: Tables,
        used: Instant,
        now: Instant,
    ) -> Result<(Arc<Proxy>, Found), SetupError> {
        Ok(Foundation::over(settings, tables)?.take_up(used, now))
    }
}

/// All of a proxy that does not follow from what is in its tables: it can be made while another one uses them.
#[derive(Debug)]
pub struct Foundation {
    settings: Settings,
    /// None if the tables are its own, and empty.
    tables: Option<Tables>,
    echoes: Echoes,
    lifetimes: Lifetimes,
    policy: Policy,
    mappings: Mappings,
    outfits: Vec<Outfit>,
    rng: StdRng,
}

/// What an owner has besides its idents.
#[derive(Debug)]
struct Outfit {
    shards: Vec<usize>,
    rng: StdRng,
    fragments: Fragments,
    identifications: Identifications,
}

impl Foundation {
    /// For tables that are there. The rest is as of [`Proxy::over`].
    pub fn over(settings: &Settings, tables: Tables) -> Result<Foundation, SetupError> {
        settings.check()?;
        let echoes = Echoes::over(tables.buckets, settings.echo_timeout, tables.keys.echoes);
        let rng = idents::generator(settings.seed);
        Foundation::new(settings, echoes, Some(tables), rng)
    }

    fn new(
        settings: &Settings,
        echoes: Echoes,
        tables: Option<Tables>,
        mut rng: StdRng,
    ) -> Result<Foundation, SetupError> {
        // No echo may outlive its identity, or its reply would go to whoever has the ident then.
        let hold_down_min = echoes.hold_down_min(BATCH_TIME_MAX);
        let hold_down = settings.hold_down.unwrap_or(hold_down_min);
        if hold_down < hold_down_min {
            return Err(SetupError::new(format!(
                "a hold-down of {hold_down:?} is shorter than an echo can stay outstanding ({hold_down_min:?})"
            ))
            .remedy(format!("leave mapping.hold_down out, or set it to {} s", hold_down_min.as_secs() + 1)));
        }
        let lifetimes = Lifetimes { idle: settings.mapping_idle, hold_down };
        let remotes = Remotes::new(&settings.denied, &settings.allowed);
        let policy = Policy::new(&settings.clients, settings.allowance, &settings.overrides, remotes);
        let mappings = match tables {
            None => Mappings::new(&settings.addresses, policy.client_addresses()),
            Some(tables) => Mappings::over(
                Slots::over(tables.slots, tables.keys.seal),
                Addresses::over(Storage::Lent(tables.addresses), Storage::Lent(tables.marks)),
                policy.client_addresses(),
            ),
        };
        let outfit = |worker| Outfit {
            shards: (0..SHARDS).filter(|shard| shard % settings.workers == worker).collect(),
            rng: idents::split(&mut rng),
            fragments: Fragments::new(policy.client_addresses()),
            identifications: Identifications::new(worker, settings.workers, &mut rng),
        };
        let outfits = (0..settings.workers).map(outfit).collect();
        Ok(Foundation { settings: settings.clone(), tables, echoes, lifetimes, policy, mappings, outfits, rng })
    }

    /// The proxy. What its tables were used by until about `used` is over.
    pub fn take_up(self, used: Instant, now: Instant) -> (Arc<Proxy>, Found) {
        // Nobody is waited for any more, and by their stamps, which wrap, old ones would in the end look young.
        if now.since(used) >= self.settings.echo_timeout {
            self.echoes.forget();
        }
        let Stock { outstanding, unanswered } = self.echoes.take_stock(now);
        let (proxy, slots) = self.finish(Some(now));
        (proxy, Found { slots, outstanding, unanswered })
    }

    /// `taken_up`: when the tables were, if they are not empty.
    fn finish(self, taken_up: Option<Instant>) -> (Arc<Proxy>, Recovered) {
        let Foundation { settings, tables, echoes, lifetimes, policy, mappings, outfits, mut rng } = self;
        let line_of = |client| policy.is_inside(client).then(|| mappings.clients.index(policy.place(client)));
        let mut recovered = Recovered::default();
        let owners = outfits
            .into_iter()
            .enumerate()
            .map(|(worker, Outfit { shards, rng, fragments, identifications })| {
                let (idents, found) = match taken_up {
                    None => {
                        let addresses = settings.addresses.len();
                        (Idents::new(addresses, &shards, &settings.idents, lifetimes, rng), Recovered::default())
                    }
                    Some(now) => {
                        let policy = &settings.idents;
                        Idents::recover(&mappings, &shards, policy, lifetimes, rng, now, line_of)
                    }
                };
                recovered += found;
                idents.announce(&mappings.addresses);
                let mut owner = Owner::new(worker, fragments, identifications, idents, shards);
                if let Some(now) = taken_up {
                    (owner.swept, owner.unswept) = (now, usize::MAX);
                }
                Some(owner)
            })
            .collect();
        let proxy = Proxy {
            mappings,
            policy,
            inside_mtu: settings.inside_mtu,
            icmp_errors: settings.icmp_errors,
            quoted_checksum: settings.quoted_checksum,
            ttl: settings.ttl,
            pass_own: settings.pass_own,
            workers: settings.workers,
            preserves_idents: settings.idents.preserve,
            idents_per_address: (0..=u16::MAX).filter(|ident| !settings.idents.is_reserved(*ident)).count(),
            fragment_seed: tables.map_or_else(|| rng.random(), |tables| tables.keys.fragments),
            echoes,
            lifetimes,
            echo_timeout: settings.echo_timeout,
            receivers: AtomicUsize::new(0),
            owners: Mutex::new(owners),
        };
        (Arc::new(proxy), recovered)
    }
}
