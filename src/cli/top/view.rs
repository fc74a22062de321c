//! What `top` shows.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use crate::cli::totals::grouped;
use crate::control::{Busy, RoundTrips, Stats};

/// Answers that are kept: what losses and round trips are told of is the time between the first and the last.
const KEPT: usize = 11;

/// The rows of drops at most, with their header and the one that is left free above it.
const DROPS_MAX: u16 = 9;

/// On a wider screen numbers would stand far from their names.
const WIDTH_MAX: u16 = 120;

/// The width of the counts; and of the states, which stand beside them if there is room, else below.
const RATES_WIDTH: u16 = 46;
const STATES_WIDTH: u16 = 32;
const RATES_HEIGHT: u16 = 8;
const STATES_HEIGHT: u16 = 7;

/// Who is busiest: fewer rows tell nothing.
const BUSY_MIN: u16 = 3;

/// Addresses, and two numbers of as many letters.
const ADDRESS_WIDTH: u16 = 15;
const NUMBER_WIDTH: u16 = 9;

/// A picture of a gateway.
pub(super) struct View {
    /// The last answers, the newest last; never empty.
    answers: VecDeque<Stats>,
    color: bool,
    held: bool,
    /// Why there is no newer answer.
    lost: Option<String>,
}

impl View {
    pub(super) fn new(first: Stats, color: bool) -> View {
        View { answers: VecDeque::from([first]), color, held: false, lost: None }
    }

    /// Holds it still, or lets it go on.
    pub(super) fn hold(&mut self) {
        self.held = !self.held;
    }

    pub(super) fn show(&mut self, stats: Stats) {
        self.lost = None;
        if self.held {
            return;
        }
        // Another process counts from zero.
        if self.answers.back().is_some_and(|last| stats.uptime_seconds < last.uptime_seconds) {
            self.answers.clear();
        }
        self.answers.push_back(stats);
        if self.answers.len() > KEPT {
            self.answers.pop_front();
        }
    }

    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let Some(now) = self.answers.back() else { return };
        let drops = u16::try_from(now.drops.len()).unwrap_or(u16::MAX).saturating_add(2).min(DROPS_MAX);
        let mut screen = frame.area();
        screen.width = screen.width.min(WIDTH_MAX);
        // What matters least is left out first: drops, who is busiest, and states that do not all fit below the counts.
        let side_by_side = screen.width >= RATES_WIDTH + 2 + STATES_WIDTH;
        let mut room = screen.height.saturating_sub(1);
        let mut take = |wanted: u16, least: u16| {
            let given = if room < least { 0 } else { wanted.min(room) };
            room -= given;
            given
        };
        let [head, rates, below, busiest, dropped] = [
            take(if screen.height < 20 { 2 } else { 3 }, 1),
            take(RATES_HEIGHT, 1),
            if side_by_side { 0 } else { take(STATES_HEIGHT + 1, STATES_HEIGHT + 1) },
            take(1 + BUSY_MIN, 1 + BUSY_MIN),
            take(drops, drops.min(3)),
        ];
        let [head, rates, below, busy, dropped, keys] =
            Layout::vertical([head, rates, below, busiest + room, dropped, 1].map(Constraint::Length)).areas(screen);
        self.draw_head(frame, head, now);
        if side_by_side {
            let [rates, states] =
                Layout::horizontal([Constraint::Length(RATES_WIDTH), Constraint::Max(36)]).spacing(2).areas(rates);
            self.draw_rates(frame, rates, now);
            self.draw_states(frame, states, now);
        } else {
            let as_wide = |area: Rect| Rect { width: area.width.min(RATES_WIDTH), ..area };
            self.draw_rates(frame, as_wide(rates), now);
            self.draw_states(frame, as_wide(under_a_blank(below)), now);
        }
        let [clients, remotes] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).areas(under_a_blank(busy));
        self.draw_busy(frame, clients, "busiest clients", &now.busiest.clients);
        self.draw_busy(frame, remotes, "busiest remotes", &now.busiest.remotes);
        self.draw_drops(frame, under_a_blank(dropped), now);
        let text = if self.held { "q quit  p go on   HELD STILL" } else { "q quit  p hold still" };
        frame.render_widget(Line::styled(text, Style::new().add_modifier(Modifier::DIM)), keys);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect, now: &Stats) {
        let up = humantime::format_duration(Duration::from_secs_f64(now.uptime_seconds.max(0.0).trunc()));
        let workers = if now.workers == 1 { "1 worker".to_owned() } else { format!("{} workers", now.workers) };
        let left = format!("echogate {}  {}  {}  {workers}  up {up}", now.version, now.device, now.engine);
        let (health, style) = match (&self.lost, now.healthy) {
            (Some(_), _) => ("NO ANSWER", self.alarm()),
            (None, false) => ("A WORKER STANDS STILL", self.alarm()),
            (None, true) => ("every worker moves", self.colored(Color::Green)),
        };
        let [first, second] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
        let width = u16::try_from(health.len()).unwrap_or(u16::MAX);
        let [about, state] =
            Layout::horizontal([Constraint::Min(10), Constraint::Length(width)]).spacing(1).areas(first);
        let left = cut(&left, about.width);
        frame.render_widget(Line::styled(left, Style::new().add_modifier(Modifier::BOLD)), about);
        frame.render_widget(Paragraph::new(Span::styled(health, style)).alignment(Alignment::Right), state);
        let (line, style) = match &self.lost {
            Some(why) => (why.as_str(), self.alarm()),
            None => (now.description.as_str(), Style::new()),
        };
        frame.render_widget(Line::styled(cut(line, second.width), style), second);
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect, now: &Stats) {
        type Count = fn(&Stats) -> u64;
        let counts: [(&str, Count, bool); 7] = [
            ("requests sent", |stats| stats.outside_out.packets, false),
            ("replies delivered", |stats| stats.delivered.packets, false),
            ("errors passed on", |stats| stats.told.packets, false),
            ("dropped", |stats| stats.drops.values().sum(), true),
            ("unanswered", |stats| stats.unanswered, true),
            ("lost by the kernel", |stats| stats.socket_drops.inside + stats.socket_drops.outside, true),
            ("reinjected", |stats| stats.reinjected.packets, false),
        ];
        let rows = counts.map(|(name, count, is_bad)| {
            let rate = self.rate(count);
            let style = if is_bad && rate.is_some_and(|rate| rate > 0.0) { self.warning() } else { Style::new() };
            Row::new([left(name), right(&rate_text(rate)), right(&grouped(count(now)))]).style(style)
        });
        let widths = [Constraint::Length(19), Constraint::Length(11), Constraint::Min(14)];
        let header = Row::new([left("packets"), right("a second"), right("total")]).style(bold());
        frame.render_widget(Table::new(rows, widths).header(header), area);
    }

    fn draw_states(&self, frame: &mut Frame<'_>, area: Rect, now: &Stats) {
        let first = self.answers.front().unwrap_or(now);
        let sent = now.outside_out.packets.saturating_sub(first.outside_out.packets);
        let answered = now.delivered.packets.saturating_sub(first.delivered.packets);
        let share = if sent == 0 { "-".to_owned() } else { format!("{:.1}%", percent(answered, sent)) };
        let [p50, p99] = [0.5, 0.99].map(|share| quantile(&first.round_trips, &now.round_trips, share));
        let of = |count: u64, most: u64| format!("{} of {}", grouped(count), grouped(most));
        let seconds = (now.uptime_seconds - first.uptime_seconds).max(0.0);
        let window = if seconds >= 1.0 { format!("last {seconds:.0} s") } else { "just begun".to_owned() };
        let rows = [
            ("answered", share),
            ("round trip p50", p50),
            ("           p99", p99),
            ("mappings", of(now.mappings, now.mappings_max)),
            ("outstanding", of(now.outstanding, now.outstanding_max)),
            ("bytes out", self.rate(|stats| stats.outside_out.bytes).map_or_else(|| "-".to_owned(), bytes_text)),
        ];
        let rows = rows.map(|(name, value)| Row::new([left(name), right(&value)]));
        let header = Row::new([left(""), right(&window)]).style(bold());
        let widths = [Constraint::Length(14), Constraint::Min(10)];
        frame.render_widget(Table::new(rows, widths).header(header), area);
    }

    fn draw_busy(&self, frame: &mut Frame<'_>, area: Rect, title: &str, busy: &[Busy]) {
        let rows = busy.iter().map(|busy| {
            let round_trip = busy.round_trip_seconds.map_or_else(|| "-".to_owned(), time_text);
            [left(&busy.address), right(&format!("~{}", short(busy.per_second))), right(&round_trip)]
        });
        // With a space between columns.
        let columns = if area.width < ADDRESS_WIDTH + 2 * NUMBER_WIDTH + 2 { 2 } else { 3 };
        let rows = rows.map(|row| Row::new(row.into_iter().take(columns)));
        let widths =
            [Constraint::Min(ADDRESS_WIDTH), Constraint::Length(NUMBER_WIDTH), Constraint::Length(NUMBER_WIDTH)];
        let widths = widths.into_iter().take(columns);
        let header = [left(title), right("a second"), right("mean")];
        let header = Row::new(header.into_iter().take(columns)).style(bold());
        frame.render_widget(Table::new(rows, widths).header(header), area);
    }

    /// By how much each grows, then by how many there were.
    fn draw_drops(&self, frame: &mut Frame<'_>, area: Rect, now: &Stats) {
        let mut drops: Vec<(&String, u64, Option<f64>)> = now
            .drops
            .iter()
            .map(|(name, count)| (name, *count, self.rate(|stats| stats.drops.get(name).copied().unwrap_or(0))))
            .collect();
        drops.sort_by(|(_, count, rate), (_, other_count, other_rate)| {
            let rates = other_rate.unwrap_or(0.0).total_cmp(&rate.unwrap_or(0.0));
            rates.then(other_count.cmp(count))
        });
        let rows = drops.iter().map(|(name, count, rate)| {
            let style = if rate.is_some_and(|rate| rate > 0.0) { self.warning() } else { Style::new() };
            Row::new([left(name), right(&rate_text(*rate)), right(&grouped(*count))]).style(style)
        });
        let none = if drops.is_empty() { "drops: none" } else { "drops by reason" };
        let widths = [Constraint::Length(30), Constraint::Length(11), Constraint::Length(18)];
        let header = match drops.is_empty() {
            true => Row::new([left(none)]),
            false => Row::new([left(none), right("a second"), right("total")]),
        };
        frame.render_widget(Table::new(rows, widths).header(header.style(bold())), area);
    }

    /// By how much a number grew a second, between the last two answers.
    fn rate(&self, count: impl Fn(&Stats) -> u64) -> Option<f64> {
        let mut latest = self.answers.iter().rev();
        let (now, before) = (latest.next()?, latest.next()?);
        let seconds = now.uptime_seconds - before.uptime_seconds;
        (seconds > 0.0).then(|| count(now).saturating_sub(count(before)) as f64 / seconds)
    }

    fn colored(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn warning(&self) -> Style {
        self.colored(Color::Yellow)
    }

    fn alarm(&self) -> Style {
        self.colored(Color::Red).add_modifier(Modifier::BOLD)
    }
}

/// The area without its first row, which is free.
fn under_a_blank(area: Rect) -> Rect {
    let blank = area.height.min(1);
    Rect { y: area.y + blank, height: area.height - blank, ..area }
}

/// The text in that width, with a sign where something is missing. It has no letters but ASCII's.
fn cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if text.len() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn left(text: &str) -> Line<'static> {
    Line::from(text.to_owned())
}

fn right(text: &str) -> Line<'static> {
    Line::from(text.to_owned()).alignment(Alignment::Right)
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole as f64
}

/// A rate with as many digits as say something.
fn short(rate: f64) -> String {
    match rate {
        10.0.. => thousands(rate),
        _ => format!("{rate:.1}"),
    }
}

fn rate_text(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(rate) => short(rate),
    }
}

/// As a whole number in groups of three digits.
fn thousands(rate: f64) -> String {
    let digits = format!("{rate:.0}");
    digits.parse().map_or(digits, grouped)
}

fn bytes_text(rate: f64) -> String {
    match rate {
        1e9.. => format!("{:.1} GB/s", rate / 1e9),
        1e6.. => format!("{:.1} MB/s", rate / 1e6),
        1e3.. => format!("{:.1} kB/s", rate / 1e3),
        _ => format!("{rate:.0} B/s"),
    }
}

fn time_text(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.1} s"),
        0.01.. => format!("{:.0} ms", seconds * 1e3),
        0.001.. => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

/// A quantile of the round trips between two answers, within its class as if those in it were evenly spread.
fn quantile(before: &RoundTrips, now: &RoundTrips, share: f64) -> String {
    let counts: Vec<u64> =
        now.counts.iter().zip(&before.counts).map(|(now, before)| now.saturating_sub(*before)).collect();
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return "-".to_owned();
    }
    let wanted = share * all as f64;
    let (mut below, mut start) = (0.0, 0.0);
    for (count, end) in counts.iter().zip(&now.ends_seconds) {
        let count = *count as f64;
        if below + count >= wanted && count > 0.0 {
            return time_text(start + (end - start) * (wanted - below) / count);
        }
        below += count;
        start = *end;
    }
    format!("> {}", time_text(start))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::control::BusiestNow;
    use crate::metrics::Traffic;

    fn stats(second: u64, is_busy: bool) -> Stats {
        let packets = 500 * second;
        let busy = |address: &str, per_second| Busy {
            address: address.to_owned(),
            per_second,
            error_per_second: 0.0,
            round_trip_seconds: (per_second > 1.0).then_some(0.0123),
        };
        let mut stats: Stats = Stats {
            version: "0.1.0".to_owned(),
            description: "serving pings of 10.66.0.0/24 from 198.18.0.1".to_owned(),
            device: "echogate0".to_owned(),
            engine: "io_uring".to_owned(),
            workers: 2,
            uptime_seconds: 3600.0 + second as f64,
            healthy: true,
            outside_out: Traffic { packets, bytes: 84 * packets },
            delivered: Traffic { packets: packets * 9 / 10, bytes: 0 },
            mappings: 12,
            mappings_max: 65_536,
            outstanding: 50,
            outstanding_max: 1 << 20,
            ..Stats::default()
        };
        stats.round_trips.ends_seconds = vec![0.001, 0.01, 0.1];
        stats.round_trips.counts = vec![0, second * 90, second * 10, 0];
        if is_busy {
            stats.busiest = BusiestNow {
                seconds: 12.0,
                clients: vec![busy("10.66.0.2", 1234.5), busy("10.66.0.3", 0.4)],
                remotes: vec![busy("198.18.0.2", 1234.9)],
            };
            stats.drops = [("no_echo".to_owned(), 3), ("over_packets".to_owned(), 20 * second)].into();
        }
        stats
    }

    fn screen(view: &View, width: u16, height: u16) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let colored = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
        let rows = buffer.content().chunks(usize::from(width));
        (rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect(), colored)
    }

    fn view(color: bool) -> View {
        let mut view = View::new(stats(1, true), color);
        (2..=20).for_each(|second| view.show(stats(second, true)));
        view
    }

    /// Without what the columns' widths are.
    fn words(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rates_losses_latencies_and_the_busiest_are_on_a_small_screen() {
        let (text, colored) = screen(&view(true), 80, 24);
        assert!(colored);
        for expected in [
            "echogate 0.1.0 echogate0 io_uring 2 workers up 1h 20s",
            "every worker moves",
            "requests sent 500 10,000",
            "90.0%",
            "round trip p50 6.0 ms",
            "12 of 65,536",
            "50 of 1,048,576",
            "42.0 kB/s",
            "10.66.0.2",
            "~1,23",
            "~0.4",
            "12 ms",
            "198.18.0.2",
            "over_packets 20 400",
            "last 10 s",
        ] {
            assert!(words(&text).contains(expected), "{expected:?} is missing:\n{text}");
        }
        let place = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name} is missing:\n{text}"));
        assert!(place("over_packets") < place("no_echo"), "what grows stands first:\n{text}");
    }

    #[test]
    fn without_colour_it_has_none_and_an_alarm_is_seen_all_the_same() {
        let mut view = view(false);
        let mut still = stats(21, true);
        still.healthy = false;
        view.show(still);
        let (text, colored) = screen(&view, 80, 24);
        assert!(!colored && text.contains("A WORKER STANDS STILL"), "{text}");
        view.lose("the gateway has gone".to_owned());
        let (text, colored) = screen(&view, 80, 24);
        assert!(!colored && text.contains("NO ANSWER") && text.contains("the gateway has gone"), "{text}");
    }

    #[test]
    fn a_gateway_that_has_just_begun_or_begun_again_has_no_rates_yet() {
        let mut view = View::new(stats(20, false), true);
        let (text, _) = screen(&view, 80, 24);
        assert!(words(&text).contains("requests sent - 10,000"), "{text}");
        assert!(text.contains("drops: none") && text.contains("just begun"), "{text}");
        view.show(stats(1, false));
        let (text, _) = screen(&view, 80, 24);
        assert!(words(&text).contains("requests sent - 500"), "{text}");
    }

    #[test]
    fn held_still_it_shows_what_it_showed() {
        let mut view = view(true);
        view.hold();
        view.show(stats(60, true));
        let (text, _) = screen(&view, 80, 24);
        assert!(text.contains("10,000") && text.contains("HELD STILL"), "{text}");
    }

    #[test]
    fn a_narrow_screen_has_the_states_below_the_counts_and_no_column_that_is_cut() {
        let (text, _) = screen(&view(true), 60, 40);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let line = |begin: &str| lines.iter().position(|line| line.starts_with(begin));
        assert!(line("requests sent") < line("answered") && line("answered") < line("busiest clients"), "{text}");
        assert!(
            words(&text).contains("round trip p50 6.0 ms") && words(&text).contains("over_packets 20 400"),
            "{text}"
        );
        let counts = lines.iter().find(|line| line.starts_with("requests sent")).expect("it is there");
        assert_eq!(counts.len(), 46, "its numbers stand by its name: {text}");
        assert!(words(&text).contains("busiest clients a second busiest remotes a second"), "{text}");
        assert!(!text.contains("mean"), "{text}");
    }

    #[test]
    fn a_low_screen_has_the_counts_first() {
        let (text, _) = screen(&view(true), 80, 12);
        for expected in ["every worker moves", "serving pings", "requests sent", "reinjected", "answered", "q quit"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains("busiest") && !text.contains("drops by"), "they have no room: {text}");
        let (text, _) = screen(&view(true), 80, 17);
        assert!(text.contains("10.66.0.2 ") && !text.contains("drops by"), "{text}");
    }

    #[test]
    fn what_is_cut_shows_it_and_a_wide_screen_is_not_filled() {
        let mut long = stats(21, true);
        long.description = format!("serving {}", "x".repeat(200));
        let view = View::new(long, true);
        let (text, _) = screen(&view, 80, 24);
        let line = text.lines().nth(1).expect("two lines");
        assert!(line.starts_with("serving xx") && line.ends_with("x…"), "{text}");
        let (text, _) = screen(&view, 200, 60);
        assert!(text.lines().all(|line| line.trim_end().chars().count() <= 120), "{text}");
    }

    #[test]
    fn no_size_is_too_small_to_draw_on() {
        let view = view(true);
        for width in [1, 10, 40, 79, 200] {
            for height in [1, 3, 8, 12, 60] {
                screen(&view, width, height);
            }
        }
    }
}
