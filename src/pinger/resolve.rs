//! Names to addresses, by threads of their own: a resolver may take its time, and the engine has none.
//!
//! Threads are started when there is a name and none of them is idle, up to a limit, and end when there is nothing to do for
//! a while. A name whose ping is over by the time its turn comes is not resolved any more.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};

use super::error::PingError;
use super::options::Family;

/// Names that are being resolved at once; more wait.
const THREADS_MAX: usize = 32;

/// How long a thread waits for another name.
const IDLE_TIME_MAX: Duration = Duration::from_secs(5);

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
    resolver: Resolver,
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    crew: Arc<Crew>,
}

#[derive(Default)]
struct Crew {
    threads: AtomicUsize,
    idle: AtomicUsize,
}

impl Resolving {
    pub(super) fn new(resolver: Resolver) -> Resolving {
        let (jobs, queue) = channel::unbounded();
        Resolving { resolver, jobs, queue, crew: Arc::default() }
    }

    /// Has the name resolved.
    pub(super) fn start(&self, job: Job) {
        // The queue is ours, so it is open.
        let _ = self.jobs.send(job);
        // Relaxed, here and below: the numbers are estimates. One thread too many ends by itself, and that none is left out
        // is seen to by whoever goes idle: it looks at the queue again.
        let idle = self.crew.idle.load(Ordering::Relaxed);
        if idle >= self.queue.len() || self.crew.threads.load(Ordering::Relaxed) >= THREADS_MAX {
            return;
        }
        self.crew.threads.fetch_add(1, Ordering::Relaxed);
        let (resolver, queue, crew) = (self.resolver.clone(), self.queue.clone(), Arc::clone(&self.crew));
        let started =
            thread::Builder::new().name("ping-resolver".to_owned()).spawn(move || work(&resolver, &queue, &crew));
        if let Err(error) = started {
            self.crew.threads.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot start a thread to resolve names");
        }
    }
}

fn work(resolver: &Resolver, queue: &Receiver<Job>, crew: &Crew) {
    loop {
        crew.idle.fetch_add(1, Ordering::Relaxed);
        let job = queue.recv_timeout(IDLE_TIME_MAX);
        crew.idle.fetch_sub(1, Ordering::Relaxed);
        let Ok(job) = job else { break };
        if (job.wanted)() {
            let found = resolver.resolve(&job.name, job.family);
            (job.done)(found);
        }
    }
    crew.threads.fetch_sub(1, Ordering::Relaxed);
}
