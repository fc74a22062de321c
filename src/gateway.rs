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
//! What [`Gateway::start`] does in one process the command does in two: [`Holding`] and [`State`] are what one of them keeps,
//! and [`Prepared`] what the other makes of them before it may use the tables (see `crate::keeper`).
//!
//! A worker that ends, by a fault or by a panic, is an event in [`Gateway::faults`]: nothing is half alive in silence.

mod holding;
mod kept;
mod observer;
mod prepared;
mod pulse;
mod steps;
mod workers;

use std::iter;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use crate::clock::{Clock, Monotonic};
use crate::config::Config;
use crate::error::SetupError;
use crate::host::addresses::{AddressWatch, Change, Follow};
use crate::host::device::Device;
use crate::host::divert::{Divert, DivertBy, DivertSettings};
use crate::host::preflight::{self, Finding, Plan, Status};
use crate::io::raw::SendSocket;
use crate::io::{self, Engine};
use crate::metrics::Snapshot;
use crate::proxy::{IdentPolicy, Proxy, Settings, Sizes};
use crate::state::State;
use crate::table::addresses::Addresses;
pub use holding::Holding;
pub use kept::{Addressed, COMMANDS, COMPLAINTS, Kept, Left, TABLES};
use observer::Observed;
pub use observer::Observer;
pub use prepared::Prepared;
pub use pulse::{PULSE_INTERVAL, Pulse, Still};
pub use steps::Steps;
use workers::{DRAIN, LEAVE, Workers};

/// How long a gateway that stops waits for the replies to what it has sent.
const LAST_REPLIES: Duration = Duration::from_millis(250);
const LAST_REPLIES_POLL: Duration = Duration::from_millis(5);

/// What every path to a client carries in one piece (RFC 791: what every host takes). What the links behind the TUN carry is
/// not ours to know, and may change; a larger reply with DF could bring its sender an error about a packet to a client.
const CLIENT_PATH_MTU: usize = 576;

/// A gateway that is serving.
#[derive(Debug)]
pub struct Gateway {
    workers: Workers,
    pulse: Pulse,
    clock: Monotonic,
    /// The tables, if they are to outlive this process.
    state: Option<State>,
    divert: Option<Divert>,
    addresses: Option<AddressWatch>,
    observer: Observer,
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
        let clock = Monotonic::new();
        let workers = Workers::assemble(&config, engine, holding, clock)?;
        let mut gateway = Gateway::serve(&config, engine, &proxy, workers, clock)?;
        let watched = config.outside.addresses.clone();
        let act = move |change| act_on(proxy.addresses(), &send, change);
        let follow = if follow_default { Follow::Except(config.inside.clients.clone()) } else { Follow::No };
        gateway.addresses = Some(AddressWatch::start(watched, follow, act)?);
        if !config.inside.divert.is_empty() {
            gateway.divert = Some(Divert::install(&divert_settings(&config))?);
        }
        Ok(gateway)
    }

    /// Gives the workers their parts of the tables: from now on they serve.
    fn serve(
        config: &Config,
        engine: Engine,
        proxy: &Arc<Proxy>,
        mut workers: Workers,
        clock: Monotonic,
    ) -> Result<Gateway, SetupError> {
        let observer = Observer::from(Observed {
            description: description(config, proxy.addresses(), engine),
            engine,
            device: config.inside.device.clone(),
            counters: Arc::clone(workers.counters()),
            wakers: workers.wakers(),
            basin: workers.basin().clone(),
            classes: classes(config),
            sizes: proxy.sizes(),
            proxy: Arc::downgrade(proxy),
            receivers: Mutex::default(),
            started: Instant::now(),
        });
        workers.take_receivers().into_iter().for_each(|receiver| observer.add_receiver(receiver));
        let pulse = observer.pulse(clock.now());
        workers.begin(proxy)?;
        Ok(Gateway { workers, pulse, observer, clock, state: None, divert: None, addresses: None })
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
        self.workers.counters().snapshot()
    }

    /// Why a worker ended by itself. The gateway is then to be stopped.
    pub fn faults(&self) -> &Receiver<SetupError> {
        self.workers.faults()
    }

    /// Stops diverting, waits a moment for the last replies, ends the workers, and tells the totals.
    pub fn stop(mut self) -> Result<Snapshot, SetupError> {
        let undone = self.divert.take().map_or(Ok(()), Divert::remove);
        let until = Instant::now() + LAST_REPLIES;
        while self.snapshot().outstanding > 0 && Instant::now() < until && self.faults().is_empty() {
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
        self.workers.end(how);
    }
}

/// A gateway dropped without `stop` (a set-up step failed, a test panicked) still leaves nothing behind.
impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.divert.take());
        self.end_workers(DRAIN);
    }
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
}
