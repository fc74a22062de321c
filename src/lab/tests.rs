//! The lab's own guarantees. All of them take root (or a user namespace) and fail without.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use super::load::{self, LoadOptions, LoadReport};
use super::*;

/// How long a reply may take on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(5);

const NEEDS_ROOT: &str = "the lab's tests take root: run them as root or in a user namespace (unshare -Urn)";

fn lab(options: LabOptions) -> Lab {
    Lab::build(&options).expect(NEEDS_ROOT)
}

fn some_echoes(echoes: u64) -> LoadOptions {
    LoadOptions { duration: Duration::from_secs(30), echoes_per_client: Some(echoes), ..LoadOptions::default() }
}

/// All of them are under way together: those that wait in vain do so at one time, and the others have as long to come back. Not more
/// than the kernel's queues take, should nobody empty them for a while.
fn all_at_once(echoes: usize) -> LoadOptions {
    assert!(echoes <= 100, "{echoes}");
    LoadOptions { window: echoes, reply_timeout: PATIENCE, ..some_echoes(echoes as u64) }
}

fn load(lab: &Lab, options: &LoadOptions) -> LoadReport {
    load::run(lab.clients(), lab.remotes(), options, |_| ControlFlow::Continue(())).expect("the load runs")
}

/// Adds a chain with this type and hook, and one rule.
fn nft(namespace: &Namespace, hook: &str, rule: &str) {
    let rules = format!("table ip lab {{\n chain lab {{\n type {hook};\n {rule}\n }}\n}}\n");
    let status = namespace.run(|| {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        nft.stdin.take().expect("piped").write_all(rules.as_bytes())?;
        nft.wait()
    });
    let status = status.expect(NEEDS_ROOT).expect("the tests take nft: apt-get install nftables");
    assert!(status.success(), "nft refused {rules}");
}

fn assert_all_came_back(report: &LoadReport, sent: u64) {
    assert_eq!((report.sent, report.received, report.lost), (sent, sent, 0), "{report:?}");
    assert_eq!((report.wrong_client, report.altered, report.stray, report.no_reply), (0, 0, 0, 0));
    assert_eq!(report.round_trip.count(), sent);
    assert!(report.round_trip.max() > Duration::ZERO && report.echoes_per_second() > 0);
}

#[test]
fn plain_routing_brings_every_echo_back_and_both_sides_count_the_same() {
    let lab = lab(LabOptions { clients: 3, remotes: 2, ..LabOptions::default() });
    lab.route_back().expect("the route is added");
    let report = load(&lab, &LoadOptions { idents: 2, payload_len: 1472, ..some_echoes(500) });
    assert_all_came_back(&report, 1500);
    let counted = responder::counters(lab.internet()).expect("counters");
    assert_eq!((counted.requests_in, counted.replies_out, counted.checksum_errors), (1500, 1500, 0));
}

#[test]
fn without_a_translation_no_echo_is_answered() {
    let lab = lab(LabOptions::default());
    let options = LoadOptions { reply_timeout: Duration::from_millis(200), ..some_echoes(10) };
    let report = load(&lab, &options);
    assert_eq!((report.sent, report.received, report.lost), (20, 0, 20));
    assert_eq!(report.losses.moments().map(|(_, count)| count).sum::<u64>(), 20, "each has its time");
    assert_eq!(responder::counters(lab.internet()).expect("counters").requests_in, 20);
}

#[test]
fn the_kernels_masquerade_answers_through_routers_too() {
    // One client: when two ask one remote under one ident at the same moment, conntrack may drop the packet that comes second.
    for routers in [1, 3] {
        let lab = lab(LabOptions { clients: 1, remotes: 3, routers, rp_filter: 1, ..LabOptions::default() });
        nft(lab.gateway(), "nat hook postrouting priority srcnat", "oifname wan masquerade");
        assert_all_came_back(&load(&lab, &some_echoes(300)), 300);
    }
}

#[test]
fn a_client_of_many_addresses_pings_from_each_and_every_reply_is_its_own() {
    let lab = lab(LabOptions { clients: 2, remotes: 4, addresses: 2500, ..LabOptions::default() });
    lab.route_back().expect("the route is added");
    let addresses: std::collections::BTreeSet<_> = lab.clients().iter().flat_map(|client| &client.addresses).collect();
    assert_eq!(addresses.len(), 5000);
    let prefixes = lab.client_prefixes();
    assert!(addresses.iter().all(|address| prefixes.iter().any(|prefix| prefix.contains(**address))));
    let options = LoadOptions { one_remote_an_ident: true, first_sequence: 65_500, ..some_echoes(5100) };
    assert_all_came_back(&load(&lab, &options), 10_200);
}

/// nft rewrites bytes of the replies on their way: checksums are mended by the kernel, so only the payload tells.
#[test]
fn altered_replies_are_counted_and_are_not_received() {
    let lab = lab(LabOptions { clients: 1, ..LabOptions::default() });
    lab.route_back().expect("the route is added");
    // Every fourth reply gets another seventh and eighth payload byte (bit 112: the header has 64).
    let rule = "iifname wan icmp type echo-reply icmp sequence & 3 == 0 @th,112,16 set 0xabcd";
    nft(lab.gateway(), "filter hook forward priority 0", rule);
    let report = load(&lab, &all_at_once(80));
    assert_eq!((report.sent, report.received, report.altered, report.lost), (80, 60, 20, 20), "{report:?}");
    assert_eq!(report.losses.moments().map(|(_, count)| count).sum::<u64>(), 20, "{report:?}");
}

/// The clients' idents, sequences and remote are equal: only the payload says that a reply is another client's.
#[test]
fn another_clients_replies_are_counted_as_such() {
    let lab = lab(LabOptions::default());
    let (first, second) = (lab.clients()[0].address, lab.clients()[1].address);
    lab.route_back().expect("the route is added");
    let stolen = format!("iifname wan icmp type echo-reply icmp sequence & 1 == 0 ip daddr {first}");
    nft(lab.gateway(), "filter hook prerouting priority raw", &format!("{stolen} ip daddr set {second}"));
    let report = load(&lab, &all_at_once(60));
    assert_eq!((report.sent, report.received), (120, 90), "{report:?}");
    assert_eq!((report.wrong_client, report.lost, report.altered), (30, 30, 0), "{report:?}");
}

#[test]
fn sequences_wrap_around() {
    let lab = lab(LabOptions { clients: 1, ..LabOptions::default() });
    lab.route_back().expect("the route is added");
    assert_all_came_back(&load(&lab, &LoadOptions { window: 64, ..some_echoes(70_000) }), 70_000);
}

#[test]
fn a_paced_load_keeps_its_rate() {
    let lab = lab(LabOptions::default());
    lab.route_back().expect("the route is added");
    let options = LoadOptions { rate: Some(200), window: 100, reply_timeout: PATIENCE, ..some_echoes(100) };
    let report = load(&lab, &options);
    assert_eq!((report.sent, report.received, report.lost), (200, 200, 0), "{report:?}");
    // None leaves before it is due. How late one may leave is the machine's; most do when they are due.
    assert!(report.elapsed >= Duration::from_millis(900), "{report:?}");
    assert!(report.schedule_error.quantile(0.5) < Duration::from_millis(100), "{report:?}");
}

#[test]
fn a_watcher_can_end_the_load() {
    let lab = lab(LabOptions { clients: 1, ..LabOptions::default() });
    lab.route_back().expect("the route is added");
    let begun = Instant::now();
    let options = LoadOptions { duration: Duration::from_secs(60), ..LoadOptions::default() };
    let report = load::run(lab.clients(), lab.remotes(), &options, |progress| {
        if progress.received > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(report.expect("the load runs").received > 0);
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn sizes_out_of_range_are_refused_with_their_limits() {
    for (clients, remotes) in [(0, 1), (CLIENTS_MAX + 1, 1), (1, 0), (1, REMOTES_MAX + 1)] {
        let error = Lab::build(&LabOptions { clients, remotes, ..LabOptions::default() }).expect_err("out of range");
        assert!(error.to_string().contains("1 to 200"), "{error}");
    }
}

#[test]
fn the_largest_address_plan_has_no_address_twice() {
    let clients: Vec<_> = (0..CLIENTS_MAX).map(client_address).collect();
    let remotes: Vec<_> = (0..REMOTES_MAX).map(remote_address).collect();
    assert!(clients.is_sorted() && clients.last() < Some(&Ipv4Addr::new(10, 66, 0, 255)));
    assert!(remotes.is_sorted() && remotes.last() < Some(&router_address(0)));
}

/// A veth's end vanishes with the namespace that the other end is in: that is how to see, from outside, that a
/// namespace without a name is gone.
const PROBE: &str = "probe";

fn plant_probes(observer: &Namespace, lab: &Lab) -> Vec<String> {
    let mut hosts = vec![lab.gateway(), lab.internet()];
    hosts.extend(lab.routers());
    hosts.extend(lab.clients().iter().map(|client| &client.namespace));
    let planted = observer.configure(|netlink| {
        let mut names = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let name = format!("{PROBE}{number}");
            netlink.add_veth(&name, PROBE, host.as_fd())?;
            names.push(name);
        }
        Ok(names)
    });
    planted.expect(NEEDS_ROOT)
}

fn present(observer: &Namespace, names: &[String]) -> usize {
    let count = observer.configure(|netlink| {
        names.iter().try_fold(0, |count, name| Ok(count + usize::from(netlink.link_index(name)?.is_some())))
    });
    count.expect("devices can be listed")
}

/// The kernel takes namespaces down in the background.
fn wait_until_gone(observer: &Namespace, names: &[String]) {
    let begun = Instant::now();
    while present(observer, names) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} of {names:?} are still there", present(observer, names));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_dropped_lab_is_gone() {
    let observer = Namespace::new("observer").expect(NEEDS_ROOT);
    let lab = lab(LabOptions { routers: 1, ..LabOptions::default() });
    let probes = plant_probes(&observer, &lab);
    // What runs inside ends with it: a socket that is left open would hold its namespace.
    load(&lab, &LoadOptions { reply_timeout: Duration::from_millis(50), ..some_echoes(1) });
    assert_eq!(present(&observer, &probes), 5);
    drop(lab);
    wait_until_gone(&observer, &probes);
}

#[test]
fn a_socket_opened_inside_belongs_to_the_inside() {
    let lab = lab(LabOptions::default());
    let socket = lab.gateway().run(|| UdpSocket::bind((GATEWAY_OUTSIDE, 0))).expect(NEEDS_ROOT);
    assert_eq!(socket.expect("the gateway's address is there").local_addr().expect("bound").ip(), GATEWAY_OUTSIDE);
    assert!(lab.internet().run(|| UdpSocket::bind((GATEWAY_OUTSIDE, 0))).expect(NEEDS_ROOT).is_err());
}

/// Both roles in one test: run by the harness it starts itself as a child that builds a lab, and kills that child.
#[test]
fn a_killed_process_leaves_nothing() {
    const CHILD: &str = "ECHOGATE_TEST_LAB_CHILD";
    let this_test = "lab::tests::a_killed_process_leaves_nothing";
    if env::var_os(CHILD).is_some() {
        let lab = lab(LabOptions::default());
        let observer = Namespace::of_this_thread("observer").expect("has one");
        println!("\nplanted {}", plant_probes(&observer, &lab).join(" "));
        thread::sleep(Duration::from_secs(60));
        panic!("nobody killed this process");
    }
    let observer = Namespace::new("observer").expect(NEEDS_ROOT);
    let mut child = observer
        .run(|| {
            Command::new(env::current_exe().expect("has a path"))
                .args(["--exact", this_test, "--nocapture"])
                .env(CHILD, "1")
                .stdout(Stdio::piped())
                .spawn()
        })
        .expect(NEEDS_ROOT)
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let planted = lines.find_map(|line| line.strip_prefix("planted ").map(str::to_owned)).expect("the child builds");
    let probes: Vec<String> = planted.split(' ').map(str::to_owned).collect();
    assert_eq!(present(&observer, &probes), 4);
    child.kill().expect("SIGKILL is sent");
    child.wait().expect("it ends");
    wait_until_gone(&observer, &probes);
}
