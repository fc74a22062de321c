//! The model that knows the truth: what clients asked, what is outstanding, whose each ident is. It sees what arrives at the
//! gateway and what leaves it, judges every packet by rules that take a few lines each, and knows nothing of the gateway's
//! tables.
//!
//! Of a reply it knows whether it must be delivered, must not be, or may be (where sends failed under the same
//! sequence, or its time is just over); of a request whether it must leave at once, must within a second ([`waiting`]), must not, or may
//! (where its client's share may be used up, idents are few, its address is lost). An echo that gives way to another is counted by the
//! gateway and named by nobody: so many replies may be refused for it, and not one more.

mod assembly;
mod holders;
mod leaving;
mod shares;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::ops::AddAssign;
use std::time::Duration;

use echogate::clock::Instant;
use echogate::io::memory::Written;
use echogate::policy::Limits;

use super::eyes::{ECHO_REPLY, ECHO_REQUEST, ICMP, Packet, is_intact, same_but, sum};
use super::payload::{self, POISON};
use assembly::Assembly;
use holders::Holders;
pub(super) use holders::Slot;
use shares::{Comes, Shares};
use waiting::Waiting;

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
    /// It is sent in fragments.
    in_fragments: bool,
    /// How often it reached the gateway undamaged, and how often it left.
    pub(super) offered: u32,
    pub(super) left: u32,
    /// How often it left for good, in as many pieces as it takes.
    done: u32,
    /// Sends that failed because it was too large, and are tried again in pieces.
    too_large: u32,
    /// Sends that failed because there was no way to its remote's network, or to the remote.
    no_net: u32,
    no_host: u32,
    /// Errors of the gateway's own about it: that it may not leave, these two, and that it was too large.
    refused: u32,
    told_no_net: u32,
    told_no_host: u32,
    told_too_large: u32,
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
    /// What is longer cannot leave in one piece.
    pub(super) outside_mtu: Option<u16>,
    /// There are idents for all who could want one, and any worker may have any of them.
    pub(super) ample: bool,
    /// What is none of the gateway's business goes back to the TUN; pings of its own addresses too.
    pub(super) reinjects: bool,
    pub(super) pass_own: bool,
    /// Packets are damaged on their way to the gateway.
    pub(super) damage: bool,
    /// Every request of a client's can have an ident, from whichever worker, and comes as it was sent; and nobody has a share, in which
    /// those that overtake it might leave it no room.
    pub(super) patient: bool,
    /// Packets come to the wrong worker.
    pub(super) astray: bool,
    pub(super) is_client: fn(Ipv4Addr) -> bool,
    /// Remotes that nobody may ping, and is told so.
    pub(super) is_denied: fn(Ipv4Addr) -> bool,
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

/// What a model has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    pub(super) left: u64,
    pub(super) in_fragments: u64,
    /// Of those, requests that the gateway itself cut.
    pub(super) cut: u64,
    pub(super) delivered: u64,
    pub(super) told: u64,
    pub(super) told_by_gateway: u64,
    pub(super) refused_replies: u64,
    pub(super) passed: u64,
    /// Whole requests that had to leave, and did.
    pub(super) had_to_leave: u64,
    /// Of those, by clients with shares.
    pub(super) within_share: u64,
    /// Whole ones that waited for an ident and had to leave within a second, and requests of which all fragments had come; and did.
    pub(super) waited: u64,
    pub(super) put_together: u64,
    /// Echoes that gave way to others, and replies and errors that were refused because theirs was one of those.
    pub(super) evicted: u64,
    pub(super) gave_way: u64,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        let Seen {
            left,
            in_fragments,
            cut,
            delivered,
            told,
            told_by_gateway,
            refused_replies,
            passed,
            had_to_leave,
            within_share,
            waited,
            put_together,
            evicted,
            gave_way,
        } = other;
        self.left += left;
        self.in_fragments += in_fragments;
        self.cut += cut;
        self.delivered += delivered;
        self.told += told;
        self.told_by_gateway += told_by_gateway;
        self.refused_replies += refused_replies;
        self.passed += passed;
        self.had_to_leave += had_to_leave;
        self.within_share += within_share;
        self.waited += waited;
        self.put_together += put_together;
        self.evicted += evicted;
        self.gave_way += gave_way;
    }
}

pub(super) struct Model {
    pub(super) rules: Rules,
    pub(super) requests: HashMap<u64, Request>,
    outstanding: HashMap<Key, Outstanding>,
    held: Holders,
    passing: HashMap<Vec<u8>, u32>,
    failed: Vec<Vec<Key>>,
    assemblies: HashMap<(Ipv4Addr, Ipv4Addr, u16), Assembly>,
    shares: Shares,
    waiting: Waiting,
    /// When each address was lost: mappings on it end early.
    pub(super) lost: Vec<Vec<Instant>>,
    /// Which are lost now.
    pub(super) gone: Vec<bool>,
    /// When something last left under an ident, whole or not: its mapping was there then.
    last_left: HashMap<Slot, Instant>,
    /// Which addresses drain: no new mapping is made on them.
    pub(super) draining: Vec<bool>,
    /// When echoes have given way to others of which no refused reply has been one yet.
    gave_way: VecDeque<Instant>,
    last_evicted: Option<Instant>,
    /// Whether so few came to each worker in its last turn that none of them waits.
    few: Vec<bool>,
    /// How often each request has left in this turn.
    left_now: HashMap<u64, u32>,
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
    /// It has not stood still lately.
    pub(super) calm: bool,
    /// So many echoes have been evicted since the last turn, and so many packets dropped because a queue was full.
    pub(super) evicted: u64,
    pub(super) no_room: u64,
}

/// What has come from inside.
enum Came {
    /// The request of this number, which has to leave in this turn.
    MustLeave(u64),
    /// One of this client's that leaves, or not, or later.
    MayLeave(Ipv4Addr),
    /// What goes back to the TUN in this turn, as it is.
    MustPass(Vec<u8>),
    Other,
}

/// What remotes hear: a whole request, and whether it reached them.
pub(super) struct Heard {
    pub(super) packet: Vec<u8>,
    pub(super) reached: bool,
}

type Judged<T> = Result<T, String>;

/// So many new mappings a worker makes in a turn.
const CREATIONS: usize = 32;

/// No more new mappings than this can have to wait for the worker's next turn.
const FEW: usize = 16;

impl Model {
    pub(super) fn new(rules: Rules, workers: usize) -> Model {
        Model {
            lost: vec![Vec::new(); rules.gateways.len()],
            gone: vec![false; rules.gateways.len()],
            last_left: HashMap::new(),
            draining: vec![false; rules.gateways.len()],
            gave_way: VecDeque::new(),
            last_evicted: None,
            left_now: HashMap::new(),
            rules,
            requests: HashMap::new(),
            outstanding: HashMap::new(),
            held: Holders::default(),
            passing: HashMap::new(),
            failed: vec![Vec::new(); workers],
            assemblies: HashMap::new(),
            shares: Shares::default(),
            waiting: Waiting::default(),
            few: vec![true; workers],
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

    pub(super) fn asks(&mut self, number: u64, packet: Vec<u8>, forbidden: bool, in_fragments: bool) -> Judged<()> {
        let seen = Packet::see(&packet).ok_or("a client sends no packet")?;
        let echo = seen.echo().ok_or("a client sends no echo")?;
        let request = Request {
            client: seen.source,
            ident: echo.ident,
            sequence: echo.sequence,
            remote: seen.destination,
            packet: packet.clone(),
            forbidden,
            in_fragments,
            offered: 0,
            left: 0,
            done: 0,
            too_large: 0,
            no_net: 0,
            no_host: 0,
            refused: 0,
            told_no_net: 0,
            told_no_host: 0,
            told_too_large: 0,
        };
        self.requests.insert(number, request);
        if in_fragments {
            self.waiting.series(&seen, number, forbidden);
        }
        Ok(())
    }

    /// Judges a turn. What remotes hear of it.
    pub(super) fn judge(&mut self, turn: Turn) -> Judged<Vec<Heard>> {
        for key in std::mem::take(&mut self.failed[turn.worker]) {
            if self.outstanding.get(&key).is_some_and(|echo| echo.withdrawn_by == Some(turn.worker)) {
                self.outstanding.remove(&key);
            }
        }
        self.gave_way.extend((0..turn.evicted).map(|_| turn.now));
        self.seen.evicted += turn.evicted;
        if turn.evicted > 0 {
            self.last_evicted = Some(turn.now);
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
        self.what_waited_has_left(turn.now)?;
        self.waiting.reads(turn.now, turn.from_inside.len());
        if turn.no_room > 0 && self.waiting.is_calm(turn.now) {
            return Err(format!("{} packets are dropped for a full queue, and there is no crowd", turn.no_room));
        }
        let few = turn.from_inside.len() <= FEW;
        let at_once = std::mem::replace(&mut self.few[turn.worker], few) && few && turn.calm;
        let prompt = turn.from_inside.len() <= CREATIONS && !self.rules.astray;
        let (mut due, mut others, mut back) = (Vec::new(), Vec::new(), HashMap::<Vec<u8>, u32>::new());
        for arrived in turn.from_inside {
            match self.came_from_inside(arrived, turn.now, at_once, prompt) {
                Came::MustLeave(number) => due.push(number),
                Came::MustPass(bytes) => *back.entry(bytes).or_default() += 1,
                Came::MayLeave(client) if !at_once || !self.rules.ample => others.push(client),
                Came::MayLeave(_) | Came::Other => {}
            }
        }
        for Written { bytes, .. } in written {
            let passing = self.passing.get_mut(&bytes).filter(|count| **count > 0);
            *passing.ok_or_else(|| format!("nobody sent what a client gets: {}", brief(&bytes)))? -= 1;
            self.seen.passed += 1;
            if let Some(count) = back.get_mut(&bytes) {
                *count = count.saturating_sub(1);
            }
        }
        if let Some((bytes, _)) = back.iter().find(|(_, count)| **count > 0 && !turn.ending) {
            return Err(format!("what is none of the gateway's business does not go on: {}", brief(bytes)));
        }
        let mut heard = Vec::new();
        self.left_now.clear();
        for written in turn.outside {
            let what = self.left_for_outside(turn.worker, turn.now, &written);
            heard.extend(what.map_err(|what| format!("{what}: {} left", brief(&written.bytes)))?);
        }
        for number in due.into_iter().filter(|_| !turn.ending) {
            let left = self.left_now.get_mut(&number).filter(|left| **left > 0);
            *left.ok_or_else(|| {
                let packet = self.requests.get(&number).map(|request| brief(&request.packet)).unwrap_or_default();
                format!("a request that has to leave does not: {packet}")
            })? -= 1;
            self.seen.had_to_leave += 1;
            self.seen.within_share += u64::from(self.rules.limits.is_some());
        }
        // They may wait for an ident, and are charged when they have one.
        others.into_iter().for_each(|client| self.shares.waits(turn.now, client));
        Ok(heard)
    }

    /// Until then something is wrong, or has just been: what waits may be lost.
    pub(super) fn unrest(&mut self, until: Instant) {
        self.waiting.unrest(until);
    }

    /// Whether all has left by now that has waited for long enough.
    pub(super) fn what_waited_has_left(&mut self, now: Instant) -> Judged<()> {
        while let Some(due) = self.waiting.next_due(now) {
            let request = self.requests.get(&due.number).ok_or("nobody asked what waits")?;
            if request.done <= due.done {
                let packet = brief(&request.packet);
                return Err(format!("a request that has waited for long enough does not leave: {packet}, {due:?}"));
            }
            self.seen.waited += u64::from(!request.in_fragments);
            self.seen.put_together += u64::from(request.in_fragments);
        }
        Ok(())
    }

    /// Whether this may be because an echo has given way to another: once for each that has, and no longer than it would have lived.
    fn may_have_given_way(&mut self, key: Key, now: Instant) -> bool {
        while self.gave_way.front().is_some_and(|at| now.since(*at) > self.rules.echo_life) {
            self.gave_way.pop_front();
        }
        let may = self.gave_way.pop_front().is_some();
        if may {
            self.seen.gave_way += 1;
            self.outstanding.entry(key).and_modify(|echo| echo.sure = false);
        }
        may
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
            } else if must && !ending && !self.may_have_given_way(key, now) {
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
        } else if must && !ending && quoted.payload.len() >= 8 && !self.may_have_given_way(key, now) {
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

    fn came_from_inside(&mut self, arrived: Vec<u8>, now: Instant, at_once: bool, prompt: bool) -> Came {
        let Some(packet) = Packet::see_long(&arrived) else {
            *self.passing.entry(arrived).or_default() += u32::from(self.rules.reinjects);
            return Came::Other;
        };
        let echo = packet.echo().filter(|echo| (echo.icmp_type, echo.code) == (ECHO_REQUEST, 0));
        let ours = packet.protocol == ICMP
            && !(self.rules.is_client)(packet.destination)
            && !(self.rules.pass_own && self.address(packet.destination).is_some());
        let (client, bytes) = (packet.source, packet.bytes.len());
        let from_client = (self.rules.is_client)(client) && sum(packet.header) == 0;
        let mut came = Came::Other;
        if from_client && ours {
            let ident = echo.map(|echo| echo.ident);
            let live = ident.is_some_and(|ident| self.is_live(now, client, ident));
            let within_share = self.rules.limits.is_none_or(|limits| {
                self.shares.comes(limits, self.rules.idle, now, Comes { client, bytes, ident, live })
            });
            if packet.is_fragment() {
                // It may wait for the first one.
                self.shares.waits(now, client);
                if self.rules.patient {
                    let requests = &self.requests;
                    let done = |number| requests.get(&number).map_or(0, |request| request.done);
                    self.waiting.fragment(now, &packet, prompt, done);
                }
            }
            let open = !self.gone.contains(&true) && !self.draining.contains(&true);
            let has_ident = live || self.rules.ample && open && at_once;
            // Only what needs a mapping can wait for one, and be charged when it has it.
            if echo.is_some() && !live {
                came = Came::MayLeave(client);
            }
            let number = echo.and_then(|echo| payload::number_of(echo.body));
            if let Some((number, request)) = number.and_then(|number| Some((number, self.requests.get_mut(&number)?))) {
                let is_whole = packet.bytes == request.packet;
                // The number in a fragment may be damaged, and another request's.
                if is_whole || packet.is_fragment() && request.in_fragments {
                    request.offered += 1;
                }
                let in_one_piece = self.rules.outside_mtu.is_none_or(|mtu| bytes <= usize::from(mtu));
                if is_whole && !request.forbidden && within_share && has_ident && in_one_piece {
                    came = Came::MustLeave(number);
                } else if is_whole && !request.forbidden && self.rules.patient {
                    self.waiting.waits(now, number, request.done);
                }
            }
        }
        // A request to outside is proxied or dropped, whoever sends it; of a client's fragments nobody can tell more than its first one
        // does, which may have been damaged.
        let never = ours && if packet.is_fragment() { from_client && !self.rules.damage } else { echo.is_some() };
        let must = packet.protocol != ICMP || (self.rules.is_client)(packet.destination);
        if self.rules.reinjects && !never {
            if must {
                came = Came::MustPass(arrived.clone());
            }
            *self.passing.entry(arrived).or_default() += 1;
        }
        came
    }

    /// The idents that are or were somebody's, in an order that is always the same.
    pub(super) fn held(&self) -> Vec<Slot> {
        self.held.all()
    }

    /// The gateway dies between two turns, and leaves these slots torn. What it had not taken back yet stays outstanding; shares begin
    /// anew; nobody gets what was asked for by a torn slot.
    pub(super) fn dies(&mut self, now: Instant, torn: &[Slot]) {
        for key in self.failed.iter_mut().flat_map(std::mem::take) {
            if let Some(echo) = self.outstanding.get_mut(&key) {
                echo.withdrawn_by = None;
            }
        }
        self.shares.begin_anew();
        self.waiting.dies(now);
        // Another process may hit upon an identification that is under way.
        self.assemblies.clear();
        for slot in torn {
            self.held.tear(*slot, now);
            self.outstanding.retain(|(address, ident, ..), _| (*address, *ident) != *slot);
        }
    }

    pub(super) fn address(&self, address: Ipv4Addr) -> Option<u8> {
        let number = self.rules.gateways.iter().position(|gateway| *gateway == address)?;
        u8::try_from(number).ok()
    }

    /// Requests that reached the gateway whole and undamaged, fit into its way out, and did not leave.
    pub(super) fn kept_back(&self) -> u64 {
        let most = self.rules.outside_mtu.map_or(usize::MAX, usize::from);
        let whole = self.requests.values().filter(|request| !request.in_fragments && request.packet.len() <= most);
        let allowed = whole.filter(|request| !request.forbidden);
        allowed.map(|request| u64::from(request.offered.saturating_sub(request.left))).sum()
    }
}

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
