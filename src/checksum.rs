//! The internet checksum: RFC 1071's sum, and RFC 1624's update of a checksum when a field changes.
//!
//! One's-complement arithmetic has two zeros, 0x0000 and 0xFFFF, and the rules here keep them apart. A [`sum`] is
//! 0x0000 only for bytes that are all zero, so a checksum is 0xFFFF only over all-zero bytes; an update always lands
//! on a sum of 0xFFFF where the true sum is a multiple of 65,535. The two differ in one case, data that *becomes* all
//! zero, which an update cannot see: `wire::icmpv4` settles it. Everywhere else `update` gives what the full sum gives.
//!
//! An update carries damage along: whoever forwards a packet updates, and recomputes nothing, because a checksum
//! computed afresh over damaged bytes would vouch for them.

/// The one's-complement sum of `bytes` as big-endian 16-bit words, folded; an odd last byte counts as a word's upper
/// half. Bytes that include a valid checksum sum to 0xFFFF. Right for up to 16 GiB.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // RFC 1071, section 2 (B): the sum does not depend on the byte order, except that its own bytes come out swapped.
    // So add native words, as wide as the compiler cares to make them, and swap once. Carries collect in the upper
    // half of the u64s and are folded in at the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|&word| u64::from(u32::from_ne_bytes(word))).sum();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        total += u64::from(u32::from_ne_bytes(last));
    }
    u16::from_be(fold(total))
}

/// The checksum to store for `bytes`, whose checksum field must be zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The checksum after a 16-bit word that it covers changed from `old` to `new`: RFC 1624, equation 3,
/// `HC' = ~(~HC + ~m + m')`.
#[inline]
pub fn update(check: u16, old: u16, new: u16) -> u16 {
    !add(add(!check, !old), new)
}

/// The checksum after a 32-bit field (an address), aligned to 16 bits, changed from `old` to `new`.
#[inline]
pub fn update_u32(check: u16, old: u32, new: u32) -> u16 {
    // A 32-bit word is congruent to the sum of its halves modulo 65,535, so it need not be taken apart.
    !fold(u64::from(!check) + u64::from(!old) + u64::from(new))
}

/// The checksum after fields that it covers, aligned to 16 bits, changed, given the sum of their old values and the sum of
/// their new ones as numbers, each below 2^33.
#[inline]
pub fn update_sums(check: u16, old: u64, new: u64) -> u16 {
    // The negative of a number of 48 bits, in one's complement.
    !fold(u64::from(!check) + (0xFFFF_FFFF_FFFF - old) + new)
}

/// Adds in one's complement: the carry comes back in at the other end. Zero only for zeros.
#[inline]
fn add(one: u16, other: u16) -> u16 {
    let (sum, carry) = one.overflowing_add(other);
    sum + u16::from(carry) // with a carry the sum is 0xFFFE at most
}

/// The sum of a number's 16-bit words. Zero only for zero.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
fn fold(total: u64) -> u16 {
    let (half, carry) = (total as u32).overflowing_add((total >> 32) as u32);
    let half = half + u32::from(carry); // as in `add`
    add(half as u16, (half >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word: the slow, obvious version.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total: u16 = 0;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (added, carry) = total.overflowing_add(word);
            total = added + u16::from(carry);
        }
        total
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7]), 0xDDF2);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: equation 2 of RFC 1141 would give 0xFFFF here.
        assert_eq!(update(0xDD2F, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn every_short_length_of_every_filling() {
        for length in 0..=130 {
            for filling in [0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF] {
                let bytes = vec![filling; length];
                assert_eq!(sum(&bytes), slow_sum(&bytes), "{length} bytes of {filling:#04x}");
            }
        }
    }

    #[test]
    fn carries_of_the_largest_datagram_are_all_folded() {
        for filling in [0x00, 0x01, 0xFE, 0xFF] {
            let bytes = vec![filling; 65_535];
            assert_eq!(sum(&bytes), slow_sum(&bytes));
        }
    }

    #[test]
    fn only_zeros_sum_to_zero() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0; 64]), 0);
        assert_eq!(checksum(&[0; 64]), 0xFFFF);
        assert_eq!(sum(&[0xFF; 64]), 0xFFFF);
        assert_eq!(sum(&[0xFF, 0xFE, 0x00, 0x01]), 0xFFFF);
        assert_eq!(checksum(&[0xFF, 0xFE, 0x00, 0x01]), 0);
    }

    #[test]
    fn an_update_that_ends_all_zero_gives_the_other_zero() {
        // The full sum says 0xFFFF; the update cannot know that nothing else is there.
        let check = checksum(&[0x12, 0x34]);
        assert_eq!(update(check, 0x1234, 0), 0x0000);
        assert_eq!(checksum(&[0, 0]), 0xFFFF);
    }

    #[test]
    fn every_delta_equals_the_full_sum() {
        // `other` is all that the checksum covers besides the word that changes; never zero, as no packet that an
        // update is used on is (the corner is the test above).
        for other in [0x0001, 0x0800, 0x4500, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF_u16] {
            for old in [0x0000, 0x0001, 0x00FF, 0x1234, 0x8000, 0xFFFE, 0xFFFF_u16] {
                let covers = |word: u16| checksum(&[other.to_be_bytes(), word.to_be_bytes()].concat());
                let check = covers(old);
                for new in 0..=u16::MAX {
                    assert_eq!(update(check, old, new), covers(new), "{other:#06x}: {old:#06x} -> {new:#06x}");
                }
            }
        }
    }

    #[test]
    fn fold_keeps_the_remainder_and_leaves_no_carry() {
        // The last one needs all four steps; only a sum over more than 256 KiB gets there.
        for total in [0, 1, 0xFFFF, 0x1_0000, u64::from(u32::MAX), u64::MAX, 0x1_0000_FFFF_FFFF] {
            let expected = if total == 0 { 0 } else { (total - 1) % 0xFFFF + 1 };
            assert_eq!(u64::from(fold(total)), expected, "{total:#x}");
        }
    }

    proptest! {
        #[test]
        fn sum_equals_the_slow_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes), slow_sum(&bytes));
        }

        #[test]
        fn sum_does_not_depend_on_alignment(bytes in prop::collection::vec(any::<u8>(), 16..200), skip in 0_usize..16) {
            prop_assert_eq!(sum(&bytes[skip..]), slow_sum(&bytes[skip..]));
        }

        #[test]
        fn update_u32_equals_two_updates(check: u16, old: [u16; 2], new: [u16; 2]) {
            let wide = |halves: [u16; 2]| u32::from(halves[0]) << 16 | u32::from(halves[1]);
            let twice = update(update(check, old[0], new[0]), old[1], new[1]);
            prop_assert_eq!(update_u32(check, wide(old), wide(new)) % 0xFFFF, twice % 0xFFFF);
        }

        #[test]
        fn update_sums_equals_one_update_after_the_other(check: u16, [a, b]: [u32; 2], [c, d]: [u32; 2]) {
            let (old, new) = (u64::from(a) + u64::from(b), u64::from(c) + u64::from(d));
            let updated = update_sums(check, old, new);
            // One that stays all zero (see above) is the other zero.
            prop_assert_eq!(updated % 0xFFFF, update_u32(update_u32(check, a, c), b, d) % 0xFFFF);
            prop_assert_ne!(updated, 0xFFFF);
        }

        #[test]
        fn update_u32_equals_the_full_sum(mut bytes in prop::collection::vec(any::<u8>(), 5..100), new: u32) {
            bytes[4] |= 1;
            let check = checksum(&bytes);
            let old = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes[..4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update_u32(check, old, new), checksum(&bytes));
        }

        #[test]
        fn damage_stays_as_large_as_it_was(check: u16, old: u16, new: u16, other in 1..=u16::MAX) {
            let error = |check: u16, word: u16| {
                (u32::from(check) + u32::from(word) + u32::from(other)) % 0xFFFF
            };
            prop_assert_eq!(error(update(check, old, new), new), error(check, old));
        }
    }
}
