//! Replies that nobody asked for reach nobody.

use std::net::Ipv4Addr;

use echogate::wire::icmpv4::EchoKind;

use crate::ear::{Ear, Heard};
use crate::in_every_setup;
use crate::scene::{Scene, Setup};

in_every_setup!(forged_replies_reach_nobody_and_a_true_one_is_used_once);

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const IDENT: u16 = 7;

/// The internet answers nothing by itself here: the test answers, truly and falsely. Everything takes one way, so what
/// was sent before a true reply would have arrived before it.
fn forged_replies_reach_nobody_and_a_true_one_is_used_once(setup: &Setup) {
    let scene = Scene::new(2);
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    let gateway = scene.serve(setup);
    let [first, second] = [0, 1].map(|number| Ear::at(scene.client(number), scene.client_address(number)));
    // One hears for its own address only, so each remote has its own.
    let [remote, other] = [0, 1].map(|number| Ear::at(scene.internet(), scene.remote(number)));

    let asked = ask(&first, &remote, scene.remote(0), 1, b"first");
    let asked_too = ask(&second, &remote, scene.remote(0), 1, b"second");
    assert_ne!(asked.ident, asked_too.ident, "equal idents inside are two outside");

    remote.reply(GATEWAY, asked.ident, 2, b"a sequence that was not asked");
    let nobodys = (1..).find(|ident| ![asked.ident, asked_too.ident].contains(ident)).expect("one of three");
    remote.reply(GATEWAY, nobodys, 1, b"an ident that nobody has");
    other.reply(GATEWAY, asked.ident, 1, b"from another remote");
    other.reply(GATEWAY, asked_too.ident, 1, b"from another remote");

    remote.reply(GATEWAY, asked.ident, 1, b"first");
    remote.reply(GATEWAY, asked.ident, 1, b"a second time");
    remote.reply(GATEWAY, asked_too.ident, 1, b"second");
    remote.reply(GATEWAY, asked_too.ident, 1, b"a second time");
    assert_eq!(first.next(), heard(scene.remote(0), 1, b"first"));
    assert_eq!(second.next(), heard(scene.remote(0), 1, b"second"));

    let marker = ask(&first, &remote, scene.remote(0), 9, b"marker");
    let marker_too = ask(&second, &remote, scene.remote(0), 9, b"marker too");
    remote.reply(GATEWAY, marker.ident, 9, b"marker");
    remote.reply(GATEWAY, marker_too.ident, 9, b"marker too");
    assert_eq!(first.next(), heard(scene.remote(0), 9, b"marker"));
    assert_eq!(second.next(), heard(scene.remote(0), 9, b"marker too"));

    let ended = gateway.stop();
    assert_eq!((ended.total("from inside"), ended.total("replies delivered")), (4, 4), "{}", ended.printed);
    assert_eq!(ended.total("dropped"), 6, "each forgery under a name: {}", ended.printed);
}

/// A client asks; the request as it reaches the remote.
fn ask(client: &Ear, remote: &Ear, address: Ipv4Addr, sequence: u16, payload: &[u8]) -> Heard {
    client.ask(address, IDENT, sequence, payload);
    let arrived = remote.next();
    assert_eq!((arrived.kind, arrived.source), (EchoKind::Request, GATEWAY));
    assert_eq!((arrived.sequence, arrived.payload.as_slice()), (sequence, payload));
    arrived
}

/// A reply as a client must hear it.
fn heard(source: Ipv4Addr, sequence: u16, payload: &[u8]) -> Heard {
    Heard { kind: EchoKind::Reply, source, ident: IDENT, sequence, payload: payload.to_vec() }
}
