//! What is said on the control socket: a line of JSON each way.
//!
//! ```text
//! > {"v":1,"verb":"stats"}
//! < {"v":1,"ok":{...}}
//! > {"v":1,"verb":"juggle"}
//! < {"v":1,"error":"there is no verb \"juggle\"","remedy":"the verbs are stats, reload"}
//! ```
//!
//! `v` is the version of all of this: it changes when an old reader would misread. Members may be added to an object, so
//! readers pass over those they do not know.

use crossbeam::channel::Sender;
use serde_json::{Value, json};

use crate::error::SetupError;
use crate::io::Waker;

/// The version that is spoken.
pub const VERSION: u64 = 1;

/// The longest request, in bytes, without the end of its line.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// All numbers as they are now.
    Stats,
    /// Something that the gateway's owner does.
    Order(Ask),
}

/// What the gateway's owner can be asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Read the configuration again.
    Reload,
}

/// The verbs.
const VERBS: [(&str, Request); 2] = [("stats", Request::Stats), ("reload", Request::Order(Ask::Reload))];

impl Request {
    /// As a line, without its end.
    pub(super) fn line(&self) -> String {
        let verb = VERBS.iter().find(|(_, request)| request == self).map_or("", |(verb, _)| *verb);
        json!({ "v": VERSION, "verb": verb }).to_string()
    }

    pub(super) fn read(line: &[u8]) -> Result<Request, SetupError> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| SetupError::new(format!("not a line of JSON: {error}")).remedy(example()))?;
        match value.get("v").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(SetupError::new(format!("version {version} of the protocol is not spoken here")).remedy(
                    format!("this is version {VERSION}: take the echogate that the gateway was started with"),
                ));
            }
            None => return Err(SetupError::new("a request without its version").remedy(example())),
        }
        let Some(verb) = value.get("verb").and_then(Value::as_str) else {
            return Err(SetupError::new("a request without its verb").remedy(example()));
        };
        VERBS.iter().find(|(name, _)| *name == verb).map(|(_, request)| request.clone()).ok_or_else(|| {
            let names: Vec<&str> = VERBS.iter().map(|(name, _)| *name).collect();
            SetupError::new(format!("there is no verb {verb:?}")).remedy(format!("the verbs are {}", names.join(", ")))
        })
    }
}

fn example() -> String {
    format!("such as {}", Request::Stats.line())
}

/// An answer as a line, with its end.
pub(super) fn answer(result: Result<Value, SetupError>) -> Vec<u8> {
    let value = match result {
        Ok(value) => json!({ "v": VERSION, "ok": value }),
        Err(error) => {
            let (what, remedy) = error.into_parts();
            json!({ "v": VERSION, "error": what, "remedy": remedy })
        }
    };
    format!("{value}\n").into_bytes()
}

/// What an answer said.
pub(super) fn read_answer(line: &str) -> Result<Value, SetupError> {
    let strange = |what: &str| SetupError::new(format!("the gateway's answer {what}"));
    let mut value: Value = serde_json::from_str(line).map_err(|error| strange(&format!("is no JSON: {error}")))?;
    if value["v"] != VERSION {
        return Err(strange(&format!("is of another version than {VERSION}"))
            .remedy("take the echogate that the gateway was started with"));
    }
    if let Some(what) = value["error"].as_str() {
        let error = SetupError::new(what);
        return Err(match value["remedy"].as_str() {
            Some(remedy) => error.remedy(remedy),
            None => error,
        });
    }
    value.get_mut("ok").map(Value::take).ok_or_else(|| strange("says neither yes nor no"))
}

/// Something that the gateway's owner is asked to do.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub ask: Ask,
    /// Where to tell what came of it.
    pub answer: Answer,
}

/// Where an order is answered. Dropped without an answer, it says that there is none.
#[derive(Debug)]
pub struct Answer {
    /// The connection that waits.
    pub(super) peer: u64,
    pub(super) to: Option<Sender<Answered>>,
    pub(super) waker: Waker,
}

/// An order's answer, and the connection that waits for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) peer: u64,
    pub(super) result: Result<Value, SetupError>,
}

impl Answer {
    /// Tells whoever asked.
    pub fn give(mut self, result: Result<Value, SetupError>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Value, SetupError>) {
        let Some(to) = self.to.take() else { return };
        // The control thread has ended: so has the connection.
        let _ = to.send(Answered { peer: self.peer, result });
        self.waker.wake();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.send(Err(SetupError::new("the gateway ended before it answered")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_read_as_it_is_written() {
        for (_, request) in VERBS {
            assert_eq!(Request::read(request.line().as_bytes()).expect("a request"), request);
        }
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (line, why) in [
            ("", "not a line of JSON"),
            ("stats", "not a line of JSON"),
            ("\u{0}\u{1}", "not a line of JSON"),
            ("7", "a request without its version"),
            ("{}", "a request without its version"),
            ("{\"v\":\"1\",\"verb\":\"stats\"}", "a request without its version"),
            ("{\"v\":2,\"verb\":\"stats\"}", "version 2 of the protocol is not spoken here"),
            ("{\"v\":1}", "a request without its verb"),
            ("{\"v\":1,\"verb\":[\"stats\"]}", "a request without its verb"),
            ("{\"v\":1,\"verb\":\"juggle\"}", "there is no verb \"juggle\""),
        ] {
            let error = Request::read(line.as_bytes()).expect_err(line).to_string();
            assert!(error.starts_with(why), "{line:?}: {error}");
        }
        let deep = "[".repeat(REQUEST_BYTES_MAX);
        assert!(Request::read(deep.as_bytes()).is_err(), "the depth is bounded");
    }

    #[test]
    fn an_answer_is_read_as_it_is_written() {
        let read = |result| read_answer(String::from_utf8(answer(result)).expect("text").trim_end());
        assert_eq!(read(Ok(json!({ "a": 1 }))).expect("yes"), json!({ "a": 1 }));
        let refused = read(Err(SetupError::new("line 3: no").remedy("mend it"))).expect_err("no");
        assert_eq!(refused.to_string(), "line 3: no\n  remedy: mend it");
        assert!(read_answer("{\"v\":9,\"ok\":1}").is_err());
        assert!(read_answer("{\"v\":1}").is_err());
    }
}
