//! `--prometheus`, read by a plain request, by Debian's promtool and by a real Prometheus.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use echogate::lab::Lab;

use crate::{PATIENCE, ordinary, scene, stderr};

#[test]
fn an_interrupt_prints_the_summary_and_a_scraper_finds_histograms() {
    let lab = scene();
    let port = "9427";
    let at = format!("127.0.0.1:{port}");
    let mut command =
        ordinary(env!("CARGO_BIN_EXE_echogate"), &["ping", "-i", "0.1", "--prometheus", &at, "127.0.0.1"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = lab.gateway().run(|| command.spawn()).unwrap().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let page = loop {
        let page = lab.gateway().run(|| get((Ipv4Addr::LOCALHOST, 9427), "/metrics")).unwrap();
        if page.contains("echogate_ping_received_total{host=\"127.0.0.1\",address=\"127.0.0.1\"} 2") {
            break page;
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("no metrics: {page}\n{}", stderr(&child.wait_with_output().unwrap()));
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(page.contains("# TYPE echogate_ping_rtt_seconds histogram\n"), "{page}");
    assert!(page.contains("le=\"+Inf\"} 2\n"), "{page}");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(text.contains("--- 127.0.0.1 ping statistics ---\n"), "{text}");
}

/// Ends with the test, whichever way that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(lab: &Lab, command: &mut Command) -> Running {
    let child = lab.gateway().run(|| command.spawn()).unwrap();
    Running(child.unwrap_or_else(|error| panic!("{command:?}: {error}; see scripts/install-test-tools")))
}

/// Asks again and again until the page is as it should be.
fn until_page(lab: &Lab, port: u16, path: &str, so: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = lab.gateway().run(|| get((Ipv4Addr::LOCALHOST, port), path)).unwrap();
        if so(&page) {
            return page;
        }
        assert!(Instant::now() < deadline, "{path} is still: {page}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn promtool_and_a_real_prometheus_take_the_metrics() {
    let lab = scene();
    let mut ping = ordinary(
        env!("CARGO_BIN_EXE_echogate"),
        &[
            "ping",
            "--loop",
            "-i",
            "0.2",
            "--summary-only",
            "--prometheus",
            "127.0.0.1:9427",
            "127.0.0.1",
            "203.0.113.9",
        ],
    );
    let _ping = start(&lab, ping.stdout(Stdio::null()).stderr(Stdio::null()));
    let page = until_page(&lab, 9427, "/metrics", |page| {
        page.contains("echogate_ping_received_total{host=\"127.0.0.1\",address=\"127.0.0.1\"} 2")
    });

    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool; see scripts/install-test-tools");
    let body = page.split("\r\n\r\n").nth(1).unwrap().to_owned();
    promtool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let judged = promtool.wait_with_output().unwrap();
    // What it would rather have otherwise it tells with another code, too.
    assert_eq!((judged.status.code(), stderr(&judged).as_str()), (Some(0), ""), "{body}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prometheus.yml");
    let job = "scrape_configs:\n- job_name: ping\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['127.0.0.1:9427']\n";
    fs::write(&file, job).unwrap();
    let option = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let mut prometheus = Command::new("prometheus");
    prometheus
        .args([option("config.file", &file), option("storage.tsdb.path", &directory.path().join("data"))])
        .arg("--web.listen-address=127.0.0.1:9428");
    let _prometheus = start(&lab, prometheus.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let query = "/api/v1/query?query=echogate_ping_rtt_seconds_count%7Bhost%3D%22127.0.0.1%22%7D%20%3E%203";
    let answer = until_page(&lab, 9428, query, |page| page.contains("\"value\":["));
    assert!(answer.contains("\"job\":\"ping\""), "{answer}");
    until_page(&lab, 9428, "/api/v1/query?query=up%7Bjob%3D%22ping%22%7D%20%3D%3D%201", |page| {
        page.contains("\"value\":[")
    });
}

/// One request; empty if nobody listens yet.
fn get(at: (Ipv4Addr, u16), path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(at) else { return String::new() };
    let mut page = String::new();
    let asked = write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let _ = asked.and_then(|()| stream.read_to_string(&mut page));
    page
}
