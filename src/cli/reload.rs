//! `echogate reload`: a gateway that runs reads its file again.

use std::process::ExitCode;

use super::reach::Kept;
use crate::error::SetupError;
use crate::keeper;

/// Have a running gateway read its configuration file again
///
/// As SIGHUP, with an answer. What is in the file then holds, and no ping is lost: another process goes on moving packets, over the
/// same device, sockets and mappings. A file that is wrong is refused with the line and the reason, and one that changes what a running
/// gateway cannot change (those that the sample configuration calls read at a start only) with the keys; then the configuration stays
/// as it was. Flags of `run` win over the file, as ever. Prints what is served.
///
/// Exit codes: 0 the file is in force; 2 it is not, or no gateway runs on this device.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    gateway: Kept,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    arguments.gateway.order(keeper::reload)
}
