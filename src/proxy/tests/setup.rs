//! What a proxy is made of: how large its tables are, those that another one has left, and whether they hold together.

use super::*;
use crate::table::addresses::MARKS;
use crate::table::atomic::AtomicU32;
use crate::table::echoes;
use crate::table::slots::Slot;

#[test]
fn the_tables_are_as_large_as_the_settings_ask() {
    let idents = IdentPolicy { reserved: vec![0..=999], preserve: false };
    let hold_down = Duration::from_secs(120);
    let addresses = vec![GATEWAY, Ipv4Addr::new(198, 18, 7, 9)];
    let asked = Settings { addresses, idents, hold_down: Some(hold_down), workers: 3, ..settings() };
    let expected = Sizes {
        mappings_max: 2 * 64_536,
        slots_bytes: 2 * 65_536 * 64,
        echoes_max: 1 << 14,
        echoes_bytes: 8 << 14,
        clients_bytes: 256 * 64,
        // Nine cache lines for each client and worker.
        fragments_bytes: 3 * 256 * 576,
        // A minute idle, two minutes at rest.
        mappings_per_second_and_address: 64_536.0 / 180.0,
        hold_down,
    };
    assert_eq!(Proxy::new(&asked).unwrap().sizes(), expected);
}

/// Empty tables of one address that outlive whoever uses them.
fn tables() -> Tables {
    Tables {
        slots: Vec::leak((0..1 << 16).map(|_| Slot::default()).collect()),
        buckets: Vec::leak((0..echoes::buckets(14)).map(|_| echoes::Bucket::default()).collect()),
        addresses: Vec::leak(vec![AtomicU32::new(GATEWAY.into())]),
        marks: Vec::leak((0..MARKS).map(|_| AtomicU32::default()).collect()),
        keys: Keys::draw(),
    }
}

#[test]
fn what_was_asked_before_the_tables_were_taken_up_is_answered_unless_they_lay_longer_than_that_takes() {
    let timeout = settings().echo_timeout;
    for (lay, is_answered) in [(timeout - Duration::from_nanos(1), true), (timeout, false), (timeout * 5, false)] {
        let tables = tables();
        let (proxy, found) = Proxy::over(&settings(), tables, Instant::START, Instant::START).unwrap();
        assert_eq!(found, Found::default());
        let mut request = build::echo_request(CLIENT, REMOTE, 1, 1, 64, b"payload");
        let verdict = proxy.handle(0).unwrap().batch(Instant::START).outbound(&mut request);
        assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
        drop(proxy);

        let now = Instant::START + lay;
        let (proxy, found) = Proxy::over(&settings(), tables, Instant::START, now).unwrap();
        assert_eq!((found.slots.mappings, found.outstanding, found.unanswered), (1, u64::from(is_answered), 0));
        let mut reply = answer(&request, 60);
        let verdict = proxy.handle(0).unwrap().batch(now).inbound(&mut reply);
        let length = reply.len();
        let expected =
            if is_answered { Inbound::Deliver { client: CLIENT, length } } else { Inbound::Drop(Reason::NoEcho) };
        assert_eq!(verdict, expected, "{lay:?}");
    }
}

#[test]
fn an_audit_finds_an_ident_that_is_somebodys_and_listed_as_free() {
    let mut bench = Bench::new(&settings());
    bench.send(CLIENT, REMOTE, 1, 1);
    assert_eq!(bench.handle.audit(), Ok(()));
    let shards: Vec<usize> = (0..SHARDS).collect();
    let (policy, lifetimes) = (IdentPolicy::default(), bench.proxy.lifetimes);
    bench.handle.owner.idents = Idents::new(1, &shards, &policy, lifetimes, idents::generator(Some(1)));
    let found = bench.handle.audit().unwrap_err();
    assert!(found.contains("Live 10.66.0.2 ident 1 ") && found.contains("listed as Free"), "{found}");
}
