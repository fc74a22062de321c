//! Descriptors that travel from one process to another over a Unix socket (unix(7), SCM_RIGHTS), and who is at its other
//! end.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::control;
use super::net::NO_MESSAGE;

/// The most descriptors that one message carries: the kernel's limit (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 253;

const INT: usize = mem::size_of::<RawFd>();

/// A header and the numbers of [`DESCRIPTORS_MAX`] descriptors, in whole words.
const ROOM_WORDS: usize = (16 + DESCRIPTORS_MAX * INT).div_ceil(mem::size_of::<usize>());
type Room = [usize; ROOM_WORDS];
const ROOM: Room = [0; ROOM_WORDS];

/// Sends `bytes`, which must not be none, and with them up to [`DESCRIPTORS_MAX`] descriptors, which the receiver gets copies
/// of. How many bytes were sent; the descriptors go with the first.
#[expect(unsafe_code, reason = "sendmsg(2)")]
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let numbers: Vec<u8> = descriptors.iter().flat_map(|descriptor| descriptor.as_raw_fd().to_ne_bytes()).collect();
    let mut room = vec![0; mem::size_of::<Room>()];
    let used = match descriptors {
        [] => 0,
        _ => control::write(&mut room, 0, libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers)
            .ok_or(io::ErrorKind::InvalidInput)?,
    };
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = NO_MESSAGE.msg_hdr;
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    if used > 0 {
        (message.msg_control, message.msg_controllen) = (room.as_mut_ptr().cast(), used);
    }
    // SAFETY: the message points to one vector of `bytes`, which sending only reads, and to `used` bytes of control messages.
    // All of it lives until after the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes, and the descriptors that came with them, which are closed on exec. No bytes: the other end has hung up.
#[expect(unsafe_code, reason = "recvmsg(2)")]
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = ROOM;
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = NO_MESSAGE.msg_hdr;
    (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
    (message.msg_control, message.msg_controllen) = (room.as_mut_ptr().cast(), mem::size_of_val(&room));
    // SAFETY: the message points to one vector of memory that is borrowed for writing, and to `room`, with their true lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let room: Vec<u8> = room.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let used = room.get(..message.msg_controllen).unwrap_or(&room);
    let rights =
        control::read(used).filter(|control| control.level == libc::SOL_SOCKET && control.kind == libc::SCM_RIGHTS);
    let numbers = rights.flat_map(|control| control.data.as_chunks::<INT>().0.iter());
    // SAFETY: the kernel has just put these descriptors into our table, and told nobody else of them.
    let descriptors = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*number)) }).collect();
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("not all descriptors were received: the limit of open files is too low"));
    }
    Ok((received, descriptors))
}

/// The first descriptor that a supervisor hands over (sd_listen_fds(3)).
const FIRST_INHERITED: RawFd = 3;

/// The descriptors that whoever started this process has left open for it, from 3 on; closed on exec from now on. To be called
/// once, before this process has opened anything: a number that nobody has left open would be somebody else's later. An
/// error: one of them is not open.
#[expect(unsafe_code, reason = "numbers become descriptors")]
pub fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    let numbers = || (FIRST_INHERITED..).take(count);
    for number in numbers() {
        // SAFETY: takes integers; a number that is none is refused (EBADF).
        let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all are open, and by the caller's promise nobody in this process has opened them.
    Ok(numbers().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// The user that the process at the other end of a connected Unix socket had when it connected or listened.
#[expect(unsafe_code, reason = "getsockopt(2)")]
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(mem::size_of_val(&peer)).unwrap_or(0);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `len` bytes to `peer`, which is so long, and the length to `len`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, ptr::from_mut(&mut peer).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(peer.uid) }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_bytes_and_in_their_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let many = vec![writer.as_fd(); DESCRIPTORS_MAX];
        assert_eq!(send(here.as_fd(), b"some", &many).unwrap(), 4);
        assert_eq!(send(here.as_fd(), b"none", &[]).unwrap(), 4);
        let mut bytes = [0; 4];
        let (length, descriptors) = receive(there.as_fd(), &mut bytes).unwrap();
        assert_eq!((length, &bytes, descriptors.len()), (4, b"some", DESCRIPTORS_MAX));
        drop(writer);
        crate::sys::event::write(descriptors[7].as_fd(), b"x").unwrap();
        drop(descriptors);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let (length, descriptors) = receive(there.as_fd(), &mut bytes).unwrap();
        assert_eq!((length, &bytes, descriptors.len()), (4, b"none", 0));
        drop(here);
        assert_eq!(receive(there.as_fd(), &mut bytes).unwrap().0, 0);
        let one_too_many = vec![there.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(there.as_fd(), b"x", &one_too_many).is_err());
    }

    #[test]
    fn the_user_at_the_other_end_is_told() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(peer_user(here.as_fd()).unwrap(), crate::sys::namespace::effective_ids().0);
    }
}
