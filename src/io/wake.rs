//! Waking a worker that waits: from another thread, or from a signal handler's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
#[cfg(feature = "pinger")]
use std::time::Duration;

use crate::error::SetupError;
use crate::sys::event;
#[cfg(feature = "pinger")]
use crate::sys::poll;

/// Ends a worker's wait. Clones wake the same worker.
///
/// What is to be seen by the worker (a flag, a queue entry) is written before `wake`: the eventfd's write and read
/// order the two threads as a lock would.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker for one worker.
    pub fn new() -> Result<Waker, SetupError> {
        let event = event::eventfd().map_err(|error| {
            SetupError::caused("cannot make an eventfd to wake a worker", error).remedy("raise the limit of open files")
        })?;
        Ok(Waker(Arc::new(event)))
    }

    /// Makes the wait under way, or else the next one, return early.
    pub fn wake(&self) {
        // The one way to fail is a counter that is full (EAGAIN): then the worker has been woken 2^64 times already.
        let _ = event::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }

    /// Sleeps until woken, or until `timeout` has passed (`None`: no limit).
    #[cfg(feature = "pinger")]
    pub(super) fn sleep(&self, timeout: Option<Duration>) -> Result<(), SetupError> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Ok(());
        }
        let fault = |error| SetupError::caused("cannot wait to be woken", error);
        match poll::readable([self.as_fd()], timeout).map_err(fault)? {
            [true] => self.clear().map_err(fault),
            [false] => Ok(()),
        }
    }

    /// Forgets the wake-ups so far.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match event::read(self.0.as_fd(), &mut [0; 8]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
