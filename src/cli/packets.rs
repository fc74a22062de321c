//! `echogate packets`: what `echogate run` starts to move packets. Nobody types it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};

use super::{print, totals};
use crate::error::SetupError;
use crate::host::sandbox;
use crate::keeper::{self, Served};
use crate::sys::process;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Keep the privileges of who started it
    #[arg(long)]
    no_sandbox: bool,
}

/// Before anything else, and before any thread: no privileges.
pub(super) fn begin(arguments: &Arguments) -> Result<(), SetupError> {
    // A kernel that has none refuses, and whoever wants them then does without.
    let _ = process::prepare_barriers();
    // What the kernel's Landlock lacks is lacking on every start: no reason to say so on each.
    if arguments.no_sandbox { Ok(()) } else { sandbox::give_up_privileges().map(drop) }
}

pub(super) fn run(log_lines_lost: Arc<AtomicU64>) -> Result<ExitCode, SetupError> {
    // Whoever sends every process of a gateway a signal means the keeper, which tells this one what is to be done.
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|cause| SetupError::caused("signals cannot be watched", cause))?;
    }
    Ok(match keeper::serve(log_lines_lost) {
        Served::Stopped(snapshot) => {
            print(&totals::table(&snapshot));
            ExitCode::SUCCESS
        }
        Served::Left => ExitCode::SUCCESS,
        Served::Failed => ExitCode::FAILURE,
    })
}
