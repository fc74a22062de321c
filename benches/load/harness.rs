//! Contenders take turns inside one run: a round measures each of them once, so what else the machine does falls on all
//! alike. The figure is the median of the rounds; a ratio is the median of the rounds' ratios.

use std::sync::Barrier;

use super::Timing;

/// A round with more of its time left out than this is a doubt.
const INTERRUPTED_MAX: f64 = 0.1;

/// Runs `work` on one thread for each state at once, each on a core of its own as far as there are cores, and waits for
/// all. The barrier is for `work` to begin together, after its preparations, and to end together.
pub(crate) fn on_threads<S: Send>(states: &mut [S], work: impl Fn(&mut S, &Barrier) -> Timing + Sync) -> Vec<Timing> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let barrier = Barrier::new(states.len());
    std::thread::scope(|scope| {
        let start = |(number, state)| {
            let (work, barrier, core) = (&work, &barrier, cores.get(number).copied());
            scope.spawn(move || {
                core.map(core_affinity::set_for_current);
                work(state, barrier)
            })
        };
        let threads: Vec<_> = states.iter_mut().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panicked")).collect()
    })
}

/// One contender's rounds.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    threads: usize,
    rounds: Vec<Round>,
}

struct Round {
    echo_ns: f64,
    interrupted: f64,
}

impl Series {
    pub(crate) fn new(name: &'static str, threads: usize) -> Series {
        Series { name, threads, rounds: Vec::new() }
    }

    /// Takes in what the threads of one round measured.
    pub(crate) fn add(&mut self, timings: &[Timing]) {
        assert_eq!(timings.len(), self.threads);
        let mean = |of: fn(&Timing) -> f64| timings.iter().map(of).sum::<f64>() / timings.len() as f64;
        self.rounds.push(Round { echo_ns: mean(|t| t.echo_ns), interrupted: mean(|t| t.interrupted) });
    }

    /// Nanoseconds that an echo costs a thread: median, least and most.
    pub(crate) fn echo_ns(&self) -> [f64; 3] {
        spread(self.rounds.iter().map(|round| round.echo_ns).collect())
    }

    /// How many times the rate (all threads together) of `other` this one has.
    pub(crate) fn rate_over(&self, other: &Series) -> f64 {
        let threads = self.threads as f64 / other.threads as f64;
        let ratios = self.rounds.iter().zip(&other.rounds).map(|(own, others)| others.echo_ns / own.echo_ns * threads);
        spread(ratios.collect())[0]
    }

    /// One line of the table, and a doubt if there is one.
    pub(crate) fn line(&self) -> String {
        let [median, least, most] = self.echo_ns();
        let interrupted = spread(self.rounds.iter().map(|round| round.interrupted).collect())[0];
        let doubt = if interrupted > INTERRUPTED_MAX {
            format!("  doubt: {:.0}% of the time lost to others; wait for a quieter machine", interrupted * 100.0)
        } else {
            String::new()
        };
        format!("{:32} {} thread  {median:6.1} ns an echo  ({least:.1} to {most:.1}){doubt}", self.name, self.threads)
    }
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

/// What the figures were taken on and under which load, to stand above them.
pub(crate) fn conditions() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown").trim();
    let load = read("/proc/loadavg");
    let cores = core_affinity::get_core_ids().unwrap_or_default().len();
    format!("{cores} cores{} {}; load average {}", model, read("/proc/sys/kernel/osrelease").trim(), load.trim())
}
