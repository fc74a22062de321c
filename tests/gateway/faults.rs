//! Faults of the kernel's that it has to be made to have: calls that fail now and then or lie, a buffer that overflows.
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
use crate::scene::{Scene, Setup, run, wait_until};
use crate::sys;

in_every_setup!(a_burst_beyond_the_receive_buffer_is_told_apart_and_pings_go_on,);

/// The one file that packets are read from and written to.
const TUN: &str = "/dev/net/tun";

/// strace on a process, which changes what comes of its calls.
struct Injected(Child);

impl Injected {
    /// Every seventh of these calls fails; of those that other files have, too, the TUN's.
    fn failing(process: u32, call: &str, errno: &str) -> Injected {
        let path: &[&str] = if ["read", "write"].contains(&call) { &["-P", TUN] } else { &[] };
        Injected::into(process, call, &format!("error={errno}:when=7+7"), path)
    }

    fn into(process: u32, call: &str, what: &str, more: &[&str]) -> Injected {
        let mut command = Command::new("strace");
        command.args(["-qq", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-p", &process.to_string()]);
        command.args(["-e", &format!("inject={call}:{what}")]).args(more);
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

/// A gateway whose calls can be changed: the sandbox would end the process for the call that strace puts in the place of the one that
/// fails.
fn serve_traceable(scene: &Scene, setup: &Setup) -> Echogate {
    Echogate::serve(scene.gateway(), &[scene.arguments(setup), vec!["--no-sandbox".to_owned()]].concat())
}

/// All calls that move packets on either back end, and the errors that they can survive. What a ring is asked to do besides is no
/// system call, and fails in its completions.
#[test]
fn every_seventh_call_that_fails_costs_what_is_counted_and_nothing_else() {
    const PINGS: u32 = 70;
    for (io, call, errno, dropped) in [
        ("syscalls", "sendmmsg", "ENOBUFS", Some("send_outside_enobufs")),
        ("syscalls", "sendmmsg", "EPERM", Some("send_outside_eperm")),
        ("syscalls", "sendmmsg", "EIO", Some("send_outside_eio")),
        ("syscalls", "recvmmsg", "ENOMEM", None),
        ("syscalls", "recvmmsg", "EIO", None),
        ("syscalls", "recvmmsg", "EINTR", None),
        ("syscalls", "ppoll", "EINTR", None),
        ("syscalls", "read", "EINTR", None),
        ("syscalls", "read", "EAGAIN", None),
        ("syscalls", "read", "EIO", None),
        ("syscalls", "write", "EIO", Some("send_inside_eio")),
        ("syscalls", "write", "EAGAIN", Some("send_inside_eagain")),
        ("uring", "io_uring_enter", "EINTR", None),
        ("uring", "io_uring_enter", "EAGAIN", None),
        ("uring", "io_uring_enter", "EBUSY", None),
    ] {
        let scene = Scene::new(1);
        let gateway = serve_traceable(&scene, &Setup { io, workers: 1 });
        let packets = gateway.packets_id();
        let pings = {
            let _injected = Injected::failing(packets, call, errno);
            scene.ping_to_the_last(0, &format!("-c {PINGS} -i 0.01 {}", scene.remote(0)))
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

/// A call that tells of more packets than it was asked for: what no kernel does, and no worker can go on after.
#[test]
fn a_worker_that_panics_is_named_and_another_process_takes_its_place_with_every_mapping() {
    const IDENTS: u16 = 16;
    let scene = Scene::new(1);
    let gateway = serve_traceable(&scene, &Setup { io: "syscalls", workers: 2 });
    run(scene.internet(), "sysctl -w net.ipv4.icmp_echo_ignore_all=1");
    let (client, remote) =
        (Ear::at(scene.client(0), scene.client_address(0)), Ear::at(scene.internet(), scene.remote(0)));
    let ask = |ident, sequence| {
        client.ask(scene.remote(0), ident, sequence, b"whose");
        remote.next_request()
    };
    let before: Vec<_> = (0..IDENTS).map(|ident| ask(ident, 1)).collect();
    let packets = gateway.packets_id();
    let injected = Injected::into(packets, "recvmmsg", "retval=65:when=1", &[]);
    remote.reply(before[0].source, before[0].ident, 1, b"whose");
    wait_until("another packet process is there", || gateway.find_packets().is_some_and(|id| id != packets));
    drop(injected);
    // It has been told of, and not been read.
    assert_eq!(client.next().ident, 0);
    let after: Vec<u16> = (0..IDENTS).map(|ident| ask(ident, 2).ident).collect();
    assert_eq!(after, before.iter().map(|heard| heard.ident).collect::<Vec<_>>());
    run(scene.internet(), "sysctl -w net.ipv4.icmp_echo_ignore_all=0");
    scene.assert_pings("afterwards");
    let ended = gateway.stop();
    let why = ended.complaints.lines().find(|line| line.contains("starting another one")).unwrap_or_default();
    let names_it =
        (0..2).any(|worker| why.contains(&format!("worker {worker} ended: it panicked: range end index 65")));
    assert!(names_it, "{}", ended.complaints);
    assert_eq!(ended.complaints.matches("starting another one").count(), 1, "{}", ended.complaints);
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
