//! Echo load and its check: every client asks several remotes, all with equal idents and sequences, and every byte of
//! every reply is compared with what it must be.
//!
//! One thread and one raw socket a [`Source`]: a client of the lab, or the host that the caller is on. Two modes: a closed
//! loop (a reply makes room for the next request, `window` of them under way) and, with [`LoadOptions::rate`], an open
//! one: requests by the clock, with the window as the limit. An open loop's times count from when an echo was due, not
//! from when it left, so that a request kept waiting by a stall counts the stall; how late they left is published
//! beside ([`LoadReport::schedule_error`]). Flows (address, ident, remote) take turns, so that a client's n-th echo determines its flow and sequence, and a reply's flow and
//! sequence determine n: the echoes under way are a short queue and not a table of all sequences.
//!
//! What arrives at a client is exactly one of: received, wrong client, altered, stray, no reply. Strays are replies of
//! the client's own to an echo that has its reply already (a duplicate), or that was given up. A request that the kernel refused to
//! take for want of room is tried again and is not "sent".
//!
//! Rejected: ping sockets. Their kernel side drops whatever is not addressed to their own ident before we could count it
//! as misdelivered.

mod generator;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;

use self::generator::Generator;
use super::{Client, Namespace};
use crate::error::SetupError;

/// The shortest payload, in bytes: long enough that no two echoes of a run have the same.
pub const PAYLOAD_MIN: usize = 16;

const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Sending ends after this time.
    pub duration: Duration,
    /// Sending ends after this many echoes a source, if that is sooner.
    pub echoes_per_client: Option<u64>,
    /// Echoes under way, at most, for each source.
    pub window: usize,
    /// Echoes a second of all clients together; none: as many as the window lets through.
    pub rate: Option<u64>,
    /// Idents of each address, the same for all: 1 and up.
    pub idents: u16,
    /// Whether each ident has one remote only, as each `ping` that is started has: idents take the remotes in turn. If not,
    /// each ident asks all of them.
    pub one_remote_an_ident: bool,
    /// Sequences begin with this one.
    pub first_sequence: u16,
    /// Bytes after the ICMP header.
    pub payload_len: usize,
    /// An echo without a reply for this long is given up: lost.
    pub reply_timeout: Duration,
    /// Makes the payloads of two runs in one lab different.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            duration: Duration::from_secs(5),
            echoes_per_client: None,
            window: 16,
            rate: None,
            idents: 1,
            one_remote_an_ident: false,
            first_sequence: 0,
            payload_len: 56,
            reply_timeout: Duration::from_secs(1),
            seed: 1,
        }
    }
}

/// What clients sent and what came back: `sent = received + lost`, and every packet that arrived is in one of the counts
/// from `received` on.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// Requests that the kernel took.
    pub sent: u64,
    /// Requests that the kernel refused for want of room (ENOBUFS, EAGAIN); each was tried again.
    pub send_refused: u64,
    /// Requests whose own reply did not come, came altered, or came too late.
    pub lost: u64,
    /// When those requests left.
    pub losses: Losses,
    /// Replies that reached the client that asked, every byte right.
    pub received: u64,
    /// Another client's replies.
    pub wrong_client: u64,
    /// Replies that are nobody's as they arrived.
    pub altered: u64,
    /// Own replies that came twice or after their echo was given up.
    pub stray: u64,
    /// Those of them that came twice, as far as their echo was not given up and forgotten meanwhile.
    pub duplicates: u64,
    /// ICMP that is no echo reply: errors.
    pub no_reply: u64,
    /// Datagrams that the sources' own receive buffers had no room for.
    pub socket_drops: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// Round-trip times of `received`, from when each request left.
    pub round_trip: RoundTrips,
    /// The same from when each request was due. Empty in a closed loop, where a request is due when it leaves.
    pub from_due: RoundTrips,
    /// How much later than due requests left. Empty in a closed loop.
    pub schedule_error: RoundTrips,
}

/// Where echoes come from: one thread, one raw socket.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// The namespace to send from; none: the calling thread's.
    pub namespace: Option<&'a Namespace>,
    /// Addresses to send from, each local there, in ascending order. They take turns.
    pub addresses: &'a [Ipv4Addr],
}

impl<'a> From<&'a Client> for Source<'a> {
    fn from(client: &'a Client) -> Source<'a> {
        Source { name: client.namespace.name(), namespace: Some(&client.namespace), addresses: &client.addresses }
    }
}

/// Times from 1 ns to 60 s, to three digits.
#[derive(Clone)]
pub struct RoundTrips(Histogram<u64>);

impl RoundTrips {
    fn new() -> RoundTrips {
        RoundTrips(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid"))
    }

    fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn add(&mut self, other: &RoundTrips) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that this share of them, 0.0 to 1.0, does not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

impl fmt::Debug for RoundTrips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, median, max) = (self.count(), self.quantile(0.5), self.max());
        f.debug_struct("RoundTrips").field("count", &count).field("p50", &median).field("max", &max).finish()
    }
}

/// When lost requests left, counted from the start, to the hundredth of a second.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Losses(BTreeMap<u128, u64>);

/// Losses that follow one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spell {
    /// When the first left.
    pub from: Duration,
    /// When the last left, or a hundredth of a second later.
    pub to: Duration,
    /// How many.
    pub count: u64,
}

impl Losses {
    const MOMENT: Duration = Duration::from_millis(10);

    /// Takes in one that left so long after the start.
    pub fn record(&mut self, after: Duration) {
        *self.0.entry(after.as_nanos() / Losses::MOMENT.as_nanos()).or_default() += 1;
    }

    fn add(&mut self, other: &Losses) {
        for (moment, count) in &other.0 {
            *self.0.entry(*moment).or_default() += count;
        }
    }

    /// Each hundredth of a second in which requests left that were lost, and how many.
    pub fn moments(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.0.iter().map(|(moment, count)| (Losses::MOMENT * u32::try_from(*moment).unwrap_or(u32::MAX), *count))
    }

    /// In their order, those together between which no more than `apart` is without a loss.
    pub fn spells(&self, apart: Duration) -> Vec<Spell> {
        let mut spells: Vec<Spell> = Vec::new();
        for (from, count) in self.moments() {
            let to = from + Losses::MOMENT;
            match spells.last_mut() {
                Some(last) if from <= last.to + apart => (last.to, last.count) = (to, last.count + count),
                _ => spells.push(Spell { from, to, count }),
            }
        }
        spells
    }
}

impl Default for LoadReport {
    /// Nothing sent, nothing received.
    fn default() -> LoadReport {
        LoadReport {
            sent: 0,
            send_refused: 0,
            lost: 0,
            losses: Losses::default(),
            received: 0,
            wrong_client: 0,
            altered: 0,
            stray: 0,
            duplicates: 0,
            no_reply: 0,
            socket_drops: 0,
            elapsed: Duration::ZERO,
            round_trip: RoundTrips::new(),
            from_due: RoundTrips::new(),
            schedule_error: RoundTrips::new(),
        }
    }
}

impl LoadReport {
    /// Echo replies that arrived at clients, right or wrong.
    pub fn replies(&self) -> u64 {
        self.received + self.wrong_client + self.altered + self.stray
    }

    /// Right replies a second.
    pub fn echoes_per_second(&self) -> u64 {
        let rate = u128::from(self.received) * 1_000_000_000 / self.elapsed.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn add(&mut self, other: &LoadReport) {
        self.sent += other.sent;
        self.send_refused += other.send_refused;
        self.lost += other.lost;
        self.losses.add(&other.losses);
        self.received += other.received;
        self.wrong_client += other.wrong_client;
        self.altered += other.altered;
        self.stray += other.stray;
        self.duplicates += other.duplicates;
        self.no_reply += other.no_reply;
        self.socket_drops += other.socket_drops;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.round_trip.add(&other.round_trip);
        self.from_due.add(&other.from_due);
        self.schedule_error.add(&other.schedule_error);
    }
}

/// A run on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Time since the start.
    pub elapsed: Duration,
    /// Requests sent so far.
    pub sent: u64,
    /// Right replies so far.
    pub received: u64,
}

/// Has all clients ask all remotes, until time or echoes are used up and every reply is there or given up. `watch` is
/// called a few times a second on the calling thread; its Break ends the sending.
pub fn run(
    clients: &[Client],
    remotes: &[Ipv4Addr],
    options: &LoadOptions,
    watch: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<LoadReport, SetupError> {
    let sources: Vec<Source<'_>> = clients.iter().map(Source::from).collect();
    run_from(&sources, remotes, options, watch)
}

/// As [`run`], from anywhere.
pub fn run_from(
    sources: &[Source<'_>],
    remotes: &[Ipv4Addr],
    options: &LoadOptions,
    mut watch: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<LoadReport, SetupError> {
    if options.payload_len < PAYLOAD_MIN || options.window == 0 || options.idents == 0 || remotes.is_empty() {
        return Err(SetupError::new(format!(
            "lab: a load takes a remote, an ident, a window and payloads of {PAYLOAD_MIN} bytes or more"
        )));
    }
    let addresses: Vec<Ipv4Addr> = sources.iter().flat_map(|source| source.addresses).copied().collect();
    let generators = sources
        .iter()
        .enumerate()
        .map(|(number, source)| Generator::open(source, (number, sources.len()), &addresses, remotes, options))
        .collect::<Result<Vec<_>, _>>()?;
    let shared = Shared { busy: AtomicUsize::new(generators.len()), ..Shared::default() };
    let start = Instant::now();
    thread::scope(|scope| {
        let shared = &shared;
        let running: Vec<_> =
            generators.into_iter().map(|generator| scope.spawn(move || generator.run(start, shared))).collect();
        while !running.iter().all(|client| client.is_finished()) {
            thread::sleep(WATCH_INTERVAL);
            if watch(&shared.progress(start.elapsed())).is_break() {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        running.into_iter().try_fold(LoadReport::default(), |mut total, client| {
            let report = client.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))?;
            total.add(&report);
            Ok(total)
        })
    })
}

/// What the clients' threads and the watching one share. Relaxed throughout: each value stands for itself; the exact
/// counts come back by `join`.
#[derive(Default)]
struct Shared {
    sent: CachePadded<AtomicU64>,
    received: CachePadded<AtomicU64>,
    stop: CachePadded<AtomicBool>,
    /// Clients that still send or wait for a reply.
    busy: AtomicUsize,
}

/// Held by a client while it is busy; given back on every way out.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn progress(&self, elapsed: Duration) -> Progress {
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        Progress { elapsed, sent, received }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_that_follow_one_another_are_one_spell() {
        let mut losses = Losses::default();
        for millis in [0, 5, 40, 500, 501, 2000] {
            losses.record(Duration::from_millis(millis));
        }
        let spell = |from, to, count| Spell { from: Duration::from_millis(from), to: Duration::from_millis(to), count };
        let spells = losses.spells(Duration::from_millis(100));
        assert_eq!(spells, [spell(0, 50, 3), spell(500, 510, 2), spell(2000, 2010, 1)]);
        let mut twice = losses.clone();
        twice.add(&losses);
        assert_eq!(twice.moments().map(|(_, count)| count).sum::<u64>(), 12);
        assert!(Losses::default().spells(Duration::MAX / 2).is_empty());
    }
}
