//! A worker: one thread, one way to both sides, one handle of the proxy. It turns:
//!
//! ```text
//! wait      submits what the last turn queued, sleeps until something happens, reaps (it may be told to look for a while
//!           before it sleeps)
//! settle    sends that ended: count; one that failed withdraws its echo
//! inbound   frames from outside -> proxy -> the TUN, or dropped
//! outbound  frames from inside  -> proxy -> outside, or back to the TUN, or dropped
//! expire    what the clock has made due
//! publish   the gauges
//! ```
//!
//! Replies go first: a reply finishes what a request began. A batch has one time, read when the wait is over. A packet on
//! a live mapping allocates nothing, nothing is logged about a packet, and nothing is retried: full means dropped, by name.
//!
//! A packet that needs a new mapping when its batch has made its share waits, in its buffer, for the next turn; the
//! turns go on without sleeping while any waits. Live mappings pass it by.
//!
//! A packet for which this worker has no ident left is handed over to the next worker, in a copy, through that one's
//! bounded queue; a copy that has been everywhere is refused. (Where the steering program cannot be loaded, all pings
//! between two hosts come to one worker, and must not be bounded by its share of the idents.)
//!
//! A fragment may have to go to another worker, which judges its request's other ones, or to wait, in its buffer, until that
//! request's first one has come: a second, not longer, and not too many of them.
//!
//! A packet without DF that is larger than the way out is cut, for the kernel does not cut what brings its own header: the
//! send fails and tells so, and the packet leaves again in pieces; for a while the next ones are cut before they are sent, so
//! that pieces keep their order. The first of them is the packet in all counts, the
//! others are counted by themselves.
//!
//! A worker ends when it is told to (it drains first: no more reads are awaited, what is in flight comes back) or with
//! a fault, which is returned, never swallowed.

mod cut;
mod note;
mod post;
mod tap;

use std::collections::VecDeque;
use std::hint;
use std::mem;
use std::time::Duration;

use self::cut::{Narrow, PIECES_MAX};
use self::note::Note;
use self::post::{INBOX_MAX, Parcel};
pub use self::post::{Inbox, Post};
pub use self::tap::{Basin, Event, Fate, SAMPLE_EVERY, Seen, Subject, Tap, Trace};
use crate::canary::{Canary, is_loose};
use crate::clock::{Clock, Instant};
use crate::error::SetupError;
use crate::io::{BATCH_MAX, Events, FallThrough, Frame, PacketIo, Sent, Side};
use crate::metrics::WorkerCounters;
use crate::proxy::{Batch, Handle, Inbound, Outbound, Reason};
use crate::table::ADDRESSES_MAX;
use crate::table::echoes::Recorded;
use crate::table::fragments::{self, EARLY_TIME};
use crate::wire::error::{self, Message};
use crate::wire::ipv4::Ipv4;

/// Packets that may wait for a new mapping.
const WAITING_MAX: usize = 2 * BATCH_MAX;

/// A drain takes at most this long: what has not come back then is given up and counted.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

/// Fragments that may wait for their request's first one: more than one client's ([`fragments::EARLY_MAX`]).
const EARLY_MAX: usize = 2 * BATCH_MAX;

const _: () = assert!(EARLY_MAX > 2 * fragments::EARLY_MAX as usize, "one client must not fill it");

/// One worker over one [`PacketIo`].
#[derive(Debug)]
pub struct Worker<'c, I> {
    io: I,
    handle: Handle,
    counters: &'c WorkerCounters,
    fall_through: FallThrough,
    /// How long after the last event the next one is looked for without sleeping.
    busy_poll: Duration,
    post: Post,
    events: Events,
    /// With how many other workers had no ident for it.
    waiting: VecDeque<(Frame, usize)>,
    /// Fragments that wait for their request's first one, and until when.
    early: VecDeque<(Frame, Instant)>,
    /// Room for what is cut off one packet.
    pieces: Vec<Frame>,
    narrow: Narrow,
    tap: Tap,
    /// In flight, and no packets that came in: errors of our own (their packets have been dropped), pieces of others.
    originated: usize,
    cut_off: usize,
}

impl<'c, I: PacketIo> Worker<'c, I> {
    /// A worker that counts into `counters`, of which it is the only writer.
    pub fn new(
        io: I,
        handle: Handle,
        post: Post,
        counters: &'c WorkerCounters,
        fall_through: FallThrough,
    ) -> Worker<'c, I> {
        Worker {
            io,
            handle,
            counters,
            fall_through,
            busy_poll: Duration::ZERO,
            post,
            events: Events::with_capacity(),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            early: VecDeque::with_capacity(EARLY_MAX),
            pieces: Vec::with_capacity(PIECES_MAX),
            narrow: [(u16::MAX, Instant::START); ADDRESSES_MAX],
            tap: Tap::new(&Basin::new(), 0),
            originated: 0,
            cut_off: 0,
        }
    }

    /// The same, seen through this tap.
    #[must_use]
    pub fn seen_through(self, tap: Tap) -> Worker<'c, I> {
        Worker { tap, ..self }
    }

    /// The same, but before it sleeps it looks for this long, again and again, whether something has happened: being woken
    /// takes longer than that, and the core is not given away.
    pub fn with_busy_poll(self, busy_poll: Duration) -> Worker<'c, I> {
        Worker { busy_poll, ..self }
    }

    /// One turn. Sleeps at most `sleep_max`, and no longer than the tables allow.
    pub fn turn(&mut self, clock: &impl Clock, sleep_max: Option<Duration>) -> Result<(), SetupError> {
        let sleep = if self.waiting.is_empty() {
            let now = clock.now();
            let early = self.early.front().map(|(_, until)| until.since(now));
            self.handle.sleep_max(now).into_iter().chain(sleep_max).chain(early).min()
        } else {
            Some(Duration::ZERO)
        };
        if !self.happens_soon(clock, sleep)? {
            self.io.wait(&mut self.events, sleep)?;
        }
        self.process(clock.now());
        Ok(())
    }

    /// Waits without sleeping, for `busy_poll` at most. Whether something has happened.
    fn happens_soon(&mut self, clock: &impl Clock, sleep: Option<Duration>) -> Result<bool, SetupError> {
        let spin = sleep.map_or(self.busy_poll, |sleep| sleep.min(self.busy_poll));
        if spin.is_zero() {
            return Ok(false);
        }
        let until = clock.now() + spin;
        loop {
            self.io.wait(&mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                return Ok(true);
            }
            if clock.now() >= until {
                return Ok(false);
            }
            hint::spin_loop();
        }
    }

    /// Lets what is in flight come back. What still arrives meanwhile is given up, by name.
    pub fn drain(&mut self, clock: &impl Clock) -> Result<(), SetupError> {
        let until = clock.now() + DRAIN_TIME_MAX;
        loop {
            let now = clock.now();
            self.settle_only(now);
            if self.io.in_flight() == 0 || now >= until {
                break;
            }
            self.io.wait(&mut self.events, Some(until.since(now)))?;
        }
        self.counters.ending.add((self.io.in_flight() - self.originated - self.cut_off) as u64);
        self.counters.not_originated.add(self.originated as u64);
        self.counters.cut_off_lost.add(self.cut_off as u64);
        if cfg!(debug_assertions) {
            self.audit().map_err(|what| SetupError::new(format!("the tables contradict one another: {what}")))?;
        }
        Ok(())
    }

    /// Reads nothing any more and serves what it has read, then drains: for a successor over the same descriptors, which
    /// finds the rest waiting.
    pub fn leave(&mut self, clock: &impl Clock) -> Result<(), SetupError> {
        self.io.stop_receiving();
        let until = clock.now() + DRAIN_TIME_MAX;
        loop {
            self.io.wait(&mut self.events, Some(Duration::ZERO))?;
            let now = clock.now();
            self.process(now);
            if (self.io.in_flight() == 0 && self.waiting.is_empty()) || now >= until {
                return self.drain(clock);
            }
        }
    }

    fn process(&mut self, now: Instant) {
        self.tap.begin_turn(now);
        let mut turn = Turn {
            batch: self.handle.batch(now),
            io: &mut self.io,
            counters: self.counters,
            fall_through: self.fall_through,
            post: &self.post,
            waiting: &mut self.waiting,
            early: &mut self.early,
            pieces: &mut self.pieces,
            narrow: &mut self.narrow,
            tap: &mut self.tap,
            originated: &mut self.originated,
            cut_off: &mut self.cut_off,
        };
        for sent in self.events.sent.drain(..) {
            turn.settle(sent);
        }
        turn.batch.touch_inbound(self.events.from_outside.iter().map(|frame| &**frame));
        for frame in self.events.from_outside.drain(..) {
            turn.inbound(frame);
        }
        turn.outbound_waiting();
        turn.batch.touch_outbound(self.events.from_inside.iter().map(|frame| &**frame));
        for frame in self.events.from_inside.drain(..) {
            turn.counters.inside_in.count(frame.len());
            turn.outbound(frame);
        }
        if mem::take(&mut self.events.woken) {
            turn.outbound_of_others();
        }
        turn.outbound_early();
        turn.expire();
        drop(turn);
        self.publish();
    }

    fn settle_only(&mut self, now: Instant) {
        let mut given_up = self.waiting.drain(..).count() + self.early.drain(..).count();
        for frame in self.events.from_inside.drain(..) {
            self.counters.inside_in.count(frame.len());
            given_up += 1;
        }
        for frame in self.events.from_outside.drain(..) {
            self.counters.outside_in.count(frame.len());
            given_up += 1;
        }
        given_up += self.post.inbox().give_up();
        self.counters.ending.add(given_up as u64);
        self.process(now);
    }

    fn publish(&self) {
        let mappings = self.handle.mappings() as u64;
        self.counters.turns.add(1);
        self.counters.mappings.set(mappings);
        self.counters.mappings_peak.set(self.counters.mappings_peak.get().max(mappings));
    }

    /// Walks the worker's tables and tells the first contradiction.
    pub fn audit(&self) -> Result<(), String> {
        self.handle.audit()
    }
}

/// A worker's parts while a batch is open.
struct Turn<'t, I> {
    batch: Batch<'t>,
    io: &'t mut I,
    counters: &'t WorkerCounters,
    fall_through: FallThrough,
    post: &'t Post,
    waiting: &'t mut VecDeque<(Frame, usize)>,
    early: &'t mut VecDeque<(Frame, Instant)>,
    pieces: &'t mut Vec<Frame>,
    narrow: &'t mut Narrow,
    tap: &'t mut Tap,
    originated: &'t mut usize,
    cut_off: &'t mut usize,
}

impl<I: PacketIo> Turn<'_, I> {
    fn settle(&mut self, Sent { to, frame, errno }: Sent) {
        let counters = self.counters;
        let note = Note::of(&frame);
        match note {
            Note::Originated => *self.originated -= 1,
            Note::CutOff => *self.cut_off -= 1,
            _ => {}
        }
        match (to, errno, note) {
            (Side::Outside, 0, Note::Originated) => counters.originated.count(frame.len()),
            (Side::Outside, _, Note::Originated) => counters.not_originated.add(1),
            (Side::Outside, 0, Note::CutOff) => counters.cut_off.count(frame.len()),
            (Side::Outside, _, Note::CutOff) => counters.cut_off_lost.add(1),
            (_, 0, Note::Told) => counters.told.count(frame.len()),
            (Side::Outside, 0, _) => counters.outside_out.count(frame.len()),
            (Side::Outside, errno, _) => self.not_sent(frame, errno),
            (Side::Inside, 0, Note::Reinjected) => counters.reinjected.count(frame.len()),
            (Side::Inside, 0, _) => counters.delivered.count(frame.len()),
            (Side::Inside, errno, _) => counters.send_inside.count(errno),
        }
    }

    fn not_sent(&mut self, frame: Frame, errno: i32) {
        let frame = if errno == libc::EMSGSIZE { self.cut(frame) } else { Some(frame) };
        let Some(mut frame) = frame else { return };
        if !matches!(Note::of(&frame), Note::Repeated | Note::Told | Note::Later)
            && !is_loose(Canary::NotWithdrawn)
            && self.batch.withdraw(&frame)
        {
            self.counters.outstanding.sub(1);
        }
        self.counters.send_outside.count(errno);
        let mtu = |address, remote| self.io.mtu_towards(address, remote);
        if let Some((address, message)) = self.batch.why_not_sent(&mut frame, errno, mtu) {
            self.tell(frame, address, message);
        }
    }

    fn inbound(&mut self, mut frame: Frame) {
        self.counters.outside_in.count(frame.len());
        let verdict =
            if self.tap.picks_inbound(&frame) { self.inbound_seen(&mut frame) } else { self.batch.inbound(&mut frame) };
        match verdict {
            Inbound::Deliver { .. } if is_loose(Canary::LostReply) => {
                self.counters.outstanding.sub(1);
                self.counters.drop(Reason::NoEcho);
            }
            Inbound::Deliver { length, .. } => {
                self.counters.outstanding.sub(1);
                frame.truncate(length);
                self.io.send_inside(frame);
            }
            Inbound::Tell { client, length, from_own } => {
                frame.truncate(length);
                Note::Told.put_on(&mut frame);
                match from_own {
                    None => self.io.send_inside(frame),
                    Some(address) => self.io.send_outside(frame, address, client),
                }
            }
            Inbound::Drop(reason) => {
                if reason.uses_echo_up() {
                    self.counters.outstanding.sub(1);
                }
                self.counters.drop(reason);
            }
        }
    }

    fn outbound(&mut self, mut frame: Frame) {
        let verdict =
            if self.tap.picks_outbound() { self.outbound_seen(&mut frame) } else { self.batch.outbound(&mut frame) };
        self.carry_out(verdict, frame, 0);
    }

    /// Judges a packet that others are to see.
    #[cold]
    fn outbound_seen(&mut self, frame: &mut Frame) -> Outbound {
        let seen = self.tap.look_outbound(frame);
        let verdict = self.batch.outbound(frame);
        if let Some(seen) = seen {
            self.tap.note_outbound(seen, &verdict, frame, self.batch.now(), self.counters);
        }
        verdict
    }

    #[cold]
    fn inbound_seen(&mut self, frame: &mut Frame) -> Inbound {
        let seen = self.tap.look_inbound(frame);
        let verdict = self.batch.inbound(frame);
        self.tap.note_inbound(seen, &verdict, self.batch.now(), self.counters);
        verdict
    }

    /// Does with an outbound packet what the proxy says. `refusals`: how many other workers had no ident for it.
    fn carry_out(&mut self, verdict: Outbound, mut frame: Frame, refusals: usize) {
        match verdict {
            Outbound::Forward { recorded, .. } if is_loose(Canary::LostRequest) => {
                self.count_recorded(recorded);
                self.counters.drop(Reason::OverPackets);
            }
            Outbound::Carry { .. } if is_loose(Canary::IntoTheTun) => {
                Note::Reinjected.put_on(&mut frame);
                self.io.send_inside(frame);
            }
            Outbound::Forward { address, remote, length, recorded } => {
                self.count_recorded(recorded);
                if recorded == Recorded::Again {
                    Note::Repeated.put_on(&mut frame);
                }
                if !is_loose(Canary::LeakedByte) {
                    frame.truncate(length);
                }
                self.send_outside(frame, address, remote);
            }
            Outbound::Carry { address, remote, length } => {
                Note::Later.put_on(&mut frame);
                frame.truncate(length);
                self.send_outside(frame, address, remote);
            }
            Outbound::FallThrough(_) => match self.fall_through {
                FallThrough::Reinject if is_loose(Canary::LostPassing) => self.counters.not_reinjected.add(1),
                FallThrough::Reinject => {
                    Note::Reinjected.put_on(&mut frame);
                    if is_loose(Canary::ChangedPassing) {
                        frame.reverse();
                    }
                    self.io.send_inside(frame);
                }
                FallThrough::Drop => self.counters.not_reinjected.add(1),
            },
            Outbound::Later if self.waiting.len() < WAITING_MAX => self.waiting.push_back((frame, refusals)),
            Outbound::Later => self.counters.creations_backlog.add(1),
            Outbound::Elsewhere => self.hand_over(frame, refusals + 1),
            Outbound::BelongsTo { worker } => self.put(worker, &frame, refusals),
            Outbound::Hold if self.early.len() < EARLY_MAX && !is_loose(Canary::NoPatience) => {
                self.early.push_back((frame, self.batch.now() + EARLY_TIME));
            }
            Outbound::Hold => self.counters.drop(Reason::FragmentEarly),
            Outbound::Refuse { reason, class, tell_from } => {
                self.counters.refuse(reason, class);
                if let Some(address) = tell_from {
                    self.tell(frame, address, Message::Prohibited);
                }
            }
            Outbound::Drop(reason) => {
                self.counters.drop(reason);
                if is_loose(Canary::LostBuffer) {
                    mem::forget(frame);
                }
            }
        }
    }

    fn judge(&mut self, frame: &mut Frame, refusals: usize) -> Outbound {
        let seen = self.tap.look_again(frame);
        let verdict = match refusals {
            0 => self.batch.outbound(frame),
            some if some < self.post.workers() => self.batch.outbound_again(frame),
            _ => self.batch.outbound_at_last(frame),
        };
        if let Some(seen) = seen {
            self.tap.note_outbound(seen, &verdict, frame, self.batch.now(), self.counters);
        }
        verdict
    }

    /// To the next worker, or, if all have been asked, judged here at last.
    fn hand_over(&mut self, mut frame: Frame, refusals: usize) {
        if refusals < self.post.workers() {
            self.put(self.post.next(), &frame, refusals);
        } else {
            let verdict = self.judge(&mut frame, refusals);
            self.carry_out(verdict, frame, refusals);
        }
    }

    /// A copy of the packet to another worker.
    fn put(&self, worker: usize, frame: &Frame, refusals: usize) {
        let parcel = Parcel { packet: Box::from(&**frame), refusals };
        if is_loose(Canary::LostParcel) || !self.post.put(worker, parcel) {
            self.counters.hand_over_full.add(1);
        }
    }

    /// Requests that other workers had no ident for, and fragments that are this one's. They were counted as read by the
    /// worker that read them.
    fn outbound_of_others(&mut self) {
        for _ in 0..INBOX_MAX {
            let Some(Parcel { packet, refusals }) = self.post.take() else { break };
            match self.io.copy_of(Side::Inside, &packet) {
                Some(mut frame) => {
                    let verdict = self.judge(&mut frame, refusals);
                    self.carry_out(verdict, frame, refusals);
                }
                None => self.counters.hand_over_full.add(1),
            }
        }
    }

    /// Fragments whose request's first one has come by now, or has not come in time.
    fn outbound_early(&mut self) {
        if self.batch.take_awaited() {
            for _ in 0..self.early.len() {
                let Some((mut frame, until)) = self.early.pop_front() else { break };
                if self.batch.is_decided(&frame) {
                    let verdict = self.judge(&mut frame, 0);
                    self.carry_out(verdict, frame, 0);
                } else {
                    self.early.push_back((frame, until));
                }
            }
        }
        while self.early.front().is_some_and(|(_, until)| *until <= self.batch.now()) {
            self.early.pop_front();
            self.counters.drop(Reason::FragmentEarly);
        }
    }

    /// Turns a request that goes nowhere, in its buffer, into the error that tells its client. It leaves by a raw socket,
    /// since the kernel would drop a packet with one of its own addresses that came from the TUN.
    fn tell(&mut self, mut frame: Frame, address: u8, message: Message) {
        let Some(gateway) = self.batch.address(address) else { return };
        // Not what a link may have put behind the packet.
        let length = Ipv4::check(&*frame).map_or(0, |packet| packet.total_len());
        frame.truncate(length.min(error::QUOTE_LEN_MAX));
        if !frame.prepend(error::HEADERS_LEN) {
            self.counters.not_originated.add(1);
            return;
        }
        if let Some(client) = error::complete(&mut frame, gateway, message) {
            Note::Originated.put_on(&mut frame);
            *self.originated += 1;
            self.io.send_outside(frame, address, client);
        }
    }

    /// Packets that the last batch had no new mapping left for. Those for which this one has none go round again.
    fn outbound_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some((mut frame, refusals)) = self.waiting.pop_front() else { break };
            let verdict = self.judge(&mut frame, refusals);
            self.carry_out(verdict, frame, refusals);
        }
    }

    fn count_recorded(&self, recorded: Recorded) {
        match recorded {
            Recorded::New => self.counters.outstanding.add(1),
            Recorded::OverExpired => self.counters.unanswered.add(1),
            Recorded::Evicted(age) => self.counters.evict(age),
            Recorded::Again | Recorded::Contended => {}
        }
    }

    fn expire(&mut self) {
        let expired = self.batch.expire();
        self.counters.unanswered.add(expired.echoes);
        self.counters.outstanding.sub(expired.echoes);
    }
}
