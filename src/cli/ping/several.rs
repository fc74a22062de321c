//! Several hosts, in the lines of fping: without a count who is alive, with one every reply and then a line a host.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::hosts::{Host, Hosts};
use super::session::{Event, Progress, Report};
use super::single::{stamp, time};
use super::stats::Stats;
use crate::cli::print;
use crate::pinger::{Payload, StrayKind};

/// How a list's run is told.
pub(super) struct Several {
    /// One request each: who is alive.
    pub(super) alive: bool,
    pub(super) quiet: bool,
    pub(super) timestamps: bool,
    /// How wide the column of names is.
    pub(super) width: usize,
}

impl Report for Several {
    fn begin(&mut self, hosts: &Hosts) {
        self.width = hosts.list.iter().map(|host| host.name.len()).max().unwrap_or(0);
    }

    fn event(&mut self, hosts: &Hosts, host: usize, sequence: u64, event: Event<'_>) {
        let Some(host) = hosts.list.get(host).filter(|_| !self.quiet) else { return };
        let name = &host.name;
        let line = match event {
            Event::Settled(Ok(_)) if self.alive => format!("{name} is alive\n"),
            Event::Settled(Err(error)) if self.alive => match error.sender() {
                Some(from) => format!("{name} is unreachable ({} from {from})\n", error.reason()),
                None if error.is_silence() => format!("{name} is unreachable\n"),
                None => format!("{name} is unreachable ({})\n", error.reason()),
            },
            Event::Stray(_) if self.alive => return,
            Event::Settled(outcome) => {
                let what = match outcome {
                    Ok(reply) => {
                        let broken = if reply.payload == Payload::Intact { "" } else { " (corrupt)" };
                        format!("{} bytes, {} ms{broken}", reply.bytes, time(reply.rtt))
                    }
                    Err(error) if error.is_silence() => "timed out".to_owned(),
                    Err(error) => error.to_string(),
                };
                let (index, width) = (sequence - 1, self.width);
                format!("{name:width$} : [{index}], {what} ({})\n", so_far(host))
            }
            Event::Stray(stray) => {
                let kind = if stray.kind == StrayKind::Duplicate { "duplicate" } else { "late" };
                let (index, width) = (sequence - 1, self.width);
                format!("{name:width$} : [{index}], {kind}, {} ms\n", time(stray.reply.rtt))
            }
        };
        let at = match event {
            Event::Settled(Ok(reply)) => reply.received,
            Event::Settled(Err(_)) => SystemTime::now(),
            Event::Stray(stray) => stray.reply.received,
        };
        print(&if self.timestamps { stamp(at) + &line } else { line });
    }

    fn interim(&mut self, hosts: &Hosts, progress: &Progress) {
        print(&lines(hosts, progress, self.width));
    }

    fn end(&mut self, hosts: &Hosts, progress: &Progress) {
        if !self.alive {
            print(&format!("\n{}", lines(hosts, progress, self.width)));
        }
    }
}

fn so_far(host: &Host) -> String {
    let Some(stats) = host.stats() else { return String::new() };
    let loss = stats.loss_percent(0);
    match stats.times() {
        Some(times) => format!("{:.3} avg, {loss:.0}% loss", times.avg),
        None => format!("NaN avg, {loss:.0}% loss"),
    }
}

fn lines(hosts: &Hosts, progress: &Progress, width: usize) -> String {
    let (mut text, none) = (String::new(), Stats::new(false));
    for (number, host) in hosts.list.iter().enumerate() {
        let (stats, waiting) = (host.stats().unwrap_or(&none), progress.waiting(number));
        let (name, sent, loss) = (&host.name, stats.sent(waiting), stats.loss_percent(waiting));
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, "{name:width$} : xmt/rcv/%loss = {sent}/{}/{loss:.0}%", stats.received);
        if let Some(times) = stats.times() {
            let _ = write!(text, ", min/avg/max = {:.3}/{:.3}/{:.3}", times.min, times.avg, times.max);
            if let Some([p50, p90, p99]) = times.percentiles {
                let _ = write!(text, ", p50/p90/p99 = {p50:.3}/{p90:.3}/{p99:.3}");
            }
        }
        text.push('\n');
    }
    text
}
