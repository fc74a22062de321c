//! Figures from trials: per contender the median of the rounds, and from the least to the most.
//!
//! What the machine's mood changes is computed inside a round, against that round's control, before the rounds are
//! summed up: the added cost and the share of the control's throughput are medians of differences and of ratios, not
//! differences and ratios of medians.

use super::record::{Purpose, Record, Scenario, Step, Trial};

/// The contender that all others are compared with.
pub const CONTROL: &str = "control";

/// The contender whose PDR gives the others a load.
pub(super) const MASQUERADE: &str = "masquerade";

/// A figure that a table has a column for, or a comparison a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Figure {
    /// Right replies a second in a closed loop.
    Throughput,
    /// The same as a share of the control's.
    ThroughputShare,
    /// CPU time of the whole machine for an echo.
    Cost,
    /// What of it the control does not take.
    AddedCost,
    /// A round trip at a load that nobody notices: median.
    LightMedian,
    /// The same: 99 of 100.
    LightP99,
    /// A round trip at saturation: 99 of 100.
    SaturatedP99,
    /// The highest load of which 0.5% was lost at most.
    Pdr,
    /// The highest load without loss.
    Ndr,
    /// Resident memory of the contender's process.
    Memory,
    /// Times that the contender's threads waited, for a thousand echoes.
    Waits,
    /// Echoes lost at saturation.
    Loss,
    /// A round trip at the light load while every CPU has something else to do: median.
    BusyMedian,
    /// The same: 99 of 100.
    BusyP99,
    /// A round trip at half of the masquerade's PDR: 99 of 100.
    HalfP99,
    /// The same as a multiple of the masquerade's.
    HalfP99Share,
    /// Echoes lost of a load held for long, most of the own PDR.
    HeldLoss,
    /// What of them the control did not lose of the same load.
    HeldLossAdded,
}

impl Figure {
    /// All of them, in the order of the tables.
    pub const ALL: [Figure; 18] = [
        Figure::Throughput,
        Figure::ThroughputShare,
        Figure::Cost,
        Figure::AddedCost,
        Figure::Pdr,
        Figure::Ndr,
        Figure::LightMedian,
        Figure::LightP99,
        Figure::SaturatedP99,
        Figure::Memory,
        Figure::Waits,
        Figure::Loss,
        Figure::BusyMedian,
        Figure::BusyP99,
        Figure::HalfP99,
        Figure::HalfP99Share,
        Figure::HeldLoss,
        Figure::HeldLossAdded,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Figure::Throughput => "echo/s",
            Figure::ThroughputShare => "of control",
            Figure::Cost => "CPU us an echo",
            Figure::AddedCost => "added CPU us an echo",
            Figure::LightMedian => "single ping p50 us",
            Figure::LightP99 => "single ping p99 us",
            Figure::SaturatedP99 => "saturated p99 us",
            Figure::Pdr => "PDR 0.5% echo/s",
            Figure::Ndr => "NDR echo/s",
            Figure::Memory => "memory MiB",
            Figure::Waits => "waits / 1000 echoes",
            Figure::Loss => "lost ppm",
            Figure::BusyMedian => "busy: ping p50 us",
            Figure::BusyP99 => "busy: ping p99 us",
            Figure::HalfP99 => "half masq. PDR p99 us",
            Figure::HalfP99Share => "of masq.'s p99, times",
            Figure::HeldLoss => "80% PDR: lost ppm",
            Figure::HeldLossAdded => "above control's ppm",
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Figure::Throughput | Figure::ThroughputShare | Figure::Pdr | Figure::Ndr)
    }

    /// Whether it says something about others than the control only, as it is a comparison with it.
    pub(super) fn is_against_control(self) -> bool {
        matches!(self, Figure::AddedCost | Figure::ThroughputShare | Figure::HeldLossAdded)
    }

    /// Whether it is a time.
    pub(super) fn is_time(self) -> bool {
        matches!(
            self,
            Figure::LightMedian
                | Figure::LightP99
                | Figure::SaturatedP99
                | Figure::BusyMedian
                | Figure::BusyP99
                | Figure::HalfP99
        )
    }

    /// Its value in one trial; `round` are the finished trials of its round and scenario, itself included.
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    fn of(self, trial: &Trial, round: &[&Trial]) -> Option<f64> {
        let saturation = trial.step(Purpose::Saturation);
        // The control has a trial of its own and one for each load that another held.
        let of = |name: &str, purpose: Purpose, asked_per_s: Option<u64>| {
            let mut steps = round.iter().filter(|trial| trial.contender == name).flat_map(|trial| &trial.steps);
            steps.find(|step| (step.purpose, step.asked_per_s) == (purpose, asked_per_s))
        };
        let controls = of(CONTROL, Purpose::Saturation, None);
        let half = trial.step(Purpose::HalfOfMasquerades);
        let held = trial.step(Purpose::Hold);
        let busy = trial.step(Purpose::LightBusy);
        let light = trial.step(Purpose::Light).or_else(|| trial.step(Purpose::OfPdr(0)));
        match self {
            Figure::Throughput => saturation.map(Step::echoes_per_s),
            Figure::ThroughputShare => Some(saturation?.echoes_per_s() / controls?.echoes_per_s()),
            Figure::Cost => saturation?.busy_us_per_echo(),
            Figure::AddedCost => Some(saturation?.busy_us_per_echo()? - controls?.busy_us_per_echo()?),
            Figure::LightMedian => light?.round_trip_us.at(0.5),
            Figure::LightP99 => light?.round_trip_us.at(0.99),
            Figure::SaturatedP99 => saturation?.round_trip_us.at(0.99),
            Figure::Pdr => trial.pdr_per_s.map(|per_s| per_s as f64),
            Figure::Ndr => trial.ndr_per_s.map(|per_s| per_s as f64),
            Figure::Memory => Some(saturation?.process?.resident_bytes as f64 / f64::from(1 << 20)),
            Figure::Waits => {
                let step = saturation?;
                Some(step.process?.waits as f64 * 1000.0 / step.received.max(1) as f64)
            }
            Figure::Loss => saturation.map(|step| step.loss() * 1e6),
            Figure::BusyMedian => busy?.round_trip_us.at(0.5),
            Figure::BusyP99 => busy?.round_trip_us.at(0.99),
            Figure::HalfP99 => half?.round_trip_us.at(0.99),
            Figure::HalfP99Share => {
                let masquerades = of(MASQUERADE, Purpose::HalfOfMasquerades, half?.asked_per_s);
                Some(half?.round_trip_us.at(0.99)? / masquerades?.round_trip_us.at(0.99)?)
            }
            Figure::HeldLoss => held.map(|step| step.loss() * 1e6),
            Figure::HeldLossAdded => {
                let controls = of(CONTROL, Purpose::Hold, held?.asked_per_s);
                Some((held?.loss() - controls?.loss()) * 1e6)
            }
        }
    }

    /// The value with the digits that it deserves.
    pub fn show(self, value: f64) -> String {
        match self {
            Figure::ThroughputShare | Figure::Cost | Figure::AddedCost | Figure::HalfP99Share => format!("{value:.2}"),
            Figure::Memory | Figure::HeldLoss | Figure::HeldLossAdded => format!("{value:.1}"),
            Figure::Waits if value < 10.0 => format!("{value:.1}"),
            _ => grouped(value),
        }
    }
}

/// Values of several rounds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// None without values.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), least, most })
    }

    /// From the least to the most.
    pub fn width(&self) -> f64 {
        self.most - self.least
    }
}

/// The scenarios of a record, each once, the usual one first.
pub fn scenarios(record: &Record) -> Vec<Scenario> {
    let mut found: Vec<Scenario> = Vec::new();
    for trial in &record.trials {
        if !found.contains(&trial.scenario) {
            found.push(trial.scenario.clone());
        }
    }
    found
}

/// The finished trials of a contender in a scenario.
pub fn trials<'a>(record: &'a Record, contender: &'a str, scenario: &'a Scenario) -> impl Iterator<Item = &'a Trial> {
    record
        .trials
        .iter()
        .filter(move |trial| trial.contender == contender && trial.scenario == *scenario && trial.error.is_none())
}

/// A figure's values, one a round.
pub fn values(record: &Record, contender: &str, scenario: &Scenario, figure: Figure) -> Vec<f64> {
    let value = |trial: &Trial| {
        let finished = record.trials.iter().filter(|other| other.scenario == *scenario && other.error.is_none());
        let round: Vec<&Trial> = finished.filter(|other| other.round == trial.round).collect();
        figure.of(trial, &round).filter(|value| value.is_finite())
    };
    trials(record, contender, scenario).filter_map(value).collect()
}

/// A figure over all rounds.
pub fn spread(record: &Record, contender: &str, scenario: &Scenario, figure: Figure) -> Option<Spread> {
    Spread::of(values(record, contender, scenario, figure))
}

/// 1234567.4 as 1,234,567.
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    if value <= -0.5 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{record_of, step_of, trial_of};
    use super::*;

    fn usual(record: &Record) -> Scenario {
        scenarios(record).remove(0)
    }

    #[test]
    fn the_median_stands_between_the_least_and_the_most() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).expect("values").median, 2.5);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn shares_and_added_costs_are_computed_inside_a_round() {
        let mut record = record_of(&[150_000, 75_000]);
        // In the second round the machine is half as fast, for all.
        for trial in record.trials.iter_mut().filter(|trial| trial.round == 1 && trial.contender == "control") {
            trial.steps[1].received = 150_000;
        }
        let shares = values(&record, "echogate-uring-2", &usual(&record), Figure::ThroughputShare);
        assert_eq!(shares, [0.5, 0.5]);
        let added = values(&record, "echogate-uring-2", &usual(&record), Figure::AddedCost);
        assert!((added[0] - 2e6 / 300_000.0).abs() < 1e-6 && (added[1] - 2e6 / 150_000.0).abs() < 1e-6, "{added:?}");
    }

    #[test]
    fn what_is_held_is_compared_with_the_control_at_the_same_load_and_half_with_the_masquerades() {
        let mut record = record_of(&[150_000]);
        let step = |purpose, per_s: u64, lost| Step {
            asked_per_s: Some(per_s),
            lost,
            ..step_of(purpose, per_s - lost, 1_000_000)
        };
        let with_loss = |per_s, lost| Step { sent: per_s, ..step(Purpose::Hold, per_s, lost) };
        record.trials[1].steps.push(with_loss(100_000, 50));
        for (per_s, lost) in [(200_000, 100), (100_000, 20)] {
            let mut held = trial_of(CONTROL, 0, 1);
            held.scenario = record.trials[1].scenario.clone();
            held.steps = vec![with_loss(per_s, lost)];
            record.trials.push(held);
        }
        let scenario = usual(&record);
        assert_eq!(values(&record, "echogate-uring-2", &scenario, Figure::HeldLoss), [500.0]);
        let added = values(&record, "echogate-uring-2", &scenario, Figure::HeldLossAdded);
        assert!(matches!(added[..], [more] if (more - 300.0).abs() < 1e-6), "{added:?}");
        assert_eq!(values(&record, CONTROL, &scenario, Figure::Throughput), [300_000.0], "one of the saturation only");

        for (trial, factor) in [(1, 3.0), (2, 1.0)] {
            let mut half = step(Purpose::HalfOfMasquerades, 80_000, 0);
            half.round_trip_us.0.iter_mut().for_each(|(_, micros)| *micros *= factor);
            record.trials[trial].steps.push(half);
        }
        let ratios = values(&record, "echogate-uring-2", &scenario, Figure::HalfP99Share);
        assert!(matches!(ratios[..], [ratio] if (ratio - 3.0).abs() < 1e-6), "{ratios:?}");
        record.trials[2].steps.clear();
        assert_eq!(values(&record, "echogate-uring-2", &scenario, Figure::HalfP99Share), Vec::<f64>::new());
    }

    #[test]
    fn without_a_control_there_is_no_figure_that_takes_one() {
        let mut record = record_of(&[150_000]);
        record.trials.retain(|trial| trial.contender != CONTROL);
        let scenario = usual(&record);
        assert!(values(&record, "echogate-uring-2", &scenario, Figure::AddedCost).is_empty());
        assert_eq!(values(&record, "echogate-uring-2", &scenario, Figure::Throughput), [150_000.0]);
    }

    #[test]
    fn a_failed_trial_is_in_no_figure() {
        let mut record = record_of(&[150_000, 160_000]);
        record.trials[1].error = Some("made up".to_owned());
        assert_eq!(values(&record, "echogate-uring-2", &usual(&record), Figure::Throughput), [160_000.0]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0.0, 999.4, 1000.0, 1_234_567.0, -1234.0].map(grouped),
            ["0", "999", "1,000", "1,234,567", "-1,234"]
        );
    }
}
