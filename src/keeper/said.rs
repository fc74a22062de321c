//! What a packet process says to its keeper, and a keeper to whoever asks it for something.

use serde_json::{Value, json};

use crate::error::SetupError;

/// Something that is said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// It serves; in words what.
    Serving(String),
    /// Every worker moves.
    Alive,
    /// Why it is about to end, or why not what was asked for.
    Fault(Fault),
}

/// An error that has gone from one process to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    what: String,
    remedy: Option<String>,
}

impl Said {
    pub(super) fn write(&self) -> Value {
        match self {
            Said::Serving(description) => json!({ "serving": description }),
            Said::Alive => json!("alive"),
            Said::Fault(Fault { what, remedy }) => json!({ "fault": what, "remedy": remedy }),
        }
    }

    pub(super) fn read(value: &Value) -> Option<Said> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let fault = || Some(Fault { what: text("fault")?, remedy: text("remedy") });
        match value.as_str() {
            Some("alive") => Some(Said::Alive),
            _ => text("serving").map(Said::Serving).or_else(|| fault().map(Said::Fault)),
        }
    }
}

impl From<&SetupError> for Fault {
    fn from(error: &SetupError) -> Fault {
        let (what, remedy) = error.parts();
        Fault { what, remedy }
    }
}

impl Fault {
    pub(super) fn error(&self) -> SetupError {
        self.remedy.iter().fold(SetupError::new(&self.what), SetupError::remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_an_error_keeps_its_remedy_apart() {
        let mended = SetupError::new("no device").remedy("modprobe tun");
        let faults = [SetupError::new("it panicked"), mended].map(|error| Said::Fault(Fault::from(&error)));
        for said in [Said::Serving("pings".to_owned()), Said::Alive].iter().chain(&faults) {
            assert_eq!(Said::read(&said.write()).as_ref(), Some(said));
        }
        let Said::Fault(fault) = &faults[1] else { panic!("it is one") };
        assert_eq!(fault.error().parts(), ("no device".to_owned(), Some("modprobe tun".to_owned())));
        assert_eq!(Said::read(&json!("else")), None);
    }
}
