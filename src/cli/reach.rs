//! Which of the running gateways a command talks to.

use std::path::PathBuf;
use std::process::ExitCode;

use super::print;
use crate::config::Config;
use crate::control::{self, Client};
use crate::error::SetupError;
use crate::keeper;

/// The gateway to ask.
#[derive(clap::Args)]
pub(super) struct Which {
    /// Path of its control socket [default: the only one in $RUNTIME_DIRECTORY, else in /run/echogate]
    #[arg(long, value_name = "PATH", conflicts_with = "device")]
    control: Option<PathBuf>,

    /// Name of its TUN device, where several gateways run
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

impl Which {
    pub(super) fn connect(&self) -> Result<Client, SetupError> {
        Client::connect(&self.path()?)
    }

    fn path(&self) -> Result<PathBuf, SetupError> {
        if let Some(path) = &self.control {
            return Ok(path.clone());
        }
        if let Some(device) = &self.device {
            return Ok(control::path_of_device(device));
        }
        match control::gateways().as_slice() {
            [one] => Ok(one.clone()),
            [] => {
                Err(SetupError::new("no gateway is running, or none that has a control socket where one is looked for")
                    .remedy("start one (echogate run), or give --control its path"))
            }
            several => {
                let names: Vec<_> = several.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
                Err(SetupError::new("several gateways are running")
                    .remedy(format!("give --device one of {}", names.join(", "))))
            }
        }
    }
}

/// The gateway to give an order to: its keeper answers, by its device.
#[derive(clap::Args)]
pub(super) struct Kept {
    /// The device of the gateway [default: that of the only one that runs in this network namespace]
    #[arg(long)]
    device: Option<String>,
}

impl Kept {
    /// Prints what is served after the order.
    pub(super) fn order(&self, order: impl FnOnce(&str) -> Result<String, SetupError>) -> Result<ExitCode, SetupError> {
        print(&format!("{}\n", order(&self.device()?)?));
        Ok(ExitCode::SUCCESS)
    }

    /// Not simply the usual one: the unit's ExecReload names none, whatever the file says.
    fn device(&self) -> Result<String, SetupError> {
        if let Some(device) = &self.device {
            return Ok(device.clone());
        }
        match keeper::running().as_slice() {
            [one] => Ok(one.clone()),
            // Whoever asks that one says that there is none.
            [] => Ok(Config::default().inside.device),
            several => Err(SetupError::new("several gateways are running")
                .remedy(format!("give --device one of {}", several.join(", ")))),
        }
    }
}
