//! The watcher: a thread that looks whenever the kernel has news, and puts back what is missing.
//!
//! Link down and up empties the routing table for good; network managers flush rules and addresses they do not know;
//! the child that owns the nftables table can be killed. News only wakes: the state itself is compared each time, so
//! a lost event costs nothing and our own changes cost one more look. A failure is logged when it begins and tried again
//! every second.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Installed;
use crate::error::SetupError;
use crate::host::netlink::{Events, Group};
use crate::sys::poll;

/// News comes in bursts (a router's routes): one look for all of it, at most ten a second.
const SETTLE: Duration = Duration::from_millis(100);

/// When to try again what failed.
const RETRY: Duration = Duration::from_secs(1);

/// The thread, and the way to end it.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Hangs up when dropped; the thread sees that and returns what it held.
    stop: UnixStream,
    thread: JoinHandle<Installed>,
}

/// Subscribed, so that no news is missed between setting up and starting the thread.
#[derive(Debug)]
pub(super) struct Subscribed {
    routing: Events,
    nftables: Events,
}

impl Watcher {
    /// Subscribes to the news of the calling thread's namespace.
    pub(super) fn subscribe() -> Result<Subscribed, SetupError> {
        let groups = [Group::Link, Group::Ipv4Address, Group::Ipv4Route, Group::Ipv4Rule, Group::Ipv4Settings];
        let open = |groups: &[Group]| {
            Events::open(groups).map_err(|error| SetupError::caused("subscribing to the kernel's news", error))
        };
        Ok(Subscribed { routing: open(&groups)?, nftables: open(&[Group::Nftables])? })
    }

    /// Ends the thread and undoes what it kept.
    pub(super) fn stop(self) -> Result<(), SetupError> {
        self.end()?.undo()
    }

    /// Ends the thread and leaves what it kept.
    pub(super) fn leave(self) -> Result<(), SetupError> {
        self.end()?.leave();
        Ok(())
    }

    fn end(self) -> Result<Installed, SetupError> {
        drop(self.stop);
        self.thread.join().map_err(|_| SetupError::new("the thread that watches the diversion has panicked"))
    }
}

impl Subscribed {
    pub(super) fn start(self, installed: Installed) -> Result<Watcher, SetupError> {
        let failed = |error| SetupError::caused("starting the thread that watches the diversion", error);
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let thread = thread::Builder::new()
            .name("divert-watch".to_owned())
            .spawn(move || watch(installed, self, &stopped))
            .map_err(failed)?;
        Ok(Watcher { stop, thread })
    }
}

fn watch(mut installed: Installed, mut news: Subscribed, stopped: &UnixStream) -> Installed {
    let mut failing = None;
    loop {
        let retry = failing.as_ref().map(|_| RETRY);
        match wait(&installed, &mut news, stopped, retry) {
            Ok(true) => return installed,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the diversion is no longer watched");
                return installed;
            }
        }
        failing = look(&mut installed, failing);
    }
}

/// Waits for news, then until it has settled. True: it is time to end.
fn wait(
    installed: &Installed,
    news: &mut Subscribed,
    stopped: &UnixStream,
    retry: Option<Duration>,
) -> io::Result<bool> {
    let stop = stopped.as_fd();
    // An owned table is lost with its owner only; a plain one can be changed by anybody.
    let table = match &installed.table {
        Some(table) => table.signal().unwrap_or(news.nftables.as_fd()),
        None => stop,
    };
    let [ended, ..] = poll::readable([stop, news.routing.as_fd(), table], retry)?;
    let [ended_since] = if ended { [true] } else { poll::readable([stop], Some(SETTLE))? };
    news.routing.drain()?;
    news.nftables.drain()?;
    Ok(ended || ended_since)
}

/// Compares and mends; returns what is failing now. A failure that goes on is not repeated in the log.
fn look(installed: &mut Installed, failing: Option<String>) -> Option<String> {
    match installed.mend() {
        Ok(mended) => {
            if !mended.is_empty() {
                tracing::warn!(device = %installed.settings.device.name, "put back: {}", mended.join(", "));
            } else if failing.is_some() {
                tracing::info!(device = %installed.settings.device.name, "the diversion is in force again");
            }
            None
        }
        Err(error) => {
            let words = error.to_string();
            if failing.as_ref() != Some(&words) {
                tracing::error!(error = %words, "the diversion is not in force");
            }
            Some(words)
        }
    }
}
