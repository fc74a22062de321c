//! Errors: those from outside about echoes, those from inside, and those that are told to clients.

use super::*;

/// RFC 5508 REQ-8.
#[test]
fn a_refused_client_can_be_told_by_a_packet_to_it_about_its_own() {
    let allowance = Limits { packets_burst: 1, packets_per_second: 1, ..ORDINARY }.into();
    let mut bench = Bench::new(&Settings { allowance, ..settings() });
    bench.send(CLIENT, REMOTE, 1, 1);
    let mut packet = build::echo_request(CLIENT, REMOTE, 1, 2, 64, b"payload");
    let Outbound::Refuse { tell_from: Some(address), .. } = bench.outbound(&mut packet) else { panic!("not refused") };
    let batch = bench.handle.batch(bench.now);
    let mut error = [0; error::LEN_MAX];
    let length = batch.prohibited(&packet, address, &mut error).unwrap();
    let told = Ipv4::check(&error[..length]).unwrap();
    assert!(told.header_is_intact());
    assert_eq!((told.source(), told.destination()), (GATEWAY, CLIENT));
    assert_eq!(told.payload()[..2], [3, 13]);
    assert_eq!(told.payload()[8..], packet);
    assert_eq!(batch.prohibited(&packet, 1, &mut error), None, "there is no such address");
}

/// An error from a router about `request` as it left.
fn error_about(request: &[u8], from: Ipv4Addr, icmp_type: u8, code: u8) -> Vec<u8> {
    let message = build::error_message(icmp_type, code, next_hop_mtu(icmp_type, code), request);
    Datagram::new(from, GATEWAY, ipv4::ICMP, message).build()
}

/// What stands after the checksum: of "fragmentation needed" the MTU (RFC 1191, section 4).
fn next_hop_mtu(icmp_type: u8, code: u8) -> u32 {
    if (icmp_type, code) == (3, 4) { 1400 } else { 0 }
}

const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 9, 1);

/// A packet under the identification of one that was sent: of what can be cut up, it stays the gateway's in quotes.
fn numbered_as(sent: &[u8], mut packet: Vec<u8>) -> Vec<u8> {
    let identification = Ipv4::check(sent).unwrap().identification();
    Ipv4::check(&mut packet[..]).unwrap().set_identification(identification);
    packet
}

/// RFC 5508 REQ-3c, REQ-10; RFC 4787 REQ-12a.
#[test]
fn an_error_about_an_outstanding_echo_is_told_to_its_client_as_if_there_were_no_gateway() {
    // RFC 5508 REQ-4: quoted headers restored, type and code kept, destination the client.
    let mut bench = Bench::new(&settings());
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 7);
    let original = numbered_as(&sent, build::echo_request(CLIENT, REMOTE, 1, 7, 64, b"payload"));
    for (icmp_type, code) in [(3, 0), (3, 1), (3, 4), (3, 13), (11, 0), (12, 0)] {
        for cut in [28, sent.len()] {
            let mut error = error_about(&sent[..cut], ROUTER, icmp_type, code);
            let length = error.len();
            assert_eq!(bench.inbound(&mut error), Inbound::Tell { client: CLIENT, length, from_own: None });
            let message = build::error_message(icmp_type, code, next_hop_mtu(icmp_type, code), &original[..cut]);
            assert_eq!(error, Datagram::new(ROUTER, CLIENT, ipv4::ICMP, message).build());
        }
    }
    let mut own = error_about(&sent, GATEWAY, 3, 1);
    let length = own.len();
    assert_eq!(bench.inbound(&mut own), Inbound::Tell { client: CLIENT, length, from_own: Some(0) });
}

/// RFC 4787 REQ-12.
#[test]
fn an_error_uses_no_echo_up_and_keeps_no_mapping_alive() {
    // RFC 5508 REQ-6.
    let mut bench = Bench::new(&settings());
    let (sent, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    for _ in 0..3 {
        assert!(matches!(bench.inbound(&mut error_about(&sent, ROUTER, 11, 0)), Inbound::Tell { .. }));
    }
    assert!(matches!(bench.reply(REMOTE, ident, 1).0, Inbound::Deliver { .. }));
    assert_eq!(bench.inbound(&mut error_about(&sent, ROUTER, 11, 0)), Inbound::Drop(Reason::ErrorUnmatched));

    // The mapping ends when no request has used it, whatever the errors say.
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 2);
    bench.pass(Duration::from_secs(50));
    assert!(matches!(bench.inbound(&mut error_about(&sent, ROUTER, 3, 1)), Inbound::Tell { .. }));
    assert_eq!(bench.pass(Duration::from_secs(12)).mappings, 1);
}

/// RFC 7857: what a client's host or a router before it says about a reply keeps no mapping alive, nor does anything
/// else that is not taken.
#[test]
fn an_error_from_inside_keeps_no_mapping_alive() {
    let mut bench = Bench::new(&settings());
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
    let mut reply = answer(&sent, 60);
    assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { .. }));
    bench.pass(Duration::from_secs(50));
    for (icmp_type, code) in [(3, 1), (3, 3), (11, 0), (12, 0)] {
        let message = build::error_message(icmp_type, code, 0, &reply);
        let mut error = Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message).build();
        let before = error.clone();
        assert_eq!(bench.outbound(&mut error), Outbound::FallThrough(Passing::NotEchoRequest));
        assert_eq!(error, before);
    }
    assert_eq!(bench.pass(Duration::from_secs(12)).mappings, 1);
}

/// RFC 5508 REQ-3, REQ-4a; RFC 6633.
#[test]
fn errors_about_what_was_not_sent_or_that_are_damaged_are_dropped_by_name_and_unchanged() {
    let mut bench = Bench::new(&settings());
    let (sent, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    let quoting = |source, destination, ident, sequence| {
        error_about(&build::echo_request(source, destination, ident, sequence, 64, b""), ROUTER, 11, 0)
    };
    let mut damaged = error_about(&sent, ROUTER, 11, 0);
    damaged[22] ^= 1;
    let elsewhere = |ttl, destination| {
        let message = build::error_message(11, 0, 0, &sent);
        Datagram { ttl, ..Datagram::new(ROUTER, destination, ipv4::ICMP, message) }.build()
    };
    for (packet, reason) in [
        (quoting(GATEWAY, REMOTE, ident ^ 1, 1), Reason::ErrorUnmatched),
        (quoting(GATEWAY, REMOTE, ident, 2), Reason::ErrorUnmatched),
        (quoting(GATEWAY, OTHER_REMOTE, ident, 1), Reason::ErrorUnmatched),
        (quoting(CLIENT, REMOTE, ident, 1), Reason::ErrorUnmatched),
        (damaged, Reason::ErrorChecksum),
        (error_about(&sent[..27], ROUTER, 11, 0), Reason::ErrorQuote),
        (error_about(&answer(&sent, 64), ROUTER, 11, 0), Reason::ErrorQuote),
        (elsewhere(64, OTHER_REMOTE), Reason::NotOurAddress),
        (elsewhere(1, GATEWAY), Reason::TtlExpired),
        // Source quench (RFC 6633) and redirect.
        (error_about(&sent, ROUTER, 4, 0), Reason::NotEchoReply),
        (error_about(&sent, ROUTER, 5, 0), Reason::NotEchoReply),
    ] {
        let mut judged = packet.clone();
        assert_eq!(bench.inbound(&mut judged), Inbound::Drop(reason));
        assert_eq!(judged, packet);
    }
    assert!(matches!(bench.inbound(&mut error_about(&sent, ROUTER, 11, 0)), Inbound::Tell { .. }));
}

/// Not about an error, to a multicast or broadcast address, about a later fragment, or to nobody in particular.
/// RFC 1122, section 3.2.2.
#[test]
fn nobody_is_told_about_what_nobody_may_be_told_about() {
    // Everything is denied and every share is used up: whoever may be told is.
    let allowance = Limits { packets_burst: 1, packets_per_second: 1, ..ORDINARY }.into();
    let mut bench = Bench::new(&Settings { allowance, denied: vec![Prefix::ALL], ..settings() });
    let request = |source, remote| build::echo_request(source, remote, 1, 1, 64, b"payload");
    let fragment = |more_fragments, fragment_offset| {
        let message = build::echo_message(EchoKind::Request, 1, 1, &[0; 24]);
        Datagram { more_fragments, fragment_offset, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) }.build()
    };
    let error = build::error_message(3, 1, 0, &request(CLIENT, REMOTE));
    for mut packet in [
        Datagram::new(CLIENT, REMOTE, ipv4::ICMP, error).build(),
        request(CLIENT, Ipv4Addr::new(224, 0, 0, 1)),
        request(CLIENT, Ipv4Addr::BROADCAST),
        request(Ipv4Addr::UNSPECIFIED, REMOTE),
        request(Ipv4Addr::LOCALHOST, REMOTE),
        request(Ipv4Addr::new(224, 0, 0, 1), REMOTE),
        fragment(false, 16),
    ] {
        let verdict = bench.outbound(&mut packet);
        assert!(matches!(verdict, Outbound::Drop(_) | Outbound::FallThrough(_)), "{verdict:?}: {packet:02x?}");
    }
    for mut packet in [request(CLIENT, REMOTE), fragment(true, 0)] {
        let verdict = bench.outbound(&mut packet);
        assert!(matches!(verdict, Outbound::Refuse { tell_from: Some(0), .. }), "{verdict:?}: {packet:02x?}");
    }
    // What follows the first one has been told of.
    let verdict = bench.outbound(&mut fragment(false, 16));
    assert!(matches!(verdict, Outbound::Drop(_) | Outbound::Refuse { tell_from: None, .. }), "{verdict:?}");
}

/// RFC 1812, section 4.3.2.8.
#[test]
fn of_all_kinds_of_errors_together_a_client_gets_its_share() {
    let denied = vec![Prefix::host(OTHER_REMOTE)];
    let mut bench =
        Bench::new(&Settings { denied, ttl: Ttl::Decrement, allowance: Allowance::UNLIMITED, ..settings() });
    let told = |bench: &mut Bench| {
        let mut error = [0; error::LEN_MAX];
        let failed = |bench: &mut Bench, errno| {
            let message = build::echo_message(EchoKind::Request, 1, 1, &[0; 100]);
            let datagram = Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message);
            let mut packet = Datagram { dont_fragment: true, ..datagram }.build();
            assert!(matches!(bench.outbound(&mut packet), Outbound::Forward { .. }));
            bench.handle.batch(bench.now).why_not_sent(&mut packet, errno, |_, _| Some(68)).is_some()
        };
        let count = (0..400).filter(|kind| match kind % 5 {
            0 => failed(bench, libc::ENETUNREACH),
            1 => failed(bench, libc::EHOSTUNREACH),
            2 => failed(bench, libc::EMSGSIZE),
            3 => {
                let spent = build::echo_request(CLIENT, REMOTE, 1, 1, 1, b"payload");
                bench.handle.batch(bench.now).time_exceeded(&spent, &mut error).is_some()
            }
            _ => {
                let mut denied = build::echo_request(CLIENT, OTHER_REMOTE, 1, 1, 64, b"payload");
                matches!(bench.outbound(&mut denied), Outbound::Refuse { tell_from: Some(_), .. })
            }
        });
        count.count()
    };
    assert_eq!(told(&mut bench), 20, "at one moment");
    bench.now = bench.now + Duration::from_secs(1);
    assert_eq!(told(&mut bench), 10, "a second later");
}

/// RFC 5508 REQ-3a: a router that took one from the TTL and quotes the old checksum.
#[test]
fn a_wrong_checksum_in_the_quoted_header_counts_if_it_is_to() {
    for quoted_checksum in [false, true] {
        let mut bench = Bench::new(&Settings { quoted_checksum, ..settings() });
        let (mut sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
        let mut right = error_about(&sent, ROUTER, 11, 0);
        assert!(matches!(bench.inbound(&mut right), Inbound::Tell { .. }));
        sent[8] = 1;
        let verdict = bench.inbound(&mut error_about(&sent, ROUTER, 11, 0));
        assert_eq!(verdict == Inbound::Drop(Reason::ErrorChecksum), quoted_checksum);
        assert_eq!(matches!(verdict, Inbound::Tell { .. }), !quoted_checksum);
    }
}

/// RFC 4884, and RFC 5508 REQ-3d: what follows the quote is neither changed nor looked at but for the message's own sum.
#[test]
fn an_error_with_extensions_is_told_with_them() {
    for quoted_checksum in [false, true] {
        let mut bench = Bench::new(&Settings { quoted_checksum, ..settings() });
        let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
        let original = numbered_as(&sent, build::echo_request(CLIENT, REMOTE, 1, 1, 64, b"payload"));
        // 128 bytes of quote and padding, then an extension whose own checksum is wrong: that is the client's to judge.
        let error = |request: &[u8], destination| {
            let extension = [0x20, 0, 0xAB, 0xCD, 0, 8, 1, 1, 0, 0x3A, 0xE1, 0x40];
            let quote = [request, &vec![0; 128 - request.len()], &extension].concat();
            let message = build::error_message(11, 0, 32 << 16, &quote);
            Datagram::new(ROUTER, destination, ipv4::ICMP, message).build()
        };
        let mut told = error(&sent, GATEWAY);
        assert!(matches!(bench.inbound(&mut told), Inbound::Tell { .. }));
        assert_eq!(told, error(&original, CLIENT));
    }
}

#[test]
fn without_icmp_errors_none_is_told() {
    for icmp_errors in [false, true] {
        let mut bench = Bench::new(&Settings { icmp_errors, ..settings() });
        let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
        let verdict = bench.inbound(&mut error_about(&sent, ROUTER, 11, 0));
        assert_eq!(verdict == Inbound::Drop(Reason::NotEchoReply), !icmp_errors);
        assert_eq!(bench.proxy.icmp_errors(), icmp_errors);
    }
}

/// RFC 1812, section 5.2.7.1.
#[test]
fn a_request_that_could_not_be_sent_becomes_the_clients_own_again_and_its_client_is_told_now_and_then() {
    let mut bench = Bench::new(&settings());
    let (mut sent, _) = bench.send(CLIENT, REMOTE, 1, 7);
    let asked = std::cell::Cell::new(0);
    let mtu = |_, _| {
        asked.set(asked.get() + 1);
        Some(1400)
    };
    for errno in [0, libc::EPERM, libc::EACCES, libc::EINVAL, libc::ENOBUFS] {
        let unchanged = sent.clone();
        assert_eq!(bench.handle.batch(bench.now).why_not_sent(&mut sent, errno, mtu), None);
        assert_eq!(sent, unchanged);
    }
    let why = |bench: &mut Bench, sent: &mut [u8], errno| bench.handle.batch(bench.now).why_not_sent(sent, errno, mtu);
    assert_eq!(why(&mut bench, &mut sent, libc::EHOSTUNREACH), Some((0, Message::HostUnreachable)));
    assert_eq!(sent, numbered_as(&sent, build::echo_request(CLIENT, REMOTE, 1, 7, 64, b"payload")));
    assert_eq!(why(&mut bench, &mut sent, libc::EHOSTUNREACH), None, "it is not the gateway's any more");
    let told = (0..1000).filter(|sequence| {
        let (mut sent, _) = bench.send(CLIENT, REMOTE, 1, *sequence);
        why(&mut bench, &mut sent, libc::ENETUNREACH).is_some()
    });
    assert!((1..100).contains(&told.count()), "all at one moment");
}

#[test]
fn a_request_that_is_too_large_and_not_to_be_fragmented_is_told_what_fits() {
    let mut bench = Bench::new(&settings());
    let mut send = |dont_fragment, mtu| {
        let message = build::echo_message(EchoKind::Request, 1, 7, &[0xbb; 1472]);
        let mut packet = Datagram { dont_fragment, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) }.build();
        let original = packet.clone();
        assert!(matches!(bench.outbound(&mut packet), Outbound::Forward { .. }));
        let mut error = [0; error::LEN_MAX];
        let mut batch = bench.handle.batch(bench.now);
        assert!(batch.withdraw(&packet));
        let length = batch.not_sent(
            &mut packet,
            libc::EMSGSIZE,
            |address, remote| {
                assert_eq!((address, remote), (0, REMOTE));
                mtu
            },
            &mut error,
        )?;
        assert_eq!(packet, original);
        let told = Ipv4::check(&error[..length]).unwrap();
        assert_eq!((told.source(), told.destination()), (GATEWAY, CLIENT));
        assert_eq!(told.payload()[8..], original[..error::QUOTE_LEN_MAX]);
        Some([told.payload()[0], told.payload()[1], told.payload()[6], told.payload()[7]])
    };
    assert_eq!(send(true, Some(0x0578)), Some([3, 4, 5, 0x78]));
    assert_eq!(send(true, None), None, "nobody knows what fits");
    assert_eq!(send(true, Some(1500)), None, "it fits meanwhile");
    assert_eq!(send(false, Some(1400)), None, "it may be fragmented");
}

/// RFC 1812, section 5.3.1; RFC 1122, section 3.2.2.
#[test]
fn who_counts_the_hop_tells_where_it_was_the_last() {
    let mut bench = Bench::new(&Settings { ttl: Ttl::Decrement, ..settings() });
    let told = |bench: &mut Bench, packet: &[u8]| {
        let mut error = [0; error::LEN_MAX];
        let length = bench.handle.batch(bench.now).time_exceeded(packet, &mut error)?;
        let told = Ipv4::check(&error[..length]).unwrap();
        assert_eq!((told.source(), told.destination(), &told.payload()[..2]), (GATEWAY, CLIENT, &[11, 0][..]));
        assert_eq!(told.payload()[8..], *packet);
        Some(())
    };
    let mut spent = build::echo_request(CLIENT, REMOTE, 1, 1, 1, b"payload");
    let original = spent.clone();
    assert_eq!(bench.outbound(&mut spent), Outbound::Drop(Reason::TtlExpired));
    assert_eq!(spent, original);
    assert_eq!(told(&mut bench, &spent), Some(()));
    let message = build::echo_message(EchoKind::Request, 1, 1, &[0; 24]);
    let first = Datagram { more_fragments: true, ttl: 1, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) };
    let mut fragment = first.build();
    assert_eq!(bench.outbound(&mut fragment), Outbound::Drop(Reason::TtlExpired));
    assert_eq!(told(&mut bench, &fragment), Some(()));
    for nobody in [
        build::echo_reply(CLIENT, REMOTE, 1, 1, 1, b""),
        build::echo_request(Ipv4Addr::new(10, 67, 0, 2), REMOTE, 1, 1, 1, b""),
        build::echo_request(GATEWAY, REMOTE, 1, 1, 1, b""),
        build::echo_request(CLIENT, Ipv4Addr::new(224, 0, 0, 1), 1, 1, 1, b""),
        build::echo_request(CLIENT, Ipv4Addr::BROADCAST, 1, 1, 1, b""),
        Datagram { fragment_offset: 32, ..first }.build(),
        error_about(&original, ROUTER, 11, 0),
        vec![0x45; 19],
    ] {
        assert_eq!(told(&mut bench, &nobody), None, "{nobody:?}");
    }
    let count = (0..1000).filter(|_| told(&mut bench, &spent).is_some()).count();
    assert!((1..100).contains(&count), "{count} at one moment");
}
