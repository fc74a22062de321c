//! A client's loss while somebody outside floods the gateway with forged errors, beside its loss while nobody does.
//!
//! The whole gateway in a lab, in turns: a control without a flood, then each kind of forgery. Load, gateway, remotes and the
//! forger share this machine's cores. Arguments: forgeries a second, seconds a turn, rounds. Takes root.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use echogate::config::Config;
use echogate::error::SetupError;
use echogate::gateway::Gateway;
use echogate::lab::forger::{self, Flooded, Forgery};
use echogate::lab::load::{self, LoadOptions, LoadReport};
use echogate::lab::{GATEWAY_OUTSIDE, Lab, LabOptions};
use echogate::metrics::Snapshot;
use echogate::sys::net;

/// What the client asks for, a second: a busy host's monitoring, which a flood must not touch.
const ECHOES_PER_SECOND: u64 = 1000;

struct Plan {
    rate: u32,
    seconds: u64,
    rounds: usize,
    /// As many as there is time for, and their figures mean something.
    whole: bool,
}

fn main() -> Result<(), SetupError> {
    let arguments: Vec<String> = std::env::args().collect();
    let numbers: Vec<u32> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let plan = match (arguments.iter().any(|argument| argument == "--bench"), numbers.as_slice()) {
        (true, []) => Plan { rate: 100_000, seconds: 5, rounds: 3, whole: true },
        (true, [rate, seconds, rounds]) => {
            Plan { rate: *rate, seconds: (*seconds).into(), rounds: *rounds as usize, whole: true }
        }
        (true, _) => return Err(SetupError::new("arguments: forgeries a second, seconds a turn, rounds; or none")),
        (false, _) => Plan { rate: 2000, seconds: 1, rounds: 1, whole: false },
    };
    let lab = Lab::build(&LabOptions { clients: 1, ..LabOptions::default() })?;
    lab.gateway().run(|| serve(&lab, &plan))?
}

/// On a thread inside the gateway's namespace.
fn serve(lab: &Lab, plan: &Plan) -> Result<(), SetupError> {
    let mut config = Config::default();
    config.inside.clients = vec![lab.client_prefix()];
    config.inside.divert = lab.clients().iter().map(|client| client.interface.clone()).collect();
    config.outside.addresses = vec![GATEWAY_OUTSIDE];
    // What is measured is the flood, not the client's share.
    config.limits.enforce = false;
    let gateway = Gateway::start(&config)?;
    println!("{}", gateway.description());
    let kinds: Vec<Option<Forgery>> = std::iter::once(None).chain(Forgery::ALL.map(Some)).collect();
    let mut losses = vec![LoadReport::default(); kinds.len()];
    for round in 0..plan.rounds {
        for turn in 0..kinds.len() {
            let which = (turn + round) % kinds.len();
            let before = gateway.snapshot();
            let (report, flooded) = turn_of(lab, plan, kinds[which], (round * kinds.len() + turn) as u64)?;
            let after = settled(&gateway, || {
                let (kind, flooded) = kinds[which].zip(flooded)?;
                Some((kind.drop(), before.dropped(kind.drop()) + flooded.sent))
            });
            if let (Some(kind), Some(flooded)) = (kinds[which], flooded) {
                let dropped = after.dropped(kind.drop()) - before.dropped(kind.drop());
                let rate = flooded.sent as f64 / flooded.elapsed.as_secs_f64();
                println!(
                    "{}: {} sent, {} refused, {rate:.0}/s; {dropped} dropped as {}",
                    kind.name(),
                    flooded.sent,
                    flooded.refused,
                    kind.drop()
                );
                assert!(dropped > 0 && dropped <= flooded.sent, "what is forged is dropped by name");
                assert!(plan.whole || dropped == flooded.sent, "{dropped} of {} at this rate", flooded.sent);
            }
            assert_eq!(after.told, before.told, "a forged error reached a client");
            assert_eq!(path_mtu(lab.remotes()[0]), Some(1500), "a forged error moved a path's MTU");
            losses[which].sent += report.sent;
            losses[which].lost += report.lost;
        }
    }
    for (kind, report) in kinds.iter().zip(&losses) {
        let name = kind.map_or("no flood (control)", Forgery::name);
        let share = report.lost as f64 / report.sent.max(1) as f64 * 100.0;
        println!("{name:34} {:>8} echoes {:>6} lost {share:8.4}%", report.sent, report.lost);
    }
    gateway.stop().map(drop)
}

/// The counters, once the drop has reached its number, or after the second in which it must have if nothing was lost before
/// the gateway.
fn settled(gateway: &Gateway, expected: impl FnOnce() -> Option<(&'static str, u64)>) -> Snapshot {
    let until = Instant::now() + Duration::from_secs(1);
    let expected = expected();
    loop {
        let snapshot = gateway.snapshot();
        if expected.is_none_or(|(drop, count)| snapshot.dropped(drop) >= count) || Instant::now() > until {
            return snapshot;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The client's echoes, and a flood beside them.
fn turn_of(
    lab: &Lab,
    plan: &Plan,
    kind: Option<Forgery>,
    seed: u64,
) -> Result<(LoadReport, Option<Flooded>), SetupError> {
    let options = LoadOptions {
        duration: Duration::from_secs(plan.seconds),
        rate: Some(ECHOES_PER_SECOND),
        window: 4096,
        seed: seed + 1,
        ..LoadOptions::default()
    };
    thread::scope(|scope| {
        let flood = kind.map(|kind| {
            let count = u64::from(plan.rate) * plan.seconds;
            scope.spawn(move || {
                forger::flood(lab.internet(), &[kind], GATEWAY_OUTSIDE, lab.remotes()[0], plan.rate, count)
            })
        });
        let report = load::run(lab.clients(), lab.remotes(), &options, |_| ControlFlow::Continue(()))?;
        let flooded = flood.map(|flood| flood.join().expect("the forger does not panic")).transpose()?;
        Ok((report, flooded))
    })
}

/// What this host believes to fit on the way to the remote.
fn path_mtu(remote: Ipv4Addr) -> Option<u32> {
    let socket = UdpSocket::bind((GATEWAY_OUTSIDE, 0)).ok()?;
    socket.connect((remote, 9)).ok()?;
    net::mtu(socket.as_fd()).ok()
}
