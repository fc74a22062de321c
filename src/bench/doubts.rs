//! What a record gives reason to doubt. Computed from the record, so that a record read again has the same doubts.

use super::figures::{self, CONTROL, Figure};
use super::record::{Machine, Purpose, Record, Step};
use super::warning::{Doubt, Warning};

/// The share of the machine's time that a hypervisor may take before it is said.
const STEAL: f64 = 0.02;
/// The load average that is said, in hundredths a CPU.
const LOAD_PERCENT: u64 = 50;
/// What others may take of the machine before it is said, in percent.
const BACKGROUND_PERCENT: u64 = 10;
/// A generator is late when one in a hundred requests left this much after it was due.
const LATE_US: f64 = 1000.0;
/// Rounds differ widely when the least and the most are this share of the median apart.
const WIDE: f64 = 0.25;

/// Doubts about the machine and the build, before anything is measured.
pub(super) fn about_machine(machine: &Machine) -> Vec<Warning> {
    let mut doubts = Vec::new();
    if machine.build != "release" {
        doubts.push(Warning::new(
            Doubt::Unoptimised,
            "this build is not optimised: its figures mean nothing",
            "cargo run --release -- bench",
        ));
    }
    if machine.cpus < 2 {
        doubts.push(Warning::new(
            Doubt::MachineTooSmall,
            "generators, gateway and remotes share one CPU: nothing runs beside anything else",
            "measure on a machine with two CPUs or more, or widen this process's set (taskset, cpuset)",
        ));
    }
    if machine.load_average_percent > LOAD_PERCENT * machine.cpus as u64 {
        let (whole, rest) = (machine.load_average_percent / 100, machine.load_average_percent % 100);
        doubts.push(Warning::new(
            Doubt::MachineBusy,
            format!("something else was running: load average {whole}.{rest:02} on {} CPUs at the start", machine.cpus),
            "end it, or wait until it has ended, and measure again",
        ));
    }
    doubts
}

/// Doubts about what was measured.
pub(super) fn about_trials(record: &Record) -> Vec<Warning> {
    let mut doubts: Vec<Warning> = record
        .absent
        .iter()
        .map(|absent| {
            Warning::new(Doubt::Absent, format!("{} was not measured: {}", absent.name, absent.cause), &absent.cure)
        })
        .collect();
    for trial in &record.trials {
        let place = || format!("{}, round {}", trial.contender, trial.round + 1);
        if let Some(error) = &trial.error {
            doubts.push(Warning::new(
                Doubt::TrialFailed,
                format!("{} is not in the figures: {error}", place()),
                "if it says no more, run the contender by hand in a lab of your own (`echogate bench load --help`)",
            ));
        }
    }
    doubts.extend(busy(record));
    doubts.extend(control_lost(record));
    doubts.extend(schedule_missed(record));
    doubts.extend(steal(record));
    doubts.extend(wide_spreads(record));
    doubts
}

/// Whether the control lost echoes in a closed loop: then nobody's losses are their own.
pub(super) fn control_loses(record: &Record) -> bool {
    let steps = record.trials.iter().filter(|trial| trial.contender == CONTROL).flat_map(|trial| &trial.steps);
    steps.filter(|step| step.asked_per_s.is_none()).any(|step| step.lost > 0)
}

fn control_lost(record: &Record) -> Option<Warning> {
    control_loses(record).then(|| {
        Warning::new(
            Doubt::ControlLost,
            "the control, that has no gateway, lost echoes: losses are not shown, as they may be the lab's",
            "raise net.core.netdev_max_backlog, or use fewer echoes in flight (--in-flight)",
        )
    })
}

fn busy(record: &Record) -> Option<Warning> {
    let trials = || record.trials.iter().filter(|trial| trial.background_percent > BACKGROUND_PERCENT);
    let most = trials().map(|trial| trial.background_percent).max()?;
    Some(Warning::new(
        Doubt::MachineBusy,
        format!(
            "before {} of {} trials something else took up to {most}% of the machine, and its CPU time is in the costs",
            trials().count(),
            record.trials.len()
        ),
        "end it, or wait until it has ended, and measure again",
    ))
}

fn schedule_missed(record: &Record) -> Option<Warning> {
    let late = |step: &&Step| step.schedule_error_us.as_ref().and_then(|error| error.at(0.99)) > Some(LATE_US);
    // A search asks for more than there is, and a busy machine is late for everybody.
    let searching = |step: &&Step| !matches!(step.purpose, Purpose::Search | Purpose::LightBusy);
    let open = || record.trials.iter().flat_map(|trial| &trial.steps).filter(|step| step.asked_per_s.is_some());
    let count = open().filter(searching).filter(late).count();
    (count > 0).then(|| {
        Warning::new(
            Doubt::ScheduleMissed,
            format!(
                "in {count} of {} open loops one in a hundred requests or more left over {LATE_US:.0} us after it was due: \
                 those times are the generator's as much as the gateway's",
                open().filter(searching).count()
            ),
            "leave the machine to the bench, or give it more CPUs",
        )
    })
}

fn steal(record: &Record) -> Option<Warning> {
    let most = record.trials.iter().flat_map(|trial| &trial.steps).map(Step::steal).fold(0.0, f64::max);
    (most > STEAL).then(|| {
        Warning::new(
            Doubt::Steal,
            format!("the hypervisor gave up to {:.0}% of the machine's time to others", most * 100.0),
            "measure when the host is quiet, or on a machine of your own; compare ratios inside one run only",
        )
    })
}

fn wide_spreads(record: &Record) -> Option<Warning> {
    let mut wide = Vec::new();
    for scenario in figures::scenarios(record) {
        for contender in &record.contenders {
            let spread = figures::spread(record, &contender.name, &scenario, Figure::Throughput);
            if spread.is_some_and(|spread| spread.width() > WIDE * spread.median) && !wide.contains(&contender.name) {
                wide.push(contender.name.clone());
            }
        }
    }
    (!wide.is_empty()).then(|| {
        Warning::new(
            Doubt::WideSpread,
            format!("rounds differ by more than {:.0}% in echo/s: {}", WIDE * 100.0, wide.join(", ")),
            "more rounds (--rounds), longer ones (--seconds), and nothing beside the bench",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record_of;
    use super::super::record::{Absent, Quantiles, SHARES};
    use super::*;

    fn doubts(record: &Record) -> Vec<Doubt> {
        about_trials(record).into_iter().map(|warning| warning.doubt).collect()
    }

    #[test]
    fn a_good_run_gives_no_reason_to_doubt() {
        assert_eq!(doubts(&record_of(&[150_000, 155_000, 160_000])), []);
        let machine = Machine { build: "release".to_owned(), cpus: 2, ..Machine::default() };
        assert_eq!(about_machine(&machine), []);
    }

    #[test]
    fn each_doubt_has_its_own_reason() {
        let mut record = record_of(&[150_000, 155_000]);
        record.trials[0].steps[1].lost = 1;
        assert_eq!(doubts(&record), [Doubt::ControlLost]);

        let mut record = record_of(&[150_000, 155_000]);
        record.trials[1].steps[1].lost = 1;
        assert_eq!(doubts(&record), [], "a contender may lose");

        let mut record = record_of(&[150_000, 155_000]);
        assert_eq!(record.trials[1].steps[0].purpose, Purpose::Light);
        record.trials[1].steps[0].schedule_error_us = Some(Quantiles(SHARES.map(|share| (share, 2000.0)).into()));
        assert_eq!(doubts(&record), [Doubt::ScheduleMissed]);

        let mut record = record_of(&[150_000, 155_000]);
        record.trials[1].background_percent = 50;
        assert_eq!(doubts(&record), [Doubt::MachineBusy]);

        let mut record = record_of(&[150_000, 155_000]);
        record.trials[1].steps[1].cpu.steal_us = 200_000;
        assert_eq!(doubts(&record), [Doubt::Steal]);

        assert_eq!(doubts(&record_of(&[100_000, 155_000])), [Doubt::WideSpread]);

        let mut record = record_of(&[150_000, 155_000]);
        record.trials[1].error = Some("made up".to_owned());
        let absent = |name: &str| Absent { name: name.to_owned(), cause: "none".to_owned(), cure: "get it".to_owned() };
        record.absent = vec![absent("pasta")];
        assert_eq!(doubts(&record), [Doubt::Absent, Doubt::TrialFailed]);
    }

    #[test]
    fn a_small_or_busy_machine_and_a_debug_build_are_said() {
        let machine = Machine { build: "debug".to_owned(), cpus: 1, load_average_percent: 75, ..Machine::default() };
        let doubts: Vec<Doubt> = about_machine(&machine).into_iter().map(|warning| warning.doubt).collect();
        assert_eq!(doubts, [Doubt::Unoptimised, Doubt::MachineTooSmall, Doubt::MachineBusy]);
    }
}
