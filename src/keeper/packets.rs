//! The packet process: takes what the keeper hands over, serves, and says so.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, Receiver};
use serde_json::Value;

use super::line::{Line, Message};
use super::{Said, TABLES};
use crate::config::Source;
use crate::control::{Ask, Control, Listeners, Order};
use crate::error::SetupError;
use crate::gateway::Gateway;
use crate::metrics::Snapshot;

/// How often the workers are asked whether they move, and the tables are marked as in use.
const PULSE: Duration = Duration::from_millis(250);

/// Pulses without a turn of every worker until the keeper is not told any more that all are alive.
const LATE_MAX: u32 = 1;

/// Serves what the keeper at the other end of standard input hands over, until it says stop or hangs up. The totals, if it
/// was asked to stop; none: it could not begin or go on, and the keeper knows why.
pub fn serve(log_lines_lost: Arc<AtomicU64>) -> Option<Snapshot> {
    let line = io::stdin().as_fd().try_clone_to_owned().map(|end| Line::new(UnixStream::from(end))).ok()?;
    let result = begin(&line, log_lines_lost).and_then(|(gateway, control)| go_on(gateway, control, &line));
    result
        .inspect_err(|error| {
            // A keeper that is gone needs no reason.
            let _ = line.send(&Said::Fault(error.to_string()).write(), &[]);
        })
        .ok()
        .flatten()
}

fn begin(line: &Line, log_lines_lost: Arc<AtomicU64>) -> Result<(Gateway, Control), SetupError> {
    let nobody = || {
        SetupError::new("this is the part of a gateway that moves its packets: it is started by the part that keeps it")
            .remedy("echogate run")
    };
    let message = line.receive().map_err(|_| nobody())?.ok_or_else(nobody)?;
    let Handed { source, addresses, mut descriptors } = Handed::read(message).ok_or_else(nobody)?;
    let tables = descriptors.remove(TABLES).ok_or_else(nobody)?;
    let mut find = |name: &str| descriptors.remove(name);
    let listeners = Listeners::adopt(&mut find)?;
    let gateway = Gateway::resume(&source.config()?, tables, find, &addresses)?;
    let control = Control::start(listeners, gateway.observer(), log_lines_lost)?;
    Ok((gateway, control))
}

/// Serves until the end. None: the keeper is gone, and nobody wants totals.
fn go_on(mut gateway: Gateway, control: Control, line: &Line) -> Result<Option<Snapshot>, SetupError> {
    let orders = orders(line).map_err(|cause| SetupError::caused("listening to the keeper", cause))?;
    let say = |said: Said| line.send(&said.write(), &[]);
    let _ = say(Said::Serving(gateway.description().to_owned()));
    let faults = gateway.faults().clone();
    let mut asked = control.orders().clone();
    let mut late = 0;
    loop {
        channel::select! {
            recv(faults) -> fault => {
                return Err(fault.unwrap_or_else(|_| SetupError::new("the workers have ended")));
            }
            recv(asked) -> order => match order {
                Ok(Order { ask: Ask::Reload, answer }) => {
                    let refusal = SetupError::new("this gateway reads its configuration when it starts, and only then");
                    answer.give(Err(refusal.remedy("restart it")));
                }
                Err(_) => {
                    tracing::error!("the thread of the control socket ended: nobody can look, and packets go on");
                    asked = channel::never();
                }
            },
            recv(orders) -> stop => return stop.ok().map(|()| gateway.stop()).transpose(),
            default(PULSE) => {
                late = if gateway.pulse() { 0 } else { late + 1 };
                if late <= LATE_MAX {
                    // Heard as a hang-up by `orders` if it fails.
                    let _ = say(Said::Alive);
                }
            }
        }
    }
}

/// What the keeper says from now on: stop. Closed when it hangs up.
fn orders(line: &Line) -> io::Result<Receiver<()>> {
    let (sender, receiver) = channel::bounded(1);
    let line = line.try_clone()?;
    let listen = move || {
        while let Ok(Some(message)) = line.receive() {
            if message.value.as_str() == Some("stop") && sender.send(()).is_err() {
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
    addresses: Vec<Ipv4Addr>,
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
        let address = |address: &Value| address.as_str()?.parse().ok();
        let addresses = list("addresses")?.iter().map(address).collect::<Option<_>>()?;
        let names = list("names")?.iter().map(text).collect::<Option<Vec<_>>>()?;
        let named = names.len() == descriptors.len();
        named.then(|| Handed { source, addresses, descriptors: names.into_iter().zip(descriptors).collect() })
    }
}
