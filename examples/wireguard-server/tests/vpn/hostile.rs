//! Bad input for the server of this package: an answer or a counted drop, and it serves on.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::exchange::udp;
use crate::scene::{ENDPOINT, PORT, Scene, Setup, outer_address, run, secret};

/// The first bytes of WireGuard's messages, and how long each is (data: any that is long enough).
const MESSAGES: [(u8, usize); 4] = [(1, 148), (2, 92), (3, 64), (4, 100)];

#[test]
fn garbage_wrong_keys_and_unknown_peers_are_dropped_by_name_and_disturb_nobody() {
    let scene = Scene::new(Setup::Embedded, true);
    ping(&scene);
    let attacker = udp(scene.client(0), outer_address(0), 0);
    attacker.connect((ENDPOINT, PORT)).expect("connects");
    every_form_of_garbage(&attacker);
    ping(&scene);
    messages_for_every_kind_of_number(&attacker);

    // Somebody with a key of his own, and somebody who takes another for the server.
    let server_key = PublicKey::from(&secret(0));
    let (stranger, client) = (StaticSecret::from([0x77; 32]), secret(1));
    let lost_key = PublicKey::from(&StaticSecret::from([0x78; 32]));
    for (own, servers) in [(stranger, server_key), (client, lost_key)] {
        let mut buffer = vec![0; 2048];
        let mut tunnel = Tunn::new(own, servers, None, None, 1, None);
        let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut buffer, false) else {
            panic!("an initiation")
        };
        attacker.send(initiation).expect("sends");
    }
    ping(&scene);
    let said = scene.stop().server.complaints;
    let dropped = |name: &str| -> u64 {
        let rest = said.split(&format!("{name} ")).nth(1).unwrap_or_else(|| panic!("no {name}: {said}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
    };
    assert!(dropped("garbage") > 100, "{said}");
    // Data and cookie replies for three numbers that are nobody's, the stranger's initiation, garbage that looked like data.
    assert!(dropped("unknown_peer") >= 7, "{said}");
    // Data and cookie replies for four numbers that are a peer's.
    assert!(dropped("not_authentic") >= 8, "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

fn every_form_of_garbage(attacker: &UdpSocket) {
    for length in 0..200 {
        for first in 0..6 {
            let mut datagram = vec![0xa5; length];
            datagram.iter_mut().take(4).zip([first, 0, 0, 0]).for_each(|(byte, value)| *byte = value);
            attacker.send(&datagram).expect("sends");
        }
        // A burst that fills the socket's buffer would be dropped there, unseen; some of it may be all the same.
        thread::sleep(Duration::from_millis(1));
    }
    attacker.send(&vec![4; 65_000]).expect("sends");
}

/// Of the form that WireGuard has, to numbers of the first peer's sessions, the second's, and nobody's.
fn messages_for_every_kind_of_number(attacker: &UdpSocket) {
    for (first, length) in MESSAGES {
        for number in [0_u32, 1, 7, 256, 512, 0x00ff_ffff, u32::MAX] {
            let mut datagram = vec![0; length];
            datagram[0] = first;
            datagram[4..8].copy_from_slice(&number.to_le_bytes());
            attacker.send(&datagram).expect("sends");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_device_that_goes_away_ends_the_server_with_a_reason() {
    let scene = Scene::new(Setup::Embedded, true);
    ping(&scene);
    run(scene.host(), "ip link del wg0");
    let ended = scene.server_ended();
    assert_eq!(ended.code, Some(1), "{}", ended.complaints);
    assert!(ended.complaints.contains("the TUN device is gone"), "{}", ended.complaints);
    assert!(!ended.complaints.contains("panicked"), "{}", ended.complaints);
}

#[test]
fn pings_go_on_while_the_device_is_down() {
    let scene = Scene::new(Setup::Embedded, true);
    ping(&scene);
    run(scene.host(), "ip link set wg0 down");
    ping(&scene);
    run(scene.host(), "ip link set wg0 up");
    ping(&scene);
    let said = scene.stop().server.complaints;
    assert!(said.contains("ping replies: 9,"), "{said}");
}

fn ping(scene: &Scene) {
    let printed = run(scene.client(1), &format!("ping -c 3 -l 3 -i 10 -W 10 {}", scene.remote(0)));
    assert!(printed.contains("3 packets transmitted, 3 received"), "{printed}");
}
