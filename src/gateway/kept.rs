//! What of a gateway outlives the process that moves its packets: everything that takes privileges to make.
//!
//! Device, sockets and tables; the watch over the addresses, which are in the tables and whose sockets follow them; and the
//! diversion. All of it is looked after here while packets are moved elsewhere.

use super::holding::Holding;
use super::{act_on, divert_settings, examine, resolved, settings};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::addresses::{AddressWatch, Follow};
use crate::host::divert::Divert;
use crate::state::{Shape, State};
use crate::table::Storage;
use crate::table::addresses::Addresses;

/// A gateway's set-up, undone when dropped.
#[derive(Debug)]
pub struct Kept {
    config: Config,
    holding: Holding,
    state: State,
    // Dropped in this order: nothing follows what is being undone.
    _addresses: AddressWatch,
    divert: Option<Divert>,
}

impl Kept {
    /// Sets up everything but the diversion. On an error nothing is left behind.
    pub fn open(config: &Config) -> Result<Kept, SetupError> {
        examine(config)?;
        let follow_default = config.outside.addresses.is_empty();
        let config = resolved(config)?;
        let state = State::create(&shape(&config))?;
        let holding = Holding::open(&config, state.tables().keys.fragments)?;
        let send = holding.senders()?;
        let tables = state.tables();
        let addresses = Addresses::over(Storage::Lent(tables.addresses), Storage::Lent(tables.lost));
        let follow = if follow_default { Follow::Except(config.inside.clients.clone()) } else { Follow::No };
        let act = move |change| act_on(&addresses, &send, change);
        let watch = AddressWatch::start(config.outside.addresses.clone(), follow, act)?;
        Ok(Kept { config, holding, state, _addresses: watch, divert: None })
    }

    /// Leads clients' echo requests here, if that was asked for: once somebody serves them.
    pub fn divert(&mut self) -> Result<(), SetupError> {
        if !self.config.inside.divert.is_empty() && self.divert.is_none() {
            self.divert = Some(Divert::install(&divert_settings(&self.config))?);
        }
        Ok(())
    }

    /// Leads them here no longer: they take the kernel's path.
    pub fn undivert(&mut self) -> Result<(), SetupError> {
        self.divert.take().map_or(Ok(()), Divert::remove)
    }

    /// The configuration, with what only the host could tell.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The descriptors.
    pub fn holding(&self) -> &Holding {
        &self.holding
    }

    /// The tables.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the device is still there: without it nobody can go on.
    pub fn is_attached(&self) -> bool {
        self.holding.is_attached()
    }
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
