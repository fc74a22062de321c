//! Somebody outside who makes up errors: about echoes that nobody sent, with wrong checksums, with lengths that lie.
//!
//! Knows the gateway's address and a remote that clients ping, and of the 16 bits of ident and the 16 of sequence nothing:
//! what an attacker knows who does not see the packets.
//!
//! Sends on the calling thread by the clock, many datagrams a call. What the kernel refuses for want of room counts as
//! refused and is not tried again.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::namespace::Namespace;
use crate::error::SetupError;
use crate::sys::net::{self, MESSAGES_MAX};
use crate::wire::build::{Datagram, echo_message, error_message};
use crate::wire::icmpv4::{DESTINATION_UNREACHABLE, EchoKind, TIME_EXCEEDED};
use crate::wire::ipv4::ICMP;

/// Whose address the forger writes from: any router's.
const FORGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// A load that is to hear of no forged error must not reach this sequence. Or one in some thousand floods guesses an echo that
/// is under way: it has 1,024 of the 65,536 idents to begin with.
pub const FIRST_SEQUENCE: u16 = 0x8000;

/// Different datagrams of each kind.
const VARIANTS: u16 = 1024;

/// Datagrams are due in bunches of this long: shorter sleeps end late anyway.
const BUNCH: Duration = Duration::from_micros(500);

/// A kind of forged error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forgery {
    /// Time exceeded about a ping that was never sent.
    NeverSent,
    /// The same with a wrong ICMP checksum.
    WrongChecksum,
    /// The same, its quote cut before the sequence.
    CutQuote,
    /// The same, the quoted header as long as can be and what it quotes a request again.
    LongHeader,
    /// Fragmentation needed, at an absurd MTU, about a ping that was never sent.
    SmallMtu,
}

impl Forgery {
    /// All of them.
    pub const ALL: [Forgery; 5] =
        [Forgery::NeverSent, Forgery::WrongChecksum, Forgery::CutQuote, Forgery::LongHeader, Forgery::SmallMtu];

    /// What figures call it.
    pub const fn name(self) -> &'static str {
        match self {
            Forgery::NeverSent => "about pings never sent",
            Forgery::WrongChecksum => "with a wrong checksum",
            Forgery::CutQuote => "with a quote cut short",
            Forgery::LongHeader => "with a quoted header of 60 bytes",
            Forgery::SmallMtu => "fragmentation needed, MTU 68",
        }
    }

    /// The drop under which the gateway must count it.
    pub const fn drop(self) -> &'static str {
        match self {
            Forgery::NeverSent | Forgery::LongHeader | Forgery::SmallMtu => "error_unmatched",
            Forgery::WrongChecksum => "error_checksum",
            Forgery::CutQuote => "error_quote",
        }
    }

    /// One of its kind, to `gateway`, about a ping to `remote`.
    pub fn datagram(self, variant: u16, gateway: Ipv4Addr, remote: Ipv4Addr) -> Vec<u8> {
        // Odd multipliers: idents and sequences all over, but for the sequences that a load may have reached.
        let (ident, sequence) = (variant.wrapping_mul(0x9e37), FIRST_SEQUENCE | variant.wrapping_mul(0x79b9));
        let message = echo_message(EchoKind::Request, ident, sequence, &[0x42; 56]);
        let options = if self == Forgery::LongHeader { vec![1; 40] } else { Vec::new() };
        let mut quote = Datagram { options, ..Datagram::new(gateway, remote, ICMP, message) }.build();
        if self == Forgery::CutQuote {
            quote.truncate(20 + 6);
        }
        let mut error = match self {
            Forgery::SmallMtu => error_message(DESTINATION_UNREACHABLE, 4, 68, &quote),
            _ => error_message(TIME_EXCEEDED, 0, 0, &quote),
        };
        if self == Forgery::WrongChecksum {
            error[3] ^= 1;
        }
        Datagram::new(FORGER, gateway, ICMP, error).build()
    }
}

/// What a flood was like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flooded {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that it had no room for.
    pub refused: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

/// Floods `gateway` from the namespace with `count` forgeries, these kinds in turn, `rate` a second.
pub fn flood(
    from: &Namespace,
    kinds: &[Forgery],
    gateway: Ipv4Addr,
    remote: Ipv4Addr,
    rate: u32,
    count: u64,
) -> Result<Flooded, SetupError> {
    let variants = (0..VARIANTS).flat_map(|variant| kinds.iter().map(move |kind| (kind, variant)));
    let datagrams: Vec<Vec<u8>> = variants.map(|(kind, variant)| kind.datagram(variant, gateway, remote)).collect();
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    let socket = from.run(open)?.map_err(|cause| SetupError::caused("lab: cannot open the forger's socket", cause))?;
    let mut flooded = Flooded { sent: 0, refused: 0, elapsed: Duration::ZERO };
    let mut endless = datagrams.iter().cycle();
    let start = Instant::now();
    while flooded.sent + flooded.refused < count {
        let due = start.elapsed().as_micros() * u128::from(rate) / 1_000_000 + 1;
        let due = u64::try_from(due).unwrap_or(u64::MAX).min(count);
        let behind = due.saturating_sub(flooded.sent + flooded.refused);
        if behind == 0 {
            thread::sleep(BUNCH);
            continue;
        }
        let bunch = usize::try_from(behind).unwrap_or(usize::MAX).min(MESSAGES_MAX);
        let datagrams = endless.by_ref().take(bunch).map(|datagram| (datagram.as_slice(), gateway));
        match net::send_many(socket.as_fd(), datagrams) {
            Ok(sent) => {
                flooded.sent += sent as u64;
                flooded.refused += (bunch - sent) as u64;
            }
            Err(_) => flooded.refused += bunch as u64,
        }
    }
    flooded.elapsed = start.elapsed();
    Ok(flooded)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::wire::ipv4::Ipv4;
    use crate::wire::quote::{Malformed, Quote};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    #[test]
    fn each_forgery_is_what_its_name_says() {
        for kind in Forgery::ALL {
            let datagram = Ipv4::check(kind.datagram(7, GATEWAY, REMOTE)).expect("IPv4");
            let quote = Quote::check(datagram.payload());
            if kind == Forgery::CutQuote {
                assert_eq!(quote.err(), Some(Malformed::Truncated));
                continue;
            }
            let quote = quote.expect("an error about an echo request");
            assert_eq!(quote.is_intact(), kind != Forgery::WrongChecksum);
            assert_eq!((quote.source(), quote.destination()), (GATEWAY, REMOTE));
        }
        let several: BTreeSet<_> = (0..VARIANTS).map(|n| Forgery::NeverSent.datagram(n, GATEWAY, REMOTE)).collect();
        assert_eq!(several.len(), usize::from(VARIANTS), "all of them different");
    }
}
