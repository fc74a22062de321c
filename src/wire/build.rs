//! Packets made from nothing: what the lab's clients and remotes send, what in-memory I/O brings, what tests need.
//! Checksums are computed in full; nothing on the packet path builds a packet.

use std::net::Ipv4Addr;

use super::icmpv4::{ECHO_HEADER_LEN, EchoKind};
use super::ipv4::{DONT_FRAGMENT, HEADER_LEN_MAX, HEADER_LEN_MIN, ICMP, MORE_FRAGMENTS};
use super::put_word;
use crate::checksum;

/// An IPv4 datagram of any protocol, to be built. `Datagram { ttl: 1, ..Datagram::new(...) }` sets what differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// What the fragments of one datagram have in common.
    pub identification: u16,
    /// DF.
    pub dont_fragment: bool,
    /// MF.
    pub more_fragments: bool,
    /// In bytes, a multiple of 8.
    pub fragment_offset: usize,
    /// Time to live.
    pub ttl: u8,
    /// Options as they stand in the header, at most 40 bytes; zeros fill them up to a multiple of 4.
    pub options: Vec<u8>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// A whole datagram without options; TTL 64.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Datagram {
        Datagram {
            source,
            destination,
            protocol,
            tos: 0,
            identification: 0,
            dont_fragment: false,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            options: Vec::new(),
            payload,
        }
    }

    /// Its bytes.
    ///
    /// # Panics
    ///
    /// If no header can say it: more than 40 bytes of options, more than 65,535 bytes in all, a fragment offset that
    /// is not a multiple of 8 or is over 65,528.
    pub fn build(&self) -> Vec<u8> {
        let header_len = HEADER_LEN_MIN + self.options.len().next_multiple_of(4);
        assert!(header_len <= HEADER_LEN_MAX, "{} bytes of options", self.options.len());
        assert!(self.fragment_offset.is_multiple_of(8), "fragment offset {}", self.fragment_offset);
        let ihl = u8::try_from(header_len / 4).expect("at most 15");
        let total_len = u16::try_from(header_len + self.payload.len()).expect("a datagram of at most 65,535 bytes");
        let units = u16::try_from(self.fragment_offset / 8).ok().filter(|&units| units < MORE_FRAGMENTS);
        let mut fragment = units.expect("a fragment offset of at most 65,528");
        fragment |= if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        fragment |= if self.more_fragments { MORE_FRAGMENTS } else { 0 };

        let mut bytes = Vec::with_capacity(usize::from(total_len));
        bytes.extend([0x40 | ihl, self.tos]);
        bytes.extend(total_len.to_be_bytes());
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&self.options);
        bytes.resize(header_len, 0);
        let check = checksum::checksum(&bytes);
        put_word(&mut bytes, 10, check);
        bytes.extend(&self.payload);
        bytes
    }
}

/// An ICMP echo message, without an IP header.
pub fn echo_message(kind: EchoKind, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ECHO_HEADER_LEN + payload.len());
    message.extend([kind.icmp_type(), 0, 0, 0]);
    message.extend(ident.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    let check = checksum::checksum(&message);
    put_word(&mut message, 2, check);
    message
}

/// An ICMP error about the packet of which `quoted` is the beginning, without an IP header of its own. `rest` is the second
/// word of its header: the next-hop MTU, a pointer, or RFC 4884's length.
pub fn error_message(icmp_type: u8, code: u8, rest: u32, quoted: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ECHO_HEADER_LEN + quoted.len());
    message.extend([icmp_type, code, 0, 0]);
    message.extend(rest.to_be_bytes());
    message.extend(quoted);
    let check = checksum::checksum(&message);
    put_word(&mut message, 2, check);
    message
}

/// An echo request in its datagram.
///
/// # Panics
///
/// If the payload is longer than 65,507 bytes.
pub fn echo_request(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ident: u16,
    sequence: u16,
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let message = echo_message(EchoKind::Request, ident, sequence, payload);
    Datagram { ttl, ..Datagram::new(source, destination, ICMP, message) }.build()
}

/// An echo reply in its datagram.
///
/// # Panics
///
/// If the payload is longer than 65,507 bytes.
pub fn echo_reply(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ident: u16,
    sequence: u16,
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let message = echo_message(EchoKind::Reply, ident, sequence, payload);
    Datagram { ttl, ..Datagram::new(source, destination, ICMP, message) }.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::icmpv4::Echo;
    use crate::wire::ipv4::{Ipv4, UDP};

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    #[test]
    fn every_byte_of_an_echo_request() {
        // Both checksums worked out word by word, apart from the code.
        let bytes = echo_request(CLIENT, REMOTE, 1, 1, 64, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let expected = [
            0x45, 0x00, 0x00, 0x24, 0x00, 0x00, 0x00, 0x00, 0x40, 0x01, 0xAA, 0x81, 10, 66, 0, 2, 198, 18, 0, 2, 8, 0,
            0xE7, 0xE9, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_echo_says_what_it_was_told() {
        for (bytes, kind) in [
            (echo_request(CLIENT, REMOTE, 0x1234, 7, 3, b"abc"), EchoKind::Request),
            (echo_reply(CLIENT, REMOTE, 0x1234, 7, 3, b"abc"), EchoKind::Reply),
        ] {
            let packet = Ipv4::check(&bytes[..]).unwrap();
            assert!(packet.header_is_intact());
            assert_eq!((packet.source(), packet.destination(), packet.ttl()), (CLIENT, REMOTE, 3));
            let echo = Echo::check(packet.payload()).unwrap();
            assert!(echo.is_intact());
            assert_eq!((echo.kind(), echo.ident(), echo.sequence(), echo.payload()), (kind, 0x1234, 7, &b"abc"[..]));
        }
    }

    #[test]
    fn a_datagram_says_what_it_was_told() {
        let datagram = Datagram {
            tos: 0xB8,
            identification: 0x4321,
            dont_fragment: true,
            more_fragments: true,
            fragment_offset: 1480,
            options: vec![7, 3, 4],
            ..Datagram::new(CLIENT, REMOTE, UDP, vec![9; 5])
        };
        let bytes = datagram.build();
        let packet = Ipv4::check(&bytes[..]).unwrap();
        assert!(packet.header_is_intact());
        assert_eq!((packet.header_len(), packet.total_len(), packet.tos()), (24, 29, 0xB8));
        assert_eq!((packet.options(), packet.payload()), (&[7, 3, 4, 0][..], &[9; 5][..]));
        assert!(packet.dont_fragment() && packet.more_fragments());
        assert_eq!((packet.fragment_offset(), packet.identification()), (1480, 0x4321));
        assert_eq!(packet.protocol(), UDP);
    }

    #[test]
    fn the_largest_datagram_is_built() {
        let bytes = echo_request(CLIENT, REMOTE, 1, 1, 64, &vec![0; 65_507]);
        assert_eq!(Ipv4::check(&bytes[..]).unwrap().total_len(), 65_535);
    }

    #[test]
    fn the_last_fragment_offset_is_built_and_the_next_is_not() {
        let at = |fragment_offset| Datagram { fragment_offset, ..Datagram::new(CLIENT, REMOTE, UDP, vec![9; 5]) };
        let bytes = at(65_528).build();
        let packet = Ipv4::check(&bytes[..]).unwrap();
        assert_eq!((packet.fragment_offset(), packet.more_fragments()), (65_528, false));
        // In the header it would be offset 0 with MF.
        assert!(std::panic::catch_unwind(|| at(65_536).build()).is_err());
    }
}
