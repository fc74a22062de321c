//! Waiting for several descriptors at once: ppoll(2), whose timeout is as fine as the clock's.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// One descriptor to poll.
#[derive(Debug)]
#[repr(transparent)]
pub struct Watch(libc::pollfd);

impl Watch {
    /// Watches for `fd` to become readable. `None` watches nothing.
    pub fn readable(fd: Option<BorrowedFd<'_>>) -> Watch {
        Watch(libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 })
    }

    /// Watches for `fd` to become readable, writable, or both. Errors and a hang-up are always told.
    pub fn new(fd: BorrowedFd<'_>, readable: bool, writable: bool) -> Watch {
        let events = if readable { libc::POLLIN } else { 0 } | if writable { libc::POLLOUT } else { 0 };
        Watch(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 })
    }

    /// Whether an error is to be told, by a read or in the error queue.
    pub fn has_failed(&self) -> bool {
        self.0.revents & libc::POLLERR != 0
    }

    /// Whether a read would not block: there is something, or an error to be told.
    pub fn is_ready(&self) -> bool {
        self.0.revents != 0
    }
}

/// Waits until one of `watches` is ready or `timeout` has passed (`None`: no limit).
#[expect(unsafe_code, reason = "ppoll(2)")]
pub fn poll(watches: &mut [Watch], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // A slice is never so long that this cuts it short: a process has fewer descriptors.
    let count = libc::nfds_t::try_from(watches.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: `watches` are `count` pollfds (the type is transparent) that the call may write to; `timeout` is null or a
    // timespec that lives until after the call; a null signal mask is allowed. A closed or reused descriptor is no
    // harm to memory: it is reported as such, or polled.
    let result = unsafe { libc::ppoll(watches.as_mut_ptr().cast(), count, timeout, std::ptr::null()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until one of `descriptors` can be read (or has hung up, or failed: a read says which) or `timeout` has passed
/// (`None`: no limit), and says which can. A signal ends the wait early, with none.
pub fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut watches = descriptors.map(|descriptor| Watch::readable(Some(descriptor)));
    match poll(&mut watches, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        result => result.map(|()| watches.map(|watch| watch.is_ready())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn tells_which_descriptor_can_be_read() {
        let (mut near, far) = UnixStream::pair().expect("a socket pair");
        let (silent, _kept) = UnixStream::pair().expect("a socket pair");
        let both = || [silent.as_fd(), far.as_fd()];
        assert_eq!(readable(both(), Some(Duration::ZERO)).expect("polls"), [false, false]);
        near.write_all(b"x").expect("writes");
        assert_eq!(readable(both(), None).expect("polls"), [false, true]);
    }

    #[test]
    fn a_hang_up_can_be_read() {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        drop(near);
        assert_eq!(readable([far.as_fd()], None).expect("polls"), [true]);
    }

    #[test]
    fn a_time_out_is_waited_for() {
        let (_near, far) = UnixStream::pair().expect("a socket pair");
        let begin = Instant::now();
        assert_eq!(readable([far.as_fd()], Some(Duration::from_millis(20))).expect("polls"), [false]);
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }
}
