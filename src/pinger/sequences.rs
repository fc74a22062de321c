//! The sequence numbers of one socket: which flight has which.
//!
//! Numbers are given out in order, from 1, until all 65,536 have been used once; then the one that has been free for
//! longest. A number is taken from its request until the flight is over: by its reply, or by its timeout, and by nothing
//! earlier, so that a cancelled ping's number rests until no reply to it is to be expected. A number that is free keeps the
//! flight that had it last, by which duplicates and late replies are known.

use std::collections::VecDeque;

/// How many there are.
pub(super) const NUMBERS: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Sequences {
    /// The flight that has, or last had, each number; as many as have ever been used.
    flights: Vec<u32>,
    /// Numbers that are free again, in the order in which they became so.
    free: VecDeque<u16>,
    in_use: usize,
}

/// The number at a place: 1 comes first, 0 last.
fn number_at(place: usize) -> u16 {
    u16::try_from((place + 1) % NUMBERS).unwrap_or(0)
}

fn place_of(number: u16) -> usize {
    (usize::from(number) + NUMBERS - 1) % NUMBERS
}

impl Sequences {
    pub(super) fn new() -> Sequences {
        Sequences { flights: Vec::new(), free: VecDeque::new(), in_use: 0 }
    }

    /// Whether a number is to be had.
    pub(super) fn has_free(&self) -> bool {
        self.in_use < NUMBERS
    }

    /// Gives a number to a flight. With it the flight that had it before, which nobody will know any more.
    pub(super) fn take(&mut self, flight: u32) -> Option<(u16, Option<u32>)> {
        let (number, before) = if self.flights.len() < NUMBERS {
            self.flights.push(flight);
            (number_at(self.flights.len() - 1), None)
        } else {
            let number = self.free.pop_front()?;
            (number, Some(std::mem::replace(&mut self.flights[place_of(number)], flight)))
        };
        self.in_use += 1;
        Some((number, before))
    }

    /// The number's flight is over.
    pub(super) fn give_back(&mut self, number: u16) {
        self.free.push_back(number);
        self.in_use -= 1;
    }

    /// Every number that has ever been taken, with the flight that has it, or had it last.
    pub(super) fn given(&self) -> impl Iterator<Item = (u16, u32)> {
        self.flights.iter().enumerate().map(|(place, flight)| (number_at(place), *flight))
    }

    /// Numbers that are taken.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// The flight that has the number, or had it last.
    pub(super) fn flight(&self, number: u16) -> Option<u32> {
        self.flights.get(place_of(number)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_order_and_then_the_one_that_rested_longest() {
        let mut sequences = Sequences::new();
        for flight in 0..65_536_u32 {
            let expected = u16::try_from((flight + 1) % 65_536).unwrap();
            // Free again at once, and still not used before all others.
            assert_eq!(sequences.take(flight), Some((expected, None)));
            assert_eq!(sequences.flight(expected), Some(flight));
            if flight % 2 == 0 {
                sequences.give_back(expected);
            }
        }
        assert_eq!(sequences.take(70_000), Some((1, Some(0))));
        assert_eq!(sequences.take(70_001), Some((3, Some(2))));
        sequences.give_back(1);
        for _ in 2..32_768 {
            assert!(sequences.take(70_002).is_some());
        }
        assert!(sequences.has_free());
        assert_eq!(sequences.take(70_003), Some((1, Some(70_000))));
        assert!(!sequences.has_free());
        assert_eq!(sequences.take(70_004), None);
        assert_eq!(sequences.flight(1), Some(70_003));
    }
}
