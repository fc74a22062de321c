//! A gateway that can no longer serve says so.

use echogate::config::Config;
use echogate::gateway::Gateway;
use echogate::io::Backend;

use crate::scene::{PATIENCE, Scene};
use crate::sys;

#[test]
fn when_one_workers_descriptor_is_closed_under_it_the_gateway_hears_why() {
    let scene = Scene::new(1);
    let mut config = Config::default();
    config.inside.clients = vec![scene.lab().client_prefix()];
    config.outside.addresses = vec!["198.18.0.1".parse().expect("an address")];
    config.inside.divert = vec!["g0".to_owned()];
    config.run.workers = 2;
    config.run.io = Backend::Syscalls;
    scene
        .gateway()
        .run(|| {
            let gateway = Gateway::start(&config).expect("it starts");
            let queues = sys::open_tun_queues();
            assert_eq!(queues.len(), 2, "one for each worker: {queues:?}");
            sys::take_away(queues[1]);
            // Idle, it sleeps on the queue it had: a packet for it wakes it. Of sixteen idents some go to each worker.
            for ident in 0..16 {
                scene.ping(0, &format!("-c 1 -W 1 -e {ident} {}", scene.remote(0)));
                if !gateway.faults().is_empty() {
                    break;
                }
            }
            let fault = gateway.faults().recv_timeout(PATIENCE).expect("a fault");
            assert!(fault.to_string().contains("ended: "), "{fault}");
            gateway.stop().expect("it can be stopped all the same");
        })
        .expect("enters");
}
