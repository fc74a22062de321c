//! A changed file while clients ping: what may change does, without losing a ping; what may not, or is wrong, changes nothing.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;

use tempfile::TempDir;

use crate::in_every_setup;
use crate::process::{Echogate, Ended};
use crate::restarts::{probed, setting, under_load};
use crate::scene::{Scene, Setup, run, wait_until};
use crate::sys;
use crate::takeover::report;

const SETUP: Setup = Setup { io: "uring", workers: 1 };

/// A gateway with a file.
pub(crate) struct Reloaded {
    pub(crate) scene: Scene,
    directory: TempDir,
    gateway: Option<Echogate>,
}

impl Reloaded {
    /// Serves both clients, with this besides in the file.
    pub(crate) fn new(setup: &Setup, more: &str) -> Reloaded {
        let (scene, directory) = (Scene::new(2), tempfile::tempdir().expect("a directory"));
        let mut reloaded = Reloaded { scene, directory, gateway: None };
        reloaded.write("10.66.0.0/24", more);
        let file = reloaded.file();
        let mut command = Echogate::command("run");
        command.arg("--config").arg(&file).args(["--io", setup.io, "--workers", &setup.workers.to_string()]);
        reloaded.gateway = Some(Echogate::start(reloaded.scene.gateway(), &mut command).serving());
        reloaded
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("echogate.toml")
    }

    pub(crate) fn write(&self, clients: &str, more: &str) {
        let text = format!(
            "[inside]\nclients = [\"{clients}\"]\ndivert = [\"g0\", \"g1\"]\n[outside]\naddresses = [\"198.18.0.1\"]\n{more}"
        );
        fs::write(self.file(), text).expect("it can be written");
    }

    fn reload(&self) -> Ended {
        Echogate::start(self.scene.gateway(), &mut Echogate::command("reload")).ended()
    }

    pub(crate) fn assert_reloads(&self) {
        let ended = self.reload();
        assert_eq!(ended.code, Some(0), "{}{}", ended.printed, ended.complaints);
        assert!(ended.printed.starts_with("serving pings of "), "{}", ended.printed);
    }

    pub(crate) fn gateway(&self) -> &Echogate {
        self.gateway.as_ref().expect("it serves")
    }

    pub(crate) fn stop(mut self) -> Ended {
        self.gateway.take().expect("it serves").terminated()
    }
}

in_every_setup!(no_running_ping_notices_a_reload,);

fn no_running_ping_notices_a_reload(setup: &Setup) {
    let reloaded = Reloaded::new(setup, "");
    let remote = reloaded.scene.remote(0);
    thread::scope(|scope| {
        // Fifty a second for six seconds, by both.
        let pings = [0, 1].map(|client| {
            let scene = &reloaded.scene;
            scope.spawn(move || scene.ping_to_the_last(client, &format!("-c 300 -i 0.02 {remote}")))
        });
        for mappings in 300..304 {
            reloaded.write("10.66.0.0/24", &format!("[limits]\nmappings = {mappings}\n"));
            reloaded.assert_reloads();
        }
        for pings in pings {
            let pings = pings.join().expect("it pings");
            assert!(pings.all_came_back(300), "{}", pings.text);
        }
    });
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
}

#[test]
fn a_reload_under_load_loses_nothing() {
    let setup = Setup { workers: 2, ..SETUP };
    let off = "[limits]\nenforce = \"off\"\n";
    let reloaded = Reloaded::new(&setup, off);
    let (load, (probe, ())) = under_load(&reloaded.scene, setting("ECHOGATE_RATE", 1000), || {
        probed(&reloaded.scene, || {
            for busy in 1..4 {
                reloaded.write("10.66.0.0/24", &format!("{off}[run]\nbusy_poll_us = {busy}\n"));
                reloaded.assert_reloads();
            }
            // And one that the diversion follows.
            reloaded.write("10.66.0.0/23", off);
            reloaded.assert_reloads();
        })
    });
    report("reloaded four times", &setup, (&load, &probe));
    assert_eq!((load.wrong_client, load.altered, load.duplicates), (0, 0, 0), "{load:?}");
    assert_eq!((load.lost, probe.lost()), (0, 0), "{load:?}");
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
}

#[test]
fn clients_limits_and_remotes_are_taken_from_the_file() {
    let reloaded = Reloaded::new(&SETUP, "");
    let (scene, other) = (&reloaded.scene, reloaded.scene.remote(1));
    let table = || run(scene.gateway(), "nft list table ip echogate");
    scene.assert_pings("at first");

    reloaded.write("10.66.0.0/24", &format!("[remotes]\ndeny = [\"{other}/32\"]\n"));
    reloaded.assert_reloads();
    scene.assert_pings("to who is not denied");
    let denied = scene.ping(0, &format!("-c 1 -W 2 {other}"));
    assert!(denied.text.contains("filtered") || denied.text.contains("rohibited"), "{}", denied.text);

    // Only the first client is one; the other's requests are led here no more.
    let first = scene.client_address(0);
    assert!(table().contains("10.66.0.0/24"), "{}", table());
    reloaded.write(&format!("{first}/32"), "");
    reloaded.assert_reloads();
    assert!(!table().contains("10.66.0.0/24") && table().contains(&first.to_string()), "{}", table());
    scene.assert_pings("by who is a client still");
    let none = scene.ping(1, &format!("-c 1 -W 1 {}", scene.remote(0)));
    assert!(!none.all_came_back(1), "{}", none.text);
    reloaded.write("10.66.0.0/24", "");
    reloaded.assert_reloads();
    let back = scene.pings(1, 3, scene.remote(0), "");
    assert!(back.all_came_back(3), "{}", back.text);

    // One ping a minute, the burst of one apart.
    reloaded.write("10.66.0.0/24", "[limits]\npackets_per_second = 1\npackets_burst = 2\n");
    reloaded.assert_reloads();
    let limited = scene.ping(0, &format!("-c 20 -i 0.01 -W 1 {}", scene.remote(0)));
    assert!(!limited.all_came_back(20), "{}", limited.text);
    let untouched = reloaded.stop();
    assert_eq!(untouched.code, Some(0), "{}", untouched.complaints);
}

#[test]
fn the_process_that_waits_is_another_one_after_a_reload_and_goes_on_with_what_was_read() {
    let reloaded = Reloaded::new(&SETUP, "");
    let (scene, other) = (&reloaded.scene, reloaded.scene.remote(1));
    let before = reloaded.gateway().spare_id();
    reloaded.write("10.66.0.0/24", "[limits\n");
    assert_eq!(reloaded.reload().code, Some(2));
    assert_eq!(reloaded.gateway().find_spare(), Some(before), "nothing has changed");
    reloaded.write("10.66.0.0/24", &format!("[remotes]\ndeny = [\"{other}/32\"]\n"));
    reloaded.assert_reloads();
    let (packets, spare) = (reloaded.gateway().packets_id(), reloaded.gateway().spare_id());
    assert_ne!(spare, before);
    sys::signal(packets, libc::SIGKILL).expect("it runs");
    wait_until("the one that waited has begun", || reloaded.gateway().find_packets() == Some(spare));
    scene.assert_pings("to who is not denied");
    let denied = scene.ping(0, &format!("-c 1 -W 2 {other}"));
    assert!(denied.text.contains("filtered") || denied.text.contains("rohibited"), "{}", denied.text);
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
}

#[test]
fn what_is_wrong_is_refused_with_its_line_and_the_old_configuration_stays_in_force() {
    let reloaded = Reloaded::new(&SETUP, "");
    let packets = reloaded.gateway().packets_id();
    let file = reloaded.file();
    for (more, reason) in [
        ("[limits]\nmapings = 8\n", "echogate.toml:7: "),
        ("[limits\n", "echogate.toml:6: "),
        ("[limits]\nmappings = \"many\"\n", "echogate.toml:7: "),
        ("[mapping]\nidle = \"0s\"\n", "echogate.toml:7: "),
        ("[observe]\nlog = \"loud\"\n", "echogate.toml:7: "),
        ("[run]\nworkers = 3\n[echo]\ntimeout = \"30s\"\n", "echo.timeout cannot change while the gateway runs"),
    ] {
        reloaded.write("10.66.0.0/24", more);
        let refused = reloaded.reload();
        assert_eq!((refused.code, refused.printed.as_str()), (Some(2), ""), "{more}: {}", refused.complaints);
        assert!(refused.complaints.contains(reason), "{more}: {}", refused.complaints);
    }
    fs::remove_file(&file).expect("it is there");
    let refused = reloaded.reload();
    assert_eq!(refused.code, Some(2));
    assert!(refused.complaints.contains("cannot be read"), "{}", refused.complaints);
    // A port that is taken is known only when it is tried.
    let taken = reloaded.scene.gateway().run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let taken = taken.expect("enters").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port();
    reloaded.write("10.66.0.0/24", &format!("[observe]\nmetrics = \"127.0.0.1:{port}\"\n"));
    let refused = reloaded.reload();
    assert!(refused.code == Some(2) && refused.complaints.contains("cannot serve metrics"), "{}", refused.complaints);

    assert_eq!(reloaded.gateway().packets_id(), packets, "nobody had to begin again");
    reloaded.scene.assert_pings("as before");
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
    assert_eq!(ended.complaints.matches("the configuration stays as it was").count(), 8, "{}", ended.complaints);
}

#[test]
fn a_signal_reloads_too_and_metrics_move_to_another_address() {
    let reloaded = Reloaded::new(&SETUP, "");
    let packets = reloaded.gateway().packets_id();
    reloaded.write("10.66.0.0/24", "[observe]\nmetrics = \"127.0.0.1:9428\"\n");
    run(reloaded.scene.gateway(), &format!("kill -HUP {}", reloaded.gateway().id()));
    wait_until("another packet process", || reloaded.gateway().find_packets().is_some_and(|id| id != packets));
    let connects = |port: u16| {
        let connected = reloaded.scene.gateway().run(|| std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        connected.expect("enters").is_ok()
    };
    wait_until("metrics at the new address", || connects(9428));
    reloaded.write("10.66.0.0/24", "[observe]\nmetrics = \"127.0.0.1:9429\"\n");
    reloaded.assert_reloads();
    assert!(connects(9429) && !connects(9428), "they have moved");
    reloaded.scene.assert_pings("all the same");
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
}

#[test]
fn without_a_gateway_or_without_a_file_there_is_nothing_to_reload() {
    let scene = Scene::new(1);
    let reload = || Echogate::start(scene.gateway(), &mut Echogate::command("reload")).ended();
    let nobody = reload();
    assert_eq!(nobody.code, Some(2));
    assert!(nobody.complaints.contains("no gateway keeps echogate0"), "{}", nobody.complaints);
    let gateway = scene.serve(&SETUP);
    let nothing = reload();
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.complaints.contains("without a file"), "{}", nothing.complaints);
    scene.assert_pings("as before");
    gateway.stop();
}

/// An nft that makes no table as long as there are failures left in the file beside it.
fn failing_nft(directory: &TempDir) -> PathBuf {
    let (failures, program) = (directory.path().join("failures"), directory.path().join("nft"));
    fs::write(&failures, "0").expect("it can be written");
    let nft = echogate::host::nft::program().expect("nftables is installed");
    let script = format!(
        "#!/bin/sh\nleft=$(cat {0})\ncase \"$1 $left\" in '-i 0' | '-f 0') ;; -i* | -f*) echo $((left - 1)) > {0}; echo 'Error: not \
         today' >&2; exit 1;; esac\nexec {1} \"$@\"\n",
        failures.display(),
        nft.display()
    );
    fs::write(&program, script).expect("it can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    failures
}

#[test]
fn where_the_diversion_cannot_follow_all_stays_as_it_was_and_the_next_reload_tries_again() {
    let (scene, directory) = (Scene::new(1), tempfile::tempdir().expect("a directory"));
    let failures = failing_nft(&directory);
    let file = directory.path().join("echogate.toml");
    let write = |divert: &str| {
        let outside = "[outside]\naddresses = [\"198.18.0.1\"]";
        let text = format!("[inside]\nclients = [\"10.66.0.0/24\"]\ndivert = [{divert}]\n{outside}\n");
        fs::write(&file, text).expect("it can be written");
    };
    write("");
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").expect("a path"));
    let mut command = Echogate::command("run");
    command.arg("--config").arg(&file).env("PATH", path);
    let gateway = Echogate::start(scene.gateway(), &mut command).serving();
    let reload = || Echogate::start(scene.gateway(), &mut Echogate::command("reload")).ended();
    let before = scene.state();
    write("\"g0\"");
    // The table with an owner, and the plain one that does where there can be none.
    fs::write(&failures, "2").expect("it can be written");
    let refused = reload();
    assert_eq!(refused.code, Some(2), "{}", refused.printed);
    assert!(refused.complaints.contains("nft says: not today"), "{}", refused.complaints);
    let left = fs::read_to_string(&failures).expect("it is there");
    assert_eq!((left.trim(), scene.state()), ("0", before));
    let taken = reload();
    assert_eq!(taken.code, Some(0), "{}", taken.complaints);
    assert!(taken.printed.contains("diverted from g0"), "{}", taken.printed);
    assert!(run(scene.gateway(), "nft list table ip echogate").contains("g0"));
    scene.assert_pings("diverted at last");
    let ended = gateway.stop();
    assert!(ended.complaints.contains("the configuration stays as it was"), "{}", ended.complaints);
}
