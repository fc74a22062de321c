//! Pings without privileges: many targets on one socket, round-trip times by the kernel's clock, and errors that say who
//! sent them.
//!
//! ```no_run
//! use echogate::pinger::{PingOptions, Pinger};
//!
//! # async fn example() -> Result<(), echogate::pinger::PingError> {
//! let pinger = Pinger::new()?;
//! let reply = pinger.ping("192.0.2.7", &PingOptions::new()).await?;
//! println!("{:?} from {}", reply.rtt, reply.from);
//! # Ok(())
//! # }
//! ```
//!
//! Of the crate it takes one feature, with which neither the gateway nor a command line nor an async runtime comes:
//!
//! ```toml
//! echogate = { version = "0.1", default-features = false, features = ["pinger"] }
//! ```
//!
//! The futures need no particular runtime, and none at all: [`Ping::wait`] waits where it stands, as
//! [`Pinger::ping_blocking`] does.
//!
//! ```no_run
//! # use echogate::pinger::{PingError, PingOptions, Pinger};
//! # fn main() -> Result<(), PingError> {
//! # let pinger = Pinger::new()?;
//! match pinger.ping_blocking("gateway.example", &PingOptions::new().ttl(3)?) {
//!     Ok(reply) => println!("{:?}", reply.rtt),
//!     Err(PingError::TimeExceeded { from, .. }) => println!("the third router is {from}"),
//!     Err(PingError::Unreachable { from, code }) => println!("{from} says: unreachable, code {code}"),
//!     Err(PingError::Timeout { after }) => println!("nobody said anything for {after:?}"),
//!     Err(other) => return Err(other),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Many hosts
//!
//! [`Pinger::ping_many`] takes an iterator of targets and paces them itself, without drift; answers come as they are there, each
//! with the number of its target. What such a stream costs is mostly wake-ups, so it can be told what may wait: answers
//! ([`PingMany::told_within`]) without any harm to the round-trip times, and requests ([`PingMany::together`]) if they need
//! not be even.
//!
//! ```no_run
//! # use std::net::Ipv4Addr;
//! # use std::time::Duration;
//! # use echogate::pinger::{PingError, PingOptions, Pinger};
//! # fn main() -> Result<(), PingError> {
//! # let pinger = Pinger::new()?;
//! // A /24, once a second for ten seconds.
//! let hosts = (1..=254).map(|last| Ipv4Addr::new(198, 51, 100, last));
//! let targets = (0..10).flat_map(|_| hosts.clone());
//! let answers = pinger
//!     .ping_many(targets, &PingOptions::new())
//!     .every(Duration::from_secs(1) / 254)
//!     .told_within(Duration::from_millis(10));
//! let lost = answers.wait().filter(|answer| answer.outcome.is_err()).count();
//! println!("{lost} of 2540 lost");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancelling
//!
//! Dropping a [`Ping`] cancels it, so whatever drops futures does: the branch of a `select!` that was not first, a runtime's own
//! timeout, the end of a task. Nothing has to be told, and nothing is left but the number, which rests until the ping's
//! timeout. Who means to give up early should therefore rather make the timeout short.
//!
//! ```no_run
//! # use std::net::Ipv4Addr;
//! # use echogate::pinger::{PingError, PingOptions, Pinger};
//! # fn main() -> Result<(), PingError> {
//! # let pinger = Pinger::new()?;
//! let options = PingOptions::new();
//! let pings: Vec<_> = (1..=254).map(|last| pinger.ping(Ipv4Addr::new(198, 51, 100, last), &options)).collect();
//! assert_eq!(pinger.in_flight(), 254);
//! drop(pings);
//! assert_eq!(pinger.in_flight(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! Whole programs: `examples/ping_one.rs` (one await), `examples/ping_thousand.rs` (a thousand hosts a second),
//! `examples/ping_cancel.rs` (timeouts and cancels, ten thousand at a time).
//!
//! # What it promises
//!
//! * **No privileges.** Sockets of the kind `socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)`, for IPv4 and IPv6, and never raw
//!   ones. Where the system does not allow them, [`PingError::NotPermitted`] names the sysctl that does.
//! * **Only the reply counts that was asked for.** Ident, sequence, source and a random cookie in the payload have to
//!   match. The time of sending is kept here and not in the packet, so nothing a reply says can move a round-trip time.
//!   What does not match is counted by reason ([`Pinger::tally`]).
//! * **Nobody shares (ident, sequence).** Every pinger has idents of its own, given by the kernel, and hands sequence
//!   numbers out to all its pings; one rests until the timeout of the ping that had it, even if that was cancelled. When
//!   all 65,536 of a socket are taken another socket is opened, with another ident.
//! * **Timeouts are on time**, to about a millisecond, also while the resolver hangs: names are resolved by threads of
//!   their own, within the timeout and outside the round-trip time.
//! * **Dropping is cancelling.** It costs one compare-and-swap and takes effect at once. Dropping one clone of a pinger
//!   ends nobody's pings; the engine ends with the last clone and the last future.
//! * **Errors are values.** The sockets' error queues are read, so that an unreachable and an expired TTL come at once, with
//!   their sender, instead of as a timeout; and loss by this host's own full receive buffer is told apart.
//!
//! # How it works
//!
//! ```text
//!    Pinger::ping ──── slot ───┐  commands   ┌─────────────── engine (one thread) ───────────────┐
//!    future.await <─── waker ──┼───────────> │ sequence, cookie, timer  ──send──>  ping sockets  │ ──> hosts
//!    drop ── one CAS ── slot ──┘             │ match, finish slot  <──replies, error queue──     │ <──
//!                                            └───────────────────────────────────────────────────┘
//! ```
//!
//! A ping takes a slot (`slots`), goes to the engine by a queue, and gets its outcome through the slot. The engine
//! (`engine`) is one thread on io_uring, or on plain system calls where that is refused ([`crate::io::ping`]). It alone
//! knows sequence numbers (`sequences`) and timers (`wheel`), so it locks nothing. A cancelled ping's number stays taken
//! until its timer has run out.
//!
//! # Limits
//!
//! * Linux. Replies to broadcasts and multicasts come from others than the address pinged, and so do not count.
//! * A payload of fewer than eight bytes has a shorter cookie, an empty one none.
//! * Who wants an ident or a sequence number of a certain value has to open a raw socket elsewhere.
//! * The engine does not follow a `fork`: in the child every ping is [`PingError::Broken`]. Make a pinger after the fork.
//! * A name is resolved for each ping of it. Who pings one again and again calls [`resolve`] once, and pings the address.
//! * Sockets are kept once they are open: one for each 65,536 pings that were under way at once, of each family and
//!   [`PathMtu`].

mod counters;
mod engine;
mod error;
mod flights;
mod handle;
#[doc(hidden)]
pub mod manual;
mod many;
#[cfg(all(test, loom))]
mod models;
mod options;
mod patience;
mod payload;
mod ping;
mod reply;
mod resolve;
mod sequences;
mod slots;
mod sync;
mod wheel;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use counters::Tally;
pub use error::PingError;
pub use many::{Answer, PingMany};
pub use options::{Family, PATTERN_MAX, PingOptions, SIZE_DEFAULT, SIZE_MAX, TIMEOUT_DEFAULT, TIMEOUT_MAX, Target};
pub use ping::Ping;
pub use reply::{Measured, Payload, Reply, Stray, StrayKind};
pub use resolve::{name_of, resolve};

pub use crate::io::ping::PathMtu;
pub use crate::io::{Backend, Engine};
use handle::{Handle, Settings};

/// The pings that may be under way at once unless told otherwise: the numbers of sixteen sockets.
pub const IN_FLIGHT_MAX_DEFAULT: usize = 1 << 20;

/// How a pinger is to be made. [`Pinger::new`] is one with all defaults.
///
/// ```no_run
/// use echogate::pinger::{Backend, Pinger};
///
/// # fn main() -> Result<(), echogate::pinger::PingError> {
/// let pinger = Pinger::builder().backend(Backend::Syscalls).receive_buffer(8 << 20).build()?;
/// # let _ = pinger;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct PingerBuilder {
    settings: Settings,
}

impl PingerBuilder {
    /// How packets are moved: io_uring, or plain system calls, or the latter where the former is refused.
    pub fn backend(mut self, backend: Backend) -> PingerBuilder {
        self.settings.backend = backend;
        self
    }

    /// The size of each socket's receive buffer in bytes, as far as net.core.rmem_max (or CAP_NET_ADMIN) allows. 4 MiB by
    /// default: some 5,000 replies that arrive while the engine does not run.
    pub fn receive_buffer(mut self, bytes: u32) -> PingerBuilder {
        self.settings.receive_buffer_bytes = bytes;
        self
    }

    /// The most pings under way at once; one more is [`PingError::TooMany`]. [`IN_FLIGHT_MAX_DEFAULT`] unless told
    /// otherwise; at most 2^24. Twice as many sequence numbers may be taken, those of cancelled pings included, which rest
    /// until their timeout: so what a pinger keeps is bounded, however fast pings are cancelled.
    pub fn in_flight_max(mut self, pings: usize) -> PingerBuilder {
        self.settings.in_flight_max = pings.clamp(1, 1 << 24);
        self
    }

    /// Whether the kernel is asked when it has sent each request (on by default, where the kernel can tell: Linux 6.13).
    /// Without, a round-trip time begins when the engine hands the request to the kernel, as that of the system's `ping` does:
    /// it has the cost of the send in it, and that of others sent together before it.
    pub fn transmit_times(mut self, wanted: bool) -> PingerBuilder {
        self.settings.transmit_times = wanted;
        self
    }

    /// Keeps up to so many answers that no ping waits for, for [`Pinger::next_stray`]; at most 2^20. None by default: they
    /// are counted only.
    pub fn keep_strays(mut self, strays: usize) -> PingerBuilder {
        // Room for all of them is made at once.
        self.settings.strays_kept = strays.min(1 << 20);
        self
    }

    /// Who resolves names: something else than the system's resolver. It is called on threads for nothing but that, several
    /// at once, and may take its time.
    pub fn resolver(
        mut self,
        resolver: impl Fn(&str) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> PingerBuilder {
        self.settings.resolver = resolve::Resolver::custom(resolver);
        self
    }

    /// Opens the first socket and starts the engine, in the calling thread's network namespace.
    pub fn build(self) -> Result<Pinger, PingError> {
        Ok(Pinger { handle: Handle::start(self.settings)? })
    }
}

impl fmt::Debug for PingerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// Pings hosts. Clones are cheap, and share one engine, one set of sockets and one set of counters.
///
/// The engine is a thread; it ends when the last clone and the last future of its have been dropped.
#[derive(Clone, Debug)]
pub struct Pinger {
    handle: Arc<Handle>,
}

impl Pinger {
    /// A pinger with all defaults: see [`Pinger::builder`].
    ///
    /// Fails with [`PingError::NotPermitted`] where this user may not ping, and with [`PingError::Broken`] where the system
    /// has no thread or no ping socket to give.
    pub fn new() -> Result<Pinger, PingError> {
        Pinger::builder().build()
    }

    /// A pinger to be told more.
    pub fn builder() -> PingerBuilder {
        PingerBuilder { settings: Settings::default() }
    }

    /// Pings `target` once.
    ///
    /// The request is under way when this returns: the future only tells how it went. Several that are made before the first
    /// is awaited therefore run side by side. Dropping the future cancels the ping.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use echogate::pinger::{PingError, PingOptions, Pinger};
    /// # async fn example(pinger: Pinger) -> Result<(), PingError> {
    /// let options = PingOptions::new().timeout(Duration::from_millis(500));
    /// let (near, far) = (pinger.ping("192.0.2.1", &options), pinger.ping("198.51.100.1", &options));
    /// println!("{:?} and {:?}", near.await?.rtt, far.await?.rtt);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ping(&self, target: impl Into<Target>, options: &PingOptions) -> Ping {
        Ping::start(&self.handle, target.into(), options)
    }

    /// Pings `target` once and waits for the outcome, at most as long as the timeout. The calling thread sleeps meanwhile: not
    /// for a task of an async runtime.
    pub fn ping_blocking(&self, target: impl Into<Target>, options: &PingOptions) -> Result<Reply, PingError> {
        self.ping(target, options).wait()
    }

    /// Pings all of `targets`, in their order, as a stream of answers in the order in which they come.
    ///
    /// As many are under way at once as [`PingMany::at_most`] says, as densely as [`PingMany::every`] says. `targets` is
    /// drawn from as places become free: it may be of any length, or endless.
    ///
    /// ```no_run
    /// # use std::net::Ipv4Addr;
    /// # use std::time::Duration;
    /// # use echogate::pinger::{PingError, PingOptions, Pinger};
    /// # fn example(pinger: Pinger) -> Result<(), PingError> {
    /// // A /24 at a thousand hosts a second, without a runtime; `PingMany` is a `Stream` for those who have one.
    /// let hosts = (1..=254).map(|last| Ipv4Addr::new(198, 51, 100, last));
    /// let answers = pinger.ping_many(hosts, &PingOptions::new()).every(Duration::from_millis(1));
    /// for answer in answers.wait() {
    ///     match answer.outcome {
    ///         Ok(reply) => println!("{} is alive: {:?}", answer.target, reply.rtt),
    ///         Err(error) => println!("{}: {error}", answer.target),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn ping_many<T: Into<Target>, I: IntoIterator<Item = T>>(
        &self,
        targets: I,
        options: &PingOptions,
    ) -> PingMany<I::IntoIter> {
        PingMany::new(Arc::clone(&self.handle), targets.into_iter(), *options)
    }

    /// What has been sent and received so far.
    pub fn tally(&self) -> Tally {
        self.handle.shared().counters.tally()
    }

    /// Pings under way: their futures exist and have no outcome yet that was taken.
    pub fn in_flight(&self) -> usize {
        self.handle.shared().slots.in_use()
    }

    /// The oldest answer that no ping was waiting for any more, if it was asked to keep such
    /// ([`PingerBuilder::keep_strays`]).
    pub fn next_stray(&self) -> Option<Stray> {
        self.handle.shared().strays.as_ref()?.pop()
    }

    /// As [`Pinger::next_stray`], and has the task woken when there is one. One task at a time: the last that asked.
    pub fn poll_stray(&self, context: &mut Context<'_>) -> Poll<Stray> {
        // Before the look, or a stray in between would wake nobody.
        self.handle.shared().strays_waker.register(context.waker());
        self.next_stray().map_or(Poll::Pending, Poll::Ready)
    }

    /// How packets are moved.
    pub fn engine(&self) -> Engine {
        self.handle.engine()
    }

    /// Ends the engine now: what is under way is [`PingError::Cancelled`], and so is every later ping of any clone. Returns
    /// when the engine has ended, or after a second.
    pub fn shut_down(&self) {
        self.handle.stop(Duration::from_secs(1));
    }
}
