//! What a bench writes down: the JSON's shape, one type an object.
//!
//! The schema's number changes when a key is removed or changes its meaning, not when one is added; unknown keys are
//! ignored when a record is read. All that is printed or plotted is computed from here ([`super::figures`]), so a page
//! or a comparison can be made again from a record that is years old.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::warning::Warning;
use crate::error::SetupError;

/// The version of the JSON's shape.
pub const SCHEMA: u32 = 1;
/// What tells a record from other JSON.
pub const KIND: &str = "echogate-bench";

/// One run of the bench.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`KIND`].
    pub kind: String,
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether every trial was made: no interruption, no error.
    pub complete: bool,
    /// When it began, in seconds since 1970.
    pub started_unix_s: u64,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked for.
    pub setting: Setting,
    /// Who took part, in the order of the tables.
    pub contenders: Vec<Participant>,
    /// Who could not.
    pub absent: Vec<Absent>,
    /// What was measured, in the order in which it was.
    pub trials: Vec<Trial>,
    /// Doubts about all that.
    pub warnings: Vec<Warning>,
}

/// A machine, as far as figures depend on it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// `Linux 6.12.1`.
    pub kernel: String,
    /// The model's name.
    pub cpu: String,
    /// CPUs that the bench may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The hypervisor's flag among the CPU's.
    pub virtual_machine: bool,
    /// The kernel's answer to each known vulnerability of the CPU, those that do not affect it left out.
    pub mitigations: BTreeMap<String, String>,
    /// The version of the command, with the commit where the build knew it.
    pub echogate: String,
    /// How the measured binary was built: `release` or `debug`.
    pub build: String,
    /// The versions of the other contenders' programs.
    pub programs: BTreeMap<String, String>,
    /// The one-minute load average when the bench began, in hundredths.
    pub load_average_percent: u64,
}

/// What a run was asked to do. Two runs with different settings are not comparable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// Whether loads were searched for (`--full`), or a closed loop run.
    pub full: bool,
    /// Times that each contender had its turn.
    pub rounds: u32,
    /// Seconds of each load.
    pub seconds: u64,
    /// Echoes under way at once in a closed loop, all generators together.
    pub in_flight: usize,
    /// Echoes a second of the light load.
    pub light_per_s: u64,
    /// Remotes that every client pings.
    pub remotes: usize,
    /// Seconds for which most of the own PDR was held, beside the control at the same load (`--hold`).
    #[serde(default)]
    pub hold_seconds: Option<u64>,
    /// Whether a single ping's time was taken on a busy machine, too (`--busy`).
    #[serde(default)]
    pub busy: bool,
}

/// One that took part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Participant {
    /// `echogate-uring-2`.
    pub name: String,
    /// In words.
    pub description: String,
}

/// One that could not, and what would let it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Absent {
    /// The contender.
    pub name: String,
    /// Why.
    pub cause: String,
    /// What mends it.
    pub cure: String,
}

/// The traffic of a trial: sizes and sources. The name's order is that of the tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// Addresses that ping, all generators together.
    pub clients: usize,
    /// Idents of each.
    pub idents: u16,
    /// Bytes of the ICMP message: header and payload.
    pub icmp_bytes: usize,
}

/// One contender's turn, in a lab of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// Who.
    pub contender: String,
    /// From 0.
    pub round: u32,
    /// With which traffic.
    pub scenario: Scenario,
    /// Generators: hosts that clients ping from, each a thread with one socket.
    pub generators: usize,
    /// The loads, in their order.
    pub steps: Vec<Step>,
    /// Highest load without a loss, in echoes a second; of a search.
    pub ndr_per_s: Option<u64>,
    /// Highest load of which no more than 0.5% was lost.
    pub pdr_per_s: Option<u64>,
    /// The share of the machine's time, in percent, that something else took just before.
    #[serde(default)]
    pub background_percent: u64,
    /// The gateway's own totals and drops, if it is Echogate.
    pub gateway: BTreeMap<String, u64>,
    /// Why it could not be finished.
    pub error: Option<String>,
}

/// What a load was for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A single ping's time: an open loop at a load that nobody notices.
    Light,
    /// The same while every CPU has something else to do.
    LightBusy,
    /// As many echoes as come back, `in_flight` of them under way: throughput and cost.
    Saturation,
    /// One load on the way to NDR and PDR.
    Search,
    /// A load at which a search ended, held for longer.
    Confirmation,
    /// Latency at this share of the own PDR, in percent.
    OfPdr(u8),
    /// Latency at a load that is the same for all.
    Equal,
    /// Latency at half of the masquerade's PDR, for all.
    HalfOfMasquerades,
    /// A high share of the own PDR, for long; of the control, the same load as another's.
    Hold,
}

/// One load and all that was seen of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What it was for.
    pub purpose: Purpose,
    /// Echoes a second that were to be sent; none in a closed loop.
    pub asked_per_s: Option<u64>,
    /// From the first request to the last reply.
    pub elapsed_us: u64,
    /// Requests that left.
    pub sent: u64,
    /// Right replies.
    pub received: u64,
    /// Requests without.
    pub lost: u64,
    /// Replies to another client's requests.
    pub wrong_client: u64,
    /// Replies that are nobody's as they came.
    pub altered: u64,
    /// Replies that came twice.
    pub duplicates: u64,
    /// Replies after a second.
    pub late: u64,
    /// ICMP errors.
    pub errors: u64,
    /// Round trips in microseconds: of an open loop from when requests were due, of a closed one from when they left.
    pub round_trip_us: Quantiles,
    /// Of an open loop: from when they left.
    pub from_sent_us: Option<Quantiles>,
    /// Of an open loop: how late requests left.
    pub schedule_error_us: Option<Quantiles>,
    /// What the machine's CPUs did meanwhile.
    pub cpu: CpuTimes,
    /// What the contender's process did, if it has one.
    pub process: Option<ProcessUse>,
    /// Packets that were thrown away, by place: only those that are not 0.
    pub drops: BTreeMap<String, u64>,
}

/// Times that shares of the echoes did not exceed, in microseconds.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles(pub Vec<(f64, f64)>);

/// The shares that are written down: enough for a curve on a log axis.
pub const SHARES: [f64; 15] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1.0];

impl Quantiles {
    /// The time that this share, one of [`SHARES`], did not exceed.
    pub fn at(&self, share: f64) -> Option<f64> {
        self.0.iter().find(|(known, _)| (known - share).abs() < 1e-9).map(|(_, micros)| *micros)
    }
}

/// CPU time of the whole machine, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuTimes {
    /// Programs.
    pub user_us: u64,
    /// The kernel for them.
    pub system_us: u64,
    /// The kernel for devices: interrupts and what they leave to be done.
    pub interrupt_us: u64,
    /// Nothing.
    pub idle_us: u64,
    /// What the hypervisor gave to others.
    pub steal_us: u64,
}

impl CpuTimes {
    /// What the machine worked.
    pub fn busy_us(&self) -> u64 {
        self.user_us + self.system_us + self.interrupt_us
    }
}

/// What a process used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessUse {
    /// CPU time in its own code, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel on its behalf.
    pub system_us: u64,
    /// Times that a thread of its waited.
    pub waits: u64,
    /// Times that a thread of its had to make room for another.
    pub preemptions: u64,
    /// Resident memory, at the end.
    pub resident_bytes: u64,
    /// Threads, at the end.
    pub threads: u64,
}

impl Step {
    /// Right replies a second.
    #[expect(clippy::cast_precision_loss, reason = "counts of packets are far below 2^52")]
    pub fn echoes_per_s(&self) -> f64 {
        self.received as f64 * 1e6 / self.elapsed_us.max(1) as f64
    }

    /// The share of the requests that was lost.
    #[expect(clippy::cast_precision_loss, reason = "counts of packets are far below 2^52")]
    pub fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }

    /// The machine's CPU time for each right reply, in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "counts of packets are far below 2^52")]
    pub fn busy_us_per_echo(&self) -> Option<f64> {
        (self.received > 0).then(|| self.cpu.busy_us() as f64 / self.received as f64)
    }

    /// The share of the machine's time that the hypervisor gave to others.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^52")]
    pub fn steal(&self) -> f64 {
        let all = self.cpu.busy_us() + self.cpu.idle_us + self.cpu.steal_us;
        self.cpu.steal_us as f64 / all.max(1) as f64
    }

    /// Replies that prove a fault: whatever else was measured, they fail the run.
    pub fn wrong(&self) -> u64 {
        self.wrong_client + self.altered + self.duplicates
    }
}

impl Trial {
    /// The first load with this purpose.
    pub fn step(&self, purpose: Purpose) -> Option<&Step> {
        self.steps.iter().find(|step| step.purpose == purpose)
    }
}

impl Record {
    /// Reads what [`json`](Record::json) wrote, whatever its age as long as the schema's number is ours.
    pub fn parse(text: &str, name: &str) -> Result<Record, SetupError> {
        let unusable = |why: String| {
            SetupError::new(format!("{name}: {why}"))
                .remedy("give the JSON file that `echogate bench` wrote, of a version with the same schema")
        };
        // The schema first: what is another version's need not look like ours in anything else.
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| unusable(format!("no JSON: {error}")))?;
        if value["kind"] != KIND {
            return Err(unusable("not a bench's result".to_owned()));
        }
        if value["schema"] != SCHEMA {
            return Err(unusable(format!("schema {}, and this version reads {SCHEMA}", value["schema"])));
        }
        serde_json::from_value(value).map_err(|error| unusable(error.to_string()))
    }

    /// One JSON object and a line feed; each trial has a line of its own, so that a text tool finds its way.
    pub fn json(&self) -> String {
        // Strings, numbers and maps with string keys: nothing that JSON cannot say, so nothing fails here.
        let Ok(serde_json::Value::Object(mut whole)) = serde_json::to_value(self) else { return String::new() };
        let trials = whole.insert("trials".to_owned(), serde_json::Value::Array(Vec::new()));
        let trials = trials.as_ref().and_then(serde_json::Value::as_array).into_iter().flatten();
        let lines: Vec<String> = trials.map(|trial| format!("    {trial}")).collect();
        let frame = serde_json::to_string_pretty(&whole).unwrap_or_default();
        frame.replacen("\"trials\": []", &format!("\"trials\": [\n{}\n  ]", lines.join(",\n")), 1) + "\n"
    }

    /// What fails the run, one sentence each: replies that were wrong.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for trial in &self.trials {
            for (count, what) in [
                (trial.steps.iter().map(|step| step.wrong_client).sum::<u64>(), "reached the wrong client"),
                (trial.steps.iter().map(|step| step.altered).sum(), "were altered"),
                (trial.steps.iter().map(|step| step.duplicates).sum(), "came twice"),
            ] {
                if count > 0 {
                    failures.push(format!("{}, round {}: {count} replies {what}", trial.contender, trial.round + 1));
                }
            }
        }
        failures
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A load that went well and took no CPU time.
    pub(in super::super) fn step_of(purpose: Purpose, received: u64, elapsed_us: u64) -> Step {
        Step {
            purpose,
            asked_per_s: None,
            elapsed_us,
            sent: received,
            received,
            lost: 0,
            wrong_client: 0,
            altered: 0,
            duplicates: 0,
            late: 0,
            errors: 0,
            round_trip_us: Quantiles(
                SHARES.iter().map(|share| (*share, (200.0 + 1000.0 * share).round() / 10.0)).collect(),
            ),
            from_sent_us: None,
            schedule_error_us: None,
            cpu: CpuTimes { idle_us: elapsed_us, ..CpuTimes::default() },
            process: None,
            drops: BTreeMap::new(),
        }
    }

    /// A trial with a light load and a saturation of `per_s` echoes a second that kept two CPUs busy.
    pub(in super::super) fn trial_of(contender: &str, round: u32, per_s: u64) -> Trial {
        let mut light = step_of(Purpose::Light, 1000, 1_000_000);
        light.asked_per_s = Some(1000);
        light.schedule_error_us = Some(Quantiles(SHARES.iter().map(|share| (*share, 5.0)).collect()));
        let mut saturation = step_of(Purpose::Saturation, per_s, 1_000_000);
        saturation.cpu =
            CpuTimes { user_us: 500_000, system_us: 1_000_000, interrupt_us: 500_000, ..CpuTimes::default() };
        if contender.starts_with("echogate") {
            saturation.process =
                Some(ProcessUse { waits: per_s / 10, resident_bytes: 20 << 20, threads: 3, ..ProcessUse::default() });
        }
        Trial {
            contender: contender.to_owned(),
            round,
            scenario: Scenario { clients: 2, idents: 8, icmp_bytes: 64 },
            generators: 2,
            steps: vec![light, saturation],
            ndr_per_s: None,
            pdr_per_s: None,
            background_percent: 0,
            gateway: BTreeMap::new(),
            error: None,
        }
    }

    /// A complete record: control, Echogate with this many echoes a second in each round, and masquerade.
    pub(in super::super) fn record_of(echogate: &[u64]) -> Record {
        let participant = |name: &str| Participant { name: name.to_owned(), description: format!("made up {name}") };
        let rounds = (0_u32..).zip(echogate);
        let trials = rounds.flat_map(|(round, per_s)| {
            let of = |name, per_s| trial_of(name, round, per_s);
            [of("control", 300_000), of("echogate-uring-2", *per_s), of("masquerade", 250_000)]
        });
        Record {
            kind: KIND.to_owned(),
            schema: SCHEMA,
            complete: true,
            started_unix_s: 1_700_000_000,
            machine: Machine { kernel: "Linux 6.12".to_owned(), cpus: 2, ..Machine::default() },
            setting: Setting {
                full: false,
                rounds: u32::try_from(echogate.len()).expect("few"),
                seconds: 3,
                in_flight: 256,
                light_per_s: 1000,
                remotes: 4,
                hold_seconds: None,
                busy: false,
            },
            contenders: ["control", "echogate-uring-2", "masquerade"].map(participant).into(),
            absent: Vec::new(),
            trials: trials.collect(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_record_survives_its_json() {
        let record = record_of(&[150_000, 160_000, 155_000]);
        assert_eq!(Record::parse(&record.json(), "made up").expect("it is ours"), record);
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_reason() {
        let refused = |text: &str| Record::parse(text, "old.json").expect_err("it is none").to_string();
        assert!(refused("{").contains("old.json: no JSON"));
        assert!(refused("{}").contains("not a bench's result"));
        let newer = record_of(&[1]).json().replace("\"schema\": 1", "\"schema\": 99");
        assert!(refused(&newer).contains("schema 99, and this version reads 1"), "{newer}");
        let maimed = record_of(&[1]).json().replace("\"rounds\"", "\"turns\"");
        assert!(refused(&maimed).contains("rounds"), "what is missing is named");
    }

    #[test]
    fn a_wrong_reply_fails_the_run() {
        let mut record = record_of(&[150_000]);
        assert_eq!(record.failures(), Vec::<String>::new());
        record.trials[1].steps[1].wrong_client = 3;
        record.trials[2].steps[0].duplicates = 1;
        let failures = record.failures();
        assert_eq!(
            failures,
            [
                "echogate-uring-2, round 1: 3 replies reached the wrong client",
                "masquerade, round 1: 1 replies came twice",
            ]
        );
    }

    #[test]
    fn the_keys_of_the_json_are_those_of_the_schema() {
        let value: serde_json::Value = serde_json::from_str(&record_of(&[150_000]).json()).expect("JSON");
        let keys =
            |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            keys(&value),
            [
                "absent",
                "complete",
                "contenders",
                "kind",
                "machine",
                "schema",
                "setting",
                "started_unix_s",
                "trials",
                "warnings",
            ]
        );
        assert_eq!(
            keys(&value["trials"][0]),
            [
                "background_percent",
                "contender",
                "error",
                "gateway",
                "generators",
                "ndr_per_s",
                "pdr_per_s",
                "round",
                "scenario",
                "steps",
            ]
        );
        assert_eq!(
            keys(&value["trials"][0]["steps"][0]),
            [
                "altered",
                "asked_per_s",
                "cpu",
                "drops",
                "duplicates",
                "elapsed_us",
                "errors",
                "from_sent_us",
                "late",
                "lost",
                "process",
                "purpose",
                "received",
                "round_trip_us",
                "schedule_error_us",
                "sent",
                "wrong_client",
            ]
        );
    }
}
