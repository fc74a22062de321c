//! The other end of the control socket: what `stats` and `top` ask by.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::protocol::{self, Followed, Request};
use crate::error::SetupError;

/// How long an answer may take. What is asked is answered at once, so whoever is not answered looks at a gateway that hangs, and `top`
/// obeys no key meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// A connection to a gateway.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the gateway that listens here.
    pub fn connect(path: &Path) -> Result<Client, SetupError> {
        let shown = path.display();
        let connected = UnixStream::connect(path)
            .and_then(|stream| stream.set_read_timeout(Some(PATIENCE)).map(|()| stream))
            .and_then(|stream| stream.set_write_timeout(Some(PATIENCE)).map(|()| stream));
        let stream = connected.map_err(|cause| {
            let remedy = match cause.kind() {
                ErrorKind::PermissionDenied => "ask as root, or as the gateway's user",
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => "is it running? give --control its path",
                _ => "give --control the path of a gateway's control socket",
            };
            SetupError::caused(format!("cannot reach a gateway at {shown}"), cause).remedy(remedy)
        })?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Value, SetupError> {
        let line = format!("{}\n", request.line());
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|cause| SetupError::caused("the gateway takes no question", cause))?;
        protocol::read_answer(&self.line()?)
    }

    /// The next line of a trace: a packet, or how many were not told.
    pub fn follow(&mut self) -> Result<Followed, SetupError> {
        let line = self.line()?;
        protocol::read_followed(&line)
    }

    /// Waits as long as it takes for what comes next.
    pub fn wait_for_ever(&mut self) -> Result<(), SetupError> {
        let waits = self.stream.get_ref().set_read_timeout(None);
        waits.map_err(|cause| SetupError::caused("cannot wait for the gateway", cause))
    }

    fn line(&mut self) -> Result<String, SetupError> {
        let mut line = String::new();
        let read = (&mut self.stream).take(ANSWER_BYTES_MAX).read_line(&mut line);
        match read {
            Ok(_) if line.ends_with('\n') => Ok(line),
            Ok(_) => Err(SetupError::new("the gateway has gone")),
            Err(cause) => Err(SetupError::caused("the gateway does not answer", cause)),
        }
    }
}
