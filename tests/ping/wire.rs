//! Hosts that answer twice, late or with damage: the lines and the sums, beside the system's `ping` where it has such.

use std::cell::RefCell;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::{assert_same, blanked, ordinary, stderr, stdout};
use scene::{ROUTER, Request, Wire, in_network, ip};

#[path = "../pinger/scene.rs"]
#[expect(dead_code, reason = "the library's tests need more of it")]
mod scene;

/// Runs a command while `answers` says what comes back for each request; the first is 0.
fn talk(wire: &Wire, program: &str, arguments: &[&str], answers: impl Fn(usize, &Request) -> Vec<Vec<u8>>) -> Output {
    let mut command = ordinary(program, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut number = 0;
    while child.try_wait().unwrap().is_none() {
        if let Some(request) = wire.request_within(Duration::from_millis(20)) {
            answers(number, &request).iter().for_each(|packet| wire.inject(packet));
            number += 1;
        }
    }
    child.wait_with_output().unwrap()
}

fn ours(wire: &Wire, arguments: &[&str], answers: impl Fn(usize, &Request) -> Vec<Vec<u8>>) -> Output {
    talk(wire, env!("CARGO_BIN_EXE_echogate"), &[&["ping"], arguments].concat(), answers)
}

#[test]
fn an_ipv6_host_reads_as_with_ping_but_for_the_numbers() {
    in_network(|wire| {
        for arguments in [
            &["-c", "2", "-i", "0.2", "-6", "::1"][..],
            &["-n", "-c", "1", "-p", "ff", "fd00:66::1"],
            &["-c", "1", "-I", "lo", "::1"],
        ] {
            let nothing = |_, _: &Request| Vec::new();
            let (theirs, ours) = (talk(wire, "ping", arguments, nothing), ours(wire, arguments, nothing));
            assert_same(&ours, &theirs, arguments);
        }
    });
}

#[test]
fn a_link_local_address_is_shown_with_its_interface_as_with_ping() {
    in_network(|wire| {
        ip("-6 address add fe80::77/64 dev wire nodad");
        scene::until("taken as its own", || ip("-6 route show table local").contains("local fe80::77 "));
        let arguments = ["-c", "1", "fe80::77%wire"];
        let nothing = |_, _: &Request| Vec::new();
        let (theirs, ours) = (talk(wire, "ping", &arguments, nothing), ours(wire, &arguments, nothing));
        assert_same(&ours, &theirs, &arguments);
    });
}

/// `ping -c 1 -w 30 HOST`: waiting for a host to come up.
#[test]
fn with_a_count_and_a_deadline_it_goes_on_until_so_many_have_come_as_with_ping() {
    in_network(|wire| {
        let arguments = ["-n", "-c", "1", "-w", "20", "-i", "0.3", "198.18.0.2"];
        let third = |number, request: &Request| if number < 2 { Vec::new() } else { vec![request.reply()] };
        let (theirs, answered) = (talk(wire, "ping", &arguments, third), ours(wire, &arguments, third));
        assert_eq!(blanked(&stdout(&answered)), blanked(&stdout(&theirs)), "{}", stderr(&answered));
        assert!(stdout(&answered).contains("3 packets transmitted, 1 received"), "{}", stdout(&answered));
        assert_eq!((answered.status.code(), theirs.status.code()), (Some(0), Some(0)));
        // Somebody says that it is in vain.
        let arguments = ["-n", "-c", "5", "-w", "20", "-i", "0.3", "198.18.0.2"];
        let refused = |_, request: &Request| vec![request.error(ROUTER.into(), 3, 1, 0, 1000)];
        let (theirs, ours) = (talk(wire, "ping", &arguments, refused), ours(wire, &arguments, refused));
        assert_eq!(blanked(&stdout(&ours)), blanked(&stdout(&theirs)), "{}", stderr(&ours));
        assert_eq!((ours.status.code(), theirs.status.code()), (Some(1), Some(1)));
    });
}

#[test]
fn answers_to_several_requests_under_way_are_summed_up_as_with_ping() {
    in_network(|wire| {
        let arguments = ["-n", "-c", "3", "-i", "0.2", "198.18.0.2"];
        // All with the third.
        let kept = RefCell::new(Vec::new());
        let together = |number, request: &Request| {
            kept.borrow_mut().push(request.reply());
            if number < 2 { Vec::new() } else { kept.take() }
        };
        let (theirs, ours) = (talk(wire, "ping", &arguments, together), ours(wire, &arguments, together));
        assert_same(&ours, &theirs, &arguments);
        assert!(stdout(&ours).ends_with(" ms, pipe 3\n"), "{}", stdout(&ours));
    });
}

#[test]
fn what_fails_each_request_alike_is_exit_code_2_as_with_ping() {
    in_network(|wire| {
        ip("route add unreachable 203.0.113.0/25");
        for (arguments, told) in [
            (&["-c", "1", "203.0.113.1"][..], "ping: 203.0.113.1: No route to host"),
            (&["-c", "1", "255.255.255.255"], "ping: 255.255.255.255: Permission denied"),
            (&["-c", "1", "-I", "198.18.0.99", "198.18.0.2"], "cannot send from 198.18.0.99: "),
        ] {
            let nothing = |_, _: &Request| Vec::new();
            let (theirs, ours) = (talk(wire, "ping", arguments, nothing), ours(wire, arguments, nothing));
            assert_eq!((ours.status.code(), theirs.status.code()), (Some(2), Some(2)), "{arguments:?}");
            assert_eq!((stdout(&ours).as_str(), stderr(&ours).contains(told)), ("", true), "{}", stderr(&ours));
        }
        let nothing = |_, _: &Request| Vec::new();
        let output = ours(wire, &["-I", "::1", "198.18.0.2"], nothing);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""));
        assert!(stderr(&output).contains("::1 is not of the address family of 198.18.0.2"), "{}", stderr(&output));
        // Who reads it as a program is told each time.
        let output = ours(wire, &["--json", "-c", "1", "203.0.113.1"], nothing);
        assert!(stdout(&output).contains("\"errno\":113"), "{}", stdout(&output));
        assert_eq!(output.status.code(), Some(1));
    });
}

#[test]
fn what_is_too_long_for_the_path_is_told_as_with_ping() {
    in_network(|wire| {
        for (size, host) in [("2000", "198.18.0.2"), ("1473", "198.18.0.2"), ("2000", "fd00:66::2")] {
            let arguments = ["-n", "-c", "2", "-i", "0.2", "-M", "do", "-s", size, host];
            let nothing = |_, _: &Request| Vec::new();
            let (theirs, ours) = (talk(wire, "ping", &arguments, nothing), ours(wire, &arguments, nothing));
            assert_eq!(blanked(&stdout(&ours)), blanked(&stdout(&theirs)), "{}", stderr(&ours));
            assert_eq!((ours.status.code(), stderr(&ours)), (theirs.status.code(), stderr(&theirs)), "{arguments:?}");
        }
    });
}

#[test]
fn a_duplicate_is_marked_and_summed_up_as_with_ping() {
    in_network(|wire| {
        // The system's waits for the last as long as for an interval.
        let arguments = ["-n", "-c", "2", "-i", "2", "198.18.0.2"];
        // Of the first only: with the last reply both programs end.
        let twice = |number, request: &Request| vec![request.reply(); if number == 0 { 2 } else { 1 }];
        let (theirs, ours) = (talk(wire, "ping", &arguments, twice), ours(wire, &arguments, twice));
        assert_eq!(blanked(&stdout(&ours)), blanked(&stdout(&theirs)), "{}", stderr(&ours));
        assert!(stdout(&ours).contains(" ms (DUP!)\n"), "{}", stdout(&ours));
        assert!(stdout(&ours).contains("2 packets transmitted, 2 received, +1 duplicates, 0% packet loss"));
    });
}

#[test]
fn a_late_reply_is_shown_as_late_and_its_request_is_lost() {
    in_network(|wire| {
        let output = ours(wire, &["-n", "-v", "-c", "2", "-i", "5", "-W", "1.5", "198.18.0.2"], |number, request| {
            if number == 0 {
                thread::sleep(Duration::from_secs(3));
            }
            vec![request.reply()]
        });
        let text = stdout(&output);
        let late = text.lines().find(|line| line.ends_with(" (late)")).unwrap_or_else(|| panic!("{text}"));
        assert!(late.starts_with("64 bytes from 198.18.0.2: icmp_seq=1 ttl=64 time="), "{late}");
        assert!(text.contains("2 packets transmitted, 1 received, 50% packet loss"), "{text}");
        assert!(text.contains("\n1 late, 0 reordered, 0 dropped on this host\n"), "{text}");
        assert_eq!(output.status.code(), Some(0), "somebody answered");
    });
}

#[test]
fn a_damaged_payload_is_told_byte_for_byte_as_with_ping() {
    in_network(|wire| {
        let arguments = ["-n", "-c", "1", "-p", "ff", "198.18.0.2"];
        let damaged = |_, request: &Request| {
            let mut payload = request.payload.clone();
            // Beyond the time stamp that the system's puts there.
            payload[30] = 0x7f;
            vec![request.answer(request.destination, request.ident, request.sequence, &payload)]
        };
        let (theirs, ours) = (talk(wire, "ping", &arguments, damaged), ours(wire, &arguments, damaged));
        let told = "\nwrong data byte #30 should be 0xff but was 0x7f\n";
        let (theirs, ours) = (stdout(&theirs), stdout(&ours));
        assert!(theirs.contains(told.trim_end()), "{theirs}");
        assert!(ours.contains(told), "{ours}");
        assert!(ours.contains("1 packets transmitted, 1 received, +1 corrupted, 0% packet loss"), "{ours}");
    });
}

#[test]
fn corrupt_and_repeated_replies_have_json_lines_of_their_own() {
    in_network(|wire| {
        let output = ours(wire, &["--json", "-c", "2", "-i", "0.5", "198.18.0.2"], |number, request| {
            let mut payload = request.payload.clone();
            payload[40] ^= 1;
            let corrupt = request.answer(request.destination, request.ident, request.sequence, &payload);
            if number == 0 { vec![corrupt, request.reply()] } else { vec![request.reply()] }
        });
        let text = stdout(&output);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let find = |kind: &str| lines.iter().find(|line| line["type"] == kind).unwrap_or_else(|| panic!("{text}"));
        assert_eq!((&find("reply")["corrupt"], &find("duplicate")["corrupt"]), (&true.into(), &false.into()), "{text}");
        let summary = find("summary");
        assert_eq!(
            (&summary["received"], &summary["duplicates"], &summary["corrupt"]),
            (&2.into(), &1.into(), &1.into())
        );
    });
}
