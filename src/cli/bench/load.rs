//! `echogate bench load`: the bench's load generator alone, for a lab of the user's own.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stop_flag;
use crate::cli::print;
use crate::cli::totals::grouped;
use crate::error::SetupError;
use crate::lab::load::{self, LoadOptions, LoadReport, PAYLOAD_MIN, RoundTrips, Source};

/// Bytes of an ICMP header.
const HEADER: u16 = 8;

/// How many spells of losses are told, and how long between two is without a loss.
const SPELLS: usize = 10;
const APART: Duration = Duration::from_millis(100);

/// Ping remotes as fast as asked, and check every byte of every reply
///
/// Runs in the network namespace it is started in, from addresses that are local there: a client of your own lab. Sends
/// 1,000 echoes a second unless told otherwise; a closed loop (`--rate 0`) sends as many as come back. Point it at hosts
/// and networks that are yours.
///
/// Exit codes: 0 every reply that came was right; 1 one was wrong, or none came; 2 it could not start.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Addresses to ping from, each local here
    #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',')]
    from: Vec<Ipv4Addr>,

    /// Remotes to ping, in turn
    #[arg(long, value_name = "ADDRESS", required = true, value_delimiter = ',')]
    to: Vec<Ipv4Addr>,

    /// Echoes a second; 0: as many as come back, with --in-flight of them under way
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    rate: u64,

    /// Seconds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Echoes under way at once; with a rate, the most that may be late
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    in_flight: u16,

    /// Idents of each address
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    idents: u16,

    /// Bytes of the ICMP message: header and payload
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(SIZE_MIN..=65_000))]
    size: u16,
}

const SIZE_MIN: i64 = HEADER as i64 + PAYLOAD_MIN as i64;

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let stop = stop_flag()?;
    let mut addresses = arguments.from.clone();
    addresses.sort_unstable();
    addresses.dedup();
    let source = Source { name: "this host", namespace: None, addresses: &addresses };
    let options = LoadOptions {
        duration: Duration::from_secs(arguments.seconds),
        window: usize::from(arguments.in_flight),
        rate: (arguments.rate > 0).then_some(arguments.rate),
        idents: arguments.idents,
        payload_len: usize::from(arguments.size.saturating_sub(HEADER)),
        // Replies to an earlier run that come late are told from this one's.
        seed: std::process::id().into(),
        ..LoadOptions::default()
    };
    let report = load::run_from(&[source], &arguments.to, &options, |_| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    print(&table(&report));
    let wrong = report.wrong_client + report.altered + report.duplicates;
    Ok(if wrong == 0 && report.received > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(report: &LoadReport) -> String {
    let mut text = String::new();
    let counts = [
        ("sent", report.sent),
        ("received", report.received),
        ("lost", report.lost),
        ("wrong client", report.wrong_client),
        ("altered", report.altered),
        ("twice", report.duplicates),
        ("late", report.stray - report.duplicates),
        ("ICMP errors", report.no_reply),
        ("own receive buffer full", report.socket_drops),
        ("echo/s", report.echoes_per_second()),
    ];
    for (name, count) in counts {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:26}{:>14}", grouped(count));
    }
    for spell in report.losses.spells(APART).iter().take(SPELLS) {
        let (from, to) = (spell.from.as_secs_f64(), spell.to.as_secs_f64());
        let _ = writeln!(text, "{:26}{:>14}", format!("lost {from:.2} s to {to:.2} s"), grouped(spell.count));
    }
    let from_due = report.from_due.count() > 0;
    times(&mut text, "round trip", if from_due { &report.from_due } else { &report.round_trip });
    if from_due {
        times(&mut text, "late in leaving", &report.schedule_error);
    }
    text
}

fn times(text: &mut String, name: &str, times: &RoundTrips) {
    for (label, time) in [
        ("p50", times.quantile(0.5)),
        ("p90", times.quantile(0.9)),
        ("p99", times.quantile(0.99)),
        ("p99.9", times.quantile(0.999)),
        ("max", times.max()),
    ] {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let _ = writeln!(text, "{:26}{:>14} us", format!("{name} {label}"), grouped(micros));
    }
}
