//! A socket's error queue: ICMP errors with their senders, refusals of this host's own, and time stamps of departures.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::PingSocket;
use crate::sys::control;
use crate::sys::net::MESSAGES_MAX;
use crate::sys::ping::{self, Batch, ExtendedError};

/// Where an entry comes from (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
const ORIGIN_TIMESTAMPING: u8 = 4;

/// The most of a quoted request that is looked at: its header and the cookie.
const QUOTE_BYTES: usize = 16;

/// The beginning of the request that an error is about, as far as it was quoted; the IP header is not part of it (the kernel
/// has gone past it, options included).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    bytes: [u8; QUOTE_BYTES],
    len: usize,
}

impl Quote {
    /// What of these bytes is looked at.
    pub(super) fn of(bytes: &[u8]) -> Quote {
        let len = bytes.len().min(QUOTE_BYTES);
        let mut quote = Quote { bytes: [0; QUOTE_BYTES], len };
        quote.bytes[..len].copy_from_slice(&bytes[..len]);
        quote
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// One entry of an error queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// Somebody sent an ICMP error about a request.
    Icmp {
        /// Who.
        from: SocketAddr,
        /// Whom the request was for, by the quoted header.
        to: Option<SocketAddr>,
        /// The error's type, of ICMP or ICMPv6.
        icmp_type: u8,
        /// Its code.
        code: u8,
        /// The next hop's MTU, if it is about that.
        info: u32,
        /// What it quotes of the request.
        quote: Quote,
    },
    /// The kernel itself refused a request: it is too long for the path (EMSGSIZE).
    TooLong {
        /// Whom it was for.
        to: Option<SocketAddr>,
        /// What fits.
        mtu: u32,
    },
    /// A request has left.
    Departed {
        /// The number that was given with it.
        number: u32,
        /// When, in nanoseconds of the system's clock.
        stamp: u64,
    },
}

/// Reads error queues.
pub struct Reports {
    batch: Box<Batch>,
    quotes: [[u8; QUOTE_BYTES]; MESSAGES_MAX],
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reports")
    }
}

impl Reports {
    /// A reader with buffers of its own.
    #[expect(clippy::new_without_default, reason = "allocates: not a default value")]
    pub fn new() -> Reports {
        Reports { batch: Batch::new(), quotes: [[0; QUOTE_BYTES]; MESSAGES_MAX] }
    }

    /// Reads up to a batch of a socket's error queue into `reports`; whether there may be more.
    pub fn read(&mut self, socket: &PingSocket, reports: &mut Vec<Report>) -> bool {
        let buffers = self.quotes.iter_mut().map(<[u8; QUOTE_BYTES]>::as_mut_slice);
        // The one error that an empty queue has is that it is empty.
        let Ok(received) = self.batch.receive(socket.as_fd(), buffers, true) else { return false };
        for number in 0..received {
            let (len, name, controls) = self.batch.received(number);
            let quoted = self.quotes[number].get(..usize::try_from(len).unwrap_or(QUOTE_BYTES));
            let quote = Quote::of(quoted.unwrap_or(&self.quotes[number]));
            reports.extend(report(name, controls, quote));
        }
        received == MESSAGES_MAX
    }
}

/// What an entry says. None: nothing that is known here, or not whole.
pub(super) fn report(name: &[u8], controls: &[u8], quote: Quote) -> Option<Report> {
    let (mut error, mut stamp) = (None, None);
    for control in control::read(controls) {
        stamp = stamp.or_else(|| ping::software_stamp(&control));
        let queued = [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
        if queued.contains(&(control.level, control.kind)) {
            error = error.or_else(|| ExtendedError::read(control.data));
        }
    }
    let error = error?;
    match error.origin {
        ORIGIN_ICMP | ORIGIN_ICMP6 => Some(Report::Icmp {
            from: error.offender?,
            to: ping::read_name(name),
            icmp_type: error.icmp_type,
            code: error.code,
            info: error.info,
            quote,
        }),
        ORIGIN_LOCAL if error.errno == libc::EMSGSIZE.cast_unsigned() => {
            Some(Report::TooLong { to: ping::read_name(name), mtu: error.info })
        }
        ORIGIN_TIMESTAMPING => Some(Report::Departed { number: error.data, stamp: stamp? }),
        _ => None,
    }
}
