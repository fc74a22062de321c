//! Counters: each worker writes its own, anybody reads the sum.
//!
//! A counter has one writer, so counting is a load and a store of a cache line that nobody else writes: no locked
//! instruction. What is read while workers run is a moment old, and each counter its own moment; after the workers have
//! ended it is exact, and then: packets in = packets out + the sum of the named drops.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::canary::{Canary, is_loose};
use crate::policy::Class;
use crate::proxy::Reason;

/// A number that one thread writes and any reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the counter's one writer may.
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Takes `count` away. Only the counter's one writer may.
    pub fn sub(&self, count: u64) {
        self.set(self.get().wrapping_sub(count));
    }

    /// Sets it. Only the counter's one writer may.
    pub fn set(&self, value: u64) {
        // Relaxed: a number alone; no other memory is published with it.
        self.0.store(value, Ordering::Relaxed);
    }

    /// Its value a moment ago.
    pub fn get(&self) -> u64 {
        // Relaxed: see `set`.
        self.0.load(Ordering::Relaxed)
    }
}

/// Packets and bytes counted by one worker.
#[derive(Debug, Default)]
pub struct TrafficCounter {
    packets: Counter,
    bytes: Counter,
}

impl TrafficCounter {
    /// Counts a packet of `bytes` bytes.
    pub fn count(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }

    fn get(&self) -> Traffic {
        Traffic { packets: self.packets.get(), bytes: self.bytes.get() }
    }
}

/// One more than the largest errno that a Linux system call returns (EHWPOISON, 133).
const ERRNOS: usize = 134;

/// Failed sends by errno.
#[derive(Debug)]
pub struct ErrnoCounters([Counter; ERRNOS]);

impl Default for ErrnoCounters {
    fn default() -> ErrnoCounters {
        ErrnoCounters(std::array::from_fn(|_| Counter::default()))
    }
}

impl ErrnoCounters {
    /// Counts a send that failed with `errno`; one that errno(3) does not know counts as 0.
    pub fn count(&self, errno: i32) {
        let position = usize::try_from(errno).ok().filter(|errno| *errno < ERRNOS).unwrap_or(0);
        self.0[position].add(1);
    }
}

/// Drops by reason, in the order of [`Reason::ALL`].
#[derive(Debug)]
pub struct DropCounters([Counter; Reason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> DropCounters {
        DropCounters(std::array::from_fn(|_| Counter::default()))
    }
}

impl Index<Reason> for DropCounters {
    type Output = Counter;

    fn index(&self, reason: Reason) -> &Counter {
        &self.0[reason as usize]
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Read from the TUN.
    pub inside_in: TrafficCounter,
    /// Received by the raw socket.
    pub outside_in: TrafficCounter,
    /// Sent by the raw socket.
    pub outside_out: TrafficCounter,
    /// Replies written to the TUN.
    pub delivered: TrafficCounter,
    /// Errors from outside passed on to the clients that they concern.
    pub told: TrafficCounter,
    /// Packets written back to the TUN unchanged.
    pub reinjected: TrafficCounter,
    /// Drops by reason.
    pub drops: DropCounters,
    /// Requests refused (among the drops), by the client's class: a share or a table was used up, the remote is denied, or the client's
    /// address outside is lost.
    pub refused: Box<[Counter]>,
    /// Errors to clients that the gateway itself made and sent.
    pub originated: TrafficCounter,
    /// Errors to clients that could not be sent.
    pub not_originated: Counter,
    /// Pieces that were cut off packets that were too large for the way out, and sent.
    pub cut_off: TrafficCounter,
    /// Pieces that could not be sent.
    pub cut_off_lost: Counter,
    /// Packets that fell through and were to be dropped.
    pub not_reinjected: Counter,
    /// New mappings that waited for their batch, too many to keep.
    pub creations_backlog: Counter,
    /// Packets for which the next worker had no room.
    pub hand_over_full: Counter,
    /// Packets given up when the gateway ended.
    pub ending: Counter,
    /// Sends to the outside that failed.
    pub send_outside: ErrnoCounters,
    /// Writes to the TUN that failed.
    pub send_inside: ErrnoCounters,
    /// Mappings live now.
    pub mappings: Counter,
    /// The most that were live at once, of this worker's.
    pub mappings_peak: Counter,
    /// Echoes recorded less echoes gone, by this worker: may wrap below zero, the sum over all workers does not.
    pub outstanding: Counter,
    /// Echoes that nobody answered in time.
    pub unanswered: Counter,
    /// Turns of the worker: it moves.
    pub turns: Counter,
    /// Echoes evicted from a full bucket, by their age: under 1 s, under 10 s, older.
    pub evicted: [Counter; 3],
    /// Round trips of sampled echoes.
    pub round_trips: RoundTripCounters,
    /// Samples that found no room on their way to whoever looks.
    pub samples_lost: Counter,
    /// Packets of a trace that were not told: too many at once.
    pub traces_missed: Counter,
}

/// The upper ends of the classes of round trips, in microseconds; the last class has none.
pub const ROUND_TRIP_ENDS_US: [u32; 14] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// Round trips by class, and their sum.
#[derive(Debug, Default)]
pub struct RoundTripCounters {
    classes: [Counter; ROUND_TRIP_ENDS_US.len() + 1],
    sum_us: Counter,
}

impl RoundTripCounters {
    /// Counts one.
    pub fn count(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let class = ROUND_TRIP_ENDS_US.partition_point(|end| u64::from(*end) < micros);
        self.classes[class].add(1);
        self.sum_us.add(micros);
    }
}

impl WorkerCounters {
    /// Counts a drop.
    pub fn drop(&self, reason: Reason) {
        self.drops[reason].add(u64::from(!is_loose(Canary::LostCounter)));
    }

    /// Counts a refusal, which is a drop.
    pub fn refuse(&self, reason: Reason, class: Class) {
        self.drop(reason);
        if let Some(refused) = self.refused.get(class) {
            refused.add(1);
        }
    }

    /// Counts an echo that was evicted at this age.
    pub fn evict(&self, age: Duration) {
        let class = match age.as_secs() {
            0 => 0,
            1..10 => 1,
            _ => 2,
        };
        self.evicted[class].add(1);
    }
}

/// The counters of all workers.
#[derive(Debug)]
pub struct Counters(Box<[CachePadded<WorkerCounters>]>);

impl Counters {
    /// Zeroes for this many workers and classes of clients.
    pub fn new(workers: usize, classes: usize) -> Counters {
        let refused = || (0..classes).map(|_| Counter::default()).collect();
        Counters((0..workers).map(|_| WorkerCounters { refused: refused(), ..Default::default() }.into()).collect())
    }

    /// Those of one worker.
    pub fn worker(&self, worker: usize) -> &WorkerCounters {
        &self.0[worker]
    }

    /// How many workers count here.
    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// One worker's counters as they are now.
    pub fn worker_snapshot(&self, worker: usize) -> Snapshot {
        snapshot(&self.0[worker..=worker])
    }

    /// The sum of all workers' counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        snapshot(&self.0)
    }
}

/// Packets and bytes in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "gateway", derive(serde::Serialize, serde::Deserialize))]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP header included.
    pub bytes: u64,
}

impl std::ops::Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// The sum of all workers' counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Read from the TUN.
    pub inside_in: Traffic,
    /// To clients: replies delivered, errors told and packets reinjected.
    pub inside_out: Traffic,
    /// Received by the raw sockets.
    pub outside_in: Traffic,
    /// Sent by the raw sockets: proxied requests.
    pub outside_out: Traffic,
    /// Of these, how many packets each worker has sent.
    pub sent_by_worker: Vec<u64>,
    /// Replies delivered to clients (part of `inside_out`).
    pub delivered: Traffic,
    /// Errors from outside passed on to the clients that they concern (part of `inside_out`).
    pub told: Traffic,
    /// Packets put back on the existing path (part of `inside_out`).
    pub reinjected: Traffic,
    /// Drops by name, zero ones left out: in = out + the sum of these, exactly, once nothing is in flight.
    pub drops: Vec<(String, u64)>,
    /// Requests refused (part of `drops`), by class of clients: everybody, then the overrides in their order. A share or a table was
    /// used up, the remote is denied, or the client's address outside is lost.
    pub refused: Vec<u64>,
    /// Errors to clients that the gateway itself made and sent: neither in nor part of `outside_out`.
    pub originated: Traffic,
    /// Errors to clients that could not be sent.
    pub not_originated: u64,
    /// Pieces that were cut off requests that were too large for the way out, and sent: neither in nor part of
    /// `outside_out`, in which each request's first piece is.
    pub cut_off: Traffic,
    /// Pieces that could not be sent: their requests are lost, though counted as sent.
    pub cut_off_lost: u64,
    /// Mappings live now.
    pub mappings: u64,
    /// The most mappings that were live at once; with several workers at most this.
    pub mappings_peak: u64,
    /// Echoes outstanding now.
    pub outstanding: u64,
    /// Echoes that nobody answered within the echo timeout.
    pub unanswered: u64,
    /// Echoes evicted from a full bucket, by their age: under 1 s, under 10 s, older.
    pub evicted: [u64; 3],
    /// Round trips of a sample of the echoes, by class ([`ROUND_TRIP_ENDS_US`], and those beyond).
    pub round_trips: [u64; ROUND_TRIP_ENDS_US.len() + 1],
    /// The sum of these round trips, in microseconds.
    pub round_trips_us: u64,
    /// Samples that found no room on their way to whoever looks.
    pub samples_lost: u64,
    /// Packets of a trace that were not told: too many at once.
    pub traces_missed: u64,
}

impl Snapshot {
    /// Packets in, both sides.
    pub fn packets_in(&self) -> u64 {
        self.inside_in.packets + self.outside_in.packets
    }

    /// Packets out, both sides, and drops: equal to `packets_in` once nothing is in flight.
    pub fn packets_accounted(&self) -> u64 {
        let drops: u64 = self.drops.iter().map(|(_, count)| count).sum();
        self.inside_out.packets + self.outside_out.packets + drops
    }

    /// The drops of this name.
    pub fn dropped(&self, name: &str) -> u64 {
        self.drops.iter().find(|(named, _)| named == name).map_or(0, |(_, count)| *count)
    }
}

fn snapshot(workers: &[CachePadded<WorkerCounters>]) -> Snapshot {
    let traffic = |of: fn(&WorkerCounters) -> &TrafficCounter| {
        workers.iter().map(|worker| of(worker).get()).fold(Traffic::default(), |sum, more| sum + more)
    };
    let total =
        |of: fn(&WorkerCounters) -> &Counter| workers.iter().map(|worker| of(worker).get()).fold(0, u64::wrapping_add);
    let (delivered, told) = (traffic(|w| &w.delivered), traffic(|w| &w.told));
    let reinjected = traffic(|w| &w.reinjected);
    Snapshot {
        inside_in: traffic(|w| &w.inside_in),
        outside_in: traffic(|w| &w.outside_in),
        outside_out: traffic(|w| &w.outside_out),
        sent_by_worker: workers.iter().map(|worker| worker.outside_out.get().packets).collect(),
        inside_out: delivered + told + reinjected,
        delivered,
        told,
        reinjected,
        drops: drops(workers),
        refused: (0..workers.first().map_or(0, |worker| worker.refused.len()))
            .map(|class| workers.iter().map(|worker| worker.refused[class].get()).sum())
            .collect(),
        originated: traffic(|w| &w.originated),
        not_originated: total(|w| &w.not_originated),
        cut_off: traffic(|w| &w.cut_off),
        cut_off_lost: total(|w| &w.cut_off_lost),
        mappings: total(|w| &w.mappings),
        mappings_peak: total(|w| &w.mappings_peak),
        outstanding: total(|w| &w.outstanding),
        unanswered: total(|w| &w.unanswered),
        evicted: [total(|w| &w.evicted[0]), total(|w| &w.evicted[1]), total(|w| &w.evicted[2])],
        round_trips: std::array::from_fn(|class| {
            workers.iter().map(|worker| worker.round_trips.classes[class].get()).sum()
        }),
        round_trips_us: total(|w| &w.round_trips.sum_us),
        samples_lost: total(|w| &w.samples_lost),
        traces_missed: total(|w| &w.traces_missed),
    }
}

/// The workers' own drops, which no [`Reason`] of the proxy's names and no errno.
pub const OWN_DROPS: [&str; 4] = ["not_reinjected", "creations_backlog", "hand_over_full", "ending"];

/// Drops by name, in alphabetical order, zero ones left out.
fn drops(workers: &[CachePadded<WorkerCounters>]) -> Vec<(String, u64)> {
    let mut drops: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |name: String, count: &Counter| {
        if count.get() > 0 {
            *drops.entry(name).or_default() += count.get();
        }
    };
    for worker in workers {
        for reason in Reason::ALL {
            add(reason.name().into(), &worker.drops[reason]);
        }
        add("not_reinjected".into(), &worker.not_reinjected);
        add("creations_backlog".into(), &worker.creations_backlog);
        add("hand_over_full".into(), &worker.hand_over_full);
        add("ending".into(), &worker.ending);
        for (side, errnos) in [("outside", &worker.send_outside), ("inside", &worker.send_inside)] {
            for (errno, count) in errnos.0.iter().enumerate() {
                add(format!("send_{side}_{}", errno_name(errno)), count);
            }
        }
    }
    drops.into_iter().collect()
}

/// The symbol of an errno that a send to a TUN or a raw socket is known to give, in lower case; others by number.
fn errno_name(errno: usize) -> String {
    let symbol = match errno {
        0 => "short",
        1 => "eperm",
        5 => "eio",
        11 => "eagain",
        12 => "enomem",
        13 => "eacces",
        22 => "einval",
        77 => "ebadfd",
        90 => "emsgsize",
        100 => "enetdown",
        101 => "enetunreach",
        105 => "enobufs",
        111 => "econnrefused",
        113 => "ehostunreach",
        125 => "ecanceled",
        number => return format!("errno_{number}"),
    };
    symbol.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_all_reasons_is_their_number() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position, "{reason:?}");
        }
    }

    #[test]
    fn the_workers_own_drops_are_those_that_are_listed() {
        let counters = Counters::new(1, 1);
        let own = counters.worker(0);
        for counter in [&own.not_reinjected, &own.creations_backlog, &own.hand_over_full, &own.ending] {
            counter.add(1);
        }
        let mut names = OWN_DROPS.map(|name| (name.to_owned(), 1));
        names.sort();
        assert_eq!(counters.snapshot().drops, names);
    }

    #[test]
    fn a_snapshot_sums_the_workers_and_names_what_was_dropped() {
        let counters = Counters::new(2, 2);
        for worker in 0..2 {
            let counters = counters.worker(worker);
            counters.inside_in.count(84);
            counters.inside_in.count(84);
            counters.outside_out.count(84);
            counters.refuse(Reason::NoIdent, 1);
        }
        counters.worker(0).outside_in.count(84);
        counters.worker(0).send_inside.count(5);
        counters.worker(0).outstanding.add(3);
        counters.worker(1).outstanding.sub(2);
        let sum = counters.snapshot();
        assert_eq!(sum.inside_in, Traffic { packets: 4, bytes: 336 });
        assert_eq!(sum.drops, [("no_ident".to_string(), 2), ("send_inside_eio".to_string(), 1)]);
        assert_eq!((&sum.refused[..], sum.outstanding), (&[0, 2][..], 1));
        assert_eq!(sum.packets_in(), sum.packets_accounted());
        assert_eq!(counters.worker_snapshot(1).inside_in.packets, 2);
    }

    #[test]
    fn a_round_trip_is_counted_in_the_first_class_that_holds_it() {
        let counters = Counters::new(2, 1);
        for (worker, micros) in [(0, 0), (1, 100), (0, 101), (1, 2_500_000), (0, 2_500_001)] {
            counters.worker(worker).round_trips.count(Duration::from_micros(micros));
        }
        let sum = counters.snapshot();
        assert_eq!((&sum.round_trips[..2], &sum.round_trips[13..]), (&[2, 1][..], &[1, 1][..]));
        assert_eq!((sum.round_trips.iter().sum::<u64>(), sum.round_trips_us), (5, 5_000_202));
    }

    #[test]
    fn an_errno_from_beyond_the_table_is_counted_too() {
        let counters = Counters::new(1, 1);
        counters.worker(0).send_outside.count(512);
        counters.worker(0).send_outside.count(-1);
        counters.worker(0).send_outside.count(133);
        let drops = counters.snapshot().drops;
        assert_eq!(drops, [("send_outside_errno_133".to_string(), 1), ("send_outside_short".to_string(), 2)]);
    }
}
