//! Faults of the kernel's that it has to be made to have: calls that fail now and then, a buffer that overflows.
//!
//! docs/testing.md has the table of faults, and which test is for which.

use std::fs;
use std::process::{Child, Command, Stdio};

use echogate::control::Stats;
use echogate::lab::GATEWAY_OUTSIDE;
use echogate::wire::build;

use crate::ear::Ear;
use crate::hostile::{Dropped, LINK_FROM_OUTSIDE, flood};
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, wait_until};
use crate::sys;

in_every_setup!(a_burst_beyond_the_receive_buffer_is_told_apart_and_pings_go_on,);

/// strace on a process, which makes every seventh of these calls fail.
struct Injected(Child);

impl Injected {
    fn into(process: u32, call: &str, errno: &str) -> Injected {
        let mut command = Command::new("strace");
        command.args(["-qq", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-p", &process.to_string()]);
        command.args(["-e", &format!("inject={call}:error={errno}:when=7+7")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let injected = Injected(command.spawn().expect("strace runs; remedy: scripts/test installs it"));
        wait_until("every thread is traced", || injected.has_all_threads_of(process));
        injected
    }

    fn has_all_threads_of(&self, process: u32) -> bool {
        let tracer = format!("TracerPid:\t{}\n", self.0.id());
        let mut threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        threads.all(|thread| {
            let status = thread.map(|thread| fs::read_to_string(thread.path().join("status")));
            status.is_ok_and(|status| status.is_ok_and(|status| status.contains(&tracer)))
        })
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // Asked to end it lets its threads go; killed, too.
        drop(sys::terminate(self.0.id()));
        drop(self.0.wait());
    }
}

#[test]
fn every_seventh_call_that_fails_costs_what_is_counted_and_nothing_else() {
    const PINGS: u32 = 70;
    for (call, errno, dropped) in [
        ("sendmmsg", "ENOBUFS", Some("send_outside_enobufs")),
        ("sendmmsg", "EPERM", Some("send_outside_eperm")),
        ("sendmmsg", "EIO", Some("send_outside_eio")),
        ("recvmmsg", "ENOMEM", None),
        ("recvmmsg", "EIO", None),
        ("recvmmsg", "EINTR", None),
        ("ppoll", "EINTR", None),
    ] {
        let scene = Scene::new(1);
        // The sandbox would end the process for the call that strace puts in the place of the one that fails.
        let arguments = scene.arguments(&Setup { io: "syscalls", workers: 1 });
        let gateway = Echogate::serve(scene.gateway(), &[arguments, vec!["--no-sandbox".to_owned()]].concat());
        let packets = gateway.packets_id();
        let pings = {
            let _injected = Injected::into(packets, call, errno);
            scene.ping(0, &format!("-c {PINGS} -i 0.01 -W 10 {}", scene.remote(0)))
        };
        assert_eq!(gateway.packets_id(), packets, "{call} {errno}: it has lived through it");
        scene.assert_pings(&format!("after {call} {errno}"));
        let ended = gateway.stop();
        let counted = dropped.map_or(0, |name| ended.total(name));
        assert_eq!(u64::from(PINGS - pings.received()), counted, "{call} {errno}: {}\n{}", pings.text, ended.printed);
        assert_eq!(counted > 0, dropped.is_some(), "{call} {errno}: {}", ended.printed);
        assert_eq!(ended.total("dropped"), counted, "{call} {errno}: {}", ended.printed);
    }
}

/// The process stands still while more replies come than its socket's buffer takes.
fn a_burst_beyond_the_receive_buffer_is_told_apart_and_pings_go_on(setup: &Setup) {
    const BURST: u64 = 40_000;
    let scene = Scene::alone(1);
    let gateway = scene.serve(setup);
    scene.assert_pings("before");
    let packets = gateway.packets_id();
    sys::signal(packets, libc::SIGSTOP).expect("it runs");
    // By a sequence that no ping comes to.
    let reply = |ident| build::echo_reply(scene.remote(0), GATEWAY_OUTSIDE, ident, 0xF000, 64, &[7; 1400]);
    let replies: Vec<_> = (0..512).map(|ident| (reply(ident * 127), GATEWAY_OUTSIDE)).collect();
    let before = Dropped::so_far(&scene);
    let sent = flood(scene.internet(), &replies, 50_000, BURST).packets;
    let on_the_link = Dropped::so_far(&scene).since(&before, &LINK_FROM_OUTSIDE);
    sys::signal(packets, libc::SIGCONT).expect("it runs");
    scene.await_ping("a ping once it goes on");
    scene.assert_pings("afterwards");
    let stats = || {
        let answer = gateway.ask(&["stats", "--json"]);
        Stats::read(serde_json::from_slice(&answer.stdout).expect("an object")).expect("all its members")
    };
    let of_the_burst = |told: &Stats| told.drops.get("no_echo").copied().unwrap_or(0);
    // Every packet of it was received, or thrown away in one of these queues. Several sockets each tell of the others' packets, too.
    wait_until("all of it is accounted for", || {
        let told = stats();
        of_the_burst(&told) + told.socket_drops.outside + on_the_link >= sent
    });
    let told = stats();
    // What the kernel had no room for is in no other count. Another worker's socket has no part in it.
    assert!(told.socket_drops.outside > 0 && of_the_burst(&told) < sent, "{sent} {told:?}");
    assert_eq!(gateway.packets_id(), packets);
    gateway.stop();
}
