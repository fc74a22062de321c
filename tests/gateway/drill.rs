//! A package's life on a host: installed, started as its unit says, scraped, reloaded, upgraded, killed; and what clients see of it.
//!
//! `scripts/production-drill` has it done with two real packages, a hundred kills and much load, and prints the table. Without
//! `ECHOGATE_PACKAGES` (two paths, with a colon between them) they are packages of this build's, made here.

#![expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]

mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, iter};

use rand::RngExt as _;
use serde_json::Value;
use tempfile::TempDir;

use self::host::{Host, Unit, output};
use crate::process::Echogate;
use crate::prometheus::{Answer, Prometheus};
use crate::restarts::{probed, setting, under_load};
use crate::scene::{Scene, wait_until};
use crate::supervised::Supervisor;
use crate::sys;
use crate::web::METRICS;

const FILE: &str = "/etc/echogate/echogate.toml";

/// The least time between two kills.
const SETTLING: Duration = Duration::from_millis(100);

/// One line of the table.
struct Row {
    event: String,
    echoes_per_second: u64,
    lost: u64,
    sent: u64,
    longest: Duration,
    probe_lost: usize,
    probe_sent: usize,
    first_echoes: Vec<Duration>,
}

/// The host with the package, and what its supervisor does.
struct Drill<'scene> {
    scene: &'scene Scene,
    host: Host,
    supervisor: Supervisor,
    rate: u32,
    rows: Vec<Row>,
}

impl Drill<'_> {
    fn unit(&self) -> Unit {
        Unit::installed(&self.host)
    }

    /// Installs a package, or upgrades to it; what its scripts told systemd to do.
    fn install(&self, package: &Path) -> String {
        // It may lie where the host's root does not show it.
        fs::copy(package, self.host.file("/run/echogate.deb")).expect("it can be copied");
        self.host.run(self.scene.gateway(), &["dpkg", "--install", "/run/echogate.deb"]);
        self.host.asked_of_systemd()
    }

    fn version(&self) -> String {
        self.host.run(self.scene.gateway(), &["echogate", "--version"]).trim().to_owned()
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "[inside]\nclients = [\"10.66.0.0/24\"]\ndivert = [\"g0\", \"g1\"]\n[outside]\naddresses = [\"198.18.0.1\"]\n\
             [run]\nworkers = 2\n[limits]\nenforce = \"off\"\n[observe]\nmetrics = \"{METRICS}\"\n{more}"
        );
        fs::write(self.host.file(FILE), text).expect("it can be written");
    }

    fn start(&self) -> Echogate {
        let unit = self.unit();
        let mut command = unit.command(&self.host, "ExecStart");
        self.supervisor.offer(&mut command);
        let watchdog: u64 = unit.says("WatchdogSec").parse().expect("seconds");
        command.env("WATCHDOG_USEC", (watchdog * 1_000_000).to_string());
        self.supervisor.start(self.scene, command)
    }

    /// What the unit has done after each end of the gateway: its failure is none of the unit's.
    fn after_its_end(&self) {
        output(self.scene.gateway(), &mut self.unit().command(&self.host, "ExecStopPost"));
    }

    /// `systemctl restart`.
    fn restart(&self, gateway: Echogate) -> Echogate {
        let unit = self.unit();
        // The nft that owns the table is a process of the unit's, and is left alone.
        assert_eq!((unit.says("RestartKillSignal"), unit.says("KillMode")), ("SIGUSR2", "process"));
        sys::signal(gateway.id(), libc::SIGUSR2).expect("it runs");
        let ended = gateway.ended();
        assert_eq!(ended.code, Some(0), "{}", ended.complaints);
        self.after_its_end();
        self.start()
    }

    /// `systemctl reload`: how it ended and what it said.
    fn reload(&self) -> (Option<i32>, String) {
        let reloaded = output(self.scene.gateway(), &mut self.unit().command(&self.host, "ExecReload"));
        (reloaded.status.code(), String::from_utf8_lossy(&reloaded.stderr).into_owned())
    }

    /// Does this under load, while a client pings; one line of the table. What it returns beside are the moments from which on
    /// the first echo is waited for.
    fn phase<T>(&mut self, event: &str, work: impl FnOnce(&Self) -> (T, Vec<Instant>)) -> T {
        let drill = &*self;
        let (load, (probe, (result, moments))) =
            under_load(drill.scene, drill.rate, || probed(drill.scene, || work(drill)));
        assert_eq!((load.wrong_client, load.altered, load.duplicates), (0, 0, 0), "{event}: {load:?}");
        let mut first_echoes: Vec<Duration> = moments.into_iter().map(|at| probe.first_after(at)).collect();
        first_echoes.sort_unstable();
        self.rows.push(Row {
            event: event.to_owned(),
            echoes_per_second: load.echoes_per_second(),
            lost: load.lost,
            sent: load.sent,
            longest: load.round_trip.max(),
            probe_lost: probe.lost(),
            probe_sent: probe.sent(),
            first_echoes,
        });
        result
    }

    /// Kills the packet process so often, and waits each time until there is another.
    fn kill_packets(gateway: Echogate, kills: u32) -> (Echogate, Vec<Instant>) {
        let kill = |_| {
            let killed = gateway.packets_id();
            let at = Instant::now();
            sys::signal(killed, libc::SIGKILL).expect("it runs");
            wait_until("another packet process", || gateway.find_packets().is_some_and(|id| id != killed));
            pause();
            at
        };
        let moments = (0..kills).map(kill).collect();
        (gateway, moments)
    }

    /// Kills the keeper so often, which the supervisor starts again.
    fn kill_keeper(&self, mut gateway: Echogate, kills: u32) -> (Echogate, Vec<Instant>) {
        let mut moments = Vec::new();
        for _ in 0..kills {
            moments.push(Instant::now());
            assert_eq!(gateway.killed().code, None);
            self.after_its_end();
            gateway = self.start();
            pause();
        }
        (gateway, moments)
    }

    fn print(&self) {
        println!(
            "\n| event | echoes/s | lost of the load | longest round trip | lost of the probe | first echo: median | worst |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for row in &self.rows {
            let first = |place: Option<usize>| {
                place
                    .and_then(|place| row.first_echoes.get(place))
                    .map_or_else(String::new, |time| format!("{time:.1?}"))
            };
            println!(
                "| {} | {} | {} of {} | {:.1?} | {} of {} | {} | {} |",
                row.event,
                row.echoes_per_second,
                row.lost,
                row.sent,
                row.longest,
                row.probe_lost,
                row.probe_sent,
                first(Some(row.first_echoes.len() / 2)),
                first(row.first_echoes.len().checked_sub(1)),
            );
        }
    }
}

/// This build as a package of this version, with the scripts' two deeds: a user is made, and an upgrade restarts.
fn package(directory: &TempDir, version: &str) -> PathBuf {
    let tree = directory.path().join(version);
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let put = |from: &Path, to: &str, mode: u32| {
        let to = tree.join(to);
        fs::create_dir_all(to.parent().expect("it has one")).expect("it can be made");
        fs::copy(from, &to).expect("it can be copied");
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("it is ours");
    };
    put(Path::new(env!("CARGO_BIN_EXE_echogate")), "usr/bin/echogate", 0o755);
    put(&from.join("echogate.service"), "usr/lib/systemd/system/echogate.service", 0o644);
    put(&from.join("echogate.sysusers"), "usr/lib/sysusers.d/echogate.conf", 0o644);
    put(&from.join("echogate.toml"), FILE.trim_start_matches('/'), 0o644);
    let control =
        format!("Package: echogate\nVersion: {version}\nArchitecture: all\nMaintainer: nobody\nDescription: test\n");
    let script = "#!/bin/sh\nset -e\nsystemd-sysusers echogate.conf\n[ -z \"$2\" ] || deb-systemd-invoke try-restart echogate.service\n";
    let written = directory.path().join("written");
    for (name, text, mode) in
        [("control", control.as_str(), 0o644), ("conffiles", &format!("{FILE}\n"), 0o644), ("postinst", script, 0o755)]
    {
        fs::write(&written, text).expect("it can be written");
        put(&written, &format!("DEBIAN/{name}"), mode);
    }
    let package = directory.path().join(format!("{version}.deb"));
    let mut build = Command::new("dpkg-deb");
    let built = build.args(["-Znone", "--root-owner-group", "--build"]).args([&tree, &package]).output();
    let built = built.expect("dpkg-deb runs: this is Debian or its kin");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    package
}

/// A panel's answer in a few words.
fn summary(answer: &Answer) -> String {
    let values = answer.values.as_array().map(Vec::as_slice).unwrap_or_default();
    let shown = values.iter().take(3).map(|value| {
        let number: f64 = value["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN);
        let own = |(name, _): &(&String, &Value)| !["instance", "job", "__name__"].contains(&name.as_str());
        let labels = value["metric"].as_object().into_iter().flatten().filter(own);
        let labels: Vec<&str> = labels.filter_map(|(_, text)| text.as_str()).collect();
        format!("{} {number:.6}", labels.join("/")).trim().to_owned()
    });
    let more = (values.len() > 3).then(|| format!("and {} more", values.len() - 3));
    shown.chain(more).collect::<Vec<String>>().join(", ")
}

#[test]
fn a_package_is_installed_scraped_reloaded_upgraded_and_killed_and_every_mapping_is_kept() {
    let (kills, rate) = (setting("ECHOGATE_KILLS", 4), setting("ECHOGATE_RATE", 1000));
    let made = tempfile::tempdir().expect("a directory");
    let given = env::var("ECHOGATE_PACKAGES").ok();
    let packages: Vec<PathBuf> = match &given {
        Some(paths) => paths.split(':').map(PathBuf::from).collect(),
        None => ["1", "2"].map(|version| package(&made, version)).into(),
    };
    let [first, second] = packages.try_into().expect("two packages: the one that is installed, and its upgrade");
    let scene = Scene::alone(2);
    let before = scene.state();
    let supervisor = Supervisor::new();
    open_to_the_service(&supervisor);
    let host = Host::new(supervisor.directory());
    let mut drill = Drill { scene: &scene, host, supervisor, rate, rows: Vec::new() };

    let asked = drill.install(&first);
    assert!(!asked.contains("restart") && !asked.contains(" start"), "not before it is configured: {asked}");
    let unit = drill.unit();
    let (user, directory) = (unit.says("User").to_owned(), format!("/run/{}", unit.says("RuntimeDirectory")));
    let mode = unit.says("RuntimeDirectoryMode");
    drill.host.run(scene.gateway(), &["install", "-d", "-m", mode, "-o", &user, "-g", &user, &directory]);
    drill.configure("");
    let old = drill.version();
    println!("installed: {old}; {} load, {kills} kills", rate);
    let gateway = drill.start();
    let during = scene.state();
    scene.assert_pings("as the unit starts it");
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.packets_id())).expect("it runs");
    assert!(status.contains("CapEff:\t0000000000000000"), "the packet process has capabilities: {status}");

    let prometheus = Prometheus::start(&scene);
    let remote = scene.remote(0);
    let answers = prometheus.answers(|| assert!(scene.pings(0, 50, remote, "-q").all_came_back(50)));
    println!("\n| panel | query | answer |\n| --- | --- | --- |");
    answers.iter().for_each(|answer| println!("| {} | `{}` | {} |", answer.panel, answer.query, summary(answer)));

    drill.phase("nothing (the control)", |_| {
        thread::sleep(Duration::from_secs(1));
        ((), Vec::new())
    });
    drill.phase("reload", |drill| {
        drill.configure("[remotes]\ndeny = [\"203.0.113.0/24\"]\n");
        let (code, said) = drill.reload();
        assert_eq!(code, Some(0), "{said}");
        ((), Vec::new())
    });
    drill.phase("reload of a wrong file", |drill| {
        drill.configure("[remotes]\ndeny = [\"nowhere\"]\n");
        let (code, said) = drill.reload();
        assert!(code == Some(2) && said.contains("echogate.toml:13: "), "{code:?}: {said}");
        ((), Vec::new())
    });
    drill.configure("");
    let (code, said) = drill.reload();
    assert_eq!(code, Some(0), "{said}");

    let gateway = drill.phase("restart by the supervisor", |drill| {
        let at = Instant::now();
        (drill.restart(gateway), vec![at])
    });
    let asked = drill.install(&second);
    assert!(asked.contains("restart echogate.service"), "an upgrade restarts: {asked}");
    let gateway = drill.phase("restart into the other version", |drill| {
        let at = Instant::now();
        (drill.restart(gateway), vec![at])
    });
    let new = drill.version();
    assert!(given.is_none() || new != old, "both packages are {old}");
    let version = new.rsplit(' ').next().expect("it has words").to_owned();
    wait_until("Prometheus sees the other version", || {
        prometheus.is_answered(&format!("echogate_build_info{{version=\"{version}\"}}"))
    });
    println!("\nupgraded: {new}");
    assert_eq!(scene.state(), during, "restarts have left the set-up as it was");

    let of_keeper = kills.div_ceil(4);
    let event = format!("{} kills of the packet process", kills - of_keeper);
    let gateway = drill.phase(&event, |_| Drill::kill_packets(gateway, kills - of_keeper));
    let event = format!("{of_keeper} kills of the keeper");
    let gateway = drill.phase(&event, |drill| drill.kill_keeper(gateway, of_keeper));
    scene.assert_pings("after all that");
    assert_eq!(scene.state(), during);
    drop(prometheus);

    gateway.stop();
    drill.after_its_end();
    wait_until("nothing is stored", || drill.supervisor.stored_count() == 0);
    wait_until("the host is as before", || scene.state() == before);
    drill.host.run(scene.gateway(), &["dpkg", "--purge", "echogate"]);
    drill.print();
}

/// Long enough for the first echo to come back, and for the next kill to fall anywhere.
fn pause() {
    let mut rng = echogate::table::idents::generator(None);
    thread::sleep(SETTLING + Duration::from_micros(rng.random_range(..100_000)));
}

/// The service's user speaks to it.
fn open_to_the_service(supervisor: &Supervisor) {
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
    for path in iter::once(supervisor.directory().to_owned()).chain([supervisor.directory().join("notify")]) {
        fs::set_permissions(path, open()).expect("it is ours");
    }
}
