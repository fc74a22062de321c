//! One host, in the words and shapes of iputils' `ping`, which scripts read.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use super::hosts::{Host, Hosts};
use super::session::{Event, Progress, Report};
use super::stats::{Stats, Times, millis};
use crate::cli::print;
use crate::pinger::{Payload, PingError, Reply, StrayKind, name_of};

/// How long a line waits for the name of an address.
const NAME_PATIENCE: Duration = Duration::from_secs(1);

/// Names remembered at once.
const NAMES_MAX: usize = 1024;

/// How a single host's run is told.
pub(super) struct Single {
    pub(super) size: usize,
    /// Of the payload, if there is one.
    pub(super) pattern: Option<Vec<u8>>,
    /// ` from 198.18.0.1 wan:`, as far as it was asked for.
    pub(super) from: String,
    pub(super) quiet: bool,
    pub(super) summary_only: bool,
    pub(super) flood: bool,
    pub(super) timestamps: bool,
    pub(super) percentiles: bool,
    pub(super) names: Names,
}

impl Report for Single {
    fn begin(&mut self, hosts: &Hosts) {
        let Some(host) = hosts.list.first() else { return };
        if self.summary_only {
            return;
        }
        let (name, size, from) = (&host.name, self.size, &self.from);
        let digits = |pattern: &Vec<u8>| pattern.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let pattern =
            self.pattern.as_ref().map(|pattern| format!("PATTERN: 0x{}\n", digits(pattern))).unwrap_or_default();
        print(&match host.ip() {
            IpAddr::V4(address) => {
                format!("{pattern}PING {name} ({address}){from} {size}({}) bytes of data.\n", size + 28)
            }
            IpAddr::V6(address) => {
                let shown = if host.is_named() { format!("{name} ({address})") } else { host.shown() };
                format!("{pattern}PING {name}({shown}){from} {size} data bytes\n")
            }
        });
    }

    fn event(&mut self, hosts: &Hosts, host: usize, sequence: u64, event: Event<'_>) {
        let Some(host) = hosts.list.get(host) else { return };
        if self.flood && !self.quiet {
            // As many dots stand there as replies are missing, about.
            print(match event {
                Event::Settled(Ok(_)) => "",
                Event::Settled(Err(error)) if error.is_silence() => ".",
                Event::Settled(Err(_)) => "E",
                Event::Stray(_) => "+",
            });
            return;
        }
        if self.quiet || self.summary_only {
            return;
        }
        match event {
            Event::Settled(Ok(reply)) => print(&self.reply(host, sequence, reply, "")),
            Event::Settled(Err(error)) => {
                let line = self.error(host, sequence, error);
                if error.sender().is_some() || error.is_silence() { print(&line) } else { complain(&line) }
            }
            Event::Stray(stray) => {
                let mark = match stray.kind {
                    StrayKind::Duplicate => " (DUP!)",
                    StrayKind::Late => " (late)",
                };
                print(&self.reply(host, sequence, &stray.reply, mark));
            }
        }
    }

    fn interim(&mut self, hosts: &Hosts, progress: &Progress) {
        let Some(stats) = hosts.list.first().and_then(Host::stats) else { return };
        let waiting = progress.waiting(0);
        let mut line = format!(
            "{}/{} packets, {}% loss",
            stats.received,
            stats.sent(waiting),
            general(stats.loss_percent(waiting).floor())
        );
        if let Some((Times { min, avg, max, .. }, ewma)) = stats.times().zip(stats.ewma_ms()) {
            line.push_str(&format!(", min/avg/ewma/max = {min:.3}/{avg:.3}/{ewma:.3}/{max:.3} ms"));
        }
        // Over the ^\ that the terminal has shown.
        complain(&format!("\r{line}\n"));
    }

    fn end(&mut self, hosts: &Hosts, progress: &Progress) {
        let Some(host) = hosts.list.first() else { return };
        let none = Stats::new(false);
        let stats = host.stats().unwrap_or(&none);
        print(&summary(&host.name, stats, progress, self.percentiles));
    }
}

impl Single {
    fn reply(&mut self, host: &Host, sequence: u64, reply: &Reply, mark: &str) -> String {
        let mut line = self.stamp(reply.received);
        let who = if host.is_named() { self.names.shown(reply.from, true) } else { host.shown() };
        line.push_str(&format!("{} bytes from {who}: icmp_seq={sequence}", reply.bytes));
        if let Some(ttl) = reply.ttl {
            line.push_str(&format!(" ttl={ttl}"));
        }
        line.push_str(&format!(" time={} ms{mark}", time(reply.rtt)));
        match reply.payload {
            Payload::Intact => {}
            Payload::Truncated => line.push_str(" (truncated)"),
            Payload::Altered { at, sent, found } => {
                line.push_str(&format!("\nwrong data byte #{at} should be 0x{sent:x} but was 0x{found:x}"));
            }
        }
        line.push('\n');
        line
    }

    fn error(&mut self, host: &Host, sequence: u64, error: &PingError) -> String {
        match error.sender() {
            Some(from) => {
                let who = self.names.shown(from, true);
                format!("{}From {who} icmp_seq={sequence} {}\n", self.stamp(SystemTime::now()), error.reason())
            }
            // `ping` says nothing of silence; loss by this host's own fault is worth a line.
            None => match error {
                PingError::Timeout { .. } => String::new(),
                PingError::DroppedHere { .. } => format!("icmp_seq={sequence} {}\n", error.reason()),
                PingError::SendFailed { mtu: Some(mtu), .. } => {
                    let is = if host.ip().is_ipv4() { "=" } else { ": " };
                    format!("ping: local error: message too long, mtu{is}{mtu}\n")
                }
                _ => {
                    // The words alone, as C has them.
                    let reason = error.reason();
                    format!("ping: sendmsg: {}\n", reason.split(" (os error").next().unwrap_or(&reason))
                }
            },
        }
    }

    fn stamp(&self, at: SystemTime) -> String {
        if self.timestamps { stamp(at) } else { String::new() }
    }
}

/// What `-D` puts before a line.
pub(super) fn stamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("[{}.{:06}] ", since.as_secs(), since.subsec_micros())
}

/// What stands at the end. Without `percentiles` it is what iputils prints, and nothing else.
fn summary(name: &str, stats: &Stats, progress: &Progress, percentiles: bool) -> String {
    let waiting = progress.waiting(0);
    let mut text = format!(
        "\n--- {name} ping statistics ---\n{} packets transmitted, {} received",
        stats.sent(waiting),
        stats.received
    );
    for (count, what) in [(stats.duplicates, "duplicates"), (stats.corrupt, "corrupted"), (stats.errors, "errors")] {
        if count > 0 {
            text.push_str(&format!(", +{count} {what}"));
        }
    }
    let loss = general(stats.loss_percent(waiting));
    text.push_str(&format!(", {loss}% packet loss, time {}ms\n", progress.elapsed.as_millis()));
    let times = stats.times();
    if let Some(Times { min, avg, max, mdev, .. }) = times {
        text.push_str(&format!("rtt min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms"));
    }
    if stats.pipe > 1 {
        let comma = if times.is_some() { ", " } else { "" };
        text.push_str(&format!("{comma}pipe {}", stats.pipe));
    }
    text.push('\n');
    if percentiles {
        text.push_str(&more(stats));
    }
    text
}

/// What iputils does not tell.
fn more(stats: &Stats) -> String {
    let mut text = String::new();
    if let Some(times) = stats.times() {
        if let Some([p50, p90, p99]) = times.percentiles {
            text.push_str(&format!("rtt p50/p90/p99 = {p50:.3}/{p90:.3}/{p99:.3} ms"));
        }
        if let Some(jitter) = times.jitter {
            text.push_str(&format!(", jitter {jitter:.3} ms"));
        }
        text.push('\n');
    }
    text.push_str(&format!(
        "{} late, {} reordered, {} dropped on this host\n",
        stats.late, stats.reordered, stats.dropped_here
    ));
    for (from, count) in &stats.errors_by_sender {
        text.push_str(&format!("{count} errors from {from}\n"));
    }
    if stats.errors_of_other_senders > 0 {
        text.push_str(&format!("{} errors from others\n", stats.errors_of_other_senders));
    }
    text
}

fn complain(text: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A round-trip time with as many digits as `ping` gives it.
pub(super) fn time(rtt: Duration) -> String {
    let ms = millis(rtt);
    // By the unrounded time, as there: 9.996 is 10.00.
    match ms {
        100.0.. => format!("{ms:.0}"),
        10.0.. => format!("{ms:.1}"),
        1.0.. => format!("{ms:.2}"),
        _ => format!("{ms:.3}"),
    }
}

/// C's `%g`, for percentages.
fn general(number: f64) -> String {
    let decimals = if number >= 10.0 { 4 } else { 5 };
    let text = format!("{number:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The names of addresses, asked of the resolver while nothing waits for it but the line that shows one.
pub(super) struct Names {
    wanted: bool,
    known: HashMap<IpAddr, Option<String>>,
}

impl Names {
    pub(super) fn new(wanted: bool) -> Names {
        Names { wanted, known: HashMap::new() }
    }

    /// `name (address)`, or the address alone.
    fn shown(&mut self, address: IpAddr, named: bool) -> String {
        match self.name(address).filter(|_| named) {
            Some(name) => format!("{name} ({address})"),
            None => address.to_string(),
        }
    }

    fn name(&mut self, address: IpAddr) -> Option<String> {
        if !self.wanted {
            return None;
        }
        if let Some(known) = self.known.get(&address) {
            return known.clone();
        }
        let (sender, receiver) = mpsc::channel();
        // A thread of its own: a resolver that hangs must hold up neither Ctrl-C nor the next line for long.
        let asked = thread::Builder::new().name("names".to_owned()).spawn(move || sender.send(name_of(address)));
        let name = asked.ok().and_then(|_| receiver.recv_timeout(NAME_PATIENCE).ok()).flatten();
        let name = name.map(|name| name.chars().filter(|letter| !letter.is_control()).collect());
        if self.known.len() < NAMES_MAX {
            self.known.insert(address, name.clone());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_digits_that_ping_gives_them() {
        let table = [(9, "0.009"), (1_234, "1.23"), (12_345, "12.3"), (123_456, "123"), (999, "0.999")];
        for (us, text) in table {
            assert_eq!(time(Duration::from_micros(us)), text);
        }
    }

    #[test]
    fn percentages_are_as_c_prints_them() {
        for (number, text) in [(0.0, "0"), (100.0, "100"), (100.0 / 3.0, "33.3333"), (0.5, "0.5"), (50.0, "50")] {
            assert_eq!(general(number), text);
        }
    }

    #[test]
    fn the_summary_names_what_there_was_only() {
        let mut stats = Stats::new(true);
        let progress = Progress { elapsed: Duration::from_millis(2003), waiting: vec![1] };
        stats.settle(1, &Err(PingError::TimeExceeded { from: IpAddr::from([198, 18, 0, 254]), code: 0 }));
        let text = summary("198.18.3.2", &stats, &progress, false);
        assert_eq!(
            text,
            "\n--- 198.18.3.2 ping statistics ---\n2 packets transmitted, 0 received, +1 errors, 100% packet loss, time \
             2003ms\n\n"
        );
        let text = summary("198.18.3.2", &stats, &progress, true);
        assert!(text.ends_with("0 late, 0 reordered, 0 dropped on this host\n1 errors from 198.18.0.254\n"), "{text}");
    }
}
