//! IPv4 (RFC 791): a checked view of one datagram.
//!
//! [`Ipv4::check`] remembers the header length and the total length, which it has held against the bytes received;
//! accessors use what was remembered and never read the two again. Bytes beyond the total length are padding: no
//! accessor shows them.
//!
//! The header checksum is not part of the check: the kernel verifies it where it matters, and a TUN hands over what
//! the kernel has verified. [`Ipv4::header_is_intact`] is for those who receive from elsewhere.

use std::fmt;
use std::net::Ipv4Addr;

use super::{put_word, word_at};
use crate::checksum;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Length of a header without options, in bytes.
pub const HEADER_LEN_MIN: usize = 20;
/// Length of a header with as many options as fit, in bytes.
pub const HEADER_LEN_MAX: usize = 60;

/// Offsets of the header's fields (RFC 791, section 3.1).
mod field {
    pub(super) const VERSION_IHL: usize = 0;
    pub(super) const TOS: usize = 1;
    pub(super) const TOTAL_LEN: usize = 2;
    pub(super) const IDENTIFICATION: usize = 4;
    pub(super) const FRAGMENT: usize = 6;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const SOURCE: usize = 12;
    pub(super) const DESTINATION: usize = 16;
}

/// Kinds of options (RFC 791, section 3.1).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NONE: u8 = 1;
    /// The bit of those that every fragment has.
    pub(super) const COPIED: u8 = 0x80;
    pub(super) const LOOSE_ROUTE: u8 = 131;
    pub(super) const STRICT_ROUTE: u8 = 137;
}

pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset counts units of eight bytes.
const FRAGMENT_UNITS: u16 = 0x1FFF;

/// Why bytes are not an IPv4 datagram. The first that applies, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Fewer bytes than the shortest header has.
    Truncated,
    /// The version is not 4.
    Version,
    /// The header length is below its minimum, or the header goes beyond the bytes received.
    HeaderLength,
    /// The total length is shorter than the header, or goes beyond the bytes received.
    TotalLength,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "shorter than an IPv4 header",
            Malformed::Version => "not IPv4",
            Malformed::HeaderLength => "bad header length",
            Malformed::TotalLength => "bad total length",
        })
    }
}

impl std::error::Error for Malformed {}

/// A view of bytes that hold an IPv4 datagram. `B` gives the same bytes each time it is asked (slices, vectors and
/// buffers do); one that shrank between two calls would make accessors panic.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<B> {
    bytes: B,
    header_len: usize,
    total_len: usize,
}

impl<B: AsRef<[u8]>> Ipv4<B> {
    /// Checks the version and both lengths against the bytes received.
    #[inline]
    pub fn check(bytes: B) -> Result<Ipv4<B>, Malformed> {
        let received = bytes.as_ref();
        if received.len() < HEADER_LEN_MIN {
            return Err(Malformed::Truncated);
        }
        if received[field::VERSION_IHL] >> 4 != 4 {
            return Err(Malformed::Version);
        }
        let header_len = usize::from(received[field::VERSION_IHL] & 0x0F) * 4;
        if header_len < HEADER_LEN_MIN || header_len > received.len() {
            return Err(Malformed::HeaderLength);
        }
        let total_len = usize::from(word_at(received, field::TOTAL_LEN));
        if total_len < header_len || total_len > received.len() {
            return Err(Malformed::TotalLength);
        }
        Ok(Ipv4 { bytes, header_len, total_len })
    }

    /// A view of a header of this length that has been checked elsewhere, without anything after it yet.
    pub(super) fn of_header(bytes: B, header_len: usize) -> Option<Ipv4<B>> {
        let plausible = (HEADER_LEN_MIN..=bytes.as_ref().len()).contains(&header_len);
        plausible.then_some(Ipv4 { bytes, header_len, total_len: header_len })
    }

    /// Length of the header with its options, in bytes: 20 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Length of the datagram, in bytes; padding not included.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// Type of service: DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.header()[field::TOS]
    }

    /// What the fragments of one datagram have in common.
    #[inline]
    pub fn identification(&self) -> u16 {
        word_at(self.header(), field::IDENTIFICATION)
    }

    /// Whether routers must not fragment it (DF).
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.fragment_field() & DONT_FRAGMENT != 0
    }

    /// Whether further fragments follow (MF).
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.fragment_field() & MORE_FRAGMENTS != 0
    }

    /// Where in the whole datagram's payload this one's belongs, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> usize {
        usize::from(self.fragment_field() & FRAGMENT_UNITS) * 8
    }

    /// Whether it is a fragment: the first, one between, or the last.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments() || self.fragment_offset() != 0
    }

    /// Whether it is the fragment that holds the transport header.
    #[inline]
    pub fn is_first_fragment(&self) -> bool {
        self.more_fragments() && self.fragment_offset() == 0
    }

    /// Whether it is a fragment without the transport header: its payload starts in mid-message.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment_offset() != 0
    }

    /// Time to live: hops left.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.header()[field::TTL]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.header()[field::PROTOCOL]
    }

    /// The header checksum as it stands.
    #[inline]
    pub fn header_checksum(&self) -> u16 {
        word_at(self.header(), field::CHECKSUM)
    }

    /// Whether the header checksum is right.
    #[inline]
    pub fn header_is_intact(&self) -> bool {
        let header = self.header();
        // Most headers have no options: their sum is a few additions, and no loop.
        let sum = match <&[u8; HEADER_LEN_MIN]>::try_from(header) {
            Ok(plain) => checksum::sum(plain),
            Err(_) => checksum::sum(header),
        };
        sum == 0xFFFF
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        self.address(field::SOURCE)
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        self.address(field::DESTINATION)
    }

    /// The header's options with their padding; empty for most packets.
    pub fn options(&self) -> &[u8] {
        &self.header()[HEADER_LEN_MIN..]
    }

    /// Whether an option names hosts to pass on the way, so that the destination is not where it ends (RFC 791: loose and
    /// strict source routes). Options that cannot be read end the search: nobody on the way could read on either.
    #[inline]
    pub fn has_source_route(&self) -> bool {
        self.header_len > HEADER_LEN_MIN && self.finds_source_route()
    }

    fn finds_source_route(&self) -> bool {
        let mut options = self.options();
        while let [kind, rest @ ..] = options {
            options = match *kind {
                option::END => &[],
                option::NONE => rest,
                option::LOOSE_ROUTE | option::STRICT_ROUTE => return true,
                // The length counts kind and length, too.
                _ => rest
                    .first()
                    .filter(|length| **length >= 2)
                    .and_then(|length| options.get(usize::from(*length)..))
                    .unwrap_or(&[]),
            };
        }
        false
    }

    /// The header with its options.
    #[inline]
    pub fn header(&self) -> &[u8] {
        &self.bytes.as_ref()[..self.header_len]
    }

    /// What the datagram carries; padding not included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[self.header_len..self.total_len]
    }

    #[inline]
    fn fragment_field(&self) -> u16 {
        word_at(self.header(), field::FRAGMENT)
    }

    #[inline]
    fn address(&self, at: usize) -> Ipv4Addr {
        let octets: [u8; 4] = self.bytes.as_ref()[at..at + 4].try_into().expect("four bytes");
        octets.into()
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Ipv4<B> {
    /// What the datagram carries, to be changed in place.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[self.header_len..self.total_len]
    }

    /// Replaces the source address.
    #[inline]
    pub fn set_source(&mut self, source: Ipv4Addr) {
        self.set_address(field::SOURCE, source);
    }

    /// Replaces the destination address.
    #[inline]
    pub fn set_destination(&mut self, destination: Ipv4Addr) {
        self.set_address(field::DESTINATION, destination);
    }

    /// Replaces the time to live.
    pub fn set_ttl(&mut self, ttl: u8) {
        let protocol = self.protocol();
        let old = u16::from_be_bytes([self.ttl(), protocol]);
        let new = u16::from_be_bytes([ttl, protocol]);
        self.bytes.as_mut()[field::TTL] = ttl;
        self.set_header_checksum(checksum::update(self.header_checksum(), old, new));
    }

    /// Takes one from the time to live, which stays zero if it is.
    pub fn decrement_ttl(&mut self) {
        self.set_ttl(self.ttl().saturating_sub(1));
    }

    /// Lets routers fragment the datagram.
    pub fn clear_dont_fragment(&mut self) {
        self.set_word(field::FRAGMENT, self.fragment_field() & !DONT_FRAGMENT);
    }

    /// Replaces source address and identification, both of which are the sender's to choose.
    #[inline]
    pub fn set_source_anew(&mut self, source: Ipv4Addr, identification: u16) {
        // One update for both fields: the sum does not care in how many parts it is made.
        let old = u64::from(u32::from(self.address(field::SOURCE))) + u64::from(self.identification());
        let new = u64::from(u32::from(source)) + u64::from(identification);
        let check = self.header_checksum();
        let bytes = self.bytes.as_mut();
        put_word(bytes, field::IDENTIFICATION, identification);
        bytes[field::SOURCE..field::DESTINATION].copy_from_slice(&source.octets());
        self.set_header_checksum(checksum::update_sums(check, old, new));
    }

    /// Computes the header checksum afresh. It vouches for what is there: only for a header that is known to be sound.
    pub fn renew_header_checksum(&mut self) {
        self.set_header_checksum(0);
        let check = checksum::checksum(self.header());
        self.set_header_checksum(check);
    }

    /// Replaces what the fragments of one datagram have in common.
    pub fn set_identification(&mut self, identification: u16) {
        self.set_word(field::IDENTIFICATION, identification);
    }

    /// Makes the header that of a fragment of `payload_len` bytes, which stand `offset` bytes (a multiple of eight) into the
    /// whole datagram's payload; the view is of the new length then. Refused, without a change, if the bytes there are
    /// fewer or no header can say it.
    pub(super) fn set_fragment(&mut self, payload_len: usize, offset: usize, more: bool) -> bool {
        let total_len = self.header_len + payload_len;
        let units = u16::try_from(offset / 8).ok().filter(|units| offset.is_multiple_of(8) && *units <= FRAGMENT_UNITS);
        let (Some(units), Ok(word)) = (units, u16::try_from(total_len)) else { return false };
        if total_len > self.bytes.as_ref().len() {
            return false;
        }
        let kept = self.fragment_field() & !(MORE_FRAGMENTS | FRAGMENT_UNITS);
        self.set_word(field::FRAGMENT, kept | units | if more { MORE_FRAGMENTS } else { 0 });
        self.set_word(field::TOTAL_LEN, word);
        self.total_len = total_len;
        true
    }

    /// Replaces an option that routers need not copy to later fragments by as many "no operation"s.
    pub(super) fn blank_uncopied_options(&mut self) {
        let mut at = HEADER_LEN_MIN;
        while at < self.header_len {
            let (kind, length) =
                (self.header()[at], self.header().get(at + 1).map_or(0, |length| usize::from(*length)));
            at += match kind {
                option::END => return,
                option::NONE => 1,
                // One whose length makes no sense is left to whoever makes sense of it.
                _ if length < 2 || at + length > self.header_len => return,
                _ => {
                    if kind & option::COPIED == 0 {
                        self.blank(at, length);
                    }
                    length
                }
            };
        }
    }

    fn blank(&mut self, at: usize, length: usize) {
        for byte in at..at + length {
            // The word that holds it begins at an even offset, as the header does.
            let word = byte & !1;
            let old = word_at(self.bytes.as_ref(), word);
            self.bytes.as_mut()[byte] = option::NONE;
            let new = word_at(self.bytes.as_ref(), word);
            self.set_header_checksum(checksum::update(self.header_checksum(), old, new));
        }
    }

    #[inline]
    fn set_word(&mut self, at: usize, new: u16) {
        let old = word_at(self.bytes.as_ref(), at);
        put_word(self.bytes.as_mut(), at, new);
        self.set_header_checksum(checksum::update(self.header_checksum(), old, new));
    }

    #[inline]
    fn set_address(&mut self, at: usize, new: Ipv4Addr) {
        let old = self.address(at);
        self.bytes.as_mut()[at..at + 4].copy_from_slice(&new.octets());
        self.set_header_checksum(checksum::update_u32(self.header_checksum(), old.into(), new.into()));
    }

    #[inline]
    fn set_header_checksum(&mut self, check: u16) {
        put_word(self.bytes.as_mut(), field::CHECKSUM, check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::Datagram;
    use proptest::prelude::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

    fn datagram(options_len: usize, payload_len: usize) -> Vec<u8> {
        Datagram { options: vec![1; options_len], ..Datagram::new(CLIENT, REMOTE, ICMP, vec![0xA5; payload_len]) }
            .build()
    }

    /// What `check` ought to say, from RFC 791 alone.
    fn expected(bytes: &[u8]) -> Result<(usize, usize), Malformed> {
        match bytes.len() {
            0..20 => return Err(Malformed::Truncated),
            _ if !(0x40..0x50).contains(&bytes[0]) => return Err(Malformed::Version),
            _ => {}
        }
        let header_len = usize::from(bytes[0] % 16) * 4;
        let total_len = usize::from(bytes[2]) * 256 + usize::from(bytes[3]);
        match () {
            () if !(20..=bytes.len()).contains(&header_len) => Err(Malformed::HeaderLength),
            () if !(header_len..=bytes.len()).contains(&total_len) => Err(Malformed::TotalLength),
            () => Ok((header_len, total_len)),
        }
    }

    /// Calls everything; the assertions are that nothing panics and that the parts make up the whole.
    fn exercise(bytes: &[u8]) {
        let mut copy = bytes.to_vec();
        match Ipv4::check(&mut copy[..]) {
            Err(malformed) => assert_eq!(Err(malformed), expected(bytes)),
            Ok(mut packet) => {
                assert_eq!(Ok((packet.header_len(), packet.total_len())), expected(bytes));
                assert_eq!(packet.header().len() + packet.payload().len(), packet.total_len());
                assert_eq!(packet.header().len(), HEADER_LEN_MIN + packet.options().len());
                let intact = packet.header_is_intact();
                let _ = (packet.tos(), packet.identification(), packet.dont_fragment(), packet.is_fragment());
                let _ = (packet.is_first_fragment(), packet.is_later_fragment(), packet.protocol());
                packet.set_source(REMOTE);
                packet.set_destination(CLIENT);
                packet.set_ttl(1);
                packet.clear_dont_fragment();
                packet.set_source_anew(REMOTE, 7);
                packet.set_identification(0x1234);
                packet.blank_uncopied_options();
                let _ = packet.has_source_route();
                packet.payload_mut().fill(0xFF);
                assert_eq!((packet.source(), packet.destination(), packet.ttl()), (REMOTE, CLIENT, 1));
                assert_eq!(packet.header_is_intact(), intact, "a setter hid or made damage");
            }
        }
    }

    #[test]
    fn every_truncation_of_every_header_length() {
        for options_len in (0..=40).step_by(4) {
            let whole = datagram(options_len, 12);
            for length in 0..=whole.len() {
                exercise(&whole[..length]);
                let outcome = Ipv4::check(&whole[..length]).map(|packet| packet.total_len());
                let header_len = HEADER_LEN_MIN + options_len;
                assert_eq!(
                    outcome,
                    match length {
                        0..HEADER_LEN_MIN => Err(Malformed::Truncated),
                        _ if length < header_len => Err(Malformed::HeaderLength),
                        _ if length < whole.len() => Err(Malformed::TotalLength),
                        _ => Ok(whole.len()),
                    }
                );
            }
        }
    }

    #[test]
    fn every_first_byte_with_every_lying_total_length() {
        let mut bytes = datagram(0, 60);
        for first in 0..=u8::MAX {
            bytes[field::VERSION_IHL] = first;
            for total_len in (0..=90).chain([255, 256, 1500, 32_767, 32_768, 65_535]) {
                put_word(&mut bytes, field::TOTAL_LEN, total_len);
                exercise(&bytes);
            }
        }
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut bytes = datagram(0, 8);
        bytes.extend([0xEE; 18]);
        let mut packet = Ipv4::check(bytes).unwrap();
        assert_eq!(packet.total_len(), 28);
        assert_eq!(packet.payload(), [0xA5; 8]);
        packet.payload_mut().fill(0);
        assert_eq!(packet.bytes[HEADER_LEN_MIN..], [&[0; 8][..], &[0xEE; 18]].concat());
    }

    #[test]
    fn fields_are_read_where_rfc_791_has_them() {
        let packet = Ipv4::check([
            0x46, 0xB8, 0x00, 0x1C, 0x12, 0x34, 0x40, 0x00, 0x3F, 0x11, 0xAB, 0xCD, 192, 0, 2, 1, 203, 0, 113, 9, 7, 4,
            4, 0, 0xDE, 0xAD, 0xBE, 0xEF,
        ])
        .unwrap();
        assert_eq!((packet.header_len(), packet.total_len(), packet.tos()), (24, 28, 0xB8));
        assert_eq!((packet.identification(), packet.ttl(), packet.protocol()), (0x1234, 63, UDP));
        assert_eq!((packet.header_checksum(), packet.header_is_intact()), (0xABCD, false));
        assert_eq!(packet.source(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(packet.destination(), Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!((packet.options(), packet.payload()), (&[7, 4, 4, 0][..], &[0xDE, 0xAD, 0xBE, 0xEF][..]));
        assert!(packet.dont_fragment() && !packet.is_fragment());
    }

    #[test]
    fn fragments_are_told_apart() {
        let told = |fragment: u16| {
            let mut bytes = datagram(0, 8);
            put_word(&mut bytes, field::FRAGMENT, fragment);
            let packet = Ipv4::check(bytes).unwrap();
            assert_eq!(packet.is_fragment(), packet.is_first_fragment() || packet.is_later_fragment());
            (packet.is_first_fragment(), packet.is_later_fragment(), packet.fragment_offset())
        };
        assert_eq!(told(0), (false, false, 0));
        assert_eq!(told(DONT_FRAGMENT), (false, false, 0));
        assert_eq!(told(0x8000), (false, false, 0), "the reserved bit means nothing");
        assert_eq!(told(MORE_FRAGMENTS), (true, false, 0));
        assert_eq!(told(MORE_FRAGMENTS | 185), (false, true, 1480));
        assert_eq!(told(0x1FFF), (false, true, 65_528));
    }

    #[test]
    fn a_source_route_is_found_among_other_options() {
        let with = |options: &[u8]| {
            let datagram = Datagram { options: options.to_vec(), ..Datagram::new(CLIENT, REMOTE, ICMP, vec![0; 8]) };
            Ipv4::check(datagram.build()).unwrap().has_source_route()
        };
        for (options, found) in [
            (&[][..], false),
            (&[131, 3, 4], true),
            (&[137, 3, 4], true),
            (&[1, 1, 1, 131, 7, 4, 1, 2, 3, 4], true),
            // After a record route, and within one: the second is an address.
            (&[7, 7, 4, 0, 0, 0, 0, 131, 3, 4], true),
            (&[7, 7, 4, 131, 3, 4, 0], false),
            // After the end of the options, or of what can be read.
            (&[0, 131, 3, 4], false),
            (&[0, 2, 131, 3], false),
            (&[7, 0, 131, 3], false),
            (&[7, 1, 131, 3], false),
            (&[7, 200, 131, 3], false),
            (&[1, 1, 1, 7], false),
        ] {
            assert_eq!(with(options), found, "{options:?}");
        }
    }

    #[test]
    fn a_setter_makes_what_could_have_been_built_so() {
        let sent = Datagram {
            identification: 0x1234,
            dont_fragment: true,
            options: vec![1; 4],
            ..Datagram::new(CLIENT, REMOTE, ICMP, vec![0xA5; 8])
        };
        let set = |setter: fn(&mut Ipv4<Vec<u8>>)| {
            let mut packet = Ipv4::check(sent.build()).unwrap();
            setter(&mut packet);
            packet.bytes
        };
        for (made, expected) in [
            (set(|packet| packet.set_source(GATEWAY)), Datagram { source: GATEWAY, ..sent.clone() }),
            (set(|packet| packet.set_destination(GATEWAY)), Datagram { destination: GATEWAY, ..sent.clone() }),
            (set(|packet| packet.set_ttl(1)), Datagram { ttl: 1, ..sent.clone() }),
            (set(|packet| packet.set_ttl(0)), Datagram { ttl: 0, ..sent.clone() }),
            (set(Ipv4::decrement_ttl), Datagram { ttl: 63, ..sent.clone() }),
            (set(Ipv4::clear_dont_fragment), Datagram { dont_fragment: false, ..sent.clone() }),
            (set(|packet| packet.set_identification(7)), Datagram { identification: 7, ..sent.clone() }),
            (
                set(|packet| packet.set_source_anew(GATEWAY, 7)),
                Datagram { source: GATEWAY, identification: 7, ..sent.clone() },
            ),
        ] {
            assert_eq!(made, expected.build());
        }
    }

    #[test]
    fn what_has_no_hop_left_does_not_get_255() {
        let mut packet = Ipv4::check(datagram(0, 8)).unwrap();
        packet.set_ttl(0);
        packet.decrement_ttl();
        assert_eq!((packet.ttl(), packet.header_is_intact()), (0, true));
    }

    #[test]
    fn a_renewed_header_checksum_vouches_for_what_is_there() {
        for options_len in [0, 40] {
            let mut bytes = datagram(options_len, 8);
            bytes[field::TTL] -= 1;
            let mut packet = Ipv4::check(bytes).unwrap();
            assert!(!packet.header_is_intact());
            packet.renew_header_checksum();
            assert!(packet.header_is_intact());
        }
    }

    #[test]
    fn what_later_fragments_need_not_have_becomes_no_operation() {
        for (options, left) in [
            // Up to the last byte of the header.
            ([7, 2, 7, 2], [1, 1, 1, 1]),
            ([1, 7, 3, 4], [1, 1, 1, 1]),
            // To be copied.
            ([0x87, 2, 7, 2], [0x87, 2, 1, 1]),
            // After the end of the options.
            ([0, 4, 7, 2], [0, 4, 7, 2]),
            // A length that is beyond the header, that is missing, or that makes no sense.
            ([7, 5, 7, 2], [7, 5, 7, 2]),
            ([1, 1, 1, 7], [1, 1, 1, 7]),
            ([7, 1, 7, 2], [7, 1, 7, 2]),
            ([7, 0, 7, 2], [7, 0, 7, 2]),
        ] {
            let with = |options: [u8; 4]| {
                Datagram { options: options.to_vec(), ..Datagram::new(CLIENT, REMOTE, ICMP, vec![0xA5; 8]) }.build()
            };
            let mut packet = Ipv4::check(with(options)).unwrap();
            packet.blank_uncopied_options();
            assert_eq!(packet.bytes, with(left), "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), likely: bool) {
            if likely && bytes.len() >= HEADER_LEN_MIN {
                bytes[field::VERSION_IHL] = 0x40 | (bytes[field::VERSION_IHL] & 0x0F);
                bytes[field::TOTAL_LEN] = 0;
            }
            exercise(&bytes);
        }

        #[test]
        fn setters_keep_the_header_checksum_equal_to_the_full_sum(
            header: [u8; 20], source: u32, destination: u32, ttl: u8, options in 0..=10_usize,
        ) {
            let mut bytes = datagram(options * 4, 8);
            // Everything random but the lengths and the checksum, which is computed.
            for at in [1, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19] {
                bytes[at] = header[at];
            }
            let header_len = HEADER_LEN_MIN + options * 4;
            put_word(&mut bytes, field::CHECKSUM, 0);
            let check = checksum::checksum(&bytes[..header_len]);
            put_word(&mut bytes, field::CHECKSUM, check);

            let mut packet = Ipv4::check(&mut bytes[..]).unwrap();
            packet.set_source(source.into());
            packet.set_destination(destination.into());
            packet.set_ttl(ttl);
            packet.clear_dont_fragment();
            packet.set_source_anew(destination.into(), 9);
            let updated = packet.header_checksum();
            packet.renew_header_checksum();
            let renewed = packet.header_checksum();
            put_word(&mut bytes, field::CHECKSUM, 0);
            let expected = checksum::checksum(&bytes[..header_len]);
            prop_assert_eq!((updated, renewed), (expected, expected));
        }
    }
}
