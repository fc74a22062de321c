//! What can be seen of a gateway that serves, by whoever has a handle: its counters, its workers' progress, and what the
//! kernel dropped on the way to it. Looking costs the workers nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::pulse::Pulse;
use crate::io::{Engine, Waker};
use crate::metrics::{Counters, Snapshot};
use crate::proxy::Sizes;
use crate::sys::net;
use crate::worker::Basin;

/// Longer than any host's list of interfaces: one line of at most 250 bytes each.
const DEVICES_BYTES_MAX: usize = 1 << 20;

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
    pub(super) receivers: Mutex<Receivers>,
    pub(super) devices: Devices,
    pub(super) started: Instant,
}

/// The workers' receive sockets, to ask what they had no room for. They are let go of when the gateway ends, or they would
/// go on receiving.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    sockets: Vec<OwnedFd>,
    /// What those had dropped that are closed now.
    dropped: u64,
}

impl Receivers {
    fn dropped(&self) -> u64 {
        let dropped = self.sockets.iter().map(|socket| u64::from(net::receive_drops(socket.as_fd()).unwrap_or(0)));
        self.dropped + dropped.sum::<u64>()
    }
}

/// Packets that the kernel had no room for before a worker could read them: in none of the other counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketDrops {
    /// Thrown away by the TUN device: its queue was full.
    pub inside: u64,
    /// Thrown away by the raw sockets: their buffers were full. An upper bound: what no worker would have taken is among
    /// them.
    pub outside: u64,
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

    /// The counters' sum now.
    pub fn snapshot(&self) -> Snapshot {
        self.0.counters.snapshot()
    }

    /// Where samples and traces of packets arrive.
    pub fn basin(&self) -> &Basin {
        &self.0.basin
    }

    /// What the kernel dropped on the way in.
    pub fn socket_drops(&self) -> SocketDrops {
        // Zero for a device that has gone, with its gateway.
        let inside = self.0.devices.dropped_towards(&self.0.device).unwrap_or(0);
        SocketDrops { inside, outside: self.receivers().dropped() }
    }

    /// Looks at this receive socket too.
    pub(super) fn add_receiver(&self, socket: OwnedFd) {
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

/// The kernel's list of interfaces with their counters: that of the namespace it was opened in, whoever reads it.
#[derive(Debug)]
pub(super) struct Devices(File);

impl Devices {
    pub(super) fn open() -> io::Result<Devices> {
        File::open("/proc/thread-self/net/dev").map(Devices)
    }

    /// Packets that the kernel had for this device and dropped.
    fn dropped_towards(&self, device: &str) -> io::Result<u64> {
        let mut text = vec![0; 16 << 10];
        let mut length = 0;
        // The kernel hands it out a page at a time.
        loop {
            match self.0.read_at(&mut text[length..], length as u64)? {
                0 => break,
                more => length += more,
            }
            if length == text.len() {
                if length >= DEVICES_BYTES_MAX {
                    break;
                }
                text.resize(2 * length, 0);
            }
        }
        Ok(transmit_drops(&String::from_utf8_lossy(&text[..length]), device).unwrap_or(0))
    }
}

/// The fourth number of the transmitting half, which is the second: `eth0: 8 numbers received 8 numbers sent`.
fn transmit_drops(devices: &str, device: &str) -> Option<u64> {
    let numbers = devices.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(8 + 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
echogate01: 0 0 0 0 0 0 0 0 0 0 0 99 0 0 0 0
echogate0:21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
";

    #[test]
    fn what_a_device_dropped_is_found_by_its_whole_name() {
        assert_eq!(transmit_drops(LIST, "echogate0"), Some(32));
        assert_eq!(transmit_drops(LIST, "lo"), Some(12));
        assert_eq!(transmit_drops(LIST, "echogate"), None);
        assert_eq!(transmit_drops("", "lo"), None);
    }

    #[test]
    fn the_list_can_be_read_again_and_again() {
        let devices = Devices::open().expect("proc is mounted");
        for _ in 0..2 {
            assert!(devices.dropped_towards("lo").is_ok());
        }
    }
}
