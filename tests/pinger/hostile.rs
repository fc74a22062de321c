//! Hostile replies: counted, never believed, and nothing else happens.

use std::net::IpAddr;

use echogate::pinger::{Payload, PingError, Pinger, StrayKind, Tally};

use crate::scene::{HOST, HOST6, OTHER, hasty, icmp, on_both, patient, until, with};

/// Whether every packet received is counted under one name.
fn is_conserved(tally: &Tally) -> bool {
    let Tally { replies, duplicates, late, cancelled, other_source, wrong_cookie, unknown_sequence, malformed, .. } =
        *tally;
    let named = replies + duplicates + late + cancelled + other_source + wrong_cookie + unknown_sequence + malformed;
    tally.received == named
}

/// Waits until so many packets have been received.
fn received(pinger: &Pinger, count: u64) -> Tally {
    until("received and counted", || pinger.tally().received >= count && is_conserved(&pinger.tally()));
    pinger.tally()
}

#[test]
fn only_the_right_source_sequence_and_cookie_make_a_reply() {
    on_both(|wire, pinger| {
        for target in [IpAddr::from(HOST), HOST6.into()] {
            let before = pinger.tally();
            let ping = pinger.ping(target, &patient());
            let request = wire.request();
            let (ident, sequence, payload) = (request.ident, request.sequence, &request.payload[..]);
            let other: IpAddr = if target.is_ipv6() { "fd00:66::3".parse().unwrap() } else { OTHER.into() };
            wire.inject(&request.answer(other, ident, sequence, payload));
            wire.inject(&request.answer(target, ident, sequence ^ 0x4000, payload));
            let mut forged = payload.to_vec();
            forged[7] ^= 1;
            wire.inject(&request.answer(target, ident, sequence, &forged));
            // Too short for the cookie, and without any payload.
            wire.inject(&request.answer(target, ident, sequence, &payload[..7]));
            wire.inject(&request.answer(target, ident, sequence, &[]));
            let tally = received(pinger, before.received + 5);
            assert_eq!(tally.other_source - before.other_source, 1);
            assert_eq!(tally.unknown_sequence - before.unknown_sequence, 1);
            assert_eq!(tally.wrong_cookie - before.wrong_cookie, 3);
            // An ident that is nobody's does not even get here.
            wire.inject(&request.answer(target, ident ^ 0x100, sequence, payload));
            wire.inject(&request.reply());
            assert_eq!(ping.wait().unwrap().sequence, sequence);
            assert_eq!(received(pinger, before.received + 6).replies - before.replies, 1);
        }
    });
}

#[test]
fn a_cookie_that_is_right_and_a_payload_that_is_not_are_told_apart() {
    on_both(|wire, pinger| {
        let judged = |change: fn(&mut Vec<u8>)| {
            let ping = pinger.ping(HOST, &patient());
            let request = wire.request();
            let mut payload = request.payload.clone();
            change(&mut payload);
            wire.inject(&request.answer(HOST.into(), request.ident, request.sequence, &payload));
            ping.wait().unwrap().payload
        };
        assert_eq!(judged(|payload| payload.truncate(20)), Payload::Truncated);
        assert_eq!(judged(|payload| payload[20] = 0xFF), Payload::Altered { at: 20, sent: 20, found: 0xFF });
        assert_eq!(judged(|payload| payload.push(7)), Payload::Altered { at: 56, sent: 0, found: 7 });
        // As large as a datagram can be.
        assert_eq!(judged(|payload| payload.resize(65_507, 7)), Payload::Altered { at: 56, sent: 0, found: 7 });
    });
}

#[test]
fn duplicates_by_the_thousand_are_one_reply() {
    on_both(|wire, pinger| {
        let ping = pinger.ping(HOST, &patient());
        let request = wire.request();
        let reply = request.reply();
        for _ in 0..3000 {
            wire.inject(&reply);
        }
        assert_eq!(ping.wait().unwrap().sequence, request.sequence);
        // The buffer holds them all.
        let tally = received(pinger, 3000);
        assert_eq!((tally.replies, tally.duplicates, tally.dropped_here), (1, 2999, 0));
        let stray = pinger.next_stray().unwrap();
        assert_eq!((stray.kind, stray.reply.sequence), (StrayKind::Duplicate, request.sequence));
    });
}

#[test]
fn a_late_reply_is_late_and_that_of_a_cancelled_ping_is_nobodys() {
    on_both(|wire, pinger| {
        let ping = pinger.ping(HOST, &hasty());
        let request = wire.request();
        assert!(matches!(ping.wait(), Err(PingError::Timeout { .. })));
        wire.inject(&request.reply());
        assert_eq!(received(pinger, 1).late, 1);
        until("told", || pinger.next_stray().is_some_and(|stray| stray.kind == StrayKind::Late));

        let ping = pinger.ping(HOST, &patient());
        let request = wire.request();
        drop(ping);
        wire.inject(&request.reply());
        wire.inject(&request.reply());
        let tally = received(pinger, 3);
        assert_eq!((tally.cancelled, tally.replies), (2, 0));
    });
}

#[test]
fn other_icmp_and_half_a_header_are_no_replies() {
    on_both(|wire, pinger| {
        let ping = pinger.ping(HOST, &patient());
        let request = wire.request();
        let (host, own) = (IpAddr::from(HOST), request.source);
        let rest = u32::from(request.ident) << 16 | u32::from(request.sequence);
        // A code that no reply has; timestamp reply; extended echo reply (RFC 8335).
        for (icmp_type, code) in [(0, 1), (14, 0), (43, 0)] {
            wire.inject(&icmp(host, own, icmp_type, code, rest, &request.payload));
        }
        // A wrong checksum.
        let mut damaged = request.reply();
        damaged[22] ^= 1;
        wire.inject(&damaged);
        wire.inject(&request.reply()[..24]);
        wire.inject(&request.reply());
        ping.wait().unwrap();
        // Two of the three go to raw sockets only.
        let tally = received(pinger, 2);
        assert_eq!((tally.replies, tally.malformed), (1, tally.received - 1), "{tally:?}");
    });
}

#[test]
fn what_this_hosts_own_buffer_lost_is_told_apart() {
    // The smallest buffer that the kernel gives, and more at once than it holds.
    with(
        |builder| builder.receive_buffer(1),
        |wire, pinger| {
            let lost = pinger.ping(HOST, &hasty().timeout(std::time::Duration::from_secs(3)));
            let request = wire.request();
            let flood = request.answer(HOST.into(), request.ident, request.sequence, &[0; 1400]);
            until("dropped", || {
                for _ in 0..1000 {
                    wire.inject(&flood);
                }
                // The number is looked at when there is something else to do.
                drop(pinger.ping(HOST, &hasty()));
                pinger.tally().dropped_here > 0
            });
            let error = lost.wait().unwrap_err();
            assert!(matches!(error, PingError::DroppedHere { drops: 1.., .. }), "{error:?}");
            assert!(error.to_string().contains("receive buffer was full"), "{error}");
        },
    );
}
