//! Whoever supervises the keeper: what it is told, and what it keeps for the next one (sd_notify(3), sd_listen_fds(3)).
//!
//! A supervisor with a descriptor store holds a copy of everything that the gateway's set-up hangs on. So the keeper may be killed,
//! too: device, sockets, tables and the nftables table stay, as does where it listens, and the next keeper gets them at its start, each under its
//! name, with a note of what they are for. Names that are not known are closed.
//!
//! The store is told not to poll (FDPOLL=0): a raw socket with an error in its queue, which is every day's business, would be thrown
//! out. Something that is stored twice is stored once.
//!
//! Nothing here is needed: without a supervisor nothing is told, and nothing is kept.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, process};

use serde_json::Value;

use crate::control::{LISTENERS, Listeners};
use crate::gateway::{COMMANDS, COMPLAINTS, Kept, Left};
use crate::sys::{self, mem, passing};

/// The variables by which a supervisor speaks: not for the packet process.
pub(super) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The name under which the note is stored.
const NOTE: &str = "note";

/// The most that a supervisor may hand over; more is a mistake.
const DESCRIPTORS_MAX: usize = 4096;

/// How long one that does not listen is waited for, once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest note, in bytes.
const NOTE_MAX: u64 = 1 << 20;

/// The one that started this process, if it listens.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// It has not listened.
    deaf: Arc<AtomicBool>,
    note: Option<File>,
    /// How often it wants to hear that all is well, and when it last has.
    watchdog: Option<Duration>,
    told_alive: Option<Instant>,
    left: Option<Left>,
    /// What there is to say about all that, once there is a log.
    doubts: Vec<String>,
}

impl Supervisor {
    /// As the environment says. To be called once, before this process has opened anything.
    pub fn from_environment() -> Supervisor {
        let mut doubts = Vec::new();
        if let Err(error) = sys::process::keep_inherited_from_children() {
            doubts.push(format!(
                "descriptors that were left open for this process are open in its children too: {error}"
            ));
        }
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                doubts.push(format!("the supervisor cannot be told anything: {path}: {error}"));
                None
            }
        });
        let mut supervisor = Supervisor { socket, watchdog: watchdog(), doubts, ..Supervisor::default() };
        supervisor.left = supervisor.inherit();
        if supervisor.socket.is_some() && supervisor.note.is_none() {
            supervisor.note = mem::memory_file(c"echogate-note").ok().map(File::from);
        }
        supervisor
    }

    /// Another handle, for another thread.
    pub(super) fn try_clone(&self) -> io::Result<Supervisor> {
        let socket = self.socket.as_ref().map(UnixDatagram::try_clone).transpose()?;
        let note = self.note.as_ref().map(File::try_clone).transpose()?;
        Ok(Supervisor { socket, deaf: Arc::clone(&self.deaf), note, ..Supervisor::default() })
    }

    /// Tells it `NAME=VALUE` lines.
    pub(super) fn tell(&self, lines: &str) {
        self.send(lines, &[]);
    }

    /// Tells it that every worker has moved, if it wants to know.
    pub(super) fn alive(&mut self) {
        let Some(interval) = self.watchdog else { return };
        if self.told_alive.is_none_or(|told| told.elapsed() >= interval) {
            self.told_alive = Some(Instant::now());
            self.tell("WATCHDOG=1");
        }
    }

    fn send(&self, lines: &str, descriptors: &[BorrowedFd<'_>]) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.deaf.load(Ordering::Relaxed)) else { return };
        if let Err(error) = passing::send(socket.as_fd(), lines.as_bytes(), descriptors) {
            tracing::warn!(%error, lines, "the supervisor cannot be told anything");
            // Relaxed: a remark by itself. One that does not listen must not be waited for a second time.
            self.deaf.store(true, Ordering::Relaxed);
        }
    }

    /// Has everything kept that the set-up hangs on, but for the diversion; what is kept already, once.
    pub(super) fn store(&self, kept: &Kept) {
        // Or there would be two of one name.
        kept.outdated().iter().for_each(|name| self.forget(name));
        self.store_note(&kept.note());
        if let Some(note) = &self.note {
            self.store_one(NOTE, note.as_fd());
        }
        kept.descriptors().iter().for_each(|(name, descriptor)| self.store_one(name, *descriptor));
    }

    /// Has these kept, and none that were kept before: whoever wants to look while no keeper runs waits for the next one, and a
    /// port that is not listened at any more is free.
    pub(super) fn store_listeners(&self, listeners: &Listeners) {
        LISTENERS.iter().for_each(|name| self.forget(name));
        listeners.bound().iter().for_each(|(name, descriptor)| self.store_one(name, *descriptor));
    }

    /// Has these kept in the place of those of the same names.
    pub(super) fn replace(&self, note: &Value, descriptors: &[(&str, BorrowedFd<'_>)]) {
        self.store_note(note);
        for (name, descriptor) in descriptors {
            self.forget(name);
            self.store_one(name, *descriptor);
        }
    }

    /// Has what is kept under this name closed.
    pub(super) fn forget(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Has nothing kept any more, and so nothing left in force.
    pub(super) fn forget_all(&self, kept: &Kept) {
        kept.descriptors().iter().for_each(|(name, _)| self.forget(name));
        [NOTE, COMMANDS, COMPLAINTS].iter().chain(&LISTENERS).for_each(|name| self.forget(name));
    }

    fn store_one(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[descriptor]);
    }

    /// The note is one file, which is written anew.
    fn store_note(&self, note: &Value) {
        let Some(file) = &self.note else { return };
        let written = file.set_len(0).and_then(|()| file.write_all_at(note.to_string().as_bytes(), 0));
        if let Err(error) = written {
            tracing::warn!(%error, "what is stored cannot be described: a successor will begin anew");
        }
    }

    /// What a predecessor has stored, if there is anything.
    pub(super) fn left(&mut self) -> Option<Left> {
        self.doubts.drain(..).for_each(|doubt| tracing::warn!("{doubt}"));
        self.left.take()
    }

    fn inherit(&mut self) -> Option<Left> {
        let count: usize = env::var("LISTEN_FDS").ok()?.parse().ok()?;
        if !is_for_us("LISTEN_PID")? || count == 0 || count > DESCRIPTORS_MAX {
            return None;
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let inherited = match passing::inherited(count) {
            Ok(inherited) => inherited,
            Err(error) => {
                self.doubts.push(format!("the supervisor hands over less than it says: {error}"));
                return None;
            }
        };
        let mut descriptors: HashMap<String, OwnedFd> = names.split(':').map(str::to_owned).zip(inherited).collect();
        // Written on by us: so it is the one that is stored already.
        let file = descriptors.remove(NOTE).map(File::from);
        let note = file.as_ref().and_then(read_note);
        self.note = file.filter(|_| note.is_some());
        if note.is_none() {
            self.forget(NOTE);
            let doubt = "the supervisor has handed over descriptors without a note of what they are: they are closed";
            self.doubts.push(doubt.to_owned());
            descriptors.keys().for_each(|name| self.forget(name));
        }
        Some(Left { note: note?, descriptors })
    }
}

/// Whether this variable names this process; none if it is not set.
fn is_for_us(variable: &str) -> Option<bool> {
    Some(env::var(variable).ok()?.parse() == Ok(process::id()))
}

/// Four times within the time that it waits for.
fn watchdog() -> Option<Duration> {
    let micros = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    is_for_us("WATCHDOG_PID").unwrap_or(true).then(|| Duration::from_micros(micros) / 4)
}

fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match path.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    Ok(socket)
}

fn read_note(file: &File) -> Option<Value> {
    // Its offset is shared with whoever else has it.
    let mut text = Vec::new();
    let mut at = 0;
    let mut piece = [0; 4096];
    while at < NOTE_MAX {
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&piece[..length]),
            Err(error) => {
                tracing::warn!(%error, "the note of what was left cannot be read");
                return None;
            }
        }
        at = text.len() as u64;
    }
    serde_json::from_slice(&text).ok()
}
