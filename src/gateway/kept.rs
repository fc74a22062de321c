//! What of a gateway outlives the process that moves its packets: everything that takes privileges to make.
//!
//! Device, sockets and tables; the watch over the addresses, which are in the tables and whose sockets follow them; and the
//! diversion. All of it is looked after here while packets are moved elsewhere.
//!
//! It can be left to another process that keeps it from then on ([`Left`]): descriptors under names, and a note of what they are
//! for. Who takes it up compares the note with what it wants. Sockets and queues fit together or not at all; tables are
//! judged by themselves ([`crate::state`]), and so is the nftables table.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::holding::{Holding, Senders, steer};
use super::{act_on, divert_settings, examine, resolved, settings};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::addresses::{AddressWatch, Follow};
use crate::host::divert::{Divert, Ownership};
use crate::host::netlink::Netlink;
use crate::state::{Place, Shape, State};
use crate::table::Storage;
use crate::table::addresses::Addresses;

/// The tables' memory, by the name under which it is left.
pub const TABLES: &str = "tables";
/// The pipe to the nft that owns the diversion's table.
pub const COMMANDS: &str = "nft-commands";
/// The pipe from it.
pub const COMPLAINTS: &str = "nft-complaints";

/// How long a device that is not taken up may take to go, and how often that is looked at.
const GONE_MAX: Duration = Duration::from_secs(2);
const GONE_PAUSE: Duration = Duration::from_millis(10);

/// A gateway's set-up, undone when dropped.
#[derive(Debug)]
pub struct Kept {
    config: Config,
    follow_default: bool,
    holding: Holding,
    state: State,
    /// The names of descriptors that are others than those that were left under them, or that there are no more.
    outdated: Vec<String>,
    // Dropped in this order: nothing follows what is being undone.
    addresses: Option<AddressWatch>,
    divert: Option<Divert>,
    /// What keeps the diversion's table in force, as last told.
    ownership: Arc<Mutex<Option<Ownership>>>,
    /// What was left, for the diversion.
    left: Option<Ownership>,
}

/// Other outside addresses than before, to be settled on while no packets are moved ([`Kept::settle`]).
#[derive(Debug)]
pub struct Addressed {
    places: Vec<Place>,
    senders: Senders,
    /// The tables, with room for them.
    state: State,
}

/// What one process leaves to another.
#[derive(Debug)]
pub struct Left {
    /// What it is for.
    pub note: Value,
    /// By name.
    pub descriptors: HashMap<String, OwnedFd>,
}

impl Kept {
    /// Sets up everything but the diversion. On an error nothing is left behind.
    pub fn open(config: &Config) -> Result<Kept, SetupError> {
        Kept::take_up(config, None, || {})
    }

    /// As `open`, with what another process has left, as far as it fits; the rest is made anew, with a warning that says why.
    /// `refuse` is called before, if none of it does: for whoever else has the descriptors.
    pub fn take_up(config: &Config, left: Option<Left>, refuse: impl FnOnce()) -> Result<Kept, SetupError> {
        let follow_default = config.outside.addresses.is_empty();
        let mut config = resolved(config)?;
        let left = left.and_then(|left| left.fitting(&config, follow_default, refuse));
        examine(&config, left.is_some())?;
        let mut outdated = Vec::new();
        let (holding, state, ownership) = match left {
            Some((mut holding, tables, ownership)) => {
                let (state, anew) = taken_up(tables, &config, follow_default, &holding)?;
                // Where the address is followed, it may have become another one meanwhile.
                let senders = holding.senders_for(&state.addresses())?;
                outdated.extend(anew.then(|| TABLES.to_owned()).into_iter().chain(senders.renewed).chain(senders.gone));
                holding.set_senders(senders.sockets);
                (holding, state, ownership)
            }
            None => {
                let state = State::create(&shape(&config), &config.outside.addresses)?;
                let holding = Holding::open(&config, state.tables().keys.fragments)?;
                // Or there would be two of one name.
                outdated.push(TABLES.to_owned());
                (holding, state, None)
            }
        };
        if follow_default {
            config.outside.addresses = state.addresses();
        }
        let mut kept = Kept {
            config,
            follow_default,
            holding,
            state,
            outdated,
            addresses: None,
            divert: None,
            ownership: Arc::default(),
            left: ownership,
        };
        kept.watch()?;
        Ok(kept)
    }

    /// Follows what becomes of the addresses, from now on.
    fn watch(&mut self) -> Result<(), SetupError> {
        let (send, tables) = (self.holding.senders()?, self.state.tables());
        let addresses = Addresses::over(Storage::Lent(tables.addresses), Storage::Lent(tables.marks));
        let clients = self.config.inside.clients.clone();
        let follow = if self.follow_default { Follow::Except(clients) } else { Follow::No };
        let act = move |change| act_on(&addresses, &send, change);
        self.addresses = Some(AddressWatch::start(self.state.addresses(), follow, act)?);
        Ok(())
    }

    /// Leads clients' echo requests here, if that was asked for: once somebody serves them. `tell` is told, now and later, when
    /// there is another nftables table: the new note, and the descriptors that have changed.
    pub fn divert(
        &mut self,
        tell: impl Fn(&Value, &[(&str, BorrowedFd<'_>)]) + Send + 'static,
    ) -> Result<(), SetupError> {
        if self.config.inside.divert.is_empty() || self.divert.is_some() {
            return Ok(());
        }
        let (note, known) = (self.note(), Arc::clone(&self.ownership));
        let news = move |ownership: Ownership| {
            let descriptors = [(COMMANDS, ownership.commands.as_fd()), (COMPLAINTS, ownership.complaints.as_fd())];
            tell(&noted(&note, Some(&ownership)), &descriptors);
            *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(ownership);
        };
        self.divert = Some(Divert::take_up(&divert_settings(&self.config), self.left.take(), news)?);
        Ok(())
    }

    /// What a changed configuration comes to here, if the host allows it.
    pub fn accepts(&self, config: Config) -> Result<Config, SetupError> {
        let mut config = config;
        if config.outside.addresses.is_empty() != self.follow_default {
            let what =
                "outside.addresses: whether they are named or the default route's cannot change while the gateway runs";
            return Err(SetupError::new(what).remedy("leave it as before, or start the gateway again"));
        }
        if self.follow_default {
            config.outside.addresses = self.state.addresses();
        }
        config.validate()?;
        examine(&config, true)?;
        Ok(config)
    }

    /// Makes everything ready for the addresses of a configuration ([`Kept::accepts`]); none if they are what they are. Nothing
    /// changes yet. The error: one of them is not to be had, or they are too many with those that drain.
    pub fn address(&self, config: &Config) -> Result<Option<Addressed>, SetupError> {
        let places =
            if self.follow_default { self.state.places() } else { self.state.arranged(&config.outside.addresses)? };
        if places == self.state.places() {
            return Ok(None);
        }
        let addresses: Vec<Ipv4Addr> = places.iter().map(|place| place.address).collect();
        let senders = self.holding.senders_for(&addresses)?;
        let state = self.state.grown(places.len())?;
        Ok(Some(Addressed { places, senders, state }))
    }

    /// Lets these be the addresses. No process may use the tables meanwhile.
    pub fn settle(&mut self, addressed: Addressed) -> Result<(), SetupError> {
        let Addressed { places, senders, state } = addressed;
        drop(self.addresses.take());
        self.state = state.settle(&places)?;
        self.outdated = senders.renewed.into_iter().chain(senders.gone).collect();
        self.holding.set_senders(senders.sockets);
        self.watch()?;
        for place in places.iter().filter(|place| place.drains) {
            tracing::info!(address = %place.address, "drains: its mappings go on, and no new ones are made on it");
        }
        Ok(())
    }

    /// Follows a changed configuration ([`Kept::accepts`]). The table that leads requests here is replaced in one transaction, so
    /// that clients of both configurations notice nothing. `tell`: as of `divert`.
    pub fn change(
        &mut self,
        config: Config,
        tell: impl Fn(&Value, &[(&str, BorrowedFd<'_>)]) + Send + 'static,
    ) -> Result<(), SetupError> {
        // What has failed once is not in force, whatever was asked for then.
        let in_force = self.divert.is_some() != config.inside.divert.is_empty();
        let same = in_force && divert_settings(&config) == divert_settings(&self.config);
        self.config = config;
        if same {
            return Ok(());
        }
        if self.config.inside.divert.is_empty() {
            return self.undivert();
        }
        if let Some(divert) = self.divert.take() {
            divert.leave()?;
            self.left = self.ownership.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        self.divert(tell)
    }

    /// Leads them here no longer: they take the kernel's path.
    pub fn undivert(&mut self) -> Result<(), SetupError> {
        self.divert.take().map_or(Ok(()), Divert::remove)
    }

    /// Lets go of all of it, and leaves it in force for whoever gets this.
    pub fn leave(mut self) -> Result<Left, SetupError> {
        // Nothing is to change any more.
        drop(self.addresses.take());
        self.divert.take().map_or(Ok(()), Divert::leave)?;
        let ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner).take();
        let note = noted(&self.note(), ownership.as_ref());
        let failed =
            |cause: io::Error| SetupError::caused("leaving the gateway's descriptors to another process", cause);
        let mut descriptors = HashMap::new();
        for (name, descriptor) in self.descriptors() {
            descriptors.insert(name, descriptor.try_clone_to_owned().map_err(failed)?);
        }
        if let Some(Ownership { commands, complaints, .. }) = ownership {
            descriptors.extend([(COMMANDS.to_owned(), commands), (COMPLAINTS.to_owned(), complaints)]);
        }
        Ok(Left { note, descriptors })
    }

    /// What the packets' part needs, each under its name.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut named = self.holding.descriptors();
        named.push((TABLES.to_owned(), self.state.as_fd()));
        named
    }

    /// What the descriptors are for.
    pub fn note(&self) -> Value {
        let note = json!({
            "device": self.config.inside.device,
            "workers": self.holding.workers(),
            "icmp_errors": self.config.echo.icmp_errors,
            "follow_default": self.follow_default,
        });
        let ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
        noted(&note, ownership.as_ref())
    }

    /// The configuration, with what only the host could tell.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tables.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The names of descriptors that are others than those that were there under these names before, or that there are no more.
    pub fn outdated(&self) -> &[String] {
        &self.outdated
    }

    /// Whether the device is still there: without it nobody can go on.
    pub fn is_attached(&self) -> bool {
        self.holding.is_attached()
    }
}

fn noted(note: &Value, ownership: Option<&Ownership>) -> Value {
    let mut note = note.clone();
    if let Some(ownership) = ownership {
        note["stamp"] = json!(ownership.stamp);
        note["ruleset"] = json!(ownership.ruleset);
    }
    note
}

impl Left {
    /// The parts, if queues and sockets are those that this configuration takes. If not, all of it is closed.
    fn fitting(
        mut self,
        config: &Config,
        follow_default: bool,
        refuse: impl FnOnce(),
    ) -> Option<(Holding, Option<OwnedFd>, Option<Ownership>)> {
        let ownership = self.ownership();
        let why = match self.differs(config, follow_default) {
            Some(name) => format!("{name} is another one"),
            None => {
                let find = |name: &str| self.descriptors.remove(name);
                match Holding::adopt(config.run.workers as usize, find) {
                    Ok(holding) if holding.is_attached() => {
                        return Some((holding, self.descriptors.remove(TABLES), ownership));
                    }
                    Ok(_) => "the device is gone".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
        };
        tracing::warn!(%why, "what another gateway has left is not taken up: it begins anew");
        refuse();
        if let Some(ownership) = ownership {
            ownership.end();
        }
        drop(self.descriptors);
        await_no(&config.inside.device);
        None
    }

    fn ownership(&mut self) -> Option<Ownership> {
        let text = |name: &str| self.note.get(name).and_then(Value::as_str).map(str::to_owned);
        let (stamp, ruleset) = (text("stamp")?, text("ruleset")?);
        let commands = self.descriptors.remove(COMMANDS)?;
        Some(Ownership { stamp, ruleset, commands, complaints: self.descriptors.remove(COMPLAINTS)? })
    }

    /// What of the configuration is another than it was.
    fn differs(&self, config: &Config, follow_default: bool) -> Option<&'static str> {
        let wanted = [
            ("inside.device", "device", json!(config.inside.device)),
            ("run.workers", "workers", json!(config.run.workers)),
            ("echo.icmp_errors", "icmp_errors", json!(config.echo.icmp_errors)),
            ("the way to the outside addresses", "follow_default", json!(follow_default)),
        ];
        let other = |(_, name, wanted): &(_, &str, Value)| self.note.get(*name) != Some(wanted);
        wanted.into_iter().find(other).map(|(named, ..)| named)
    }
}

/// Waits a moment until the device is gone: whoever has been refused closes its descriptors in its own time.
fn await_no(device: &str) {
    let Ok(mut netlink) = Netlink::open() else { return };
    let give_up = Instant::now() + GONE_MAX;
    while matches!(netlink.link_index(device), Ok(Some(_))) && Instant::now() < give_up {
        thread::sleep(GONE_PAUSE);
    }
}

/// The tables that were left, for the addresses of this configuration; or empty ones in their place, and whether it is these.
fn taken_up(
    tables: Option<OwnedFd>,
    config: &Config,
    follow_default: bool,
    holding: &Holding,
) -> Result<(State, bool), SetupError> {
    let settled = |state: State| {
        let places = if follow_default { state.places() } else { state.arranged(&config.outside.addresses)? };
        state.grown(places.len())?.settle(&places)
    };
    let why = match tables.map(|tables| State::open(tables, &shape(config))) {
        Some(Ok(state)) => match settled(state) {
            Ok(state) => return Ok((state, false)),
            Err(error) => error.to_string(),
        },
        Some(Err(foreign)) => foreign.to_string(),
        None => "they were not handed over".to_owned(),
    };
    tracing::warn!(%why, "the tables are not taken up: every client gets another ident");
    let state = State::create(&shape(config), &config.outside.addresses)?;
    steer(holding, state.tables().keys.fragments);
    Ok((state, true))
}

/// What the tables of a gateway with this configuration are made for.
pub(super) fn shape(config: &Config) -> Shape {
    let settings = settings(config);
    Shape { echo_words_log2: settings.echo_words_log2, echo_timeout: settings.echo_timeout }
}
