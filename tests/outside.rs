//! The outside that a server gets done for it, on real raw sockets. Outside is the loopback device: the remote's address
//! is local, so the kernel answers its echo requests. Linux only, and as root: each test makes a network namespace.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use echogate::clock::{Clock, Monotonic};
use echogate::host::netlink::Netlink;
use echogate::outside::{Deliver, Outside};
use echogate::proxy::{Handle, Outbound, Proxy, Settings, Ttl};
use echogate::sys::namespace;
use echogate::wire::build;
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::Ipv4;

const GATEWAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 3)];
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const SOON: Duration = Duration::from_secs(5);

/// A network in which the kernel answers for the remote, and a server's thread in it.
fn in_network(work: impl FnOnce(Server) + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    let work = || {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link_index("lo").unwrap().unwrap();
        netlink.set_up(lo, true).unwrap();
        for address in [GATEWAYS[0], GATEWAYS[1], REMOTE] {
            netlink.add_address(lo, address, 32).unwrap();
        }
        work(Server::new(&GATEWAYS));
    };
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}

struct Server {
    proxy: Arc<Proxy>,
    handle: Handle,
    clock: Monotonic,
}

impl Server {
    fn new(gateways: &[Ipv4Addr]) -> Server {
        let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], gateways.to_vec());
        settings.ttl = Ttl::Decrement;
        settings.echo_words_log2 = 14;
        let proxy = Proxy::new(&settings).unwrap();
        Server { handle: proxy.handle(0).unwrap(), proxy, clock: Monotonic::new() }
    }

    fn ping(&mut self, outside: &Outside, client: Ipv4Addr, remote: Ipv4Addr, sequence: u16) -> io::Result<()> {
        let mut packet = build::echo_request(client, remote, 1, sequence, 64, b"payload");
        let mut batch = self.handle.batch(self.clock.now());
        let Outbound::Forward { address, remote, length, .. } = batch.outbound(&mut packet) else { panic!() };
        let sent = outside.sender().send(&packet[..length], address, remote);
        if sent.is_err() {
            assert!(batch.withdraw(&packet));
        }
        sent
    }
}

fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, 0, number)
}

/// What was delivered, and to whom.
type Replies = Receiver<(Ipv4Addr, Vec<u8>)>;

/// A callback that passes on what it gets.
fn passing_on() -> (impl FnMut(Ipv4Addr, &mut [u8]) -> io::Result<()> + Send + 'static, Replies) {
    let (told, replies) = channel::unbounded();
    let callback = move |client, packet: &mut [u8]| {
        told.send((client, packet.to_vec())).unwrap();
        Ok(())
    };
    (callback, replies)
}

#[test]
fn each_client_gets_its_own_reply_from_either_gateway_address() {
    in_network(|mut server| {
        let (callback, replies) = passing_on();
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        // Enough clients that both gateway addresses are used.
        for number in 2..34 {
            server.ping(&outside, client(number), REMOTE, u16::from(number)).unwrap();
        }
        for _ in 2..34 {
            let (to, packet) = replies.recv_timeout(SOON).unwrap();
            let packet = Ipv4::check(&packet[..]).unwrap();
            let echo = Echo::check(packet.payload()).unwrap();
            assert_eq!((packet.source(), packet.destination(), packet.ttl()), (REMOTE, to, 63));
            assert_eq!((echo.ident(), echo.sequence()), (1, u16::from(to.octets()[3])));
            assert!(packet.header_is_intact() && echo.is_intact());
        }
        let snapshot = outside.stop().unwrap();
        assert_eq!((snapshot.outside_in.packets, snapshot.delivered.packets), (32, 32));
        assert_eq!((snapshot.drops, server.proxy.outstanding()), (vec![], 0));
    });
}

#[test]
fn a_queue_that_is_full_drops_and_counts_and_goes_on_when_it_is_emptied() {
    in_network(|mut server| {
        let (outside, replies) = Outside::open_queue(&server.proxy, server.clock, 2).unwrap();
        let all_in = |count| {
            let until = Instant::now() + SOON;
            while outside.snapshot().packets_accounted() < count {
                assert!(Instant::now() < until, "{:?}", outside.snapshot());
                std::thread::yield_now();
            }
        };
        for sequence in 0..5 {
            server.ping(&outside, client(2), REMOTE, sequence).unwrap();
        }
        all_in(5);
        let snapshot = outside.snapshot();
        assert_eq!((snapshot.delivered.packets, snapshot.dropped("send_inside_enobufs")), (2, 3));
        for reply in replies.try_iter() {
            assert_eq!((reply.client(), Ipv4::check(&reply[..]).unwrap().destination()), (client(2), client(2)));
        }
        server.ping(&outside, client(2), REMOTE, 5).unwrap();
        assert_eq!(replies.recv_timeout(SOON).unwrap().client(), client(2));
        drop(replies);
        server.ping(&outside, client(2), REMOTE, 6).unwrap();
        all_in(7);
        assert_eq!(outside.stop().unwrap().dropped("send_inside_errno_32"), 1, "nobody takes replies any more");
    });
}

#[test]
fn whoever_takes_the_replies_hears_of_each_batchs_end() {
    struct Counts(channel::Sender<usize>, usize);
    impl Deliver for Counts {
        fn deliver(&mut self, _: Ipv4Addr, _: &mut [u8]) -> io::Result<()> {
            self.1 += 1;
            Ok(())
        }
        fn flush(&mut self) {
            self.0.send(std::mem::take(&mut self.1)).unwrap();
        }
    }
    in_network(|mut server| {
        let (told, batches) = channel::unbounded();
        let outside = Outside::open_with(&server.proxy, server.clock, Counts(told, 0)).unwrap();
        for sequence in 0..9 {
            server.ping(&outside, client(2), REMOTE, sequence).unwrap();
        }
        let mut count = 0;
        while count < 9 {
            count += batches.recv_timeout(SOON).unwrap();
        }
        assert_eq!(count, 9);
    });
}

#[test]
fn a_reply_that_nobody_waits_for_reaches_no_callback() {
    in_network(|mut server| {
        let (callback, replies) = passing_on();
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        // Asked by somebody else on the host, with the gateway's address: the socket gets a copy of the reply.
        let foreign = build::echo_request(GATEWAYS[0], REMOTE, 7, 7, 64, b"");
        outside.sender().send(&foreign, 0, REMOTE).unwrap();
        server.ping(&outside, client(2), REMOTE, 1).unwrap();
        assert_eq!(replies.recv_timeout(SOON).unwrap().0, client(2));
        assert_eq!(replies.try_iter().count(), 0);
        assert_eq!(outside.stop().unwrap().dropped("no_echo"), 1);
    });
}

#[test]
fn a_send_that_fails_tells_why_and_the_echo_can_be_withdrawn() {
    in_network(|mut server| {
        let (callback, _replies) = passing_on();
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        let nowhere = Ipv4Addr::new(203, 0, 113, 9);
        let error = server.ping(&outside, client(2), nowhere, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
        assert_eq!(server.proxy.outstanding(), 0);
        let error = outside.sender().send(&[0x45; 28], 16, REMOTE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "there is no such gateway address");
        assert!(outside.sender().send(&[], 0, REMOTE).is_err(), "no packet");
        server.ping(&outside, client(2), REMOTE, 2).expect("the next one is sent");
    });
}

#[test]
fn a_callback_that_panics_is_told_and_stops_nobody_else() {
    in_network(|mut server| {
        let outside = Outside::open(&server.proxy, server.clock, |_, _| panic!("the server's own mistake")).unwrap();
        server.ping(&outside, client(2), REMOTE, 1).unwrap();
        let fault = outside.faults().recv_timeout(SOON).unwrap().to_string();
        assert!(fault.contains("receives from outside ended") && fault.contains("callback"), "{fault}");
        assert!(outside.stop().unwrap_err().to_string().contains("panicked"));
        let (callback, replies) = passing_on();
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        server.ping(&outside, client(2), REMOTE, 2).unwrap();
        assert_eq!(replies.recv_timeout(SOON).unwrap().0, client(2));
        drop(outside);
    });
}

/// As a server does whose callback holds the last reference to it.
#[test]
fn a_callback_that_drops_its_own_outside_does_not_wait_for_itself() {
    in_network(|mut server| {
        let (told, dropped) = channel::unbounded();
        let place: Arc<Mutex<Option<Outside>>> = Arc::default();
        let own = Arc::clone(&place);
        let callback = move |_: Ipv4Addr, _: &mut [u8]| {
            drop(own.lock().unwrap().take());
            told.send(()).unwrap();
            Ok(())
        };
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        let sender = outside.sender();
        *place.lock().unwrap() = Some(outside);
        let mut packet = build::echo_request(client(2), REMOTE, 1, 1, 64, b"payload");
        let mut batch = server.handle.batch(server.clock.now());
        let Outbound::Forward { address, remote, length, .. } = batch.outbound(&mut packet) else { panic!() };
        sender.send(&packet[..length], address, remote).unwrap();
        assert_eq!(dropped.recv_timeout(SOON), Ok(()));
        assert_eq!(dropped.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected), "the thread ended by itself");
    });
}

#[test]
fn an_idle_outside_uses_no_time_and_stops_at_once() {
    in_network(|server| {
        let (callback, replies) = passing_on();
        let outside = Outside::open(&server.proxy, server.clock, callback).unwrap();
        let before = switches_of("echogate-outsid");
        assert_eq!(replies.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
        assert_eq!(switches_of("echogate-outsid"), before, "it turns although there is nothing to do");
        let begin = Instant::now();
        outside.stop().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(replies.recv(), Err(channel::RecvError), "the callback went with its thread");
    });
}

/// How often the threads of this name in the calling thread's network namespace gave their CPU up: the other tests' are in
/// other namespaces.
fn switches_of(name: &str) -> Vec<String> {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let ours = tasks.filter(|task| {
        std::fs::read_link(task.join("ns/net")).is_ok_and(|namespace| namespace == own)
            && std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let found: Vec<String> = ours
        .map(|task| {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            status.lines().filter(|line| line.contains("ctxt_switches")).collect()
        })
        .collect();
    assert_eq!(found.len(), 1, "one receiving thread");
    found
}

#[test]
fn what_cannot_be_opened_says_what_mends_it() {
    in_network(|_| {
        let server = Server::new(&[Ipv4Addr::new(192, 0, 2, 1)]);
        let refused = Outside::open(&server.proxy, server.clock, |_, _| Ok(())).unwrap_err().to_string();
        assert!(refused.contains("192.0.2.1") && refused.contains("remedy: "), "{refused}");
        let refused = Outside::open_queue(&server.proxy, server.clock, 0).unwrap_err().to_string();
        assert!(refused.contains("without room") && refused.contains("remedy: "), "{refused}");
    });
}
