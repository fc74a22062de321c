//! What a failing receive means: nothing, a pause, or the end.
//!
//! A receive that ends without an error, for want of buffers, or cancelled is armed again at once. One that fails is
//! tried again after a pause that doubles from 1 ms; after [`FAILURES_MAX`] failures in a row (about a second) it is
//! a fault, as is at once a device that is gone or a request that the kernel does not know. So no queue falls deaf, and none is spun on.

use std::io;
use std::time::{Duration, Instant};

use super::Side;
use crate::error::SetupError;

/// Failures in a row that make a fault.
const FAILURES_MAX: u32 = 11;

const PAUSE_FIRST: Duration = Duration::from_millis(1);

/// The state of one side's receiving.
#[derive(Debug)]
pub(super) struct Retry {
    side: Side,
    failures: u32,
    not_before: Option<Instant>,
}

impl Retry {
    pub(super) fn new(side: Side) -> Retry {
        Retry { side, failures: 0, not_before: None }
    }

    /// A packet came.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// A receive failed. An error is a fault.
    pub(super) fn failed(&mut self, errno: i32) -> Result<(), SetupError> {
        match errno {
            libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR => return Ok(()),
            libc::EBADFD | libc::ENODEV | libc::EFAULT if self.side == Side::Inside => {
                return Err(SetupError::caused("the TUN device is gone", io::Error::from_raw_os_error(errno))
                    .remedy("somebody has deleted it: start again"));
            }
            libc::EINVAL => {
                return Err(SetupError::caused(
                    "the kernel does not know this way of receiving",
                    io::Error::from_raw_os_error(errno),
                )
                .remedy("--io syscalls, or Linux 6.7 or newer"));
            }
            _ => {}
        }
        if self.failures == 0 {
            let error = io::Error::from_raw_os_error(errno);
            tracing::warn!(side = ?self.side, %error, "receiving failed; trying again");
        }
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            let what = match self.side {
                Side::Inside => "reading from the TUN fails again and again",
                Side::Outside => "receiving from the raw socket fails again and again",
            };
            return Err(SetupError::caused(what, io::Error::from_raw_os_error(errno)));
        }
        self.not_before = Some(Instant::now() + PAUSE_FIRST * (1 << (self.failures - 1)));
        Ok(())
    }

    /// How long to leave the queue alone, if at all. Reads the clock only after a failure.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let pause = self.not_before?.saturating_duration_since(Instant::now());
        if pause.is_zero() {
            self.not_before = None;
        }
        self.not_before.map(|_| pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ends_are_no_failures() {
        let mut retry = Retry::new(Side::Inside);
        for errno in [libc::ENOBUFS, libc::ECANCELED, libc::EAGAIN, libc::EINTR] {
            retry.failed(errno).unwrap();
            assert_eq!(retry.pause(), None);
        }
    }

    #[test]
    fn a_device_that_is_gone_is_a_fault_at_once_and_only_inside() {
        for errno in [libc::EBADFD, libc::ENODEV, libc::EFAULT] {
            let fault = Retry::new(Side::Inside).failed(errno).unwrap_err();
            assert_eq!(fault.errno(), Some(errno));
            assert!(Retry::new(Side::Outside).failed(errno).is_ok());
        }
    }

    #[test]
    fn a_request_that_the_kernel_does_not_know_is_a_fault_at_once() {
        assert!(Retry::new(Side::Outside).failed(libc::EINVAL).unwrap_err().to_string().contains("--io syscalls"));
    }

    #[test]
    fn failures_pause_longer_and_longer_and_end_as_a_fault() {
        let mut retry = Retry::new(Side::Outside);
        let mut pauses = Vec::new();
        while retry.failed(libc::ENETDOWN).is_ok() {
            pauses.push(retry.pause().unwrap());
        }
        assert_eq!(pauses.len(), 10);
        let total: Duration = pauses.iter().sum();
        assert!(total > Duration::from_millis(900) && total < Duration::from_millis(1024), "{total:?}");
        retry.succeeded();
        retry.failed(libc::ENETDOWN).unwrap();
        assert!(retry.pause().unwrap() <= PAUSE_FIRST, "a packet in between starts anew");
        std::thread::sleep(PAUSE_FIRST);
        assert_eq!(retry.pause(), None);
    }
}
