//! Debian's Prometheus scrapes a gateway that serves; every query of the dashboard and of the alerts is put to it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::process::Echogate;
use crate::scene::{Scene, Setup, wait_until};
use crate::serves::limits_off;
use crate::web::{METRICS, get, metrics_flags};

const PROMETHEUS: &str = "127.0.0.1:9090";

/// A process of ours, ended with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// The queries of every panel.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(packaging("grafana-dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let queries = targets.map(|target| target["expr"].as_str().expect("a query"));
    // As Grafana does when all gateways are chosen, and for a window of some scrapes.
    queries.map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "15s")).collect()
}

/// The names of metrics in a query.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("echogate_")).map(str::to_owned).collect()
}

#[test]
fn every_query_of_the_dashboard_and_of_the_alerts_is_answered_by_a_real_prometheus() {
    let scene = Scene::new(1);
    let setup = Setup { io: "auto", workers: 2 };
    let gateway = Echogate::serve(scene.gateway(), &[scene.arguments(&setup), metrics_flags(), limits_off()].concat());
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("prometheus.yml");
    let rules = packaging("alerts.yml");
    let mut text = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n".to_owned();
    let _ = writeln!(text, "rule_files: [{:?}]", rules.display().to_string());
    let _ = writeln!(text, "scrape_configs: [{{job_name: echogate, static_configs: [{{targets: [\"{METRICS}\"]}}]}}]");
    fs::write(&config, text).expect("a file");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.args([format!("--web.listen-address={PROMETHEUS}"), "--log.level=error".to_owned()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = scene.gateway().run(|| command.spawn()).expect("a namespace");
    let prometheus = Prometheus(child.expect("prometheus runs; remedy: scripts/test installs it"));

    let ask = |query: &str| -> Option<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, body) = get(scene.gateway(), PROMETHEUS, &format!("/api/v1/query?query={encoded}")).ok()?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        // While it starts it has no answers yet.
        if status == 503 {
            return None;
        }
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{query}: {body}");
        Some(answer["data"]["result"].clone())
    };
    let is_answered = |query: &str| {
        let result = ask(query);
        // A quotient of nothing by nothing is an answer without a meaning.
        let values = result.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        !values.is_empty() && values.iter().all(|value| value["value"][1] != "NaN")
    };
    // Pings, so that there is something to see, until everything is.
    let remote: Ipv4Addr = scene.remote(0);
    let ping = || assert!(scene.ping(0, &format!("-q -f -c 500 {remote}")).all_came_back(500));
    wait_until("it answers", || ask("1").is_some());
    wait_until("it has scraped some times, while there were pings", || {
        ping();
        is_answered("count_over_time(echogate_workers[15s]) > 3")
    });
    let mut asked = 0;
    for query in dashboard() {
        ping();
        wait_until(&format!("an answer to {query}"), || is_answered(&query));
        asked += 1;
    }
    assert!(asked > 25, "{asked} queries only");

    // The alerts say nothing about a gateway that is well; but what they ask about exists, and their rules can be evaluated.
    let (_, body) = get(scene.gateway(), PROMETHEUS, "/api/v1/rules").expect("it answers");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let rules = answer["data"]["groups"][0]["rules"].as_array().expect("rules");
    assert!(rules.len() >= 10, "{body}");
    for rule in rules {
        assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
        let query = rule["query"].as_str().expect("a query");
        ask(query).expect("an answer");
        for metric in metrics_in(query) {
            assert!(is_answered(&format!("count({metric})")), "{query}: there is no {metric}");
        }
    }
    drop(prometheus);
    gateway.stop();
}

#[test]
fn each_alert_fires_when_it_should_and_only_then() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts-test.yml"]] {
        let mut command = Command::new("promtool");
        let output = command.args(arguments).current_dir(packaging("")).output();
        let output = output.expect("promtool runs; remedy: scripts/test installs it");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}
