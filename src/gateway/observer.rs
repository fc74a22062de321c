//! What can be seen of a gateway that serves, by whoever has a handle: its counters, its workers' progress, and what the
//! raw sockets dropped. Looking costs the workers nothing.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::pulse::Pulse;
use crate::io::raw::ReceiveSocket;
use crate::io::{Engine, Waker};
use crate::metrics::{Counters, Snapshot};
use crate::proxy::{OutsideAddress, Proxy, Sizes};
use crate::sys::net;
use crate::worker::Basin;

/// A view of a gateway. Clones are views of the same one; they outlive it, and then show its last state.
#[derive(Clone, Debug)]
pub struct Observer(Arc<Observed>);

#[derive(Debug)]
pub(super) struct Observed {
    pub(super) description: String,
    pub(super) engine: Engine,
    pub(super) device: String,
    pub(super) counters: Arc<Counters>,
    pub(super) wakers: Vec<Waker>,
    pub(super) basin: Basin,
    /// The classes of clients, by their numbers.
    pub(super) classes: Vec<String>,
    pub(super) sizes: Sizes,
    /// Only for as long as somebody serves.
    pub(super) proxy: Weak<Proxy>,
    pub(super) receivers: Mutex<Receivers>,
    pub(super) started: Instant,
}

/// The workers' receive sockets, to ask what they had no room for. They are let go of when the gateway ends, or they would
/// go on receiving.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    sockets: Vec<ReceiveSocket>,
    /// What those had dropped that are closed now.
    dropped: u64,
}

impl Receivers {
    fn dropped(&self) -> u64 {
        let dropped = self.sockets.iter().map(|socket| u64::from(net::receive_drops(socket.as_fd()).unwrap_or(0)));
        self.dropped + dropped.sum::<u64>()
    }
}

impl From<Observed> for Observer {
    fn from(observed: Observed) -> Observer {
        Observer(Arc::new(observed))
    }
}

impl Observer {
    /// The one line that says what the gateway serves.
    pub fn description(&self) -> &str {
        &self.0.description
    }

    /// What moves the packets.
    pub fn engine(&self) -> Engine {
        self.0.engine
    }

    /// The TUN device's name.
    pub fn device(&self) -> &str {
        &self.0.device
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.0.counters.workers()
    }

    /// For how long the gateway has been serving.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The classes of clients in the order of their numbers: everybody, then the prefixes with limits of their own.
    pub fn classes(&self) -> &[String] {
        &self.0.classes
    }

    /// What the tables hold.
    pub fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    /// The addresses outside by their numbers; none once the gateway has ended.
    pub fn addresses(&self) -> Vec<OutsideAddress> {
        self.0.proxy.upgrade().map(|proxy| proxy.outside_addresses()).unwrap_or_default()
    }

    /// The counters' sum now.
    pub fn snapshot(&self) -> Snapshot {
        self.0.counters.snapshot()
    }

    /// Where samples and traces of packets arrive.
    pub fn basin(&self) -> &Basin {
        &self.0.basin
    }

    /// Packets that the raw sockets had no room for: in none of the other counts. An upper bound: what no worker would have
    /// taken is among them.
    pub fn receive_drops(&self) -> u64 {
        self.receivers().dropped()
    }

    /// Looks at this receive socket too.
    pub(super) fn add_receiver(&self, socket: ReceiveSocket) {
        self.receivers().sockets.push(socket);
    }

    /// Lets go of the receive sockets.
    pub(super) fn release(&self) {
        let mut receivers = self.receivers();
        receivers.dropped = receivers.dropped();
        receivers.sockets.clear();
    }

    fn receivers(&self) -> MutexGuard<'_, Receivers> {
        self.0.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each worker's turns so far.
    pub(super) fn turns(&self) -> impl Iterator<Item = u64> {
        (0..self.workers()).map(|worker| self.0.counters.worker(worker).turns.get())
    }

    /// Has a worker take a turn.
    pub(super) fn wake(&self, worker: usize) {
        if let Some(waker) = self.0.wakers.get(worker) {
            waker.wake();
        }
    }

    /// Begins to look whether the workers move.
    pub fn pulse(&self, now: crate::clock::Instant) -> Pulse {
        Pulse::new(self, now)
    }
}
