//! The sandbox of the packet process, in a process of its own: what it is for works in it, and nothing else does.
//!
//! What a sandbox takes away is gone for good, so each test runs itself once more, alone in a new process. Linux only, and as
//! root.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use echogate::host::netlink::Netlink;
use echogate::host::sandbox::{self, Files};
use echogate::io::raw::{ReceiveSocket, SendSocket, Shards, Wanted};
use echogate::io::syscalls::SyscallsIo;
use echogate::io::tun::Tun;
use echogate::io::uring::{self, UringIo};
use echogate::io::{Events, PacketIo, Ports, Side, Sizes, Waker};
use echogate::sys::namespace;
use echogate::wire::build;
use socket2::{Domain, Protocol, Socket, Type};

/// Set in the process that a test has made for itself.
const INSIDE: &str = "ECHOGATE_TEST_IN_SANDBOX";

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs the test of this name in a process of its own, or, in that process, `body`.
fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Asserts that the kernel forbids it, whichever part of the sandbox is first.
fn refused<T>(what: &str, result: io::Result<T>) {
    let errno = result.err().unwrap_or_else(|| panic!("{what} is allowed")).raw_os_error();
    assert!(matches!(errno, Some(libc::EPERM | libc::EACCES)), "{what}: {errno:?}");
}

#[test]
fn packets_go_through_a_ring_made_in_the_sandbox() {
    alone("packets_go_through_a_ring_made_in_the_sandbox", || in_network(|| echoes_in_the_sandbox(UringIo::new)));
}

#[test]
fn packets_go_by_system_calls_made_in_the_sandbox() {
    alone("packets_go_by_system_calls_made_in_the_sandbox", || in_network(|| echoes_in_the_sandbox(SyscallsIo::new)));
}

/// A worker's descriptors are opened with privileges, its I/O is made without, and packets go and come with the calls
/// restricted, until the end.
fn echoes_in_the_sandbox<I: PacketIo>(
    open: impl FnOnce(Ports) -> Result<I, echogate::error::SetupError> + Send + 'static,
) {
    let (ports, request) = ports();
    let (waker, end) = (ports.waker.clone(), Arc::new(AtomicBool::new(false)));
    sandbox::give_up_privileges().unwrap();

    let (serves, serving) = crossbeam::channel::bounded(1);
    let (reply, replies) = crossbeam::channel::unbounded();
    let told = Arc::clone(&end);
    let worker = thread::spawn(move || {
        let mut io = open(ports).unwrap();
        serves.send(()).unwrap();
        let mut events = Events::with_capacity();
        // Acquire: pairs with the Release below.
        while !told.load(Ordering::Acquire) {
            io.wait(&mut events, None).unwrap();
            if std::mem::take(&mut events.woken) && !told.load(Ordering::Acquire) {
                let frame = io.copy_of(Side::Inside, &request).unwrap();
                io.send_outside(frame, 0, REMOTE);
            }
            events.sent.drain(..).for_each(|sent| assert_eq!(sent.errno, 0));
            events.from_outside.drain(..).for_each(|frame| reply.send(frame.to_vec()).unwrap());
            events.from_inside.clear();
        }
        assert_eq!(io.mtu_towards(0, REMOTE), Some(u16::MAX), "the loopback device's");
    });
    serving.recv_timeout(PATIENCE).unwrap();
    sandbox::allow_only_packets().unwrap();
    for _ in 0..3 {
        waker.wake();
        let reply = replies.recv_timeout(PATIENCE).unwrap();
        assert_eq!((&reply[12..16], &reply[28..]), (&REMOTE.octets()[..], &b"payload"[..]));
    }
    end.store(true, Ordering::Release);
    waker.wake();
    worker.join().unwrap();
}

fn in_network(work: impl FnOnce() + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}

/// With the loopback device as the outside, whose kernel answers.
fn ports() -> (Ports, Vec<u8>) {
    let mut netlink = Netlink::open().unwrap();
    let loopback = netlink.link_index("lo").unwrap().unwrap();
    netlink.set_up(loopback, true).unwrap();
    for address in [GATEWAY, REMOTE] {
        netlink.add_address(loopback, address, 32).unwrap();
    }
    let tun = Tun::open("echogate0", 1).unwrap().pop().unwrap();
    let index = netlink.link_index("echogate0").unwrap().unwrap();
    netlink.set_up(index, true).unwrap();
    let ports = Ports {
        tun,
        receive: ReceiveSocket::open(Shards::ALL, Wanted::RepliesAndErrors, 1 << 20).unwrap(),
        send: vec![SendSocket::open(GATEWAY, 1 << 20).unwrap()],
        waker: Waker::new().unwrap(),
        sizes: Sizes::for_mtu(1500),
    };
    (ports, build::echo_request(GATEWAY, REMOTE, 7, 1, 64, b"payload"))
}

#[test]
fn what_a_packet_process_needs_besides_packets_works() {
    alone("what_a_packet_process_needs_besides_packets_works", || {
        let (log, mut lines) = io::pipe().unwrap();
        enter();
        let threads: Vec<_> = (0..4_u8)
            .map(|number| {
                let thread = thread::Builder::new().name(format!("worker-{number}"));
                // Grown and given back: mmap, mremap, munmap.
                let work = move || (0..64).map(|_| vec![number; 1 << 20].len()).sum::<usize>();
                thread.spawn(work).unwrap()
            })
            .collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 64 << 20));
        // The map's guards use membarrier(2) when they collect.
        let map = papaya::HashMap::new();
        for key in 0..100_000_u32 {
            map.pin().insert(key % 1000, key);
        }
        assert_eq!(map.len(), 1000);
        let start = Instant::now();
        thread::sleep(Duration::from_millis(2));
        assert!(start.elapsed() >= Duration::from_millis(2));
        lines.write_all(b"a line of the log").unwrap();
        drop(log);
        let caught = std::panic::catch_unwind(|| panic!("said as ever"));
        assert!(caught.is_err(), "a panic is told and caught");
    });
}

/// Both steps, with nothing between.
fn enter() {
    assert_ne!(sandbox::give_up_privileges().unwrap(), Files::AsTheUser, "this kernel has no Landlock");
    sandbox::allow_only_packets().unwrap();
}

#[test]
fn nothing_else_of_the_host_is_left() {
    alone("nothing_else_of_the_host_is_left", || {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "text").unwrap();
        let opened = File::open(&file).unwrap();
        enter();
        refused("reading a file", fs::read(&file));
        refused("reading a directory", fs::read_dir(directory.path()));
        refused("writing a file", fs::write(&file, "other"));
        refused("removing a file", fs::remove_file(&file));
        refused("looking at others' memory", File::open("/proc/1/mem"));
        refused("changing how the kernel works", fs::write("/proc/self/oom_score_adj", "-1000"));
        refused("changing an open file's mode", opened.set_permissions(Permissions::from_mode(0o777)));
        refused("running a program", Command::new("true").spawn());
        refused("a listener", TcpListener::bind((GATEWAY, 0)));
        refused("a connection", TcpStream::connect((GATEWAY, 9)));
        refused("a Unix listener", UnixListener::bind(directory.path().join("socket")));
        refused("a Unix socket", UnixDatagram::unbound());
        refused("a raw socket", Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)));
        refused("a ping socket", Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)));
        refused("a socket of UDP by name", Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)));
        refused("a socket of UDP over IPv6", Socket::new(Domain::IPV6, Type::DGRAM, None));
        refused("a socket for the host's set-up", Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None));
        refused("another network", namespace::new_network());
        let ring = uring::probe().unwrap_err();
        assert_eq!(ring.errno(), Some(libc::EPERM), "{ring}");
        // What it could not remove.
        std::mem::forget(directory);
    });
}

#[test]
fn every_thread_is_in_it_as_the_kernel_says() {
    alone("every_thread_is_in_it_as_the_kernel_says", || {
        sandbox::give_up_privileges().unwrap();
        let (end, ended) = crossbeam::channel::bounded::<()>(0);
        let thread = thread::spawn(move || ended.recv());
        let tasks: Vec<_> = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()).collect();
        sandbox::allow_only_packets().unwrap();
        // The harness's own thread, which was there before: the calls are restricted for all, what was given up is not.
        let harness = std::process::id().to_string();
        assert_eq!(tasks.iter().filter(|task| !task.ends_with(&harness)).count(), 2, "{tasks:?}");
        for task in tasks {
            let status = fs::read_to_string(task.join("status")).unwrap();
            assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
            if task.ends_with(&harness) {
                continue;
            }
            let none = "0000000000000000";
            for line in [
                format!("CapInh:\t{none}"),
                format!("CapPrm:\t{none}"),
                format!("CapEff:\t{none}"),
                format!("CapBnd:\t{none}"),
                format!("CapAmb:\t{none}"),
                "NoNewPrivs:\t1".to_owned(),
            ] {
                assert!(status.lines().any(|found| found == line), "{line}: {status}");
            }
        }
        drop(end);
        assert!(thread.join().unwrap().is_err());
    });
}
