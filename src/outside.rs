//! The outside, done: raw sockets with their filters, for a server that embeds the proxy and has an inside of its own.
//!
//! ```text
//!   the server's threads                        | this module
//!   packet -> Batch::outbound -> Forward -> Sender::send -> send socket of that gateway address
//!                                               |
//!   the client's queue <--- Deliver <- Batch::inbound <- receive socket    (one thread, named "echogate-outside")
//! ```
//!
//! The receiving thread sleeps in poll until replies come, receives them in batches into buffers made at the start, and
//! hands each that matches to a callback, or to a bounded queue. It never waits for the server: what the server does not
//! take is dropped and counted. It has a handle of its own that owns no idents ([`Proxy::receiver`]): it takes nothing
//! away from the server's threads, and expiring is theirs ([`crate::proxy::Batch::expire`]). Under load it pauses between
//! batches, by a tenth of a millisecond, for replies to gather: `perf/wireguard.md` has what that saves.
//!
//! Sending is a call on the server's own thread, which does not block: the error comes back to whoever can withdraw the
//! echo ([`crate::proxy::Batch::withdraw`]).
//!
//! Rejected: io_uring here. One recvmmsg takes up to 64 replies, and the send is on threads that are not ours; a ring
//! would save nothing that was ever measured. Rejected: opening by a list of addresses. They would have to be the proxy's,
//! in its order; so they are asked of the proxy.

use std::io;
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, TrySendError};
use crossbeam::queue::ArrayQueue;

use crate::clock::Clock;
use crate::error::SetupError;
use crate::io::buffers::BUFFER_BYTES_MAX;
use crate::io::raw::{ReceiveSocket, SOCKET_BUFFER_BYTES, SendSocket, Shards, Wanted};
use crate::io::receive::Receiving;
use crate::io::{BATCH_MAX, Frame, PoolSize, Waker};
use crate::metrics::{Counters, Snapshot};
use crate::proxy::{Handle, Inbound, Proxy};

/// The buffers that replies are received into. Each holds the largest datagram, since the kernel hands over reassembled
/// ones; the pages behind a buffer's first are mostly never touched.
const BUFFERS: PoolSize = PoolSize { buffers: BATCH_MAX, buffer_bytes: BUFFER_BYTES_MAX };

/// How long replies gather when there are many. The kernel rounds it up by its timer slack, 50 us unless told otherwise.
const PAUSE: Duration = Duration::from_micros(50);

/// After so many batches of one reply it is tried whether they gather. Who has a single echo under way waits for a pause
/// in one of so many.
const TRY_AFTER: u32 = 16;

/// What takes the replies, and the errors about echoes. It is called on the receiving thread and must not block there.
pub trait Deliver: Send + 'static {
    /// Takes a reply for `client`, or an error about its request: a whole IP datagram, which may be changed in place. An error drops it, and is counted
    /// by errno (`send_inside_*`); say ENOBUFS for a queue that is full.
    fn deliver(&mut self, client: Ipv4Addr, packet: &mut [u8]) -> io::Result<()>;

    /// The batch is over: time to wake whoever waits for what was delivered.
    fn flush(&mut self) {}
}

/// A closure as a [`Deliver`].
struct Callback<F>(F);

impl<F: FnMut(Ipv4Addr, &mut [u8]) -> io::Result<()> + Send + 'static> Deliver for Callback<F> {
    fn deliver(&mut self, client: Ipv4Addr, packet: &mut [u8]) -> io::Result<()> {
        self.0(client, packet)
    }
}

/// The outside of an embedded gateway. Dropping it ends it as [`Outside::stop`] does.
#[derive(Debug)]
pub struct Outside {
    sender: Sender,
    counters: Arc<Counters>,
    faults: Receiver<SetupError>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Outside {
    /// Opens the sockets in the calling thread's network namespace (CAP_NET_RAW) and starts the receiving thread, which
    /// calls `deliver` with each reply and its client. `clock` must be the one that the server's batches are opened with.
    pub fn open<C, F>(proxy: &Arc<Proxy>, clock: C, deliver: F) -> Result<Outside, SetupError>
    where
        C: Clock + Send + 'static,
        F: FnMut(Ipv4Addr, &mut [u8]) -> io::Result<()> + Send + 'static,
    {
        Outside::open_with(proxy, clock, Callback(deliver))
    }

    /// As `open`, into a queue with room for `room` replies. When it is full, replies are dropped: `send_inside_enobufs`.
    pub fn open_queue<C>(
        proxy: &Arc<Proxy>,
        clock: C,
        room: usize,
    ) -> Result<(Outside, Receiver<Delivered>), SetupError>
    where
        C: Clock + Send + 'static,
    {
        if room == 0 {
            return Err(SetupError::new("a queue of replies without room").remedy("give it room for one at least"));
        }
        let (queue, replies) = channel::bounded(room);
        // One for each that waits, one in the server's hands, one in ours.
        let spare = Arc::new(ArrayQueue::new(room + 2));
        let outside = Outside::open_with(proxy, clock, Queue { queue, spare })?;
        Ok((outside, replies))
    }

    /// As `open`, with a [`Deliver`] of the server's own.
    pub fn open_with<C, D>(proxy: &Arc<Proxy>, clock: C, deliver: D) -> Result<Outside, SetupError>
    where
        C: Clock + Send + 'static,
        D: Deliver,
    {
        let addresses = (0..).map_while(|number| proxy.addresses().get(number));
        let sockets = addresses.map(|address| SendSocket::open(address, SOCKET_BUFFER_BYTES));
        let sender = Sender(sockets.collect::<Result<Vec<_>, _>>()?.into());
        let socket = ReceiveSocket::open(Shards::ALL, Wanted::with_errors(proxy.icmp_errors()), SOCKET_BUFFER_BYTES)?;
        let waker = Waker::new()?;
        let counters = Arc::new(Counters::new(1, 0));
        let stop = Arc::new(AtomicBool::new(false));
        let (fault, faults) = channel::bounded(1);
        let (ready, readiness) = channel::bounded(1);
        let receiver = Crew {
            handle: proxy.receiver(),
            clock,
            deliver,
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
            waker: waker.clone(),
        };
        let thread = thread::Builder::new()
            .name("echogate-outside".to_owned())
            .spawn(move || {
                // Unwind safe: nothing of the receiver is used after its panic but the shared tables, each of whose
                // words is whole.
                let served = AssertUnwindSafe(|| receiver.serve(socket, &ready));
                let ended = panic::catch_unwind(served).unwrap_or_else(|_| {
                    Err(SetupError::new("it panicked (in the callback, if the panic's message is none of Echogate's)"))
                });
                ended.map_err(|error| {
                    let reason = format!("the thread that receives from outside ended: {error}");
                    // There is room: it is the only one ever sent.
                    let _ = fault.try_send(SetupError::new(reason.clone()));
                    reason
                })
            })
            .map_err(|error| SetupError::caused("cannot start the thread that receives from outside", error))?;
        let mut outside = Outside { sender, counters, faults, stop, waker, thread: Some(thread) };
        if readiness.recv().is_err() {
            // It ended before it served: its result says why.
            outside.end()?;
        }
        Ok(outside)
    }

    /// What the server's threads send with.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What has been received, delivered and dropped by now: `outside_in` = `delivered` + `told` + the sum of the drops, once nothing
    /// is in flight.
    pub fn snapshot(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Why the receiving thread ended by itself, should it. No replies come any more then; the server should say so and
    /// open another.
    pub fn faults(&self) -> &Receiver<SetupError> {
        &self.faults
    }

    /// Ends the receiving thread, waits for it (as long as the callback takes for the rest of a batch) and tells the totals.
    pub fn stop(mut self) -> Result<Snapshot, SetupError> {
        self.end()?;
        Ok(self.snapshot())
    }

    fn end(&mut self) -> Result<(), SetupError> {
        // Release: pairs with the Acquire in `Crew::serve`.
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Dropped by the callback, with the server's last reference to itself: it ends when the callback returns.
        if thread.thread().id() == thread::current().id() {
            return Ok(());
        }
        let ended = thread.join().unwrap_or_else(|_| Err("the thread that receives from outside panicked".to_owned()));
        ended.map_err(SetupError::new)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // What went wrong has been told by `faults`, and nobody is left to tell it to.
        let _ = self.end();
    }
}

/// The send sockets. Clones use the same.
#[derive(Clone, Debug)]
pub struct Sender(Arc<[SendSocket]>);

impl Sender {
    /// Sends what [`crate::proxy::Outbound::Forward`] says: the packet cut to its length, from gateway address number
    /// `address`, to `remote`. Does not wait. After an error the packet has not left: give it to
    /// [`crate::proxy::Batch::withdraw`].
    pub fn send(&self, packet: &[u8], address: u8, remote: Ipv4Addr) -> io::Result<()> {
        let unknown = || io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        self.0.get(usize::from(address)).ok_or_else(unknown)?.send(packet, remote)
    }
}

impl Sender {
    /// What fits into one packet from gateway address number `address` to `remote`, in bytes; for
    /// [`crate::proxy::Batch::not_sent`]. A few system calls.
    pub fn mtu_towards(&self, address: u8, remote: Ipv4Addr) -> Option<u16> {
        self.0.get(usize::from(address))?.mtu_towards(remote).ok()
    }
}

/// What the receiving thread takes with it.
struct Crew<C, D> {
    handle: Handle,
    clock: C,
    deliver: D,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl<C: Clock, D: Deliver> Crew<C, D> {
    fn serve(mut self, socket: ReceiveSocket, ready: &channel::Sender<()>) -> Result<(), SetupError> {
        let mut receiving = Receiving::new(socket, BUFFERS)?;
        let mut arrived = Vec::with_capacity(BATCH_MAX);
        let mut pace = Pace::default();
        // Whoever waits for it is gone only when this thread is to end.
        let _ = ready.send(());
        // Acquire: pairs with the Release in `Outside::end`.
        while !self.stop.load(Ordering::Acquire) {
            receiving.wait(&self.waker, None, &mut arrived)?;
            if !arrived.is_empty() {
                let count = arrived.len();
                self.process(&mut arrived);
                if pace.pauses_after(count) {
                    thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }

    fn process(&mut self, arrived: &mut Vec<Frame>) {
        let counters = self.counters.worker(0);
        let mut batch = self.handle.batch(self.clock.now());
        batch.touch_inbound(arrived.iter().map(|frame| &**frame));
        for mut frame in arrived.drain(..) {
            counters.outside_in.count(frame.len());
            let (client, length, delivered) = match batch.inbound(&mut frame) {
                Inbound::Deliver { client, length } => (client, length, &counters.delivered),
                Inbound::Tell { client, length, .. } => (client, length, &counters.told),
                Inbound::Drop(reason) => {
                    counters.drop(reason);
                    continue;
                }
            };
            match self.deliver.deliver(client, &mut frame[..length]) {
                Ok(()) => delivered.count(length),
                Err(error) => counters.send_inside.count(error.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
        drop(batch);
        self.deliver.flush();
    }
}

/// Whether the receiving thread pauses before it looks for more. Replies under load come one by one, each just after its
/// request, and each would wake the thread: more than half of what it costs. So when they come in company it pauses for
/// more of them to gather; and since they cannot gather while it does not pause, it tries that now and then.
#[derive(Debug, Default)]
struct Pace {
    /// Batches of one since the last pause.
    alone: u32,
}

impl Pace {
    fn pauses_after(&mut self, batch: usize) -> bool {
        self.alone += 1;
        let pauses = batch > 1 || self.alone == TRY_AFTER;
        if pauses {
            self.alone = 0;
        }
        pauses
    }
}

/// A reply from the queue of [`Outside::open_queue`]. Derefs to its bytes: a whole IP datagram. Dropping it gives its
/// buffer back, so that a queue in use allocates no more.
#[derive(Debug)]
pub struct Delivered {
    client: Ipv4Addr,
    packet: Vec<u8>,
    spare: Arc<ArrayQueue<Vec<u8>>>,
}

impl Delivered {
    /// Who asked.
    pub fn client(&self) -> Ipv4Addr {
        self.client
    }
}

impl Deref for Delivered {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.packet
    }
}

impl DerefMut for Delivered {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.packet
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        // Full: the server holds more replies than the queue has room; this one's buffer is freed.
        let _ = self.spare.push(std::mem::take(&mut self.packet));
    }
}

/// The queue as a [`Deliver`].
struct Queue {
    queue: channel::Sender<Delivered>,
    spare: Arc<ArrayQueue<Vec<u8>>>,
}

impl Deliver for Queue {
    fn deliver(&mut self, client: Ipv4Addr, packet: &mut [u8]) -> io::Result<()> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        let delivered = Delivered { client, packet: buffer, spare: Arc::clone(&self.spare) };
        self.queue.try_send(delivered).map_err(|refused| {
            io::Error::from_raw_os_error(match refused {
                TrySendError::Full(_) => libc::ENOBUFS,
                TrySendError::Disconnected(_) => libc::EPIPE,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_gather_when_they_come_in_company_and_single_ones_hardly_wait() {
        let mut pace = Pace::default();
        assert!(pace.pauses_after(2) && pace.pauses_after(64));
        for _ in 0..3 {
            let pauses = (0..TRY_AFTER).filter(|_| pace.pauses_after(1)).count();
            assert_eq!(pauses, 1);
        }
    }
}
