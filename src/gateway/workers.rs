//! The workers' threads: made with all that takes time (a ring each, its buffers, a CPU), then given their parts of the tables.
//!
//! In two steps, because the second takes no time at all: a process that waits to take another one's place has taken the first long
//! before ([`super::Prepared`]). Nothing is received in between: the first receive is the first turn's.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use core_affinity::CoreId;
use crossbeam::channel::{self, Receiver, Sender};

use super::Holding;
use crate::clock::{Clock, Instant, Monotonic};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::cpus;
use crate::io::raw::ReceiveSocket;
use crate::io::syscalls::SyscallsIo;
use crate::io::uring::UringIo;
use crate::io::{self, Engine, FallThrough, PacketIo, Ports, Waker};
use crate::metrics::Counters;
use crate::proxy::{Handle, Proxy};
use crate::worker::{Basin, Inbox, Post, Tap, Worker};

/// What the workers are told.
const SERVE: u8 = 0;
/// To end once what is in flight has come back.
pub(super) const DRAIN: u8 = 1;
/// To end so that others over the same descriptors and tables go on.
pub(super) const LEAVE: u8 = 2;

/// The workers, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    counters: Arc<Counters>,
    basin: Basin,
    /// Until somebody looks at them.
    receivers: Vec<ReceiveSocket>,
    fault: Sender<SetupError>,
    faults: Receiver<SetupError>,
    stop: Arc<AtomicU8>,
    running: Vec<Running>,
}

/// A worker's thread.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<Result<(), SetupError>>,
    waker: Waker,
    inbox: Inbox,
    /// What it waits for.
    handle: Option<Sender<Handle>>,
}

/// What one worker's thread takes with it.
struct Crew {
    number: usize,
    cpu: CoreId,
    engine: Engine,
    ports: Ports,
    /// Where its part of the tables comes from.
    handle: Receiver<Handle>,
    post: Post,
    counters: Arc<Counters>,
    tap: Tap,
    fall_through: FallThrough,
    busy_poll: Duration,
    clock: Monotonic,
    stop: Arc<AtomicU8>,
}

impl Workers {
    /// One for each queue, ready but for the tables.
    pub(super) fn assemble(
        config: &Config,
        engine: Engine,
        holding: Holding,
        clock: Monotonic,
    ) -> Result<Workers, SetupError> {
        let cpus = cpus::allowed()?;
        let count = holding.workers();
        if count > cpus.len() {
            tracing::warn!(workers = count, cpus = cpus.len(), "more workers than CPUs: some share one");
        }
        let wakers = (0..count).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
        let (fault, faults) = channel::unbounded();
        let mut workers = Workers {
            counters: Arc::new(Counters::new(count, 1 + config.limits.overrides.len())),
            basin: Basin::new(),
            receivers: Vec::with_capacity(count),
            fault,
            faults,
            stop: Arc::new(AtomicU8::new(SERVE)),
            running: Vec::with_capacity(count),
        };
        let posts = Post::ring(&wakers);
        let sizes = io::Sizes::for_mtu(config.inside.mtu);
        // Their rings and buffers are made at the same time.
        let mut readiness = Vec::with_capacity(count);
        for (number, (ports, post)) in holding.into_ports(wakers, sizes).into_iter().zip(posts).enumerate() {
            workers.receivers.push(ports.receive.try_clone()?);
            let (give, handle) = channel::bounded(1);
            let crew = Crew {
                number,
                cpu: cpus[number % cpus.len()],
                engine,
                ports,
                handle,
                post,
                counters: Arc::clone(&workers.counters),
                tap: Tap::new(&workers.basin, number),
                fall_through: config.run.fall_through,
                busy_poll: Duration::from_micros(config.run.busy_poll_us.into()),
                clock,
                stop: Arc::clone(&workers.stop),
            };
            readiness.push(workers.spawn(crew, give)?);
        }
        workers.await_all(readiness)?;
        Ok(workers)
    }

    /// Starts a worker's thread, which tells when it is ready.
    fn spawn(&mut self, crew: Crew, handle: Sender<Handle>) -> Result<Receiver<()>, SetupError> {
        let (ready, readiness) = channel::bounded(1);
        let (waker, inbox) = (crew.ports.waker.clone(), crew.post.inbox());
        let name = format!("worker-{}", crew.number);
        let fault = self.fault.clone();
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || crew.work(&ready, &fault))
            .map_err(|error| SetupError::caused(format!("cannot start thread {name}"), error))?;
        self.running.push(Running { thread, waker, inbox, handle: Some(handle) });
        Ok(readiness)
    }

    /// Waits until every worker is ready.
    fn await_all(&mut self, readiness: Vec<Receiver<()>>) -> Result<(), SetupError> {
        let Some(number) = readiness.into_iter().position(|ready| ready.recv().is_err()) else { return Ok(()) };
        // It ended before it was: its result says why.
        let why = self.running.remove(number).join().err();
        Err(why.unwrap_or_else(|| SetupError::new(format!("worker-{number} ended before it served"))))
    }

    /// Gives each its part of the tables: they serve.
    pub(super) fn begin(&mut self, proxy: &Arc<Proxy>) -> Result<(), SetupError> {
        for (number, running) in self.running.iter_mut().enumerate() {
            let handle = proxy.handle(number).ok_or_else(|| SetupError::new("a worker's handle is taken"))?;
            if let Some(give) = running.handle.take() {
                // One that has ended meanwhile has said why.
                let _ = give.send(handle);
            }
        }
        Ok(())
    }

    /// What they count in.
    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Where they leave samples.
    pub(super) fn basin(&self) -> &Basin {
        &self.basin
    }

    /// What wakes each.
    pub(super) fn wakers(&self) -> Vec<Waker> {
        self.running.iter().map(|running| running.waker.clone()).collect()
    }

    /// Another handle to each one's receive socket, once.
    pub(super) fn take_receivers(&mut self) -> Vec<ReceiveSocket> {
        std::mem::take(&mut self.receivers)
    }

    /// Why one has ended by itself.
    pub(super) fn faults(&self) -> &Receiver<SetupError> {
        &self.faults
    }

    /// Ends them.
    pub(super) fn end(&mut self, how: u8) {
        // Release: pairs with the workers' Acquire.
        self.stop.store(how, Ordering::Release);
        for running in &mut self.running {
            // Whoever waits for it waits in vain.
            drop(running.handle.take());
            running.waker.wake();
        }
        let inboxes: Vec<Inbox> = self.running.iter().map(|running| running.inbox.clone()).collect();
        for running in self.running.drain(..) {
            if let Err(error) = running.join() {
                // Whoever was to hear of it has heard of it from `faults`.
                tracing::debug!(%error, "a worker had ended with a fault");
            }
        }
        // Handed over to a worker that had ended already. All have now: the counters have no other writer.
        for (number, inbox) in inboxes.iter().enumerate() {
            self.counters.worker(number).ending.add(inbox.give_up() as u64);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end(DRAIN);
    }
}

impl Running {
    fn join(self) -> Result<(), SetupError> {
        // The thread catches its own panics: a join error cannot come from the worker.
        self.thread.join().unwrap_or_else(|_| Err(SetupError::new("a worker's thread panicked")))
    }
}

impl Crew {
    /// The whole life of a worker's thread.
    fn work(self, ready: &Sender<()>, fault: &Sender<SetupError>) -> Result<(), SetupError> {
        let number = self.number;
        never_silent(number, fault, || self.serve(ready))
    }

    fn serve(self, ready: &Sender<()>) -> Result<(), SetupError> {
        match self.engine {
            Engine::Uring => self.serve_over(UringIo::new, ready),
            Engine::Syscalls => self.serve_over(SyscallsIo::new, ready),
        }
    }

    fn serve_over<I: PacketIo>(
        self,
        open: impl FnOnce(Ports) -> Result<I, SetupError>,
        ready: &Sender<()>,
    ) -> Result<(), SetupError> {
        let mut pin = Pin::new(self.number, self.cpu);
        let io = open(self.ports)?;
        // Whoever waits for it is gone only when the gateway is.
        let _ = ready.send(());
        // Hung up: it is not needed.
        let Ok(handle) = self.handle.recv() else { return Ok(()) };
        let mut worker = Worker::new(io, handle, self.post, self.counters.worker(self.number), self.fall_through)
            .with_busy_poll(self.busy_poll)
            .seen_through(self.tap);
        // Acquire: pairs with the Release of `end`.
        loop {
            match self.stop.load(Ordering::Acquire) {
                SERVE => worker.turn(&self.clock, None)?,
                LEAVE => return worker.leave(&self.clock),
                _ => return worker.drain(&self.clock),
            }
            pin.watch(&self.clock);
        }
    }
}

/// A worker's CPU. It is looked at now and then, since the allowed set may shrink while we run (a cgroup, a hot-unplugged
/// CPU): the kernel then moves the thread, which goes on where it is, and that is said once.
struct Pin {
    worker: usize,
    cpu: CoreId,
    holds: bool,
    looked: Instant,
}

/// How often a worker that turns looks whether it is still pinned.
const PIN_INTERVAL: Duration = Duration::from_secs(1);

impl Pin {
    /// Pins the calling thread.
    fn new(worker: usize, cpu: CoreId) -> Pin {
        let holds = cpus::pin(cpu);
        if !holds {
            tracing::warn!(worker, cpu = cpu.id, "cannot be pinned; runs unpinned");
        }
        Pin { worker, cpu, holds, looked: Instant::START }
    }

    fn watch(&mut self, clock: &impl Clock) {
        let now = clock.now();
        if !self.holds || now.since(self.looked) < PIN_INTERVAL {
            return;
        }
        self.looked = now;
        self.holds = cpus::is_pinned(self.cpu);
        if !self.holds {
            tracing::warn!(worker = self.worker, cpu = self.cpu.id, "was moved off its CPU; runs unpinned");
        }
    }
}

/// Runs a worker; if it ends with an error or a panic, whoever listens to `fault` hears of it.
fn never_silent(
    number: usize,
    fault: &Sender<SetupError>,
    serve: impl FnOnce() -> Result<(), SetupError>,
) -> Result<(), SetupError> {
    // Unwind safe: nothing of a worker is used after its panic but the shared tables, each of whose words is whole.
    let ended = panic::catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(SetupError::new(format!("it panicked: {message}")))
    });
    ended.map_err(|error| format!("worker {number} ended: {error}")).map_err(|reason| {
        // The receiver is gone only when the gateway is.
        let _ = fault.send(SetupError::new(reason.clone()));
        SetupError::new(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_fails_or_panics_is_heard_of_and_one_that_ends_well_is_not() {
        let (fault, faults) = channel::unbounded();
        let say = |text: &str| Err(SetupError::new(text));
        assert!(never_silent(0, &fault, || Ok(())).is_ok());
        assert!(faults.is_empty());
        assert!(never_silent(1, &fault, || say("the device is gone")).is_err());
        let limit = 7;
        assert!(never_silent(2, &fault, || panic!("index {limit} of 4")).is_err());
        let heard: Vec<String> = faults.try_iter().map(|fault| fault.to_string()).collect();
        assert_eq!(heard, ["worker 1 ended: the device is gone", "worker 2 ended: it panicked: index 7 of 4"]);
    }
}
