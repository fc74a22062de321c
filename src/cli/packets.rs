//! `echogate packets`: what `echogate run` starts to move packets. Nobody types it.

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::{print, totals};
use crate::error::SetupError;
use crate::keeper;

pub(super) fn run(log_lines_lost: Arc<AtomicU64>) -> Result<ExitCode, SetupError> {
    // A supervisor that asks every process of a gateway to end means the keeper, which tells this one when it is time.
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|cause| SetupError::caused("signals cannot be watched", cause))?;
    }
    // It was started by a name that says nothing (/proc/self/exe): this is what `top` shows. It is for people only.
    let _ = fs::write("/proc/self/comm", "echogate-packet");
    Ok(match keeper::serve(log_lines_lost) {
        Some(snapshot) => {
            print(&totals::table(&snapshot));
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    })
}
