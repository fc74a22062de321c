//! Many pings as one stream.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use echogate::pinger::{PingError, Target};

use crate::scene::{HOST, OWN, OWN_TOO, hasty, on_both, patient, until};

#[test]
fn every_target_is_answered_once_under_its_number() {
    on_both(|_, pinger| {
        let targets = [OWN, OWN_TOO].into_iter().cycle().take(5000);
        let mut numbers = BTreeSet::new();
        for answer in pinger.ping_many(targets, &patient()).at_most(64).wait() {
            let expected = if answer.number % 2 == 0 { OWN } else { OWN_TOO };
            assert_eq!(answer.target, Target::from(expected));
            assert_eq!(answer.outcome.unwrap().from, IpAddr::from(expected));
            assert!(numbers.insert(answer.number));
        }
        assert_eq!((numbers.len(), numbers.last()), (5000, Some(&4999)));
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn no_more_are_drawn_than_may_be_under_way_however_many_there_are() {
    on_both(|_, pinger| {
        let drawn = Cell::new(0);
        let endless = iter::repeat_with(|| {
            drawn.set(drawn.get() + 1);
            HOST
        });
        let mut stream = pinger.ping_many(endless, &patient()).at_most(10);
        assert_eq!(drawn.get(), 0, "nothing before it is polled");
        assert!(stream.poll_answer(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!((drawn.get(), pinger.in_flight()), (10, 10));
        assert_eq!(stream.unanswered().count(), 10);
        drop(stream);
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn an_empty_list_is_an_empty_stream_and_a_bad_name_one_bad_answer() {
    on_both(|_, pinger| {
        assert_eq!(pinger.ping_many(iter::empty::<Target>(), &patient()).wait().count(), 0);
        let targets = ["198.18.0.1", "", "::1"];
        let mut outcomes: Vec<_> = pinger.ping_many(targets, &patient()).wait().collect();
        outcomes.sort_by_key(|answer| answer.number);
        assert!(outcomes[0].outcome.is_ok() && outcomes[2].outcome.is_ok());
        assert!(matches!(outcomes[1].outcome, Err(PingError::NotResolved { .. })));
    });
}

#[test]
fn what_is_not_due_is_not_sent() {
    on_both(|_, pinger| {
        let mut stream = pinger.ping_many(iter::repeat(HOST), &hasty()).every(Duration::from_secs(3600));
        let mut context = Context::from_waker(Waker::noop());
        assert!(stream.poll_answer(&mut context).is_pending());
        until("sent", || pinger.tally().sent == 1);
        assert_eq!(stream.unanswered().map(|(number, _)| number).collect::<Vec<_>>(), [0]);
        while !matches!(stream.poll_answer(&mut context), Poll::Ready(Some(_))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((stream.unanswered().count(), pinger.tally().sent), (0, 1));
    });
}

#[test]
fn what_a_dropped_stream_leaves_is_little_and_an_endless_one_goes_on() {
    on_both(|_, pinger| {
        // A tenth of a second apart: more than one horizon's worth of them, and never all handed over.
        let mut stream = pinger.ping_many(iter::repeat(OWN), &patient()).every(Duration::from_millis(100));
        let mut context = Context::from_waker(Waker::noop());
        while stream.poll_answer(&mut context).is_pending() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(pinger.in_flight() < 20, "{}", pinger.in_flight());
        assert_eq!(stream.wait().take(15).filter(|answer| answer.outcome.is_ok()).count(), 15);
    });
}

#[test]
fn pings_that_may_wait_are_sent_together() {
    on_both(|_, pinger| {
        let answers = pinger.ping_many(iter::repeat_n(OWN, 200), &patient()).every(Duration::from_millis(1));
        let mut received: Vec<_> =
            answers.together(Duration::from_millis(50)).wait().map(|answer| answer.outcome.unwrap().received).collect();
        received.sort_unstable();
        // Bursts are 50 ms apart; a gap of a fifth of that is one between bursts, or a busy machine's.
        let gap = |pair: &[std::time::SystemTime]| pair[1].duration_since(pair[0]).unwrap_or_default();
        let alone = received.windows(2).filter(|pair| gap(pair) > Duration::from_millis(10)).count();
        assert!(alone < 100, "{alone} of 200 went alone");
    });
}
