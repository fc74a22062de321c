//! Several gateway addresses: which one a client is on, and what becomes of those that are lost or drain.

use super::*;

fn own(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 7, 10 + number)
}

/// Four addresses, each with two idents; a mapping that is not used ends within two seconds.
fn bench() -> Bench {
    let idents = IdentPolicy { reserved: vec![2..=u16::MAX], preserve: false };
    let (addresses, mapping_idle) = ((0..4).map(own).collect(), Duration::from_secs(1));
    Bench::new(&Settings { addresses, idents, mapping_idle, ..settings() })
}

/// The clients that begin on the last address: before their first mapping they would be told from there.
fn clients_of_the_last(bench: &Bench) -> Vec<Ipv4Addr> {
    let clients = (0..=255).map(|host| Ipv4Addr::new(10, 66, 0, host));
    clients.filter(|client| bench.proxy.tell_from(*client) == Some(3)).collect()
}

/// The number of the address that a request leaves from, or why it does not.
fn leave(bench: &mut Bench, client: Ipv4Addr, ident: u16) -> Result<u8, Reason> {
    let mut packet = build::echo_request(client, REMOTE, ident, 1, 64, b"payload");
    match bench.handle.batch(bench.now).outbound_at_last(&mut packet) {
        Outbound::Forward { address, .. } => {
            assert_eq!(Ipv4::check(&packet[..]).unwrap().source(), own(address));
            Ok(address)
        }
        Outbound::Refuse { reason, .. } => Err(reason),
        verdict => panic!("{verdict:?}"),
    }
}

/// RFC 6888 REQ-2, REQ-3.
#[test]
fn where_idents_are_used_up_who_has_mappings_is_refused_and_who_has_none_goes_on_to_the_next_address() {
    let mut bench = bench();
    let [first, second, third, ..] = clients_of_the_last(&bench)[..] else { panic!("too few") };
    assert_eq!([1, 2, 3].map(|ident| leave(&mut bench, first, ident)), [Ok(3), Ok(3), Err(Reason::NoIdent)]);
    assert_eq!([1, 2, 3].map(|ident| leave(&mut bench, second, ident)), [Ok(0), Ok(0), Err(Reason::NoIdent)]);
    assert_eq!(leave(&mut bench, third, 1), Ok(1));
    // No mapping is left, but those idents rest.
    assert_eq!(bench.pass(Duration::from_secs(2)).mappings, 5);
    assert_eq!(leave(&mut bench, second, 1), Ok(1), "it need not stay, and there is one more");
    bench.pass(Duration::from_secs(70));
    assert_eq!([first, second].map(|client| leave(&mut bench, client, 1)), [Ok(3), Ok(1)], "where they were last");
}

#[test]
fn one_that_drains_keeps_its_mappings_and_one_that_is_lost_does_not_and_new_ones_are_on_the_next() {
    let mut bench = bench();
    let [client, other, ..] = clients_of_the_last(&bench)[..] else { panic!("too few") };
    assert_eq!(leave(&mut bench, client, 1), Ok(3));
    bench.proxy.addresses().set_draining(3, true);
    assert_eq!([1, 2].map(|ident| leave(&mut bench, client, ident)), [Ok(3), Ok(0)]);
    assert_eq!(leave(&mut bench, other, 1), Ok(0));
    bench.proxy.addresses().set_lost(0, true);
    assert_eq!([1, 2].map(|ident| leave(&mut bench, client, ident)), [Ok(3), Err(Reason::AddressLost)]);
    assert_eq!(bench.proxy.tell_from(client), Some(1), "not from the one that is lost");
    assert_eq!(bench.handle.batch(bench.now).expire().mappings, 2, "their owner ends them at once");
    assert_eq!([1, 2].map(|ident| leave(&mut bench, client, ident)), [Ok(3), Ok(1)]);
}

#[test]
fn where_all_addresses_are_closed_new_mappings_are_refused_and_where_all_are_lost_nobody_is_told() {
    let mut bench = bench();
    let [client, ..] = clients_of_the_last(&bench)[..] else { panic!("too few") };
    let request = build::echo_request(client, REMOTE, 1, 1, 64, b"payload");
    let refused = |tell_from| Outbound::Refuse { reason: Reason::AddressLost, class: 0, tell_from };
    (0..4).for_each(|number| bench.proxy.addresses().set_draining(number, true));
    assert_eq!(bench.outbound(&mut request.clone()), refused(Some(3)));
    (0..4).for_each(|number| bench.proxy.addresses().set_lost(number, true));
    assert_eq!(bench.outbound(&mut request.clone()), refused(None));
    (0..4).for_each(|number| bench.proxy.addresses().set_lost(number, false));
    bench.proxy.addresses().set_draining(2, false);
    assert_eq!(leave(&mut bench, client, 1), Ok(2), "it has come back");
}

#[test]
fn a_batch_has_a_time_and_the_addresses_have_numbers_and_are_told_as_they_are() {
    let mut bench = bench();
    bench.now = bench.now + Duration::from_secs(9);
    let [client, ..] = clients_of_the_last(&bench)[..] else { panic!("too few") };
    leave(&mut bench, client, 1).unwrap();
    bench.proxy.addresses().set_draining(1, true);
    bench.proxy.addresses().set_lost(2, true);
    let expected = [0, 1, 2, 3].map(|number| OutsideAddress {
        address: own(number),
        draining: number == 1,
        lost: number == 2,
        idents_used: usize::from(number == 3),
    });
    assert_eq!(bench.proxy.outside_addresses(), expected);
    let batch = bench.handle.batch(bench.now);
    assert_eq!(batch.now(), bench.now);
    for number in 0..4 {
        assert_eq!((batch.address(number), batch.address_number(own(number))), (Some(own(number)), Some(number)));
    }
    assert_eq!((batch.address(4), batch.address_number(REMOTE)), (None, None));
}
