//! `echogate demo`: the arguments of the demo, and its outcome as text or JSON.

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::print;
use crate::config::BACKENDS;
use crate::demo::{self, DemoOptions};
use crate::error::SetupError;
use crate::io::Backend;
use crate::lab;

/// Watch the gateway work, on this machine, without touching its network
///
/// Builds clients, a gateway and an internet as network namespaces inside this process, has the clients ping through the
/// real gateway with equal idents, and counts what each gets back; where nft is there, the kernel's masquerade does the
/// same beside it. Nothing is left behind, however it ends. Runs as root, and as anyone where user namespaces and
/// /dev/net/tun allow.
///
/// Exit codes: 0 every reply reached the client that asked, unaltered, at most 0.1% was lost, and all counters agree;
/// 1 not so; 2 it could not start.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How long the clients ping, in seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// How many clients ping at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=CLIENTS_MAX))]
    client_count: u16,

    /// Echo requests a second, of all clients together [default: as many as are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,

    /// The gateway's workers, each a thread [default: as for run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,

    /// How the gateway moves packets; auto is io_uring, and system calls where the kernel refuses it
    #[arg(long, value_name = "WHICH", default_value = "auto", value_parser = backend_parser())]
    io: Backend,

    /// Print one JSON object instead of picture, progress and table
    #[arg(long)]
    json: bool,
}

const CLIENTS_MAX: i64 = lab::CLIENTS_MAX as i64;

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let options = DemoOptions {
        seconds: arguments.seconds,
        client_count: usize::from(arguments.client_count),
        rate: arguments.rate,
        workers: arguments.workers,
        io: arguments.io,
        json: arguments.json,
    };
    // While this is the only thread: a user namespace takes no process that has several.
    lab::enter_unprivileged()?;
    if !options.json {
        print(&demo::introduction(&options));
    }
    let report = demo::run(&options)?;
    print(&if options.json { format!("{}\n", report.json().trim_end()) } else { report.to_string() });
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn backend_parser() -> impl TypedValueParser<Value = Backend> {
    PossibleValuesParser::new(BACKENDS.iter().map(|(word, _)| *word)).map(|given| {
        let choice = BACKENDS.iter().find(|(word, _)| *word == given);
        choice.map_or_else(Backend::default, |(_, backend)| *backend)
    })
}
