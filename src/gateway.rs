//! The gateway: opens what it needs, sizes the tables, spawns the workers, and takes all of it down again.
//!
//! Everything happens in the network namespace of the thread that calls [`Gateway::start`]. The order of set-up is such
//! that a step that fails has little to undo, and that nothing is led to the gateway before it can serve it:
//!
//! ```text
//! preflight -> tables -> TUN queues, device -> sockets -> workers, each with its own ring -> diversion
//! ```
//!
//! and down in the other order: the diversion first, so that new requests take the kernel's path while the replies to
//! those sent may still come; then the workers; the TUN goes with its last descriptor.
//!
//! What [`Gateway::start`] does in one process the command does in two: [`Holding`] and [`State`] are what one of them keeps
//! and [`Gateway::resume`] what the other makes of them (see `crate::keeper`).
//!
//! A worker that ends, by a fault or by a panic, is an event in [`Gateway::faults`]: nothing is half alive in silence.

mod holding;
mod kept;
mod observer;
mod pulse;
mod steps;

use std::iter;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam::channel::{self, Receiver, Sender};

use crate::clock::{Clock, Monotonic};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::addresses::{AddressWatch, Change, Follow};
use crate::host::cpus;
use crate::host::device::Device;
use crate::host::divert::{Divert, DivertBy, DivertSettings};
use crate::host::preflight::{self, Finding, Plan, Status};
use crate::io::raw::SendSocket;
use crate::io::syscalls::SyscallsIo;
use crate::io::uring::UringIo;
use crate::io::{self, Engine, FallThrough, PacketIo, Ports, Waker};
use crate::metrics::{Counters, Snapshot};
use crate::proxy::{Found, Handle, IdentPolicy, Proxy, Settings, Sizes};
use crate::state::{self, State};
use crate::table::addresses::Addresses;
use crate::worker::{Basin, Inbox, Post, Tap, Worker};
pub use holding::Holding;
pub use kept::{Addressed, COMMANDS, COMPLAINTS, Kept, Left, TABLES};
use observer::Observed;
pub use observer::Observer;
pub use pulse::{PULSE_INTERVAL, Pulse, Still};
pub use steps::Steps;

/// How long a gateway that stops waits for the replies to what it has sent.
const LAST_REPLIES: Duration = Duration::from_millis(250);
const LAST_REPLIES_POLL: Duration = Duration::from_millis(5);

/// What every path to a client carries in one piece (RFC 791: what every host takes). What the links behind the TUN carry is
/// not ours to know, and may change; a larger reply with DF could bring its sender an error about a packet to a client.
const CLIENT_PATH_MTU: usize = 576;

/// What the workers are told.
const SERVE: u8 = 0;
const DRAIN: u8 = 1;
const LEAVE: u8 = 2;

/// A gateway that is serving.
#[derive(Debug)]
pub struct Gateway {
    counters: Arc<Counters>,
    faults: Receiver<SetupError>,
    stop: Arc<AtomicU8>,
    workers: Vec<Running>,
    pulse: Pulse,
    clock: Monotonic,
    /// The tables, if they are to outlive this process.
    state: Option<State>,
    divert: Option<Divert>,
    addresses: Option<AddressWatch>,
    observer: Observer,
}

/// A worker's thread.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<Result<(), SetupError>>,
    waker: Waker,
    inbox: Inbox,
}

/// What one worker's thread takes with it.
struct Crew {
    number: usize,
    cpu: CoreId,
    engine: Engine,
    ports: Ports,
    handle: Handle,
    post: Post,
    counters: Arc<Counters>,
    tap: Tap,
    fall_through: FallThrough,
    busy_poll: Duration,
    clock: Monotonic,
    stop: Arc<AtomicU8>,
}

/// Every precondition of a gateway with this configuration, on the host of the calling thread.
pub fn preflight(config: &Config) -> Result<Vec<Finding>, SetupError> {
    config.validate()?;
    let mut findings = preflight::examine(&plan(config));
    findings.extend([preflight::ring(config.run.io), preflight::pinger()]);
    Ok(findings)
}

/// Undoes what of a gateway with this configuration has outlived it: the diversion's rule and routes, and on old kernels its
/// nftables table.
pub fn undo(config: &Config) -> Result<(), SetupError> {
    if config.inside.divert.is_empty() {
        return Ok(());
    }
    Divert::clear(&divert_settings(config))
}

/// What the tables of a gateway with this configuration hold and cost.
pub fn sizes(config: &Config) -> Result<Sizes, SetupError> {
    let mut config = config.clone();
    if config.outside.addresses.is_empty() {
        config.outside.addresses.push(Ipv4Addr::UNSPECIFIED); // one address, whichever it will be
    }
    Ok(Proxy::new(&settings(&config))?.sizes())
}

/// The configuration with what only the host can tell, and checked.
fn resolved(config: &Config) -> Result<Config, SetupError> {
    let mut config = config.clone();
    if config.outside.addresses.is_empty() {
        config.outside.addresses.push(crate::host::default_source()?);
    }
    config.validate()?;
    Ok(config)
}

fn settings(config: &Config) -> Settings {
    let (allowance, overrides) = config.limits.allowances();
    Settings {
        allowance,
        overrides,
        mapping_idle: config.mapping.idle,
        echo_timeout: config.echo.timeout,
        hold_down: config.mapping.hold_down,
        idents: IdentPolicy {
            reserved: config.mapping.reserved_idents.iter().map(|range| range.0.clone()).collect(),
            preserve: config.mapping.preserve_idents,
        },
        echo_words_log2: config.echo.table_words.ilog2(),
        inside_mtu: CLIENT_PATH_MTU,
        icmp_errors: config.echo.icmp_errors,
        quoted_checksum: config.echo.quoted_checksum,
        denied: config.remotes.deny.clone(),
        allowed: config.remotes.allow.clone(),
        pass_own: config.remotes.own,
        workers: config.run.workers as usize,
        ..Settings::new(config.inside.clients.clone(), config.outside.addresses.clone())
    }
}

impl Gateway {
    /// Sets the gateway up and lets it serve. On an error nothing is left behind.
    pub fn start(config: &Config) -> Result<Gateway, SetupError> {
        examine(config, false)?;
        let follow_default = config.outside.addresses.is_empty();
        let config = resolved(config)?;
        let engine = io::choose(config.run.io)?;
        let proxy = Proxy::new(&settings(&config))?;
        let holding = Holding::open(&config, proxy.fragment_seed())?;
        let send = holding.senders()?;
        let mut gateway = Gateway::serve(&config, engine, &proxy, holding, Monotonic::new())?;
        let watched = config.outside.addresses.clone();
        let act = move |change| act_on(proxy.addresses(), &send, change);
        let follow = if follow_default { Follow::Except(config.inside.clients.clone()) } else { Follow::No };
        gateway.addresses = Some(AddressWatch::start(watched, follow, act)?);
        if !config.inside.divert.is_empty() {
            gateway.divert = Some(Divert::install(&divert_settings(&config))?);
        }
        Ok(gateway)
    }

    /// The packets' part of a gateway that another process has set up and keeps: workers over its descriptors and its
    /// tables. What is missing of the set-up (the diversion, the watch over the addresses) is
    /// with whoever keeps it. `trial`: what [`io::uring::probe`] has shown in this process.
    pub fn resume(
        config: &Config,
        tables: OwnedFd,
        find: impl FnMut(&str) -> Option<OwnedFd>,
        trial: Result<(), SetupError>,
        steps: &mut Steps,
    ) -> Result<Gateway, SetupError> {
        let mut config = config.clone();
        let state = State::open(tables, &kept::shape(&config));
        let state = state.map_err(|foreign| SetupError::new(format!("the tables are not to be used: {foreign}")))?;
        // With those that drain, which the configuration names no more.
        config.outside.addresses = state.addresses();
        config.validate()?;
        let holding = Holding::adopt(config.run.workers as usize, find)?;
        if !holding.sends_from(config.outside.addresses.len()) {
            return Err(SetupError::new("the send sockets are not those of the tables' addresses"));
        }
        let config = &config;
        steps.end_of("descriptors");
        let engine = io::choose_by(config.run.io, || trial)?;
        let clock = state::clock()?;
        let (proxy, found) = Proxy::over(&settings(config), state.tables(), state.last_used(), clock.now())?;
        steps.end_of("tables");
        let mut gateway = Gateway::serve(config, engine, &proxy, holding, clock)?;
        steps.end_of("workers");
        // Before they are answered or given up, which is counted where it happens.
        let counters = gateway.counters.worker(0);
        counters.outstanding.add(found.outstanding);
        counters.unanswered.add(found.unanswered);
        if found.slots.torn > 0 {
            tracing::warn!(slots = found.slots.torn, "some mappings were damaged: their clients get others");
        }
        if found != Found::default() {
            let (mappings, echoes) = (found.slots.mappings, found.outstanding);
            tracing::info!(mappings, echoes, "goes on with what was there");
        }
        gateway.state = Some(state);
        Ok(gateway)
    }

    fn serve(
        config: &Config,
        engine: Engine,
        proxy: &Arc<Proxy>,
        holding: Holding,
        clock: Monotonic,
    ) -> Result<Gateway, SetupError> {
        let cpus = cpus::allowed()?;
        let workers = holding.workers();
        let wakers = (0..workers).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
        let counters = Arc::new(Counters::new(workers, 1 + config.limits.overrides.len()));
        let basin = Basin::new();
        let observer = Observer::from(Observed {
            description: description(config, proxy.addresses(), engine),
            engine,
            device: config.inside.device.clone(),
            counters: Arc::clone(&counters),
            wakers: wakers.clone(),
            basin: basin.clone(),
            classes: classes(config),
            sizes: proxy.sizes(),
            proxy: Arc::downgrade(proxy),
            receivers: Mutex::default(),
            started: Instant::now(),
        });
        let (fault, faults) = channel::unbounded();
        let mut gateway = Gateway {
            counters,
            pulse: observer.pulse(clock.now()),
            observer,
            faults,
            stop: Arc::new(AtomicU8::new(SERVE)),
            workers: Vec::with_capacity(workers),
            clock,
            state: None,
            divert: None,
            addresses: None,
        };
        if workers > cpus.len() {
            tracing::warn!(workers, cpus = cpus.len(), "more workers than CPUs: some share one");
        }
        let posts = Post::ring(&wakers);
        let sizes = io::Sizes::for_mtu(config.inside.mtu);
        // Their rings and buffers are made at the same time.
        let mut readiness = Vec::with_capacity(workers);
        for (number, (ports, post)) in holding.into_ports(wakers, sizes).into_iter().zip(posts).enumerate() {
            gateway.observer.add_receiver(ports.receive.try_clone()?);
            let handle = proxy.handle(number).ok_or_else(|| SetupError::new("a worker's handle is taken"))?;
            let crew = Crew {
                number,
                cpu: cpus[number % cpus.len()],
                engine,
                ports,
                handle,
                post,
                counters: Arc::clone(&gateway.counters),
                tap: Tap::new(&basin, number),
                fall_through: config.run.fall_through,
                busy_poll: Duration::from_micros(config.run.busy_poll_us.into()),
                clock,
                stop: Arc::clone(&gateway.stop),
            };
            readiness.push(gateway.spawn(crew, fault.clone())?);
        }
        gateway.await_all(readiness)?;
        Ok(gateway)
    }

    /// Whether every worker moves, by what this look and those before it have seen. It marks the tables as in use. To be called
    /// several times a second.
    pub fn moves(&mut self) -> bool {
        let now = self.clock.now();
        if let Some(state) = &self.state {
            state.used(now);
        }
        self.pulse.look(&self.observer, now);
        self.pulse.still(now).is_none()
    }

    /// Starts a worker's thread, which tells when it serves.
    fn spawn(&mut self, crew: Crew, fault: Sender<SetupError>) -> Result<Receiver<()>, SetupError> {
        let (ready, readiness) = channel::bounded(1);
        let (waker, inbox) = (crew.ports.waker.clone(), crew.post.inbox());
        let name = format!("worker-{}", crew.number);
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || crew.work(&ready, &fault))
            .map_err(|error| SetupError::caused(format!("cannot start thread {name}"), error))?;
        self.workers.push(Running { thread, waker, inbox });
        Ok(readiness)
    }

    /// Waits until every worker serves.
    fn await_all(&mut self, readiness: Vec<Receiver<()>>) -> Result<(), SetupError> {
        let Some(number) = readiness.into_iter().position(|ready| ready.recv().is_err()) else { return Ok(()) };
        // It ended before it served: its result says why.
        let why = self.workers.remove(number).join().err();
        Err(why.unwrap_or_else(|| SetupError::new(format!("worker-{number} ended before it served"))))
    }

    /// The one line that says what it serves.
    pub fn description(&self) -> &str {
        self.observer.description()
    }

    /// A handle to look at it by.
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// The counters' sum now.
    pub fn snapshot(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Why a worker ended by itself. The gateway is then to be stopped.
    pub fn faults(&self) -> &Receiver<SetupError> {
        &self.faults
    }

    /// Stops diverting, waits a moment for the last replies, ends the workers, and tells the totals.
    pub fn stop(mut self) -> Result<Snapshot, SetupError> {
        let undone = self.divert.take().map_or(Ok(()), Divert::remove);
        let until = Instant::now() + LAST_REPLIES;
        while self.snapshot().outstanding > 0 && Instant::now() < until && self.faults.is_empty() {
            thread::sleep(LAST_REPLIES_POLL);
        }
        self.end_workers(DRAIN);
        undone.map(|()| self.snapshot())
    }

    /// Ends the workers so that others over the same descriptors and tables can go on: nothing is waited for that they will
    /// hear as well. Tells the totals.
    pub fn leave(mut self) -> Snapshot {
        self.end_workers(LEAVE);
        self.snapshot()
    }

    fn end_workers(&mut self, how: u8) {
        drop(self.addresses.take());
        self.observer.release();
        // Release: pairs with the workers' Acquire.
        self.stop.store(how, Ordering::Release);
        for running in &self.workers {
            running.waker.wake();
        }
        let inboxes: Vec<Inbox> = self.workers.iter().map(|running| running.inbox.clone()).collect();
        for running in self.workers.drain(..) {
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

/// A gateway dropped without `stop` (a set-up step failed, a test panicked) still leaves nothing behind.
impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.divert.take());
        self.end_workers(DRAIN);
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
        let mut worker = Worker::new(io, self.handle, self.post, self.counters.worker(self.number), self.fall_through)
            .with_busy_poll(self.busy_poll)
            .seen_through(self.tap);
        // Whoever waits for it is gone only when the gateway is.
        let _ = ready.send(());
        // Acquire: pairs with the Release of `end_workers`.
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
    looked: crate::clock::Instant,
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
        Pin { worker, cpu, holds, looked: crate::clock::Instant::START }
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

/// Looks at the preconditions: what is missing ends the set-up, what is doubtful is said.
/// `taken_up`: the device is one that was left.
fn examine(config: &Config, taken_up: bool) -> Result<(), SetupError> {
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let findings = preflight::examine(&plan(config)).into_iter();
    for finding in findings.filter(|finding| !(taken_up && finding.name == preflight::DEVICE)) {
        let remedy = finding.remedy.clone().unwrap_or_default();
        match finding.status {
            Status::Ok => {}
            Status::Warning => tracing::warn!(%remedy, "{}: {}", finding.name, finding.what),
            Status::Missing if finding.fatal => {
                return Err(SetupError::new(format!("{}: {}", finding.name, finding.what)).remedy(remedy));
            }
            Status::Missing => tracing::warn!(%remedy, "{}: {}", finding.name, finding.what),
        }
    }
    Ok(())
}

fn plan(config: &Config) -> Plan {
    let divert = !config.inside.divert.is_empty();
    Plan {
        divert: divert.then(|| divert_settings(config)),
        device: device(config),
        clients: config.inside.clients.clone(),
        outside: config.outside.addresses.clone(),
        icmp_errors: config.echo.icmp_errors,
    }
}

fn device(config: &Config) -> Device {
    Device {
        name: config.inside.device.clone(),
        address: config.inside.address,
        mtu: config.inside.mtu,
        queue_length: config.inside.queue_length,
    }
}

fn divert_settings(config: &Config) -> DivertSettings {
    DivertSettings {
        by: config.inside.divert_by,
        device: device(config),
        interfaces: config.inside.divert.clone(),
        clients: config.inside.clients.clone(),
        outside: config.outside.devices.clone(),
        mark: config.inside.mark,
        mask: config.inside.mark_mask,
        table: config.inside.table,
        priority: config.inside.rule_priority,
    }
}

/// The classes of clients by their numbers, as the policy has them.
fn classes(config: &Config) -> Vec<String> {
    let exceptions = config.limits.overrides.iter().map(|exception| exception.prefix.to_string());
    iter::once("everybody".to_owned()).chain(exceptions).collect()
}

/// Acts on a change of the host's addresses. `send`: each worker's send sockets, by the addresses' numbers.
fn act_on(addresses: &Addresses, send: &[Vec<SendSocket>], change: Change) -> Result<(), SetupError> {
    match change {
        Change::Lost(number, address) => {
            tracing::warn!(%address, "the host has this outside address no more: its mappings end");
            addresses.set_lost(number, true);
        }
        Change::Back(number, address) => {
            tracing::info!(%address, "the host has this outside address again");
            addresses.set_lost(number, false);
        }
        Change::Unfit(_, address) => tracing::error!(
            %address,
            remedy = "name the address that pings are to leave from: --outside, or outside.addresses",
            "the default route's source is among the clients' addresses: pings do not leave from it"
        ),
        Change::Replaced(number, address) => {
            let sockets = send.iter().filter_map(|sockets| sockets.get(usize::from(number)));
            let rebound: Result<Vec<()>, _> = sockets.map(|socket| socket.rebind(address)).collect();
            if let Err(error) = rebound {
                // Some may leave by the old way and some by the new: none leaves, until all are bound.
                addresses.set_lost(number, true);
                tracing::error!(%error, "the default route has another source; it is tried again in a second");
                return Err(error);
            }
            tracing::info!(%address, "the default route has another source: pings leave from it now");
            addresses.replace(number, address);
            addresses.set_lost(number, false);
        }
    }
    Ok(())
}

fn description(config: &Config, addresses: &Addresses, engine: Engine) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let clients = list(config.inside.clients.iter().map(ToString::to_string).collect());
    let numbered = (0..).zip(addresses.list());
    let (draining, named): (Vec<_>, Vec<_>) = numbered.partition(|(number, _)| addresses.is_draining(*number));
    let texts = |of: Vec<(u8, Ipv4Addr)>| list(of.into_iter().map(|(_, address)| address.to_string()).collect());
    let mut addresses = texts(named);
    if !draining.is_empty() {
        addresses.push_str(&format!(" (draining: {})", texts(draining)));
    }
    let engine = match engine {
        Engine::Uring => "io_uring",
        Engine::Syscalls => "system calls",
    };
    let (workers, plural) = (config.run.workers, if config.run.workers == 1 { "" } else { "s" });
    let divert = match config.inside.divert.as_slice() {
        [] => "what is routed into it".to_owned(),
        interfaces => {
            let at_ingress = if config.inside.divert_by == DivertBy::Ingress { " at ingress" } else { "" };
            format!("echo requests diverted from {}{at_ingress}", interfaces.join(", "))
        }
    };
    format!(
        "serving pings of {clients} from {addresses}: {divert} by {}, {workers} worker{plural} on {engine}",
        config.inside.device
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::scene::{OUTSIDE, Scene};
    use crate::io::raw::SOCKET_BUFFER_BYTES;
    use crate::policy::Prefix;
    use crate::proxy::Outbound;
    use crate::wire::build;

    /// An address that is gone again when the sockets are to be bound to it, for one; and one that stays.
    #[test]
    fn while_a_socket_cannot_be_bound_anew_no_ping_leaves_and_then_from_the_new_address() {
        Scene::new().at_gateway(|| {
            let other = Ipv4Addr::new(198, 18, 0, 99);
            let proxy = Proxy::new(&Settings::new(vec![Prefix::host(Ipv4Addr::new(10, 66, 0, 2))], vec![OUTSIDE]));
            let proxy = proxy.expect("they are possible");
            let open = |_| vec![SendSocket::open(OUTSIDE, SOCKET_BUFFER_BYTES).expect("run as root")];
            let send: Vec<Vec<SendSocket>> = (0..2).map(open).collect();
            let mut handle = proxy.handle(0).expect("nobody has it");
            let mut ask = || {
                let (client, remote) = (Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(198, 18, 0, 2));
                let mut packet = build::echo_request(client, remote, 1, 1, 64, b"payload");
                let now = crate::clock::Instant::START;
                let mut batch = handle.batch(now);
                // A mapping on a lost address ends first.
                batch.expire();
                let forwarded = matches!(batch.outbound(&mut packet), Outbound::Forward { .. });
                forwarded.then(|| packet[12..16].to_vec())
            };
            assert_eq!(ask(), Some(OUTSIDE.octets().to_vec()));
            assert!(act_on(proxy.addresses(), &send, Change::Replaced(0, other)).is_err(), "the host does not have it");
            assert_eq!(ask(), None);
            let added =
                std::process::Command::new("ip").args(["address", "add", "198.18.0.99/32", "dev", "w0"]).status();
            assert!(added.expect("iproute2 is installed").success());
            act_on(proxy.addresses(), &send, Change::Replaced(0, other)).expect("it has it now");
            assert_eq!(ask(), Some(other.octets().to_vec()));
        });
    }

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
