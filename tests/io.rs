//! Both ways of moving packets, against a real TUN and real raw sockets: one body a test, run over each.
//!
//! Each test runs in a network namespace of its own, on a thread of its own. Outside is the loopback device: the
//! remote's address is local, so the kernel answers its echo requests. Linux only, and as root.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use echogate::host::netlink::Netlink;
use echogate::io::raw::{ReceiveSocket, SendSocket, Shards, Wanted};
use echogate::io::syscalls::SyscallsIo;
use echogate::io::tun::Tun;
use echogate::io::uring::UringIo;
use echogate::io::{Backend, Engine, Events, PacketIo, Pool, PoolSize, Ports, Sizes, Waker, choose};
use echogate::sys::{event, namespace};
use echogate::wire::build::{self, Datagram};
use echogate::wire::icmpv4::EchoKind;
use echogate::wire::ipv4::Ipv4;
use echogate::wire::quote::Quote;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const GATEWAY_TOO: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const TUN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const SOON: Duration = Duration::from_secs(2);
const UDP: u8 = 17;
const ICMP: u8 = 1;

macro_rules! over_both {
    ($($test:ident,)*) => {
        mod uring {
            $(#[test] fn $test() { super::in_network(|| super::$test(super::Engine::Uring)); })*
        }
        mod syscalls {
            $(#[test] fn $test() { super::in_network(|| super::$test(super::Engine::Syscalls)); })*
        }
    };
}

over_both! {
    reads_what_is_routed_into_the_tun,
    writes_reach_the_host_behind_the_tun,
    echoes_go_out_and_replies_come_in,
    replies_of_any_size_come_whole,
    more_sends_than_the_queue_holds,
    every_buffer_held_inside_and_recovery,
    every_buffer_held_outside_and_recovery,
    a_batch_is_bounded,
    a_wake_up_ends_the_wait,
    a_timeout_ends_the_wait,
    link_down_fails_writes_and_up_heals,
    a_deleted_device_is_a_fault,
    sends_fail_with_their_errno_and_the_next_one_works,
    a_firewall_refusal_is_told,
    a_full_queueing_discipline_is_told,
    the_name_is_free_after_the_end,
    frames_outlive_their_io,
    who_stops_receiving_leaves_the_rest_to_the_next,
}

fn in_network(work: impl FnOnce() + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}

struct Scene {
    io: Box<dyn PacketIo>,
    /// What the test sends is in buffers of its own.
    pool: Rc<Pool>,
    events: Events,
    waker: Waker,
    netlink: Netlink,
    tun: u32,
}

const SIZES: Sizes = Sizes {
    inside: PoolSize { buffers: 1024, buffer_bytes: 2048 },
    outside: PoolSize { buffers: 512, buffer_bytes: 65_536 },
};

fn scene(engine: Engine, sizes: Sizes) -> Scene {
    scene_and_spare(engine, sizes).0
}

/// Also another handle to the TUN's queue and the receive socket.
fn scene_and_spare(engine: Engine, sizes: Sizes) -> (Scene, (Tun, ReceiveSocket)) {
    // No packets but ours: a new device would solicit IPv6 routers.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let mut netlink = Netlink::open().unwrap();
    let lo = netlink.link_index("lo").unwrap().unwrap();
    netlink.set_up(lo, true).unwrap();
    for address in [GATEWAY, GATEWAY_TOO, REMOTE] {
        netlink.add_address(lo, address, 32).unwrap();
    }
    let tun = Tun::open("echogate0", 1).unwrap().pop().unwrap();
    let index = netlink.link_index("echogate0").unwrap().unwrap();
    netlink.set_queue_length(index, 5000).unwrap();
    netlink.set_up(index, true).unwrap();
    netlink.add_address(index, TUN_ADDRESS, 24).unwrap();
    let waker = Waker::new().unwrap();
    let receive = ReceiveSocket::open(Shards::ALL, Wanted::RepliesAndErrors, 4 << 20).unwrap();
    let spare = (tun.try_clone().unwrap(), receive.try_clone().unwrap());
    let ports = Ports {
        tun,
        receive,
        send: [GATEWAY, GATEWAY_TOO].map(|address| SendSocket::open(address, 1 << 20).unwrap()).into(),
        waker: waker.clone(),
        sizes,
    };
    let io = io_over(engine, ports);
    let pool = Pool::new(PoolSize { buffers: 4096, buffer_bytes: 65_536 }).unwrap();
    (Scene { io, pool, events: Events::with_capacity(), waker, netlink, tun: index }, spare)
}

fn io_over(engine: Engine, ports: Ports) -> Box<dyn PacketIo> {
    match engine {
        Engine::Uring => Box::new(UringIo::new(ports).unwrap()),
        Engine::Syscalls => Box::new(SyscallsIo::new(ports).unwrap()),
    }
}

impl Scene {
    fn wait(&mut self, timeout: Duration) {
        self.io.wait(&mut self.events, Some(timeout)).unwrap();
    }

    /// Waits until `done` holds of the events so far.
    fn wait_until(&mut self, done: impl Fn(&Events) -> bool) {
        let until = Instant::now() + SOON;
        while !done(&self.events) {
            assert!(Instant::now() < until, "nothing more comes: {:?}", self.events);
            self.wait(Duration::from_millis(100));
        }
    }

    fn send_echo(&mut self, address: u8, source: Ipv4Addr, ident: u16, sequence: u16, payload: &[u8]) {
        let request = build::echo_request(source, REMOTE, ident, sequence, 64, payload);
        self.send_outside(&request, address, REMOTE);
    }

    fn send_outside(&mut self, bytes: &[u8], address: u8, remote: Ipv4Addr) {
        let frame = self.pool.frame_from(bytes).expect("a buffer is free");
        self.io.send_outside(frame, address, remote);
    }

    fn send_inside(&mut self, bytes: &[u8]) {
        let frame = self.pool.frame_from(bytes).expect("a buffer is free");
        self.io.send_inside(frame);
    }

    /// The errnos of sends since the last call.
    fn errnos(&mut self, sends: usize) -> Vec<i32> {
        self.wait_until(|events| events.sent.len() >= sends);
        self.events.sent.drain(..).map(|sent| sent.errno).collect()
    }
}

fn is_ipv4_udp(packet: &[u8]) -> bool {
    packet.len() >= 28 && packet[0] == 0x45 && packet[9] == UDP
}

/// Numbered datagrams that the kernel routes into the TUN.
fn send_into_tun(numbers: std::ops::Range<u16>) {
    let socket = UdpSocket::bind((TUN_ADDRESS, 0)).unwrap();
    for number in numbers {
        socket.send_to(&number.to_be_bytes(), (CLIENT, 4000)).unwrap();
    }
}

fn numbers(events: &mut Events) -> Vec<u16> {
    let packets = events.from_inside.drain(..).filter(|packet| is_ipv4_udp(packet));
    packets.map(|packet| u16::from_be_bytes([packet[28], packet[29]])).collect()
}

/// (ident, sequence, payload) of each echo reply from the remote.
fn replies(events: &mut Events) -> Vec<(u16, u16, Vec<u8>)> {
    let word = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let replies = events.from_outside.drain(..).inspect(|packet| {
        assert_eq!((packet[0], packet[9], packet[20]), (0x45, ICMP, 0), "an IPv4 echo reply: {packet:?}");
        assert_eq!(usize::from(word(packet, 2)), packet.len());
    });
    replies.map(|packet| (word(&packet, 24), word(&packet, 26), packet[28..].to_vec())).collect()
}

fn udp(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for word in [4000, port, 8 + u16::try_from(payload.len()).unwrap(), 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    Datagram::new(source, destination, UDP, datagram).build()
}

fn reads_what_is_routed_into_the_tun(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    send_into_tun(0..100);
    scene.wait_until(|events| events.from_inside.iter().filter(|packet| is_ipv4_udp(packet)).count() == 100);
    for packet in &scene.events.from_inside {
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
    }
    assert_eq!(numbers(&mut scene.events), (0..100).collect::<Vec<_>>());
}

fn writes_reach_the_host_behind_the_tun(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let host = UdpSocket::bind((TUN_ADDRESS, 0)).unwrap();
    host.set_read_timeout(Some(SOON)).unwrap();
    let port = host.local_addr().unwrap().port();
    for number in 0..100u8 {
        scene.send_inside(&udp(CLIENT, TUN_ADDRESS, port, &[number; 33]));
    }
    assert_eq!(scene.io.in_flight(), 100);
    assert_eq!(scene.errnos(100), [0; 100]);
    assert_eq!(scene.io.in_flight(), 0);
    for number in 0..100u8 {
        let mut payload = [0; 64];
        let (len, from) = host.recv_from(&mut payload).unwrap();
        assert_eq!((&payload[..len], from.ip()), (&[number; 33][..], CLIENT.into()));
    }
}

fn echoes_go_out_and_replies_come_in(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    for sequence in 0..50 {
        scene.send_echo(0, GATEWAY, 7, sequence, b"from the first");
        scene.send_echo(1, GATEWAY_TOO, 8, sequence, b"from the second");
    }
    assert_eq!(scene.errnos(100), [0; 100]);
    scene.wait_until(|events| events.from_outside.len() == 100);
    let mut replies = replies(&mut scene.events);
    replies.sort();
    let expected =
        |ident, text: &[u8]| (0..50).map(move |sequence| (ident, sequence, text.to_vec())).collect::<Vec<_>>();
    assert_eq!(replies, [expected(7, b"from the first"), expected(8, b"from the second")].concat());
}

fn replies_of_any_size_come_whole(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let sizes = [0, 1, 1472, 1473, 40_000, 65_507];
    for (sequence, size) in (0..).zip(sizes) {
        scene.send_echo(0, GATEWAY, 7, sequence, &vec![0x5a; size]);
    }
    assert_eq!(scene.errnos(6), [0; 6]);
    scene.wait_until(|events| events.from_outside.len() == 6);
    for ((_, sequence, payload), size) in replies(&mut scene.events).into_iter().zip(sizes) {
        assert_eq!((payload.len(), payload.iter().all(|byte| *byte == 0x5a)), (size, true), "{sequence}");
    }
}

fn more_sends_than_the_queue_holds(engine: Engine) {
    let sizes = Sizes { inside: PoolSize { buffers: 4096, buffer_bytes: 2048 }, ..SIZES };
    let mut scene = scene(engine, sizes);
    for sequence in 0..3000 {
        scene.send_echo(0, GATEWAY, 9, sequence, b"many");
    }
    assert_eq!(scene.io.in_flight(), 3000);
    assert_eq!(scene.errnos(3000), [0; 3000]);
    let mut all = Vec::new();
    let until = Instant::now() + SOON;
    while all.len() < 3000 && Instant::now() < until {
        scene.wait(Duration::from_millis(100));
        all.extend(replies(&mut scene.events).into_iter().map(|(_, sequence, _)| sequence));
    }
    assert_eq!(all, (0..3000).collect::<Vec<_>>());
    assert_eq!(scene.io.in_flight(), 0);
}

fn every_buffer_held_inside_and_recovery(engine: Engine) {
    let sizes = Sizes { inside: PoolSize { buffers: 8, buffer_bytes: 2048 }, ..SIZES };
    let mut scene = scene(engine, sizes);
    send_into_tun(0..50);
    for _ in 0..5 {
        scene.wait(Duration::from_millis(20));
    }
    assert_eq!(scene.events.from_inside.len(), 8, "every buffer is held");
    let start = Instant::now();
    scene.wait(Duration::from_millis(50));
    assert!(start.elapsed() >= Duration::from_millis(50), "a wait without buffers does not spin");
    // The other side goes on meanwhile.
    scene.send_echo(0, GATEWAY, 1, 1, b"");
    scene.wait_until(|events| events.from_outside.len() == 1);
    let mut all = numbers(&mut scene.events);
    let until = Instant::now() + SOON;
    while all.len() < 50 && Instant::now() < until {
        scene.wait(Duration::from_millis(20));
        all.extend(numbers(&mut scene.events));
    }
    assert_eq!(all, (0..50).collect::<Vec<_>>(), "none lost, none twice, in order");
}

fn every_buffer_held_outside_and_recovery(engine: Engine) {
    let sizes = Sizes { outside: PoolSize { buffers: 8, buffer_bytes: 65_536 }, ..SIZES };
    let mut scene = scene(engine, sizes);
    for sequence in 0..50 {
        scene.send_echo(0, GATEWAY, 1, sequence, b"x");
    }
    for _ in 0..5 {
        scene.wait(Duration::from_millis(20));
    }
    assert_eq!(scene.events.from_outside.len(), 8, "every buffer is held");
    let start = Instant::now();
    scene.wait(Duration::from_millis(50));
    assert!(start.elapsed() >= Duration::from_millis(50), "a wait without buffers does not spin");
    let mut all = replies(&mut scene.events);
    let until = Instant::now() + SOON;
    while all.len() < 50 && Instant::now() < until {
        scene.wait(Duration::from_millis(20));
        all.extend(replies(&mut scene.events));
    }
    assert_eq!(all.iter().map(|(_, sequence, _)| *sequence).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
}

fn a_batch_is_bounded(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    send_into_tun(0..600);
    let mut all = Vec::new();
    let until = Instant::now() + SOON;
    while all.len() < 600 && Instant::now() < until {
        scene.wait(Duration::from_millis(100));
        assert!(scene.events.from_inside.len() <= echogate::io::BATCH_MAX);
        all.extend(numbers(&mut scene.events));
    }
    assert_eq!(all, (0..600).collect::<Vec<_>>());
}

fn a_wake_up_ends_the_wait(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    for _ in 0..3 {
        let waker = scene.waker.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            waker.wake();
            waker.wake();
        });
        scene.io.wait(&mut scene.events, None).unwrap();
        assert!(std::mem::take(&mut scene.events.woken));
        other.join().unwrap();
        // The second call of wake may have come after the first was seen.
        scene.wait(Duration::from_millis(1));
        scene.events.woken = false;
        let start = Instant::now();
        scene.wait(Duration::from_millis(30));
        assert!(!scene.events.woken && start.elapsed() >= Duration::from_millis(30), "wake-ups are used up");
    }
    scene.waker.wake();
    scene.io.wait(&mut scene.events, None).unwrap();
    assert!(scene.events.woken, "one from before the wait counts");
}

fn a_timeout_ends_the_wait(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    for timeout in [0, 1, 40].map(Duration::from_millis) {
        let start = Instant::now();
        scene.wait(timeout);
        let took = start.elapsed();
        assert!(took >= timeout && took < timeout + Duration::from_millis(500), "{timeout:?}: {took:?}");
    }
    assert!(scene.events.from_inside.is_empty() && scene.events.from_outside.is_empty() && !scene.events.woken);
}

fn link_down_fails_writes_and_up_heals(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let host = UdpSocket::bind((TUN_ADDRESS, 0)).unwrap();
    let port = host.local_addr().unwrap().port();
    let packet = udp(CLIENT, TUN_ADDRESS, port, b"x");
    for _ in 0..3 {
        scene.netlink.set_up(scene.tun, false).unwrap();
        scene.send_inside(&packet);
        assert_eq!(scene.errnos(1), [libc::EIO]);
        let start = Instant::now();
        scene.wait(Duration::from_millis(100));
        assert!(start.elapsed() >= Duration::from_millis(100), "a link that is down is waited on without spinning");
        scene.netlink.set_up(scene.tun, true).unwrap();
        scene.send_inside(&packet);
        assert_eq!(scene.errnos(1), [0]);
        send_into_tun(1..4);
        scene.wait_until(|events| events.from_inside.iter().filter(|packet| is_ipv4_udp(packet)).count() == 3);
        assert_eq!(numbers(&mut scene.events), [1, 2, 3]);
    }
}

fn a_deleted_device_is_a_fault(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let (mut netlink, index) = (Netlink::open().unwrap(), scene.tun);
    let deleter = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        netlink.delete_link(index).unwrap();
    });
    let until = Instant::now() + SOON;
    let fault = loop {
        assert!(Instant::now() < until, "no fault");
        if let Err(fault) = scene.io.wait(&mut scene.events, Some(Duration::from_millis(100))) {
            break fault;
        }
    };
    deleter.join().unwrap();
    assert!(fault.to_string().contains("TUN device is gone"), "{fault}");
}

fn sends_fail_with_their_errno_and_the_next_one_works(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let too_long = |dont_fragment| {
        let payload = build::echo_message(EchoKind::Request, 1, 1, &[0; 1600]);
        Datagram { dont_fragment, ..Datagram::new(GATEWAY, CLIENT, ICMP, payload) }.build()
    };
    let nowhere = Ipv4Addr::new(203, 0, 113, 1);
    let broadcast = Ipv4Addr::new(10, 66, 0, 255);
    for round in 0..100 {
        scene.send_echo(0, GATEWAY, 1, round, b"good");
        scene.send_outside(&too_long(true), 0, CLIENT);
        scene.send_outside(&too_long(false), 0, CLIENT);
        scene.send_echo(0, GATEWAY, 1, round, b"good");
        scene.send_outside(&build::echo_request(GATEWAY, nowhere, 1, 1, 64, b""), 0, nowhere);
        scene.send_outside(&build::echo_request(GATEWAY, broadcast, 1, 1, 64, b""), 0, broadcast);
        scene.send_echo(9, GATEWAY, 1, round, b"no such address");
        scene.send_echo(0, GATEWAY, 1, round, b"good");
        scene.wait_until(|events| events.sent.len() == 8);
        let mut errnos = scene.errnos(8);
        errnos.sort_unstable();
        let mut expected =
            [0, 0, 0, libc::EMSGSIZE, libc::EMSGSIZE, libc::ENETUNREACH, libc::EACCES, libc::EADDRNOTAVAIL];
        expected.sort_unstable();
        assert_eq!(errnos, expected);
        scene.wait_until(|events| events.from_outside.len() == 3);
        scene.events.from_outside.clear();
    }
}

fn run(program: &str, arguments: &[&str], package: &str) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: install the package {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn a_firewall_refusal_is_told(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    let rules = "add table ip t; add chain ip t out { type filter hook output priority 0; }; \
                 add rule ip t out icmp type echo-request icmp id 66 drop";
    run("nft", &[rules], "nftables");
    scene.send_echo(0, GATEWAY, 66, 1, b"refused");
    assert_eq!(scene.errnos(1), [libc::EPERM]);
    scene.send_echo(0, GATEWAY, 67, 1, b"let through");
    assert_eq!(scene.errnos(1), [0]);
}

fn a_full_queueing_discipline_is_told(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    run("tc", &["qdisc", "add", "dev", "echogate0", "root", "pfifo", "limit", "1"], "iproute2");
    run(
        "tc",
        &["qdisc", "replace", "dev", "echogate0", "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "1600"],
        "iproute2",
    );
    for sequence in 0..20 {
        let request = build::echo_request(GATEWAY, CLIENT, 1, sequence, 64, &[0; 500]);
        scene.send_outside(&request, 0, CLIENT);
    }
    let errnos = scene.errnos(20);
    let full = errnos.iter().filter(|errno| **errno == libc::ENOBUFS).count();
    assert!((10..20).contains(&full) && errnos[0] == 0, "{errnos:?}");
}

fn the_name_is_free_after_the_end(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    send_into_tun(0..10);
    scene.send_echo(0, GATEWAY, 1, 1, b"queued and never waited for");
    let start = Instant::now();
    drop(scene);
    Tun::open("echogate0", 2).expect("the device has gone with its last descriptor");
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

fn frames_outlive_their_io(engine: Engine) {
    let mut scene = scene(engine, SIZES);
    send_into_tun(0..10);
    scene.wait_until(|events| events.from_inside.iter().filter(|packet| is_ipv4_udp(packet)).count() == 10);
    let Scene { io, mut events, .. } = scene;
    drop(io);
    assert_eq!(numbers(&mut events), (0..10).collect::<Vec<_>>());
}

fn who_stops_receiving_leaves_the_rest_to_the_next(engine: Engine) {
    let (mut first, (tun, receive)) = scene_and_spare(engine, SIZES);
    send_into_tun(0..50);
    (0..20).for_each(|sequence| first.send_echo(0, GATEWAY, 1, sequence, b"asked by the first"));
    first.wait(SOON);
    first.io.stop_receiving();
    send_into_tun(50..100);
    while first.io.in_flight() > 0 {
        first.wait(Duration::from_millis(1));
    }
    first.wait(Duration::ZERO);
    let (mut read, mut heard) = (numbers(&mut first.events), replies(&mut first.events));
    assert!(read.iter().all(|number| *number < 50), "{read:?}");
    let send = vec![SendSocket::open(GATEWAY, 1 << 20).unwrap()];
    let ports = Ports { tun, receive, send, waker: first.waker.clone(), sizes: SIZES };
    let Scene { io, pool, waker, netlink, tun, .. } = first;
    drop(io);
    let io = io_over(engine, ports);
    let mut second = Scene { io, pool, events: Events::with_capacity(), waker, netlink, tun };
    let (rest, replies_left) = (100 - read.len(), 20 - heard.len());
    second.wait_until(|events| {
        events.from_inside.iter().filter(|packet| is_ipv4_udp(packet)).count() == rest
            && events.from_outside.len() == replies_left
    });
    read.extend(numbers(&mut second.events));
    heard.extend(replies(&mut second.events));
    assert_eq!(read, (0..100).collect::<Vec<_>>());
    assert_eq!(heard.iter().map(|(_, sequence, _)| *sequence).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[test]
fn io_uring_is_found_where_it_is() {
    assert_eq!(choose(Backend::Uring).expect("these tests need io_uring"), Engine::Uring);
    assert_eq!(choose(Backend::Auto).unwrap(), Engine::Uring);
    assert_eq!(choose(Backend::Syscalls).unwrap(), Engine::Syscalls);
}

#[test]
fn a_receive_socket_takes_only_its_shards_echo_replies() {
    in_network(|| {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap().unwrap();
        netlink.set_up(lo, true).unwrap();
        netlink.add_address(lo, GATEWAY, 32).unwrap();
        let send = SendSocket::open(GATEWAY, 1 << 20).unwrap();
        let workers = [0, 1, 2].map(|worker| Shards::of_worker(worker, 3));
        let mut masks = workers.to_vec();
        masks.extend([Shards::ALL, Shards(1 << 63), Shards(1)]);
        let sockets: Vec<_> =
            masks.iter().map(|mask| ReceiveSocket::open(*mask, Wanted::Replies, 4 << 20).unwrap()).collect();
        let deliver = |datagram: Datagram| {
            let bytes = datagram.build();
            let to = std::iter::once((bytes.as_slice(), GATEWAY));
            assert_eq!(echogate::sys::net::send_many(send.as_fd(), to).unwrap(), 1);
        };
        let icmp = |payload: Vec<u8>| Datagram::new(GATEWAY, GATEWAY, ICMP, payload);
        for ident in 0..200 {
            deliver(icmp(build::echo_message(EchoKind::Reply, ident, 1, b"plain")));
            let options = vec![1; 12];
            deliver(Datagram { options, ..icmp(build::echo_message(EchoKind::Reply, ident, 2, b"options")) });
        }
        for kind in 1..=255u8 {
            // A request would be answered: a reply is not what this is about.
            if kind != 8 {
                let mut message = build::echo_message(EchoKind::Reply, 5, 3, b"no echo reply");
                message[0] = kind;
                deliver(icmp(message));
            }
        }
        deliver(icmp(vec![0, 0, 0]));
        assert_eq!(Shards::of_worker(0, 1), Shards::ALL);
        for (socket, Shards(mask)) in sockets.iter().zip(masks) {
            let mut got = Vec::new();
            let mut packet = [0; 256];
            while let Ok(len) = event::read(socket.as_fd(), &mut packet) {
                let header = usize::from(packet[0] & 0xf) * 4;
                if len >= header + 8 {
                    got.push(u16::from_be_bytes([packet[header + 4], packet[header + 5]]));
                }
            }
            let mine = |ident: &u16| mask >> (ident & 63) & 1 == 1;
            let expected: Vec<_> = (0..200).filter(mine).flat_map(|ident| [ident, ident]).collect();
            assert_eq!(got, expected, "{mask:#x}");
        }
    });
}

#[test]
fn errors_about_echo_requests_come_to_the_worker_of_the_quoted_ident_if_they_are_wanted() {
    in_network(|| {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap().unwrap();
        netlink.set_up(lo, true).unwrap();
        netlink.add_address(lo, GATEWAY, 32).unwrap();
        let send = SendSocket::open(GATEWAY, 1 << 20).unwrap();
        let open = |mask, wanted| ReceiveSocket::open(mask, wanted, 4 << 20).unwrap();
        let mut sockets: Vec<_> =
            [Shards::of_worker(0, 3), Shards::of_worker(1, 3), Shards::of_worker(2, 3), Shards::ALL]
                .map(|mask| (open(mask, Wanted::RepliesAndErrors), mask))
                .into();
        sockets.push((open(Shards::ALL, Wanted::Replies), Shards(0)));
        let deliver = |payload: Vec<u8>, options: Vec<u8>| {
            let bytes = Datagram { options, ..Datagram::new(GATEWAY, GATEWAY, ICMP, payload) }.build();
            let to = std::iter::once((bytes.as_slice(), GATEWAY));
            assert_eq!(echogate::sys::net::send_many(send.as_fd(), to).unwrap(), 1);
        };
        let request = |ident: u16, options: Vec<u8>| {
            let message = build::echo_message(EchoKind::Request, ident, 1, b"quoted");
            Datagram { options, ..Datagram::new(GATEWAY, REMOTE, ICMP, message) }.build()
        };
        for ident in 0..100 {
            deliver(build::error_message(11, 0, 0, &request(ident, vec![])[..28]), vec![]);
            deliver(build::error_message(3, 1, 0, &request(ident, vec![1; 12])), vec![1; 8]);
            deliver(build::error_message(12, 0, 0, &request(ident, vec![1; 40])), vec![]);
        }
        // About something else, or not an error of a proxied echo: nobody's.
        deliver(build::error_message(3, 3, 0, &Datagram::new(GATEWAY, REMOTE, UDP, vec![8; 40]).build()), vec![]);
        deliver(build::error_message(3, 3, 0, &build::echo_reply(GATEWAY, REMOTE, 1, 1, 64, b"")), vec![]);
        deliver(build::error_message(11, 0, 0, &request(1, vec![])[..24]), vec![]);
        deliver(build::error_message(4, 0, 0, &request(1, vec![])), vec![]);
        deliver(build::error_message(5, 0, 0, &request(1, vec![])), vec![]);
        for (socket, Shards(mask)) in sockets {
            let mut got = Vec::new();
            let mut packet = [0; 256];
            while let Ok(len) = event::read(socket.as_fd(), &mut packet) {
                let packet = Ipv4::check(&packet[..len]).unwrap();
                got.push(Quote::check(packet.payload()).unwrap().ident());
            }
            let mine = |ident: &u16| mask >> (ident & 63) & 1 == 1;
            let expected: Vec<_> = (0..100).filter(mine).flat_map(|ident| [ident; 3]).collect();
            assert_eq!(got, expected, "{mask:#x}");
        }
    });
}

#[test]
fn a_persistent_device_is_adopted_and_stays() {
    in_network(|| {
        run("ip", &["tuntap", "add", "kept0", "mode", "tun"], "iproute2");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link_index("kept0").unwrap();
        drop(Tun::open("kept0", 1).unwrap());
        assert_eq!(netlink.link_index("kept0").unwrap(), index);
        assert_eq!(Tun::open("kept0", 2).unwrap_err().errno(), Some(libc::EBUSY), "it has one queue");
    });
}

#[test]
fn an_address_that_is_not_ours_is_refused_with_the_remedy() {
    in_network(|| {
        let error = SendSocket::open(GATEWAY, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("ip link set lo up"), "{error}");
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap().unwrap();
        netlink.set_up(lo, true).unwrap();
        let error = SendSocket::open(GATEWAY, 1 << 20).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL));
        assert!(error.to_string().contains("ip address add 198.18.0.1/32 dev lo"), "{error}");
    });
}
