//! A packet on a live mapping allocates nothing on its way through the C face, nor does the thread that receives for it. The
//! one with sockets needs root.

#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(unsafe_code, reason = "C's pointers")]

#[path = "../../tests/counting/mod.rs"]
mod counting;

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::ptr::null_mut;
use std::thread;
use std::time::{Duration, Instant};

use counting::{allocations, allocations_of, outside_thread};
use echogate::lab::{Lab, LabOptions};
use echogate::wire::build;
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::Ipv4;
use echogate_c::EchogateStatus::Ok as Fine;
use echogate_c::{EchogateVerdict as Verdict, *};

const GATEWAY: &str = "198.18.0.1";

fn proxy_and_handle() -> (EchogateProxy, EchogateHandle) {
    let (clients, addresses) = (CString::new("10.66.0.0/24").unwrap(), CString::new(GATEWAY).unwrap());
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: memory for settings.
    assert_eq!(unsafe { echogate_settings_init(settings.as_mut_ptr(), size_of::<EchogateSettings>()) }, Fine);
    // SAFETY: they have been filled.
    let mut settings = unsafe { settings.assume_init() };
    (settings.clients, settings.addresses, settings.echo_words_log2) = (clients.as_ptr(), addresses.as_ptr(), 14);
    (settings.packets_per_second, settings.bytes_per_second) = (0, 0);
    let (mut proxy, mut handle) = (0, 0);
    // SAFETY: settings with texts that live, and a place for the proxy.
    assert_eq!(unsafe { echogate_proxy_new(&raw const settings, &raw mut proxy, null_mut(), 0) }, Fine);
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { echogate_handle_new(proxy, 0, &raw mut handle) }, Fine);
    (proxy, handle)
}

/// Requests of 20 mappings.
fn requests(remote: Ipv4Addr, sequence: u16) -> Vec<Vec<u8>> {
    let request =
        |number| build::echo_request(Ipv4Addr::new(10, 66, 0, 2 + number), remote, 1, sequence, 64, b"payload");
    (0..20_u8).map(request).collect()
}

fn outbound(handle: EchogateHandle, packet: &mut [u8]) -> EchogateAnswer {
    let mut answer = EchogateAnswer::default();
    let (bytes, length) = (packet.as_mut_ptr(), packet.len());
    // SAFETY: a packet and a place for the answer.
    let status = unsafe { echogate_outbound(handle, echogate_now(), 0, bytes, length, &raw mut answer) };
    assert_eq!((status, answer.verdict), (Fine, Verdict::Forward as i32));
    answer
}

fn expire(handle: EchogateHandle) {
    // SAFETY: NULL is allowed.
    assert_eq!(unsafe { echogate_expire(handle, echogate_now(), null_mut()) }, Fine);
}

fn reply_to(request: &[u8]) -> Vec<u8> {
    let request = Ipv4::check(request).unwrap();
    let echo = Echo::check(request.payload()).unwrap();
    build::echo_reply(request.destination(), request.source(), echo.ident(), echo.sequence(), 60, echo.payload())
}

#[test]
fn calls_for_packets_on_live_mappings_allocate_nothing() {
    let (proxy, handle) = proxy_and_handle();
    let pings = |sequence| {
        let mut requests = requests(Ipv4Addr::new(198, 18, 0, 2), sequence);
        let out = allocations(|| {
            requests.iter_mut().for_each(|packet| assert_eq!(outbound(handle, packet).address, 0));
            expire(handle);
        });
        let mut replies: Vec<Vec<u8>> = requests.iter().map(|request| reply_to(request)).collect();
        let to_packet = |bytes: &mut Vec<u8>| EchogatePacket {
            bytes: bytes.as_mut_ptr(),
            length: bytes.len(),
            answer: EchogateAnswer::default(),
        };
        let mut packets: Vec<EchogatePacket> = replies.iter_mut().map(to_packet).collect();
        let (first, count, size) = (packets.as_mut_ptr(), packets.len(), size_of::<EchogatePacket>());
        let back = allocations(|| {
            // SAFETY: an array of so many packets.
            assert_eq!(unsafe { echogate_inbound_batch(handle, echogate_now(), first, count, size) }, Fine);
        });
        assert!(packets.iter().all(|packet| packet.answer.verdict == Verdict::Deliver as i32));
        out + back
    };
    let made: u64 = (0..10).map(pings).sum();
    assert!(made > 0, "making mappings allocates, or nothing is counted");
    assert_eq!((10..10_000).map(pings).sum::<u64>(), 0, "allocations for 199,800 pings");
    assert_eq!((echogate_handle_free(handle), echogate_proxy_free(proxy)), (Fine, Fine));
}

fn delivered(outside: EchogateOutside) -> u64 {
    let mut counters = EchogateCounters::default();
    let size = size_of::<EchogateCounters>();
    // SAFETY: a place for them.
    assert_eq!(unsafe { echogate_outside_counters(outside, &raw mut counters, size) }, Fine);
    counters.delivered
}

#[test]
fn the_outside_allocates_nothing_for_a_reply() {
    let lab = Lab::build(&LabOptions::default()).expect("it makes network namespaces: run it as root (scripts/test)");
    let remote = lab.remotes()[0];
    let work = || {
        let (proxy, handle) = proxy_and_handle();
        let mut outside = 0;
        // SAFETY: a place for the outside.
        assert_eq!(unsafe { echogate_outside_open_queue(proxy, 64, &raw mut outside, null_mut(), 0) }, Fine);
        let mut buffer = [0; 1500];
        let mut pings = |sequence| {
            let mut requests = requests(remote, sequence);
            allocations(|| {
                for packet in &mut requests {
                    let answer = outbound(handle, packet);
                    let (bytes, length) = (packet.as_ptr(), packet.len());
                    // SAFETY: a packet; NULL is allowed.
                    let sent =
                        unsafe { echogate_outside_send(outside, bytes, length, answer.address, answer.to, null_mut()) };
                    assert_eq!(sent, Fine);
                }
                expire(handle);
                if sequence == 0 {
                    // All at once in the queue, so that there are as many buffers as there can ever be in use.
                    let patience = Instant::now() + Duration::from_secs(10);
                    while delivered(outside) < 20 {
                        assert!(Instant::now() < patience, "replies are missing");
                        thread::yield_now();
                    }
                }
                for _ in 0..20 {
                    let (mut client, mut length) = (0, 0);
                    let (bytes, room) = (buffer.as_mut_ptr(), buffer.len());
                    let (client, length, wait) = (&raw mut client, &raw mut length, 10_000_000_000);
                    // SAFETY: a buffer and places.
                    let came = unsafe { echogate_outside_receive(outside, wait, bytes, room, client, length) };
                    assert_eq!(came, Fine);
                }
                if sequence == 0 {
                    // Nothing is there any more: a thread that waits for the first time allocates what it waits with.
                    let (mut client, mut length) = (0, 0);
                    let (bytes, room) = (buffer.as_mut_ptr(), buffer.len());
                    // SAFETY: a buffer and places.
                    let came = unsafe {
                        echogate_outside_receive(outside, 1_000_000, bytes, room, &raw mut client, &raw mut length)
                    };
                    assert_eq!(came, EchogateStatus::Empty);
                }
            })
        };
        let made: u64 = (0..50).map(&mut pings).sum();
        let thread = outside_thread();
        let before = allocations_of(thread);
        let own: u64 = (50..500).map(&mut pings).sum();
        let others = allocations_of(thread) - before;
        assert!(made > 0 && before > 0, "something is not counted: {made}, {before}");
        assert_eq!((own, others), (0, 0), "allocations for 9,000 pings");
        assert_eq!(echogate_outside_free(outside), Fine);
        assert_eq!((echogate_handle_free(handle), echogate_proxy_free(proxy)), (Fine, Fine));
    };
    lab.gateway().run(work).unwrap();
}
