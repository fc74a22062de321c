//! A packet process as its keeper sees it: a child, the line to it, and what it has said.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use serde_json::json;

use super::line::Line;
use super::said::{Fault, Said};
use super::{BEGIN, Event, LEAVE, Options, SILENCE_MAX, SUBCOMMAND, supervisor};
use crate::config::Source;
use crate::control::Listeners;
use crate::error::SetupError;
use crate::gateway::Kept;
use crate::sys::process;

/// The program that is running, also where its file has been replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// How long it may take to answer what it can and to end.
pub(super) const ENDING_MAX: Duration = Duration::from_secs(5);

/// A process that ends when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    line: Line,
}

/// One that makes everything ready, and then waits to be told to begin. It does not use the tables, so that it may do so while another
/// one serves or is still ending: all that takes time is the same whenever it begins (loading the program, giving up privileges,
/// rings, threads, the memory's pages).
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) number: u64,
    process: Process,
    pub(super) started: Instant,
    pub(super) fault: Option<Fault>,
}

/// One that has been told to begin.
#[derive(Debug)]
pub(super) struct Packets {
    pub(super) number: u64,
    process: Process,
    pub(super) started: Instant,
    pub(super) heard: Instant,
    pub(super) serves: bool,
    /// It was killed because it said nothing.
    pub(super) stuck: bool,
    /// It has been waited for.
    over: bool,
    pub(super) fault: Option<Fault>,
}

impl Spare {
    /// Starts one under this number, for this.
    pub(super) fn start(
        number: u64,
        options: &Options,
        kept: &Kept,
        listeners: &Listeners,
        events: &Sender<Event>,
    ) -> Result<Spare, SetupError> {
        let failed = |cause| SetupError::caused("starting the packet process", cause);
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // One that does not read must not hold up who is to notice that.
        ours.set_write_timeout(Some(SILENCE_MAX)).map_err(failed)?;
        let mut command = Command::new(OURSELVES);
        command.arg0("echogate").arg(SUBCOMMAND);
        // It has been checked.
        if let Ok(config) = options.source.config() {
            command.args(options.log.arguments(&config.observe));
            if !config.run.sandbox {
                command.arg("--no-sandbox");
            }
        }
        for variable in supervisor::VARIABLES {
            command.env_remove(variable);
        }
        // Ctrl-C in the gateway's terminal is for the keeper.
        command.process_group(0).stdin(Stdio::from(OwnedFd::from(theirs)));
        process::kill_with_this_thread(&mut command);
        let child = command.spawn().map_err(failed)?;
        // Its end of the line is closed with the command, or nobody would hear of its death.
        drop(command);
        let process = Process { child, line: Line::new(ours) };
        let listening = process.listen(number, events.clone());
        listening.map_err(|cause| SetupError::caused("listening to the packet process", cause))?;
        // One that is dead already is heard of by its silence.
        let _ = process.tell(&options.source, kept, listeners);
        Ok(Spare { number, process, started: Instant::now(), fault: None })
    }

    /// Tells it to begin: from now on it uses the tables, and nobody else may.
    pub(super) fn begin(self) -> Packets {
        let Spare { number, process, fault, .. } = self;
        let _ = process.line.send(&json!(BEGIN), &[]);
        let now = Instant::now();
        Packets { number, process, started: now, heard: now, serves: false, stuck: false, over: false, fault }
    }

    /// Waits for its end, which is now if it has not come yet. Why it has ended.
    pub(super) fn why(&mut self) -> SetupError {
        self.process.kill();
        why(self.fault.as_ref(), &self.process.child.wait())
    }

    /// Ends it. It lets go of the device before it ends, which the kernel does for one that is killed some time after that.
    pub(super) fn end(mut self) {
        if let Ok(None) = self.process.end(LEAVE) {
            tracing::warn!("the packet process that waited did not end and was killed");
        }
    }
}

impl Process {
    fn tell(&self, source: &Source, kept: &Kept, listeners: &Listeners) -> io::Result<()> {
        let named = kept.descriptors().into_iter().chain(listeners.descriptors());
        let (names, descriptors): (Vec<String>, Vec<BorrowedFd<'_>>) = named.unzip();
        let order = json!({ "text": source.text, "path": source.path, "flags": source.flags, "names": names });
        self.line.send(&order, &descriptors)
    }

    /// Hears what it says on a thread of its own, until it hangs up.
    fn listen(&self, number: u64, events: Sender<Event>) -> io::Result<()> {
        let line = self.line.try_clone()?;
        let hear = move || {
            // The keeper is gone only when everything is.
            while let Ok(Some(message)) = line.receive() {
                if let Some(said) = Said::read(&message.value) {
                    let _ = events.send(Event::Said(number, said));
                }
            }
            let _ = events.send(Event::Gone(number));
        };
        thread::Builder::new().name("packets-line".to_owned()).spawn(hear).map(drop)
    }

    /// Has it end in the way that is named, and waits for that: not for ever. None: it was killed.
    fn end(&mut self, how: &str) -> io::Result<Option<ExitStatus>> {
        // One that is dead already does not hear it.
        let _ = self.line.send(&json!(how), &[]);
        let deadline = Instant::now() + ENDING_MAX;
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                None => {
                    self.kill();
                    return Ok(None);
                }
            }
        }
    }

    /// Ends it, as far as it has not ended.
    fn kill(&mut self) {
        // It has ended already, then.
        let _ = self.child.kill();
    }
}

impl Packets {
    /// Waits for its end, which is now if it has not come yet.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        // Hung up, and yet alive: it is no use to anybody.
        self.kill();
        self.over = true;
        self.process.child.wait()
    }

    /// Ends it, as far as it has not ended.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    /// Why it has ended.
    pub(super) fn why(&self, status: &io::Result<ExitStatus>) -> SetupError {
        why(self.fault.as_ref(), status)
    }

    /// Has it end in the way that is named, and waits for that.
    pub(super) fn end(&mut self, how: &str) -> Result<(), SetupError> {
        if self.over {
            // Whoever was to hear why has heard it.
            return Ok(());
        }
        match self.process.end(how) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(self.why(&Ok(status))),
            Ok(None) => Err(SetupError::new("the packet process did not end and was killed")),
            Err(error) => Err(SetupError::caused("waiting for the packet process", error)),
        }
    }
}

/// Why one has ended that may have said so itself.
fn why(fault: Option<&Fault>, status: &io::Result<ExitStatus>) -> SetupError {
    match (fault, status) {
        (Some(fault), _) => fault.error(),
        (None, Ok(status)) => SetupError::new(format!("the packet process has ended ({status})")),
        (None, Err(error)) => SetupError::new(format!("the packet process has ended ({error})")),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
