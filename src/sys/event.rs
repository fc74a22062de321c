//! Waiting and being woken: eventfd(2) and poll(2); and the plain reads and writes of nonblocking descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A counter that becomes readable when written to; nonblocking, closed on exec.
#[expect(unsafe_code, reason = "eventfd(2)")]
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One descriptor to poll.
#[derive(Debug)]
#[repr(transparent)]
pub struct Watch(libc::pollfd);

impl Watch {
    /// Watches for `fd` to become readable. `None` watches nothing.
    pub fn readable(fd: Option<BorrowedFd<'_>>) -> Watch {
        Watch(libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 })
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

/// Reads once.
#[expect(unsafe_code, reason = "read(2)")]
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to memory that is borrowed for writing.
    let result = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Writes once.
#[expect(unsafe_code, reason = "write(2)")]
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads `bytes.len()` bytes of memory that is borrowed.
    let result = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_eventfd_is_ready_once_written_and_not_after_being_read() {
        let event = eventfd().unwrap();
        let ready = || {
            let mut watches = [Watch::readable(None), Watch::readable(Some(event.as_fd()))];
            poll(&mut watches, Some(Duration::ZERO)).unwrap();
            assert!(!watches[0].is_ready());
            watches[1].is_ready()
        };
        assert!(!ready());
        write(event.as_fd(), &1u64.to_ne_bytes()).unwrap();
        assert!(ready());
        assert_eq!(read(event.as_fd(), &mut [0; 8]).unwrap(), 8);
        assert!(!ready());
        assert_eq!(read(event.as_fd(), &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
