//! What comes back: the reports of the error queues, and the replies. Each is held against the flight that it claims to be
//! about, and either ends it or is counted.

use std::mem;
use std::time::{Duration, UNIX_EPOCH};

use super::{ECHO_REQUEST, ECHO_REQUEST_6, Engine};
use crate::clock::Instant;
use crate::io::ping::{Arrival, PingIo, Report};
use crate::pinger::error::PingError;
use crate::pinger::flights::{Flight, Phase};
use crate::pinger::payload::{self, HEADER_LEN};
use crate::pinger::reply::{Measured, Payload, Reply, Stray, StrayKind};

/// What two readings of two clocks may differ by and still both be right.
const CLOCKS_APART_MAX: Duration = Duration::from_millis(1);

/// Batches of one error queue that are read in a row: whoever floods it with forged errors must not keep the timers waiting.
const REPORT_BATCHES_MAX: usize = 64;

const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_6: u8 = 129;

impl<I: PingIo> Engine<I> {
    /// Reads a socket's error queue until it is empty, or leaves the rest of a flood to the next turn.
    pub(super) fn read_reports(&mut self, socket: usize) {
        self.channels[socket].read = true;
        for _ in 0..REPORT_BATCHES_MAX {
            let mut reported = mem::take(&mut self.reported);
            let more = self.io.read_reports(socket, &mut reported);
            if !reported.is_empty() {
                self.futile = 0;
            }
            for report in reported.drain(..) {
                match report {
                    Report::Icmp { .. } => {
                        self.channels[socket].errors += 1;
                        self.icmp_error(socket, &report);
                    }
                    Report::TooLong { to, mtu } => self.too_long.extend(to.map(|to| (to.ip(), mtu))),
                    Report::Departed { number, stamp } => self.departed(number, stamp),
                }
            }
            self.reported = reported;
            if !more {
                return;
            }
        }
        self.channels[socket].departing = true;
    }

    fn departed(&mut self, number: u32, stamp: u64) {
        if let Some(flight) = self.flights.get(number)
            && flight.phase == Phase::Flying
            // Else it is about an earlier flight of this number, or the clock was set.
            && stamp >= flight.sent_wall_nanos
        {
            flight.departed_nanos = Some(stamp);
        }
    }

    fn icmp_error(&mut self, socket: usize, report: &Report) {
        let Report::Icmp { from, to, icmp_type, code, info, quote } = *report else { return };
        let v6 = self.channels[socket].kind.v6;
        let request = if v6 { ECHO_REQUEST_6 } else { ECHO_REQUEST };
        let flight = match quote.bytes() {
            [quoted, 0, _, _, _, _, high, low, ..] if *quoted == request => {
                self.channels[socket].sequences.flight(u16::from_be_bytes([*high, *low]))
            }
            _ => None,
        };
        let number = flight.filter(|number| {
            self.flights.get(*number).is_some_and(|flight| {
                flight.phase == Phase::Flying
                    && to.is_some_and(|to| to.ip() == flight.to.ip())
                    && payload::may_be(&flight.options, flight.cookie, quote.bytes().get(HEADER_LEN..).unwrap_or(&[]))
            })
        });
        let Some(number) = number else { return self.shared.counters.unmatched_errors.one() };
        self.shared.counters.errors.one();
        let from = from.ip();
        let error = match (v6, icmp_type, code) {
            (false, 3, 4) | (true, 2, _) => PingError::TooBig { from, mtu: info },
            (false, 3, _) | (true, 1, _) => PingError::Unreachable { from, code },
            (false, 11, _) | (true, 3, _) => PingError::TimeExceeded { from, code },
            // Advice, not a verdict: the reply may come yet.
            (false, 4 | 5, _) => return,
            _ => PingError::Icmp { from, icmp_type, code },
        };
        self.fail(number, error);
    }

    pub(super) fn arrived(&mut self, arrival: &Arrival, now: Instant, wall_nanos: u64) {
        let counters = &self.shared.counters;
        counters.received.one();
        let message = arrival.message();
        let expected = if self.channels[arrival.socket].kind.v6 { ECHO_REPLY_6 } else { ECHO_REPLY };
        let Some((header, body)) = message.split_first_chunk::<HEADER_LEN>() else { return counters.malformed.one() };
        let [icmp_type, 0, _, _, _, _, high, low] = *header else { return counters.malformed.one() };
        if icmp_type != expected {
            return counters.malformed.one();
        }
        let sequence = u16::from_be_bytes([high, low]);
        let number = self.channels[arrival.socket].sequences.flight(sequence);
        let Some((number, flight)) = number.and_then(|number| Some((number, self.flights.get(number)?))) else {
            return counters.unknown_sequence.one();
        };
        if arrival.from.ip() != flight.to.ip() {
            return counters.other_source.one();
        }
        let Some(payload) = payload::judge(&flight.options, flight.cookie, body) else {
            return counters.wrong_cookie.one();
        };
        let in_stream = flight.number;
        let reply = measure(flight, arrival, payload, now, wall_nanos);
        match flight.phase {
            Phase::Flying => {
                if self.finish(number, Phase::Answered, Ok(reply)) {
                    self.shared.counters.replies.one();
                } else {
                    self.shared.counters.cancelled.one();
                }
            }
            Phase::Answered => {
                counters.duplicates.one();
                self.stray(StrayKind::Duplicate, in_stream, reply);
            }
            Phase::TimedOut => {
                counters.late.one();
                self.stray(StrayKind::Late, in_stream, reply);
            }
            Phase::Cancelled => counters.cancelled.one(),
            // An error was first.
            Phase::Failed | Phase::Due | Phase::Resolving => counters.late.one(),
        }
    }

    fn stray(&self, kind: StrayKind, number: u64, reply: Reply) {
        let Some(strays) = &self.shared.strays else { return };
        match strays.push(Stray { kind, number, reply }) {
            Ok(()) => self.shared.strays_waker.wake(),
            Err(_) => self.shared.counters.strays_lost.one(),
        }
    }
}

/// The round-trip time, by the best two clock readings that can be right.
fn measure(flight: &Flight, arrival: &Arrival, payload: Payload, now: Instant, wall_nanos: u64) -> Reply {
    // The reply was here by now, so no time is longer than this.
    let by_us = now.since(flight.sent);
    let between = |from: u64| {
        let nanos = arrival.stamp?.checked_sub(from)?;
        Some(Duration::from_nanos(nanos)).filter(|time| *time <= by_us + CLOCKS_APART_MAX)
    };
    let by_kernel = flight.departed_nanos.and_then(between).map(|rtt| (rtt, Measured::Kernel));
    let half = || between(flight.sent_wall_nanos).map(|rtt| (rtt, Measured::KernelReceive));
    let (rtt, measured) = by_kernel.or_else(half).unwrap_or((by_us, Measured::User));
    Reply {
        rtt,
        measured,
        from: arrival.from.ip(),
        ttl: arrival.ttl,
        bytes: arrival.message().len(),
        sequence: flight.sequence,
        payload,
        received: UNIX_EPOCH + Duration::from_nanos(arrival.stamp.unwrap_or(wall_nanos)),
    }
}
