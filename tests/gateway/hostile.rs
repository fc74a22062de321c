//! People who mean ill, inside and outside, all at once and with all that they have: who means well is served, nobody gets what is
//! another's, and nobody gets more out of the gateway than he puts in.
//!
//! `ECHOGATE_HOSTILE_PACKETS`, `_RATE` and `_SEED` say how many packets, how many a second, and which, `_GUESSES` how many replies are
//! guessed at and `_FORGERIES` how many errors of each kind are made up (`forged`); `scripts/hostile` asks for more than a test does.
//! docs/testing.md has the table of threats, and which test is for which.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use echogate::config::Config;
use echogate::control::Stats;
use echogate::io::buffers::POISON;
use echogate::lab::forger::Forgery;
use echogate::lab::load::{self, LoadOptions};
use echogate::lab::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, Namespace};
use echogate::sys::net::{self, MESSAGES_MAX};
use echogate::sys::poll;
use echogate::wire::build::{self, Datagram, echo_message, error_message};
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::{ICMP, Ipv4};
use echogate::wire::quote::Quote;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ear::{Ear, Injector};
use crate::in_every_setup;
use crate::restarts::{SETUP, ending, setting};
use crate::scene::{PATIENCE, Scene, Setup, run};
use crate::tools::Capture;

in_every_setup!(hostile_packets_of_every_kind_cost_nobody_else_anything,);

/// Whom those outside write as, if not as a remote.
const EVIL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// In every payload that somebody outside made up.
const FORGED: &[u8] = b"forged by somebody";
/// In every request of the attacker's inside.
const ASKED: &[u8] = &[0x61; 40];
/// Packets of one kind that are different.
const VARIANTS: u16 = 512;

/// A packet, and where its sender's host is to send it.
pub(crate) type Addressed = (Vec<u8>, Ipv4Addr);

/// What a client may think of. `own` is its address, `other` another client's.
fn from_inside(own: Ipv4Addr, other: Ipv4Addr, remote: Ipv4Addr, rng: &mut StdRng) -> Vec<Addressed> {
    let mut packets = Vec::new();
    for variant in 0..VARIANTS {
        let request = |source, destination| {
            let (ident, sequence) = (variant % 16, variant);
            build::echo_request(source, destination, ident, sequence, 64, ASKED)
        };
        // More than its share.
        packets.push((request(own, remote), remote));
        // In another's name, nobody's, and the gateway's own.
        for source in [other, Ipv4Addr::new(10, 66, 0, 77), GATEWAY_OUTSIDE, GATEWAY_INSIDE, remote] {
            packets.push((request(source, remote), remote));
        }
        // What must not be pinged.
        let forbidden = [[0, 0, 0, 1], [127, 0, 0, 1], [169, 254, 1, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]];
        for destination in forbidden.map(Ipv4Addr::from).into_iter().chain([GATEWAY_OUTSIDE]) {
            packets.push((request(own, destination), remote));
        }
        // Bytes of chance, and an end anywhere.
        let mut garbage = request(own, remote);
        for _ in 0..rng.random_range(1..8) {
            let place = rng.random_range(20..garbage.len());
            garbage[place] = rng.random();
        }
        garbage.truncate(rng.random_range(21..=garbage.len()));
        packets.push((garbage, remote));
        // Options of chance, source routes among them.
        let options = (0..rng.random_range(1..40)).map(|_| rng.random_range(0..=255) & 0x8f).collect();
        let message = echo_message(EchoKind::Request, 7, variant, ASKED);
        packets.push((Datagram { options, ..Datagram::new(own, remote, ICMP, message.clone()) }.build(), remote));
        let strict = vec![137, 7, 4, 203, 0, 113, 9];
        packets
            .push((Datagram { options: strict, ..Datagram::new(own, remote, ICMP, message.clone()) }.build(), remote));
        // Fragments without an end, without a beginning, overlapping, tiny.
        for (offset, more, length) in [(64, false, 40), (0, true, 40), (8, true, 40), (0, true, 4), (65_000, true, 40)]
        {
            let whole = Datagram::new(own, remote, ICMP, message[..length].to_vec());
            let part = Datagram { identification: variant, fragment_offset: offset, more_fragments: more, ..whole };
            packets.push((part.build(), remote));
        }
    }
    packets
}

/// What somebody outside may think of who knows the gateway and a remote that is pinged, and sees no packet.
fn from_outside(remote: Ipv4Addr, rng: &mut StdRng) -> Vec<Addressed> {
    let to = GATEWAY_OUTSIDE;
    let mut packets = Vec::new();
    for variant in 0..VARIANTS {
        packets.extend(Forgery::ALL.map(|kind| (kind.datagram(variant, to, remote), to)));
        // Replies to what may have been asked, by whom may have been.
        for source in [remote, EVIL] {
            packets.push((build::echo_reply(source, to, rng.random(), rng.random(), 64, FORGED), to));
        }
        let mut damaged = build::echo_reply(remote, to, rng.random(), rng.random(), 64, FORGED);
        let place = rng.random_range(21..damaged.len());
        damaged[place] ^= 1 << rng.random_range(0..8);
        damaged.truncate(rng.random_range(22..=damaged.len()));
        // A reply it stays: a request to the gateway's own address is the kernel's to answer.
        damaged[20] = 0;
        packets.push((damaged, to));
        // Errors of every type and code, and what they quote all but at random.
        let quoted: Vec<u8> = (0..rng.random_range(0..80)).map(|_| rng.random()).collect();
        let kind = [3, 4, 5, 11, 12][usize::from(variant) % 5];
        packets.push((
            Datagram::new(EVIL, to, ICMP, error_message(kind, rng.random(), rng.random(), &quoted)).build(),
            to,
        ));
    }
    // Every length that a quoted header can claim, cut everywhere: in the header, the message, behind it.
    let message = echo_message(EchoKind::Request, 1, 1, FORGED);
    for claimed in 0..=15 {
        for length in (0..=128).step_by(3) {
            let options = vec![1; 40];
            let mut quoted = Datagram { options, ..Datagram::new(to, remote, ICMP, message.clone()) }.build();
            quoted.resize(128, 0x42);
            quoted[0] = 0x40 | claimed;
            quoted.truncate(length);
            packets.push((Datagram::new(EVIL, to, ICMP, error_message(11, 0, 0, &quoted)).build(), to));
        }
    }
    packets
}

/// What a flood was.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Flood {
    /// Those that the sender's own kernel took.
    pub(crate) packets: u64,
    bytes: u64,
    /// By the sender's own kernel.
    refused: u64,
}

/// Sends so many of these packets in turn, by the clock. What the sender's own kernel refuses is passed over and is none of them; of
/// twice as many attempts the flood ends all the same.
pub(crate) fn flood(from: &Namespace, packets: &[Addressed], rate: u64, count: u64) -> Flood {
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    let socket = from.run(open).expect("it can be entered").expect("raw sockets take root");
    socket.set_broadcast(true).expect("it can be set");
    let (start, mut flood, mut place) = (Instant::now(), Flood::default(), 0);
    while flood.packets < count && flood.packets + flood.refused < 2 * count {
        let due = u64::try_from(start.elapsed().as_micros()).expect("not for so long") * rate / 1_000_000 + 1;
        let behind = due.saturating_sub(flood.packets + flood.refused).min(count - flood.packets);
        let bunch = usize::try_from(behind).expect("a few").min(MESSAGES_MAX);
        if bunch == 0 {
            thread::sleep(Duration::from_micros(500));
            continue;
        }
        let bunch = &packets[place..packets.len().min(place + bunch)];
        let datagrams = bunch.iter().map(|(bytes, to)| (bytes.as_slice(), *to));
        // The first one's error ends the count; the one that it stopped at is passed over.
        let sent = net::send_many(socket.as_fd(), datagrams).unwrap_or(0);
        flood.packets += sent as u64;
        flood.bytes += bunch[..sent].iter().map(|(bytes, _)| bytes.len() as u64).sum::<u64>();
        let passed = (sent + 1).min(bunch.len());
        flood.refused += (passed - sent) as u64;
        place = (place + passed) % packets.len();
    }
    flood
}

/// The queues on the first client's way, there and back, and no others: not those of the attackers' own links and sockets. Those that a
/// client's and an attacker's packets pass in together cannot tell whose they have thrown away.
///
/// Where a full queue of a device is told to whoever sends, IP counts it: it is looked for there.
const FIRST_CLIENTS_WAY: [&str; 15] = [
    "client 1: eth0, sending",
    "gateway: g0, receiving",
    "gateway: IP, receiving, no room",
    "gateway: echogate0, sending",
    "gateway: IP, sending, no room",
    "internet: eth0, receiving",
    "internet: IP, receiving, no room",
    "internet: ICMP, answering, no room",
    "internet: eth0, sending",
    "gateway: wan, receiving",
    "gateway: raw sockets, receive buffer full",
    "gateway: echogate0, receiving",
    "gateway: g0, sending",
    "client 1: eth0, receiving",
    "client 1: IP, receiving, no room",
];

/// The queues between the internet and the raw sockets of the gateway.
pub(crate) const LINK_FROM_OUTSIDE: [&str; 3] =
    ["internet: eth0, sending", "gateway: wan, receiving", "gateway: IP, receiving, no room"];

/// What the lab's queues have thrown away since it was made, by their names.
pub(crate) struct Dropped(BTreeMap<String, u64>);

impl Dropped {
    pub(crate) fn so_far(scene: &Scene) -> Dropped {
        Dropped(scene.lab().drops().expect("they can be counted"))
    }

    /// In these queues, since then.
    pub(crate) fn since(&self, before: &Dropped, queues: &[&str]) -> u64 {
        queues.iter().map(|queue| self.since_in(before, queue)).sum()
    }

    /// In all of them.
    fn since_anywhere(&self, before: &Dropped) -> u64 {
        self.0.keys().map(|queue| self.since_in(before, queue)).sum()
    }

    fn since_in(&self, before: &Dropped, queue: &str) -> u64 {
        let counted = |drops: &Dropped| drops.0.get(queue).copied().unwrap_or(0);
        counted(self).saturating_sub(counted(before))
    }
}

/// What has arrived somewhere.
#[derive(Default, Debug)]
struct Arrived {
    packets: u64,
    bytes: u64,
    /// Bytes of a buffer that nobody has written to since it was given back, as many as are no chance.
    canaries: u64,
    /// What must not arrive here: others' packets, and what somebody made up.
    wrong: u64,
    wrong_bytes: u64,
    /// Some of it.
    examples: Vec<String>,
    /// Arrivals that there was no room for.
    unseen: u32,
}

/// Hears all ICMP that arrives in a namespace from now on.
fn watcher(at: &Namespace) -> Socket {
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
    let socket = at.run(open).expect("it can be entered").expect("raw sockets take root");
    // Seconds of the largest flood: what is not seen might be wrong.
    net::set_receive_buffer(socket.as_fd(), 256 << 20).expect("it can be set");
    socket
}

/// Looks at all that a watcher hears, until it is over. `is_wrong` says what must not arrive.
fn watch(socket: &Socket, over: &AtomicBool, is_wrong: impl Fn(&Ipv4<&[u8]>) -> bool) -> Arrived {
    let (mut arrived, mut buffers) = (Arrived::default(), vec![[0; 2048]; MESSAGES_MAX]);
    let mut lengths = [0; MESSAGES_MAX];
    loop {
        // Looked at before the packets are: what had arrived by then is seen.
        let last = over.load(Ordering::Relaxed);
        poll::readable([socket.as_fd()], Some(Duration::from_millis(20))).expect("it can be waited for");
        while let Ok(count @ 1..) =
            net::receive_many(socket.as_fd(), buffers.iter_mut().map(|b| &mut b[..]), &mut lengths)
        {
            for (bytes, length) in buffers.iter().zip(&lengths[..count]) {
                let bytes = &bytes[..*length as usize];
                arrived.packets += 1;
                arrived.bytes += bytes.len() as u64;
                arrived.canaries += u64::from(bytes.windows(6).any(|run| run == [POISON; 6]));
                let packet = Ipv4::check(bytes).expect("the kernel has looked at its header");
                if is_wrong(&packet) {
                    arrived.wrong += 1;
                    arrived.wrong_bytes += bytes.len() as u64;
                    if arrived.examples.len() < 10 {
                        arrived.examples.push(format!("{bytes:02x?}"));
                    }
                }
            }
        }
        if last {
            arrived.unseen = net::receive_drops(socket.as_fd()).expect("the kernel tells");
            return arrived;
        }
    }
}

/// Whether these bytes are somewhere in it.
fn holds(packet: &Ipv4<&[u8]>, part: &[u8]) -> bool {
    packet.payload().windows(part.len()).any(|window| window == part)
}

#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn hostile_packets_of_every_kind_cost_nobody_else_anything(setup: &Setup) {
    let count = u64::from(setting("ECHOGATE_HOSTILE_PACKETS", 20_000)) / 2;
    let rate = u64::from(setting("ECHOGATE_HOSTILE_RATE", 8000)) / 2;
    let seed = setting("ECHOGATE_HOSTILE_SEED", std::process::id());
    let scene = Scene::alone(2);
    run(scene.internet(), &format!("ip address add {EVIL}/32 dev lo"));
    // Or its kernel, which has no way back to the clients, would let nobody see what comes from their addresses.
    run(scene.internet(), "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
    let gateway = scene.serve(setup);
    let packets_id = gateway.packets_id();
    let (lab, remote) = (scene.lab(), scene.remote(0));
    let [good, evil] = [0, 1].map(|client| scene.client_address(client));
    let mut rng = StdRng::seed_from_u64(seed.into());
    let (inside, outside) = (from_inside(evil, good, remote, &mut rng), from_outside(remote, &mut rng));
    // Below its share.
    let options = LoadOptions {
        duration: Duration::from_secs(3600),
        rate: Some(500),
        window: 20_000,
        reply_timeout: PATIENCE,
        ..LoadOptions::default()
    };
    let (over, calm) = (AtomicBool::new(false), AtomicBool::new(false));
    let in_anothers_name = AtomicU64::new(0);
    let before = Dropped::so_far(&scene);
    // Before anybody sends anything.
    let [attackers, remotes] = [scene.client(1), scene.internet()].map(watcher);
    let (served, floods, at_attacker, at_remotes) = thread::scope(|scope| {
        let served = scope.spawn(|| {
            let until = |_: &load::Progress| match over.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            load::run(&lab.clients()[..1], lab.remotes(), &options, until).expect("it runs")
        });
        // The attacker gets its own replies, and errors about its own packets.
        let at_attacker = scope.spawn(|| {
            watch(&attackers, &calm, |packet| {
                let quotes_another = Quote::check(packet.payload()).is_ok_and(|quote| quote.source() != evil);
                packet.destination() != evil || holds(packet, FORGED) || quotes_another
            })
        });
        // No client's address is seen outside by the gateway's doing, nobody who was not asked hears of anything, and all that leaves
        // the gateway's address are requests. What the attacker sends in another client's name comes by an interface that is not
        // that one's: it is none of the gateway's, and is on the kernel's own path, which leads here. No other request is.
        let at_remotes = scope.spawn(|| {
            watch(&remotes, &calm, |packet| {
                let (source, echo) = (packet.source(), Echo::check(packet.payload()));
                let request = echo.ok().filter(|echo| echo.kind() == EchoKind::Request);
                if source == GATEWAY_OUTSIDE {
                    return request.is_none() || packet.destination() == EVIL || packet.has_source_route();
                }
                let Some(request) = request.filter(|_| lab.client_prefix().contains(source)) else { return false };
                let is_forged = source != evil && request.payload() == ASKED;
                in_anothers_name.fetch_add(is_forged.into(), Ordering::Relaxed);
                !is_forged
            })
        });
        let floods = ending(&over, || {
            let other = scope.spawn(|| flood(scene.internet(), &outside, rate, count));
            [flood(scene.client(1), &inside, rate, count), other.join().expect("it ends")]
        });
        let served = served.join().expect("it ends");
        calm.store(true, Ordering::Relaxed);
        let [at_attacker, at_remotes] = [at_attacker, at_remotes].map(|watched| watched.join().expect("it ends"));
        (served, floods, at_attacker, at_remotes)
    });
    let after = Dropped::so_far(&scene);
    let (dropped, on_its_way) = (after.since_anywhere(&before), after.since(&before, &FIRST_CLIENTS_WAY));
    let on_its_way = on_its_way + served.socket_drops;
    let answer = gateway.ask(&["stats", "--json"]);
    let stats = Stats::read(serde_json::from_slice(&answer.stdout).expect("an object")).expect("all its members");
    assert_eq!(gateway.packets_id(), packets_id, "it has lived through it");
    scene.assert_pings("afterwards");
    let ended = gateway.stop();

    let [flood_inside, flood_outside] = floods;
    // An IP header and an ICMP header about a payload.
    let of_the_good = served.sent * (28 + options.payload_len as u64);
    let caused = (stats.outside_out.bytes + stats.cut_off.bytes).saturating_sub(of_the_good);
    let lost = served.sent - served.received;
    let said = &ended.complaints;
    println!(
        "{} workers on {}, seed {seed}: {} hostile packets from inside ({} bytes; {} more refused by their own host), {} from outside \
         ({} bytes): {} panics, {} misdelivered, {} with canary bytes; bytes out for the attacker inside: {caused} to outside, {} to \
         itself; for the one outside: {}; of {} echoes of another client {lost} lost, {} wrong; unseen by the watchers {}, dropped by \
         full queues and devices {dropped}, on that client's way {on_its_way}",
        setup.workers,
        setup.io,
        flood_inside.packets,
        flood_inside.bytes,
        flood_inside.refused,
        flood_outside.packets,
        flood_outside.bytes,
        said.matches("panicked").count(),
        at_attacker.wrong + at_remotes.wrong,
        at_attacker.canaries + at_remotes.canaries,
        at_attacker.bytes,
        at_remotes.wrong_bytes,
        served.sent,
        served.wrong_client + served.altered + served.duplicates + served.no_reply,
        at_attacker.unseen + at_remotes.unseen,
    );
    assert_eq!([flood_inside.packets, flood_outside.packets], [count; 2], "{floods:?}");
    assert!(!said.contains("panicked"), "{said}");
    for arrived in [&at_attacker, &at_remotes] {
        assert!(arrived.packets > 0 && arrived.canaries == 0 && arrived.wrong == 0, "{arrived:?}");
        assert_eq!(arrived.unseen, 0, "what was not seen proves nothing: {arrived:?}");
    }
    assert!(in_anothers_name.into_inner() > 0, "a client's address would not be seen outside: {at_remotes:?}");
    assert_eq!(stats.reinjected.packets, 0, "nor is it on the kernel's path by the gateway's doing: {stats:?}");
    let wrong = (served.wrong_client, served.altered, served.duplicates, served.no_reply);
    assert_eq!(wrong, (0, 0, 0, 0), "{served:?}\n{}", ended.printed);
    assert!(lost <= on_its_way.max(served.sent / 1000), "{on_its_way} on its way: {served:?}\n{}", ended.printed);
    assert!(caused <= flood_inside.bytes && at_attacker.bytes <= flood_inside.bytes, "{at_attacker:?} {stats:?}");
    for name in
        ["icmp_truncated", "remote_refused", "fragment_early", "error_unmatched", "error_quote", "error_checksum"]
    {
        assert!(ended.total(name) > 0, "{name}: {}", ended.printed);
    }
}

/// By somebody who knows the gateway and the remote, while a thousand echoes wait for their replies.
#[test]
fn hostile_guesses_at_a_reply_reach_nobody() {
    const WAITING: u16 = 1000;
    let guesses = u64::from(setting("ECHOGATE_HOSTILE_GUESSES", 10_000));
    // Guesses that come when the echoes are over are refused whatever they are: all of them come in half of that time.
    let timeout = Config::default().echo.timeout;
    let rate = u64::from(setting("ECHOGATE_HOSTILE_RATE", 8000)).max(guesses.div_ceil(timeout.as_secs() / 2));
    let scene = Scene::alone(1);
    run(scene.internet(), "sysctl -w net.ipv4.icmp_echo_ignore_all=1");
    let gateway = scene.serve(&SETUP);
    let (own, remote) = (scene.client_address(0), scene.remote(0));
    let (asking, hearing) = (Injector::at(scene.client(0)), Ear::at(scene.client(0), own));
    let asked = Ear::at(scene.internet(), remote);
    let (begun, mut last) = (Instant::now(), None);
    for sequence in 0..WAITING {
        asking.send(&build::echo_request(own, remote, 1, sequence, 64, b"true"), remote);
        last = Some(asked.next_request());
    }
    let last = last.expect("a thousand have come");
    let mut rng = StdRng::seed_from_u64(setting("ECHOGATE_HOSTILE_SEED", std::process::id()).into());
    let guess = |_| {
        let (ident, sequence) = (rng.random(), rng.random());
        (build::echo_reply(remote, GATEWAY_OUTSIDE, ident, sequence, 64, FORGED), GATEWAY_OUTSIDE)
    };
    let packets: Vec<Addressed> = (0..guesses.min(1 << 20)).map(guess).collect();
    let sent = flood(scene.internet(), &packets, rate, guesses);
    assert_eq!((sent.packets, sent.refused), (guesses, 0));
    let took = begun.elapsed();
    assert!(
        took < timeout,
        "asking and {guesses} guesses took {took:?}, and echoes wait for {timeout:?}: ask for fewer"
    );
    // What comes first afterwards is true, unless a guess was right: one in 2^32 for each that waits.
    let mut right: u64 = 0;
    asked.reply(GATEWAY_OUTSIDE, last.ident, last.sequence, b"true");
    while hearing.next().payload != b"true" {
        right += 1;
    }
    let chance = guesses as f64 * f64::from(WAITING) / 2_f64.powi(32);
    println!("{guesses} guesses while {WAITING} echoes wait: {right} were right, {chance:.3} is what chance allows");
    // More than six times as likely as not once in ten thousand runs.
    assert!(right as f64 <= 4.0 + 4.0 * chance, "{right} of {guesses}");
    let ended = gateway.stop();
    assert_eq!(ended.total("no_echo"), guesses - right, "{}", ended.printed);
    assert_eq!(ended.total("echoes outstanding"), u64::from(WAITING) - 1 - right, "{}", ended.printed);
}

/// One client with a new ident in each packet, ten times as many as it may have; another begins pings meanwhile.
#[test]
fn hostile_new_mappings_leave_others_all_that_they_need() {
    let scene = Scene::alone(2);
    let gateway = scene.serve(&SETUP);
    let (evil, remote) = (scene.client_address(1), scene.remote(0));
    let idents = (0..20_000).map(|ident| (build::echo_request(evil, remote, ident, 1, 64, b"one more"), remote));
    let packets: Vec<Addressed> = idents.collect();
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(scene.client(1), &packets, 10_000, 20_000));
        let mut begun = 0;
        while !flooding.is_finished() || begun == 0 {
            let pings = scene.pings(0, 2, remote, "");
            assert!(pings.all_came_back(2), "{}", pings.text);
            // Each is a mapping, of which this client too may make some a second.
            thread::sleep(Duration::from_millis(100));
            begun += 1;
        }
    });
    let ended = gateway.stop();
    assert!(ended.total("mappings at most") < 2000, "{}", ended.printed);
    assert!(ended.total("requests refused") > 1000, "{}", ended.printed);
}

/// A route that leads what the gateway sends back into its own device.
#[test]
fn hostile_routes_into_the_device_make_no_loop() {
    let scene = Scene::new(1);
    let gateway = scene.serve(&SETUP);
    scene.assert_pings("before");
    let looped = scene.remote(1);
    run(scene.gateway(), &format!("ip route add {looped}/32 dev echogate0"));
    scene.ping(0, &format!("-c 5 -i 0.1 -W 1 {looped}"));
    scene.assert_pings("beside it");
    let ended = gateway.stop();
    // Six pings that came back; of the five at most one more packet each.
    assert!(ended.total("from inside") <= 6 + 5 + 5, "{}", ended.printed);
}

/// Each kind of address that must not be pinged, by a client whose host sends it to the gateway. Some of them the gateway's own kernel
/// does not forward, wherever it is told to; the others come into the device, and go no further.
#[test]
fn hostile_destinations_get_no_packet_on_any_link() {
    const ARRIVES: &str = "g0 In";
    const INTO_THE_DEVICE: &str = "echogate0 Out";
    let scene = Scene::new(2);
    let gateway = scene.serve(&SETUP);
    let (own, remote) = (scene.client_address(0), scene.remote(0));
    scene.assert_pings("before");
    let capture = Capture::of(scene.gateway());
    let injector = Injector::at(scene.client(0));
    let by_the_kernel = [[127, 0, 0, 2], [224, 0, 0, 5], [239, 1, 1, 1], [255; 4]].map(Ipv4Addr::from);
    let by_the_gateway = [[0, 1, 2, 3], [169, 254, 9, 9], [240, 0, 0, 9]].map(Ipv4Addr::from);
    for address in by_the_kernel.into_iter().chain(by_the_gateway) {
        injector.send(&build::echo_request(own, address, 5, 5, 64, b"nobody"), remote);
    }
    let pings = scene.ping(0, &format!("-c 1 -W 10 {}", scene.remote(2)));
    assert!(pings.all_came_back(1), "{}", pings.text);
    let ended = gateway.stop();
    assert_eq!(ended.total("remote_refused"), by_the_gateway.len() as u64, "{}", ended.printed);
    assert_eq!((ended.total("to outside"), ended.total("replies delivered")), (4, 4), "{}", ended.printed);
    // What has left before this is told before it.
    scene.ping(0, &format!("-c 1 -W 1 {GATEWAY_INSIDE}"));
    capture.times(1, ["g0    In", &format!("> {GATEWAY_INSIDE}:")]);
    let true_ones = capture.ways_to(scene.remote(2));
    assert!(true_ones.iter().any(|way| way == "wan Out"), "a true one is seen: {true_ones:?}");
    for address in by_the_kernel.into_iter().chain(by_the_gateway) {
        let mut may_be = vec![ARRIVES];
        may_be.extend(by_the_gateway.contains(&address).then_some(INTO_THE_DEVICE));
        let ways = capture.ways_to(address);
        assert!(ways.iter().all(|way| may_be.contains(&way.as_str())), "{address}: {ways:?}");
    }
}

/// A watcher that sees nothing would let everything pass.
#[test]
fn the_watcher_of_hostile_packets_sees_what_must_not_be() {
    let scene = Scene::new(1);
    let (over, remote) = (AtomicBool::new(false), scene.remote(0));
    let canary = build::echo_reply(GATEWAY_OUTSIDE, remote, 1, 1, 64, &[&[0; 3][..], &[POISON; 6]].concat());
    let forged = build::echo_reply(GATEWAY_OUTSIDE, remote, 1, 1, 64, FORGED);
    let harmless = build::echo_reply(GATEWAY_OUTSIDE, remote, 1, 1, 64, &[POISON; 5]);
    let packets: Vec<Addressed> = [canary, forged, harmless].map(|packet| (packet, remote)).to_vec();
    let listening = watcher(scene.internet());
    let arrived = thread::scope(|scope| {
        let watched = scope.spawn(|| watch(&listening, &over, |packet| holds(packet, FORGED)));
        ending(&over, || flood(scene.gateway(), &packets, 300, 300));
        watched.join().expect("it ends")
    });
    let seen = [arrived.packets, arrived.canaries, arrived.wrong, arrived.unseen.into()];
    assert_eq!(seen, [300, 100, 100, 0], "{arrived:?}");
}
