//! Other outside addresses in the file of a gateway that runs: those that are added are used, those that are removed drain, and no ping
//! is lost by it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use crate::ear::Ear;
use crate::in_every_setup;
use crate::process::{Echogate, Ended};
use crate::scene::{Scene, Setup, run, wait_until};
use crate::supervised::Supervisor;
use crate::sys;

in_every_setup!(an_address_that_is_added_is_used_and_one_that_is_removed_drains, what_drains_drains_on_after_a_kill,);

/// The host's own, and one by a local route (AnyIP).
const OLD: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const NEW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// One that nobody has.
const NOBODYS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// What ends in time for a test to see.
const SHORT: &str = "[mapping]\nidle = \"1s\"\n[echo]\ntimeout = \"1s\"\n";

struct Addressed {
    scene: Scene,
    directory: TempDir,
    setup: Setup,
}

impl Addressed {
    fn new(setup: &Setup) -> Addressed {
        let scene = Scene::new(1);
        run(scene.gateway(), &format!("ip route add local {NEW} dev lo"));
        run(scene.internet(), &format!("ip route add {NEW} via {OLD}"));
        Addressed { scene, directory: tempfile::tempdir().expect("a directory"), setup: Setup { ..*setup } }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("echogate.toml")
    }

    fn write(&self, addresses: &[Ipv4Addr], more: &str) {
        let text = format!(
            "[inside]\nclients = [\"10.66.0.0/24\"]\ndivert = [\"g0\"]\n[outside]\naddresses = {:?}\n{more}",
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        fs::write(self.file(), text).expect("it can be written");
    }

    fn arguments(&self) -> Vec<String> {
        let Setup { io, workers } = self.setup;
        let line = format!("--config {} --io {io} --workers {workers}", self.file().display());
        line.split(' ').map(str::to_owned).collect()
    }

    fn serve(&self) -> Echogate {
        Echogate::serve(self.scene.gateway(), &self.arguments())
    }

    fn reload(&self) -> Ended {
        Echogate::start(self.scene.gateway(), &mut Echogate::command("reload")).ended()
    }

    fn assert_reloads(&self) {
        let ended = self.reload();
        assert_eq!(ended.code, Some(0), "{}{}", ended.printed, ended.complaints);
    }

    /// From which address a new ping leaves; it comes back.
    fn source(&self) -> Ipv4Addr {
        let remote = Ear::at(self.scene.internet(), self.scene.remote(0));
        let ping = self.scene.pings(0, 1, self.scene.remote(0), "");
        assert!(ping.all_came_back(1), "{}", ping.text);
        // Of other pings that go on something may be heard, too.
        let mut heard = remote.next_request();
        while heard.sequence != 1 {
            heard = remote.next_request();
        }
        heard.source
    }
}

/// Its addresses with their states, and the idents that are used of each.
fn known(gateway: &Echogate) -> Vec<(String, String, u64)> {
    let asked = gateway.ask(&["stats", "--json"]);
    let stats: Value = serde_json::from_slice(&asked.stdout).unwrap_or_else(|error| panic!("{error}: {asked:?}"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let one = |of: &Value| (text(&of["address"]), text(&of["state"]), of["idents_used"].as_u64().expect("a number"));
    stats["addresses"].as_array().expect("a list").iter().map(one).collect()
}

fn state_of(gateway: &Echogate, address: Ipv4Addr) -> Option<(String, u64)> {
    let all = known(gateway);
    all.into_iter().find(|(of, ..)| *of == address.to_string()).map(|(_, state, idents)| (state, idents))
}

fn an_address_that_is_added_is_used_and_one_that_is_removed_drains(setup: &Setup) {
    let moved = Addressed::new(setup);
    let scene = &moved.scene;
    moved.write(&[OLD], SHORT);
    let gateway = moved.serve();
    assert_eq!(moved.source(), OLD);
    thread::scope(|scope| {
        // Every 20 ms for four seconds.
        let line = format!("-c 200 -i 0.02 {}", scene.remote(0));
        let running = scope.spawn(move || scene.ping_to_the_last(0, &line));
        wait_until("it pings", || state_of(&gateway, OLD).is_some_and(|(_, idents)| idents > 0));
        moved.write(&[NEW], SHORT);
        moved.assert_reloads();
        assert_eq!(state_of(&gateway, OLD).map(|(state, _)| state).as_deref(), Some("draining"));
        let told = String::from_utf8_lossy(&gateway.ask(&["stats"]).stdout).into_owned();
        assert!(told.contains(&format!("from {NEW} (draining: {OLD})")), "{told}");
        assert!(told.lines().any(|line| line.starts_with("198.18.0.1 ") && line.ends_with("draining")), "{told}");
        assert_eq!(moved.source(), NEW, "a new ping leaves from the new address");
        let running = running.join().expect("it pings");
        assert!(running.all_came_back(200), "{}", running.text);
    });
    wait_until("nothing is left on the old address", || state_of(&gateway, OLD) == Some(("draining".to_owned(), 0)));
    // A drained one stays in its place, until another one takes it.
    moved.write(&[NEW, OLD], SHORT);
    moved.assert_reloads();
    let open = |of| state_of(&gateway, of).map(|(state, _)| state);
    assert_eq!([OLD, NEW].map(open), [Some("open".to_owned()), Some("open".to_owned())], "named again");
    // One that has drained and is the last of all goes altogether.
    moved.write(&[OLD], SHORT);
    moved.assert_reloads();
    wait_until("nothing is left on the new address", || state_of(&gateway, NEW) == Some(("draining".to_owned(), 0)));
    moved.assert_reloads();
    assert_eq!(known(&gateway).len(), 1, "{:?}", known(&gateway));
    assert_eq!(moved.source(), OLD);
    gateway.stop();
}

fn what_drains_drains_on_after_a_kill(setup: &Setup) {
    let moved = Addressed::new(setup);
    let scene = &moved.scene;
    moved.write(&[OLD], "");
    let gateway = moved.serve();
    thread::scope(|scope| {
        let line = format!("-c 100 -i 0.02 {}", scene.remote(0));
        let running = scope.spawn(move || scene.ping_to_the_last(0, &line));
        wait_until("it pings", || state_of(&gateway, OLD).is_some_and(|(_, idents)| idents > 0));
        moved.write(&[NEW], "");
        moved.assert_reloads();
        let packets = gateway.packets_id();
        sys::signal(packets, libc::SIGKILL).expect("it runs");
        wait_until("another one serves", || gateway.find_packets().is_some_and(|id| id != packets));
        wait_until("it answers", || gateway.ask(&["stats"]).status.success());
        assert_eq!(state_of(&gateway, OLD).map(|(state, _)| state).as_deref(), Some("draining"));
        assert_eq!(moved.source(), NEW);
        let running = running.join().expect("it pings");
        // What the killed process had in its hands.
        assert!(running.received() >= 95, "{}", running.text);
    });
    gateway.stop();
}

const SETUP: Setup = Setup { io: "uring", workers: 2 };

#[test]
fn addresses_that_cannot_be_are_refused_and_the_old_ones_stay() {
    let moved = Addressed::new(&SETUP);
    moved.write(&[OLD], "");
    let gateway = moved.serve();
    let packets = gateway.packets_id();
    let many: Vec<Ipv4Addr> = (0..17).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
    for (addresses, reason) in
        [(&[NOBODYS][..], "203.0.113.9"), (&many[..], "17"), (&[][..], "cannot change while the gateway runs")]
    {
        moved.write(addresses, "");
        let refused = moved.reload();
        assert_eq!(refused.code, Some(2), "{addresses:?}: {}", refused.printed);
        assert!(refused.complaints.contains(reason), "{addresses:?}: {}", refused.complaints);
    }
    assert_eq!(gateway.packets_id(), packets, "nobody had to begin again");
    assert_eq!(moved.source(), OLD);
    gateway.stop();
}

#[test]
fn a_supervisor_keeps_the_sockets_of_other_addresses_and_a_start_with_others_drains_too() {
    let moved = Addressed::new(&SETUP);
    let supervisor = Supervisor::new();
    let start = || supervisor.serve_with(&moved.scene, &moved.arguments());
    moved.write(&[OLD], "");
    let gateway = start();
    let stored = supervisor.names();
    moved.write(&[OLD, NEW], "");
    moved.assert_reloads();
    wait_until("the new sockets are stored", || supervisor.names().len() == stored.len() + SETUP.workers as usize);
    let idents = |gateway: &Echogate| state_of(gateway, OLD).map(|(_, idents)| idents);
    // Whichever address it is on: a mapping that outlives its process.
    assert_eq!(moved.source(), moved.source());
    gateway.killed();
    moved.write(&[NEW], "");
    let gateway = start();
    assert!(!gateway.has_said("not taken up"), "tables and sockets are those that were stored");
    assert_eq!(state_of(&gateway, OLD).map(|(state, _)| state).as_deref(), Some("draining"));
    let all: u64 = known(&gateway).iter().map(|(.., idents)| idents).sum();
    assert_eq!((all, idents(&gateway).is_some()), (2, true), "{:?}", known(&gateway));
    assert_eq!(moved.source(), NEW);
    gateway.stop();
}
