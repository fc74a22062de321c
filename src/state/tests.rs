//! What is taken up, and what is found foreign, each for its reason.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::proxy::{Inbound, Outbound, Proxy, Reason, Settings};
use crate::wire::build;
use crate::wire::icmpv4::Echo;
use crate::wire::ipv4::Ipv4;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn shape() -> Shape {
    Shape { echo_words_log2: 14, echo_timeout: Duration::from_secs(60) }
}

fn copy_of(state: &State) -> OwnedFd {
    state.as_fd().try_clone_to_owned().unwrap()
}

fn why(file: OwnedFd, shape: &Shape) -> String {
    State::open(file, shape).expect_err("foreign").to_string()
}

/// Puts a word into the header, as somebody else would have written it; `honest`: with the sum that belongs to it.
fn overwrite(state: &State, word: usize, value: u64, honest: bool) {
    let file = File::from(copy_of(state));
    let mut words = [0; FIXED_WORDS];
    for (number, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, number as u64 * 8).unwrap();
        *word = u64::from_ne_bytes(bytes);
    }
    words[word] = value;
    if honest {
        words[FIXED_WORDS - 1] = sum(&words);
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.write_all_at(&bytes, 0).unwrap();
}

#[test]
fn what_was_made_is_taken_up_with_its_keys() {
    let made = State::create(&shape(), &[GATEWAY]).unwrap();
    let opened = State::open(copy_of(&made), &shape()).unwrap();
    assert_eq!(made.tables().keys, opened.tables().keys);
    assert_ne!(made.tables().keys, State::create(&shape(), &[GATEWAY]).unwrap().tables().keys);
    made.tables().marks[0].store(5, Ordering::Relaxed);
    assert_eq!(opened.tables().marks[0].load(Ordering::Relaxed), 5);
    assert_eq!(opened.addresses(), [GATEWAY]);
}

#[test]
fn another_layout_another_boot_and_other_settings_are_foreign_and_say_so() {
    let made = State::create(&shape(), &[GATEWAY]).unwrap();
    let other = Shape { echo_words_log2: 15, ..shape() };
    assert_eq!(why(copy_of(&made), &other), "its echo.table_words is another one");
    let other = Shape { echo_timeout: Duration::from_secs(30), ..shape() };
    assert_eq!(why(copy_of(&made), &other), "its echo.timeout is another one");
    overwrite(&made, 3, 7, true);
    assert_eq!(why(copy_of(&made), &shape()), "it is from before the machine was started");
    overwrite(&made, 1, LAYOUT + 1, true);
    let layouts = format!("it has layout {}, and this version knows layout {LAYOUT}", LAYOUT + 1);
    assert_eq!(why(copy_of(&made), &shape()), layouts);
    overwrite(&made, 0, 7, true);
    assert_eq!(why(copy_of(&made), &shape()), "it is no table of this program's");
}

#[test]
fn a_header_that_is_damaged_is_found() {
    for word in 2..FIXED_WORDS {
        let made = State::create(&shape(), &[GATEWAY]).unwrap();
        overwrite(&made, word, 7, false);
        assert_eq!(why(copy_of(&made), &shape()), "its header is damaged", "word {word}");
    }
}

#[test]
fn what_is_too_short_or_not_sealed_or_long_unused_is_foreign() {
    let short = Region::create(HEADER_BYTES).unwrap();
    let made = State::create(&shape(), &[GATEWAY]).unwrap();
    for word in 0..FIXED_WORDS {
        short.part::<AtomicU64>(0, FIXED_WORDS).unwrap()[word]
            .store(made.header[word].load(Ordering::Relaxed), Ordering::Relaxed);
    }
    assert!(why(short.as_fd().try_clone_to_owned().unwrap(), &shape()).starts_with("it is too short, or "));
    let tiny = Region::create(8).unwrap();
    assert_eq!(why(tiny.as_fd().try_clone_to_owned().unwrap(), &shape()), "it is too short");
    let now = clock().unwrap().now();
    if now.since(Instant::START) > ALL_ENDED {
        let nanos = (now.since(Instant::START) - ALL_ENDED).as_nanos();
        made.used(Instant::from_nanos(u64::try_from(nanos).unwrap()));
        assert!(why(copy_of(&made), &shape()).starts_with("nobody has used it for 172800 s"));
    }
}

#[test]
fn the_settings_of_a_gateway_have_a_shape() {
    let settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    let shape = Shape { echo_words_log2: settings.echo_words_log2, echo_timeout: settings.echo_timeout };
    let state = State::create(&shape, &settings.addresses).unwrap();
    let now = clock().unwrap().now();
    let (proxy, found) = Proxy::over(&settings, state.tables(), state.last_used(), now).unwrap();
    assert_eq!((found, proxy.outstanding()), (crate::proxy::Found::default(), 0));
}

/// Two proxies, one after the other, over one memory; the second comes `after` the first was last seen.
fn reply_after(after: Duration) -> (Inbound, Inbound, u64) {
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    let (client, remote) = (Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(192, 0, 2, 7));
    let state = State::create(&shape(), &[GATEWAY]).unwrap();
    let began = clock().unwrap().now();
    let mut request = build::echo_request(client, remote, 7, 1, 64, b"asked of the first");
    {
        let (first, _) = Proxy::over(&settings, state.tables(), began, began).unwrap();
        let mut handle = first.handle(0).unwrap();
        assert!(matches!(handle.batch(began).outbound(&mut request), Outbound::Forward { .. }));
    }
    let opened = State::open(copy_of(&state), &shape()).unwrap();
    let now = began + after;
    let (second, found) = Proxy::over(&settings, opened.tables(), began, now).unwrap();
    assert_eq!(found.slots.mappings, 1);
    let sent = Ipv4::check(&request[..]).unwrap();
    let echo = Echo::check(sent.payload()).unwrap();
    let reply = build::echo_reply(remote, GATEWAY, echo.ident(), 1, 60, echo.payload());
    let mut handle = second.handle(0).unwrap();
    let mut answer = |mut reply: Vec<u8>| handle.batch(now).inbound(&mut reply);
    (answer(reply.clone()), answer(reply), found.outstanding)
}

#[test]
fn an_echo_of_one_process_is_answered_through_the_next_once_and_in_time() {
    let (first, second, outstanding) = reply_after(Duration::from_secs(1));
    assert!(matches!(first, Inbound::Deliver { client, .. } if client == Ipv4Addr::new(10, 66, 0, 2)), "{first:?}");
    assert_eq!((second, outstanding), (Inbound::Drop(Reason::NoEcho), 1));
    // Of 60 s; by its stamp, which wraps after four times that, it would be young again.
    for late in [61, 241] {
        let (first, _, outstanding) = reply_after(Duration::from_secs(late));
        assert_eq!((first, outstanding), (Inbound::Drop(Reason::NoEcho), 0), "{late} s");
    }
}

#[test]
fn no_number_of_addresses_that_there_cannot_be_is_believed() {
    for count in [0, 2, 17, u32::MAX] {
        let made = State::create(&shape(), &[GATEWAY]).unwrap();
        count_of(&made.region).unwrap().store(count, Ordering::Relaxed);
        assert_eq!(why(copy_of(&made), &shape()), "it is too short, or says that it has other addresses", "{count}");
    }
}

#[test]
fn an_address_is_added_to_memory_in_use_and_another_one_drains() {
    let mut settings = Settings::new(vec!["10.66.0.0/24".parse().unwrap()], vec![GATEWAY]);
    settings.echo_words_log2 = 14;
    (settings.mapping_idle, settings.echo_timeout) = (Duration::from_secs(1), shape().echo_timeout);
    let (client, remote, other) =
        (Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(198, 51, 100, 2));
    let mut state = State::create(&shape(), &[GATEWAY]).unwrap();
    let began = clock().unwrap().now();
    let source_of = |handle: &mut crate::proxy::Handle, ident, now| {
        let mut request = build::echo_request(client, remote, ident, 1, 64, b"asked");
        assert!(matches!(handle.batch(now).outbound(&mut request), Outbound::Forward { .. }));
        assert_eq!(handle.audit(), Ok(()));
        Ipv4::check(&request[..]).unwrap().source()
    };
    {
        let (proxy, _) = Proxy::over(&settings, state.tables(), began, began).unwrap();
        assert_eq!(source_of(&mut proxy.handle(0).unwrap(), 7, began), GATEWAY);
    }
    let places = state.arranged(&[other]).unwrap();
    state = state.grown(places.len()).unwrap();
    assert_eq!(state.addresses(), [GATEWAY], "room alone changes nothing");
    state = state.settle(&places).unwrap();
    assert_eq!(State::open(copy_of(&state), &shape()).unwrap().places(), places);
    settings.addresses = state.addresses();
    assert_eq!(settings.addresses, [GATEWAY, other]);
    {
        let (proxy, found) = Proxy::over(&settings, state.tables(), began, began).unwrap();
        assert_eq!((found.slots.mappings, found.outstanding), (1, 1));
        let mut handle = proxy.handle(0).unwrap();
        assert_eq!(source_of(&mut handle, 7, began), GATEWAY, "a mapping goes on");
        assert_eq!(source_of(&mut handle, 8, began), other, "a new one is made elsewhere");
        assert_eq!(state.arranged(&[other]).unwrap(), places, "it has not drained");
        // Idle for a second, and then for the hold-down.
        for second in 1..200 {
            handle.batch(began + Duration::from_secs(second)).expire();
        }
    }
    // The last place would go. It is the first here: it stays until another address takes it.
    let third = Ipv4Addr::new(198, 51, 100, 3);
    let places = state.arranged(&[third]).unwrap();
    let expected = [Place { address: third, drains: false }, Place { address: other, drains: true }];
    assert_eq!(places, expected);
    state = state.settle(&places).unwrap();
    let places = state.arranged(&[third]).unwrap();
    state = state.settle(&places).unwrap();
    assert_eq!(state.addresses(), [third]);
}
