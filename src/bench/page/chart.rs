//! Charts as SVG: bars with every round's value, and curves on log axes. Colours are classes of the page's style sheet, so
//! that they follow light and dark.

use std::fmt::Write as _;

use super::escaped;
use crate::bench::figures::Spread;

/// The drawing's width, in its own units; the page scales it.
const WIDTH: f64 = 520.0;
/// A bar's row.
const ROW: f64 = 28.0;
/// Room for names at the left of bars, and for values at their right.
const NAMES: f64 = 196.0;
const VALUES: f64 = 74.0;
/// The curves' plot: its height, and the room around it.
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) spread: Spread,
    pub(super) rounds: Vec<f64>,
    pub(super) shown: String,
}

/// One curve; points from left to right.
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) class: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// An axis: where values lie on it, from 0 to 1 (or outside), and its ticks with their words.
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) ticks: Vec<(f64, String)>,
    place: Box<dyn Fn(f64) -> f64>,
}

impl Axis {
    /// A log axis over at least these values, with as many ticks in each decade as there is room for.
    pub(super) fn log(title: &'static str, values: impl Iterator<Item = f64>, words: fn(f64) -> String) -> Axis {
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = if least > most { (1.0, 10.0) } else { (least, most.max(least * 1.5)) };
        let (low, high) = ((least * 0.8).log10(), (most * 1.2).log10());
        let steps: &[f64] = match high - low {
            wide if wide > 2.5 => &[1.0],
            narrow if narrow < 0.8 => &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let (mut ticks, mut decade) = (Vec::new(), 10_f64.powf(low.floor()));
        while decade.log10() <= high {
            ticks.extend(steps.iter().map(|step| step * decade).filter(|tick| (low..=high).contains(&tick.log10())));
            decade *= 10.0;
        }
        Axis {
            title,
            ticks: ticks.into_iter().map(|tick| (tick, words(tick))).collect(),
            place: Box::new(move |value| (value.max(f64::MIN_POSITIVE).log10() - low) / (high - low)),
        }
    }

    /// Shares from half on, such that each nine has the same room: 50%, 90%, 99%, 99.9%.
    pub(super) fn nines(title: &'static str, most: f64) -> Axis {
        let nines = |share: f64| -(1.0 - share.min(0.999_999)).log10();
        let (low, high) = (0.0, nines(most).max(2.0));
        let ticks = [(0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99"), (0.99999, "99.999")];
        Axis {
            title,
            ticks: ticks
                .into_iter()
                .filter(|(share, _)| nines(*share) <= high * 1.001)
                .map(|(share, words)| (share, format!("{words}%")))
                .collect(),
            place: Box::new(move |share| (nines(share) - low) / (high - low)),
        }
    }
}

/// Horizontal bars from 0, each with its median in words, its range and its rounds.
pub(super) fn bars(bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.spread.most).fold(f64::MIN_POSITIVE, f64::max);
    let room = WIDTH - NAMES - VALUES;
    let x = |value: f64| NAMES + room * (value / most).clamp(0.0, 1.0);
    let height = ROW * f64::from(u32::try_from(bars.len()).unwrap_or(u32::MAX)) + 8.0;
    let mut svg = open(height);
    for (number, bar) in (0_u32..).zip(bars) {
        let top = 4.0 + ROW * f64::from(number);
        let middle = top + ROW / 2.0;
        let name = escaped(&bar.name);
        let (median, least, right) = (x(bar.spread.median), x(bar.spread.least), x(bar.spread.most));
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<g class=\"{}\"><title>{name}: {}</title><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"bar\" x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\" />\
             <line class=\"range\" x1=\"{least:.1}\" x2=\"{right:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" />",
            bar.class,
            escaped(&bar.shown),
            NAMES - 10.0,
            middle + 4.0,
            top + 5.0,
            (median - NAMES).max(1.0),
            ROW - 10.0,
        );
        for value in &bar.rounds {
            let _ = write!(svg, "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2\" />", x(*value));
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            right.max(median) + 8.0,
            middle + 4.0,
            escaped(&bar.shown)
        );
    }
    svg + "</svg>"
}

/// Curves over a grid, and a legend.
pub(super) fn curves(curves: &[Curve], across: &Axis, up: &Axis) -> String {
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |value: f64| LEFT + width * (across.place)(value).clamp(0.0, 1.0);
    let y = |value: f64| TOP + height * (1.0 - (up.place)(value).clamp(0.0, 1.0));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut svg = open(HEIGHT);
    for (value, words) in &up.ticks {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" />\
             <text class=\"tick\" x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
            y(*value),
            LEFT - 6.0,
            y(*value) + 4.0,
            escaped(words)
        );
    }
    for (value, words) in &across.ticks {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" />\
             <text class=\"tick\" x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{2}</text>",
            x(*value),
            bottom + 16.0,
            escaped(words)
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\" />\
         <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        right,
        HEIGHT - 6.0,
        escaped(across.title)
    );
    for curve in curves {
        let name = escaped(&curve.name);
        let mut path = String::new();
        for (number, (across, up)) in curve.points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if number == 0 { "M" } else { " L" }, x(*across), y(*up));
        }
        let _ = write!(svg, "<g class=\"{}\"><title>{name}</title><path class=\"curve\" d=\"{path}\" />", curve.class);
        for (across, up) in &curve.points {
            let _ = write!(svg, "<circle class=\"point\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.4\" />", x(*across), y(*up));
        }
        svg.push_str("</g>");
    }
    svg.push_str("</svg><ul class=\"legend\">");
    for curve in curves {
        let _ = write!(svg, "<li class=\"key {}\"><i></i>{}</li>", curve.class, escaped(&curve.name));
    }
    svg + "</ul>"
}

fn open(height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_axis_gives_each_decade_the_same_room() {
        let axis = Axis::log("us", [10.0, 10_000.0].into_iter(), |value| format!("{value}"));
        let place = |value| (axis.place)(value);
        assert!((place(100.0) - place(10.0) - (place(1000.0) - place(100.0))).abs() < 1e-9);
        assert!(place(10.0) > 0.0 && place(10_000.0) < 1.0);
        let ticks: Vec<&str> = axis.ticks.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(ticks, ["10", "100", "1000", "10000"]);
        assert!(!Axis::log("us", std::iter::empty(), |value| format!("{value}")).ticks.is_empty());
    }

    #[test]
    fn each_nine_has_the_same_room() {
        let axis = Axis::nines("share", 0.999);
        let place = |share| (axis.place)(share);
        assert!((place(0.99) - place(0.9) - (place(0.999) - place(0.99))).abs() < 1e-9);
        assert_eq!(axis.ticks.len(), 4);
    }

    #[test]
    fn the_longest_bar_fills_the_room_and_none_is_longer() {
        let bar = |median: f64| Bar {
            name: "<a>".to_owned(),
            class: "ours",
            spread: Spread { median, least: median, most: median },
            rounds: vec![median],
            shown: "1 & 2".to_owned(),
        };
        let svg = bars(&[bar(10.0), bar(5.0), bar(-1.0)]);
        let widths: Vec<f64> =
            svg.split("width=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect();
        assert_eq!(widths, [WIDTH - NAMES - VALUES, (WIDTH - NAMES - VALUES) / 2.0, 1.0]);
        assert!(svg.contains("&lt;a&gt;") && svg.contains("1 &amp; 2") && !svg.contains("<a>"), "{svg}");
    }
}
