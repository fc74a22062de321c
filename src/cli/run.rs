//! `echogate run`: the gateway from set-up to totals.

use std::process::ExitCode;
use std::thread;

use crossbeam::channel::{self, Receiver};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::flags::{ConfigFlags, file_only_help};
use super::{complain, print};
use crate::error::SetupError;
use crate::keeper::Keeper;

/// Run the gateway until SIGINT or SIGTERM
///
/// Sets up the TUN device and the rules that lead clients' echo requests into it, says in one line what it serves, and
/// proxies. At SIGINT or SIGTERM it drains, undoes its set-up and prints its totals; a second signal ends it at once.
///
/// Exit codes: 0 it was told to stop; 1 it ended by itself, or its set-up could not be undone; 2 it could not start,
/// and has left nothing behind.
#[derive(clap::Args)]
#[command(after_long_help = file_only_help())]
pub(super) struct Arguments {
    #[command(flatten)]
    flags: ConfigFlags,
}

pub(super) fn run(arguments: &Arguments, log: Vec<String>) -> Result<ExitCode, SetupError> {
    let source = arguments.flags.source()?;
    // What is wrong with it is said before anything else.
    source.config()?;
    // Before the set-up: a signal during it is obeyed after it, and so finds something to undo.
    let stop = watch_signals()?;
    let mut keeper = Keeper::start(source, log)?;
    print(&format!("{}\n", keeper.description()));

    let fault = keeper.keep(&stop).map(|signal| tracing::info!("{} received: draining", name(signal))).err();
    let stopped = keeper.stop();
    let failures = [fault, stopped.err()];
    failures.iter().flatten().for_each(complain);
    Ok(if failures.iter().all(Option::is_none) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first signal that asks to stop arrives in the channel; the second ends the process as if nobody had caught it.
///
/// A thread that reads signals from a pipe, not a handler with flags: it can wake a channel, and nothing in it has to be
/// safe in signal context.
fn watch_signals() -> Result<Receiver<i32>, SetupError> {
    let refused = |cause| SetupError::caused("signals cannot be watched", cause);
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(refused)?;
    let (sender, receiver) = channel::bounded(1);
    let watch = move || {
        let mut arrivals = signals.forever();
        // Nobody receives any more when the process is ending by itself.
        arrivals.next().map(|first| sender.send(first));
        arrivals.next().map(emulate_default_handler);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(refused)?;
    Ok(receiver)
}

fn name(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("signal")
}
