//! What a soak has found, on one page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use echogate::lab::load::LoadReport;

use super::faults::Fault;
use super::ledger::sum;
use super::slope::{Sample, Slope};
use super::way::SECTIONS;
use super::{HEAL, Round, Soak, UNDER_WAY};

/// In less time chance, a buffer used for the first time, a huge page, looks like growth.
const JUDGED_FROM: Duration = Duration::from_secs(600);
/// What a process's resident memory may grow by within its life, in KiB.
const MEMORY_FLOOR: f64 = 1024.0;
/// What another process, of the same history, may have more, in KiB: its allocator takes huge pages, one more or less by chance.
const TWO_HUGE_PAGES: f64 = 4096.0;

/// Something that must not grow.
struct Line {
    name: &'static str,
    slope: Option<Slope>,
    /// What it may grow by in the whole soak.
    floor: f64,
}

impl Soak {
    fn lines(&self) -> Vec<Line> {
        let watched = &self.watched;
        let ratios: Vec<Sample> = self.by_round(|round| {
            let median = |report: &LoadReport| report.round_trip.quantile(0.5).as_secs_f64();
            median(&round.load) / median(&round.control).max(1e-9)
        });
        let medians = self.by_round(|round| round.load.round_trip.quantile(0.5).as_secs_f64() * 1e6);
        let twice = |samples: &[Sample]| Slope::overall(samples).map_or(0.0, |slope| slope.mean);
        let line = |name, slope, floor| Line { name, slope, floor };
        vec![
            line(
                "keeper: resident KiB, within each process's life",
                Slope::of_each(&watched.keeper_memory),
                MEMORY_FLOOR,
            ),
            line("keeper: resident KiB, from one to the next", Slope::of_means(&watched.keeper_memory), 2048.0),
            line(
                "packet process: resident KiB, within each process's life",
                Slope::of_each(&watched.packets_memory),
                MEMORY_FLOOR,
            ),
            line(
                "packet process: resident KiB, from one to the next",
                Slope::of_means(&watched.packets_memory),
                2048.0,
            ),
            line("keeper: open descriptors", Slope::overall(&watched.keeper_descriptors), 2.0),
            line("packet process: open descriptors", Slope::overall(&watched.packets_descriptors), 2.0),
            line("round trip, median of a round, us", Slope::overall(&medians), twice(&medians)),
            line("the same, as a multiple of the control's", Slope::overall(&ratios), twice(&ratios)),
        ]
    }

    fn by_round(&self, value: impl Fn(&Round) -> f64) -> Vec<Sample> {
        let at = |number: usize| self.elapsed.as_secs_f64() * number as f64 / self.rounds.len() as f64;
        let sample = |(number, round)| Sample { of: 0, at: at(number), value: value(round) };
        self.rounds.iter().enumerate().map(sample).collect()
    }

    /// What each process has had when everything had been used once, before the first round and after the last, in KiB.
    fn filled(&self) -> [(&'static str, f64, f64); 2] {
        let [before, after] = self.filled;
        [("the keeper", before.keeper, after.keeper), ("the packet process", before.packets, after.packets)]
    }

    fn total(&self, value: impl Fn(&Round) -> u64) -> u64 {
        self.rounds.iter().map(value).sum()
    }

    /// What must not be.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for round in self.rounds.iter().filter(|round| round.judged.unexplained > 0) {
            let (from, to) = (round.window.0.as_secs_f64(), round.window.1.as_secs_f64());
            faults.push(format!(
                "{} losses are unexplained beside: {} ({from:.2} s to {to:.2} s of its round); they left at {:?}; missing on the way: {:?}; \
                 counted: {:?}; came too late: {}",
                round.judged.unexplained,
                round.fault.name(),
                round.load.losses.spells(Duration::from_millis(100)),
                round.missing,
                round.dropped,
                round.load.stray - round.load.duplicates,
            ));
        }
        for round in self.rounds.iter().filter(|round| !round.fault.may_cost() && round.load.no_reply > 0) {
            faults.push(format!("{} ICMP errors came beside: {}", round.load.no_reply, round.fault.name()));
        }
        for (what, count) in [
            ("replies reached another client", self.total(|round| round.load.wrong_client)),
            ("replies were altered", self.total(|round| round.load.altered)),
            ("replies came twice", self.total(|round| round.load.duplicates)),
        ] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        let seconds = self.elapsed.as_secs_f64();
        for line in self.lines().iter().filter(|_| self.elapsed >= JUDGED_FROM) {
            if line.slope.is_some_and(|slope| slope.grows(seconds, line.floor)) {
                faults.push(format!("it grows: {}", line.name));
            }
        }
        for (process, before, after) in self.filled().into_iter().filter(|_| self.elapsed >= JUDGED_FROM) {
            if after > before + TWO_HUGE_PAGES {
                faults.push(format!("{process} has {after} KiB where it had {before} KiB with everything used once"));
            }
        }
        faults
    }

    pub(super) fn page(&self) -> String {
        let mut page = String::new();
        self.write(&mut page).expect("writing to a String cannot fail");
        page
    }

    fn write(&self, page: &mut String) -> std::fmt::Result {
        let (plan, faults) = (&self.plan, self.faults());
        let verdict = if faults.is_empty() { "nothing unexplained, nothing grows" } else { "NOT WELL" };
        writeln!(
            page,
            "**{verdict}**: {:.0} s at {} echoes/s, {} faults, seed {}.\n",
            self.elapsed.as_secs_f64(),
            plan.rate,
            self.rounds.len(),
            plan.seed
        )?;
        for fault in &faults {
            writeln!(page, "* {fault}")?;
        }
        let (sent, lost) = (self.total(|round| round.load.sent), self.total(|round| round.load.lost));
        let control = |value: fn(&LoadReport) -> u64| self.total(|round| value(&round.control));
        writeln!(
            page,
            "| echoes | |\n| --- | ---: |\n| sent | {sent} |\n| answered, every byte as it was sent | {} |\n| lost | {lost} |\n\
             | in the window of a fault that may cost some | {} |\n| to a queue of the kernel's that was full, counted by it in this lab | \
             {} |\n| to lateness, beside a full queue | {} |\n| **unexplained** | **{}** |\n| to another client, altered, twice | {}, {}, {} |\n| after they were given up | {} |\n\
             | ICMP errors to the load's clients | {} |\n| beside it, without a gateway: sent, lost | {}, {} |\n",
            self.total(|round| round.load.received),
            self.total(|round| round.judged.by_fault),
            self.total(|round| round.judged.by_queues),
            self.total(|round| round.judged.by_lateness),
            self.total(|round| round.judged.unexplained),
            self.total(|round| round.load.wrong_client),
            self.total(|round| round.load.altered),
            self.total(|round| round.load.duplicates),
            self.total(|round| round.load.stray - round.load.duplicates),
            self.total(|round| round.load.no_reply),
            control(|report| report.sent),
            control(|report| report.lost),
        )?;
        self.write_sections(page)?;
        self.write_faults(page)?;
        self.write_lines(page)
    }

    /// Where packets are missing.
    fn write_sections(&self, page: &mut String) -> std::fmt::Result {
        writeln!(
            page,
            "Where packets are missing, by the kernel's counts along their way in all rounds, and what the queues there have counted. Not the \
             load's alone: another client's flood is lost in the gateway, forged replies are more than were sent. Sockets count too many.\n\n\
             | on the way | missing | counted by queues | in rounds of faults that may cost nothing | counted by queues |\n\
             | --- | ---: | ---: | ---: | ---: |"
        )?;
        for (number, section) in SECTIONS.iter().enumerate() {
            let of = |rounds: &dyn Fn(&&Round) -> bool| {
                let rounds = || self.rounds.iter().filter(rounds);
                let missing: i64 = rounds().map(|round| round.missing[number]).sum();
                (missing, rounds().map(|round| section.counted(&round.dropped)).sum::<u64>())
            };
            let (all, free) = (of(&|_| true), of(&|round| !round.fault.may_cost()));
            writeln!(page, "| {} | {} | {} | {} | {} |", section.name, all.0, all.1, free.0, free.1)?;
        }
        writeln!(page)
    }

    fn write_faults(&self, page: &mut String) -> std::fmt::Result {
        writeln!(
            page,
            "A fault's window is from {} s before it to {} s after all was given back. *After*: from then to the last loss, at the longest. \
             *May cost*: in all its rounds. Drops in the windows: the gateway's by name, as far as the process that counted them lived, and the kernel's by place.\n\n\
             | fault | times | may cost | lost | to queues | unexplained | after, s | dropped in the windows |\n\
             | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
            UNDER_WAY.as_secs(),
            HEAL.as_secs()
        )?;
        for fault in Fault::ALL {
            let rounds: Vec<&Round> = self.rounds.iter().filter(|round| round.fault == fault).collect();
            if rounds.is_empty() {
                continue;
            }
            let total = |value: fn(&Round) -> u64| rounds.iter().map(|round| value(round)).sum::<u64>();
            let after = rounds.iter().map(|round| round.judged.after).max().unwrap_or_default();
            let dropped = rounds.iter().fold(BTreeMap::new(), |dropped, round| {
                let by_kernel = round.told.at_last.since(&round.told.at_first);
                sum(dropped, sum(round.told.dropped_by_gateway.clone(), by_kernel))
            });
            let dropped: Vec<String> = dropped.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {:.2} | {} |",
                fault.name(),
                rounds.len(),
                if fault.may_cost() { total(|round| round.allowed).to_string() } else { "nothing".to_owned() },
                total(|round| round.load.lost),
                total(|round| round.judged.by_queues),
                total(|round| round.judged.unexplained),
                after.as_secs_f64(),
                dropped.join(", ")
            )?;
        }
        Ok(())
    }

    fn write_lines(&self, page: &mut String) -> std::fmt::Result {
        writeln!(
            page,
            "\nResident memory when everything had been used once: a process that had waited for its turn, nearly every mapping, fragments, \
             errors, refusals, a link that went.\n\n| KiB | before | after | difference | floor |\n| --- | ---: | ---: | ---: | ---: |"
        )?;
        for (process, before, after) in self.filled() {
            writeln!(page, "| {process} | {before:.0} | {after:.0} | {:+.0} | {TWO_HUGE_PAGES:.0} |", after - before)?;
        }
        writeln!(
            page,
            "\nSlopes: the median of those between any two samples of one process, and what it is at least at 97.5% as far as samples err \
             independently; of packet processes from 20 s on, and of keepers from 20 s after they have first replaced one; from one process to \
             the next there is one sample each, its mean. It grows if the least makes more of it than the floor in the whole time, if that is \
             ten minutes or more.\n\n| | samples | mean | an hour | at least | floor |\n| --- | ---: | ---: | ---: | ---: | ---: |"
        )?;
        for Line { name, slope, floor } in self.lines() {
            match slope {
                Some(Slope { samples, mean, per_hour, least }) => {
                    writeln!(page, "| {name} | {samples} | {mean:.1} | {per_hour:+.1} | {least:+.1} | {floor:.1} |")?;
                }
                None => writeln!(page, "| {name} | too few | | | | {floor:.1} |")?,
            }
        }
        Ok(())
    }
}
