//! What has to be true of the host before the gateway can work, each as one finding: fine, or what is missing and what
//! mends it.
//!
//! `echogate check` prints the findings, `echogate run` makes the same examination and refuses to start on those that
//! are fatal: the ones without which it could not even begin, or would do harm. The others (a firewall that drops,
//! forwarding that is off) can change while it runs, so it starts and says so.
//!
//! Nothing is changed here: the ring and the descriptors that are opened to see whether they can be are closed again.
//!
//! Limit: what is found is what the calling thread's network namespace shows. The firewall is judged by an evaluation
//! of the rules that are understood (see `firewall`): a hint with a remedy, not a proof.

mod firewall;
mod network;
mod system;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::Ipv4Addr;

use super::device::Device;
use super::divert::{DivertBy, DivertSettings};
use super::netlink::Netlink;
use crate::error::SetupError;
use crate::io::Backend;
use crate::policy::Prefix;

/// The finding about the device's name.
pub const DEVICE: &str = "device";

/// How a precondition stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// As it has to be.
    Ok,
    /// The gateway works, but not in every way, or it could not be found out.
    Warning,
    /// Not as it has to be: pings will be lost, or the gateway cannot start.
    Missing,
}

/// One precondition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Which, in a word or two.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found, in one line.
    pub what: String,
    /// What mends it; several commands are on lines of their own.
    pub remedy: Option<String>,
    /// Whether the gateway refuses to start.
    pub fatal: bool,
}

/// What the gateway is about to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The TUN.
    pub device: Device,
    /// Where clients' addresses are from.
    pub clients: Vec<Prefix>,
    /// The gateway's addresses outside; none: the source address of the default route.
    pub outside: Vec<Ipv4Addr>,
    /// What is diverted into the TUN, if anything.
    pub divert: Option<DivertSettings>,
    /// Whether errors about proxied echoes are brought to the clients.
    pub icmp_errors: bool,
}

/// Examines the host, in the order in which the gateway would stumble.
pub fn examine(plan: &Plan) -> Vec<Finding> {
    let mut findings = vec![system::capabilities(), system::tun_device()];
    findings.extend(plan.divert.as_ref().map(|_| system::nft()));
    let at_ingress = plan.divert.as_ref().filter(|divert| divert.by == DivertBy::Ingress);
    findings.extend(at_ingress.map(|_| system::ingress()));
    findings.extend(network::prefixes(plan));
    match Netlink::open() {
        Ok(mut netlink) => findings.extend(network::examine(plan, &mut netlink)),
        Err(error) => findings.push(
            Finding::missing("network", format!("opening a netlink socket: {error}"))
                .remedy("a kernel with CONFIG_RTNETLINK, and no filter that refuses AF_NETLINK sockets")
                .fatal(),
        ),
    }
    findings
}

/// Whether the kernel lets us use io_uring, for which whoever starts a gateway finds out by trying.
pub fn ring(backend: Backend) -> Finding {
    system::ring(backend)
}

/// Whether pings without privileges are allowed here: of no concern to the gateway, but to whoever pings from it.
pub fn pinger() -> Finding {
    system::ping_groups()
}

impl Finding {
    fn new(name: &'static str, status: Status, what: impl Into<String>) -> Finding {
        Finding { name, status, what: what.into(), remedy: None, fatal: false }
    }

    fn ok(name: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(name, Status::Ok, what)
    }

    fn warning(name: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(name, Status::Warning, what)
    }

    fn missing(name: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(name, Status::Missing, what)
    }

    fn refused(name: &'static str, error: SetupError) -> Finding {
        let (what, remedy) = error.parts();
        Finding { remedy, ..Finding::missing(name, what).fatal() }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = Some(remedy.into());
        self
    }

    fn fatal(mut self) -> Finding {
        self.fatal = true;
        self
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Missing => "missing",
        })
    }
}
