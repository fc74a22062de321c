use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::clock::Instant;
use crate::policy::{Allowance, Rate};
use crate::proxy::{Handle, Inbound, Outbound, Passing, Proxy, Reason, Settings, Ttl};
use crate::table::fragments::{DECISION_TIME, EARLY_MAX, worker_of};
use crate::wire::build::{self, Datagram};
use crate::wire::fragment;
use crate::wire::icmpv4::{Echo, EchoKind};
use crate::wire::ipv4::{self, Ipv4};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const OTHER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

fn settings() -> Settings {
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    settings.seed = Some(7);
    settings
}

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
}

/// A request of one identification, whoever sends it.
fn request(client: Ipv4Addr, sequence: u16, payload: &[u8]) -> Datagram {
    let message = build::echo_message(EchoKind::Request, 1, sequence, payload);
    Datagram { identification: 0x4321, ..Datagram::new(client, REMOTE, ipv4::ICMP, message) }
}

/// Its fragments of `mtu` bytes at most.
fn cut(datagram: &Datagram, mtu: usize) -> Vec<Vec<u8>> {
    let whole = datagram.build();
    let packet = Ipv4::check(&whole[..]).unwrap();
    let parts = fragment::parts(&packet, mtu).unwrap();
    let pieces = parts.map(|part| {
        let mut piece = vec![0; packet.header_len() + part.len()];
        assert!(fragment::write(&packet, part, &mut piece));
        piece
    });
    pieces.collect()
}

/// What a host makes of fragments, whose order does not matter: the whole.
fn put_together(fragments: &[Vec<u8>]) -> Datagram {
    let mut parts: Vec<_> = fragments.iter().map(|fragment| Ipv4::check(&fragment[..]).unwrap()).collect();
    parts.sort_by_key(Ipv4::fragment_offset);
    let first = parts[0];
    let mut payload = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        assert!(part.header_is_intact());
        let common = |packet: &Ipv4<&[u8]>| (packet.source(), packet.destination(), packet.identification());
        assert_eq!(common(part), common(&first));
        assert_eq!(part.fragment_offset(), payload.len(), "a gap or an overlap");
        assert_eq!(part.more_fragments(), number + 1 < parts.len());
        payload.extend_from_slice(part.payload());
    }
    let identification = first.identification();
    Datagram {
        identification,
        ttl: first.ttl(),
        ..Datagram::new(first.source(), first.destination(), ipv4::ICMP, payload)
    }
}

/// Offers fragments in their order, each once more if it was to be held.
fn offer(bench: &mut Bench, fragments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut sent, mut held) = (Vec::new(), Vec::new());
    let mut forwards = 0;
    for fragment in fragments {
        let mut fragment = fragment.clone();
        match bench.outbound(&mut fragment) {
            Outbound::Hold => {
                assert!(!bench.handle.batch(bench.now).is_decided(&fragment));
                held.push(fragment);
            }
            Outbound::Forward { .. } => {
                forwards += 1;
                sent.push(fragment);
            }
            Outbound::Carry { address: 0, remote: REMOTE, length } if length == fragment.len() => sent.push(fragment),
            other => panic!("{other:?}"),
        }
        let mut batch = bench.handle.batch(bench.now);
        if batch.take_awaited() {
            for mut fragment in held.drain(..) {
                assert!(batch.is_decided(&fragment));
                assert!(matches!(batch.outbound(&mut fragment), Outbound::Carry { .. }));
                sent.push(fragment);
            }
        }
    }
    assert_eq!((forwards, held.len()), (1, 0));
    sent
}

proptest! {
    /// In whatever order, put together again they are the request as a whole one would have left, and its reply comes back.
    #[test]
    fn a_request_in_fragments_is_the_request(
        payload in prop::collection::vec(any::<u8>(), 100..2500), mtu in 300..1500_usize, seed: u64, damaged: bool,
        decrement: bool, swaps in prop::collection::vec((0..8_usize, 0..8_usize), 0..4),
    ) {
        let ttl = if decrement { Ttl::Decrement } else { Ttl::AlreadyDecremented };
        let mut bench = Bench::new(&Settings { seed: Some(seed), ttl, ..settings() });
        let mut original = request(CLIENT, 7, &payload);
        if damaged {
            original.payload[50] ^= 1;
        }
        let mut fragments = cut(&original, mtu);
        for (a, b) in swaps {
            let count = fragments.len();
            fragments.swap(a % count, b % count);
        }
        let sent = offer(&mut bench, &fragments);
        let whole = put_together(&sent);
        let echo = Echo::check(&whole.payload[..]).unwrap();
        prop_assert_eq!(echo.is_intact(), !damaged);
        prop_assert_ne!(whole.identification, 0);
        prop_assert_eq!((whole.source, whole.ttl), (GATEWAY, if decrement { 63 } else { 64 }));
        prop_assert_eq!(&whole.payload[8..], &original.payload[8..]);

        let mut reply = build::echo_reply(REMOTE, GATEWAY, echo.ident(), 7, 60, echo.payload());
        let verdict = bench.handle.batch(bench.now).inbound(&mut reply);
        prop_assert!(matches!(verdict, Inbound::Deliver { client: CLIENT, .. }), "{:?}", verdict);
        let packet = Ipv4::check(&reply[..]).unwrap();
        let echo = Echo::check(packet.payload()).unwrap();
        prop_assert_eq!(echo.payload(), &original.payload[8..]);
    }

    #[test]
    fn any_fragments_are_judged(
        fragments in prop::collection::vec(
            (0..3_u16, 0..40_usize, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..60,
        ),
    ) {
        let mut bench = Bench::new(&settings());
        for (identification, units, more_fragments, payload) in fragments {
            let datagram = Datagram::new(CLIENT, REMOTE, ipv4::ICMP, payload);
            let mut bytes =
                Datagram { identification, more_fragments, fragment_offset: units * 8, ..datagram }.build();
            bench.outbound(&mut bytes);
            prop_assert!(Ipv4::check(&bytes[..]).unwrap().header_is_intact());
        }
        bench.handle.audit().unwrap();
    }
}

/// RFC 6864: two clients with one identification, to one remote, at the same time.
#[test]
fn equal_identifications_of_two_clients_are_two() {
    let mut bench = Bench::new(&settings());
    let series = [CLIENT, OTHER_CLIENT].map(|client| cut(&request(client, 7, &[7; 3000]), 1000));
    let mut sent = [Vec::new(), Vec::new()];
    for (a, b) in series[0].iter().zip(&series[1]) {
        for (sent, fragment) in sent.iter_mut().zip([a, b]) {
            let mut fragment = fragment.clone();
            assert!(matches!(bench.outbound(&mut fragment), Outbound::Forward { .. } | Outbound::Carry { .. }));
            sent.push(fragment);
        }
    }
    let [first, second] = sent.map(|sent| put_together(&sent));
    assert_ne!(first.identification, second.identification);
}

#[test]
fn what_no_sender_means_well_is_dropped_by_name() {
    let piece = |offset, more_fragments, len| {
        let whole = request(CLIENT, 7, &vec![7; 65_507]);
        let payload = whole.payload[..len].to_vec();
        Datagram { more_fragments, fragment_offset: offset, payload, ..whole }.build()
    };
    let first = piece(0, true, 64);
    for (name, then, reason) in [
        ("tiny first", piece(0, true, 7), Reason::FragmentTiny),
        ("no first at all", piece(0, true, 0), Reason::FragmentTiny),
        ("empty", piece(64, true, 0), Reason::FragmentLength),
        ("an odd length in the middle", piece(64, true, 12), Reason::FragmentLength),
        ("ping of death", piece(65_528, false, 100), Reason::FragmentLength),
        ("teardrop", piece(56, true, 64), Reason::FragmentOverlap),
        ("teardrop from within", piece(24, false, 8), Reason::FragmentOverlap),
        ("the same again", first.clone(), Reason::FragmentOverlap),
        ("another first", piece(0, true, 72), Reason::FragmentOverlap),
    ] {
        let mut bench = Bench::new(&settings());
        assert!(matches!(bench.outbound(&mut first.clone()), Outbound::Forward { .. }));
        let mut changed = then.clone();
        assert_eq!(bench.outbound(&mut changed), Outbound::Drop(reason), "{name}");
        assert_eq!(changed, then, "{name}");
    }
}

#[test]
fn after_a_contradiction_the_rest_of_the_request_is_dropped() {
    let mut bench = Bench::new(&settings());
    let fragments = cut(&request(CLIENT, 7, &[7; 3000]), 1000);
    bench.outbound(&mut fragments[0].clone());
    let whole = request(CLIENT, 7, &[7; 3000]);
    let teardrop = Datagram { fragment_offset: 496, payload: whole.payload[..640].to_vec(), ..whole };
    assert_eq!(bench.outbound(&mut teardrop.build()), Outbound::Drop(Reason::FragmentOverlap));
    assert_eq!(bench.outbound(&mut fragments[1].clone()), Outbound::Drop(Reason::FragmentOverlap));
}

/// Eight bytes at a time, with gaps, for ever: each costs its client a packet, and none of it any memory.
#[test]
fn an_endless_series_ends() {
    let mut bench = Bench::new(&settings());
    let piece = |offset| {
        let whole = request(CLIENT, 7, &[7; 64]);
        Datagram { more_fragments: true, fragment_offset: offset, payload: whole.payload[..8].to_vec(), ..whole }
            .build()
    };
    assert!(matches!(bench.outbound(&mut piece(0)), Outbound::Forward { .. }));
    let mut verdicts = (1..1000).map(|number| bench.outbound(&mut piece(number * 16)));
    assert_eq!(
        verdicts.find(|verdict| !matches!(verdict, Outbound::Carry { .. })),
        Some(Outbound::Drop(Reason::FragmentScattered))
    );
    drop(verdicts);
    assert_eq!(bench.outbound(&mut piece(8)), Outbound::Drop(Reason::FragmentScattered), "that request is over");
    // And one that grows without a gap ends with its time.
    let mut bench = Bench::new(&settings());
    bench.outbound(&mut piece(0));
    assert!(matches!(bench.outbound(&mut piece(8)), Outbound::Carry { .. }));
    bench.now = bench.now + DECISION_TIME;
    assert_eq!(bench.outbound(&mut piece(16)), Outbound::Hold);
}

#[test]
fn early_fragments_wait_in_bounds_and_those_of_others_are_not_touched() {
    let mut bench = Bench::new(&settings());
    let mine = cut(&request(OTHER_CLIENT, 7, &[7; 3000]), 1000);
    assert!(matches!(bench.outbound(&mut mine[0].clone()), Outbound::Forward { .. }));
    let mut held = 0;
    for identification in 0..1000 {
        let whole = request(CLIENT, 7, &[7; 64]);
        let mut early = Datagram { identification, fragment_offset: 64, ..whole }.build();
        match bench.outbound(&mut early) {
            Outbound::Hold => held += 1,
            verdict => assert_eq!(verdict, Outbound::Drop(Reason::FragmentEarly)),
        }
    }
    assert_eq!(held, EARLY_MAX);
    for fragment in &mine[1..] {
        assert!(matches!(bench.outbound(&mut fragment.clone()), Outbound::Carry { .. }));
    }
    // Who is no client has none that wait.
    let not_ours = Outbound::FallThrough(Passing::NotEchoRequest);
    for (source, verdict) in [(GATEWAY, Outbound::Drop(Reason::OwnSource)), (Ipv4Addr::new(10, 67, 0, 1), not_ours)] {
        let mut early = Datagram { source, fragment_offset: 64, ..request(CLIENT, 7, &[7; 64]) }.build();
        assert_eq!(bench.outbound(&mut early), verdict);
    }
}

/// What is no echo request and no client's goes back whole, as it would unfragmented; of a request the first fragment does not,
/// and the rest is worth nothing to anybody.
#[test]
fn what_is_no_clients_and_no_request_goes_back_in_all_its_parts_and_unchanged() {
    let stranger = Ipv4Addr::new(10, 67, 0, 1);
    let mut bench = Bench::new(&settings());
    let message = build::error_message(3, 1, 0, &[7; 3000]);
    let datagram = Datagram { identification: 5, ..Datagram::new(stranger, REMOTE, ipv4::ICMP, message) };
    for order in [[0, 1, 2], [2, 1, 0]] {
        let fragments = cut(&datagram, 1200);
        for fragment in order.map(|number| &fragments[number]) {
            let mut after = fragment.clone();
            assert_eq!(bench.outbound(&mut after), Outbound::FallThrough(Passing::NotEchoRequest));
            assert_eq!(after, *fragment);
        }
    }
    let fragments = cut(&request(stranger, 7, &[7; 3000]), 1200);
    assert_eq!(bench.outbound(&mut fragments[0].clone()), Outbound::Drop(Reason::NotClient));
    // By the gateway's own hand they would come again and again.
    let fragments = cut(&Datagram { source: GATEWAY, ..datagram }, 1200);
    assert_eq!(bench.outbound(&mut fragments[1].clone()), Outbound::Drop(Reason::OwnSource));
}

#[test]
fn fragments_of_no_client_take_no_clients_place() {
    // Of one client alone, whose place is the first: where whoever is none is looked up, too.
    let mut bench = Bench::new(&Settings { clients: vec!["10.66.0.2/32".parse().unwrap()], ..settings() });
    let mine = cut(&request(CLIENT, 7, &[7; 3000]), 1000);
    assert!(matches!(bench.outbound(&mut mine[0].clone()), Outbound::Forward { .. }));
    for (source, reason) in [(GATEWAY, Reason::OwnSource), (OTHER_CLIENT, Reason::NotClient)] {
        for identification in 0..100 {
            let foreign = Datagram { identification, source, more_fragments: true, ..request(CLIENT, 7, &[7; 64]) };
            assert_eq!(bench.outbound(&mut foreign.build()), Outbound::Drop(reason));
            let message = build::echo_message(EchoKind::Reply, 1, 1, &[7; 64]);
            let reply = Datagram { payload: message, ..foreign };
            let mut after = reply.build();
            assert_eq!(bench.outbound(&mut after), Outbound::FallThrough(Passing::NotEchoRequest));
            assert_eq!(after, reply.build());
        }
    }
    for fragment in &mine[1..] {
        assert!(matches!(bench.outbound(&mut fragment.clone()), Outbound::Carry { .. }));
    }
}

#[test]
fn what_is_no_request_goes_back_in_all_its_parts_and_unchanged() {
    let mut bench = Bench::new(&settings());
    let message = build::echo_message(EchoKind::Reply, 1, 1, &[7; 3000]);
    let datagram = Datagram { identification: 5, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) };
    for fragment in cut(&datagram, 1000) {
        let mut after = fragment.clone();
        assert_eq!(bench.outbound(&mut after), Outbound::FallThrough(Passing::NotEchoRequest));
        assert_eq!(after, fragment);
    }
    // Those of other protocols are not even looked at.
    let udp = Datagram { more_fragments: true, ..Datagram::new(CLIENT, REMOTE, ipv4::UDP, vec![7; 64]) };
    assert_eq!(bench.outbound(&mut udp.build()), Outbound::FallThrough(Passing::NotEchoRequest));
}

#[test]
fn a_client_with_as_many_unfinished_requests_as_it_may_have_loses_nothing_else() {
    let mut bench = Bench::new(&Settings { allowance: Allowance::UNLIMITED, ..settings() });
    let begun = (0..1000).find(|number| {
        let datagram = Datagram { identification: *number, ..request(CLIENT, *number, &[7; 3000]) };
        let first = bench.outbound(&mut cut(&datagram, 1500)[0].clone());
        first == Outbound::Drop(Reason::FragmentUnfinished)
    });
    assert!(begun.is_some_and(|begun| begun > 0), "{begun:?}");
    let message = build::echo_message(EchoKind::Reply, 1, 1, &[7; 3000]);
    let reply = Datagram { identification: 5000, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) };
    for mut fragment in cut(&reply, 1500) {
        assert_eq!(bench.outbound(&mut fragment), Outbound::FallThrough(Passing::NotEchoRequest));
    }
}

#[test]
fn what_the_first_is_refused_for_the_others_are_dropped_for() {
    let denied = Settings { denied: vec!["198.18.0.0/24".parse().unwrap()], ..settings() };
    let mut bench = Bench::new(&denied);
    let fragments = cut(&request(CLIENT, 7, &[7; 3000]), 1000);
    let refused = bench.outbound(&mut fragments[0].clone());
    assert!(
        matches!(refused, Outbound::Refuse { reason: Reason::RemoteDenied, tell_from: Some(0), .. }),
        "{refused:?}"
    );
    for fragment in &fragments[1..] {
        assert_eq!(bench.outbound(&mut fragment.clone()), Outbound::Drop(Reason::RemoteDenied));
    }
}

#[test]
fn a_share_that_ends_in_mid_request_ends_the_request_and_nobody_is_told_about_a_later_fragment() {
    let two = Allowance { packets: Rate::new(1, 2), ..Allowance::UNLIMITED };
    let mut bench = Bench::new(&Settings { allowance: two, ..settings() });
    let fragments = cut(&request(CLIENT, 7, &[7; 4000]), 1000);
    let verdicts: Vec<_> = fragments.iter().map(|fragment| bench.outbound(&mut fragment.clone())).collect();
    assert!(matches!(verdicts[0], Outbound::Forward { .. }));
    assert!(matches!(verdicts[1], Outbound::Carry { .. }));
    assert_eq!(verdicts[2], Outbound::Refuse { reason: Reason::OverPackets, class: 0, tell_from: None });
    assert_eq!(verdicts[3], Outbound::Drop(Reason::OverPackets));
    bench.now = bench.now + Duration::from_secs(5);
    assert_eq!(bench.outbound(&mut fragments[4].clone()), Outbound::Drop(Reason::OverPackets), "nor later");
}

/// A later fragment's first bytes are payload, and may look like an echo that is outstanding.
#[test]
fn a_later_fragment_that_could_not_be_sent_withdraws_nothing() {
    let mut bench = Bench::new(&settings());
    let mut asked = build::echo_request(CLIENT, REMOTE, 1, 1, 64, b"payload");
    assert!(matches!(bench.outbound(&mut asked), Outbound::Forward { .. }));
    let echo = Ipv4::check(&asked[..]).unwrap().payload().to_vec();
    let later = Datagram { fragment_offset: 8, ..Datagram::new(GATEWAY, REMOTE, ipv4::ICMP, echo) };
    let mut batch = bench.handle.batch(bench.now);
    assert!(!batch.withdraw(&later.build()));
    assert_eq!(batch.why_not_sent(&mut later.build(), libc::ENETUNREACH, |_, _| None), None);
    assert_eq!(bench.proxy.outstanding(), 1);
}

#[test]
fn each_requests_fragments_are_judged_by_one_worker() {
    let proxy = Proxy::new(&Settings { workers: 4, ..settings() }).unwrap();
    let mut handles: Vec<_> = (0..4).map(|worker| proxy.handle(worker).unwrap()).collect();
    let mut judges = [0; 4];
    for host in 0..200 {
        let destination = Ipv4Addr::new(198, 18, 1, host);
        let fragments = cut(&Datagram { destination, ..request(CLIENT, host.into(), &[7; 3000]) }, 1000);
        let judge = fragments.iter().map(|fragment| {
            let judges = (0..4).filter(|worker| {
                let mut fragment = fragment.clone();
                let verdict = handles[*worker].batch(Instant::START).outbound(&mut fragment);
                !matches!(verdict, Outbound::BelongsTo { worker: other } if other != *worker)
            });
            judges.collect::<Vec<_>>()
        });
        let judge: Vec<_> = judge.collect();
        assert!(judge.iter().all(|judges| *judges == judge[0] && judges.len() == 1), "{judge:?}");
        assert_eq!(judge[0], [worker_of(CLIENT, destination, proxy.fragment_seed(), 4)], "to whom the TUN gives them");
        judges[judge[0][0]] += 1;
    }
    assert!(judges.iter().all(|judged| *judged > 25), "{judges:?}");
}
