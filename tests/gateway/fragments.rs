//! Pings larger than a link carries: in fragments from the client, in fragments to it, across routers with smaller MTUs.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use echogate::io::Sizes;
use echogate::lab::LabOptions;
use echogate::lab::load::{self, LoadOptions, LoadReport};
use echogate::wire::build::{Datagram, echo_message};
use echogate::wire::fragment;
use echogate::wire::icmpv4::EchoKind;
use echogate::wire::ipv4::{self, Ipv4};

use crate::ear::{Ear, Heard, Injector};
use crate::process::Echogate;
use crate::scene::{PATIENCE, Pings, Scene, Setup, nft, run, wait_until};
use crate::serves::limits_off;
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(
    large_pings_of_two_clients_cross_a_router_with_a_smaller_mtu,
    fragments_with_equal_identifications_in_any_order_are_the_clients_own,
    what_is_too_large_for_the_gateways_own_link_leaves_in_pieces,
    beside_a_masquerade_and_a_stateful_firewall_large_pings_come_back,
);

and_at_ingress!(
    large_pings_of_two_clients_cross_a_router_with_a_smaller_mtu,
    beside_a_masquerade_and_a_stateful_firewall_large_pings_come_back,
);

/// Two clients, a gateway, a router that carries 1,400 bytes on its far side, and remotes. Alone: some hundred fragments
/// at once are much for the kernel's queue of received packets.
fn behind_a_narrow_router() -> Scene {
    let scene = Scene::alone_with(&LabOptions { clients: 2, remotes: 3, routers: 1, ..LabOptions::default() });
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
    // Each client's payload has a pattern of its own, which ping checks in every reply. One after the other: a host gives a
    // datagram up when 64 fragments of others, from the same address, come between two of its own (ipfrag_max_dist).
    let ping = |client: usize| {
        let sizes = [3000, 20_000, 65_000].into_iter().flat_map(|size| [size; 5]);
        sizes.map(|size| scene.pings(client, 1, scene.remote(0), &format!("-s {size} -e 1 -p {client}a"))).collect()
    };
    let pings: Vec<Vec<Pings>> = thread::scope(|scope| {
        let ping = &ping;
        let clients = [0, 1].map(|client| scope.spawn(move || ping(client)));
        clients.into_iter().map(|client| client.join().expect("it ends well")).collect()
    });
    let ended = gateway.stop();
    for pings in pings.iter().flatten() {
        assert!(pings.all_came_back(1), "{}{}", pings.text, ended.printed);
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

/// RFC 4787 REQ-14; RFC 6864, section 4.3.
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

/// RFC 4787 REQ-13a: without DF it is fragmented, in order. With DF, see `errors.rs`.
fn what_is_too_large_for_the_gateways_own_link_leaves_in_pieces(setup: &Setup) {
    let scene = Scene::alone_with(&LabOptions { clients: 1, remotes: 3, routers: 1, ..LabOptions::default() });
    let gateway = serve_without_limits(&scene, setup);
    run(scene.gateway(), "ip link set wan mtu 1400");
    run(&scene.lab().routers()[0], "ip link set eth0 mtu 1400");
    let mut pings = Vec::new();
    for size in [1400, 3000, 20_000] {
        pings.push(scene.pings(0, 4, scene.remote(0), &format!("-M dont -s {size}")));
    }
    let ended = gateway.stop();
    for pings in pings {
        assert!(pings.all_came_back(4), "{}{}", pings.text, ended.printed);
    }
    // 1, 3 and 14 packets of 1,500 bytes and a rest; each that is longer than 1,400 gives one piece more.
    assert_eq!(ended.total("to outside"), 4 * (1 + 3 + 14), "{}", ended.printed);
    assert_eq!((ended.total("pieces cut off"), ended.total("pieces lost")), (4 * (1 + 2 + 13), 0), "{}", ended.printed);
    assert_eq!((ended.total("replies delivered"), ended.total("dropped")), (12, 0), "{}", ended.printed);
}

/// Connection tracking puts fragments together wherever it sees them; here it must see none on their way out.
fn beside_a_masquerade_and_a_stateful_firewall_large_pings_come_back(setup: &Setup) {
    let scene = behind_a_narrow_router();
    // The clients' links carry less than the TUN.
    for client in 0..2 {
        run(scene.gateway(), &format!("ip link set g{client} mtu 1280"));
        run(scene.client(client), "ip link set eth0 mtu 1280");
    }
    nft(
        scene.gateway(),
        "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname \"wan\" masquerade; }; }; \
         table ip fw { \
         chain forward { type filter hook forward priority 0; policy drop; ct state invalid drop; \
           iifname \"g*\" oifname \"echogate0\" ip protocol icmp accept; iifname \"echogate0\" oifname \"g*\" accept; }; \
         chain input { type filter hook input priority 0; policy drop; ct state established,related accept; }; }",
    );
    let gateway = serve_without_limits(&scene, setup);
    let mut pings = Vec::new();
    for size in [3000, 20_000] {
        for client in 0..2 {
            pings.push(scene.pings(client, 3, scene.remote(0), &format!("-s {size}")));
        }
    }
    let ended = gateway.stop();
    for pings in pings {
        assert!(pings.all_came_back(3), "{}{}", pings.text, ended.printed);
    }
    assert_eq!((ended.total("replies delivered"), ended.total("dropped")), (12, 0), "{}", ended.printed);
}

/// A remote whose reply comes in fragments that all have DF: the kernel puts them together and keeps it.
#[test]
fn a_large_reply_with_dont_fragment_reaches_a_client_behind_a_smaller_link() {
    let scene = Scene::new(1);
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    run(scene.gateway(), "ip link set g0 mtu 1280");
    run(scene.client(0), "ip link set eth0 mtu 1280");
    let gateway = scene.serve(&Setup { io: "uring", workers: 1 });
    let (client, remote) = (scene.client_address(0), scene.remote(0));
    let [ear, far_ear] = [Ear::at(scene.client(0), client), Ear::at(scene.internet(), remote)];
    let far = Injector::at(scene.internet());
    let payload = vec![7; 3000];
    for sequence in 0..2 {
        for fragment in in_fragments(client, remote, sequence, &payload) {
            Injector::at(scene.client(0)).send(&fragment, remote);
        }
        let asked = far_ear.next_request();
        let message = echo_message(EchoKind::Reply, asked.ident, sequence, &asked.payload);
        let whole = Datagram::new(remote, asked.source, ipv4::ICMP, message).build();
        let packet = Ipv4::check(&whole[..]).expect("built");
        for part in fragment::parts(&packet, 1500).expect("it may be cut") {
            let piece = Datagram {
                identification: 9,
                dont_fragment: true,
                more_fragments: part.end < packet.payload().len(),
                fragment_offset: part.start,
                ..Datagram::new(remote, asked.source, ipv4::ICMP, packet.payload()[part].to_vec())
            };
            far.send(&piece.build(), asked.source);
        }
        let heard = ear.next();
        assert!((heard.sequence, heard.ident) == (sequence, IDENT) && heard.payload == payload, "{}", heard.sequence);
    }
    assert_eq!(gateway.stop().total("replies delivered"), 2);
}

/// The client is gone when its reply comes: the kernel would tell the remote so, and of the client's address.
#[test]
fn no_error_about_a_reply_of_ours_leaves() {
    let scene = Scene::new(2);
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    let gateway = scene.serve(&Setup { io: "uring", workers: 1 });
    let remote = scene.remote(0);
    let far_ear = Ear::at(scene.internet(), remote);
    Ear::at(scene.client(0), scene.client_address(0)).ask(remote, IDENT, 1, b"payload");
    let asked = far_ear.next_request();
    let before = icmp_errors_sent(&scene);
    // No neighbour answers for it any more, and soon the kernel gives up.
    run(scene.client(0), "ip link set eth0 arp off");
    run(scene.gateway(), "ip neigh flush dev g0");
    scene.gateway().sysctl(&[("net/ipv4/neigh/g0/retrans_time_ms", "20")]).expect("a sysctl of the lab");
    far_ear.reply(asked.source, asked.ident, 1, b"payload");
    wait_until("the kernel gives the client up", || icmp_errors_sent(&scene) > before);
    // What comes next is not that error.
    Ear::at(scene.client(1), scene.client_address(1)).ask(remote, IDENT, 2, b"payload");
    assert_eq!(far_ear.next().sequence, 2);
    assert_eq!(gateway.stop().total("replies delivered"), 1);
}

/// Errors that the gateway's kernel has made, whether they left or not.
fn icmp_errors_sent(scene: &Scene) -> u64 {
    let counters = run(scene.gateway(), "nstat -asz IcmpOutDestUnreachs | tail -n 1");
    counters.split_whitespace().nth(1).and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{counters}"))
}

/// So long a load lasts: 4 s, or what ECHOGATE_LOAD_SECONDS says (the figures of perf/fragments.md).
fn load_time() -> Duration {
    let seconds = std::env::var("ECHOGATE_LOAD_SECONDS").map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(4))
}

/// RFC 4787 REQ-14a. Every kind of fragment that is of no use, from one client; the other pings just below its share.
#[test]
fn a_flood_of_fragments_costs_another_client_nothing() {
    let scene = Scene::alone(2);
    let gateway = scene.serve(&Setup { io: "uring", workers: 2 });
    let lab = scene.lab();
    let modest = || {
        let options = LoadOptions {
            duration: load_time(),
            rate: Some(950),
            window: 20_000,
            // What comes late on a busy machine is not lost.
            reply_timeout: PATIENCE,
            ..LoadOptions::default()
        };
        load::run(&lab.clients()[..1], lab.remotes(), &options, |_| ControlFlow::Continue(())).expect("it runs")
    };
    let control = modest();
    // The burst that it may send at once comes back first: it pings at its share's very edge.
    thread::sleep(Duration::from_secs(2));
    let (beside_flood, flooded) = thread::scope(|scope| {
        let flood = scope.spawn(|| flood_of_fragments(&scene, flood_a_second()));
        (modest(), flood.join().expect("it ends well"))
    });
    let ended = gateway.stop();
    let lost = |report: &LoadReport| report.sent - report.received;
    println!(
        "control: {} of {} lost; beside a flood of {flooded} fragments: {} of {} lost\n{}",
        lost(&control),
        control.sent,
        lost(&beside_flood),
        beside_flood.sent,
        ended.printed
    );
    assert!(lost(&beside_flood) <= lost(&control) + beside_flood.sent / 1000, "{control:?} {beside_flood:?}");
    assert_eq!((beside_flood.wrong_client, beside_flood.altered), (0, 0), "{beside_flood:?}");
    let by_name = ["fragment_early", "fragment_tiny", "fragment_overlap", "fragment_length", "fragment_unfinished"];
    assert!(by_name.iter().all(|name| ended.total(name) > 0), "{}", ended.printed);
}

/// So many fragments a second flood: 20,000, or what ECHOGATE_FLOOD_RATE says.
fn flood_a_second() -> u32 {
    let rate = std::env::var("ECHOGATE_FLOOD_RATE").map(|text| text.parse().expect("a number of fragments"));
    rate.unwrap_or(20_000)
}

/// Sends as long as a load lasts, and tells how many.
fn flood_of_fragments(scene: &Scene, a_second: u32) -> u64 {
    let injector = Injector::at(scene.client(1));
    let (client, remote) = (scene.client_address(1), scene.remote(0));
    let message = echo_message(EchoKind::Request, IDENT, 1, &[7; 64]);
    let fragment = |identification, fragment_offset, more_fragments, length: usize| {
        let payload = message[..length].to_vec();
        let datagram = Datagram::new(client, remote, ipv4::ICMP, payload);
        Datagram { identification, fragment_offset, more_fragments, ..datagram }.build()
    };
    let (begun, until) = (Instant::now(), Instant::now() + load_time());
    let mut sent = 0;
    for identification in (1..=u16::MAX).cycle() {
        let useless = [
            fragment(identification, 64, false, 64),
            fragment(identification ^ 1, 0, true, 64),
            fragment(identification ^ 1, 56, true, 64),
            fragment(identification ^ 2, 0, true, 4),
            fragment(identification ^ 3, 512, true, 12),
        ];
        useless.iter().for_each(|fragment| injector.send(fragment, remote));
        sent += useless.len() as u64;
        let due = begun + Duration::from_secs(sent) / a_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if Instant::now() >= until {
            break;
        }
    }
    sent
}

/// The largest pings there are, as fast as they come back: a datagram kept for every sixtieth would show. All that may
/// grow is how many of the buffers have ever been used, which depends on how much there was to do at once.
#[test]
fn the_largest_pings_leave_memory_where_it_was() {
    for io in ["uring", "syscalls"] {
        let scene = Scene::alone(1);
        let gateway = serve_without_limits(&scene, &Setup { io, workers: 1 });
        let ping = |arguments: &str| scene.ping(0, &format!("-q -f -s 65000 {arguments} {}", scene.remote(0)));
        let idle = resident_bytes(&gateway);
        ping("-c 600");
        let before = resident_bytes(&gateway);
        let pings = ping(&format!("-w {}", load_time().as_secs()));
        let after = resident_bytes(&gateway);
        let ended = gateway.stop();
        println!(
            "{io}: {idle} bytes resident when idle, {before} before, {after} after\n{}\n{}",
            pings.text, ended.printed
        );
        assert!(ended.total("replies delivered") > 1000, "{}", ended.printed);
        let buffers = Sizes::for_mtu(1500).mapped_bytes() as u64;
        assert!(
            after <= idle + buffers + (1 << 20),
            "{io}: {idle} bytes became {before}, and {after}; buffers: {buffers}"
        );
    }
}

fn resident_bytes(gateway: &Echogate) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.packets_id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
