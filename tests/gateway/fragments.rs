//! Pings larger than a link carries: in fragments from the client, in fragments to it, across routers with smaller MTUs.

use std::net::Ipv4Addr;
use std::thread;

use echogate::lab::LabOptions;
use echogate::wire::build::{Datagram, echo_message};
use echogate::wire::fragment;
use echogate::wire::icmpv4::EchoKind;
use echogate::wire::ipv4::{self, Ipv4};

use crate::ear::{Ear, Heard, Injector};
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, run};
use crate::serves::limits_off;

in_every_setup!(
    large_pings_of_two_clients_cross_a_router_with_a_smaller_mtu,
    fragments_with_equal_identifications_in_any_order_are_the_clients_own,
);

/// Two clients, a gateway, a router that carries 1,400 bytes on its far side, and remotes.
fn behind_a_narrow_router() -> Scene {
    let scene = Scene::with(&LabOptions { clients: 2, remotes: 3, routers: 1, ..LabOptions::default() });
    // A cable's end drops what is longer than its own MTU: both ends.
    run(&scene.lab().routers()[0], "ip link set far mtu 1400");
    run(scene.internet(), "ip link set eth0 mtu 1400");
    scene
}

fn serve_without_limits(scene: &Scene, setup: &Setup) -> Echogate {
    Echogate::serve(scene.gateway(), &[scene.arguments(setup), limits_off()].concat())
}

fn large_pings_of_two_clients_cross_a_router_with_a_smaller_mtu(setup: &Setup) {
    let scene = behind_a_narrow_router();
    let gateway = serve_without_limits(&scene, setup);
    // Each client's payload has a pattern of its own, which ping checks in every reply.
    let ping = |client: usize, size: u32| {
        let remote = scene.remote(0);
        (size, scene.ping(client, &format!("-c 5 -i 0.1 -W 10 -s {size} -e 1 -p {client}a {remote}")))
    };
    let pings: Vec<_> = thread::scope(|scope| {
        let ping = &ping;
        let clients = [0, 1].map(|client| scope.spawn(move || [3000, 20_000, 65_000].map(|size| ping(client, size))));
        clients.into_iter().flat_map(|client| client.join().expect("it ends well")).collect()
    });
    let ended = gateway.stop();
    for (size, pings) in pings {
        assert!(pings.all_came_back(5), "{size} bytes: {}{}", pings.text, ended.printed);
    }
    // 3, 14 and 44 fragments of 1,500 bytes and a rest.
    assert_eq!(ended.total("from inside"), 2 * 5 * (3 + 14 + 44), "{}", ended.printed);
    assert_eq!(ended.total("to outside"), ended.total("from inside"), "{}", ended.printed);
    assert_eq!((ended.total("replies delivered"), ended.total("dropped")), (30, 0), "{}", ended.printed);
}

const IDENT: u16 = 7;

/// A request of 6,000 bytes in fragments of 1,000 that all have this identification.
fn in_fragments(client: Ipv4Addr, remote: Ipv4Addr, sequence: u16, payload: &[u8]) -> Vec<Vec<u8>> {
    let message = echo_message(EchoKind::Request, IDENT, sequence, payload);
    let whole = Datagram { identification: 0x4321, ..Datagram::new(client, remote, ipv4::ICMP, message) }.build();
    let packet = Ipv4::check(&whole[..]).expect("built");
    let parts = fragment::parts(&packet, 1000).expect("it may be cut");
    let pieces = parts.map(|part| {
        let mut piece = vec![0; packet.header_len() + part.len()];
        assert!(fragment::write(&packet, part, &mut piece));
        piece
    });
    pieces.collect()
}

fn fragments_with_equal_identifications_in_any_order_are_the_clients_own(setup: &Setup) {
    let scene = behind_a_narrow_router();
    let gateway = serve_without_limits(&scene, setup);
    let remote = scene.remote(0);
    let clients = [0, 1].map(|number| (scene.client_address(number), number));
    let ears = clients.map(|(address, number)| Ear::at(scene.client(number), address));
    let injectors = clients.map(|(_, number)| Injector::at(scene.client(number)));
    let payload = |client: usize, sequence: u16| {
        let byte = |at: usize| (at.wrapping_mul(31 + client) ^ usize::from(sequence) ^ (at >> 8)).to_le_bytes()[0];
        (0..6000).map(byte).collect::<Vec<u8>>()
    };
    for sequence in 0..6_u16 {
        let mut series =
            clients.map(|(address, client)| in_fragments(address, remote, sequence, &payload(client, sequence)));
        for fragments in &mut series {
            match sequence {
                0 | 1 => {}
                2 | 3 => fragments.reverse(),
                // The first one in the middle.
                _ => fragments.swap(0, 3),
            }
        }
        // Both clients' fragments by turns: put together under one identification they would be nobody's.
        let [first, second] = &series;
        for (a, b) in first.iter().zip(second) {
            injectors[0].send(a, remote);
            injectors[1].send(b, remote);
        }
        for (client, ear) in ears.iter().enumerate() {
            let expected = Heard {
                kind: EchoKind::Reply,
                source: remote,
                ident: IDENT,
                sequence,
                payload: payload(client, sequence),
            };
            assert!(ear.next() == expected, "client {client}, sequence {sequence}");
        }
    }
    let ended = gateway.stop();
    assert_eq!((ended.total("from inside"), ended.total("replies delivered")), (2 * 6 * 7, 12), "{}", ended.printed);
    assert_eq!((ended.total("to outside"), ended.total("dropped")), (2 * 6 * 7, 0), "{}", ended.printed);
}
