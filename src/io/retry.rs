//! What a failing receive means: nothing, a pause, or the end.
//!
//! A receive that ends without an error, for want of buffers, or cancelled is armed again at once. One that fails is
//! tried again after a pause that doubles from 1 ms; after [`FAILURES_MAX`] failures in a row (about a second) it is
//! a fault, as is at once a device that is gone. So no queue falls deaf, and none is spun on.

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

    /// How long to leave the queue alone; zero: it may be tried. Reads the clock only after a failure.
    pub(super) fn pause(&mut self) -> Duration {
        let Some(not_before) = self.not_before else { return Duration::ZERO };
        let pause = not_before.saturating_duration_since(Instant::now());
        if pause.is_zero() {
            self.not_before = None;
        }
        pause
    }
}

/// The sooner of a wait's own limit and a pause that ends in it.
pub(super) fn limited(timeout: Option<Duration>, pause: Duration) -> Option<Duration> {
    if pause.is_zero() { timeout } else { Some(timeout.map_or(pause, |timeout| timeout.min(pause))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ends_are_no_failures() {
        let mut retry = Retry::new(Side::Inside);
        for errno in [libc::ENOBUFS, libc::ECANCELED, libc::EAGAIN, libc::EINTR] {
            retry.failed(errno).unwrap();
            assert_eq!(retry.pause(), Duration::ZERO);
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
    fn failures_pause_longer_and_longer_and_end_as_a_fault() {
        let mut retry = Retry::new(Side::Outside);
        let mut pauses = Vec::new();
        while retry.failed(libc::ENETDOWN).is_ok() {
            pauses.push(retry.pause());
        }
        assert_eq!(pauses.len(), 10);
        let total: Duration = pauses.iter().sum();
        assert!(total > Duration::from_millis(900) && total < Duration::from_millis(1024), "{total:?}");
        retry.succeeded();
        retry.failed(libc::ENETDOWN).unwrap();
        assert!(retry.pause() <= PAUSE_FIRST, "a packet in between starts anew");
        assert_eq!(limited(None, Duration::ZERO), None);
        assert_eq!(limited(Some(PAUSE_FIRST), 2 * PAUSE_FIRST), Some(PAUSE_FIRST));
        assert_eq!(limited(None, PAUSE_FIRST), Some(PAUSE_FIRST));
    }
}
