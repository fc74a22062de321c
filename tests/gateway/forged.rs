//! Errors that somebody outside made up: dropped by name, and nobody is worse off.

use std::thread;

use echogate::control::Stats;
use echogate::lab::GATEWAY_OUTSIDE;
use echogate::lab::forger::{self, Forgery};

use crate::hostile::{Dropped, LINK_FROM_OUTSIDE};
use crate::in_every_setup;
use crate::restarts::setting;
use crate::scene::{Scene, Setup, run};

/// After its last requests ping does not wait for long: it sends so many more.
const NOT_AWAITED: u32 = 20;

in_every_setup!(forged_errors_are_dropped_by_name_and_change_nothing);

/// RFC 5508 REQ-6; RFC 1191: the path's MTU is not a stranger's to set. Two clients ping meanwhile.
///
/// What queues of the kernel's have thrown away on the way to the gateway is not counted by it; of a flood as small as a test's
/// they throw nothing away.
#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn forged_errors_are_dropped_by_name_and_change_nothing(setup: &Setup) {
    let of_each_kind = u64::from(setting("ECHOGATE_HOSTILE_FORGERIES", 400));
    let rate = setting("ECHOGATE_HOSTILE_RATE", 2000);
    let count = of_each_kind * Forgery::ALL.len() as u64;
    // A hundred a second, as long as the flood lasts.
    let of_each_client = u32::try_from(count * 100 / u64::from(rate)).expect("not for so long").max(80);
    let scene = Scene::alone(2);
    let gateway = scene.serve(setup);
    let remote = scene.remote(0);
    let before = Dropped::so_far(&scene);
    let flood =
        || forger::flood(scene.internet(), &Forgery::ALL, GATEWAY_OUTSIDE, remote, rate, count).expect("it floods");
    let (flooded, pings) = thread::scope(|scope| {
        let [one, other] = [0, 1].map(|client| {
            let scene = &scene;
            scope.spawn(move || {
                scene.ping(client, &format!("-c {} -i 0.01 -W 10 {remote}", of_each_client + NOT_AWAITED))
            })
        });
        let flooded = flood();
        (flooded, [one, other].map(|pings| pings.join().expect("ping ends")))
    });
    assert_eq!((flooded.sent, flooded.refused), (count, 0));
    let answer = gateway.ask(&["stats", "--json"]);
    let stats = Stats::read(serde_json::from_slice(&answer.stdout).expect("an object")).expect("all its members");
    let on_the_link = Dropped::so_far(&scene).since(&before, &LINK_FROM_OUTSIDE);
    let lost_before_us = on_the_link + stats.socket_drops.outside;
    let pings_lost =
        pings.iter().map(|pings| u64::from(of_each_client - pings.received_of_first(of_each_client))).sum::<u64>();
    println!(
        "{of_each_kind} forged errors of each kind, {} workers on {}: thrown away before the gateway {lost_before_us}, lost {pings_lost} \
         of {} pings",
        setup.workers,
        setup.io,
        2 * of_each_client
    );
    assert!(pings_lost <= lost_before_us, "{} {}", pings[0].text, pings[1].text);
    for pings in &pings {
        assert!(pings.is_flawless(), "{}", pings.text);
    }
    // And after the flood as before it.
    assert!(scene.pings(0, 3, remote, "-M do -s 1472").all_came_back(3));
    let route = run(scene.gateway(), &format!("ip route get {remote}"));
    assert!(!route.contains("mtu"), "a path's MTU has moved: {route}");

    let totals = gateway.stop();
    let mut missing = 0;
    for name in ["error_unmatched", "error_checksum", "error_quote"] {
        let kinds = Forgery::ALL.iter().filter(|kind| kind.drop() == name).count() as u64;
        let (sent, counted) = (kinds * of_each_kind, totals.total(name));
        assert!(counted <= sent, "{name}: {}", totals.printed);
        missing += sent - counted;
    }
    assert!(missing <= lost_before_us, "{missing} of them are under no name: {}", totals.printed);
    let (asked, delivered) = (u64::from(2 * (of_each_client + NOT_AWAITED) + 3), totals.total("replies delivered"));
    assert!((asked - lost_before_us.min(asked)..=asked).contains(&delivered), "{}", totals.printed);
    assert_eq!(totals.total("errors passed on"), 0, "{}", totals.printed);
    assert_eq!(totals.total("errors sent to clients"), 0, "no answer to what must not be answered");
    assert_eq!(totals.total("mappings at most"), 3, "{}", totals.printed);
}
