use std::io::Read;

use super::firewall::Passage;
use super::*;
use crate::host::divert::Divert;
use crate::host::netlink::{MAIN_TABLE, Route, Rule};
use crate::host::scene::{
    CLIENT, ECHO_REPLY, ECHO_REQUEST, OUTSIDE, REMOTE, Scene, Tun, hear, message, packet, settings, write,
};
use crate::host::{default_source, nft};

fn plan() -> Plan {
    let mut divert = settings();
    divert.interfaces = vec!["g0".to_owned()];
    Plan {
        device: divert.device.clone(),
        clients: divert.clients.clone(),
        outside: vec![OUTSIDE],
        divert: Some(divert),
        icmp_errors: true,
    }
}

fn not_ok(findings: &[Finding]) -> Vec<(&'static str, Status, bool)> {
    let bad = findings.iter().filter(|finding| finding.status != Status::Ok);
    bad.map(|finding| (finding.name, finding.status, finding.fatal)).collect()
}

/// What is found on a host that was fine before `spoil`, apart from the machine's own matters.
fn found_after(spoil: impl FnOnce(&mut Plan) + Send) -> Vec<Finding> {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let mut plan = plan();
        spoil(&mut plan);
        let machine = ["io_uring", "ping sockets"];
        let findings = examine(&plan);
        findings
            .into_iter()
            .filter(|finding| !machine.contains(&finding.name) && finding.status != Status::Ok)
            .collect()
    })
}

/// The one finding, which has a remedy.
fn only(findings: Vec<Finding>) -> Finding {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    let finding = findings.into_iter().next().expect("one");
    assert!(finding.remedy.is_some(), "{finding:?}");
    finding
}

#[test]
fn a_host_as_it_has_to_be_has_nothing_missing() {
    let findings = found_after(|_| ());
    assert_eq!(findings, []);
}

#[test]
fn each_fault_is_found_with_a_remedy() {
    type Spoil = fn(&mut Plan);
    let cases: [(&str, &str, bool, Spoil); 10] = [
        ("forwarding", "off", false, |_| write("/proc/sys/net/ipv4/ip_forward", "0")),
        ("outside", "198.18.0.77 is not an address", true, |plan| plan.outside = vec![Ipv4Addr::new(198, 18, 0, 77)]),
        ("prefixes", "10.66.0.0/24 and 10.66.0.128/25 overlap", true, |plan| {
            plan.clients.push("10.66.0.128/25".parse().expect("a prefix"));
        }),
        ("prefixes", "loopback", true, |plan| plan.clients.push("127.0.0.0/8".parse().expect("a prefix"))),
        ("prefixes", "outside address 198.18.0.1 is among", true, |plan| {
            plan.clients.push("198.18.0.0/15".parse().expect("a prefix"));
        }),
        ("divert", "nope does not exist", false, |plan| {
            plan.divert.as_mut().expect("diverting").interfaces.push("nope".to_owned());
        }),
        ("divert", "own device", true, |plan| {
            plan.divert.as_mut().expect("diverting").interfaces = vec!["echogate0".to_owned()];
        }),
        ("mark and rule", "priority 40000", true, |plan| {
            plan.divert.as_mut().expect("diverting").priority = 40_000;
        }),
        ("mark and rule", "priority 100 (mark 0xec00000/0xff00000)", false, |plan| {
            let divert = plan.divert.as_ref().expect("diverting");
            let rule = Rule {
                priority: 100,
                mark: Some((divert.mark, divert.mask)),
                incoming: None,
                protocol: None,
                table: 999,
            };
            Netlink::open().and_then(|mut netlink| netlink.add_rule(&rule)).expect("rule");
        }),
        ("way out", "no route", false, |_| remove_default_route()),
    ];
    for (name, words, fatal, spoil) in cases {
        let findings = found_after(spoil);
        // A divert interface that is the TUN also does not exist yet.
        let found = findings.iter().find(|finding| finding.name == name && finding.what.contains(words));
        let finding = found.unwrap_or_else(|| panic!("{name}, {words}: {findings:#?}"));
        assert_eq!(finding.fatal, fatal, "{finding:?}");
        assert!(finding.remedy.is_some() || name == "divert", "{finding:?}");
    }
}

fn default_route() -> Route {
    Route { destination: Prefix::ALL, gateway: Some(REMOTE), device: None, table: MAIN_TABLE, source: None }
}

fn remove_default_route() {
    Netlink::open().and_then(|mut netlink| netlink.delete_route(&default_route())).expect("removed");
}

#[test]
fn every_address_as_clients_is_refused() {
    let findings = found_after(|plan| plan.clients = vec![Prefix::ALL]);
    assert!(findings.iter().any(|finding| finding.fatal && finding.what.contains("every address")), "{findings:#?}");
}

#[test]
fn strict_reverse_path_filtering_is_fine_unless_the_way_back_is_elsewhere() {
    let strict = || write("/proc/sys/net/ipv4/conf/all/rp_filter", "1");
    assert_eq!(found_after(|_| strict()), []);
    let finding = only(found_after(|plan| {
        strict();
        plan.clients = vec!["172.16.0.0/12".parse().expect("a prefix")];
        plan.divert.as_mut().expect("diverting").clients.clone_from(&plan.clients);
    }));
    assert_eq!(finding.remedy.as_deref(), Some("sysctl -w net.ipv4.conf.g0.rp_filter=2"));
}

#[test]
fn a_route_that_leads_proxied_requests_into_the_tun_is_fatal() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let plan = plan();
        let _tun = Tun::open(&plan.device);
        let mut netlink = Netlink::open().expect("netlink");
        let device = netlink.link_index(&plan.device.name).expect("asks");
        remove_default_route();
        let into_tun =
            Route { destination: Prefix::ALL, gateway: None, device, table: MAIN_TABLE, source: Some(OUTSIDE) };
        netlink.replace_route(&into_tun).expect("route");
        let findings = examine(&plan);
        let loops = findings.iter().find(|finding| finding.name == "way out").expect("examined");
        assert!(loops.fatal && loops.what.contains("would come back for ever"), "{loops:?}");
    });
}

#[test]
fn the_default_routes_source_is_found_and_its_absence_too() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        assert_eq!(default_source().expect("there is a default route"), OUTSIDE);
        let mut plan = plan();
        plan.outside.clear();
        assert!(examine(&plan).iter().any(|finding| finding.what.contains("198.18.0.1, the default route's source")));
        remove_default_route();
        let error = default_source().expect_err("no default route");
        assert!(error.to_string().contains("no route to the internet"), "{error}");
        assert!(not_ok(&examine(&plan)).contains(&("outside", Status::Missing, true)));
    });
}

#[test]
fn system_files_are_read_as_they_are_written() {
    let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000003000\nCapBnd:\t000001ffffffffff\n";
    assert_eq!(system::effective_capabilities(status), Some(0x3000));
    assert_eq!(system::effective_capabilities("Name:\tx\n"), None);
    assert!(system::includes("0\t2147483647\n", 0));
    assert!(!system::includes("1\t0\n", 0));
    assert!(!system::includes("", 0));
}

/// One ping of the client arrives in the TUN, one reply from the TUN arrives at the client.
fn both_ways(scene: &Scene, tun: &Tun) -> (usize, usize) {
    scene.client_sends(&message(ECHO_REQUEST, 7, 1, 56), REMOTE);
    let there = tun.hear().len();
    let mut ear = scene.client_ear();
    tun.send(&packet(REMOTE, CLIENT, &message(ECHO_REPLY, 7, 1, 56)));
    (there, hear(|buffer| ear.read(buffer)).len())
}

/// Runs the lines of a remedy as they would be typed.
fn obey(finding: &Finding) {
    for line in finding.remedy.as_deref().expect("a remedy").lines() {
        let status = std::process::Command::new("sh").args(["-c", line]).status().expect("sh");
        assert!(status.success(), "{line}");
    }
}

/// Under `rules` the diverted ping is lost; the printed lines, and nothing else, mend it.
fn assert_printed_lines_mend(rules: &str) {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let plan = plan();
        let tun = Tun::open(&plan.device);
        let divert = plan.divert.clone().expect("diverting");
        let _divert = Divert::install(&divert).expect("installs");
        assert_eq!(both_ways(&scene, &tun), (1, 1));
        nft::run(&["-f", "-"], rules).expect("rules");
        assert_eq!(both_ways(&scene, &tun), (0, 0), "{rules}");
        let firewall = |findings: Vec<Finding>| {
            let mut findings = findings;
            findings.retain(|finding| finding.name == "firewall" && finding.status != Status::Ok);
            findings
        };
        let findings = firewall(examine(&plan));
        assert!(!findings.is_empty(), "{rules}");
        findings.iter().for_each(obey);
        assert_eq!(both_ways(&scene, &tun), (1, 1), "{findings:#?}");
        assert_eq!(firewall(examine(&plan)), []);
    });
}

#[test]
fn the_printed_lines_mend_a_forward_policy_of_drop() {
    assert_printed_lines_mend(
        "table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; \
         ct state established,related accept; iifname \"g0\" oifname \"w0\" accept; }; }",
    );
}

#[test]
fn the_printed_lines_mend_a_final_reject_behind_jumps() {
    assert_printed_lines_mend(
        "table inet fw { \
         chain ours { iifname { \"g0\" } oifname \"w0\" accept; limit rate 5/second log; }; \
         chain forward { type filter hook forward priority 10; policy accept; \
         ct state vmap { established : accept, related : accept, invalid : drop }; jump ours; reject; }; }",
    );
}

#[test]
fn the_printed_lines_mend_two_chains_that_both_drop() {
    assert_printed_lines_mend(
        "table ip one { chain a { type filter hook forward priority 0; policy drop; }; }; \
         table inet two { chain b { type filter hook forward priority 1; policy drop; }; }",
    );
}

#[test]
fn at_ingress_a_forward_policy_of_drop_matters_to_replies_only() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let mut plan = plan();
        plan.divert.as_mut().expect("diverting").by = DivertBy::Ingress;
        let findings = examine(&plan);
        assert!(
            findings.iter().any(|finding| finding.name == "ingress" && finding.status == Status::Ok),
            "{findings:#?}"
        );
        assert!(findings.iter().all(|finding| finding.name != "mark and rule"), "{findings:#?}");
        let rules = "table ip fw { chain forward { type filter hook forward priority 0; policy drop; \
            iifname \"echogate0\" accept; }; }";
        nft::run(&["-f", "-"], rules).expect("rules");
        let firewall = |plan: &Plan| {
            let findings = examine(plan);
            findings.into_iter().filter(|finding| finding.name == "firewall" && finding.status != Status::Ok).count()
        };
        assert_eq!(firewall(&plan), 0);
        plan.divert.as_mut().expect("diverting").by = DivertBy::Route;
        assert_eq!(firewall(&plan), 1);
    });
}

/// The verdicts on a rule set, in a namespace that is good for nothing else: (chain's place, lines).
fn judged(rules: &str) -> Vec<(Status, String)> {
    let namespace = crate::sys::namespace::new_network().expect("run the tests as root");
    let passages = [
        Passage::into_tun(Some("g0"), "echogate0", Some(CLIENT), REMOTE),
        Passage::out_of_tun("echogate0", Some("g0"), REMOTE, Some(CLIENT)),
        Passage::leaving(Some("w0"), Some(OUTSIDE), REMOTE),
        Passage::returning(Some("w0"), REMOTE, Some(OUTSIDE)),
    ];
    let findings = crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&namespace), || {
        nft::run(&["-f", "-"], rules).expect("rules");
        firewall::examine(&passages)
    });
    let mut findings = findings.expect("entered");
    findings.retain(|finding| finding.status != Status::Ok);
    findings.into_iter().map(|finding| (finding.status, finding.remedy.expect("lines"))).collect()
}

#[test]
fn accepting_rules_are_recognised_in_many_forms() {
    let forward = "type filter hook forward priority 0; policy drop;";
    for rules in [
        "iifname { g0, g1 } accept; iifname echogate0 accept",
        "iifname \"g*\" accept; iifname \"echogate*\" ip daddr 10.0.0.0/8 accept",
        "meta l4proto icmp accept",
        "ip protocol icmp counter accept",
        "icmp type { echo-request, echo-reply } log accept",
        "ct state untracked accept",
        "ct state { established, untracked } accept",
        "ip saddr 10.66.0.0-10.66.0.255 accept; ip daddr 10.66.0.2 accept",
        "iifname != { w0, w1 } accept",
        "tcp dport 22 drop; ip6 saddr ::/0 drop; ip saddr 203.0.113.0/24 drop; accept",
        "iifname vmap { g0 : accept, echogate0 : accept }",
        "ct state invalid drop; ct state new drop; accept",
    ] {
        let table = format!("table inet t {{ chain c {{ {forward} {rules}; }}; }}");
        assert_eq!(judged(&table), [], "{rules}");
    }
}

#[test]
fn rules_that_do_not_accept_are_not_taken_for_accepting() {
    let forward = "type filter hook forward priority 0; policy drop;";
    for rules in [
        "iifname g0 oifname w0 accept",
        "ct state established,related accept",
        "tcp dport 22 accept",
        "icmp type echo-request drop; icmp type echo-reply drop; accept",
        "ip saddr 203.0.113.0/24 accept",
        "iifname != { g0, echogate0 } accept",
    ] {
        let table = format!("table inet t {{ chain c {{ {forward} {rules}; }}; }}");
        let findings = judged(&table);
        let both = "nft insert rule inet t c iifname \"g0\" oifname \"echogate0\" icmp type echo-request accept\n\
                    nft insert rule inet t c iifname \"echogate0\" oifname \"g0\" icmp type echo-reply accept";
        assert_eq!(findings, [(Status::Missing, both.to_owned())], "{rules}");
    }
}

#[test]
fn errors_need_lines_of_their_own() {
    let namespace = crate::sys::namespace::new_network().expect("run the tests as root");
    let back = [
        Passage::out_of_tun("echogate0", Some("g0"), REMOTE, Some(CLIENT)),
        Passage::returning(Some("w0"), REMOTE, Some(OUTSIDE)),
    ];
    assert!(back.iter().all(Passage::is_of_replies));
    let passages: Vec<_> = back.iter().flat_map(|way| firewall::ERRORS.map(|kind| way.as_error(kind))).collect();
    let remedies = |rules: &str| {
        let findings = crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&namespace), || {
            nft::run(&["-f", "-"], &format!("flush ruleset; {rules}")).expect("rules");
            firewall::examine(&passages)
        });
        let findings = findings.expect("entered").into_iter().filter(|finding| finding.status == Status::Missing);
        findings.map(|finding| finding.remedy.expect("lines")).collect::<Vec<_>>()
    };
    let types = "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept";
    let chain = |hook: &str, rules: &str| {
        format!("table inet t {{ chain c {{ type filter hook {hook} priority 0; policy drop; {rules}; }}; }}")
    };
    assert_eq!(remedies(&chain("input", "ct state established,related accept")), [""; 0]);
    assert_eq!(remedies(&chain("input", "icmp type echo-reply accept")), [format!("nft insert rule inet t c {types}")]);
    let forward = format!("nft insert rule inet t c iifname \"echogate0\" oifname \"g0\" {types}");
    for rules in ["icmp type echo-reply accept", "icmp type time-exceeded accept", "ct state related accept"] {
        assert_eq!(remedies(&chain("forward", rules)), [forward.as_str()], "{rules}");
    }
    assert_eq!(remedies(&chain("forward", types)), [""; 0]);
}

#[test]
fn fragments_need_a_line_of_their_own() {
    let namespace = crate::sys::namespace::new_network().expect("run the tests as root");
    let fragments = [Passage::into_tun(Some("g0"), "echogate0", Some(CLIENT), REMOTE).as_fragments()];
    let line = "nft insert rule inet t c iifname \"g0\" oifname \"echogate0\" ip protocol icmp 'ip frag-off & 0x1fff != 0' accept";
    for (rules, lines) in [
        ("icmp type echo-request accept", line),
        ("ip frag-off & 0x3fff == 0 accept", line),
        ("ip frag-off & 0x1fff != 0 accept", ""),
        ("meta l4proto icmp accept", ""),
        ("ip frag-off & 0x3fff == 0 drop; accept", ""),
    ] {
        let table =
            format!("table inet t {{ chain c {{ type filter hook forward priority 0; policy drop; {rules}; }}; }}");
        let findings = crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&namespace), || {
            nft::run(&["-f", "-"], &format!("flush ruleset; {table}")).expect("rules");
            firewall::examine(&fragments)
        });
        let missing = findings.expect("entered").into_iter().filter(|finding| finding.status == Status::Missing);
        let told: String = missing.map(|finding| finding.remedy.expect("lines")).collect();
        assert_eq!(told, lines, "{rules}");
    }
}

#[test]
fn what_is_not_understood_makes_a_warning() {
    let table = "table ip t { set s { type ipv4_addr; flags interval; }; chain c { \
                 type filter hook forward priority 0; policy drop; ip saddr @s accept; ip daddr @s accept; }; }";
    let findings = judged(table);
    assert!(matches!(&findings[..], [(Status::Warning, lines)] if lines.lines().count() == 2), "{findings:?}");
}

#[test]
fn input_and_output_are_looked_at_as_tracked() {
    let stateful = "table inet t { \
        chain in { type filter hook input priority 0; policy drop; ct state established,related accept; }; \
        chain out { type filter hook output priority 0; policy drop; ct state new accept; }; }";
    assert_eq!(judged(stateful), []);
    let closed = "table ip t { \
        chain in { type filter hook input priority 0; policy drop; iifname lo accept; }; \
        chain out { type filter hook output priority 0; policy drop; oifname lo accept; }; \
        chain pre { type filter hook prerouting priority 0; policy drop; }; }; \
        table ip6 t { chain in { type filter hook input priority 0; policy drop; }; }";
    let lines: Vec<String> = judged(closed).into_iter().map(|(_, lines)| lines).collect();
    let expected = [
        "nft insert rule ip t in icmp type echo-reply accept",
        "nft insert rule ip t out icmp type echo-request accept",
    ];
    assert_eq!(lines, expected);
}
