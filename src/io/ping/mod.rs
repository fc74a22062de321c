//! Ping sockets and the seam of the pinger's engine: datagrams with their addresses, options and time stamps, nothing of
//! echoes.
//!
//! A ping socket (`SOCK_DGRAM` with `IPPROTO_ICMP`) is open to the groups in net.ipv4.ping_group_range. The kernel writes its
//! ident into every request, computes the checksums, and hands over the replies with that ident, from whomever, without
//! their IP header; a wrong checksum never gets here.
//!
//! **Errors.** With IP_RECVERR the kernel queues each ICMP error about one of our requests, with its sender, and besides
//! *fails the next call on the socket with it, whatever that was about*. So a send or a receive that fails may be innocent:
//! the queue is read, which clears the pending error too, and a send is tried again. Whoever only waits for the socket to
//! become writable or readable spins; here, a socket that reports anything is read until both its queues are empty.
//!
//! **Time.** Each datagram carries the kernel's time stamp of its arrival. A send may ask for one of its departure, which
//! comes by the error queue under a number of ours; only since Linux 6.13, where the number can be given with the send. Before, the
//! kernel counts by itself, and one send that fails in the wrong place shifts the numbers of all that follow.
//!
//! Two implementations of [`PingIo`] for real: `uring` and `syscalls`, with the same meaning. A third, `memory`, is for tests and
//! for the fuzzer.

mod errors;
pub mod memory;
mod syscalls;
mod uring;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub use self::errors::{Quote, Report, Reports};
pub use self::syscalls::SyscallsPingIo;
pub use self::uring::{UringPingIo, probe};
use super::buffers::{AHEAD_BYTES_MAX, BUFFER_BYTES_MAX};
use super::{Backend, Engine, Frame, PoolSize};
use crate::error::SetupError;
use crate::sys::control::{self, Control};
pub use crate::sys::ping::Outgoing;
use crate::sys::{net, ping};

/// Buffers for arrivals: what is received in one turn, at most.
const BUFFERS: PoolSize = PoolSize { buffers: 256, buffer_bytes: BUFFER_BYTES_MAX + AHEAD_BYTES_MAX };

/// What a socket does about the path's MTU (IP_MTU_DISCOVER).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PathMtu {
    /// What the system does by default.
    #[default]
    System,
    /// DF where the packet fits the path's MTU as far as it is known; fragments where not.
    Want,
    /// DF always: what is larger than the known MTU of the path is refused here, with an error that says what fits.
    Forbid,
    /// Never DF.
    Allow,
    /// DF always, and nothing is refused that fits the interface: routers are asked anew.
    Probe,
}

impl PathMtu {
    fn option(self) -> Option<libc::c_int> {
        match self {
            PathMtu::System => None,
            PathMtu::Want => Some(libc::IP_PMTUDISC_WANT),
            PathMtu::Forbid => Some(libc::IP_PMTUDISC_DO),
            PathMtu::Allow => Some(libc::IP_PMTUDISC_DONT),
            PathMtu::Probe => Some(libc::IP_PMTUDISC_PROBE),
        }
    }
}

/// What kind of socket a request has to leave by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Kind {
    /// IPv6, or IPv4.
    pub v6: bool,
    /// Cannot be told with a single packet, unlike all else.
    pub path_mtu: PathMtu,
}

/// A ping socket, bound to an ident of the kernel's choice.
#[derive(Debug)]
pub struct PingSocket {
    socket: Socket,
    kind: Kind,
    ident: u16,
}

impl PingSocket {
    /// Opens it in the calling thread's network namespace. EACCES: net.ipv4.ping_group_range leaves this user's groups out.
    pub fn open(kind: Kind, receive_buffer_bytes: u32) -> io::Result<PingSocket> {
        let Kind { v6, path_mtu } = kind;
        let (domain, protocol) = match v6 {
            true => (Domain::IPV6, Protocol::ICMPV6),
            false => (Domain::IPV4, Protocol::ICMPV4),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))?;
        ping::queue_errors(socket.as_fd(), v6)?;
        ping::tell_ttl(socket.as_fd(), v6)?;
        ping::stamp_times(socket.as_fd())?;
        if let Some(value) = path_mtu.option() {
            ping::set_path_mtu(socket.as_fd(), v6, value)?;
        }
        net::set_receive_buffer(socket.as_fd(), receive_buffer_bytes)?;
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        socket.bind(&SockAddr::from(SocketAddr::new(any, 0)))?;
        let ident = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok(PingSocket { socket, kind, ident })
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The ident of all its requests, which no other ping socket in this network namespace has.
    pub fn ident(&self) -> u16 {
        self.ident
    }

    /// How many packets it had no room for so far, modulo 2^32.
    pub fn dropped(&self) -> u32 {
        // Known on every kernel that io_uring and time stamps are known on; without, loss is loss.
        ping::dropped(self.as_fd()).unwrap_or(0)
    }
}

impl AsFd for PingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether this kernel reports when a request has left, under a number of ours. Asked by a send that is refused (a UDP socket
/// without leave to broadcast), after what goes with it has been looked at.
pub fn knows_transmit_times() -> bool {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return false };
    let mut outgoing = Outgoing::new();
    outgoing.address(SocketAddr::new(Ipv4Addr::BROADCAST.into(), 9));
    ask_transmit_time(&mut outgoing, 0);
    let sent = ping::stamp_times(socket.as_fd()).and_then(|()| ping::send(socket.as_fd(), &mut outgoing));
    // A kernel that does not know the message says EINVAL; what knows it goes on to the broadcast (EACCES) or the route.
    sent.is_err_and(|error| !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOPROTOOPT)))
}

/// Has the departure of a request reported, as [`Report::Departed`] with this number.
pub fn ask_transmit_time(outgoing: &mut Outgoing, number: u32) {
    outgoing.attach(libc::SOL_SOCKET, libc::SO_TIMESTAMPING, &ping::TX_SOFTWARE.to_ne_bytes());
    outgoing.attach(libc::SOL_SOCKET, ping::SCM_TS_OPT_ID, &number.to_ne_bytes());
}

/// Sets the TTL (hop limit) of one request.
pub fn set_ttl(outgoing: &mut Outgoing, v6: bool, ttl: u8) {
    attach_number(outgoing, v6, libc::IP_TTL, libc::IPV6_HOPLIMIT, ttl);
}

/// Sets the type of service (traffic class) of one request.
pub fn set_tos(outgoing: &mut Outgoing, v6: bool, tos: u8) {
    attach_number(outgoing, v6, libc::IP_TOS, libc::IPV6_TCLASS, tos);
}

fn attach_number(outgoing: &mut Outgoing, v6: bool, name_v4: libc::c_int, name_v6: libc::c_int, number: u8) {
    let (level, name) = if v6 { (libc::IPPROTO_IPV6, name_v6) } else { (libc::IPPROTO_IP, name_v4) };
    outgoing.attach(level, name, &libc::c_int::from(number).to_ne_bytes());
}

/// Sets the source address and the interface of one request.
pub fn set_source(outgoing: &mut Outgoing, v6: bool, source: Option<IpAddr>, interface: Option<u32>) {
    let (data, len) = ping::packet_info(source, interface.unwrap_or(0), v6);
    match v6 {
        true => outgoing.attach(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data[..len]),
        false => outgoing.attach(libc::IPPROTO_IP, libc::IP_PKTINFO, &data[..len]),
    }
}

/// A datagram that arrived: an ICMP message from its first byte.
#[derive(Debug)]
pub struct Arrival {
    /// The number of the socket.
    pub socket: usize,
    /// Whom it is from.
    pub from: SocketAddr,
    /// When the kernel received it, in nanoseconds of the system's clock.
    pub stamp: Option<u64>,
    /// Its TTL (hop limit).
    pub ttl: Option<u8>,
    frame: Frame,
    /// Where in the frame it is.
    range: Range<usize>,
}

impl Arrival {
    /// The ICMP message.
    pub fn message(&self) -> &[u8] {
        self.frame.get(self.range.clone()).unwrap_or(&[])
    }

    /// Its sender, its time stamp and its TTL, by what came beside it.
    fn parts(name: &[u8], controls: &[u8]) -> Option<Parts> {
        let from = ping::read_name(name)?;
        let (mut stamp, mut ttl) = (None, None);
        for control in control::read(controls) {
            stamp = stamp.or_else(|| ping::software_stamp(&control));
            ttl = ttl.or_else(|| ttl_of(&control));
        }
        Some(Parts { from, stamp, ttl })
    }

    fn new(socket: usize, parts: Parts, frame: Frame, range: Range<usize>) -> Arrival {
        let Parts { from, stamp, ttl } = parts;
        Arrival { socket, from, stamp, ttl, frame, range }
    }
}

struct Parts {
    from: SocketAddr,
    stamp: Option<u64>,
    ttl: Option<u8>,
}

fn ttl_of(control: &Control<'_>) -> Option<u8> {
    match (control.level, control.kind) {
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
            u8::try_from(control.int()?).ok()
        }
        _ => None,
    }
}

/// A request that left, or could not.
#[derive(Debug)]
pub struct Sent {
    /// The number of the socket.
    pub socket: usize,
    /// What its owner calls it.
    pub tag: u32,
    /// The errno of a send that failed (positive); 0 for one that succeeded.
    pub errno: i32,
    /// The system's clock in nanoseconds, read last before the call that sent it (with those beside it).
    pub began_nanos: u64,
    /// For the next one.
    pub outgoing: Box<Outgoing>,
}

/// What one wait brought.
#[derive(Debug, Default)]
pub struct Events {
    /// Datagrams.
    pub arrivals: Vec<Arrival>,
    /// Sends that have come to an end.
    pub sent: Vec<Sent>,
    /// Sockets that had something to report: their error queue is to be read. A number may stand here several times.
    pub troubled: Vec<usize>,
    /// There was more to receive than one wait brings: the next one finds it without waiting.
    pub more: bool,
}

/// The engine's way to its sockets. Not `Send`: made on the thread that uses it.
pub trait PingIo {
    /// Opens a further socket ([`PingSocket::open`]); its number is how many there were. An error leaves things as they were.
    fn open(&mut self, kind: Kind, receive_buffer_bytes: u32) -> io::Result<()>;

    /// How many packets a socket had no room for so far, modulo 2^32.
    fn dropped(&self, socket: usize) -> u32;

    /// Appends up to a batch of a socket's error queue to `reports`; whether there may be more.
    fn read_reports(&mut self, socket: usize, reports: &mut Vec<Report>) -> bool;

    /// The clock that stamps are of, in nanoseconds.
    fn wall_clock_nanos(&self) -> u64;

    /// Queues a send.
    fn send(&mut self, socket: usize, tag: u32, outgoing: Box<Outgoing>);

    /// Sends what is queued, waits until something has happened or `timeout` has passed (`None`: no limit), and appends what
    /// happened to `events`. Bounded in what it brings at once. Returns early when woken. An error is a fault that no trying
    /// again mends.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError>;

    /// Sends what is queued, and sleeps until woken or until `timeout` has passed, whatever arrives meanwhile: the next
    /// `wait` finds it. Returns without sleeping when there is something to tell of what was sent.
    fn pause(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError>;
}

/// The sockets of an engine, by number, and the reader of their error queues.
#[derive(Debug)]
struct Sockets {
    list: Vec<PingSocket>,
    reports: Reports,
}

impl Sockets {
    fn new() -> Sockets {
        Sockets { list: Vec::new(), reports: Reports::new() }
    }

    fn open(&mut self, kind: Kind, receive_buffer_bytes: u32) -> io::Result<()> {
        self.list.push(PingSocket::open(kind, receive_buffer_bytes)?);
        Ok(())
    }

    fn read_reports(&mut self, socket: usize, reports: &mut Vec<Report>) -> bool {
        self.reports.read(&self.list[socket], reports)
    }
}

/// Settles which implementation a pinger uses, by trying io_uring here and now.
pub fn choose(backend: Backend) -> Result<Engine, SetupError> {
    match backend {
        Backend::Syscalls => Ok(Engine::Syscalls),
        Backend::Uring => probe().map(|()| Engine::Uring),
        Backend::Auto => Ok(probe().map_or_else(
            |refusal| {
                tracing::debug!(%refusal, "io_uring is not to be had; the pinger uses system calls");
                Engine::Syscalls
            },
            |()| Engine::Uring,
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::io::Waker;
    use crate::sys::ping::wall_clock_nanos;

    /// What has been queued long ago is counted from when it is sent. Over UDP, which needs no leave.
    fn a_sends_time_is_that_of_its_call<I: PingIo>(mut io: I, add: fn(&mut I, PingSocket)) {
        let loopback = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (sender, receiver) = (loopback(), loopback());
        sender.set_nonblocking(true).unwrap();
        let kind = Kind { v6: false, path_mtu: PathMtu::System };
        add(&mut io, PingSocket { socket: sender.into(), kind, ident: 0 });
        let mut outgoing = Outgoing::new();
        outgoing.address(receiver.local_addr().unwrap());
        outgoing.bytes_mut().extend_from_slice(b"ping");
        io.send(0, 7, outgoing);
        thread::sleep(Duration::from_millis(2));
        let (before, mut events) = (wall_clock_nanos(), Events::default());
        while events.sent.is_empty() {
            io.wait(&mut events, Some(Duration::from_secs(1))).unwrap();
        }
        let Sent { tag, errno, began_nanos, .. } = events.sent[0];
        assert_eq!((tag, errno), (7, 0));
        assert!((before..=wall_clock_nanos()).contains(&began_nanos), "{began_nanos} is not after {before}");
    }

    #[test]
    fn a_sends_time_is_that_of_its_call_by_io_uring() {
        a_sends_time_is_that_of_its_call(UringPingIo::new(Waker::new().unwrap()).unwrap(), UringPingIo::add);
    }

    #[test]
    fn a_sends_time_is_that_of_its_call_by_system_calls() {
        a_sends_time_is_that_of_its_call(SyscallsPingIo::new(Waker::new().unwrap()).unwrap(), |io, socket| {
            io.sockets.list.push(socket);
        });
    }
}
