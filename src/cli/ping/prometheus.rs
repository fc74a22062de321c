//! `--prometheus`: the numbers for a scraper, in the text exposition format 0.0.4.
//!
//! One thread answers one request at a time. A scraper that reads slowly holds up the next one, never the pings.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread;

use tiny_http::{Header, Method, Response, Server};

use super::hosts::Host;
use super::session::{Shared, lock};
use super::stats::{BUCKETS_US, Stats, float};
use crate::error::SetupError;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The most hosts that are served: some thirty series each, which is what a scraper takes at once, and some megabytes a scrape.
pub(super) const HOSTS_MAX: usize = 10_000;

/// Serves until the process ends; the address that it listens at.
pub(super) fn serve(at: SocketAddr, hosts: &Shared) -> Result<SocketAddr, SetupError> {
    let refused = |cause: String| {
        SetupError::new(format!("--prometheus: cannot listen at {at}: {cause}"))
            .remedy("give an address of this host and a port that is free, such as 127.0.0.1:9427")
    };
    let server = Server::http(at).map_err(|error| refused(error.to_string()))?;
    let bound = server.server_addr().to_ip().unwrap_or(at);
    let hosts = Shared::clone(hosts);
    let answer = move || {
        for request in server.incoming_requests() {
            let path = request.url().split('?').next().unwrap_or_default();
            let (status, body) = match (request.method(), path) {
                (Method::Get | Method::Head, "/metrics") => (200, exposition(&hosts)),
                (Method::Get | Method::Head, _) => (404, "the metrics are at /metrics\n".to_owned()),
                _ => (405, "GET only\n".to_owned()),
            };
            let mut response = Response::from_string(body).with_status_code(status);
            if let Ok(header) = Header::from_bytes("Content-Type", CONTENT_TYPE) {
                response.add_header(header);
            }
            // Whoever asked may have gone.
            let _ = request.respond(response);
        }
    };
    thread::Builder::new()
        .name("prometheus".to_owned())
        .spawn(answer)
        .map_err(|cause| SetupError::caused("cannot start the thread that serves metrics", cause))?;
    Ok(bound)
}

/// A counter: its name, its meaning, where it is.
type Family = (&'static str, &'static str, fn(&Stats) -> u64);

const COUNTERS: [Family; 9] = [
    ("echogate_ping_settled_total", "Requests with an outcome", |stats| stats.settled),
    ("echogate_ping_received_total", "Replies in time", |stats| stats.received),
    ("echogate_ping_lost_total", "Requests without a reply in time, errors included", |stats| stats.lost),
    ("echogate_ping_late_total", "Replies after the timeout", |stats| stats.late),
    ("echogate_ping_duplicates_total", "Further replies to one request", |stats| stats.duplicates),
    ("echogate_ping_corrupt_total", "Replies with another payload than was sent", |stats| stats.corrupt),
    ("echogate_ping_reordered_total", "Replies after one to a later request", |stats| stats.reordered),
    ("echogate_ping_errors_total", "Requests that an error ended", |stats| stats.errors),
    ("echogate_ping_dropped_here_total", "Requests lost while this host dropped packets", |stats| stats.dropped_here),
];

/// Hosts that are written under one lock: the run waits for no more than these, however many there are.
const LOCKED_MAX: usize = 64;

/// Each host's numbers, in the order of the hosts. Those of one are of one moment; those of two need not be.
fn each(hosts: &Shared, mut write: impl FnMut(&str, &Stats)) {
    let none = Stats::new(false);
    let mut begin = 0;
    loop {
        let locked = lock(hosts);
        let some = locked.list.iter().skip(begin).take(LOCKED_MAX);
        let count = some.len();
        some.for_each(|host| write(&labels(host), host.stats().unwrap_or(&none)));
        if count < LOCKED_MAX {
            return;
        }
        begin += count;
    }
}

/// Writing to a String cannot fail, here and below.
fn exposition(hosts: &Shared) -> String {
    let mut text = String::new();
    for (name, meaning, count) in COUNTERS {
        let _ = write!(text, "# HELP {name} {meaning}.\n# TYPE {name} counter\n");
        each(hosts, |labels, stats| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", count(stats));
        });
    }
    let name = "echogate_ping_rtt_seconds";
    let _ = write!(text, "# HELP {name} Round-trip times.\n# TYPE {name} histogram\n");
    each(hosts, |labels, stats| {
        let mut up_to_here = 0;
        for (end_us, count) in BUCKETS_US.iter().zip(stats.buckets) {
            up_to_here += count;
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{}\"}} {up_to_here}", float(*end_us) / 1e6);
        }
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", stats.received);
        let _ = writeln!(text, "{name}_sum{{{labels}}} {}", stats.sum_seconds());
        let _ = writeln!(text, "{name}_count{{{labels}}} {}", stats.received);
    });
    text
}

fn labels(host: &Host) -> String {
    let name = host.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("host=\"{name}\",address=\"{}\"", host.ip())
}
