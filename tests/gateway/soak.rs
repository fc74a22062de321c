//! The gateway for hours: a load all the time, once a round something goes wrong, and each loss has its reason.
//!
//! A round is a load of its own, with one fault in it. Its losses are told by when they left. One in a fault's window (from a
//! second before it to `HEAL` after all was given back) is that fault's, as far as it may cost so many (`Cost`); for any other a queue of
//! the kernel's in this lab, a device's or a socket's, must have been full and have counted a drop, on the section of the way where
//! the packet is missing (`way`). The gateway's own drops are told, but excuse nothing: what it drops without a fault is what a soak
//! is to find. A reply that comes after its echo was given up is excused if a queue was full in its round: nowhere else can one
//! wait for so long. A second lab, where the kernel alone forwards, tells what the machine does to a ping by itself.
//!
//! Counts are taken before the load begins and when nothing moves any more after its end. Those of the window are taken under load, and
//! packets are on their way then: what was lost before the first left before it, and what left after the last was lost after it. So
//! the window ends where its last count does. A fault that may cost nothing has no use for a window: the round is judged as a whole.
//!
//! `ECHOGATE_SOAK_SECONDS`, `_ROUND` (seconds), `_RATE` and `_SEED` say how long, how often and how much, `_REPORT` where the page goes;
//! `scripts/soak` sets them. By themselves they are what a test can take.

mod faults;
mod ledger;
mod page;
mod slope;
mod way;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use echogate::lab::load::{self, LoadOptions, LoadReport, Losses, Progress};
use echogate::lab::{Lab, LabOptions};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use self::faults::{CLIENTS, Cost, Fault, Stage};
use self::ledger::{Drops, Memory, Watched};
use self::way::{Counts, Missing};
use crate::restarts::{ending, setting};
use crate::scene::Scene;

/// How long after a fault the gateway may be unwell.
const HEAL: Duration = Duration::from_secs(4);
/// How long before a fault an echo may have left that it meets on its way.
const UNDER_WAY: Duration = Duration::from_secs(1);
const IDENTS: u16 = 16;
/// Echoes a second of the lab without a gateway.
const CONTROL_RATE: u64 = 100;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
struct Plan {
    length: Duration,
    round: Duration,
    rate: u64,
    seed: u32,
}

impl Plan {
    fn asked_for() -> Plan {
        let seconds = |name: &str, otherwise| Duration::from_secs(setting(name, otherwise).into());
        Plan {
            length: seconds("ECHOGATE_SOAK_SECONDS", 60),
            round: seconds("ECHOGATE_SOAK_ROUND", 10),
            rate: setting("ECHOGATE_SOAK_RATE", 1000).into(),
            seed: setting("ECHOGATE_SOAK_SEED", std::process::id()),
        }
    }

    fn options(&self, round: u32) -> LoadOptions {
        // Sequences that the last rounds did not have: a reply to one of theirs is told from one of this round's.
        let flows = u64::from(IDENTS) * 3;
        let of_a_round = self.rate * self.round.as_secs() / CLIENTS as u64 / flows + 200;
        LoadOptions {
            duration: Duration::from_secs(3600),
            rate: Some(self.rate),
            // What is under way when nothing comes back for as long as is waited for.
            window: usize::try_from(self.rate * 8).expect("not so many"),
            idents: IDENTS,
            first_sequence: u16::try_from(u64::from(round) * of_a_round % 0x1_0000).expect("it fits"),
            reply_timeout: Duration::from_secs(5),
            ..LoadOptions::default()
        }
    }
}

/// One round, when it is over.
struct Round {
    fault: Fault,
    /// When the fault came, and when all that it took was given back, from the beginning of the load.
    window: (Duration, Duration),
    told: Told,
    /// What the kernel dropped in the whole round.
    dropped: BTreeMap<String, u64>,
    missing: Missing,
    load: LoadReport,
    control: LoadReport,
    /// What the fault may cost.
    allowed: u64,
    judged: Judged,
}

/// What went on beside the load.
struct Told {
    came: Instant,
    lifted: Instant,
    /// When what had been dropped by the end of the window was known.
    healed: Instant,
    /// What the kernel had dropped when the fault came, and when its window was over.
    at_first: Drops,
    at_last: Drops,
    /// What the gateway dropped from before the fault to the end of its window, as far as the process that counted lives.
    dropped_by_gateway: BTreeMap<String, u64>,
}

/// Where a round's losses belong.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Judged {
    /// To the fault.
    by_fault: u64,
    /// To a queue of the kernel's.
    by_queues: u64,
    /// They came too late, and a queue was full.
    by_lateness: u64,
    unexplained: u64,
    /// From the end of the fault to the last loss of its window.
    after: Duration,
}

/// When a fault came, when all was given back, and when its window was over.
type Window = (Duration, Duration, Duration);

impl Judged {
    /// `allowed`: what the fault may cost. `excused`: what queues account for, of a fault that may cost something besides its window,
    /// of another in the whole round. `late`: replies that came too late.
    fn of(allowed: u64, (came, lifted, healed): Window, losses: &Losses, excused: u64, late: u64) -> Judged {
        let (from, to) = (came.saturating_sub(UNDER_WAY), healed);
        let (mut then, mut besides, mut last) = (0, 0, lifted);
        for (moment, count) in losses.moments() {
            if (from..to).contains(&moment) {
                then += count;
                last = moment;
            } else {
                besides += count;
            }
        }
        let by_fault = then.min(allowed);
        let others = then + besides - by_fault;
        let by_queues = others.min(excused);
        let by_lateness = if excused > 0 { late.min(others - by_queues) } else { 0 };
        Judged {
            by_fault,
            by_queues,
            by_lateness,
            unexplained: others - by_queues - by_lateness,
            after: last.saturating_sub(lifted),
        }
    }
}

/// What all rounds have found.
struct Soak {
    plan: Plan,
    elapsed: Duration,
    rounds: Vec<Round>,
    watched: Watched,
    /// What the processes have with everything used once, before the first round and after the last.
    filled: [Memory; 2],
}

/// Rounds until the time is over, and after each of them the page so far, each fault once before any comes again.
fn soak(plan: Plan) -> Soak {
    let mut rng = StdRng::seed_from_u64(plan.seed.into());
    let control = Lab::build(&LabOptions { clients: 1, ..LabOptions::default() }).expect("as the scene's");
    control.route_back().expect("a route");
    let scene = Scene::alone(CLIENTS + 1);
    let mut stage = Stage::on(&scene);
    stage.use_all(&mut rng);
    let filled = [Memory::of(stage.gateway()); 2];
    let (start, mut deck) = (Instant::now(), Vec::new());
    let mut soak = Soak { plan, elapsed: Duration::ZERO, rounds: Vec::new(), watched: Watched::new(start), filled };
    while soak.elapsed < plan.length {
        if deck.is_empty() {
            deck = Fault::ALL.to_vec();
            deck.shuffle(&mut rng);
        }
        let fault = deck.pop().expect("it is full");
        let labs =
            Labs { scene: &scene, control: &control, number: u32::try_from(soak.rounds.len()).expect("not so many") };
        let round = labs.round(&mut stage, &plan, fault, &mut rng, &mut soak.watched);
        soak.rounds.push(round);
        soak.elapsed = start.elapsed();
        if soak.elapsed >= plan.length {
            stage.use_all(&mut rng);
            soak.filled[1] = Memory::of(stage.gateway());
        }
        if let Some(path) = env::var_os("ECHOGATE_SOAK_REPORT") {
            fs::write(path, soak.page()).expect("it can be written");
        }
    }
    stage.take_gateway().stop();
    soak
}

/// Where a round takes place.
struct Labs<'a> {
    scene: &'a Scene,
    control: &'a Lab,
    number: u32,
}

impl Labs<'_> {
    fn round(
        &self,
        stage: &mut Stage<'_>,
        plan: &Plan,
        fault: Fault,
        rng: &mut StdRng,
        watched: &mut Watched,
    ) -> Round {
        let (over, begun) = (AtomicBool::new(false), OnceLock::new());
        let options = plan.options(self.number);
        let until_over = |progress: &Progress| {
            begun.get_or_init(|| Instant::now().checked_sub(progress.elapsed).expect("the machine runs for longer"));
            if over.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let lab = self.scene.lab();
        let (passed, before) = (Counts::at_rest(lab), Drops::of(lab));
        let (told, load, control) = thread::scope(|scope| {
            let loaded = scope.spawn(|| load::run(&lab.clients()[..CLIENTS], lab.remotes(), &options, until_over));
            let controlled = scope.spawn(|| {
                let options = LoadOptions { rate: Some(CONTROL_RATE), window: 1000, idents: 1, ..options.clone() };
                load::run(self.control.clients(), self.control.remotes(), &options, until_over)
            });
            let told = ending(&over, || self.tell(stage, plan, fault, rng, watched));
            let [load, control] = [loaded, controlled].map(|load| load.join().expect("it ends").expect("it runs"));
            (told, load, control)
        });
        let missing = Counts::at_rest(lab).missing(&passed, load.replies());
        let after = Drops::after_load(lab, load.socket_drops);
        let dropped = after.since(&before);
        let dropped_else = ledger::sum(told.at_first.since(&before), after.since(&told.at_last));
        let begun = *begun.get().expect("somebody has watched");
        let since = |moment: Instant| moment.saturating_duration_since(begun);
        let window = (since(told.came), since(told.lifted));
        let excused = way::excused(&missing, if fault.may_cost() { &dropped_else } else { &dropped });
        let late = load.stray - load.duplicates;
        let allowed = fault.costs_at_most(plan.rate, lab.remotes().len(), told.lifted - told.came);
        let judged = Judged::of(allowed, (window.0, window.1, since(told.healed)), &load.losses, excused, late);
        Round { fault, window, told, dropped, missing, load, control, allowed, judged }
    }

    /// What happens in a round, beside the load.
    fn tell(&self, stage: &mut Stage<'_>, plan: &Plan, fault: Fault, rng: &mut StdRng, watched: &mut Watched) -> Told {
        let lab = self.scene.lab();
        let start = Instant::now();
        let comes = plan.round.mul_f64(rng.random_range(0.1..0.4)).max(UNDER_WAY);
        watched.until(start + comes, stage);
        let (at_first, counted) = (Drops::of(lab), ledger::stats(stage.gateway()));
        let came = Instant::now();
        stage.inflict(fault, rng);
        let lifted = Instant::now();
        thread::sleep((lifted + HEAL).saturating_duration_since(Instant::now()));
        let (at_last, healed) = (Drops::of(lab), Instant::now());
        let counted_then = ledger::stats(stage.gateway());
        watched.until(start + plan.round, stage);
        Told { came, lifted, healed, at_first, at_last, dropped_by_gateway: ledger::grown(&counted, &counted_then) }
    }
}

#[test]
fn every_loss_has_its_reason_and_nothing_grows() {
    let soak = soak(Plan::asked_for());
    let page = soak.page();
    println!("{page}\n{}", soak.watched.told());
    let faults = soak.faults();
    assert!(faults.is_empty(), "{}\n{page}", faults.join("\n"));
}

#[test]
fn a_loss_is_its_faults_or_a_queues_or_nobodys() {
    let at = |moments: &[(u64, u64)]| {
        let mut losses = Losses::default();
        for (millis, count) in moments {
            (0..*count).for_each(|_| losses.record(Duration::from_millis(*millis)));
        }
        losses
    };
    let window = [10, 11, 15].map(Duration::from_secs);
    let judged = |allowed, moments: &[(u64, u64)], excused, late| {
        let judged = Judged::of(allowed, window.into(), &at(moments), excused, late);
        [judged.by_fault, judged.by_queues, judged.by_lateness, judged.unexplained]
    };
    assert_eq!(judged(99, &[(9_500, 1), (10_500, 2), (14_900, 3)], 0, 0), [6, 0, 0, 0]);
    assert_eq!(judged(99, &[(8_900, 1), (15_100, 2)], 0, 0), [0, 0, 0, 3], "too early and too late");
    assert_eq!(judged(5, &[(9_500, 1), (10_500, 2), (14_900, 3)], 0, 0), [5, 0, 0, 1], "more than it may cost");
    assert_eq!(judged(99, &[(8_900, 1), (15_100, 2)], 2, 0), [0, 2, 0, 1]);
    assert_eq!(judged(0, &[(10_500, 5)], 4, 0), [0, 4, 0, 1], "what costs nothing is judged as a whole");
    assert_eq!(judged(0, &[(10_500, 5)], 9, 0), [0, 5, 0, 0]);
    assert_eq!(judged(0, &[(10_500, 5)], 2, 9), [0, 2, 3, 0], "beside a full queue");
    assert_eq!(judged(0, &[(10_500, 5)], 0, 9), [0, 0, 0, 5], "without one");
    let after = Judged::of(2, window.into(), &at(&[(10_500, 1), (12_250, 1)]), 0, 0).after;
    assert_eq!(after, Duration::from_millis(1250));
    let lasted = Duration::from_millis(1500);
    assert_eq!(Cost::Until(Duration::from_secs(1)).at_most(30_000, lasted), 75_000);
    assert_eq!((Cost::Packets(7).at_most(30_000, lasted), Cost::Nothing.at_most(30_000, lasted)), (7, 0));
    assert_eq!(Cost::Packets(5120).at_most(1000, lasted), 2500, "no more than left");
    let costs = |fault: Fault| fault.costs_at_most(30_000, 3, lasted);
    assert_eq!(costs(Fault::ClientLinkDown), 52_500, "of two clients one");
    assert_eq!((costs(Fault::RemoteUnreachable), costs(Fault::TunDown)), (25_000, 75_000), "of three remotes one");
}
