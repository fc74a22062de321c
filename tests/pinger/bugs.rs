//! Bugs that other pingers have had: a test for each, named by what must not be, with where it was.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, iter};

use echogate::pinger::{Backend, Measured, Payload, PingError, Pinger};

use crate::scene::{HOST, OTHER, OWN, ROUTER, checksum, hasty, icmp, in_network, on_both, patient, until, with};

/// surge-ping: a clone that was dropped ended the task that all shared.
#[test]
fn dropping_a_clone_or_the_pinger_itself_ends_no_ping_of_another() {
    on_both(|wire, pinger| {
        let clone = pinger.clone();
        let ping = clone.ping(HOST, &patient());
        drop(clone);
        wire.inject(&wire.request().reply());
        ping.wait().unwrap();
    });
    in_network(|wire| {
        // The last handle is gone, and a future is left.
        let ping = Pinger::new().unwrap().ping(HOST, &patient());
        wire.inject(&wire.request().reply());
        ping.wait().unwrap();
    });
}

/// The other side of it: an engine that nobody holds is not left behind.
#[test]
fn the_engine_ends_with_its_last_holder() {
    in_network(|_| {
        let threads = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            tasks
                .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
                .filter(|name| name == "pg-ends\n")
                .count()
        };
        // Threads begin with their parent's name only until they are given their own: so by socket and by name.
        let sockets = || fs::read_to_string("/proc/thread-self/net/icmp").unwrap().lines().count() - 1;
        let pinger = Pinger::new().unwrap();
        let ping = pinger.ping(HOST, &patient());
        drop(pinger);
        assert_eq!((sockets(), threads()), (1, 0));
        drop(ping);
        until("closed", || sockets() == 0);
    });
}

/// surge-ping, and many more: a second ping with the key of one under way took its place, and the first waited for ever. fping 206,
/// iputils 489: two programs, or two pingers, with one ident.
#[test]
fn pings_of_one_host_side_by_side_each_get_their_own_reply() {
    on_both(|wire, pinger| {
        let second_pinger = Pinger::new().unwrap();
        let pings: Vec<_> = (0..100)
            .map(|number| if number % 2 == 0 { pinger } else { &second_pinger })
            .map(|pinger| pinger.ping(HOST, &patient()))
            .collect();
        let requests: Vec<_> = pings.iter().map(|_| wire.request()).collect();
        let keys: BTreeSet<_> = requests.iter().map(|request| (request.ident, request.sequence)).collect();
        assert_eq!(keys.len(), 100);
        assert_eq!(requests.iter().map(|request| request.ident).collect::<BTreeSet<_>>().len(), 2);
        // In another order than they were asked in.
        for request in requests.iter().rev() {
            wire.inject(&request.reply());
        }
        let mut told: Vec<_> = pings.into_iter().map(|ping| ping.wait().unwrap().sequence).collect();
        told.sort_unstable();
        let mut sent: Vec<_> = requests.iter().map(|request| request.sequence).collect();
        sent.sort_unstable();
        assert_eq!(told, sent);
    });
}

/// surge-ping: a future that was dropped left its entry behind.
#[test]
fn cancelling_ten_thousand_frees_every_slot_at_once() {
    on_both(|_, pinger| {
        let pings: Vec<_> = (0..10_000).map(|_| pinger.ping(HOST, &patient())).collect();
        assert_eq!(pinger.in_flight(), 10_000);
        drop(pings);
        assert_eq!(pinger.in_flight(), 0);
        pinger.ping_blocking(OWN, &patient()).unwrap();
    });
}

/// The price of a cancel that frees at once, if nothing rests: the next ping with that number gets the old one's reply.
#[test]
fn a_cancelled_pings_number_rests_until_its_timeout() {
    with(
        |builder| builder,
        |wire, pinger| {
            drop(pinger.ping(HOST, &patient()));
            let cancelled = wire.request_within(Duration::from_millis(500));
            // Cancelled before the engine had it: then it was never sent, and there is nothing to rest.
            let Some(cancelled) = cancelled else { return };
            // All other numbers, several times over.
            let pings = iter::repeat_n(OWN, 70_000);
            for answer in pinger.ping_many(pings, &patient()).wait() {
                assert_ne!(answer.outcome.unwrap().sequence, cancelled.sequence);
            }
        },
    );
}

/// surge-ping 54: options in an IP header moved the fields of the request that an error quotes.
#[test]
fn options_in_either_header_of_an_error_do_not_hide_whose_it_is() {
    /// Puts 40 bytes of no-operations behind the header of an IPv4 packet.
    fn with_options(packet: &[u8]) -> Vec<u8> {
        let mut longer = [&packet[..20], &[1; 40], &packet[20..]].concat();
        longer[0] = 0x4F;
        let length = u16::try_from(longer.len()).unwrap();
        longer[2..4].copy_from_slice(&length.to_be_bytes());
        longer[10..12].fill(0);
        let check = checksum(&longer[..60]);
        longer[10..12].copy_from_slice(&check);
        longer
    }
    on_both(|wire, pinger| {
        let router = IpAddr::from(ROUTER);
        for (outer, quoted) in [(false, true), (true, false), (true, true)] {
            let ping = pinger.ping(HOST, &patient());
            let request = wire.request();
            let quote = if quoted { with_options(&request.packet) } else { request.packet.clone() };
            let error = icmp(router, request.source, 11, 0, 0, &quote);
            wire.inject(&if outer { with_options(&error) } else { error });
            let told = ping.wait().unwrap_err();
            assert!(matches!(told, PingError::TimeExceeded { from, .. } if from == router), "{told:?}");
        }
    });
}

/// fastping-rs: every round-trip time of a round was counted from the round's start.
#[test]
fn a_round_trip_begins_with_its_own_request() {
    on_both(|_, pinger| {
        let round = Duration::from_millis(20) * 50;
        let answers = pinger.ping_many(iter::repeat_n(OWN, 50), &patient()).every(Duration::from_millis(20));
        let mut times: Vec<_> = answers.wait().map(|answer| answer.outcome.unwrap().rtt).collect();
        times.sort_unstable();
        assert!(times[25] < round / 10, "half of them are longer than a tenth of the round: {times:?}");
    });
}

/// iputils 74: when the error queue could take no more, the socket stayed "readable" and ping spun.
#[test]
fn errors_by_the_thousand_on_a_full_queue_make_nothing_spin() {
    for backend in [Backend::Uring, Backend::Syscalls] {
        with(
            |builder| builder.backend(backend).receive_buffer(1),
            |wire, pinger| {
                let ping = pinger.ping(HOST, &patient());
                let request = wire.request();
                let mut about_nothing = request.clone();
                about_nothing.packet[26] ^= 0x40;
                let error = about_nothing.error(ROUTER.into(), 3, 1, 0, 1000);
                for _ in 0..5000 {
                    wire.inject(&error);
                }
                until("counted", || pinger.tally().unmatched_errors > 0);
                thread::sleep(Duration::from_millis(300));
                let before = engine_cpu_time();
                thread::sleep(Duration::from_secs(1));
                let used = engine_cpu_time() - before;
                assert!(
                    used < Duration::from_millis(200),
                    "the engine used {used:?} of a second in which nothing came"
                );
                wire.inject(&request.reply());
                ping.wait().unwrap();
            },
        );
    }
}

/// What the engine's thread, the one in this test's namespace, has used of a CPU.
fn engine_cpu_time() -> Duration {
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let engine = tasks.filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "pinger\n")
            && fs::read_link(task.join("ns/net")).is_ok_and(|network| network == own)
    });
    let nanos = engine.map(|task| {
        let statistics = fs::read_to_string(task.join("schedstat")).unwrap();
        statistics.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanos.sum())
}

/// CVE-2025-48964: a time of sending in the payload was believed, and a forged one overflowed the statistics.
#[test]
fn nothing_that_a_reply_says_moves_its_round_trip_time() {
    on_both(|wire, pinger| {
        for forged in [0x00, 0x7F, 0x80, 0xFF] {
            let begin = Instant::now();
            let ping = pinger.ping(HOST, &patient());
            let request = wire.request();
            let mut payload = request.payload.clone();
            payload[8..].fill(forged);
            wire.inject(&request.answer(HOST.into(), request.ident, request.sequence, &payload));
            let reply = ping.wait().unwrap();
            assert!(matches!(reply.payload, Payload::Altered { at: 8 | 9, .. }), "{reply:?}");
            assert!(reply.rtt <= begin.elapsed(), "{reply:?}");
            assert_ne!(reply.measured, Measured::User);
        }
    });
}

/// iputils 522: each interval began when the one before had been dealt with, 24 ms late in a second.
#[test]
fn intervals_do_not_add_up_their_lateness() {
    on_both(|_, pinger| {
        let interval = Duration::from_millis(3);
        let answers = pinger.ping_many(iter::repeat_n(OWN, 300), &patient()).every(interval);
        let mut arrivals: Vec<_> =
            answers.wait().map(|answer| (answer.number, answer.outcome.unwrap().received)).collect();
        arrivals.sort_unstable();
        let first = arrivals[0].1;
        // On a busy machine single ones are late; if lateness added up, all of the second half would be.
        let lateness = arrivals.iter().skip(150).zip(150..).map(|((_, received), count)| {
            received.duration_since(first).unwrap_or_default().saturating_sub(interval * count)
        });
        let least = lateness.min().unwrap();
        assert!(least < Duration::from_millis(3), "{least:?} after half of 300 intervals");
    });
}

/// iputils 189: in a flood, duplicates were counted as replies and hid what was lost.
#[test]
fn a_duplicate_makes_up_for_no_loss() {
    on_both(|wire, pinger| {
        let answered = pinger.ping(HOST, &patient());
        let request = wire.request();
        let lost = pinger.ping(HOST, &hasty());
        wire.request();
        wire.inject(&request.reply());
        wire.inject(&request.reply());
        answered.wait().unwrap();
        assert!(matches!(lost.wait(), Err(PingError::Timeout { .. })));
        until("counted", || pinger.tally().duplicates == 1);
        assert_eq!(pinger.tally().replies, 1);
    });
}

/// fping 385: no more than 65,536 could be under way.
#[test]
fn more_than_65536_are_under_way_at_once_on_further_sockets() {
    with(
        |builder| builder,
        |_, pinger| {
            let options = patient();
            let pings: Vec<_> = (0..70_000).map(|_| pinger.ping(HOST, &options)).collect();
            until("sent", || pinger.tally().sent == 70_000);
            assert_eq!(pinger.in_flight(), 70_000);
            let sockets = fs::read_to_string("/proc/thread-self/net/icmp").unwrap().lines().count() - 1;
            assert_eq!(sockets, 2);
            pinger.ping_blocking(OTHER, &hasty()).unwrap_err();
            drop(pings);
            assert_eq!(pinger.in_flight(), 0);
        },
    );
}

/// fping 390: an unreachable was only seen as silence, a timeout later.
#[test]
fn an_unreachable_does_not_wait_for_the_timeout() {
    on_both(|wire, pinger| {
        let ping = pinger.ping(HOST, &patient().timeout(Duration::from_secs(3600)));
        wire.inject(&wire.request().error(ROUTER.into(), 3, 0, 0, 1000));
        // An hour later the test would have been given up.
        assert!(matches!(ping.wait(), Err(PingError::Unreachable { code: 0, .. })));
    });
}
