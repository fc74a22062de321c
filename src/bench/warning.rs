//! Doubts about a measurement, as values: each has its cause and its cure, and stands in table, JSON and page alike.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of doubt it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// The bench was built without optimisation.
    Unoptimised,
    /// Fewer CPUs than the parts of the lab need to run at the same time.
    MachineTooSmall,
    /// Something else was running when the bench began.
    MachineBusy,
    /// The hypervisor took CPU time away.
    Steal,
    /// A contender could not take part.
    Absent,
    /// The control, that has no gateway, lost echoes.
    ControlLost,
    /// The generator did not keep its own schedule.
    ScheduleMissed,
    /// A contender's rounds differ widely.
    WideSpread,
    /// A trial could not be finished.
    TrialFailed,
    /// The run was ended before its time.
    Interrupted,
}

/// A doubt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Warning {
    /// Its kind.
    pub doubt: Doubt,
    /// What was seen.
    pub cause: String,
    /// What to do about it.
    pub cure: String,
}

impl Warning {
    /// A doubt of this kind.
    pub fn new(doubt: Doubt, cause: impl Into<String>, cure: impl Into<String>) -> Warning {
        Warning { doubt, cause: cause.into(), cure: cure.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  cure: {}", self.cause, self.cure)
    }
}
