//! `--graph`: many hosts over time on one pair of axes, each with its health.
//!
//! [`View`] is what is shown and what the keys change; it draws into whatever ratatui draws into, so tests look at it without a
//! terminal. [`Graph`] has the terminal, and gives it back when dropped. Where a terminal cannot be drawn on (TERM=dumb, or
//! output into a file) there is a line a host instead, in ASCII.
//!
//! Memory is bounded: [`HISTORY_MAX`] outcomes of each of [`ROWS_MAX`] hosts; hosts beyond are pinged and not shown.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};

use super::health::{Health, State, Thresholds};
use super::hosts::{Host, Hosts};
use super::session::{Event, Progress, Report};
use super::stats::{Stats, millis};
use crate::cli::print;
use crate::error::SetupError;

const HISTORY_MAX: usize = 3600;
const ROWS_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(100);

/// The window of the time axis, in seconds: what zooming chooses from.
const WINDOWS: [f64; 7] = [10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
const WINDOW_DEFAULT: usize = 2;

/// Told apart by a colour-blind reader too; white stays for the text.
const COLORS: [Color; 6] = [Color::Cyan, Color::Yellow, Color::Magenta, Color::Green, Color::Blue, Color::LightRed];

/// What the axes of a chart need to be worth their place.
const CHART_HEIGHT_MIN: u16 = 12;

struct Course {
    health: Health,
    /// When, in seconds since the start, and the round-trip time in milliseconds, if there was one.
    outcomes: VecDeque<(f64, Option<f64>)>,
}

/// What is on the screen.
struct View {
    courses: Vec<Course>,
    thresholds: Thresholds,
    color: bool,
    window: usize,
    selected: usize,
    /// Only the selected host is drawn.
    alone: bool,
    /// The end of the time axis, if it stands still.
    paused_at: Option<f64>,
    now: f64,
}

impl View {
    fn new(hosts: &Hosts, thresholds: Thresholds, color: bool) -> View {
        let shown = hosts.list.len().min(ROWS_MAX);
        let courses = (0..shown).map(|_| Course { health: Health::new(), outcomes: VecDeque::new() }).collect();
        View {
            courses,
            thresholds,
            color,
            window: WINDOW_DEFAULT,
            selected: 0,
            alone: false,
            paused_at: None,
            now: 0.0,
        }
    }

    fn observe(&mut self, host: usize, at: f64, rtt_ms: Option<f64>) {
        let Some(course) = self.courses.get_mut(host) else { return };
        course.health.observe(rtt_ms, &self.thresholds);
        if course.outcomes.len() == HISTORY_MAX {
            course.outcomes.pop_front();
        }
        course.outcomes.push_back((at, rtt_ms));
    }

    /// Whether the run goes on.
    fn key(&mut self, key: KeyEvent) -> bool {
        let last = self.courses.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('p' | ' ') => {
                self.paused_at = if self.paused_at.is_some() { None } else { Some(self.now) };
            }
            KeyCode::Char('+' | '=') => self.window = self.window.saturating_sub(1),
            KeyCode::Char('-') => self.window = (self.window + 1).min(WINDOWS.len() - 1),
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Enter | KeyCode::Char('s') => self.alone = !self.alone,
            _ => {}
        }
        true
    }

    fn draw(&self, frame: &mut Frame<'_>, hosts: &Hosts) {
        let area = frame.area();
        let rows = u16::try_from(self.courses.len()).unwrap_or(u16::MAX).saturating_add(1);
        let with_chart = area.height >= CHART_HEIGHT_MIN;
        let table_height = if with_chart { rows.min(area.height / 2) } else { area.height.saturating_sub(1) };
        let chart_height = if with_chart { Constraint::Min(6) } else { Constraint::Length(0) };
        let [chart, table, keys] =
            Layout::vertical([chart_height, Constraint::Length(table_height), Constraint::Length(1)]).areas(area);
        if with_chart {
            self.draw_chart(frame, chart);
        }
        self.draw_table(frame, table, hosts);
        let long = "q quit  p pause  +/- zoom  up/down select  s only the selected one";
        let text = if usize::from(area.width) < long.len() { "q p +/- up/down s" } else { long };
        frame.render_widget(Line::styled(text, Style::new().add_modifier(Modifier::DIM)), keys);
    }

    fn draw_chart(&self, frame: &mut Frame<'_>, area: ratatui::layout::Rect) {
        let end = self.paused_at.unwrap_or(self.now);
        let start = end - WINDOWS[self.window];
        let shown = |number: &usize| !self.alone || *number == self.selected;
        let (mut lines, mut losses, mut highest) = (Vec::new(), Vec::new(), 0.0_f64);
        for (number, course) in self.courses.iter().enumerate().filter(|(number, _)| shown(number)) {
            let mut line = Vec::new();
            for &(at, rtt) in course.outcomes.iter().filter(|(at, _)| (start..=end).contains(at)) {
                match rtt {
                    Some(ms) => {
                        highest = highest.max(ms);
                        line.push((at, ms));
                    }
                    // A gap in the line, and a mark on the axis.
                    None => {
                        losses.push((at, 0.0));
                        lines.push((number, std::mem::take(&mut line)));
                    }
                }
            }
            lines.push((number, line));
        }
        let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
        // A mark of some height, or the axis would hide it.
        let marks: Vec<(f64, f64)> = losses.iter().flat_map(|(at, _)| [(*at, 0.0), (*at, top / 20.0)]).collect();
        let mut datasets: Vec<Dataset<'_>> = lines
            .iter()
            .filter(|(_, line)| !line.is_empty())
            .map(|(number, line)| {
                let kind = if line.len() > 1 { GraphType::Line } else { GraphType::Scatter };
                Dataset::default().marker(Marker::Braille).graph_type(kind).style(self.style_of(*number)).data(line)
            })
            .collect();
        let mark = self.colored(Color::Red).add_modifier(Modifier::BOLD);
        datasets.push(Dataset::default().marker(Marker::Block).graph_type(GraphType::Scatter).style(mark).data(&marks));
        let pause = if self.paused_at.is_some() { " PAUSED " } else { "" };
        let lost = if losses.is_empty() { String::new() } else { format!(" {} lost (blocks) ", losses.len()) };
        let title = format!(" round trip, ms, last {} {pause}{lost}", window_text(WINDOWS[self.window]));
        let labels = [0.0, top / 2.0, top].map(|ms| Span::raw(axis_text(ms)));
        let times = [format!("-{}", window_text(WINDOWS[self.window])), "now".to_owned()];
        let chart = Chart::new(datasets)
            .block(Block::bordered().title(title))
            .x_axis(Axis::default().bounds([start, end]).labels(times.map(Span::raw)))
            .y_axis(Axis::default().bounds([0.0, top]).labels(labels));
        frame.render_widget(chart, area);
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: ratatui::layout::Rect, hosts: &Hosts) {
        let wide = area.width >= 78;
        let none = Stats::new(false);
        let rows = self.courses.iter().zip(&hosts.list).enumerate().map(|(number, (course, host))| {
            let stats = host.stats().unwrap_or(&none);
            let [last, p50, p90, p99] = columns(stats);
            let state = course.health.state;
            let mut cells = vec![
                Span::styled(format!("{} {}", letter(number), host.name), self.style_of(number)),
                Span::styled(state.word(), self.style_for(state)),
                Span::raw(last),
                Span::raw(format!("{:.1}%", stats.loss_percent(0))),
            ];
            if wide {
                cells.extend([p50, p90, p99, recent(course)].map(Span::raw));
            }
            Row::new(cells)
        });
        let mut header = vec!["  host", "state", "last ms", "loss"];
        let mut widths = vec![Constraint::Min(12), Constraint::Length(9), Constraint::Length(8), Constraint::Length(6)];
        if wide {
            header.extend(["p50", "p90", "p99", "recent"]);
            widths.extend([Constraint::Length(7); 3]);
            widths.push(Constraint::Length(20));
        }
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::default().with_selected(Some(self.selected));
        frame.render_stateful_widget(table, area, &mut state);
    }

    fn colored(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn style_of(&self, number: usize) -> Style {
        self.colored(COLORS[number % COLORS.len()])
    }

    fn style_for(&self, state: State) -> Style {
        match state {
            State::Unknown => Style::new(),
            State::Up => self.colored(Color::Green),
            State::Degraded | State::Recovered => self.colored(Color::Yellow),
            State::Down => self.colored(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    /// A line a host, for what cannot be drawn on.
    fn lines(&self, hosts: &Hosts) -> String {
        let none = Stats::new(false);
        let line = |(course, host): (&Course, &Host)| {
            let stats = host.stats().unwrap_or(&none);
            let [last, p50, p90, p99] = columns(stats);
            let (name, state, recent) = (&host.name, course.health.state.word(), recent(course));
            let loss = stats.loss_percent(0);
            format!("{name} {state} {last} ms, p50/p90/p99 {p50}/{p90}/{p99}, loss {loss:.1}% [{recent}]\n")
        };
        self.courses.iter().zip(&hosts.list).map(line).collect()
    }
}

fn columns(stats: &Stats) -> [String; 4] {
    let last = stats.last.map_or_else(|| "-".to_owned(), |last| axis_text(millis(last)));
    let percentiles = stats.times().and_then(|times| times.percentiles);
    let [p50, p90, p99] = percentiles.map_or(["-"; 3].map(str::to_owned), |all| all.map(axis_text));
    [last, p50, p90, p99]
}

/// The last outcomes in ASCII, each by its height among them; x is a loss.
fn recent(course: &Course) -> String {
    const HEIGHTS: &[u8] = b"_.-=+*#";
    let last = || course.outcomes.iter().rev().take(20).rev();
    let top = last().filter_map(|(_, rtt)| *rtt).fold(f64::MIN_POSITIVE, f64::max);
    let height = |ms: f64| {
        let steps = HEIGHTS.iter().zip(1_u8..).find(|(_, step)| ms / top <= f64::from(*step) / 7.0);
        char::from(steps.map_or(b'#', |(symbol, _)| *symbol))
    };
    last().map(|(_, rtt)| rtt.map_or('x', height)).collect()
}

/// What tells hosts apart without colour.
fn letter(number: usize) -> char {
    u8::try_from(number % 26).map_or('?', |number| char::from(b'a' + number))
}

fn axis_text(ms: f64) -> String {
    match ms {
        100.0.. => format!("{ms:.0}"),
        10.0.. => format!("{ms:.1}"),
        _ => format!("{ms:.3}"),
    }
}

fn window_text(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

/// The view on a terminal, or as lines where there is none.
pub(super) struct Graph {
    view: View,
    started: Instant,
    /// None where it cannot be drawn.
    terminal: Option<DefaultTerminal>,
    interval: Duration,
}

impl Graph {
    pub(super) fn open(hosts: &Hosts, thresholds: Thresholds, interval: Duration) -> Result<Graph, SetupError> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let drawable = io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb;
        let terminal = drawable.then(ratatui::try_init).transpose().map_err(|cause| {
            SetupError::caused("--graph: cannot draw on this terminal", cause).remedy("TERM=dumb has lines instead")
        })?;
        let interval = interval.max(Duration::from_millis(200));
        Ok(Graph { view: View::new(hosts, thresholds, color), started: Instant::now(), terminal, interval })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.terminal.is_some() {
            // The run is over; a terminal that is gone needs nothing back.
            let _ = ratatui::try_restore();
        }
    }
}

impl Report for Graph {
    fn begin(&mut self, hosts: &Hosts) {
        self.started = Instant::now();
        if hosts.list.len() > ROWS_MAX {
            tracing::warn!("{} hosts: the first {ROWS_MAX} are shown", hosts.list.len());
        }
    }

    fn event(&mut self, _hosts: &Hosts, host: usize, _sequence: u64, event: Event<'_>) {
        if let Event::Settled(outcome) = event {
            let rtt = outcome.as_ref().ok().map(|reply| millis(reply.rtt));
            self.view.observe(host, self.started.elapsed().as_secs_f64(), rtt);
        }
    }

    fn interim(&mut self, _hosts: &Hosts, _progress: &Progress) {}

    fn tick_interval(&self) -> Option<Duration> {
        Some(if self.terminal.is_some() { TICK } else { self.interval })
    }

    fn tick(&mut self, hosts: &Hosts) -> bool {
        self.view.now = self.started.elapsed().as_secs_f64();
        let Some(terminal) = &mut self.terminal else {
            print(&self.view.lines(hosts));
            return true;
        };
        while event::poll(Duration::ZERO).unwrap_or(false) {
            if let Ok(Input::Key(key)) = event::read()
                && key.kind != KeyEventKind::Release
                && !self.view.key(key)
            {
                return false;
            }
        }
        // A terminal that cannot be written to any more ends the run.
        terminal.draw(|frame| self.view.draw(frame, hosts)).is_ok()
    }

    fn end(&mut self, hosts: &Hosts, _progress: &Progress) {
        if self.terminal.take().is_some() {
            let _ = ratatui::try_restore();
        }
        print(&self.view.lines(hosts));
    }
}

#[cfg(test)]
mod tests {

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::hosts::look_up;
    use super::*;
    use crate::pinger::{Family, PingError};

    /// Two hosts: one quick, one that is lost from its third request on.
    fn scene(color: bool) -> (View, Hosts) {
        let names = vec!["198.18.0.1".to_owned(), "198.18.0.2".to_owned()];
        let mut hosts = Hosts::new(look_up(names, Family::Any).0);
        let mut view = View::new(&hosts, Thresholds { degraded_ms: None, down_after: 3 }, color);
        for second in 0..8_u8 {
            let at = f64::from(second);
            view.observe(0, at, Some(10.0 + at));
            view.observe(1, at, (second < 2).then_some(20.0));
            let lost = Err(PingError::Timeout { after: Duration::from_secs(1) });
            if second >= 2 {
                hosts.stats_mut(1).settle(u64::from(second) + 1, &lost);
            }
            view.now = at;
        }
        (view, hosts)
    }

    fn screen(view: &View, hosts: &Hosts, width: u16, height: u16) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame, hosts)).unwrap();
        let buffer = terminal.backend().buffer();
        let colored = buffer.content().iter().any(|cell| cell.fg != Color::Reset);
        let rows = buffer.content().chunks(usize::from(width));
        (rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect(), colored)
    }

    #[test]
    fn hosts_stand_on_one_pair_of_axes_with_their_health() {
        let (view, hosts) = scene(true);
        let (text, colored) = screen(&view, &hosts, 100, 24);
        for expected in ["round trip, ms, last 60 s", "6 lost", "a 198.18.0.1", "up ", "DOWN", "xxxxxx", "22.0", "now"]
        {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
        assert!(text.contains('█'), "no loss is marked:\n{text}");
        assert!(colored);
    }

    #[test]
    fn without_colour_there_is_none() {
        let (view, hosts) = scene(false);
        assert!(!screen(&view, &hosts, 100, 24).1);
    }

    #[test]
    fn a_small_terminal_has_the_table_and_a_tiny_one_no_panic() {
        let (view, hosts) = scene(true);
        let (text, _) = screen(&view, &hosts, 50, 8);
        assert!(text.contains("198.18.0.2") && text.contains("DOWN") && !text.contains("round trip"), "{text}");
        for (width, height) in [(1, 1), (3, 30), (200, 2)] {
            screen(&view, &hosts, width, height);
        }
    }

    #[test]
    fn keys_pause_zoom_select_and_quit() {
        let (mut view, hosts) = scene(true);
        let mut press = |code| view.key(KeyEvent::new(code, KeyModifiers::NONE));
        assert!(
            press(KeyCode::Char('p')) && press(KeyCode::Char('+')) && press(KeyCode::Down) && press(KeyCode::Char('s'))
        );
        assert!(!press(KeyCode::Char('q')));
        view.now = 100.0;
        let (text, _) = screen(&view, &hosts, 100, 24);
        assert!(text.contains("PAUSED") && text.contains("last 30 s") && text.contains("6 lost"), "{text}");
        view.key(KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE));
        let (text, _) = screen(&view, &hosts, 100, 24);
        assert!(!text.contains("PAUSED") && !text.contains("lost"), "time went on:\n{text}");
    }

    #[test]
    fn what_cannot_be_drawn_on_gets_ascii() {
        let (view, hosts) = scene(true);
        let text = view.lines(&hosts);
        assert!(text.is_ascii() && text.lines().count() == 2 && text.contains("[##xxxxxx]"), "{text}");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut view, _) = scene(true);
        for second in 0..5000_u16 {
            view.observe(0, f64::from(second), Some(1.0));
        }
        view.observe(ROWS_MAX, 0.0, None);
        assert_eq!(view.courses[0].outcomes.len(), HISTORY_MAX);
    }
}
