//! `echogate demo`: the real gateway between clients and an internet made of namespaces, and a verdict on what it did.
//!
//! Several clients ping several hosts at once, all with the same ident and the same sequences: what a table keyed by
//! those two would confuse. The clients check every byte that comes back, the remotes' kernel counts what arrived, and
//! the gateway's own counters must agree with both. Where nft is there, a second lab sends the same load through the
//! kernel's masquerade, for scale. Before the load, one ping goes through by the pinger, as a user would try first.
//!
//! The gateway starts, serves and stops on one thread that stays inside its namespace: whatever it starts or undoes,
//! happens there.
//!
//! Limits: load, gateway and remotes share this machine's cores, so echo/s is what all of them together reach and not
//! what a gateway alone could. The bench is for that.

mod report;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::time::Duration;

pub use report::{Contender, DemoReport};

use crate::config::Config;
use crate::error::SetupError;
use crate::gateway::Gateway;
use crate::host::netlink::{Route, Rule};
use crate::host::nft;
use crate::io::Backend;
use crate::lab::load::{self, LoadOptions, LoadReport, Progress};
use crate::lab::{self, GATEWAY_OUTSIDE, Lab, LabOptions, responder};
use crate::metrics::Snapshot;
use crate::pinger::{PingOptions, Pinger};
use crate::policy::Prefix;

/// Hosts that every client pings.
const REMOTES: usize = 4;
/// Echoes under way at once, all clients together: few enough that no queue on the way overflows by itself.
const IN_FLIGHT: usize = 64;
/// The same for a paced load, where the window only catches what is late: for each client.
const IN_FLIGHT_PACED: usize = 64;

/// How long the single ping may take on a machine that has a lot to do.
const SINGLE_PING_TIME_MAX: Duration = Duration::from_secs(5);

const ICMP: u8 = 1;

/// The ruleset of the other contender.
const MASQUERADE: &str = "table ip demo {
  chain outbound {
    type nat hook postrouting priority srcnat
    oifname \"wan\" masquerade
  }
}
";

/// What to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DemoOptions {
    /// How long each contender is under load, in seconds.
    pub seconds: u64,
    /// Clients that ping at once.
    pub client_count: usize,
    /// Echoes a second of all clients together; none: as many as come back.
    pub rate: Option<u64>,
    /// The gateway's workers; none: as `run` would.
    pub workers: Option<u32>,
    /// What moves the gateway's packets.
    pub io: Backend,
    /// The report is for a machine: no progress line.
    pub json: bool,
}

impl Default for DemoOptions {
    fn default() -> DemoOptions {
        DemoOptions { seconds: 5, client_count: 4, rate: None, workers: None, io: Backend::default(), json: false }
    }
}

/// Says what is about to be shown, with a picture; ends with an empty line.
pub fn introduction(options: &DemoOptions) -> String {
    let clients = (0..options.client_count).map(lab::client_address).collect::<Vec<_>>();
    let remotes = (0..REMOTES).map(lab::remote_address).collect::<Vec<_>>();
    report::introduction(&clients, GATEWAY_OUTSIDE, &remotes)
}

/// Puts the load through Echogate and, where nft is there, through the kernel's masquerade. Whether the outcome is good
/// is the report's to say ([`DemoReport::failures`]); an error means that there is no outcome.
pub fn run(options: &DemoOptions) -> Result<DemoReport, SetupError> {
    if options.seconds == 0 || options.rate == Some(0) {
        return Err(SetupError::new("demo: --seconds and --rate begin at 1"));
    }
    let masquerade = masquerade_works()?;
    let echogate = through_echogate(options, masquerade.is_ok())?;
    let masquerade = match masquerade {
        Ok(()) => Ok(through_masquerade(options)?),
        Err(why) => Err(why),
    };
    Ok(DemoReport { options: *options, remotes: REMOTES, echogate, masquerade })
}

/// Whether nft is there and the kernel takes a masquerade from it; if not, why.
fn masquerade_works() -> Result<Result<(), String>, SetupError> {
    let lab = Lab::build(&LabOptions { clients: 1, ..LabOptions::default() })?;
    lab.gateway().run(|| nft::run(&["-c", "-f", "-"], MASQUERADE).map(drop).map_err(|failure| failure.to_string()))
}

fn build(options: &DemoOptions) -> Result<Lab, SetupError> {
    Lab::build(&LabOptions { clients: options.client_count, remotes: REMOTES, ..LabOptions::default() })
}

fn through_echogate(options: &DemoOptions, divert: bool) -> Result<Contender, SetupError> {
    let lab = build(options)?;
    let config = configuration(&lab, options, divert);
    let (load, single, description, counted) = lab.gateway().run(|| serve(&lab, options, &config))??;
    let remotes = responder::counters(lab.internet())?;
    Ok(Contender { name: "Echogate", description, single, load, remotes, gateway: Some(counted) })
}

/// What [`serve`] has seen: the load, the single ping, the gateway's description of itself, and what it counted.
type Served = (LoadReport, Result<Duration, String>, String, Snapshot);

/// On a thread inside the gateway's namespace, from start to stop.
fn serve(lab: &Lab, options: &DemoOptions, config: &Config) -> Result<Served, SetupError> {
    let gateway = Gateway::start(config)?;
    let description = gateway.description().to_owned();
    let mut fault = None;
    let mut single = Err(String::new());
    let load = lead_icmp_into_the_device(lab, config).and_then(|()| {
        single = single_ping(lab)?;
        put_load(lab, options, "Echogate", || {
            fault = gateway.faults().try_recv().ok();
            fault.is_none()
        })
    });
    let counted = gateway.stop();
    match fault {
        Some(fault) => Err(fault),
        None => Ok((load?, single, description, counted?)),
    }
}

fn configuration(lab: &Lab, options: &DemoOptions, divert: bool) -> Config {
    let mut config = Config::default();
    config.inside.clients = vec![lab.client_prefix()];
    if divert {
        config.inside.divert = lab.clients().iter().map(|client| client.interface.clone()).collect();
    }
    config.outside.addresses = vec![GATEWAY_OUTSIDE];
    // The load is far above what one client may send by default: shown is the gateway, not its limits.
    config.limits.enforce = false;
    config.run.io = options.io;
    if let Some(workers) = options.workers {
        config.run.workers = workers;
    }
    config
}

/// Without nft nothing marks echo requests, so all ICMP of the clients is led into the device: harmless in a lab, where
/// they have nothing else to say.
fn lead_icmp_into_the_device(lab: &Lab, config: &Config) -> Result<(), SetupError> {
    let inside = &config.inside;
    if !inside.divert.is_empty() {
        return Ok(());
    }
    let everywhere = Prefix::new(Ipv4Addr::UNSPECIFIED, 0).expect("its host bits are zero");
    lab.gateway().configure(|netlink| {
        let device = netlink.link_index(&inside.device)?;
        netlink.replace_route(&Route {
            destination: everywhere,
            gateway: None,
            device,
            table: inside.table,
            source: None,
        })?;
        lab.clients().iter().try_for_each(|client| {
            netlink.add_rule(&Rule {
                priority: inside.rule_priority,
                mark: None,
                incoming: Some(client.interface.clone()),
                protocol: Some(ICMP),
                table: inside.table,
            })
        })
    })
}

fn through_masquerade(options: &DemoOptions) -> Result<Contender, SetupError> {
    let lab = build(options)?;
    lab.gateway()
        .run(|| nft::run(&["-f", "-"], MASQUERADE))?
        .map_err(|failure| failure.into_setup_error("demo: setting up the kernel's masquerade"))?;
    let name = "kernel masquerade";
    let single = single_ping(&lab)?;
    let load = put_load(&lab, options, name, || true)?;
    let remotes = responder::counters(lab.internet())?;
    Ok(Contender { name, description: "nftables masquerade".to_owned(), single, load, remotes, gateway: None })
}

/// One ping by the pinger from the first client to the first host, before the load: what a user tries first. Its round-trip
/// time, or why it has none.
fn single_ping(lab: &Lab) -> Result<Result<Duration, String>, SetupError> {
    let (client, remote) = (&lab.clients()[0].namespace, lab.remotes()[0]);
    let outcome = client.run(|| {
        let pinger = Pinger::new()?;
        let outcome = pinger.ping_blocking(remote, &PingOptions::new().timeout(SINGLE_PING_TIME_MAX));
        pinger.shut_down();
        outcome
    })?;
    Ok(outcome.map(|reply| reply.rtt).map_err(|error| error.to_string()))
}

/// Runs the load, with a line of progress if somebody is looking, for as long as `goes_on` says so.
fn put_load(
    lab: &Lab,
    options: &DemoOptions,
    name: &str,
    mut goes_on: impl FnMut() -> bool,
) -> Result<LoadReport, SetupError> {
    let window = match options.rate {
        None => (IN_FLIGHT / options.client_count).max(1),
        Some(_) => IN_FLIGHT_PACED,
    };
    let duration = Duration::from_secs(options.seconds);
    let load_options = LoadOptions { duration, window, rate: options.rate, ..LoadOptions::default() };
    let line = ProgressLine::new(options, name);
    let load = load::run(lab.clients(), lab.remotes(), &load_options, |progress| {
        line.show(progress);
        if goes_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    line.clear();
    load
}

/// One line on standard error that overwrites itself; nothing if standard error is no terminal.
struct ProgressLine<'a> {
    visible: bool,
    name: &'a str,
    seconds: u64,
}

impl ProgressLine<'_> {
    fn new<'a>(options: &DemoOptions, name: &'a str) -> ProgressLine<'a> {
        ProgressLine { visible: !options.json && io::stderr().is_terminal(), name, seconds: options.seconds }
    }

    fn show(&self, progress: &Progress) {
        if self.visible {
            // A progress line that cannot be written is no reason to stop.
            let _ = write!(io::stderr(), "\r\x1b[K{}", report::progress(self.name, self.seconds, progress));
        }
    }

    fn clear(&self) {
        if self.visible {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
