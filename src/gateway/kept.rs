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
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::holding::{Holding, steer};
use super::{act_on, divert_settings, examine, resolved, settings};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::addresses::{AddressWatch, Follow};
use crate::host::divert::{Divert, Ownership};
use crate::host::netlink::Netlink;
use crate::state::{Shape, State};
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
    anew: bool,
    // Dropped in this order: nothing follows what is being undone.
    addresses: Option<AddressWatch>,
    divert: Option<Divert>,
    /// What keeps the diversion's table in force, as last told.
    ownership: Arc<Mutex<Option<Ownership>>>,
    /// What was left, for the diversion.
    left: Option<Ownership>,
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
        let (holding, (state, anew), ownership) = match left {
            Some((holding, tables, ownership)) => {
                let state = taken_up(tables, &mut config, &holding)?;
                (holding, state, ownership)
            }
            None => {
                let state = State::create(&shape(&config))?;
                let holding = Holding::open(&config, state.tables().keys.fragments)?;
                (holding, (state, true), None)
            }
        };
        let send = holding.senders()?;
        let tables = state.tables();
        let addresses = Addresses::over(Storage::Lent(tables.addresses), Storage::Lent(tables.lost));
        let follow = if follow_default { Follow::Except(config.inside.clients.clone()) } else { Follow::No };
        let act = move |change| act_on(&addresses, &send, change);
        let watch = AddressWatch::start(state.addresses(), follow, act)?;
        Ok(Kept {
            config,
            follow_default,
            holding,
            state,
            anew,
            addresses: Some(watch),
            divert: None,
            ownership: Arc::default(),
            left: ownership,
        })
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
        config.outside.addresses = self.state.addresses();
        config.validate()?;
        examine(&config, true)?;
        Ok(config)
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
        let addresses: Vec<String> = self.state.addresses().iter().map(ToString::to_string).collect();
        json!({
            "device": self.config.inside.device,
            "workers": self.holding.workers(),
            "icmp_errors": self.config.echo.icmp_errors,
            "addresses": addresses,
            "follow_default": self.follow_default,
        })
    }

    /// The configuration, with what only the host could tell.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tables.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the tables are new ones.
    pub fn begins_anew(&self) -> bool {
        self.anew
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
                let addresses = config.outside.addresses.len();
                let find = |name: &str| self.descriptors.remove(name);
                match Holding::adopt(config.run.workers as usize, addresses, find) {
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
        let addresses: Vec<String> = config.outside.addresses.iter().map(ToString::to_string).collect();
        let wanted = [
            ("inside.device", "device", json!(config.inside.device)),
            ("run.workers", "workers", json!(config.run.workers)),
            ("echo.icmp_errors", "icmp_errors", json!(config.echo.icmp_errors)),
            ("the way to the outside addresses", "follow_default", json!(follow_default)),
            ("the list of outside addresses", "addresses", json!(addresses)),
        ];
        // One that is followed changes by itself.
        let followed = |name: &str| follow_default && name == "addresses";
        let other = |(_, name, wanted): &(_, &str, Value)| self.note.get(*name) != Some(wanted) && !followed(name);
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

/// The tables that were left, or empty ones in their place, and whether it is these.
fn taken_up(tables: Option<OwnedFd>, config: &mut Config, holding: &Holding) -> Result<(State, bool), SetupError> {
    let opened = tables.map(|tables| State::open(tables, &shape(config)));
    let why = match opened {
        Some(Ok(state)) => {
            config.outside.addresses = state.addresses();
            return Ok((state, false));
        }
        Some(Err(foreign)) => foreign.to_string(),
        None => "they were not handed over".to_owned(),
    };
    tracing::warn!(%why, "the tables are not taken up: every client gets another ident");
    let state = State::create(&shape(config))?;
    steer(holding, state.tables().keys.fragments);
    Ok((state, true))
}

/// What the tables of a gateway with this configuration are made for. It names its addresses.
pub(super) fn shape(config: &Config) -> Shape {
    let settings = settings(config);
    Shape {
        addresses: settings.addresses,
        echo_words_log2: settings.echo_words_log2,
        echo_timeout: settings.echo_timeout,
    }
}
