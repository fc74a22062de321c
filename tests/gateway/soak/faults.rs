//! What goes wrong in a soak, and what it may cost.

use std::fs;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use echogate::io::Sizes;
use echogate::lab::forger::{self, Forgery};
use echogate::lab::load::{self, LoadOptions};
use echogate::lab::{GATEWAY_OUTSIDE, Lab};
use echogate::wire::build;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tempfile::TempDir;

use crate::ear::Injector;
use crate::process::Echogate;
use crate::scene::{Scene, run, wait_until};
use crate::sys;

/// Clients that the load comes from; the one after them is the one that means ill.
pub(super) const CLIENTS: usize = 2;

/// Idents of each of the load's clients that take nearly all that an outside address has.
const FILLED: u16 = 32_000;

/// A second after which most of what was taken away is given back.
const HELD: Duration = Duration::from_secs(1);

/// Workers, whose buffers a killed packet process takes with it.
const WORKERS: usize = 2;

/// The host, and the gateway on it.
pub(super) struct Stage<'a> {
    scene: &'a Scene,
    directory: TempDir,
    gateway: Option<Echogate>,
    reloads: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    PacketProcessKilled,
    PacketProcessStopped,
    GatewayKilled,
    Restart,
    Reload,
    Takeover,
    TunDown,
    ClientLinkDown,
    OutsideLinkDown,
    RemoteUnreachable,
    AddressRemoved,
    RulesetFlushed,
    RuleDeleted,
    TableFlushed,
    RemoteSilent,
    SlowWayOut,
    FewCpus,
    ClientFloods,
    ForgedErrors,
    ForgedReplies,
    Garbage,
}

impl Fault {
    pub(super) const ALL: [Fault; 21] = [
        Fault::PacketProcessKilled,
        Fault::PacketProcessStopped,
        Fault::GatewayKilled,
        Fault::Restart,
        Fault::Reload,
        Fault::Takeover,
        Fault::TunDown,
        Fault::ClientLinkDown,
        Fault::OutsideLinkDown,
        Fault::RemoteUnreachable,
        Fault::AddressRemoved,
        Fault::RulesetFlushed,
        Fault::RuleDeleted,
        Fault::TableFlushed,
        Fault::RemoteSilent,
        Fault::SlowWayOut,
        Fault::FewCpus,
        Fault::ClientFloods,
        Fault::ForgedErrors,
        Fault::ForgedReplies,
        Fault::Garbage,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Fault::PacketProcessKilled => "packet process killed (SIGKILL)",
            Fault::PacketProcessStopped => "packet process stopped for 0.3 s",
            Fault::GatewayKilled => "keeper and all killed, started anew",
            Fault::Restart => "planned restart",
            Fault::Reload => "reload",
            Fault::Takeover => "taken over by another gateway",
            Fault::TunDown => "TUN device down, up",
            Fault::ClientLinkDown => "a client's link down, up",
            Fault::OutsideLinkDown => "outside link down, up",
            Fault::RemoteUnreachable => "a remote's route becomes unreachable",
            Fault::AddressRemoved => "outside address removed, added",
            Fault::RulesetFlushed => "nft flush ruleset",
            Fault::RuleDeleted => "ip rule deleted",
            Fault::TableFlushed => "ip route table flushed",
            Fault::RemoteSilent => "remotes answer nothing",
            Fault::SlowWayOut => "way out of 1 Mbit/s, queue of 3,000 bytes",
            Fault::FewCpus => "one CPU, then all again",
            Fault::ClientFloods => "another client floods",
            Fault::ForgedErrors => "flood of forged errors",
            Fault::ForgedReplies => "flood of forged replies",
            Fault::Garbage => "flood of garbage from a client",
        }
    }

    /// What a planned change, a pause that queues bridge, or somebody else's flood costs has no excuse.
    pub(super) fn cost(self) -> Cost {
        match self {
            Fault::PacketProcessStopped
            | Fault::Restart
            | Fault::Reload
            | Fault::Takeover
            | Fault::RulesetFlushed
            | Fault::FewCpus
            | Fault::ClientFloods
            | Fault::ForgedErrors
            | Fault::ForgedReplies
            | Fault::Garbage => Cost::Nothing,
            Fault::PacketProcessKilled => {
                let pools = Sizes::for_mtu(1500);
                Cost::Packets((WORKERS * (pools.inside.buffers + pools.outside.buffers)) as u64)
            }
            Fault::GatewayKilled
            | Fault::TunDown
            | Fault::RuleDeleted
            | Fault::TableFlushed
            | Fault::RemoteUnreachable
            | Fault::RemoteSilent
            | Fault::SlowWayOut => Cost::Until(Duration::from_secs(1)),
            // The neighbours behind a link are asked for again, once a second.
            Fault::ClientLinkDown | Fault::OutsideLinkDown | Fault::AddressRemoved => {
                Cost::Until(Duration::from_secs(2))
            }
        }
    }

    /// The part of the load that it touches is one in so many, where it goes to so many remotes.
    fn one_of(self, remotes: usize) -> u64 {
        match self {
            Fault::ClientLinkDown => CLIENTS as u64,
            Fault::RemoteUnreachable => remotes as u64,
            _ => 1,
        }
    }

    /// How many echoes it may cost at most, at so many a second to so many remotes, if it has lasted so long.
    pub(super) fn costs_at_most(self, rate: u64, remotes: usize, lasted: Duration) -> u64 {
        self.cost().at_most(rate.div_ceil(self.one_of(remotes)), lasted)
    }

    pub(super) fn may_cost(self) -> bool {
        !matches!(self.cost(), Cost::Nothing)
    }
}

/// What a fault may cost at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cost {
    Nothing,
    /// So many, and no more than leave while it lasts and in a second more.
    Packets(u64),
    /// What leaves as long as the fault lasts, and for so long after it.
    Until(Duration),
}

impl Cost {
    /// At so many echoes a second, of a fault that has lasted so long.
    pub(super) fn at_most(self, rate: u64, lasted: Duration) -> u64 {
        let leave_in = |time: Duration| rate * u64::try_from(time.as_millis()).expect("not for so long") / 1000;
        match self {
            Cost::Nothing => 0,
            Cost::Packets(count) => count.min(leave_in(lasted + Duration::from_secs(1))),
            Cost::Until(healed) => leave_in(lasted + healed),
        }
    }
}

impl Stage<'_> {
    /// For a scene with one client more than the load's.
    pub(super) fn on(scene: &Scene) -> Stage<'_> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut stage = Stage { scene, directory, gateway: None, reloads: 0 };
        stage.configure();
        stage.start(&[]);
        stage
    }

    /// Writes the file, another one each time. Those that the load comes from have no limits, everybody else has the usual ones.
    fn configure(&mut self) {
        self.reloads += 1;
        let without = "packets_per_second=0 bytes_per_second=0 mappings_per_second=0 mappings=0";
        let text = format!(
            "[inside]\nclients = [\"10.66.0.0/24\"]\ndivert = [\"g0\", \"g1\", \"g2\"]\n\
             [outside]\naddresses = [\"{GATEWAY_OUTSIDE}\"]\n[run]\nworkers = {WORKERS}\n\
             [limits]\npackets_burst = {}\noverrides = [\"10.66.0.2/32 {without}\", \"10.66.0.3/32 {without}\"]\n",
            2000 + self.reloads % 100
        );
        fs::write(self.directory.path().join("echogate.toml"), text).expect("it can be written");
    }

    fn start(&mut self, more: &[&str]) {
        let mut command = Echogate::command("run");
        command.arg("--config").arg(self.directory.path().join("echogate.toml")).args(more);
        let started = Echogate::start(self.scene.gateway(), &mut command).serving();
        if let Some(before) = self.gateway.replace(started) {
            let ended = before.ended();
            assert_eq!(ended.code, Some(0), "{}", ended.complaints);
        }
    }

    pub(super) fn gateway(&self) -> &Echogate {
        self.gateway.as_ref().expect("it serves")
    }

    pub(super) fn take_gateway(&mut self) -> Echogate {
        self.gateway.take().expect("it serves")
    }

    fn lab(&self) -> &Lab {
        self.scene.lab()
    }

    /// A command about the gateway, which must succeed.
    fn command(&self, name: &str) {
        let ended = Echogate::start(self.scene.gateway(), &mut Echogate::command(name)).ended();
        assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.printed, ended.complaints);
    }

    fn another_packet_process_than(&self, before: u32) {
        wait_until("another packet process", || self.gateway().find_packets().is_some_and(|id| id != before));
    }

    /// Takes something away on the gateway's host, and gives it back.
    fn for_a_moment(&self, taken: &str, given: &str) {
        run(self.scene.gateway(), taken);
        thread::sleep(HELD);
        run(self.scene.gateway(), given);
    }

    /// Makes it happen; when it is over the gateway has all that it needs, and has to be well soon.
    pub(super) fn inflict(&mut self, fault: Fault, rng: &mut StdRng) {
        match fault {
            Fault::PacketProcessKilled => {
                let killed = self.gateway().packets_id();
                sys::signal(killed, libc::SIGKILL).expect("it runs");
                self.another_packet_process_than(killed);
            }
            Fault::PacketProcessStopped => {
                let stopped = self.gateway().packets_id();
                sys::signal(stopped, libc::SIGSTOP).expect("it runs");
                thread::sleep(Duration::from_millis(300));
                sys::signal(stopped, libc::SIGCONT).expect("it runs");
            }
            Fault::GatewayKilled => {
                drop(self.take_gateway().killed());
                self.start(&[]);
            }
            Fault::Restart => self.command("restart"),
            Fault::Reload => {
                self.configure();
                self.command("reload");
            }
            Fault::Takeover => self.start(&["--takeover"]),
            Fault::TunDown => self.for_a_moment("ip link set echogate0 down", "ip link set echogate0 up"),
            Fault::ClientLinkDown => {
                let number = rng.random_range(0..CLIENTS);
                let address = self.scene.client_address(number);
                let up = format!("ip link set g{number} up && ip route replace {address} dev g{number}");
                self.for_a_moment(&format!("ip link set g{number} down"), &up);
            }
            Fault::OutsideLinkDown => {
                let up = format!("ip link set wan up && ip route replace default via {}", self.scene.remote(0));
                self.for_a_moment("ip link set wan down", &up);
            }
            Fault::RemoteUnreachable => {
                let remote = self.scene.remote(rng.random_range(0..self.lab().remotes().len()));
                let route = format!("unreachable {remote}/32");
                self.for_a_moment(&format!("ip route add {route}"), &format!("ip route del {route}"));
            }
            Fault::AddressRemoved => {
                let add = format!(
                    "ip address add {GATEWAY_OUTSIDE}/24 dev wan && ip route replace default via {}",
                    self.scene.remote(0)
                );
                self.for_a_moment(&format!("ip address del {GATEWAY_OUTSIDE}/24 dev wan"), &add);
            }
            Fault::RulesetFlushed => drop(run(self.scene.gateway(), "nft flush ruleset")),
            Fault::RuleDeleted => drop(run(self.scene.gateway(), "ip rule del priority 3776")),
            Fault::TableFlushed => drop(run(self.scene.gateway(), "ip route flush table 3776")),
            Fault::RemoteSilent => {
                let internet = self.scene.internet();
                internet.sysctl(&[("net/ipv4/icmp_echo_ignore_all", "1")]).expect("it can be set");
                thread::sleep(HELD);
                internet.sysctl(&[("net/ipv4/icmp_echo_ignore_all", "0")]).expect("it can be set");
            }
            Fault::SlowWayOut => self.for_a_moment(
                "tc qdisc add dev wan root tbf rate 1mbit burst 2000 limit 3000",
                "tc qdisc del dev wan root",
            ),
            Fault::FewCpus => {
                let id = self.gateway().packets_id();
                self.for_a_moment(&format!("taskset -a -c -p 0 {id}"), &format!("taskset -a -p ffffffff {id}"));
            }
            Fault::ClientFloods => self.flood(),
            Fault::ForgedErrors => {
                let (internet, remote) = (self.scene.internet(), self.scene.remote(0));
                forger::flood(internet, &Forgery::ALL, GATEWAY_OUTSIDE, remote, 5000, 5000).expect("it floods");
            }
            Fault::ForgedReplies => {
                let (injector, remote) = (Injector::at(self.scene.internet()), self.scene.remote(0));
                paced(1000, |_| {
                    let (ident, sequence) = (rng.random(), rng.random());
                    injector.send(
                        &build::echo_reply(remote, GATEWAY_OUTSIDE, ident, sequence, 64, b"forged"),
                        GATEWAY_OUTSIDE,
                    );
                });
            }
            Fault::Garbage => self.garbage(rng),
        }
    }

    /// Uses whatever is used now and then only, so that its memory is there: a packet process that has waited for its turn, and with
    /// that process all that others throw at it and nearly every ident, which the load's own are among.
    pub(super) fn use_all(&mut self, rng: &mut StdRng) {
        for fault in [
            Fault::TunDown,
            Fault::Reload,
            Fault::Restart,
            Fault::ClientFloods,
            Fault::ForgedErrors,
            Fault::ForgedReplies,
            Fault::Garbage,
        ] {
            self.inflict(fault, rng);
        }
        let options = LoadOptions {
            echoes_per_client: Some(FILLED.into()),
            duration: Duration::from_secs(20),
            rate: Some(20_000),
            window: FILLED.into(),
            idents: FILLED,
            one_remote_an_ident: true,
            first_sequence: 0x8000,
            ..LoadOptions::default()
        };
        let lab = self.lab();
        let report = load::run(&lab.clients()[..CLIENTS], lab.remotes(), &options, |_| ControlFlow::Continue(()));
        let report = report.expect("it runs");
        assert_eq!((report.wrong_client, report.altered), (0, 0), "{report:?}");
        assert_eq!(report.sent, u64::from(FILLED) * CLIENTS as u64, "{report:?}");
    }

    /// Five times a client's share, for a second.
    fn flood(&self) {
        let options = LoadOptions {
            duration: Duration::from_secs(1),
            rate: Some(5000),
            window: 10_000,
            reply_timeout: Duration::from_secs(1),
            ..LoadOptions::default()
        };
        let lab = self.lab();
        let report = load::run(&lab.clients()[CLIENTS..], lab.remotes(), &options, |_| ControlFlow::Continue(()));
        let report = report.expect("it runs");
        assert_eq!((report.wrong_client, report.altered), (0, 0), "{report:?}");
    }

    /// Requests whose bytes are changed at random after the addresses have been filled in: most of them cut, too.
    fn garbage(&self, rng: &mut StdRng) {
        let (client, remote) = (self.scene.client_address(CLIENTS), self.scene.remote(0));
        let injector = Injector::at(self.scene.client(CLIENTS));
        paced(1000, |_| {
            let mut packet = build::echo_request(client, remote, 1, 1, 64, &[0xAB; 40]);
            for _ in 0..rng.random_range(1..8) {
                // The kernel fills in lengths and checksum, and looks at the version and the header's length.
                let place = rng.random_range(20..packet.len());
                packet[place] = rng.random();
            }
            packet.truncate(rng.random_range(21..=packet.len()));
            injector.send(&packet, remote);
        });
    }
}

/// Does it so many times in about a second.
fn paced(count: u32, mut what: impl FnMut(u32)) {
    let start = Instant::now();
    for number in 0..count {
        let due = Duration::from_secs(1) * number / count;
        thread::sleep(due.saturating_sub(start.elapsed()));
        what(number);
    }
}
