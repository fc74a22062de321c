//! The main job: pings come back, each to the client that asked.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use echogate::lab::LabOptions;
use echogate::lab::load::{self, LoadOptions};

use crate::ear::Ear;
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup};

in_every_setup!(
    a_ping_loses_nothing_and_after_sigterm_the_host_is_as_before,
    two_clients_with_equal_idents_get_their_own_replies_from_every_remote,
    echoes_by_the_hundred_thousand_reach_the_client_that_asked_unaltered,
    a_client_that_floods_is_held_to_its_share_and_costs_the_others_nothing,
    it_works_under_every_reverse_path_filter,
);

fn a_ping_loses_nothing_and_after_sigterm_the_host_is_as_before(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    scene.assert_no_ping("without a gateway");
    let gateway = scene.serve(setup);
    let pings = scene.ping(0, "-c 3 198.18.0.2");
    assert!(pings.all_came_back(3), "{}", pings.text);
    assert_ne!(scene.state(), before, "a running gateway shows");
    let ended = gateway.stop();
    assert_eq!(scene.state(), before);
    assert_eq!((ended.total("from inside"), ended.total("replies delivered")), (3, 3), "{}", ended.printed);
}

fn two_clients_with_equal_idents_get_their_own_replies_from_every_remote(setup: &Setup) {
    let scene = Scene::new(2);
    let gateway = scene.serve(setup);
    thread::scope(|scope| {
        for client in 0..2 {
            let scene = &scene;
            scope.spawn(move || {
                for remote in scene.lab().remotes() {
                    // Each client's payload has a pattern of its own, which ping checks in every reply.
                    let pings = scene.pings(client, 50, *remote, &format!("-e 1 -p {client}a"));
                    assert!(pings.all_came_back(50), "client {client}: {}", pings.text);
                }
            });
        }
    });
    let ended = gateway.stop();
    assert_eq!((ended.total("from inside"), ended.total("replies delivered")), (300, 300), "{}", ended.printed);
    assert_eq!(ended.total("mappings at most"), 2, "one for each client and ident: {}", ended.printed);
}

fn echoes_by_the_hundred_thousand_reach_the_client_that_asked_unaltered(setup: &Setup) {
    const ECHOES: u64 = 50_000;
    let scene = Scene::new(2);
    let arguments = [scene.arguments(setup), ["--limits", "off"].map(str::to_owned).to_vec()].concat();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let options = LoadOptions {
        duration: Duration::from_secs(60),
        echoes_per_client: Some(ECHOES),
        window: 32,
        ..LoadOptions::default()
    };
    let lab = scene.lab();
    let report = load::run(lab.clients(), lab.remotes(), &options, |_| ControlFlow::Continue(())).expect("it runs");
    let ended = gateway.stop();
    assert_eq!(report.sent, 2 * ECHOES);
    assert_eq!((report.wrong_client, report.altered, report.no_reply), (0, 0, 0), "{report:?}");
    assert!(report.lost <= report.sent / 1000, "more than 0.1% lost: {report:?}\n{}", ended.printed);
    assert!(ended.total("replies delivered") >= report.received, "{report:?}\n{}", ended.printed);
}

fn a_client_that_floods_is_held_to_its_share_and_costs_the_others_nothing(setup: &Setup) {
    let scene = Scene::new(2);
    let gateway = scene.serve(setup);
    let flooder = Ear::at(scene.client(1), scene.client_address(1));
    thread::scope(|scope| {
        // More at once than a client may send.
        scope.spawn(|| (0..5000).for_each(|sequence| flooder.ask(scene.remote(0), 1, sequence, b"flood")));
        (0..5).for_each(|_| scene.assert_pings("beside a flood"));
    });
    scene.assert_pings("after a flood");
    let ended = gateway.stop();
    assert!(ended.total("requests refused") > 0, "{}", ended.printed);
}

fn it_works_under_every_reverse_path_filter(setup: &Setup) {
    for rp_filter in 0..=2 {
        let scene = Scene::with(&LabOptions { clients: 1, rp_filter, ..LabOptions::default() });
        let gateway = scene.serve(setup);
        scene.assert_pings(&format!("all.rp_filter {rp_filter}"));
        gateway.stop();
    }
}
