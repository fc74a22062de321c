//! What is known about one host's pings.
//!
//! Sums are kept beside a histogram: minimum, mean and deviation are exact, percentiles are to within one percent. A list of
//! hosts longer than [`HISTOGRAMS_MAX`] goes without percentiles, or a million hosts would need gigabytes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::pinger::{Payload, PingError, Reply, Stray, StrayKind};

/// The longest list whose hosts have percentiles each.
pub(super) const HISTOGRAMS_MAX: usize = 2_000;

/// The upper ends of Prometheus' buckets, in microseconds.
pub(super) const BUCKETS_US: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];

/// Senders of errors that are told apart; those of the errors beyond are summed up. A path that changes with every packet
/// must not fill the memory.
const SENDERS_MAX: usize = 64;

/// One host's numbers.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    /// Requests with an outcome.
    pub(super) settled: u64,
    pub(super) received: u64,
    /// Without a reply in time, errors included.
    pub(super) lost: u64,
    pub(super) late: u64,
    pub(super) duplicates: u64,
    pub(super) corrupt: u64,
    pub(super) reordered: u64,
    /// Of those lost, those that an ICMP error or the own host's refusal told of.
    pub(super) errors: u64,
    /// Lost by this host's own full receive buffer, as far as it knows.
    pub(super) dropped_here: u64,
    pub(super) errors_by_sender: BTreeMap<IpAddr, u64>,
    pub(super) errors_of_other_senders: u64,
    pub(super) last: Option<Duration>,
    min: Option<Duration>,
    max: Duration,
    sum_us: f64,
    sum_squares_us: f64,
    apart_sum_us: f64,
    /// The mean in which each time counts for an eighth, as `ping` has it.
    ewma_us: Option<f64>,
    highest_answered: u64,
    /// The most requests that were under way when an answer came, its own included; counted for a single host.
    pub(super) pipe: u64,
    histogram: Option<Histogram<u32>>,
    pub(super) buckets: [u64; BUCKETS_US.len()],
}

impl Stats {
    pub(super) fn new(percentiles: bool) -> Stats {
        Stats {
            settled: 0,
            received: 0,
            lost: 0,
            late: 0,
            duplicates: 0,
            corrupt: 0,
            reordered: 0,
            errors: 0,
            dropped_here: 0,
            errors_by_sender: BTreeMap::new(),
            errors_of_other_senders: 0,
            last: None,
            min: None,
            max: Duration::ZERO,
            sum_us: 0.0,
            sum_squares_us: 0.0,
            apart_sum_us: 0.0,
            ewma_us: None,
            highest_answered: 0,
            pipe: 0,
            // Two digits: the only way for this to fail is more than five.
            histogram: percentiles.then(|| Histogram::new(2).ok()).flatten(),
            buckets: [0; BUCKETS_US.len()],
        }
    }

    /// A ping has its outcome. `sequence` counts this host's requests.
    pub(super) fn settle(&mut self, sequence: u64, outcome: &Result<Reply, PingError>) {
        self.settled += 1;
        match outcome {
            Ok(reply) => self.reply(sequence, reply),
            Err(error) => {
                self.lost += 1;
                match error {
                    PingError::DroppedHere { .. } => self.dropped_here += 1,
                    PingError::Timeout { .. } => {}
                    _ => self.error(error.sender()),
                }
            }
        }
    }

    /// An answer to request `sequence` has come, while `waiting` are without an outcome.
    pub(super) fn acknowledge(&mut self, sequence: u64, waiting: usize) {
        let sent = self.sent(u64::try_from(waiting).unwrap_or(u64::MAX));
        self.pipe = self.pipe.max((sent + 1).saturating_sub(sequence));
    }

    /// An answer that nobody waited for any more.
    pub(super) fn stray(&mut self, stray: &Stray) {
        match stray.kind {
            StrayKind::Duplicate => self.duplicates += 1,
            StrayKind::Late => self.late += 1,
        }
    }

    fn reply(&mut self, sequence: u64, reply: &Reply) {
        self.received += 1;
        if reply.payload != Payload::Intact {
            self.corrupt += 1;
        }
        if sequence < self.highest_answered {
            self.reordered += 1;
        }
        self.highest_answered = self.highest_answered.max(sequence);
        let us = micros(reply.rtt);
        if let Some(last) = self.last {
            self.apart_sum_us += (us - micros(last)).abs();
        }
        self.ewma_us = Some(self.ewma_us.map_or(us, |ewma| ewma + (us - ewma) / 8.0));
        self.last = Some(reply.rtt);
        self.min = Some(self.min.map_or(reply.rtt, |min| min.min(reply.rtt)));
        self.max = self.max.max(reply.rtt);
        self.sum_us += us;
        self.sum_squares_us += us * us;
        let whole_us = u64::try_from(reply.rtt.as_micros()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.histogram {
            // Nanoseconds: a loopback's times are fractions of a microsecond apart. It grows as it must.
            let _ = histogram.record(u64::try_from(reply.rtt.as_nanos()).unwrap_or(u64::MAX));
        }
        if let Some(bucket) =
            BUCKETS_US.iter().position(|end| whole_us < *end || reply.rtt.as_nanos() == u128::from(*end) * 1000)
        {
            self.buckets[bucket] += 1;
        }
    }

    fn error(&mut self, from: Option<IpAddr>) {
        self.errors += 1;
        let Some(from) = from else { return };
        if self.errors_by_sender.len() < SENDERS_MAX || self.errors_by_sender.contains_key(&from) {
            *self.errors_by_sender.entry(from).or_default() += 1;
        } else {
            self.errors_of_other_senders += 1;
        }
    }

    /// What the round-trip time is of late, in milliseconds.
    pub(super) fn ewma_ms(&self) -> Option<f64> {
        self.ewma_us.map(|us| us / 1e3)
    }

    /// Requests sent: `waiting` of them have no outcome yet.
    pub(super) fn sent(&self, waiting: u64) -> u64 {
        self.settled.saturating_add(waiting)
    }

    /// Whole and fraction of a percent lost, of those sent.
    pub(super) fn loss_percent(&self, waiting: u64) -> f64 {
        match self.sent(waiting) {
            0 => 0.0,
            sent => float(sent - self.received) * 100.0 / float(sent),
        }
    }

    pub(super) fn times(&self) -> Option<Times> {
        let min = self.min?;
        let count = float(self.received);
        let mean = self.sum_us / count;
        let variance = (self.sum_squares_us / count - mean * mean).max(0.0);
        Some(Times {
            min: millis(min),
            avg: mean / 1000.0,
            max: millis(self.max),
            mdev: variance.sqrt() / 1000.0,
            jitter: (self.received > 1).then(|| self.apart_sum_us / (count - 1.0) / 1000.0),
            percentiles: self.histogram.as_ref().map(|histogram| {
                // A bucket's upper end may lie beyond the largest value.
                [0.5, 0.9, 0.99]
                    .map(|part| millis(Duration::from_nanos(histogram.value_at_quantile(part)).clamp(min, self.max)))
            }),
        })
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_us / 1e6
    }
}

/// Round-trip times in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Times {
    pub(super) min: f64,
    pub(super) avg: f64,
    pub(super) max: f64,
    /// The standard deviation, as `ping` has it.
    pub(super) mdev: f64,
    /// The mean difference between one reply and the next (RFC 3550's idea, without its smoothing).
    pub(super) jitter: Option<f64>,
    /// p50, p90, p99.
    pub(super) percentiles: Option<[f64; 3]>,
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Counts stay below 2^53, the last whole number that is one as a float.
#[expect(clippy::cast_precision_loss, reason = "a count that large would take centuries")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::SystemTime;

    use super::*;
    use crate::pinger::Measured;

    fn reply(us: u64) -> Reply {
        Reply {
            rtt: Duration::from_micros(us),
            measured: Measured::Kernel,
            from: Ipv4Addr::new(198, 18, 0, 2).into(),
            ttl: Some(64),
            bytes: 64,
            sequence: 7,
            payload: Payload::Intact,
            received: SystemTime::UNIX_EPOCH,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected * 0.011, "{found} is not {expected}");
    }

    #[test]
    fn times_are_those_of_the_replies() {
        let mut stats = Stats::new(true);
        assert_eq!(stats.times(), None);
        for (sequence, us) in (1..).zip([1000, 3000, 2000, 4000]) {
            stats.settle(sequence, &Ok(reply(us)));
        }
        let times = stats.times().unwrap();
        near(times.min, 1.0);
        near(times.avg, 2.5);
        near(times.max, 4.0);
        near(times.mdev, 1.118);
        near(times.jitter.unwrap(), 5.0 / 3.0);
        let [p50, p90, p99] = times.percentiles.unwrap();
        near(p50, 2.0);
        near(p90, 4.0);
        near(p99, 4.0);
    }

    #[test]
    fn percentiles_of_a_long_run_are_within_a_percent() {
        let mut stats = Stats::new(true);
        for us in 1..=10_000 {
            stats.settle(us, &Ok(reply(us * 10)));
        }
        let [p50, p90, p99] = stats.times().unwrap().percentiles.unwrap();
        near(p50, 50.0);
        near(p90, 90.0);
        near(p99, 99.0);
    }

    #[test]
    fn one_reply_has_no_jitter_and_no_deviation() {
        let mut stats = Stats::new(false);
        stats.settle(1, &Ok(reply(500)));
        let times = stats.times().unwrap();
        assert_eq!((times.mdev, times.jitter, times.percentiles), (0.0, None, None));
    }

    #[test]
    fn what_is_not_a_reply_is_counted_by_its_kind() {
        let router: IpAddr = Ipv4Addr::new(198, 18, 0, 254).into();
        let mut stats = Stats::new(true);
        stats.settle(2, &Ok(reply(100)));
        stats.settle(1, &Ok(Reply { payload: Payload::Truncated, ..reply(100) }));
        stats.settle(3, &Err(PingError::Timeout { after: Duration::from_secs(1) }));
        stats.settle(4, &Err(PingError::TimeExceeded { from: router, code: 0 }));
        stats.settle(5, &Err(PingError::DroppedHere { after: Duration::from_secs(1), drops: 3 }));
        stats.stray(&Stray { kind: StrayKind::Duplicate, number: 0, reply: reply(100) });
        stats.stray(&Stray { kind: StrayKind::Late, number: 0, reply: reply(100) });
        let found = (stats.received, stats.lost, stats.errors, stats.dropped_here);
        assert_eq!(found, (2, 3, 1, 1));
        assert_eq!((stats.duplicates, stats.late, stats.corrupt, stats.reordered), (1, 1, 1, 1));
        assert_eq!(stats.errors_by_sender, BTreeMap::from([(router, 1)]));
        near(stats.loss_percent(0), 60.0);
        near(stats.loss_percent(5), 80.0);
    }

    #[test]
    fn errors_from_everywhere_take_bounded_memory() {
        let mut stats = Stats::new(false);
        for last in 0..200 {
            let from = Ipv4Addr::new(198, 18, 0, last).into();
            stats.settle(1, &Err(PingError::TimeExceeded { from, code: 0 }));
        }
        assert_eq!(stats.errors_by_sender.len(), SENDERS_MAX);
        assert_eq!(stats.errors_of_other_senders, 200 - 64);
    }

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        let mut stats = Stats::new(false);
        for us in [50, 51, 20_000_000] {
            stats.settle(1, &Ok(reply(us)));
        }
        assert_eq!((stats.buckets[0], stats.buckets[1]), (1, 1));
        assert_eq!(stats.buckets.iter().sum::<u64>(), 2, "the last is above all ends");
    }
}
