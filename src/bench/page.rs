//! A record as one HTML page: it loads nothing from anywhere, runs no script, and follows the reader's light or dark.
//!
//! Written as XHTML would be (every element is closed), so that a test can check its form without a browser.

mod chart;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use self::chart::{Axis, Bar, Curve};
use super::doubts;
use super::figures::{self, CONTROL, Figure, Spread, grouped};
use super::record::{Participant, Purpose, Quantiles, Record, SHARES, Scenario, Step};
use super::table::traffic;

const STYLE: &str = include_str!("page/style.css");

/// The figures of the page's table.
const COLUMNS: [Figure; 16] = [
    Figure::Throughput,
    Figure::ThroughputShare,
    Figure::AddedCost,
    Figure::Pdr,
    Figure::Ndr,
    Figure::LightMedian,
    Figure::LightP99,
    Figure::BusyMedian,
    Figure::BusyP99,
    Figure::SaturatedP99,
    Figure::HalfP99,
    Figure::HalfP99Share,
    Figure::HeldLoss,
    Figure::HeldLossAdded,
    Figure::Memory,
    Figure::Waits,
];

/// The whole page.
pub fn html(record: &Record) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\" />\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\
         <title>Echogate bench</title><style>\n{STYLE}</style></head><body><main>\n"
    );
    page.push_str(&head(record));
    page.push_str(&doubtful(record));
    for (number, scenario) in figures::scenarios(record).iter().enumerate() {
        page.push_str(&charts(record, scenario, number == 0));
        page.push_str(&table(record, scenario));
    }
    page.push_str(&drops(record));
    page.push_str(&method(record));
    page + "</main></body></html>\n"
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            letter => safe.push(letter),
        }
    }
    safe
}

/// The colour of a contender.
fn class(contender: &str) -> &'static str {
    match contender {
        CONTROL => "control",
        "masquerade" => "masquerade",
        "pasta" => "pasta",
        "slirp4netns" => "slirp",
        name if name.ends_with("-1") => "ours-soft",
        _ => "ours",
    }
}

/// The same, and the line that tells ours apart.
fn curve_class(contender: &str) -> String {
    let line = match contender {
        name if name.contains("syscalls") => " dashed",
        name if name.contains("conntrack") => " dotted",
        _ => "",
    };
    format!("{}{line}", class(contender))
}

fn head(record: &Record) -> String {
    let machine = &record.machine;
    let kind = if machine.virtual_machine { "virtual machine" } else { "machine" };
    let mut text = format!(
        "<h1>Echogate bench</h1><p class=\"lead\">{} on a {kind} with {} CPUs ({}), Echogate {}. \
         Every reply was checked: client, sequence, source and payload.</p>\n",
        escaped(&machine.kernel),
        machine.cpus,
        escaped(&machine.cpu),
        escaped(&machine.echogate)
    );
    let Some(scenario) = figures::scenarios(record).into_iter().next() else { return text };
    let Some(best) = best_of_ours(record, &scenario) else { return text };
    let figure = |figure| figures::spread(record, best, &scenario, figure).map(|spread| (figure, spread.median));
    let tiles = [
        (figure(Figure::Throughput), "echoes a second through Echogate"),
        (
            figure(Figure::ThroughputShare).map(|(_, share)| (Figure::ThroughputShare, share)),
            "of what the lab carries without a gateway",
        ),
        (figure(Figure::AddedCost), "microseconds of CPU that an echo costs on top"),
        (figure(Figure::LightMedian), "microseconds for a single ping and its reply (p50)"),
    ];
    text.push_str("<div class=\"tiles\">");
    for (figure, words) in tiles {
        if let Some((figure, value)) = figure {
            let shown = match figure {
                Figure::ThroughputShare => format!("{:.0}%", value * 100.0),
                figure => figure.show(value),
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "<div class=\"tile\"><b>{shown}</b><span>{words}</span></div>");
        }
    }
    let _ = writeln!(text, "</div><p class=\"note\">The four above: <code>{}</code>.</p>", escaped(best));
    text
}

/// Echogate's contender with the highest throughput.
fn best_of_ours<'a>(record: &'a Record, scenario: &Scenario) -> Option<&'a str> {
    let median = |name: &str| figures::spread(record, name, scenario, Figure::Throughput).map(|spread| spread.median);
    let ours = record.contenders.iter().map(|contender| contender.name.as_str());
    ours.filter(|name| name.starts_with("echogate") && median(name).is_some())
        .max_by(|a, b| median(a).unwrap_or(0.0).total_cmp(&median(b).unwrap_or(0.0)))
}

fn doubtful(record: &Record) -> String {
    let mut text = "<div class=\"doubts\">".to_owned();
    for failure in record.failures() {
        let _ = writeln!(text, "<p class=\"fail\"><b>Failed.</b> {}</p>", escaped(&failure));
    }
    for warning in &record.warnings {
        let (cause, cure) = (escaped(&warning.cause), escaped(&warning.cure));
        let _ = writeln!(text, "<p class=\"doubt\">{cause}<br /><span>Cure: {cure}</span></p>");
    }
    text + "</div>\n"
}

fn charts(record: &Record, scenario: &Scenario, is_first: bool) -> String {
    let title = if is_first { "At a glance".to_owned() } else { traffic(record, scenario) };
    let mut text = format!("<h2>{}</h2>", escaped(&title));
    if is_first {
        let _ = write!(text, "<p class=\"note\">{}. Dots are rounds.</p>", escaped(&traffic(record, scenario)));
    }
    text.push_str("<div class=\"charts\">\n");
    let closed = "As many as come back, with a fixed number under way. More is better.";
    text.push_str(&bars(record, scenario, Figure::Throughput, "Throughput, echo/s", closed));
    let cost = "CPU time of the whole machine for each echo, minus the control's. Less is better.";
    text.push_str(&bars(record, scenario, Figure::AddedCost, "Added CPU, microseconds an echo", cost));
    text.push_str(&bars(
        record,
        scenario,
        Figure::Pdr,
        "Highest load that loses 0.5% at most, echo/s",
        "Found by search, confirmed by a longer load. More is better.",
    ));
    let light = [Purpose::Light, Purpose::OfPdr(0)];
    let alone = "An open loop that nobody notices, timed from when each request was due. Lower is better.";
    text.push_str(&latencies(record, scenario, &light, "A single ping", alone));
    let busy = "The same while every CPU of the machine has a thread that never waits.";
    text.push_str(&latencies(record, scenario, &[Purpose::LightBusy], "A single ping on a busy machine", busy));
    let full = "Round trips with the queues full: they measure the echoes under way as much as the gateway.";
    text.push_str(&latencies(record, scenario, &[Purpose::Saturation], "At saturation", full));
    text.push_str(&latencies(
        record,
        scenario,
        &[Purpose::OfPdr(50)],
        "At half of what each carries",
        "An open loop at 50% of each one's own PDR.",
    ));
    text.push_str(&latencies(
        record,
        scenario,
        &[Purpose::HalfOfMasquerades],
        "At half of what masquerade carries",
        "An open loop with the same load for all: half of the masquerade's PDR.",
    ));
    text.push_str(&bars(
        record,
        scenario,
        Figure::HeldLoss,
        "Lost of 80% of the own PDR, ppm",
        "Held for long. Less is better, and none of it counts that the control loses of the same load.",
    ));
    text.push_str(&loss(record, scenario));
    text + "</div>\n"
}

fn figure(title: &str, drawing: &str, caption: &str) -> String {
    format!("<figure><h2>{}</h2><figcaption>{}</figcaption>{drawing}</figure>\n", escaped(title), escaped(caption))
}

fn bars(record: &Record, scenario: &Scenario, of: Figure, title: &str, caption: &str) -> String {
    let bar = |contender: &Participant| {
        let rounds = figures::values(record, &contender.name, scenario, of);
        let spread = Spread::of(rounds.clone())?;
        let (name, class) = (contender.name.clone(), class(&contender.name));
        Some(Bar { name, class, spread, rounds, shown: of.show(spread.median) })
    };
    let is_zero = |contender: &&Participant| of == Figure::AddedCost && contender.name == CONTROL;
    let bars: Vec<Bar> = record.contenders.iter().filter(|contender| !is_zero(contender)).filter_map(bar).collect();
    if bars.is_empty() { String::new() } else { figure(title, &chart::bars(&bars), caption) }
}

/// Times by the share of echoes that did not exceed them: medians of the rounds.
fn latencies(record: &Record, scenario: &Scenario, purposes: &[Purpose], title: &str, caption: &str) -> String {
    let curve = |contender: &Participant| {
        let trials = figures::trials(record, &contender.name, scenario);
        let steps: Vec<&Step> =
            trials.filter_map(|trial| purposes.iter().find_map(|purpose| trial.step(*purpose))).collect();
        let fewest = steps.iter().map(|step| step.received).min()?;
        let known = SHARES.iter().filter(|share| **share >= 0.5 && says_something(**share, fewest));
        let points: Vec<(f64, f64)> = known
            .filter_map(|share| {
                let at = |times: &Quantiles| times.at(*share);
                let times = steps.iter().filter_map(|step| at(&step.round_trip_us)).collect();
                Some((*share, Spread::of(times)?.median))
            })
            .collect();
        let class = curve_class(&contender.name);
        (!points.is_empty()).then(|| Curve { name: contender.name.clone(), class, points })
    };
    let curves: Vec<Curve> = record.contenders.iter().filter_map(curve).collect();
    if curves.is_empty() {
        return String::new();
    }
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let most = points().map(|(share, _)| *share).fold(0.5, f64::max);
    let across = Axis::nines("of the echoes were answered within", most);
    let up = Axis::log("", points().map(|(_, micros)| *micros), micros);
    figure(title, &chart::curves(&curves, &across, &up), caption)
}

/// Whether at least one of so many echoes lies beyond this share.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn says_something(share: f64, count: u64) -> bool {
    share < 1.0 && (1.0 - share) * count as f64 >= 1.0
}

/// `250 us`, `4 ms`.
fn micros(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} s", value / 1e6),
        value if value >= 1e3 => format!("{} ms", value / 1e3),
        value => format!("{value} us"),
    }
}

/// The shares lost of the loads of a search. What is lost nothing of lies on the bottom.
fn loss(record: &Record, scenario: &Scenario) -> String {
    const LEAST_PERCENT: f64 = 0.001;
    if doubts::control_loses(record) {
        return String::new();
    }
    let curve = |contender: &Participant| {
        let steps = figures::trials(record, &contender.name, scenario).flat_map(|trial| &trial.steps);
        let searched = steps.filter(|step| matches!(step.purpose, Purpose::Search | Purpose::Confirmation));
        let mut points: Vec<(f64, f64)> =
            searched.map(|step| (sent_per_s(step), (step.loss() * 100.0).max(LEAST_PERCENT))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let class = curve_class(&contender.name);
        (!points.is_empty()).then(|| Curve { name: contender.name.clone(), class, points })
    };
    let curves: Vec<Curve> = record.contenders.iter().filter_map(curve).collect();
    if curves.is_empty() {
        return String::new();
    }
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = Axis::log("echoes sent a second", points().map(|(per_s, _)| *per_s), grouped);
    let up =
        Axis::log("", points().map(|(_, percent)| *percent).chain([LEAST_PERCENT, 100.0]), |value| format!("{value}%"));
    figure(
        "Loss by load",
        &chart::curves(&curves, &across, &up),
        "What was really sent, and the share that never came back.",
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn sent_per_s(step: &Step) -> f64 {
    step.sent as f64 * 1e6 / step.elapsed_us.max(1) as f64
}

fn table(record: &Record, scenario: &Scenario) -> String {
    let spread = |contender: &Participant, figure: Figure| {
        let is_the_measure = contender.name == CONTROL && figure.is_against_control();
        figures::spread(record, &contender.name, scenario, figure).filter(|_| !is_the_measure)
    };
    let has_values = |figure: &Figure| record.contenders.iter().any(|contender| spread(contender, *figure).is_some());
    let columns: Vec<Figure> = COLUMNS.into_iter().filter(has_values).collect();
    let mut text = "<div class=\"panel\"><table><thead><tr><th>median (least .. most)</th>".to_owned();
    for figure in &columns {
        let _ = write!(text, "<th>{}</th>", escaped(figure.name()));
    }
    text.push_str("</tr></thead><tbody>\n");
    for contender in &record.contenders {
        if columns.iter().all(|figure| spread(contender, *figure).is_none()) {
            continue;
        }
        let (name, description) = (escaped(&contender.name), escaped(&contender.description));
        let _ = write!(text, "<tr class=\"{}\"><td>{name}<small>{description}</small></td>", class(&contender.name));
        for figure in &columns {
            let cell = spread(contender, *figure).map_or_else(
                || "-".to_owned(),
                |Spread { median, least, most }| {
                    let [median, least, most] = [median, least, most].map(|value| figure.show(value));
                    format!("{median}<small>{least} .. {most}</small>")
                },
            );
            let _ = write!(text, "<td>{cell}</td>");
        }
        text.push_str("</tr>\n");
    }
    text + "</tbody></table></div>\n"
}

/// Where packets were thrown away, all loads of a contender together.
fn drops(record: &Record) -> String {
    let mut found: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for trial in &record.trials {
        for (place, count) in trial.steps.iter().flat_map(|step| &step.drops) {
            *found.entry((&trial.contender, place)).or_default() += count;
        }
    }
    if found.is_empty() {
        return "<p class=\"note\">No queue, device or socket on the way threw a packet away.</p>\n".to_owned();
    }
    let mut text =
        "<div class=\"panel\"><h2>Packets thrown away, by place</h2><table class=\"places\"><tbody>".to_owned();
    for ((contender, place), count) in found {
        let count = grouped(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        let _ = writeln!(text, "<tr><td>{}</td><td>{}</td><td>{count}</td></tr>", escaped(contender), escaped(place));
    }
    text + "</tbody></table></div>\n"
}

fn method(record: &Record) -> String {
    let machine = &record.machine;
    let mut facts = vec![
        ("Began".to_owned(), began(record.started_unix_s)),
        ("Kernel".to_owned(), machine.kernel.clone()),
        ("CPU".to_owned(), format!("{} x {}", machine.cpus, machine.cpu)),
        ("Memory".to_owned(), format!("{} MiB", machine.memory_bytes >> 20)),
        ("Echogate".to_owned(), format!("{}, {} build", machine.echogate, machine.build)),
    ];
    facts.extend(machine.programs.iter().map(|(name, version)| (name.clone(), version.clone())));
    facts.extend(machine.mitigations.iter().map(|(name, answer)| (name.replace('_', " "), answer.clone())));
    let mut text = "<div class=\"panel\"><h2>How it was measured</h2>\
        <p>Clients, gateway and remotes are network namespaces on one machine, joined by veth pairs, and share its CPUs; each \
        trial has a lab of its own. Contenders take turns; only ratios inside one run count. CPU time is the whole machine's, \
        softirqs and kernel threads included.</p><dl>"
        .to_owned();
    for (name, fact) in facts {
        let _ = write!(text, "<dt>{}</dt><dd>{}</dd>", escaped(&name), escaped(&fact));
    }
    text + "</dl></div>\n"
}

fn began(unix_s: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record_of;
    use super::super::warning::{Doubt, Warning};
    use super::*;

    /// Asserts that every element is closed, in order, and that no bare `<` or `&` stands anywhere.
    fn assert_well_formed(page: &str) {
        let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("it begins with its type");
        let mut open = Vec::new();
        while let Some(at) = rest.find(['<', '&']) {
            rest = &rest[at..];
            if let Some(entity) = rest.strip_prefix('&') {
                let (name, _) = entity.split_once(';').expect("an entity ends");
                assert!(["amp", "lt", "gt", "quot"].contains(&name), "&{name}");
                rest = &rest[1..];
                continue;
            }
            let (tag, after) = rest[1..].split_once('>').expect("a tag ends");
            rest = after;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "before {:.60}", after);
            } else if !tag.ends_with('/') {
                let name = tag.split(' ').next().expect("a name");
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                open.push(name);
            }
        }
        assert!(open.is_empty(), "not closed: {open:?}");
    }

    #[test]
    fn the_time_is_one_that_people_read() {
        assert_eq!(began(1_700_000_000), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn the_page_is_well_formed_whatever_names_and_causes_say() {
        let mut record = record_of(&[150_000, 160_000, 155_000]);
        record.machine.cpu = "<b>\"fast\" & \"cheap\"</b>".to_owned();
        record.warnings = vec![Warning::new(Doubt::Steal, "<1% & more", "\"none\"")];
        record.trials[1].steps[1].altered = 1;
        record.trials[1].steps[1].drops.insert("gateway: <wan>".to_owned(), 3);
        let page = html(&record);
        assert_well_formed(&page);
        assert!(page.contains("&lt;1% &amp; more") && page.contains("replies were altered"));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_no_script_runs() {
        let page = html(&record_of(&[150_000]));
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["://", "src=", "href=", "<script", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn every_contender_is_in_every_chart_and_in_the_table() {
        let page = html(&record_of(&[150_000, 160_000, 155_000]));
        for title in ["Throughput, echo/s", "Added CPU, microseconds an echo", "A single ping", "At saturation"] {
            let drawing = page.split(title).nth(1).and_then(|rest| rest.split("</figure>").next()).expect(title);
            for name in ["echogate-uring-2", "masquerade"] {
                assert!(drawing.contains(name), "{title} lacks {name}");
            }
        }
        let table = page.split("<tbody>").nth(1).expect("a table");
        assert!(["control", "echogate-uring-2", "masquerade"].iter().all(|name| table.contains(name)));
    }

    #[test]
    fn loss_by_load_is_shown_of_a_search_unless_the_control_loses() {
        let mut record = record_of(&[150_000]);
        assert!(!html(&record).contains("Loss by load"));
        let mut searched = record.trials[1].steps[1].clone();
        (searched.purpose, searched.asked_per_s, searched.lost) = (Purpose::Search, Some(200_000), 1000);
        record.trials[1].steps.push(searched);
        assert!(html(&record).contains("Loss by load"));
        record.trials[0].steps[1].lost = 5;
        assert!(!html(&record).contains("Loss by load"));
    }

    #[test]
    fn a_record_without_trials_is_still_a_page() {
        let mut record = record_of(&[150_000]);
        record.trials.clear();
        assert_well_formed(&html(&record));
    }

    #[test]
    fn a_share_is_drawn_only_if_an_echo_lies_beyond_it() {
        assert!(says_something(0.99, 1000) && says_something(0.999, 1100) && !says_something(0.9999, 1000));
        assert!(!says_something(1.0, u64::MAX));
    }
}
