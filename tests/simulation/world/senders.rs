//! Clients, remotes, routers, and some who mean ill: what each of them sends.

use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Clock;
use echogate::io::Side;
use echogate::table::fragments::worker_of;
use echogate::wire::build::{self, Datagram};
use echogate::wire::icmpv4::EchoKind;
use echogate::wire::ipv4;
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use super::super::eyes::Packet;
use super::super::game::{denied, gateway};
use super::super::model::Heard;
use super::super::payload::{POISON, payload};
use super::{Judged, World};

const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 67, 0, 2);

impl World<'_> {
    pub(super) fn client_sends(&mut self) -> Judged<()> {
        let client = *self.game.clients.choose(&mut self.rng).ok_or("no clients")?;
        let remote = *self.game.remotes.choose(&mut self.rng).ok_or("no remotes")?;
        let kind = if self.game.hostile { self.rng.random_range(0..24) } else { self.rng.random_range(10..24) };
        let length = self.length();
        match kind {
            0 => {
                let udp = vec![0, 9, 0, 53, 0, 8, 0, 0];
                self.push_inside(&Datagram::new(client, remote, ipv4::UDP, udp).build());
            }
            1 => {
                let noise: Vec<u8> = (0..self.rng.random_range(0..80)).map(|_| self.rng.random()).collect();
                self.push_inside(&noise);
            }
            2 => self.ask(STRANGER, remote, length, |_| {}, true)?,
            3 => self.ask(client, denied(7), length, |_| {}, true)?,
            4 => self.ask(client, gateway(0), length, |_| {}, true)?,
            5 => self.ask(gateway(0), remote, length, |_| {}, true)?,
            6 => {
                let ttl = if self.model.rules.hops > 0 { self.rng.random_range(0..2) } else { 0 };
                self.ask(client, remote, length, |packet| packet.ttl = ttl, true)?;
            }
            // A loose source route by way of somebody else.
            7 => self.ask(client, remote, length, |packet| packet.options = vec![131, 7, 4, 203, 0, 113, 9], true)?,
            8 => self.ask(client, Ipv4Addr::new(224, 0, 0, 1), length, |_| {}, true)?,
            9 => {
                let reply = build::echo_reply(client, remote, 1, 1, 64, b"a client answers somebody");
                self.push_inside(&reply);
            }
            10..14 if self.game.fragments => self.ask_in_fragments(client, remote)?,
            14 => {
                // Record route, and DF.
                let options = vec![7, 7, 4, 0, 0, 0, 0];
                self.ask(client, remote, length, |packet| packet.options.clone_from(&options), false)?;
            }
            _ => {
                let (df, tos, ttl) = (self.rng.random(), self.rng.random(), self.rng.random_range(2..=255));
                let identification = self.rng.random();
                let what = |packet: &mut Datagram| {
                    (packet.dont_fragment, packet.tos, packet.ttl) = (df, tos, ttl);
                    packet.identification = identification;
                };
                self.ask(client, remote, length, what, false)?;
            }
        }
        Ok(())
    }

    fn length(&mut self) -> usize {
        if self.rng.random_bool(0.05) { self.rng.random_range(0..2500) } else { self.rng.random_range(0..120) }
    }

    /// A request, what it is to be changed into, and whether it is forbidden, or sent in fragments.
    fn request(
        &mut self,
        client: Ipv4Addr,
        remote: Ipv4Addr,
        length: usize,
        change: impl Fn(&mut Datagram),
        (forbidden, in_fragments): (bool, bool),
    ) -> Judged<Datagram> {
        let number = self.model.next_number();
        let ident = self.rng.random_range(1..=self.game.idents);
        let next = self.sequences.entry((client, ident)).or_default();
        *next = next.wrapping_add(1);
        let sequence = if self.game.repeats { self.rng.random_range(0..50) } else { *next };
        let message = build::echo_message(EchoKind::Request, ident, sequence, &payload(number, length));
        let mut packet = Datagram::new(client, remote, ipv4::ICMP, message);
        change(&mut packet);
        self.model.asks(number, packet.build(), forbidden, in_fragments)?;
        Ok(packet)
    }

    fn ask(
        &mut self,
        client: Ipv4Addr,
        remote: Ipv4Addr,
        length: usize,
        change: impl Fn(&mut Datagram),
        forbidden: bool,
    ) -> Judged<()> {
        let mut packet = self.request(client, remote, length, change, (forbidden, false))?.build();
        if self.rng.random_bool(0.02) {
            // A link's padding.
            packet.extend(vec![POISON; self.rng.random_range(1..30)]);
        }
        self.push_inside(&packet);
        Ok(())
    }

    /// A request in fragments, in order or not, all there or not. Identifications are a counter: other clients have them too.
    fn ask_in_fragments(&mut self, client: Ipv4Addr, remote: Ipv4Addr) -> Judged<()> {
        let (mut client, mut remote, mut ttl, mut forbidden) = (client, remote, 64, false);
        if self.game.hostile && self.game.bad_fragments {
            let spent = if self.model.rules.hops > 0 { self.rng.random_range(0..2) } else { 0 };
            match self.rng.random_range(0..12) {
                0 => (remote, forbidden) = (denied(7), true),
                1 => (client, forbidden) = (gateway(0), true),
                2 => (ttl, forbidden) = (spent, true),
                _ => {}
            }
        }
        let length = self.rng.random_range(40..3000);
        let counter = self.identifications.entry(client).or_default();
        *counter = counter.wrapping_add(1);
        let identification = *counter;
        let what = |packet: &mut Datagram| (packet.identification, packet.ttl) = (identification, ttl);
        let whole = self.request(client, remote, length, what, (forbidden, true))?;
        let payload = &whole.payload;
        let length = (payload.len() / self.rng.random_range(1..8)).next_multiple_of(8).max(16);
        let mut fragments: Vec<Vec<u8>> = (0..payload.len().div_ceil(length))
            .map(|number| {
                let part = number * length..payload.len().min((number + 1) * length);
                let more_fragments = part.end < payload.len();
                let fragment_offset = part.start;
                let payload = payload[part].to_vec();
                Datagram { more_fragments, fragment_offset, payload, ..whole.clone() }.build()
            })
            .collect();
        if self.rng.random_bool(0.3) {
            fragments.shuffle(&mut self.rng);
        }
        if self.rng.random_bool(0.1) {
            fragments.pop();
        }
        fragments.iter().for_each(|fragment| self.push_inside(fragment));
        Ok(())
    }

    /// To the queue that the steering program would choose, or to any.
    fn push_inside(&mut self, packet: &[u8]) {
        let workers = self.workers.len();
        let wrong = self.game.trouble && self.rng.random_bool(0.1);
        let worker = match Packet::see_long(packet).filter(|_| !wrong) {
            Some(packet) if packet.is_fragment() => {
                worker_of(packet.source, packet.destination, self.proxy.fragment_seed(), workers)
            }
            Some(packet) => usize::from(packet.source.octets()[3] ^ packet.destination.octets()[3]) % workers,
            None => self.rng.random_range(0..workers),
        };
        self.wires[worker].push(Side::Inside, packet);
    }

    /// To the worker whose ident it is, or to any.
    pub(super) fn push_outside(&mut self, packet: &[u8]) {
        let workers = self.workers.len();
        let wrong = self.game.trouble && self.rng.random_bool(0.1);
        let ident = Packet::see_long(packet).filter(|_| !wrong).and_then(|packet| {
            let quoted = packet.quoted().map(|(_, echo)| echo.ident);
            quoted.or_else(|| packet.echo().map(|echo| echo.ident))
        });
        let worker = ident.map(|ident| usize::from(ident & 63) % workers);
        let worker = worker.unwrap_or_else(|| self.rng.random_range(0..workers));
        self.wires[worker].push(Side::Outside, packet);
    }

    fn send_later(&mut self, after: Duration, packet: Vec<u8>) {
        self.order += 1;
        self.later.insert((self.clock.now() + after, self.order), packet);
    }

    /// A remote hears a request: most answer, some late, some not at all; and a router may have something to say.
    pub(super) fn remote_hears(&mut self, Heard { packet: heard, reached }: Heard) {
        let Some(packet) = Packet::see(&heard) else { return };
        let Some(echo) = packet.echo() else { return };
        let answer = build::echo_reply(packet.destination, packet.source, echo.ident, echo.sequence, 60, echo.body);
        if !reached {
            // It never came there. Who answers all the same knows more than anybody can.
            if self.game.hostile && self.rng.random_bool(0.3) {
                self.send_later(Duration::from_millis(5), answer);
            }
            return;
        }
        let timeout = self.game.settings.echo_timeout;
        match self.rng.random_range(0..20) {
            0 => {}
            1 => {
                let after = timeout.mul_f64(self.rng.random_range(0.5..1.5));
                self.send_later(after, answer);
            }
            2 if self.game.hostile => {
                self.send_later(timeout * 2, answer.clone());
                self.send_later(Duration::from_millis(1), answer);
            }
            3 => {
                let quoted = &heard[..heard.len().min(if self.rng.random_bool(0.5) { 28 } else { 548 })];
                let (icmp_type, code, rest) = *[(11, 0, 0), (3, 1, 0), (3, 4, 1400), (12, 0, 20 << 24)]
                    .choose(&mut self.rng)
                    .unwrap_or(&(11, 0, 0));
                let message = build::error_message(icmp_type, code, rest, quoted);
                let error = Datagram::new(ROUTER, packet.source, ipv4::ICMP, message).build();
                self.send_later(Duration::ZERO, error);
                self.send_later(Duration::from_millis(2), answer);
            }
            _ => self.push_outside(&answer),
        }
        if self.overheard.len() < 64 {
            self.overheard.push(heard);
        } else {
            let victim = self.rng.random_range(0..64);
            self.overheard[victim] = heard;
        }
    }

    /// Somebody who has seen requests answers them with one thing wrong, or repeats what was said, or lies about them.
    pub(super) fn forge(&mut self) {
        for _ in 0..self.rng.random_range(0..4) {
            let Some(overheard) = self.overheard.choose(&mut self.rng) else { return };
            let Some(packet) = Packet::see(overheard) else { return };
            let Some(echo) = packet.echo() else { return };
            let (mut remote, mut own, mut ident, mut sequence) =
                (packet.destination, packet.source, echo.ident, echo.sequence);
            match self.rng.random_range(0..6) {
                0 => remote = Ipv4Addr::from(u32::from(remote) ^ 1),
                1 => own = gateway(self.rng.random_range(0..4)),
                2 => ident ^= 1 << self.rng.random_range(0..16),
                3 => sequence ^= 1 << self.rng.random_range(0..16),
                4 => own = Ipv4Addr::new(198, 18, 0, 99),
                // Again, as it was.
                _ => {}
            }
            let forged = if self.rng.random_bool(0.5) {
                build::echo_reply(remote, own, ident, sequence, 60, echo.body)
            } else {
                let quoted = build::echo_request(own, remote, ident, sequence, 60, echo.body);
                let message = build::error_message(3, 1, 0, &quoted[..quoted.len().min(548)]);
                Datagram::new(ROUTER, own, ipv4::ICMP, message).build()
            };
            self.push_outside(&forged);
        }
    }
}
