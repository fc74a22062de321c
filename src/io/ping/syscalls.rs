//! The engine's I/O by system calls: sendmmsg, ppoll, recvmmsg.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use super::{Arrival, BUFFERS, Events, Kind, Outgoing, PingIo, Report, Sent, Sockets};
use crate::error::SetupError;
use crate::io::{Frame, Pool, Waker};
use crate::sys::net::MESSAGES_MAX;
use crate::sys::ping::{self, Batch, wall_clock_nanos};
use crate::sys::poll::{self, Watch};

/// Batches that one wait receives by a socket, at most.
const BATCHES_MAX: usize = 4;

/// See the module.
pub struct SyscallsPingIo {
    waker: Waker,
    pub(super) sockets: Sockets,
    pool: Rc<Pool>,
    /// Whole buffers for the next recvmmsg.
    vacant: Vec<Frame>,
    batch: Box<Batch>,
    queued: Vec<Queued>,
    watches: Vec<Watch>,
}

#[derive(Debug)]
struct Queued {
    socket: usize,
    tag: u32,
    errno: i32,
    began_nanos: u64,
    outgoing: Box<Outgoing>,
}

impl SyscallsPingIo {
    /// Maps the buffers; ends its waits when `waker` is called.
    pub fn new(waker: Waker) -> Result<SyscallsPingIo, SetupError> {
        Ok(SyscallsPingIo {
            waker,
            sockets: Sockets::new(),
            pool: Pool::new(BUFFERS)?,
            vacant: Vec::with_capacity(MESSAGES_MAX),
            batch: Batch::new(),
            queued: Vec::new(),
            watches: Vec::new(),
        })
    }

    /// Sends all that is queued; each send ends here.
    fn send_queued(&mut self, events: &mut Events) {
        let mut queued = self.queued.as_mut_slice();
        while let Some(first) = queued.first() {
            let socket = first.socket;
            let run = queued.iter().take_while(|entry| entry.socket == socket).count().min(MESSAGES_MAX);
            let outgoing = queued[..run].iter_mut().map(|entry| &mut *entry.outgoing);
            let began_nanos = wall_clock_nanos();
            let (ended, errno) = match ping::send_many(self.sockets.list[socket].as_fd(), outgoing) {
                Ok(sent) => (sent, 0),
                Err(error) => (1, error.raw_os_error().unwrap_or(libc::EIO)),
            };
            if errno != 0 {
                events.troubled.push(socket);
            }
            queued[..ended].iter_mut().for_each(|entry| (entry.errno, entry.began_nanos) = (errno, began_nanos));
            queued = &mut queued[ended..];
        }
        events.sent.extend(self.queued.drain(..).map(|queued| {
            let Queued { socket, tag, errno, began_nanos, outgoing } = queued;
            Sent { socket, tag, errno, began_nanos, outgoing }
        }));
    }

    fn receive(&mut self, number: usize, events: &mut Events) {
        for _ in 0..BATCHES_MAX {
            let missing = MESSAGES_MAX - self.vacant.len();
            self.vacant.extend(std::iter::from_fn(|| self.pool.take()).take(missing));
            let room = self.vacant.len();
            let buffers = self.vacant.iter_mut().map(|frame| &mut **frame);
            let received = match self.batch.receive(self.sockets.list[number].as_fd(), buffers, false) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Another's error, told by this call; the queue has it with its sender.
                Err(_) => return events.troubled.push(number),
            };
            for (at, frame) in self.vacant.drain(..received).enumerate() {
                let (len, name, controls) = self.batch.received(at);
                let end = usize::try_from(len).unwrap_or(0);
                let parts = Arrival::parts(name, controls);
                events.arrivals.extend(parts.map(|parts| Arrival::new(number, parts, frame, 0..end)));
            }
            if received < room {
                return;
            }
        }
        events.more = true;
    }
}

impl PingIo for SyscallsPingIo {
    fn open(&mut self, kind: Kind, receive_buffer_bytes: u32) -> io::Result<()> {
        self.sockets.open(kind, receive_buffer_bytes)
    }

    fn dropped(&self, socket: usize) -> u32 {
        self.sockets.list[socket].dropped()
    }

    fn read_reports(&mut self, socket: usize, reports: &mut Vec<Report>) -> bool {
        self.sockets.read_reports(socket, reports)
    }

    fn wall_clock_nanos(&self) -> u64 {
        wall_clock_nanos()
    }

    fn send(&mut self, socket: usize, tag: u32, outgoing: Box<Outgoing>) {
        self.queued.push(Queued { socket, tag, errno: 0, began_nanos: 0, outgoing });
    }

    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        self.send_queued(events);
        let timeout = if events.troubled.is_empty() { timeout } else { Some(Duration::ZERO) };
        self.watches.clear();
        self.watches.push(Watch::readable(Some(self.waker.as_fd())));
        self.watches.extend(self.sockets.list.iter().map(|socket| Watch::readable(Some(socket.as_fd()))));
        match poll::poll(&mut self.watches, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result.map_err(|error| SetupError::caused("cannot wait for replies", error))?,
        }
        if self.watches[0].is_ready() {
            self.waker.clear().map_err(|error| SetupError::caused("cannot read a wake-up", error))?;
        }
        for number in 0..self.sockets.list.len() {
            let watch = &self.watches[number + 1];
            if watch.has_failed() {
                events.troubled.push(number);
            }
            if watch.is_ready() {
                self.receive(number, events);
            }
        }
        Ok(())
    }

    fn pause(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        self.send_queued(events);
        match events.sent.is_empty() {
            true => self.waker.sleep(timeout),
            false => Ok(()),
        }
    }
}

impl std::fmt::Debug for SyscallsPingIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SyscallsPingIo({} sockets, {} queued)", self.sockets.list.len(), self.queued.len())
    }
}
