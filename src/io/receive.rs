//! The outside's receiving half by system calls: recvmmsg into a pool's buffers. Part of `syscalls`, and all that
//! [`crate::outside`] needs, which has no TUN.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use super::raw::{ReceiveSocket, mend_options};
use super::retry::Retry;
use super::{BATCH_MAX, Frame, Pool, PoolSize, Side, Waker};
use crate::error::SetupError;
use crate::sys::net::{self, MESSAGES_MAX};
use crate::sys::poll::{self, Watch};

/// A receive socket and the buffers that it receives into. Stays on its thread, as the buffers do.
#[derive(Debug)]
pub struct Receiving {
    socket: ReceiveSocket,
    pool: Rc<Pool>,
    retry: Retry,
    /// Whole buffers for the next recvmmsg.
    vacant: Vec<Frame>,
}

impl Receiving {
    /// Maps the buffers. Nothing is allocated after this.
    pub fn new(socket: ReceiveSocket, size: PoolSize) -> Result<Receiving, SetupError> {
        let (pool, retry) = (Pool::new(size)?, Retry::new(Side::Outside));
        Ok(Receiving { socket, pool, retry, vacant: Vec::with_capacity(MESSAGES_MAX) })
    }

    /// The buffers.
    pub fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    /// How long to leave the socket alone after a failure, if at all.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        self.retry.pause()
    }

    /// What to poll: nothing while there is no buffer to receive into, or waiting packets would make the thread spin.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        (self.pool.free() > 0 || !self.vacant.is_empty()).then(|| self.socket.as_fd())
    }

    /// Receives without waiting until nothing is left, the batch is full or no buffer is free.
    pub(super) fn receive(&mut self, arrived: &mut Vec<Frame>) -> Result<(), SetupError> {
        let mut lens = [0; MESSAGES_MAX];
        for _ in 0..BATCH_MAX / MESSAGES_MAX {
            let missing = MESSAGES_MAX - self.vacant.len();
            self.vacant.extend(std::iter::from_fn(|| self.pool.take()).take(missing));
            if self.vacant.is_empty() {
                break;
            }
            let buffers = self.vacant.iter_mut().map(|frame| &mut **frame);
            let received = match net::receive_many(self.socket.as_fd(), buffers, &mut lens) {
                Ok(received) => received,
                Err(error) => return self.retry.failed(error.raw_os_error().unwrap_or(libc::EIO)),
            };
            self.retry.succeeded();
            let frames = self.vacant.drain(..received).zip(lens);
            arrived.extend(frames.map(|(frame, len)| {
                let mut frame = frame.received(len);
                mend_options(&mut frame);
                frame
            }));
            if received < MESSAGES_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Waits until something has arrived, `waker` was called or `timeout` has passed (`None`: no limit), and appends what
    /// arrived. An error is a fault: no trying again mends it.
    pub fn wait(
        &mut self,
        waker: &Waker,
        timeout: Option<Duration>,
        arrived: &mut Vec<Frame>,
    ) -> Result<(), SetupError> {
        let pause = self.pause();
        let limit = timeout.into_iter().chain(pause).min();
        let watched = self.watched().filter(|_| pause.is_none());
        let mut watches = [Watch::readable(watched), Watch::readable(Some(waker.as_fd()))];
        match poll::poll(&mut watches, limit) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result.map_err(|error| SetupError::caused("cannot wait for packets", error))?,
        }
        let [received, woken] = watches.map(|watch| watch.is_ready());
        if woken {
            waker.clear().map_err(|error| SetupError::caused("cannot read a wake-up", error))?;
        }
        if received { self.receive(arrived) } else { Ok(()) }
    }
}
