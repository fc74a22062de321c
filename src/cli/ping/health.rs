//! Whether a host is well.
//!
//! ```text
//!             slow                    N losses in a row
//!      UP <---------> DEGRADED ----------------+
//!       ^    quick        |                    v
//!       |                 +---------------> DOWN
//!       +-- RECOVERED <------- a reply --------+
//!          (N replies)
//! ```

/// What makes a host count as unwell.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Thresholds {
    /// A slower reply is a degraded host's; without it only losses are.
    pub(super) degraded_ms: Option<f64>,
    /// Losses in a row until it is down, and replies in a row until a recovered host is up again.
    pub(super) down_after: u32,
}

/// How a host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing is known yet.
    Unknown,
    /// It answers.
    Up,
    /// Its last reply was slow, or its last request was lost.
    Degraded,
    /// It has not answered for some time.
    Down,
    /// It was down, and answers again.
    Recovered,
}

impl State {
    pub(super) const fn word(self) -> &'static str {
        match self {
            State::Unknown => "waiting",
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "DOWN",
            State::Recovered => "recovered",
        }
    }
}

/// One host's state and what leads to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    pub(super) state: State,
    losses: u32,
    replies: u32,
}

impl Health {
    pub(super) const fn new() -> Health {
        Health { state: State::Unknown, losses: 0, replies: 0 }
    }

    /// A request has its outcome: a round-trip time or none.
    pub(super) fn observe(&mut self, rtt_ms: Option<f64>, thresholds: &Thresholds) {
        let Some(rtt_ms) = rtt_ms else {
            self.replies = 0;
            self.losses = self.losses.saturating_add(1);
            if self.losses >= thresholds.down_after {
                self.state = State::Down;
            } else if self.state != State::Down {
                self.state = State::Degraded;
            }
            return;
        };
        self.losses = 0;
        self.replies = self.replies.saturating_add(1);
        let slow = thresholds.degraded_ms.is_some_and(|most| rtt_ms > most);
        self.state = match self.state {
            State::Down => State::Recovered,
            State::Recovered if self.replies < thresholds.down_after => State::Recovered,
            _ if slow => State::Degraded,
            _ => State::Up,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(outcomes: &[Option<f64>]) -> Vec<State> {
        let thresholds = Thresholds { degraded_ms: Some(100.0), down_after: 3 };
        let mut health = Health::new();
        let observe = |outcome: &Option<f64>| {
            health.observe(*outcome, &thresholds);
            health.state
        };
        outcomes.iter().map(observe).collect()
    }

    #[test]
    fn a_host_goes_down_after_so_many_losses_and_recovers_before_it_is_up() {
        use State::{Degraded, Down, Recovered, Up};
        let (quick, lost) = (Some(10.0), None);
        let found = course(&[quick, lost, lost, quick, lost, lost, lost, lost, quick, quick, quick]);
        let expected = [Up, Degraded, Degraded, Up, Degraded, Degraded, Down, Down, Recovered, Recovered, Up];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_slow_host_is_degraded_until_it_is_quick_again() {
        assert_eq!(course(&[Some(200.0), Some(50.0)]), [State::Degraded, State::Up]);
    }

    #[test]
    fn a_host_that_is_lost_while_it_recovers_is_no_longer_up() {
        assert_eq!(course(&[None, None, None, Some(1.0), None]).last(), Some(&State::Degraded));
    }
}
