//! One contender's turn: a fresh lab, the contender in it, loads and their measurement, and nothing left.
//!
//! ```text
//! lab -> contender starts -> first echoes come back -> light load -> warm-up -> saturation, search -> it ends, totals
//! ```
//!
//! All of it happens on one thread inside the gateway's namespace: whatever is started there belongs there, and ends with
//! the thread at the latest. What goes wrong with a contender is its trial's error and not the bench's: the others go on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use super::contender::Contender;
use super::meter::{self, Reading};
use super::process::Program;
use super::record::{Purpose, Quantiles, SHARES, Scenario, Step, Trial};
use super::{BenchOptions, search};
use crate::error::SetupError;
use crate::host::cpus;
use crate::lab::load::{self, LoadOptions, LoadReport, RoundTrips, Source};
use crate::lab::{Lab, LabOptions};

/// Bytes of an ICMP header, which is not the generator's payload.
const ICMP_HEADER: usize = 8;
/// How long a contender may take until the first echoes come back.
const STARTING: Duration = Duration::from_secs(10);
/// How long a contender works before it is measured: its mappings are made, its tables are in the caches.
const WARM_UP: Duration = Duration::from_millis(300);
/// How much longer for each mapping: each is asked for, on its own, by a slow machine too.
const WARM_UP_OF_A_MAPPING: Duration = Duration::from_micros(50);
/// How long the machine is watched doing nothing of ours before a trial.
const BACKGROUND: Duration = Duration::from_millis(100);
/// The light load's length: a thousand round trips at its usual rate.
const LIGHT: Duration = Duration::from_secs(1);
/// Echoes of an open loop that may be under way, for each generator. It only catches what is late: more than one socket's
/// receive buffer holds, and less than the ends of a queue that never empties.
const OPEN_WINDOW: usize = 4096;
/// slirp4netns calls its one client so.
const SLIRP4NETNS_CLIENT: [Ipv4Addr; 1] = [Ipv4Addr::new(10, 66, 0, 100)];

/// What a trial consists of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loads {
    /// All that was asked for; with half of the masquerade's PDR, once that is known.
    All { half_per_s: Option<u64> },
    /// This one, held: the control's side of another's [`Purpose::Hold`].
    Held { per_s: u64, duration: Duration },
}

/// A contender that is ready, and the means to load it.
pub(super) struct Ring<'a> {
    lab: &'a Lab,
    sources: Vec<Source<'a>>,
    scenario: Scenario,
    options: &'a BenchOptions,
    program: Option<Program>,
    interrupted: &'a (dyn Fn() -> bool + Sync),
    seed: u64,
}

/// Runs the whole turn.
pub(super) fn run(
    contender: Contender,
    round: u32,
    scenario: &Scenario,
    loads: Loads,
    options: &BenchOptions,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<Trial, SetupError> {
    let generators = if contender.has_one_client() { 1 } else { scenario.clients.min(super::GENERATORS) };
    let mut trial = Trial {
        contender: contender.name(),
        round,
        scenario: scenario.clone(),
        generators,
        steps: Vec::new(),
        ndr_per_s: None,
        pdr_per_s: None,
        background_percent: meter::background_percent(BACKGROUND)?,
        gateway: BTreeMap::new(),
        error: None,
    };
    let lab = Lab::build(&LabOptions {
        clients: generators,
        remotes: super::REMOTES,
        addresses: if contender.has_one_client() { 1 } else { scenario.clients / generators },
        ..LabOptions::default()
    })?;
    let done = lab.gateway().run(|| turn(contender, &lab, &mut trial, loads, options, interrupted))?;
    if let Err(error) = done {
        trial.error = Some(error.to_string());
    }
    Ok(trial)
}

fn turn(
    contender: Contender,
    lab: &Lab,
    trial: &mut Trial,
    loads: Loads,
    options: &BenchOptions,
    interrupted: &(dyn Fn() -> bool + Sync),
) -> Result<(), SetupError> {
    let running = contender.start(lab, &options.program)?;
    let mut sources: Vec<Source<'_>> = lab.clients().iter().map(Source::from).collect();
    if contender == Contender::Slirp4netns {
        sources[0].addresses = &SLIRP4NETNS_CLIENT;
    }
    let scenario = trial.scenario.clone();
    let mut ring = Ring { lab, sources, scenario, options, program: running.program, interrupted, seed: 1 };
    ring.await_first_echoes()?;
    match loads {
        Loads::All { half_per_s } => {
            if options.busy {
                trial.steps.push(ring.load_on_a_busy_machine(LIGHT)?);
            }
            if options.full {
                search::run(&mut ring, trial, half_per_s)?;
            } else {
                trial.steps.push(ring.load(Purpose::Light, Some(options.light_per_s), LIGHT)?);
                ring.warm_up()?;
                trial.steps.push(ring.load(Purpose::Saturation, None, options.duration())?);
            }
            if let Some(seconds) = options.hold_seconds {
                search::hold(&mut ring, trial, half_per_s, Duration::from_secs(seconds))?;
            }
        }
        Loads::Held { per_s, duration } => {
            ring.warm_up()?;
            trial.steps.push(ring.load(Purpose::Hold, Some(per_s), duration)?);
        }
    }
    if let Some(program) = ring.program.take() {
        let printed = program.stop()?;
        if contender.is_ours() {
            trial.gateway = totals(&printed);
        }
    }
    Ok(())
}

impl Ring<'_> {
    pub(super) fn options(&self) -> &BenchOptions {
        self.options
    }

    /// Asks every remote until each client has had a reply: the gateway serves, and neighbours are known.
    fn await_first_echoes(&mut self) -> Result<(), SetupError> {
        let deadline = Instant::now() + STARTING;
        let echoes = u64::try_from(super::REMOTES).unwrap_or(u64::MAX);
        loop {
            let options = LoadOptions {
                echoes_per_client: Some(echoes),
                reply_timeout: Duration::from_millis(100),
                ..self.load_options(None, Duration::from_secs(1))
            };
            let sent = load::run_from(&self.sources, self.lab.remotes(), &options, |_| self.goes_on());
            self.seed += 1;
            if let Some(program) = &mut self.program {
                program.expect_running()?;
            }
            match sent {
                Ok(report) if report.sent > 0 && report.lost == 0 => return Ok(()),
                // A client whose device is not there yet can neither bind nor send.
                Ok(_) | Err(_) if Instant::now() < deadline && !(self.interrupted)() => {}
                Ok(report) => {
                    return Err(SetupError::new(format!(
                        "bench: after {} s, {} of {} echoes still had no reply",
                        STARTING.as_secs(),
                        report.lost,
                        report.sent
                    )));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn warm_up(&mut self) -> Result<(), SetupError> {
        let mappings = self.scenario.clients.saturating_mul(usize::from(self.scenario.idents));
        let mappings = u32::try_from(mappings).unwrap_or(u32::MAX);
        let options = self.load_options(None, WARM_UP + WARM_UP_OF_A_MAPPING * mappings);
        load::run_from(&self.sources, self.lab.remotes(), &options, |_| self.goes_on())?;
        self.seed += 1;
        Ok(())
    }

    /// Puts a load through and says what was seen of it. `per_s`: an open loop with so many echoes a second; none: a
    /// closed one.
    pub(super) fn load(
        &mut self,
        purpose: Purpose,
        per_s: Option<u64>,
        duration: Duration,
    ) -> Result<Step, SetupError> {
        let options = self.load_options(per_s, duration);
        let id = self.program.as_ref().map(Program::id);
        let before = Reading::take(self.lab, id)?;
        let report = load::run_from(&self.sources, self.lab.remotes(), &options, |_| self.goes_on())?;
        self.seed += 1;
        if let Some(program) = &mut self.program {
            program.expect_running()?;
        }
        if (self.interrupted)() {
            return Err(SetupError::new("bench: interrupted"));
        }
        let spent = Reading::take(self.lab, id)?.since(&before);
        let mut step = step(purpose, per_s, &report);
        (step.cpu, step.process, step.drops) = (spent.cpu, spent.process, spent.drops);
        if report.socket_drops > 0 {
            step.drops.insert("generators: raw sockets, receive buffer full".to_owned(), report.socket_drops);
        }
        Ok(step)
    }

    /// The light load beside a thread a CPU that never waits.
    fn load_on_a_busy_machine(&mut self, duration: Duration) -> Result<Step, SetupError> {
        let cpus = cpus::allowed()?.len();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..cpus {
                scope.spawn(|| {
                    // Relaxed: nothing but the end is told by it, and joining the threads orders the rest.
                    while !done.load(Ordering::Relaxed) {
                        hint::spin_loop();
                    }
                });
            }
            let _at_last = Done(&done);
            self.load(Purpose::LightBusy, Some(self.options.light_per_s), duration)
        })
    }

    fn load_options(&self, per_s: Option<u64>, duration: Duration) -> LoadOptions {
        let window = match per_s {
            None => (self.options.in_flight / self.sources.len()).max(1),
            Some(_) => OPEN_WINDOW,
        };
        LoadOptions {
            duration,
            window,
            rate: per_s,
            idents: self.scenario.idents,
            payload_len: self.scenario.icmp_bytes.saturating_sub(ICMP_HEADER),
            // A program may take a sequence that it saw last for a copy (pasta does): no two loads begin with the same.
            first_sequence: (self.seed.wrapping_mul(4_099) & 0xffff).try_into().unwrap_or(1),
            one_remote_an_ident: true,
            seed: self.seed,
            ..LoadOptions::default()
        }
    }

    fn goes_on(&self) -> ControlFlow<()> {
        if (self.interrupted)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Ends the threads that keep the machine busy, however the load between ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        // Relaxed: as where it is read.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn step(purpose: Purpose, per_s: Option<u64>, report: &LoadReport) -> Step {
    let open = per_s.is_some();
    Step {
        purpose,
        asked_per_s: per_s,
        elapsed_us: u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX),
        sent: report.sent,
        received: report.received,
        lost: report.lost,
        wrong_client: report.wrong_client,
        altered: report.altered,
        duplicates: report.duplicates,
        late: report.stray - report.duplicates,
        errors: report.no_reply,
        round_trip_us: quantiles(if open { &report.from_due } else { &report.round_trip }),
        from_sent_us: open.then(|| quantiles(&report.round_trip)),
        schedule_error_us: open.then(|| quantiles(&report.schedule_error)),
        cpu: super::record::CpuTimes::default(),
        process: None,
        drops: BTreeMap::new(),
    }
}

fn quantiles(times: &RoundTrips) -> Quantiles {
    if times.count() == 0 {
        return Quantiles::default();
    }
    let micros = |share| match times.quantile(share) {
        // To the nanosecond is more than the clock knows.
        time if share < 1.0 => (time.as_secs_f64() * 1e7).round() / 10.0,
        _ => (times.max().as_secs_f64() * 1e7).round() / 10.0,
    };
    Quantiles(SHARES.iter().map(|share| (*share, micros(*share))).collect())
}

/// The packets of each line of the totals that `run` prints when it ends.
fn totals(printed: &str) -> BTreeMap<String, u64> {
    let table = printed.lines().skip_while(|line| !line.starts_with("totals ")).skip(1);
    table.filter_map(total).collect()
}

/// `  late        1,002    3,004`: two blanks or more end the name.
fn total(line: &str) -> Option<(String, u64)> {
    let (name, numbers) = line.trim_start().split_once("  ")?;
    let packets = numbers.split_whitespace().next()?.replace(',', "");
    Some((name.to_owned(), packets.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_totals_of_a_run_are_read() {
        let printed = "serving pings\n\
                       totals                               packets                   bytes\n\
                       from inside                            1,001                 100,100\n  \
                       replies delivered                      1,005                 100,500\n\
                       dropped                                   15\n  \
                       not_an_echo_reply                          7\n";
        let expected = [("from inside", 1001), ("replies delivered", 1005), ("dropped", 15), ("not_an_echo_reply", 7)];
        assert_eq!(totals(printed), expected.map(|(name, count)| (name.to_owned(), count)).into());
        assert_eq!(totals("serving pings\n"), BTreeMap::new());
    }
}
