//! The seam between the proxy and the kernel: bytes and addresses in batches, nothing of ICMP.
//!
//! A [`PacketIo`] has two sides: inside (the TUN, where clients are) and outside (raw sockets, where the internet is).
//! Three implementations: `uring` (one io_uring a worker), `syscalls` (poll, read/write, recvmmsg/sendmmsg; for where
//! io_uring is refused) and `memory` (for tests and simulation: loss, duplication, reordering, delay and errors from a
//! seed).
//!
//! A packet lives in one [`Frame`] from the read that filled it to the write that sent it: a move-only owned buffer of
//! a preallocated pool. Dropping a frame gives its buffer back. A frame handed to `send_*` belongs to the kernel until
//! it comes back in [`Events::sent`], so no buffer is ever in two places.
//!
//! One turn of a worker: `wait` (blocks, then fills [`Events`]), the packets rewritten in place, `send_*` for each,
//! then the next `wait` submits what was queued. Nothing here blocks but `wait`, nothing retries, nothing logs a packet.

pub mod buffers;
#[cfg(feature = "gateway")]
pub mod memory;
#[cfg(feature = "pinger")]
pub mod ping;
mod provided;
#[cfg(feature = "gateway")]
pub mod raw;
#[cfg(feature = "gateway")]
pub mod receive;
#[cfg(feature = "gateway")]
pub mod region;
#[cfg(feature = "gateway")]
mod retry;
mod ring;
#[cfg(feature = "gateway")]
pub mod steering;
#[cfg(feature = "gateway")]
pub mod syscalls;
#[cfg(feature = "gateway")]
pub mod tun;
#[cfg(feature = "gateway")]
pub mod uring;
mod wake;

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::SetupError;
use buffers::BUFFER_BYTES_MAX;
pub use buffers::{Frame, Pool, PoolSize};
#[cfg(feature = "gateway")]
use raw::{ReceiveSocket, SendSocket};
#[cfg(feature = "gateway")]
use tun::Tun;
pub use wake::Waker;

/// Where a packet comes from or goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The TUN: clients.
    Inside,
    /// The raw sockets: the internet.
    Outside,
}

/// Which implementation moves the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring; system calls, with one warning, where the kernel refuses it.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// poll, read/write, recvmmsg/sendmmsg.
    Syscalls,
}

/// What happens to a packet from the TUN that is none of the proxy's business.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FallThrough {
    /// It goes back into the TUN, unchanged, and on along the kernel's path.
    #[default]
    Reinject,
    /// It is dropped and counted.
    Drop,
}

/// A frame that left the gateway, or could not.
#[derive(Debug)]
pub struct Sent {
    /// Where it was sent to.
    pub to: Side,
    /// The frame as it was sent; dropping it frees its buffer.
    pub frame: Frame,
    /// The errno of a send that failed (positive, as in errno(3)); 0 for one that succeeded.
    pub errno: i32,
}

/// What one `wait` brought. The vectors are allocated once and drained by the worker each turn.
#[derive(Debug, Default)]
pub struct Events {
    /// Frames read from the TUN.
    pub from_inside: Vec<Frame>,
    /// Frames received by the raw socket; whole IP datagrams, at most 65,535 bytes.
    pub from_outside: Vec<Frame>,
    /// Sends that have come to an end.
    pub sent: Vec<Sent>,
    /// Somebody called the waker: look at the stop flag and the hand-over queue.
    pub woken: bool,
}

impl Events {
    /// Empty events with room for a full batch.
    pub fn with_capacity() -> Events {
        Events {
            from_inside: Vec::with_capacity(BATCH_MAX),
            from_outside: Vec::with_capacity(BATCH_MAX),
            // Every buffer of the default pools may be in flight at once.
            sent: Vec::with_capacity(16 * BATCH_MAX),
            woken: false,
        }
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.from_inside.is_empty() && self.from_outside.is_empty() && self.sent.is_empty() && !self.woken
    }
}

/// One worker's way to both sides. Not `Send`: made on the thread that uses it.
pub trait PacketIo {
    /// Submits what `send_*` queued, waits until something has happened or `timeout` has passed (`None`: no limit),
    /// and appends what happened to `events`. A batch is bounded (at most [`BATCH_MAX`] arrivals a side). Returns
    /// early for a wake-up. An error ends the worker: it is a fault that no re-arming mends (the device is gone).
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError>;

    /// Queues a write of the frame to the TUN.
    fn send_inside(&mut self, frame: Frame);

    /// Queues a send of the frame, a whole IP datagram with its header, from gateway address number `address` to
    /// `remote` (which the datagram's own destination equals).
    fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr);

    /// A frame with a copy of a packet that another worker has read from `side`; none if no buffer is free or the packet
    /// is longer than one.
    fn copy_of(&self, side: Side, packet: &[u8]) -> Option<Frame>;

    /// The MTU of the way out from gateway address number `address` to `remote`, in bytes, as the kernel knows it. Asked
    /// only about a packet that was too large (EMSGSIZE): it takes a few system calls.
    fn mtu_towards(&self, address: u8, remote: Ipv4Addr) -> Option<u16>;

    /// Reads nothing any more: what is waiting stays where it is, for whoever has the same descriptors next. What has been read
    /// already is still brought by `wait`, and counts as in flight until then.
    fn stop_receiving(&mut self);

    /// Frames handed to `send_*` that have not come back yet.
    fn in_flight(&self) -> usize;
}

/// The most arrivals a side that one `wait` reports.
pub const BATCH_MAX: usize = 256;

/// The descriptors that one worker moves packets through, and what it moves them in. Opened by whoever sets the gateway
/// up; handed to the worker's thread, which makes its [`PacketIo`] of them.
#[cfg(feature = "gateway")]
#[derive(Debug)]
pub struct Ports {
    /// The worker's queue of the TUN.
    pub tun: Tun,
    /// The worker's receive socket.
    pub receive: ReceiveSocket,
    /// A send socket for each gateway address, in the order of their numbers; at most [`raw::ADDRESSES_MAX`].
    pub send: Vec<SendSocket>,
    /// What ends the worker's wait.
    pub waker: Waker,
    /// The buffers to make.
    pub sizes: Sizes,
}

/// The buffers of one worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// For packets read from the TUN.
    pub inside: PoolSize,
    /// For datagrams received by the raw socket.
    pub outside: PoolSize,
}

impl Sizes {
    /// The default for a TUN with this MTU. Inside, half a kilobyte more than the MTU, so that an MTU raised a little
    /// while we run cuts no packet (one raised further does, and such packets are dropped as too short for their
    /// length). Outside, the largest datagram, since the kernel hands over reassembled ones; the pages behind a buffer's
    /// first are mostly never touched.
    pub fn for_mtu(mtu: u32) -> Sizes {
        let inside_bytes = usize::try_from(mtu).unwrap_or(usize::MAX).saturating_add(512).clamp(2048, BUFFER_BYTES_MAX);
        Sizes {
            inside: PoolSize { buffers: 2048, buffer_bytes: inside_bytes },
            outside: PoolSize { buffers: 512, buffer_bytes: BUFFER_BYTES_MAX },
        }
    }

    /// The memory that they map, in bytes.
    pub const fn mapped_bytes(self) -> usize {
        self.inside.mapped_bytes() + self.outside.mapped_bytes()
    }
}

/// The implementation that [`choose`] settled on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// [`uring::UringIo`].
    Uring,
    /// [`syscalls::SyscallsIo`].
    Syscalls,
}

/// Settles which implementation the workers use, by trying io_uring here and now. Warns once if `auto` has to do
/// without it.
#[cfg(feature = "gateway")]
pub fn choose(backend: Backend) -> Result<Engine, SetupError> {
    choose_by(backend, uring::probe)
}

/// As `choose`, by what a trial ([`uring::probe`]) shows or has shown.
#[cfg(feature = "gateway")]
pub fn choose_by(backend: Backend, trial: impl FnOnce() -> Result<(), SetupError>) -> Result<Engine, SetupError> {
    match backend {
        Backend::Syscalls => Ok(Engine::Syscalls),
        Backend::Uring => trial().map(|()| Engine::Uring),
        Backend::Auto => Ok(trial().map_or_else(
            |refusal| {
                tracing::warn!(%refusal, "io_uring is not to be had; using system calls");
                Engine::Syscalls
            },
            |()| Engine::Uring,
        )),
    }
}
