//! Who may be pinged, by whom, and by which way: what the configuration says, in a whole gateway.

use echogate::lab::GATEWAY_OUTSIDE;

use crate::ear::Ear;
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, run};

in_every_setup!(a_denied_remote_is_not_reached_and_the_client_is_told);

/// Echo requests that the hosts of the internet have received.
fn received_outside(scene: &Scene) -> u64 {
    let text = run(scene.internet(), "cat /proc/net/snmp");
    let mut icmp = text.lines().filter_map(|line| line.strip_prefix("Icmp: ")).map(|line| line.split_whitespace());
    let (names, values) = (icmp.next().expect("names"), icmp.next().expect("values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == "InEchos").expect("counts echoes");
    value.parse().expect("a number")
}

fn serve(scene: &Scene, setup: &Setup, more: &str) -> Echogate {
    let mut arguments = scene.arguments(setup);
    arguments.extend(more.split(' ').map(str::to_owned));
    Echogate::serve(scene.gateway(), &arguments)
}

/// RFC 5508 REQ-8, RFC 6888 REQ-6; of overlapping prefixes the longest decides.
fn a_denied_remote_is_not_reached_and_the_client_is_told(setup: &Setup) {
    let scene = Scene::new(2);
    let [open, closed, also_closed] = [0, 1, 2].map(|number| scene.remote(number));
    let gateway = serve(&scene, setup, &format!("--deny 198.18.0.0/24 --allow {open}"));
    assert!(scene.pings(0, 3, open, "").all_came_back(3));
    let before = received_outside(&scene);
    for (client, remote) in [(0, closed), (1, also_closed)] {
        let pings = scene.ping(client, &format!("-c 1 -W 10 {remote}"));
        assert!(pings.text.contains("From 198.18.0.1 icmp_seq=1 Packet filtered"), "{}", pings.text);
    }
    // Of nobody that can be pinged: dropped without a word.
    let pings = scene.ping(0, "-c 1 -W 1 240.0.0.1");
    assert!(!pings.text.contains("From"), "{}", pings.text);
    assert_eq!(received_outside(&scene), before);
    let totals = gateway.stop();
    let counted = ["remote_denied", "requests refused", "errors sent to clients"].map(|name| totals.total(name));
    assert_eq!(counted, [2, 2, 2]);
}

/// Not of those that are served, refused or lost, nor of one that answers nobody.
/// RFC 6888 REQ-12.
#[test]
fn no_level_of_logging_names_a_client_or_a_remote() {
    let scene = Scene::new(1);
    let [open, closed] = [0, 1].map(|number| scene.remote(number));
    let setup = Setup { io: "uring", workers: 2 };
    let gateway = serve(&scene, &setup, &format!("--deny {closed} --log trace"));
    assert!(scene.pings(0, 3, open, "").all_came_back(3));
    scene.ping(0, &format!("-c 1 -W 10 {closed}"));
    let remote = Ear::at(scene.internet(), open);
    remote.reply(GATEWAY_OUTSIDE, 1, 1, b"that nobody asked for");
    assert!(scene.pings(0, 3, open, "").all_came_back(3));
    let ended = gateway.stop();
    assert!(ended.complaints.contains("SIGTERM received"), "this is the log: {}", ended.complaints);
    let client = scene.client_address(0);
    for address in [client, open, closed] {
        assert!(!ended.complaints.contains(&format!("{address}")), "{address}: {}", ended.complaints);
    }
}

/// What is routed out of another interface than those that lead outside is not the gateway's business.
/// RFC 6888 REQ-6.
#[test]
fn what_is_routed_elsewhere_stays_on_the_kernels_path() {
    let scene = Scene::new(2);
    let setup = Setup { io: "uring", workers: 1 };
    // A network of the host's own, behind a third interface; its host answers whoever asks.
    run(
        scene.gateway(),
        "ip link add lan type veth peer name far && ip address add 192.168.9.1/24 dev lan && ip link set lan up && ip link set far up",
    );
    run(
        scene.gateway(),
        "nft add table ip t '{ chain c { type filter hook forward priority 0; oifname lan counter; }; }'",
    );
    let forwarded = || run(scene.gateway(), "nft list chain ip t c").contains("packets 2 ");
    let gateway = serve(&scene, &setup, "--outside-device wan");
    assert!(scene.pings(0, 3, scene.remote(0), "").all_came_back(3));
    scene.ping(0, "-c 2 -i 0.1 -W 1 192.168.9.7");
    assert!(forwarded(), "the forward chain has seen them: {}", run(scene.gateway(), "nft list chain ip t c"));
    assert_eq!(gateway.stop().total("from inside"), 3);
}

/// A client that writes with another's address, which the host routes back by another interface.
#[test]
fn a_request_with_the_address_of_a_client_elsewhere_is_not_taken() {
    let scene = Scene::new(2);
    let setup = Setup { io: "uring", workers: 1 };
    let gateway = scene.serve(&setup);
    scene.assert_pings("before");
    let stolen = scene.client_address(1);
    run(scene.client(0), &format!("ip address add {stolen}/32 dev lo"));
    let pings = scene.ping(0, &format!("-c 2 -i 0.1 -W 1 -I {stolen} {}", scene.remote(0)));
    assert!(!pings.all_came_back(2), "{}", pings.text);
    let totals = gateway.stop();
    assert_eq!((totals.total("from inside"), totals.total("to outside")), (3, 3));
}
