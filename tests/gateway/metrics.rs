//! /metrics and /healthz: right, well-formed, and harmless to packets whoever asks.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, wait_until};
use crate::sys;
use crate::web::{METRICS, answer, connect, get, metrics_flags};

const ANY: Setup = Setup { io: "auto", workers: 2 };

in_every_setup!(what_is_scraped_is_what_was_counted_and_well_formed);

fn observed(scene: &Scene, setup: &Setup) -> Echogate {
    Echogate::serve(scene.gateway(), &[scene.arguments(setup), metrics_flags()].concat())
}

fn metrics(scene: &Scene) -> String {
    let (status, text) = get(scene.gateway(), METRICS, "/metrics").expect("it answers");
    assert_eq!(status, 200, "{text}");
    text
}

/// The value of the one sample that is written so.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no sample {sample}:\n{text}"))
}

fn what_is_scraped_is_what_was_counted_and_well_formed(setup: &Setup) {
    let scene = Scene::new(1);
    let gateway = observed(&scene, setup);
    let pings = scene.ping_to_the_last(0, &format!("-q -c 200 -i 0.002 {}", scene.remote(0)));
    assert!(pings.all_came_back(200), "{}", pings.text);
    let text = metrics(&scene);
    for (sample, expected) in [
        ("echogate_received_packets_total{side=\"inside\"}", 200.0),
        ("echogate_received_packets_total{side=\"outside\"}", 200.0),
        ("echogate_sent_packets_total{side=\"outside\",what=\"request\"}", 200.0),
        ("echogate_sent_bytes_total{side=\"inside\",what=\"reply\"}", 200.0 * 84.0),
        ("echogate_dropped_packets_total{reason=\"no_echo\"}", 0.0),
        ("echogate_refused_requests_total{class=\"everybody\"}", 0.0),
        ("echogate_socket_dropped_packets_total{side=\"inside\"}", 0.0),
        ("echogate_mappings", 1.0),
        ("echogate_outstanding_echoes", 0.0),
        ("echogate_workers", f64::from(setup.workers)),
        ("echogate_healthy", 1.0),
    ] {
        assert!((value(&text, sample) - expected).abs() < 0.5, "{sample} is not {expected}:\n{text}");
    }
    // One in 64 on average, at most twice that apart.
    let samples = value(&text, "echogate_round_trip_seconds_count");
    assert!((1.0..=200.0).contains(&samples), "{text}");
    assert!(value(&text, "echogate_round_trip_seconds_sum") > 0.0, "{text}");
    assert_lint_finds_nothing(&text);
    assert_eq!(documented(), families(&text), "docs/metrics.md and what is served");
    gateway.stop();
}

/// What is served: each family with its labels, in its order.
fn families(text: &str) -> Vec<(String, Vec<String>)> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let labels = |name: &str| {
        let samples = [format!("{name}{{"), format!("{name}_bucket{{")];
        let found = text.lines().find_map(|line| samples.iter().find_map(|sample| line.strip_prefix(sample.as_str())));
        let found = found.and_then(|rest| rest.split('}').next()).unwrap_or_default();
        found.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect()
    };
    names.map(|name| (name.to_owned(), labels(name))).collect()
}

/// What docs/metrics.md says of it.
fn documented() -> Vec<(String, Vec<String>)> {
    let path = format!("{}/docs/metrics.md", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).expect("a page");
    let table = text.split("<!-- metrics").nth(1).and_then(|rest| rest.split("<!-- /metrics -->").next());
    let rows = table.expect("a table").lines().filter_map(|line| line.strip_prefix("| `"));
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let row = |row: &str| {
        let (name, rest) = row.split_once('`').expect("a name");
        (name.to_owned(), words(rest.split('|').nth(1).expect("labels")))
    };
    rows.map(row).collect()
}

/// `promtool check metrics`: names, types, units and help by Prometheus' own conventions.
fn assert_lint_finds_nothing(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs; remedy: scripts/test installs it");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its output");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

#[test]
fn health_and_other_pages_are_answered_and_what_is_no_http_is_told_so() {
    let scene = Scene::new(1);
    let gateway = observed(&scene, &ANY);
    let status = |path: &str| get(scene.gateway(), METRICS, path).expect("it answers");
    assert_eq!(status("/healthz"), (200, "every worker moves\n".to_owned()));
    assert_eq!(status("/metrics?x=1").0, 200);
    assert_eq!(status("/").0, 404);
    let said = |request: &[u8]| answer(scene.gateway(), METRICS, request).expect("it answers");
    assert!(said(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(said(b"\x16\x03\x01\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let head = said(b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    gateway.stop();
}

#[test]
fn scrapers_that_never_read_and_never_finish_their_question_hold_up_nobody() {
    let scene = Scene::new(1);
    let gateway = observed(&scene, &ANY);
    let idle: Vec<_> = (0..200)
        .map(|number| {
            let mut stream = connect(scene.gateway(), METRICS).expect("it listens");
            let part: &[u8] = if number % 2 == 0 { b"GET /metrics HTTP/1.1\r\n\r\n" } else { b"GET /met" };
            // It may have made room for a later one already.
            drop(stream.write_all(part));
            stream
        })
        .collect();
    scene.assert_pings("while two hundred hold it up");
    assert!(metrics(&scene).contains("echogate_build_info"));
    drop(idle);
    gateway.stop();
}

#[test]
fn an_address_that_is_taken_is_refused_at_start() {
    let scene = Scene::new(1);
    let before = scene.state();
    let taken = scene.gateway().run(|| std::net::TcpListener::bind(METRICS)).expect("a namespace").expect("it binds");
    let arguments = [scene.arguments(&ANY), metrics_flags()].concat();
    let ended = Echogate::start(scene.gateway(), Echogate::command("run").args(arguments)).ended();
    ended.assert_refused(&["cannot serve metrics at 127.0.0.1:9428", "remedy: "]);
    assert_eq!(scene.state(), before);
    drop(taken);
}

/// One thread of the packet process is stopped, by the debugger's interface, and let go again.
#[test]
fn health_is_denied_while_a_worker_stands_still() {
    let scene = Scene::new(1);
    let gateway = observed(&scene, &ANY);
    let health = || get(scene.gateway(), METRICS, "/healthz").map_or(0, |(status, _)| status);
    assert_eq!(health(), 200);
    let process = gateway.packets_id();
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let is_worker = |thread: &u32| {
        let name = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"));
        name.is_ok_and(|name| name.trim() == "worker-1")
    };
    let thread = threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok()).find(is_worker);
    let stopped = sys::Stopped::stop(thread.expect("a thread of that name")).expect("it can be traced");
    wait_until("its health is denied", || health() == 503);
    let text = metrics(&scene);
    assert!(value(&text, "echogate_healthy") < 0.5, "{text}");
    let stats = gateway.ask(&["stats"]);
    assert_eq!(stats.status.code(), Some(1), "{stats:?}");
    drop(stopped);
    // This process, or the one that the keeper has started instead meanwhile.
    wait_until("it is well again", || health() == 200);
    scene.assert_pings("afterwards");
    drop(gateway.terminated());
}
