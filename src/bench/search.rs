//! The highest load that a contender carries, found by open loops: NDR (no echo lost) and PDR (0.5% lost at most), and the
//! latencies at shares of it. And, with `--hold`, what is lost of most of the PDR within a minute, which is not to be more
//! than the control loses of the same load.
//!
//! After RFC 9971 (MLRsearch), in small: short loads close in on the answer from both sides, and where they end a longer
//! one has to confirm it; one that does not is an upper bound like any other, and the next lower load is tried. Every
//! load is used for both goals. A load that the generator could not send as asked is an upper bound too, as whatever lies
//! beyond cannot be measured; the record tells by its schedule's error.

use std::time::Duration;

use super::figures::{CONTROL, MASQUERADE};
use super::record::{Purpose, Step, Trial};
use super::trial::Ring;
use crate::error::SetupError;

/// PDR's share of lost echoes.
const PDR_LOSS: f64 = 0.005;
/// A short load's length.
const SHORT: Duration = Duration::from_secs(1);
/// The bounds are close enough when they differ by this share.
const PRECISION: f64 = 0.05;
/// The most short loads for one goal, and the most longer ones.
const SHORT_LOADS: usize = 8;
const LONG_LOADS: usize = 4;
/// How far above what a closed loop carries the search begins.
const HEADROOM: f64 = 1.25;
/// Below this many echoes a second nothing is searched for.
const FLOOR_PER_S: f64 = 500.0;
/// Loads that all contenders are given, in echoes a second; those beyond what one carries are left out for it.
const EQUAL_PER_S: [u64; 4] = [5_000, 20_000, 50_000, 100_000];
/// Shares of the own PDR at which latency is measured; 0 is the light load.
const SHARES_OF_PDR: [u8; 4] = [0, 10, 50, 90];

/// The share of what was asked that a generator must have sent for the load to count as what it was meant to be.
const SENT_AT_LEAST: f64 = 0.99;

/// The share of the PDR that is held, in percent.
const HELD_PERCENT: u8 = 80;

/// Runs all loads of a full trial. `half_per_s`: half of the masquerade's PDR, if it is known; the masquerade's own trial
/// finds it.
pub(super) fn run(ring: &mut Ring<'_>, trial: &mut Trial, half_per_s: Option<u64>) -> Result<(), SetupError> {
    ring.warm_up()?;
    let long = ring.options().duration();
    trial.steps.push(ring.load(Purpose::Saturation, None, long)?);
    let goals = capacity(ring, trial, &[PDR_LOSS, 0.0])?;
    let (pdr, ndr) = (goals[0], goals[1]);
    // What loses nothing loses no more than 0.5%, however another long load above the search's PDR went.
    let pdr = if ndr > pdr { ndr } else { pdr };
    (trial.pdr_per_s, trial.ndr_per_s) = (pdr.map(rounded), ndr.map(rounded));
    for share in SHARES_OF_PDR {
        let per_s = share_of(pdr, share);
        if share == 0 {
            ring.load(Purpose::OfPdr(0), Some(ring.options().light_per_s), long).map(|step| trial.steps.push(step))?;
        } else if per_s >= 1 {
            ring.load(Purpose::OfPdr(share), Some(per_s), long).map(|step| trial.steps.push(step))?;
        }
    }
    for per_s in EQUAL_PER_S {
        if pdr.is_some_and(|pdr| pdr >= f64_of(per_s)) {
            ring.load(Purpose::Equal, Some(per_s), long).map(|step| trial.steps.push(step))?;
        }
    }
    half_of_masquerades(ring, trial, half_per_s)
}

/// Runs the loads of a trial that holds what it found, after a light one and the saturation.
pub(super) fn hold(
    ring: &mut Ring<'_>,
    trial: &mut Trial,
    half_per_s: Option<u64>,
    duration: Duration,
) -> Result<(), SetupError> {
    // The control has none of its own: it is held at everybody else's.
    if trial.contender != CONTROL {
        let pdr = capacity(ring, trial, &[PDR_LOSS])?[0];
        trial.pdr_per_s = pdr.map(rounded);
        let per_s = share_of(pdr, HELD_PERCENT);
        if per_s >= 1 {
            ring.load(Purpose::Hold, Some(per_s), duration).map(|step| trial.steps.push(step))?;
        }
    }
    half_of_masquerades(ring, trial, half_per_s)
}

/// All have this load, those too that do not carry it: what becomes of a ping's time then is the answer.
fn half_of_masquerades(ring: &mut Ring<'_>, trial: &mut Trial, known: Option<u64>) -> Result<(), SetupError> {
    let is_masquerades = trial.contender == MASQUERADE;
    let own = trial.pdr_per_s.filter(|_| is_masquerades).map(|per_s| per_s / 2);
    if let Some(per_s) = known.or(own) {
        let step = ring.load(Purpose::HalfOfMasquerades, Some(per_s), ring.options().duration())?;
        trial.steps.push(step);
    }
    Ok(())
}

fn share_of(pdr: Option<f64>, percent: u8) -> u64 {
    rounded(pdr.unwrap_or(0.0) * f64::from(percent) / 100.0)
}

/// The highest loads that lose no more than each of `goals`, the largest first.
fn capacity(ring: &mut Ring<'_>, trial: &mut Trial, goals: &[f64]) -> Result<Vec<Option<f64>>, SetupError> {
    let long = ring.options().duration();
    let most = trial.step(Purpose::Saturation).map_or(0.0, Step::echoes_per_s) * HEADROOM;
    let mut load = |purpose, per_s: f64, duration| {
        let step = ring.load(purpose, Some(rounded(per_s)), duration)?;
        trial.steps.push(step.clone());
        Ok(step)
    };
    let mut bounds = Bounds::new(most);
    goals.iter().map(|goal| bounds.search(*goal, long, &mut load)).collect()
}

/// What is known so far: loads and the share that was lost of each.
struct Bounds {
    most: f64,
    seen: Vec<Seen>,
}

struct Seen {
    per_s: f64,
    loss: f64,
    /// Sent as asked.
    kept: bool,
    long: bool,
}

impl Bounds {
    fn new(most: f64) -> Bounds {
        Bounds { most, seen: Vec::new() }
    }

    /// The highest load that a long trial confirms to lose no more than `goal`; none if even the floor loses more.
    fn search(
        &mut self,
        goal: f64,
        long: Duration,
        load: &mut impl FnMut(Purpose, f64, Duration) -> Result<Step, SetupError>,
    ) -> Result<Option<f64>, SetupError> {
        for _ in 0..SHORT_LOADS {
            let (low, high) = (self.low(goal), self.high(goal));
            if high - low <= high * PRECISION {
                break;
            }
            // A first guess at the top: what carries it has no upper bound below.
            let next = if self.seen.is_empty() { self.most } else { f64::midpoint(low, high) };
            self.note(&load(Purpose::Search, next, SHORT)?, next, SHORT, false);
        }
        let mut candidate = self.low(goal);
        for _ in 0..LONG_LOADS {
            if candidate < FLOOR_PER_S {
                return Ok(None);
            }
            if self.confirmed(candidate, goal) {
                return Ok(Some(candidate));
            }
            let step = load(Purpose::Confirmation, candidate, long)?;
            self.note(&step, candidate, long, true);
            if self.confirmed(candidate, goal) {
                return Ok(Some(candidate));
            }
            // What a short load said to be carried, but neither close to what just failed nor far away from it.
            candidate = self.low(goal).clamp(candidate * 0.7, candidate * (1.0 - 2.0 * PRECISION));
        }
        Ok(None)
    }

    /// `duration` is how long was sent: the step's own time ends with the last reply, and late replies are no missed schedule.
    fn note(&mut self, step: &Step, per_s: f64, duration: Duration, long: bool) {
        let kept = f64_of(step.sent) >= SENT_AT_LEAST * per_s * duration.as_secs_f64();
        self.seen.push(Seen { per_s, loss: step.loss(), kept, long });
    }

    fn confirmed(&self, per_s: f64, goal: f64) -> bool {
        let same = |seen: &&Seen| (seen.per_s - per_s).abs() < 1.0 && seen.long;
        self.seen.iter().rfind(same).is_some_and(|seen| seen.kept && seen.loss <= goal)
    }

    /// The lowest load that lost more, or the top.
    fn high(&self, goal: f64) -> f64 {
        let over = self.seen.iter().filter(|seen| !seen.kept || seen.loss > goal);
        over.map(|seen| seen.per_s).fold(self.most, f64::min)
    }

    /// The highest load below that which did not.
    fn low(&self, goal: f64) -> f64 {
        let high = self.high(goal);
        let under = self.seen.iter().filter(|seen| seen.kept && seen.loss <= goal);
        let all_carried = self.seen.iter().all(|seen| seen.kept && seen.loss <= goal);
        let below = under.map(|seen| seen.per_s).filter(|per_s| *per_s < high || all_carried);
        below.fold(0.0, f64::max)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a load, which is neither negative nor huge"
)]
fn rounded(per_s: f64) -> u64 {
    per_s.round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn f64_of(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::step_of;
    use super::*;

    /// Searches against a contender that loses what is over `capacity`, and everything else with `noise`.
    fn searched(most: f64, capacity: f64, noise: f64, goal: f64) -> (Option<f64>, usize) {
        let mut loads = 0;
        let mut load = |purpose, per_s: f64, duration: Duration| {
            loads += 1;
            let seconds = duration.as_secs_f64();
            let sent = per_s * seconds;
            let lost = ((per_s - capacity) * seconds).max(sent * noise);
            let mut step = step_of(purpose, rounded(sent - lost), rounded(seconds * 1e6));
            (step.sent, step.lost) = (rounded(sent), rounded(lost));
            Ok(step)
        };
        let found = Bounds::new(most).search(goal, Duration::from_secs(3), &mut load).expect("loads do not fail");
        (found, loads)
    }

    #[test]
    fn the_capacity_is_found_closely_and_from_below_with_few_loads() {
        for capacity in [20_000.0, 40_000.0, 90_000.0] {
            let (found, loads) = searched(100_000.0, capacity, 0.0, PDR_LOSS);
            let found = found.expect("there is a load that it carries");
            assert!(found <= capacity * 1.006 && found > capacity * 0.9, "{capacity}: {found}");
            assert!(loads <= SHORT_LOADS + LONG_LOADS, "{loads} loads");
        }
    }

    #[test]
    fn one_that_carries_all_that_is_asked_has_the_top_as_its_result() {
        assert_eq!(searched(10_000.0, 1e9, 0.0, 0.0).0, Some(10_000.0));
    }

    #[test]
    fn one_that_always_loses_has_no_result() {
        assert_eq!(searched(100_000.0, 1e9, 0.01, PDR_LOSS).0, None);
        assert!(searched(100_000.0, 1e9, 0.004, PDR_LOSS).0.is_some());
        assert_eq!(searched(100_000.0, 1e9, 0.004, 0.0).0, None, "but none without any loss");
    }

    #[test]
    fn replies_that_come_late_do_not_make_a_load_one_that_was_not_sent() {
        let mut load = |purpose, per_s: f64, duration: Duration| {
            let until_last_reply = duration + Duration::from_millis(300);
            Ok(step_of(purpose, rounded(per_s * duration.as_secs_f64()), rounded(until_last_reply.as_secs_f64() * 1e6)))
        };
        let found = Bounds::new(50_000.0).search(0.0, Duration::from_secs(2), &mut load).expect("loads do not fail");
        assert_eq!(found, Some(50_000.0));
    }

    #[test]
    fn a_load_that_was_not_sent_as_asked_is_no_answer() {
        let mut load = |purpose, per_s: f64, duration: Duration| {
            let sent = per_s.min(20_000.0) * duration.as_secs_f64();
            Ok(step_of(purpose, rounded(sent), rounded(duration.as_secs_f64() * 1e6)))
        };
        let found = Bounds::new(100_000.0).search(0.0, Duration::from_secs(3), &mut load).expect("loads do not fail");
        assert!(found.is_some_and(|found| found <= 20_300.0), "{found:?}");
    }
}
