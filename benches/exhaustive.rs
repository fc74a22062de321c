//! All 2^32 pairs of a checksum and a change of a word that it covers: the incremental update against the sum taken anew.
//! `scripts/exhaustive` runs all of them; the tests run a few checksums with all changes.

use echogate::checksum::{checksum, update, update_sums, update_u32};

/// With every change of a word each: 2^16 checksums are all that there are.
const FEW: [u16; 6] = [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF];

fn main() {
    let all = std::env::args().any(|argument| argument == "--bench");
    let began = std::time::Instant::now();
    let differ: u64 =
        if all { (0..=u16::MAX).map(changes_of).sum() } else { FEW.into_iter().map(changes_of).sum::<u64>() };
    let pairs = (if all { 1 << 16 } else { FEW.len() as u64 }) << 16;
    // All zero before and after: the update gives the other zero, as the module says; nothing else differs.
    assert_eq!(differ, 1, "of {pairs} pairs so many are off");
    #[expect(clippy::print_stdout, reason = "a program that is run for what it prints")]
    {
        println!(
            "{pairs} pairs of checksum and change, three ways of updating each: equal to the full sum in all but the one that \
             stays all zero ({:.0} s)",
            began.elapsed().as_secs_f64()
        );
    }
}

/// Tries every change of a word with this checksum before it. How often update and sum differ.
fn changes_of(check: u16) -> u64 {
    let mut differ = 0;
    for delta in 0..=u16::MAX {
        // Any word will do as the old one, so each change has another; the rest of what is covered follows from it. Only what
        // is all zero has the checksum 0xFFFF.
        let (other, old) =
            if check == 0xFFFF { (0, 0) } else { rest(!check, check.wrapping_mul(31) ^ delta.rotate_left(5)) };
        debug_assert_eq!(slow(other, old), check);
        let new = old.wrapping_add(delta);
        let anew = slow(other, new);
        let wide = |word: u16| u32::from(word) | u32::from(other) << 16;
        let updated = [
            update(check, old, new),
            update_u32(check, wide(old), wide(new)),
            update_sums(check, old.into(), new.into()),
        ];
        if updated != [anew; 3] {
            differ += 1;
            assert!(other == 0 && new == 0, "{check:#06x}, {old:#06x} -> {new:#06x}: {updated:04x?}, not {anew:#06x}");
        }
        if delta & 0xFFF == 0 {
            assert_eq!(checksum(&[other.to_be_bytes(), new.to_be_bytes()].concat()), anew);
        }
    }
    differ
}

/// The word, never zero, that makes this sum together with `old`.
fn rest(sum: u16, old: u16) -> (u16, u16) {
    let other = (u32::from(sum) + 65_535 - u32::from(old) % 65_535) % 65_535;
    (u16::try_from(other).ok().filter(|other| *other != 0).unwrap_or(0xFFFF), old)
}

/// The checksum over two words, by adding with the carry brought round.
fn slow(one: u16, other: u16) -> u16 {
    let (sum, carry) = one.overflowing_add(other);
    !(sum + u16::from(carry))
}
