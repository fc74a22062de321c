//! Errors about proxied echoes: from a router further on, from the gateway's own kernel, and none where none are wanted.

use echogate::lab::{GATEWAY_OUTSIDE, LabOptions};
use echogate::wire::ipv4::Ipv4;

use crate::ear::Ear;
use crate::process::Echogate;
use crate::scene::{Pings, Scene, Setup, nft, run, wait_until};
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(
    traceroute_shows_every_hop_by_its_own_address,
    a_ping_that_expires_says_where,
    a_path_mtu_is_found,
    a_packet_too_large_for_the_gateways_own_link_is_told_what_fits,
    a_router_and_the_gateways_own_kernel_say_unreachable,
    no_error_about_a_reply_on_its_way_to_the_client_leaves,
);

and_at_ingress!(
    traceroute_shows_every_hop_by_its_own_address,
    a_ping_that_expires_says_where,
    a_path_mtu_is_found,
    no_error_about_a_reply_on_its_way_to_the_client_leaves,
);

fn behind_a_router() -> Scene {
    Scene::with(&LabOptions { clients: 2, remotes: 3, routers: 1, ..LabOptions::default() })
}

/// RFC 5508 REQ-4: the outer source is the router's, and traceroute knows its own probe in the quote.
fn traceroute_shows_every_hop_by_its_own_address(setup: &Setup) {
    let scene = behind_a_router();
    let _gateway = scene.serve(setup);
    let remote = scene.remote(0);
    let text = run(scene.client(0), &format!("traceroute -I -n -q 3 -w 10 -m 5 {remote}"));
    let hops: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|line| {
            line.split_whitespace()
                .skip(1)
                .filter(|word| word.contains('.') && word.matches('.').count() == 3)
                .collect()
        })
        .collect();
    assert_eq!(hops, [["10.66.0.1"], ["198.18.0.254"], ["198.18.1.2"]], "{text}");
    assert!(!text.contains('*'), "a probe was lost: {text}");
}

fn a_ping_that_expires_says_where(setup: &Setup) {
    let scene = behind_a_router();
    let gateway = scene.serve(setup);
    for (ttl, hop) in [(1, "10.66.0.1"), (2, "198.18.0.254")] {
        let pings = scene.ping(0, &format!("-c 1 -W 10 -t {ttl} {}", scene.remote(0)));
        assert!(pings.text.contains(&format!("From {hop} icmp_seq=1 Time to live exceeded")), "{}", pings.text);
    }
    let pings = scene.pings(0, 1, scene.remote(0), "-t 3");
    assert!(pings.all_came_back(1), "{}", pings.text);
    let totals = gateway.stop();
    assert_eq!(totals.total("errors passed on"), 1, "the first hop's is the kernel's own");
}

fn a_path_mtu_is_found(setup: &Setup) {
    let scene = behind_a_router();
    let _gateway = scene.serve(setup);
    run(&scene.lab().routers()[0], "ip link set far mtu 1400");
    // Unprivileged ping leaves it to the kernel to believe the error, which then knows the path's MTU.
    let pings = scene.ping(0, &format!("-c 1 -W 10 -M do -s 1372 {}", scene.remote(0)));
    assert!(pings.all_came_back(1), "1,400 bytes pass: {}", pings.text);
    let pings = scene.ping(0, &format!("-c 1 -W 10 -M do -s 1373 {}", scene.remote(0)));
    assert!(pings.text.contains("From 198.18.0.254 icmp_seq=1 Frag needed and DF set (mtu = 1400)"), "{}", pings.text);
    let route = run(scene.client(0), &format!("ip route get {}", scene.remote(0)));
    assert!(route.contains("mtu 1400"), "the client's kernel took the error for its own: {route}");
    let route = run(scene.gateway(), &format!("ip route get {}", scene.remote(0)));
    assert!(!route.contains("mtu"), "the gateway's host did not: {route}");
}

/// RFC 4787 REQ-13: the send fails (EMSGSIZE), and the error is the gateway's own.
fn a_packet_too_large_for_the_gateways_own_link_is_told_what_fits(setup: &Setup) {
    let scene = behind_a_router();
    let gateway = scene.serve(setup);
    run(scene.gateway(), "ip link set wan mtu 1400");
    let remote = scene.remote(0);
    let pings = scene.ping(0, &format!("-c 1 -W 10 -M do -s 1373 {remote}"));
    assert!(pings.text.contains("From 198.18.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1400)"), "{}", pings.text);
    let pings = scene.pings(1, 3, remote, "-M do -s 1372");
    assert!(pings.all_came_back(3), "{}", pings.text);
    let totals = gateway.stop();
    assert_eq!((totals.total("send_outside_emsgsize"), totals.total("errors sent to clients")), (1, 1));
}

fn a_router_and_the_gateways_own_kernel_say_unreachable(setup: &Setup) {
    let scene = behind_a_router();
    let gateway = scene.serve(setup);
    run(&scene.lab().routers()[0], "ip route add unreachable 203.0.113.0/24");
    let says = |pings: Pings, what: &str| assert!(pings.text.contains(what), "{what}: {}", pings.text);
    says(scene.ping(0, "-c 1 -W 10 203.0.113.7"), "From 198.18.0.254 icmp_seq=1 Destination Host Unreachable");
    // Nobody has this address on the gateway's own link: its kernel says so, to itself, when no neighbour answers.
    says(scene.ping(0, "-c 1 -W 10 198.18.0.77"), "From 198.18.0.1 icmp_seq=1 Destination Host Unreachable");
    // Where the gateway has no route at all, the send itself fails, and the error is the gateway's own.
    run(scene.gateway(), "ip route del default");
    says(scene.ping(0, "-c 1 -W 10 203.0.113.7"), "From 198.18.0.1 icmp_seq=1 Destination Net Unreachable");
    // A prohibited route looks as a broadcast does, and there is no error about a broadcast (RFC 1122, section 3.2.2).
    run(scene.gateway(), "ip route add prohibit 203.0.113.128/25");
    for nobody in ["203.0.113.200", "-b 198.18.0.255"] {
        let pings = scene.ping(0, &format!("-c 1 -W 1 {nobody}"));
        assert!(!pings.text.contains("From"), "{}", pings.text);
    }
    let totals = gateway.stop();
    assert_eq!((totals.total("errors passed on"), totals.total("errors sent to clients")), (2, 1));
    assert_eq!((totals.total("send_outside_enetunreach"), totals.total("send_outside_eacces")), (1, 1));
}

/// A client beside those that are diverted: errors about the replies that the masquerade brings it are translated, and are for
/// the remote to hear.
#[test]
fn what_is_said_about_a_masqueraded_reply_still_leaves() {
    let scene = Scene::new(2);
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    nft(
        scene.gateway(),
        "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }; }",
    );
    let arguments = "--clients 10.66.0.0/24 --outside 198.18.0.1 --workers 1 --divert g1";
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let client = Ear::at(scene.client(0), scene.client_address(0));
    let remote = Ear::at(scene.internet(), scene.remote(0));
    client.ask(scene.remote(0), 7, 1, b"first");
    let asked = remote.next();
    assert_eq!(asked.source, GATEWAY_OUTSIDE);
    let route = format!("{}/32", scene.client_address(0));
    run(scene.gateway(), &format!("ip route del {route} && ip route add unreachable {route}"));
    remote.reply(GATEWAY_OUTSIDE, asked.ident, 1, b"first");
    let said = Ipv4::check(remote.packet()).expect("an IPv4 packet");
    assert_eq!((said.source(), said.payload()[0]), (GATEWAY_OUTSIDE, 3));
    assert_eq!(said.payload()[8 + 16..8 + 20], GATEWAY_OUTSIDE.octets(), "to whom the quoted reply was sent");
    assert_eq!(gateway.stop().total("from inside"), 0);
}

/// The client has no route any more when its reply comes: the kernel tells the remote, which knows nothing of clients.
fn no_error_about_a_reply_on_its_way_to_the_client_leaves(setup: &Setup) {
    let scene = Scene::new(1);
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    let gateway = scene.serve(setup);
    let client = Ear::at(scene.client(0), scene.client_address(0));
    let remote = Ear::at(scene.internet(), scene.remote(0));
    client.ask(scene.remote(0), 7, 1, b"first");
    let asked = remote.next();
    let route = format!("{}/32", scene.client_address(0));
    run(scene.gateway(), &format!("ip route del {route} && ip route add unreachable {route}"));
    remote.reply(GATEWAY_OUTSIDE, asked.ident, 1, b"first");
    let complaints = || run(scene.gateway(), "cat /proc/net/snmp").contains("OutType3");
    wait_until("the gateway's kernel complains", complaints);
    run(scene.gateway(), &format!("ip route del unreachable {route} && ip route add {route} dev g0"));
    client.ask(scene.remote(0), 7, 2, b"second");
    assert_eq!(remote.next().sequence, 2, "the next that the remote hears");
    assert_eq!(gateway.stop().total("replies delivered"), 1, "as far as the device");
}

#[test]
fn where_errors_are_not_wanted_none_comes() {
    let scene = behind_a_router();
    let mut arguments = scene.arguments(&Setup { io: "uring", workers: 1 });
    arguments.extend(["--icmp-errors".to_owned(), "off".to_owned()]);
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let text = run(scene.client(0), &format!("traceroute -I -n -q 1 -w 1 -m 3 {}", scene.remote(0)));
    let unknown = text.lines().nth(2).is_some_and(|line| line.ends_with('*'));
    assert!(unknown && text.contains("198.18.1.2"), "{text}");
    assert_eq!(gateway.stop().total("errors passed on"), 0);
}
