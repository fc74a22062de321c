//! All numbers as one object: the answer to `stats`. docs/metrics.md says what each of them means.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::traffic::{BusiestNow, rounded};
use crate::error::SetupError;
use crate::gateway::Observer;
use crate::io::Engine;
use crate::metrics::{ROUND_TRIP_ENDS_US, Snapshot, Traffic};
use crate::proxy::OutsideAddress;

/// How an engine is called where programs read it.
const fn engine(engine: Engine) -> &'static str {
    match engine {
        Engine::Uring => "io_uring",
        Engine::Syscalls => "syscalls",
    }
}

/// What a gateway is and has counted.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The gateway's version.
    pub version: String,
    /// What it serves, in one line.
    pub description: String,
    /// Its TUN device.
    pub device: String,
    /// What moves the packets: `io_uring` or `syscalls`.
    pub engine: String,
    /// Number of workers.
    pub workers: usize,
    /// Its addresses outside.
    #[serde(default)]
    pub addresses: Vec<AddressNow>,
    /// For how long it has been serving.
    pub uptime_seconds: f64,
    /// Whether every worker moves.
    pub healthy: bool,
    /// Read from the TUN.
    pub inside_in: Traffic,
    /// To clients: replies, errors and what was reinjected.
    pub inside_out: Traffic,
    /// Received by the raw sockets.
    pub outside_in: Traffic,
    /// Requests sent.
    pub outside_out: Traffic,
    /// Replies delivered to clients.
    pub delivered: Traffic,
    /// Errors from outside passed on to clients.
    pub told: Traffic,
    /// Packets put back on the existing path.
    pub reinjected: Traffic,
    /// Requests that each worker has sent.
    pub sent_by_worker: Vec<u64>,
    /// Drops by name, zero ones left out.
    pub drops: BTreeMap<String, u64>,
    /// Requests refused, by class of clients.
    pub refused: BTreeMap<String, u64>,
    /// Errors of the gateway's own to clients.
    pub originated: Traffic,
    /// Those that could not be sent.
    pub not_originated: u64,
    /// Pieces cut off requests that were too large for the way out.
    pub cut_off: Traffic,
    /// Those that could not be sent.
    pub cut_off_lost: u64,
    /// What the kernel had no room for.
    pub socket_drops: BySide,
    /// Mappings live now.
    pub mappings: u64,
    /// Mappings live at most so far.
    pub mappings_peak: u64,
    /// Mappings that can live at once.
    pub mappings_max: u64,
    /// Requests sent and not answered yet.
    pub outstanding: u64,
    /// Requests that can be outstanding at once.
    pub outstanding_max: u64,
    /// Requests that nobody answered in time.
    pub unanswered: u64,
    /// Requests given up for others, by age: under 1 s, under 10 s, older.
    pub evicted: [u64; 3],
    /// Round trips of a sample of the echoes.
    pub round_trips: RoundTrips,
    /// Who is busiest, by samples.
    pub busiest: BusiestNow,
    /// Samples that found no room.
    pub samples_lost: u64,
    /// Packets of traces that were not told.
    pub traces_missed: u64,
    /// Log lines that found no room.
    pub log_lines_lost: u64,
}

/// One of the gateway's addresses outside.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AddressNow {
    /// The address.
    pub address: Ipv4Addr,
    /// `open`; `draining` (named no more, until nothing is on it), `lost` (the host has it no more): no new mappings.
    pub state: String,
    /// Idents that are somebody's, or rest before they can be anybody's.
    pub idents_used: u64,
}

impl From<OutsideAddress> for AddressNow {
    fn from(from: OutsideAddress) -> AddressNow {
        let state = match from {
            OutsideAddress { lost: true, .. } => "lost",
            OutsideAddress { draining: true, .. } => "draining",
            _ => "open",
        };
        AddressNow { address: from.address, state: state.to_owned(), idents_used: from.idents_used as u64 }
    }
}

/// Round trips by class.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RoundTrips {
    /// The upper ends of the classes in seconds; the last class has none.
    pub ends_seconds: Vec<f64>,
    /// How many each class has.
    pub counts: Vec<u64>,
    /// The sum of all.
    pub sum_seconds: f64,
}

/// A number for each side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BySide {
    /// At the TUN device.
    pub inside: u64,
    /// At the raw sockets.
    pub outside: u64,
}

impl Stats {
    /// What the gateway itself knows of it; the rest is of who looks.
    pub(super) fn of(observer: &Observer) -> Stats {
        let (totals, sizes) = (observer.snapshot(), observer.sizes());
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            description: observer.description().to_owned(),
            device: observer.device().to_owned(),
            engine: engine(observer.engine()).to_owned(),
            workers: observer.workers(),
            addresses: observer.addresses().into_iter().map(AddressNow::from).collect(),
            uptime_seconds: rounded(observer.uptime().as_secs_f64()),
            healthy: true,
            inside_in: totals.inside_in,
            inside_out: totals.inside_out,
            outside_in: totals.outside_in,
            outside_out: totals.outside_out,
            delivered: totals.delivered,
            told: totals.told,
            reinjected: totals.reinjected,
            sent_by_worker: totals.sent_by_worker,
            drops: totals.drops.into_iter().collect(),
            refused: observer.classes().iter().cloned().zip(totals.refused).collect(),
            originated: totals.originated,
            not_originated: totals.not_originated,
            cut_off: totals.cut_off,
            cut_off_lost: totals.cut_off_lost,
            socket_drops: BySide::default(),
            mappings: totals.mappings,
            mappings_peak: totals.mappings_peak,
            mappings_max: sizes.mappings_max as u64,
            outstanding: totals.outstanding,
            outstanding_max: sizes.echoes_max as u64,
            unanswered: totals.unanswered,
            evicted: totals.evicted,
            round_trips: RoundTrips {
                ends_seconds: ROUND_TRIP_ENDS_US.into_iter().map(|micros| f64::from(micros) / 1e6).collect(),
                counts: totals.round_trips.to_vec(),
                sum_seconds: totals.round_trips_us as f64 / 1e6,
            },
            busiest: BusiestNow::default(),
            samples_lost: totals.samples_lost,
            traces_missed: totals.traces_missed,
            log_lines_lost: 0,
        }
    }

    /// As a gateway answers; members that are not known are passed over.
    pub fn read(answer: Value) -> Result<Stats, SetupError> {
        serde_json::from_value(answer).map_err(|error| {
            SetupError::new(format!("the gateway's answer lacks something: {error}"))
                .remedy("take the echogate that the gateway was started with")
        })
    }

    /// The counters among them.
    pub fn totals(&self) -> Snapshot {
        Snapshot {
            inside_in: self.inside_in,
            inside_out: self.inside_out,
            outside_in: self.outside_in,
            outside_out: self.outside_out,
            sent_by_worker: self.sent_by_worker.clone(),
            delivered: self.delivered,
            told: self.told,
            reinjected: self.reinjected,
            drops: self.drops.clone().into_iter().collect(),
            refused: self.refused.values().copied().collect(),
            originated: self.originated,
            not_originated: self.not_originated,
            cut_off: self.cut_off,
            cut_off_lost: self.cut_off_lost,
            mappings: self.mappings,
            mappings_peak: self.mappings_peak,
            outstanding: self.outstanding,
            unanswered: self.unanswered,
            evicted: self.evicted,
            // What people are told of their totals has no more.
            ..Snapshot::default()
        }
    }
}
