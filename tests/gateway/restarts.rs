//! Packet processes die, and clients hardly notice: every mapping is kept, and what is lost was in the process's hands.
//!
//! `ECHOGATE_KILLS` and `ECHOGATE_RATE` say how often and under how many echoes a second; `scripts/restarts` asks for more of
//! both than a test on a busy machine can bear, and prints the figures.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, mem};

use echogate::io::Sizes;
use echogate::lab::load::{self, LoadOptions, LoadReport};
use echogate::wire::build;
use echogate::wire::icmpv4::EchoKind;
use rand::RngExt as _;

use crate::ear::{Ear, Injector};
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{PATIENCE, Scene, Setup, wait_until};
use crate::serves::limits_off;
use crate::sys;

in_every_setup!(
    killed_at_any_time_under_load_the_packet_process_is_replaced_and_every_mapping_kept,
    what_waits_while_the_packet_process_is_killed_is_served_by_the_next,
);

pub(crate) const SETUP: Setup = Setup { io: "uring", workers: 2 };

/// Client idents of the probe.
const IDENTS: u16 = 64;

pub(crate) fn setting(name: &str, otherwise: u32) -> u32 {
    env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number: {text}")))
}

/// One client's pings, a thousand a second under many idents, and when each was answered.
#[derive(Default)]
pub(crate) struct Probe {
    sent: Vec<Instant>,
    answered: Vec<Option<Instant>>,
}

impl Probe {
    /// Pings the scene's second remote from its first client until `until` says so, and asserts that each client ident is one
    /// gateway ident all the time.
    pub(crate) fn run(scene: &Scene, over: &AtomicBool) -> Probe {
        let (client, remote) = (scene.client_address(0), scene.remote(1));
        let (ears, injector) =
            ([Ear::at(scene.client(0), client), Ear::at(scene.internet(), remote)], Injector::at(scene.client(0)));
        let [replies, requests] = ears;
        thread::scope(|threads| {
            let idents = threads.spawn(|| idents_of(&requests));
            let heard = threads.spawn(|| heard_by(&replies, scene));
            let mut sent = Vec::new();
            let ask = |number: usize| {
                let number = u32::try_from(number).expect("not for so long");
                let ident = u16::try_from(number % u32::from(IDENTS)).expect("small");
                let sequence = u16::try_from(number / u32::from(IDENTS) % 0xFFFF).expect("small");
                let payload = [&b"probe"[..], &number.to_be_bytes()].concat();
                injector.send(&build::echo_request(client, remote, 0x7000 + ident, sequence, 64, &payload), remote);
            };
            while !over.load(Ordering::Relaxed) {
                sent.push(Instant::now());
                ask(sent.len() - 1);
                thread::sleep(Duration::from_millis(1));
            }
            // The last one, which must come, tells the listeners that it is over.
            thread::sleep(Duration::from_millis(300));
            ask(u32::MAX as usize);
            let times = heard.join().expect("it hears");
            idents.join().expect("each ident stays one");
            let answered = (0..sent.len()).map(|number| times.get(&u32::try_from(number).expect("small")).copied());
            Probe { answered: answered.collect(), sent }
        })
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn lost(&self) -> usize {
        self.answered.iter().filter(|answered| answered.is_none()).count()
    }

    /// How long after `event` the first ping that was sent after it was answered.
    pub(crate) fn first_after(&self, event: Instant) -> Duration {
        let later = self.sent.iter().zip(&self.answered).filter(|(sent, _)| **sent > event);
        let first = later.filter_map(|(_, answered)| *answered).min().expect("some are answered");
        first.duration_since(event)
    }
}

fn number_of(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.strip_prefix(b"probe")?.try_into().ok()?))
}

/// At the remote: under which gateway ident each client ident's requests come.
fn idents_of(requests: &Ear) {
    let mut known = HashMap::new();
    loop {
        let heard = requests.next_request();
        let Some(number) = number_of(&heard.payload) else { continue };
        if number == u32::MAX {
            assert_eq!(known.len(), usize::from(IDENTS));
            return;
        }
        let before = *known.entry(number % u32::from(IDENTS)).or_insert(heard.ident);
        assert_eq!(before, heard.ident, "ping {number} has left under another ident: its mapping is lost");
    }
}

/// At the client: when each reply came.
fn heard_by(replies: &Ear, scene: &Scene) -> HashMap<u32, Instant> {
    let mut times = HashMap::new();
    loop {
        let heard = replies.next();
        let Some(number) = number_of(&heard.payload).filter(|_| heard.kind == EchoKind::Reply) else { continue };
        assert_eq!(heard.source, scene.remote(1));
        if number == u32::MAX {
            return times;
        }
        assert!(times.insert(number, Instant::now()).is_none(), "ping {number} was answered twice");
    }
}

/// A load by all clients but the first on the first remote, while `meanwhile` runs.
pub(crate) fn under_load<T>(stage: &Scene, rate: u32, meanwhile: impl FnOnce() -> T) -> (LoadReport, T) {
    let over = AtomicBool::new(false);
    let options = LoadOptions {
        duration: Duration::from_secs(600),
        rate: Some(rate.into()),
        window: 4096,
        idents: 16,
        ..LoadOptions::default()
    };
    let watch = |_: &load::Progress| match over.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    thread::scope(|scope| {
        let lab = stage.lab();
        let running = scope.spawn(|| load::run(&lab.clients()[1..], &lab.remotes()[..1], &options, watch));
        let result = ending(&over, meanwhile);
        (running.join().expect("it ends").expect("it runs"), result)
    })
}

/// Does it, and then says that it is over: also if it fails, or those who wait for that would wait for ever.
pub(crate) fn ending<T>(over: &AtomicBool, work: impl FnOnce() -> T) -> T {
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    over.store(true, Ordering::Relaxed);
    result.unwrap_or_else(|failed| panic::resume_unwind(failed))
}

/// The probe, while `meanwhile` runs.
pub(crate) fn probed<T>(stage: &Scene, meanwhile: impl FnOnce() -> T) -> (Probe, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probe = scope.spawn(|| Probe::run(stage, &over));
        thread::sleep(Duration::from_millis(300));
        let meanwhile = || {
            let result = meanwhile();
            thread::sleep(Duration::from_millis(300));
            result
        };
        let result = ending(&over, meanwhile);
        (probe.join().expect("it ends"), result)
    })
}

/// Kills the packet process; when that was, and once another one is there.
fn kill_packets(gateway: &Echogate) -> Instant {
    let killed = gateway.packets_id();
    let at = Instant::now();
    sys::signal(killed, libc::SIGKILL).expect("it runs");
    wait_until("another packet process is there", || gateway.find_packets().is_some_and(|id| id != killed));
    at
}

pub(crate) fn serve(scene: &Scene, setup: &Setup) -> Echogate {
    Echogate::serve(scene.gateway(), &[scene.arguments(setup), limits_off()].concat())
}

#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn killed_at_any_time_under_load_the_packet_process_is_replaced_and_every_mapping_kept(setup: &Setup) {
    let (kills, rate) = (setting("ECHOGATE_KILLS", 3), setting("ECHOGATE_RATE", 1000));
    let scene = Scene::alone(2);
    let gateway = serve(&scene, setup);
    let (report, (probe, killed)) = under_load(&scene, rate, || {
        probed(&scene, || {
            let mut rng = echogate::table::idents::generator(None);
            let kill = |_| {
                let at = kill_packets(&gateway);
                // Long enough for the first to come back, and for the next kill to fall anywhere.
                thread::sleep(Duration::from_millis(100) + Duration::from_micros(rng.random_range(..100_000)));
                at
            };
            (0..kills).map(kill).collect::<Vec<Instant>>()
        })
    });
    let ended = gateway.stop();
    assert_eq!((report.wrong_client, report.altered, report.duplicates), (0, 0, 0), "{report:?}\n{}", ended.complaints);
    assert!(!ended.complaints.contains("damaged"), "{}", ended.complaints);
    let mut gaps: Vec<Duration> = killed.into_iter().map(|at| probe.first_after(at)).collect();
    gaps.sort_unstable();
    // Whatever the rate: a packet is in one buffer of a worker's, or still the kernel's.
    let pools = Sizes::for_mtu(1500);
    let in_its_buffers = setup.workers as usize * (pools.inside.buffers + pools.outside.buffers);
    let lost = usize::try_from(report.lost).expect("as many as were sent") + probe.lost();
    assert!(lost <= kills as usize * in_its_buffers, "{lost} lost by {kills} kills: more than it had in its hands");
    println!(
        "{kills} kills, {} workers on {}, {} echoes/s: first echo after {:?} (median), {:?} (worst); lost {} of {} echoes of \
         the load, {} of {} of the probe",
        setup.workers,
        setup.io,
        report.echoes_per_second(),
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1],
        report.lost,
        report.sent,
        probe.lost(),
        probe.sent(),
    );
}

#[test]
fn replies_to_what_a_killed_process_has_sent_are_delivered_by_the_next_and_once() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    // A remote that answers when it is told to.
    crate::scene::run(scene.internet(), "sysctl -w net.ipv4.icmp_echo_ignore_all=1");
    let (client, remote) =
        (Ear::at(scene.client(0), scene.client_address(0)), Ear::at(scene.internet(), scene.remote(0)));
    client.ask(scene.remote(0), 7, 1, b"before");
    let asked = remote.next_request();
    kill_packets(&gateway);
    remote.reply(asked.source, asked.ident, 1, b"before");
    remote.reply(asked.source, asked.ident, 1, b"before");
    client.ask(scene.remote(0), 7, 2, b"after");
    let again = remote.next_request();
    assert_eq!((again.ident, &again.payload[..]), (asked.ident, &b"after"[..]));
    remote.reply(again.source, again.ident, 2, b"after");
    let replies = [client.next(), client.next()].map(|heard| (heard.ident, heard.sequence));
    assert_eq!(replies, [(7, 1), (7, 2)]);
    gateway.stop();
}

/// Packet by packet: what a death costs are packets that the process had read, for none is lost that it had not.
fn what_waits_while_the_packet_process_is_killed_is_served_by_the_next(setup: &Setup) {
    const COUNT: u16 = 100;
    let scene = Scene::new(1);
    let gateway = serve(&scene, setup);
    crate::scene::run(scene.internet(), "sysctl -w net.ipv4.icmp_echo_ignore_all=1");
    let (client, remote) =
        (Ear::at(scene.client(0), scene.client_address(0)), Ear::at(scene.internet(), scene.remote(0)));
    let before = 1..=COUNT;
    let after = COUNT + 1..=2 * COUNT;
    for sequence in before.clone() {
        client.ask(scene.remote(0), 7, sequence, b"before");
    }
    let asked: Vec<_> = before.clone().map(|_| remote.next_request()).collect();
    let packets = gateway.packets_id();
    sys::signal(packets, libc::SIGSTOP).expect("it runs");
    wait_until("all of it stands still", || all_stopped(packets));
    // Replies wait in the raw sockets, requests in the device.
    for asked in &asked {
        remote.reply(asked.source, asked.ident, asked.sequence, b"before");
    }
    for sequence in after.clone() {
        client.ask(scene.remote(0), 7, sequence, b"after");
    }
    sys::signal(packets, libc::SIGKILL).expect("it runs");
    let mut left: Vec<u16> = after.clone().map(|_| remote.next_request().sequence).collect();
    let mut replies: Vec<u16> = before.clone().map(|_| client.next().sequence).collect();
    left.sort_unstable();
    replies.sort_unstable();
    assert_eq!((left, replies), (after.collect(), before.collect()));
    gateway.stop();
}

fn all_stopped(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let is_stopped = |thread: PathBuf| {
        let line = fs::read_to_string(thread.join("stat")).expect("it runs");
        line.rsplit(')').next().is_some_and(|fields| fields.trim_start().starts_with('T'))
    };
    threads.map(|thread| thread.expect("it can be listed").path()).all(is_stopped)
}

#[test]
fn a_packet_process_that_dies_again_and_again_is_given_up_and_pings_take_the_kernels_path() {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = serve(&scene, &SETUP);
    let mut last = 0;
    for _ in 0..5 {
        wait_until("a packet process", || gateway.find_packets().is_some_and(|id| id != last));
        last = gateway.packets_id();
        sys::signal(last, libc::SIGABRT).expect("it runs");
    }
    let ended = gateway.ended();
    assert_eq!(ended.code, Some(1), "{}", ended.complaints);
    assert!(ended.complaints.contains("echogate: given up after 5 packet processes"), "{}", ended.complaints);
    // The kernel gives up a killed process's ring, and with it the last descriptor of the device, a moment after its end.
    wait_until("nothing is left", || scene.state() == before);
}

#[test]
fn a_packet_process_that_does_not_move_is_replaced() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let stuck = gateway.packets_id();
    sys::signal(stuck, libc::SIGSTOP).expect("it runs");
    let deadline = Instant::now() + 2 * PATIENCE;
    while gateway.find_packets().is_none_or(|id| id == stuck) {
        assert!(Instant::now() < deadline, "nobody has noticed");
        thread::sleep(Duration::from_millis(100));
    }
    scene.await_ping("a ping through its successor");
    let ended = gateway.stop();
    assert!(ended.complaints.contains("the packet process does not move"), "{}", ended.complaints);
}

#[test]
fn signals_that_are_for_the_keeper_do_nothing_to_the_packet_process() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let packets = gateway.packets_id();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR2] {
        sys::signal(packets, signal).expect("it runs");
        scene.assert_pings("after a signal");
    }
    assert_eq!(gateway.packets_id(), packets);
    let ended = gateway.stop();
    assert!(!ended.complaints.contains("starting another one"), "{}", ended.complaints);
}

/// Where the open descriptors of a process lead.
fn descriptors(process: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs");
    all.filter_map(|entry| fs::read_link(entry.expect("it can be listed").path()).ok()).collect()
}

#[test]
fn what_was_left_open_for_the_keeper_is_open_in_none_of_its_children() {
    let (scene, directory) = (Scene::new(1), tempfile::tempdir().expect("a directory"));
    let open = directory.path().join("left-open");
    fs::write(&open, "").expect("it can be written");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 7<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&open);
    shell.arg(env!("CARGO_BIN_EXE_echogate")).arg("run").args(scene.arguments(&SETUP));
    let gateway = Echogate::start(scene.gateway(), &mut shell).serving();
    let id = gateway.id();
    assert!(descriptors(id).contains(&open), "{:?}", descriptors(id));
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("it runs");
    let children: Vec<u32> = children.split_whitespace().map(|id| id.parse().expect("a number")).collect();
    assert!(children.len() >= 2, "nft and the packet process: {children:?}");
    for child in children {
        assert!(!descriptors(child).contains(&open), "{:?}", descriptors(child));
    }
    gateway.stop();
}

#[test]
fn the_packet_processes_end_with_their_keeper() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let both = [gateway.packets_id(), gateway.spare_id()];
    gateway.killed();
    wait_until("the packet processes have ended", || !both.into_iter().any(runs));
}

fn runs(process: u32) -> bool {
    fs::exists(format!("/proc/{process}")).expect("proc is mounted")
}

#[test]
fn the_process_that_waits_takes_the_place_of_one_that_dies_or_leaves_and_another_one_waits() {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = serve(&scene, &SETUP);
    for _ in 0..3 {
        let (packets, spare) = (gateway.packets_id(), gateway.spare_id());
        sys::signal(packets, libc::SIGKILL).expect("it runs");
        wait_until("the one that waited has begun", || gateway.find_packets() == Some(spare));
        scene.assert_pings("by the one that waited");
        assert_ne!(gateway.spare_id(), spare);
    }
    let spare = gateway.spare_id();
    let asked = Echogate::start(scene.gateway(), &mut Echogate::command("restart")).ended();
    assert_eq!((asked.code, gateway.packets_id()), (Some(0), spare), "{}", asked.complaints);
    scene.assert_pings("after a restart");
    let last = gateway.spare_id();
    gateway.stop();
    assert!(!runs(last));
    assert_eq!(scene.state(), before);
}

#[test]
fn one_that_dies_while_it_waits_is_replaced_later_and_nothing_else_comes_of_it() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let packets = gateway.packets_id();
    let mut spare = 0;
    // More often than packet processes may fail.
    for _ in 0..3 {
        wait_until("another one waits", || gateway.find_spare().is_some_and(|id| id != spare));
        spare = gateway.spare_id();
        sys::signal(spare, libc::SIGABRT).expect("it waits");
        scene.assert_pings("while nobody waits");
    }
    // And while none waits, as before.
    sys::signal(packets, libc::SIGKILL).expect("it runs");
    wait_until("another packet process is there", || gateway.find_packets().is_some_and(|id| id != packets));
    scene.await_ping("by one that has not waited");
    gateway.spare_id();
    let ended = gateway.stop();
    assert_eq!(ended.complaints.matches("nobody waits").count(), 3, "{}", ended.complaints);
}

#[test]
fn one_that_waits_and_hangs_holds_up_neither_the_gateway_nor_its_end() {
    let scene = Scene::new(1);
    let before = scene.state();
    let gateway = serve(&scene, &SETUP);
    let spare = gateway.spare_id();
    sys::signal(spare, libc::SIGSTOP).expect("it waits");
    scene.assert_pings("beside it");
    let ended = gateway.stop();
    assert!(ended.complaints.contains("did not end and was killed") && !runs(spare), "{}", ended.complaints);
    wait_until("nothing is left", || scene.state() == before);
}

/// The tables' memory, as whoever has its descriptor sees it.
pub(crate) fn tables_of(gateway: &Echogate) -> File {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", gateway.id())).expect("it runs");
    let mut paths = descriptors.map(|entry| entry.expect("it can be listed").path());
    let is_tables =
        |path: &std::path::Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("echogate-tables"));
    let path = paths.find(|path| is_tables(path)).expect("it has the tables");
    OpenOptions::new().read(true).write(true).open(path).expect("root may")
}

#[test]
fn damaged_slots_are_found_one_by_one_and_the_other_mappings_are_kept() {
    const SLOT_BYTES: usize = 64;
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let (client, remote) =
        (Ear::at(scene.client(0), scene.client_address(0)), Ear::at(scene.internet(), scene.remote(0)));
    let ask = |ident: u16| {
        client.ask(scene.remote(0), ident, 1, b"whose");
        remote.next_request().ident
    };
    let before: Vec<u16> = (0..16).map(ask).collect();
    let packets = gateway.packets_id();
    sys::signal(packets, libc::SIGSTOP).expect("it runs");
    let tables = tables_of(&gateway);
    // Those of the one address there is are the last of it (`src/state.rs`).
    let slots = tables.metadata().expect("it is there").len() - (SLOT_BYTES << 16) as u64;
    // The client's address, in every second mapping's slot: as if another's had been half written.
    for ident in before.iter().step_by(2) {
        let place = slots + u64::from(*ident) * SLOT_BYTES as u64;
        let mut slot = [0; mem::size_of::<u64>()];
        tables.read_exact_at(&mut slot, place).expect("it is there");
        let identity = u64::from_ne_bytes(slot) ^ 1 << 32;
        tables.write_all_at(&identity.to_ne_bytes(), place).expect("it is there");
    }
    sys::signal(packets, libc::SIGKILL).expect("it runs");
    wait_until("another packet process is there", || gateway.find_packets().is_some_and(|id| id != packets));
    let after: Vec<u16> = (0..16).map(ask).collect();
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(number % 2 == 1, before == after, "{number}: {before} became {after}");
    }
    assert!(after.iter().step_by(2).all(|ident| !before.contains(ident)), "a damaged one's ident rests");
    let ended = gateway.stop();
    assert!(
        ended.complaints.contains("some mappings were damaged") && ended.complaints.contains("slots=8"),
        "{}",
        ended.complaints
    );
}
