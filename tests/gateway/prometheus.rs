//! Debian's Prometheus scrapes a gateway that serves; every query of the dashboard and of the alerts is put to it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::Echogate;
use crate::scene::{Scene, Setup, wait_until};
use crate::serves::limits_off;
use crate::web::{METRICS, get, metrics_flags};

const PROMETHEUS: &str = "127.0.0.1:9090";

/// A process of ours, ended with the test.
pub(crate) struct Prometheus<'scene> {
    scene: &'scene Scene,
    child: Child,
    _directory: TempDir,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Prometheus<'_> {
    /// Scrapes the gateway of the scene every second, with the packaged alerts.
    pub(crate) fn start(scene: &Scene) -> Prometheus<'_> {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("prometheus.yml");
        let rules = packaging("alerts.yml");
        let mut text = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n".to_owned();
        let _ = writeln!(text, "rule_files: [{:?}]", rules.display().to_string());
        let _ =
            writeln!(text, "scrape_configs: [{{job_name: echogate, static_configs: [{{targets: [\"{METRICS}\"]}}]}}]");
        fs::write(&config, text).expect("a file");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.args([format!("--web.listen-address={PROMETHEUS}"), "--log.level=error".to_owned()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = scene.gateway().run(|| command.spawn()).expect("a namespace");
        let child = child.expect("prometheus runs; remedy: scripts/test installs it");
        Prometheus { scene, child, _directory: directory }
    }

    pub(crate) fn ask(&self, query: &str) -> Option<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let (status, body) = get(self.scene.gateway(), PROMETHEUS, &path).ok()?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        // While it starts it has no answers yet.
        if status == 503 {
            return None;
        }
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{query}: {body}");
        Some(answer["data"]["result"].clone())
    }

    pub(crate) fn is_answered(&self, query: &str) -> bool {
        let result = self.ask(query);
        // A quotient of nothing by nothing is an answer without a meaning.
        let values = result.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        !values.is_empty() && values.iter().all(|value| value["value"][1] != "NaN")
    }

    /// Puts every query of the dashboard and of the alerts to it: panels, queries and answers. `ping` makes something to see.
    pub(crate) fn answers(&self, ping: impl Fn()) -> Vec<Answer> {
        wait_until("it answers", || self.ask("1").is_some());
        wait_until("it has scraped some times, while there were pings", || {
            ping();
            self.is_answered("count_over_time(echogate_workers[15s]) > 3")
        });
        let mut answers = Vec::new();
        for (panel, query) in dashboard() {
            ping();
            wait_until(&format!("an answer to {query}"), || self.is_answered(&query));
            let values = self.ask(&query).expect("it has been answered");
            answers.push(Answer { panel, query, values });
        }
        assert!(answers.len() > 25, "{} queries only", answers.len());

        // The alerts say nothing about a gateway that is well; but what they ask about exists, and their rules can be evaluated.
        let (_, body) = get(self.scene.gateway(), PROMETHEUS, "/api/v1/rules").expect("it answers");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let rules = answer["data"]["groups"][0]["rules"].as_array().expect("rules");
        assert!(rules.len() >= 10, "{body}");
        for rule in rules {
            assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
            let query = rule["query"].as_str().expect("a query");
            self.ask(query).expect("an answer");
            for metric in metrics_in(query) {
                assert!(self.is_answered(&format!("count({metric})")), "{query}: there is no {metric}");
            }
        }
        answers
    }
}

/// What a panel of the dashboard would show.
pub(crate) struct Answer {
    pub(crate) panel: String,
    pub(crate) query: String,
    pub(crate) values: Value,
}

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// The queries of every panel, under its title.
fn dashboard() -> Vec<(String, String)> {
    let text = fs::read_to_string(packaging("grafana-dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().expect("targets");
        targets.iter().map(move |target| (title.to_owned(), target["expr"].as_str().expect("a query")))
    });
    // As Grafana does when all gateways are chosen, and for a window of some scrapes.
    let asked = |query: &str| query.replace("$instance", ".*").replace("$__rate_interval", "15s");
    queries.map(|(panel, query)| (panel, asked(query))).collect()
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
    let prometheus = Prometheus::start(&scene);
    let remote: Ipv4Addr = scene.remote(0);
    prometheus.answers(|| assert!(scene.ping(0, &format!("-q -f -c 500 {remote}")).all_came_back(500)));
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
