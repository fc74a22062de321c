//! The dashboard as a picture: its panels at their places, with what a Prometheus answered drawn in their units. Not Grafana, and not
//! meant to be taken for it: what it shows is whether each question's answer is what its panel says, in a unit that fits.

use std::fmt::Write as _;

use super::dashboard::{Panel, Place};

/// What a query was answered over some time.
pub(super) struct Series {
    pub(super) legend: String,
    /// Seconds since the beginning, and values.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    fn values(&self) -> impl DoubleEndedIterator<Item = f64> + '_ {
        self.points.iter().map(|(_, value)| *value).filter(|value| value.is_finite())
    }

    fn last(&self) -> f64 {
        self.values().next_back().unwrap_or(f64::NAN)
    }

    fn max(&self) -> f64 {
        self.values().fold(0.0, f64::max)
    }
}

const COLUMN: f64 = 50.0;
const ROW: f64 = 32.0;
const LINE: f64 = 15.0;
const COLORS: [&str; 10] =
    ["#1f77b4", "#d95f02", "#2ca02c", "#c0392b", "#8e44ad", "#8c564b", "#d45087", "#7f7f7f", "#b5a300", "#17a2b8"];
/// A legend's lines beside a curve; the rest is counted.
const LEGENDS_MAX: usize = 5;

/// All panels. `seconds` is the time that the curves span.
pub(super) fn draw(panels: &[(&Panel, Vec<Series>)], seconds: f64) -> String {
    let bottom = panels.iter().map(|(panel, _)| panel.place.y + panel.place.height).fold(0.0, f64::max);
    let (width, height) = (24.0 * COLUMN, bottom * ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#f4f5f5\"/>\n"
    );
    for (panel, series) in panels {
        let Place { x, y, width, height } = panel.place;
        let (width, height) = (width * COLUMN - 6.0, height * ROW - 6.0);
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<g transform=\"translate({:.0} {:.0})\"><title>{}</title><rect width=\"{width}\" height=\"{height}\" fill=\"#fff\" \
             stroke=\"#d8d9da\"/><text x=\"8\" y=\"16\" font-weight=\"bold\">{}</text>",
            x * COLUMN + 3.0,
            y * ROW + 3.0,
            escaped(&panel.description),
            escaped(&panel.title),
        );
        match panel.kind.as_str() {
            "stat" => number(&mut svg, panel, series, (width, height)),
            _ => curves(&mut svg, panel, series, (width, height), seconds),
        }
        svg.push_str("</g>\n");
    }
    svg + "</svg>\n"
}

fn number(svg: &mut String, panel: &Panel, series: &[Series], (width, height): (f64, f64)) {
    for (position, series) in (0_u32..).zip(series) {
        let value = series.last();
        let mapped = panel.words.iter().find(|(mapped, _)| mapped.parse() == Ok(value)).map(|(_, words)| words.clone());
        let text = match mapped {
            Some(words) => words,
            None if panel.shows_name => series.legend.clone(),
            None => in_unit(value, &panel.unit),
        };
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"20\" text-anchor=\"middle\">{}</text>",
            width / 2.0,
            height / 2.0 + 18.0 + 22.0 * f64::from(position),
            escaped(&text)
        );
    }
}

fn curves(svg: &mut String, panel: &Panel, series: &[Series], (width, height): (f64, f64), seconds: f64) {
    let mut ranked: Vec<&Series> = series.iter().collect();
    ranked.sort_by(|one, other| other.max().total_cmp(&one.max()));
    let legends = u32::try_from(ranked.len().min(LEGENDS_MAX + 1)).expect("a few");
    let (left, top, right) = (66.0, 28.0, width - 10.0);
    let bottom = height - 22.0 - LINE * f64::from(legends);
    let most = ranked.first().map_or(0.0, |series| series.max());
    let most = if most > 0.0 { most * 1.08 } else { 1.0 };
    let x = |second: f64| left + (right - left) * second / seconds;
    let y = |value: f64| bottom - (bottom - top) * value / most;
    for part in [0.0, 0.5, 1.0] {
        let (at, value) = (y(part * most), in_unit(part * most, &panel.unit));
        let _ = write!(
            svg,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e4e5e6\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
            left - 5.0,
            at + 4.0,
        );
    }
    let _ = write!(svg, "<text x=\"{right}\" y=\"16\" text-anchor=\"end\" fill=\"#555\">{seconds:.0} s</text>");
    for (position, (series, color)) in ranked.iter().zip(COLORS.iter().cycle()).enumerate() {
        let finite = series.points.iter().filter(|(_, value)| value.is_finite());
        let points: Vec<String> = finite.map(|(second, value)| format!("{:.1},{:.1}", x(*second), y(*value))).collect();
        let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{color}\" points=\"{}\"/>", points.join(" "));
        let line = bottom + 16.0 + LINE * f64::from(u32::try_from(position).expect("a few"));
        if position < LEGENDS_MAX {
            let _ = write!(
                svg,
                "<rect x=\"8\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{color}\"/><text x=\"22\" y=\"{line:.1}\" \
                 font-size=\"10\">{}: {}, max {}</text>",
                line - 9.0,
                escaped(&series.legend),
                in_unit(series.last(), &panel.unit),
                in_unit(series.max(), &panel.unit),
            );
        } else if position == LEGENDS_MAX {
            let _ = write!(svg, "<text x=\"22\" y=\"{line:.1}\">and {} more</text>", ranked.len() - position);
        }
    }
}

/// As Grafana writes these units. Others are a fault of the dashboard's.
pub(super) fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "short" => scaled(value, &["", " K", " Mil"]),
        "pps" => scaled(value, &[" p/s", " kp/s", " Mp/s"]),
        "cps" => scaled(value, &[" c/s", " Kc/s", " Mc/s"]),
        "Bps" => scaled(value, &[" B/s", " kB/s", " MB/s", " GB/s"]),
        "percentunit" => format!("{:.1}%", value * 100.0),
        "s" => match value {
            86_400.0.. => format!("{:.1} days", value / 86_400.0),
            3600.0.. => format!("{:.1} hours", value / 3600.0),
            60.0.. => format!("{:.1} mins", value / 60.0),
            1.0.. => format!("{value:.1} s"),
            0.001.. => format!("{:.2} ms", value * 1e3),
            _ => format!("{:.0} µs", value * 1e6),
        },
        other => panic!("nobody knows how Grafana writes {other}"),
    }
}

fn scaled(value: f64, names: &[&str]) -> String {
    let (mut value, mut names) = (value, names.iter());
    let mut name = names.next().expect("one at least");
    while value >= 1000.0
        && let Some(next) = names.next()
    {
        (value, name) = (value / 1000.0, next);
    }
    match value {
        _ if value.fract() == 0.0 => format!("{value:.0}{name}"),
        100.0.. => format!("{value:.0}{name}"),
        10.0.. => format!("{value:.1}{name}"),
        _ => format!("{value:.2}{name}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
