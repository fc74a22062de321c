//! `echogate run`: the gateway from set-up to totals.

use std::mem;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::flags::{ConfigFlags, file_only_help};
use super::{complain, print};
use crate::error::SetupError;
use crate::keeper::{Asked, Keeper, LogControl, Options, Supervisor};

/// Run the gateway until SIGINT or SIGTERM
///
/// Sets up the TUN device and the rules that lead clients' echo requests into it, says in one line what it serves, and
/// proxies. At SIGINT or SIGTERM it drains, undoes its set-up and prints its totals; a second signal ends it at once.
/// At SIGUSR2 it ends and undoes nothing, for a supervisor that keeps its descriptors for the next start.
///
/// Exit codes: 0 it was told to stop; 1 it ended by itself, or its set-up could not be undone; 2 it could not start,
/// and has left nothing behind.
#[derive(clap::Args)]
#[command(after_long_help = file_only_help())]
pub(super) struct Arguments {
    #[command(flatten)]
    flags: ConfigFlags,

    /// Let the process that moves the packets keep capabilities, files and system calls
    ///
    /// As run.sandbox = "off" in the file. For a debugger, a profiler or a kernel without seccomp: it gives up what keeps somebody
    /// who got into that process by a packet (there is no way that is known) from having the gateway's privileges.
    #[arg(long)]
    no_sandbox: bool,

    /// Take everything over from the gateway that runs on this device, with every mapping: for an upgrade. That one then
    /// ends, with exit code 0. If none runs, start as without this
    #[arg(long)]
    takeover: bool,
}

pub(super) fn run(
    arguments: &Arguments,
    log: Arc<dyn LogControl>,
    supervisor: Supervisor,
) -> Result<ExitCode, SetupError> {
    let mut source = arguments.flags.source()?;
    if arguments.no_sandbox {
        source.flags.push(("run.sandbox".to_owned(), "off".to_owned()));
    }
    // What is wrong with it is said before anything else.
    log.follow(&source.config()?.observe);
    // Before the set-up: a signal during it is obeyed after it, and so finds something to undo.
    let signals = watch_signals()?;
    let options = Options { source, log, takeover: arguments.takeover };
    let mut keeper = Keeper::start(options, supervisor)?;
    print(&format!("{}\n", keeper.description()));

    let failures = loop {
        match keeper.keep(&signals) {
            Ok(Asked::Successor(successor)) => match keeper.hand_over(&successor) {
                Ok(None) => break [None, None],
                Ok(Some(same)) => keeper = same,
                Err(error) => break [Some(error), None],
            },
            Ok(Asked::Signal(SIGUSR2)) => {
                tracing::info!("{} received: leaving everything to the next start", name(SIGUSR2));
                break [keeper.leave().err(), None];
            }
            Ok(Asked::Signal(signal)) => {
                tracing::info!("{} received: draining", name(signal));
                break [keeper.stop().err(), None];
            }
            Err(fault) => break [Some(fault), keeper.stop().err()],
        }
    };
    failures.iter().flatten().for_each(complain);
    Ok(if failures.iter().all(Option::is_none) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Signals arrive in the channel; the second that asks to end ends the process as if nobody had caught it.
///
/// A thread that reads signals from a pipe, not a handler with flags: it can wake a channel, and nothing in it has to be
/// safe in signal context.
fn watch_signals() -> Result<Receiver<i32>, SetupError> {
    let refused = |cause| SetupError::caused("signals cannot be watched", cause);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR2]).map_err(refused)?;
    let (sender, receiver) = channel::unbounded();
    let watch = move || pass_on(signals.forever(), &sender, |signal| drop(emulate_default_handler(signal)));
    thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(refused)?;
    Ok(receiver)
}

/// Never waits for whoever receives, who may be busy when the second signal comes that is to end that.
fn pass_on(signals: impl Iterator<Item = i32>, sender: &Sender<i32>, end: impl Fn(i32)) {
    let mut asked = false;
    for signal in signals {
        if signal == SIGHUP {
            // One that waits says enough for two.
            if sender.is_empty() {
                let _ = sender.send(signal);
            }
            continue;
        }
        if mem::replace(&mut asked, true) {
            end(signal);
        }
        // Nobody receives any more when the process is ending by itself.
        let _ = sender.send(signal);
    }
}

fn name(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("signal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_to_end_ends_it_also_while_nobody_hears_the_first() {
        let (sender, receiver) = channel::unbounded();
        let ended = std::cell::RefCell::new(Vec::new());
        let signals = [SIGHUP, SIGHUP, SIGTERM, SIGHUP, SIGINT];
        pass_on(signals.into_iter(), &sender, |signal| ended.borrow_mut().push(signal));
        assert_eq!(*ended.borrow(), [SIGINT]);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [SIGHUP, SIGTERM, SIGINT]);
    }
}
