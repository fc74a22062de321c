//! The run for programs: JSON, one object a line, or CSV.
//!
//! Every JSON line has `"v": 1` and a `"type"`. A reader ignores keys and types that it does not know; a change that would break
//! such a reader gets another number. `docs/ping.md` has the keys.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::hosts::Hosts;
use super::session::{Event, Progress, Report};
use super::stats::{Stats, millis};
use crate::cli::print;
use crate::pinger::{Payload, PingError, Reply, StrayKind};

const VERSION: u32 = 1;

/// JSON lines.
pub(super) struct Json {
    pub(super) summary_only: bool,
}

impl Report for Json {
    fn begin(&mut self, _hosts: &Hosts) {}

    fn event(&mut self, hosts: &Hosts, host: usize, sequence: u64, event: Event<'_>) {
        let Some(host) = hosts.list.get(host).filter(|_| !self.summary_only) else { return };
        let mut line = json!({
            "v": VERSION,
            "type": kind(event),
            "host": host.name,
            "address": host.ip().to_string(),
            "seq": sequence,
            "time": seconds(match event {
                Event::Settled(Ok(reply)) => reply.received,
                Event::Settled(Err(_)) => SystemTime::now(),
                Event::Stray(stray) => stray.reply.received,
            }),
        });
        match event {
            Event::Settled(Ok(reply)) => add_reply(&mut line, reply),
            Event::Stray(stray) => add_reply(&mut line, &stray.reply),
            Event::Settled(Err(error)) => {
                line["reason"] = error.reason().into();
                if let Some(from) = error.sender() {
                    line["from"] = from.to_string().into();
                }
                if let Some((icmp_type, code)) = error.icmp() {
                    line["icmp_type"] = icmp_type.into();
                    line["icmp_code"] = code.into();
                }
                match error {
                    PingError::TooBig { mtu, .. } => line["mtu"] = (*mtu).into(),
                    PingError::SendFailed { errno, mtu } => {
                        line["errno"] = (*errno).into();
                        if let Some(mtu) = mtu {
                            line["mtu"] = (*mtu).into();
                        }
                    }
                    _ => {}
                }
            }
        }
        print(&format!("{line}\n"));
    }

    fn interim(&mut self, hosts: &Hosts, progress: &Progress) {
        summaries(hosts, progress, "interim");
    }

    fn end(&mut self, hosts: &Hosts, progress: &Progress) {
        summaries(hosts, progress, "summary");
    }
}

fn kind(event: Event<'_>) -> &'static str {
    match event {
        Event::Settled(Ok(_)) => "reply",
        Event::Settled(Err(error)) if error.is_silence() => "timeout",
        Event::Settled(Err(_)) => "error",
        Event::Stray(stray) if stray.kind == StrayKind::Duplicate => "duplicate",
        Event::Stray(_) => "late",
    }
}

fn add_reply(line: &mut Value, reply: &Reply) {
    line["bytes"] = reply.bytes.into();
    line["ttl"] = reply.ttl.into();
    line["rtt_ms"] = rounded(millis(reply.rtt));
    line["corrupt"] = (reply.payload != Payload::Intact).into();
}

fn summaries(hosts: &Hosts, progress: &Progress, kind: &str) {
    let none = Stats::new(false);
    for (number, host) in hosts.list.iter().enumerate() {
        let stats = host.stats().unwrap_or(&none);
        let waiting = progress.waiting(number);
        let times = stats.times();
        let [p50, p90, p99] = times.and_then(|times| times.percentiles).map_or([const { None }; 3], |p| p.map(Some));
        let senders: serde_json::Map<String, Value> =
            stats.errors_by_sender.iter().map(|(from, count)| (from.to_string(), (*count).into())).collect();
        let ms = |time: Option<f64>| time.map_or(Value::Null, rounded);
        let line = json!({
            "v": VERSION,
            "type": kind,
            "host": host.name,
            "address": host.ip().to_string(),
            "elapsed_ms": rounded(millis(progress.elapsed)),
            "sent": stats.sent(waiting),
            "received": stats.received,
            "loss_percent": rounded(stats.loss_percent(waiting)),
            "late": stats.late,
            "duplicates": stats.duplicates,
            "corrupt": stats.corrupt,
            "reordered": stats.reordered,
            "errors": stats.errors,
            "errors_by_sender": senders,
            "errors_of_other_senders": stats.errors_of_other_senders,
            "dropped_here": stats.dropped_here,
            "rtt_ms": {
                "min": ms(times.map(|times| times.min)),
                "avg": ms(times.map(|times| times.avg)),
                "max": ms(times.map(|times| times.max)),
                "mdev": ms(times.map(|times| times.mdev)),
                "jitter": ms(times.and_then(|times| times.jitter)),
                "p50": ms(p50),
                "p90": ms(p90),
                "p99": ms(p99),
            },
        });
        print(&format!("{line}\n"));
    }
}

/// To a millionth: a nanosecond of a millisecond.
fn rounded(number: f64) -> Value {
    ((number * 1e6).round() / 1e6).into()
}

fn seconds(at: SystemTime) -> Value {
    rounded(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

/// CSV by RFC 4180, a line an outcome, and nothing else: a summary would be a table of its own.
pub(super) struct Csv;

impl Report for Csv {
    fn begin(&mut self, _hosts: &Hosts) {
        print("time,type,host,address,seq,bytes,ttl,rtt_ms,from,reason\n");
    }

    fn event(&mut self, hosts: &Hosts, host: usize, sequence: u64, event: Event<'_>) {
        let Some(host) = hosts.list.get(host) else { return };
        let reply = match event {
            Event::Settled(Ok(reply)) => Some(reply),
            Event::Stray(stray) => Some(&stray.reply),
            Event::Settled(Err(_)) => None,
        };
        let error = match event {
            Event::Settled(Err(error)) => Some(error),
            _ => None,
        };
        let at = reply.map_or_else(SystemTime::now, |reply| reply.received);
        let from = error.and_then(PingError::sender).map(|from| from.to_string()).unwrap_or_default();
        let corrupt = reply.filter(|reply| reply.payload != Payload::Intact).map(|_| "corrupt".to_owned());
        let reason = error.map(|error| error.reason().into_owned()).or(corrupt).unwrap_or_default();
        print(&format!(
            "{},{},{},{},{sequence},{},{},{},{from},{}\n",
            seconds(at),
            kind(event),
            field(&host.name),
            host.ip(),
            reply.map(|reply| reply.bytes.to_string()).unwrap_or_default(),
            reply.and_then(|reply| reply.ttl).map(|ttl| ttl.to_string()).unwrap_or_default(),
            reply.map(|reply| rounded(millis(reply.rtt)).to_string()).unwrap_or_default(),
            field(&reason),
        ));
    }

    fn interim(&mut self, _hosts: &Hosts, _progress: &Progress) {}

    fn end(&mut self, _hosts: &Hosts, _progress: &Progress) {}
}

fn field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_a_comma_or_a_quote_is_quoted() {
        assert_eq!(field("Time to live exceeded"), "Time to live exceeded");
        assert_eq!(field("a, \"b\""), "\"a, \"\"b\"\"\"");
    }
}
