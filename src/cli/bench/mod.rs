//! `echogate bench`: the arguments of the bench, where its results go, its progress, and its subcommands.

mod compare;
mod load;
mod respond;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs};

use clap::Subcommand;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::print;
use crate::bench::record::Record;
use crate::bench::{self, BenchOptions, Observer, Progress, page};
use crate::error::SetupError;
use crate::lab;

/// Measure the gateway on this machine, beside no gateway at all, the kernel's masquerade, pasta and slirp4netns
///
/// Without arguments it takes about three minutes. Builds its own lab of network namespaces for each trial, runs the
/// real gateway in it, checks every reply, prints a table, and writes all it saw as JSON and as an HTML page. Nothing
/// outside the lab is touched, and nothing is left behind but those two files, however it ends; an interrupted bench
/// keeps what it measured.
///
/// Exit codes: 0 it measured all, and every reply was right; 1 it was interrupted, or a reply was wrong, or a gateway
/// failed; 2 it could not start.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Search for the highest loads without loss and with 0.5%, measure latency at shares of them, and do so for three
    /// sizes and three numbers of clients. Takes about an hour
    #[arg(long)]
    full: bool,

    /// Turns of each contender
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Seconds of each load
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Echoes under way at once in a closed loop, all generators together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(2..=8192))]
    in_flight: u16,

    /// Mappings alive at once, all clients together: several numbers are measured one after the other in one run, as in
    /// 16,60000
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "full",
        value_parser = clap::value_parser!(u16).range(2..=60_000))]
    mappings: Vec<u16>,

    /// Clients that ping, each number measured one after the other: a slice of --full, or in the usual closed loop
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "mappings",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(bench::CLIENTS_MAX)))]
    clients: Vec<u16>,

    /// Bytes of ICMP messages, each size measured one after the other: a slice of --full, or in the usual closed loop
    #[arg(long, value_name = "BYTES", value_delimiter = ',', conflicts_with = "mappings",
        value_parser = clap::value_parser!(u16).range(24..=1480))]
    sizes: Vec<u16>,

    /// Search for the highest load with 0.5% lost, hold 80% of it for so many seconds, and the control at the same load
    /// beside it; and latency at half of the masquerade's
    #[arg(long, value_name = "SECONDS", conflicts_with = "full", value_parser = clap::value_parser!(u64).range(1..=3600))]
    hold: Option<u64>,

    /// Measure a single ping while every CPU has something else to do, too
    #[arg(long)]
    busy: bool,

    /// Who takes part besides the control, by name or by the beginning of several names. By their whole names only:
    /// echogate-uring-1-polling and echogate-syscalls-1-polling [default: all others]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    contenders: Vec<String>,

    /// The command echogate that is measured: another build, or a wrapper [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Where results go, without the ending: FILE.json and FILE.html
    #[arg(long, value_name = "FILE", default_value = "echogate-bench")]
    output: PathBuf,

    /// Print the JSON instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    Compare(compare::Arguments),
    Load(load::Arguments),
    Respond(respond::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    match &arguments.action {
        None => measure(arguments),
        Some(Action::Compare(arguments)) => compare::run(arguments),
        Some(Action::Load(arguments)) => load::run(arguments),
        Some(Action::Respond(arguments)) => respond::run(arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let options = options(arguments)?;
    // While this is the only thread: a user namespace takes no process that has several.
    lab::enter_unprivileged()?;
    let stop = stop_flag()?;
    let mut output = Output::new(&arguments.output)?;
    if !arguments.json {
        print(&introduction(&options)?);
    }
    let interrupted = || stop.load(Ordering::Relaxed);
    let record = bench::run(&options, &interrupted, &mut output)?;
    output.clear();
    print(&if arguments.json { record.json() } else { format!("{record}\n{}", output.files()) });
    output.saved()?;
    let failed = record.trials.iter().any(|trial| trial.error.is_some() && trial.contender.starts_with("echogate"));
    let good = record.complete && !failed && record.failures().is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(arguments: &Arguments) -> Result<BenchOptions, SetupError> {
    let program = match &arguments.program {
        Some(program) => fs::canonicalize(program)
            .map_err(|cause| SetupError::caused(format!("--program {}", program.display()), cause))?,
        None => env::current_exe().map_err(|cause| SetupError::caused("bench: cannot find its own program", cause))?,
    };
    Ok(BenchOptions {
        full: arguments.full,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        in_flight: usize::from(arguments.in_flight),
        mappings: arguments.mappings.clone(),
        clients: arguments.clients.clone(),
        sizes: arguments.sizes.clone(),
        hold_seconds: arguments.hold,
        busy: arguments.busy,
        contenders: arguments.contenders.clone(),
        ..BenchOptions::new(program)
    })
}

fn introduction(options: &BenchOptions) -> Result<String, SetupError> {
    let estimate = bench::estimate(options)?;
    Ok(format!(
        "Each trial has a lab of its own, namespaces inside this process: nothing outside is touched.\n\
         This takes about {}; Ctrl-C ends it and keeps what was measured.\n\n",
        in_words(estimate)
    ))
}

/// Set by SIGINT and SIGTERM; a second one ends the process as if nobody had caught it.
///
/// Flags and not a thread: whoever measures looks at it several times a second anyway.
fn stop_flag() -> Result<Arc<AtomicBool>, SetupError> {
    let refused = |cause| SetupError::caused("signals cannot be watched", cause);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag not set yet.
        flag::register_conditional_default(signal, Arc::clone(&stop)).map_err(refused)?;
        flag::register(signal, Arc::clone(&stop)).map_err(refused)?;
    }
    Ok(stop)
}

/// `2 min 20 s`.
fn in_words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// The progress, and the files, written anew after each trial: what was measured is kept however the bench ends.
struct Output {
    json: PathBuf,
    html: PathBuf,
    visible: bool,
    failure: Option<SetupError>,
}

impl Output {
    /// Looks now whether the place can be written to, and not after three minutes.
    fn new(base: &Path) -> Result<Output, SetupError> {
        let with = |ending: &str| {
            let mut name = base.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (json, html) = (with(".json"), with(".html"));
        for file in [&json, &html] {
            let opened = fs::OpenOptions::new().append(true).create(true).open(file);
            opened.map_err(|cause| cannot_write(file, cause))?;
        }
        Ok(Output { json, html, visible: io::stderr().is_terminal(), failure: None })
    }

    fn files(&self) -> String {
        format!("Raw numbers: {}\nPage: {}\n", self.json.display(), self.html.display())
    }

    fn clear(&self) {
        if self.visible {
            // A progress line that cannot be written is no reason to stop.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn saved(&mut self) -> Result<(), SetupError> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Observer for Output {
    fn begins(&mut self, progress: &Progress) {
        let Progress { trial, trials, contender, left } = progress;
        let line = format!("{}/{trials}  {contender}  (about {} left)", trial + 1, in_words(*left));
        let _ = match self.visible {
            true => write!(io::stderr(), "\r\x1b[K{line}"),
            false => writeln!(io::stderr(), "{line}"),
        };
    }

    fn ended(&mut self, record: &Record) {
        let saved = write_whole(&self.json, &record.json()).and_then(|()| write_whole(&self.html, &page::html(record)));
        // Told at the end: the next trial may have more luck, and what is measured is printed anyway.
        self.failure = saved.err();
    }
}

/// Beside it first and then in its place: who reads meanwhile, or finds it after a crash, has a whole file.
fn write_whole(file: &Path, text: &str) -> Result<(), SetupError> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, file)).map_err(|cause| cannot_write(file, cause))
}

fn cannot_write(file: &Path, cause: io::Error) -> SetupError {
    SetupError::caused(format!("bench: cannot write {}", file.display()), cause)
        .remedy("name another place: --output FILE")
}
