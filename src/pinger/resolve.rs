//! Names to addresses, by threads of their own: a resolver may take its time, and the engine has none.
//!
//! Threads are started when there are more names than idle threads, up to a limit, and end when there is nothing to do for
//! a while. A name whose ping is over by the time its turn comes is not resolved any more, nor kept for long: a resolver that is
//! slow holds up neither pings nor threads nor memory without bound.
//!
//! No name is left lying: whoever adds one, and each thread that stops being idle, looks whether there are more names than idle
//! threads; and a thread that ends has counted itself out before its last look at the queue.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};

use super::error::PingError;
use super::options::Family;

/// Names that are being resolved at once; more wait.
const THREADS_MAX: usize = 32;

/// How long a thread waits for another name.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);

/// Names that wait before those of pings that are over are looked for among them.
const SIFTED_MIN: usize = 1024;

type Custom = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What turns names into addresses.
#[derive(Clone, Default)]
pub(super) struct Resolver(Option<Arc<Custom>>);

impl Resolver {
    pub(super) fn custom(resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Resolver {
        Resolver(Some(Arc::new(resolver)))
    }

    fn resolve(&self, name: &str, family: Family) -> Result<SocketAddr, PingError> {
        let Some(custom) = &self.0 else { return resolve(name, family) };
        let first = custom(name).map(|found| found.into_iter().map(|address| SocketAddr::new(address, 0)));
        first_of(name, family, first)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "custom" } else { "the system's" })
    }
}

/// The first address of the wanted family that the system's resolver has for a name; waits for it as long as that takes.
/// Also takes what is an address already, an IPv6 one with its interface (`fe80::1%eth0`) included.
pub fn resolve(name: &str, family: Family) -> Result<SocketAddr, PingError> {
    // The resolver takes an empty name for the host itself.
    if name.is_empty() {
        return Err(not_resolved(name, "an empty name"));
    }
    first_of(name, family, (name, 0).to_socket_addrs())
}

/// The name that the system's resolver has for an address; waits for it as long as that takes.
pub fn name_of(address: IpAddr) -> Option<String> {
    crate::sys::ping::name_of(SocketAddr::new(address, 0)).ok()
}

fn first_of(
    name: &str,
    family: Family,
    found: io::Result<impl Iterator<Item = SocketAddr>>,
) -> Result<SocketAddr, PingError> {
    let mut found = found.map_err(|error| not_resolved(name, &plain(&error)))?.peekable();
    let what = match (found.peek(), family) {
        (Some(_), Family::V4) => "it has no IPv4 address",
        (Some(_), Family::V6) => "it has no IPv6 address",
        _ => "it has no address",
    };
    found.find(|address| family.admits(address.ip())).ok_or_else(|| not_resolved(name, what))
}

/// getaddrinfo's words without what the standard library puts before them.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_owned()
}

fn not_resolved(name: &str, cause: &str) -> PingError {
    PingError::NotResolved { name: name.into(), cause: cause.into() }
}

/// A name to resolve and whom to tell.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) family: Family,
    /// Whether it is still wanted.
    pub(super) wanted: Box<dyn Fn() -> bool + Send>,
    pub(super) done: Box<dyn FnOnce(Result<SocketAddr, PingError>) + Send>,
}

/// The threads of one engine. They end with it, or with the name that they are at.
pub(super) struct Resolving {
    jobs: Sender<Job>,
    crew: Arc<Crew>,
    /// How many names have to wait for the next sifting.
    sift_at: usize,
}

/// What the threads share.
struct Crew {
    resolver: Resolver,
    queue: Receiver<Job>,
    idle_time_max: Duration,
    threads: AtomicUsize,
    idle: AtomicUsize,
}

impl Resolving {
    pub(super) fn new(resolver: Resolver) -> Resolving {
        Resolving::with(resolver, IDLE_TIME_MAX)
    }

    fn with(resolver: Resolver, idle_time_max: Duration) -> Resolving {
        let (jobs, queue) = channel::unbounded();
        let (threads, idle) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let crew = Arc::new(Crew { resolver, queue, idle_time_max, threads, idle });
        Resolving { jobs, crew, sift_at: SIFTED_MIN }
    }

    /// Has the name resolved.
    pub(super) fn start(&mut self, job: Job) {
        self.sift();
        // The queue is ours, so it is open.
        let _ = self.jobs.send(job);
        self.crew.reinforce();
    }

    /// Takes out what nobody wants any more, whenever the queue has doubled since.
    fn sift(&mut self) {
        let queue = &self.crew.queue;
        if queue.len() < self.sift_at {
            return;
        }
        let wanted: Vec<Job> = queue.try_iter().filter(|job| (job.wanted)()).collect();
        self.sift_at = SIFTED_MIN.max(2 * wanted.len());
        // As above.
        wanted.into_iter().for_each(|job| drop(self.jobs.send(job)));
    }
}

impl Crew {
    /// Starts a thread if more names wait than threads are idle.
    fn reinforce(self: &Arc<Crew>) {
        // SeqCst: pairs with itself, where a thread stops being idle, and with the one in `next`. Of the two, one sees the other's name
        // or that the other is idle no more; so the numbers can be Relaxed.
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) >= self.queue.len() {
            return;
        }
        let one_more = |threads| (threads < THREADS_MAX).then_some(threads + 1);
        if self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return;
        }
        let crew = Arc::clone(self);
        let started = thread::Builder::new().name("ping-resolver".to_owned()).spawn(move || crew.work());
        if let Err(error) = started {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot start a thread to resolve names");
        }
    }

    fn work(self: &Arc<Crew>) {
        while let Some(job) = self.next() {
            self.reinforce();
            if !(job.wanted)() {
                continue;
            }
            // Unwind safe: nothing of ours is changed meanwhile; what the resolver has is its own.
            let resolve = AssertUnwindSafe(|| self.resolver.resolve(&job.name, job.family));
            let found = panic::catch_unwind(resolve);
            (job.done)(found.unwrap_or_else(|_| Err(not_resolved(&job.name, "the resolver panicked"))));
        }
    }

    /// The next name; none when there has been none for a while, and this thread is counted no more.
    fn next(&self) -> Option<Job> {
        self.idle.fetch_add(1, Ordering::Relaxed);
        let waited = self.queue.recv_timeout(self.idle_time_max);
        self.idle.fetch_sub(1, Ordering::Relaxed);
        waited.ok().or_else(|| self.leave())
    }

    /// Counts this thread out, and looks for the name of who has counted on it until now.
    fn leave(&self) -> Option<Job> {
        self.threads.fetch_sub(1, Ordering::Relaxed);
        // SeqCst: pairs with the one in `reinforce`.
        fence(Ordering::SeqCst);
        let last = self.queue.try_recv().ok()?;
        self.threads.fetch_add(1, Ordering::Relaxed);
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn found() -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }

    /// A name that is wanted as long as `wanted` says, and where its outcome is told.
    fn job(wanted: bool) -> (Job, Receiver<Result<SocketAddr, PingError>>) {
        let (teller, told) = channel::bounded(1);
        let done = Box::new(move |found| drop(teller.send(found)));
        let job = Job { name: "host.example".to_owned(), family: Family::Any, wanted: Box::new(move || wanted), done };
        (job, told)
    }

    /// As if there were one thread, which has been waiting, and has not counted itself as idle no more yet.
    fn with_one_that_stops_waiting() -> Resolving {
        let resolving = Resolving::new(Resolver::custom(|_| found()));
        resolving.crew.threads.store(1, Ordering::Relaxed);
        resolving.crew.idle.store(1, Ordering::Relaxed);
        resolving
    }

    #[test]
    fn a_name_that_comes_as_the_last_thread_gives_up_is_seen_by_it() {
        let mut resolving = with_one_that_stops_waiting();
        let (job, told) = job(true);
        resolving.start(job);
        let crew = &resolving.crew;
        assert_eq!((crew.threads.load(Ordering::Relaxed), crew.queue.len()), (1, 1), "it was counted on");
        crew.idle.store(0, Ordering::Relaxed);
        let last = crew.leave().expect("the name");
        assert_eq!(crew.threads.load(Ordering::Relaxed), 1);
        (last.done)(Err(PingError::Cancelled));
        assert!(matches!(told.recv_timeout(PATIENCE), Ok(Err(PingError::Cancelled))));
        assert!(crew.leave().is_none());
        assert_eq!(crew.threads.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_name_that_comes_as_the_only_idle_thread_takes_another_does_not_wait_for_that() {
        let mut resolving = with_one_that_stops_waiting();
        let (job, told) = job(true);
        resolving.start(job);
        // It has the other name now, which may hang for ever.
        resolving.crew.idle.store(0, Ordering::Relaxed);
        resolving.crew.reinforce();
        assert!(matches!(told.recv_timeout(PATIENCE), Ok(Ok(_))), "it is left lying");
    }

    #[test]
    fn names_that_come_at_every_moment_of_threads_that_give_up_are_resolved() {
        let mut resolving = Resolving::with(Resolver::custom(|_| found()), Duration::ZERO);
        for number in 0..5_000 {
            let (job, told) = job(true);
            resolving.start(job);
            let outcome = told.recv_timeout(PATIENCE);
            assert!(matches!(outcome, Ok(Ok(_))), "name {number} is left lying: {outcome:?}");
        }
    }

    #[test]
    fn a_resolver_that_panics_fails_the_name_and_costs_no_thread() {
        let mut resolving = Resolving::new(Resolver::custom(|_| panic!("on purpose")));
        for _ in 0..3 * THREADS_MAX {
            let (job, told) = job(true);
            resolving.start(job);
            let outcome = told.recv_timeout(PATIENCE).expect("it is told");
            assert_eq!(outcome.unwrap_err().to_string(), "host.example: the resolver panicked");
        }
    }

    #[test]
    fn names_that_nobody_wants_any_more_are_not_kept_while_the_resolver_hangs() {
        let (release, held) = channel::bounded::<()>(0);
        let mut resolving = Resolving::new(Resolver::custom(move |_| {
            let _ = held.recv();
            found()
        }));
        // All threads are at a name that hangs, and one more waits.
        let hanging: Vec<_> = (0..=THREADS_MAX).map(|_| job(true)).collect();
        let told: Vec<_> = hanging.into_iter().map(|(job, told)| (resolving.start(job), told).1).collect();
        for _ in 0..100_000 {
            resolving.start(job(false).0);
        }
        let waiting = resolving.crew.queue.len();
        assert!(waiting <= SIFTED_MIN + 1, "{waiting} names wait, and one is wanted");
        drop(release);
        for told in told {
            assert!(matches!(told.recv_timeout(PATIENCE), Ok(Ok(_))), "a name that is wanted is lost");
        }
    }
}
