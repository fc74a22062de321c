//! What the owner of a VPN server asks of it before and after its clients can ping: one body, two set-ups.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use echogate::wire::icmpv4::EchoKind;

use crate::ear::{Ear, Heard};
use crate::exchange::{Exchange, answer, question, resolver_of_clients, udp};
use crate::scene::{PATIENCE, SERVER_OUTSIDE, Said, Scene, Setup, run, wait_until};

/// What the clients' systems call every ping: one always does, the other's pings are process 1 of their containers.
const IDENT: u16 = 1;

#[test]
fn the_acceptance_list_holds_for_a_server_that_embeds_echogate() {
    the_acceptance_list(Setup::Embedded);
}

#[test]
fn the_acceptance_list_holds_for_stock_wireguard_in_front_of_echogate() {
    the_acceptance_list(Setup::Stock);
}

fn the_acceptance_list(setup: Setup) {
    let without = Scene::new(setup, false);
    both_clients_ping_two_hosts_with_equal_idents(&without);
    assert!(without.masqueraded() > 0, "the counter counts");
    let exchanged = Exchange::of(&without);
    let said_without = without.stop();

    let scene = Scene::new(setup, true);
    both_clients_ping_two_hosts_with_equal_idents(&scene);
    assert_eq!(Exchange::of(&scene), exchanged);
    if setup == Setup::Embedded {
        a_slow_resolver_stalls_nobody(&scene);
    }
    a_client_that_floods_does_not_hurt_the_other(&scene);
    {
        // From here on the test answers for the internet.
        scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
        one_that_uses_anothers_address_is_refused(&scene);
        broadcast_and_multicast_are_dropped_without_a_word(&scene);
        forged_and_second_replies_go_nowhere(&scene);
    }
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "0")]).expect("a sysctl of the lab");
    both_clients_ping_two_hosts_with_equal_idents(&scene);
    assert_eq!(scene.masqueraded(), 0, "a ping was masqueraded: it did not leave by Echogate");
    let said = scene.stop();
    only_lines_about_icmp_are_new(&said_without, &said);
}

fn both_clients_ping_two_hosts_with_equal_idents(scene: &Scene) {
    thread::scope(|scope| {
        for client in 0..2 {
            scope.spawn(move || (0..2).for_each(|remote| assert_pings(scene, client, remote)));
        }
    });
}

/// After its last request ping waits for two round trips or its interval, whichever is longer: the long interval is the
/// patience of a machine with more to do.
fn assert_pings(scene: &Scene, client: usize, remote: usize) {
    let line = format!("ping -e {IDENT} -c 3 -l 3 -i 10 -W 10 {}", scene.remote(remote));
    let printed = run(scene.client(client), &line);
    assert!(printed.contains("3 packets transmitted, 3 received, 0% packet loss"), "{printed}");
    assert!(!["DUP!", "wrong data", "errors", "CHECKSUM"].iter().any(|flaw| printed.contains(flaw)), "{printed}");
}

fn a_slow_resolver_stalls_nobody(scene: &Scene) {
    let resolver = udp(scene.internet(), scene.remote(0), 53);
    let asker = udp(scene.client(0), scene.inside(0), 0);
    for id in 0..50 {
        asker.send_to(&question(id), resolver_of_clients(scene)).expect("sends");
    }
    let mut buffer = [0; 2048];
    let first = resolver.recv_from(&mut buffer).expect("the query arrives");
    // It has them all and is silent.
    assert_pings(scene, 0, 1);
    assert_pings(scene, 1, 1);
    let (length, peer) = first;
    resolver.send_to(&answer(&buffer[..length]), peer).expect("answers");
    let (length, _) = asker.recv_from(&mut buffer).expect("and the answer still arrives");
    assert_eq!(buffer[..length], answer(&question(0)));
}

/// The one floods as fast as answers come, by a long way more than its share; the other's pings all come back.
fn a_client_that_floods_does_not_hurt_the_other(scene: &Scene) {
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let line = format!("ping -e {IDENT} -f -l 50 -q -w 4 {}; true", scene.remote(0));
            run(scene.client(0), &line)
        });
        // For its last replies ping has little patience: those that count have three seconds.
        let printed = run(scene.client(1), &format!("ping -e {IDENT} -c 40 -i 0.15 -W 10 {}", scene.remote(0)));
        for sequence in 1..=20 {
            assert!(printed.contains(&format!("icmp_seq={sequence} ttl=")), "{sequence} did not come back: {printed}");
        }
        let flooded = flood.join().expect("the flood is sent");
        assert!(!flooded.contains(" 0 received"), "{flooded}");
    });
}

fn one_that_uses_anothers_address_is_refused(scene: &Scene) {
    let (own, anothers) = (scene.inside(0), scene.inside(1));
    run(scene.client(0), &format!("ip address add {anothers}/32 dev lo"));
    let [honest, forger] = [own, anothers].map(|address| Ear::at(scene.client(0), address));
    let remote = Ear::at(scene.internet(), scene.remote(0));
    forger.ask(scene.remote(0), IDENT, 100);
    honest.ask(scene.remote(0), IDENT, 101);
    let arrived = remote.next();
    assert_eq!((arrived.source, arrived.sequence), (SERVER_OUTSIDE, 101), "the forged one came first");
    run(scene.client(0), &format!("ip address del {anothers}/32 dev lo"));
}

fn broadcast_and_multicast_are_dropped_without_a_word(scene: &Scene) {
    let said = scene.said();
    let client = Ear::at(scene.client(0), scene.inside(0));
    // Hears whatever arrives there, for whichever address.
    let internet = Ear::at(scene.internet(), Ipv4Addr::UNSPECIFIED);
    let datagrams = udp(scene.client(0), scene.inside(0), 0);
    datagrams.set_broadcast(true).expect("may broadcast");
    for nobody in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 255, 255, 250)] {
        client.ask(nobody, IDENT, 200);
        datagrams.send_to(b"is anybody there?", (nobody, 5353)).expect("sends");
    }
    client.ask(scene.remote(0), IDENT, 201);
    let arrived = internet.next();
    assert_eq!((arrived.destination, arrived.sequence), (scene.remote(0), 201), "another came first");
    assert_eq!(scene.said(), said, "they were worth a line");
}

fn forged_and_second_replies_go_nowhere(scene: &Scene) {
    let [first, second] = [0, 1].map(|number| Ear::at(scene.client(number), scene.inside(number)));
    // One hears for its own address only, so each remote has its own.
    let [remote, other] = [0, 1].map(|number| Ear::at(scene.internet(), scene.remote(number)));
    let asked = ask(&first, &remote, scene.remote(0), 300);
    let asked_too = ask(&second, &remote, scene.remote(0), 300);
    assert_ne!(asked.ident, asked_too.ident, "equal idents inside are two outside");

    remote.reply(SERVER_OUTSIDE, asked.ident, 301);
    other.reply(SERVER_OUTSIDE, asked.ident, 300);
    other.reply(SERVER_OUTSIDE, asked_too.ident, 300);
    for _ in 0..2 {
        remote.reply(SERVER_OUTSIDE, asked.ident, 300);
        remote.reply(SERVER_OUTSIDE, asked_too.ident, 300);
    }
    for (client, ear) in [&first, &second].into_iter().enumerate() {
        assert_eq!(ear.next(), heard(scene, client, 300));
    }
    // The next that each hears is the next that it asked for.
    for (client, ear) in [&first, &second].into_iter().enumerate() {
        let marker = ask(ear, &remote, scene.remote(0), 302);
        remote.reply(SERVER_OUTSIDE, marker.ident, 302);
        assert_eq!(ear.next(), heard(scene, client, 302));
    }
}

/// A client asks; the request as it reaches the remote.
fn ask(client: &Ear, remote: &Ear, address: Ipv4Addr, sequence: u16) -> Heard {
    client.ask(address, IDENT, sequence);
    let arrived = remote.next();
    assert_eq!((arrived.kind, arrived.source, arrived.sequence), (EchoKind::Request, SERVER_OUTSIDE, sequence));
    arrived
}

/// The first remote's reply as a client must hear it.
fn heard(scene: &Scene, client: usize, sequence: u16) -> Heard {
    let (source, destination) = (scene.remote(0), scene.inside(client));
    Heard { kind: EchoKind::Reply, source, destination, ident: IDENT, sequence }
}

fn only_lines_about_icmp_are_new(without: &Said, with: &Said) {
    let before = lines(&without.server.complaints);
    let after = lines(&with.server.complaints);
    let new: Vec<_> = after.difference(&before).collect();
    assert!(new.iter().all(|line| line.contains("ping")), "{new:#?}");
    assert!(before.is_subset(&after), "{before:#?} {after:#?}");
    if let Some(gateway) = &with.gateway {
        // All that it says is about pings, and none of that is trouble.
        assert!(!["WARN", "ERROR"].iter().any(|level| gateway.complaints.contains(level)), "{}", gateway.complaints);
    }
}

/// The lines of a log without their time. What was dropped is a list of names: those differ, the line does not.
fn lines(log: &str) -> BTreeSet<String> {
    let without_time = |line: &str| line.split_once("  INFO ").map_or(line, |(_, text)| text).to_owned();
    let without_names = |line: String| line.split(" dropped: ").next().unwrap_or_default().to_owned();
    log.lines().map(without_time).map(without_names).collect()
}

#[test]
fn a_late_reply_goes_nowhere_in_a_server_that_embeds_echogate() {
    a_late_reply_goes_nowhere(&Scene::with_flags(Setup::Embedded, &["--echo-timeout", "1"]));
}

#[test]
fn a_late_reply_goes_nowhere_behind_stock_wireguard() {
    a_late_reply_goes_nowhere(&Scene::with_flags(Setup::Stock, &["--echo-timeout", "1s"]));
}

fn a_late_reply_goes_nowhere(scene: &Scene) {
    scene.internet().sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("a sysctl of the lab");
    let client = Ear::at(scene.client(0), scene.inside(0));
    let remote = Ear::at(scene.internet(), scene.remote(0));
    let asked = ask(&client, &remote, scene.remote(0), 1);
    // Twice what it may take, and some more for the clock's grain.
    thread::sleep(Duration::from_secs(3));
    remote.reply(SERVER_OUTSIDE, asked.ident, asked.sequence);
    // What is asked and answered at once is in time, sooner or later also on a machine that has much else to do.
    let mut sequence = 1;
    wait_until("a reply in time", || {
        sequence += 1;
        let marker = ask(&client, &remote, scene.remote(0), sequence);
        remote.reply(SERVER_OUTSIDE, marker.ident, sequence);
        client.next_within(PATIENCE / 30).is_some_and(|first| {
            assert!(first.sequence > 1, "the late reply was delivered");
            true
        })
    });
}

#[test]
fn stock_wireguard_may_be_made_anew_under_a_running_gateway() {
    let mut scene = Scene::new(Setup::Stock, true);
    both_clients_ping_two_hosts_with_equal_idents(&scene);
    scene.make_wireguard_anew();
    both_clients_ping_two_hosts_with_equal_idents(&scene);
    assert_eq!(scene.masqueraded(), 0, "a ping was masqueraded: it did not leave by Echogate");
}
