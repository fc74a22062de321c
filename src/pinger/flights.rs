//! What the engine knows about each ping: a slab of flights.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::many::Gathering;
use super::options::PingOptions;
use super::payload::COOKIE_LEN;
use super::slots::Key;
use crate::clock::Instant;

/// How far a flight is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Its time to be sent has not come. Timer: that time.
    Due,
    /// Its name is being resolved. Timer: its deadline.
    Resolving,
    /// It has a sequence number and is sent. Timer: its deadline.
    Flying,
    /// Its caller is gone. Timer: its deadline, until which the number rests.
    Cancelled,
    /// It had its reply. No timer, as for all that follow.
    Answered,
    /// It had no reply in time.
    TimedOut,
    /// It ended otherwise.
    Failed,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) key: Key,
    /// Where the outcome is to be announced besides.
    pub(super) gathering: Option<(Arc<Gathering>, u32)>,
    /// Its number in its stream.
    pub(super) number: u64,
    /// Whether its sending is announced.
    pub(super) refill: bool,
    /// How late its outcome may be told.
    pub(super) patience: Duration,
    pub(super) options: PingOptions,
    pub(super) phase: Phase,
    /// When it is, or was, due to be sent.
    pub(super) begins: Instant,
    pub(super) deadline: Instant,
    pub(super) to: SocketAddr,
    pub(super) socket: usize,
    pub(super) sequence: u16,
    pub(super) cookie: [u8; COOKIE_LEN],
    /// Tries to send it.
    pub(super) attempts: u8,
    /// When it was handed to the kernel, by our clock and by the system's.
    pub(super) sent: Instant,
    pub(super) sent_wall_nanos: u64,
    /// When it left, if the kernel has said so.
    pub(super) departed_nanos: Option<u64>,
    /// What the socket had dropped when it was sent.
    pub(super) dropped_before: u32,
    /// The socket's ICMP errors when it was last handed to the kernel.
    pub(super) errors_before: u64,
}

#[derive(Debug, Default)]
pub(super) struct Flights {
    entries: Vec<Option<Flight>>,
    vacant: Vec<u32>,
}

impl Flights {
    pub(super) fn insert(&mut self, flight: Flight) -> u32 {
        if let Some(number) = self.vacant.pop() {
            self.entries[number as usize] = Some(flight);
            return number;
        }
        self.entries.push(Some(flight));
        // There are no more flights than slots and sequence numbers.
        u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&mut self, number: u32) -> Option<&mut Flight> {
        self.entries.get_mut(number as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: u32) {
        if self.entries.get_mut(number as usize).and_then(Option::take).is_some() {
            self.vacant.push(number);
        }
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let entries = self.entries.iter().zip(0..);
        entries.filter(|(entry, _)| entry.is_some()).map(|(_, number)| number).collect()
    }
}
