//! The log: in the form that was asked for, and packets go on whatever becomes of it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::Echogate;
use crate::reload::Reloaded;
use crate::scene::{PATIENCE, Scene, Setup, run, wait_until};
use crate::sys;

const ANY: Setup = Setup { io: "auto", workers: 2 };

/// A gateway whose standard error is somebody else's affair.
struct Gateway {
    child: Child,
    _run_directory: tempfile::TempDir,
}

impl Gateway {
    fn start(scene: &Scene, arguments: &[&str], stderr: Stdio, with: impl FnOnce(&mut Command)) -> Gateway {
        let run_directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Echogate::command("run");
        command.args(scene.arguments(&ANY)).args(arguments).env_remove("RUST_LOG");
        command.env("RUNTIME_DIRECTORY", run_directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        with(&mut command);
        let child = scene.gateway().run(|| command.spawn()).expect("a namespace").expect("it runs");
        let gateway = Gateway { child, _run_directory: run_directory };
        scene.await_ping("it serves");
        gateway
    }

    /// Ends it by SIGTERM; whether it ended well.
    fn stop(mut self) -> bool {
        sys::terminate(self.child.id()).expect("it runs");
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Something that is said in the log.
fn provoke(scene: &Scene) {
    run(scene.gateway(), "ip rule del priority 3776");
    wait_until("it is put back", || run(scene.gateway(), "ip rule").contains("3776:"));
}

fn provoked_and_stopped(scene: &Scene, gateway: Gateway) {
    scene.assert_pings("before");
    (0..3).for_each(|_| provoke(scene));
    scene.assert_pings("after there was something to say");
    assert!(gateway.stop(), "it does not end as it should");
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_packets_nor_the_end() {
    let scene = Scene::new(1);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    fill(&mut writer);
    let gateway = Gateway::start(&scene, &["--log", "debug"], writer.into(), |_| {});
    provoked_and_stopped(&scene, gateway);
    drop(reader);
}

/// Writes until nobody could write any more.
fn fill(writer: &mut std::io::PipeWriter) {
    sys::set_nonblocking(writer.as_fd(), true).expect("a pipe's flags");
    loop {
        match writer.write(&[b'.'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    while writer.write(b".").is_ok() {}
    sys::set_nonblocking(writer.as_fd(), false).expect("a pipe's flags");
}

#[test]
fn a_full_disk_under_the_log_holds_up_nothing() {
    let scene = Scene::new(1);
    let full = OpenOptions::new().write(true).open("/dev/full").expect("a device that is always full");
    let gateway = Gateway::start(&scene, &["--log", "debug"], full.into(), |_| {});
    provoked_and_stopped(&scene, gateway);
}

#[test]
fn a_program_reads_one_json_object_a_line() {
    let scene = Scene::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    let file = File::create(&path).expect("a file");
    let gateway = Gateway::start(&scene, &["--log-format", "json"], file.into(), |_| {});
    provoked_and_stopped(&scene, gateway);
    let lines = lines(&path);
    let objects: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    assert!(
        objects.iter().all(|line| ["timestamp", "level", "message"].iter().all(|name| line[*name].is_string())),
        "{lines:?}"
    );
    assert!(objects.iter().any(|line| line["level"] == "WARN"), "{lines:?}");
}

#[test]
fn the_journal_gets_priorities_and_no_times() {
    let scene = Scene::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    let file = File::create(&path).expect("a file");
    // What systemd says of the stream that it has connected.
    let data = file.metadata().expect("a file's data");
    let stream = format!("{}:{}", data.st_dev(), data.st_ino());
    let gateway = Gateway::start(&scene, &[], file.into(), |command| {
        command.env("JOURNAL_STREAM", stream);
    });
    provoked_and_stopped(&scene, gateway);
    let lines = lines(&path);
    assert!(lines.iter().all(|line| ["<3>", "<4>", "<6>"].iter().any(|begin| line.starts_with(begin))), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("<4>")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("WARN")), "{lines:?}");
}

#[test]
fn what_is_logged_and_how_follows_the_file_in_both_processes() {
    let reloaded = Reloaded::new(&ANY, "[observe]\nlog = \"warn\"\n");
    let reload_with = |observe: &str| {
        reloaded.write("10.66.0.0/24", &format!("[observe]\n{observe}"));
        reloaded.assert_reloads();
    };
    // One by the keeper, the other by the packet process that goes on.
    let lines = ["the configuration has been read again", "goes on with what was there"];
    reloaded.scene.assert_pings("so that there is a mapping to go on with");
    reload_with("log = \"error\"\n");
    assert!(!lines.iter().any(|line| reloaded.gateway().has_said(line)), "less than warnings were asked for");
    reload_with("log = \"info\"\nlog_format = \"json\"\n");
    wait_until("both say so", || lines.iter().all(|line| reloaded.gateway().has_said(line)));
    reload_with("log = \"off\"\n");
    reload_with("");
    let ended = reloaded.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.complaints);
    for line in lines {
        let said: Vec<&str> = ended.complaints.lines().filter(|said| said.contains(line)).collect();
        let [first, second] = said[..] else { panic!("{line}, twice: {}", ended.complaints) };
        let first: Value = serde_json::from_str(first).unwrap_or_else(|error| panic!("{error}: {first}"));
        assert_eq!(first["level"], "INFO", "{first}");
        assert!(second.contains(" INFO ") && !second.starts_with('{'), "{second}");
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a log");
    assert!(!text.is_empty(), "nothing was logged");
    text.lines().map(str::to_owned).collect()
}
