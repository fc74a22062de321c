//! Two records beside each other: what moved further than noise moves it.
//!
//! A figure has become worse when its median moved the wrong way by more than both runs' spreads together and by more
//! than a floor for figures of its kind. Throughput and cost are compared as what they are against their own run's
//! control, so that a machine that is slower today is not a slower gateway; latencies and memory as they are. Only
//! Echogate's own contenders decide: another's regression is shown, and is not ours.

use std::fmt::{self, Write as _};

use super::figures::{self, CONTROL, Figure, Spread};
use super::record::{Record, Scenario};
use crate::error::SetupError;

/// What is compared, and by which share of the old median a figure has to move at least to count. Chosen, not derived: above
/// what two runs of one binary on a virtual machine usually differ by (perf/bench.md), whose rounds can happen to agree.
const FLOORS: [(Figure, f64); 12] = [
    (Figure::ThroughputShare, 0.10),
    (Figure::AddedCost, 0.15),
    (Figure::Pdr, 0.10),
    (Figure::Ndr, 0.25),
    (Figure::LightMedian, 0.20),
    (Figure::LightP99, 0.50),
    (Figure::SaturatedP99, 0.50),
    (Figure::BusyMedian, 0.50),
    (Figure::BusyP99, 0.50),
    (Figure::HalfP99Share, 0.50),
    (Figure::HeldLossAdded, 0.50),
    (Figure::Memory, 0.10),
];

/// A time has to move by this many microseconds besides: less than that is the timer's.
const TIME_FLOOR_US: f64 = 5.0;
/// And a share of lost echoes by this many millionths: fewer is one stall of the machine.
const LOSS_FLOOR_PPM: f64 = 10.0;

/// What became of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// It is better, beyond the noise.
    Better,
    /// It is worse, beyond the noise.
    Worse,
    /// It moved no further than noise moves it.
    Same,
}

/// One figure of one contender in both.
#[derive(Clone, PartialEq, Debug)]
struct Line {
    contender: String,
    scenario: Scenario,
    figure: Figure,
    old: Spread,
    new: Spread,
    change: Change,
}

/// Two records beside each other.
#[derive(Clone, PartialEq, Debug)]
pub struct Comparison {
    lines: Vec<Line>,
    notes: Vec<String>,
}

/// Compares two records; an error if they have nothing to compare.
pub fn compare(old: &Record, new: &Record) -> Result<Comparison, SetupError> {
    let loads = |Record { setting, .. }: &Record| {
        (setting.full, setting.hold_seconds, setting.in_flight, setting.light_per_s, setting.remotes)
    };
    if loads(old) != loads(new) {
        return Err(SetupError::new("compare: the two were measured with different loads")
            .remedy("give both the same --full, --hold and --in-flight"));
    }
    let mut lines = Vec::new();
    for scenario in figures::scenarios(old) {
        for contender in old.contenders.iter().filter(|contender| contender.name != CONTROL) {
            lines.extend(FLOORS.iter().filter_map(|(figure, floor)| {
                let spread = |record| figures::spread(record, &contender.name, &scenario, *figure);
                let (old, new) = (spread(old)?, spread(new)?);
                let change = change(*figure, *floor, old, new);
                let (contender, scenario, figure) = (contender.name.clone(), scenario.clone(), *figure);
                Some(Line { contender, scenario, figure, old, new, change })
            }));
        }
    }
    if lines.is_empty() {
        return Err(SetupError::new("compare: the two have no contender with a finished trial in common")
            .remedy("measure both with the same --contenders, and let both finish a round"));
    }
    Ok(Comparison { lines, notes: notes(old, new) })
}

fn change(figure: Figure, floor: f64, old: Spread, new: Spread) -> Change {
    let moved = (new.median - old.median).abs();
    let least = match figure {
        Figure::HeldLossAdded => LOSS_FLOOR_PPM,
        figure if figure.is_time() => TIME_FLOOR_US,
        _ => 0.0,
    };
    let noise = (old.median.abs() * floor).max(old.width() + new.width()).max(least);
    if moved <= noise {
        Change::Same
    } else if (new.median > old.median) == figure.more_is_better() {
        Change::Better
    } else {
        Change::Worse
    }
}

/// What a reader has to know before comparing.
fn notes(old: &Record, new: &Record) -> Vec<String> {
    let mut notes = Vec::new();
    let (before, after) = (&old.machine, &new.machine);
    for (what, before, after) in [
        ("kernel", &before.kernel, &after.kernel),
        ("CPU", &before.cpu, &after.cpu),
        ("build", &before.build, &after.build),
    ] {
        if before != after {
            notes.push(format!("another {what}: {before}, then {after}"));
        }
    }
    if before.cpus != after.cpus {
        notes.push(format!("another number of CPUs: {}, then {}", before.cpus, after.cpus));
    }
    for (which, record) in [("old", old), ("new", new)] {
        if !record.complete {
            notes.push(format!("the {which} one is not complete"));
        }
        for failure in record.failures() {
            notes.push(format!("the {which} one failed: {failure}"));
        }
        for trial in record.trials.iter().filter(|trial| trial.error.is_some()) {
            notes.push(format!("the {which} one lacks a trial: {}, round {}", trial.contender, trial.round + 1));
        }
        if record.setting.rounds < 3 {
            notes.push(format!("the {which} one has {} rounds: hardly a spread to judge by", record.setting.rounds));
        }
    }
    notes
}

impl Comparison {
    /// The figures of Echogate's that have become worse.
    pub fn regressions(&self) -> usize {
        self.lines.iter().filter(|line| line.is_ours() && line.change == Change::Worse).count()
    }
}

impl Line {
    fn is_ours(&self) -> bool {
        self.contender.starts_with("echogate")
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = None;
        for line in &self.lines {
            if head.replace((&line.scenario, &line.contender)) != Some((&line.scenario, &line.contender)) {
                let Scenario { clients, icmp_bytes, .. } = line.scenario;
                writeln!(f, "\n{} ({clients} clients, {icmp_bytes}-byte ICMP)", line.contender)?;
            }
            let show = |spread: Spread| {
                let figure = line.figure;
                let range = format!("({} .. {})", figure.show(spread.least), figure.show(spread.most));
                format!("{:>11} {range:<22}", figure.show(spread.median))
            };
            let percent = (line.new.median - line.old.median) * 100.0 / line.old.median.abs().max(f64::MIN_POSITIVE);
            let mut row = String::new();
            // Writing to a String cannot fail.
            let _ = write!(row, "  {:22}{} ->{} {percent:>+7.1}%", line.figure.name(), show(line.old), show(line.new));
            match line.change {
                Change::Same => {}
                Change::Better => row.push_str("  better"),
                Change::Worse if line.is_ours() => row.push_str("  WORSE"),
                Change::Worse => row.push_str("  worse, and not ours"),
            }
            writeln!(f, "{}", row.trim_end())?;
        }
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        match self.regressions() {
            0 => writeln!(f, "\nNothing of Echogate's became worse beyond the noise."),
            1 => writeln!(f, "\n1 figure of Echogate's became worse beyond the noise."),
            count => writeln!(f, "\n{count} figures of Echogate's became worse beyond the noise."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Purpose;
    use super::super::record::tests::record_of;
    use super::*;

    #[test]
    fn a_run_compared_with_itself_is_the_same() {
        let record = record_of(&[150_000, 155_000, 160_000]);
        let comparison = compare(&record, &record).expect("it has contenders");
        assert_eq!(comparison.regressions(), 0);
        assert!(comparison.lines.iter().all(|line| line.change == Change::Same));
        assert!(comparison.to_string().ends_with("\nNothing of Echogate's became worse beyond the noise.\n"));
    }

    #[test]
    fn half_the_throughput_is_a_regression_and_the_other_way_round_none() {
        let (fast, slow) = (record_of(&[150_000, 155_000, 160_000]), record_of(&[75_000, 77_000, 80_000]));
        let worse = compare(&fast, &slow).expect("they have contenders in common");
        assert!(worse.regressions() > 0 && worse.to_string().contains("WORSE"), "{worse}");
        let better = compare(&slow, &fast).expect("they have contenders in common");
        assert!(better.regressions() == 0 && better.to_string().contains("better"), "{better}");
    }

    #[test]
    fn what_both_runs_noise_covers_is_no_regression() {
        let (old, new) = (record_of(&[140_000, 150_000, 180_000]), record_of(&[100_000, 120_000, 150_000]));
        assert_eq!(compare(&old, &new).expect("comparable").regressions(), 0);
    }

    #[test]
    fn what_is_less_than_the_floor_is_no_regression_however_exact() {
        let (old, new) = (record_of(&[150_000, 150_000, 150_000]), record_of(&[140_000, 140_000, 140_000]));
        assert_eq!(compare(&old, &new).expect("comparable").regressions(), 0);
        let much = record_of(&[120_000, 120_000, 120_000]);
        assert!(compare(&old, &much).expect("comparable").regressions() > 0);
    }

    #[test]
    fn a_machine_that_is_slower_for_all_is_no_slower_gateway() {
        let (old, mut new) = (record_of(&[150_000, 150_000, 150_000]), record_of(&[75_000, 75_000, 75_000]));
        for trial in new.trials.iter_mut().filter(|trial| trial.contender == CONTROL) {
            trial.steps[1].received /= 2;
        }
        let lines = compare(&old, &new).expect("comparable").lines;
        let share = lines.iter().find(|line| line.figure == Figure::ThroughputShare).expect("it is compared");
        assert_eq!(share.change, Change::Same);
    }

    #[test]
    fn another_contenders_regression_is_shown_and_not_counted() {
        let (old, mut new) = (record_of(&[150_000, 155_000, 160_000]), record_of(&[150_000, 155_000, 160_000]));
        for trial in new.trials.iter_mut().filter(|trial| trial.contender == "masquerade") {
            trial.steps[1].received /= 3;
        }
        let comparison = compare(&old, &new).expect("comparable");
        assert_eq!(comparison.regressions(), 0);
        assert!(comparison.to_string().contains("worse, and not ours"), "{comparison}");
    }

    #[test]
    fn a_slower_single_ping_is_a_regression() {
        let (old, mut new) = (record_of(&[150_000, 155_000, 160_000]), record_of(&[150_000, 155_000, 160_000]));
        for trial in new.trials.iter_mut().filter(|trial| trial.contender.starts_with("echogate")) {
            let light = trial.steps.iter_mut().find(|step| step.purpose == Purpose::Light).expect("there is one");
            light.round_trip_us.0.iter_mut().for_each(|(_, micros)| *micros *= 1.5);
        }
        assert!(compare(&old, &new).expect("comparable").regressions() > 0);
    }

    #[test]
    fn records_with_nothing_in_common_are_refused() {
        let old = record_of(&[150_000]);
        let mut other = record_of(&[150_000]);
        other.trials.clear();
        assert!(compare(&old, &other).expect_err("nothing to compare").to_string().contains("in common"));
        let mut other = record_of(&[150_000]);
        other.setting.in_flight = 1;
        assert!(compare(&old, &other).expect_err("not comparable").to_string().contains("--in-flight"));
        let mut other = record_of(&[150_000]);
        other.machine.kernel = "Linux 7.0".to_owned();
        let noted = compare(&old, &other).expect("comparable").to_string();
        assert!(noted.contains("note: another kernel: Linux 6.12, then Linux 7.0"), "{noted}");
    }
}
