//! Where a test takes place: the lab, and the system's programs in it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use echogate::lab::{Lab, LabOptions, Namespace};

use crate::process::{Echogate, Ended};

const ROOT: &str = "these tests make network namespaces: run them as root (scripts/test)";

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// How the gateway moves packets.
pub(crate) struct Setup {
    /// `--io`
    pub(crate) io: &'static str,
    pub(crate) workers: u32,
}

/// Held while a scene plays: tests that load the machine play alone. The kernel's queue of received packets belongs to
/// the CPU, not to a namespace; one scene's flood would drop another's single packet.
static STAGE: RwLock<()> = RwLock::new(());

pub(crate) struct Scene {
    lab: Lab,
    _stage: Stage,
}

enum Stage {
    Shared(#[expect(dead_code, reason = "held, not looked at")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, not looked at")] RwLockWriteGuard<'static, ()>),
}

impl Scene {
    /// So many clients, and the first three addresses of the internet.
    pub(crate) fn new(clients: usize) -> Scene {
        Scene::with(&LabOptions { clients, remotes: 3, ..LabOptions::default() })
    }

    pub(crate) fn with(options: &LabOptions) -> Scene {
        Scene::on(Stage::Shared(STAGE.read().unwrap_or_else(PoisonError::into_inner)), options)
    }

    /// As `new`, with no other scene beside it.
    pub(crate) fn alone(clients: usize) -> Scene {
        Scene::alone_with(&LabOptions { clients, remotes: 3, ..LabOptions::default() })
    }

    /// As `with`, with no other scene beside it.
    pub(crate) fn alone_with(options: &LabOptions) -> Scene {
        Scene::on(Stage::Alone(STAGE.write().unwrap_or_else(PoisonError::into_inner)), options)
    }

    fn on(stage: Stage, options: &LabOptions) -> Scene {
        let scene = Scene { lab: Lab::build(options).expect(ROOT), _stage: stage };
        // A cable's two ends do not come up in one instant, and the state of the host says so.
        wait_until("every link is up", || {
            let state = scene.state();
            !["linkdown", "state DOWN", "LOWERLAYERDOWN"].iter().any(|sign| state.contains(sign))
        });
        scene
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn gateway(&self) -> &Namespace {
        self.lab.gateway()
    }

    pub(crate) fn internet(&self) -> &Namespace {
        self.lab.internet()
    }

    pub(crate) fn client(&self, number: usize) -> &Namespace {
        &self.lab.clients()[number].namespace
    }

    pub(crate) fn client_address(&self, number: usize) -> Ipv4Addr {
        self.lab.clients()[number].address
    }

    pub(crate) fn remote(&self, number: usize) -> Ipv4Addr {
        self.lab.remotes()[number]
    }

    /// The arguments of a gateway for all clients: of `run` and of `check`.
    pub(crate) fn arguments(&self, setup: &Setup) -> Vec<String> {
        let Setup { io, workers } = setup;
        let mut line = format!("--clients 10.66.0.0/24 --outside 198.18.0.1 --workers {workers} --io {io}");
        for client in self.lab.clients() {
            line += &format!(" --divert {}", client.interface);
        }
        line.split(' ').map(str::to_owned).collect()
    }

    /// A gateway that serves all clients.
    pub(crate) fn serve(&self, setup: &Setup) -> Echogate {
        Echogate::serve(self.gateway(), &self.arguments(setup))
    }

    /// `echogate check` for the same gateway.
    pub(crate) fn check(&self, setup: &Setup) -> Ended {
        Echogate::start(self.gateway(), Echogate::command("check").args(self.arguments(setup))).ended()
    }

    /// All that a gateway may change on its host, as the system's programs print it.
    pub(crate) fn state(&self) -> String {
        let ask = |line: &str| format!("# {line}\n{}", run(self.gateway(), line));
        // Without the rules' counters: what passed is no set-up.
        ["ip rule", "ip route show table all", "nft --stateless list ruleset", "ip link", "ip address"]
            .map(ask)
            .concat()
    }

    /// One client pings, with `ping`'s own arguments.
    pub(crate) fn ping(&self, client: usize, arguments: &str) -> Pings {
        let output = run_for_output(self.client(client), &format!("timeout 60 ping {arguments}"), "");
        Pings::read(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr))
    }

    /// So many pings at once. After the last, ping waits for two round trips or its interval, whichever is longer: the
    /// long interval is the patience of a machine with more to do.
    pub(crate) fn pings(&self, client: usize, count: u32, remote: Ipv4Addr, arguments: &str) -> Pings {
        self.ping(client, &format!("-c {count} -l {count} -i 10 -W 10 {arguments} {remote}"))
    }

    /// Pings at an interval, by our own pinger: it waits for the reply to the last as long as for all others. `ping` waits for
    /// two of the round trips so far, and on a machine with more to do the last reply may be slower than that.
    pub(crate) fn ping_to_the_last(&self, client: usize, arguments: &str) -> Pings {
        let line = format!("timeout 60 {} ping -W 10 {arguments}", env!("CARGO_BIN_EXE_echogate"));
        let output = run_for_output(self.client(client), &line, "");
        Pings::read(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr))
    }

    /// Three pings by the first client, all of which must come back.
    pub(crate) fn assert_pings(&self, when: &str) {
        let pings = self.pings(0, 3, self.remote(0), "");
        assert!(pings.all_came_back(3), "{when}: {}", pings.text);
    }

    /// Pings by the first client, none of which may come back.
    pub(crate) fn assert_no_ping(&self, when: &str) {
        let pings = self.ping(0, &format!("-c 2 -l 2 -W 1 {}", self.remote(0)));
        assert_eq!((pings.sent, pings.received), (2, 0), "{when}: {}", pings.text);
    }

    /// Pings until one comes back.
    pub(crate) fn await_ping(&self, when: &str) {
        wait_until(when, || self.ping(0, &format!("-c 1 -W 1 {}", self.remote(0))).received == 1);
    }
}

/// What `ping` says at its end.
pub(crate) struct Pings {
    sent: u32,
    received: u32,
    pub(crate) text: String,
}

impl Pings {
    fn read(printed: &str, complaints: &str) -> Pings {
        let text = format!("{printed}{complaints}");
        let summary = printed.lines().find(|line| line.contains("packets transmitted"));
        let summary = summary.unwrap_or_else(|| panic!("ping printed no summary: {text}"));
        let number = |before: &str| {
            let part = summary.split(", ").find_map(|part| part.strip_suffix(before));
            part.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no number before{before}: {text}"))
        };
        Pings { sent: number(" packets transmitted"), received: number(" received"), text }
    }

    /// How many came back.
    pub(crate) fn received(&self) -> u32 {
        self.received
    }

    /// How many of the first so many came back, if each of those has a line.
    pub(crate) fn received_of_first(&self, count: u32) -> u32 {
        let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
        let replies = self.text.lines().filter(|line| line.contains("bytes from"));
        let received = replies.filter_map(number).filter(|number: &u32| (1..=count).contains(number)).count();
        u32::try_from(received).expect("not so many")
    }

    /// Whether each came back once and as it left, and nobody said anything else.
    pub(crate) fn is_flawless(&self) -> bool {
        let flaws = ["DUP!", "wrong data", "corrupted", "errors", "duplicates", "BAD CHECKSUM"];
        !flaws.iter().any(|flaw| self.text.contains(flaw))
    }

    /// Whether `count` were sent, and each came back once and as it left.
    pub(crate) fn all_came_back(&self, count: u32) -> bool {
        (self.sent, self.received) == (count, count) && self.is_flawless()
    }
}

/// Runs a shell's line to its successful end; what it printed.
pub(crate) fn run(namespace: &Namespace, line: &str) -> String {
    let output = run_for_output(namespace, line, "");
    successful(namespace, line, &output)
}

/// Loads an nftables script.
pub(crate) fn nft(namespace: &Namespace, script: &str) {
    let output = run_for_output(namespace, "nft -f -", script);
    successful(namespace, script, &output);
}

fn successful(namespace: &Namespace, line: &str, output: &Output) -> String {
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line} ({}): {complaints}", namespace.name());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn run_for_output(namespace: &Namespace, line: &str, input: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.run(|| command.spawn()).expect(ROOT).expect("sh runs");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that takes no input may have closed its end.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output().expect("its output");
    assert_ne!(output.status.code(), Some(127), "{line}: no such program; remedy: scripts/test installs them");
    output
}

/// Waits until `condition` holds, and fails where it never does.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
