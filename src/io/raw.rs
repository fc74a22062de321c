//! The raw sockets: the outside. One to receive for each worker, one to send for each gateway address.
//!
//! Receiving. Every raw ICMP socket of a host gets a copy of every ICMP packet, so what a worker does not want must be
//! refused early: ICMP_FILTER (before the copy is made) refuses all types below 32 but echo replies and, if they are wanted,
//! errors; a classic BPF filter refuses the rest: errors that do not quote an echo request and, with several workers, the
//! replies and the errors of other workers' shards (an error's is that of the quoted ident). A raw socket receives from
//! the moment it exists, so it first gets a filter that refuses everything, is emptied, and then gets the real one:
//! nothing unfiltered is ever read. What the kernel has written into IP options on the way up (its own address, the time)
//! is not in the header checksum that it leaves, so that one is renewed: the kernel has looked at it before.
//!
//! Sending. IPPROTO_RAW (the header comes with the packet), bound to the gateway address, or policy routing would not
//! see the source. It never receives: no packet has its protocol number but by forgery, and it is connected to an
//! address that no packet comes from. IP_RECVERR, or the kernel reports a packet that a full queue dropped as sent.
//!
//! Fragments are put together on their way out where the host tracks connections, and cut again: so the whole request is
//! tracked, and a stateful firewall knows its reply. (IP_NODEFRAG would spare that, and the firewall would drop the reply.)
//!
//! Path MTU. Both kinds of socket use IP_PMTUDISC_INTERFACE. On the receiving one, because the kernel would otherwise
//! take any forged "fragmentation needed" for a ping never sent and set the path MTU of that destination for the whole
//! host. On the sending one, because what the kernel has learned about a path, by whomever, must not decide about a
//! client's packet: a packet up to the interface's MTU leaves as it is, DF included, and a router further on that
//! cannot forward it says so to us. A larger one is refused (EMSGSIZE), with DF or without: the
//! kernel does not fragment a packet that brings its header, and the worker does. The price: an MTU configured on a route (not on the
//! interface) is not looked at.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::BATCH_MAX;
use crate::error::SetupError;
use crate::sys::net;
use crate::wire::ipv4::Ipv4;

/// The default size of each socket's buffer, in bytes.
pub const SOCKET_BUFFER_BYTES: u32 = 4 << 20;

/// The most gateway addresses, and so the most send sockets of a worker.
pub use crate::table::ADDRESSES_MAX;

/// Where send sockets are connected to: an address that is the host's own (127/8) and that nobody uses.
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

/// Any port will do where nothing is sent; this one is for that (RFC 863).
const DISCARD_PORT: u16 = 9;

/// How the header of a datagram without options begins.
const PLAIN_HEADER: u8 = 0x45;

/// ICMP types (RFC 792).
const ICMP_ECHO_REPLY: u32 = 0;
const ICMP_UNREACHABLE: u32 = 3;
const ICMP_ECHO_REQUEST: u32 = 8;
const ICMP_TIME_EXCEEDED: u32 = 11;
const ICMP_PARAMETER_PROBLEM: u32 = 12;

const PROTOCOL_ICMP: u32 = 1;

/// What a receive socket takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Echo replies.
    Replies,
    /// Echo replies, and errors that quote an echo request.
    RepliesAndErrors,
}

impl Wanted {
    /// Echo replies, and errors if they are told to clients.
    pub fn with_errors(icmp_errors: bool) -> Wanted {
        if icmp_errors { Wanted::RepliesAndErrors } else { Wanted::Replies }
    }

    fn types(self) -> &'static [u32] {
        match self {
            Wanted::Replies => &[ICMP_ECHO_REPLY],
            Wanted::RepliesAndErrors => {
                &[ICMP_ECHO_REPLY, ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED, ICMP_PARAMETER_PROBLEM]
            }
        }
    }
}

/// Shards, by the lowest six bits of the gateway ident: bit n stands for shard n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shards(pub u64);

impl Shards {
    /// Every shard.
    pub const ALL: Shards = Shards(u64::MAX);

    /// The shards of worker number `worker` of `workers`: every `workers`th.
    pub fn of_worker(worker: usize, workers: usize) -> Shards {
        Shards((0..64).filter(|shard| shard % workers.max(1) == worker).fold(0, |mask, shard| mask | 1 << shard))
    }
}

/// A worker's receive socket: echo replies and errors of its shards, as whole IP datagrams.
#[derive(Debug)]
pub struct ReceiveSocket(Socket);

impl ReceiveSocket {
    /// Opens it in the calling thread's network namespace.
    pub fn open(shards: Shards, wanted: Wanted, buffer_bytes: u32) -> Result<ReceiveSocket, SetupError> {
        let socket = open_raw(Protocol::ICMPV4)?;
        let refused_types = wanted.types().iter().fold(u32::MAX, |mask, icmp_type| mask & !(1 << icmp_type));
        let prepared = socket
            .attach_filter(&[statement(RET_K, 0)])
            .and_then(|()| net::set_icmp_filter(socket.as_fd(), refused_types))
            .and_then(|()| net::ignore_path_mtu(socket.as_fd()))
            .and_then(|()| net::set_receive_buffer(socket.as_fd(), buffer_bytes))
            .and_then(|()| empty(&socket))
            .and_then(|()| socket.attach_filter(&program(shards, wanted)));
        prepared.map_err(|error| SetupError::caused("cannot prepare the raw socket for echo replies", error))?;
        Ok(ReceiveSocket(socket))
    }

    /// One that another process has opened, with the filter that it has.
    pub fn adopt(fd: OwnedFd) -> Result<ReceiveSocket, SetupError> {
        adopt_raw(fd, Protocol::ICMPV4).map(ReceiveSocket)
    }

    /// Another handle to the same socket.
    pub fn try_clone(&self) -> Result<ReceiveSocket, SetupError> {
        share(&self.0).map(ReceiveSocket)
    }
}

impl AsFd for ReceiveSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<ReceiveSocket> for OwnedFd {
    fn from(socket: ReceiveSocket) -> OwnedFd {
        socket.0.into()
    }
}

/// A send socket: whole IP datagrams from one gateway address.
#[derive(Debug)]
pub struct SendSocket(Socket);

impl SendSocket {
    /// Opens it in the calling thread's network namespace. `address` must be the host's own.
    pub fn open(address: Ipv4Addr, buffer_bytes: u32) -> Result<SendSocket, SetupError> {
        let socket = SendSocket(open_raw(Protocol::from(libc::IPPROTO_RAW))?);
        socket.bind(address)?;
        net::ignore_path_mtu(socket.as_fd())
            .and_then(|()| net::tell_errors(socket.as_fd()))
            .and_then(|()| net::set_send_buffer(socket.as_fd(), buffer_bytes))
            .map_err(|error| SetupError::caused(format!("cannot prepare the raw socket of {address}"), error))?;
        Ok(socket)
    }

    /// One that another process has opened, bound to the address that it is.
    pub fn adopt(fd: OwnedFd) -> Result<SendSocket, SetupError> {
        adopt_raw(fd, Protocol::from(libc::IPPROTO_RAW)).map(SendSocket)
    }

    /// Another handle to the same socket.
    pub fn try_clone(&self) -> Result<SendSocket, SetupError> {
        share(&self.0).map(SendSocket)
    }

    /// The address that it sends from; none while it has none.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.0.local_addr().ok()?.as_socket_ipv4().map(|at| *at.ip())
    }

    /// Sends from another address from now on, by whichever handle. Whoever sends meanwhile sends as from no address in
    /// particular.
    pub fn rebind(&self, address: Ipv4Addr) -> Result<(), SetupError> {
        net::dissolve(self.as_fd())
            .map_err(|error| SetupError::caused("cannot take a raw socket from its address", error))?;
        self.bind(address)
    }

    fn bind(&self, address: Ipv4Addr) -> Result<(), SetupError> {
        let at = |address| SockAddr::from(SocketAddrV4::new(address, 0));
        self.0.bind(&at(address)).map_err(|error| {
            let absent = error.raw_os_error() == Some(libc::EADDRNOTAVAIL);
            let plain = SetupError::caused(format!("cannot send from the gateway address {address}"), error);
            if !absent {
                return plain;
            }
            plain.remedy(format!(
                "the address must be this host's own: give --outside one that `ip address` shows, or add it \
                 (ip address add {address}/32 dev lo)"
            ))
        })?;
        self.0.connect(&at(NOBODY)).map_err(|error| {
            SetupError::caused(format!("cannot connect a raw socket to the unused {NOBODY}"), error)
                .remedy("the loopback device must be up: ip link set lo up")
        })
    }

    /// Sends one datagram, a whole one with its header, to `remote` (which the datagram's own destination equals), without
    /// waiting: a full queue is an error.
    pub fn send(&self, datagram: &[u8], remote: Ipv4Addr) -> io::Result<()> {
        let to = SockAddr::from(SocketAddrV4::new(remote, 0));
        let sent = self.0.send_to_with_flags(datagram, &to, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        if sent.is_err() {
            self.discard_queued_errors();
        }
        sent.map(drop)
    }

    /// What fits into one packet from this socket's address to `remote`, in bytes: the MTU of the route or of its
    /// interface, or what is known of the path, if that is less (getsockopt(2), IP_MTU). Sends nothing.
    pub fn mtu_towards(&self, remote: Ipv4Addr) -> io::Result<u16> {
        let unknown = || io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        let own = self.0.local_addr()?.as_socket_ipv4().ok_or_else(unknown)?;
        // A socket for this question alone: connecting a send socket to a remote would change what it receives.
        let socket = UdpSocket::bind(SocketAddrV4::new(*own.ip(), 0))?;
        socket.connect(SocketAddrV4::new(remote, DISCARD_PORT))?;
        let mtu = net::mtu(socket.as_fd())?;
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// Throws away what IP_RECVERR has queued: each failed send has told its error already.
    pub(super) fn discard_queued_errors(&self) {
        for _ in 0..BATCH_MAX {
            if self.0.recv_with_flags(&mut [], libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT).is_err() {
                break;
            }
        }
    }
}

impl AsFd for SendSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open_raw(protocol: Protocol) -> Result<Socket, SetupError> {
    Socket::new(Domain::IPV4, Type::RAW.nonblocking().cloexec(), Some(protocol)).map_err(|error| {
        let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        let plain = SetupError::caused("cannot open a raw socket", error);
        if refused {
            plain.remedy("run as root, or give the binary CAP_NET_RAW (setcap cap_net_admin,cap_net_raw=ep)")
        } else {
            plain
        }
    })
}

fn share(socket: &Socket) -> Result<Socket, SetupError> {
    socket.try_clone().map_err(|error| SetupError::caused("cannot share a raw socket", error))
}

fn adopt_raw(fd: OwnedFd, protocol: Protocol) -> Result<Socket, SetupError> {
    let socket = Socket::from(fd);
    let kind = |cause| SetupError::caused("a descriptor that was handed over is no socket", cause);
    let found = (socket.domain().map_err(kind)?, socket.r#type().map_err(kind)?, socket.protocol().map_err(kind)?);
    if found == (Domain::IPV4, Type::RAW, Some(protocol)) {
        return Ok(socket);
    }
    Err(SetupError::new(format!("a descriptor that was handed over is another kind of socket: {found:?}")))
}

/// Makes the header of a received datagram one that may be sent on. Without options nothing has changed.
pub(super) fn mend_options(datagram: &mut [u8]) {
    if datagram.first() != Some(&PLAIN_HEADER)
        && let Ok(mut datagram) = Ipv4::check(datagram)
    {
        datagram.renew_header_checksum();
    }
}

/// Reads until nothing is left. Ends because the filter lets nothing in meanwhile.
fn empty(socket: &Socket) -> io::Result<()> {
    loop {
        match socket.recv(&mut [MaybeUninit::uninit(); 1]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

const LDX_MSH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const LD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const LD_IMM: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IMM;
const AND_K: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const LSH_K: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const ADD_X: u32 = libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X;
const SUB_K: u32 = libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K;
const RSH_X: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_X;
const JEQ_K: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JGE_K: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JA: u32 = libc::BPF_JMP | libc::BPF_JA;
const TAX: u32 = libc::BPF_MISC | libc::BPF_TAX;
const RET_K: u32 = libc::BPF_RET | libc::BPF_K;

const WHOLE_PACKET: u32 = u32::MAX;

/// The filter: offset 0 is the IP header. A load past the packet's end refuses it.
fn program(shards: Shards, wanted: Wanted) -> Vec<SockFilter> {
    let type_of_message = [
        statement(LDX_MSH, 0), // X = length of the IP header, options included
        statement(LD_BYTE, 0), // A = ICMP type
    ];
    let is_echo_reply = [jump(JEQ_K, ICMP_ECHO_REPLY, 1, 0), statement(RET_K, 0)];
    let is_reply_or_error = [
        jump(JEQ_K, ICMP_ECHO_REPLY, 17, 0),
        jump(JEQ_K, ICMP_UNREACHABLE, 3, 0),
        jump(JEQ_K, ICMP_TIME_EXCEEDED, 2, 0),
        jump(JEQ_K, ICMP_PARAMETER_PROBLEM, 1, 0),
        statement(RET_K, 0),
        statement(LD_BYTE, 8 + 9), // A = protocol of what is quoted
        jump(JEQ_K, PROTOCOL_ICMP, 1, 0),
        statement(RET_K, 0),
        statement(LD_BYTE, 8), // A = version and header length of what is quoted
        statement(AND_K, 15),
        statement(LSH_K, 2),
        statement(ADD_X, 0),
        statement(TAX, 0),     // X = both headers' length, so that the quoted message is at X + 8
        statement(LD_BYTE, 8), // A = type of what is quoted
        jump(JEQ_K, ICMP_ECHO_REQUEST, 1, 0),
        statement(RET_K, 0),
        statement(LD_HALF, 8 + 4), // A = quoted ident
        statement(JA, 1),
    ];
    let ident_of_reply = statement(LD_HALF, 4);
    let is_of_these_shards = [
        statement(AND_K, 63),
        jump(JGE_K, 32, 3, 0),
        statement(TAX, 0), // shards 0 to 31: X = bit
        statement(LD_IMM, low_half(shards.0)),
        statement(JA, 3),
        statement(SUB_K, 32), // shards 32 to 63: X = bit
        statement(TAX, 0),
        statement(LD_IMM, low_half(shards.0 >> 32)),
        statement(RSH_X, 0),
        statement(AND_K, 1),
        jump(JEQ_K, 1, 1, 0),
        statement(RET_K, 0),
    ];
    let mut program = Vec::from(type_of_message);
    match wanted {
        Wanted::Replies => program.extend(is_echo_reply),
        Wanted::RepliesAndErrors => program.extend(is_reply_or_error),
    }
    program.push(ident_of_reply);
    if shards != Shards::ALL {
        program.extend(is_of_these_shards);
    }
    program.push(statement(RET_K, WHOLE_PACKET));
    program
}

fn low_half(bits: u64) -> u32 {
    let [.., a, b, c, d] = bits.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn statement(code: u32, k: u32) -> SockFilter {
    jump(code, k, 0, 0)
}

/// `yes` and `no` are the numbers of instructions to skip.
fn jump(code: u32, k: u32, yes: u8, no: u8) -> SockFilter {
    // Every code above is of eight bits.
    SockFilter::new(u16::try_from(code).unwrap_or(0), yes, no, k)
}
