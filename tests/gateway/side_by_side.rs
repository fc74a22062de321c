//! Two gateways behind a router with a group of next hops (docs/operations.md), and what the death of one costs.
//!
//! The lab's gateway is the router here. Two of its clients' hosts are nodes, each with a gateway, an outside address of its own
//! and one cable, by which all goes in and out.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use crate::process::Echogate;
use crate::scene::{Scene, run};

const NODES: [usize; 2] = [2, 3];
const PINGERS: [usize; 2] = [0, 1];

/// Pings of each flow, and between two of them.
const PINGS: u32 = 200;
const INTERVAL_MS: u32 = 20;

/// Until whoever watches the node has taken it out of the group.
const NOTICED: Duration = Duration::from_millis(300);

fn outside(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(node).expect("few nodes"))
}

/// Makes the nodes and the router's way by them.
fn build() -> Scene {
    let scene = Scene::alone(4);
    let router = scene.gateway();
    run(router, "sysctl -qw net.ipv4.fib_multipath_hash_policy=0 net.ipv4.conf.all.rp_filter=0");
    run(scene.internet(), "ip route add 198.51.100.0/24 via 198.18.0.1");
    for (number, node) in NODES.into_iter().enumerate() {
        let (inside, interface) = (scene.client_address(node), &scene.lab().clients()[node].interface);
        run(scene.client(node), "sysctl -qw net.ipv4.ip_forward=1");
        run(scene.client(node), &format!("ip address add {}/32 dev lo", outside(node)));
        run(router, &format!("sysctl -qw net.ipv4.conf.{interface}.rp_filter=0"));
        run(router, &format!("ip route add {}/32 via {inside} dev {interface} onlink", outside(node)));
        run(router, &format!("ip nexthop add id {} via {inside} dev {interface} onlink", number + 1));
    }
    run(router, "ip nexthop add id 10 group 1/2 type resilient buckets 128 idle_timer 60");
    run(router, "ip route add default nhid 10 table 100");
    for pinger in PINGERS {
        let interface = &scene.lab().clients()[pinger].interface;
        run(router, &format!("ip rule add iif {interface} table 100"));
    }
    scene
}

fn serve(scene: &Scene, node: usize) -> Echogate {
    let device = run(scene.client(node), "ip -o route show default").split(' ').nth(4).expect("a device").to_owned();
    let mut line = format!("--divert {device} --outside {} --workers 1", outside(node));
    for pinger in PINGERS {
        line += &format!(" --clients {}/32", scene.client_address(pinger));
    }
    Echogate::serve(scene.client(node), &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

/// The node that the router sends pings of this client to this remote to.
fn node_of(scene: &Scene, pinger: usize, remote: Ipv4Addr) -> usize {
    let interface = &scene.lab().clients()[pinger].interface;
    let way =
        run(scene.gateway(), &format!("ip route get {remote} from {} iif {interface}", scene.client_address(pinger)));
    let by = |node: &usize| way.contains(&format!("dev {} ", scene.lab().clients()[*node].interface));
    NODES.into_iter().find(by).unwrap_or_else(|| panic!("by none of the nodes: {way}"))
}

#[test]
fn two_gateways_behind_a_nexthop_group_and_one_dies() {
    let scene = build();
    let [first, second] = NODES.map(|node| serve(&scene, node));
    let flows: Vec<(usize, Ipv4Addr)> = PINGERS
        .into_iter()
        .flat_map(|pinger| scene.lab().remotes().iter().map(move |remote| (pinger, *remote)))
        .collect();
    let nodes: Vec<usize> = flows.iter().map(|(pinger, remote)| node_of(&scene, *pinger, *remote)).collect();
    // Which way the hash sends whom is by chance: the one dies that somebody uses.
    let dying = nodes[0];
    let (dying_gateway, surviving_gateway) = if dying == NODES[0] { (first, second) } else { (second, first) };
    let pings: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = flows
            .iter()
            .map(|&(pinger, remote)| {
                let scene = &scene;
                let arguments = format!("-c {PINGS} -i 0.0{INTERVAL_MS} {remote}");
                scope.spawn(move || scene.ping_to_the_last(pinger, &arguments))
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        drop(dying_gateway.killed());
        run(scene.client(dying), "ip route del default; ip route add blackhole default");
        thread::sleep(NOTICED);
        let survivor = if dying == NODES[0] { 2 } else { 1 };
        let group = format!("ip nexthop replace id 10 group {survivor} type resilient buckets 128 idle_timer 60");
        run(scene.gateway(), &group);
        running.into_iter().map(|running| running.join().expect("it pings")).collect()
    });
    let mut lost_by_dying = Vec::new();
    for (node, pings) in nodes.iter().zip(&pings) {
        let lost = PINGS - pings.received();
        if *node == dying {
            lost_by_dying.push(lost);
            // From the death to the change of the group, and some for a machine with more to do.
            assert!((1..PINGS / 2).contains(&lost), "{}", pings.text);
        } else {
            assert_eq!(lost, 0, "its node has not died: {}", pings.text);
        }
        assert!(pings.text.contains(&format!("icmp_seq={PINGS} ")), "it goes on by the other node: {}", pings.text);
    }
    println!(
        "{} of {} flows by the node that died, each lost (of {PINGS} pings, one in {INTERVAL_MS} ms, noticed after {} ms): {lost_by_dying:?}; the others none",
        lost_by_dying.len(),
        flows.len(),
        NOTICED.as_millis(),
    );
    surviving_gateway.stop();
}
