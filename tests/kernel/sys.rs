//! The system calls that no crate at hand wraps.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Moves the calling thread, and what it spawns from now on, to a new network namespace.
#[expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers. CLONE_NEWNET changes which network later calls of this thread see; descriptors stay valid.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(result)
}

/// Sets a socket option that is four bytes long.
#[expect(unsafe_code, reason = "setsockopt(2) for options that socket2 does not know")]
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<i32>()).expect("4");
    // SAFETY: the pointer is to `value`, which outlives the call, and `length` is its size; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    check(result)
}

/// Whether the file can be read from within the timeout.
#[expect(unsafe_code, reason = "poll(2) has no safe wrapper")]
pub(crate) fn wait_readable(file: &impl AsRawFd, timeout: Duration) -> io::Result<bool> {
    let timeout_ms = i32::try_from(timeout.as_millis()).expect("a timeout of days");
    let mut wanted = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one pollfd, the count says one, and it outlives the call.
    let result = unsafe { libc::poll(&raw mut wanted, 1, timeout_ms) };
    check(result).map(|()| result == 1)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
