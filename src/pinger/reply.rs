//! What comes back.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// The reply to a ping: the right ident, sequence, source and cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// From the request's departure to the reply's arrival.
    pub rtt: Duration,
    /// Between which two clock readings that is.
    pub measured: Measured,
    /// Who answered: the address that was pinged.
    pub from: IpAddr,
    /// The reply's TTL (hop limit) as it arrived, if the system told it.
    pub ttl: Option<u8>,
    /// Bytes of ICMP: the payload and the header's eight.
    pub bytes: usize,
    /// The sequence number on the wire. Numbers are given out by the pinger, not by the target: they need not be
    /// consecutive for one host.
    pub sequence: u16,
    /// What the payload was like.
    pub payload: Payload,
    /// When it arrived, by the system's clock.
    pub received: SystemTime,
}

/// What a round-trip time was taken between.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Measured {
    /// The kernel's time stamps of both packets: how busy this process or this machine's CPUs are is not in it.
    Kernel,
    /// A clock read before the send, and the kernel's time stamp of the reply.
    KernelReceive,
    /// Two readings of the clock in this process: the kernel gave no time stamp, or none that can be right (the system's
    /// clock was set meanwhile; and it begins to stamp a moment after the first program of the machine has asked for it).
    User,
}

/// What the payload of a reply was like.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Payload {
    /// As it was sent.
    Intact,
    /// The cookie is right, and what follows ends early: some hosts cut what they send back.
    Truncated,
    /// The cookie is right, and the byte at this place (from the payload's first) is not what was sent.
    Altered {
        /// The first byte that differs, or the first that was never sent.
        at: usize,
        /// What was sent there; 0 if nothing was.
        sent: u8,
        /// What came back.
        found: u8,
    },
}

/// An answer that no ping was waiting for any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stray {
    /// What makes it one.
    pub kind: StrayKind,
    /// Which ping of its stream it answers ([`Answer::number`](super::Answer::number)); 0 for one that was made alone.
    pub number: u64,
    /// The answer. Its round-trip time counts from the request that it answers.
    pub reply: Reply,
}

/// Why nobody waits for a [`Stray`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StrayKind {
    /// The ping has had its reply.
    Duplicate,
    /// The ping's time was over.
    Late,
}
