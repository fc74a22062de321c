//! The packaged dashboard as Grafana reads it.

use std::fs;

use serde_json::Value;

use super::packaging;

pub(super) struct Panel {
    pub(super) title: String,
    pub(super) description: String,
    pub(super) kind: String,
    pub(super) unit: String,
    /// Values that are shown as words.
    pub(super) words: Vec<(String, String)>,
    /// A number that stands for its series' name.
    pub(super) shows_name: bool,
    pub(super) place: Place,
    pub(super) targets: Vec<Target>,
}

/// In the grid's units.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

pub(super) struct Target {
    pub(super) query: String,
    legend: String,
}

impl Target {
    /// What the legend calls a series with these labels; an error is a label that it lacks.
    pub(super) fn legend(&self, labels: &Value) -> Result<String, String> {
        let mut parts = self.legend.split("{{");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (label, rest) = part.split_once("}}").ok_or("it is not closed")?;
            text += labels[label].as_str().ok_or_else(|| label.to_owned())?;
            text += rest;
        }
        Ok(text)
    }
}

/// Its panels, with the queries as Grafana sends them when all gateways are chosen, for a window of some scrapes.
pub(super) fn panels() -> Vec<Panel> {
    let text = fs::read_to_string(packaging("grafana-dashboard.json")).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    dashboard["panels"].as_array().expect("panels").iter().map(panel).collect()
}

fn panel(panel: &Value) -> Panel {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let defaults = &panel["fieldConfig"]["defaults"];
    let [x, y, width, height] = ["x", "y", "w", "h"].map(|member| panel["gridPos"][member].as_f64().expect("a place"));
    let mappings = defaults["mappings"].as_array().into_iter().flatten();
    let words = mappings.flat_map(|mapping| mapping["options"].as_object().into_iter().flatten());
    let target = |target: &Value| Target {
        query: text(&target["expr"]).replace("$instance", ".*").replace("$__rate_interval", "15s"),
        legend: text(&target["legendFormat"]),
    };
    Panel {
        title: text(&panel["title"]),
        description: text(&panel["description"]),
        kind: text(&panel["type"]),
        unit: text(&defaults["unit"]),
        words: words.map(|(value, shown)| (value.clone(), text(&shown["text"]))).collect(),
        shows_name: panel["options"]["textMode"] == "name",
        place: Place { x, y, width, height },
        targets: panel["targets"].as_array().expect("targets").iter().map(target).collect(),
    }
}
