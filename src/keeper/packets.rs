//! The packet process: takes what the keeper hands over, gives up all else, waits for its turn, serves, and says so.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, Receiver};
use serde_json::Value;

use super::line::{Line, Message};
use super::said::Said;
use super::{BEGIN, LEAVE, STOP};
use crate::config::Source;
use crate::control::{Ask, Control, Listeners, Order};
use crate::error::SetupError;
use crate::gateway::{Gateway, Prepared, Steps, TABLES};
use crate::host::sandbox;
use crate::io::uring;
use crate::metrics::Snapshot;
use crate::sys::process;

/// How often the workers are asked whether they move, and the tables are marked as in use.
const PULSE: Duration = Duration::from_millis(250);

/// What it is called in `top`, for people only: while it waits for its turn, and from then on.
const WAITS: &CStr = c"echogate-spare";
const SERVES: &CStr = c"echogate-packet";

/// How a packet process has come to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Served {
    /// It was told to: its totals.
    Stopped(Box<Snapshot>),
    /// Another one goes on.
    Left,
    /// It could not begin or go on, and the keeper knows why; or the keeper is gone.
    Failed,
}

/// Serves what the keeper at the other end of standard input hands over, until it is told to end, or the keeper hangs up.
pub fn serve(log_lines_lost: Arc<AtomicU64>) -> Served {
    let Ok(end) = io::stdin().as_fd().try_clone_to_owned() else { return Served::Failed };
    let line = Line::new(UnixStream::from(end));
    let served = begin(&line, log_lines_lost).and_then(|begun| match begun {
        Some((gateway, control)) => go_on(gateway, control, &line),
        None => Ok(Served::Left),
    });
    served.unwrap_or_else(|error| {
        // A keeper that is gone needs no reason.
        let _ = line.send(&Said::Fault((&error).into()).write(), &[]);
        Served::Failed
    })
}

/// Makes everything ready and waits to be told to begin. None: it was told to end.
fn begin(line: &Line, log_lines_lost: Arc<AtomicU64>) -> Result<Option<(Gateway, Control)>, SetupError> {
    let nobody = || {
        SetupError::new("this is the part of a gateway that moves its packets: it is started by the part that keeps it")
            .remedy("echogate run")
    };
    let trial = uring::probe();
    let message = line.receive().map_err(|_| nobody())?.ok_or_else(nobody)?;
    let mut steps = Steps::begin();
    let Handed { source, mut descriptors } = Handed::read(message).ok_or_else(nobody)?;
    let tables = descriptors.remove(TABLES).ok_or_else(nobody)?;
    let mut find = |name: &str| descriptors.remove(name);
    let listeners = Listeners::adopt(&mut find)?;
    let config = source.config()?;
    steps.end_of("configuration");
    let prepared = Prepared::new(&config, tables, find, trial, &mut steps)?;
    if config.run.sandbox {
        // The rings are made, and whoever else has a thread has it.
        sandbox::allow_only_packets()?;
        steps.end_of("sandbox");
    }
    steps.tell("ready");
    process::set_name(WAITS);
    let order = line.receive().map_err(|_| nobody())?.ok_or_else(nobody)?;
    // From when there was something to do.
    let mut steps = Steps::begin();
    if order.value.as_str() != Some(BEGIN) {
        return Ok(None);
    }
    let gateway = prepared.serve(&mut steps)?;
    process::set_name(SERVES);
    let control = Control::start(listeners, gateway.observer(), log_lines_lost)?;
    steps.end_of("control");
    steps.tell("serves");
    Ok(Some((gateway, control)))
}

fn go_on(mut gateway: Gateway, control: Control, line: &Line) -> Result<Served, SetupError> {
    let orders = orders(line).map_err(|cause| SetupError::caused("listening to the keeper", cause))?;
    let say = |said: Said| line.send(&said.write(), &[]);
    let _ = say(Said::Serving(gateway.description().to_owned()));
    let faults = gateway.faults().clone();
    let mut asked = control.orders().clone();
    loop {
        channel::select! {
            recv(faults) -> fault => {
                return Err(fault.unwrap_or_else(|_| SetupError::new("the workers have ended")));
            }
            recv(asked) -> order => match order {
                Ok(Order { ask: Ask::Reload, answer }) => {
                    let refusal = SetupError::new("who moves packets has no files: the configuration is read by who keeps them");
                    answer.give(Err(refusal.remedy("echogate reload, or SIGHUP to the process of echogate run")));
                }
                Err(_) => {
                    tracing::error!("the thread of the control socket ended: nobody can look, and packets go on");
                    asked = channel::never();
                }
            },
            recv(orders) -> order => return match order {
                Ok(STOP) => gateway.stop().map(|totals| Served::Stopped(Box::new(totals))),
                Ok(_) => {
                    gateway.leave();
                    Ok(Served::Left)
                }
                Err(_) => Ok(Served::Failed),
            },
            default(PULSE) => if gateway.moves() {
                // Heard as a hang-up by `orders` if it fails.
                let _ = say(Said::Alive);
            },
        }
    }
}

/// What the keeper says from now on: how to end. Closed when it hangs up.
fn orders(line: &Line) -> io::Result<Receiver<&'static str>> {
    let (sender, receiver) = channel::bounded(1);
    let line = line.try_clone()?;
    let listen = move || {
        while let Ok(Some(message)) = line.receive() {
            let known = [STOP, LEAVE].into_iter().find(|order| message.value.as_str() == Some(order));
            if known.is_some_and(|order| sender.send(order).is_err()) {
                break;
            }
        }
    };
    thread::Builder::new().name("keeper-line".to_owned()).spawn(listen)?;
    Ok(receiver)
}

/// What the first message brings.
struct Handed {
    source: Source,
    descriptors: HashMap<String, OwnedFd>,
}

impl Handed {
    fn read(message: Message) -> Option<Handed> {
        let Message { value, descriptors } = message;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let list = |name: &str| value.get(name)?.as_array().map(Vec::as_slice);
        let flag = |flag: &Value| Some((text(flag.get(0)?)?, text(flag.get(1)?)?));
        let source = Source {
            text: text(value.get("text")?)?,
            path: text(value.get("path")?)?,
            flags: list("flags")?.iter().map(flag).collect::<Option<_>>()?,
        };
        let names = list("names")?.iter().map(text).collect::<Option<Vec<_>>>()?;
        let named = names.len() == descriptors.len();
        named.then(|| Handed { source, descriptors: names.into_iter().zip(descriptors).collect() })
    }
}
