//! An ICMP error from outside (RFC 792), and the echo request that it quotes.
//!
//! ```text
//! type 3, 11 or 12 | code | checksum | 4 bytes: next-hop MTU, pointer, length of the quote | quoted IP header, options | 8 bytes or more
//! ```
//!
//! [`Quote::check`] holds the quoted header's length against the bytes received and asks for the first eight bytes of the
//! quoted message, which is what RFC 792 promises and what names an echo: ident and sequence. The quoted total length
//! is not looked at, because the quote may be cut anywhere after that, and what follows it (RFC 4884's padding and
//! extensions) is never touched. Source quench is no error here (RFC 6633), nor is a redirect.
//!
//! [`Quote::restore`] undoes what the gateway did to the request: source and ident become the client's again, and the two
//! quoted checksums follow by RFC 1624. Each change and its checksum cancel out in the sum of the whole message, whose own
//! checksum therefore stays as it is: right if it was right, wrong if it was wrong.

use std::fmt;
use std::net::Ipv4Addr;

use super::icmpv4::{DESTINATION_UNREACHABLE, ECHO_HEADER_LEN, Echo, EchoKind, PARAMETER_PROBLEM, TIME_EXCEEDED};
use super::ipv4::{HEADER_LEN_MIN, ICMP};
use super::word_at;
use crate::checksum;

/// Length of the error's own header, in bytes.
const ERROR_HEADER_LEN: usize = 8;

/// Offsets in the error and, after its header, in the quoted IP header.
mod field {
    use super::ERROR_HEADER_LEN;

    pub(super) const QUOTED_VERSION_IHL: usize = ERROR_HEADER_LEN;
    pub(super) const QUOTED_FRAGMENT: usize = ERROR_HEADER_LEN + 6;
    pub(super) const QUOTED_PROTOCOL: usize = ERROR_HEADER_LEN + 9;
    pub(super) const QUOTED_CHECKSUM: usize = ERROR_HEADER_LEN + 10;
    pub(super) const QUOTED_SOURCE: usize = ERROR_HEADER_LEN + 12;
    pub(super) const QUOTED_DESTINATION: usize = ERROR_HEADER_LEN + 16;
}

/// The fragment offset's bits.
const FRAGMENT_UNITS: u16 = 0x1FFF;

/// Why a message is not an error about an echo request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Another type of ICMP message.
    NotError,
    /// The quote ends before the eighth byte of the message that it quotes, or states an impossible header length.
    Truncated,
    /// About something else than an echo request, even if no more than the quoted IP header tells so, or about a later
    /// fragment of one.
    NotEchoRequest,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::NotError => "not an ICMP error",
            Malformed::Truncated => "an ICMP error whose quote is too short",
            Malformed::NotEchoRequest => "an ICMP error about no echo request",
        })
    }
}

impl std::error::Error for Malformed {}

/// A view of bytes, the payload of an IPv4 datagram, that hold an ICMP error about an echo request. Of `B` it asks what
/// `Ipv4` does.
#[derive(Clone, Copy, Debug)]
pub struct Quote<B> {
    bytes: B,
    /// Where the quoted message begins.
    message_at: usize,
}

/// Whether messages of this type are errors that a proxied echo may cause.
const fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

impl<B: AsRef<[u8]>> Quote<B> {
    /// Checks the type, the lengths, and that an echo request is quoted.
    pub fn check(bytes: B) -> Result<Quote<B>, Malformed> {
        let error = bytes.as_ref();
        if !error.first().is_some_and(|icmp_type| is_error(*icmp_type)) {
            return Err(Malformed::NotError);
        }
        if error.len() < ERROR_HEADER_LEN + HEADER_LEN_MIN {
            return Err(Malformed::Truncated);
        }
        let version_ihl = error[field::QUOTED_VERSION_IHL];
        let header_len = usize::from(version_ihl & 0x0F) * 4;
        let message_at = ERROR_HEADER_LEN + header_len;
        if version_ihl >> 4 != 4 || error[field::QUOTED_PROTOCOL] != ICMP {
            return Err(Malformed::NotEchoRequest);
        }
        if header_len < HEADER_LEN_MIN || error.len() < message_at + ECHO_HEADER_LEN {
            return Err(Malformed::Truncated);
        }
        let quoted = Echo::check(&error[message_at..]);
        let is_later_fragment = word_at(error, field::QUOTED_FRAGMENT) & FRAGMENT_UNITS != 0;
        if is_later_fragment || !quoted.is_ok_and(|echo| echo.kind() == EchoKind::Request) {
            return Err(Malformed::NotEchoRequest);
        }
        Ok(Quote { bytes, message_at })
    }

    /// Whether the error's own checksum is right.
    pub fn is_intact(&self) -> bool {
        checksum::sum(self.bytes.as_ref()) == 0xFFFF
    }

    /// Whether the quoted header's checksum is right. Some routers take one from the TTL and quote the header without
    /// mending its checksum.
    pub fn header_is_intact(&self) -> bool {
        checksum::sum(&self.bytes.as_ref()[ERROR_HEADER_LEN..self.message_at]) == 0xFFFF
    }

    /// Who sent the quoted request: the gateway, if it was one of its own.
    pub fn source(&self) -> Ipv4Addr {
        self.address(field::QUOTED_SOURCE)
    }

    /// Whom the quoted request was for.
    pub fn destination(&self) -> Ipv4Addr {
        self.address(field::QUOTED_DESTINATION)
    }

    /// The quoted identifier.
    pub fn ident(&self) -> u16 {
        word_at(self.bytes.as_ref(), self.message_at + 4)
    }

    /// The quoted sequence number.
    pub fn sequence(&self) -> u16 {
        word_at(self.bytes.as_ref(), self.message_at + 6)
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        let octets: [u8; 4] = self.bytes.as_ref()[at..at + 4].try_into().expect("four bytes");
        octets.into()
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Quote<B> {
    /// Makes the quoted request the client's again (RFC 5508 REQ-4).
    pub fn restore(&mut self, client: Ipv4Addr, ident: u16) {
        let old: u32 = self.source().into();
        let check = word_at(self.bytes.as_ref(), field::QUOTED_CHECKSUM);
        let bytes = self.bytes.as_mut();
        bytes[field::QUOTED_SOURCE..field::QUOTED_DESTINATION].copy_from_slice(&client.octets());
        super::put_word(bytes, field::QUOTED_CHECKSUM, checksum::update_u32(check, old, client.into()));
        if let Ok(mut echo) = Echo::check(&mut bytes[self.message_at..]) {
            echo.set_ident(ident);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::{self, Datagram};
    use crate::wire::ipv4::{Ipv4, UDP};
    use proptest::prelude::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    /// An echo request with options, as it is on the wire.
    fn request(source: Ipv4Addr, ident: u16, options_len: usize, payload: &[u8]) -> Vec<u8> {
        let message = build::echo_message(EchoKind::Request, ident, 7, payload);
        Datagram { options: vec![1; options_len], ..Datagram::new(source, REMOTE, ICMP, message) }.build()
    }

    /// RFC 5508 REQ-3b.
    #[test]
    fn the_quote_becomes_the_clients_request_byte_for_byte() {
        for options_len in [0, 4, 40] {
            for icmp_type in [DESTINATION_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM] {
                let rewritten = request(GATEWAY, 0xBEEF, options_len, b"payload");
                let mut error = build::error_message(icmp_type, 4, 1400, &rewritten);
                let mut quote = Quote::check(&mut error[..]).unwrap();
                assert_eq!((quote.source(), quote.destination()), (GATEWAY, REMOTE));
                assert_eq!((quote.ident(), quote.sequence()), (0xBEEF, 7));
                assert!(quote.is_intact() && quote.header_is_intact());
                quote.restore(CLIENT, 1);
                assert!(quote.is_intact() && quote.header_is_intact());
                let original = request(CLIENT, 1, options_len, b"payload");
                assert_eq!(error, build::error_message(icmp_type, 4, 1400, &original));
            }
        }
    }

    #[test]
    fn a_quote_of_eight_bytes_is_enough_and_what_follows_is_left_alone() {
        let rewritten = request(GATEWAY, 0xBEEF, 0, b"a longer payload");
        let mut error = build::error_message(TIME_EXCEEDED, 0, 0, &rewritten[..28]);
        let mut quote = Quote::check(&mut error[..]).unwrap();
        quote.restore(CLIENT, 1);
        assert!(quote.is_intact());
        let original = request(CLIENT, 1, 0, b"a longer payload");
        assert_eq!(error, build::error_message(TIME_EXCEEDED, 0, 0, &original[..28]));

        // RFC 4884: padded to 128 bytes, an extension behind.
        let extended = |request: &[u8]| [request, &[0; 128 - 44], &[0x20, 0, 0xAB, 0xCD, 0, 4, 1, 1]].concat();
        assert_eq!(rewritten.len(), 44);
        let mut error = build::error_message(TIME_EXCEEDED, 0, 32 << 16, &extended(&rewritten));
        Quote::check(&mut error[..]).unwrap().restore(CLIENT, 1);
        assert_eq!(error, build::error_message(TIME_EXCEEDED, 0, 32 << 16, &extended(&original)));
    }

    #[test]
    fn a_hop_taken_off_and_not_mended_is_damage_to_the_quoted_header_alone() {
        for options_len in [0, 40] {
            let mut quoted = request(GATEWAY, 1, options_len, b"payload");
            quoted[8] -= 1;
            let mut error = build::error_message(TIME_EXCEEDED, 0, 0, &quoted);
            let mut quote = Quote::check(&mut error[..]).unwrap();
            assert_eq!((quote.is_intact(), quote.header_is_intact()), (true, false));
            quote.restore(CLIENT, 7);
            assert_eq!((quote.is_intact(), quote.header_is_intact()), (true, false));
        }
    }

    #[test]
    fn every_truncation_is_told() {
        for options_len in [0, 4, 40] {
            let rewritten = request(GATEWAY, 1, options_len, b"payload");
            let whole = build::error_message(TIME_EXCEEDED, 0, 0, &rewritten);
            let enough = ERROR_HEADER_LEN + HEADER_LEN_MIN + options_len + ECHO_HEADER_LEN;
            assert_eq!(Quote::check(&[]).err(), Some(Malformed::NotError));
            for length in 1..=whole.len() {
                let expected = (length < enough).then_some(Malformed::Truncated);
                assert_eq!(Quote::check(&whole[..length]).err(), expected, "{length}");
            }
        }
    }

    #[test]
    fn only_the_three_types_of_error_about_a_request_count() {
        let of = |quoted: &[u8]| build::error_message(TIME_EXCEEDED, 0, 0, quoted);
        for icmp_type in 0..=u8::MAX {
            let error = build::error_message(icmp_type, 0, 0, &request(GATEWAY, 1, 0, b""));
            let expected = (!matches!(icmp_type, 3 | 11 | 12)).then_some(Malformed::NotError);
            assert_eq!(Quote::check(&error).err(), expected, "{icmp_type}");
        }
        let reply = build::echo_reply(GATEWAY, REMOTE, 1, 1, 64, b"");
        // From port 0x0800, which looks like an echo request; its header alone says that it is none.
        let udp = Datagram::new(GATEWAY, REMOTE, UDP, build::echo_message(EchoKind::Request, 1, 7, b"")).build();
        let udp_header = udp[..HEADER_LEN_MIN].to_vec();
        let later = |units: u16| {
            let mut quoted = request(GATEWAY, 1, 0, b"");
            crate::wire::put_word(&mut quoted, 6, units);
            quoted
        };
        let mut six = request(GATEWAY, 1, 0, b"");
        six[0] = 0x65;
        for quoted in [reply, udp, udp_header, later(1), later(0x1FFF), six] {
            assert_eq!(Quote::check(of(&quoted)).err(), Some(Malformed::NotEchoRequest), "{quoted:02x?}");
        }
        // DF, and the first of several fragments.
        for flags in [0x4000, 0x2000] {
            assert!(Quote::check(of(&later(flags))).is_ok());
        }
        for ihl in 0..5 {
            let mut quoted = request(GATEWAY, 1, 0, b"");
            quoted[0] = 0x40 | ihl;
            assert_eq!(Quote::check(of(&quoted)).err(), Some(Malformed::Truncated));
        }
    }

    proptest! {
        #[test]
        fn restoring_neither_hides_nor_makes_damage(
            payload in prop::collection::vec(any::<u8>(), 0..40),
            options in 0..=10_usize, ident: u16, client_ident: u16, client: u32, bit in 0..64_usize, cut in 0..40_usize,
        ) {
            let mut rewritten = request(GATEWAY, ident, options * 4, &payload);
            // A router decrements the TTL before it quotes; some damage what they quote.
            Ipv4::check(&mut rewritten[..]).unwrap().set_ttl(1);
            if bit < 16 {
                rewritten[22] ^= 1 << (bit % 8);
            }
            rewritten.truncate((HEADER_LEN_MIN + options * 4 + ECHO_HEADER_LEN).max(rewritten.len().saturating_sub(cut)));
            let mut error = build::error_message(TIME_EXCEEDED, 0, 0, &rewritten);
            if (16..32).contains(&bit) {
                error[2] ^= 1 << (bit % 8);
            }
            let before = Quote::check(&error[..]).unwrap().is_intact();
            prop_assert_eq!(before, !(16..32).contains(&bit));
            let mut there = error.clone();
            let mut quote = Quote::check(&mut there[..]).unwrap();
            quote.restore(client.into(), client_ident);
            prop_assert_eq!(quote.is_intact(), before);
            prop_assert_eq!((quote.source(), quote.ident()), (client.into(), client_ident));
            quote.restore(GATEWAY, ident);
            prop_assert_eq!(there, error);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), likely: bool) {
            if likely && bytes.len() > 28 {
                bytes[0] = TIME_EXCEEDED;
                bytes[8] = 0x40 | (bytes[8] & 0x0F);
                bytes[17] = ICMP;
            }
            if let Ok(mut quote) = Quote::check(&mut bytes[..]) {
                quote.restore(CLIENT, 1);
                let _ = (quote.destination(), quote.sequence(), quote.is_intact());
                prop_assert_eq!((quote.source(), quote.ident()), (CLIENT, 1));
            }
        }
    }
}
