//! Pings through this server with Echogate, and through the same server that hands them to the kernel and its masquerade.
//!
//! The contenders take turns, each in a new network of namespaces; the figure is the median of the rounds, and a ratio that
//! of the rounds' ratios. The clients are light ones (`peer`): what is to be measured is the server. Its processor time is
//! that of its process, user and system: the kernel works for a packet in the process that sends it, so the way through the
//! stack, the masquerade and the remote's answer are in it for both alike.
//!
//! `cargo bench --package wireguard-server --bench pings`; the tests run it tiny.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

mod peer;
#[path = "../../tests/vpn/process.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod process;
#[path = "../../tests/vpn/scene.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod scene;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use peer::{Load, Peer};
use scene::{Scene, Setup};

const CLIENTS: usize = 2;

const CONTENDERS: [(&str, &[&str]); 2] =
    [("Echogate", &["--no-limits"]), ("kernel masquerade", &["--without-echogate"])];

/// How much is measured.
#[derive(Clone, Copy)]
struct Size {
    rounds: usize,
    busy: Duration,
    calm: Duration,
}

/// For figures.
const WHOLE: Size = Size { rounds: 7, busy: Duration::from_secs(3), calm: Duration::from_secs(1) };
/// For the tests: whether it works.
const TINY: Size = Size { rounds: 1, busy: Duration::from_millis(150), calm: Duration::from_millis(50) };

/// Echoes under way, for each client.
const BUSY_WINDOW: usize = 64;

/// What one contender did in one round.
struct Measured {
    echoes_per_second: f64,
    server_us_an_echo: f64,
    busy_p50: f64,
    calm_p50: f64,
    lost: u64,
}

fn main() {
    let size = if std::env::args().any(|argument| argument == "--bench") { WHOLE } else { TINY };
    println!("{}", conditions());
    println!(
        "{} rounds; {CLIENTS} clients, echoes of 84 bytes; busy: {BUSY_WINDOW} under way for each; calm: one under way",
        size.rounds
    );
    println!("{:20}{:>10}{:>14}{:>14}{:>14}{:>8}", "", "echo/s", "server us", "p50 us busy", "p50 us calm", "lost");
    let mut results: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    for round in 0..size.rounds {
        for turn in 0..CONTENDERS.len() {
            // Nobody always follows the same one.
            let contender = (turn + round) % CONTENDERS.len();
            let (name, flags) = CONTENDERS[contender];
            let measured = measure(flags, size);
            println!("{}", line(name, |of| of(&measured), measured.lost));
            results[contender].push(measured);
        }
    }
    println!("median of the rounds, and of their ratios:");
    for ((name, _), rounds) in CONTENDERS.iter().zip(&results) {
        let lost = rounds.iter().map(|round| round.lost).sum();
        println!("{}", line(name, |of| median(rounds.iter().map(of).collect()), lost));
    }
    let [echogate, masquerade] = &results;
    let ratio = |of: fn(&Measured) -> f64| {
        median(echogate.iter().zip(masquerade).map(|(own, other)| of(own) / of(other)).collect())
    };
    println!(
        "{:20}{:>10.2}{:>14.2}{:>14.2}{:>14.2}",
        "ratio",
        ratio(|m| m.echoes_per_second),
        ratio(|m| m.server_us_an_echo),
        ratio(|m| m.busy_p50),
        ratio(|m| m.calm_p50)
    );
    let added = echogate.iter().zip(masquerade).map(|(own, other)| own.server_us_an_echo - other.server_us_an_echo);
    println!("added by Echogate: {:+.2} us of the server's processor time an echo", median(added.collect()));
    println!("afterwards: {}", conditions());
}

fn line(name: &str, value: impl Fn(fn(&Measured) -> f64) -> f64, lost: u64) -> String {
    format!(
        "{name:20}{:>10.0}{:>14.2}{:>14.1}{:>14.1}{lost:>8}",
        value(|m| m.echoes_per_second),
        value(|m| m.server_us_an_echo),
        value(|m| m.busy_p50),
        value(|m| m.calm_p50)
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(flags: &[&str], size: Size) -> Measured {
    let scene = Scene::without_clients(Setup::Embedded, flags);
    let mut peers: Vec<Peer> = (0..CLIENTS).map(|number| Peer::connect(&scene, number)).collect();
    // Caches, conntrack, neighbours.
    on_all(&mut peers, BUSY_WINDOW, size.busy / 6);
    let (before, start) = (scene.server_time(), Instant::now());
    let loads = on_all(&mut peers, BUSY_WINDOW, size.busy);
    let (spent, elapsed) = (scene.server_time() - before, start.elapsed());
    let calm = peers[0].load(1, size.calm);

    let mut round_trips: Vec<Duration> = loads.iter().flat_map(|load| load.round_trips.iter().copied()).collect();
    let echoes = round_trips.len() as f64;
    assert!(echoes > 0.0 && !calm.round_trips.is_empty(), "nothing came back");
    let said = scene.stop().server.complaints;
    assert_eq!(said.contains("pings sent"), !flags.contains(&"--without-echogate"), "{said}");
    Measured {
        echoes_per_second: echoes / elapsed.as_secs_f64(),
        server_us_an_echo: spent.as_secs_f64() * 1e6 / echoes,
        busy_p50: p50(&mut round_trips),
        calm_p50: p50(&mut calm.round_trips.clone()),
        lost: loads.iter().map(|load| load.lost).sum::<u64>() + calm.lost,
    }
}

fn on_all(peers: &mut [Peer], window: usize, time: Duration) -> Vec<Load> {
    thread::scope(|scope| {
        let running: Vec<_> = peers.iter_mut().map(|peer| scope.spawn(move || peer.load(window, time))).collect();
        running.into_iter().map(|load| load.join().expect("every reply was right")).collect()
    })
}

/// In microseconds.
fn p50(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn conditions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown").trim();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores{model}; Linux {}; load average {}", kernel.trim(), read("/proc/loadavg").trim())
}
