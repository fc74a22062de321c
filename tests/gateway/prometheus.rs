//! Debian's Prometheus scrapes a gateway that serves; every query of the dashboard and of the alerts is put to it, and what it answers
//! over a time is drawn.

mod dashboard;
mod picture;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use echogate::lab::LabOptions;
use echogate::lab::load::{self, LoadOptions};
use serde_json::Value;
use tempfile::TempDir;

use self::dashboard::{Panel, Target, panels};
use self::picture::Series;
use crate::process::Echogate;
use crate::restarts::setting;
use crate::scene::{Scene, Setup, nft, wait_until};
use crate::sys;
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
        self.ask_for("query", query, "")
    }

    fn ask_for(&self, what: &str, query: &str, more: &str) -> Option<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/{what}?query={encoded}{more}");
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
        for Panel { title, targets, .. } in panels() {
            for Target { query, .. } in targets {
                ping();
                wait_until(&format!("an answer to {query}"), || self.is_answered(&query));
                let values = self.ask(&query).expect("it has been answered");
                answers.push(Answer { panel: title.clone(), query, values });
            }
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

    /// The dashboard as a picture of the last so many seconds. Every query has an answer there, with all that its legend names.
    pub(crate) fn picture(&self, seconds: u32) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
        let begin = now - f64::from(seconds);
        let panels = panels();
        let drawn: Vec<(&Panel, Vec<Series>)> = panels
            .iter()
            .map(|panel| {
                let series = panel.targets.iter().flat_map(|target| self.series(panel, target, begin, now)).collect();
                (panel, series)
            })
            .collect();
        picture::draw(&drawn, f64::from(seconds))
    }

    fn series(&self, panel: &Panel, target: &Target, begin: f64, end: f64) -> Vec<Series> {
        let about = format!("{}: {}", panel.title, target.query);
        // As many points as a panel of a few hundred pixels shows.
        let step = ((end - begin) / 120.0).max(1.0);
        let times = format!("&start={begin:.3}&end={end:.3}&step={step:.3}");
        let answer = self.ask_for("query_range", &target.query, &times).expect("it has answered before");
        let answers = answer.as_array().expect("a list");
        assert!(!answers.is_empty(), "an empty panel: {about}");
        let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).expect("a number");
        let series = answers.iter().map(|answer| {
            let legend = target.legend(&answer["metric"]);
            let legend = legend.unwrap_or_else(|label| panic!("{about}: no label {label} in {}", answer["metric"]));
            let values = answer["values"].as_array().expect("values");
            let points = values.iter().map(|value| (value[0].as_f64().expect("a time") - begin, number(&value[1])));
            let points: Vec<(f64, f64)> = points.collect();
            assert!(points.iter().any(|(_, value)| value.is_finite()), "nothing to draw: {about}");
            Series { legend, points }
        });
        let series: Vec<Series> = series.collect();
        let legends: BTreeSet<&str> = series.iter().map(|series| series.legend.as_str()).collect();
        assert_eq!(legends.len(), series.len(), "two series have one legend: {about}: {legends:?}");
        series
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

/// The names of metrics in a query.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("echogate_")).map(str::to_owned).collect()
}

/// Says so when it is dropped, also by a panic.
struct WhenDropped<'a>(&'a AtomicBool);

impl Drop for WhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A gateway's day in some seconds: pings all the time, some to where nobody may ping and some that a router answers; then a client
/// that floods, a packet process that is killed, and remotes that answer no more.
fn weather(scene: &Scene, gateway: &Echogate, seconds: u32) {
    let part = Duration::from_secs(u64::from(seconds)) / 4;
    let load = |client: usize, rate: u64, duration: Duration| {
        let options = LoadOptions {
            duration,
            rate: Some(rate),
            window: 4096,
            idents: 20,
            one_remote_an_ident: true,
            reply_timeout: Duration::from_millis(200),
            ..LoadOptions::default()
        };
        let (client, remotes) = (&scene.lab().clients()[client..=client], &scene.lab().remotes()[..2]);
        load::run(client, remotes, &options, |_| ControlFlow::Continue(())).expect("it runs")
    };
    let over = AtomicBool::new(false);
    // Relaxed, here and below: nothing else goes with it. In rounds: a single ping of the scene's has a minute.
    let ping = |arguments: &str| {
        while !over.load(Ordering::Relaxed) {
            scene.ping(0, arguments);
        }
    };
    thread::scope(|scope| {
        let _over = WhenDropped(&over);
        let steady = scope.spawn(|| load(0, 600, 4 * part));
        scope.spawn(|| ping(&format!("-q -i 0.2 -c 10 {}", scene.remote(2))));
        scope.spawn(|| ping(&format!("-q -i 0.1 -t 2 -c 20 {}", scene.remote(0))));
        thread::sleep(part);
        load(1, 3000, part);
        sys::signal(gateway.packets_id(), libc::SIGKILL).expect("it runs");
        thread::sleep(part);
        let silent = format!(
            "add table ip t\nadd chain ip t c {{ type filter hook input priority 0; }}\nadd rule ip t c ip daddr {} drop\n",
            scene.remote(1)
        );
        nft(scene.internet(), &silent);
        steady.join().expect("it ends well");
    });
}

/// `ECHOGATE_DASHBOARD=FILE` keeps the picture, and `ECHOGATE_SECONDS` is how long it is made for.
#[test]
fn every_query_of_the_dashboard_and_of_the_alerts_is_answered_by_a_real_prometheus() {
    let seconds = setting("ECHOGATE_SECONDS", 4);
    let scene = Scene::with(&LabOptions { clients: 2, remotes: 3, routers: 1, ..LabOptions::default() });
    let setup = Setup { io: "auto", workers: 2 };
    let more = format!("--echo-timeout 2s --deny {}/32", scene.remote(2));
    let arguments = [scene.arguments(&setup), metrics_flags(), more.split(' ').map(str::to_owned).collect()].concat();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let prometheus = Prometheus::start(&scene);
    let remote: Ipv4Addr = scene.remote(0);
    prometheus.answers(|| {
        let pings = scene.pings(0, 50, remote, "-q");
        assert!(pings.all_came_back(50), "{}", pings.text);
        // Each is a mapping, of which a client may make a few at once and then some a second.
        thread::sleep(Duration::from_millis(100));
    });
    weather(&scene, &gateway, seconds);
    let picture = prometheus.picture(seconds + 10);
    for shown in ["remote_denied", "errors passed on", "all move", "worker 1"] {
        assert!(picture.contains(shown), "{shown} is not in the picture:\n{picture}");
    }
    if let Some(file) = env::var_os("ECHOGATE_DASHBOARD") {
        fs::write(file, &picture).expect("it can be written");
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
