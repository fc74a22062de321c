//! A packet on a live mapping allocates nothing: a counting allocator says so, for the proxy, and for whole workers over
//! a real TUN and raw sockets. Making or expiring a mapping may allocate.
//!
//! The outside of a server that embeds the proxy is counted too, on both of its threads. The tests with sockets need root: they
//! make network namespaces.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod counting;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use counting::{allocations, allocations_of, outside_thread};
use echogate::clock::{Clock, Instant, Monotonic};
use echogate::host::netlink::Netlink;
use echogate::io::raw::{ReceiveSocket, SendSocket, Shards, Wanted};
use echogate::io::syscalls::SyscallsIo;
use echogate::io::tun::Tun;
use echogate::io::uring::UringIo;
use echogate::io::{FallThrough, PacketIo, Ports, Sizes, Waker};
use echogate::metrics::Counters;
use echogate::outside::Outside;
use echogate::proxy::{Handle, Inbound, Outbound, Proxy, Settings, Ttl};
use echogate::sys::namespace;
use echogate::table::clients::Allowance;
use echogate::wire::build;
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::Ipv4;
use echogate::worker::{Post, Worker};
use socket2::{Domain, Protocol, Socket, Type};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const SOON: Duration = Duration::from_secs(10);

#[test]
fn what_is_allocated_is_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 100]))), 1, "zeroed");
    let mut vector = vec![1_u8];
    assert_eq!(allocations(|| vector.reserve_exact(std::hint::black_box(100))), 1, "grown");
}

fn settings() -> Settings {
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 16;
    settings.allowance = Allowance::UNLIMITED;
    settings.seed = Some(1);
    settings
}

/// A request of mapping number `mapping` of 1000.
fn request(mapping: u16, sequence: u16) -> Vec<u8> {
    let client = Ipv4Addr::new(10, 66, 0, 2 + (mapping % 100).to_le_bytes()[0]);
    build::echo_request(client, REMOTE, mapping / 100, sequence, 64, b"a payload of some length")
}

fn answer(request: &[u8]) -> Vec<u8> {
    let request = Ipv4::check(request).unwrap();
    let echo = Echo::check(request.payload()).unwrap();
    build::echo_reply(REMOTE, request.source(), echo.ident(), echo.sequence(), 60, echo.payload())
}

/// One ping for each of the mappings in a batch, and their replies in the next. Returns the proxy's allocations.
fn pings(handle: &mut Handle, mappings: std::ops::Range<u16>, sequence: u16, now: Instant) -> u64 {
    let mut requests: Vec<Vec<u8>> = mappings.map(|mapping| request(mapping, sequence)).collect();
    let out = allocations(|| {
        let mut batch = handle.batch(now);
        for packet in &mut requests {
            assert!(matches!(batch.outbound(packet), Outbound::Forward { .. }));
        }
        batch.expire();
    });
    let mut replies: Vec<Vec<u8>> = requests.iter().map(|request| answer(request)).collect();
    let back = allocations(|| {
        let mut batch = handle.batch(now + Duration::from_millis(1));
        for packet in &mut replies {
            assert!(matches!(batch.inbound(packet), Inbound::Deliver { .. }));
        }
        batch.expire();
    });
    out + back
}

mod a_million_packets_on_live_mappings_allocate_nothing {
    use super::{Ttl, a_million_packets_allocate_nothing};

    #[test]
    fn as_the_kernel_routes_them() {
        a_million_packets_allocate_nothing(Ttl::AlreadyDecremented);
    }

    #[test]
    fn as_an_embedding_server_routes_them() {
        a_million_packets_allocate_nothing(Ttl::Decrement);
    }
}

fn a_million_packets_allocate_nothing(ttl: Ttl) {
    let mut handle = Proxy::new(&Settings { ttl, ..settings() }).unwrap().handle(0).unwrap();
    let mut now = Instant::START;
    let mut made = 0;
    // No more than a batch may make.
    for first in (0..1000).step_by(20) {
        made += pings(&mut handle, first..first + 20, 0, now);
    }
    assert!(made > 0 && handle.mappings() == 1000, "{made} allocations for {} mappings", handle.mappings());

    let mut packets = 0;
    let mut sequence = 0_u16;
    while packets < 1_000_000 {
        sequence = sequence.wrapping_add(1);
        for first in (0..1000).step_by(250) {
            now = now + Duration::from_millis(2);
            assert_eq!(pings(&mut handle, first..first + 250, sequence, now), 0, "after {packets} packets");
            packets += 500;
        }
    }
    assert_eq!(handle.mappings(), 1000);
}

mod the_outside_of_an_embedding_server_allocates_nothing {
    use super::{Outside, SOON, outside_allocates_nothing};

    #[test]
    fn with_a_callback() {
        outside_allocates_nothing(|proxy, clock| {
            let (told, taken) = crossbeam::channel::bounded(64);
            let callback = move |client, _: &mut [u8]| {
                told.send(client).unwrap();
                Ok(())
            };
            let outside = Outside::open(proxy, clock, callback).unwrap();
            (outside, Box::new(move || assert!(taken.recv_timeout(SOON).is_ok())))
        });
    }

    #[test]
    fn with_a_queue() {
        outside_allocates_nothing(|proxy, clock| {
            let (outside, replies) = Outside::open_queue(proxy, clock, 64).unwrap();
            // The channel allocates when a thread first waits at it, which on an idle machine none may for long.
            assert!(replies.recv_timeout(Duration::from_millis(1)).is_err());
            (outside, Box::new(move || drop(replies.recv_timeout(SOON).unwrap())))
        });
    }
}

/// Takes a reply out of wherever the outside delivers to.
type Take = Box<dyn FnMut()>;

/// The whole embedded path: the server's thread, and the receiving one.
fn outside_allocates_nothing(open: impl FnOnce(&Arc<Proxy>, Monotonic) -> (Outside, Take) + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    let work = || {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap().unwrap();
        netlink.set_up(lo, true).unwrap();
        for address in [GATEWAY, REMOTE] {
            netlink.add_address(lo, address, 32).unwrap();
        }
        let clock = Monotonic::new();
        let proxy = Proxy::new(&Settings { ttl: Ttl::Decrement, ..settings() }).unwrap();
        let mut handle = proxy.handle(0).unwrap();
        let (outside, mut take) = open(&proxy, clock);
        let sender = outside.sender();
        // What the server's thread allocates for 20 pings.
        let mut pings = |sequence: u16| -> u64 {
            let mut requests: Vec<Vec<u8>> = (0..20).map(|mapping| request(mapping, sequence)).collect();
            allocations(|| {
                let mut batch = handle.batch(clock.now());
                for packet in &mut requests {
                    let Outbound::Forward { address, remote, length, .. } = batch.outbound(packet) else { panic!() };
                    sender.send(&packet[..length], address, remote).unwrap();
                }
                batch.expire();
                drop(batch);
                if sequence == 0 {
                    // All at once in the queue, so that there are as many buffers as there can ever be in use.
                    let until = clock.now() + SOON;
                    while outside.snapshot().delivered.packets < 20 {
                        assert!(clock.now() < until, "replies are missing");
                        std::thread::yield_now();
                    }
                }
                (0..20).for_each(|_| take());
            })
        };
        // The first make the mappings, and fill every buffer once.
        let made: u64 = (0..50).map(&mut pings).sum();
        let thread = outside_thread();
        let before = allocations_of(thread);
        let own: u64 = (50..1000).map(&mut pings).sum();
        let others = allocations_of(thread) - before;
        assert!(made > 0 && before > 0, "something is not counted: {made}, {before}");
        assert_eq!((own, others), (0, 0), "allocations for 19,000 pings");
        assert_eq!(outside.stop().unwrap().delivered.packets, 20_000);
    };
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}

mod a_worker_with_live_mappings_allocates_nothing {
    use super::{SyscallsIo, UringIo, worker_allocates_nothing};

    #[test]
    fn uring() {
        worker_allocates_nothing(|ports| UringIo::new(ports).unwrap());
    }

    #[test]
    fn syscalls() {
        worker_allocates_nothing(|ports| SyscallsIo::new(ports).unwrap());
    }
}

/// A namespace with a TUN, in which the kernel answers for the remote; and a socket that sends into the TUN as the
/// clients do.
fn ports() -> (Ports, Socket) {
    // No packets but ours: a new device would solicit IPv6 routers.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let mut netlink = Netlink::open().unwrap();
    let lo = netlink.link_index("lo").unwrap().unwrap();
    netlink.set_up(lo, true).unwrap();
    for address in [GATEWAY, REMOTE] {
        netlink.add_address(lo, address, 32).unwrap();
    }
    let tun = Tun::open("echogate0", 1).unwrap().pop().unwrap();
    let index = netlink.link_index("echogate0").unwrap().unwrap();
    netlink.set_queue_length(index, 5000).unwrap();
    netlink.set_up(index, true).unwrap();
    netlink.add_address(index, Ipv4Addr::new(10, 66, 0, 1), 32).unwrap();
    let ports = Ports {
        tun,
        receive: ReceiveSocket::open(Shards::ALL, Wanted::RepliesAndErrors, 4 << 20).unwrap(),
        send: vec![SendSocket::open(GATEWAY, 1 << 20).unwrap()],
        waker: Waker::new().unwrap(),
        sizes: Sizes::for_mtu(1500),
    };
    // Bound to the device, what it sends takes the device, although the remote is local.
    let clients = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    clients.bind_device(Some(b"echogate0")).unwrap();
    (ports, clients)
}

fn worker_allocates_nothing<I: PacketIo>(open: impl FnOnce(Ports) -> I + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    let work = || {
        let (ports, clients) = ports();
        let counters = Counters::new(1, 1);
        let handle = Proxy::new(&settings()).unwrap().handle(0).unwrap();
        let mut worker = Worker::new(open(ports), handle, Post::alone(), counters.worker(0), FallThrough::Drop);
        let clock = Monotonic::new();
        let to = SocketAddrV4::new(REMOTE, 0).into();
        // What the worker allocates while 50 mappings ping once.
        let mut pings = |sequence: u16| {
            for mapping in 0..50 {
                clients.send_to(&request(mapping, sequence), &to).unwrap();
            }
            let all = u64::from(sequence + 1) * 50;
            let until = clock.now() + Duration::from_secs(5);
            let mut count = 0;
            while counters.snapshot().delivered.packets < all {
                assert!(clock.now() < until, "{:?}", counters.snapshot());
                count += allocations(|| worker.turn(&clock, Some(Duration::from_millis(100))).unwrap());
            }
            count
        };
        // The first make the mappings, fill every buffer once and grow what grows.
        let warm_up = 100;
        let made: u64 = (0..warm_up).map(&mut pings).sum();
        assert!(made > 0, "making mappings allocates, or nothing is counted");
        let count: u64 = (warm_up..1000).map(&mut pings).sum();
        assert_eq!(count, 0, "allocations for 45,000 pings");
    };
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}
