//! The dashboard is complete and consistent with itself and with docs/metrics.md: what Grafana would show without a word, as an empty
//! panel, a wrong unit or a legend without its label. No root. What a Prometheus answers to its queries is
//! `tests/gateway/prometheus.rs`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The columns of Grafana's grid.
const COLUMNS: u64 = 24;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("packaging/grafana-dashboard.json")).expect("JSON")
}

/// Each metric with its labels, as docs/metrics.md has them (which a test compares with what is served).
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `echogate_"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<String>>();
    rows.map(|row| {
        let mut cells = row.split('|').skip(1).map(quoted);
        let name = cells.next().and_then(|names| names.into_iter().next()).expect("a name");
        (name, cells.next().expect("labels"))
    })
    .collect()
}

fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// The metric that a name in a query belongs to: a histogram's parts have names of their own.
fn family(name: &str) -> &str {
    ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)
}

fn metrics(query: &str) -> Vec<&str> {
    words(query).filter(|word| word.starts_with("echogate_")).collect()
}

/// The labels that an answer has: those that it is summed by, or else the metric's own.
fn labels(query: &str, documented: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    if let Some((_, rest)) = query.split_once(" by (") {
        let list = rest.split(')').next().unwrap_or_default();
        return list.split(',').map(|label| label.trim().to_owned()).collect();
    }
    if query.starts_with("min(") || query.starts_with("sum(") {
        return BTreeSet::new();
    }
    let own = metrics(query).into_iter().filter_map(|name| documented.get(family(name)));
    own.flatten().cloned().chain(["instance".to_owned()]).collect()
}

/// The units that say what a query's answer is.
fn units(query: &str) -> &'static [&'static str] {
    let of = |part: &str| metrics(query).iter().all(|name| name.contains(part));
    if query.contains(" / ") {
        &["percentunit"]
    } else if of("_seconds") {
        &["s"]
    } else if !query.contains("rate(") {
        &["short"]
    } else if of("_bytes_") {
        &["Bps"]
    } else if of("_packets_") || of("_requests_") || of("_echoes_") {
        &["pps", "cps"]
    } else {
        &["cps"]
    }
}

fn text<'value>(value: &'value Value, member: &str) -> &'value str {
    value[member].as_str().unwrap_or_default()
}

fn list<'value>(value: &'value Value, member: &str) -> &'value [Value] {
    value[member].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Everything that is wrong with a dashboard.
fn faults(dashboard: &Value, documented: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    let variables = list(&dashboard["templating"], "list");
    for (name, kind) in [("datasource", "datasource"), ("instance", "query")] {
        if !variables.iter().any(|variable| text(variable, "name") == name && text(variable, "type") == kind) {
            faults.push(format!("there is no variable {name}"));
        }
    }
    let (mut titles, mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in list(dashboard, "panels") {
        let title = text(panel, "title");
        let mut says = |fault: &str| faults.push(format!("{title}: {fault}"));
        if title.is_empty() || !titles.insert(title) {
            says("no title of its own");
        }
        if !ids.insert(panel["id"].as_u64()) {
            says("no id of its own");
        }
        if !text(panel, "description").ends_with('.') {
            says("no description");
        }
        let place = ["x", "y", "w", "h"].map(|member| panel["gridPos"][member].as_u64().unwrap_or(0));
        let [x, y, width, height] = place;
        if width == 0 || height == 0 || x + width > COLUMNS {
            says("it is not on the grid");
        }
        let own = (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y)));
        if own.filter(|cell| !cells.insert(*cell)).count() > 0 {
            says("it lies over another");
        }
        let defaults = &panel["fieldConfig"]["defaults"];
        match text(panel, "type") {
            // From nought, or a change of a percent fills the panel.
            "timeseries" if defaults["min"] != 0 => says("its axis does not begin at 0"),
            // Grafana's own steps colour every number from 80 up red.
            "stat" if text(&defaults["color"], "mode") != "fixed" && defaults["thresholds"].is_null() => {
                says("it has neither one colour nor thresholds");
            }
            "timeseries" | "stat" => {}
            _ => says("its type is unknown"),
        }
        let (unit, targets) = (text(defaults, "unit"), list(panel, "targets"));
        if ["pps", "cps", "Bps"].contains(&unit) != title.contains("a second") {
            says("its unit and its title differ on whether it is a rate");
        }
        if targets.is_empty() {
            says("it asks nothing");
        }
        let with_source = |value: &Value| text(&value["datasource"], "uid") == "${datasource}";
        if !with_source(panel) || !targets.iter().all(with_source) {
            says("it has a data source that nobody chose");
        }
        let distinct = |member| targets.iter().map(|target| text(target, member)).collect::<BTreeSet<_>>().len();
        if distinct("refId") < targets.len() || distinct("legendFormat") < targets.len() {
            says("two queries have one name");
        }
        for target in targets {
            let (query, legend) = (text(target, "expr"), text(target, "legendFormat"));
            faults.extend(query_faults(query, documented).iter().map(|fault| format!("{title}: {fault}: {query}")));
            let mut says = |fault: &str| faults.push(format!("{title}: {fault}: {query}"));
            if !units(query).contains(&unit) {
                says(&format!("it is not in {unit}"));
            }
            let has = labels(query, documented);
            let shown = legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
            for label in shown.filter(|label| !has.contains(*label)) {
                says(&format!("the legend names {label}, which the answer lacks"));
            }
            if legend.is_empty() {
                says("it has no legend");
            }
        }
    }
    // Rows without a hole.
    let bottom = cells.iter().map(|(_, y)| y + 1).max().unwrap_or(0);
    if u64::try_from(cells.len()).unwrap_or(u64::MAX) < bottom * COLUMNS {
        faults.push("there are holes between the panels".to_owned());
    }
    faults
}

fn query_faults(query: &str, documented: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    let asked = metrics(query);
    if asked.is_empty() {
        faults.push("it asks for no metric".to_owned());
    }
    for name in &asked {
        if !documented.contains_key(family(name)) {
            faults.push(format!("docs/metrics.md has no {name}"));
        }
        let is_counter = name.ends_with("_total") || name.ends_with("_bucket");
        if query.contains(&format!("rate({name}")) != is_counter {
            faults.push(format!("{name} is a rate if and only if it is a counter"));
        }
        if !query.contains(&format!("{name}{{instance=~\"$instance\"")) {
            faults.push(format!("{name} is asked of gateways that were not chosen"));
        }
    }
    // Grafana makes this one at least four scrapes long.
    let windows = query.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    if windows.into_iter().any(|window| window != "$__rate_interval") {
        faults.push("its window may have less than two scrapes in it".to_owned());
    }
    faults
}

#[test]
fn every_panel_has_a_title_words_a_unit_a_legend_and_a_place_and_asks_for_metrics_that_there_are() {
    let (dashboard, documented) = (dashboard(), documented());
    assert!(documented.len() > 20 && list(&dashboard, "panels").len() > 10);
    let faults = faults(&dashboard, &documented);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The same dashboard with one thing wrong.
fn spoiled(spoil: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut dashboard = dashboard();
    spoil(&mut dashboard);
    faults(&dashboard, &documented())
}

#[test]
fn each_kind_of_fault_in_a_dashboard_is_seen() {
    /// The panel of packets: rates of two labels, in four queries.
    fn packets(dashboard: &mut Value) -> &mut Value {
        let panels = dashboard["panels"].as_array_mut().expect("panels");
        panels.iter_mut().find(|panel| panel["title"] == "Packets a second").expect("that panel")
    }
    fn query(dashboard: &mut Value) -> &mut Value {
        &mut packets(dashboard)["targets"][0]["expr"]
    }
    fn replaced(value: &mut Value, from: &str, to: &str) {
        let text = value.as_str().expect("text");
        assert!(text.contains(from), "{text}");
        *value = text.replace(from, to).into();
    }
    type Spoil = fn(&mut Value);
    let cases: [(&str, Spoil); 19] = [
        ("there is no variable instance", |all| all["templating"]["list"][1]["name"] = "host".into()),
        ("no title of its own", |all| packets(all)["title"] = "Round trip".into()),
        ("no id of its own", |all| packets(all)["id"] = 1.into()),
        ("no description", |all| packets(all)["description"] = "".into()),
        ("it is not on the grid", |all| packets(all)["gridPos"]["w"] = 25.into()),
        ("it lies over another", |all| packets(all)["gridPos"]["y"] = 3.into()),
        ("there are holes", |all| packets(all)["gridPos"]["h"] = 7.into()),
        ("its axis does not begin at 0", |all| packets(all)["fieldConfig"]["defaults"]["min"] = Value::Null),
        ("neither one colour nor thresholds", |all| all["panels"][1]["fieldConfig"]["defaults"]["color"] = Value::Null),
        ("its type is unknown", |all| packets(all)["type"] = "graph".into()),
        ("its unit and its title differ", |all| packets(all)["title"] = "Packets".into()),
        ("it asks nothing", |all| packets(all)["targets"] = json!([])),
        ("a data source that nobody chose", |all| packets(all)["targets"][1]["datasource"]["uid"] = "mine".into()),
        ("two queries have one name", |all| packets(all)["targets"][1]["refId"] = "A".into()),
        ("it is not in Bps", |all| packets(all)["fieldConfig"]["defaults"]["unit"] = "Bps".into()),
        ("the legend names side", |all| packets(all)["targets"][0]["legendFormat"] = "{{side}}".into()),
        ("docs/metrics.md has no echogate_put", |all| replaced(query(all), "echogate_sent", "echogate_put")),
        ("if and only if it is a counter", |all| replaced(query(all), "rate(", "max(")),
        ("less than two scrapes", |all| replaced(query(all), "$__rate_interval", "2s")),
    ];
    for (expected, spoil) in cases {
        let faults = spoiled(spoil);
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:#?}");
    }
    let unchosen = spoiled(|all| replaced(query(all), "instance=~\"$instance\",", ""));
    assert!(unchosen.iter().any(|fault| fault.contains("were not chosen")), "{unchosen:#?}");
    let silent = spoiled(|all| packets(all)["targets"][0]["legendFormat"] = "".into());
    assert!(silent.iter().any(|fault| fault.contains("no legend")), "{silent:#?}");
}
