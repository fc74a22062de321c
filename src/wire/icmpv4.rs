//! ICMP for IPv4 (RFC 792): its types, and a checked view of an echo request or reply.
//!
//! The identifier is the one field that is rewritten. [`Echo::set_ident`] keeps the checksum as right, or as wrong, as
//! it was. RFC 1624 does that by itself but for the two zeros of one's-complement arithmetic: a reply that is zero from
//! end to end must carry 0xFFFF (its sum is 0x0000, all other sums that are multiples of 65,535 are 0xFFFF), and
//! such a reply that carries 0x0000 is damaged. Only a checksum of 0x0000 before or after can be such a case, so the
//! message is scanned for one in 65,536 packets, not for each.
//!
//! Limit: a first fragment is not a whole message; of a reply in fragments (the kernel reassembles before a raw socket
//! sees it) the scan would look at the first only.

use std::fmt;

use super::{put_word, word_at};
use crate::canary::{Canary, is_loose};
use crate::checksum;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Code of a destination unreachable: no route to its network.
pub const CODE_NET_UNREACHABLE: u8 = 0;
/// Code of a destination unreachable: nobody there.
pub const CODE_HOST_UNREACHABLE: u8 = 1;
/// Code of a destination unreachable: too big for the next link, and not to be fragmented.
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of a destination unreachable: communication administratively prohibited (RFC 1812, section 5.2.7.1).
pub const CODE_PROHIBITED: u8 = 13;
/// Source quench (obsolete).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// Length of the header of an echo message, in bytes.
pub const ECHO_HEADER_LEN: usize = 8;

/// Offsets of an echo's fields (RFC 792, page 14).
mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const CHECKSUM: usize = 2;
    pub(super) const IDENT: usize = 4;
    pub(super) const SEQUENCE: usize = 6;
}

/// Why bytes are not an echo message. The first that applies, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than an echo's header has.
    Truncated,
    /// Another type of ICMP message. Not an error of the sender's: an echo is only one of many.
    NotEcho,
    /// An echo's type, and a code that is not zero.
    Code,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "shorter than an ICMP echo",
            Malformed::NotEcho => "not an ICMP echo",
            Malformed::Code => "an ICMP echo with a code",
        })
    }
}

impl std::error::Error for Malformed {}

/// The two kinds of echo message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EchoKind {
    /// Type 8.
    Request,
    /// Type 0.
    Reply,
}

impl EchoKind {
    /// Its type on the wire.
    pub const fn icmp_type(self) -> u8 {
        match self {
            EchoKind::Request => ECHO_REQUEST,
            EchoKind::Reply => ECHO_REPLY,
        }
    }
}

/// A view of bytes, the payload of an IPv4 datagram, that hold an echo message. Of `B` it asks what `Ipv4` does.
#[derive(Clone, Copy, Debug)]
pub struct Echo<B> {
    bytes: B,
    kind: EchoKind,
}

impl<B: AsRef<[u8]>> Echo<B> {
    /// Checks length, type and code. Not the checksum: a damaged echo is passed on, damaged.
    #[inline]
    pub fn check(bytes: B) -> Result<Echo<B>, Malformed> {
        let message = bytes.as_ref();
        if message.len() < ECHO_HEADER_LEN {
            return Err(Malformed::Truncated);
        }
        let kind = match message[field::TYPE] {
            ECHO_REQUEST => EchoKind::Request,
            ECHO_REPLY => EchoKind::Reply,
            _ => return Err(Malformed::NotEcho),
        };
        if message[field::CODE] != 0 {
            return Err(Malformed::Code);
        }
        Ok(Echo { bytes, kind })
    }

    /// Request or reply.
    #[inline]
    pub fn kind(&self) -> EchoKind {
        self.kind
    }

    /// The checksum as it stands.
    #[inline]
    pub fn checksum(&self) -> u16 {
        word_at(self.bytes.as_ref(), field::CHECKSUM)
    }

    /// Whether the checksum is right.
    pub fn is_intact(&self) -> bool {
        checksum::sum(self.bytes.as_ref()) == 0xFFFF
    }

    /// The identifier.
    #[inline]
    pub fn ident(&self) -> u16 {
        word_at(self.bytes.as_ref(), field::IDENT)
    }

    /// The sequence number.
    #[inline]
    pub fn sequence(&self) -> u16 {
        word_at(self.bytes.as_ref(), field::SEQUENCE)
    }

    /// What the remote sends back.
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[ECHO_HEADER_LEN..]
    }

    /// Whether the message is zero from end to end, the checksum aside.
    #[cold]
    fn is_zero(&self) -> bool {
        self.kind == EchoKind::Reply && self.bytes.as_ref()[field::IDENT..].iter().all(|&byte| byte == 0)
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Echo<B> {
    /// Replaces the identifier. An intact message stays intact and a damaged one damaged.
    #[inline]
    pub fn set_ident(&mut self, ident: u16) {
        let (old_ident, old_check) = (self.ident(), self.checksum());
        if ident == old_ident {
            return;
        }
        let damaged_zero = old_check == 0 && self.is_zero();
        put_word(self.bytes.as_mut(), field::IDENT, ident);
        if is_loose(Canary::HiddenDamage) {
            put_word(self.bytes.as_mut(), field::CHECKSUM, 0);
            let afresh = checksum::checksum(self.bytes.as_ref());
            return put_word(self.bytes.as_mut(), field::CHECKSUM, afresh);
        }
        let updated = checksum::update(old_check, old_ident, ident);
        let check = if damaged_zero {
            // The update takes the wrong zero for the right one; this is off by one, so never right.
            updated ^ 1
        } else if updated == 0 && self.is_zero() {
            0xFFFF
        } else {
            updated
        };
        put_word(self.bytes.as_mut(), field::CHECKSUM, check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build;
    use proptest::prelude::*;

    fn recomputed(message: &[u8]) -> u16 {
        let mut message = message.to_vec();
        put_word(&mut message, field::CHECKSUM, 0);
        checksum::checksum(&message)
    }

    #[test]
    fn every_truncation_is_told() {
        let whole = build::echo_message(EchoKind::Request, 1, 2, &[3; 20]);
        for length in 0..=whole.len() {
            let outcome = Echo::check(&whole[..length]).map(|echo| echo.payload().len());
            let expected = length.checked_sub(ECHO_HEADER_LEN).ok_or(Malformed::Truncated);
            assert_eq!(outcome, expected);
        }
    }

    #[test]
    fn only_types_0_and_8_with_code_0_are_echoes() {
        for icmp_type in 0..=u8::MAX {
            for code in 0..=u8::MAX {
                let outcome = Echo::check([icmp_type, code, 0, 0, 0, 0, 0, 0]).map(|echo| echo.kind());
                let expected = match (icmp_type, code) {
                    (0, 0) => Ok(EchoKind::Reply),
                    (8, 0) => Ok(EchoKind::Request),
                    (0 | 8, _) => Err(Malformed::Code),
                    _ => Err(Malformed::NotEcho),
                };
                assert_eq!(outcome, expected);
            }
        }
    }

    #[test]
    fn fields_are_read_where_rfc_792_has_them() {
        let echo = Echo::check([8, 0, 0x12, 0x34, 0x56, 0x78, 0x9A, 0xBC, 0xDE]).unwrap();
        assert_eq!((echo.kind(), echo.checksum()), (EchoKind::Request, 0x1234));
        assert_eq!((echo.ident(), echo.sequence(), echo.payload()), (0x5678, 0x9ABC, &[0xDE][..]));
    }

    #[test]
    fn a_reply_that_becomes_all_zero_carries_ffff() {
        for payload in [&[][..], &[0], &[0; 56], &[0; 57]] {
            let mut message = build::echo_message(EchoKind::Reply, 0x1234, 0, payload);
            let mut echo = Echo::check(&mut message[..]).unwrap();
            echo.set_ident(0);
            assert_eq!((echo.checksum(), echo.is_intact()), (0xFFFF, true));
            echo.set_ident(0);
            assert_eq!(echo.checksum(), 0xFFFF);
            echo.set_ident(0x1234);
            assert_eq!(message, build::echo_message(EchoKind::Reply, 0x1234, 0, payload));
        }
    }

    #[test]
    fn a_sum_of_zero_alone_does_not_make_it_ffff() {
        // Not all zero, and yet the checksum becomes 0x0000 because the words add up to 0xFFFF.
        let mut message = build::echo_message(EchoKind::Reply, 1, 0xFFF0, &[0; 8]);
        let mut echo = Echo::check(&mut message[..]).unwrap();
        echo.set_ident(0x000F);
        assert_eq!((echo.checksum(), echo.is_intact()), (0, true));
    }

    #[test]
    fn the_wrong_zero_stays_wrong() {
        for ident in 1..=u16::MAX {
            let mut echo = Echo::check([0; 12]).unwrap();
            assert!(!echo.is_intact());
            echo.set_ident(ident);
            assert!(!echo.is_intact(), "{ident:#06x} mended it");
            echo.set_ident(0);
            assert!(!echo.is_intact(), "{ident:#06x} and back mended it");
        }
    }

    #[test]
    fn every_ident_gives_what_the_full_sum_gives() {
        for kind in [EchoKind::Request, EchoKind::Reply] {
            for (first, sequence, payload) in [(0, 0, &[0; 9][..]), (1, 0, &[]), (0xFFFF, 0xFFFF, &[0xFF; 3])] {
                let mut message = build::echo_message(kind, first, sequence, payload);
                for ident in (1..=u16::MAX).chain([0]) {
                    Echo::check(&mut message[..]).unwrap().set_ident(ident);
                    assert_eq!(word_at(&message, field::CHECKSUM), recomputed(&message), "{kind:?} {ident:#06x}");
                }
            }
        }
    }

    /// Bytes of a payload, zeros and ones (the corners) far more often than chance has them.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            prop::collection::vec(prop_oneof![Just(0), Just(0xFF)], 0..6),
            (0..80_usize).prop_map(|length| vec![0; length]),
        ]
    }

    fn word() -> impl Strategy<Value = u16> {
        prop_oneof![any::<u16>(), Just(0), Just(1), Just(0xFFFE), Just(0xFFFF)]
    }

    fn kind() -> impl Strategy<Value = EchoKind> {
        prop_oneof![Just(EchoKind::Request), Just(EchoKind::Reply)]
    }

    proptest! {
        #[test]
        fn there_and_back_restores_every_byte(
            kind in kind(), first in word(), second in word(), sequence in word(), payload in payload(),
        ) {
            let original = build::echo_message(kind, first, sequence, &payload);
            let mut message = original.clone();
            Echo::check(&mut message[..]).unwrap().set_ident(second);
            prop_assert_eq!(&message, &build::echo_message(kind, second, sequence, &payload));
            Echo::check(&mut message[..]).unwrap().set_ident(first);
            prop_assert_eq!(message, original);
        }

        #[test]
        fn damage_is_neither_hidden_nor_made(
            kind in kind(), first in word(), second in word(), sequence in word(), payload in payload(), check in word(),
        ) {
            let mut message = build::echo_message(kind, first, sequence, &payload);
            put_word(&mut message, field::CHECKSUM, check);
            let mut echo = Echo::check(&mut message[..]).unwrap();
            let intact = echo.is_intact();
            echo.set_ident(second);
            prop_assert_eq!(echo.is_intact(), intact);
            echo.set_ident(first);
            prop_assert_eq!(echo.is_intact(), intact);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), ident: u16) {
            let mut bytes = bytes;
            if let Ok(mut echo) = Echo::check(&mut bytes[..]) {
                echo.set_ident(ident);
                prop_assert_eq!(echo.ident(), ident);
                let _ = (echo.sequence(), echo.payload(), echo.is_intact());
            }
        }
    }
}
