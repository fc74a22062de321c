//! Many pings as one stream.
//!
//! Each ping has a slot like any other, but its outcome is announced in a queue that all of the stream share
//! ([`Gathering`]), so that one wake-up finds all that is ready without asking every ping under way. When to send is the
//! engine's business: a ping is handed over with the time at which it is due. So pacing needs no timer of a runtime, does
//! not drift, and does not wake the stream's task.

use std::iter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam::queue::SegQueue;
use futures_core::Stream;

use super::error::PingError;
use super::handle::{Ask, Handle, Ticket};
use super::options::{PingOptions, TIMEOUT_MAX, Target};
use super::ping::wait_for;
use super::reply::Reply;
use crate::clock::Instant;

/// How far ahead of their time pings are handed over. Bounded, so that what a dropped stream leaves in the engine is little. One
/// beyond the half of it wakes the stream when it is sent, which then hands over as many again: in between it leaves
/// the engine asleep.
const AHEAD: Duration = Duration::from_secs(1);

/// Pings under way at once unless told otherwise.
const AT_MOST_DEFAULT: usize = 1024;

/// What became of one ping of a stream.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which one, in the order of the targets; the first is 0.
    pub number: u64,
    /// Who was pinged.
    pub target: Target,
    /// The reply, or why there is none.
    pub outcome: Result<Reply, PingError>,
}

/// The pings of [`Pinger::ping_many`](super::Pinger::ping_many): a [`Stream`] of answers, in the order in which they come.
///
/// Nothing is sent before it is first polled. Dropping it cancels what is under way.
#[must_use = "a stream does nothing unless it is polled"]
pub struct PingMany<I> {
    handle: Arc<Handle>,
    /// None when it has no more.
    targets: Option<I>,
    options: PingOptions,
    interval: Duration,
    together: Duration,
    at_most: usize,
    next_number: u64,
    /// When the next one is due; none before the first.
    due: Option<Instant>,
    /// When the one is due that wakes us to hand over more, and whether until then enough is handed over.
    refill_at: Instant,
    is_ahead: bool,
    patience: Duration,
    gathering: Arc<Gathering>,
    places: Vec<Option<Place>>,
    vacant: Vec<u32>,
}

struct Place {
    number: u64,
    target: Target,
    /// When it is to be sent, if not at once.
    due: Option<Instant>,
    ticket: Ticket,
}

/// Where the engine announces outcomes.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Numbers of places.
    ready: SegQueue<u32>,
    waker: AtomicWaker,
}

impl Gathering {
    /// Notes that a place has an outcome. Whoever waits hears of it by [`Gathering::wake`].
    pub(super) fn announce(&self, place: u32) {
        self.ready.push(place);
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl<T: Into<Target>, I: Iterator<Item = T>> PingMany<I> {
    pub(super) fn new(handle: Arc<Handle>, targets: I, options: PingOptions) -> PingMany<I> {
        let at_most = AT_MOST_DEFAULT.min(handle.shared().slots.limit());
        PingMany {
            handle,
            targets: Some(targets),
            options,
            interval: Duration::ZERO,
            together: Duration::ZERO,
            at_most,
            next_number: 0,
            due: None,
            refill_at: Instant::START,
            is_ahead: false,
            patience: Duration::ZERO,
            gathering: Arc::default(),
            places: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// From the sending of one to the sending of the next. The n-th is due n intervals after the first, however long the
    /// others take: intervals do not add up errors. Zero, the default, means as fast as places become free.
    pub fn every(mut self, interval: Duration) -> PingMany<I> {
        self.interval = interval;
        self
    }

    /// Lets answers wait up to so long to be told together: while only such pings are under way, what arrives wakes nobody.
    /// Ten milliseconds of it halve what a thousand hosts a second cost. Round-trip times are not touched by it: both
    /// their ends are the kernel's. Zero by default: each answer is told as it comes. At most an
    /// hour.
    pub fn told_within(mut self, patience: Duration) -> PingMany<I> {
        self.patience = patience.min(TIMEOUT_MAX);
        self
    }

    /// Lets pings wait up to so long after they are due, to be sent together with others: intervals of 1 ms and 10 ms of
    /// patience make a hundred bursts of ten a second. The rate stays, the evenness goes; waking up to send is most of what
    /// is left of the costs beside [`PingMany::told_within`]. Zero by default.
    pub fn together(mut self, within: Duration) -> PingMany<I> {
        self.together = within;
        self
    }

    /// Pings under way at once, those included that are not due yet; 1,024 by default, and no more than the pinger may have
    /// ([`PingerBuilder::in_flight_max`](super::PingerBuilder::in_flight_max)). It should be more than timeout / interval: when so many
    /// wait for silent hosts the next has to wait as well, and the count of intervals begins anew with it.
    pub fn at_most(mut self, pings: usize) -> PingMany<I> {
        self.set_at_most(pings);
        self
    }

    /// [`PingMany::at_most`] from now on. What is under way stays.
    pub fn set_at_most(&mut self, pings: usize) {
        self.at_most = pings.clamp(1, self.handle.shared().slots.limit());
    }

    /// The pings that have been sent (their time has come, at any rate) and are not answered yet: number and target.
    pub fn unanswered(&self) -> impl Iterator<Item = (u64, &Target)> {
        let now = self.handle.now();
        let places = self.places.iter().flatten().filter(move |place| place.due.is_none_or(|due| due <= now));
        places.map(|place| (place.number, &place.target))
    }

    /// The stream as a blocking iterator.
    pub fn wait(mut self) -> impl Iterator<Item = Answer> {
        iter::from_fn(move || wait_for(|context| self.poll_answer(context)))
    }

    /// What [`Stream::poll_next`] is, for those who have no `Stream` at hand: ready with `None` when all have been answered.
    pub fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.gathering.waker.register(context.waker());
        loop {
            if let Some(failed) = self.top_up() {
                return Poll::Ready(Some(failed));
            }
            let Some(ready) = self.gathering.ready.pop() else {
                let all_answered = self.targets.is_none() && self.vacant.len() == self.places.len();
                return if all_answered { Poll::Ready(None) } else { Poll::Pending };
            };
            if let Some(answer) = self.take(ready) {
                return Poll::Ready(Some(answer));
            }
        }
    }

    /// Hands pings to the engine until there are enough. One that cannot even begin is an answer.
    fn top_up(&mut self) -> Option<Answer> {
        while self.places.len() - self.vacant.len() < self.at_most && !self.is_ahead() {
            let Some(target) = self.targets.as_mut()?.next() else {
                self.targets = None;
                return None;
            };
            let target: Target = target.into();
            let number = self.next_number;
            self.next_number += 1;
            let now = self.handle.now();
            let at = self.next_due(now);
            let refill = at.is_some_and(|at| self.refill_at <= now && at >= now + AHEAD / 2);
            if let Some(at) = at.filter(|_| refill) {
                self.refill_at = at;
            }
            let place = self.vacant.pop().unwrap_or_else(|| {
                self.places.push(None);
                // No more than `at_most` places, which is no more than there are slots.
                u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
            });
            let gathering = Some((Arc::clone(&self.gathering), place));
            let (options, patience) = (self.options, self.patience);
            let ask = Ask { target: target.clone(), options, at, number, refill, patience, gathering };
            match self.handle.ask(ask) {
                Ok(ticket) => self.places[place as usize] = Some(Place { number, target, due: at, ticket }),
                Err(error) => {
                    self.vacant.push(place);
                    return Some(Answer { number, target, outcome: Err(error) });
                }
            }
        }
        None
    }

    fn next_due(&mut self, now: Instant) -> Option<Instant> {
        if self.interval.is_zero() {
            return None;
        }
        // Behind by more than an interval: nothing was free, and the hosts need not suffer a burst for it.
        let due = self.due.filter(|due| *due + self.interval + self.together >= now).unwrap_or(now);
        self.due = Some(due + self.interval);
        let step = u64::try_from(self.together.as_nanos()).unwrap_or(u64::MAX).max(1);
        Some(Instant::from_nanos(due.as_nanos().checked_next_multiple_of(step).unwrap_or(u64::MAX)))
    }

    /// Whether enough has been handed over for now: the next one's time is far, and one before it will wake us.
    fn is_ahead(&mut self) -> bool {
        let Some(due) = self.due else { return false };
        let now = self.handle.now();
        self.is_ahead = now < self.refill_at && (self.is_ahead || due > now + AHEAD);
        self.is_ahead
    }

    fn take(&mut self, place: u32) -> Option<Answer> {
        let entry = self.places.get_mut(place as usize)?;
        let outcome = entry.as_mut()?.ticket.poll(Waker::noop())?;
        let Place { number, target, .. } = entry.take()?;
        self.vacant.push(place);
        Some(Answer { number, target, outcome })
    }
}

impl<T: Into<Target>, I: Iterator<Item = T> + Unpin> Stream for PingMany<I> {
    type Item = Answer;

    fn poll_next(self: Pin<&mut PingMany<I>>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.get_mut().poll_answer(context)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let under_way = self.places.len() - self.vacant.len();
        let (least, most) = self.targets.as_ref().map_or((0, Some(0)), Iterator::size_hint);
        (least.saturating_add(under_way), most.and_then(|most| most.checked_add(under_way)))
    }
}

impl<I> std::fmt::Debug for PingMany<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let under_way = self.places.len() - self.vacant.len();
        write!(f, "PingMany({} begun, {under_way} under way)", self.next_number)
    }
}
