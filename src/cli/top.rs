//! `echogate top`: a running gateway's rates, losses and latencies, its busiest clients and remotes, and its drops.
//!
//! [`View`] is what is shown; it draws into whatever ratatui draws into, so tests look at it without a terminal. It asks once a
//! second, and works out rates from two answers; a gateway that is restarted is asked again as soon as it answers.

mod view;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::view::View;
use super::reach::Which;
use crate::control::{Client, Request, Stats};
use crate::error::SetupError;

/// How often the gateway is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Watch a running gateway
///
/// Rates, losses and round trips, who pings most and who is pinged most (by a sample: about right for whoever is busy), and
/// drops by reason; docs/metrics.md tells what each means. q ends it, p holds it still.
///
/// Exit codes: 0 it was ended by its user; 2 there is no gateway to ask, or no terminal to draw on.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let mut client = arguments.which.connect()?;
    let first = ask(&mut client)?;
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let screen = Screen::open()?;
    let view = View::new(first, color);
    watch(screen, view, Some(client), || arguments.which.connect())?;
    Ok(ExitCode::SUCCESS)
}

fn ask(client: &mut Client) -> Result<Stats, SetupError> {
    Stats::read(client.ask(&Request::Stats)?)
}

fn watch(
    mut screen: Screen,
    mut view: View,
    mut client: Option<Client>,
    connect: impl Fn() -> Result<Client, SetupError>,
) -> Result<(), SetupError> {
    let lost = |cause| SetupError::caused("the terminal is gone", cause);
    let mut next = Instant::now() + INTERVAL;
    loop {
        screen.terminal.draw(|frame| view.draw(frame)).map_err(lost)?;
        if event::poll(next.saturating_duration_since(Instant::now())).map_err(lost)? {
            if let Input::Key(key) = event::read().map_err(lost)?
                && key.kind != KeyEventKind::Release
                && !obey(&mut view, key)
            {
                return Ok(());
            }
            continue;
        }
        next += INTERVAL;
        let answer = match &mut client {
            Some(client) => ask(client),
            None => connect().and_then(|new| ask(client.insert(new))),
        };
        match answer {
            Ok(stats) => view.show(stats),
            Err(error) => {
                client = None;
                view.lose(error.parts().0);
            }
        }
    }
}

/// Whether it goes on.
fn obey(view: &mut View, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('p' | ' ') => view.hold(),
        _ => {}
    }
    true
}

/// The terminal, given back when dropped.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Screen, SetupError> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        if dumb || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let error = SetupError::new("top: there is no terminal to draw on");
            return Err(error.remedy("echogate stats prints the numbers once, and with --json for programs"));
        }
        let terminal = ratatui::try_init();
        terminal
            .map(|terminal| Screen { terminal })
            .map_err(|cause| SetupError::caused("top: cannot draw on this terminal", cause))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = ratatui::try_restore();
    }
}
