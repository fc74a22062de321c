//! The engine's I/O by io_uring: one ring, a multishot recvmsg for each socket, sends submitted together.
//!
//! Receiving costs no submission: each socket's recvmsg stays armed and takes a buffer from one ring of provided ones for each
//! datagram, in which the kernel puts the sender's address, the control messages (time stamp, TTL) and the ICMP message, in
//! this order and each at a fixed place but the last. When it ends, for want of buffers or because the socket had an error
//! pending, it is armed again by the next wait; an error is reported as trouble, and the error queue says whose it was.
//!
//! The error queue is read by system calls (`errors`), since an armed receive ends when an ICMP error comes, so nothing of
//! that kind is missed. Departures are there as soon as a send has been submitted.
//!
//! What the kernel may still read or write outlives the ring: a dropped ring is first emptied, and what does not end within a
//! second is leaked, not freed.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, RecvMsgOut};
use io_uring::{IoUring, cqueue, opcode};

use super::{Arrival, BUFFERS, Events, Kind, Outgoing, PathMtu, PingIo, PingSocket, Report, Sent, Sockets};
use crate::error::SetupError;
use crate::io::provided::BufferRing;
use crate::io::ring;
use crate::io::{Frame, Pool, PoolSize, Waker};
use crate::sys::ping::{CONTROL_BYTES, NAME_BYTES, wall_clock_nanos};

/// Entries of the submission queue, and the most sends in flight: more wait for the next turn.
const SUBMISSIONS_MAX: u32 = 256;

/// Completions that one wait takes, at most.
const REAPED_MAX: usize = 512;

/// What io_uring puts in front of a received message: four lengths.
const HEAD_BYTES: usize = 16;

const BUFFER_GROUP: u16 = 0;

/// `user_data`: a receive's is this and the socket's number, a send's its place in flight.
const RECEIVE_TOKEN: u64 = 1 << 32;
const WAKER_TOKEN: u64 = 1 << 33;

/// How long an end waits for what is in flight.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a probe waits for its own packet.
const PROBE_TIME_MAX: Duration = Duration::from_secs(1);

/// See the module. The order of the fields is that in which they are dropped: first the ring, then what it used.
pub struct UringPingIo {
    ring: IoUring,
    buffers: BufferRing,
    receivers: Vec<Receiver>,
    in_flight: InFlight,
    /// Sends that had no room yet, in order.
    queued: VecDeque<Queued>,
    wake_armed: bool,
    /// What a receive looks like; read by the kernel when it is armed.
    layout: Box<libc::msghdr>,
    sockets: Sockets,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Receiver {
    armed: bool,
}

#[derive(Debug)]
struct Queued {
    socket: usize,
    tag: u32,
    began_nanos: u64,
    outgoing: Box<Outgoing>,
}

/// A fixed number of places for sends that the kernel is at.
#[derive(Debug)]
struct InFlight {
    places: Box<[Option<Queued>]>,
    vacant: Vec<u32>,
}

impl UringPingIo {
    /// Makes the ring for the calling thread, the only one that may use it; ends its waits when `waker` is called.
    pub fn new(waker: Waker) -> Result<UringPingIo, SetupError> {
        UringPingIo::over(waker, BUFFERS)
    }

    fn over(waker: Waker, buffers: PoolSize) -> Result<UringPingIo, SetupError> {
        let pool = Pool::new(buffers)?;
        // One for each buffer and each send, and the ends of receives.
        let completions = u32::try_from(pool.buffers()).unwrap_or(u32::MAX).saturating_add(2 * SUBMISSIONS_MAX);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions)
            .build(SUBMISSIONS_MAX)
            .map_err(|error| explain("io_uring is refused", error))?;
        let buffers = BufferRing::new(pool, BUFFER_GROUP)
            .and_then(|buffers| buffers.register(&ring.submitter()).map(|()| buffers))
            .map_err(|error| explain("io_uring does not take the receive buffers", error))?;
        let mut layout = Box::new(crate::sys::net::NO_MESSAGE.msg_hdr);
        layout.msg_namelen = libc::socklen_t::try_from(NAME_BYTES).unwrap_or(0);
        layout.msg_controllen = CONTROL_BYTES;
        Ok(UringPingIo {
            ring,
            buffers,
            receivers: Vec::new(),
            in_flight: InFlight::new(SUBMISSIONS_MAX),
            queued: VecDeque::new(),
            wake_armed: false,
            layout,
            sockets: Sockets::new(),
            waker,
        })
    }

    /// Takes a socket that is open already.
    pub(super) fn add(&mut self, socket: PingSocket) {
        self.sockets.list.push(socket);
        self.receivers.push(Receiver::default());
    }

    /// Returns buffers to the kernel and arms what is not armed. Whether all is.
    #[expect(unsafe_code, reason = "the entries are ours")]
    fn arm(&mut self) -> bool {
        if !self.wake_armed {
            let readable = libc::POLLIN.cast_unsigned().into();
            let waker = Fd(self.waker.as_fd().as_raw_fd());
            let poll = opcode::PollAdd::new(waker, readable).multi(true).build().user_data(WAKER_TOKEN);
            // SAFETY: the entry has no pointer; the waker lives as long as the ring.
            self.wake_armed = unsafe { ring::push(&mut self.ring, &poll) };
        }
        let has_buffers = self.buffers.refill();
        let mut all = self.wake_armed && has_buffers;
        for (number, receiver) in self.receivers.iter_mut().enumerate() {
            if receiver.armed || !has_buffers {
                continue;
            }
            let socket = Fd(self.sockets.list[number].as_fd().as_raw_fd());
            let group = self.buffers.group();
            let entry = opcode::RecvMsgMulti::new(socket, &raw const *self.layout, group).build();
            // SAFETY: the layout is on the heap and does not change, the socket stays open, as long as the ring lives; what is
            // received goes to buffers that the pool has lent the kernel.
            receiver.armed = unsafe { ring::push(&mut self.ring, &entry.user_data(RECEIVE_TOKEN | number as u64)) };
            all &= receiver.armed;
        }
        all
    }

    /// Queues as many sends as there is room for.
    #[expect(unsafe_code, reason = "the entry points to what is in flight")]
    fn submit_queued(&mut self) {
        let began_nanos = if self.queued.is_empty() { 0 } else { wall_clock_nanos() };
        while let Some(mut queued) = self.queued.pop_front() {
            queued.began_nanos = began_nanos;
            let socket = Fd(self.sockets.list[queued.socket].as_fd().as_raw_fd());
            let place = match self.in_flight.insert(queued) {
                Ok(place) => place,
                Err(queued) => return self.queued.push_front(queued),
            };
            let Some(header) = self.in_flight.header(place) else { return };
            let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).cast_unsigned();
            let entry = opcode::SendMsg::new(socket, header).flags(flags).build().user_data(place.into());
            // SAFETY: the header and what it points to are in a box of their own, which stays in its place, untouched, until its
            // completion is reaped.
            let pushed = unsafe { ring::push(&mut self.ring, &entry) };
            if !pushed && let Some(queued) = self.in_flight.remove(place.into()) {
                return self.queued.push_front(queued);
            }
        }
    }

    fn reap(&mut self, events: &mut Events) -> Result<(), SetupError> {
        let mut completions = self.ring.completion();
        for completion in completions.by_ref().take(REAPED_MAX) {
            let token = completion.user_data();
            if token == WAKER_TOKEN {
                self.wake_armed = cqueue::more(completion.flags());
                self.waker.clear().map_err(|error| SetupError::caused("cannot read a wake-up", error))?;
            } else if token & RECEIVE_TOKEN != 0 {
                let number = usize::try_from(token & !RECEIVE_TOKEN).unwrap_or(usize::MAX);
                let Some(receiver) = self.receivers.get_mut(number) else { continue };
                receiver.armed = cqueue::more(completion.flags());
                received(number, &completion, &self.buffers, &self.layout, events)?;
            } else if let Some(Queued { socket, tag, began_nanos, outgoing }) = self.in_flight.remove(token) {
                let errno = ring::errno_of_send(completion.result(), outgoing.bytes().len());
                events.sent.push(Sent { socket, tag, errno, began_nanos, outgoing });
            } else {
                return Err(SetupError::new(format!("io_uring completed a send {token:#x} that was not made")));
            }
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        self.wake_armed || self.in_flight.len() > 0 || self.receivers.iter().any(|receiver| receiver.armed)
    }
}

/// A receive's completion: a datagram, the socket's error, or the end for want of buffers.
fn received(
    number: usize,
    completion: &cqueue::Entry,
    buffers: &BufferRing,
    layout: &libc::msghdr,
    events: &mut Events,
) -> Result<(), SetupError> {
    if let Some(buffer) = cqueue::buffer_select(completion.flags()) {
        let frame = buffers.claim(buffer, u32::try_from(completion.result()).unwrap_or(0))?;
        events.arrivals.extend(arrival(number, frame, layout));
        return Ok(());
    }
    match -completion.result() {
        libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
        libc::EINVAL => {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(explain("the kernel does not know this way of receiving", error));
        }
        // Whose it is the error queue says.
        _ => events.troubled.push(number),
    }
    Ok(())
}

/// A received datagram, laid out as `layout` says. None if it is cut too short to be one.
fn arrival(number: usize, frame: Frame, layout: &libc::msghdr) -> Option<Arrival> {
    let message = RecvMsgOut::parse(&frame, layout).ok()?;
    let begin = HEAD_BYTES + NAME_BYTES + CONTROL_BYTES;
    let range = begin..begin + message.payload_data().len();
    let parts = Arrival::parts(message.name_data(), message.control_data())?;
    Some(Arrival::new(number, parts, frame, range))
}

impl InFlight {
    fn new(places: u32) -> InFlight {
        InFlight { places: (0..places).map(|_| None).collect(), vacant: (0..places).rev().collect() }
    }

    fn insert(&mut self, queued: Queued) -> Result<u32, Queued> {
        let Some(place) = self.vacant.pop() else { return Err(queued) };
        self.places[place as usize] = Some(queued);
        Ok(place)
    }

    /// The header of the send in `place`, as the kernel reads it.
    fn header(&mut self, place: u32) -> Option<*const libc::msghdr> {
        let queued = self.places.get_mut(place as usize)?.as_mut()?;
        Some(std::ptr::from_ref(queued.outgoing.header()))
    }

    fn remove(&mut self, place: u64) -> Option<Queued> {
        let place = u32::try_from(place).ok()?;
        let queued = self.places.get_mut(place as usize)?.take()?;
        self.vacant.push(place);
        Some(queued)
    }

    fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }
}

impl PingIo for UringPingIo {
    fn open(&mut self, kind: Kind, receive_buffer_bytes: u32) -> io::Result<()> {
        self.sockets.open(kind, receive_buffer_bytes)?;
        self.receivers.push(Receiver::default());
        Ok(())
    }

    fn dropped(&self, socket: usize) -> u32 {
        self.sockets.list[socket].dropped()
    }

    fn read_reports(&mut self, socket: usize, reports: &mut Vec<Report>) -> bool {
        self.sockets.read_reports(socket, reports)
    }

    fn wall_clock_nanos(&self) -> u64 {
        wall_clock_nanos()
    }

    fn send(&mut self, socket: usize, tag: u32, outgoing: Box<Outgoing>) {
        self.queued.push_back(Queued { socket, tag, began_nanos: 0, outgoing });
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        let armed = self.arm();
        self.submit_queued();
        // What is not armed or not submitted is tried again at once: completions have to be reaped first.
        let timeout = if armed && self.queued.is_empty() { timeout } else { Some(Duration::ZERO) };
        ring::enter(&mut self.ring, timeout, "replies")?;
        self.reap(events)?;
        // A multishot receive lets others have their turn after some datagrams.
        events.more = !self.ring.completion().is_empty() || self.ring.submission().taskrun();
        Ok(())
    }

    fn pause(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        if !self.arm() {
            return self.wait(events, Some(Duration::ZERO));
        }
        self.submit_queued();
        ring::submit(&mut self.ring, "replies")?;
        self.reap(events)?;
        let is_idle = events.sent.is_empty() && events.troubled.is_empty() && self.queued.is_empty();
        if is_idle { self.waker.sleep(timeout) } else { Ok(()) }
    }
}

impl Drop for UringPingIo {
    /// Ends every request before the memory goes that it uses: closing a ring cancels in the background.
    fn drop(&mut self) {
        let until = Instant::now() + CLOSE_TIME_MAX;
        let _ = self.ring.submit();
        let _ = self.ring.submitter().register_sync_cancel(Some(CLOSE_TIME_MAX.into()), CancelBuilder::any());
        let mut events = Events::default();
        while self.is_busy() && Instant::now() < until {
            // A fault now has nobody to be told; what counts is what is still busy.
            let _ = ring::enter(&mut self.ring, Some(CLOSE_TIME_MAX / 10), "replies");
            let _ = self.reap(&mut events);
        }
        if self.is_busy() {
            tracing::warn!("io_uring did not end the pinger's requests; their buffers are leaked");
            mem::forget(mem::replace(&mut self.in_flight, InFlight::new(0)));
            mem::forget(mem::replace(&mut self.layout, Box::new(crate::sys::net::NO_MESSAGE.msg_hdr)));
            mem::forget(Rc::clone(self.buffers.pool()));
        }
    }
}

impl fmt::Debug for UringPingIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringPingIo({} sockets, {} in flight)", self.sockets.list.len(), self.in_flight.len())
    }
}

fn explain(what: &str, error: io::Error) -> SetupError {
    ring::explain(what, error, "Backend::Syscalls", "6.1")
}

/// Whether io_uring does here what [`UringPingIo`] needs: sends a datagram by a loopback socket and receives it with its sender.
pub fn probe() -> Result<(), SetupError> {
    let plain = |error| SetupError::caused("cannot try io_uring", error);
    let size = PoolSize { buffers: 16, buffer_bytes: HEAD_BYTES + NAME_BYTES + CONTROL_BYTES + 64 };
    let mut io = UringPingIo::over(Waker::new()?, size)?;
    // Multishot receives differ from kernel to kernel; ping sockets may be forbidden here, and do not.
    let (receiver, sender) = pair().map_err(plain)?;
    let to = receiver.local_addr().map_err(plain)?;
    let kind = Kind { v6: false, path_mtu: PathMtu::System };
    io.add(PingSocket { socket: receiver.into(), kind, ident: 0 });
    if sender.send_to(b"ping", to).is_err() {
        // The loopback is down, so there is nothing to try it on; the ring at least can be had.
        return Ok(());
    }
    let until = Instant::now() + PROBE_TIME_MAX;
    let mut events = Events::default();
    while events.arrivals.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SetupError::new("io_uring receives nothing").remedy("Backend::Syscalls"));
        }
        io.wait(&mut events, Some(left))?;
    }
    let arrival = &events.arrivals[0];
    if (Ok(arrival.from), arrival.message()) == (sender.local_addr().map_err(drop), &b"ping"[..]) {
        return Ok(());
    }
    Err(SetupError::new("io_uring receives something else than was sent").remedy("Backend::Syscalls"))
}

fn pair() -> io::Result<(UdpSocket, UdpSocket)> {
    Ok((UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?))
}
