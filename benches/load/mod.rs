//! The load that the benches share: who pings whom, in which order, and how a batch is timed.
//!
//! 5,000 clients with ten idents each (all clients use the same ten, as real ones do) are 50,000 live mappings. The plan is
//! a ring of 131,072 different echoes in random order; 100,000 of them are outstanding at any time: each step records the
//! next echo and uses up the one that was recorded 100,000 steps before. So nothing that a step needs is in a near cache
//! but by chance.
//!
//! Time is virtual: 100 ns an echo, about what one takes, so that time stamps and token buckets are written as often as
//! they are for real.
//!
//! Each batch is timed on its own. One that took more than ten times the median was interrupted (the machine is shared);
//! it is left out of the mean, and what was left out is reported.
#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod harness;
pub(crate) mod tables;
pub(crate) mod whole;

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::table::SlotIndex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Requests and replies a batch.
pub(crate) const BATCH: usize = 64;

/// Where the clients are.
pub(crate) const CLIENTS: &str = "10.66.0.0/18";
/// The gateway outside.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// As many as the network for benchmarks (RFC 2544) has addresses.
const PLANNED_MAX: usize = 1 << 17;
const IDENTS_PER_CLIENT: usize = 10;

/// Threads that the benches use at most; mapping m belongs to worker m modulo this.
pub(crate) const WORKERS: usize = 2;

/// How much load.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) mappings: usize,
    pub(crate) outstanding: usize,
    pub(crate) planned: usize,
    pub echo_words_log2: u32,
    /// Batches that one measurement takes on each thread.
    pub(crate) batches: usize,
    /// Batches before those, which bring the tables back into the caches.
    pub(crate) warm_up_batches: usize,
    pub(crate) rounds: usize,
}

impl Size {
    const FULL: Size = Size {
        mappings: 50_000,
        outstanding: 100_000,
        planned: PLANNED_MAX,
        echo_words_log2: 20,
        batches: 2_000,
        rounds: 42, // each contender six times in each place
        warm_up_batches: 2_000,
    };

    /// For the tests: everything once, nothing worth a figure.
    pub(crate) const TINY: Size = Size {
        mappings: 500,
        outstanding: 1000,
        planned: 2048,
        echo_words_log2: 14,
        batches: 40,
        rounds: 1,
        warm_up_batches: 4,
    };

    /// Full for `cargo bench`, tiny for `cargo test`.
    pub(crate) fn of_this_run() -> Size {
        if is_bench() { Size::FULL } else { Size::TINY }
    }
}

/// Whether this is `cargo bench`, which says so, and not `cargo test`, which does not.
pub(crate) fn is_bench() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// One echo of the plan.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) client: Ipv4Addr,
    pub(crate) client_ident: u16,
    pub(crate) sequence: u16,
    pub(crate) remote: Ipv4Addr,
    /// What the mapping has got: on the wire outside, the ident.
    pub(crate) index: SlotIndex,
}

/// Who has mapping number `mapping`.
pub(crate) fn asker(mapping: usize) -> (Ipv4Addr, u16) {
    let number = u32::try_from(mapping / IDENTS_PER_CLIENT).expect("a number of clients");
    let ident = u16::try_from(mapping % IDENTS_PER_CLIENT).expect("one of ten");
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 66, 0, 1)) + number), ident + 1)
}

/// The plan of thread `thread` of `threads`, whose mappings are those with its number modulo `threads`; `indexes` has
/// every mapping's slot. Each mapping occurs.
pub(crate) fn plan(size: Size, indexes: &[SlotIndex], thread: usize, threads: usize) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut mappings: Vec<usize> = (0..size.mappings).collect();
    mappings.resize_with(size.planned, || rng.random_range(..size.mappings));
    mappings.shuffle(&mut rng);
    let first_remote = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    let echo = |(remote, &mapping): (u32, &usize)| {
        let (client, client_ident) = asker(mapping);
        let remote = Ipv4Addr::from(first_remote + remote);
        Planned { client, client_ident, sequence: rng.random(), remote, index: indexes[mapping] }
    };
    (0..).zip(&mappings).filter(|(_, mapping)| *mapping % threads == thread).map(echo).collect()
}

/// The plan as a ring: what to record next, and what to use up.
pub(crate) struct Ring {
    plan: Vec<Planned>,
    outstanding: usize,
    /// How many have been recorded.
    recorded: usize,
    pub(crate) now: Instant,
}

impl Ring {
    pub(crate) fn new(size: Size, indexes: &[SlotIndex], thread: usize, threads: usize) -> Ring {
        let plan = plan(size, indexes, thread, threads);
        // Of two threads each has about half of the plan, and half of what is outstanding.
        let outstanding = plan.len() * size.outstanding / size.planned;
        Ring { plan, outstanding, recorded: 0, now: Instant::START }
    }

    /// Echoes in the plan.
    pub(crate) fn len(&self) -> usize {
        self.plan.len()
    }

    /// Positions in the plan of the next batch: recorded (first) and used up (second).
    pub(crate) fn next_batch(&mut self) -> [[usize; BATCH]; 2] {
        let next = self.recorded;
        self.recorded += BATCH;
        self.now = self.now + Duration::from_nanos(100 * BATCH as u64);
        let length = self.plan.len();
        let record = std::array::from_fn(|i| (next + i) % length);
        let consume = std::array::from_fn(|i| (next + i + length - self.outstanding) % length);
        [record, consume]
    }

    /// Positions of what is outstanding.
    pub(crate) fn window(&self) -> impl Iterator<Item = usize> + use<> {
        let (length, outstanding, next) = (self.plan.len(), self.outstanding, self.recorded);
        (0..outstanding).map(move |i| (next + i + length - outstanding) % length)
    }
}

impl std::ops::Index<usize> for Ring {
    type Output = Planned;

    fn index(&self, position: usize) -> &Planned {
        &self.plan[position]
    }
}

/// How long each batch took.
pub(crate) struct BatchTimes {
    times: Vec<Duration>,
    matched: usize,
}

/// What the times say.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    /// The mean without what was interrupted.
    pub(crate) echo_ns: f64,
    /// The share of the time that was left out.
    pub(crate) interrupted: f64,
}

/// Of a million echoes recorded, one or two find their bucket full and evict another, whose reply then has no match; with
/// more, something is wrong with the bench.
const UNMATCHED_MAX: f64 = 1e-4;

impl BatchTimes {
    pub(crate) fn with_capacity(batches: usize) -> BatchTimes {
        BatchTimes { times: Vec::with_capacity(batches), matched: 0 }
    }

    pub(crate) fn push(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// Takes note of how many of a batch's replies have matched.
    pub(crate) fn matched(&mut self, count: usize) {
        self.matched += count;
    }

    pub(crate) fn timing(self) -> Timing {
        let BatchTimes { mut times, matched } = self;
        let echoes = times.len() * BATCH;
        assert!((echoes - matched) as f64 <= 3.0 + UNMATCHED_MAX * echoes as f64, "{matched} of {echoes} matched");
        if times.is_empty() {
            return Timing { echo_ns: 0.0, interrupted: 0.0 };
        }
        times.sort_unstable();
        let bound = times[times.len() / 2] * 10;
        let all: Duration = times.iter().sum();
        let kept = times.partition_point(|time| *time <= bound);
        let sum: Duration = times[..kept].iter().sum();
        Timing {
            echo_ns: sum.as_nanos() as f64 / (kept * BATCH) as f64,
            interrupted: 1.0 - sum.as_secs_f64() / all.as_secs_f64(),
        }
    }
}
