//! Packets by system calls: poll, read and write on the TUN, recvmmsg and sendmmsg on the raw sockets. For hosts that
//! refuse io_uring; the same meaning as `uring`, at one call a TUN packet.
//!
//! One wait: what was queued is sent (so a send ends in the wait that submits it), then poll, then both sides are read
//! until they are empty, the batch is full or no buffer is free. A side without a free buffer is not polled, so that
//! its waiting packets do not make the worker spin; the kernel queues, then drops.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use super::raw::SendSocket;
use super::receive::Receiving;
use super::retry::Retry;
use super::tun::Tun;
use super::{BATCH_MAX, Events, Frame, PacketIo, Pool, Ports, Sent, Side, Waker};
use crate::error::SetupError;
use crate::sys::event;
use crate::sys::net::{self, MESSAGES_MAX};
use crate::sys::poll::{self, Watch};

/// One worker's I/O by system calls.
#[derive(Debug)]
pub struct SyscallsIo {
    tun: Tun,
    inside: Rc<Pool>,
    inside_retry: Retry,
    receiving: Receiving,
    send: Vec<SendSocket>,
    waker: Waker,
    /// Nothing is to be read any more.
    deaf: bool,
    to_inside: Vec<Frame>,
    to_outside: Vec<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    frame: Frame,
    address: u8,
    remote: Ipv4Addr,
    errno: i32,
}

impl SyscallsIo {
    /// Maps the buffers. Nothing is allocated after this.
    pub fn new(ports: Ports) -> Result<SyscallsIo, SetupError> {
        let Ports { tun, receive, send, waker, sizes } = ports;
        let inside = Pool::new(sizes.inside)?;
        let receiving = Receiving::new(receive, sizes.outside)?;
        let frames = inside.buffers() + receiving.pool().buffers();
        Ok(SyscallsIo {
            tun,
            inside,
            inside_retry: Retry::new(Side::Inside),
            receiving,
            send,
            waker,
            deaf: false,
            to_inside: Vec::with_capacity(frames),
            to_outside: Vec::with_capacity(frames),
        })
    }

    /// The buffers of one side.
    pub fn pool(&self, side: Side) -> &Rc<Pool> {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => self.receiving.pool(),
        }
    }

    fn write_all_inside(&mut self, events: &mut Events) {
        for frame in self.to_inside.drain(..) {
            let errno = match event::write(self.tun.as_fd(), &frame) {
                Ok(written) if written == frame.len() => 0,
                // Not seen: the driver takes a packet or refuses it.
                Ok(_) => libc::EIO,
                Err(error) => errno_of(&error),
            };
            events.sent.push(Sent { to: Side::Inside, frame, errno });
        }
    }

    fn send_all_outside(&mut self, events: &mut Events) {
        let mut rest = self.to_outside.as_mut_slice();
        while let Some(first) = rest.first() {
            let address = first.address;
            let run = rest.iter().take(MESSAGES_MAX).take_while(|outgoing| outgoing.address == address).count();
            let ended = self.send.get(usize::from(address)).map_or_else(
                || Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
                |socket| {
                    let datagrams = rest[..run].iter().map(|outgoing| (&*outgoing.frame, outgoing.remote));
                    let sent = net::send_many(socket.as_fd(), datagrams);
                    if sent.is_err() {
                        socket.discard_queued_errors();
                    }
                    sent
                },
            );
            let ended = match ended {
                Ok(sent) if sent > 0 => sent,
                // None sent without an error: not seen, and it must not turn into a loop.
                refused => {
                    rest[0].errno = refused.map_or_else(|error| errno_of(&error), |_| libc::EAGAIN);
                    1
                }
            };
            rest = &mut rest[ended..];
        }
        let ended = self.to_outside.drain(..);
        events.sent.extend(ended.map(|Outgoing { frame, errno, .. }| Sent { to: Side::Outside, frame, errno }));
    }

    fn read_inside(&mut self, events: &mut Events) -> Result<(), SetupError> {
        for _ in 0..BATCH_MAX {
            let Some(mut frame) = self.inside.take() else { break };
            match event::read(self.tun.as_fd(), &mut frame) {
                // The end of a file, which a TUN does not have.
                Ok(0) => return self.inside_retry.failed(libc::EIO),
                Ok(len) => {
                    events.from_inside.push(frame.received(u32::try_from(len).unwrap_or(u32::MAX)));
                    self.inside_retry.succeeded();
                }
                Err(error) => return self.inside_retry.failed(errno_of(&error)),
            }
        }
        Ok(())
    }
}

impl PacketIo for SyscallsIo {
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), SetupError> {
        let ended = (self.in_flight() > 0).then_some(Duration::ZERO);
        self.write_all_inside(events);
        self.send_all_outside(events);
        let pauses = [self.inside_retry.pause(), self.receiving.pause()];
        let limit = timeout.into_iter().chain(pauses.into_iter().flatten()).chain(ended).min();
        let read_inside = pauses[0].is_none() && self.inside.free() > 0 && !self.deaf;
        let mut watches = [
            Watch::readable(read_inside.then(|| self.tun.as_fd())),
            Watch::readable(self.receiving.watched().filter(|_| pauses[1].is_none() && !self.deaf)),
            Watch::readable(Some(self.waker.as_fd())),
        ];
        match poll::poll(&mut watches, limit) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result.map_err(|error| SetupError::caused("cannot wait for packets", error))?,
        }
        let [inside, outside, woken] = watches.map(|watch| watch.is_ready());
        if inside {
            self.read_inside(events)?;
        }
        if outside {
            self.receiving.receive(&mut events.from_outside)?;
        }
        if woken {
            self.waker.clear().map_err(|error| SetupError::caused("cannot read a wake-up", error))?;
            events.woken = true;
        }
        Ok(())
    }

    fn send_inside(&mut self, frame: Frame) {
        self.to_inside.push(frame);
    }

    fn send_outside(&mut self, frame: Frame, address: u8, remote: Ipv4Addr) {
        self.to_outside.push(Outgoing { frame, address, remote, errno: 0 });
    }

    fn copy_of(&self, side: Side, packet: &[u8]) -> Option<Frame> {
        self.pool(side).frame_from(packet)
    }

    fn mtu_towards(&self, address: u8, remote: Ipv4Addr) -> Option<u16> {
        self.send.get(usize::from(address))?.mtu_towards(remote).ok()
    }

    fn stop_receiving(&mut self) {
        self.deaf = true;
    }

    fn in_flight(&self) -> usize {
        self.to_inside.len() + self.to_outside.len()
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
