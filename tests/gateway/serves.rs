//! The main job: pings come back, each to the client that asked.

use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use echogate::lab::LabOptions;
use echogate::lab::load::{self, LoadOptions};

use crate::process::Echogate;
use crate::scene::{PATIENCE, Scene, Setup};
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(
    a_ping_loses_nothing_and_after_sigterm_the_host_is_as_before,
    two_clients_with_equal_idents_get_their_own_replies_from_every_remote,
    echoes_by_the_hundred_thousand_reach_the_client_that_asked_unaltered,
    a_client_that_floods_is_held_to_its_share_and_costs_the_others_nothing,
    it_works_under_every_reverse_path_filter,
    stopped_under_load_it_accounts_for_every_packet,
);

and_at_ingress!(
    a_ping_loses_nothing_and_after_sigterm_the_host_is_as_before,
    two_clients_with_equal_idents_get_their_own_replies_from_every_remote,
    a_client_that_floods_is_held_to_its_share_and_costs_the_others_nothing,
    stopped_under_load_it_accounts_for_every_packet,
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
    const ECHOES: u64 = 100_000;
    let scene = Scene::alone(2);
    let arguments = [scene.arguments(setup), limits_off()].concat();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let options = LoadOptions {
        duration: Duration::from_secs(300),
        echoes_per_client: Some(ECHOES),
        window: 32,
        // What comes late on a busy machine is not lost.
        reply_timeout: PATIENCE,
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

/// One client at ten times its share (1,000 packets a second, 2,000 at once), the other just below its own. On a busy machine
/// both are slower, replies are late, and the kernel's queues before and behind the gateway drop what they have no room for: none
/// of that is the gateway's.
fn a_client_that_floods_is_held_to_its_share_and_costs_the_others_nothing(setup: &Setup) {
    const SECONDS: u64 = 4;
    let scene = Scene::alone(2);
    let gateway = scene.serve(setup);
    let lab = scene.lab();
    let at_rate = |client: usize, rate| {
        let options = LoadOptions {
            duration: Duration::from_secs(60),
            echoes_per_client: Some(rate * SECONDS),
            rate: Some(rate),
            window: 40_000,
            reply_timeout: Duration::from_secs(8),
            ..LoadOptions::default()
        };
        let client = &lab.clients()[client..=client];
        load::run(client, lab.remotes(), &options, |_| ControlFlow::Continue(())).expect("it runs")
    };
    let (modest, flooding) = thread::scope(|scope| {
        let flooding = scope.spawn(|| at_rate(1, 10_000));
        (at_rate(0, 950), flooding.join().expect("it ends well"))
    });
    // Its last reply comes after its last request. Its bucket and our clock do not begin at one moment.
    let seconds = flooding.elapsed.as_secs() + 2;
    let ended = gateway.stop();
    let figures = format!("{seconds} s\nmodest {modest:?}\nflooding {flooding:?}\n{}", ended.printed);
    assert_eq!((modest.sent, flooding.sent), (950 * SECONDS, 10_000 * SECONDS), "{figures}");
    let unread = modest.sent + flooding.sent - ended.total("from inside");
    let unanswered = ended.total("to outside") - ended.total("replies delivered");
    let lost = modest.sent - modest.received;
    assert!(lost <= unread + unanswered, "the gateway had them: {figures}");
    assert!((2000..=2000 + 1000 * seconds).contains(&flooding.received), "{figures}");
    let not_served = flooding.sent - flooding.received;
    let refused = ended.total("requests refused");
    assert!(refused <= not_served && refused + unread + unanswered >= not_served, "{figures}");
    // RFC 5508 REQ-8: it hears of it (no_reply: ICMP that is no echo reply), ten times a second.
    assert!(flooding.no_reply > 0 && flooding.no_reply <= 20 + 10 * seconds, "{figures}");
    assert_eq!((modest.no_reply, modest.wrong_client, flooding.wrong_client), (0, 0, 0), "{figures}");
}

fn it_works_under_every_reverse_path_filter(setup: &Setup) {
    for rp_filter in 0..=2 {
        let scene = Scene::with(&LabOptions { clients: 1, rp_filter, ..LabOptions::default() });
        let gateway = scene.serve(setup);
        scene.assert_pings(&format!("all.rp_filter {rp_filter}"));
        gateway.stop();
    }
}

fn stopped_under_load_it_accounts_for_every_packet(setup: &Setup) {
    let scene = Scene::alone(2);
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(setup), limits_off()].concat());
    let options = LoadOptions {
        duration: Duration::from_secs(2),
        window: 64,
        reply_timeout: Duration::from_millis(200),
        ..LoadOptions::default()
    };
    let lab = scene.lab();
    let ended = thread::scope(|scope| {
        let load = scope.spawn(|| load::run(lab.clients(), lab.remotes(), &options, |_| ControlFlow::Continue(())));
        thread::sleep(Duration::from_secs(1));
        let ended = gateway.stop();
        load.join().expect("it ends well").expect("it runs");
        ended
    });
    assert!(ended.total("replies delivered") > 1000, "{}", ended.printed);
    let arrived = ended.total("from inside") + ended.total("from outside");
    let accounted = ended.total("to inside") + ended.total("to outside") + ended.total("dropped");
    assert_eq!(arrived, accounted, "{}", ended.printed);
}

/// Forty idents between one pair of hosts, which the kernel by itself would give to one worker.
#[test]
fn the_pings_between_one_pair_of_hosts_use_every_worker() {
    const WORKERS: u32 = 4;
    let scene = Scene::alone(1);
    let setup = Setup { io: "uring", workers: WORKERS };
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(&setup), limits_off()].concat());
    let options = LoadOptions {
        echoes_per_client: Some(20_000),
        duration: Duration::from_secs(30),
        idents: 40,
        ..LoadOptions::default()
    };
    let lab = scene.lab();
    let report =
        load::run(lab.clients(), &lab.remotes()[..1], &options, |_| ControlFlow::Continue(())).expect("it runs");
    let ended = gateway.stop();
    assert_eq!((report.sent, report.received), (20_000, 20_000), "{report:?}\n{}", ended.printed);
    let shares: Vec<u64> = (0..WORKERS).map(|worker| ended.total(&format!("sent by worker {worker}"))).collect();
    assert_eq!(shares.iter().sum::<u64>(), 20_000);
    // Ten of forty idents each, give or take four.
    assert!(shares.iter().all(|share| (3000..=7000).contains(share)), "{shares:?}");
}

pub(crate) fn limits_off() -> Vec<String> {
    ["--limits", "off"].map(str::to_owned).to_vec()
}
