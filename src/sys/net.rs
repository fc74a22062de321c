//! Sockets: options that socket2 does not have, and many messages by one call.

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// The most messages that one call receives or sends.
pub const MESSAGES_MAX: usize = 64;

/// The number of the socket option that names the ICMP types a raw socket does not want (linux/icmp.h).
const ICMP_FILTER: libc::c_int = 1;

/// Sets a socket option whose value is an int.
#[expect(unsafe_code, reason = "setsockopt(2)")]
pub(super) fn set_int(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(mem::size_of_val(&value)).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of `value`, which lives until after the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets only the ICMP types whose bits are clear in `rejected` into a raw ICMP socket. Types from 32 on pass always.
pub fn set_icmp_filter(socket: BorrowedFd<'_>, rejected: u32) -> io::Result<()> {
    set_int(socket, libc::SOL_RAW, ICMP_FILTER, rejected.cast_signed())
}

/// IP_MTU_DISCOVER = IP_PMTUDISC_INTERFACE: the interface's MTU counts; what "fragmentation needed" messages claim
/// about the path is neither believed nor stored.
pub fn ignore_path_mtu(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_INTERFACE)
}

/// IP_RECVERR: errors are told, among them a full queueing discipline (ENOBUFS), and some are queued besides.
pub fn tell_errors(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
}

/// Dissolves what connect(2) and bind(2) did, so that the socket can be bound again.
#[expect(unsafe_code, reason = "connect(2) to no family")]
pub fn dissolve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nobody =
        libc::sockaddr { sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap_or(0), sa_data: [0; 14] };
    let len = libc::socklen_t::try_from(mem::size_of_val(&nobody)).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of `nobody`, which lives until after the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// IP_MTU: what fits into one packet to where the socket is connected, in bytes.
#[expect(unsafe_code, reason = "getsockopt(2)")]
pub fn mtu(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut value: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(mem::size_of_val(&value)).unwrap_or(0);
    let place = ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most `len` bytes to `value`, and the length to `len`; both live until after the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU, place, &raw mut len) };
    if result == 0 { Ok(u32::try_from(value).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// SO_MEMINFO's last word: datagrams that the kernel threw away because the socket's receive buffer was full.
#[expect(unsafe_code, reason = "getsockopt(2)")]
pub fn receive_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SK_MEMINFO_VARS and SK_MEMINFO_DROPS of linux/sock_diag.h.
    const WORDS: usize = 9;
    const DROPS: usize = 8;
    let mut words = [0_u32; WORDS];
    let mut len = libc::socklen_t::try_from(mem::size_of_val(&words)).unwrap_or(0);
    let place = words.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `len` bytes to `words`, and the length to `len`; both live until after the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, place, &raw mut len) };
    if result == 0 { Ok(words[DROPS]) } else { Err(io::Error::last_os_error()) }
}

/// IP_HDRINCL: what is sent begins with the IPv4 header, whose source address may then be any.
pub fn include_header(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_HDRINCL, 1)
}

/// Makes the receive buffer `bytes` large, past the system's limit (net.core.rmem_max) where CAP_NET_ADMIN allows.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let bytes = bytes.min(i32::MAX.cast_unsigned()).cast_signed();
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
}

/// Makes the send buffer `bytes` large, past the system's limit (net.core.wmem_max) where CAP_NET_ADMIN allows.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let bytes = bytes.min(i32::MAX.cast_unsigned()).cast_signed();
    set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// An IPv4 socket address with port 0, as raw sockets take it.
pub fn sockaddr(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sin_port: 0,
        // The kernel wants the bytes in the order they have on the wire.
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    }
}

/// The size of [`sockaddr`]'s result.
pub const SOCKADDR_BYTES: libc::socklen_t = 16;
const _: () = assert!(mem::size_of::<libc::sockaddr_in>() == SOCKADDR_BYTES as usize);

pub(super) const NO_BYTES: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
pub(crate) const NO_MESSAGE: libc::mmsghdr = libc::mmsghdr {
    msg_hdr: libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    },
    msg_len: 0,
};

/// Receives datagrams into `buffers`, one into each, without waiting; at most [`MESSAGES_MAX`]. Returns how many, and
/// sets the first of `lens` to their lengths (a datagram longer than its buffer is cut to it).
#[expect(unsafe_code, reason = "recvmmsg(2)")]
pub fn receive_many<'a>(
    socket: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    lens: &mut [u32; MESSAGES_MAX],
) -> io::Result<usize> {
    let mut vectors = [NO_BYTES; MESSAGES_MAX];
    let mut messages = [NO_MESSAGE; MESSAGES_MAX];
    let mut count = 0;
    for ((buffer, vector), message) in buffers.zip(&mut vectors).zip(&mut messages) {
        *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` messages (no more than a u32 holds) point to one vector each, and these to memory that
    // the iterator lent us for writing for `'a`; names and controls are null. No MSG_TRUNC: a length is never more
    // than its buffer's.
    let result = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, ptr::null_mut())
    };
    let received = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    for (len, message) in lens.iter_mut().zip(&messages[..received]) {
        *len = message.msg_len;
    }
    Ok(received)
}

/// Sends datagrams in order without waiting, at most [`MESSAGES_MAX`]. Returns how many were sent; the error, if any, is
/// the first datagram's: one that fails later only ends the count, and says why when it comes first.
#[expect(unsafe_code, reason = "sendmmsg(2)")]
pub fn send_many<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = (&'a [u8], Ipv4Addr)>,
) -> io::Result<usize> {
    let mut names = [sockaddr(Ipv4Addr::UNSPECIFIED); MESSAGES_MAX];
    let mut vectors = [NO_BYTES; MESSAGES_MAX];
    let mut messages = [NO_MESSAGE; MESSAGES_MAX];
    let mut count = 0;
    let slots = names.iter_mut().zip(&mut vectors).zip(&mut messages);
    for ((bytes, to), ((name, vector), message)) in datagrams.zip(slots) {
        *name = sockaddr(to);
        *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        message.msg_hdr.msg_name = ptr::from_mut(name).cast();
        message.msg_hdr.msg_namelen = SOCKADDR_BYTES;
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages point to one name and one vector each, and the vectors to bytes that the
    // iterator lent us for `'a`, which sending only reads; controls are null.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn many_are_sent_and_received_by_one_call() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for text in ["one", "three", "seventeen"] {
            sender.send_to(text.as_bytes(), receiver.local_addr().unwrap()).unwrap();
        }
        let mut buffers = [[0; 5]; MESSAGES_MAX];
        let mut lens = [0; MESSAGES_MAX];
        let slices = buffers.iter_mut().map(<[u8; 5]>::as_mut_slice);
        assert_eq!(receive_many(receiver.as_fd(), slices, &mut lens).unwrap(), 3);
        assert_eq!((&lens[..3], &buffers[..3]), (&[3, 5, 5][..], &[*b"one\0\0", *b"three", *b"seven"][..]));
        let slices = buffers.iter_mut().map(<[u8; 5]>::as_mut_slice);
        assert_eq!(receive_many(receiver.as_fd(), slices, &mut lens).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_a_full_receive_buffer_loses_is_told() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(receive_drops(receiver.as_fd()).unwrap(), 0);
        set_receive_buffer(receiver.as_fd(), 1).unwrap(); // the kernel's least
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        assert!(receive_drops(receiver.as_fd()).unwrap() > 0);
    }

    #[test]
    fn the_first_datagram_that_fails_ends_the_count() {
        // Port 0 is no destination for UDP (EINVAL), so every datagram fails.
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagrams = [(&b"x"[..], Ipv4Addr::LOCALHOST); 2];
        let error = send_many(sender.as_fd(), datagrams.into_iter()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(send_many(sender.as_fd(), [].into_iter()).unwrap(), 0);
    }
}
