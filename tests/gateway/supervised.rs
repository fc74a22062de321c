//! Under a supervisor with a descriptor store: the protocol of sd_notify(3) and sd_listen_fds(3), spoken by the test itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use echogate::sys::passing;
use tempfile::TempDir;

use crate::in_every_setup;
use crate::process::Echogate;
use crate::restarts::{SETUP, probed};
use crate::scene::{PATIENCE, Scene, Setup, wait_until};
use crate::serves::limits_off;
use crate::sys;
use crate::web::{METRICS, connect, get};

in_every_setup!(killed_with_its_keeper_it_goes_on_with_every_mapping,);

/// What systemd does for a unit with FileDescriptorStoreMax=.
pub(crate) struct Supervisor {
    directory: TempDir,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    store: Vec<(String, OwnedFd)>,
    told: Vec<String>,
}

impl Supervisor {
    pub(crate) fn new() -> Supervisor {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        let known = Arc::new(Mutex::new(Known::default()));
        let heard = Arc::downgrade(&known);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("it can be");
        // Ends when nobody has the supervisor any more.
        thread::spawn(move || {
            let mut bytes = vec![0; 4096];
            while let Some(known) = heard.upgrade() {
                match passing::receive(socket.as_fd(), &mut bytes) {
                    Ok((length, descriptors)) => {
                        let lines = String::from_utf8_lossy(&bytes[..length]).into_owned();
                        known.lock().unwrap_or_else(PoisonError::into_inner).obey(lines, descriptors);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => panic!("the notification socket: {error}"),
                }
            }
        });
        Supervisor { directory, known }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gateway with what is in the store, and with these arguments besides.
    fn command(&self, scene: &Scene, setup: &Setup) -> Command {
        self.command_with(&[scene.arguments(setup), limits_off()].concat())
    }

    /// A gateway with what is in the store, and with these arguments.
    fn command_with(&self, arguments: &[String]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh", env!("CARGO_BIN_EXE_echogate"), "run"]);
        command.args(arguments);
        self.offer(&mut command);
        command
    }

    /// Lets the command speak with this supervisor, and have what is in the store. Whoever runs in the end has to set LISTEN_PID.
    pub(crate) fn offer(&self, command: &mut Command) {
        let known = self.known();
        let names: Vec<&str> = known.store.iter().map(|(name, _)| name.as_str()).collect();
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify")).env("WATCHDOG_USEC", "30000000");
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let descriptors: Vec<OwnedFd> =
            known.store.iter().map(|(_, descriptor)| descriptor.try_clone().expect("it can be")).collect();
        sys::hand_down(command, descriptors);
    }

    /// Where its socket is, as `notify`.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How many descriptors it keeps.
    pub(crate) fn stored_count(&self) -> usize {
        self.known().store.len()
    }

    /// Starts it, and waits until it serves and has said so.
    fn serve(&self, scene: &Scene, setup: &Setup) -> Echogate {
        let command = self.command(scene, setup);
        self.start(scene, command)
    }

    /// As `serve`, with these arguments.
    pub(crate) fn serve_with(&self, scene: &Scene, arguments: &[String]) -> Echogate {
        self.start(scene, self.command_with(arguments))
    }

    /// The names of what is stored, which have to be different ones.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let known = self.known();
        let names: BTreeSet<String> = known.store.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), known.store.len(), "each name once");
        names
    }

    /// Starts this command of its, and waits as well.
    pub(crate) fn start(&self, scene: &Scene, mut command: Command) -> Echogate {
        self.known().told.clear();
        let gateway = Echogate::start(scene.gateway(), &mut command);
        // It has what is stored, too, and must not keep it.
        drop(command);
        let gateway = gateway.serving();
        self.hear_of("READY=1");
        gateway
    }

    fn hear_of(&self, line: &str) {
        wait_until(line, || self.known().told.iter().any(|told| told.lines().any(|other| other == line)));
    }

    /// The one descriptor of this name.
    fn stored(&self, name: &str) -> OwnedFd {
        let known = self.known();
        let mut found = known.store.iter().filter(|(stored, _)| stored == name);
        let (Some((_, descriptor)), None) = (found.next(), found.next()) else {
            panic!("not one {name}: {:?}", known.store)
        };
        descriptor.try_clone().expect("it can be")
    }
}

impl Known {
    fn obey(&mut self, lines: String, descriptors: Vec<OwnedFd>) {
        let name = lines.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if lines.starts_with("FDSTOREREMOVE=1") {
            self.store.retain(|(stored, _)| stored != name);
        }
        if lines.starts_with("FDSTORE=1") {
            for descriptor in descriptors {
                let is_there = |(_, stored): &(String, OwnedFd)| sys::is_same_file(stored.as_fd(), descriptor.as_fd());
                if !self.store.iter().any(is_there) {
                    self.store.push((name.to_owned(), descriptor));
                }
            }
        }
        self.told.push(lines);
    }
}

#[expect(clippy::print_stdout, reason = "the figures, for whoever asks with --nocapture")]
fn killed_with_its_keeper_it_goes_on_with_every_mapping(setup: &Setup) {
    let scene = Scene::alone(2);
    let before = scene.state();
    let supervisor = Supervisor::new();
    let first = supervisor.serve(&scene, setup);
    let during = scene.state();
    let (probe, (gateway, killed)) = probed(&scene, || {
        let mut gateway = first;
        let mut killed = Vec::new();
        for _ in 0..3 {
            killed.push(Instant::now());
            assert_eq!(gateway.killed().code, None);
            gateway = supervisor.serve(&scene, setup);
            thread::sleep(Duration::from_millis(100));
        }
        (gateway, killed)
    });
    let gaps: Vec<Duration> = killed.into_iter().map(|at| probe.first_after(at)).collect();
    println!(
        "killed with its keeper, {} workers on {}: first echo after {gaps:?}; lost {} of {} of the probe",
        setup.workers,
        setup.io,
        probe.lost(),
        probe.sent()
    );
    assert_eq!(scene.state(), during);
    supervisor.hear_of("WATCHDOG=1");
    gateway.stop();
    wait_until("nothing is stored", || supervisor.known().store.is_empty());
    wait_until("the host is as before", || scene.state() == before);
}

#[test]
fn told_to_leave_it_undoes_nothing_and_the_next_start_goes_on() {
    let scene = Scene::new(1);
    let before = scene.state();
    let supervisor = Supervisor::new();
    let gateway = supervisor.serve(&scene, &SETUP);
    let during = scene.state();
    scene.assert_pings("at first");
    sys::signal(gateway.id(), libc::SIGUSR2).expect("it runs");
    let ended = gateway.ended();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
    assert_eq!(scene.state(), during);
    supervisor.hear_of("STOPPING=1");
    let gateway = supervisor.serve(&scene, &SETUP);
    scene.assert_pings("after a restart");
    let ended = gateway.stop();
    assert!(!ended.complaints.contains("WARN"), "{}", ended.complaints);
    wait_until("the host is as before", || scene.state() == before);
}

#[test]
fn tables_of_another_version_are_found_foreign_and_the_gateway_starts_with_empty_ones() {
    let scene = Scene::new(1);
    let supervisor = Supervisor::new();
    supervisor.serve(&scene, &SETUP).killed();
    // As a version with another layout would have written it.
    let tables = File::from(supervisor.stored("tables"));
    tables.write_all_at(&77u64.to_ne_bytes(), 8).expect("it is memory");
    let gateway = supervisor.serve(&scene, &SETUP);
    scene.assert_pings("with empty tables");
    supervisor.stored("tables");
    gateway.killed();
    let gateway = supervisor.serve(&scene, &SETUP);
    scene.assert_pings("with those tables again");
    let ended = gateway.stop();
    assert!(!ended.complaints.contains("not taken up"), "{}", ended.complaints);
}

#[test]
fn what_is_stored_for_another_configuration_is_let_go_and_said_so() {
    let scene = Scene::new(1);
    let before = scene.state();
    let supervisor = Supervisor::new();
    supervisor.serve(&scene, &SETUP).killed();
    let stored = supervisor.known().store.len();
    let gateway = supervisor.serve(&scene, &Setup { workers: 1, ..SETUP });
    scene.await_ping("with one worker");
    wait_until("less is stored", || supervisor.known().store.len() < stored);
    supervisor.stored("tun-0");
    let ended = gateway.stop();
    assert!(ended.complaints.contains("run.workers is another one"), "{}", ended.complaints);
    wait_until("the host is as before", || scene.state() == before);
}

#[test]
fn whoever_looks_while_no_keeper_runs_waits_for_the_next_and_a_port_that_is_left_is_free() {
    let (scene, directory) = (Scene::new(1), tempfile::tempdir().expect("a directory"));
    let [file, socket] = ["echogate.toml", "e.sock"].map(|name| directory.path().join(name));
    let configure = |metrics: &str| {
        let text = format!(
            "[inside]\nclients = [\"10.66.0.0/24\"]\ndivert = [\"g0\"]\n[outside]\naddresses = [\"198.18.0.1\"]\n[observe]\n\
             control = {socket:?}\nmetrics = \"{metrics}\"\n"
        );
        fs::write(&file, text).expect("it can be written");
    };
    configure(METRICS);
    let arguments = ["--config".to_owned(), file.display().to_string()];
    let supervisor = Supervisor::new();
    let gateway = supervisor.serve_with(&scene, &arguments);
    let packets = gateway.packets_id();
    gateway.killed();
    // Until then it may be the one who accepts.
    wait_until("the packet process has ended", || !fs::exists(format!("/proc/{packets}")).expect("proc is mounted"));
    let mut scraper = connect(scene.gateway(), METRICS).expect("somebody listens");
    let mut local = UnixStream::connect(&socket).expect("somebody listens");
    local.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    scraper.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").expect("it takes it");
    local.write_all(b"{\"v\":1,\"verb\":\"stats\"}\n").expect("it takes it");
    let gateway = supervisor.serve_with(&scene, &arguments);
    let (mut page, mut line) = (String::new(), String::new());
    scraper.read_to_string(&mut page).expect("it is answered");
    BufReader::new(local).read_line(&mut line).expect("it is answered");
    assert!(page.starts_with("HTTP/1.1 200 OK") && line.starts_with("{\"ok\":{"), "{page}{line}");

    let elsewhere = "127.0.0.1:9429";
    configure(elsewhere);
    let reloaded = Echogate::start(scene.gateway(), &mut Echogate::command("reload")).ended();
    assert_eq!(reloaded.code, Some(0), "{}", reloaded.complaints);
    // The supervisor hears of it a moment later.
    wait_until("the port that is left is free", || connect(scene.gateway(), METRICS).is_err());
    gateway.killed();
    let gateway = supervisor.serve_with(&scene, &arguments);
    assert_eq!(get(scene.gateway(), elsewhere, "/healthz").expect("it answers").0, 200);
    gateway.stop();
    wait_until("nothing is stored", || supervisor.known().store.is_empty());
    assert!(connect(scene.gateway(), elsewhere).is_err() && !socket.exists());
}

#[test]
fn descriptors_that_are_not_ours_are_refused_and_the_gateway_starts() {
    let scene = Scene::new(1);
    let supervisor = Supervisor::new();
    let null = || OwnedFd::from(File::open("/dev/null").expect("it is there"));
    supervisor.known().store = ["tun-0", "tables", "note"].map(|name| (name.to_owned(), null())).into();
    let gateway = supervisor.serve(&scene, &SETUP);
    scene.assert_pings("with strange descriptors");
    let ended = gateway.stop();
    assert!(ended.complaints.contains("without a note"), "{}", ended.complaints);
}

#[test]
fn a_supervisor_that_never_listens_keeps_nothing_from_being_served() {
    let scene = Scene::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let _socket = UnixDatagram::bind(&path).expect("a socket");
    let mut command = Echogate::command("run");
    command.args(scene.arguments(&SETUP)).env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "1000");
    let gateway = Echogate::start(scene.gateway(), &mut command).serving();
    scene.assert_pings("unheard");
    let ended = gateway.stop();
    let said = ended.complaints.lines().filter(|line| line.contains("cannot be told anything")).count();
    assert_eq!(said, 1, "{}", ended.complaints);
}
