//! `echogate check`: what the gateway would find on this host, and what its tables hold and cost.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::flags::{ConfigFlags, file_only_help};
use super::print;
use super::totals::grouped;
use crate::error::SetupError;
use crate::gateway;
use crate::host::preflight::{Finding, Status};
use crate::proxy::Sizes;

/// Check what the gateway needs on this host
///
/// Takes the flags of `run`, changes nothing, and prints one line a precondition: ok, or what is missing and the command
/// that mends it; then what the tables hold and cost.
///
/// Exit codes: 0 `run` would find everything it needs; 1 something is missing; 2 the flags or the file are wrong.
#[derive(clap::Args)]
#[command(after_long_help = file_only_help())]
pub(super) struct Arguments {
    #[command(flatten)]
    flags: ConfigFlags,

    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let config = arguments.flags.resolve()?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let findings = gateway::preflight(&config)?;
    let sizes = gateway::sizes(&config)?;
    print(&if arguments.json { json(&findings, &sizes) } else { text(&findings, &sizes) });
    let missing = findings.iter().any(|finding| finding.status == Status::Missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(findings: &[Finding], sizes: &Sizes) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for finding in findings {
        let _ = writeln!(text, "{:<9}{:<16}{}", word(finding.status), finding.name, finding.what);
        for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
            let _ = writeln!(text, "{:9}remedy: {line}", "");
        }
    }
    let _ = writeln!(
        text,
        "\ntables: {} mappings at once ({} bytes), {} echoes outstanding ({} bytes),\n        {} bytes for clients, {} for requests in fragments\n        an ident rests {:.1} s after its \
         mapping; each address can make {:.0} new mappings a second for ever",
        count(sizes.mappings_max),
        count(sizes.slots_bytes),
        count(sizes.echoes_max),
        count(sizes.echoes_bytes),
        count(sizes.clients_bytes),
        count(sizes.fragments_bytes),
        sizes.hold_down.as_secs_f64(),
        sizes.mappings_per_second_and_address,
    );
    text
}

fn json(findings: &[Finding], sizes: &Sizes) -> String {
    let findings: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "name": finding.name,
                "status": word(finding.status),
                "what": finding.what,
                "remedy": finding.remedy,
            })
        })
        .collect();
    let tables = json!({
        "mappings_max": sizes.mappings_max,
        "slots_bytes": sizes.slots_bytes,
        "echoes_max": sizes.echoes_max,
        "echoes_bytes": sizes.echoes_bytes,
        "clients_bytes": sizes.clients_bytes,
        "fragments_bytes": sizes.fragments_bytes,
        "hold_down_seconds": sizes.hold_down.as_secs_f64(),
        "mappings_per_second_and_address": sizes.mappings_per_second_and_address,
    });
    format!("{:#}\n", json!({ "findings": findings, "tables": tables }))
}

/// How both outputs call a status.
fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Missing => "missing",
    }
}

fn count(number: usize) -> String {
    grouped(number as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_remedy_lines_below() {
        let findings = [
            finding("tun", Status::Ok, "/dev/net/tun opens", None),
            finding("forward policy", Status::Missing, "drops what comes from the device", Some("nft one\nnft two")),
        ];
        let expected = "\
ok       tun             /dev/net/tun opens
missing  forward policy  drops what comes from the device
         remedy: nft one
         remedy: nft two

tables: 65,536 mappings at once (4,194,304 bytes), 1,048,576 echoes outstanding (8,388,608 bytes),
        16,384 bytes for clients, 294,912 for requests in fragments
        an ident rests 60.5 s after its mapping; each address can make 544 new mappings a second for ever
";
        assert_eq!(text(&findings, &SIZES), expected);
    }

    #[test]
    fn json_has_the_same_findings() {
        let findings = [finding("nft", Status::Warning, "is not there", Some("apt install nftables"))];
        let value: serde_json::Value = serde_json::from_str(&json(&findings, &SIZES)).unwrap();
        let expected =
            json!([{ "name": "nft", "status": "warning", "what": "is not there", "remedy": "apt install nftables" }]);
        assert_eq!(value["findings"], expected);
        assert_eq!(value["tables"]["hold_down_seconds"], 60.5);
    }

    const SIZES: Sizes = Sizes {
        mappings_max: 65_536,
        slots_bytes: 4 << 20,
        echoes_max: 1 << 20,
        echoes_bytes: 8 << 20,
        clients_bytes: 256 * 64,
        fragments_bytes: 2 * 256 * 576,
        mappings_per_second_and_address: 543.9,
        hold_down: Duration::from_millis(60_500),
    };

    fn finding(name: &'static str, status: Status, what: &str, remedy: Option<&str>) -> Finding {
        Finding { name, status, what: what.to_owned(), remedy: remedy.map(str::to_owned), fatal: false }
    }
}
