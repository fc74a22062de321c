//! A record as text: one row a contender, and below it what was lost where, and what is doubtful.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::doubts;
use super::figures::{self, CONTROL, Figure, Spread, grouped};
use super::record::{Record, Scenario};

/// The widest name of a contender, and the columns' least width.
const NAME: usize = 28;
const COLUMN: usize = 12;

/// Places of losses that are listed for one contender.
const PLACES_MAX: usize = 3;

/// A column: its two-line heading, its figure, and whether the rounds' range stands below.
const CLOSED: &[(&str, &str, Figure)] = &[
    ("echo/s", "", Figure::Throughput),
    ("of", "control", Figure::ThroughputShare),
    ("added CPU", "us an echo", Figure::AddedCost),
    ("one ping", "p50 us", Figure::LightMedian),
    ("one ping", "p99 us", Figure::LightP99),
    ("busy: ping", "p50 us", Figure::BusyMedian),
    ("busy: ping", "p99 us", Figure::BusyP99),
    ("saturated", "p99 us", Figure::SaturatedP99),
    ("memory", "MiB", Figure::Memory),
    ("waits per", "1000 echoes", Figure::Waits),
];
const HELD: &[(&str, &str, Figure)] = &[
    ("echo/s", "closed loop", Figure::Throughput),
    ("PDR 0.5%", "echo/s", Figure::Pdr),
    ("80% of it", "lost ppm", Figure::HeldLoss),
    ("above the", "control's", Figure::HeldLossAdded),
    ("half masq.", "p99 us", Figure::HalfP99),
    ("times the", "masq.'s", Figure::HalfP99Share),
    ("one ping", "p50 us", Figure::LightMedian),
    ("one ping", "p99 us", Figure::LightP99),
    ("busy: ping", "p50 us", Figure::BusyMedian),
    ("busy: ping", "p99 us", Figure::BusyP99),
];
const SEARCHED: &[(&str, &str, Figure)] = &[
    ("echo/s", "closed loop", Figure::Throughput),
    ("PDR 0.5%", "echo/s", Figure::Pdr),
    ("NDR", "echo/s", Figure::Ndr),
    ("added CPU", "us an echo", Figure::AddedCost),
    ("one ping", "p50 us", Figure::LightMedian),
    ("one ping", "p99 us", Figure::LightP99),
    ("busy: ping", "p50 us", Figure::BusyMedian),
    ("busy: ping", "p99 us", Figure::BusyP99),
    ("half masq.", "p99 us", Figure::HalfP99),
    ("times the", "masq.'s", Figure::HalfP99Share),
    ("memory", "MiB", Figure::Memory),
];

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(f, "{}, {} CPUs ({}), Echogate {}", machine.kernel, machine.cpus, machine.cpu, machine.echogate)?;
        for scenario in figures::scenarios(self) {
            f.write_str(&rows(self, &scenario))?;
        }
        f.write_str(&losses(self))?;
        for failure in self.failures() {
            writeln!(f, "\nFAIL  {failure}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

/// The traffic in words.
pub(super) fn traffic(record: &Record, scenario: &Scenario) -> String {
    let clients = match scenario.clients {
        1 => "1 client".to_owned(),
        clients => format!("{} clients", grouped(f64_of(clients))),
    };
    let setting = &record.setting;
    format!(
        "{clients} x {} pings at once, {} remotes, {}-byte ICMP, {} in flight, {} s a load, median of {} (least .. most)",
        scenario.idents, setting.remotes, scenario.icmp_bytes, setting.in_flight, setting.seconds, setting.rounds
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn f64_of(count: usize) -> f64 {
    count as f64
}

fn rows(record: &Record, scenario: &Scenario) -> String {
    let all = match &record.setting {
        setting if setting.full => SEARCHED,
        setting if setting.hold_seconds.is_some() => HELD,
        _ => CLOSED,
    };
    // What was not asked for has no column.
    let has_values = |column: &&(&str, &str, Figure)| {
        let mut contenders = record.contenders.iter();
        contenders.any(|contender| figures::spread(record, &contender.name, scenario, column.2).is_some())
    };
    let columns: Vec<_> = all.iter().filter(has_values).collect();
    let mut text = format!("\n{}\n\n", traffic(record, scenario));
    line(&mut text, "", columns.iter().map(|column| column.0));
    line(&mut text, "", columns.iter().map(|column| column.1));
    for contender in &record.contenders {
        let spreads: Vec<Option<Spread>> =
            columns.iter().map(|column| figures::spread(record, &contender.name, scenario, column.2)).collect();
        if spreads.iter().all(Option::is_none) {
            continue;
        }
        let shown = columns.iter().zip(&spreads).map(|(column, spread)| {
            let is_the_measure = contender.name == CONTROL && column.2.is_against_control();
            spread.filter(|_| !is_the_measure).map_or_else(|| "-".to_owned(), |spread| column.2.show(spread.median))
        });
        line(&mut text, &contender.name, shown);
        if let (Some(Some(spread)), Some((_, _, figure))) = (spreads.first(), columns.first())
            && record.setting.rounds > 1
        {
            let range = format!("{} .. {}", figure.show(spread.least), figure.show(spread.most));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{range:>width$}", width = NAME + COLUMN);
        }
    }
    text
}

fn line(text: &mut String, name: &str, cells: impl Iterator<Item = impl fmt::Display>) {
    let mut line = format!("{name:NAME$}");
    for cell in cells {
        let _ = write!(line, "{cell:>COLUMN$}");
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// What each contender lost in closed loops, and the places that say so; nothing if nobody lost anything.
fn losses(record: &Record) -> String {
    let mut text = String::new();
    if doubts::control_loses(record) {
        return text;
    }
    for contender in &record.contenders {
        let trials = || record.trials.iter().filter(|trial| trial.contender == contender.name);
        let steps = || trials().flat_map(|trial| &trial.steps).filter(|step| step.asked_per_s.is_none());
        let (lost, sent) = steps().fold((0, 0), |(lost, sent), step| (lost + step.lost, sent + step.sent));
        if lost == 0 {
            continue;
        }
        let mut places: BTreeMap<&str, u64> = BTreeMap::new();
        for (place, count) in steps().flat_map(|step| &step.drops) {
            *places.entry(place).or_default() += count;
        }
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let named: Vec<String> = places
            .iter()
            .take(PLACES_MAX)
            .map(|(place, count)| format!("{place}: {}", grouped(f64_of_u64(*count))))
            .collect();
        let named = if named.is_empty() { "no counter says where".to_owned() } else { named.join("; ") };
        let share = f64_of_u64(lost) * 1e6 / f64_of_u64(sent.max(1));
        let _ = writeln!(
            text,
            "\n{} lost {} of {} echoes at saturation ({share:.0} ppm); {named}",
            contender.name,
            grouped(f64_of_u64(lost)),
            grouped(f64_of_u64(sent))
        );
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn f64_of_u64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record_of;
    use super::super::warning::{Doubt, Warning};

    #[test]
    fn every_contender_has_its_row_and_every_doubt_its_cure() {
        let mut record = record_of(&[150_000, 160_000, 155_000]);
        record.warnings = vec![Warning::new(Doubt::MachineBusy, "it was busy", "wait")];
        let text = record.to_string();
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).expect(name).to_owned();
        let words = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(row("control"))[..4], ["control", "300,000", "-", "-"]);
        assert_eq!(words(row("echogate-uring-2"))[..4], ["echogate-uring-2", "155,000", "0.52", "6.24"]);
        assert!(text.contains("150,000 .. 160,000"), "{text}");
        assert!(text.contains("warning: it was busy\n  cure: wait"), "{text}");
        assert!(!text.contains("FAIL") && !text.contains("lost"), "{text}");
    }

    #[test]
    fn losses_have_their_places_unless_the_control_loses_too() {
        let mut record = record_of(&[150_000]);
        record.trials[1].steps[1].lost = 15;
        record.trials[1].steps[1].drops.insert("gateway: echogate0, sending".to_owned(), 14);
        let text = record.to_string();
        assert!(text.contains("echogate-uring-2 lost 15 of 150,000 echoes"), "{text}");
        assert!(text.contains("(100 ppm); gateway: echogate0, sending: 14"), "{text}");
        record.trials[0].steps[1].lost = 1;
        assert!(!record.to_string().contains("echogate-uring-2 lost"), "whose loss it is cannot be told");
    }

    #[test]
    fn a_wrong_reply_is_a_failure_that_is_seen() {
        let mut record = record_of(&[150_000]);
        record.trials[1].steps[1].altered = 2;
        assert!(record.to_string().contains("FAIL  echogate-uring-2, round 1: 2 replies were altered"));
    }
}
