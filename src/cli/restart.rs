//! `echogate restart`: another packet process for a gateway that runs.

use std::process::ExitCode;

use super::reach::Kept;
use crate::error::SetupError;
use crate::keeper;

/// Have a running gateway start another packet process
///
/// Device, sockets, diversion and every mapping stay; the packet process serves what it has read and ends, and another one
/// goes on. Prints what is served then. For another version of the program, or another configuration: run --takeover.
///
/// Exit codes: 0 another one serves; 2 no gateway runs on this device, or it could not.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    gateway: Kept,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    arguments.gateway.order(keeper::restart)
}
