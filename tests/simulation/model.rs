//! The model that knows the truth: what clients asked, what is outstanding, whose each ident is. It sees what arrives at the
//! gateway and what leaves it, judges every packet by rules that take a few lines each, and knows nothing of the gateway's
//! tables.
//!
//! Of a reply it knows whether it must be delivered, must not be, or may be (where sends failed under the same
//! sequence, or an echo was evicted, or its time is just over). Everything else is exact.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::io::memory::Written;
use echogate::policy::Limits;

use super::eyes::{ECHO_REPLY, ECHO_REQUEST, Echo, ICMP, Packet, is_intact, same_but, sum};
use super::payload::{self, POISON};

/// What clients ask. Its number is in its payload.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) client: Ipv4Addr,
    pub(super) ident: u16,
    pub(super) sequence: u16,
    pub(super) remote: Ipv4Addr,
    /// The packet, whole, as the client sent it.
    pub(super) packet: Vec<u8>,
    /// Nothing of it may leave.
    pub(super) forbidden: bool,
    /// How often it reached the gateway undamaged, and how often it left.
    pub(super) offered: u32,
    pub(super) left: u32,
    /// Sends that failed because it was too large, and are tried again in pieces.
    too_large: u32,
    told: u32,
}

/// What the gateway was told.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) gateways: Vec<Ipv4Addr>,
    pub(super) echo_timeout: Duration,
    /// After this nothing is matched.
    pub(super) echo_life: Duration,
    pub(super) idle: Duration,
    pub(super) hold_down: Duration,
    pub(super) limits: Option<Limits>,
    pub(super) icmp_errors: bool,
    /// By how much the gateway lowers a TTL.
    pub(super) hops: u8,
    pub(super) inside_mtu: usize,
    /// Packets are damaged on their way to the gateway.
    pub(super) damage: bool,
    pub(super) is_client: fn(Ipv4Addr) -> bool,
}

/// Gateway address (by number), ident, sequence, remote.
pub(super) type Key = (u8, u16, u16, Ipv4Addr);

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    since: Instant,
    /// The request that left last under this key, if it left undamaged.
    owner: Option<u64>,
    /// Surely in the gateway's table.
    sure: bool,
    /// Its one send failed: the worker of this number takes it back in its next turn.
    withdrawn_by: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    client: Ipv4Addr,
    ident: u16,
    last: Instant,
}

#[derive(Debug, Default)]
struct Assembly {
    since: Instant,
    first: Option<(Key, usize)>,
    parts: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    packets: f64,
    bytes: f64,
    at: Instant,
}

/// What a model has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    pub(super) left: u64,
    pub(super) in_fragments: u64,
    pub(super) answers: u64,
    pub(super) delivered: u64,
    pub(super) told: u64,
    pub(super) told_by_gateway: u64,
    pub(super) refused_replies: u64,
    pub(super) passed: u64,
}

pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) requests: HashMap<u64, Request>,
    outstanding: HashMap<Key, Outstanding>,
    holders: HashMap<(u8, u16), Holder>,
    mappings: HashMap<(Ipv4Addr, u16), (u8, u16, Instant)>,
    passing: HashMap<Vec<u8>, u32>,
    failed: Vec<Vec<Key>>,
    assemblies: HashMap<(Ipv4Addr, Ipv4Addr, u16), Assembly>,
    budgets: HashMap<Ipv4Addr, Budget>,
    /// When each address was lost: mappings on it end early.
    pub(super) lost: Vec<Vec<Instant>>,
    /// When a slot was left torn: its ident is nobody's, and rests.
    torn: HashMap<(u8, u16), Instant>,
    /// When something last left under an ident, whole or not: its mapping was there then.
    last_left: HashMap<(u8, u16), Instant>,
    /// Which addresses drain: no new mapping is made on them.
    pub(super) draining: Vec<bool>,
    pub(super) seen: Seen,
    number: u64,
}

/// One turn of one worker: what it read and what it wrote.
pub(super) struct Turn {
    pub(super) worker: usize,
    pub(super) now: Instant,
    pub(super) from_inside: Vec<Vec<u8>>,
    pub(super) from_outside: Vec<Vec<u8>>,
    pub(super) inside: Vec<Written>,
    pub(super) outside: Vec<Written>,
    /// The worker is ending: what it read, it may have given up.
    pub(super) ending: bool,
    /// Echoes were evicted.
    pub(super) evicted: bool,
}

/// What remotes hear: a whole request, and whether it reached them.
pub(super) struct Heard {
    pub(super) packet: Vec<u8>,
    pub(super) reached: bool,
}

type Judged<T> = Result<T, String>;

/// A remote waits this long for a datagram's missing fragments.
const ASSEMBLY_TIME: Duration = Duration::from_secs(15);

impl Model {
    pub(super) fn new(rules: Rules, workers: usize) -> Model {
        Model {
            lost: vec![Vec::new(); rules.gateways.len()],
            torn: HashMap::new(),
            last_left: HashMap::new(),
            draining: vec![false; rules.gateways.len()],
            rules,
            requests: HashMap::new(),
            outstanding: HashMap::new(),
            holders: HashMap::new(),
            mappings: HashMap::new(),
            passing: HashMap::new(),
            failed: vec![Vec::new(); workers],
            assemblies: HashMap::new(),
            budgets: HashMap::new(),
            seen: Seen::default(),
            number: 0,
        }
    }

    /// A client asks: the number that its payload must begin with.
    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        while self.number.to_be_bytes().contains(&POISON) {
            self.number += 1;
        }
        self.number
    }

    pub(super) fn asks(&mut self, number: u64, packet: Vec<u8>, forbidden: bool) -> Judged<()> {
        let seen = Packet::see(&packet).ok_or("a client sends no packet")?;
        let echo = seen.echo().ok_or("a client sends no echo")?;
        let request = Request {
            client: seen.source,
            ident: echo.ident,
            sequence: echo.sequence,
            remote: seen.destination,
            packet: packet.clone(),
            forbidden,
            offered: 0,
            left: 0,
            too_large: 0,
            told: 0,
        };
        self.requests.insert(number, request);
        Ok(())
    }

    /// Judges a turn. What remotes hear of it.
    pub(super) fn judge(&mut self, turn: Turn) -> Judged<Vec<Heard>> {
        for key in std::mem::take(&mut self.failed[turn.worker]) {
            if self.outstanding.get(&key).is_some_and(|echo| echo.withdrawn_by == Some(turn.worker)) {
                self.outstanding.remove(&key);
            }
        }
        if turn.evicted {
            self.nobody_is_sure();
        }
        let mut written = turn.inside.into_iter().peekable();
        for arrived in &turn.from_outside {
            let next = written.peek().map(|written| &written.bytes[..]);
            let taken = self.came_from_outside(arrived, next, turn.now, turn.ending).map_err(|what| {
                let next = next.map(brief).unwrap_or_default();
                format!("{what}: {} arrived, and next was written {next}", brief(arrived))
            })?;
            if taken {
                written.next();
            }
        }
        for arrived in turn.from_inside {
            self.came_from_inside(arrived);
        }
        for Written { bytes, .. } in written {
            let passing = self.passing.get_mut(&bytes).filter(|count| **count > 0);
            *passing.ok_or_else(|| format!("nobody sent what a client gets: {}", brief(&bytes)))? -= 1;
            self.seen.passed += 1;
        }
        let mut heard = Vec::new();
        for written in turn.outside {
            let what = self.left_for_outside(turn.worker, turn.now, &written);
            heard.extend(what.map_err(|what| format!("{what}: {} left", brief(&written.bytes)))?);
        }
        if turn.evicted {
            // Also what has just left may have given way to what left after it.
            self.nobody_is_sure();
        }
        Ok(heard)
    }

    /// An echo was given up for another, and nobody says which.
    fn nobody_is_sure(&mut self) {
        self.outstanding.values_mut().for_each(|echo| echo.sure = false);
    }

    /// Judges what came from outside, by what was written next. Whether that is what became of it.
    fn came_from_outside(&mut self, arrived: &[u8], next: Option<&[u8]>, now: Instant, ending: bool) -> Judged<bool> {
        let Some(packet) = Packet::see_long(arrived) else { return Ok(false) };
        if packet.protocol != ICMP || packet.is_fragment() || packet.ttl <= 1 {
            return Ok(false);
        }
        let Some(echo) = packet.echo() else { return Ok(false) };
        let Some(address) = self.address(packet.destination) else { return Ok(false) };
        let next = next.and_then(Packet::see);
        if (echo.icmp_type, echo.code) == (ECHO_REPLY, 0) {
            let key = (address, echo.ident, echo.sequence, packet.source);
            let Some((owner, must)) = self.waits(key, now) else {
                self.seen.refused_replies += 1;
                return Ok(false);
            };
            let delivered = next.ok_or_else(nothing).and_then(|next| self.is_reply_delivered(&packet, owner, &next));
            if delivered.is_ok() {
                self.seen.delivered += 1;
                self.outstanding.remove(&key);
            } else if must && !ending {
                return delivered
                    .map_err(|what| format!("a reply is not delivered to who waits for it: {what}"))
                    .map(|()| false);
            } else if let Some(echo) = self.outstanding.get_mut(&key) {
                echo.sure = false;
            }
            return Ok(delivered.is_ok());
        }
        let Some((quoted, request)) = packet.quoted().filter(|_| self.rules.icmp_errors) else { return Ok(false) };
        let key = (address, request.ident, request.sequence, quoted.destination);
        if quoted.source != packet.destination || !is_intact(packet.payload) {
            return Ok(false);
        }
        let Some((owner, must)) = self.waits(key, now) else { return Ok(false) };
        let told = next.ok_or_else(nothing).and_then(|next| self.is_error_told(&packet, owner, &next));
        if told.is_ok() {
            self.seen.told += 1;
        } else if must && !ending && quoted.payload.len() >= 8 {
            return told.map_err(|what| format!("an error is not told to whom it concerns: {what}")).map(|()| false);
        }
        Ok(told.is_ok())
    }

    /// Who waits under this key, if he is known, and whether he surely does.
    fn waits(&self, key: Key, now: Instant) -> Option<(Option<u64>, bool)> {
        let echo = self.outstanding.get(&key)?;
        let age = now.since(echo.since);
        (age < self.rules.echo_life).then_some((echo.owner, echo.sure && age <= self.rules.echo_timeout))
    }

    fn is_reply_delivered(&self, arrived: &Packet<'_>, owner: Option<u64>, next: &Packet<'_>) -> Judged<()> {
        let echo = next.echo().filter(|echo| (echo.icmp_type, echo.code) == (ECHO_REPLY, 0)).ok_or("that is none")?;
        // A client's own reply to somebody may fall through and look like one; it has another source.
        if next.source != arrived.source || !(self.rules.is_client)(next.destination) {
            return Err("that is another".into());
        }
        let ends = arrived.header.len();
        let mut free = vec![16..20, ends + 4..ends + 6];
        if self.rules.hops > 0 {
            free.push(8..9);
        }
        if arrived.dont_fragment && arrived.bytes.len() > self.rules.inside_mtu {
            free.push(4..8);
        }
        if !same_but(arrived.bytes, next.bytes, ends, &free) {
            return Err("a reply is changed".into());
        }
        if sum(arrived.payload) != sum(next.payload) || sum(arrived.header) != sum(next.header) {
            return Err("a reply's damage is hidden, or it is damaged".into());
        }
        if arrived.ttl - next.ttl != self.rules.hops {
            return Err("a reply's TTL is wrong".into());
        }
        if let Some(request) = owner.and_then(|owner| self.requests.get(&owner))
            && (request.client, request.ident) != (next.destination, echo.ident)
        {
            return Err(format!("a reply to {} ident {} goes to somebody else", request.client, request.ident));
        }
        Ok(())
    }

    fn is_error_told(&self, arrived: &Packet<'_>, owner: Option<u64>, next: &Packet<'_>) -> Judged<()> {
        if next.source != arrived.source || !(self.rules.is_client)(next.destination) {
            return Err("that is another".into());
        }
        let (quoted, echo) = next.quoted().ok_or("that is none")?;
        let inner = arrived.header.len() + 8;
        let ident = inner + quoted.header.len() + 4;
        let mut free = vec![16..20, inner + 12..inner + 16, ident..ident + 2];
        free.extend([inner + 10..inner + 12, ident - 2..ident]);
        if self.rules.hops > 0 {
            free.push(8..9);
        }
        if !same_but(arrived.bytes, next.bytes, arrived.header.len(), &free) {
            return Err("an error is changed".into());
        }
        if !is_intact(next.payload) || quoted.source != next.destination {
            return Err("an error is damaged, or quotes somebody else's request".into());
        }
        if let Some(request) = owner.and_then(|owner| self.requests.get(&owner))
            && (request.client, request.ident) != (next.destination, echo.ident)
        {
            return Err(format!("an error about {} ident {} is told somebody else", request.client, request.ident));
        }
        Ok(())
    }

    fn came_from_inside(&mut self, arrived: Vec<u8>) {
        let packet = Packet::see_long(&arrived);
        let request = packet.filter(|packet| (self.rules.is_client)(packet.source)).and_then(|packet| {
            let echo = packet.echo().filter(|echo| (echo.icmp_type, echo.code) == (ECHO_REQUEST, 0))?;
            let number = payload::number_of(echo.body)?;
            Some((packet, number))
        });
        if let Some((packet, number)) = request
            && let Some(request) = self.requests.get_mut(&number)
        {
            let is_whole = packet.bytes == request.packet;
            if is_whole || packet.is_fragment() && sum(packet.header) == 0 {
                request.offered += 1;
            }
            if is_whole && !request.forbidden {
                return;
            }
        }
        *self.passing.entry(arrived).or_default() += 1;
    }

    /// Judges what leaves for outside. The whole request that it is, or completes.
    fn left_for_outside(&mut self, worker: usize, now: Instant, written: &Written) -> Judged<Option<Heard>> {
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
            return self.error_of_the_gateway(&packet).map(|()| None);
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
        self.leaves(worker, now, key, *errno, packet.more_fragments)?;
        if !intact {
            return if self.rules.damage { Ok(None) } else { Err("the gateway has damaged it".into()) };
        }
        self.whole(now, key, number, &packet, &echo, *errno)?;
        Ok(Some(Heard { packet: bytes.clone(), reached: *errno == 0 }))
    }

    /// Something leaves under this key, undamaged or not.
    fn leaves(&mut self, worker: usize, now: Instant, key: Key, errno: i32, cut: bool) -> Judged<()> {
        let before = self.last_left.insert((key.0, key.1), now);
        // Nothing can be new under it any sooner.
        let rested = self.rules.idle + self.rules.hold_down;
        if self.draining[usize::from(key.0)] && before.is_none_or(|before| now.since(before) >= rested) {
            return Err("a new mapping on an address that drains".into());
        }
        let valid = self.outstanding.get(&key).filter(|echo| now.since(echo.since) < self.rules.echo_life).copied();
        let next = match valid {
            // Maybe the pieces of what was too large just now, and has been outstanding since then; maybe not.
            Some(before) if cut && !before.sure => Outstanding { since: now, withdrawn_by: None, ..before },
            Some(before) => {
                Outstanding { since: now, sure: before.sure && errno == 0, withdrawn_by: None, owner: before.owner }
            }
            None if errno == 0 => Outstanding { since: now, owner: None, sure: true, withdrawn_by: None },
            None if errno == EMSGSIZE => Outstanding { since: now, owner: None, sure: false, withdrawn_by: None },
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
        let whole = !asked.is_fragment() && asked.dont_fragment;
        if whole && (!packet.dont_fragment || packet.identification != asked.identification) {
            return Err("DF or the identification of what has DF is changed".into());
        }
        // What was too large is the same packet when it comes again, in pieces.
        if request.too_large > 0 && packet.more_fragments {
            request.too_large -= 1;
        } else {
            request.left += 1;
        }
        if errno == EMSGSIZE {
            request.too_large += 1;
        }
        if request.left > request.offered {
            return Err("it leaves more often than it came".into());
        }
        let (client, client_ident, bytes) = (request.client, request.ident, request.packet.len());
        if let Some(echo) = self.outstanding.get_mut(&key) {
            echo.owner = number;
        }
        self.seen.left += 1;
        self.holds(now, (address, ident), client, client_ident)?;
        self.spends(now, client, bytes)
    }

    /// The idents that are or were somebody's, in an order that is always the same.
    pub(super) fn held(&self) -> Vec<(u8, u16)> {
        let mut held: Vec<_> = self.holders.keys().copied().collect();
        held.sort_unstable();
        held
    }

    /// The gateway dies between two turns, and leaves these slots torn. What it had not taken back yet stays outstanding; shares begin
    /// anew; nobody gets what was asked for by a torn slot.
    pub(super) fn dies(&mut self, now: Instant, torn: &[(u8, u16)]) {
        for key in self.failed.iter_mut().flat_map(std::mem::take) {
            if let Some(echo) = self.outstanding.get_mut(&key) {
                echo.withdrawn_by = None;
            }
        }
        self.budgets.clear();
        // Another process may hit upon an identification that is under way.
        self.assemblies.clear();
        for slot in torn {
            self.torn.insert(*slot, now);
            self.mappings.retain(|_, (address, ident, _)| (*address, *ident) != *slot);
            self.outstanding.retain(|(address, ident, ..), _| (*address, *ident) != *slot);
        }
    }

    /// Whose ident it is: nobody else's until it has rested; and a client's ident has one at a time.
    fn holds(&mut self, now: Instant, slot: (u8, u16), client: Ipv4Addr, ident: u16) -> Judged<()> {
        let holder = self.holders.insert(slot, Holder { client, ident, last: now });
        // A mapping whose address was lost has ended then, the first time after it was used.
        let lost = |slot: u8, used: Instant| self.lost[usize::from(slot)].iter().find(|lost| **lost >= used);
        if let Some(before) = holder.filter(|before| (before.client, before.ident) != (client, ident)) {
            let ends = before.last + self.rules.idle;
            let ended = lost(slot.0, before.last).map_or(ends, |lost| ends.min(*lost));
            let ended =
                self.torn.get(&slot).filter(|torn| **torn >= before.last).map_or(ended, |torn| ended.min(*torn));
            if now.since(ended) + MILLISECOND < self.rules.hold_down {
                return Err(format!(
                    "ident {} of {} ident {} has rested {:?} only",
                    slot.1,
                    before.client,
                    before.ident,
                    now.since(ended)
                ));
            }
        }
        let before = self.mappings.insert((client, ident), (slot.0, slot.1, now));
        if let Some((address, gateway_ident, last)) = before.filter(|before| (before.0, before.1) != slot)
            && lost(address, last).is_none()
            && now.since(last) + MILLISECOND < self.rules.idle
        {
            return Err(format!("{client} ident {ident} had ident {gateway_ident} {:?} ago", now.since(last)));
        }
        let Some(limits) = self.rules.limits.filter(|limits| limits.mappings > 0 && before.is_none()) else {
            return Ok(());
        };
        // The gateway counts whole milliseconds, here as above.
        let alive = self.mappings.iter().filter(|((of, _), (address, _, last))| {
            *of == client && now.since(*last) + MILLISECOND < self.rules.idle && lost(*address, *last).is_none()
        });
        if alive.count() > limits.mappings as usize { Err("a client has too many mappings".into()) } else { Ok(()) }
    }

    /// What a client has sent is within its share.
    fn spends(&mut self, now: Instant, client: Ipv4Addr, bytes: usize) -> Judged<()> {
        let Some(limits) = self.rules.limits else { return Ok(()) };
        let full = Budget { packets: limits.packets_burst.into(), bytes: limits.bytes_burst.into(), at: now };
        let budget = self.budgets.entry(client).or_insert(full);
        let passed = now.since(budget.at).as_secs_f64();
        budget.packets = full.packets.min(budget.packets + passed * f64::from(limits.packets_per_second)) - 1.0;
        budget.bytes = full.bytes.min(budget.bytes + passed * f64::from(limits.bytes_per_second)) - bytes as f64;
        budget.at = now;
        let over = limits.packets_per_second > 0 && budget.packets < -2.0
            || limits.bytes_per_second > 0 && budget.bytes < -3000.0;
        if over { Err(format!("{client} has more than its share: {budget:?}")) } else { Ok(()) }
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
            self.leaves(worker, now, key, errno, true)?;
        }
        if errno != 0 {
            // It may come again in pieces, under the same identification.
            return Ok(None);
        }
        let datagram = (packet.source, packet.destination, packet.identification);
        let assembly = self.assemblies.entry(datagram).or_default();
        if now.since(assembly.since) > ASSEMBLY_TIME {
            *assembly = Assembly { since: now, ..Assembly::default() };
        }
        if let Some(key) = key {
            assembly.first = Some((key, packet.header.len()));
        }
        assembly.parts.push(packet.bytes.to_vec());
        let mut parts: Vec<_> = assembly.parts.iter().filter_map(|part| Packet::see(part)).collect();
        parts.sort_by_key(|part| part.offset);
        let mut payload = Vec::new();
        for part in &parts {
            if part.offset < payload.len() {
                return Err(format!("fragments overlap under {datagram:?}: two clients' are one"));
            }
            if part.offset > payload.len() {
                return Ok(None);
            }
            payload.extend_from_slice(part.payload);
        }
        let (Some(last), Some((key, header_len))) = (parts.last(), assembly.first) else { return Ok(None) };
        if last.more_fragments {
            return Ok(None);
        }
        let mut bytes = [parts[0].header, &payload].concat();
        let total = u16::try_from(bytes.len()).map_err(|_| "fragments of more than a datagram")?;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[6..8].fill(0);
        bytes[10..12].fill(0);
        let check = !sum(&bytes[..header_len]);
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
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
        if asked.tos != whole.tos || asked.ttl - self.rules.hops != whole.ttl {
            return Err("TOS or TTL are changed".into());
        }
        if request.too_large > 0 {
            request.too_large -= 1;
        } else {
            request.left += 1;
        }
        if request.left > request.offered {
            return Err("it leaves more often than it came".into());
        }
        if let Some(echo) = self.outstanding.get_mut(&key) {
            echo.owner = number;
        }
        self.seen.left += 1;
        Ok(())
    }

    /// An error that the gateway itself has made: about the client's own request.
    fn error_of_the_gateway(&mut self, packet: &Packet<'_>) -> Judged<()> {
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
        request.told += 1;
        // One for each that came; and damaged ones, which are counted nowhere.
        if request.told > request.offered && !self.rules.damage {
            return Err("more errors than requests".into());
        }
        self.seen.told_by_gateway += 1;
        Ok(())
    }

    pub(super) fn address(&self, address: Ipv4Addr) -> Option<u8> {
        let number = self.rules.gateways.iter().position(|gateway| *gateway == address)?;
        u8::try_from(number).ok()
    }

    /// Whole requests that reached the gateway undamaged and did not leave.
    pub(super) fn kept_back(&self) -> u64 {
        let allowed = self.requests.values().filter(|request| !request.forbidden);
        allowed.map(|request| u64::from(request.offered.saturating_sub(request.left))).sum()
    }
}

const EMSGSIZE: i32 = 90;
const MILLISECOND: Duration = Duration::from_millis(1);

/// A packet in a line.
fn brief(bytes: &[u8]) -> String {
    let Some(packet) = Packet::see_long(bytes) else { return format!("{bytes:02x?}") };
    let echo = packet.echo().map(|echo| {
        let number = payload::number_of(echo.body);
        format!(" type {} ident {} sequence {} number {number:?}", echo.icmp_type, echo.ident, echo.sequence)
    });
    format!(
        "[{} > {}, {} of {} bytes, offset {}{}]",
        packet.source,
        packet.destination,
        packet.bytes.len(),
        bytes.len(),
        packet.offset,
        echo.unwrap_or_default()
    )
}

fn nothing() -> String {
    "nothing was written".into()
}
