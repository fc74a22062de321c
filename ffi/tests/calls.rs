//! The calls as C makes them: what they answer, and what they do with what no caller should pass.

#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(unsafe_code, reason = "C's pointers")]

use std::ffi::{CStr, CString, c_char};
use std::net::Ipv4Addr;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use echogate::wire::build;
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::{self, Ipv4};
use echogate_c::EchogateStatus::{
    self, Busy, Length, Misaligned, Null, Ok as Fine, Overlap, Setup, Short, Size, Taken, Unknown, Unsupported,
};
use echogate_c::{EchogateReason as Reason, EchogateVerdict as Verdict, *};
use proptest::prelude::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const NOW: u64 = 1_000_000_000;

/// An `s_addr`.
fn order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The settings' texts live as long as the tests.
fn text(text: &str) -> *const c_char {
    CString::new(text).unwrap().into_raw()
}

fn settings() -> EchogateSettings {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: memory for settings.
    let status = unsafe { echogate_settings_init(settings.as_mut_ptr(), size_of::<EchogateSettings>()) };
    assert_eq!(status, Fine);
    // SAFETY: they have been filled.
    let mut settings = unsafe { settings.assume_init() };
    settings.clients = text("10.66.0.0/24");
    settings.addresses = text("198.51.100.1");
    settings.echo_words_log2 = 14;
    settings
}

fn proxy_of(settings: &EchogateSettings) -> Result<EchogateProxy, (EchogateStatus, String)> {
    let (mut proxy, mut error) = (0, [0xff_u8; 200]);
    // SAFETY: places and a buffer of the sizes that are said.
    match unsafe { echogate_proxy_new(settings, &raw mut proxy, error.as_mut_ptr().cast(), error.len()) } {
        Fine => Ok(proxy),
        status => Err((status, CStr::from_bytes_until_nul(&error).unwrap_or_default().to_str().unwrap().to_owned())),
    }
}

fn handle_of(proxy: EchogateProxy, worker: u32) -> Result<EchogateHandle, EchogateStatus> {
    let mut handle = 0;
    // SAFETY: a place for a handle.
    let status = unsafe { echogate_handle_new(proxy, worker, &raw mut handle) };
    if status == Fine { Ok(handle) } else { Err(status) }
}

/// A handle whose proxy nobody else has.
fn handle(settings: &EchogateSettings) -> EchogateHandle {
    let proxy = proxy_of(settings).unwrap();
    let handle = handle_of(proxy, 0).unwrap();
    assert_eq!(echogate_proxy_free(proxy), Fine, "handles go on");
    handle
}

fn outbound(handle: EchogateHandle, packet: &mut [u8]) -> Result<EchogateAnswer, EchogateStatus> {
    let mut answer = EchogateAnswer::default();
    // SAFETY: a packet and a place for the answer.
    let status = unsafe { echogate_outbound(handle, NOW, 0, packet.as_mut_ptr(), packet.len(), &raw mut answer) };
    if status == Fine { Ok(answer) } else { Err(status) }
}

fn inbound(handle: EchogateHandle, packet: &mut [u8]) -> Result<EchogateAnswer, EchogateStatus> {
    let mut answer = EchogateAnswer::default();
    // SAFETY: a packet and a place for the answer.
    let status = unsafe { echogate_inbound(handle, NOW, packet.as_mut_ptr(), packet.len(), &raw mut answer) };
    if status == Fine { Ok(answer) } else { Err(status) }
}

fn tell(handle: EchogateHandle, packet: &[u8], answer: &EchogateAnswer) -> Vec<u8> {
    let (mut error, mut length) = ([0; ECHOGATE_ERROR_BYTES_MAX], 7);
    let room = error.len();
    let (bytes, place) = (packet.as_ptr(), &raw mut length);
    // SAFETY: a packet, an answer, a buffer apart from both, a place for the length.
    let status = unsafe { echogate_tell(handle, NOW, bytes, packet.len(), answer, error.as_mut_ptr(), room, place) };
    assert_eq!(status, Fine);
    error[..length].to_vec()
}

fn request(ident: u16, sequence: u16, ttl: u8) -> Vec<u8> {
    build::echo_request(CLIENT, REMOTE, ident, sequence, ttl, b"payload")
}

fn reply_to(request: &[u8]) -> Vec<u8> {
    let request = Ipv4::check(request).unwrap();
    let echo = Echo::check(request.payload()).unwrap();
    build::echo_reply(request.destination(), request.source(), echo.ident(), echo.sequence(), 60, echo.payload())
}

#[test]
fn a_request_is_forwarded_and_its_reply_delivered_once() {
    let handle = handle(&settings());
    let mut packet = request(1, 7, 64);
    let length = u32::try_from(packet.len()).unwrap();
    let expected = EchogateAnswer {
        verdict: Verdict::Forward as i32,
        length,
        from: order(GATEWAY),
        to: order(REMOTE),
        ..EchogateAnswer::default()
    };
    assert_eq!(outbound(handle, &mut packet), Ok(expected));
    let sent = Ipv4::check(&packet[..]).unwrap();
    assert_eq!((sent.source(), sent.destination(), sent.ttl()), (GATEWAY, REMOTE, 63), "this server is the router");

    let mut reply = reply_to(&packet);
    let expected =
        EchogateAnswer { verdict: Verdict::Deliver as i32, length, to: order(CLIENT), ..EchogateAnswer::default() };
    assert_eq!(inbound(handle, &mut reply), Ok(expected));
    assert_eq!(reply, build::echo_reply(REMOTE, CLIENT, 1, 7, 59, b"payload"));
    let again = inbound(handle, &mut reply_to(&packet)).unwrap();
    assert_eq!((again.verdict, again.reason), (Verdict::Drop as i32, Reason::NoEcho as i32));
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn what_is_none_of_ours_falls_through_unchanged() {
    let handle = handle(&settings());
    let mut dns = build::Datagram::new(CLIENT, REMOTE, ipv4::UDP, vec![0x9c, 0x40, 0, 53, 0, 8, 0, 0]).build();
    let before = dns.clone();
    let answer = outbound(handle, &mut dns).unwrap();
    assert_eq!((answer.verdict, answer.reason), (Verdict::FallThrough as i32, Reason::Dns as i32));
    assert_eq!(dns, before);
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn an_array_is_answered_as_its_packets_would_be_one_by_one() {
    let handle = handle(&settings());
    let mut buffers: Vec<Vec<u8>> = (0..100).map(|ident| request(ident % 40, ident, 64)).collect();
    buffers[3].truncate(10);
    let judge = |buffers: &mut [Vec<u8>], inbound: bool| {
        let mut packets: Vec<EchogatePacket> = buffers
            .iter_mut()
            .map(|bytes| EchogatePacket {
                bytes: bytes.as_mut_ptr(),
                length: bytes.len(),
                answer: EchogateAnswer { verdict: 77, ..EchogateAnswer::default() },
            })
            .collect();
        let (first, count, size) = (packets.as_mut_ptr(), packets.len(), size_of::<EchogatePacket>());
        let status = match inbound {
            // SAFETY: an array of so many packets.
            true => unsafe { echogate_inbound_batch(handle, NOW, first, count, size) },
            // SAFETY: as above.
            false => unsafe { echogate_outbound_batch(handle, NOW, 0, first, count, size) },
        };
        assert_eq!(status, Fine);
        packets.iter().map(|packet| packet.answer.verdict).collect::<Vec<_>>()
    };
    let verdicts = judge(&mut buffers, false);
    let count = |verdict: Verdict| verdicts.iter().filter(|found| **found == verdict as i32).count();
    assert_eq!(verdicts[3], Verdict::Drop as i32);
    // 32 of the 40 mappings are made, the packets of the others wait; the one that is too short is of none.
    assert_eq!((count(Verdict::Forward), count(Verdict::Later), count(Verdict::Drop)), (83, 16, 1), "{verdicts:?}");
    buffers.retain(|bytes| Ipv4::check(&bytes[..]).is_ok_and(|packet| packet.source() == GATEWAY));
    let mut replies: Vec<Vec<u8>> = buffers.iter().map(|request| reply_to(request)).collect();
    assert_eq!(judge(&mut replies, true), vec![Verdict::Deliver as i32; 83]);
    assert_eq!(judge(&mut [], true), Vec::<i32>::new());
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn a_packet_that_cannot_be_looked_at_ends_an_arrays_answers_there() {
    let handle = handle(&settings());
    let mut buffers = [request(1, 1, 64), request(1, 2, 64), request(1, 3, 64)];
    let answer = EchogateAnswer { verdict: 77, ..EchogateAnswer::default() };
    let mut packets =
        buffers.each_mut().map(|bytes| EchogatePacket { bytes: bytes.as_mut_ptr(), length: bytes.len(), answer });
    packets[1].bytes = null_mut();
    let size = size_of::<EchogatePacket>();
    // SAFETY: an array of three packets.
    assert_eq!(unsafe { echogate_outbound_batch(handle, NOW, 0, packets.as_mut_ptr(), 3, size) }, Null);
    assert_eq!(packets.map(|packet| packet.answer.verdict), [Verdict::Forward as i32, 0, 0]);
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn clients_are_told_what_was_refused_and_what_has_no_hop_left() {
    let handle = handle(&EchogateSettings { denied: text("192.0.2.0/28"), ..settings() });
    let mut packet = request(1, 1, 64);
    let answer = outbound(handle, &mut packet).unwrap();
    assert_eq!((answer.verdict, answer.reason, answer.tell), (Verdict::Refuse as i32, Reason::RemoteDenied as i32, 1));
    let error = tell(handle, &packet, &answer);
    let told = Ipv4::check(&error[..]).unwrap();
    assert_eq!((told.source(), told.destination()), (GATEWAY, CLIENT));
    assert_eq!(told.payload()[..2], [3, 13], "unreachable, prohibited");

    let elsewhere = Ipv4Addr::new(203, 0, 113, 9);
    let mut packet = build::echo_request(Ipv4Addr::new(10, 66, 0, 3), elsewhere, 1, 1, 1, b"");
    let answer = outbound(handle, &mut packet).unwrap();
    assert_eq!((answer.verdict, answer.reason), (Verdict::Drop as i32, Reason::TtlExpired as i32));
    assert_eq!(Ipv4::check(&tell(handle, &packet, &answer)[..]).unwrap().payload()[..2], [11, 0], "time exceeded");

    let mut stranger = build::echo_request(GATEWAY, elsewhere, 1, 1, 64, b"");
    let answer = outbound(handle, &mut stranger).unwrap();
    assert_eq!((answer.reason, tell(handle, &stranger, &answer)), (Reason::OwnSource as i32, vec![]));
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn what_was_not_sent_is_forgotten_and_its_client_told() {
    let handle = handle(&settings());
    let mut packet = request(1, 1, 64);
    outbound(handle, &mut packet).unwrap();
    let mut reply = reply_to(&packet);
    let (mut error, mut length) = ([0; ECHOGATE_ERROR_BYTES_MAX], 0);
    let (room, bytes) = (error.len(), packet.as_mut_ptr());
    let (place, errno) = (&raw mut length, libc::ENETUNREACH);
    // SAFETY: a packet, a buffer apart from it, a place for the length.
    let status =
        unsafe { echogate_not_sent(handle, NOW, bytes, packet.len(), errno, 0, error.as_mut_ptr(), room, place) };
    assert_eq!(status, Fine);
    let told = Ipv4::check(&error[..length]).unwrap();
    assert_eq!((told.destination(), &told.payload()[..2]), (CLIENT, &[3, 0][..]), "network unreachable");
    assert_eq!(Ipv4::check(&packet[..]).unwrap().source(), CLIENT, "the packet is the client's own again");
    assert_eq!(inbound(handle, &mut reply).unwrap().reason, Reason::NoEcho as i32);
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn mappings_end_when_the_clock_says_so() {
    let handle = handle(&EchogateSettings { mapping_idle_ms: 5000, ..settings() });
    let expire = |now| {
        let mut wait = 7;
        // SAFETY: a place for the time.
        assert_eq!(unsafe { echogate_expire(handle, now, &raw mut wait) }, Fine);
        wait
    };
    assert_eq!(expire(NOW), ECHOGATE_FOREVER, "nothing lives");
    outbound(handle, &mut request(1, 1, 64)).unwrap();
    let wait = expire(NOW);
    assert!((1..=6_000_000_000).contains(&wait), "{wait}");
    // The mapping goes, then its hold-down.
    let mut now = NOW;
    while expire(now) != ECHOGATE_FOREVER {
        now += 1_000_000_000;
        assert!(now < NOW + 200_000_000_000);
    }
    assert!(now > NOW + 60_000_000_000);
    // SAFETY: NULL is allowed here.
    assert_eq!(unsafe { echogate_expire(handle, now, null_mut()) }, Fine);
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn numbers_that_are_freed_or_of_another_kind_are_told() {
    let proxy = proxy_of(&EchogateSettings { workers: 2, ..settings() }).unwrap();
    let (first, second) = (handle_of(proxy, 0).unwrap(), handle_of(proxy, 1).unwrap());
    assert_eq!(
        (handle_of(proxy, 0), handle_of(proxy, 2), handle_of(proxy, u32::MAX)),
        (Err(Taken), Err(Taken), Err(Taken))
    );
    assert_eq!(echogate_handle_free(first), Fine);
    let mut packet = request(1, 1, 64);
    for (wrong, status) in [(first, Unknown), (proxy, Unknown), (0, Null), (u64::MAX, Unknown), (1, Unknown)] {
        assert_eq!(outbound(wrong, &mut packet), Err(status), "{wrong:#x}");
        assert_eq!(inbound(wrong, &mut packet), Err(status), "{wrong:#x}");
        assert_eq!(echogate_handle_free(wrong), status, "{wrong:#x}");
        assert_eq!(echogate_outside_free(wrong), status, "{wrong:#x}");
    }
    let again = handle_of(proxy, 0).unwrap();
    assert!(again != first && outbound(again, &mut packet).is_ok());
    assert_eq!((echogate_proxy_free(proxy), echogate_proxy_free(proxy)), (Fine, Unknown));
    assert_eq!(handle_of(proxy, 0), Err(Unknown));
    assert_eq!((echogate_handle_free(again), echogate_handle_free(second)), (Fine, Fine));
}

#[test]
fn one_handle_used_by_many_threads_at_once_answers_each_or_is_busy() {
    let handle = handle(&EchogateSettings { packets_per_second: 0, ..settings() });
    let (forwarded, busy) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for ident in 0..4 {
            let (forwarded, busy) = (&forwarded, &busy);
            scope.spawn(move || {
                for sequence in 0..2000 {
                    match outbound(handle, &mut request(ident, sequence, 64)) {
                        Ok(answer) if answer.verdict == Verdict::Forward as i32 => forwarded,
                        Err(Busy) => busy,
                        other => panic!("{other:?}"),
                    }
                    // Relaxed: read after the threads have been joined.
                    .fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(forwarded.into_inner() + busy.into_inner(), 8000);
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn pointers_and_sizes_that_are_wrong_are_told() {
    let handle = handle(&settings());
    let mut packet = request(1, 1, 64);
    let (bytes, length) = (packet.as_mut_ptr(), packet.len());
    let mut answers = [EchogateAnswer::default(); 2];
    let answer = answers.as_mut_ptr();
    let odd = answer.wrapping_byte_add(1);
    let one = |flags, bytes, length, answer| {
        // SAFETY: each is a packet and a place for the answer, or so wrong that it is not followed.
        unsafe { echogate_outbound(handle, NOW, flags, bytes, length, answer) }
    };
    assert_eq!(one(0, null_mut(), length, answer), Null);
    assert_eq!(one(0, bytes, length, null_mut()), Null);
    assert_eq!(one(0, bytes, length, odd), Misaligned);
    assert_eq!(one(0, bytes, 65_536, answer), Length);
    assert_eq!(one(0, bytes, usize::MAX, answer), Length, "a failed read's -1");
    assert_eq!(one(2, bytes, length, answer), Unsupported);
    assert_eq!(answers, [EchogateAnswer::default(); 2], "nothing was written");
    assert_eq!(packet, request(1, 1, 64), "nor was the packet");

    let size = size_of::<EchogatePacket>();
    let mut packets = [EchogatePacket { bytes, length, answer: answers[0] }; 2];
    let array = packets.as_mut_ptr();
    let many = |array, count, size| {
        // SAFETY: as above.
        unsafe { echogate_outbound_batch(handle, NOW, 0, array, count, size) }
    };
    assert_eq!(many(null_mut(), 1, size), Null);
    assert_eq!(many(array.wrapping_byte_add(4), 1, size), Misaligned);
    assert_eq!(many(array, ECHOGATE_BATCH_MAX + 1, size), Length);
    assert_eq!(many(array, 1, size - 8), Size);

    let (mut error, mut told) = ([0_u8; ECHOGATE_ERROR_BYTES_MAX], 0);
    let (buffer, room, place) = (error.as_mut_ptr(), error.len(), &raw mut told);
    let tell = |bytes, length, answer, error, room, told| {
        // SAFETY: as above.
        unsafe { echogate_tell(handle, NOW, bytes, length, answer, error, room, told) }
    };
    assert_eq!(tell(bytes, length, null(), buffer, room, place), Null);
    assert_eq!(tell(null(), length, answer, buffer, room, place), Null);
    assert_eq!(tell(bytes, length, answer, null_mut(), room, place), Null);
    assert_eq!(tell(bytes, length, answer, buffer, room, null_mut()), Null);
    assert_eq!(tell(bytes, length, answer, buffer, room - 1, place), Short);
    assert_eq!(tell(bytes, usize::MAX, answer, buffer, room, place), Length);
    assert_eq!(tell(buffer.wrapping_add(room - 1), 1, answer, buffer, room, place), Overlap);

    // SAFETY: as above.
    assert_eq!(unsafe { echogate_handle_new(0, 0, null_mut()) }, Null);
    // SAFETY: as above.
    assert_eq!(unsafe { echogate_receiver_new(handle, place.cast()) }, Unknown);
    // SAFETY: as above.
    assert_eq!(unsafe { echogate_settings_init(null_mut(), size_of::<EchogateSettings>()) }, Null);
    // SAFETY: as above.
    assert_eq!(unsafe { echogate_settings_init(null_mut(), 8) }, Size);
    // SAFETY: as above.
    assert_eq!(unsafe { echogate_proxy_new(null(), place.cast(), null_mut(), 0) }, Null);
    assert!(echogate_status_text(Overlap as i32 + 1000).is_null());
    assert_eq!(echogate_handle_free(handle), Fine);
}

#[test]
fn settings_that_are_wrong_are_told_in_words() {
    let wrong = |settings: EchogateSettings| proxy_of(&settings).unwrap_err();
    for (settings, words) in [
        (EchogateSettings { clients: null(), ..settings() }, "no clients"),
        (EchogateSettings { clients: text("10.66.0.0/33"), ..settings() }, "clients: 10.66.0.0/33"),
        (EchogateSettings { addresses: null(), ..settings() }, "0 gateway addresses: there can be 1 to 16"),
        (EchogateSettings { addresses: text("198.51.100.1,nowhere"), ..settings() }, "addresses: \"nowhere\" is not"),
        (EchogateSettings { addresses: text("198.51.100.1 , 198.51.100.1"), ..settings() }, "listed twice"),
        (EchogateSettings { denied: text("x"), ..settings() }, "denied: \"x\" is not an IPv4 prefix"),
        (EchogateSettings { allowed: c"\xff".as_ptr(), ..settings() }, "allowed: a text is not UTF-8"),
        (EchogateSettings { workers: 0, ..settings() }, "0 workers: there can be 1 to 64"),
        (EchogateSettings { echo_words_log2: 63, ..settings() }, "2^63 words"),
        (EchogateSettings { echo_timeout_ms: u64::MAX, ..settings() }, "echo timeout"),
        (EchogateSettings { mapping_idle_ms: 0, ..settings() }, "mapping idle"),
        (EchogateSettings { hold_down_ms: 1, ..settings() }, "remedy: "),
        (EchogateSettings { inside_mtu: 3, ..settings() }, "MTU of 3"),
    ] {
        let (status, told) = wrong(settings);
        assert!(status == Setup && told.contains(words), "{words}: {status:?}: {told}");
    }
    assert_eq!(wrong(EchogateSettings { size: 8, ..settings() }).0, Size);
    assert_eq!(wrong(EchogateSettings { size: usize::MAX, ..settings() }).0, Size);
    assert_eq!(wrong(EchogateSettings { decrement_ttl: 2, ..settings() }).0, Unsupported);
    assert_eq!(wrong(EchogateSettings { reserved: [0, 0, 0, 1], ..settings() }).0, Unsupported);
}

#[test]
fn settings_of_a_later_version_are_taken_while_what_they_have_more_is_unset() {
    #[repr(C)]
    struct Later {
        settings: EchogateSettings,
        more: [u64; 4],
    }
    let mut later = Later { settings: EchogateSettings { size: size_of::<Later>(), ..settings() }, more: [0; 4] };
    let make = |later: &Later| {
        let (mut proxy, whole) = (0, (&raw const *later).cast());
        // SAFETY: as long as its size says.
        (unsafe { echogate_proxy_new(whole, &raw mut proxy, null_mut(), 0) }, proxy)
    };
    let (status, proxy) = make(&later);
    assert_eq!((status, echogate_proxy_free(proxy)), (Fine, Fine));
    later.more[3] = 1;
    assert_eq!(make(&later), (Unsupported, 0));
}

#[test]
fn a_text_is_cut_to_its_buffer() {
    let wrong = EchogateSettings { denied: text("näh"), ..settings() };
    for room in 0..40 {
        let (mut error, mut proxy) = (vec![0xff_u8; 40], 0);
        // SAFETY: a buffer of more than `room` bytes.
        let status = unsafe { echogate_proxy_new(&raw const wrong, &raw mut proxy, error.as_mut_ptr().cast(), room) };
        assert_eq!(status, Setup);
        assert!(error[room..].iter().all(|byte| *byte == 0xff), "beyond {room}: {error:?}");
        if room > 0 {
            let told = CStr::from_bytes_until_nul(&error).unwrap().to_str().unwrap();
            assert!("denied: \"näh\" is not an IPv4 prefix such as".starts_with(told), "{told}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, at whatever time, in whatever order: an answer or a status, and the handle is whole afterwards.
    #[test]
    fn no_bytes_and_no_time_make_a_call_panic(
        calls in prop::collection::vec((0..5_u8, prop_oneof![0..3_u64, Just(NOW), any::<u64>()], noise()), 1..40)
    ) {
        let handle = handle(&settings());
        let mut answer = EchogateAnswer::default();
        let (mut error, mut length, mut wait) = ([0; ECHOGATE_ERROR_BYTES_MAX], 0, 0);
        for (call, now, mut packet) in calls {
            let (bytes, count) = (packet.as_mut_ptr(), packet.len());
            let (buffer, room) = (error.as_mut_ptr(), error.len());
            let (answer, length) = (&raw mut answer, &raw mut length);
            let status = match call {
                // SAFETY: a packet, a place for the answer, a buffer, a place for its length: for this and the next.
                0 => unsafe { echogate_outbound(handle, now, ECHOGATE_AT_LAST, bytes, count, answer) },
                // SAFETY: as above.
                1 => unsafe { echogate_inbound(handle, now, bytes, count, answer) },
                // SAFETY: as above.
                2 => unsafe { echogate_tell(handle, now, bytes, count, answer, buffer, room, length) },
                // SAFETY: as above.
                3 => unsafe { echogate_not_sent(handle, now, bytes, count, 90, 1280, buffer, room, length) },
                // SAFETY: a place for the time.
                _ => unsafe { echogate_expire(handle, now, &raw mut wait) },
            };
            prop_assert_eq!(status, Fine);
        }
        prop_assert_eq!(echogate_handle_free(handle), Fine);
    }
}

/// Packets that get far, with a few bytes changed, and such that do not.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((0..40_usize, any::<u8>()), 0..3);
    let damaged = (0..3_u16, 0..3_u16, any::<bool>(), damage).prop_map(|(ident, sequence, reply, damage)| {
        let mut packet = if reply {
            build::echo_reply(REMOTE, GATEWAY, ident, sequence, 60, b"payload")
        } else {
            request(ident, sequence, 64)
        };
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        packet
    });
    prop_oneof![3 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..100)]
}
