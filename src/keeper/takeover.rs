//! Requests to a keeper that runs: leave everything to another keeper (an upgrade), start another packet process, or read the
//! configuration again.
//!
//! They come over a Unix socket with an abstract name, made of the device's: such names belong to a network namespace, as the
//! device does, are gone with the process, and need no directory that somebody may write to. They have no permissions, so both
//! ends look who is at the other one, and speak with root and with their own user only.
//!
//! ```text
//! successor                          keeper
//! "take over"  ------------------->  ends its packet process, which serves first what it has read
//!              <-------------------  note, descriptors
//! "taken"      ------------------->  ends, and undoes nothing
//! hang-up      <-------------------
//! ```
//!
//! A successor that does not say "taken" has not got it: the keeper goes on. After "taken" nobody else has the descriptors: if
//! the successor fails, they are closed, and pings take the kernel's path. The sockets by which the gateway is looked at are among
//! the descriptors: whoever connects meanwhile waits. Between the two packet processes packets wait in the
//! queues of the device and the sockets.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use serde_json::{Value, json};

use super::Event;
use super::line::Line;
use super::said::Said;
use crate::error::SetupError;
use crate::gateway::Left;
use crate::sys::{namespace, passing};

/// How long each side waits for the other's next word.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take that a packet process has to end for and two have to start, the first of them in vain.
const ANSWER_MAX: Duration =
    Duration::from_secs(super::child::ENDING_MAX.as_secs() + 2 * super::STARTING_MAX.as_secs());

/// How long nobody is accepted after nobody could be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a taken name is tried.
const BIND_PAUSE: Duration = Duration::from_millis(5);

const TAKE_OVER: &str = "take over";
const RESTART: &str = "restart";
const RELOAD: &str = "reload";
const TAKEN: &str = "taken";

/// What somebody asks of a keeper.
#[derive(Debug)]
pub(super) enum Request {
    /// To leave everything to whoever is at the other end.
    TakeOver(Line),
    /// To start another packet process, and to say so.
    Restart(Line),
    /// To read the configuration again, and to say what has come of it.
    Reload(Line),
}

/// What stands before the device in the name.
const NAME: &str = "echogate/";

/// The kernel's list of Unix sockets in this network namespace, abstract names with an @ before them.
const SOCKETS: &str = "/proc/thread-self/net/unix";

fn name(device: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{NAME}{device}"))
}

fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let (own, _) = namespace::effective_ids();
    let peer = passing::peer_user(stream.as_fd())?;
    Ok(peer == 0 || peer == own)
}

/// Listens on a thread of its own for as long as the process runs.
pub(super) fn listen(device: &str, events: Sender<Event>) {
    let device = device.to_owned();
    let answer = move || {
        let listener = match name(&device).and_then(|name| bind(&name)) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "this gateway can be neither restarted nor taken over by command");
                return;
            }
        };
        for stream in listener.incoming() {
            let request = stream.inspect_err(|_| thread::sleep(ACCEPT_PAUSE)).and_then(request);
            match request {
                Ok(Some(request)) => drop(events.send(Event::Asked(request))),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a request to the keeper"),
            }
        }
    };
    // A machine that has no room for a thread has other troubles.
    let _ = thread::Builder::new().name("requests".to_owned()).spawn(answer);
}

/// The name of one that is just ending is free a moment later.
fn bind(name: &SocketAddr) -> io::Result<UnixListener> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match UnixListener::bind_addr(name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                thread::sleep(BIND_PAUSE);
            }
            bound => return bound,
        }
    }
}

/// What is asked, if it is anything, by somebody who may.
fn request(stream: UnixStream) -> io::Result<Option<Request>> {
    if !is_trusted(&stream)? {
        return Ok(None);
    }
    let line = patient(stream)?;
    let Some(message) = line.receive()? else { return Ok(None) };
    Ok(match message.value.as_str() {
        Some(TAKE_OVER) => Some(Request::TakeOver(line)),
        Some(RESTART) => Some(Request::Restart(line)),
        Some(RELOAD) => Some(Request::Reload(line)),
        _ => None,
    })
}

fn patient(stream: UnixStream) -> io::Result<Line> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Line::new(stream))
}

/// Leaves everything to the successor at the other end. An error: it has not taken it.
pub(super) fn give(line: &Line, left: &Left) -> io::Result<()> {
    let (names, descriptors): (Vec<&String>, Vec<_>) =
        left.descriptors.iter().map(|(name, descriptor)| (name, descriptor.as_fd())).unzip();
    line.send(&json!({ "note": left.note, "names": names }), &descriptors)?;
    match line.receive()? {
        Some(message) if message.value.as_str() == Some(TAKEN) => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the successor has hung up")),
    }
}

/// Connects to the keeper of this device; none if there is none.
fn connect(device: &str) -> Result<Option<Line>, SetupError> {
    let failed = |cause| SetupError::caused(format!("speaking with the gateway that keeps {device}"), cause);
    let stream = match UnixStream::connect_addr(&name(device).map_err(failed)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        stream => stream.map_err(failed)?,
    };
    if !is_trusted(&stream).map_err(failed)? {
        return Err(SetupError::new(format!("the gateway that keeps {device} is another user's"))
            .remedy("run as root, or as the user of that gateway"));
    }
    patient(stream).map(Some).map_err(failed)
}

/// Takes everything over from the keeper of this device, which has ended when this returns; none if there is none.
pub(super) fn take(device: &str) -> Result<Option<Left>, SetupError> {
    let Some(line) = connect(device)? else { return Ok(None) };
    let failed = |cause| SetupError::caused(format!("taking over from the gateway that keeps {device}"), cause);
    line.send(&json!(TAKE_OVER), &[]).map_err(failed)?;
    let nothing = || SetupError::new(format!("the gateway that keeps {device} does not hand it over"));
    let message = line.receive().map_err(failed)?.ok_or_else(nothing)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let names = message.value.get("names").and_then(Value::as_array).ok_or_else(nothing)?;
    let names = names.iter().map(text).collect::<Option<Vec<_>>>().ok_or_else(nothing)?;
    let note = message.value.get("note").ok_or_else(nothing)?.clone();
    if names.len() != message.descriptors.len() {
        return Err(nothing());
    }
    line.send(&json!(TAKEN), &[]).map_err(failed)?;
    // Its hang-up, or its silence: then it is on its way, and the device's name and ours are free a moment later.
    let _ = line.receive();
    Ok(Some(Left { note, descriptors: names.into_iter().zip(message.descriptors).collect() }))
}

/// The devices of the gateways that run in this network namespace and obey this user; of all of them, if none does. Anybody may take
/// such a name, so each is asked whose it is.
pub fn running() -> Vec<String> {
    // A host that does not tell has none, then: whoever names a device gets it all the same.
    let all = devices_among(&fs::read_to_string(SOCKETS).unwrap_or_default());
    let ours: Vec<String> = all.iter().filter(|device| matches!(connect(device), Ok(Some(_)))).cloned().collect();
    if ours.is_empty() { all } else { ours }
}

/// Each once: connections that wait to be accepted bear their listener's name.
fn devices_among(sockets: &str) -> Vec<String> {
    let names =
        sockets.lines().filter_map(|line| line.split_whitespace().nth(7)?.strip_prefix('@')?.strip_prefix(NAME));
    let mut devices: Vec<String> = names.map(str::to_owned).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// Has the keeper of this device start another packet process. What it serves now.
pub fn restart(device: &str) -> Result<String, SetupError> {
    ask(device, RESTART)
}

/// Has the keeper of this device read its configuration again. What it serves now; an error: why it goes on as before.
pub fn reload(device: &str) -> Result<String, SetupError> {
    ask(device, RELOAD)
}

fn ask(device: &str, what: &str) -> Result<String, SetupError> {
    let nobody = || {
        SetupError::new(format!("no gateway keeps {device} in this network namespace"))
            .remedy("echogate run, or name the --device of the one that runs")
    };
    let line = connect(device)?.ok_or_else(nobody)?;
    let failed = |cause| SetupError::caused(format!("speaking with the gateway that keeps {device}"), cause);
    line.send(&json!(what), &[]).map_err(failed)?;
    line.wait_at_most(ANSWER_MAX).map_err(failed)?;
    match line.receive().map_err(failed)?.and_then(|message| Said::read(&message.value)) {
        Some(Said::Serving(serving)) => Ok(serving),
        Some(Said::Fault(fault)) => Err(fault.error()),
        Some(Said::Alive) | None => Err(SetupError::new("the gateway does not answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_gateways_are_found_among_all_sockets_and_each_once() {
        let sockets = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 101 @echogate/wg-pings
0000000000000000: 00000003 00000000 00000000 0001 03 102 @echogate/wg-pings
0000000000000000: 00000002 00000000 00010000 0001 01 103 /run/echogate/echogate0.sock
0000000000000000: 00000002 00000000 00010000 0001 01 104 /tmp/@echogate/path
0000000000000000: 00000003 00000000 00000000 0001 03 105
0000000000000000: 00000002 00000000 00010000 0001 01 106 @echogate/echogate0
";
        assert_eq!(devices_among(sockets), ["echogate0", "wg-pings"]);
    }
}
