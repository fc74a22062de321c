//! `echogate bench respond`: the far side of a lab of the user's own.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::stop_flag;
use crate::cli::print;
use crate::cli::totals::grouped;
use crate::error::SetupError;
use crate::host::netlink::Netlink;
use crate::lab::responder::{self, EchoCounters};
use crate::policy::Prefix;

/// How often the counters are looked at.
const TURN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// Let this host answer pings for a whole prefix, and count them
///
/// Runs in the network namespace it is started in: the remotes of your own lab. The kernel answers, as it would on real
/// remotes; this makes the prefix its own, prints each second what arrived and what was answered, and undoes itself at
/// SIGINT or SIGTERM.
///
/// Exit codes: 0 it was told to stop; 2 it could not start.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Prefix whose addresses answer, besides those that the host has anyway; none: only those
    #[arg(long = "for", value_name = "PREFIX")]
    prefixes: Vec<Prefix>,

    /// Seconds [default: until it is told to stop]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let stop = stop_flag()?;
    let begin = Instant::now();
    let before = responder::counters_here()?;
    let answering = Answering::start(&arguments.prefixes)?;
    let mut last = before;
    let mut turn = begin;
    let over = || arguments.seconds.is_some_and(|seconds| begin.elapsed() >= Duration::from_secs(seconds));
    while !stop.load(Ordering::Relaxed) && !over() {
        thread::sleep(PAUSE);
        if turn.elapsed() >= TURN {
            turn += TURN;
            let now = responder::counters_here()?;
            print(&line("last second", last, now));
            last = now;
        }
    }
    print(&line("in all", before, responder::counters_here()?));
    answering.stop()?;
    Ok(ExitCode::SUCCESS)
}

fn line(name: &str, before: EchoCounters, now: EchoCounters) -> String {
    let mut text = String::new();
    let since = |now: u64, before: u64| grouped(now.saturating_sub(before));
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{name}: {} requests, {} replies, {} with a wrong checksum",
        since(now.requests_in, before.requests_in),
        since(now.replies_out, before.replies_out),
        since(now.checksum_errors, before.checksum_errors)
    );
    text
}

/// Prefixes that are local as long as this lives.
struct Answering(Vec<Prefix>);

impl Answering {
    fn start(prefixes: &[Prefix]) -> Result<Answering, SetupError> {
        let mut answering = Answering(Vec::new());
        for prefix in prefixes {
            Netlink::open().and_then(|mut netlink| netlink.add_local_route(*prefix)).map_err(|cause| {
                SetupError::caused(format!("cannot make {prefix} local"), cause).remedy("CAP_NET_ADMIN (root)")
            })?;
            answering.0.push(*prefix);
        }
        Ok(answering)
    }

    fn stop(mut self) -> Result<(), SetupError> {
        std::mem::take(&mut self.0).into_iter().try_for_each(undo)
    }
}

/// Also when a counter cannot be read any more.
impl Drop for Answering {
    fn drop(&mut self) {
        for prefix in self.0.drain(..) {
            // Nobody is left to tell.
            let _ = undo(prefix);
        }
    }
}

fn undo(prefix: Prefix) -> Result<(), SetupError> {
    Netlink::open().and_then(|mut netlink| netlink.delete_local_route(prefix)).map_err(|cause| {
        SetupError::caused(format!("{prefix} stays local"), cause).remedy(format!("ip route del local {prefix} dev lo"))
    })
}
