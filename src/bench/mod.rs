//! `echogate bench`: what Echogate carries and costs, beside what else a user could take, on this machine and in one run.
//!
//! The method (after RFC 2544, RFC 8219 and RFC 9971):
//! * **Its own lab.** Clients, gateway and internet are namespaces of this process ([`crate::lab`]); a fresh lab for each
//!   trial, so that no contender finds what another left behind. Nothing outside is touched.
//! * **Control first.** The same load over plain forwarding, without a gateway: what the lab costs by itself. CPU time is
//!   the whole machine's, softirqs and kernel threads included, since much of a gateway's cost is none of its process's;
//!   minus the control's it is the gateway's: "added microseconds an echo".
//! * **In turns.** A round measures each contender once, and begins with another one each time; figures are medians of
//!   rounds, with the least and the most beside. Only ratios inside one run count.
//! * **Everything is checked.** Client, sequence, source and payload of each reply; a reply that is wrong or came twice
//!   fails the run, whatever its speed.
//! * **Doubts are results.** What may have spoiled a figure is a [`Warning`] with cause and cure, in table, JSON and page.
//!
//! By default a closed loop: 2 generators with 128 echoes in flight each, as 32 pings at once, which is throughput
//! and cost at saturation; and before it one light open loop, which is a single ping's time. With `--full` loads are
//! searched for (`search`), with `--hold` most of what is carried is held for long, beside the control at the same load.
//!
//! Limits: generators, gateway and remotes share the machine's cores, so throughput is what all of them reach together;
//! on few cores the gateway's share of it is better seen in the added cost. Veth pairs are no network cards.
//!
//! Rejected: the gateway inside the bench's process. Its memory, its context switches and its allocator would be the
//! bench's.

mod compare;
mod contender;
mod doubts;
pub mod figures;
mod machine;
mod meter;
pub mod page;
mod process;
pub mod record;
mod search;
mod table;
#[cfg(test)]
mod tests;
mod trial;
mod warning;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use compare::{Comparison, compare};
pub use contender::Contender;
pub use warning::{Doubt, Warning};

use crate::error::SetupError;
use crate::host::cpus;
use record::{KIND, Participant, Purpose, Record, SCHEMA, Scenario, Setting, Trial};
use trial::Loads;

/// Hosts that clients ping from, each a thread with one socket.
pub const GENERATORS: usize = GENERATORS_U16 as usize;
const GENERATORS_U16: u16 = 2;
/// Remotes that every client pings.
pub const REMOTES: usize = 4;
/// Idents of a client in the usual scenario: enough flows for several workers to have some each. Each asks one remote, as
/// each `ping` that is started does.
const IDENTS: u16 = 32;
/// Bytes of the ICMP messages of the usual scenario: those of `ping`.
const USUAL_BYTES: u16 = 64;
/// The most clients, as many as two hosts of the lab have addresses for.
pub const CLIENTS_MAX: u16 = 5000;
/// What a trial takes besides its loads: a lab, a start, a warm-up, an end.
const AROUND_A_TRIAL: Duration = Duration::from_millis(1300);
/// The seconds that a search takes besides its longer loads, as was seen.
const SHORT_LOADS_S: u64 = 14;
/// The longer loads of a search: saturation, confirmations, latencies.
const LONG_LOADS: u64 = 13;
/// The same where one load is held.
const LONG_LOADS_OF_A_HOLD: u64 = 4;

/// What to measure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BenchOptions {
    /// Search for loads, with all sizes and numbers of clients, instead of a closed loop.
    pub full: bool,
    /// Turns of each contender.
    pub rounds: u32,
    /// Seconds of each load.
    pub seconds: u64,
    /// Echoes under way at once in a closed loop, all generators together.
    pub in_flight: usize,
    /// Echoes a second of the light load.
    pub light_per_s: u64,
    /// Mappings alive at once, a scenario for each number, in place of the usual one; empty: the usual one. Not with `full`.
    pub mappings: Vec<u16>,
    /// Clients that ping, a scenario for each number, in place of the usual; empty: the usual two, or with `full` one and
    /// thousands, too. More than two are even.
    pub clients: Vec<u16>,
    /// Bytes of ICMP messages, a scenario for each, in place of the usual; empty: the usual, or with `full` all sizes.
    pub sizes: Vec<u16>,
    /// Search for what each carries, and hold most of it for so many seconds.
    pub hold_seconds: Option<u64>,
    /// Take a single ping's time on a busy machine, too.
    pub busy: bool,
    /// The contenders, by name or by the beginning of it; empty: all but those that are there on request only. The control
    /// always takes part.
    pub contenders: Vec<String>,
    /// The command `echogate` that is measured.
    pub program: PathBuf,
}

impl BenchOptions {
    /// The defaults, with this command.
    pub fn new(program: PathBuf) -> BenchOptions {
        BenchOptions {
            full: false,
            rounds: 3,
            seconds: 3,
            in_flight: 256,
            light_per_s: 1000,
            mappings: Vec::new(),
            clients: Vec::new(),
            sizes: Vec::new(),
            hold_seconds: None,
            busy: false,
            contenders: Vec::new(),
            program,
        }
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn searches(&self) -> bool {
        self.full || self.hold_seconds.is_some()
    }
}

/// Where a run is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The trial that begins, from 0.
    pub trial: usize,
    /// How many there are.
    pub trials: usize,
    /// Whose it is.
    pub contender: String,
    /// What is left, by what is known so far.
    pub left: Duration,
}

/// Who looks on while a run goes on its way.
pub trait Observer {
    /// A trial begins.
    fn begins(&mut self, progress: &Progress);
    /// A trial has ended, and this is all there is so far: the moment to save it.
    fn ended(&mut self, record: &Record);
}

/// One turn that will be taken.
struct Turn {
    contender: Contender,
    round: u32,
    scenario: Scenario,
}

/// Measures all contenders. `interrupted` is asked all the time; once it says so, the trial under way is given up, what it
/// started is ended, and the record of those before is returned. An error means that there is no record.
pub fn run(
    options: &BenchOptions,
    interrupted: &(dyn Fn() -> bool + Sync),
    observer: &mut dyn Observer,
) -> Result<Record, SetupError> {
    let cpus = cpus::allowed()?.len();
    let chosen = choose(cpus, &options.contenders)?;
    let absences: Vec<_> = chosen.iter().map(|contender| contender.absence()).collect();
    let present = chosen.iter().zip(&absences).filter(|(_, absence)| absence.is_none());
    let present: Vec<Contender> = present.map(|(contender, _)| *contender).collect();
    let mut record = Record {
        kind: KIND.to_owned(),
        schema: SCHEMA,
        complete: false,
        started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        machine: machine::describe(&present, cpus),
        setting: Setting {
            full: options.full,
            rounds: options.rounds,
            seconds: options.seconds,
            in_flight: options.in_flight,
            light_per_s: options.light_per_s,
            remotes: REMOTES,
            hold_seconds: options.hold_seconds,
            busy: options.busy,
        },
        contenders: present
            .iter()
            .map(|contender| Participant { name: contender.name(), description: contender.description() })
            .collect(),
        absent: absences.into_iter().flatten().collect(),
        trials: Vec::new(),
        warnings: Vec::new(),
    };
    let about_machine = doubts::about_machine(&record.machine);
    let turns = turns(options, &present);
    let begin = Instant::now();
    // Half of the masquerade's PDR, of each scenario: found in its first turn, which is the first of all.
    let mut halves: Vec<(&Scenario, u64)> = Vec::new();
    'turns: for (number, turn) in turns.iter().enumerate() {
        if interrupted() {
            break;
        }
        let left = left(options, begin.elapsed(), number, &turns);
        observer.begins(&Progress { trial: number, trials: turns.len(), contender: turn.contender.name(), left });
        let half_per_s = halves.iter().find(|(scenario, _)| **scenario == turn.scenario).map(|(_, per_s)| *per_s);
        let mut loads = vec![(turn.contender, Loads::All { half_per_s })];
        while let Some((contender, load)) = loads.pop() {
            let trial = trial::run(contender, turn.round, &turn.scenario, load, options, interrupted)?;
            if interrupted() {
                break 'turns;
            }
            if let Some(per_s) = half_of_masquerades(&trial, half_per_s) {
                halves.push((&turn.scenario, per_s));
            }
            // The control after each that has held a load: the same load, for as long, close in time.
            loads.extend(held(&trial, options).map(|held| (Contender::Control, held)));
            record.trials.push(trial);
            record.complete = number + 1 == turns.len() && loads.is_empty();
            record.warnings = about_machine.iter().cloned().chain(doubts::about_trials(&record)).collect();
            observer.ended(&record);
        }
    }
    if !record.complete {
        record.warnings.push(Warning::new(
            Doubt::Interrupted,
            format!("interrupted after {} of {} trials", record.trials.len(), turns.len()),
            "let it run to its end",
        ));
        observer.ended(&record);
    }
    Ok(record)
}

/// Half of the PDR that a trial of the masquerade's has just found, unless it is known already.
fn half_of_masquerades(trial: &Trial, known: Option<u64>) -> Option<u64> {
    let found = trial.pdr_per_s.filter(|_| trial.contender == figures::MASQUERADE && known.is_none());
    found.map(|per_s| per_s / 2)
}

/// The load that a contender has held, for the control.
fn held(trial: &Trial, options: &BenchOptions) -> Option<Loads> {
    let step = trial.step(Purpose::Hold).filter(|_| trial.contender != figures::CONTROL)?;
    Some(Loads::Held { per_s: step.asked_per_s?, duration: Duration::from_secs(options.hold_seconds?) })
}

/// How long a run takes, roughly.
pub fn estimate(options: &BenchOptions) -> Result<Duration, SetupError> {
    let chosen = choose(cpus::allowed()?.len(), &options.contenders)?;
    let present: Vec<Contender> = chosen.into_iter().filter(|contender| contender.absence().is_none()).collect();
    Ok(left(options, Duration::ZERO, 0, &turns(options, &present)))
}

/// The control and those whose names begin with one of `wanted`, in the order of [`Contender::all`]; those on request by
/// their whole name only.
fn choose(cpus: usize, wanted: &[String]) -> Result<Vec<Contender>, SetupError> {
    let (usual, extra) = (Contender::all(cpus), Contender::on_request());
    let names = || usual.iter().chain(&extra).map(|contender| contender.name()).collect::<Vec<_>>();
    if let Some(unknown) = wanted.iter().find(|wanted| !names().iter().any(|name| name.starts_with(wanted.as_str()))) {
        return Err(SetupError::new(format!("bench: there is no contender {unknown:?}"))
            .remedy(format!("choose from {} (or the beginning of several names)", names().join(", "))));
    }
    let is_wanted = |contender: &&Contender| {
        // A name in full means itself only: echogate-uring-2 and not echogate-uring-2-conntrack.
        let name = contender.name();
        let named = |wanted: &String| *wanted == name || name.starts_with(wanted.as_str()) && !names().contains(wanted);
        **contender == Contender::Control || wanted.is_empty() || wanted.iter().any(named)
    };
    let is_asked_for = |contender: &&Contender| wanted.contains(&contender.name());
    Ok(usual.iter().filter(is_wanted).chain(extra.iter().filter(is_asked_for)).copied().collect())
}

/// Each scenario, each round, each contender; a round begins with another contender than the one before. Where loads are
/// searched for the masquerade has the first turn of all, as half of what it carries is a load for the others.
fn turns(options: &BenchOptions, contenders: &[Contender]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for scenario in scenarios(options) {
        let able = contenders.iter().copied().filter(|contender| scenario.clients <= 2 || !contender.has_one_client());
        let mut order: Vec<Contender> = able.collect();
        if options.searches() {
            order.sort_by_key(|contender| *contender != Contender::Masquerade);
        }
        for round in 0..options.rounds {
            turns.extend(order.iter().map(|contender| Turn {
                contender: *contender,
                round,
                scenario: scenario.clone(),
            }));
            order.rotate_left(1);
        }
    }
    turns
}

fn scenarios(options: &BenchOptions) -> Vec<Scenario> {
    let usual = Scenario { clients: GENERATORS, idents: IDENTS, icmp_bytes: USUAL_BYTES.into() };
    if !options.clients.is_empty() || !options.sizes.is_empty() {
        let clients = if options.clients.is_empty() { &[GENERATORS_U16][..] } else { &options.clients };
        let sizes = if options.sizes.is_empty() { &[USUAL_BYTES][..] } else { &options.sizes };
        let each = clients.iter().flat_map(|clients| sizes.iter().map(move |bytes| of_clients(*clients, *bytes)));
        return each.collect();
    }
    if !options.full {
        // The clients stay the same two: what differs is the mappings.
        let of_mappings = |mappings: &u16| Scenario { idents: mappings.div_ceil(GENERATORS_U16), ..usual.clone() };
        let numbered: Vec<Scenario> = options.mappings.iter().map(of_mappings).collect();
        return if numbered.is_empty() { vec![usual] } else { numbered };
    }
    let sized = |icmp_bytes| of_clients(GENERATORS_U16, icmp_bytes);
    vec![usual, sized(512), sized(1400), of_clients(1, USUAL_BYTES), of_clients(CLIENTS_MAX, USUAL_BYTES)]
}

/// So many clients' traffic: a few have many pings under way each, many have one. Two hosts share them evenly.
fn of_clients(clients: u16, icmp_bytes: u16) -> Scenario {
    let is_few = clients <= GENERATORS_U16;
    let clients = if is_few { clients } else { clients.next_multiple_of(GENERATORS_U16) };
    Scenario { clients: clients.into(), idents: if is_few { IDENTS } else { 1 }, icmp_bytes: icmp_bytes.into() }
}

/// What is left of `turns` of which so many are done: as planned, and as fast or slow as those were.
fn left(options: &BenchOptions, elapsed: Duration, done: usize, turns: &[Turn]) -> Duration {
    let planned = |turns: &[Turn]| turns.iter().map(|turn| planned(options, turn.contender)).sum::<Duration>();
    let (before, after) = turns.split_at(done.min(turns.len()));
    match planned(before) {
        Duration::ZERO => planned(after),
        before => elapsed.mul_f64(planned(after).div_duration_f64(before)),
    }
}

/// What a turn should take.
fn planned(options: &BenchOptions, contender: Contender) -> Duration {
    let loads_s = match options.hold_seconds {
        _ if options.full => LONG_LOADS * options.seconds + SHORT_LOADS_S,
        // The control holds others' loads, in their turns.
        Some(held) if contender != Contender::Control => {
            LONG_LOADS_OF_A_HOLD * options.seconds + SHORT_LOADS_S / 2 + 2 * held
        }
        Some(_) | None => 1 + options.seconds,
    };
    Duration::from_secs(loads_s + u64::from(options.busy)) + AROUND_A_TRIAL
}
