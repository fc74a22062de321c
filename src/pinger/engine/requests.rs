//! What goes out: a ping's way from its command to the wire.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;

use super::{ATTEMPTS_MAX, ECHO_REQUEST, ECHO_REQUEST_6, Engine};
use crate::clock::Instant;
use crate::io::ping::{self, Kind, Outgoing, PingIo};
use crate::pinger::error::PingError;
use crate::pinger::flights::{Flight, Phase};
use crate::pinger::handle::{Ask, Command};
use crate::pinger::options::{self, Family, Target};
use crate::pinger::payload::{self, COOKIE_LEN};
use crate::pinger::resolve::Job;
use crate::pinger::slots::Key;

impl<I: PingIo> Engine<I> {
    pub(super) fn begin(&mut self, key: Key, ask: Ask, asked: Instant, now: Instant) {
        let Ask { target, options, at, number: in_stream, refill, patience, gathering } = ask;
        let begins = at.unwrap_or(asked);
        let (to, name) = match target {
            Target::Address(address) => (address, None),
            Target::Name(name) => (SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0), Some(name)),
        };
        let flight = Flight {
            key,
            gathering,
            number: in_stream,
            refill,
            patience,
            options,
            phase: Phase::Due,
            begins,
            deadline: begins + options.timeout,
            to,
            socket: 0,
            sequence: 0,
            cookie: [0; COOKIE_LEN],
            attempts: 0,
            sent: now,
            sent_wall_nanos: 0,
            departed_nanos: None,
            dropped_before: 0,
            errors_before: 0,
        };
        let (deadline, family) = (flight.deadline, options.family);
        let number = self.flights.insert(flight);
        let invalid = |what: String| PingError::InvalidOption(what.into());
        if options.timeout.is_zero() {
            self.fail(number, PingError::Timeout { after: Duration::ZERO });
        } else if let Some(name) = name {
            // In advance of its time, if there is some left: the name may take long.
            self.resolve(number, key, name, family);
            if let Some(flight) = self.flights.get(number) {
                flight.phase = Phase::Resolving;
            }
            self.wheel.set(number, deadline);
        } else if !family.admits(to.ip()) {
            self.fail(number, invalid(format!("{} is not of the wanted address family", to.ip())));
        } else if begins > now {
            self.wheel.set(number, begins);
        } else {
            self.launch(number);
        }
    }

    fn resolve(&mut self, flight: u32, key: Key, name: String, family: Family) {
        let (asking, telling) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        self.resolving.start(Job {
            name,
            family,
            wanted: Box::new(move || asking.slots.is_waiting(key)),
            done: Box::new(move |found| telling.command(Command::Resolved { flight, key, found })),
        });
    }

    pub(super) fn resolved(&mut self, number: u32, key: Key, found: Result<SocketAddr, PingError>) {
        let Some(flight) = self.flights.get(number) else { return };
        // Its time may be over, and its number another's.
        if flight.key != key || flight.phase != Phase::Resolving {
            return;
        }
        match found {
            Ok(address) => {
                flight.to = address;
                flight.phase = Phase::Due;
                match flight.begins > self.shared.clock.now() {
                    true => self.wheel.set(number, flight.begins),
                    false => self.launch(number),
                }
            }
            Err(error) => self.fail(number, error),
        }
    }

    /// Gives a flight a socket and a number, and sends it.
    pub(super) fn launch(&mut self, number: u32) {
        let Some(flight) = self.flights.get(number) else { return };
        if flight.refill
            && let Some((gathering, _)) = &flight.gathering
        {
            gathering.wake();
        }
        if !self.shared.slots.is_waiting(flight.key) {
            self.wheel.clear(number);
            return self.flights.remove(number);
        }
        flight.to = options::reachable(flight.to);
        let kind = Kind { v6: flight.to.is_ipv6(), path_mtu: flight.options.path_mtu };
        if flight.options.source.is_some_and(|source| source.is_ipv6() != kind.v6) {
            let what = "the source is not of the target's address family";
            return self.fail(number, PingError::InvalidOption(what.into()));
        }
        let open = self.channels.iter().position(|channel| channel.kind == kind && channel.sequences.has_free());
        let socket = match open.map_or_else(|| self.open_further(kind), Ok) {
            Ok(socket) => socket,
            Err(error) => return self.fail(number, error),
        };
        let Some((sequence, before)) = self.channels[socket].sequences.take(number) else { return };
        if let Some(before) = before {
            self.flights.remove(before);
        }
        let dropped_before = self.known_drops(socket);
        let cookie = self.random.next_u64().to_ne_bytes();
        let Some(flight) = self.flights.get(number) else { return };
        flight.phase = Phase::Flying;
        (flight.socket, flight.sequence, flight.cookie) = (socket, sequence, cookie);
        flight.dropped_before = dropped_before;
        let (deadline, patience) = (flight.deadline, flight.patience);
        self.wheel.set(number, deadline);
        self.patience.begin(patience, self.shared.clock.now());
        let mut outgoing = self.spare.pop().unwrap_or_else(Outgoing::new);
        self.write(number, &mut outgoing);
        self.send(number, outgoing);
    }

    fn open_further(&mut self, kind: Kind) -> Result<usize, PingError> {
        if self.channels.iter().filter(|channel| channel.kind == kind).count() >= self.sockets_max {
            return Err(PingError::TooMany { limit: self.shared.slots.limit() });
        }
        self.open(kind).map_err(|error| match error {
            // The other family works: this is this host's way of not reaching the target.
            PingError::Broken(refused) if refused.errno() == Some(libc::EAFNOSUPPORT) => {
                PingError::SendFailed { errno: libc::EAFNOSUPPORT, mtu: None }
            }
            error => error,
        })
    }

    fn write(&mut self, number: u32, outgoing: &mut Outgoing) {
        let Some(flight) = self.flights.get(number) else { return };
        let (options, v6) = (flight.options, flight.to.is_ipv6());
        outgoing.address(flight.to);
        if let Some(ttl) = options.ttl {
            ping::set_ttl(outgoing, v6, ttl);
        }
        if let Some(tos) = options.tos {
            ping::set_tos(outgoing, v6, tos);
        }
        if options.source.is_some() || options.interface.is_some() {
            ping::set_source(outgoing, v6, options.source, options.interface);
        }
        if self.transmit_times {
            ping::ask_transmit_time(outgoing, number);
        }
        let request = if v6 { ECHO_REQUEST_6 } else { ECHO_REQUEST };
        payload::write_request(&options, request, flight.sequence, flight.cookie, outgoing.bytes_mut());
    }

    fn send(&mut self, number: u32, outgoing: Box<Outgoing>) {
        let Some(flight) = self.flights.get(number) else { return };
        flight.attempts += 1;
        flight.sent = self.shared.clock.now();
        flight.sent_wall_nanos = self.io.wall_clock_nanos();
        flight.departed_nanos = None;
        let socket = flight.socket;
        flight.errors_before = self.channels[socket].errors;
        self.channels[socket].departing |= self.transmit_times;
        self.io.send(socket, number, outgoing);
    }

    /// A send has ended.
    pub(super) fn sent(&mut self, sent: ping::Sent) {
        let ping::Sent { socket, tag, errno, began_nanos, outgoing } = sent;
        if errno == 0 {
            if let Some(flight) = self.flights.get(tag).filter(|flight| flight.phase == Phase::Flying) {
                flight.sent_wall_nanos = began_nanos;
            }
            self.shared.counters.sent.one();
            return self.spare.push(outgoing);
        }
        // Reading the queue has cleared whatever error was pending.
        self.read_reports(socket);
        // A flight that is over meanwhile (its time, or an error) has told its caller, and its number has its own way to rest.
        let Some(flight) = self.flights.get(tag).filter(|flight| flight.phase == Phase::Flying) else {
            self.shared.counters.send_failures.one();
            return self.spare.push(outgoing);
        };
        let remote = flight.to.ip();
        let others_errors = self.channels[socket].errors != flight.errors_before;
        if flight.attempts < 2 || others_errors && flight.attempts < ATTEMPTS_MAX {
            return self.send(tag, outgoing);
        }
        self.spare.push(outgoing);
        self.shared.counters.send_failures.one();
        let too_long = self.too_long.iter().rev().find(|(to, _)| *to == remote);
        let mtu = too_long.filter(|_| errno == libc::EMSGSIZE).map(|(_, mtu)| *mtu);
        self.fail(tag, PingError::SendFailed { errno, mtu });
    }
}
