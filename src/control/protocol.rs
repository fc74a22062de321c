//! What is said on the control socket: a line of JSON each way.
//!
//! ```text
//! > {"v":1,"verb":"stats"}
//! < {"v":1,"ok":{...}}
//! > {"v":1,"verb":"juggle"}
//! < {"v":1,"error":"there is no verb \"juggle\"","remedy":"the verbs are stats, reload, trace"}
//! > {"v":1,"verb":"trace","client":"10.66.0.2"}
//! < {"v":1,"ok":{}}
//! < {"v":1,"traced":{...}}
//! < {"v":1,"missed":12}
//! ```
//!
//! `v` is the version of all of this: it changes when an old reader would misread. Members may be added to an object, so
//! readers pass over those they do not know.

use crossbeam::channel::Sender;
use serde_json::{Value, json};

use crate::error::SetupError;
use crate::io::Waker;
use crate::worker::Subject;

/// The version that is spoken.
pub const VERSION: u64 = 1;

/// The longest request, in bytes, without the end of its line.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;

/// What can be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// All numbers as they are now.
    Stats,
    /// Packets of a client or a remote, as they pass, until whoever asked hangs up.
    Trace(Subject),
    /// Something that the gateway's owner does.
    Order(Ask),
}

/// What the gateway's owner can be asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Read the configuration again.
    Reload,
}

/// The verbs that stand alone.
const VERBS: [(&str, Request); 2] = [("stats", Request::Stats), ("reload", Request::Order(Ask::Reload))];

/// The one that needs to be told whom.
const TRACE: &str = "trace";

impl Request {
    /// As a line, without its end.
    pub fn line(&self) -> String {
        let request = match self {
            Request::Trace(Subject::Client(address)) => {
                json!({ "v": VERSION, "verb": TRACE, "client": address.to_string() })
            }
            Request::Trace(Subject::Remote(address)) => {
                json!({ "v": VERSION, "verb": TRACE, "remote": address.to_string() })
            }
            alone => {
                let verb = VERBS.iter().find(|(_, request)| request == alone).map_or("", |(verb, _)| *verb);
                json!({ "v": VERSION, "verb": verb })
            }
        };
        request.to_string()
    }

    /// The one that a line, without its end, is; the error is for whoever wrote it.
    pub fn read(line: &[u8]) -> Result<Request, SetupError> {
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
        if verb == TRACE {
            return read_subject(&value).map(Request::Trace);
        }
        VERBS.iter().find(|(name, _)| *name == verb).map(|(_, request)| request.clone()).ok_or_else(|| {
            let names: Vec<&str> = VERBS.iter().map(|(name, _)| *name).chain([TRACE]).collect();
            SetupError::new(format!("there is no verb {verb:?}")).remedy(format!("the verbs are {}", names.join(", ")))
        })
    }
}

fn read_subject(value: &Value) -> Result<Subject, SetupError> {
    let address = |name: &str| value.get(name).and_then(Value::as_str).and_then(|text| text.parse().ok());
    match (address("client"), address("remote")) {
        (Some(client), None) => Ok(Subject::Client(client)),
        (None, Some(remote)) => Ok(Subject::Remote(remote)),
        _ => Err(SetupError::new("trace whom?").remedy(format!(
            "name one client or one remote, such as {}",
            Request::Trace(Subject::Client([10, 66, 0, 2].into())).line()
        ))),
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
            let (what, remedy) = error.parts();
            json!({ "v": VERSION, "error": what, "remedy": remedy })
        }
    };
    format!("{value}\n").into_bytes()
}

/// A line of a trace, with its end.
pub(super) fn traced(what: &Value) -> Vec<u8> {
    format!("{}\n", json!({ "v": VERSION, "traced": what })).into_bytes()
}

/// A line that says how many packets of a trace were not told, with its end.
pub(super) fn missed(count: u64) -> Vec<u8> {
    format!("{}\n", json!({ "v": VERSION, "missed": count })).into_bytes()
}

/// What an answer said.
pub fn read_answer(line: &str) -> Result<Value, SetupError> {
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

/// A line of a trace.
#[derive(Clone, PartialEq, Debug)]
pub enum Followed {
    /// A packet.
    Traced(Value),
    /// So many were not told.
    Missed(u64),
}

/// What a line of a trace said.
pub fn read_followed(line: &str) -> Result<Followed, SetupError> {
    let mut value: Value = serde_json::from_str(line)
        .map_err(|error| SetupError::new(format!("the gateway's line is no JSON: {error}")))?;
    if let Some(count) = value["missed"].as_u64() {
        return Ok(Followed::Missed(count));
    }
    let traced = value.get_mut("traced").map(Value::take);
    traced.map(Followed::Traced).ok_or_else(|| SetupError::new("the gateway's line is none of a trace"))
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
        let address = [192, 0, 2, 7].into();
        let traces = [Subject::Client(address), Subject::Remote(address)].map(Request::Trace);
        for request in VERBS.map(|(_, request)| request).into_iter().chain(traces) {
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
            ("{\"v\":1,\"verb\":\"trace\"}", "trace whom?"),
            ("{\"v\":1,\"verb\":\"trace\",\"client\":\"10.66.0.0/24\"}", "trace whom?"),
            ("{\"v\":1,\"verb\":\"trace\",\"client\":\"10.66.0.2\",\"remote\":\"192.0.2.7\"}", "trace whom?"),
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
