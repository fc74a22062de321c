use proptest::prelude::*;

use super::*;
use crate::policy::{Limits, ORDINARY, Override, Prefix};
use crate::wire::build::{self, Datagram};
use crate::wire::error::Message;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const OTHER_REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);

fn settings() -> Settings {
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    settings.seed = Some(42);
    settings
}

/// One thread's proxy and its clock.
struct Bench {
    proxy: Arc<Proxy>,
    handle: Handle,
    now: Instant,
}

impl Bench {
    fn new(settings: &Settings) -> Bench {
        let proxy = Proxy::new(settings).unwrap();
        let handle = proxy.handle(0).unwrap();
        Bench { proxy, handle, now: Instant::START }
    }

    fn outbound(&mut self, packet: &mut [u8]) -> Outbound {
        self.handle.batch(self.now).outbound(packet)
    }

    fn inbound(&mut self, packet: &mut [u8]) -> Inbound {
        self.handle.batch(self.now).inbound(packet)
    }

    /// Lets time pass as a worker would: in slices, with what is due in each.
    fn pass(&mut self, time: Duration) -> Expired {
        let mut sum = Expired::default();
        let until = self.now + time;
        while self.now < until {
            self.now = self.now + Duration::from_millis(100).min(until.since(self.now));
            let expired = self.handle.batch(self.now).expire();
            sum.mappings += expired.mappings;
            sum.echoes += expired.echoes;
        }
        self.handle.audit().unwrap();
        sum
    }

    /// Sends a request and returns it as it left, with the gateway's ident.
    fn send(&mut self, client: Ipv4Addr, remote: Ipv4Addr, ident: u16, sequence: u16) -> (Vec<u8>, u16) {
        let mut packet = build::echo_request(client, remote, ident, sequence, 64, b"payload");
        let verdict = self.outbound(&mut packet);
        assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
        let ident = ident_of(&packet);
        (packet, ident)
    }

    fn reply(&mut self, remote: Ipv4Addr, ident: u16, sequence: u16) -> (Inbound, Vec<u8>) {
        let mut packet = build::echo_reply(remote, GATEWAY, ident, sequence, 60, b"payload");
        (self.inbound(&mut packet), packet)
    }
}

fn ident_of(packet: &[u8]) -> u16 {
    Echo::check(Ipv4::check(packet).unwrap().payload()).unwrap().ident()
}

fn is_intact(packet: &[u8]) -> bool {
    let packet = Ipv4::check(packet).unwrap();
    packet.header_is_intact() && Echo::check(packet.payload()).unwrap().is_intact()
}

/// The remote's answer to a request as it left: addresses swapped, type and checksums as they must be.
fn answer(request: &[u8], ttl: u8) -> Vec<u8> {
    let request = Ipv4::check(request).unwrap();
    let echo = Echo::check(request.payload()).unwrap();
    build::echo_reply(request.destination(), request.source(), echo.ident(), echo.sequence(), ttl, echo.payload())
}

/// RFC 5508 REQ-1, REQ-10.
#[test]
fn a_ping_goes_out_as_the_gateways_and_comes_back_as_the_clients() {
    let mut bench = Bench::new(&settings());
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 7);
    let out = Ipv4::check(&sent[..]).unwrap();
    assert_eq!((out.source(), out.destination(), out.ttl()), (GATEWAY, REMOTE, 64));
    assert_eq!(Echo::check(out.payload()).unwrap().sequence(), 7);
    assert!(is_intact(&sent));

    let mut reply = answer(&sent, 60);
    assert_eq!(bench.inbound(&mut reply), Inbound::Deliver { client: CLIENT, length: reply.len() });
    assert_eq!(reply, build::echo_reply(REMOTE, CLIENT, 1, 7, 60, b"payload"));
}

/// RFC 4787 REQ-11.
#[test]
fn two_clients_with_the_same_ident_sequence_and_remote_get_their_own_replies() {
    let mut bench = Bench::new(&settings());
    let (first, _) = bench.send(CLIENT, REMOTE, 1, 1);
    let (second, _) = bench.send(OTHER_CLIENT, REMOTE, 1, 1);
    assert_ne!(ident_of(&first), ident_of(&second));
    for (sent, client) in [(second, OTHER_CLIENT), (first, CLIENT)] {
        let mut reply = answer(&sent, 60);
        assert_eq!(bench.inbound(&mut reply), Inbound::Deliver { client, length: reply.len() });
        assert_eq!(ident_of(&reply), 1);
    }
}

/// RFC 4787 REQ-11.
#[test]
fn one_mapping_serves_all_remotes_and_sequences_of_a_clients_ident() {
    // RFC 5508 REQ-1a: the mapping does not depend on the remote.
    let mut bench = Bench::new(&settings());
    let (_, first) = bench.send(CLIENT, REMOTE, 9, 1);
    let (_, second) = bench.send(CLIENT, OTHER_REMOTE, 9, 2);
    assert_eq!((first, bench.handle.mappings()), (second, 1));
}

#[test]
fn a_reply_is_used_once() {
    let mut bench = Bench::new(&settings());
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    assert!(matches!(bench.reply(REMOTE, ident, 1).0, Inbound::Deliver { .. }));
    assert_eq!(bench.reply(REMOTE, ident, 1).0, Inbound::Drop(Reason::NoEcho));
}

#[test]
fn a_reply_must_come_from_the_remote_that_was_asked_with_its_sequence_and_ident_to_our_address() {
    let mut bench = Bench::new(&settings());
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    assert_eq!(bench.reply(OTHER_REMOTE, ident, 1).0, Inbound::Drop(Reason::NoEcho));
    assert_eq!(bench.reply(REMOTE, ident, 2).0, Inbound::Drop(Reason::NoEcho));
    assert_eq!(bench.reply(REMOTE, ident ^ 1, 1).0, Inbound::Drop(Reason::NoEcho));
    let mut elsewhere = build::echo_reply(REMOTE, OTHER_REMOTE, ident, 1, 60, b"payload");
    assert_eq!(bench.inbound(&mut elsewhere), Inbound::Drop(Reason::NotOurAddress));
    assert!(matches!(bench.reply(REMOTE, ident, 1).0, Inbound::Deliver { .. }), "none of these used it up");
}

#[test]
fn a_dropped_or_foreign_packet_is_left_as_it_was() {
    let mut bench = Bench::new(&settings());
    bench.send(CLIENT, REMOTE, 1, 1);
    let unsolicited = build::echo_reply(REMOTE, GATEWAY, 77, 1, 60, b"payload");
    let mut packet = unsolicited.clone();
    assert!(matches!(bench.inbound(&mut packet), Inbound::Drop(_)));
    assert_eq!(packet, unsolicited);
}

#[test]
fn a_late_reply_goes_nowhere_and_a_reply_during_the_hold_down_goes_to_the_old_client() {
    let mut bench = Bench::new(&settings());
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    bench.now = bench.now + Duration::from_secs(70);
    assert_eq!(bench.reply(REMOTE, ident, 1).0, Inbound::Drop(Reason::Late));

    // A mapping that is idle for 1 s and echoes that wait for 60: the reply comes when the mapping has ended.
    let mut bench = Bench::new(&Settings { mapping_idle: Duration::from_secs(1), ..settings() });
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    assert_eq!(bench.pass(Duration::from_secs(3)).mappings, 1);
    assert_eq!((bench.handle.mappings(), bench.handle.held()), (0, 1));
    let (_, new_ident) = bench.send(CLIENT, REMOTE, 1, 2);
    assert_ne!(ident, new_ident, "an ended mapping carries nothing new");
    assert!(matches!(bench.reply(REMOTE, ident, 1).0, Inbound::Deliver { client: CLIENT, .. }));
}

#[test]
fn unanswered_echoes_are_swept_in_time_however_often_the_worker_turns() {
    let mut bench = Bench::new(&Settings { allowance: Allowance::UNLIMITED, ..settings() });
    for sequence in 0..500 {
        bench.send(CLIENT, REMOTE, 1, sequence);
    }
    let life = bench.proxy.echoes.longest_life();
    // A bucket is due every 29 ms: a turn every 55 ms sweeps one, and nearly two.
    let until = bench.now + life + bench.proxy.echo_timeout;
    while bench.now < until {
        bench.now = bench.now + Duration::from_millis(55);
        bench.handle.batch(bench.now).expire();
    }
    assert_eq!(bench.proxy.outstanding(), 0);
}

/// RFC 6888 REQ-8.
#[test]
fn an_ident_is_not_anothers_before_its_hold_down_is_over() {
    let settings = Settings { mapping_idle: Duration::from_secs(1), ..settings() };
    let mut bench = Bench::new(&settings);
    let hold_down = bench.proxy.sizes().hold_down;
    assert!(hold_down > settings.echo_timeout + BATCH_TIME_MAX);
    bench.send(CLIENT, REMOTE, 1, 1);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.handle.held(), 1);
    bench.pass(hold_down - Duration::from_secs(2));
    assert_eq!(bench.handle.held(), 1);
    bench.pass(Duration::from_secs(3));
    assert_eq!((bench.handle.held(), bench.handle.mappings()), (0, 0));
}

#[test]
fn a_hold_down_shorter_than_an_echos_life_is_refused() {
    let error = Proxy::new(&Settings { hold_down: Some(Duration::from_secs(60)), ..settings() }).unwrap_err();
    assert!(error.to_string().contains("hold-down of 60s is shorter than an echo can stay outstanding"), "{error}");
}

/// RFC 4787 REQ-6.
#[test]
fn a_mapping_in_use_does_not_end() {
    let mut bench = Bench::new(&settings());
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 0);
    for sequence in 1..20 {
        bench.pass(Duration::from_secs(55));
        assert_eq!(bench.send(CLIENT, REMOTE, 1, sequence).1, ident);
    }
    let expired = bench.pass(Duration::from_secs(70));
    assert_eq!((expired.mappings, bench.handle.mappings()), (1, 0));
    bench.pass(Duration::from_secs(70));
    assert_eq!(bench.proxy.outstanding(), 0);
}

/// RFC 5508 REQ-11.
#[test]
fn what_is_none_of_ours_falls_through_unchanged() {
    let udp = |port: u16| {
        let mut payload = vec![0x9c, 0x40, 0, 0, 0, 8, 0, 0];
        payload[2..4].copy_from_slice(&port.to_be_bytes());
        payload
    };
    let to = |destination, protocol, payload| Datagram::new(CLIENT, destination, protocol, payload).build();
    let mut unreachable = vec![0; 36];
    unreachable[0] = icmpv4::DESTINATION_UNREACHABLE;
    let mut ipv6 = vec![0; 48];
    ipv6[0] = 0x60;
    let mut with_code = build::echo_message(EchoKind::Request, 1, 1, b"");
    with_code[1] = 9;
    for (packet, passing) in [
        (to(REMOTE, ipv4::UDP, udp(53)), Passing::Dns),
        (to(REMOTE, ipv4::TCP, udp(53)), Passing::Dns),
        (to(CLIENT, ipv4::UDP, udp(53)), Passing::Dns),
        (to(REMOTE, ipv4::UDP, udp(443)), Passing::NotEchoRequest),
        (to(REMOTE, ipv4::TCP, udp(80)), Passing::NotEchoRequest),
        (to(REMOTE, ipv4::ICMP, unreachable), Passing::NotEchoRequest),
        (to(REMOTE, ipv4::ICMP, with_code), Passing::NotEchoRequest),
        (build::echo_reply(CLIENT, REMOTE, 1, 1, 64, b""), Passing::NotEchoRequest),
        (build::echo_request(CLIENT, OTHER_CLIENT, 1, 1, 64, b""), Passing::ToInside),
        (ipv6, Passing::NotIpv4),
    ] {
        let mut bench = Bench::new(&settings());
        let mut after = packet.clone();
        assert_eq!(bench.outbound(&mut after), Outbound::FallThrough(passing));
        assert_eq!(after, packet);
        assert_eq!((bench.handle.mappings(), bench.proxy.outstanding()), (0, 0));
    }
}

#[test]
fn what_must_not_be_forwarded_is_dropped_by_reason() {
    let request = |source, remote| build::echo_request(source, remote, 1, 1, 64, b"payload");
    let mut bad_header = request(CLIENT, REMOTE);
    bad_header[4] ^= 1;
    // To a remote that may be pinged, and on from there to one that may not.
    let by_way_of = |kind| {
        let message = build::echo_message(EchoKind::Request, 1, 1, b"payload");
        let options = vec![1, kind, 7, 4, 169, 254, 169, 254];
        Datagram { options, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) }.build()
    };
    for (mut packet, reason) in [
        (request(Ipv4Addr::new(10, 67, 0, 2), REMOTE), Reason::NotClient),
        (request(GATEWAY, REMOTE), Reason::OwnSource),
        (request(CLIENT, GATEWAY), Reason::RemoteOwn),
        (request(CLIENT, Ipv4Addr::BROADCAST), Reason::RemoteRefused),
        (request(CLIENT, Ipv4Addr::new(224, 0, 0, 1)), Reason::RemoteRefused),
        (request(CLIENT, Ipv4Addr::LOCALHOST), Reason::RemoteRefused),
        (build::echo_request(CLIENT, REMOTE, 1, 1, 0, b""), Reason::TtlExpired),
        (bad_header, Reason::HeaderChecksum),
        (by_way_of(131), Reason::SourceRoute),
        (by_way_of(137), Reason::SourceRoute),
        (Datagram::new(CLIENT, REMOTE, ipv4::ICMP, vec![8, 0, 0, 0]).build(), Reason::IcmpTruncated),
        (request(CLIENT, REMOTE)[..19].to_vec(), Reason::Truncated),
        (request(CLIENT, REMOTE)[..30].to_vec(), Reason::TotalLength),
    ] {
        let mut bench = Bench::new(&settings());
        assert_eq!(bench.outbound(&mut packet), Outbound::Drop(reason));
        assert_eq!((bench.handle.mappings(), bench.proxy.outstanding()), (0, 0), "{reason:?}");
    }
}

#[test]
fn what_comes_from_outside_and_is_no_reply_of_ours_is_dropped_by_reason() {
    let mut bench = Bench::new(&settings());
    let (_, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    let message = build::echo_message(EchoKind::Reply, ident, 1, b"payload");
    let reply = |change: fn(&mut Datagram)| {
        let mut datagram = Datagram::new(REMOTE, GATEWAY, ipv4::ICMP, message.clone());
        change(&mut datagram);
        datagram.build()
    };
    for (mut packet, reason) in [
        (build::echo_request(REMOTE, GATEWAY, ident, 1, 64, b""), Reason::NotEchoReply),
        (reply(|d| d.payload[1] = 1), Reason::NotEchoReply),
        (reply(|d| d.protocol = ipv4::UDP), Reason::NotEchoReply),
        (reply(|d| d.payload.truncate(7)), Reason::IcmpTruncated),
        (reply(|d| d.more_fragments = true), Reason::Fragment),
        (reply(|d| d.ttl = 1), Reason::TtlExpired),
        (vec![0x60; 60], Reason::Version),
        (vec![0x42; 60], Reason::HeaderLength),
    ] {
        assert_eq!(bench.inbound(&mut packet), Inbound::Drop(reason));
    }
    assert!(matches!(bench.reply(REMOTE, ident, 1).0, Inbound::Deliver { .. }));
}

#[test]
fn a_damaged_payload_stays_damaged_both_ways() {
    let mut bench = Bench::new(&settings());
    let mut packet = build::echo_request(CLIENT, REMOTE, 0xabcd, 1, 64, b"payload");
    let last = packet.len() - 1;
    packet[last] ^= 0x10;
    assert!(matches!(bench.outbound(&mut packet), Outbound::Forward { .. }));
    assert!(!is_intact(&packet));
    let mut reply = build::echo_reply(REMOTE, GATEWAY, ident_of(&packet), 1, 60, b"payload");
    reply[last] ^= 0x10;
    assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { .. }));
    assert!(!is_intact(&reply));
}

#[test]
fn ident_0_and_sequence_0_are_as_good_as_any() {
    // RFC 792; and the one reply whose checksum must be 0xffff: nothing but zeroes.
    let mut bench = Bench::new(&settings());
    let mut packet = build::echo_request(CLIENT, REMOTE, 0, 0, 64, &[0; 8]);
    assert!(matches!(bench.outbound(&mut packet), Outbound::Forward { .. }));
    let mut reply = answer(&packet, 60);
    assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { .. }));
    assert_eq!(reply, build::echo_reply(REMOTE, CLIENT, 0, 0, 60, &[0; 8]));
    assert!(is_intact(&reply));
}

#[test]
fn padding_is_not_part_of_the_packet() {
    let mut bench = Bench::new(&settings());
    let mut packet = build::echo_request(CLIENT, REMOTE, 1, 1, 64, b"");
    let length_sent = packet.len();
    packet.extend([0xee; 18]);
    let Outbound::Forward { length, .. } = bench.outbound(&mut packet) else { panic!("not forwarded") };
    assert_eq!(length, length_sent);
}

#[test]
fn a_reply_too_big_for_the_inside_path_loses_its_dont_fragment() {
    let mut bench = Bench::new(&settings());
    for (payload, dont_fragment) in [(1472, true), (1473, false)] {
        let mut request = build::echo_request(CLIENT, REMOTE, 1, payload, 64, &vec![7; payload.into()]);
        assert!(matches!(bench.outbound(&mut request), Outbound::Forward { .. }));
        let message = build::echo_message(EchoKind::Reply, ident_of(&request), payload, &vec![7; payload.into()]);
        let datagram = Datagram { dont_fragment: true, ..Datagram::new(REMOTE, GATEWAY, ipv4::ICMP, message) };
        let mut reply = datagram.build();
        assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { .. }));
        assert_eq!(Ipv4::check(&reply[..]).unwrap().dont_fragment(), dont_fragment);
        assert!(is_intact(&reply));
    }
}

/// Each gives what has to be cut an identification of its own range: put together at the client they are never one.
#[test]
fn receivers_number_what_must_be_cut_apart_from_one_another() {
    let mut bench = Bench::new(&Settings { allowance: Allowance::UNLIMITED, ..settings() });
    let mut receivers = [(); RECEIVER_RANGES].map(|()| bench.proxy.receiver());
    let mut given = std::collections::HashMap::new();
    for sequence in 0..4000 {
        let (sent, ident) = bench.send(CLIENT, REMOTE, 1, sequence);
        assert_eq!(Ipv4::check(&sent[..]).unwrap().source(), GATEWAY);
        let number = usize::from(sequence) % receivers.len();
        let message = build::echo_message(EchoKind::Reply, ident, sequence, &[7; 1480]);
        let mut reply = Datagram { dont_fragment: true, ..Datagram::new(REMOTE, GATEWAY, ipv4::ICMP, message) }.build();
        let verdict = receivers[number].batch(bench.now).inbound(&mut reply);
        assert!(matches!(verdict, Inbound::Deliver { client: CLIENT, .. }), "{verdict:?}");
        let identification = Ipv4::check(&reply[..]).unwrap().identification();
        assert_eq!(given.insert(identification, number), None, "{identification} of {number}");
    }
}

#[test]
fn a_send_that_failed_is_withdrawn_and_its_reply_unsolicited() {
    let mut bench = Bench::new(&settings());
    let (sent, ident) = bench.send(CLIENT, REMOTE, 1, 1);
    assert!(bench.handle.batch(bench.now).withdraw(&sent));
    assert!(!bench.handle.batch(bench.now).withdraw(&sent));
    assert_eq!(bench.reply(REMOTE, ident, 1).0, Inbound::Drop(Reason::NoEcho));
    assert_eq!(bench.proxy.outstanding(), 0);
}

#[test]
fn a_batch_makes_its_share_of_mappings_and_live_ones_pass_by() {
    let mut bench = Bench::new(&settings());
    bench.send(CLIENT, REMOTE, 0, 0);
    let mut batch = bench.handle.batch(bench.now);
    let mut later = 0;
    for ident in 1..=100 {
        let original = build::echo_request(CLIENT, REMOTE, ident, 1, 64, b"payload");
        let mut packet = original.clone();
        match batch.outbound(&mut packet) {
            Outbound::Forward { .. } => {}
            Outbound::Later => {
                later += 1;
                assert_eq!(packet, original);
            }
            verdict => panic!("{verdict:?}"),
        }
    }
    assert_eq!(later, 100 - CREATIONS_MAX);
    let mut live = build::echo_request(CLIENT, REMOTE, 0, 1, 64, b"payload");
    assert!(matches!(batch.outbound(&mut live), Outbound::Forward { .. }));
}

/// RFC 6888 REQ-11.
#[test]
fn when_the_idents_are_used_up_the_new_is_refused_and_the_live_go_on() {
    let mut bench = Bench::new(&Settings { clients: vec!["10.66.0.0/16".parse().unwrap()], ..settings() });
    let client = |number: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 66, 0, 0)) + number);
    let mut idents = std::collections::HashSet::new();
    for number in 0..1 << 16 {
        assert!(idents.insert(bench.send(client(number), REMOTE, 1, 1).1));
    }
    let mut refused = build::echo_request(client(0), REMOTE, 2, 1, 64, b"payload");
    assert_eq!(bench.outbound(&mut refused), Outbound::Elsewhere);
    let verdict = bench.handle.batch(bench.now).outbound_at_last(&mut refused);
    assert_eq!(verdict, Outbound::Refuse { reason: Reason::NoIdent, class: 0, tell_from: Some(0) });
    bench.send(client(65_535), REMOTE, 1, 2);
    bench.handle.audit().unwrap();
}

/// RFC 6888 REQ-2.
#[test]
fn a_client_keeps_its_address_of_several() {
    let addresses: Vec<Ipv4Addr> = (1..=3).map(|host| Ipv4Addr::new(198, 18, 7, host)).collect();
    let mut bench = Bench::new(&Settings { addresses: addresses.clone(), ..settings() });
    let mut used = std::collections::HashSet::new();
    for host in 0..=255 {
        let client = Ipv4Addr::new(10, 66, 0, host);
        let of_first = Ipv4::check(&bench.send(client, REMOTE, 1, 1).0[..]).unwrap().source();
        let (second, _) = bench.send(client, OTHER_REMOTE, 2, 1);
        assert_eq!(Ipv4::check(&second[..]).unwrap().source(), of_first);
        used.insert(of_first);
        let mut reply = answer(&second, 60);
        assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { client: to, .. } if to == client));
    }
    assert_eq!(used.len(), 3);
}

/// RFC 6888 REQ-15.
#[test]
fn idents_are_not_given_out_in_order() {
    let mut bench = Bench::new(&settings());
    let idents: Vec<u16> = (0..64).map(|ident| bench.send(CLIENT, REMOTE, ident, 1).1).collect();
    // In whatever order: from one to the next it would be one of a few steps.
    let steps: std::collections::BTreeSet<u16> = idents.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 48, "{idents:?}");
}

#[test]
fn settings_that_are_impossible_are_told_by_name() {
    let day = Duration::from_secs(24 * 60 * 60);
    for (impossible, words) in [
        (Settings { clients: vec![], ..settings() }, "no clients"),
        (Settings { addresses: vec![], ..settings() }, "0 gateway addresses"),
        (Settings { addresses: vec![GATEWAY; 2], ..settings() }, "listed twice"),
        (Settings { addresses: vec![CLIENT], ..settings() }, "among the clients"),
        (Settings { workers: 0, ..settings() }, "0 workers"),
        (Settings { workers: 65, ..settings() }, "65 workers"),
        (Settings { echo_words_log2: 13, ..settings() }, "2^13 words"),
        (Settings { echo_words_log2: 27, ..settings() }, "2^27 words"),
        (Settings { inside_mtu: 67, ..settings() }, "inside MTU of 67"),
        (Settings { mapping_idle: Duration::ZERO, ..settings() }, "mapping idle 0ns"),
        (Settings { echo_timeout: Duration::MAX, ..settings() }, "echo timeout"),
        (Settings { hold_down: Some(day + Duration::from_nanos(1)), ..settings() }, "hold-down"),
    ] {
        let error = Proxy::new(&impossible).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(Proxy::new(&Settings { mapping_idle: day, echo_timeout: day, inside_mtu: 68, ..settings() }).is_ok());
}

#[test]
fn each_handle_is_one_threads_at_a_time() {
    let proxy = Proxy::new(&Settings { workers: 2, ..settings() }).unwrap();
    let (first, second) = (proxy.handle(0).unwrap(), proxy.handle(1).unwrap());
    assert!(proxy.handle(0).is_none() && proxy.handle(1).is_none() && proxy.handle(2).is_none());
    drop(second);
    assert!(proxy.handle(0).is_none() && proxy.handle(1).is_some());
    drop((first, proxy.receiver()));
    assert!(proxy.handle(0).is_some() && proxy.handle(2).is_none());
}

#[test]
fn whoever_takes_a_handle_again_has_its_mappings() {
    let proxy = Proxy::new(&settings()).unwrap();
    let mut first = proxy.handle(0).unwrap();
    let mut request = build::echo_request(CLIENT, REMOTE, 1, 1, 64, b"");
    assert!(matches!(first.batch(Instant::START).outbound(&mut request), Outbound::Forward { .. }));
    drop(first);
    let mut second = proxy.handle(0).unwrap();
    assert_eq!(second.mappings(), 1);
    let mut reply = answer(&request, 60);
    assert!(matches!(second.batch(Instant::START).inbound(&mut reply), Inbound::Deliver { .. }));
    let later = Instant::START + settings().mapping_idle + Duration::from_secs(1);
    assert_eq!(second.batch(later).expire().mappings, 1);
    second.audit().unwrap();
}

#[test]
fn a_handle_whose_batch_was_cut_off_by_a_panic_is_nobodys_any_more() {
    let proxy = Proxy::new(&settings()).unwrap();
    let thread = std::thread::spawn({
        let mut handle = proxy.handle(0).unwrap();
        move || {
            let _batch = handle.batch(Instant::START);
            panic!("between two packets");
        }
    });
    assert!(thread.join().is_err());
    assert!(proxy.handle(0).is_none());
}

/// Two threads send for the same clients and idents and answer each other's: each reply to its own client.
#[test]
fn two_threads_share_mappings_and_echoes() {
    let proxy = Proxy::new(&Settings { workers: 2, ..settings() }).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..2_u16 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut handle = proxy.handle(worker.into()).unwrap();
                for round in 0..2000_u16 {
                    let mut batch = handle.batch(Instant::from_nanos(u64::from(round) * 1_000_000));
                    let client = Ipv4Addr::new(10, 66, 0, (round % 200).to_be_bytes()[1]);
                    let sequence = worker << 15 | round;
                    let mut packet = build::echo_request(client, REMOTE, round % 7, sequence, 64, b"payload");
                    match batch.outbound(&mut packet) {
                        Outbound::Forward { .. } => {}
                        verdict => panic!("{verdict:?}"),
                    }
                    let mut reply = answer(&packet, 60);
                    assert_eq!(batch.inbound(&mut reply), Inbound::Deliver { client, length: reply.len() });
                    assert_eq!(reply, build::echo_reply(REMOTE, client, round % 7, sequence, 60, b"payload"));
                }
                handle.audit().unwrap();
            });
        }
    });
    assert_eq!(proxy.outstanding(), 0);
}

/// RFC 5508 REQ-8.
#[test]
fn a_client_beyond_its_share_is_refused_and_told_now_and_then_and_another_is_not() {
    let limits = Limits { packets_per_second: 10, packets_burst: 5, ..ORDINARY };
    let special = Override { prefix: Prefix::host(OTHER_CLIENT), allowance: Allowance::UNLIMITED };
    let mut bench = Bench::new(&Settings { allowance: limits.into(), overrides: vec![special], ..settings() });
    let request = |client, sequence| build::echo_request(client, REMOTE, 1, sequence, 64, b"payload");
    let mut told = 0;
    for sequence in 0..100 {
        let original = request(CLIENT, sequence);
        let mut packet = original.clone();
        match bench.outbound(&mut packet) {
            Outbound::Forward { .. } => assert!(sequence < 5),
            Outbound::Refuse { reason: Reason::OverPackets, class: 0, tell_from } => {
                assert_eq!(packet, original);
                told += usize::from(tell_from.is_some());
            }
            verdict => panic!("{verdict:?}"),
        }
        assert!(matches!(bench.outbound(&mut request(OTHER_CLIENT, sequence)), Outbound::Forward { .. }));
    }
    assert_eq!(told, 20, "a burst of errors, and then no more for a while");
    assert_eq!(bench.proxy.outstanding(), 105, "what is refused is not recorded");
    bench.now = bench.now + Duration::from_millis(100);
    assert!(matches!(bench.outbound(&mut request(CLIENT, 1)), Outbound::Forward { .. }));
}

/// RFC 6888 REQ-4.
#[test]
fn a_client_has_no_more_mappings_than_its_share_and_gets_them_back() {
    let limits = Limits { mappings: 3, ..ORDINARY };
    let mut bench = Bench::new(&Settings { allowance: limits.into(), ..settings() });
    let request = |bench: &mut Bench, client, ident| {
        bench.outbound(&mut build::echo_request(client, REMOTE, ident, 1, 64, b"payload"))
    };
    for ident in 0..3 {
        assert!(matches!(request(&mut bench, CLIENT, ident), Outbound::Forward { .. }));
    }
    assert!(matches!(request(&mut bench, CLIENT, 3), Outbound::Refuse { reason: Reason::OverMappings, .. }));
    assert!(matches!(request(&mut bench, CLIENT, 2), Outbound::Forward { .. }), "the live ones go on");
    assert!(matches!(request(&mut bench, OTHER_CLIENT, 3), Outbound::Forward { .. }));
    bench.pass(Duration::from_secs(70));
    assert!(matches!(request(&mut bench, CLIENT, 3), Outbound::Forward { .. }));
}

#[test]
fn what_waits_for_the_next_batch_is_not_charged_twice() {
    let limits = Limits { packets_per_second: 1, packets_burst: 100, ..ORDINARY };
    let mut bench = Bench::new(&Settings { allowance: limits.into(), ..settings() });
    let mut waiting: Vec<u16> = (0..100).collect();
    while !waiting.is_empty() {
        let mut batch = bench.handle.batch(bench.now);
        waiting.retain(|ident| {
            let verdict = batch.outbound(&mut build::echo_request(CLIENT, REMOTE, *ident, 1, 64, b"payload"));
            assert!(!matches!(verdict, Outbound::Refuse { .. }), "{verdict:?}");
            verdict == Outbound::Later
        });
    }
}

#[test]
fn with_decrement_a_request_or_reply_on_its_last_hop_goes_no_further_and_uses_nothing_up() {
    let mut bench = Bench::new(&Settings { ttl: Ttl::Decrement, ..settings() });
    for ttl in [0, 1] {
        let mut packet = build::echo_request(CLIENT, REMOTE, 1, 1, ttl, b"payload");
        let before = packet.clone();
        assert_eq!(bench.outbound(&mut packet), Outbound::Drop(Reason::TtlExpired));
        assert_eq!((packet, bench.handle.mappings()), (before, 0));
    }
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
    for ttl in [0, 1] {
        assert_eq!(bench.inbound(&mut answer(&sent, ttl)), Inbound::Drop(Reason::TtlExpired));
    }
    let mut reply = answer(&sent, 2);
    assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { client: CLIENT, .. }));
    assert_eq!(Ipv4::check(&reply[..]).unwrap().ttl(), 1);
}

#[test]
fn a_receivers_handle_delivers_what_others_asked_and_makes_and_expires_nothing() {
    let mut bench = Bench::new(&settings());
    let mut receiver = bench.proxy.receiver();
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
    let (unanswered, _) = bench.send(CLIENT, REMOTE, 1, 2);
    let mut reply = answer(&sent, 60);
    assert!(matches!(receiver.batch(bench.now).inbound(&mut reply), Inbound::Deliver { client: CLIENT, .. }));
    let mut request = build::echo_request(OTHER_CLIENT, REMOTE, 1, 1, 64, b"");
    assert_eq!(receiver.batch(bench.now).outbound(&mut request), Outbound::Elsewhere);
    let refused = receiver.batch(bench.now).outbound_at_last(&mut request);
    assert!(matches!(refused, Outbound::Refuse { reason: Reason::NoIdent, .. }), "{refused:?}");
    let later = bench.now + Duration::from_secs(600);
    assert_eq!(receiver.batch(later).expire(), Expired::default());
    assert_eq!((receiver.sleep_max(later), bench.proxy.outstanding()), (None, 1));
    assert!(bench.handle.batch(bench.now).withdraw(&unanswered));
    receiver.audit().unwrap();
}

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

/// A byte that is no option that asks for a route.
fn no_source_route() -> impl Strategy<Value = u8> {
    any::<u8>().prop_filter("a source route", |byte| ![131, 137].contains(byte))
}

proptest! {
    /// Outbound and answered: but for addresses, ident and the checksums that go with them, byte for byte what was sent.
    /// RFC 792; RFC 1812, section 5.3.13.
    #[test]
    fn there_and_back_changes_only_what_it_must(
        ident: u16, sequence: u16, ttl in 2..=255_u8, tos: u8, identification: u16, dont_fragment: bool,
        options in prop::collection::vec(no_source_route(), 0..=10), payload in prop::collection::vec(any::<u8>(), 0..600),
        damage in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut message = build::echo_message(EchoKind::Request, ident, sequence, &payload);
        if let (Some(at), false) = (damage, payload.is_empty()) {
            message[8 + at.index(payload.len())] ^= 0x5a;
        }
        let options = options.iter().flat_map(|byte| [*byte; 4]).collect();
        let original = Datagram {
            tos, identification, dont_fragment, ttl, options,
            ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message)
        };
        let mut packet = original.build();
        let mut bench = Bench::new(&settings());
        let verdict = bench.outbound(&mut packet);
        prop_assert!(matches!(verdict, Outbound::Forward { .. }), "{:?}", verdict);

        // What must have changed: source, ident, what sums them, and the identification of what can be cut up.
        let mut expected = original.clone();
        expected.source = GATEWAY;
        if !dont_fragment {
            expected.identification = Ipv4::check(&packet[..]).unwrap().identification();
            prop_assert_ne!(expected.identification, 0);
        }
        let gateway_ident = ident_of(&packet);
        Echo::check(&mut expected.payload[..]).unwrap().set_ident(gateway_ident);
        prop_assert_eq!(&packet, &expected.build());

        // The remote turns the very bytes round.
        let mut reply = expected;
        (reply.source, reply.destination) = (REMOTE, GATEWAY);
        reply.payload[0] = icmpv4::ECHO_REPLY;
        let check = u16::from_be_bytes([reply.payload[2], reply.payload[3]]);
        reply.payload[2..4].copy_from_slice(&crate::checksum::update(check, 0x0800, 0).to_be_bytes());
        let mut back = reply.build();
        prop_assert_eq!(bench.inbound(&mut back), Inbound::Deliver { client: CLIENT, length: back.len() });
        reply.destination = CLIENT;
        Echo::check(&mut reply.payload[..]).unwrap().set_ident(ident);
        prop_assert_eq!(back, reply.build());
    }

    /// No bytes make it panic, and what is not forwarded is not touched.
    #[test]
    fn any_bytes_are_judged(mut bytes in prop::collection::vec(any::<u8>(), 0..200), version_4: bool, inbound: bool) {
        if let (Some(first), true) = (bytes.first_mut(), version_4) {
            *first = 0x40 | *first & 0x0f;
        }
        let before = bytes.clone();
        let mut bench = Bench::new(&settings());
        let untouched = if inbound {
            !matches!(bench.inbound(&mut bytes), Inbound::Deliver { .. })
        } else {
            !matches!(bench.outbound(&mut bytes), Outbound::Forward { .. })
        };
        prop_assert!(!untouched || bytes == before);
    }

    /// Whoever counts the hop: the two policies agree on everything but the TTL, and the header stays as sound as it was.
    /// RFC 1812, section 5.3.1.
    #[test]
    fn decrementing_takes_one_hop_each_way_and_changes_nothing_else(
        ttl in 2..=255_u8, reply_ttl in 2..=255_u8, ident: u16, sequence: u16, dont_fragment: bool,
        options in prop::collection::vec(no_source_route(), 0..=10), payload in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let message = build::echo_message(EchoKind::Request, ident, sequence, &payload);
        let options = options.iter().flat_map(|byte| [*byte; 4]).collect();
        let request =
            Datagram { dont_fragment, ttl, options, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) }.build();
        let there_and_back = |policy| {
            let mut bench = Bench::new(&Settings { ttl: policy, inside_mtu: 300, ..settings() });
            let mut out = request.clone();
            assert!(matches!(bench.outbound(&mut out), Outbound::Forward { .. }));
            let mut back = answer(&out, reply_ttl);
            assert!(matches!(bench.inbound(&mut back), Inbound::Deliver { .. }));
            (out, back)
        };
        let (kept_out, kept_back) = there_and_back(Ttl::AlreadyDecremented);
        let (out, back) = there_and_back(Ttl::Decrement);
        for (kept, counted, ttl) in [(kept_out, out, ttl), (kept_back, back, reply_ttl)] {
            let mut expected = kept;
            expected[8] = ttl - 1;
            // From scratch, not by the update that is tested.
            expected[10..12].fill(0);
            let header = usize::from(expected[0] & 15) * 4;
            let check = crate::checksum::checksum(&expected[..header]);
            expected[10..12].copy_from_slice(&check.to_be_bytes());
            prop_assert_eq!(&counted, &expected);
            prop_assert!(is_intact(&counted));
        }
    }
}

/// An error from a router about `request` as it left.
fn error_about(request: &[u8], from: Ipv4Addr, icmp_type: u8, code: u8) -> Vec<u8> {
    let message = build::error_message(icmp_type, code, 0, request);
    Datagram::new(from, GATEWAY, ipv4::ICMP, message).build()
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
            let message = build::error_message(icmp_type, code, 0, &original[..cut]);
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

/// Requests to the gateway's own addresses are nobody's to proxy: dropped, or left to the kernel, which answers them.
#[test]
fn own_addresses_are_refused_or_left_to_the_kernel() {
    for (pass_own, expected) in
        [(false, Outbound::Drop(Reason::RemoteOwn)), (true, Outbound::FallThrough(Passing::ToOwn))]
    {
        let second = Ipv4Addr::new(198, 18, 7, 9);
        let mut bench = Bench::new(&Settings { pass_own, addresses: vec![GATEWAY, second], ..settings() });
        for own in [GATEWAY, second] {
            let mut packet = build::echo_request(CLIENT, own, 1, 1, 64, b"payload");
            let before = packet.clone();
            assert_eq!(bench.outbound(&mut packet), expected);
            assert_eq!((packet, bench.handle.mappings(), bench.proxy.outstanding()), (before, 0, 0));
        }
    }
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

/// RFC 5508 REQ-2, REQ-2a.
#[test]
fn a_mapping_lives_a_minute_unless_it_is_configured_otherwise() {
    for (mapping_idle, lives, ends) in [(None, 59, 62), (Some(300), 299, 302), (Some(5), 4, 7)] {
        let mut settings = settings();
        settings.mapping_idle = mapping_idle.map_or(settings.mapping_idle, Duration::from_secs);
        let mut bench = Bench::new(&settings);
        bench.send(CLIENT, REMOTE, 1, 1);
        bench.pass(Duration::from_secs(lives));
        assert_eq!(bench.handle.mappings(), 1, "{mapping_idle:?}");
        bench.pass(Duration::from_secs(ends - lives));
        assert_eq!(bench.handle.mappings(), 0, "{mapping_idle:?}");
    }
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

/// RFC 6864, section 4.3: two clients may use one identification; from the gateway's address it may not be there twice.
/// RFC 7857.
#[test]
fn what_can_be_cut_up_gets_an_identification_of_its_own_and_what_cannot_keeps_its_own() {
    let mut bench = Bench::new(&settings());
    let mut seen = std::collections::HashSet::new();
    for (dont_fragment, client) in [(false, CLIENT), (false, OTHER_CLIENT), (true, CLIENT), (false, CLIENT)] {
        let message = build::echo_message(EchoKind::Request, 1, 1, b"payload");
        let datagram = Datagram::new(client, REMOTE, ipv4::ICMP, message);
        let mut packet = Datagram { identification: 0x4321, dont_fragment, ..datagram }.build();
        assert!(matches!(bench.outbound(&mut packet), Outbound::Forward { .. }));
        let identification = Ipv4::check(&packet[..]).unwrap().identification();
        assert!(if dont_fragment { identification == 0x4321 } else { identification != 0 });
        assert!(seen.insert(identification), "{identification}");
        assert!(is_intact(&packet));
    }
}

#[test]
fn without_icmp_errors_none_is_told() {
    let mut bench = Bench::new(&Settings { icmp_errors: false, ..settings() });
    let (sent, _) = bench.send(CLIENT, REMOTE, 1, 1);
    assert_eq!(bench.inbound(&mut error_about(&sent, ROUTER, 11, 0)), Inbound::Drop(Reason::NotEchoReply));
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
