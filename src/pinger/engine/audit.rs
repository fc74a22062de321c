//! Whether what the engine knows agrees with itself: for tests and for the fuzzer.

use super::Engine;
use crate::pinger::flights::Phase;

impl<I> Engine<I> {
    /// Holds flights, timers, sequence numbers and patience against one another; what contradicts.
    pub(in crate::pinger) fn audit(&mut self) -> Result<(), String> {
        let mut numbers_taken = vec![0; self.channels.len()];
        let mut flying = 0;
        for number in self.flights.numbers() {
            let Some(flight) = self.flights.get(number) else { continue };
            let (phase, key, socket, sequence) = (flight.phase, flight.key, flight.socket, flight.sequence);
            // One that ended otherwise than by its time may still stand among the overdue, who are asked whether they fly.
            let is_overdue = phase == Phase::Flying && self.overdue.contains(&(number, key));
            let is_timed = self.wheel.is_set(number) || is_overdue;
            let should_be = match phase {
                Phase::Due | Phase::Resolving | Phase::Flying => true,
                // Until its number has rested.
                Phase::Cancelled => is_timed,
                Phase::Answered | Phase::TimedOut | Phase::Failed => false,
            };
            if is_timed != should_be {
                return Err(format!("flight {number} is {phase:?}, and has a timer: {is_timed}"));
            }
            if matches!(phase, Phase::Due | Phase::Resolving) {
                continue;
            }
            if self.channels[socket].sequences.flight(sequence) != Some(number) {
                return Err(format!("flight {number} is {phase:?} without its sequence number {sequence}"));
            }
            flying += usize::from(phase == Phase::Flying);
            numbers_taken[socket] += usize::from(is_timed);
        }
        for (socket, channel) in self.channels.iter().enumerate() {
            for (sequence, number) in channel.sequences.given() {
                // Whoever gets the number next removes this record, and must not remove another's.
                let has_it = self.flights.get(number).is_some_and(|flight| {
                    let had = !matches!(flight.phase, Phase::Due | Phase::Resolving);
                    had && (flight.socket, flight.sequence) == (socket, sequence)
                });
                if !has_it {
                    return Err(format!(
                        "sequence number {sequence} says that flight {number} had it, which it had not"
                    ));
                }
            }
        }
        let numbers_known: Vec<_> = self.channels.iter().map(|channel| channel.sequences.in_use()).collect();
        if numbers_taken != numbers_known {
            return Err(format!("{numbers_taken:?} flights have a number, and {numbers_known:?} are taken"));
        }
        if self.patience.under_way() != flying {
            return Err(format!("{flying} fly, and {} are waited for", self.patience.under_way()));
        }
        Ok(())
    }

    /// Sequence numbers that are taken, of all sockets.
    pub(in crate::pinger) fn numbers_in_use(&self) -> usize {
        self.channels.iter().map(|channel| channel.sequences.in_use()).sum()
    }
}
