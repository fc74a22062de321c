//! Mappings and idents: how long they live, on which address, and whose share they are of.

use super::*;

/// RFC 4787 REQ-11.
#[test]
fn one_mapping_serves_all_remotes_and_sequences_of_a_clients_ident() {
    // RFC 5508 REQ-1a: the mapping does not depend on the remote.
    let mut bench = Bench::new(&settings());
    let (_, first) = bench.send(CLIENT, REMOTE, 9, 1);
    let (_, second) = bench.send(CLIENT, OTHER_REMOTE, 9, 2);
    assert_eq!((first, bench.handle.mappings()), (second, 1));
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
    let addresses: Vec<Ipv4Addr> = (1..=4).map(|host| Ipv4Addr::new(198, 18, 7, host)).collect();
    let mut bench = Bench::new(&Settings { addresses: addresses.clone(), ..settings() });
    let mut used = std::collections::HashMap::new();
    for host in 0..=255 {
        let client = Ipv4Addr::new(10, 66, 0, host);
        let of_first = Ipv4::check(&bench.send(client, REMOTE, 1, 1).0[..]).unwrap().source();
        let (second, _) = bench.send(client, OTHER_REMOTE, 2, 1);
        assert_eq!(Ipv4::check(&second[..]).unwrap().source(), of_first);
        *used.entry(of_first).or_insert(0) += 1;
        let mut reply = answer(&second, 60);
        assert!(matches!(bench.inbound(&mut reply), Inbound::Deliver { client: to, .. } if to == client));
    }
    // They are spread: a quarter of them is 64.
    assert!(addresses.iter().all(|address| used.get(address).is_some_and(|clients| *clients > 32)), "{used:?}");
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

/// The client's own ident is ready in one worker's pool only. That one may have none left: then whoever is asked next takes
/// any of its own.
#[test]
fn where_idents_are_preserved_a_request_is_for_the_worker_that_owns_its_ident() {
    let idents = IdentPolicy { preserve: true, ..IdentPolicy::default() };
    let proxy = Proxy::new(&Settings { workers: 3, idents, ..settings() }).unwrap();
    let mut handles = [0, 1, 2].map(|worker| proxy.handle(worker).unwrap());
    let owner_of = |ident: u16| usize::from(ident) % SHARDS % 3;
    for ident in [0, 1, 2, 3, 62, 63, 64, 65_535] {
        let original = build::echo_request(CLIENT, REMOTE, ident, 1, 64, b"payload");
        let owner = owner_of(ident);
        for other in (0..3).filter(|worker| *worker != owner) {
            let mut packet = original.clone();
            let verdict = handles[other].batch(Instant::START).outbound(&mut packet);
            assert_eq!((verdict, packet), (Outbound::BelongsTo { worker: owner }, original.clone()));
        }
        let mut packet = original;
        let verdict = handles[owner].batch(Instant::START).outbound(&mut packet);
        assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
        assert_eq!(ident_of(&packet), ident);
    }
    let mut packet = build::echo_request(OTHER_CLIENT, REMOTE, 1, 1, 64, b"payload");
    let verdict = handles[0].batch(Instant::START).outbound_again(&mut packet);
    assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
    assert_eq!(owner_of(ident_of(&packet)), 0);
}
