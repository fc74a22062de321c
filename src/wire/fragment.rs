//! Cutting a datagram, or a fragment of one, into fragments that fit (RFC 791, section 3.2).
//!
//! Each piece has the datagram's header, with every option in the first piece and those that are to be copied in the
//! others, and keeps its identification: so a datagram must have one that is its own before it is cut.

use std::ops::Range;

use super::ipv4::{HEADER_LEN_MAX, Ipv4};
use crate::canary::{Canary, is_loose};

/// What every link carries (RFC 791, section 3.2): a header with all options, and eight bytes.
pub const MTU_MIN: usize = HEADER_LEN_MAX + 8;

/// The parts of the packet's payload, in bytes and in order, whose fragments are no longer than `mtu`. None if the packet
/// is not to be fragmented, or if no such fragment could hold anything.
pub fn parts<B: AsRef<[u8]>>(
    packet: &Ipv4<B>,
    mtu: usize,
) -> Option<impl ExactSizeIterator<Item = Range<usize>> + use<B>> {
    // All but the last have a multiple of eight bytes.
    let room = mtu.checked_sub(packet.header_len())? / 8 * 8;
    if packet.dont_fragment() && !is_loose(Canary::CutsAnything) || room == 0 {
        return None;
    }
    let payload_len = packet.payload().len();
    Some((0..payload_len.div_ceil(room)).map(move |number| number * room..payload_len.min((number + 1) * room)))
}

/// Writes the fragment for one of a packet's [`parts`] into `piece`, which has room for the packet's header and the part.
/// Whether it could.
#[must_use]
pub fn write<B: AsRef<[u8]>>(packet: &Ipv4<B>, part: Range<usize>, piece: &mut [u8]) -> bool {
    let Some(bytes) = packet.payload().get(part.clone()) else { return false };
    let header_len = packet.header_len();
    if piece.len() != header_len + bytes.len() {
        return false;
    }
    piece[..header_len].copy_from_slice(packet.header());
    piece[header_len..].copy_from_slice(bytes);
    let Some(mut fragment) = Ipv4::of_header(piece, header_len) else { return false };
    if part.start > 0 {
        fragment.blank_uncopied_options();
    }
    let more = packet.more_fragments() || part.end < packet.payload().len();
    fragment.set_fragment(part.len(), packet.fragment_offset() + part.start, more)
}

/// Cuts the packet in `bytes` to the first of its [`parts`], which ends at `end`. Its length then; none if it cannot be.
#[must_use]
pub fn cut(bytes: &mut [u8], end: usize) -> Option<usize> {
    let mut packet = Ipv4::check(bytes).ok()?;
    let more = packet.more_fragments() || end < packet.payload().len();
    let offset = packet.fragment_offset();
    packet.set_fragment(end, offset, more).then(|| packet.total_len())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::build::Datagram;
    use crate::wire::ipv4::{HEADER_LEN_MIN, ICMP};

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    /// The pieces of a packet, as the worker makes them.
    fn pieces(bytes: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
        let packet = Ipv4::check(bytes).unwrap();
        let parts = parts(&packet, mtu)?;
        let pieces = parts.map(|part| {
            let mut piece = vec![0xEE; packet.header_len() + part.len()];
            assert!(write(&packet, part.clone(), &mut piece));
            if part.start == 0 {
                let mut cut_in_place = bytes.to_vec();
                let length = cut(&mut cut_in_place, part.end).unwrap();
                assert_eq!(cut_in_place[..length], piece);
            }
            piece
        });
        Some(pieces.collect())
    }

    proptest! {
        /// Put together again they are the packet, none is too long, and each header is as good as the packet's was.
        #[test]
        fn the_pieces_are_the_packet(
            payload in prop::collection::vec(any::<u8>(), 0..3000), mtu in MTU_MIN..1500, units in 0..4000_usize,
            more_fragments: bool, copied: bool, damaged: bool,
        ) {
            let kind = if copied { 0x94 } else { 7 };
            // A middle fragment has a multiple of eight bytes.
            let length = if more_fragments { payload.len() / 8 * 8 } else { payload.len() };
            let datagram = Datagram {
                identification: 0x4321,
                more_fragments,
                fragment_offset: units * 8,
                options: vec![1, kind, 4, 5, 6],
                ..Datagram::new(CLIENT, REMOTE, ICMP, payload[..length].to_vec())
            };
            let mut bytes = datagram.build();
            if damaged {
                bytes[1] ^= 1;
            }
            let made = pieces(&bytes, mtu).unwrap();
            let mut rebuilt = Vec::new();
            for (number, piece) in made.iter().enumerate() {
                let piece = Ipv4::check(&piece[..]).unwrap();
                prop_assert!(piece.total_len() <= mtu);
                prop_assert_eq!(piece.header_is_intact(), !damaged);
                prop_assert_eq!(piece.fragment_offset(), units * 8 + rebuilt.len());
                prop_assert_eq!(piece.more_fragments(), more_fragments || number + 1 < made.len());
                prop_assert_eq!((piece.identification(), piece.source(), piece.destination()), (0x4321, CLIENT, REMOTE));
                let kept = number == 0 || copied;
                let expected = if kept { [1, kind, 4, 5, 6, 0, 0, 0] } else { [1, 1, 1, 1, 1, 0, 0, 0] };
                prop_assert_eq!(piece.options(), expected);
                rebuilt.extend_from_slice(piece.payload());
            }
            prop_assert_eq!(&rebuilt[..], &payload[..length]);
        }
    }

    #[test]
    fn what_must_stay_whole_or_finds_no_room_is_not_cut() {
        let whole = Datagram::new(CLIENT, REMOTE, ICMP, vec![7; 2000]);
        assert_eq!(pieces(&Datagram { dont_fragment: true, ..whole.clone() }.build(), 1500), None);
        for mtu in [0, 19, 20, 27] {
            assert_eq!(pieces(&whole.build(), mtu), None);
        }
        assert_eq!(pieces(&whole.build(), 28).map(|pieces| pieces.len()), Some(250));
        // With all options that a header can have.
        let full = Datagram { options: vec![1; 40], ..whole }.build();
        assert_eq!(pieces(&full, MTU_MIN - 1), None);
        assert_eq!(pieces(&full, MTU_MIN).map(|pieces| pieces.len()), Some(250));
    }

    #[test]
    fn what_no_header_can_say_or_has_no_room_is_not_written() {
        for (fragment_offset, part, room) in [
            // In mid-unit; behind the last unit that has a number; behind the payload.
            (0, 4..12, 8),
            (65_528, 8..16, 8),
            (0, 8..24, 16),
            // Too little room, and too much.
            (0, 0..8, 7),
            (0, 0..8, 9),
        ] {
            let whole = Datagram { fragment_offset, ..Datagram::new(CLIENT, REMOTE, ICMP, vec![7; 16]) }.build();
            let mut piece = vec![0xEE; HEADER_LEN_MIN + room];
            assert!(!write(&Ipv4::check(&whole[..]).unwrap(), part.clone(), &mut piece), "{part:?} into {room}");
        }
    }
}
