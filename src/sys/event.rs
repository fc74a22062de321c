//! Being woken: eventfd(2); and the plain reads and writes of nonblocking descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
    use std::time::Duration;

    use super::*;
    use crate::sys::poll::{Watch, poll};

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
