//! /metrics: the counters in Prometheus' text format, version 0.0.4. docs/metrics.md explains each.

use std::fmt::{Display, Write as _};

use super::stats::{RoundTrips, Stats};
use crate::metrics::{OWN_DROPS, Traffic};
use crate::proxy::Reason;
use crate::worker::SAMPLE_EVERY;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that there is to scrape.
pub(super) fn text(stats: &Stats) -> String {
    let mut text = Text { text: String::with_capacity(16 << 10), name: String::new() };
    about(&mut text, stats);
    traffic(&mut text, stats);
    drops(&mut text, stats);
    tables(&mut text, stats);
    round_trips(&mut text, stats);
    losses(&mut text, stats);
    text.text
}

fn about(text: &mut Text, stats: &Stats) {
    text.family("echogate_build_info", Kind::Gauge, "Always 1; its labels say what runs.");
    text.sample(&[("version", &stats.version), ("engine", &stats.engine)], 1);
    text.family("echogate_healthy", Kind::Gauge, "Whether every worker moves.");
    text.sample(&[], u8::from(stats.healthy));
    text.family("echogate_uptime_seconds", Kind::Gauge, "For how long these numbers have been counted.");
    text.sample(&[], stats.uptime_seconds);
    text.family("echogate_workers", Kind::Gauge, "Number of workers.");
    text.sample(&[], stats.workers);
}

fn traffic(text: &mut Text, stats: &Stats) {
    type Unit = (&'static str, fn(&Traffic) -> u64);
    let units: [Unit; 2] = [("packets", |traffic| traffic.packets), ("bytes", |traffic| traffic.bytes)];
    for (unit, amount) in units {
        let what = if unit == "bytes" { "Bytes, IP header included, of packets" } else { "Packets" };
        text.family(&format!("echogate_received_{unit}_total"), Kind::Counter, &format!("{what} received, by side."));
        text.sample(&[("side", &"inside")], amount(&stats.inside_in));
        text.sample(&[("side", &"outside")], amount(&stats.outside_in));
        text.family(
            &format!("echogate_sent_{unit}_total"),
            Kind::Counter,
            &format!("{what} sent, by side and by what they are."),
        );
        for (side, what, traffic) in [
            ("outside", "request", stats.outside_out),
            ("inside", "reply", stats.delivered),
            ("inside", "error", stats.told),
            ("inside", "reinjected", stats.reinjected),
        ] {
            text.sample(&[("side", &side), ("what", &what)], amount(&traffic));
        }
    }
    text.family(
        "echogate_own_errors_total",
        Kind::Counter,
        "ICMP errors of the gateway's own to clients, sent or not.",
    );
    text.sample(&[("result", &"sent")], stats.originated.packets);
    text.sample(&[("result", &"lost")], stats.not_originated);
    text.family("echogate_cut_off_pieces_total", Kind::Counter, "Pieces cut off requests too large for the way out.");
    text.sample(&[("result", &"sent")], stats.cut_off.packets);
    text.sample(&[("result", &"lost")], stats.cut_off_lost);
    text.family("echogate_worker_sent_packets_total", Kind::Counter, "Requests sent, by worker.");
    for (worker, packets) in stats.sent_by_worker.iter().enumerate() {
        text.sample(&[("worker", &worker)], packets);
    }
}

fn drops(text: &mut Text, stats: &Stats) {
    text.family(
        "echogate_dropped_packets_total",
        Kind::Counter,
        "Packets dropped, by reason: received is sent and these, exactly.",
    );
    let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).chain(OWN_DROPS).collect();
    for name in &known {
        text.sample(&[("reason", name)], stats.drops.get(*name).copied().unwrap_or(0));
    }
    // Sends that failed have a name for each errno: those that there have been.
    for (name, count) in stats.drops.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
        text.sample(&[("reason", name)], count);
    }
    text.family(
        "echogate_refused_requests_total",
        Kind::Counter,
        "Requests refused (among the dropped): beyond a share, to a remote that is denied, or for want of room; by class of clients.",
    );
    for (class, count) in &stats.refused {
        text.sample(&[("class", class)], count);
    }
    text.family(
        "echogate_socket_dropped_packets_total",
        Kind::Counter,
        "Packets that the kernel had no room for before a worker read them, by side: in no other count.",
    );
    text.sample(&[("side", &"inside")], stats.socket_drops.inside);
    text.sample(&[("side", &"outside")], stats.socket_drops.outside);
}

fn tables(text: &mut Text, stats: &Stats) {
    text.family("echogate_mappings", Kind::Gauge, "Mappings live now.");
    text.sample(&[], stats.mappings);
    text.family("echogate_mappings_peak", Kind::Gauge, "Mappings live at most so far.");
    text.sample(&[], stats.mappings_peak);
    text.family("echogate_mappings_limit", Kind::Gauge, "Mappings that can live at once.");
    text.sample(&[], stats.mappings_max);
    text.family(
        "echogate_address_used_idents",
        Kind::Gauge,
        "Idents of an outside address that are somebody's, or rest before they can be.",
    );
    for address in &stats.addresses {
        text.sample(&[("address", &address.address), ("state", &address.state)], address.idents_used);
    }
    text.family("echogate_outstanding_echoes", Kind::Gauge, "Requests sent and not answered yet.");
    text.sample(&[], stats.outstanding);
    text.family("echogate_outstanding_echoes_limit", Kind::Gauge, "Requests that can be outstanding at once.");
    text.sample(&[], stats.outstanding_max);
    text.family("echogate_unanswered_echoes_total", Kind::Counter, "Requests that nobody answered in time.");
    text.sample(&[], stats.unanswered);
    text.family(
        "echogate_evicted_echoes_total",
        Kind::Counter,
        "Requests given up for others because the table was full, by their age.",
    );
    for (age, count) in ["under_1s", "under_10s", "older"].into_iter().zip(stats.evicted) {
        text.sample(&[("age", &age)], count);
    }
}

fn round_trips(text: &mut Text, stats: &Stats) {
    text.family(
        "echogate_round_trip_seconds",
        Kind::Histogram,
        &format!(
            "Round trips of a sample of the echoes (one in {SAMPLE_EVERY}), from the gateway to the remote and back."
        ),
    );
    let RoundTrips { ends_seconds, counts, sum_seconds } = &stats.round_trips;
    let mut up_to_here = 0;
    for (end, count) in ends_seconds.iter().zip(counts) {
        up_to_here += count;
        text.part("_bucket", &[("le", end)], up_to_here);
    }
    let all: u64 = counts.iter().sum();
    text.part("_bucket", &[("le", &"+Inf")], all);
    text.part("_sum", &[], sum_seconds);
    text.part("_count", &[], all);
}

fn losses(text: &mut Text, stats: &Stats) {
    text.family("echogate_samples_lost_total", Kind::Counter, "Sampled echoes that found no room to be told of.");
    text.sample(&[], stats.samples_lost);
    text.family("echogate_traces_missed_total", Kind::Counter, "Packets of a trace that were too many to tell.");
    text.sample(&[], stats.traces_missed);
    text.family("echogate_log_lines_lost_total", Kind::Counter, "Log lines that nobody read in time.");
    text.sample(&[], stats.log_lines_lost);
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The text, a family at a time. Writing to a String cannot fail.
struct Text {
    text: String,
    /// The family that was begun last.
    name: String,
}

impl Text {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        name.clone_into(&mut self.name);
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A sample of the family that was begun last.
    fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.part("", labels, value);
    }

    /// A sample of a part of a histogram.
    fn part(&mut self, part: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(&self.name);
        self.text.push_str(part);
        for (position, (label, value)) in labels.iter().enumerate() {
            let before = if position == 0 { '{' } else { ',' };
            let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}
