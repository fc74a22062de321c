//! How the gateway leaves: nothing behind when it is told to go, nothing in the way when it is killed.

use crate::process::Echogate;
use crate::scene::{Scene, Setup, nft, run, wait_until};
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(
    killed_it_fails_open_and_the_next_start_and_stop_leave_nothing,
    a_second_gateway_on_the_same_device_is_refused_and_the_first_goes_on,
    when_its_device_is_deleted_it_ends_with_the_reason_and_leaves_nothing,
);

and_at_ingress!(
    killed_it_fails_open_and_the_next_start_and_stop_leave_nothing,
    when_its_device_is_deleted_it_ends_with_the_reason_and_leaves_nothing,
);

fn killed_it_fails_open_and_the_next_start_and_stop_leave_nothing(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = scene.serve(setup);
    scene.assert_pings("at first");
    assert_eq!(gateway.killed().code, None);

    wait_until("ruleset and device are gone", || {
        let links = run(scene.gateway(), "ip link");
        run(scene.gateway(), "nft list ruleset").is_empty() && !links.contains("echogate0")
    });
    nft(
        scene.gateway(),
        "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }; }",
    );
    scene.assert_pings("by the kernel's path");
    run(scene.gateway(), "nft delete table ip nat");
    scene.assert_no_ping("with neither");

    let gateway = scene.serve(setup);
    scene.assert_pings("after a new start");
    gateway.stop();
    assert_eq!(scene.state(), before);
}

fn a_second_gateway_on_the_same_device_is_refused_and_the_first_goes_on(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    let first = scene.serve(setup);
    let during = scene.state();
    let second = Echogate::start(scene.gateway(), Echogate::command("run").args(scene.arguments(setup))).ended();
    second.assert_refused(&["echogate0", "remedy: "]);
    assert_eq!(scene.state(), during);
    scene.assert_pings("beside the one refused");
    first.stop();
    assert_eq!(scene.state(), before);
}

fn when_its_device_is_deleted_it_ends_with_the_reason_and_leaves_nothing(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = scene.serve(setup);
    scene.assert_pings("at first");
    run(scene.gateway(), "ip link delete echogate0");
    let ended = gateway.ended();
    assert_eq!(ended.code, Some(1), "{}", ended.complaints);
    assert!(ended.complaints.contains("echogate: ") && !ended.complaints.contains("panicked"), "{}", ended.complaints);
    assert_eq!(scene.state(), before);
}
