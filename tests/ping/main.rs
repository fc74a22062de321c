//! `echogate ping` as an ordinary user meets it, in namespaces that each test makes (so: as root), beside the system's `ping`.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use echogate::lab::{self, Lab, LabOptions, Namespace};

mod outputs;
mod scraper;
mod wire;

/// Nobody: an ordinary user.
const ORDINARY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway, two routers and a remote behind them; whoever is at the gateway may ping.
fn scene() -> Lab {
    let options = LabOptions { clients: 1, remotes: 1, routers: 2, ..LabOptions::default() };
    let lab = Lab::build(&options).unwrap_or_else(|error| panic!("{error}"));
    lab.gateway().sysctl(&[("net/ipv4/ping_group_range", "0 2147483647")]).unwrap();
    lab
}

fn ordinary(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).uid(ORDINARY).gid(ORDINARY).env("LC_ALL", "C").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Output {
    let output = namespace.run(|| ordinary(program, arguments).output()).unwrap();
    output.unwrap_or_else(|error| panic!("{program}: {error}; see scripts/install-test-tools"))
}

fn echogate(namespace: &Namespace, arguments: &[&str]) -> Output {
    run(namespace, env!("CARGO_BIN_EXE_echogate"), &[&["ping"], arguments].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The text with every number that is measured blanked: those with a point in them, and those before "ms".
fn blanked(text: &str) -> String {
    let mut blank = String::new();
    for word in text.split_inclusive([' ', '=', '/', '\n']) {
        let number = word.trim_end_matches([' ', '=', '/', '\n']);
        let digits = number.trim_end_matches("ms");
        let measured = digits.parse::<f64>().is_ok() && (digits.contains('.') || number != digits);
        let time = blank.ends_with("time=");
        blank.push_str(if measured || time { "N" } else { number });
        blank.push_str(&word[number.len()..]);
    }
    blank
}

/// The same text but for what is measured, and success.
fn assert_same(ours: &Output, theirs: &Output, arguments: &[&str]) {
    assert_eq!(blanked(&stdout(ours)), blanked(&stdout(theirs)), "{arguments:?} {}{}", stderr(ours), stderr(theirs));
    assert_eq!((ours.status.code(), theirs.status.code()), (Some(0), Some(0)), "{arguments:?}");
}

#[test]
fn one_host_reads_as_with_ping_but_for_the_numbers() {
    let lab = scene();
    for arguments in [
        &["-c", "3", "-i", "0.2", "127.0.0.1"][..],
        &["-c", "2", "-i", "0.2", "-q", "-s", "100", "127.0.0.1"],
        &["-c", "1", "-I", "lo", "127.0.0.1"],
        &["-c", "1", "-I", "127.0.0.1", "127.0.0.1"],
        &["-c", "1", "-p", "FF0", "127.0.0.1"],
        &["-c", "1", "-4", "localhost"],
        &["-c", "1", "-W", "0", "-w", "0", "127.0.0.1"],
        &["-c", "2", "-i", "0.2", "-Q", "0X10", "-M", "do", "-t", "9", "127.0.0.1"],
    ] {
        let (theirs, ours) = (run(lab.gateway(), "ping", arguments), echogate(lab.gateway(), arguments));
        assert_same(&ours, &theirs, arguments);
    }
}

#[test]
fn silence_is_exit_code_1() {
    let output = echogate(scene().gateway(), &["-c", "1", "-W", "0.3", "203.0.113.9"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("1 packets transmitted, 0 received, 100% packet loss"), "{}", stdout(&output));
}

#[test]
fn who_may_not_ping_is_told_what_opens_it() {
    let lab = scene();
    lab.gateway().sysctl(&[("net/ipv4/ping_group_range", "1 0")]).unwrap();
    let output = echogate(lab.gateway(), &["-c", "1", "127.0.0.1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("sysctl -w net.ipv4.ping_group_range="), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

#[test]
fn an_unknown_name_is_exit_code_2() {
    let output = echogate(scene().gateway(), &["-c", "1", "host.invalid"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("host.invalid: "), "{}", stderr(&output));
}

#[test]
fn a_router_on_the_way_is_named_when_the_ttl_ends_there() {
    let lab = scene();
    let remote = lab.remotes()[0].to_string();
    let output = echogate(lab.gateway(), &["-c", "1", "-t", "1", &remote]);
    let line = format!("From {} icmp_seq=1 Time to live exceeded\n", lab::router_address(0));
    assert!(stdout(&output).contains(&line), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("0 received, +1 errors, 100% packet loss"), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn several_hosts_are_alive_or_not() {
    let output = echogate(scene().gateway(), &["-W", "0.3", "-i", "0.2", "127.0.0.1", "203.0.113.9"]);
    assert_eq!(stdout(&output), "127.0.0.1 is alive\n203.0.113.9 is unreachable\n", "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_time_stamp_stands_before_the_lines_of_several_hosts_too() {
    let output = echogate(scene().gateway(), &["-D", "-c", "1", "-i", "0.2", "127.0.0.1", "127.0.0.2"]);
    let text = stdout(&output);
    let (lines, summary) = text.split_once("\n\n").unwrap();
    let stamped = |line: &str| line.starts_with('[') && line.contains("] 127.0.0.");
    assert!(lines.lines().count() == 2 && lines.lines().all(stamped) && !summary.contains('['), "{text}");
}

#[test]
fn every_json_line_is_an_object_with_a_version() {
    let lab = scene();
    let remote = lab.remotes()[0].to_string();
    let output = echogate(lab.gateway(), &["--json", "-c", "2", "-i", "0.2", "-t", "1", "127.0.0.1", &remote]);
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["v"] == 1), "{lines:?}");
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of("reply"), of("error"), of("summary"), lines.len()), (2, 2, 2, 6), "{lines:?}");
    let far = lines.iter().find(|line| line["type"] == "summary" && line["host"] == remote.as_str()).unwrap();
    assert_eq!(far["errors_by_sender"][lab::router_address(0).to_string()], 2);
}

#[test]
fn thresholds_decide_the_exit_code() {
    let lab = scene();
    let gateway = lab.gateway();
    let common = ["-c", "2", "-i", "0.1", "-W", "0.3", "--summary-only"];
    for (more, code) in [
        (&["--max-loss", "50", "127.0.0.1"][..], 0),
        (&["--max-loss", "50", "203.0.113.9"], 1),
        (&["--max-loss", "100", "203.0.113.9"], 0),
        (&["--max-rtt", "0", "127.0.0.1"], 1),
        (&["--max-rtt", "10000", "127.0.0.1"], 0),
    ] {
        let output = echogate(gateway, &[&common[..], more].concat());
        assert_eq!(output.status.code(), Some(code), "{more:?}: {}{}", stdout(&output), stderr(&output));
    }
}

#[test]
fn absurd_wishes_are_refused() {
    let lab = scene();
    for (arguments, expected) in [
        (&["-s", "65508", "127.0.0.1"][..], "0 to 65507"),
        (&["-i", "0", "127.0.0.1"], "at least 0.001 seconds"),
        (&["-i", "nan", "127.0.0.1"], "0 to 86400"),
        (&["-g", "0.0.0.0/0"], "too many hosts"),
        (&["-g", "198.18.0.0/16", "--prometheus", "127.0.0.1:9427"], "65534 hosts are too many to serve"),
        (&["-W", "3601", "127.0.0.1"], "0 to 3600"),
        (&["--rate", "100001", "127.0.0.1"], "1..=100000"),
        (&["-t", "0", "127.0.0.1"], "1..=255"),
        (&["-c", "0", "127.0.0.1"], "invalid value '0'"),
        (&["--file", "/no/such/list"], "cannot be read"),
        (&["-I", "nodevice0", "127.0.0.1"], "nodevice0"),
        (&["--file", "/dev/null"], "nobody to ping"),
        (&["-p", "xyz", "127.0.0.1"], "no pattern"),
    ] {
        let output = echogate(lab.gateway(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}
