//! The command line: arguments, the call that does the work, the report, the exit code.
//!
//! * Standard output carries what was asked for (findings, totals, tables, JSON); everything else, logs and errors, is
//!   on standard error. A command that could not start writes nothing to standard output.
//! * Exit codes: 0 it did what was asked; 1 it ran, and the answer is no (a precondition is missing, a gateway that
//!   ended by itself, a demo that lost packets); 2 it could not start: arguments, configuration, set-up.
//! * A reader that goes away (`echogate check | head -1`) ends no command: what cannot be written is dropped.

mod bench;
mod check;
mod demo;
mod flags;
mod generate;
mod log;
mod packets;
mod ping;
mod reach;
mod reload;
mod restart;
mod run;
mod stats;
mod top;
mod totals;
mod trace;
mod undo;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::log::{Log, LogFlags, Patience};
use crate::error::SetupError;
use crate::keeper::{self, Supervisor};

/// It could not start: as clap's own, for arguments that are none.
const EXIT_USAGE: u8 = 2;

/// Lets the clients of a VPN ping the internet from the gateway's own address, and brings nobody but the asker the
/// answer.
#[derive(Parser)]
#[command(name = "echogate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    log: LogFlags,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Arguments),
    Restart(restart::Arguments),
    Reload(reload::Arguments),
    Stats(stats::Arguments),
    Top(top::Arguments),
    Trace(trace::Arguments),
    /// Move packets for a keeper
    #[command(name = keeper::SUBCOMMAND, hide = true)]
    Packets(packets::Arguments),
    Check(check::Arguments),
    Undo(undo::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    Ping(Box<ping::Arguments>),
    Generate(generate::Arguments),
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let patience = match &arguments.command {
        Command::Run(_) | Command::Packets(_) => Patience::None,
        _ => Patience::Writer,
    };
    // Before anything else is opened.
    let supervisor = Supervisor::from_environment();
    let begun = match &arguments.command {
        Command::Packets(arguments) => packets::begin(arguments),
        _ => Ok(()),
    };
    let log = begun.and_then(|()| Log::start(&arguments.log, patience));
    let done = log.and_then(|log| match &arguments.command {
        Command::Run(options) => run::run(options, log.control(), supervisor),
        Command::Restart(arguments) => restart::run(arguments),
        Command::Reload(arguments) => reload::run(arguments),
        Command::Packets(_) => packets::run(log.lost()),
        Command::Stats(arguments) => stats::run(arguments),
        Command::Top(arguments) => top::run(arguments),
        Command::Trace(arguments) => trace::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Undo(arguments) => undo::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Ping(arguments) => ping::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
    });
    done.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(EXIT_USAGE)
    })
}

/// Tells the user what went wrong.
fn complain(error: &SetupError) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "echogate: {error}");
}

/// Writes to standard output what the command was asked for.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    // A pipe whose reader has had enough is no failure of the command.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        super::Arguments::command().debug_assert();
    }
}
