//! A gateway that can no longer serve says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use echogate::config::Config;
use echogate::gateway::Gateway;
use echogate::io::Backend;

use crate::scene::{PATIENCE, Scene, Setup, run, wait_until};
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

/// A worker's thread.
fn worker(packets: u32, number: usize) -> PathBuf {
    fs::read_dir(format!("/proc/{packets}/task"))
        .expect("the gateway runs")
        .map(|task| task.expect("it can be listed").path())
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == format!("worker-{number}")))
        .expect("a worker")
}

/// The CPUs that a thread may use, as the kernel lists them.
fn cpus_of(thread: &Path) -> String {
    let status = fs::read_to_string(thread.join("status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("the kernel tells").trim().to_owned()
}

#[test]
fn a_worker_that_is_moved_off_its_cpu_goes_on_and_says_so_once() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&Setup { io: "uring", workers: 1 });
    let worker = worker(gateway.packets_id(), 0);
    // Whichever CPU it has been pinned to: now it may use both, as when a cgroup's set has changed.
    let number = worker.file_name().expect("a number").to_string_lossy().into_owned();
    run(scene.gateway(), &format!("taskset -pc 0,1 {number}"));
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(700));
        scene.assert_pings("unpinned");
    }
    let ended = gateway.stop();
    let said = ended.complaints.lines().filter(|line| line.contains("was moved off its CPU")).count();
    assert_eq!(said, 1, "{}", ended.complaints);
}

/// Of two workers with a CPU each, one's is taken from the whole process while it serves, as when a cgroup's set has shrunk.
#[test]
fn a_worker_whose_cpu_is_taken_away_goes_on_and_says_so_once() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&Setup { io: "uring", workers: 2 });
    let packets = gateway.packets_id();
    let workers = [0, 1].map(|number| worker(packets, number));
    let [left, taken] = [&workers[0], &workers[1]].map(|worker| cpus_of(worker));
    assert_ne!(left, taken, "two CPUs are needed: one for each of two workers");
    run(scene.gateway(), &format!("taskset -apc {left} {packets}"));
    // It looks as it turns: of sixteen idents some go to each worker.
    let ping_by_both = || {
        for ident in 0..16 {
            let pings = scene.ping(0, &format!("-c 1 -W 10 -e {ident} {}", scene.remote(0)));
            assert!(pings.all_came_back(1), "{}", pings.text);
        }
    };
    wait_until("it is said", || {
        ping_by_both();
        gateway.has_said("was moved off its CPU")
    });
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(1100));
        ping_by_both();
    }
    assert_eq!(workers.map(|worker| cpus_of(&worker)), [left.as_str(); 2], "both on what is left");
    assert_eq!(gateway.packets_id(), packets);
    let ended = gateway.stop();
    let said: Vec<&str> = ended.complaints.lines().filter(|line| line.contains("was moved off its CPU")).collect();
    assert!(said.len() == 1 && said[0].contains("worker=1"), "{}", ended.complaints);
}
