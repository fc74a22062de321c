//! ICMP errors of the gateway's own (RFC 792).
//!
//! Whoever makes one in place moves the offending packet back by [`HEADERS_LEN`], cut to [`QUOTE_LEN_MAX`]: it is then the
//! quote ([`complete`]). Whoever cannot move it has a copy made ([`about`]).
//! RFC 1812, section 4.3.2.3: as much of the original as fits into 576 bytes; section 4.3.2.5: precedence 6.

use std::net::Ipv4Addr;

use super::icmpv4::{
    CODE_FRAGMENTATION_NEEDED, CODE_HOST_UNREACHABLE, CODE_NET_UNREACHABLE, CODE_PROHIBITED, DESTINATION_UNREACHABLE,
    TIME_EXCEEDED,
};
use super::ipv4::{self, HEADER_LEN_MIN, Ipv4};
use super::put_word;
use crate::checksum;

/// The headers before the quote: IPv4 without options, and ICMP.
pub const HEADERS_LEN: usize = HEADER_LEN_MIN + ICMP_HEADER_LEN;

/// The most bytes that an error has.
pub const LEN_MAX: usize = 576;

/// The most bytes that an error quotes.
pub const QUOTE_LEN_MAX: usize = LEN_MAX - HEADERS_LEN;

const ICMP_HEADER_LEN: usize = 8;

/// What an error of the gateway's own says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// There is no route to the remote's network (unreachable, code 0).
    NetUnreachable,
    /// The remote does not answer on its own link (unreachable, code 1).
    HostUnreachable,
    /// The packet is larger than the way out, and must not be fragmented (unreachable, code 4).
    FragmentationNeeded {
        /// What fits: the next hop's MTU in bytes (RFC 1191, section 4).
        mtu: u16,
    },
    /// It is refused here (unreachable, code 13).
    Prohibited,
    /// It has no hop left (time exceeded, code 0).
    TimeExceeded,
}

impl Message {
    /// The ICMP header, its checksum still zero.
    const fn header(self) -> [u8; ICMP_HEADER_LEN] {
        let (kind, code, mtu) = match self {
            Message::NetUnreachable => (DESTINATION_UNREACHABLE, CODE_NET_UNREACHABLE, 0),
            Message::HostUnreachable => (DESTINATION_UNREACHABLE, CODE_HOST_UNREACHABLE, 0),
            Message::FragmentationNeeded { mtu } => (DESTINATION_UNREACHABLE, CODE_FRAGMENTATION_NEEDED, mtu),
            Message::Prohibited => (DESTINATION_UNREACHABLE, CODE_PROHIBITED, 0),
            Message::TimeExceeded => (TIME_EXCEEDED, 0, 0),
        };
        let [high, low] = mtu.to_be_bytes();
        [kind, code, 0, 0, 0, 0, high, low]
    }
}

/// Internetwork control (RFC 791).
const TOS: u8 = 0xc0;
const TTL: u8 = 64;

/// Writes the headers of an error from `gateway` before the quote, and tells to whom it goes: the quote's source. None if
/// what is quoted is no IPv4 header.
pub fn complete(bytes: &mut [u8], gateway: Ipv4Addr, message: Message) -> Option<Ipv4Addr> {
    let total_len = u16::try_from(bytes.len()).ok()?;
    let source = bytes.get(HEADERS_LEN..)?.get(12..16)?;
    let client = Ipv4Addr::from(<[u8; 4]>::try_from(source).ok()?);
    bytes[..HEADERS_LEN].fill(0);
    bytes[0] = 0x45;
    bytes[1] = TOS;
    put_word(bytes, 2, total_len);
    bytes[8] = TTL;
    bytes[9] = ipv4::ICMP;
    bytes[12..16].copy_from_slice(&gateway.octets());
    bytes[16..20].copy_from_slice(&client.octets());
    let check = checksum::checksum(&bytes[..HEADER_LEN_MIN]);
    put_word(bytes, 10, check);
    bytes[HEADER_LEN_MIN..HEADERS_LEN].copy_from_slice(&message.header());
    let check = checksum::checksum(&bytes[HEADER_LEN_MIN..]);
    put_word(bytes, HEADER_LEN_MIN + 2, check);
    debug_assert!(Ipv4::check(&*bytes).is_ok());
    Some(client)
}

/// Writes an error from `gateway` about `packet` into `error`, and tells its length. What the packet's buffer holds beyond
/// the packet is not quoted. None if that is no IPv4 packet, or if `error` has no room.
pub fn about(packet: &[u8], gateway: Ipv4Addr, message: Message, error: &mut [u8]) -> Option<usize> {
    let quote = Ipv4::check(packet).ok()?.total_len().min(QUOTE_LEN_MAX);
    let error = error.get_mut(..HEADERS_LEN + quote)?;
    error[HEADERS_LEN..].copy_from_slice(&packet[..quote]);
    complete(error, gateway, message).map(|_| error.len())
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    #[test]
    fn an_error_quotes_the_packet_and_goes_to_its_source() {
        let request = build::echo_request(CLIENT, Ipv4Addr::new(198, 18, 0, 2), 1, 7, 63, b"payload");
        let mut bytes = [vec![0xa5; HEADERS_LEN], request.clone()].concat();
        let to = complete(&mut bytes, GATEWAY, Message::Prohibited);
        assert_eq!(to, Some(CLIENT));
        let packet = Ipv4::check(&bytes[..]).unwrap();
        assert!(packet.header_is_intact());
        assert_eq!((packet.source(), packet.destination(), packet.tos()), (GATEWAY, CLIENT, 0xc0));
        assert_eq!(checksum::sum(packet.payload()), 0xffff);
        assert_eq!((packet.payload()[0], packet.payload()[1]), (3, 13));
        assert_eq!(packet.payload()[4..8], [0; 4], "unused");
        assert_eq!(packet.payload()[8..], request);
    }

    /// RFC 1812, section 4.3.2.3.
    #[test]
    fn an_error_about_a_packet_is_that_made_in_place_and_leaves_out_what_follows_the_packet() {
        let message = Message::FragmentationNeeded { mtu: 1280 };
        for payload in [0, 7, 519, 520, 521, 1400] {
            let request = build::echo_request(CLIENT, Ipv4Addr::new(198, 18, 0, 2), 1, 7, 63, &vec![1; payload]);
            let quote = &request[..request.len().min(QUOTE_LEN_MAX)];
            let mut expected = [&[0; HEADERS_LEN], quote].concat();
            complete(&mut expected, GATEWAY, message).unwrap();
            let padded = [&request[..], &[0xa5; 6]].concat();
            let mut error = [0xa5; LEN_MAX];
            let length = about(&padded, GATEWAY, message, &mut error).unwrap();
            assert_eq!(error[..length], expected);
            assert_eq!(length, (20 + 8 + request.len()).min(576), "as much as fits");
            assert_eq!(about(&padded, GATEWAY, message, &mut error[..length - 1]), None, "no room");
        }
        assert_eq!(about(&[0x60; 40], GATEWAY, message, &mut [0; LEN_MAX]), None, "no IPv4");
    }

    #[test]
    fn each_message_has_its_type_and_code_and_only_one_an_mtu() {
        let request = build::echo_request(CLIENT, Ipv4Addr::new(198, 18, 0, 2), 1, 7, 63, b"");
        for (message, header) in [
            (Message::NetUnreachable, [3, 0, 0, 0]),
            (Message::HostUnreachable, [3, 1, 0, 0]),
            (Message::FragmentationNeeded { mtu: 0x0578 }, [3, 4, 5, 0x78]),
            (Message::Prohibited, [3, 13, 0, 0]),
            (Message::TimeExceeded, [11, 0, 0, 0]),
        ] {
            let mut error = [0xa5; LEN_MAX];
            let length = about(&request, GATEWAY, message, &mut error).unwrap();
            let packet = Ipv4::check(&error[..length]).unwrap();
            let icmp = packet.payload();
            assert_eq!([icmp[0], icmp[1], icmp[6], icmp[7]], header, "{message:?}");
            assert_eq!((icmp[4..6].to_vec(), checksum::sum(icmp)), (vec![0; 2], 0xffff), "{message:?}");
        }
    }

    #[test]
    fn what_cannot_be_quoted_makes_no_error() {
        for len in 0..HEADERS_LEN + 16 {
            assert_eq!(complete(&mut vec![1; len], GATEWAY, Message::Prohibited), None, "{len}");
        }
    }
}
