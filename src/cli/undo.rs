//! `echogate undo`: what a killed gateway left, put away.

use std::process::ExitCode;

use super::flags::{ConfigFlags, file_only_help};
use crate::error::SetupError;
use crate::gateway;

/// Undo what a gateway has left that was killed
///
/// With the flags or the file of that gateway's `run`: removes the rule, the routes and, on a kernel before 5.12, the nftables table
/// that led echo requests into its device. Without them pings take the kernel's path; without the table they do so
/// anyway. A gateway that runs is left alone, and that is an error. The next `run` would take over what is there: this is for a
/// gateway that is not to come back, and for the unit's ExecStopPost.
///
/// Exit codes: 0 nothing is left; 2 it could not be undone, or a gateway runs.
#[derive(clap::Args)]
#[command(after_long_help = file_only_help())]
pub(super) struct Arguments {
    #[command(flatten)]
    flags: ConfigFlags,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    gateway::undo(&arguments.flags.resolve()?)?;
    Ok(ExitCode::SUCCESS)
}
