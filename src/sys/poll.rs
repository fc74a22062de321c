//! poll(2): waiting for several descriptors at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until one of `descriptors` can be read (or has hung up, or failed: a read says which) or `timeout` has passed
/// (None: no limit), and says which can. A signal ends the wait early, with none.
#[expect(unsafe_code, reason = "poll")]
pub fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut entries =
        descriptors.map(|descriptor| libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // Rounded up: rounding down would turn the last millisecond of a wait into a spin.
    let timeout =
        timeout.map_or(-1, |timeout| i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
    let count = libc::nfds_t::try_from(N).map_err(io::Error::other)?;
    // SAFETY: `entries` is an array of `count` pollfd that lives across the call; the borrows keep the descriptors open.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), count, timeout) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(entries.map(|entry| entry.revents != 0))
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
