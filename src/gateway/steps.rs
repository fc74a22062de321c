//! How long each step takes until somebody serves: one line of the log, at level debug, for whoever asks where the time goes
//! after a death.

use std::fmt::Write as _;
use std::time::Instant;

/// A clock that is read after each step.
#[derive(Debug)]
pub struct Steps {
    begun: Instant,
    last: Instant,
    text: String,
}

impl Steps {
    /// Begins now.
    pub fn begin() -> Steps {
        let now = Instant::now();
        Steps { begun: now, last: now, text: String::new() }
    }

    /// A step ends here.
    pub fn end_of(&mut self, step: &str) {
        let now = Instant::now();
        let separator = if self.text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{separator}{step} {:.1}", (now - self.last).as_secs_f64() * 1e3);
        self.last = now;
    }

    /// Says how long all of it has taken, and what comes of it.
    pub fn tell(&self, outcome: &str) {
        let all = format!("{:.1}", (self.last - self.begun).as_secs_f64() * 1e3);
        tracing::debug!(steps = %self.text, "{outcome} after {all} ms");
    }
}
