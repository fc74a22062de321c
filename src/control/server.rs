//! The thread that serves: one loop around poll(2).
//!
//! ```text
//! wait      for a connection, for what one says or takes, for an order's answer, or for the next look at the workers
//! look      once a second: do the workers move?
//! accept    new connections, the longest silent one making room
//! serve     read, answer, write, each as far as it goes without waiting
//! ```

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use serde_json::{Value, json};

use super::http::{self, Body, Wanted};
use super::peer::{Peer, Phase, Stream};
use super::protocol::{self, Answer, Answered, Order, REQUEST_BYTES_MAX, Request};
use super::socket::Listeners;
use super::stats::{BySide, Stats};
use super::traffic::Traffic;
use super::{PEERS_MAX, exposition};
use crate::clock::{Clock as _, Instant, Monotonic};
use crate::error::SetupError;
use crate::gateway::{Observer, PULSE_INTERVAL, Pulse};
use crate::io::Waker;
use crate::sys::poll::{self, Watch};
use crate::worker::Subject;

/// How long no connection is taken after one could not be (no descriptor left): it would be tried for ever.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How often samples are taken in; and while somebody follows a trace, or they come fast.
const TAKE_INTERVAL: Duration = Duration::from_secs(1);
const TAKE_INTERVAL_BUSY: Duration = Duration::from_millis(100);

/// How long to wait when poll itself fails (the kernel is out of memory).
const POLL_PAUSE: Duration = Duration::from_millis(100);

const PLAIN: &str = "text/plain; charset=utf-8";

pub(super) struct Server {
    listeners: Listeners,
    observer: Observer,
    clock: Monotonic,
    pulse: Pulse,
    traffic: Traffic,
    log_lines_lost: Arc<AtomicU64>,
    next_look: Instant,
    next_take: Instant,
    accept_from: Instant,
    /// Whether one of the connections follows a trace.
    is_traced: bool,
    peers: Vec<Peer>,
    numbered: u64,
    waker: Waker,
    orders: Sender<Order>,
    answers: Receiver<Answered>,
    answer: Sender<Answered>,
}

impl Server {
    pub(super) fn new(
        listeners: Listeners,
        observer: Observer,
        log_lines_lost: Arc<AtomicU64>,
        orders: Sender<Order>,
        waker: Waker,
    ) -> Server {
        let clock = Monotonic::new();
        let now = clock.now();
        let (answer, answers) = channel::unbounded();
        Server {
            pulse: observer.pulse(now),
            listeners,
            observer,
            clock,
            traffic: Traffic::new(now),
            log_lines_lost,
            next_look: now + PULSE_INTERVAL,
            next_take: now,
            accept_from: now,
            is_traced: false,
            peers: Vec::with_capacity(PEERS_MAX),
            numbered: 0,
            waker,
            orders,
            answers,
            answer,
        }
    }

    /// Serves until it is to stop, of which the waker tells.
    pub(super) fn serve(mut self, stop: impl Fn() -> bool) {
        while !stop() {
            self.wait();
            let now = self.clock.now();
            if now >= self.next_look {
                self.next_look = now + PULSE_INTERVAL;
                self.pulse.look(&self.observer, now);
            }
            if now >= self.next_take {
                self.take_traffic(now);
            }
            self.hand_out_answers(now);
            self.accept(now);
            self.serve_peers(now);
        }
    }

    fn wait(&mut self) {
        let now = self.clock.now();
        let listens = now >= self.accept_from;
        let control = self.listeners.control.as_ref().map(|listener| listener.as_fd());
        let metrics = self.listeners.metrics.as_ref().map(|listener| listener.as_fd());
        let mut watches = vec![Watch::readable(Some(self.waker.as_fd()))];
        watches.extend([control, metrics].map(|fd| Watch::readable(fd.filter(|_| listens))));
        watches.extend(self.peers.iter().map(Peer::watch));
        let due = self.peers.iter().filter_map(Peer::deadline).min();
        let timeout = due.into_iter().chain([self.next_look, self.next_take]).min().map(|at| at.since(now));
        // Interrupted, or without memory: nothing is ready, and everything is tried.
        if poll::poll(&mut watches, timeout).is_err_and(|error| error.kind() != ErrorKind::Interrupted) {
            std::thread::sleep(POLL_PAUSE);
        }
        // A waker that cannot be read stays ready; then this loop turns in vain, and goes on.
        let _ = self.waker.clear();
    }

    /// Takes in what the workers have let us see, and tells who follows a trace.
    fn take_traffic(&mut self, now: Instant) {
        let mut follower = self.peers.iter_mut().find(|peer| peer.phase == Phase::Follows);
        if follower.is_none() {
            self.observer.basin().trace(None);
        }
        let mut untold = 0;
        self.traffic.take(&self.observer, now, |line| {
            if let Some(follower) = &mut follower {
                untold += u64::from(!follower.tell(&protocol::traced(&line), now));
            }
        });
        let missed = untold + self.traffic.newly_missed(&self.observer.snapshot());
        let is_followed = follower.is_some();
        if let Some(follower) = follower.filter(|_| missed > 0) {
            // Without room for that either: then the next time that there is says less than it should.
            follower.tell(&protocol::missed(missed), now);
        }
        let soon = is_followed || self.observer.basin().is_filling();
        self.next_take = now + if soon { TAKE_INTERVAL_BUSY } else { TAKE_INTERVAL };
    }

    fn hand_out_answers(&mut self, now: Instant) {
        for Answered { peer, result } in self.answers.try_iter() {
            if let Some(peer) = self.peers.iter_mut().find(|waiting| waiting.number == peer) {
                peer.answer(&protocol::answer(result), Phase::Asks, now);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        if now < self.accept_from {
            return;
        }
        for _ in 0..PEERS_MAX {
            let stream = match self.accept_one() {
                Ok(Some(stream)) => stream,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    self.accept_from = now + ACCEPT_PAUSE;
                    break;
                }
            };
            if self.peers.len() == PEERS_MAX {
                // Not one that waits for us, unless all do.
                let silence = |peer: &Peer| (peer.deadline().is_none(), peer.deadline());
                let silent = self.peers.iter().enumerate().min_by_key(|(_, peer)| silence(peer));
                if let Some((longest, _)) = silent {
                    self.peers.swap_remove(longest);
                }
            }
            self.numbered += 1;
            self.peers.push(Peer::new(self.numbered, stream, now));
        }
    }

    fn accept_one(&self) -> io::Result<Option<Stream>> {
        if let Some(listener) = &self.listeners.control
            && let Some((stream, _)) = nothing_is_fine(listener.accept())?
        {
            stream.set_nonblocking(true)?;
            return Ok(Some(Stream::Control(stream)));
        }
        if let Some(listener) = &self.listeners.metrics
            && let Some((stream, _)) = nothing_is_fine(listener.accept())?
        {
            stream.set_nonblocking(true)?;
            return Ok(Some(Stream::Web(stream)));
        }
        Ok(None)
    }

    fn serve_peers(&mut self, now: Instant) {
        let mut peers = std::mem::take(&mut self.peers);
        peers.retain_mut(|peer| self.serve_peer(peer, now));
        self.is_traced = peers.iter().any(|peer| peer.phase == Phase::Follows);
        self.peers = peers;
    }

    /// Whether the connection goes on.
    fn serve_peer(&mut self, peer: &mut Peer, now: Instant) -> bool {
        if peer.deadline().is_some_and(|deadline| now >= deadline) {
            return false;
        }
        if !peer.write(now) {
            return false;
        }
        if peer.phase == Phase::Follows {
            return peer.pass_over();
        }
        if !peer.is_listening() {
            return true;
        }
        let goes_on = peer.read();
        // Several questions may have come at once: each as soon as the one before has been answered and read.
        while peer.is_listening() && self.answer(peer, now) {
            if !peer.write(now) {
                return false;
            }
        }
        goes_on
    }

    /// Answers the next question, if it is there.
    fn answer(&mut self, peer: &mut Peer, now: Instant) -> bool {
        if peer.is_web() {
            let answer = http::read(peer.head())
                .or_else(|| (peer.head().len() >= http::HEAD_BYTES_MAX).then_some(Wanted::Nothing));
            let Some(answer) = answer.map(|wanted| self.web_answer(wanted, now)) else { return false };
            peer.answer(&answer, Phase::Ends, now);
            return true;
        }
        match peer.take_line() {
            None => return false,
            Some(Err(())) => {
                let error = SetupError::new(format!("a request is at most {REQUEST_BYTES_MAX} bytes long"));
                peer.answer(&protocol::answer(Err(error)), Phase::Ends, now);
            }
            Some(Ok(line)) => match Request::read(&line) {
                Ok(Request::Stats) => {
                    peer.answer(&protocol::answer(as_value(&self.stats(now))), Phase::Asks, now);
                }
                Ok(Request::Trace(subject)) => self.begin_trace(peer, subject, now),
                Ok(Request::Order(ask)) => {
                    let answer = Answer { peer: peer.number, to: Some(self.answer.clone()), waker: self.waker.clone() };
                    match self.orders.try_send(Order { ask, answer }) {
                        Ok(()) => peer.phase = Phase::Waits,
                        Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) => {
                            order.answer.give(Err(SetupError::new("too many are asking for that at once")));
                        }
                    }
                }
                Err(error) => peer.answer(&protocol::answer(Err(error)), Phase::Asks, now),
            },
        }
        true
    }

    fn begin_trace(&mut self, peer: &mut Peer, subject: Subject, now: Instant) {
        if self.is_traced {
            let error = SetupError::new("somebody is tracing already").remedy("one trace at a time: try again later");
            peer.answer(&protocol::answer(Err(error)), Phase::Asks, now);
            return;
        }
        self.is_traced = true;
        // What was not told to others is not missed here.
        self.traffic.newly_missed(&self.observer.snapshot());
        // What is left of a trace before this one is told to nobody.
        self.traffic.take(&self.observer, now, |_| ());
        self.observer.basin().trace(Some(subject));
        peer.answer(&protocol::answer(Ok(json!({}))), Phase::Follows, now);
        self.next_take = now + TAKE_INTERVAL_BUSY;
    }

    fn stats(&self, now: Instant) -> Stats {
        Stats {
            healthy: self.pulse.still(now).is_none(),
            socket_drops: BySide {
                // Zero for a device that has gone, with its gateway.
                inside: self.listeners.devices.dropped_towards(self.observer.device()).unwrap_or(0),
                outside: self.observer.receive_drops(),
            },
            busiest: self.traffic.busiest(now),
            // Relaxed: a number alone.
            log_lines_lost: self.log_lines_lost.load(Ordering::Relaxed),
            ..Stats::of(&self.observer)
        }
    }

    fn web_answer(&self, wanted: Wanted<'_>, now: Instant) -> Vec<u8> {
        let still = self.pulse.still(now);
        match (wanted, still) {
            (Wanted::Path("/metrics", body), _) => {
                http::answer("200 OK", exposition::CONTENT_TYPE, &exposition::text(&self.stats(now)), body)
            }
            (Wanted::Path("/healthz", body), None) => http::answer("200 OK", PLAIN, "every worker moves\n", body),
            (Wanted::Path("/healthz", body), Some(still)) => {
                let what = format!("worker {} has not moved for {:.1?}\n", still.worker, still.time);
                http::answer("503 Service Unavailable", PLAIN, &what, body)
            }
            (Wanted::Path(_, body), _) => {
                http::answer("404 Not Found", PLAIN, "here are /metrics and /healthz\n", body)
            }
            (Wanted::OtherMethod, _) => http::answer("405 Method Not Allowed", PLAIN, "GET or HEAD\n", Body::Sent),
            (Wanted::Nothing, _) => http::answer("400 Bad Request", PLAIN, "that was no HTTP/1.1\n", Body::Sent),
        }
    }
}

fn as_value(stats: &Stats) -> Result<Value, SetupError> {
    serde_json::to_value(stats).map_err(|error| SetupError::new(format!("the numbers are no JSON: {error}")))
}

/// Nobody waits to be accepted, or whoever did has gone.
fn nothing_is_fine<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    match accepted {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
