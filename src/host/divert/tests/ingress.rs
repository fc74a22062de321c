//! What only a diversion at ingress does. What both do alike is in the tests of both.

use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::mpsc;

use socket2::{Domain, Protocol, Socket, Type};
use tun_tap::{Iface, Mode};

use super::*;
use crate::checksum;
use crate::sys::namespace::run_in;

/// Outside, by way of [`REMOTE`].
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn by_ingress() -> DivertSettings {
    DivertSettings { by: DivertBy::Ingress, ..settings() }
}

fn ip(line: &str) {
    let ended = Command::new("ip").args(line.split(' ')).status();
    assert!(ended.expect("iproute2 is installed: apt-get install iproute2").success(), "ip {line}");
}

/// In the namespace of the scene's client.
fn at_client(scene: &Scene, work: impl FnOnce() + Send) {
    run_in(scene.client.as_fd(), work).expect("entered before");
}

/// Sends a packet with its own header, by a route of the calling thread's namespace.
fn send_whole(packet: &[u8], to: Ipv4Addr) {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("root");
    socket.send_to(packet, &SocketAddrV4::new(to, 0).into()).expect("sends");
}

/// Runs `test` at a gateway that diverts at ingress, by settings that `change` has changed, and ends the diversion.
fn while_diverting(change: impl FnOnce(&mut DivertSettings) + Send, test: impl FnOnce(&Scene, &Tun) + Send) {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let mut settings = by_ingress();
        change(&mut settings);
        let tun = Tun::open(&settings.device);
        let divert = Divert::install(&settings).expect("installs");
        test(&scene, &tun);
        divert.remove().expect("removes");
    });
}

/// As [`while_diverting`], from a device `own` of the test's, behind which the clients of 10.67.0.0/24 are; `test` is given what
/// writes a frame to it and tells what comes to the TUN then.
fn while_diverting_from_own(mode: Mode, test: impl FnOnce(&dyn Fn(&[u8]) -> Vec<Vec<u8>>) + Send) {
    let of_own = |settings: &mut DivertSettings| {
        settings.interfaces = vec!["own".to_owned()];
        settings.clients.push("10.67.0.0/24".parse().expect("a prefix"));
    };
    while_diverting(of_own, |_, tun| {
        let own = Iface::without_packet_info("own", mode).expect("root");
        if mode == Mode::Tap {
            ip("link set own address 02:00:00:00:00:01");
        }
        ip("address add 10.67.0.1/24 dev own");
        ip("link set own up");
        within_a_second("the table with the device", || is_bound("own"));
        test(&|frame| {
            own.send(frame).expect("writes");
            tun.hear()
        });
    });
}

/// A client behind the test's own device.
const ON_OWN: Ipv4Addr = Ipv4Addr::new(10, 67, 0, 2);

fn ping() -> Vec<u8> {
    message(ECHO_REQUEST, 7, 1, 56)
}

fn nothing() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Whether the ingress chain is bound to this device.
fn is_bound(device: &str) -> bool {
    let listed = nft::run(&["list", "table", "netdev", "echogate"], "").unwrap_or_default();
    listed.lines().any(|line| line.contains("hook ingress") && line.contains(device))
}

#[test]
fn neither_rule_nor_route_nor_mark_is_made() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = by_ingress();
        let tun = Tun::open(&settings.device);
        let mut netlink = Netlink::open().expect("netlink");
        let rules = netlink.rules().expect("lists");
        let divert = Divert::install(&settings).expect("installs");
        assert_diverted(&scene, &tun);
        assert_eq!(netlink.rules().expect("lists"), rules);
        assert_eq!(netlink.routes(settings.table).expect("lists"), []);
        let listed = nft::run(&["list", "ruleset"], "").expect("nft");
        assert!(!listed.contains("mark"), "{listed}");
        divert.remove().expect("removes");
    });
}

#[test]
fn a_request_without_a_hop_left_takes_the_kernels_path_and_its_sender_is_told() {
    while_diverting(
        |_| {},
        |scene, tun| {
            let ear = scene.client_ear();
            let mut last = packet(CLIENT, REMOTE, &ping());
            last[8] = 1;
            at_client(scene, || send_whole(&last, REMOTE));
            assert_eq!(tun.hear(), nothing());
            let heard = hear(|buffer| (&ear).read(buffer));
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert_eq!((addresses(&heard[0]), &heard[0][20..22]), ((INSIDE, CLIENT), &[11, 0][..]));
        },
    );
}

#[test]
fn what_a_device_overhears_is_not_diverted() {
    while_diverting(
        |_| {},
        |scene, tun| {
            assert_diverted(scene, tun);
            at_client(scene, || ip("neigh replace 10.66.0.1 lladdr 02:00:00:00:00:99 dev c0 nud permanent"));
            scene.client_sends(&ping(), REMOTE);
            assert_eq!(tun.hear(), nothing());
        },
    );
}

#[test]
fn what_is_for_a_network_as_a_whole_is_not_diverted() {
    while_diverting(
        |_| {},
        |scene, tun| {
            assert_diverted(scene, tun);
            scene.client_sends(&ping(), Ipv4Addr::new(198, 18, 0, 255));
            assert_eq!(tun.hear(), nothing());
        },
    );
}

#[test]
fn who_is_no_client_is_not_diverted() {
    while_diverting(
        |_| {},
        |scene, tun| {
            assert_diverted(scene, tun);
            ip("route add 10.77.0.0/24 dev g0");
            let foreign = packet(Ipv4Addr::new(10, 77, 0, 2), REMOTE, &ping());
            at_client(scene, || send_whole(&foreign, REMOTE));
            assert_eq!(tun.hear(), nothing());
        },
    );
}

/// The place of the kernel's reverse-path check, which comes later.
#[test]
fn who_writes_with_the_address_of_a_client_of_another_interface_is_not_diverted() {
    let from_outside_too = |settings: &mut DivertSettings| settings.interfaces.push("w0".to_owned());
    while_diverting(from_outside_too, |scene, tun| {
        let forged = packet(CLIENT, FAR, &ping());
        run_in(scene.remote.as_fd(), || {
            ip("route add 203.0.113.0/24 via 198.18.0.1");
            send_whole(&forged, FAR);
        })
        .expect("entered before");
        assert_eq!(tun.hear(), nothing());
        scene.client_sends(&ping(), FAR);
        assert_eq!(tun.hear().len(), 1, "the client itself");
    });
}

#[test]
fn what_is_routed_out_of_no_outside_interface_is_not_diverted() {
    for (outside, diverted) in [("elsewhere", 0), ("w0", 1)] {
        let by_it = |settings: &mut DivertSettings| settings.outside = vec![outside.to_owned()];
        while_diverting(by_it, |scene, tun| {
            scene.client_sends(&ping(), REMOTE);
            assert_eq!(tun.hear().len(), diverted, "{outside}");
        });
    }
}

/// Its network's own device takes the tag off, and comes after ingress.
#[test]
fn a_frame_with_a_tag_is_not_diverted() {
    while_diverting_from_own(Mode::Tap, |write| {
        let ends = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let request = packet(ON_OWN, REMOTE, &ping());
        let tagged = |tag: &[u8]| write(&[&ends[..], tag, &[8, 0], &request[..]].concat());
        assert_eq!(tagged(&[]).len(), 1, "one without a tag");
        assert_eq!(tagged(&[0x81, 0, 0, 5]), nothing());
        assert_eq!(tagged(&[0x88, 0xa8, 0, 5]), nothing());
    });
}

/// A device without link headers, as WireGuard's. Of what the kernel would refuse a damaged header comes: the proxy refuses it
/// (`header_checksum`). Impossible lengths do not.
#[test]
fn from_a_device_without_a_link_header_packets_come_as_they_are() {
    while_diverting_from_own(Mode::Tun, |write| {
        let sends = |spoil: fn(&mut [u8])| {
            let mut spoilt = packet(ON_OWN, REMOTE, &ping());
            spoil(&mut spoilt);
            write(&spoilt)
        };
        let sound = sends(|_| {});
        assert_eq!(sound.len(), 1, "{sound:?}");
        assert_eq!((sound[0][8], &sound[0][20..]), (63, &ping()[..]));
        assert_eq!(checksum::sum(&sound[0][..20]), 0xffff);
        let damaged = sends(|packet| packet[10] ^= 0x55);
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert_ne!(checksum::sum(&damaged[0][..20]), 0xffff, "still seen to be damaged");
        assert_eq!(sends(|packet| packet[0] = 0x43), nothing(), "a header shorter than any");
        assert_eq!(sends(|packet| packet[2] = 0x40), nothing(), "a total length beyond the packet");
        assert_eq!(sends(|packet| packet[3] = 0x10), nothing(), "a total length below the header's");
    });
}

#[test]
fn the_hosts_forward_chain_is_passed_by_on_the_way_in() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let rules = "table ip fw { chain forward { type filter hook forward priority 0; policy drop; \
            iifname \"echogate0\" accept; }; }";
        nft::run(&["-f", "-"], rules).expect("rules");
        let settings = by_ingress();
        let tun = Tun::open(&settings.device);
        let _divert = Divert::install(&settings).expect("installs");
        assert_diverted(&scene, &tun);
        assert_replies_arrive(&scene, &tun);
    });
}

#[test]
fn an_interface_that_goes_and_comes_again_is_diverted_from_again() {
    while_diverting(
        |_| {},
        |scene, tun| {
            assert_diverted(scene, tun);
            ip("link del g0");
            within_a_second("a table without the device", || !is_bound("g0"));
            let mut netlink = Netlink::open().expect("netlink");
            netlink.add_veth("g0", "c0", scene.client.as_fd()).expect("veth");
            ip("address add 10.66.0.1/24 dev g0");
            ip("link set g0 up");
            at_client(scene, || {
                ip("address add 10.66.0.2/24 dev c0");
                ip("link set c0 up");
                ip("route add default via 10.66.0.1");
            });
            within_a_second("the table with the device", || is_bound("g0"));
            assert_diverted(scene, tun);
        },
    );
}

#[test]
fn one_that_comes_later_is_diverted_from_then() {
    let from_late = |settings: &mut DivertSettings| settings.interfaces = vec!["late".to_owned()];
    while_diverting(from_late, |scene, tun| {
        scene.client_sends(&ping(), REMOTE);
        assert_eq!(tun.hear(), nothing());
        ip("link set g0 down");
        ip("link set g0 name late");
        ip("link set late up");
        within_a_second("the table with the device", || is_bound("late"));
        assert_diverted(scene, tun);
    });
}

#[test]
fn while_the_tun_is_down_requests_take_the_kernels_path() {
    while_diverting(
        |_| {},
        |scene, tun| {
            let ear = scene.remote_ear();
            ip("link set echogate0 down");
            within_a_second("no ingress chain", || !is_bound("g0"));
            scene.client_sends(&ping(), REMOTE);
            assert_eq!(hear(|buffer| (&ear).read(buffer)).len(), 1, "forwarded");
            ip("link set echogate0 up");
            within_a_second("the ingress chain", || is_bound("g0"));
            assert_diverted(scene, tun);
        },
    );
}

#[test]
fn a_killed_predecessors_way_of_diverting_gives_way_to_the_other() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let by_route = settings();
        let tun = Tun::open(&by_route.device);
        let before = state();
        for (first, second) in [(by_route.clone(), by_ingress()), (by_ingress(), by_route)] {
            let mut killed = with_plain_table(&first);
            killed.mend().expect("installs");
            std::mem::forget(killed);
            let divert = Divert::install(&second).expect("installs over it");
            assert_diverted(&scene, &tun);
            assert_eq!(is_bound("g0"), second.by == DivertBy::Ingress);
            divert.remove().expect("removes");
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn a_table_that_is_left_is_taken_up_as_it_is_and_changed_into_the_other_way() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let by_route = settings();
        let tun = Tun::open(&by_route.device);
        let before = state();
        let take_up = |settings: &DivertSettings, left| {
            let (sender, told) = mpsc::channel();
            let divert = Divert::take_up(settings, left, move |ownership| drop(sender.send(ownership)));
            (divert.expect("takes it up"), told.try_iter().last().expect("told"))
        };
        let (divert, first) = take_up(&by_ingress(), None);
        divert.leave().expect("leaves");
        let stamp = first.stamp.clone();
        assert_diverted(&scene, &tun);
        let (divert, same) = take_up(&by_ingress(), Some(first));
        assert_eq!(same.stamp, stamp, "not a new one");
        divert.leave().expect("leaves");
        let (divert, other) = take_up(&by_route, Some(same));
        assert_ne!(other.stamp, stamp);
        assert!(!is_bound("g0"));
        assert_diverted(&scene, &tun);
        divert.leave().expect("leaves");
        let (divert, _) = take_up(&by_ingress(), Some(other));
        assert!(is_bound("g0"));
        assert_diverted(&scene, &tun);
        divert.remove().expect("removes");
        assert_eq!(state(), before);
    });
}

#[test]
fn what_a_killed_gateway_has_left_is_cleared() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = by_ingress();
        let _tun = Tun::open(&settings.device);
        let before = state();
        std::mem::forget(with_plain_table(&settings));
        assert_ne!(state(), before);
        Divert::clear(&settings).expect("clears");
        assert_eq!(state(), before);
    });
}
