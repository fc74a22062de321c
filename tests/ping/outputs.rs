//! What programs read, and what signals, deadlines and terminals change.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use echogate::lab;

use crate::{PATIENCE, echogate, ordinary, run, scene, stderr, stdout};

#[test]
fn csv_is_a_line_an_outcome_with_the_columns_that_its_head_names() {
    let lab = scene();
    let remote = lab.remotes()[0].to_string();
    let output = echogate(
        lab.gateway(),
        &["--csv", "-c", "2", "-i", "0.2", "-W", "0.3", "-t", "1", "127.0.0.1", "203.0.113.9", &remote],
    );
    let text = stdout(&output);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["time", "type", "host", "address", "seq", "bytes", "ttl", "rtt_ms", "from", "reason"]);
    assert!(rows.len() == 7 && rows.iter().all(|row| row.len() == 10), "{text}");
    let router = lab::router_address(0).to_string();
    let of = |kind: &str| rows.iter().filter(move |row| row[1] == kind).collect::<Vec<_>>();
    for reply in of("reply") {
        assert_eq!((reply[2], reply[3], reply[5], reply[8], reply[9]), ("127.0.0.1", "127.0.0.1", "64", "", ""));
        assert!(reply[0].parse::<f64>().unwrap() > 1e9 && reply[7].parse::<f64>().unwrap() > 0.0, "{reply:?}");
    }
    for error in of("error") {
        // Beyond the first router nothing is silent: it says so of both.
        assert_eq!((error[5], error[8], error[9]), ("", router.as_str(), "Time to live exceeded"));
    }
    assert_eq!((of("reply").len(), of("error").len()), (2, 4), "{text}{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

/// docs/ping.md is what a program is written by.
#[test]
fn the_keys_of_json_are_those_that_are_described() {
    let text = include_str!("../../docs/ping.md");
    let table = text.split("<!-- json -->").nth(1).and_then(|rest| rest.split("<!-- /json -->").next()).unwrap();
    let first = table.lines().filter_map(|row| row.strip_prefix("| `")?.split(" |").next());
    let described: BTreeSet<String> =
        first.flat_map(|cell| cell.split(", ").map(|key| key.trim_matches('`').to_owned())).collect();
    let lab = scene();
    let remote = lab.remotes()[0].to_string();
    let mut printed = BTreeSet::new();
    for (arguments, kind) in [
        (&["-t", "1", "127.0.0.1", &remote][..], "reply"),
        (&["-t", "1", &remote], "error"),
        (&["-M", "do", "-s", "30000", &remote], "error"),
        (&["-W", "0.1", "203.0.113.9"], "timeout"),
    ] {
        let output = echogate(lab.gateway(), &[&["--json", "-c", "1"], arguments].concat());
        let lines: Vec<serde_json::Value> =
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().any(|line| line["type"] == kind), "{arguments:?}: {}", stdout(&output));
        printed.extend(lines.iter().flat_map(|line| line.as_object().unwrap().keys().cloned()));
    }
    assert_eq!(described, printed);
}

#[test]
fn an_endless_run_ends_when_nobody_reads_it_any_more() {
    let lab = scene();
    // Its code is that of what it has seen until then: the reader goes with a reply, not with the head that is before it.
    for (arguments, lines, code) in [
        (&["-i", "0.1", "127.0.0.1"][..], 2, 0),
        (&["--loop", "--json", "-W", "60", "-i", "0.2", "127.0.0.1", "203.0.113.9"], 1, 1),
    ] {
        let mut command = ordinary(env!("CARGO_BIN_EXE_echogate"), &[&["ping"], arguments].concat());
        let mut child = lab.gateway().run(|| command.stdout(Stdio::piped()).spawn()).unwrap().unwrap();
        let read: Vec<String> =
            BufReader::new(child.stdout.take().unwrap()).lines().take(lines).map(Result::unwrap).collect();
        assert!(read.last().is_some_and(|line| line.contains("time=") || line.contains("reply")), "{read:?}");
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                drop(child.kill());
                panic!("{arguments:?} goes on for nobody");
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(code), "{read:?}");
    }
}

#[test]
fn a_quit_signal_shows_an_interim_line_as_with_ping_and_ends_nothing() {
    let lab = scene();
    let shape = |program: &str, more: &[&str]| {
        let arguments = [more, &["-q", "-i", "0.2", "-c", "15", "127.0.0.1"]].concat();
        let mut command = ordinary(program, &arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = lab.gateway().run(|| command.spawn()).unwrap().unwrap();
        thread::sleep(Duration::from_millis(1500));
        let told = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status().unwrap();
        assert!(told.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("15 packets transmitted, 15 received"), "{}", stdout(&output));
        stderr(&output).chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect::<String>()
    };
    let single = |text: String| {
        let mut text = text;
        while text.contains("00") {
            text = text.replace("00", "0");
        }
        text
    };
    let ours = single(shape(env!("CARGO_BIN_EXE_echogate"), &["ping"]));
    assert_eq!(ours, "\r0/0 packets, 0% loss, min/avg/ewma/max = 0.0/0.0/0.0/0.0 ms\n");
    assert_eq!(ours, single(shape("ping", &[])));
}

#[test]
fn a_deadline_ends_the_run_and_the_code_says_whether_anybody_answered() {
    let lab = scene();
    for (target, code) in [("127.0.0.1", 0), ("203.0.113.9", 1)] {
        let begin = Instant::now();
        let output = echogate(lab.gateway(), &["-w", "1", "-W", "60", "-i", "0.2", target]);
        let elapsed = begin.elapsed();
        assert!((Duration::from_secs(1)..PATIENCE / 2).contains(&elapsed), "{target}: {elapsed:?}");
        assert_eq!(output.status.code(), Some(code), "{target}: {}", stdout(&output));
        assert!(stdout(&output).contains("packet loss, time "), "{}", stdout(&output));
    }
}

#[test]
fn a_deadline_before_the_count_is_reached_is_exit_code_1_as_with_ping() {
    let lab = scene();
    let arguments = ["-q", "-w", "1", "-c", "100", "-i", "0.2", "127.0.0.1"];
    let (ours, theirs) = (echogate(lab.gateway(), &arguments), run(lab.gateway(), "ping", &arguments));
    assert_eq!((ours.status.code(), theirs.status.code()), (Some(1), Some(1)), "{}", stdout(&ours));
}

#[test]
fn times_begin_on_the_wire_or_with_the_send_as_is_asked_for() {
    let lab = scene();
    for from in ["wire", "send"] {
        let output = echogate(lab.gateway(), &["-q", "-c", "3", "-i", "0.1", "--rtt-from", from, "127.0.0.1"]);
        assert_eq!(output.status.code(), Some(0), "{from}: {}", stderr(&output));
    }
    assert_eq!(echogate(lab.gateway(), &["--rtt-from", "here", "127.0.0.1"]).status.code(), Some(2));
}

/// What the terminal gets of a second of --graph.
fn picture(no_color: Option<&str>) -> String {
    let lab = scene();
    // The terminal has no size before it is given one.
    let seen =
        format!("stty rows 24 cols 80; {} ping --graph -i 0.1 127.0.0.1 203.0.113.9", env!("CARGO_BIN_EXE_echogate"));
    let mut command = Command::new("script");
    command.args(["-qec", &seen, "/dev/null"]).env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("NO_COLOR");
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let mut child = lab.gateway().run(|| command.spawn()).unwrap().expect("script; see scripts/install-test-tools");
    thread::sleep(Duration::from_secs(2));
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keys);
    stdout(&output)
}

/// Whether any escape sequence sets a colour: 30 to 37 and 90 to 97, or 38.
fn is_colored(text: &str) -> bool {
    let sequences = text.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m')).map(|(codes, _)| codes);
    let codes = sequences.flat_map(|codes| codes.split(';')).filter_map(|code| code.parse::<u32>().ok());
    codes.into_iter().any(|code| (30..=38).contains(&code) || (90..=97).contains(&code))
}

#[test]
fn the_picture_has_colours_unless_no_color_says_no() {
    let (plain, colored, empty) = (picture(Some("1")), picture(None), picture(Some("")));
    assert!(plain.contains("127.0.0.1") && !is_colored(&plain), "{plain:?}");
    assert!(is_colored(&colored), "{colored:?}");
    assert!(is_colored(&empty), "an empty NO_COLOR says nothing");
}

#[test]
fn an_ipv4_address_is_no_target_of_dash_6() {
    let lab = scene();
    let arguments = ["-6", "-c", "1", "127.0.0.1"];
    assert_eq!(run(lab.gateway(), "ping", &arguments).status.code(), Some(2));
    let output = echogate(lab.gateway(), &arguments);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""), "{}", stderr(&output));
}
