//! The demo's words: the picture before, the line meanwhile, the table and the verdict after, and the same for a
//! machine.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::DemoOptions;
use crate::lab::load::{LoadReport, Progress};
use crate::lab::responder::EchoCounters;
use crate::metrics::{Snapshot, Traffic};

/// The version of the JSON object: it changes when a key is removed or changes its meaning, not when one is added.
const SCHEMA: u32 = 1;
/// More than one echo in this many may not be lost.
const LOSS_ALLOWED: u64 = 1000;
/// Rows of the picture on either side.
const ROWS_MAX: usize = 4;

/// One way through, and what went over it.
#[derive(Clone, Debug)]
pub struct Contender {
    /// The table's heading.
    pub name: &'static str,
    /// How it was set up, in one line.
    pub description: String,
    /// The round-trip time of one ping before the load, by the pinger, or why there is none.
    pub single: Result<Duration, String>,
    /// What the clients counted.
    pub load: LoadReport,
    /// What the remotes counted.
    pub remotes: EchoCounters,
    /// What the gateway counted, if it is ours.
    pub gateway: Option<Snapshot>,
}

/// What the demo showed.
#[derive(Clone, Debug)]
pub struct DemoReport {
    /// What was asked for.
    pub options: DemoOptions,
    /// Hosts that each client pinged.
    pub remotes: usize,
    /// Echogate.
    pub echogate: Contender,
    /// The kernel's masquerade, or why it is not there.
    pub masquerade: Result<Contender, String>,
}

impl DemoReport {
    /// Whether the demo succeeded: there are no [`failures`](DemoReport::failures).
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// What Echogate did not do as it should, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let load = &self.echogate.load;
        let mut failures = Vec::new();
        let mut expect = |holds: bool, failure: String| {
            if !holds {
                failures.push(failure);
            }
        };
        let single = &self.echogate.single;
        expect(single.is_ok(), format!("the single ping: {}", single.as_ref().err().cloned().unwrap_or_default()));
        expect(load.sent > 0, "nothing was sent".to_owned());
        expect(load.wrong_client == 0, format!("{} replies reached the wrong client", grouped(load.wrong_client)));
        expect(load.altered == 0, format!("{} replies were altered", grouped(load.altered)));
        expect(load.stray == 0, format!("{} replies came twice or too late", grouped(load.stray)));
        expect(
            load.lost.saturating_mul(LOSS_ALLOWED) <= load.sent,
            format!(
                "{} of {} echoes were lost, more than 0.1%{}",
                grouped(load.lost),
                grouped(load.sent),
                self.gateways_drops()
            ),
        );
        if let Some(gateway) = &self.echogate.gateway {
            let mut equal = |left: &str, left_count: u64, right: &str, right_count: u64| {
                let (left_count, right_count) = (grouped(left_count), grouped(right_count));
                expect(left_count == right_count, format!("{left} {left_count}, {right} {right_count}"));
            };
            let (to_remotes, arrived) = (gateway.outside_out.packets, self.echogate.remotes.requests_in);
            equal("the gateway sent", to_remotes, "but at the remotes arrived", arrived);
            let (delivered, replies) = (gateway.delivered.packets, load.replies() + u64::from(single.is_ok()));
            equal("the gateway delivered", delivered, "but at the clients arrived", replies);
            let (packets_in, accounted) = (gateway.packets_in(), gateway.packets_accounted());
            equal("the gateway took in", packets_in, "packets but accounts for", accounted);
        }
        failures
    }

    /// What the gateway dropped, as the end of a sentence about losses.
    fn gateways_drops(&self) -> String {
        let drops = self.echogate.gateway.iter().flat_map(|gateway| &gateway.drops);
        let named: Vec<String> = drops.map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
        if named.is_empty() { String::new() } else { format!("; the gateway dropped {}", named.join(", ")) }
    }

    /// One JSON object and a line feed.
    pub fn json(&self) -> String {
        let masquerade = self.masquerade.as_ref();
        let contenders: Vec<Value> = std::iter::once(&self.echogate).chain(masquerade.ok()).map(contender).collect();
        let report = json!({
            "schema": SCHEMA,
            "passed": self.passed(),
            "failures": self.failures(),
            "clients": self.options.client_count,
            "remotes": self.remotes,
            "seconds": self.options.seconds,
            "rate": self.options.rate,
            "contenders": contenders,
            "masquerade_missing": masquerade.err(),
        });
        format!("{report}\n")
    }
}

fn contender(contender: &Contender) -> Value {
    let load = &contender.load;
    let quantile = |share| micros(load.round_trip.quantile(share));
    json!({
        "name": contender.name,
        "description": contender.description,
        "single_ping_us": contender.single.as_ref().ok().copied().map(micros),
        "sent": load.sent,
        "received": load.received,
        "wrong_client": load.wrong_client,
        "altered": load.altered,
        "stray": load.stray,
        "no_reply": load.no_reply,
        "lost": load.lost,
        "send_refused": load.send_refused,
        "elapsed_us": micros(load.elapsed),
        "echoes_per_second": load.echoes_per_second(),
        "round_trip_us": {
            "p50": quantile(0.50), "p90": quantile(0.90), "p99": quantile(0.99), "max": micros(load.round_trip.max()),
        },
        "remotes": {
            "requests_in": contender.remotes.requests_in,
            "replies_out": contender.remotes.replies_out,
            "checksum_errors": contender.remotes.checksum_errors,
        },
        "gateway": contender.gateway.as_ref().map(gateway),
    })
}

fn gateway(counted: &Snapshot) -> Value {
    let traffic = |traffic: Traffic| json!({ "packets": traffic.packets, "bytes": traffic.bytes });
    let drops: serde_json::Map<String, Value> =
        counted.drops.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
    json!({
        "inside_in": traffic(counted.inside_in),
        "inside_out": traffic(counted.inside_out),
        "outside_in": traffic(counted.outside_in),
        "outside_out": traffic(counted.outside_out),
        "delivered": traffic(counted.delivered),
        "reinjected": traffic(counted.reinjected),
        "drops": drops,
        "refused": counted.refused.iter().sum::<u64>(),
        "mappings_peak": counted.mappings_peak,
        "unanswered": counted.unanswered,
    })
}

impl fmt::Display for DemoReport {
    /// The table and, below it, the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Echogate: {}\n", self.echogate.description)?;
        let mut columns = vec![&self.echogate];
        columns.extend(self.masquerade.as_ref().ok());
        write!(f, "{:16}", "")?;
        for column in &columns {
            write!(f, "{:>20}", column.name)?;
        }
        writeln!(f)?;
        write!(f, "  {:14}", "single ping")?;
        for column in &columns {
            write!(f, "{:>20}", column.single.as_ref().map_or("none".to_owned(), |time| in_micros(*time)))?;
        }
        writeln!(f)?;
        for (name, value) in ROWS {
            write!(f, "  {name:14}")?;
            for column in &columns {
                write!(f, "{:>20}", value(&column.load))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\nLoad, gateway and hosts share this machine's cores: echo/s is what all reach together.")?;
        if let Err(why) = &self.masquerade {
            writeln!(f, "The kernel's masquerade is not beside it: {why}.")?;
        }
        writeln!(f)?;
        self.write_verdict(f)
    }
}

type Row = (&'static str, fn(&LoadReport) -> String);

const ROWS: [Row; 9] = [
    ("sent", |load| grouped(load.sent)),
    ("received", |load| grouped(load.received)),
    ("wrong client", |load| grouped(load.wrong_client)),
    ("altered", |load| grouped(load.altered)),
    ("lost", |load| grouped(load.lost)),
    ("round trip p50", |load| in_micros(load.round_trip.quantile(0.50))),
    ("           p99", |load| in_micros(load.round_trip.quantile(0.99))),
    ("           max", |load| in_micros(load.round_trip.max())),
    ("echo/s", |load| grouped(load.echoes_per_second())),
];

impl DemoReport {
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.failures();
        if failures.is_empty() {
            writeln!(
                f,
                "PASS  Every reply reached the client that asked, every byte as it was sent, and the gateway's"
            )?;
            return writeln!(f, "      counters agree with what clients and remotes counted.");
        }
        failures.iter().try_for_each(|failure| writeln!(f, "FAIL  Echogate: {failure}."))
    }
}

pub(super) fn introduction(clients: &[Ipv4Addr], gateway: Ipv4Addr, remotes: &[Ipv4Addr]) -> String {
    let (who, hosts) = (if clients.len() == 1 { "client pings" } else { "clients ping" }, remotes.len());
    format!(
        "{} {who} {hosts} hosts through Echogate, all with equal idents and sequences.\n\n{}\n\
         Namespaces inside this process: nothing outside is touched, nothing is left.\n\n",
        clients.len(),
        picture(clients, gateway, remotes)
    )
}

/// Clients to the left, hosts to the right, the shorter side in the middle.
fn picture(clients: &[Ipv4Addr], gateway: Ipv4Addr, remotes: &[Ipv4Addr]) -> String {
    let left = elided(clients, |number, address| format!("client {number}  {address} --+"));
    let right = elided(remotes, |number, address| format!("+-- {address}  host {number}"));
    let rows = left.len().max(right.len());
    let middle = rows / 2;
    let on_row =
        |side: &[String], row: usize| (row + side.len() / 2).checked_sub(middle).and_then(|at| side.get(at).cloned());
    let link = format!("---[ Echogate {gateway} ]---");
    (0..rows).fold(String::new(), |mut text, row| {
        let (client, host) = (on_row(&left, row).unwrap_or_default(), on_row(&right, row).unwrap_or_default());
        let link = if row == middle { link.clone() } else { " ".repeat(link.len()) };
        let _ = writeln!(text, "{}", format!("  {client:>27}{link}{host}").trim_end());
        text
    })
}

/// One row each; of many the first two and the last.
fn elided(addresses: &[Ipv4Addr], row: impl Fn(usize, Ipv4Addr) -> String) -> Vec<String> {
    let rows: Vec<String> = addresses.iter().enumerate().map(|(place, address)| row(place + 1, *address)).collect();
    match rows.as_slice() {
        [first, second, .., last] if rows.len() > ROWS_MAX => {
            vec![first.clone(), second.clone(), format!("{:18}|", "..."), last.clone()]
        }
        _ => rows,
    }
}

pub(super) fn progress(name: &str, seconds: u64, progress: &Progress) -> String {
    let elapsed = progress.elapsed.as_secs_f64();
    let (sent, received) = (grouped(progress.sent), grouped(progress.received));
    format!("  {name}: {elapsed:.1} of {seconds} s, {sent} sent, {received} came back")
}

fn in_micros(time: Duration) -> String {
    format!("{} us", grouped(micros(time)))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
