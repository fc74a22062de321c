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
use crate::table::echoes::{self, Echoes};
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
        Proxy::with_echoes(settings, echoes, None, rng).map(|(proxy, _)| proxy)
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
        settings.check()?;
        let echoes = Echoes::over(tables.buckets, settings.echo_timeout, tables.keys.echoes);
        // Nobody is waited for any more, and by their stamps, which wrap, old ones would in the end look young.
        if now.since(used) >= settings.echo_timeout {
            echoes.forget();
        }
        let unanswered = (0..SHARDS).map(|shard| echoes.sweep(shard, 0, echoes.shard_buckets(), now)).sum();
        let outstanding = echoes.occupied() as u64;
        let rng = idents::generator(settings.seed);
        let (proxy, slots) = Proxy::with_echoes(settings, echoes, Some((tables, now)), rng)?;
        Ok((proxy, Found { slots, outstanding, unanswered }))
    }

    fn with_echoes(
        settings: &Settings,
        echoes: Echoes,
        tables: Option<(Tables, Instant)>,
        mut rng: StdRng,
    ) -> Result<(Arc<Proxy>, Recovered), SetupError> {
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
            Some((tables, _)) => Mappings::over(
                Slots::over(tables.slots, tables.keys.seal),
                Addresses::over(Storage::Lent(tables.addresses), Storage::Lent(tables.marks)),
                policy.client_addresses(),
            ),
        };
        let line_of = |client| policy.is_inside(client).then(|| mappings.clients.index(policy.place(client)));
        let mut recovered = Recovered::default();
        let owners = (0..settings.workers)
            .map(|worker| {
                let shards: Vec<usize> = (0..SHARDS).filter(|shard| shard % settings.workers == worker).collect();
                let rng_of_idents = idents::split(&mut rng);
                let addresses = settings.addresses.len();
                let (idents, found) = match tables {
                    None => {
                        let idents = Idents::new(addresses, &shards, &settings.idents, lifetimes, rng_of_idents);
                        (idents, Recovered::default())
                    }
                    Some((_, now)) => {
                        let policy = &settings.idents;
                        Idents::recover(&mappings, &shards, policy, lifetimes, rng_of_idents, now, line_of)
                    }
                };
                recovered += found;
                idents.announce(&mappings.addresses);
                let fragments = Fragments::new(policy.client_addresses());
                let identifications = Identifications::new(worker, settings.workers, &mut rng);
                let mut owner = Owner::new(worker, fragments, identifications, idents, shards);
                if let Some((_, now)) = tables {
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
            fragment_seed: tables.map_or_else(|| rng.random(), |(tables, _)| tables.keys.fragments),
            echoes,
            lifetimes,
            echo_timeout: settings.echo_timeout,
            receivers: AtomicUsize::new(0),
            owners: Mutex::new(owners),
        };
        Ok((Arc::new(proxy), recovered))
    }
}
