//! Ping sockets: their options, many messages with names and control messages by one call, and the system's clock.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::control::{self, Control};
use super::net::{MESSAGES_MAX, set_int};

/// The most bytes of a socket address of IPv4 or IPv6.
pub const NAME_BYTES: usize = mem::size_of::<libc::sockaddr_in6>();

/// Control messages beside one datagram: time stamp, TTL, and an error with its sender need 160 bytes.
pub const CONTROL_BYTES: usize = 192;

/// linux/net_tstamp.h, as libc has them in another type.
const RX_SOFTWARE: u32 = 1 << 3;
const SOFTWARE: u32 = 1 << 4;
const OPT_ID: u32 = 1 << 7;
const OPT_TSONLY: u32 = 1 << 11;
const OPT_CMSG: u32 = 1 << 10;

/// Asks for a software time stamp when the packet that the control message goes with leaves (SOF_TIMESTAMPING_TX_SOFTWARE).
pub const TX_SOFTWARE: u32 = 1 << 1;

/// The control message that says under which number the time stamp of a send is reported (Linux 6.13; asm-generic/socket.h).
pub const SCM_TS_OPT_ID: libc::c_int = 81;

/// IP_RECVERR or IPV6_RECVERR: ICMP errors are queued with their sender.
pub fn queue_errors(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    match v6 {
        true => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
        false => set_int(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
    }
}

/// IP_RECVTTL or IPV6_RECVHOPLIMIT: each datagram comes with its TTL.
pub fn tell_ttl(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    match v6 {
        true => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
        false => set_int(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
    }
}

/// IP_MTU_DISCOVER or IPV6_MTU_DISCOVER: one of the IP_PMTUDISC_ values, which are the same for both.
pub fn set_path_mtu(socket: BorrowedFd<'_>, v6: bool, value: libc::c_int) -> io::Result<()> {
    match v6 {
        true => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value),
        false => set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value),
    }
}

/// SO_TIMESTAMPING: each datagram comes with the time at which the kernel received it; and a send that asks for it by a
/// control message is reported, under the number that the control message gives, when it leaves.
pub fn stamp_times(socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = RX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY | OPT_CMSG;
    set_int(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPING, flags.cast_signed())
}

/// How many packets the socket had no room for (or refused otherwise) since it was opened, modulo 2^32: SO_MEMINFO. It is the
/// number that SO_RXQ_OVFL attaches to the next packet; but after an overflow there may be no next packet.
#[expect(unsafe_code, reason = "getsockopt(2)")]
pub fn dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const DROPS: usize = 8; // SK_MEMINFO_DROPS
    let mut values = [0_u32; DROPS + 1];
    let mut len = libc::socklen_t::try_from(mem::size_of_val(&values)).unwrap_or(0);
    let place = values.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes to `values`, and the length to `len`; both live until after the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, place, &raw mut len) };
    if result == 0 { Ok(values[DROPS]) } else { Err(io::Error::last_os_error()) }
}

/// The number of an interface in the calling thread's network namespace.
#[expect(unsafe_code, reason = "if_nametoindex(3)")]
pub fn interface_index(name: &CStr) -> io::Result<u32> {
    // SAFETY: reads the zero-terminated name, which lives until after the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// The name that the resolver has for an address.
#[expect(unsafe_code, reason = "getnameinfo(3)")]
pub fn name_of(address: SocketAddr) -> io::Result<String> {
    /// NI_MAXHOST of netdb.h.
    const HOST_BYTES: usize = 1025;
    let mut name = AlignedName([0; NAME_BYTES]);
    let name_len = libc::socklen_t::try_from(write_name(address, &mut name.0)).unwrap_or(0);
    let mut host = [0_u8; HOST_BYTES];
    let host_len = libc::socklen_t::try_from(HOST_BYTES).unwrap_or(0);
    // SAFETY: `name_len` bytes of an aligned socket address are read and at most `host_len` bytes of `host` written, which
    // live until after the call; no service is asked for.
    let result = unsafe {
        libc::getnameinfo(
            name.0.as_ptr().cast(),
            name_len,
            host.as_mut_ptr().cast(),
            host_len,
            ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    let found = CStr::from_bytes_until_nul(&host).ok().filter(|_| result == 0);
    found.map(|host| host.to_string_lossy().into_owned()).ok_or(io::ErrorKind::NotFound.into())
}

#[repr(align(8))]
struct AlignedName([u8; NAME_BYTES]);

/// The system's clock, in nanoseconds since 1970: what the kernel's time stamps are of.
pub fn wall_clock_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a socket address as the kernel reads it; how many bytes of `name` it takes.
pub fn write_name(address: SocketAddr, name: &mut [u8; NAME_BYTES]) -> usize {
    match address {
        SocketAddr::V4(address) => {
            name[..2].copy_from_slice(&family(libc::AF_INET));
            name[2..4].copy_from_slice(&address.port().to_be_bytes());
            name[4..8].copy_from_slice(&address.ip().octets());
            name[8..16].fill(0);
            mem::size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            name[..2].copy_from_slice(&family(libc::AF_INET6));
            name[2..4].copy_from_slice(&address.port().to_be_bytes());
            name[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
            name[8..24].copy_from_slice(&address.ip().octets());
            name[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
            NAME_BYTES
        }
    }
}

/// Reads a socket address as the kernel writes it. None if it is of another family, or cut.
pub fn read_name(name: &[u8]) -> Option<SocketAddr> {
    let (found, rest) = name.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    if *found == family(libc::AF_INET) {
        let (octets, _) = rest.split_first_chunk::<4>()?;
        return Some(SocketAddrV4::new(Ipv4Addr::from(*octets), port).into());
    }
    if *found == family(libc::AF_INET6) {
        let (flow, rest) = rest.split_first_chunk::<4>()?;
        let (octets, rest) = rest.split_first_chunk::<16>()?;
        let (scope, _) = rest.split_first_chunk::<4>()?;
        let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*scope));
        return Some(SocketAddrV6::new(Ipv6Addr::from(*octets), port, flow, scope).into());
    }
    None
}

fn family(family: libc::c_int) -> [u8; 2] {
    libc::sa_family_t::try_from(family).unwrap_or(0).to_ne_bytes()
}

/// The data of a control message that sets source and interface of one send: IP_PKTINFO's or IPV6_PKTINFO's.
pub fn packet_info(source: Option<IpAddr>, interface: u32, v6: bool) -> ([u8; 20], usize) {
    let mut data = [0; 20];
    if v6 {
        if let Some(IpAddr::V6(source)) = source {
            data[..16].copy_from_slice(&source.octets());
        }
        data[16..].copy_from_slice(&interface.to_ne_bytes());
        return (data, mem::size_of::<libc::in6_pktinfo>());
    }
    data[..4].copy_from_slice(&interface.to_ne_bytes());
    if let Some(IpAddr::V4(source)) = source {
        data[4..8].copy_from_slice(&source.octets());
    }
    (data, mem::size_of::<libc::in_pktinfo>())
}

/// A `sock_extended_err` as it stands in a control message, and who is to blame for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtendedError {
    /// The error as an errno.
    pub errno: u32,
    /// Where it comes from: one of the SO_EE_ORIGIN_ values.
    pub origin: u8,
    /// ICMP's type and code.
    pub icmp_type: u8,
    /// See `icmp_type`.
    pub code: u8,
    /// The next hop's MTU; of a time stamp, what it is of.
    pub info: u32,
    /// Of a time stamp, the number of the send.
    pub data: u32,
    /// Who sent the ICMP error.
    pub offender: Option<SocketAddr>,
}

impl ExtendedError {
    /// From the data of IP_RECVERR's or IPV6_RECVERR's control message.
    pub fn read(data: &[u8]) -> Option<ExtendedError> {
        let (errno, rest) = data.split_first_chunk::<4>()?;
        let ([origin, icmp_type, code, _], rest) = rest.split_first_chunk::<4>()?;
        let (info, rest) = rest.split_first_chunk::<4>()?;
        let (number, offender) = rest.split_first_chunk::<4>()?;
        Some(ExtendedError {
            errno: u32::from_ne_bytes(*errno),
            origin: *origin,
            icmp_type: *icmp_type,
            code: *code,
            info: u32::from_ne_bytes(*info),
            data: u32::from_ne_bytes(*number),
            // AF_UNSPEC where nobody is.
            offender: read_name(offender),
        })
    }
}

/// Room for control messages, aligned as the kernel's macros expect it.
#[derive(Debug)]
#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

/// The software time stamp that a control message holds, if it is one, in nanoseconds of the system's clock.
pub fn software_stamp(control: &Control<'_>) -> Option<u64> {
    if (control.level, control.kind) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING) {
        return None;
    }
    // Three timespecs, the first of them software's; zero if there is none.
    let (seconds, rest) = control.data.split_first_chunk::<8>()?;
    let (nanos, _) = rest.split_first_chunk::<8>()?;
    let (seconds, nanos) = (i64::from_ne_bytes(*seconds), i64::from_ne_bytes(*nanos));
    let whole = u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?;
    whole.checked_add(u64::try_from(nanos).ok()?).filter(|stamp| *stamp > 0)
}

/// Names, control messages and lengths of a batch: what recvmmsg and sendmmsg take beside the bytes. Made once and used again
/// and again.
pub struct Batch {
    names: [[u8; NAME_BYTES]; MESSAGES_MAX],
    controls: [ControlBuffer; MESSAGES_MAX],
    vectors: [libc::iovec; MESSAGES_MAX],
    messages: [libc::mmsghdr; MESSAGES_MAX],
}

impl Batch {
    /// An empty one.
    pub fn new() -> Box<Batch> {
        Box::new(Batch {
            names: [[0; NAME_BYTES]; MESSAGES_MAX],
            controls: [const { ControlBuffer([0; CONTROL_BYTES]) }; MESSAGES_MAX],
            vectors: [super::net::NO_BYTES; MESSAGES_MAX],
            messages: [super::net::NO_MESSAGE; MESSAGES_MAX],
        })
    }

    /// Receives datagrams, or (`errors`) entries of the error queue, one into each of `buffers`, without waiting; at most
    /// [`MESSAGES_MAX`]. Returns how many; [`Batch::received`] tells about each.
    #[expect(unsafe_code, reason = "recvmmsg(2)")]
    pub fn receive<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        errors: bool,
    ) -> io::Result<usize> {
        let mut count = 0;
        let places = self.names.iter_mut().zip(&mut self.controls).zip(&mut self.vectors).zip(&mut self.messages);
        for (buffer, (((name, control), vector), message)) in buffers.zip(places) {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_hdr.msg_name = name.as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = libc::socklen_t::try_from(NAME_BYTES).unwrap_or(0);
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_BYTES;
            message.msg_hdr.msg_flags = 0;
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT | if errors { libc::MSG_ERRQUEUE } else { 0 };
        // SAFETY: the first `count` messages (no more than a u32 holds) point to a name, a control buffer and a vector each, with
        // their lengths, all of `self` and set just now; the vectors to memory that the iterator lent us for writing for
        // `'a`. No MSG_TRUNC: a length is never more than its buffer's.
        let result =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), self.messages.as_mut_ptr(), count, flags, ptr::null_mut()) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// What message number `number` of those just received is: its length, its name and its control messages.
    pub fn received(&self, number: usize) -> (u32, &[u8], &[u8]) {
        let message = &self.messages[number];
        // The kernel states what it wrote, and never more than there was room for; held to it anyway.
        let name_len = usize::try_from(message.msg_hdr.msg_namelen).map_or(NAME_BYTES, |len| len.min(NAME_BYTES));
        let control_len = message.msg_hdr.msg_controllen.min(CONTROL_BYTES);
        (message.msg_len, &self.names[number][..name_len], &self.controls[number].0[..control_len])
    }
}

/// A datagram to be sent with what goes beside it.
///
/// It comes in a box: while it is being sent the kernel reads it where it is.
#[derive(Debug)]
pub struct Outgoing {
    name: [u8; NAME_BYTES],
    name_len: usize,
    control: ControlBuffer,
    control_len: usize,
    bytes: Vec<u8>,
    vector: libc::iovec,
    header: libc::msghdr,
}

impl Outgoing {
    /// An empty one.
    pub fn new() -> Box<Outgoing> {
        Box::new(Outgoing {
            name: [0; NAME_BYTES],
            name_len: 0,
            control: ControlBuffer([0; CONTROL_BYTES]),
            control_len: 0,
            bytes: Vec::new(),
            vector: super::net::NO_BYTES,
            header: super::net::NO_MESSAGE.msg_hdr,
        })
    }

    /// Begins anew: to `to`, without bytes and control messages.
    pub fn address(&mut self, to: SocketAddr) {
        self.name_len = write_name(to, &mut self.name);
        self.control_len = 0;
        self.bytes.clear();
    }

    /// Adds a control message. There is room for all that a ping can have.
    pub fn attach(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let written = control::write(&mut self.control.0, self.control_len, level, kind, data);
        debug_assert!(written.is_some(), "more control messages than there is room for");
        self.control_len = written.unwrap_or(self.control_len);
    }

    /// Whom it is for, once that has been said.
    pub fn to(&self) -> Option<SocketAddr> {
        read_name(&self.name[..self.name_len])
    }

    /// The bytes to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes to send, to be written. Room, once made, is kept.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What sendmsg takes. It points into this value, which must neither move nor change until the send has ended.
    pub fn header(&mut self) -> &libc::msghdr {
        self.vector = libc::iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: self.bytes.len() };
        self.header.msg_name = self.name.as_mut_ptr().cast();
        self.header.msg_namelen = libc::socklen_t::try_from(self.name_len).unwrap_or(0);
        self.header.msg_iov = &raw mut self.vector;
        self.header.msg_iovlen = 1;
        self.header.msg_control = self.control.0.as_mut_ptr().cast();
        self.header.msg_controllen = self.control_len;
        &self.header
    }
}

/// Sends datagrams in order without waiting, at most [`MESSAGES_MAX`]. Returns how many were sent; the error, if any, is the
/// first datagram's.
#[expect(unsafe_code, reason = "sendmmsg(2)")]
pub fn send_many<'a>(socket: BorrowedFd<'_>, outgoing: impl Iterator<Item = &'a mut Outgoing>) -> io::Result<usize> {
    let mut messages = [super::net::NO_MESSAGE; MESSAGES_MAX];
    let mut count = 0;
    for (outgoing, message) in outgoing.zip(&mut messages) {
        message.msg_hdr = *outgoing.header();
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages are headers that point into values which the iterator lent us for `'a`, with the
    // lengths of what they point to; sending only reads them.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends one datagram without waiting.
pub fn send(socket: BorrowedFd<'_>, outgoing: &mut Outgoing) -> io::Result<()> {
    send_many(socket, std::iter::once(outgoing)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["192.0.2.7:9", "[2001:db8::7]:9", "[fe80::1%7]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut name = [0xEE; NAME_BYTES];
            let len = write_name(address, &mut name);
            assert_eq!(read_name(&name[..len]), Some(address));
            assert!((0..len).filter(|short| *short != 8).all(|short| read_name(&name[..short.min(7)]).is_none()));
        }
        assert_eq!(read_name(&[0; 28]), None);
    }

    #[test]
    fn a_batch_comes_with_names_and_what_was_asked_for() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        tell_ttl(receiver.as_fd(), false).unwrap();
        stamp_times(receiver.as_fd()).unwrap();
        let before = wall_clock_nanos();
        let mut stamps = Vec::new();
        let mut outgoing = [Outgoing::new(), Outgoing::new()];
        for (outgoing, ttl) in outgoing.iter_mut().zip([7_i32, 8]) {
            outgoing.address(receiver.local_addr().unwrap());
            outgoing.attach(libc::IPPROTO_IP, libc::IP_TTL, &ttl.to_ne_bytes());
            outgoing.bytes_mut().extend(b"hello");
        }
        assert_eq!(send_many(sender.as_fd(), outgoing.iter_mut().map(|outgoing| &mut **outgoing)).unwrap(), 2);
        let mut batch = Batch::new();
        let mut buffers = [[0; 16]; 3];
        let slices = buffers.iter_mut().map(<[u8; 16]>::as_mut_slice);
        assert_eq!(batch.receive(receiver.as_fd(), slices, false).unwrap(), 2);
        for (number, ttl) in [7, 8].into_iter().enumerate() {
            let (len, name, controls) = batch.received(number);
            assert_eq!((len, read_name(name)), (5, Some(sender.local_addr().unwrap())));
            assert_eq!(&buffers[number][..5], b"hello");
            let controls: Vec<_> = control::read(controls).collect();
            let found = controls.iter().find(|control| control.kind == libc::IP_TTL).expect("a TTL");
            assert_eq!(found.int(), Some(ttl));
            stamps.extend(controls.iter().find_map(software_stamp));
        }
        // The kernel begins to stamp a moment after the first socket of the machine has asked for it.
        for _ in 0..1000 {
            if !stamps.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            sender.send_to(b"again", receiver.local_addr().unwrap()).unwrap();
            let slices = buffers.iter_mut().map(<[u8; 16]>::as_mut_slice);
            assert_eq!(batch.receive(receiver.as_fd(), slices, false).unwrap(), 1);
            stamps.extend(control::read(batch.received(0).2).find_map(|control| software_stamp(&control)));
        }
        assert!((before..=wall_clock_nanos()).contains(&stamps[0]), "{stamps:?}");
        let slices = buffers.iter_mut().map(<[u8; 16]>::as_mut_slice);
        assert_eq!(batch.receive(receiver.as_fd(), slices, true).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(dropped(receiver.as_fd()).unwrap(), 0);
    }
}
