//! The verdict on made-up counts, the words, and one short demo for real (which takes root).

use serde_json::Value;

use super::*;
use crate::lab::responder::EchoCounters;
use crate::metrics::Traffic;

fn packets(packets: u64) -> Traffic {
    Traffic { packets, bytes: packets * 84 }
}

/// A run of 1,000 echoes, and one before them, in which everything went well.
fn good() -> DemoReport {
    let load = LoadReport { sent: 1000, received: 1000, elapsed: Duration::from_secs(1), ..LoadReport::default() };
    let gateway = Snapshot {
        inside_in: packets(1001),
        outside_out: packets(1001),
        outside_in: packets(1001),
        inside_out: packets(1001),
        delivered: packets(1001),
        ..Snapshot::default()
    };
    let remotes = EchoCounters { requests_in: 1001, replies_out: 1001, checksum_errors: 0 };
    let description = "made up".to_owned();
    let echogate = Contender {
        name: "Echogate",
        description,
        single: Ok(Duration::from_micros(41)),
        load,
        remotes,
        gateway: Some(gateway),
    };
    DemoReport {
        options: DemoOptions::default(),
        remotes: REMOTES,
        echogate,
        masquerade: Err("nft is not installed".to_owned()),
    }
}

#[test]
fn a_good_run_passes_and_says_what_was_shown() {
    let report = good();
    assert_eq!(report.failures(), Vec::<String>::new());
    let text = report.to_string();
    assert!(text.contains("PASS") && text.contains("1,000") && text.contains("nft is not installed"), "{text}");
}

/// Each single fault must be enough to fail.
#[test]
fn every_fault_alone_fails_the_demo() {
    type Fault = (&'static str, fn(&mut DemoReport));
    let faults: [Fault; 11] = [
        ("the single ping: no answer", |report| {
            report.echogate.single = Err("no answer".to_owned());
            report.echogate.load.received += 1;
        }),
        ("nothing was sent", |report| {
            report.echogate.load = LoadReport::default();
            report.echogate.remotes = EchoCounters::default();
            report.echogate.gateway = Some(Snapshot::default());
            report.echogate.single = Err(String::new());
        }),
        ("wrong client", |report| report.echogate.load.wrong_client = 1),
        ("altered", |report| report.echogate.load.altered = 1),
        ("twice or too late", |report| report.echogate.load.stray = 1),
        ("more than 0.1%.", |report| report.echogate.load.lost = 2),
        ("more than 0.1%; the gateway dropped ttl 2.", |report| {
            report.echogate.load.lost = 2;
            report.echogate.gateway.as_mut().expect("there is one").drops.push(("ttl".to_owned(), 2));
        }),
        ("at the remotes arrived 999", |report| report.echogate.remotes.requests_in = 999),
        ("at the clients arrived 1,000", |report| report.echogate.load.received = 999),
        ("accounts for 2,003", |report| {
            let gateway = report.echogate.gateway.as_mut().expect("there is one");
            gateway.drops.push(("ttl".to_owned(), 1));
        }),
        ("delivered 1,002", |report| {
            report.echogate.gateway.as_mut().expect("there is one").delivered = packets(1002);
        }),
    ];
    for (expected, fault) in faults {
        let mut report = good();
        fault(&mut report);
        let text = report.to_string();
        assert!(!report.passed() && text.contains("FAIL") && text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn one_loss_in_a_thousand_is_allowed() {
    let mut report = good();
    report.echogate.load.lost = 1;
    assert!(report.passed());
}

#[test]
fn the_json_object_carries_the_schema_the_counts_and_the_verdict() {
    let mut report = good();
    report.echogate.gateway.as_mut().expect("there is one").drops.push(("ttl".to_owned(), 1));
    let value: Value = serde_json::from_str(&report.json()).expect("one JSON object");
    assert_eq!((&value["schema"], &value["passed"]), (&1.into(), &false.into()));
    assert_eq!(value["failures"].as_array().map(Vec::len), Some(1));
    let echogate = &value["contenders"][0];
    assert_eq!((&echogate["sent"], &echogate["gateway"]["drops"]["ttl"]), (&1000.into(), &1.into()));
    assert_eq!((&echogate["lost"], &echogate["echoes_per_second"]), (&0.into(), &1000.into()));
    assert_eq!(value["masquerade_missing"], "nft is not installed");
}

#[test]
fn the_picture_shows_both_ends_and_fits_a_narrow_terminal() {
    for client_count in [1, 2, 4, 5, 200] {
        let text = introduction(&DemoOptions { client_count, ..DemoOptions::default() });
        let last = lab::client_address(client_count - 1);
        assert!(text.contains(&format!("client {client_count}  {last} --+")), "{text}");
        assert!(text.contains("[ Echogate 198.18.0.1 ]") && text.contains("+-- 198.18.0.5  host 4"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}

#[test]
fn options_that_show_nothing_are_refused() {
    for options in [
        DemoOptions { seconds: 0, ..DemoOptions::default() },
        DemoOptions { rate: Some(0), ..DemoOptions::default() },
        DemoOptions { client_count: 0, ..DemoOptions::default() },
        DemoOptions { client_count: lab::CLIENTS_MAX + 1, ..DemoOptions::default() },
    ] {
        assert!(run(&options).is_err(), "{options:?}");
    }
}

#[test]
fn a_short_demo_passes_with_either_back_end() {
    for io in [Backend::Auto, Backend::Syscalls] {
        let report = run(&DemoOptions { seconds: 1, client_count: 3, io, ..DemoOptions::default() })
            .expect("the demo takes root (or unshare -Urn) and /dev/net/tun");
        assert!(report.passed(), "{io:?}: {report}");
        assert!(report.masquerade.expect("nft is there: apt-get install nftables").load.received > 0);
    }
}

/// Without nft the demo leads ICMP into the device by rules of its own.
#[test]
fn without_nft_the_demo_serves_too() {
    let options = DemoOptions { seconds: 1, client_count: 2, rate: Some(2000), ..DemoOptions::default() };
    let echogate = through_echogate(&options, false).expect("the demo takes root (or unshare -Urn) and /dev/net/tun");
    let report = DemoReport { options, remotes: REMOTES, echogate, masquerade: Err("left out".to_owned()) };
    assert!(report.passed(), "{report}");
}
