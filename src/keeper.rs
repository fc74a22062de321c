//! The keeper: a small process that has the privileges, and starts another that has the packets.
//!
//! ```text
//! keeper    device, sockets, tables' memory (gateway::Kept), diversion, the host's news
//!    |      a line: the configuration and the descriptors down; "serving", "alive" and faults up
//! packets   workers, rings, tables: the same binary, `echogate packets`
//!
//! spare     the same once more, with everything but the use of the tables: it waits to take the place of the former (`spare`)
//! ```
//!
//! A process that parses what strangers send may be killed, may crash, and should have no privileges; what it takes privileges to
//! make, and clients depend on, must not go with it. So whatever the packet process ends of, another one goes on over
//! the same descriptors and the same tables. Meanwhile packets wait in the queues of the device and the sockets; every mapping and
//! every echo that is awaited is in the tables ([`crate::state`]). What is lost are the packets that were in the process's buffers.
//!
//! Who ends when:
//!
//! * the packet process dies: the one that waits takes its place, at once, and another one is started to wait. One that dies
//!   again and again by itself (`FAILURES_MAX`) is given up: the diversion is undone, so that pings take the kernel's path, and
//!   the keeper ends with the reason;
//! * the keeper is told to stop (SIGINT, SIGTERM): it undoes the diversion first, then the packet process answers what it can,
//!   tells its totals and ends, then the rest is undone;
//! * the spare one dies: another one, after a while. Nothing else comes of it;
//! * the keeper is killed: the kernel kills both packet processes with it (PR_SET_PDEATHSIG; where that is lost, their lines hang
//!   up), the nftables table goes with its owner's pipe, the device with its last descriptor. Pings take the kernel's path;
//! * another keeper takes over (an upgrade), or a supervisor that keeps the descriptors restarts this one: nothing is undone, and
//!   everything goes on where it was (`takeover`, `supervisor`);
//! * the configuration is read again: another packet process goes on with it, over the same tables, and then the diversion
//!   follows. One that is wrong is refused before anything ends;
//! * the packet process says nothing for `SILENCE_MAX`, as it does while a worker stands still: it is killed, and that is a death
//!   as above.
//!
//! The keeper never touches a packet, and reads nothing from outside this program but the host's news and its configuration.
//!
//! Rejected: one process that execs itself again. It keeps its privileges, and a crash takes descriptors and tables with it.
//! Handing the descriptors over by their numbers: a child would inherit whatever else is open by mistake.

mod child;
mod line;
mod packets;
mod said;
mod silence;
mod spare;
mod supervisor;
mod takeover;

use std::fmt;
use std::mem;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use serde_json::Value;

use crate::config::{Config, Observe, Source};
use crate::control::Listeners;
use crate::error::SetupError;
use crate::gateway::{Addressed, Kept, Left};
use crate::sys::time;
use child::{Packets, Spare};
use line::Line;
pub use packets::{Served, serve};
use said::{Fault, Said};
use silence::{SILENCE_MAX, Silence};
use spare::Waiting;
pub use supervisor::Supervisor;
use takeover::Request;
pub use takeover::{reload, restart, running};

/// What the packet process is called on the command line, which nobody types.
pub const SUBCOMMAND: &str = "packets";

/// How long a packet process may take until it serves.
const STARTING_MAX: Duration = Duration::from_secs(30);

/// Packet processes that fail in a row until no other one is started. One that is alive for [`FAILURE_TIME`] ends the row.
const FAILURES_MAX: u32 = 5;
const FAILURE_TIME: Duration = Duration::from_secs(10);

/// What a packet process is told: to begin; to answer what it can, tell its totals and end; or to end at once for another one.
const BEGIN: &str = "begin";
const STOP: &str = "stop";
const LEAVE: &str = "leave";

/// What the keeper waits for.
#[derive(Debug)]
enum Event {
    Asked(Request),
    Said(u64, Said),
    /// The line has hung up.
    Gone(u64),
}

/// The program's log, which follows the configuration.
pub trait LogControl: fmt::Debug + Send + Sync {
    /// Has this process log as `observe` says.
    fn follow(&self, observe: &Observe);

    /// Arguments that make a packet process log so.
    fn arguments(&self, observe: &Observe) -> Vec<String>;
}

/// What a keeper is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub source: Source,
    /// The program's log.
    pub log: Arc<dyn LogControl>,
    /// Whether a gateway that runs is to leave everything to this one.
    pub takeover: bool,
}

/// Why a keeper has come to an end of its keeping.
#[derive(Debug)]
pub enum Asked {
    /// A signal.
    Signal(i32),
    /// Another keeper takes over.
    Successor(Successor),
}

/// A keeper that takes over.
#[derive(Debug)]
pub struct Successor(Line);

/// A gateway whose packets are moved by another process.
#[derive(Debug)]
pub struct Keeper {
    options: Options,
    supervisor: Supervisor,
    // Before what it has descriptors of.
    waiting: Waiting,
    kept: Kept,
    listeners: Listeners,
    packets: Packets,
    /// Of the packet process that was started last.
    number: u64,
    events: Receiver<Event>,
    sender: Sender<Event>,
    description: String,
    failures: Failures,
}

/// Packet processes that have failed one after the other, with none between them that has kept going.
#[derive(Debug, Default)]
struct Failures(u32);

impl Failures {
    /// One is alive this long after its start.
    fn see_alive(&mut self, age: Duration) {
        if age >= FAILURE_TIME {
            self.0 = 0;
        }
    }

    /// One has failed. Whether another one may be tried.
    fn add(&mut self) -> bool {
        self.0 += 1;
        self.0 < FAILURES_MAX
    }
}

impl Keeper {
    /// Sets a gateway up and has it served by a process of its own. What another keeper, or the supervisor, has left is taken
    /// up. The calling thread has to live as long as the keeper. On an error nothing is left behind.
    pub fn start(options: Options, mut supervisor: Supervisor) -> Result<Keeper, SetupError> {
        let stored = supervisor.left();
        let config = options.source.config()?;
        let running = if options.takeover { takeover::take(&config.inside.device)? } else { None };
        if running.is_some() {
            supervisor.tell(&format!("MAINPID={}", std::process::id()));
        }
        // Before the host is touched, and after whoever listened there has ended.
        let mut left = running.or(stored);
        let listeners = Listeners::take_up(&config, |name| left.as_mut()?.descriptors.remove(name))?;
        let keeper = Keeper::over(options, supervisor, listeners, left, 0, channel::unbounded())?;
        takeover::listen(&config.inside.device, keeper.sender.clone());
        Ok(keeper)
    }

    fn over(
        options: Options,
        supervisor: Supervisor,
        listeners: Listeners,
        left: Option<Left>,
        number: u64,
        (sender, events): (Sender<Event>, Receiver<Event>),
    ) -> Result<Keeper, SetupError> {
        let names: Vec<String> = left.iter().flat_map(|left| left.descriptors.keys().cloned()).collect();
        let refuse = || names.iter().for_each(|name| supervisor.forget(name));
        let kept = Kept::take_up(&options.source.config()?, left, refuse)?;
        supervisor.store(&kept);
        supervisor.store_listeners(&listeners);
        let packets = Spare::start(number, &options, &kept, &listeners, &sender)?.begin();
        let description = String::new();
        let mut keeper = Keeper {
            options,
            supervisor,
            waiting: Waiting::default(),
            kept,
            listeners,
            packets,
            number,
            events,
            sender,
            description,
            failures: Failures::default(),
        };
        keeper.await_serving()?;
        keeper.divert()?;
        keeper.supervisor.tell(&format!("READY=1\nSTATUS={}", keeper.description));
        Ok(keeper)
    }

    fn divert(&mut self) -> Result<(), SetupError> {
        let supervisor = self.shared_supervisor()?;
        self.kept.divert(move |note, descriptors| supervisor.replace(note, descriptors))
    }

    /// For the thread that looks after the diversion.
    fn shared_supervisor(&self) -> Result<Supervisor, SetupError> {
        self.supervisor.try_clone().map_err(|cause| SetupError::caused("sharing the supervisor's socket", cause))
    }

    /// Has the packet process serve what it has read and end.
    fn end_for_another(&mut self) {
        if let Err(error) = self.packets.end(LEAVE) {
            complain(&error, "another one goes on");
        }
    }

    /// The one line that says what it serves.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Waits for the packet process to serve. What is asked meanwhile comes after that.
    fn await_serving(&mut self) -> Result<(), SetupError> {
        let mut asked = Vec::new();
        let served = self.await_serving_with(&mut asked);
        asked.into_iter().for_each(|request| drop(self.sender.send(Event::Asked(request))));
        served
    }

    fn await_serving_with(&mut self, asked: &mut Vec<Request>) -> Result<(), SetupError> {
        let deadline = Instant::now() + STARTING_MAX;
        while !self.packets.serves {
            match self.events.recv_deadline(deadline) {
                Ok(Event::Said(number, said)) if number == self.packets.number => self.hear(said),
                Ok(Event::Gone(number)) if number == self.packets.number => {
                    let status = self.packets.wait();
                    return Err(self.packets.why(&status));
                }
                Ok(Event::Asked(request)) => asked.push(request),
                Ok(_) => {}
                Err(_) => {
                    return Err(SetupError::new(format!(
                        "the packet process does not serve after {} s",
                        STARTING_MAX.as_secs()
                    )));
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, said: Said) {
        self.packets.heard = Instant::now();
        match said {
            Said::Serving(description) => {
                let millis = self.packets.started.elapsed().as_millis();
                tracing::debug!(millis, "the packet process serves");
                self.packets.serves = true;
                self.description = description;
                self.waiting.want_soon();
            }
            Said::Alive => {
                self.failures.see_alive(self.packets.started.elapsed());
                self.supervisor.alive();
            }
            Said::Fault(fault) => self.packets.fault = Some(fault),
        }
    }

    /// Keeps the gateway until somebody asks for something else. An error: it cannot be kept any longer, and why.
    pub fn keep(&mut self, signals: &Receiver<i32>) -> Result<Asked, SetupError> {
        let mut silence = Silence::new(Instant::now());
        loop {
            let look = if self.packets.stuck { channel::never() } else { channel::at(silence.next_look()) };
            let wanted = self.waiting.wanted().map_or_else(channel::never, channel::at);
            channel::select! {
                recv(signals) -> signal => match signal.unwrap_or(0) {
                    libc::SIGHUP => self.reload(None)?,
                    other => return Ok(Asked::Signal(other)),
                },
                recv(self.events) -> event => match event {
                    Ok(Event::Said(number, said)) if number == self.packets.number => self.hear(said),
                    Ok(Event::Gone(number)) if number == self.packets.number => self.replace()?,
                    Ok(Event::Said(number, Said::Fault(fault))) => self.waiting.hear(number, fault),
                    Ok(Event::Gone(number)) => self.waiting.hear_end(number),
                    Ok(Event::Asked(Request::TakeOver(line))) => return Ok(Asked::Successor(Successor(line))),
                    Ok(Event::Asked(Request::Restart(line))) => self.restart(&line)?,
                    Ok(Event::Asked(Request::Reload(line))) => self.reload(Some(&line))?,
                    _ => {}
                },
                recv(wanted) -> _ => self.prepare(),
                recv(look) -> _ => if silence.look(self.packets.heard, Instant::now()) {
                    tracing::error!(seconds = SILENCE_MAX.as_secs(), "the packet process does not move: it is killed");
                    self.packets.stuck = true;
                    self.packets.kill();
                }
            }
        }
    }

    /// Starts another packet process in the place of one that has ended.
    fn replace(&mut self) -> Result<(), SetupError> {
        // Its end is waited for while the next is loaded, if none waits: the kernel takes milliseconds for either. Why not, if it
        // cannot be started, is said when that is tried again.
        let next = self.waiting.take().or_else(|| self.start_spare().ok());
        let status = self.packets.wait();
        let why = self.packets.why(&status);
        // Who is killed from outside has not failed.
        let Packets { serves, stuck, .. } = self.packets;
        let killed = serves && !stuck && status.is_ok_and(|status| status.signal() == Some(libc::SIGKILL));
        self.go_on_after(why, !killed, next)
    }

    fn go_on_after(&mut self, why: SetupError, failed: bool, next: Option<Spare>) -> Result<(), SetupError> {
        if !self.kept.is_attached() {
            return Err(why);
        }
        if failed && !self.failures.add() {
            let (what, remedy) = why.parts();
            let error = SetupError::new(format!("given up after {FAILURES_MAX} packet processes in a row: {what}"));
            return Err(remedy.into_iter().fold(error, SetupError::remedy));
        }
        complain(&why, "starting another one");
        self.begin_another(next)
    }

    /// Has a packet process wait to take the place of the one that serves.
    fn prepare(&mut self) {
        let spare = self.start_spare();
        self.waiting.set(spare);
    }

    fn start_spare(&mut self) -> Result<Spare, SetupError> {
        self.number += 1;
        Spare::start(self.number, &self.options, &self.kept, &self.listeners, &self.sender)
    }

    /// Lets a packet process begin in the place of this one, which has ended or is ended: two must not use the tables at once.
    fn start_another(&mut self) -> Result<(), SetupError> {
        let next = self.waiting.take();
        self.begin_another(next)
    }

    /// As `start_another`, with this one, if there is one.
    fn begin_another(&mut self, next: Option<Spare>) -> Result<(), SetupError> {
        let next = next.map_or_else(|| self.start_spare(), Ok)?;
        // Also one that could not be waited for leaves nothing to do but to go on.
        let _ = self.packets.wait();
        self.packets = next.begin();
        Ok(())
    }

    /// Starts another packet process in the place of one that serves, and answers whoever has asked for it.
    fn restart(&mut self, line: &Line) -> Result<(), SetupError> {
        tracing::info!("another packet process was asked for");
        self.end_for_another();
        self.start_another()?;
        let served = self.await_serving();
        // Whoever has asked may have gone meanwhile.
        let _ = line.send(&self.answer(served.as_ref().err()), &[]);
        served.or_else(|why| self.go_on_after(why, true, None))
    }

    /// Reads the configuration again and goes on with it; or, if it is wrong or cannot be had now, with the one in force. Answers
    /// whoever has asked. An error: neither serves.
    fn reload(&mut self, line: Option<&Line>) -> Result<(), SetupError> {
        self.supervisor.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()));
        let taken = match self.read_again() {
            Ok((source, config)) => self.go_on_with(source, config)?,
            Err(refusal) => Err(refusal),
        };
        let answer = self.answer(taken.as_ref().err());
        match taken {
            Ok(()) => {
                self.supervisor.store_listeners(&self.listeners);
                self.options.log.follow(&self.kept.config().observe);
                tracing::info!("the configuration has been read again: {}", self.description);
            }
            Err(refusal) => complain(&refusal, "the configuration stays as it was"),
        }
        self.supervisor.tell(&format!("READY=1\nSTATUS={}", self.description));
        // Whoever has asked may have gone meanwhile.
        line.map_or(Ok(()), |line| line.send(&answer, &[])).unwrap_or_default();
        Ok(())
    }

    /// To whoever has asked for something.
    fn answer(&self, refusal: Option<&SetupError>) -> Value {
        match refusal {
            None => Said::Serving(self.description.clone()).write(),
            Some(refusal) => Said::Fault(refusal.into()).write(),
        }
    }

    /// What the file says now, and what comes of it here. Changes nothing.
    fn read_again(&self) -> Result<(Source, Config), SetupError> {
        let source = self.options.source.read_again()?;
        let config = self.kept.accepts(source.in_place_of(&self.options.source)?)?;
        Ok((source, config))
    }

    /// Has another packet process go on with this configuration, which is a possible one; if it cannot, yet another one goes on
    /// with the old (the inner error says why).
    fn go_on_with(&mut self, source: Source, config: Config) -> Result<Result<(), SetupError>, SetupError> {
        let listening = match self.listeners.with_metrics(&config, self.kept.config()) {
            Ok(listening) => listening,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let addressed = match self.kept.address(&config) {
            Ok(addressed) => addressed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let old_config = self.kept.config().clone();
        let (old_source, old_listening) =
            (mem::replace(&mut self.options.source, source), self.listeners.exchange_metrics(listening));
        // It has the old one.
        self.waiting.end();
        self.end_for_another();
        self.settle(addressed)?;
        self.start_another()?;
        if let Err(why) = self.await_serving() {
            self.options.source = old_source;
            self.listeners.exchange_metrics(old_listening);
            self.settle_back(&old_config)?;
            self.go_on_after(Fault::from(&why).error(), true, None)?;
            return Ok(self.await_serving().and(Err(why)));
        }
        // After it: who has become a client is known to it before the first echo request is led here.
        if let Err(why) = self.change(config) {
            self.options.source = old_source;
            self.listeners.exchange_metrics(old_listening);
            self.change(old_config.clone())?;
            self.end_for_another();
            self.settle_back(&old_config)?;
            self.start_another()?;
            return Ok(self.await_serving().and(Err(why)));
        }
        Ok(Ok(()))
    }

    /// Goes on with these addresses. No packet process may use the tables.
    fn settle(&mut self, addressed: Option<Addressed>) -> Result<(), SetupError> {
        let Some(addressed) = addressed else { return Ok(()) };
        // Also one that could not be waited for is over then.
        let _ = self.packets.wait();
        self.kept.settle(addressed)?;
        self.supervisor.store(&self.kept);
        Ok(())
    }

    /// Goes on with the addresses of a configuration that has been in force before.
    fn settle_back(&mut self, config: &Config) -> Result<(), SetupError> {
        let addressed = self.kept.address(config)?;
        self.settle(addressed)
    }

    fn change(&mut self, config: Config) -> Result<(), SetupError> {
        let supervisor = self.shared_supervisor()?;
        self.kept.change(config, move |note, descriptors| supervisor.replace(note, descriptors))
    }

    /// Undoes the diversion, lets the packet process answer what it can and tell its totals, and undoes the rest.
    pub fn stop(mut self) -> Result<(), SetupError> {
        self.supervisor.tell("STOPPING=1");
        let undone = self.kept.undivert();
        self.waiting.end();
        let ended = self.packets.end(STOP);
        self.supervisor.forget_all(&self.kept);
        both(undone, ended)
    }

    /// Ends, and undoes nothing: for the next keeper, if the supervisor keeps the descriptors until then. If it does not, the
    /// kernel closes them, and pings take its path.
    pub fn leave(mut self) -> Result<(), SetupError> {
        self.supervisor.tell("STOPPING=1");
        self.waiting.end();
        let ended = self.packets.end(LEAVE);
        both(self.kept.leave().map(drop), ended)
    }

    /// Leaves everything to the successor. It is this keeper again if that one does not take it.
    pub fn hand_over(mut self, successor: &Successor) -> Result<Option<Keeper>, SetupError> {
        tracing::info!("another gateway takes over");
        self.waiting.end();
        self.end_for_another();
        let mut left = self.kept.leave()?;
        left.descriptors.extend(self.listeners.copies());
        match takeover::give(&successor.0, &left) {
            Ok(()) => {
                self.listeners.leave_file();
                Ok(None)
            }
            Err(error) => {
                tracing::error!(%error, "the other gateway has not taken over: this one goes on");
                // Another number, for there may be news of the one that has ended.
                let (number, channel) = (self.number + 1, (self.sender, self.events));
                Keeper::over(self.options, self.supervisor, self.listeners, Some(left), number, channel).map(Some)
            }
        }
    }
}

/// The first failure; of two the second is not lost either.
fn both(first: Result<(), SetupError>, second: Result<(), SetupError>) -> Result<(), SetupError> {
    if let (Err(_), Err(error)) = (&first, &second) {
        complain(error, "this has failed too");
    }
    first.and(second)
}

/// Says what was wrong, with its remedy beside it, and what comes of it.
fn complain(error: &SetupError, consequence: &str) {
    match error.parts() {
        (what, Some(remedy)) => tracing::error!(%remedy, "{what}: {consequence}"),
        (what, None) => tracing::error!("{what}: {consequence}"),
    }
}

/// As a supervisor counts (sd_notify(3)).
fn monotonic_micros() -> u128 {
    time::monotonic().map_or(0, |now| now.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_add_up_until_a_process_keeps_going() {
        let mut failures = Failures::default();
        for _ in 0..3 * FAILURES_MAX {
            // Dead soon, but each a failure of its own: another one has kept going meanwhile.
            assert!(failures.add());
            failures.see_alive(FAILURE_TIME);
        }
        for _ in 1..FAILURES_MAX {
            failures.see_alive(FAILURE_TIME / 2);
            assert!(failures.add());
        }
        assert!(!failures.add());
    }
}
