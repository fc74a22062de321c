//! The run: requests go out on their schedule, and what comes of them goes into the numbers and to a report.
//!
//! All in one thread but the pinger's own: it sleeps until an outcome, a signal or the report's next tick. The n-th request of
//! the run is due n gaps after the first ([`PingMany::every`]), so intervals do not drift; its number says whose it is.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::hosts::Hosts;
use crate::error::SetupError;
use crate::pinger::{PingError, PingMany, PingOptions, Pinger, Reply, Stray, Target};
use crate::sys::poll::{self, Watch};

/// How long a flood waits for a reply before it sends the next request all the same.
const FLOOD_PATIENCE: Duration = Duration::from_millis(10);

/// The most requests of a flood that are under way at once.
const FLOOD_MAX: usize = 1000;

/// How late a list's answers may be told: too little for anybody to see, and it halves what they cost.
const TOLD_WITHIN: Duration = Duration::from_millis(20);

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// From one request to the next, of whichever host.
    pub(super) gap: Duration,
    /// Requests for each host; none means until it is ended.
    pub(super) count: Option<u64>,
    /// Replies after which a run with one host ends, however many requests they take; or with the first ICMP error.
    pub(super) replies: Option<u64>,
    /// How long the run may take.
    pub(super) deadline: Option<Duration>,
    pub(super) flood: bool,
    /// Whether it ends when nobody reads what it prints any more.
    pub(super) for_reader: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event<'a> {
    /// A ping has its outcome.
    Settled(&'a Result<Reply, PingError>),
    /// An answer came that nobody waited for.
    Stray(&'a Stray),
}

/// Where a run stands.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// Since the first request.
    pub(super) elapsed: Duration,
    /// Requests without an outcome, by host.
    pub(super) waiting: Vec<u64>,
}

impl Progress {
    pub(super) fn waiting(&self, host: usize) -> u64 {
        self.waiting.get(host).copied().unwrap_or(0)
    }
}

/// Who tells the user.
pub(super) trait Report {
    /// The run begins.
    fn begin(&mut self, hosts: &Hosts);
    /// `sequence` counts the host's requests, from 1.
    fn event(&mut self, hosts: &Hosts, host: usize, sequence: u64, event: Event<'_>);
    /// The user asks how it stands (SIGQUIT).
    fn interim(&mut self, hosts: &Hosts, progress: &Progress);
    /// How often [`Report::tick`] wants to be called.
    fn tick_interval(&self) -> Option<Duration> {
        None
    }
    /// Time passes; false ends the run.
    fn tick(&mut self, _hosts: &Hosts) -> bool {
        true
    }
    /// The run is over.
    fn end(&mut self, hosts: &Hosts, progress: &Progress);
}

/// The hosts, as the run and those who look on from other threads share them.
pub(super) type Shared = Arc<Mutex<Hosts>>;

pub(super) fn lock(hosts: &Shared) -> MutexGuard<'_, Hosts> {
    // Counters: each is whole, whoever panicked in between.
    hosts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pings until all is done, the deadline has come, or somebody ends it. An error is one that no further ping could mend.
pub(super) fn run(
    pinger: &Pinger,
    options: &PingOptions,
    timeout: Duration,
    schedule: &Schedule,
    hosts: &Shared,
    report: &mut dyn Report,
) -> Result<(), SetupError> {
    let signals = Asked::watch()?;
    let targets: Vec<_> = lock(hosts).list.iter().map(|host| host.address).collect();
    let number_of_hosts = targets.len();
    let per_run = u64::try_from(number_of_hosts).unwrap_or(u64::MAX);
    let total = schedule.count.map_or(u64::MAX, |count| count.saturating_mul(per_run));
    // The count of requests bounds it, not the hosts: an endless run goes round.
    let requests = (0..total).map(|number| Target::from(targets[place(number, number_of_hosts)]));
    let at_most = under_way_max(schedule, timeout);
    let told_within = if number_of_hosts > 1 && !schedule.flood { TOLD_WITHIN } else { Duration::ZERO };
    let mut stream = pinger.ping_many(requests, options).every(schedule.gap).told_within(told_within).at_most(at_most);
    report.begin(&lock(hosts));

    let waker = Waker::from(Arc::new(Sleeper(thread::current())));
    let mut context = Context::from_waker(&waker);
    let started = Instant::now();
    let mut last_settled = Duration::ZERO;
    let mut ticked = started;
    let (mut over, mut enough) = (false, false);
    while !over {
        let mut quiet = true;
        match stream.poll_answer(&mut context) {
            Poll::Ready(Some(answer)) => {
                quiet = false;
                if let Err(PingError::NotPermitted(error) | PingError::Broken(error)) = &answer.outcome {
                    report.end(&lock(hosts), &progress(&stream, number_of_hosts, started.elapsed()));
                    return Err(SetupError::new(error.to_string()));
                }
                let host = place(answer.number, number_of_hosts);
                let sequence = answer.number / per_run + 1;
                let mut hosts = lock(hosts);
                let stats = hosts.stats_mut(host);
                stats.settle(sequence, &answer.outcome);
                let refused = answer.outcome.as_ref().is_err_and(|error| error.sender().is_some());
                if number_of_hosts == 1 && (refused || answer.outcome.is_ok()) {
                    stats.acknowledge(sequence, stream.unanswered().count());
                }
                enough = schedule.replies.is_some_and(|replies| stats.received >= replies || refused);
                report.event(&hosts, host, sequence, Event::Settled(&answer.outcome));
                last_settled = started.elapsed();
                if schedule.flood {
                    let waiting = stream.unanswered().count();
                    stream.set_at_most((waiting + 1).min(FLOOD_MAX));
                }
            }
            Poll::Ready(None) => break,
            Poll::Pending => {}
        }
        if enough {
            break;
        }
        if let Poll::Ready(stray) = pinger.poll_stray(&mut context) {
            quiet = false;
            let host = place(stray.number, number_of_hosts);
            let mut hosts = lock(hosts);
            let (stats, sequence) = (hosts.stats_mut(host), stray.number / per_run + 1);
            stats.stray(&stray);
            if number_of_hosts == 1 {
                stats.acknowledge(sequence, stream.unanswered().count());
            }
            report.event(&hosts, host, sequence, Event::Stray(&stray));
        }
        if signals.interim.swap(false, Ordering::Relaxed) {
            report.interim(&lock(hosts), &progress(&stream, number_of_hosts, started.elapsed()));
        }
        // Acquire: pairs with the Release of the thread that reads signals.
        over = signals.stop.load(Ordering::Acquire);
        over |= schedule.deadline.is_some_and(|deadline| started.elapsed() >= deadline);
        if let Some(interval) = report.tick_interval()
            && ticked.elapsed() >= interval
        {
            ticked = Instant::now();
            over |= !report.tick(&lock(hosts));
        }
        over |= quiet && schedule.for_reader && nobody_reads();
        if quiet && !over {
            thread::park_timeout(patience(schedule, report, started));
            if schedule.flood && quiet && started.elapsed().saturating_sub(last_settled) >= FLOOD_PATIENCE {
                last_settled = started.elapsed();
                let waiting = stream.unanswered().count();
                stream.set_at_most((waiting + 1).min(FLOOD_MAX));
            }
        }
    }
    let mut progress = progress(&stream, number_of_hosts, started.elapsed());
    if !over {
        // It ended with its last outcome; what it waited beyond that for is no part of it.
        progress.elapsed = last_settled;
    }
    report.end(&lock(hosts), &progress);
    Ok(())
}

fn patience(schedule: &Schedule, report: &dyn Report, started: Instant) -> Duration {
    // A signal wakes the sleeper; the hour only bounds the type.
    let left = schedule.deadline.map(|deadline| deadline.saturating_sub(started.elapsed()));
    let flood = schedule.flood.then_some(FLOOD_PATIENCE);
    [left, flood, report.tick_interval()].into_iter().flatten().min().unwrap_or(Duration::from_secs(3600))
}

/// Whether standard output is a pipe whose reader has gone. `ping` dies of SIGPIPE then, and so does the shell's `ping HOST | head -1`
/// come to its end.
fn nobody_reads() -> bool {
    let stdout = io::stdout();
    let mut watches = [Watch::new(stdout.as_fd(), false, false)];
    poll::poll(&mut watches, Some(Duration::ZERO)).is_ok() && watches[0].has_failed()
}

/// As many as can be waiting for replies when all hosts are silent, and some that are handed over in advance.
fn under_way_max(schedule: &Schedule, timeout: Duration) -> usize {
    if schedule.flood {
        return 1;
    }
    let gap_nanos = schedule.gap.as_nanos().max(1);
    let at_once = (timeout + Duration::from_secs(2)).as_nanos() / gap_nanos + 16;
    usize::try_from(at_once).unwrap_or(usize::MAX).min(1 << 18)
}

/// Which host request `number` is for.
fn place(number: u64, hosts: usize) -> usize {
    let hosts = u64::try_from(hosts).unwrap_or(u64::MAX).max(1);
    // Less than the number of hosts.
    usize::try_from(number % hosts).unwrap_or(0)
}

fn progress<I, T>(stream: &PingMany<I>, hosts: usize, elapsed: Duration) -> Progress
where
    T: Into<Target>,
    I: Iterator<Item = T>,
{
    let mut waiting = vec![0; hosts];
    for (number, _) in stream.unanswered() {
        waiting[place(number, hosts)] += 1;
    }
    Progress { elapsed, waiting }
}

/// What the user asked for by signals.
struct Asked {
    stop: Arc<AtomicBool>,
    interim: Arc<AtomicBool>,
}

impl Asked {
    /// The first SIGINT or SIGTERM ends the run, the second the process. SIGQUIT asks how it stands.
    fn watch() -> Result<Asked, SetupError> {
        let refused = |cause| SetupError::caused("signals cannot be watched", cause);
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGQUIT]).map_err(refused)?;
        let asked = Asked { stop: Arc::default(), interim: Arc::default() };
        let (stop, interim, main) = (Arc::clone(&asked.stop), Arc::clone(&asked.interim), thread::current());
        let watch = move || {
            for signal in signals.forever() {
                if signal == SIGQUIT {
                    // Relaxed, and read so: it publishes nothing.
                    interim.store(true, Ordering::Relaxed);
                // Release: pairs with the Acquire of the run's loop.
                } else if stop.swap(true, Ordering::Release) {
                    let _ = emulate_default_handler(signal);
                }
                main.unpark();
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(refused)?;
        Ok(asked)
    }
}

struct Sleeper(Thread);

impl Wake for Sleeper {
    fn wake(self: Arc<Sleeper>) {
        self.0.unpark();
    }
}
