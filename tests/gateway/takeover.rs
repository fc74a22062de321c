//! Upgrades and planned restarts: one gateway leaves everything to another, and nobody loses an echo.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use crate::in_every_setup;
use crate::process::Echogate;
use crate::restarts::{Probe, SETUP, ending, probed, serve, setting, under_load};
use crate::scene::{Scene, Setup, run, wait_until};
use crate::serves::limits_off;
use crate::web::{METRICS, connect, get, metrics_flags};

in_every_setup!(
    a_gateway_that_takes_over_goes_on_with_every_mapping_and_loses_nothing,
    a_restart_by_command_loses_nothing,
);

/// The arguments of one that takes over.
fn successor(scene: &Scene, setup: &Setup, more: &[&str]) -> Vec<String> {
    let more = more.iter().map(|word| (*word).to_owned()).collect();
    [scene.arguments(setup), limits_off(), vec!["--takeover".to_owned()], more].concat()
}

#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
pub(crate) fn report(what: &str, setup: &Setup, (load, probe): (&echogate::lab::load::LoadReport, &Probe)) {
    println!(
        "{what}, {} workers on {}, {} echoes/s: longest round trip of the load {:?}; lost {} of {} echoes of the load, {} of {} of \
         the probe",
        setup.workers,
        setup.io,
        load.echoes_per_second(),
        load.round_trip.max(),
        load.lost,
        load.sent,
        probe.lost(),
        probe.sent(),
    );
}

fn a_gateway_that_takes_over_goes_on_with_every_mapping_and_loses_nothing(setup: &Setup) {
    let scene = Scene::alone(2);
    let before = scene.state();
    let first = serve(&scene, setup);
    let (spare, during) = (first.spare_id(), scene.state());
    let (load, (probe, second)) = under_load(&scene, setting("ECHOGATE_RATE", 1000), || {
        probed(&scene, || {
            let second = Echogate::serve(scene.gateway(), &successor(&scene, setup, &[]));
            let ended = first.ended();
            assert_eq!(ended.code, Some(0), "{}", ended.complaints);
            assert!(!fs::exists(format!("/proc/{spare}")).expect("proc is mounted"), "it has left nobody who waits");
            second
        })
    });
    report("taken over", setup, (&load, &probe));
    assert_eq!((load.wrong_client, load.altered, load.duplicates), (0, 0, 0), "{load:?}");
    assert_eq!((load.lost, probe.lost()), (0, 0), "{load:?}");
    assert_eq!(scene.state(), during);
    scene.assert_pings("by the second");
    second.stop();
    assert_eq!(scene.state(), before);
}

fn a_restart_by_command_loses_nothing(setup: &Setup) {
    let scene = Scene::alone(2);
    let gateway = serve(&scene, setup);
    let (load, (probe, ())) = under_load(&scene, setting("ECHOGATE_RATE", 1000), || {
        probed(&scene, || {
            let before = gateway.packets_id();
            let asked = Echogate::start(scene.gateway(), &mut Echogate::command("restart")).ended();
            assert_eq!(asked.code, Some(0), "{}", asked.complaints);
            assert!(asked.printed.starts_with("serving pings of 10.66.0.0/24"), "{}", asked.printed);
            assert_ne!(gateway.packets_id(), before);
        })
    });
    report("restarted", setup, (&load, &probe));
    assert_eq!((load.wrong_client, load.altered, load.duplicates), (0, 0, 0), "{load:?}");
    assert_eq!((load.lost, probe.lost()), (0, 0), "{load:?}");
    gateway.stop();
}

#[test]
fn with_nobody_to_take_over_from_it_starts_and_with_nobody_to_restart_it_says_so() {
    let scene = Scene::new(1);
    let asked = Echogate::start(scene.gateway(), &mut Echogate::command("restart")).ended();
    asked.assert_refused(&["no gateway keeps echogate0", "remedy: "]);
    let gateway = Echogate::serve(scene.gateway(), &successor(&scene, &SETUP, &[]));
    scene.assert_pings("by the first");
    gateway.stop();
}

#[test]
fn without_a_device_the_only_gateway_is_meant_whatever_its_device_and_of_several_the_names_are_told() {
    let scene = Scene::new(1);
    let serve = |more: &str| {
        let arguments = more.split(' ').map(str::to_owned).collect();
        Echogate::serve(scene.gateway(), &[scene.arguments(&SETUP), arguments].concat())
    };
    let order = |line: &str| {
        let mut command = Echogate::command(line.split(' ').next().expect("a command"));
        Echogate::start(scene.gateway(), command.args(line.split(' ').skip(1))).ended()
    };
    // As the unit's ExecReload says it, where the file names another device than the usual one.
    let first = serve("--device wg-pings");
    let before = first.packets_id();
    let restarted = order("restart");
    assert_eq!(restarted.code, Some(0), "{}", restarted.complaints);
    assert!(restarted.printed.contains("wg-pings") && first.packets_id() != before, "{}", restarted.printed);

    let line = "--clients 10.77.0.0/24 --outside 198.18.0.1 --device other";
    let second = Echogate::serve(scene.gateway(), &line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    order("restart").assert_refused(&["several gateways are running", "give --device one of other, wg-pings"]);
    let named = order("restart --device other");
    assert_eq!(named.code, Some(0), "{}", named.complaints);
    second.stop();
    first.stop();
}

#[test]
fn one_that_is_configured_otherwise_begins_anew_and_says_why() {
    let scene = Scene::new(1);
    let before = scene.state();
    let first = serve(&scene, &SETUP);
    scene.assert_pings("by the first");
    let other = Setup { workers: 1, ..SETUP };
    let second = Echogate::serve(scene.gateway(), &successor(&scene, &other, &[]));
    assert_eq!(first.ended().code, Some(0));
    scene.await_ping("by the second");
    let third = Echogate::serve(scene.gateway(), &successor(&scene, &other, &["--echo-timeout", "30s"]));
    let ended = second.ended();
    assert_eq!(ended.code, Some(0));
    assert!(ended.complaints.contains("run.workers is another one"), "{}", ended.complaints);
    scene.await_ping("by the third");
    let ended = third.stop();
    let said = &ended.complaints;
    assert!(said.contains("the tables are not taken up") && said.contains("its echo.timeout is another one"), "{said}");
    assert_eq!(scene.state(), before);
}

#[test]
fn a_diversion_that_is_to_be_another_one_is_made_anew() {
    let scene = Scene::new(2);
    let before = scene.state();
    let narrow = ["--clients", "10.66.0.0/24", "--outside", "198.18.0.1", "--divert", "g0", "--workers", "2"];
    let narrow = narrow.map(str::to_owned).to_vec();
    let first = Echogate::serve(scene.gateway(), &narrow);
    let second = Echogate::serve(scene.gateway(), &successor(&scene, &SETUP, &[]));
    assert_eq!(first.ended().code, Some(0));
    let pings = scene.pings(1, 3, scene.remote(0), "");
    assert!(pings.all_came_back(3), "{}", pings.text);
    second.stop();
    assert_eq!(scene.state(), before);
}

#[test]
fn a_successor_that_goes_away_in_the_middle_leaves_the_gateway_as_it_was() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    scene.assert_pings("at first");
    let packets = gateway.packets_id();
    let name = SocketAddr::from_abstract_name("echogate/echogate0").expect("a name");
    let connect = || scene.gateway().run(|| UnixStream::connect_addr(&name)).expect("it can be entered");
    let say = |words: &[u8]| -> io::Result<()> {
        let stream = connect()?;
        io::Write::write_all(&mut &stream, words)?;
        // The descriptors are on their way when the first byte is.
        io::Read::read_exact(&mut &stream, &mut [0])
    };
    say(b"\x0b\0\0\0\0\0\0\0\"take over\"").expect("it is answered");
    wait_until("another packet process", || gateway.find_packets().is_some_and(|id| id != packets));
    scene.await_ping("after a successor that went away");
    // What is no request is no reason to do anything.
    let packets = gateway.packets_id();
    for garbage in [&b"\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x02\0\0\0\0\0\0\0{}", b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(say(garbage).is_err(), "{garbage:?} is answered");
    }
    drop(connect());
    scene.assert_pings("after garbage");
    assert_eq!(gateway.packets_id(), packets);
    let asked = Echogate::start(scene.gateway(), &mut Echogate::command("restart")).ended();
    assert_eq!(asked.code, Some(0), "{}", asked.complaints);
    let ended = gateway.stop();
    assert!(ended.complaints.contains("this one goes on"), "{}", ended.complaints);
}

#[test]
fn whoever_looks_meanwhile_is_answered_by_one_or_the_other_and_refused_by_none() {
    let scene = Scene::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("e.sock");
    let control = ["--control", socket.to_str().expect("text")].map(str::to_owned).to_vec();
    let look_at = [control, metrics_flags()].concat();
    let first = Echogate::serve(scene.gateway(), &[scene.arguments(&SETUP), look_at.clone()].concat());
    let over = AtomicBool::new(false);
    let look = || {
        while !over.load(Ordering::Relaxed) {
            UnixStream::connect(&socket).expect("somebody listens");
            connect(scene.gateway(), METRICS).expect("somebody listens");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let second = thread::scope(|threads| {
        threads.spawn(look);
        ending(&over, || {
            let arguments = [scene.arguments(&SETUP), look_at.clone(), vec!["--takeover".to_owned()]].concat();
            let second = Echogate::serve(scene.gateway(), &arguments);
            assert_eq!(first.ended().code, Some(0));
            second
        })
    });
    assert_eq!(get(scene.gateway(), METRICS, "/healthz").expect("it answers").0, 200);
    assert!(UnixStream::connect(&socket).is_ok(), "the one before has left it there");
    second.stop();
    assert!(!socket.exists());
}

#[test]
fn another_user_is_not_answered() {
    let scene = Scene::new(1);
    let gateway = serve(&scene, &SETUP);
    let packets = gateway.packets_id();
    // Its own copy: where this one is built, others may not look.
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("echogate");
    fs::copy(env!("CARGO_BIN_EXE_echogate"), &program).expect("it is copied");
    run(scene.gateway(), &format!("chmod 755 {}", directory.path().display()));
    let command = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {} restart", program.display());
    let refused = run(scene.gateway(), &format!("{command} 2>&1 || true"));
    thread::sleep(Duration::from_millis(100));
    assert_eq!(gateway.packets_id(), packets, "{refused}");
    assert!(refused.contains("echogate: "), "{refused}");
    gateway.stop();
}
