//! The process that moves the packets has no privileges, as the kernel says; and packets go on.

use std::fs;

use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup};

/// What the kernel says of each thread of the process, by the threads' names.
fn threads(process: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let thread = |task: std::io::Result<fs::DirEntry>| {
        let of = |file: &str| fs::read_to_string(task.as_ref().expect("listed").path().join(file)).expect("it lives");
        (of("comm").trim().to_owned(), of("status"))
    };
    tasks.map(thread).collect()
}

fn says(status: &str, line: &str) -> bool {
    status.lines().any(|said| said == line)
}

in_every_setup!(the_packet_processes_have_no_privileges_and_one_serves,);

fn the_packet_processes_have_no_privileges_and_one_serves(setup: &Setup) {
    let scene = Scene::new(1);
    let gateway = scene.serve(setup);
    scene.assert_pings("in the sandbox");
    let (serves, waits) = (threads(gateway.packets_id()), threads(gateway.spare_id()));
    assert!([&serves, &waits].iter().all(|of| of.iter().any(|(name, _)| name == "worker-0")), "{serves:?} {waits:?}");
    let none = "0000000000000000";
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:\t{none}"));
    for (name, status) in serves.iter().chain(&waits) {
        for line in sets.iter().map(String::as_str).chain(["NoNewPrivs:\t1", "Seccomp:\t2"]) {
            assert!(says(status, line), "{name} is without {line:?}: {status}");
        }
    }
    // What is larger than the way out asks for the MTU, by a socket that is allowed.
    let large = scene.pings(0, 1, scene.remote(0), "-s 3000");
    assert!(large.all_came_back(1), "{}", large.text);
    gateway.stop();
}

#[test]
fn without_the_sandbox_it_says_what_that_gives_up() {
    let scene = Scene::new(1);
    let mut command = Echogate::command("run");
    command.args(scene.arguments(&Setup { io: "uring", workers: 1 })).arg("--no-sandbox");
    let gateway = Echogate::start(scene.gateway(), &mut command).serving();
    scene.assert_pings("without a sandbox");
    let threads = threads(gateway.packets_id());
    assert!(threads.iter().all(|(_, status)| says(status, "Seccomp:\t0")), "{threads:?}");
    let ended = gateway.stop();
    let said = ended.complaints.matches("run.sandbox is off").count();
    assert_eq!(said, 1, "{}", ended.complaints);
}
