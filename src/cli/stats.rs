//! `echogate stats`: the numbers of a running gateway, once.

use std::process::ExitCode;
use std::time::Duration;

use super::reach::Which;
use super::{print, totals};
use crate::control::{AddressNow, Request, Stats};
use crate::error::SetupError;

/// Print the numbers of a running gateway
///
/// For people, or, with --json, as one object. What each number means: docs/metrics.md.
///
/// Exit codes: 0 every worker of the gateway moves; 1 one does not; 2 there is no gateway to ask.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let answer = arguments.which.connect()?.ask(&Request::Stats)?;
    let stats = Stats::read(answer.clone())?;
    print(&if arguments.json { format!("{answer}\n") } else { text(&stats) });
    Ok(if stats.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(stats: &Stats) -> String {
    let uptime = humantime::format_duration(Duration::from_secs_f64(stats.uptime_seconds.trunc()));
    let health = if stats.healthy { "every worker moves" } else { "A WORKER STANDS STILL" };
    format!(
        "{}\nechogate {}, up {uptime}, {health}\n\n{}{}",
        stats.description,
        stats.version,
        totals::table(&stats.totals()),
        addresses(stats)
    )
}

/// What is on each address, where there are several or one is not as it should be.
fn addresses(stats: &Stats) -> String {
    let one = |now: &AddressNow| {
        let idents = totals::grouped(now.idents_used);
        format!("{:26}{:>18}  {}\n", now.address, idents, now.state)
    };
    match stats.addresses.as_slice() {
        [] => String::new(),
        [only] if only.state == "open" => String::new(),
        all => {
            format!("\n{:26}{:>18}\n{}", "outside addresses", "idents used", all.iter().map(one).collect::<String>())
        }
    }
}
