//! Answers that may wait to be told.

use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use echogate::pinger::PingError;

use crate::scene::{HOST, OWN, PATIENCE, hasty, on_both, patient, until};

const MS: Duration = Duration::from_millis(1);

struct Counted {
    wakes: AtomicU32,
    thread: Thread,
}

impl Wake for Counted {
    fn wake(self: Arc<Counted>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

#[test]
fn answers_that_may_wait_are_told_together() {
    on_both(|_, pinger| {
        let counted = Arc::new(Counted { wakes: AtomicU32::new(0), thread: thread::current() });
        let waker = Waker::from(Arc::clone(&counted));
        let mut context = Context::from_waker(&waker);
        let mut stream = pinger.ping_many(iter::repeat_n(OWN, 400), &patient()).every(MS).told_within(50 * MS);
        let mut answered = 0;
        loop {
            match stream.poll_answer(&mut context) {
                Poll::Ready(Some(answer)) => answered += u32::from(answer.outcome.is_ok()),
                Poll::Ready(None) => break,
                Poll::Pending => thread::park_timeout(PATIENCE),
            }
        }
        // Some sixteen; a machine that is busy has fewer, and one that tells each has 400.
        let wakes = counted.wakes.load(Ordering::SeqCst);
        assert!(answered == 400 && wakes < 100, "{answered} answered, {wakes} times woken");
    });
}

#[test]
fn a_reply_in_time_counts_though_nobody_looks_before_the_time_is_over() {
    on_both(|wire, pinger| {
        let timeout = 1500 * MS;
        let options = hasty().timeout(timeout);
        let mut stream = pin!(pinger.ping_many([HOST], &options).told_within(5 * timeout / 2));
        let mut context = Context::from_waker(Waker::noop());
        let asked = Instant::now();
        assert!(stream.poll_answer(&mut context).is_pending());
        let request = wire.request();
        wire.inject(&request.reply());
        assert!(asked.elapsed() < timeout, "the reply was late: this shows nothing");
        let mut outcome = None;
        until("told", || match stream.poll_answer(&mut context) {
            Poll::Ready(answer) => {
                outcome = answer;
                true
            }
            Poll::Pending => false,
        });
        assert!(asked.elapsed() > timeout, "somebody looked: this shows nothing");
        let reply = outcome.unwrap().outcome.unwrap();
        assert!(reply.rtt < timeout, "{:?}", reply.rtt);
    });
}

#[test]
fn silence_is_told_too_when_the_patience_is_over() {
    on_both(|_, pinger| {
        let stream = pinger.ping_many(iter::repeat_n(HOST, 50), &hasty()).every(MS).told_within(200 * MS);
        let outcomes: Vec<_> = stream.wait().map(|answer| answer.outcome).collect();
        assert_eq!(outcomes.len(), 50);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(PingError::Timeout { .. }))), "{outcomes:?}");
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn who_is_in_a_hurry_does_not_wait_with_who_is_not() {
    on_both(|wire, pinger| {
        let mut stream = pinger.ping_many([HOST], &patient()).told_within(PATIENCE);
        assert!(stream.poll_answer(&mut Context::from_waker(Waker::noop())).is_pending());
        let _unanswered = wire.request();
        let begin = Instant::now();
        pinger.ping_blocking(OWN, &patient()).unwrap();
        // A quarter of what the other would wait; asleep, the engine must hear of the ping, and look for its reply.
        assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
    });
}

#[test]
fn a_dropped_stream_that_had_time_leaves_nothing_behind() {
    on_both(|wire, pinger| {
        let mut stream = pinger.ping_many([HOST; 20], &hasty()).told_within(300 * MS);
        assert!(stream.poll_answer(&mut Context::from_waker(Waker::noop())).is_pending());
        let requests: Vec<_> = (0..20).map(|_| wire.request()).collect();
        drop(stream);
        requests.iter().for_each(|request| wire.inject(&request.reply()));
        assert_eq!(pinger.in_flight(), 0);
        until("seen", || pinger.tally().cancelled == 20);
        assert!(pinger.ping_blocking(OWN, &patient()).is_ok());
    });
}
