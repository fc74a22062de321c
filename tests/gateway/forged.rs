//! Errors that somebody outside made up: dropped by name, and nobody is worse off.

use std::thread;

use echogate::lab::GATEWAY_OUTSIDE;
use echogate::lab::forger::{self, Forgery};

use crate::in_every_setup;
use crate::scene::{Scene, Setup, run};

in_every_setup!(forged_errors_are_dropped_by_name_and_change_nothing);

/// RFC 5508 REQ-6; RFC 1191: the path's MTU is not a stranger's to set. Two clients ping meanwhile.
fn forged_errors_are_dropped_by_name_and_change_nothing(setup: &Setup) {
    const OF_EACH_KIND: u64 = 400;
    let scene = Scene::alone(2);
    let gateway = scene.serve(setup);
    let remote = scene.remote(0);
    let flood = || {
        let count = OF_EACH_KIND * Forgery::ALL.len() as u64;
        forger::flood(scene.internet(), &Forgery::ALL, GATEWAY_OUTSIDE, remote, 2000, count).expect("it floods")
    };
    let (flooded, pings) = thread::scope(|scope| {
        let [one, other] = [0, 1].map(|client| {
            let scene = &scene;
            scope.spawn(move || scene.ping(client, &format!("-c 80 -i 0.01 -W 10 {remote}")))
        });
        let flooded = flood();
        (flooded, [one, other].map(|pings| pings.join().expect("ping ends")))
    });
    assert_eq!((flooded.sent, flooded.refused), (OF_EACH_KIND * Forgery::ALL.len() as u64, 0));
    for pings in &pings {
        assert!(pings.all_came_back(80), "{}", pings.text);
    }
    // And after the flood as before it.
    assert!(scene.pings(0, 3, remote, "-M do -s 1472").all_came_back(3));
    let route = run(scene.gateway(), &format!("ip route get {remote}"));
    assert!(!route.contains("mtu"), "a path's MTU has moved: {route}");

    let totals = gateway.stop();
    for name in ["error_unmatched", "error_checksum", "error_quote"] {
        let kinds = Forgery::ALL.iter().filter(|kind| kind.drop() == name).count() as u64;
        assert_eq!(totals.total(name), kinds * OF_EACH_KIND, "{name}: {}", totals.printed);
    }
    assert_eq!((totals.total("replies delivered"), totals.total("errors passed on")), (163, 0), "{}", totals.printed);
    assert_eq!(totals.total("errors sent to clients"), 0, "no answer to what must not be answered");
    assert_eq!(totals.total("mappings at most"), 3, "{}", totals.printed);
}
