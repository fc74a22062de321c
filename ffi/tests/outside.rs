//! The outside for C, on real raw sockets in the lab. As root.

#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(unsafe_code, reason = "C's pointers")]

use std::ffi::{CStr, CString, c_void};
use std::net::Ipv4Addr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Sender};
use echogate::lab::{Lab, LabOptions};
use echogate::wire::build;
use echogate::wire::ipv4::Ipv4;
use echogate_c::EchogateStatus::{
    Busy, Empty, Ended, Length, NotSent, Null, Ok as Fine, Setup, Short, Unknown, Unsupported,
};
use echogate_c::{EchogateVerdict as Verdict, *};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const SOON_NS: u64 = 10_000_000_000;

fn order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

struct Server {
    proxy: EchogateProxy,
    handle: EchogateHandle,
    remote: Ipv4Addr,
}

/// A server in C's place, in the lab's gateway.
fn in_lab(work: impl FnOnce(&Server) + Send) {
    let lab = Lab::build(&LabOptions::default()).expect("it makes network namespaces: run it as root (scripts/test)");
    let remote = lab.remotes()[0];
    let server = || {
        let server = Server::new(remote, "198.18.0.1");
        work(&server);
        assert_eq!((echogate_handle_free(server.handle), echogate_proxy_free(server.proxy)), (Fine, Fine));
    };
    lab.gateway().run(server).unwrap();
}

impl Server {
    fn new(remote: Ipv4Addr, gateway: &str) -> Server {
        let (clients, addresses) = (CString::new("10.66.0.0/24").unwrap(), CString::new(gateway).unwrap());
        let mut settings = std::mem::MaybeUninit::uninit();
        // SAFETY: memory for settings.
        assert_eq!(unsafe { echogate_settings_init(settings.as_mut_ptr(), size_of::<EchogateSettings>()) }, Fine);
        // SAFETY: they have been filled.
        let mut settings = unsafe { settings.assume_init() };
        (settings.clients, settings.addresses, settings.echo_words_log2) = (clients.as_ptr(), addresses.as_ptr(), 14);
        let (mut proxy, mut handle) = (0, 0);
        // SAFETY: settings with texts that live, and a place for the proxy.
        assert_eq!(unsafe { echogate_proxy_new(&raw const settings, &raw mut proxy, null_mut(), 0) }, Fine);
        // SAFETY: a place for the handle.
        assert_eq!(unsafe { echogate_handle_new(proxy, 0, &raw mut handle) }, Fine);
        Server { proxy, handle, remote }
    }

    /// Sends a request of the client's; the errno if that failed, after which the echo is withdrawn.
    fn ping(&self, outside: EchogateOutside, remote: Ipv4Addr, sequence: u16) -> Result<(), i32> {
        let mut packet = build::echo_request(CLIENT, remote, 1, sequence, 64, b"payload");
        let mut answer = EchogateAnswer::default();
        let (bytes, length, now) = (packet.as_mut_ptr(), packet.len(), echogate_now());
        // SAFETY: a packet and a place for the answer.
        assert_eq!(unsafe { echogate_outbound(self.handle, now, 0, bytes, length, &raw mut answer) }, Fine);
        assert_eq!(answer.verdict, Verdict::Forward as i32);
        let mut errno = 0;
        // SAFETY: a packet and a place for the errno.
        match unsafe { echogate_outside_send(outside, bytes, length, answer.address, answer.to, &raw mut errno) } {
            Fine => return Ok(()),
            status => assert_eq!(status, NotSent),
        }
        let (mut error, mut told) = ([0; ECHOGATE_ERROR_BYTES_MAX], 0);
        let (buffer, room, told) = (error.as_mut_ptr(), error.len(), &raw mut told);
        // SAFETY: a packet, a buffer apart from it, a place for the length.
        assert_eq!(unsafe { echogate_not_sent(self.handle, now, bytes, length, errno, 0, buffer, room, told) }, Fine);
        Err(errno)
    }

    fn open_queue(&self, room: usize) -> EchogateOutside {
        let mut outside = 0;
        // SAFETY: a place for the outside.
        assert_eq!(unsafe { echogate_outside_open_queue(self.proxy, room, &raw mut outside, null_mut(), 0) }, Fine);
        outside
    }

    fn open(&self, deliver: EchogateDeliver, context: *mut c_void) -> EchogateOutside {
        let mut outside = 0;
        // SAFETY: a callback that takes this context, and a place for the outside.
        let status = unsafe { echogate_outside_open(self.proxy, deliver, context, &raw mut outside, null_mut(), 0) };
        assert_eq!(status, Fine);
        outside
    }
}

/// Waits for a reply, in a buffer of `room`.
fn receive(outside: EchogateOutside, wait_ns: u64, room: usize) -> (EchogateStatus, u32, Vec<u8>) {
    let (mut buffer, mut client, mut length) = (vec![0; room], 0, 0);
    let bytes = buffer.as_mut_ptr();
    // SAFETY: a buffer of this room, and places.
    let status = unsafe { echogate_outside_receive(outside, wait_ns, bytes, room, &raw mut client, &raw mut length) };
    buffer.truncate(length);
    (status, client, buffer)
}

fn counters(outside: EchogateOutside) -> EchogateCounters {
    let mut counters = EchogateCounters::default();
    // SAFETY: a place for them.
    let status = unsafe { echogate_outside_counters(outside, &raw mut counters, size_of::<EchogateCounters>()) };
    assert_eq!(status, Fine);
    counters
}

#[test]
fn replies_wait_in_the_queue_and_what_it_has_no_room_for_is_counted() {
    in_lab(|server| {
        let outside = server.open_queue(2);
        assert_eq!(receive(outside, 0, 1500).0, Empty);
        for sequence in 0..5 {
            server.ping(outside, server.remote, sequence).unwrap();
        }
        let until = Instant::now() + Duration::from_nanos(SOON_NS);
        while counters(outside).received < 5 || counters(outside).delivered + counters(outside).dropped < 5 {
            assert!(Instant::now() < until, "{:?}", counters(outside));
            std::thread::yield_now();
        }
        assert_eq!(counters(outside), EchogateCounters { received: 5, delivered: 2, told: 0, dropped: 3 });
        let (status, client, packet) = receive(outside, SOON_NS, 1500);
        assert_eq!((status, client), (Fine, order(CLIENT)));
        let reply = Ipv4::check(&packet[..]).unwrap();
        assert_eq!((reply.source(), reply.destination(), reply.total_len()), (server.remote, CLIENT, packet.len()));
        assert_eq!(receive(outside, SOON_NS, 20).0, Short);
        assert_eq!(receive(outside, 1, 1500).0, Empty, "what a short buffer was given for is gone");
        server.ping(outside, server.remote, 9).unwrap();
        assert_eq!(receive(outside, ECHOGATE_FOREVER, 65_535).0, Fine);
        assert_eq!(echogate_outside_free(outside), Fine);
        assert_eq!(receive(outside, 0, 1500).0, Unknown);
    });
}

#[test]
fn who_waits_for_a_reply_is_woken_when_the_outside_is_freed() {
    in_lab(|server| {
        let outside = server.open_queue(2);
        let (entered, waits) = channel::bounded(0);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(move || {
                entered.send(()).unwrap();
                receive(outside, ECHOGATE_FOREVER, 1500).0
            });
            waits.recv().unwrap();
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(echogate_outside_free(outside), Fine);
            // The thread may not have got as far as waiting.
            assert!([Ended, Unknown].contains(&waiter.join().unwrap()));
        });
    });
}

/// What the callback below is told through its context.
struct Taken {
    told: Sender<(u32, Vec<u8>, EchogateStatus)>,
    outside: AtomicU64,
}

unsafe extern "C" fn take(context: *mut c_void, client: u32, bytes: *mut u8, length: usize) -> i32 {
    // SAFETY: the tests pass a `Taken` that outlives the outside.
    let taken = unsafe { &*context.cast::<Taken>() };
    // SAFETY: a reply of this length.
    let packet = unsafe { std::slice::from_raw_parts(bytes, length) };
    // Relaxed: a number alone; it was set before the first request was sent.
    let freed = echogate_outside_free(taken.outside.load(Ordering::Relaxed));
    taken.told.send((client, packet.to_vec(), freed)).unwrap();
    // By its sequence.
    if packet[27] == 2 { libc::ENOBUFS } else { 0 }
}

#[test]
fn a_callback_takes_the_replies_refuses_some_and_cannot_free_its_own_outside() {
    in_lab(|server| {
        let (told, replies) = channel::unbounded();
        let mut taken = Taken { told, outside: AtomicU64::new(0) };
        let outside = server.open(Some(take), (&raw mut taken).cast());
        taken.outside.store(outside, Ordering::Relaxed);
        server.ping(outside, server.remote, 1).unwrap();
        let (client, packet, freed) = replies.recv_timeout(Duration::from_nanos(SOON_NS)).unwrap();
        assert_eq!((client, Ipv4::check(&packet[..]).unwrap().destination()), (order(CLIENT), CLIENT));
        assert_eq!(freed, Busy);
        assert_eq!(receive(outside, 0, 1500).0, Unsupported, "there is no queue");
        server.ping(outside, server.remote, 2).unwrap();
        replies.recv_timeout(Duration::from_nanos(SOON_NS)).unwrap();
        let until = Instant::now() + Duration::from_nanos(SOON_NS);
        while counters(outside) != (EchogateCounters { received: 2, delivered: 1, told: 0, dropped: 1 }) {
            assert!(Instant::now() < until, "{:?}", counters(outside));
            std::thread::yield_now();
        }
        assert_eq!(echogate_outside_free(outside), Fine);
        assert!(replies.is_empty(), "once, and not after it was freed");
    });
}

#[test]
fn what_the_kernel_does_not_send_comes_with_its_errno() {
    in_lab(|server| {
        let outside = server.open_queue(2);
        // The lab's gateway has a default route; its own broadcast address is what the kernel refuses.
        assert_eq!(server.ping(outside, Ipv4Addr::new(198, 18, 0, 255), 1), Err(libc::EACCES));
        let mut packet = build::echo_request(CLIENT, server.remote, 1, 1, 64, b"");
        let (bytes, length, to) = (packet.as_mut_ptr(), packet.len(), order(server.remote));
        // SAFETY: a packet; NULL is allowed there.
        assert_eq!(unsafe { echogate_outside_send(outside, bytes, length, 16, to, null_mut()) }, NotSent);
        // SAFETY: NULL is not followed.
        assert_eq!(unsafe { echogate_outside_send(outside, null_mut(), length, 0, to, null_mut()) }, Null);
        let mut mtu = 7;
        // SAFETY: a place for the number.
        assert_eq!(unsafe { echogate_outside_mtu(outside, 0, to, &raw mut mtu) }, Fine);
        assert_eq!(mtu, 1500);
        // SAFETY: as above.
        assert_eq!(unsafe { echogate_outside_mtu(outside, 16, to, &raw mut mtu) }, Fine);
        assert_eq!(mtu, 0, "there is no such gateway address");
        // SAFETY: without a buffer nothing is written.
        assert_eq!(unsafe { echogate_outside_fault(outside, null_mut(), 0) }, Fine);
        assert_eq!(echogate_outside_free(outside), Fine);
    });
}

#[test]
fn an_outside_that_cannot_be_opened_says_why() {
    in_lab(|server| {
        let elsewhere = Server::new(server.remote, "192.0.2.1");
        let (mut error, mut outside) = ([0_u8; 300], 0);
        let (text, room) = (error.as_mut_ptr().cast(), error.len());
        // SAFETY: a place and a buffer.
        let status = unsafe { echogate_outside_open_queue(elsewhere.proxy, 2, &raw mut outside, text, room) };
        let told = CStr::from_bytes_until_nul(&error).unwrap().to_str().unwrap();
        assert!(status == Setup && told.contains("192.0.2.1") && told.contains("remedy: "), "{status:?}: {told}");
        // SAFETY: as above.
        assert_eq!(unsafe { echogate_outside_open_queue(elsewhere.proxy, 0, &raw mut outside, text, room) }, Setup);
        // SAFETY: as above.
        let status = unsafe { echogate_outside_open_queue(elsewhere.proxy, usize::MAX, &raw mut outside, text, room) };
        assert_eq!(status, Length);
        // SAFETY: as above; no callback is called.
        let status = unsafe { echogate_outside_open(elsewhere.proxy, None, null_mut(), &raw mut outside, text, room) };
        assert_eq!(status, Null);
        // SAFETY: as above.
        assert_eq!(unsafe { echogate_outside_open_queue(7, 2, &raw mut outside, text, room) }, Unknown);
        assert_eq!((echogate_handle_free(elsewhere.handle), echogate_proxy_free(elsewhere.proxy)), (Fine, Fine));
    });
}
