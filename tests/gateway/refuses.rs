//! Bad input and missing preconditions: exit code 2, what and why and the remedy, and nothing left behind.

use std::io::Write;
use std::process::Command;

use crate::process::{Echogate, Ended};
use crate::scene::{Scene, Setup, run};
use crate::sys::{self, Call};

/// Runs the rest of the command line where nft cannot be found: nothing but an empty file is where it is installed.
const WITHOUT_NFT: &str = "for nft in /usr/sbin/nft /usr/local/sbin/nft /sbin/nft; do \
     if [ -f $nft ]; then mount --bind /dev/null $nft; fi; done; exec \"$@\"";
/// Runs the rest of the command line without /dev/net/tun.
const WITHOUT_TUN: &str = "mount -t tmpfs none /dev/net; exec \"$@\"";

#[test]
fn no_privilege() {
    let mut command = Command::new("setpriv");
    // Root in name only: as in a container without capabilities.
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all", "--"]);
    refused(through(command), &["CAP_NET_ADMIN", "remedy: "]);
}

#[test]
fn no_nft() {
    refused(through(in_mounts_of_its_own(WITHOUT_NFT)), &["nft", "apt-get install nftables"]);
}

#[test]
fn no_tun() {
    refused(through(in_mounts_of_its_own(WITHOUT_TUN)), &["/dev/net/tun", "remedy: "]);
}

#[test]
fn an_address_that_is_not_ours() {
    refused(with("--clients 10.66.0.0/24 --divert g0 --outside 203.0.113.9"), &["203.0.113.9", "remedy: "]);
}

#[test]
fn no_address_that_is_named_and_no_route_to_find_one_by() {
    let scene = Scene::new(1);
    run(scene.gateway(), "ip route del default");
    refused_in(
        &scene,
        with("--clients 10.66.0.0/24 --divert g0"),
        &["no route to the internet", "remedy: name the address, --outside ADDRESS"],
    );
}

#[test]
fn a_control_socket_that_cannot_be_where_it_is_wanted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().join("socket").display().to_string();
    let arguments = format!("--clients 10.66.0.0/24 --divert g0 --outside 198.18.0.1 --control {path}");
    refused(
        with(&arguments),
        &[&format!("cannot listen at the control socket {path}: "), "remedy: give --control a path"],
    );
}

#[test]
fn an_interface_that_is_not_there_yet_is_warned_of_and_the_others_are_served() {
    let scene = Scene::new(1);
    let arguments = "--clients 10.66.0.0/24 --divert g0 --divert later0 --outside 198.18.0.1";
    let gateway = Echogate::start(scene.gateway(), &mut with(arguments)).serving();
    scene.assert_pings("by who is there");
    let ended = gateway.stop();
    let warnings: Vec<&str> = ended.complaints.lines().filter(|line| line.contains("later0")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("WARN"), "once: {}", ended.complaints);
    assert!(warnings[0].contains("later0 does not exist; it is diverted from once it does"), "{}", warnings[0]);
}

#[test]
fn a_device_name_that_is_taken() {
    let scene = Scene::new(1);
    run(scene.gateway(), "ip link add echogate0 type veth peer name other");
    refused_in(&scene, with("--clients 10.66.0.0/24 --divert g0 --outside 198.18.0.1"), &["echogate0", "remedy: "]);
}

#[test]
fn device_names_that_are_none() {
    for name in ["a-name-that-is-too-long", "with/slash", ""] {
        let mut command = with("--clients 10.66.0.0/24 --divert g0 --outside 198.18.0.1");
        command.arg("--device").arg(name);
        refused(command, &["device"]);
    }
}

#[test]
fn prefixes_that_overlap_or_are_absurd() {
    refused(with("--clients 10.66.0.0/24 --clients 10.66.0.128/25"), &["10.66.0.128/25", "10.66.0.0/24"]);
    for absurd in ["0.0.0.0/0", "10.66.0.0/33", "127.0.0.0/8", "10.66.0.1/24", "ten"] {
        refused(with(&format!("--clients {absurd} --outside 198.18.0.1")), &[absurd]);
    }
    refused(with("--clients 198.18.0.0/24 --outside 198.18.0.1"), &["198.18.0.1"]);
    refused(with("--outside 198.18.0.1"), &["clients"]);
}

#[test]
fn no_worker_and_too_many() {
    for number in ["0", "65", "-1", "many"] {
        refused(with(&format!("--clients 10.66.0.0/24 --workers={number}")), &["workers", number]);
    }
}

#[test]
fn unknown_flags_with_the_nearest_valid_name() {
    refused(with("--clients 10.66.0.0/24 --divrt g0"), &["--divrt", "--divert"]);
}

#[test]
fn unknown_keys_with_their_line_and_the_nearest_valid_name() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[inside]\nclients = [\"10.66.0.0/24\"]\ndivrt = [\"g0\"]\n").unwrap();
    let mut command = Echogate::command("run");
    command.arg("--config").arg(file.path());
    refused(command, &[&format!("{}:3", file.path().display()), "divrt", "divert"]);
}

#[test]
fn files_that_are_not_there_or_are_no_toml() {
    refused(with("--config /nowhere/echogate.toml"), &["/nowhere/echogate.toml", "No such file"]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[inside\n").unwrap();
    let mut command = Echogate::command("run");
    command.arg("--config").arg(file.path());
    refused(command, &[&format!("{}:1", file.path().display())]);
}

#[test]
fn io_uring_where_it_is_refused() {
    let mut command = with("--clients 10.66.0.0/24 --divert g0 --outside 198.18.0.1 --io uring");
    sys::refuse_io_uring(&mut command, Call::Setup);
    refused(command, &["io_uring", "remedy: ", "--io"]);
}

#[test]
fn where_io_uring_is_refused_the_choice_by_itself_warns_once_and_serves() {
    let scene = Scene::new(1);
    let mut command = Echogate::command("run");
    command.args(scene.arguments(&Setup { io: "auto", workers: 1 }));
    sys::refuse_io_uring(&mut command, Call::Setup);
    let gateway = Echogate::start(scene.gateway(), &mut command).serving();
    scene.assert_pings("without io_uring");
    let ended = gateway.stop();
    assert!(ended.printed.contains("on system calls"), "{}", ended.printed);
    let warnings = ended.complaints.lines().filter(|line| line.contains("WARN") && line.contains("io_uring")).count();
    assert_eq!(warnings, 1, "{}", ended.complaints);
}

/// As under a kernel or a filter that knows rings, but not all that is done with them.
#[test]
fn check_finds_an_io_uring_that_can_be_made_and_not_be_used() {
    let scene = Scene::new(1);
    let mut command = Echogate::command("check");
    command.args(scene.arguments(&Setup { io: "uring", workers: 1 }));
    sys::refuse_io_uring(&mut command, Call::Register);
    let ended = Echogate::start(scene.gateway(), &mut command).ended();
    assert_eq!(ended.code, Some(1), "{}{}", ended.printed, ended.complaints);
    assert!(ended.printed.lines().any(|line| line.starts_with("missing  io_uring")), "{}", ended.printed);
}

/// `echogate run` with these arguments.
fn with(arguments: &str) -> Command {
    let mut command = Echogate::command("run");
    command.args(arguments.split(' '));
    command
}

/// A gateway that would serve, started by a command that takes something away from it.
fn through(mut command: Command) -> Command {
    command.arg(env!("CARGO_BIN_EXE_echogate"));
    command.args("run --clients 10.66.0.0/24 --divert g0 --outside 198.18.0.1 --workers 1".split(' '));
    command
}

fn in_mounts_of_its_own(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command
}

fn refused(command: Command, words: &[&str]) {
    refused_in(&Scene::new(1), command, words);
}

fn refused_in(scene: &Scene, mut command: Command, words: &[&str]) {
    let before = scene.state();
    let ended = Echogate::start(scene.gateway(), &mut command).ended();
    ended.assert_refused(words);
    assert_eq!(scene.state(), before);
}

impl Ended {
    /// It could not start, and said why in these words, among others.
    pub(crate) fn assert_refused(&self, words: &[&str]) {
        assert_eq!((self.code, self.printed.as_str()), (Some(2), ""), "{}", self.complaints);
        for word in words {
            assert!(self.complaints.contains(word), "{word:?} is not in: {}", self.complaints);
        }
        assert!(!self.complaints.contains("panicked"), "{}", self.complaints);
    }
}
