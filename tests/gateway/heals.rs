//! Others change the host's network while the gateway runs; it puts its own part back.

use crate::scene::{Scene, Setup, run};
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(after_the_device_was_down_pings_come_back, after_rule_routes_and_ruleset_were_flushed_pings_come_back,);

and_at_ingress!(after_the_device_was_down_pings_come_back);

fn after_the_device_was_down_pings_come_back(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = scene.serve(setup);
    scene.assert_pings("at first");
    for turn in ["once", "again"] {
        run(scene.gateway(), "ip link set echogate0 down");
        run(scene.gateway(), "ip link set echogate0 up");
        scene.await_ping(&format!("a ping after the device was down {turn}"));
        scene.assert_pings(&format!("healed {turn}"));
    }
    gateway.stop();
    assert_eq!(scene.state(), before);
}

fn after_rule_routes_and_ruleset_were_flushed_pings_come_back(setup: &Setup) {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = scene.serve(setup);
    let during = scene.state();
    scene.assert_pings("at first");
    for disturbance in ["ip rule del priority 3776", "ip route flush table 3776", "nft flush ruleset"] {
        run(scene.gateway(), disturbance);
        scene.await_ping(&format!("a ping after {disturbance}"));
        scene.assert_pings(&format!("healed after {disturbance}"));
    }
    assert_eq!(scene.state(), during);
    gateway.stop();
    assert_eq!(scene.state(), before);
}
