//! What leaves for outside: requests, whole and in fragments, and errors of the gateway's own.

use std::net::Ipv4Addr;

use echogate::clock::Instant;
use echogate::io::memory::Written;

use super::super::eyes::{ECHO_REQUEST, Echo, ICMP, Packet, is_intact};
use super::super::payload::{self, POISON};
use super::{Heard, Judged, Key, Model, Outstanding, Request};

const EMSGSIZE: i32 = 90;
/// ENETDOWN, ENETUNREACH.
const NO_NET: [i32; 2] = [100, 101];
const EHOSTUNREACH: i32 = 113;

impl Request {
    /// A send of it, or of a part of it, ended like this.
    fn fails(&mut self, errno: i32) {
        self.no_net += u32::from(NO_NET.contains(&errno));
        self.no_host += u32::from(errno == EHOSTUNREACH);
    }
}

impl Model {
    /// Judges what leaves for outside. The whole request that it is, or completes.
    pub(super) fn left_for_outside(&mut self, worker: usize, now: Instant, written: &Written) -> Judged<Option<Heard>> {
        let Written { bytes, way, errno, .. } = written;
        let packet = Packet::see(bytes).ok_or("no IPv4 packet, or more bytes than one")?;
        if !is_intact(packet.header) {
            return Err("the header's checksum is wrong".into());
        }
        let Some((address, to)) = *way else { return Err("it leaves nowhere".into()) };
        if self.rules.gateways.get(usize::from(address)) != Some(&packet.source) || to != packet.destination {
            return Err("it leaves by another way than its header says".into());
        }
        if packet.protocol != ICMP {
            return Err("not ICMP".into());
        }
        let body = packet.payload.get(8..).unwrap_or_default();
        if packet.echo().is_some_and(|echo| echo.icmp_type != ECHO_REQUEST) && !packet.is_fragment() {
            return self.error_of_the_gateway(now, &packet).map(|()| None);
        }
        if body.windows(2).any(|pair| pair == [POISON, POISON]) {
            return Err("bytes of a buffer that was free leak".into());
        }
        if packet.is_fragment() {
            return self.fragment(worker, now, address, &packet, *errno);
        }
        let echo = packet.echo().filter(|echo| echo.code == 0).ok_or("no echo request")?;
        let key = (address, echo.ident, echo.sequence, packet.destination);
        let number = payload::number_of(echo.body);
        let intact = is_intact(packet.payload);
        let number = if intact { number } else { None };
        self.leaves(worker, now, key, *errno, &packet)?;
        if !intact {
            return if self.rules.damage { Ok(None) } else { Err("the gateway has damaged it".into()) };
        }
        self.whole(now, key, number, &packet, &echo, *errno)?;
        Ok(Some(Heard { packet: bytes.clone(), reached: *errno == 0 }))
    }

    /// Something leaves under this key, undamaged or not.
    fn leaves(&mut self, worker: usize, now: Instant, key: Key, errno: i32, packet: &Packet<'_>) -> Judged<()> {
        let before = self.last_left.insert((key.0, key.1), now);
        // Nothing can be new under it any sooner.
        let rested = self.rules.idle + self.rules.hold_down;
        if self.draining[usize::from(key.0)] && before.is_none_or(|before| now.since(before) >= rested) {
            return Err("a new mapping on an address that drains".into());
        }
        let valid = self.outstanding.get(&key).filter(|echo| now.since(echo.since) < self.rules.echo_life).copied();
        let next = match valid {
            // Maybe the pieces of what was too large just now, and has been outstanding since then; maybe not.
            Some(before) if packet.is_fragment() && !before.sure => {
                Outstanding { since: now, withdrawn_by: None, ..before }
            }
            // One that cannot be sent leaves the one before it as it is, if that is surely still waited for: neither over nor one of
            // those that gave way.
            Some(before) => {
                let waits = now.since(before.since) <= self.rules.echo_timeout;
                let gave_way = self.last_evicted.is_some_and(|at| at >= before.since);
                let sure = before.sure && (errno == 0 || waits && !gave_way);
                Outstanding { since: now, sure, withdrawn_by: None, owner: before.owner }
            }
            None if errno == 0 => Outstanding { since: now, owner: None, sure: true, withdrawn_by: None },
            // It may leave in pieces yet.
            None if errno == EMSGSIZE && !packet.dont_fragment => {
                Outstanding { since: now, owner: None, sure: false, withdrawn_by: None }
            }
            None => {
                self.failed[worker].push(key);
                Outstanding { since: now, owner: None, sure: false, withdrawn_by: Some(worker) }
            }
        };
        self.outstanding.insert(key, next);
        Ok(())
    }

    /// A request has left undamaged.
    fn whole(
        &mut self,
        now: Instant,
        key: Key,
        number: Option<u64>,
        packet: &Packet<'_>,
        echo: &Echo<'_>,
        errno: i32,
    ) -> Judged<()> {
        let (address, ident, sequence, remote) = key;
        let request = number.and_then(|number| self.requests.get_mut(&number)).ok_or("nobody asked that")?;
        if request.forbidden {
            return Err("it must not leave".into());
        }
        let asked = Packet::see(&request.packet).ok_or("a client sent no packet")?;
        if (request.sequence, request.remote) != (sequence, remote) {
            return Err(format!("{} asked {} sequence {}", request.client, request.remote, request.sequence));
        }
        if asked.echo().is_none_or(|asked| asked.body != echo.body) {
            return Err("the payload is changed".into());
        }
        let kept = (asked.tos, &asked.header[20..], asked.ttl - self.rules.hops);
        if kept != (packet.tos, &packet.header[20..], packet.ttl) {
            return Err("TOS, TTL or options are changed".into());
        }
        if asked.dont_fragment && (!packet.dont_fragment || packet.identification != asked.identification) {
            return Err("DF or the identification of what has DF is changed".into());
        }
        request.left += 1;
        if errno == EMSGSIZE {
            request.too_large += 1;
        }
        // What is too large and may be cut comes again.
        let fits = self.rules.outside_mtu.is_none_or(|mtu| packet.bytes.len() <= usize::from(mtu));
        request.done += u32::from(errno != EMSGSIZE || asked.dont_fragment || fits);
        request.fails(errno);
        if request.left > request.offered {
            return Err("it leaves more often than it came".into());
        }
        let (client, client_ident, bytes) = (request.client, request.ident, request.packet.len());
        if let Some(echo) = self.outstanding.get_mut(&key) {
            echo.owner = number;
        }
        self.seen.left += 1;
        *self.left_now.entry(number.unwrap_or(0)).or_default() += 1;
        self.holds(now, (address, ident), client, client_ident)?;
        self.spends(now, client, bytes)
    }

    fn spends(&mut self, now: Instant, client: Ipv4Addr, bytes: usize) -> Judged<()> {
        self.rules.limits.map_or(Ok(()), |limits| self.shares.spends(limits, now, client, bytes))
    }

    /// A fragment leaves. The request that it completes at its remote.
    fn fragment(
        &mut self,
        worker: usize,
        now: Instant,
        address: u8,
        packet: &Packet<'_>,
        errno: i32,
    ) -> Judged<Option<Heard>> {
        let first = packet.echo().filter(|_| packet.offset == 0);
        let key = first.map(|echo| (address, echo.ident, echo.sequence, packet.destination));
        if let Some(key) = key {
            self.leaves(worker, now, key, errno, packet)?;
        }
        // Without damage the first one's payload says who has asked.
        let number = first.filter(|_| !self.rules.damage).and_then(|echo| payload::number_of(echo.body));
        let mut asker = None;
        if let Some((number, (address, ident, ..))) = number.zip(key) {
            let request = self.requests.get_mut(&number).ok_or("nobody asked what this is a fragment of")?;
            request.fails(errno);
            if request.forbidden {
                return Err("it must not leave".into());
            }
            let (client, client_ident) = (request.client, request.ident);
            // What was cut on its way out is charged as a whole.
            asker = request.in_fragments.then_some(client);
            self.holds(now, (address, ident), client, client_ident)?;
        }
        let datagram = (packet.source, packet.destination, packet.identification);
        let assembly = self.assemblies.entry(datagram).or_default();
        assembly.begin(now, key, number, asker);
        if let Some(number) = assembly.number().filter(|_| errno != 0) {
            self.waiting.fails(number);
        }
        let (charged, fits_whole) = (assembly.asker(), self.rules.outside_mtu.is_none());
        // One that could not be sent may come again in pieces, under the same identification.
        let whole = if errno == 0 { assembly.take(packet)? } else { None };
        // Nor is a fragment that was too large charged again when it comes in pieces.
        if let Some(client) = charged.filter(|_| fits_whole) {
            self.spends(now, client, packet.bytes.len())?;
        }
        let Some((key, bytes)) = whole else { return Ok(None) };
        self.assemblies.remove(&datagram);
        self.seen.in_fragments += 1;
        let whole = Packet::see(&bytes).ok_or("fragments make no datagram")?;
        let echo = whole.echo().ok_or("fragments make no echo")?;
        if !is_intact(whole.payload) {
            return if self.rules.damage { Ok(None) } else { Err("fragments make a damaged request".into()) };
        }
        self.put_together(key, &whole, &echo)?;
        Ok(Some(Heard { packet: bytes, reached: true }))
    }

    /// A request has arrived at its remote in fragments, undamaged: perhaps a while after the first of them left.
    fn put_together(&mut self, key: Key, whole: &Packet<'_>, echo: &Echo<'_>) -> Judged<()> {
        let number = payload::number_of(echo.body);
        let request = match number.and_then(|number| self.requests.get_mut(&number)) {
            None if self.rules.damage => return Ok(()),
            request => request.ok_or("nobody asked that")?,
        };
        let asked = Packet::see(&request.packet).ok_or("a client sent no packet")?;
        // Damage to two of its fragments can cancel itself out in the one sum that they share.
        if self.rules.damage
            && asked.echo().is_none_or(|asked| asked.body != echo.body || asked.sequence != echo.sequence)
        {
            return Ok(());
        }
        if request.forbidden {
            return Err("it must not leave".into());
        }
        if (request.sequence, request.remote) != (echo.sequence, whole.destination)
            || asked.echo().is_none_or(|asked| asked.body != echo.body)
        {
            return Err("fragments make another request".into());
        }
        let kept = (asked.tos, &asked.header[20..], asked.ttl - self.rules.hops);
        if kept != (whole.tos, &whole.header[20..], whole.ttl) {
            return Err("TOS, TTL or options are changed".into());
        }
        if asked.dont_fragment {
            return Err("what has DF is cut".into());
        }
        self.seen.cut += u64::from(!request.in_fragments);
        request.done += 1;
        if request.too_large > 0 {
            request.too_large -= 1;
        } else {
            request.left += 1;
        }
        if request.left > request.offered {
            return Err("it leaves more often than it came".into());
        }
        self.waiting.finished(&asked);
        if let Some(echo) = self.outstanding.get_mut(&key) {
            echo.owner = number;
        }
        self.seen.left += 1;
        Ok(())
    }

    /// An error that the gateway itself has made: about the client's own request.
    fn error_of_the_gateway(&mut self, now: Instant, packet: &Packet<'_>) -> Judged<()> {
        let error = packet.echo().ok_or("no ICMP error")?;
        let (quoted, echo) = packet.quoted().ok_or("neither a request nor an error about one")?;
        if !is_intact(packet.payload) {
            return Err("an error is damaged".into());
        }
        if quoted.source != packet.destination || !(self.rules.is_client)(packet.destination) {
            return Err("an error about somebody else's request".into());
        }
        if packet.bytes.len() > 576 {
            return Err("an error is longer than 576 bytes".into());
        }
        if packet.payload.len() != 8 + quoted.bytes.len() {
            return Err("an error quotes what stood behind the request".into());
        }
        self.shares.told(now, packet.destination)?;
        self.seen.told_by_gateway += 1;
        let mtu = self.rules.outside_mtu;
        let request = payload::number_of(echo.body).and_then(|number| self.requests.get_mut(&number));
        let Some(request) = request else {
            return if self.rules.damage || echo.body.len() < 8 {
                Ok(())
            } else {
                Err("an error about what nobody asked".into())
            };
        };
        let asked = (request.client, request.ident, request.sequence, request.remote);
        let matches = asked == (quoted.source, echo.ident, echo.sequence, quoted.destination);
        let body = Packet::see(&request.packet).and_then(|asked| asked.echo()).map(|echo| echo.body.to_vec());
        let quotes = body.is_some_and(|body| body.starts_with(echo.body));
        if !(self.rules.damage || matches && quotes) {
            return Err("an error quotes what its client did not ask".into());
        }
        // Of damaged requests nobody has counted what became of them.
        if self.rules.damage {
            return Ok(());
        }
        let may_be_refused = !request.forbidden || (self.rules.is_denied)(request.remote);
        // RFC 792 and RFC 1812, section 5.2.7.1.
        let (told, most) = match (error.icmp_type, error.code, error.ident, error.sequence) {
            (3, 13, 0, 0) if may_be_refused => (&mut request.refused, request.offered.saturating_sub(request.left)),
            (3, 0, 0, 0) => (&mut request.told_no_net, request.no_net),
            (3, 1, 0, 0) => (&mut request.told_no_host, request.no_host),
            // RFC 1191, section 4.
            (3, 4, 0, fits)
                if Some(fits) == mtu && request.packet.len() > usize::from(fits) && quoted.dont_fragment =>
            {
                (&mut request.told_too_large, request.too_large)
            }
            what => return Err(format!("an error that nothing is the reason of: {what:?}")),
        };
        *told += 1;
        if *told > most {
            return Err(format!("more errors than reasons for them: {} of {most}", *told));
        }
        Ok(())
    }
}
