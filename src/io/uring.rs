//! Packets by io_uring: one ring a worker, made on the worker's own thread.
//!
//! Receiving costs no submission: one multishot read on the TUN queue and one multishot receive on the raw socket stay
//! armed, and the kernel puts each packet into a buffer that it takes from a ring of provided ones. Sending is one
//! entry a packet, submitted together by the next `wait`; since neither a TUN nor a raw socket makes a nonblocking send
//! wait, most sends have ended when that call returns.
//!
//! Invariants:
//! * Each buffer is provided, or owned by a frame, or (in a frame) in flight: so the completion queue, which has room
//!   for one entry a buffer and some, does not overflow.
//! * A multishot that ended is armed again by the next `wait`, once the kernel has buffers; until then the kernel
//!   queues. Failing ones pause (see `retry`).
//! * Whatever the kernel may still touch outlives the ring: dropping cancels everything and waits for the completions;
//!   what has not ended after a second is leaked, not freed.
//! * A ring takes only the five operations that are used here, and only on the registered files: what goes through a ring is no
//!   system call, so nothing else would keep whoever got into this process from opening files by it.
//! * MSG_TRUNC is never asked for: it makes a result longer than its buffer. The pool refuses such a result anyway.
//!
//! Rejected: zero-copy sends (raw sockets refuse them), SQPOLL (its thread fights with pinned workers), waiting for
//! several completions (100 ms round trips under light traffic), buffers consumed by parts (open kernel bugs).
//!
//! Kernel: multishot read came with 6.7, later than everything else used here. No version is parsed: [`probe`] tries.

mod in_flight;

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::types::{CancelBuilder, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

use self::in_flight::{Flying, InFlight};
use super::provided::BufferRing;
use super::raw::{ADDRESSES_MAX, SendSocket, mend_options};
use super::retry::Retry;
use super::ring;
use super::{BATCH_MAX, Events, Frame, PacketIo, Pool, PoolSize, Ports, Sent, Side, Sizes, Waker};
use crate::error::SetupError;
use crate::sys::net;

/// Entries of the submission queue: more sends than this in one turn are submitted in several calls.
const SUBMISSIONS_MAX: u32 = 1024;

/// Completions that belong to no buffer: ends of multishots, wake-ups.
const COMPLETIONS_EXTRA: usize = 64;

/// How long until another attempt when the submission queue is full and the kernel takes nothing from it.
const PUSH_PAUSE: Duration = Duration::from_millis(1);

/// How long an end waits for what is in flight.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a probe waits for its own packets.
const PROBE_TIME_MAX: Duration = Duration::from_secs(1);

/// Registered files: a number here instead of a descriptor saves the kernel looking it up for each packet.
const TUN_FILE: u32 = 0;
const RECEIVE_FILE: u32 = 1;
const WAKER_FILE: u32 = 2;
const SEND_FILES: u32 = 3;

/// `user_data` of what is not a send; a send's is its place in [`InFlight`].
const INSIDE_TOKEN: u64 = u64::MAX;
const OUTSIDE_TOKEN: u64 = u64::MAX - 1;
const WAKER_TOKEN: u64 = u64::MAX - 2;

/// One worker's I/O by io_uring.
///
/// The order of the fields is the order in which they are dropped, after [`Drop`] has ended all requests: first the
/// ring, then what it used.
pub struct UringIo {
    ring: IoUring,
    inside: Receiver,
    outside: Receiver,
    in_flight: InFlight,
    wake_armed: bool,
    /// Nothing is to be received any more.
    deaf: bool,
    /// Sends that could not be submitted: to be reported by the next `wait`.
    refused: Vec<Sent>,
    /// Addresses (by bit) whose sends have failed since their error queue was last emptied.
    failed_addresses: u32,
    send: Vec<SendSocket>,
    waker: Waker,
    /// Registered with the ring; kept open as long as it.
    _files: [OwnedFd; 2],
}

/// One side's multishot receive and its buffers.
#[derive(Debug)]
struct Receiver {
    side: Side,
    buffers: BufferRing,
    armed: bool,
    retry: Retry,
}

impl UringIo {
    /// Makes the ring for the calling thread, the only one that may use it, and maps the buffers. Nothing is allocated
    /// after this, and nothing received before the first `wait`.
    pub fn new(ports: Ports) -> Result<UringIo, SetupError> {
        let Ports { tun, receive, send, waker, sizes } = ports;
        UringIo::over([tun.into(), receive.into()], send, waker, sizes)
    }

    fn over(files: [OwnedFd; 2], send: Vec<SendSocket>, waker: Waker, sizes: Sizes) -> Result<UringIo, SetupError> {
        if send.len() > ADDRESSES_MAX {
            return Err(SetupError::new(format!("{} gateway addresses: at most {ADDRESSES_MAX}", send.len())));
        }
        let inside = Pool::new(sizes.inside)?;
        let outside = Pool::new(sizes.outside)?;
        let buffers = inside.buffers() + outside.buffers();
        let ring = build(buffers + COMPLETIONS_EXTRA).map_err(|error| explain("io_uring is refused", error))?;
        let inside = Receiver::register(Side::Inside, inside, &ring)?;
        let outside = Receiver::register(Side::Outside, outside, &ring)?;
        let descriptors: Vec<i32> = files
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([waker.as_fd().as_raw_fd()])
            .chain(send.iter().map(|socket| socket.as_fd().as_raw_fd()))
            .collect();
        ring.submitter()
            .register_files(&descriptors)
            .map_err(|error| explain("io_uring does not take the descriptors", error))?;
        restrict(&ring).map_err(|error| explain("io_uring cannot be restricted to what it is for", error))?;
        Ok(UringIo {
            ring,
            inside,
            outside,
            in_flight: InFlight::new(u32::try_from(buffers).unwrap_or(u32::MAX)),
            wake_armed: false,
            deaf: false,
            refused: Vec::with_capacity(2 * BATCH_MAX),
            failed_addresses: 0,
            send,
            waker,
            _files: files,
        })
    }

    /// The buffers of one side.
    pub fn pool(&self, side: Side) -> &Rc<Pool> {
        match side {
            Side::Inside => self.inside.buffers.pool(),
            Side::Outside => self.outside.buffers.pool(),
        }
    }

    /// Returns buffers to the kernel and arms what is not armed. How long until there is more to arm, if there is.
    #[expect(unsafe_code, reason = "the entries are ours")]
    fn arm(&mut self) -> Option<Duration> {
        if !self.wake_armed {
            let readable = libc::POLLIN.cast_unsigned().into();
            let poll = opcode::PollAdd::new(Fixed(WAKER_FILE), readable).multi(true).build().user_data(WAKER_TOKEN);
            // SAFETY: the entry has no pointer.
            self.wake_armed = unsafe { ring::push(&mut self.ring, &poll) };
        }
        let mut later = (!self.wake_armed).then_some(PUSH_PAUSE);
        for receiver in [&mut self.inside, &mut self.outside] {
            let has_buffers = receiver.buffers.refill();
            if receiver.armed || !has_buffers || self.deaf {
                continue;
            }
            let mut pause = receiver.retry.pause();
            if pause.is_none() {
                // SAFETY: the entry has no pointer; the kernel writes to buffers that the pool has lent it.
                receiver.armed = unsafe { ring::push(&mut self.ring, &receiver.request()) };
                pause = (!receiver.armed).then_some(PUSH_PAUSE);
            }
            later = later.into_iter().chain(pause).min();
        }
        later
    }

    /// Takes completions until there are none or a side's batch is full; the rest stays for the next `wait`.
    fn reap(&mut self, events: &mut Events) -> Result<(), SetupError> {
        let inside_full = events.from_inside.len() + BATCH_MAX;
        let outside_full = events.from_outside.len() + BATCH_MAX;
        let mut completions = self.ring.completion();
        while events.from_inside.len() < inside_full && events.from_outside.len() < outside_full {
            let Some(completion) = completions.next() else { break };
            match completion.user_data() {
                INSIDE_TOKEN => self.inside.completed(&completion, &mut events.from_inside)?,
                OUTSIDE_TOKEN => {
                    let before = events.from_outside.len();
                    self.outside.completed(&completion, &mut events.from_outside)?;
                    events.from_outside[before..].iter_mut().for_each(|frame| mend_options(frame));
                }
                WAKER_TOKEN => {
                    self.wake_armed = cqueue::more(completion.flags());
                    woken(&self.waker, completion.result(), events)?;
                }
                place => {
                    let Some(Flying { frame, to, address }) = self.in_flight.remove(place) else {
                        return Err(SetupError::new(format!("io_uring completed a send {place:#x} that was not made")));
                    };
                    let errno = ring::errno_of_send(completion.result(), frame.len());
                    if errno != 0 && to == Side::Outside {
                        self.failed_addresses |= 1 << address;
                    }
                    events.sent.push(Sent { to, frame, errno });
                }
            }
        }
        Ok(())
    }

    fn discard_queued_errors(&mut self) {
        let failed = mem::take(&mut self.failed_addresses);
        if failed != 0 {
            let failed = self.send.iter().enumerate().filter(|(number, _)| failed & 1 << number != 0);
            failed.for_each(|(_, socket)| socket.discard_queued_errors());
        }
    }

    /// Queues a send; one for which there is no room is refused, as by a full device queue.
    #[expect(unsafe_code, reason = "the entry points to the frame in flight")]
    fn queue(&mut self, flying: Flying, remote: Ipv4Addr) {
        let to = flying.to;
        let place = match self.in_flight.insert(flying, remote) {
            Ok(place) => place,
            Err(Flying { frame, .. }) => return self.refused.push(Sent { to, frame, errno: libc::ENOBUFS }),
        };
        let entry = self.in_flight.get(place).map(|(flying, remote)| request(flying, remote).user_data(place.into()));
        let Some(entry) = entry else { return };
        // SAFETY: the bytes are those of a frame that stays in its place, untouched, until its completion is reaped; so
        // does the destination. Neither moves when `self` does: the one is in the pool, the other on the heap.
        let queued = unsafe { ring::push(&mut self.ring, &entry) };
        if !queued && let Some(Flying { frame, .. }) = self.in_flight.remove(place.into()) {
            self.refused.push(Sent { to, frame, errno: libc::ENOBUFS });
        }
    }

    /// Whether the kernel may still touch memory of ours.
    fn is_busy(&self) -> bool {
        self.inside.armed || self.outside.armed || self.wake_armed || self.in_flight.len() > 0
    }
}

impl PacketIo for UringIo {
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        let pause = self.arm();
        let refused = (!self.refused.is_empty()).then_some(Duration::ZERO);
        events.sent.append(&mut self.refused);
        ring::enter(&mut self.ring, timeout.into_iter().chain(pause).chain(refused).min(), "packets")?;
        self.reap(events)?;
        self.discard_queued_errors();
        Ok(())
    }

    fn send_inside(&mut self, frame: Frame) {
        self.queue(Flying { frame, to: Side::Inside, address: 0 }, Ipv4Addr::UNSPECIFIED);
    }

    fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr) {
        if usize::from(address) < self.send.len() {
            self.queue(Flying { frame, to: Side::Outside, address }, remote);
        } else {
            self.refused.push(Sent { to: Side::Outside, frame, errno: libc::EADDRNOTAVAIL });
        }
    }

    fn copy_of(&self, side: Side, packet: &[u8]) -> Option<Frame> {
        self.pool(side).frame_from(packet)
    }

    fn mtu_towards(&self, address: u8, remote: Ipv4Addr) -> Option<u16> {
        self.send.get(usize::from(address))?.mtu_towards(remote).ok()
    }

    fn stop_receiving(&mut self) {
        self.deaf = true;
        for token in [INSIDE_TOKEN, OUTSIDE_TOKEN] {
            // None is found where it is not armed just now: it will not be.
            let _ = self.ring.submit();
            let cancel = CancelBuilder::user_data(token);
            let _ = self.ring.submitter().register_sync_cancel(Some(CLOSE_TIME_MAX.into()), cancel);
        }
    }

    fn in_flight(&self) -> usize {
        let ending = if self.deaf { usize::from(self.inside.armed) + usize::from(self.outside.armed) } else { 0 };
        self.in_flight.len() + self.refused.len() + ending
    }
}

impl Drop for UringIo {
    /// Ends every request before the memory goes that it uses: closing a ring cancels in the background.
    fn drop(&mut self) {
        let until = Instant::now() + CLOSE_TIME_MAX;
        let _ = self.ring.submit();
        let _ = self.ring.submitter().register_sync_cancel(Some(CLOSE_TIME_MAX.into()), CancelBuilder::any());
        let mut events = Events::default();
        while self.is_busy() && Instant::now() < until {
            // A fault now has nobody to be told; what counts is what is still busy.
            let _ = ring::enter(&mut self.ring, Some(CLOSE_TIME_MAX / 10), "packets");
            let _ = self.reap(&mut events);
        }
        if self.is_busy() {
            tracing::warn!("io_uring did not end its requests; their buffers are leaked");
            mem::forget(mem::replace(&mut self.in_flight, InFlight::new(0)));
            mem::forget([Side::Inside, Side::Outside].map(|side| Rc::clone(self.pool(side))));
        }
        // Or the TUN's name stays taken until the kernel gets to closing the ring.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl fmt::Debug for UringIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UringIo { inside, outside, in_flight, .. } = self;
        write!(f, "UringIo({} in flight, {inside:?}, {outside:?})", in_flight.len())
    }
}

impl Receiver {
    fn register(side: Side, pool: Rc<Pool>, ring: &IoUring) -> Result<Receiver, SetupError> {
        let group = if side == Side::Inside { 0 } else { 1 };
        let buffers = BufferRing::new(pool, group)
            .and_then(|buffers| buffers.register(&ring.submitter()).map(|()| buffers))
            .map_err(|error| explain("io_uring does not take the receive buffers", error))?;
        Ok(Receiver { side, buffers, armed: false, retry: Retry::new(side) })
    }

    fn request(&self) -> squeue::Entry {
        let group = self.buffers.group();
        match self.side {
            // Its build() sets the flags to "selects a buffer" and so forgets that the file is a registered one.
            Side::Inside => opcode::ReadMulti::new(Fixed(TUN_FILE), 0, group)
                .build()
                .flags(squeue::Flags::FIXED_FILE)
                .user_data(INSIDE_TOKEN),
            Side::Outside => opcode::RecvMulti::new(Fixed(RECEIVE_FILE), group).build().user_data(OUTSIDE_TOKEN),
        }
    }

    fn completed(&mut self, completion: &cqueue::Entry, into: &mut Vec<Frame>) -> Result<(), SetupError> {
        self.armed = cqueue::more(completion.flags());
        let result = completion.result();
        let len = u32::try_from(result).unwrap_or(0);
        if let Some(number) = cqueue::buffer_select(completion.flags()) {
            let frame = self.buffers.claim(number, len)?;
            if len > 0 {
                into.push(frame);
                self.retry.succeeded();
                return Ok(());
            }
        } else if len > 0 {
            return Err(SetupError::new(format!("io_uring received {len} bytes into no buffer")));
        }
        // Zero is the end of a file, which neither side has.
        self.retry.failed(if result == 0 { libc::EIO } else { -result })
    }
}

fn request(flying: &Flying, remote: *const libc::sockaddr) -> squeue::Entry {
    let bytes = flying.frame.as_ptr();
    // A buffer has at most 65,536 bytes.
    let len = u32::try_from(flying.frame.len()).unwrap_or(0);
    match flying.to {
        Side::Inside => opcode::Write::new(Fixed(TUN_FILE), bytes, len).rw_flags(libc::RWF_NOWAIT).build(),
        Side::Outside => opcode::Send::new(Fixed(SEND_FILES + u32::from(flying.address)), bytes, len)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .dest_addr(remote)
            .dest_addr_len(net::SOCKADDR_BYTES)
            .build(),
    }
}

fn woken(waker: &Waker, result: i32, events: &mut Events) -> Result<(), SetupError> {
    let fault = |error| SetupError::caused("cannot be woken", error);
    if result < 0 && result != -libc::ECANCELED {
        return Err(fault(io::Error::from_raw_os_error(-result)));
    }
    waker.clear().map_err(fault)?;
    events.woken = true;
    Ok(())
}

fn build(completions: usize) -> io::Result<IoUring> {
    // Never smaller than the submission queue, which the kernel refuses. Clamped to its largest: a completion that finds
    // no room is kept by the kernel.
    let completions = u32::try_from(completions).unwrap_or(u32::MAX).max(SUBMISSIONS_MAX);
    // A kernel that has multishot read has all of these.
    IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(completions)
        .build(SUBMISSIONS_MAX)
}

/// What may be registered once the ring runs (linux/io_uring.h): what its end takes.
const REGISTRATIONS: [u8; 2] = [UNREGISTER_FILES, REGISTER_SYNC_CANCEL];
const UNREGISTER_FILES: u8 = 3;
const REGISTER_SYNC_CANCEL: u8 = 24;

const OPERATIONS: [u8; 5] =
    [opcode::PollAdd::CODE, opcode::ReadMulti::CODE, opcode::RecvMulti::CODE, opcode::Write::CODE, opcode::Send::CODE];

/// Lets the ring run, with what this module does through it and with nothing else.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let registered = squeue::Flags::FIXED_FILE.bits();
    let mut restrictions: Vec<_> = REGISTRATIONS.map(Restriction::register_op).into();
    restrictions.extend(OPERATIONS.map(Restriction::sqe_op));
    restrictions.push(Restriction::sqe_flags_required(registered));
    restrictions.push(Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits()));
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

fn explain(what: &str, error: io::Error) -> SetupError {
    ring::explain(what, error, "--io syscalls", "6.7")
}

/// Whether io_uring does here what [`UringIo`] needs: receives a byte on each side, over a pipe and a socket pair.
pub fn probe() -> Result<(), SetupError> {
    let plain = |error| SetupError::caused("cannot try io_uring", error);
    let (pipe, mut into_pipe) = io::pipe().map_err(plain)?;
    let (socket, into_socket) = UnixDatagram::pair().map_err(plain)?;
    let size = PoolSize { buffers: 4, buffer_bytes: 64 };
    let sizes = Sizes { inside: size, outside: size };
    let mut ring = UringIo::over([pipe.into(), socket.into()], Vec::new(), Waker::new()?, sizes)?;
    into_pipe.write_all(b"i").map_err(plain)?;
    into_socket.send(b"o").map_err(plain)?;
    let mut events = Events::default();
    let until = Instant::now() + PROBE_TIME_MAX;
    while events.from_inside.is_empty() || events.from_outside.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SetupError::new("io_uring receives nothing").remedy("--io syscalls"));
        }
        ring.wait(&mut events, Some(left))?;
    }
    Ok(())
}
