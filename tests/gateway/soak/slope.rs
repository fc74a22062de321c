//! Whether something grows: a straight line through samples, and how sure it is.

/// How much something grows an hour, by least squares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slope {
    pub(super) samples: usize,
    pub(super) mean: f64,
    pub(super) per_hour: f64,
    /// The slope is within this of the truth with a confidence of 95%, as far as samples err independently.
    pub(super) within: f64,
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
        let mut centred = Vec::new();
        for process in processes {
            let own: Vec<&Sample> = samples.iter().filter(|sample| sample.of == process).collect();
            let (at, value) = (mean(own.iter().map(|sample| sample.at)), mean(own.iter().map(|sample| sample.value)));
            centred.extend(own.iter().map(|sample| (sample.at - at, sample.value - value)));
        }
        let square: f64 = centred.iter().map(|(x, _)| x * x).sum();
        if square <= 0.0 {
            return None;
        }
        let slope = centred.iter().map(|(x, y)| x * y).sum::<f64>() / square;
        let rest: f64 = centred.iter().map(|(x, y)| (y - slope * x).powi(2)).sum();
        let error = (rest / freedom as f64 / square).sqrt();
        Some(Slope {
            samples: samples.len(),
            mean: mean(samples.iter().map(|sample| sample.value)),
            per_hour: slope * 3600.0,
            within: student(freedom) * error * 3600.0,
        })
    }

    /// Whether it has grown in `seconds` by more than `floor`, for sure.
    pub(super) fn grows(&self, seconds: f64, floor: f64) -> bool {
        (self.per_hour - self.within) * seconds / 3600.0 > floor
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

/// What 97.5% of Student's t with so many degrees of freedom (six or more) does not exceed, to the hundredth.
fn student(freedom: usize) -> f64 {
    // The expansion of Cornish and Fisher about the normal distribution's.
    let (z, n) = (1.959_964_f64, freedom as f64);
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    z + (z3 + z) / (4.0 * n)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * n * n)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * n.powi(3))
}

#[test]
fn a_line_is_found_with_its_error_whatever_the_levels() {
    let near = |value: f64, expected: f64| assert!((value - expected).abs() < 0.006, "{value} is not {expected}");
    // From the tables.
    for (freedom, expected) in [(6, 2.447), (10, 2.228), (30, 2.042), (1000, 1.962)] {
        near(student(freedom), expected);
    }
    let line = |of: u32, level: f64| {
        (0..20).map(move |at| Sample {
            of,
            at: f64::from(at),
            value: level + 0.5 * f64::from(at) + if at % 2 == 0 { 0.1 } else { -0.1 },
        })
    };
    let samples: Vec<Sample> = line(1, 1000.0).chain(line(2, 0.0)).collect();
    let slope = Slope::of_each(&samples).expect("enough samples");
    assert!((slope.per_hour - 1800.0).abs() < slope.within && slope.within < 40.0, "{slope:?}");
    assert!(slope.grows(3600.0, 1700.0) && !slope.grows(3600.0, 1800.0) && slope.grows(1800.0, 850.0));
    let flat: Vec<Sample> = samples.iter().map(|sample| Sample { value: sample.value % 0.2, ..*sample }).collect();
    assert!(!Slope::of_each(&flat).expect("enough samples").grows(3600.0, 40.0));
    // Ten processes whose levels differ by chance, with a hundred samples each, prove no more than ten samples do.
    let level = |of: u32| f64::from(of * 7 % 10) * 10.0;
    let sample = |of: u32, at: u32| Sample { of, at: f64::from(of * 100 + at), value: level(of) };
    let leaps: Vec<Sample> = (0..10).flat_map(|of| (0..100).map(move |at| sample(of, at))).collect();
    let slope = Slope::of_means(&leaps).expect("enough processes");
    assert!(slope.samples == 10 && slope.within > 5.0 * Slope::overall(&leaps).expect("enough samples").within);
    assert!(Slope::overall(&samples[..7]).is_none(), "seven samples prove nothing");
}
