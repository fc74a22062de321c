//! Whether something grows: a straight line through samples, and how sure it is.

/// How much something grows an hour: the median of the slopes between any two samples of one process (Theil and Sen). What is
/// taken once and for all in a process's life, early or late, does not move it as it moves a line of least squares; what is taken
/// again and again does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slope {
    pub(super) samples: usize,
    pub(super) mean: f64,
    pub(super) per_hour: f64,
    /// It is no less than this with a confidence of 97.5%, as far as samples err independently (Kendall's variance).
    pub(super) least: f64,
}

/// A value at a time in seconds, and what it is of: another process begins at another level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) of: u32,
    pub(super) at: f64,
    pub(super) value: f64,
}

impl Slope {
    /// Through all samples; none of fewer than eight.
    pub(super) fn overall(samples: &[Sample]) -> Option<Slope> {
        let one: Vec<Sample> = samples.iter().map(|sample| Sample { of: 0, ..*sample }).collect();
        Slope::of_each(&one)
    }

    /// Through one sample of each process, the mean of its own: samples of one process do not err independently of its level.
    pub(super) fn of_means(samples: &[Sample]) -> Option<Slope> {
        let mean_of = |process| {
            let own = || samples.iter().filter(move |sample| sample.of == process);
            Sample { of: 0, at: mean(own().map(|sample| sample.at)), value: mean(own().map(|sample| sample.value)) }
        };
        Slope::of_each(&processes(samples).into_iter().map(mean_of).collect::<Vec<_>>())
    }

    /// One slope for all processes, each with a level of its own.
    pub(super) fn of_each(samples: &[Sample]) -> Option<Slope> {
        let processes = processes(samples);
        let freedom = samples.len().checked_sub(processes.len() + 1)?;
        if freedom < 6 {
            return None;
        }
        let (mut slopes, mut variance) = (Vec::new(), 0.0);
        for process in processes {
            let own: Vec<&Sample> = samples.iter().filter(|sample| sample.of == process).collect();
            for (number, later) in own.iter().enumerate() {
                let before = own[..number].iter().filter(|before| later.at > before.at);
                slopes.extend(before.map(|before| (later.value - before.value) / (later.at - before.at)));
            }
            let count = own.len() as f64;
            variance += count * (count - 1.0) * (2.0 * count + 5.0) / 18.0;
        }
        if slopes.is_empty() {
            return None;
        }
        slopes.sort_unstable_by(f64::total_cmp);
        // How many slopes the median's rank may be wrong by, half of it on each side.
        #[expect(clippy::cast_possible_truncation, reason = "a rank")]
        let error = (NORMAL * variance.sqrt() / 2.0) as usize;
        let median = slopes.len() / 2;
        Some(Slope {
            samples: samples.len(),
            mean: mean(samples.iter().map(|sample| sample.value)),
            per_hour: slopes[median] * 3600.0,
            least: slopes[median.saturating_sub(error)] * 3600.0,
        })
    }

    /// Whether it has grown in `seconds` by more than `floor`, for sure.
    pub(super) fn grows(&self, seconds: f64, floor: f64) -> bool {
        self.least * seconds / 3600.0 > floor
    }
}

fn processes(samples: &[Sample]) -> Vec<u32> {
    let mut processes: Vec<u32> = samples.iter().map(|sample| sample.of).collect();
    processes.sort_unstable();
    processes.dedup();
    processes
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / f64::max(count, 1.0)
}

/// What 97.5% of the normal distribution do not exceed.
const NORMAL: f64 = 1.96;

#[test]
fn a_slope_is_found_whatever_the_levels_and_a_step_is_none() {
    let samples = |of: u32, value: &dyn Fn(u32) -> f64| -> Vec<Sample> {
        (0..100).map(|number| Sample { of, at: f64::from(number) * 2.0, value: value(number) }).collect()
    };
    let noise = |number: u32| f64::from(number * 7 % 10);
    let slope = |lives: &[Vec<Sample>]| Slope::of_each(&lives.concat()).expect("enough samples");
    // Half a KiB a second, from two levels.
    let leaks = slope(&[
        samples(1, &|number| 1000.0 + f64::from(number) + noise(number)),
        samples(2, &|number| f64::from(number) + noise(number)),
    ]);
    assert!(
        (leaks.per_hour - 1800.0).abs() < 20.0 && leaks.least > 1750.0 && leaks.least <= leaks.per_hour,
        "{leaks:?}"
    );
    assert!(leaks.grows(3600.0, 1700.0) && !leaks.grows(3600.0, 1800.0) && leaks.grows(1800.0, 850.0));
    // The same in steps of four pages, as an allocator takes them.
    let stepping = slope(&[samples(1, &|number| f64::from(number / 16 * 16))]);
    assert!(stepping.grows(3600.0, 1500.0), "{stepping:?}");
    // Two MiB once, early in one life and late in another.
    let once = slope(&[
        samples(1, &|number| if number < 10 { 0.0 } else { 2048.0 }),
        samples(2, &|number| if number < 80 { 0.0 } else { 2048.0 }),
    ]);
    assert_eq!((once.per_hour, once.least), (0.0, 0.0));
    assert!(!slope(&[samples(1, &noise)]).grows(3600.0, 0.0), "noise");
    // Ten processes whose levels differ by chance, with a hundred samples each, prove no more than ten samples do.
    let level = |of: u32| f64::from(of * 7 % 10) * 10.0;
    let sample = |of: u32, at: u32| Sample { of, at: f64::from(of * 100 + at), value: level(of) };
    let leaps: Vec<Sample> = (0..10).flat_map(|of| (0..100).map(move |at| sample(of, at))).collect();
    let means = Slope::of_means(&leaps).expect("enough processes");
    assert!(means.samples == 10 && !means.grows(3600.0, 0.0), "{means:?}");
    assert!(Slope::overall(&samples(1, &noise)[..7]).is_none(), "seven samples prove nothing");
}
