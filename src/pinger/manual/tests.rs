#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};

use super::*;
use crate::io::ping::memory::{Message, Request};
use crate::pinger::resolve::Resolver;
use crate::pinger::{Ping, PingOptions, Reply};
use crate::sys::control;
use crate::sys::ping::{NAME_BYTES, write_name};

const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const SECOND: Duration = Duration::from_secs(1);

fn manual() -> ManualPinger {
    ManualPinger::new(1).unwrap()
}

fn now() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn reply(request: &Request) -> Message {
    let mut name = [0; NAME_BYTES];
    let len = write_name(request.to.unwrap(), &mut name);
    let mut bytes = request.bytes.clone();
    bytes[0] = 0;
    Message { name: name[..len].to_vec(), controls: Vec::new(), bytes }
}

fn outcome(ping: Ping) -> Result<Reply, PingError> {
    match Future::poll(pin!(ping), &mut now()) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("no outcome yet"),
    }
}

#[test]
fn a_ping_is_sent_answered_and_measured_by_the_clock() {
    let mut manual = manual();
    let ping = manual.pinger().ping(HOST, &PingOptions::new());
    manual.turn().unwrap();
    let request = manual.wire().take().remove(0);
    assert_eq!((request.to.unwrap().ip(), request.bytes.len()), (IpAddr::from(HOST), 64));
    manual.advance(SECOND / 2).unwrap();
    manual.wire().push(request.socket, reply(&request));
    manual.turn().unwrap();
    assert_eq!(outcome(ping).unwrap().rtt, SECOND / 2);
    manual.audit().unwrap();
    assert_eq!((manual.pinger().in_flight(), manual.numbers_in_use()), (0, 0));
}

#[test]
fn a_reply_that_was_there_in_time_counts_however_long_the_engine_did_not_run() {
    let mut manual = manual();
    let ping = manual.pinger().ping(HOST, &PingOptions::new().timeout(SECOND));
    manual.turn().unwrap();
    let request = manual.wire().take().remove(0);
    manual.wire().push(request.socket, reply(&request));
    manual.stall(60 * SECOND);
    manual.turn().unwrap();
    outcome(ping).unwrap();
    manual.audit().unwrap();
}

/// A ping of a stream that has time: sent, then dropped with its stream, and its own time over while the engine has not looked
/// at what came.
fn overdue_and_cancelled() -> (ManualPinger, Request) {
    let mut manual = manual();
    let options = PingOptions::new().timeout(SECOND);
    let mut stream = manual.pinger().ping_many([HOST], &options).told_within(10 * SECOND);
    assert!(stream.poll_answer(&mut now()).is_pending());
    manual.turn().unwrap();
    let request = manual.wire().take().remove(0);
    drop(stream);
    manual.advance(3 * SECOND).unwrap();
    assert_eq!((manual.pinger().in_flight(), manual.numbers_in_use()), (0, 1), "it rests until somebody looks");
    manual.audit().unwrap();
    (manual, request)
}

#[test]
fn the_number_of_an_overdue_cancelled_ping_is_given_back_when_nothing_came() {
    let (mut manual, _) = overdue_and_cancelled();
    manual.advance(10 * SECOND).unwrap();
    assert_eq!(manual.numbers_in_use(), 0);
    manual.audit().unwrap();
}

#[test]
fn the_number_of_an_overdue_cancelled_ping_is_given_back_when_its_reply_came() {
    let (mut manual, request) = overdue_and_cancelled();
    manual.wire().push(request.socket, reply(&request));
    manual.advance(10 * SECOND).unwrap();
    assert_eq!(manual.numbers_in_use(), 0);
    manual.audit().unwrap();
    let tally = manual.pinger().tally();
    assert_eq!((tally.cancelled, tally.replies), (1, 0));
}

#[test]
fn a_cancelled_pings_number_rests_until_its_timeout_and_no_longer() {
    let mut manual = manual();
    drop({
        let ping = manual.pinger().ping(HOST, &PingOptions::new().timeout(2 * SECOND));
        manual.turn().unwrap();
        ping
    });
    manual.advance(SECOND).unwrap();
    assert_eq!(manual.numbers_in_use(), 1);
    manual.advance(2 * SECOND).unwrap();
    assert_eq!(manual.numbers_in_use(), 0);
    manual.audit().unwrap();
}

/// A send that fails is tried once more. Here the flight's time is over in between: it had been asked for before the engine's
/// thread was held up. Its record stays that of its number, or whoever gets the number after it removes another's.
#[test]
fn a_send_that_fails_when_its_time_is_over_loses_nobody_elses_ping() {
    let mut manual = manual();
    manual.wire().fail_sends(libc::EHOSTUNREACH, 2);
    let unreachable = manual.pinger().ping(HOST, &PingOptions::new().timeout(SECOND));
    manual.stall(2 * SECOND);
    manual.turn().unwrap();
    assert!(matches!(outcome(unreachable), Err(PingError::Timeout { after: SECOND })));
    manual.audit().unwrap();
    assert_eq!((manual.numbers_in_use(), manual.pinger().tally().send_failures), (0, 1));
    let exchange = |manual: &mut ManualPinger| {
        let ping = manual.pinger().ping(HOST, &PingOptions::new());
        manual.turn().unwrap();
        let request = manual.wire().take().remove(0);
        (ping, request)
    };
    let (patient, unanswered) = exchange(&mut manual);
    // All numbers, and that of the first once more.
    for _ in 0..=1 << 16 {
        let (ping, request) = exchange(&mut manual);
        manual.wire().push(request.socket, reply(&request));
        manual.turn().unwrap();
        outcome(ping).unwrap();
    }
    manual.wire().push(unanswered.socket, reply(&unanswered));
    manual.turn().unwrap();
    outcome(patient).unwrap();
    manual.audit().unwrap();
}

/// An entry of the error queue as the kernel makes it: HOST is unreachable, says somebody, about a request that nobody sent.
fn forged_error() -> Message {
    let mut name = [0; NAME_BYTES];
    let len = write_name((HOST, 0).into(), &mut name);
    const ORIGIN_ICMP: u8 = 2;
    let extended = [&[0, 0, 0, 0, ORIGIN_ICMP, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &name[..len]].concat();
    let mut controls = vec![0; 64];
    let used = control::write(&mut controls, 0, libc::IPPROTO_IP, libc::IP_RECVERR, &extended).unwrap();
    controls.truncate(used);
    Message { name: name[..len].to_vec(), controls, bytes: vec![8, 0, 0, 0, 0, 0, 0xFF, 0xFF] }
}

#[test]
fn a_flood_of_forged_errors_keeps_no_timeout_waiting() {
    const ERRORS: u64 = 20_000;
    let mut manual = manual();
    let ping = manual.pinger().ping(HOST, &PingOptions::new().timeout(SECOND));
    manual.turn().unwrap();
    let socket = manual.wire().take().remove(0).socket;
    (0..ERRORS).for_each(|_| manual.wire().push_error(socket, forged_error()));
    manual.stall(2 * SECOND);
    manual.engine.turn().unwrap();
    let counted = manual.pinger().tally().unmatched_errors;
    assert!(0 < counted && counted < ERRORS / 10, "{counted} in one turn");
    assert!(matches!(outcome(ping), Err(PingError::Timeout { .. })), "before the rest of them");
    manual.turn().unwrap();
    assert_eq!(manual.pinger().tally().unmatched_errors, ERRORS);
}

#[test]
fn what_rests_is_bounded_however_fast_pings_are_cancelled() {
    const NUMBERS_MAX: usize = 2 << 16;
    let mut manual = ManualPinger::with(Settings { in_flight_max: 1, ..Settings::default() }).unwrap();
    let hour = PingOptions::new().timeout(3600 * SECOND);
    for number in 0..=NUMBERS_MAX {
        let mut ping = manual.pinger().ping(HOST, &hour);
        manual.turn().unwrap();
        let refused = Future::poll(pin!(&mut ping), &mut now());
        assert_eq!(refused.is_ready(), number == NUMBERS_MAX, "{refused:?}");
        manual.wire().take();
    }
    assert_eq!((manual.wire().sockets().len(), manual.numbers_in_use()), (2, NUMBERS_MAX));
    manual.advance(3601 * SECOND).unwrap();
    assert_eq!(manual.numbers_in_use(), 0);
    manual.audit().unwrap();
}

#[test]
fn a_host_without_ipv6_fails_the_pings_that_need_it_and_no_other() {
    let mut manual = manual();
    manual.wire().refuse_v6(libc::EAFNOSUPPORT);
    let options = PingOptions::new();
    let (six, four) = (manual.pinger().ping("::1", &options), manual.pinger().ping(HOST, &options));
    manual.turn().unwrap();
    let error = outcome(six).unwrap_err();
    assert!(matches!(error, PingError::SendFailed { errno: libc::EAFNOSUPPORT, .. }) && !error.is_final(), "{error:?}");
    let request = manual.wire().take().remove(0);
    manual.wire().push(request.socket, reply(&request));
    manual.turn().unwrap();
    outcome(four).unwrap();
}

#[test]
fn a_stream_wants_no_more_at_once_than_its_pinger_may_have() {
    let mut manual = ManualPinger::with(Settings { in_flight_max: 3, ..Settings::default() }).unwrap();
    let mut stream = manual.pinger().ping_many([HOST; 10], &PingOptions::new()).at_most(usize::MAX);
    let mut answered = 0;
    loop {
        match stream.poll_answer(&mut now()) {
            Poll::Ready(None) => break,
            Poll::Ready(Some(answer)) => {
                answer.outcome.unwrap();
                answered += 1;
            }
            Poll::Pending => {
                manual.turn().unwrap();
                let requests = manual.wire().take();
                requests.iter().for_each(|request| manual.wire().push(request.socket, reply(request)));
                manual.turn().unwrap();
            }
        }
    }
    assert_eq!(answered, 10);
}

#[test]
fn absurd_numbers_of_everything_make_a_pinger_all_the_same() {
    let pinger = Pinger::builder().keep_strays(usize::MAX).in_flight_max(usize::MAX).receive_buffer(u32::MAX);
    assert_eq!((pinger.settings.strays_kept, pinger.settings.in_flight_max), (1 << 20, 1 << 24));
    let mut manual = ManualPinger::with(pinger.settings).unwrap();
    let options = PingOptions::new().timeout(Duration::MAX);
    let absurd = manual.pinger().ping_many([HOST; 3], &options).every(Duration::MAX).told_within(Duration::MAX);
    let mut absurd = absurd.together(Duration::MAX).at_most(usize::MAX);
    assert!(absurd.poll_answer(&mut now()).is_pending());
    manual.advance(10 * SECOND).unwrap();
    manual.audit().unwrap();
    drop(absurd);
    assert_eq!(manual.pinger().in_flight(), 0);
}

/// A resolver that answers with `HOST`, once it is told to, and how often it has been asked.
fn slow_resolver() -> (ManualPinger, Arc<AtomicUsize>, Sender<()>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (release, held): (_, Receiver<()>) = channel::unbounded();
    let counted = Arc::clone(&asked);
    let resolver = Resolver::custom(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        // Each lets one go; when nobody holds them any more, all.
        let _ = held.recv();
        Ok(vec![HOST.into()])
    });
    (ManualPinger::with(Settings { resolver, ..Settings::default() }).unwrap(), asked, release)
}

/// Waits for what other threads have to do.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !so() {
        assert!(begin.elapsed() < 20 * SECOND, "not {what} after 20 s");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_name_takes_is_a_part_of_the_timeout() {
    let (mut manual, _, release) = slow_resolver();
    let options = PingOptions::new().timeout(SECOND);
    let mut ping = manual.pinger().ping("host.example", &options);
    manual.advance(SECOND * 7 / 10).unwrap();
    release.send(()).unwrap();
    let mut requests = Vec::new();
    until("resolved and sent", || {
        manual.turn().unwrap();
        requests = manual.wire().take();
        !requests.is_empty()
    });
    // Three tenths are left of the second.
    manual.advance(SECOND * 29 / 100).unwrap();
    assert_eq!(manual.pinger().in_flight(), 1);
    assert!(Future::poll(pin!(&mut ping), &mut now()).is_pending());
    manual.advance(SECOND * 2 / 100).unwrap();
    assert!(matches!(outcome(ping), Err(PingError::Timeout { after: SECOND })));
    manual.audit().unwrap();
}

#[test]
fn a_resolver_that_never_answers_has_bounded_threads_and_holds_up_nobody() {
    const THREADS_MAX: usize = 32;
    let (mut manual, asked, release) = slow_resolver();
    let options = PingOptions::new().timeout(SECOND);
    let names = (0..1000).map(|number| manual.pinger().ping(format!("{number}.example"), &options));
    let hanging: Vec<_> = names.collect();
    manual.turn().unwrap();
    until("asked by all threads", || asked.load(Ordering::SeqCst) == THREADS_MAX);
    let address = manual.pinger().ping(HOST, &options);
    manual.turn().unwrap();
    let request = manual.wire().take().remove(0);
    manual.wire().push(request.socket, reply(&request));
    manual.turn().unwrap();
    outcome(address).unwrap();
    manual.advance(2 * SECOND).unwrap();
    assert!(hanging.into_iter().all(|ping| matches!(outcome(ping), Err(PingError::Timeout { .. }))));
    assert_eq!((manual.pinger().in_flight(), asked.load(Ordering::SeqCst)), (0, THREADS_MAX));
    // Those that had no turn are not asked for any more: the next to be asked for is the next that somebody wants.
    (0..=THREADS_MAX).for_each(|_| release.send(()).unwrap());
    let wanted = manual.pinger().ping("wanted.example", &options);
    let mut requests = Vec::new();
    until("resolved and sent", || {
        manual.turn().unwrap();
        requests = manual.wire().take();
        !requests.is_empty()
    });
    assert_eq!((asked.load(Ordering::SeqCst), requests.len()), (THREADS_MAX + 1, 1), "a late name pings nobody");
    drop(wanted);
    // The threads end with the engine: each holds what the resolver holds.
    drop(manual);
    until("ended", || Arc::strong_count(&asked) == 1);
}
