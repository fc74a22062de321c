//! `echogate bench` as its users run it, tiny: that it ends with a table, JSON and a page that agree, that a result compared
//! with itself is no regression and one of a gateway that is held back is, and that an interrupted bench keeps what it
//! measured and leaves nothing. No figure is compared with another machine's. All of it takes root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use echogate::bench::record::{Purpose, Record};
use tempfile::TempDir;

/// For machines that do a lot else.
const PATIENCE: Duration = Duration::from_secs(120);

/// One bench at a time: two at once are each other's noise.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place for results.
struct Results(TempDir);

impl Results {
    fn new() -> Results {
        Results(TempDir::new().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The bench with these arguments, its results under this name.
    fn bench(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_echogate"));
        command.arg("bench").args(arguments).arg("--output").arg(self.path(name)).env_remove("RUST_LOG");
        command
    }

    fn record(&self, name: &str) -> Record {
        let file = self.path(&format!("{name}.json"));
        let text = fs::read_to_string(&file).expect("the bench has written it");
        Record::parse(&text, "the bench's own result").unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("echogate runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn compare(old: &Path, new: &Path) -> (Option<i32>, String, String) {
    output(Command::new(env!("CARGO_BIN_EXE_echogate")).args(["bench", "compare"]).arg(old).arg(new))
}

#[test]
fn a_tiny_bench_measures_all_it_names_and_table_json_and_page_agree() {
    let _turn = alone();
    let results = Results::new();
    let contenders = "echogate-uring-1,echogate-syscalls-1,masquerade,pasta,slirp4netns";
    let (code, printed, complaints) =
        output(&mut results.bench("tiny", &["--rounds", "1", "--seconds", "1", "--contenders", contenders]));
    assert_eq!(code, Some(0), "{printed}{complaints}");
    let record = results.record("tiny");
    let names = ["control", "echogate-uring-1", "echogate-syscalls-1", "masquerade", "pasta", "slirp4netns"];
    let measured: Vec<&str> = record.trials.iter().map(|trial| trial.contender.as_str()).collect();
    assert_eq!(measured, names, "tests take pasta and slirp4netns: scripts/install-test-tools\n{printed}");
    let page = fs::read_to_string(results.path("tiny.html")).expect("the bench has written it");
    for trial in &record.trials {
        assert_eq!(trial.error, None, "{}", trial.contender);
        let purposes: Vec<Purpose> = trial.steps.iter().map(|step| step.purpose).collect();
        assert_eq!(purposes, [Purpose::Light, Purpose::Saturation]);
        for step in &trial.steps {
            assert_eq!(step.sent, step.received + step.lost, "{trial:?}");
            assert!(step.received > 0 && step.wrong() == 0, "{trial:?}");
            // The kernel counts by ticks: a light load may slip through between them.
            assert!(step.purpose == Purpose::Light || step.cpu.busy_us() > 0, "{trial:?}");
        }
        let is_process = !["control", "masquerade"].contains(&trial.contender.as_str());
        let memory = trial.steps[1].process.map(|process| process.resident_bytes);
        assert_eq!(memory.is_some_and(|bytes| bytes > 1 << 20), is_process, "{trial:?}");
        assert_eq!(trial.gateway.contains_key("to outside"), trial.contender.starts_with("echogate"), "{trial:?}");
        assert!(printed.lines().any(|line| line.starts_with(&trial.contender)), "{printed}");
        assert!(page.contains(&trial.contender));
    }
    assert!(record.complete && record.failures().is_empty());
    for warning in &record.warnings {
        assert!(printed.contains(&warning.cause) && printed.contains(&warning.cure), "{printed}");
    }

    let file = results.path("tiny.json");
    let (code, printed, complaints) = compare(&file, &file);
    assert_eq!(code, Some(0), "a run compared with itself: {printed}{complaints}");
}

#[test]
fn as_many_mappings_live_as_are_asked_for_each_number_beside_its_own_control() {
    let _turn = alone();
    let results = Results::new();
    let arguments = ["--rounds", "1", "--seconds", "1", "--contenders", "echogate-uring-1", "--mappings", "16,2000"];
    let (code, printed, complaints) = output(&mut results.bench("mappings", &arguments));
    assert_eq!(code, Some(0), "{printed}{complaints}");
    let trials = results.record("mappings").trials;
    let measured: Vec<(&str, u64)> = trials
        .iter()
        .map(|trial| (trial.contender.as_str(), trial.scenario.clients as u64 * u64::from(trial.scenario.idents)))
        .collect();
    assert_eq!(measured, [("control", 16), ("echogate-uring-1", 16), ("control", 2000), ("echogate-uring-1", 2000)]);
    for trial in trials.iter().filter(|trial| trial.contender != "control") {
        let asked = trial.scenario.clients as u64 * u64::from(trial.scenario.idents);
        assert_eq!(trial.gateway.get("mappings at most"), Some(&asked), "{trial:?}");
    }
}

#[test]
fn what_each_carries_is_held_beside_the_control_at_the_same_load_and_half_of_the_masquerades_is_everybodys() {
    let _turn = alone();
    let results = Results::new();
    let contenders = "masquerade,echogate-syscalls-1-polling";
    let arguments =
        ["--hold", "1", "--busy", "--sizes", "128", "--rounds", "1", "--seconds", "1", "--contenders", contenders];
    let (code, printed, complaints) = output(&mut results.bench("held", &arguments));
    assert_eq!(code, Some(0), "{printed}{complaints}");
    let record = results.record("held");
    assert_eq!(record.setting.hold_seconds, Some(1));
    let of = |name: &str| record.trials.iter().filter(|trial| trial.contender == name).collect::<Vec<_>>();
    assert_eq!(record.trials[0].contender, "masquerade");
    let half = record.trials[0].pdr_per_s.map(|per_s| per_s / 2);
    let mut held = Vec::new();
    for trial in of("masquerade").into_iter().chain(of("echogate-syscalls-1-polling")) {
        assert_eq!((trial.error.as_ref(), trial.scenario.icmp_bytes), (None, 128), "{trial:?}");
        let step = |purpose| trial.step(purpose);
        assert!([Purpose::LightBusy, Purpose::Light, Purpose::Saturation].into_iter().all(|of| step(of).is_some()));
        // A machine that does a lot else may carry nothing that is found, and then nothing is held.
        let of_pdr = trial
            .pdr_per_s
            .map(|per_s| per_s.abs_diff(step(Purpose::Hold).map_or(0, |s| s.asked_per_s.unwrap_or(0)) * 5 / 4));
        assert!(of_pdr.is_none_or(|apart| apart <= 2), "{trial:?}");
        assert_eq!(step(Purpose::HalfOfMasquerades).and_then(|step| step.asked_per_s), half, "{trial:?}");
        held.extend(step(Purpose::Hold).map(|step| step.asked_per_s));
    }
    let controls = of("control").into_iter().filter_map(|trial| trial.step(Purpose::Hold));
    let controls: Vec<_> = controls.map(|step| step.asked_per_s).collect();
    assert!(controls.len() == held.len() && held.iter().all(|load| controls.contains(load)), "{held:?} {controls:?}");
    assert!(printed.contains("busy: ping") && (held.is_empty() || printed.contains("80% of it")), "{printed}");
}

#[test]
fn a_gateway_that_is_held_under_a_quota_is_a_regression() {
    let _turn = alone();
    let results = Results::new();
    // A quota that every machine has: stopped for nine tenths of the time. As cgroups do it, but without a right to make
    // one. Stopped is who moves the packets; the stopper ends with the gateway, whose number it is that the command has.
    let held = results.path("held");
    let script = format!(
        "#!/bin/sh\n\
         packets() {{ grep -lz packets $(sed 's|\\([0-9]*\\) |/proc/\\1/cmdline |g' /proc/$$/task/$$/children) | cut -d/ -f3; }}\n\
         (while kill -0 $$; do at=$(packets); kill -STOP $at; sleep 0.045; kill -CONT $at; sleep 0.005; done) 2>/dev/null &\n\
         exec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_echogate")
    );
    fs::write(&held, script).expect("a file in the temporary directory");
    fs::set_permissions(&held, fs::Permissions::from_mode(0o755)).expect("our own file");
    let arguments = ["--rounds", "3", "--seconds", "1", "--contenders", "echogate-syscalls-1"];
    let (code, printed, complaints) = output(&mut results.bench("free", &arguments));
    assert_eq!(code, Some(0), "{printed}{complaints}");
    let (_, printed, complaints) = output(results.bench("held", &arguments).arg("--program").arg(&held));
    let slowed = results.record("held");
    assert!(slowed.trials.iter().all(|trial| trial.error.is_none()), "{printed}{complaints}");
    let (code, printed, complaints) = compare(&results.path("free.json"), &results.path("held.json"));
    assert_eq!(code, Some(1), "{printed}{complaints}");
    assert!(printed.contains("WORSE"), "{printed}");
}

#[test]
fn an_interrupted_bench_keeps_what_it_measured_and_leaves_no_process() {
    let _turn = alone();
    let results = Results::new();
    let mut command = results.bench("cut", &["--seconds", "1", "--contenders", "echogate-syscalls-1,masquerade"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("echogate runs");
    let id = child.id();
    let deadline = Instant::now() + PATIENCE;
    // The files are there from the start; the first record comes with the first trial's end.
    while fs::read_to_string(results.path("cut.json")).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline, "no trial has ended");
        thread::sleep(Duration::from_millis(10));
    }
    let gateways = || children_of(id);
    while gateways().is_empty() {
        assert!(Instant::now() < deadline, "no gateway was started");
        thread::sleep(Duration::from_millis(1));
    }
    let started = gateways();
    let status = Command::new("kill").arg("-INT").arg(id.to_string()).status().expect("kill runs");
    assert!(status.success());
    let ended = child.wait_with_output().expect("our own child");
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{printed}");
    assert!(printed.contains("warning: interrupted after"), "{printed}");
    let record = results.record("cut");
    assert!(!record.complete && !record.trials.is_empty() && record.trials[0].error.is_none(), "{printed}");
    for process in started {
        assert!(!Path::new(&format!("/proc/{process}")).exists(), "process {process} is left");
    }
}

/// The processes whose parent this is.
fn children_of(parent: u32) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    numbers
        .filter(|number| {
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            let words = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
            words.split_whitespace().nth(1) == Some(&parent.to_string())
        })
        .collect()
}

#[test]
fn what_cannot_be_compared_is_refused_with_code_2() {
    let results = Results::new();
    let (broken, missing) = (results.path("broken.json"), results.path("missing.json"));
    fs::write(&broken, "{\"kind\": \"something else\"}").expect("a file in the temporary directory");
    for (file, words) in [(&broken, "not a bench's result"), (&missing, "cannot read")] {
        let (code, printed, complaints) = compare(file, file);
        assert_eq!((code, printed.as_str()), (Some(2), ""), "{complaints}");
        assert!(complaints.contains(words), "{complaints}");
    }
}

#[test]
fn a_contender_that_does_not_exist_is_refused_with_those_that_do() {
    let results = Results::new();
    let (code, _, complaints) = output(&mut results.bench("none", &["--contenders", "iptables"]));
    assert_eq!(code, Some(2), "{complaints}");
    assert!(complaints.contains("\"iptables\"") && complaints.contains("slirp4netns"), "{complaints}");
}

#[test]
fn the_load_alone_asks_over_loopback_as_fast_as_it_may_and_is_answered() {
    let load = ["bench", "load", "--from", "127.0.0.1", "--to", "127.0.0.2", "--seconds", "1"];
    let (code, printed, complaints) = output(Command::new(env!("CARGO_BIN_EXE_echogate")).args(load));
    assert_eq!(code, Some(0), "{printed}{complaints}");
    let count = |name: &str| {
        let line =
            printed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {printed}"));
        let number = line.split_whitespace().next_back().expect("a number").replace(',', "");
        number.parse::<u64>().expect("a number")
    };
    // A rate by default: not a packet more than a second's worth and a batch.
    assert!((1..=1100).contains(&count("sent")), "{printed}");
    assert_eq!(count("received"), count("sent"), "{printed}");
}

#[test]
fn the_responder_makes_a_prefix_answer_and_undoes_that() {
    // The test's thread has a namespace of its own: no address of the machine is touched.
    let lab = echogate::lab::Lab::build(&echogate::lab::LabOptions { clients: 1, ..Default::default() })
        .expect("this test takes root");
    let echogate = env!("CARGO_BIN_EXE_echogate");
    let respond = ["bench", "respond", "--for", "198.18.0.128/28"];
    let run = |arguments: &[&str]| {
        let ran = lab.internet().run(|| output(Command::new(echogate).args(arguments)));
        ran.expect("the namespace can be entered")
    };
    let load = |remote: &str| {
        run(&["bench", "load", "--from", "198.18.0.2", "--to", remote, "--rate", "100", "--seconds", "1"])
    };
    let child = lab
        .internet()
        .run(|| Command::new(echogate).args(respond).stdout(Stdio::piped()).spawn().expect("echogate runs"));
    let child = child.expect("the namespace can be entered");
    let deadline = Instant::now() + PATIENCE;
    let answered = loop {
        let (code, printed, complaints) = load("198.18.0.135");
        if code == Some(0) {
            break printed;
        }
        assert!(Instant::now() < deadline, "{printed}{complaints}");
    };
    assert!(answered.contains("received"), "{answered}");
    let status = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().expect("kill runs");
    assert!(status.success());
    let ended = child.wait_with_output().expect("our own child");
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.status.code(), Some(0), "{printed}");
    let replies = printed.lines().next_back().expect("the sum");
    assert!(replies.starts_with("in all: ") && !replies.contains(" 0 replies"), "{printed}");
    assert_eq!(load("198.18.0.135").0, Some(1), "it answers no longer");
}
