//! What the control thread makes of the packets that workers let it see.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::busiest::{Busiest, Tally};
use crate::clock::Instant;
use crate::gateway::Observer;
use crate::metrics::Snapshot;
use crate::worker::{Event, Fate, SAMPLE_EVERY, Trace};

/// How many of the busiest are told.
const TOP: usize = 20;

/// What single packets have told, and who listens to a trace.
#[derive(Debug)]
pub(super) struct Traffic {
    clients: Busiest,
    remotes: Busiest,
    /// Packets of traces that were not told, when that was last said.
    missed: u64,
}

/// Who is busiest, by samples of the last seconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BusiestNow {
    /// The seconds that the rates are of.
    pub seconds: f64,
    /// Clients by their requests.
    pub clients: Vec<Busy>,
    /// Remotes by the requests to them.
    pub remotes: Vec<Busy>,
}

/// A busy address.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Busy {
    /// Whose.
    pub address: String,
    /// Requests a second, about.
    pub per_second: f64,
    /// How far that may be too high because a busier time's address gave it its place.
    pub error_per_second: f64,
    /// The mean round trip, if replies have been sampled.
    pub round_trip_seconds: Option<f64>,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Traffic {
        Traffic { clients: Busiest::new(now), remotes: Busiest::new(now), missed: 0 }
    }

    /// Takes in what has come; what is of a trace is handed to `trace`, as lines.
    pub(super) fn take(&mut self, observer: &Observer, now: Instant, mut trace: impl FnMut(Value)) {
        self.clients.turn(now);
        self.remotes.turn(now);
        while let Some(event) = observer.basin().take() {
            match event {
                Event::Asked { client, remote, .. } => {
                    self.clients.asked(client);
                    self.remotes.asked(remote);
                }
                Event::Answered { client, remote, after } => {
                    self.clients.answered(client, after);
                    self.remotes.answered(remote, after);
                }
                Event::Trace(traced) => trace(line(&traced)),
            }
        }
    }

    /// How many packets of traces have not been told since this was last asked.
    pub(super) fn newly_missed(&mut self, totals: &Snapshot) -> u64 {
        let before = std::mem::replace(&mut self.missed, totals.traces_missed);
        totals.traces_missed.saturating_sub(before)
    }

    pub(super) fn busiest(&self, now: Instant) -> BusiestNow {
        let (clients, time) = self.clients.top(TOP, now);
        let (remotes, _) = self.remotes.top(TOP, now);
        let seconds = time.as_secs_f64();
        let busy = |top: Vec<(std::net::Ipv4Addr, Tally)>| top.into_iter().map(|entry| busy(entry, seconds)).collect();
        BusiestNow { seconds: rounded(seconds), clients: busy(clients), remotes: busy(remotes) }
    }
}

fn busy((address, tally): (std::net::Ipv4Addr, Tally), seconds: f64) -> Busy {
    // Before a first moment has passed there is no rate to tell.
    let rate = |count: u64| if seconds > 0.0 { rounded(count as f64 * f64::from(SAMPLE_EVERY) / seconds) } else { 0.0 };
    Busy {
        address: address.to_string(),
        per_second: rate(tally.count),
        error_per_second: rate(tally.error),
        round_trip_seconds: (tally.answered > 0).then(|| tally.answered_us as f64 / tally.answered as f64 / 1e6),
    }
}

/// To the thousandth: more digits say nothing.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn line(trace: &Trace) -> Value {
    let (fate, detail) = match trace.fate {
        Fate::Forwarded { ident } => ("forwarded", ident.map(Value::from)),
        Fate::Delivered { client } => ("delivered", Some(client.to_string().into())),
        Fate::FellThrough => ("fell_through", None),
        Fate::Waits => ("waits", None),
        Fate::Dropped(reason) => ("dropped", Some(reason.name().into())),
    };
    let detail_name = match trace.fate {
        Fate::Forwarded { .. } => "gateway_ident",
        Fate::Delivered { .. } => "client",
        _ => "reason",
    };
    let mut line = json!({
        "direction": if trace.outbound { "outbound" } else { "inbound" },
        "source": trace.source.to_string(),
        "destination": trace.destination.to_string(),
        "ident": trace.echo.map(|(ident, _)| ident),
        "sequence": trace.echo.map(|(_, sequence)| sequence),
        "bytes": trace.bytes,
        "fate": fate,
    });
    if let Some(detail) = detail {
        line[detail_name] = detail;
    }
    line
}
