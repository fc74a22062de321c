mod addresses;
mod errors;
mod mappings;
mod setup;

use proptest::prelude::*;

use super::*;
use crate::policy::{Limits, ORDINARY, Override, Prefix};
use crate::table::SHARDS;
use crate::table::clients::Allowance;
use crate::wire::build::{self, Datagram};
use crate::wire::error::Message;
use crate::wire::icmpv4::{self, EchoKind};
use crate::wire::ipv4;

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
        let before = self.proxy.outstanding();
        let verdict = self.handle.batch(self.now).inbound(packet);
        let uses_echo_up = match verdict {
            Inbound::Deliver { .. } => true,
            Inbound::Tell { .. } => false,
            Inbound::Drop(reason) => reason.uses_echo_up(),
        };
        assert_eq!(before - self.proxy.outstanding(), usize::from(uses_echo_up), "{verdict:?}");
        verdict
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

#[test]
fn unanswered_echoes_are_swept_a_part_at_a_time_and_after_a_long_sleep_all_at_once() {
    let mut bench = Bench::new(&Settings { allowance: Allowance::UNLIMITED, ..settings() });
    let ask = |bench: &mut Bench| {
        for ident in 0..400 {
            for sequence in 0..4 {
                bench.send(CLIENT, REMOTE, ident, sequence);
            }
        }
        assert_eq!(bench.proxy.outstanding(), 1600);
    };
    ask(&mut bench);
    let timeout = bench.proxy.echo_timeout;
    let in_time = bench.now + bench.proxy.echoes.longest_life() + timeout + timeout / 10;
    while bench.proxy.outstanding() > 0 {
        bench.now = bench.now + timeout / 10;
        let swept = bench.handle.batch(bench.now).expire().echoes;
        assert!(swept < 1600 / 5, "{swept} in a tenth of the time that all may take");
        assert!(bench.now < in_time, "{:?}", bench.now);
    }
    ask(&mut bench);
    bench.now = bench.now + timeout * 2;
    assert_eq!(bench.handle.batch(bench.now).expire().echoes, 1600);
}

/// Found by the simulator (seeds 36 and 47): a worker whose mappings had all ended slept, and what was outstanding stayed so, until its
/// stamp wrapped and it looked young.
#[test]
fn a_worker_wakes_until_no_echo_of_its_ended_mappings_is_outstanding() {
    let mut settings = settings();
    settings.mapping_idle = Duration::from_secs(1);
    settings.echo_timeout = Duration::from_secs(100);
    let mut bench = Bench::new(&settings);
    for ident in 0..50 {
        bench.send(CLIENT, REMOTE, ident, 1);
    }
    let mut unanswered = 0;
    for turn in 0.. {
        let Some(sleep) = bench.handle.sleep_max(bench.now) else { break };
        assert!(turn < 1000 && sleep <= settings.echo_timeout, "turn {turn}: {sleep:?}");
        bench.now = bench.now + sleep;
        assert!(bench.now.since(Instant::START) < settings.echo_timeout * 4, "{:?}", bench.now);
        unanswered += bench.handle.batch(bench.now).expire().echoes;
    }
    assert_eq!((unanswered, bench.proxy.outstanding()), (50, 0));
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

/// Each gives what has to be cut an identification of its own range: put together at the client they are never one. Also if
/// very many have been asked for.
#[test]
fn receivers_number_what_must_be_cut_apart_from_one_another() {
    let mut bench = Bench::new(&Settings { allowance: Allowance::UNLIMITED, ..settings() });
    bench.proxy.receivers.store(usize::from(u16::MAX), Ordering::Relaxed);
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
                for round in 0..if cfg!(miri) { 50 } else { 2000_u16 } {
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
fn where_the_kernel_has_counted_the_hop_a_ttl_of_1_leaves_and_0_does_not() {
    let mut bench = Bench::new(&settings());
    let mut ask = |ttl| bench.outbound(&mut build::echo_request(CLIENT, REMOTE, 1, 1, ttl, b"payload"));
    assert_eq!(ask(0), Outbound::Drop(Reason::TtlExpired));
    assert!(matches!(ask(1), Outbound::Forward { .. }));
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
