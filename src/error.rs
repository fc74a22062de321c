//! Errors of set-up: what was tried, what the system said, what to do about it.
//!
//! Packets never make errors (they make drops, counted by reason); opening, configuring and ending do. Every such
//! error carries the operation in words, the system's error where there was one, and the remedy where one is known.

use std::{fmt, io};

/// Why the gateway could not be set up, or why it ended.
#[derive(Debug)]
pub struct SetupError {
    operation: String,
    cause: Option<io::Error>,
    remedy: Option<String>,
}

impl SetupError {
    /// `operation` says what was wrong, in words that need no further context.
    pub fn new(operation: impl Into<String>) -> SetupError {
        SetupError { operation: operation.into(), cause: None, remedy: None }
    }

    /// `operation` was refused by the system with `cause`.
    pub fn caused(operation: impl Into<String>, cause: io::Error) -> SetupError {
        SetupError { operation: operation.into(), cause: Some(cause), remedy: None }
    }

    /// Adds what mends it: a capability, a sysctl, a package, a command.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> SetupError {
        self.remedy = Some(remedy.into());
        self
    }

    /// What was wrong, in one line, and apart from it what mends it.
    pub fn parts(&self) -> (String, Option<String>) {
        let what = match &self.cause {
            Some(cause) => format!("{}: {cause}", self.operation),
            None => self.operation.clone(),
        };
        (what, self.remedy.clone())
    }

    /// The system's error number, if the system refused.
    pub fn errno(&self) -> Option<i32> {
        self.cause.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}
