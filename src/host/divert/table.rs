//! The nftables table, and who keeps it.
//!
//! A table with `flags owner` belongs to the netlink socket that made it: the kernel removes it when that socket closes,
//! refuses changes by anybody else, and leaves it out of other programs' `flush ruleset`. The socket is that of a child,
//! `nft -i`, which reads commands from a pipe and ends when the pipe closes. The pipe's only writing end is ours, so the
//! chain holds however this process ends: pipe closed, child gone, table gone. No supervisor, nothing to clean up.
//!
//! Who has the pipe has the table ([`Ownership`]): it can be handed to another process, which then keeps the table in force
//! without a moment in which it is not. A child of somebody else's is told to quit, and known to be gone when it hangs up.
//!
//! An nft without an interactive mode or a kernel before 5.12 refuses; then a plain table does, removed at the end and
//! replaced by the next start, and one warning says what is lost.
//!
//! All of it is one line, hence one transaction: it is in force as a whole or not at all. nft does not acknowledge what
//! it is told interactively, so the table carries a chain whose name is new each time; when it can be listed, this very
//! line has been executed.
//!
//! Rejected: speaking nftables' netlink protocol ourselves (our socket would be the owner, without a child): some 300
//! lines of encodings that the kernel does not document, against a program that every host with this feature has.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::DivertSettings;
use super::ruleset::{FAMILIES, IP, Links, transaction, unstamped};
use crate::error::SetupError;
use crate::host::nft::{self, Failure};
use crate::sys::poll;

/// The table goes with the socket that made it.
const OWNED: &str = "{ flags owner; }";

/// How long nft may take to execute the line, and to end when told.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How often that is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// How long after nft's first complaint the rest of it is waited for.
const COMPLAINT_TIME: Duration = Duration::from_millis(200);

/// The table in force, until dropped (an owned one) or removed.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    /// The chain that tells this table from a predecessor's.
    stamp: String,
    links: Links,
    owner: Option<Owner>,
}

/// An nft whose life is the table's.
#[derive(Debug)]
struct Owner {
    /// None: another process has started it.
    child: Option<Child>,
    /// None once it has been told to end.
    commands: Option<File>,
    complaints: File,
}

/// What keeps a table in force, for whoever has it.
#[derive(Debug)]
pub struct Ownership {
    /// The chain that tells this table from others.
    pub stamp: String,
    /// The whole of the table, but for the stamp: a table that says something else is of no use.
    pub ruleset: String,
    /// The pipe to nft.
    pub commands: OwnedFd,
    /// The pipe from it.
    pub complaints: OwnedFd,
}

impl Table {
    /// Makes the table; replaces one of the same name that nobody owns.
    pub(super) fn install(settings: &DivertSettings, links: &Links) -> Result<Table, SetupError> {
        let (name, stamp) = (settings.table_name(), new_stamp());
        match Owner::install(settings, links, &stamp) {
            Ok(owner) => Ok(Table { name, stamp, links: links.clone(), owner: Some(owner) }),
            Err(Failure::NotRun(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::NotRun(error).into_setup_error("diverting echo requests"))
            }
            Err(why) => {
                let table = Table::install_plain(settings, links)?;
                tracing::warn!(
                    %why,
                    "no nftables table that vanishes with its owner: if the gateway is killed, clients' pings are lost until \
                     it starts again, or until `nft delete table ip {name}`"
                );
                Ok(table)
            }
        }
    }

    /// Removes a table of this name, if there is one. One that is owned is a living gateway's, and the kernel refuses.
    pub(super) fn clear(name: &str) -> Result<(), SetupError> {
        let operation = "removing the nftables table";
        for family in FAMILIES {
            match nft::run(&["list", "table", family, name], "") {
                Ok(_) => {}
                Err(Failure::Refused(_)) => continue,
                Err(failure) => return Err(failure.into_setup_error(operation)),
            }
            let deleted = nft::run(&["delete", "table", family, name], "");
            deleted.map_err(|failure| failure.into_setup_error(operation))?;
        }
        Ok(())
    }

    /// The table that was left, if it is in force. One that says something else than these settings is replaced by its own nft, in
    /// one transaction; if that cannot be, it is ended.
    pub(super) fn adopt(settings: &DivertSettings, links: &Links, ownership: Ownership) -> Option<Table> {
        let Ownership { stamp, ruleset, commands, complaints } = ownership;
        let name = settings.table_name();
        let mut owner = Owner { child: None, commands: Some(commands.into()), complaints: complaints.into() };
        if !owner.lives() || !is_listed(&name, &stamp) {
            return None;
        }
        if ruleset == unstamped(settings, links) {
            return Some(Table { name, stamp, links: links.clone(), owner: Some(owner) });
        }
        let stamp = new_stamp();
        let replaced = owner.replace(settings, links, &stamp);
        replaced.inspect_err(|why| tracing::warn!(%why, "the nftables table is made anew")).ok().map(|()| Table {
            name,
            stamp,
            links: links.clone(),
            owner: Some(owner),
        })
    }

    /// Whether its rules are bound to these devices.
    pub(super) fn is_for(&self, links: &Links) -> bool {
        self.links == *links
    }

    /// This table with its rules bound to these devices, in one transaction; if that cannot be, another in its place.
    pub(super) fn replaced(mut self, settings: &DivertSettings, links: &Links) -> Result<Table, SetupError> {
        let Some(owner) = &mut self.owner else { return Table::install_plain(settings, links) };
        let stamp = new_stamp();
        match owner.replace(settings, links, &stamp) {
            Ok(()) => Ok(Table { stamp, links: links.clone(), ..self }),
            Err(why) => {
                tracing::warn!(%why, "the nftables table is made anew");
                // The old one first: two owners of one table exclude each other.
                drop(self);
                Table::install(settings, links)
            }
        }
    }

    /// Another handle to what keeps this table in force; none if nothing needs to.
    pub(super) fn ownership(&self, settings: &DivertSettings) -> Option<Ownership> {
        let owner = self.owner.as_ref()?;
        let clone = |file: &File| file.as_fd().try_clone_to_owned().ok();
        Some(Ownership {
            stamp: self.stamp.clone(),
            ruleset: unstamped(settings, &self.links),
            commands: clone(owner.commands.as_ref()?)?,
            complaints: clone(&owner.complaints)?,
        })
    }

    /// Leaves it in force, for whoever has its [`Ownership`] too.
    pub(super) fn leave(mut self) {
        if let Some(owner) = &mut self.owner {
            // Not ours to end any more. Its number is waited for by whoever becomes its parent.
            owner.child = None;
            owner.commands = None;
        }
    }

    /// Makes one that nobody owns.
    pub(super) fn install_plain(settings: &DivertSettings, links: &Links) -> Result<Table, SetupError> {
        let (name, stamp) = (settings.table_name(), new_stamp());
        nft::run(&["-f", "-"], &transaction("", settings, links, &stamp, ""))
            .map_err(|failure| failure.into_setup_error("diverting echo requests"))?;
        Ok(Table { name, stamp, links: links.clone(), owner: None })
    }

    /// Whether the table is still the one that was made.
    pub(super) fn in_force(&mut self) -> bool {
        match &mut self.owner {
            Some(owner) => owner.lives(),
            // Who has taken one of the two away has taken it as a whole: it is made anew.
            None if self.links.tun.is_some() => {
                FAMILIES.iter().all(|family| is_listed_in(family, &self.name, &self.stamp))
            }
            None => is_listed(&self.name, &self.stamp),
        }
    }

    /// What becomes readable when an owned table is lost. A plain one is watched by nftables' news.
    pub(super) fn signal(&self) -> Option<BorrowedFd<'_>> {
        self.owner.as_ref().map(|owner| owner.complaints.as_fd())
    }

    #[cfg(test)]
    pub(super) fn child_id(&self) -> Option<u32> {
        self.owner.as_ref()?.child.as_ref().map(Child::id)
    }

    /// Removes the table and waits until it is gone.
    pub(super) fn remove(mut self) -> Result<(), SetupError> {
        match self.owner.take() {
            Some(owner) => drop(owner),
            // Somebody else's of this name is none of our business.
            None => {
                for family in FAMILIES.into_iter().filter(|family| is_listed_in(family, &self.name, &self.stamp)) {
                    nft::run(&["delete", "table", family, &self.name], "")
                        .map_err(|failure| failure.into_setup_error("removing the nftables table"))?;
                }
            }
        }
        match FAMILIES.into_iter().find(|family| is_listed_in(family, &self.name, &self.stamp)) {
            Some(family) => Err(SetupError::new(format!("nftables table {family} {} is still there", self.name))),
            None => Ok(()),
        }
    }
}

impl Ownership {
    /// Ends the table, where nobody takes it up.
    pub fn end(self) {
        drop(Owner { child: None, commands: Some(self.commands.into()), complaints: self.complaints.into() });
    }
}

impl Owner {
    fn install(settings: &DivertSettings, links: &Links, stamp: &str) -> Result<Owner, Failure> {
        let mut child = nft::command()?
            .arg("-i")
            // Ctrl-C in the gateway's terminal is for the gateway: the table goes last, and only when told.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Failure::NotRun)?;
        let (Some(commands), Some(complaints)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(Failure::NotRun(io::ErrorKind::BrokenPipe.into()));
        };
        let (commands, complaints) = (OwnedFd::from(commands), OwnedFd::from(complaints));
        let mut owner = Owner { child: Some(child), commands: Some(commands.into()), complaints: complaints.into() };
        owner.command(&transaction("", settings, links, stamp, OWNED))?;
        owner.await_table(&settings.table_name(), stamp)?;
        Ok(owner)
    }

    /// Puts another table in the place of the one that is in force.
    fn replace(&mut self, settings: &DivertSettings, links: &Links, stamp: &str) -> Result<(), Failure> {
        // To add a table that is there with other flags would be to change them, which the kernel refuses.
        self.command(&transaction(OWNED, settings, links, stamp, OWNED))?;
        self.await_table(&settings.table_name(), stamp)
    }

    fn command(&mut self, line: &str) -> Result<(), Failure> {
        let Some(pipe) = &mut self.commands else { return Ok(()) };
        pipe.write_all(line.as_bytes()).map_err(Failure::NotRun)
    }

    /// Waits until the kernel has the table, or nft has said why not.
    fn await_table(&mut self, name: &str, stamp: &str) -> Result<(), Failure> {
        let mut deadline = Instant::now() + TIME_LIMIT;
        let mut words = Vec::new();
        loop {
            if is_listed(name, stamp) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(match words.is_empty() {
                    true => Failure::NotRun(std::io::ErrorKind::TimedOut.into()),
                    false => Failure::Refused(nft::first_error(&String::from_utf8_lossy(&words))),
                });
            }
            let [complains] = poll::readable([self.complaints.as_fd()], Some(PAUSE)).map_err(Failure::NotRun)?;
            if complains {
                if words.is_empty() {
                    deadline = deadline.min(Instant::now() + COMPLAINT_TIME);
                }
                // The end of the pipe: no more words will come.
                if self.hear(&mut words) == 0 {
                    deadline = Instant::now();
                }
            }
        }
    }

    /// Reads what is there; 0 at the end of the pipe. Only to be called when there is something to read.
    fn hear(&mut self, words: &mut Vec<u8>) -> usize {
        let mut piece = [0; 1024];
        let length = self.complaints.read(&mut piece).unwrap_or(0);
        words.extend_from_slice(piece.get(..length).unwrap_or(&[]));
        length
    }

    fn lives(&mut self) -> bool {
        // What it complains about while idle is of no interest, but must not wake the watcher for ever.
        while let Ok([true]) = poll::readable([self.complaints.as_fd()], Some(Duration::ZERO)) {
            if self.hear(&mut Vec::new()) == 0 {
                return false;
            }
        }
        self.runs()
    }

    fn runs(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => !hangs_up(&mut self.complaints),
        }
    }
}

/// Whether everybody has closed the other end of this pipe. What is in it is thrown away.
fn hangs_up(pipe: &mut File) -> bool {
    while let Ok([true]) = poll::readable([pipe.as_fd()], Some(Duration::ZERO)) {
        if matches!(pipe.read(&mut [0; 1024]), Ok(0) | Err(_)) {
            return true;
        }
    }
    false
}

impl Drop for Owner {
    /// Ends nft and waits for it: the kernel removes the table as its socket closes. Others may have the pipe as well, so it is
    /// told.
    fn drop(&mut self) {
        let Some(mut commands) = self.commands.take() else { return };
        // Gone already, then.
        let _ = commands.write_all(b"quit\n");
        drop(commands);
        let deadline = Instant::now() + TIME_LIMIT;
        while self.runs() {
            if Instant::now() >= deadline {
                if let Some(child) = &mut self.child {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                return;
            }
            thread::sleep(PAUSE);
        }
    }
}

/// A chain name that no other table of this host has.
fn new_stamp() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Relaxed: the numbers need to differ and nothing else.
    format!("gateway_{}_{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn is_listed(table: &str, stamp: &str) -> bool {
    is_listed_in(IP, table, stamp)
}

fn is_listed_in(family: &str, table: &str, stamp: &str) -> bool {
    nft::run(&["list", "chain", family, table, stamp], "").is_ok()
}
