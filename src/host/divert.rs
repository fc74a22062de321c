//! Leading clients' echo requests into the TUN: a mark, a rule, a route.
//!
//! ```text
//! prerouting, priority -450   an echo request from a client behind a divert interface to outside: mark, notrack
//!                             (an echo reply that enters from the TUN: notrack)
//! postrouting, priority 310   an error to a remote about a reply that we brought: dropped
//! ip rule                     fwmark 0x0ec00000/0x0ff00000 lookup 3776
//! ip route, table 3776        default dev echogate0; throw CLIENTS
//! ```
//!
//! Everything else keeps its path because nothing here matches it. Diverting all ICMP, which looks simpler, breaks the
//! kernel's NAT: a packet that comes back from the TUN has had its one chance to be translated, and the errors that
//! belong to translated flows never reach them. Notrack keeps a masquerade rule without an outgoing interface from
//! rewriting the client's source on its way into the TUN, and keeps replies from being dropped as invalid. Fragments
//! are left alone, as all but the first have no ICMP type; the chain stands before the kernel puts them together. Pings
//! to the host's own addresses stay as they are, tracked: a stateful input policy knows only tracked ones as new.
//!
//! An error about a reply that cannot reach its client (no neighbour, no route, too small a link) would go to the remote,
//! which knows the gateway only, and quote the client's address. None may leave.
//!
//! The `throw` routes send a marked packet *to* a client on to the host's other tables. None is marked by us, but where
//! `src_valid_mark` is set (wg-quick does) the kernel's reverse-path check of a request asks for the way back to the
//! client under the request's own mark; the answer "by the TUN" would drop every request under strict rp_filter.
//!
//! **Dead means fail open.** The table belongs to a child process that ends with this one (see `table`), so after
//! SIGKILL nothing is marked and echo requests take the kernel's path again. Rule and throw routes stay behind, inert
//! without marks (the default route vanishes with the TUN); the next start with the same numbers takes them over, and
//! its end removes them.
//!
//! **By ingress instead** ([`DivertBy::Ingress`], for who asks for it): the table's second half, of the netdev family, takes the
//! requests as they come off the clients' devices, and puts them straight into the TUN. No rule, no route, no mark; what the
//! kernel's stack would have asked of them is asked by the rules (see `ruleset`). The host's PREROUTING and FORWARD chains see
//! nothing of them.
//!
//! While it lives, a watcher (see `watch`) puts back what others take away.
//!
//! Limits: one gateway a device. Two gateways on one host have tables of their own (`echogate`, or `echogate-DEVICE` for
//! a device not called echogate0) and must be given marks, table numbers and priorities of their own; the second to use a
//! number is refused.

mod ruleset;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::io;

use super::device::Device;
use super::netlink::{Netlink, Route, Rule};
use crate::error::SetupError;
use crate::policy::Prefix;
use ruleset::Links;
pub use table::Ownership;
use table::Table;
use watch::Watcher;

/// The TUN's name unless another is configured.
pub const DEFAULT_DEVICE: &str = "echogate0";

/// The mark of diverted packets ("ec" for echo): eight of the 32 bits, away from the values of well-known users (wg-quick
/// 0xca6c, kube-proxy 0x4000 and 0x8000, Tailscale 0x40000 and 0x80000, Cilium 0x0f00). The preflight finds rules that would
/// take our packets for theirs.
pub const DEFAULT_MARK: u32 = 0x0ec0_0000;

/// The bits of the mark that are ours; the others are left as they are.
pub const DEFAULT_MASK: u32 = 0x0ff0_0000;

/// The routing table: 0xec0, far from those with names (253 to 255) and from small numbers that people choose.
pub const DEFAULT_TABLE: u32 = 0xec0;

/// The rule's priority: after the local table (0), before main (32766) and before what wg-quick adds (32764).
pub const DEFAULT_PRIORITY: u32 = 3776;

/// How echo requests are led into the TUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DivertBy {
    /// A mark, a rule and a route: by way of the host's own firewall.
    #[default]
    Route,
    /// From the clients' devices straight into the TUN: cheaper, and past the host's firewall.
    Ingress,
}

/// What to divert, and by which numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DivertSettings {
    /// How.
    pub by: DivertBy,
    /// The TUN, which has been configured; the watcher mends it too.
    pub device: Device,
    /// Devices behind which clients are. They may come into being later: the rules match names.
    pub interfaces: Vec<String>,
    /// Where clients' addresses are from.
    pub clients: Vec<Prefix>,
    /// Devices that lead outside: what is routed elsewhere is not diverted. None named: whatever device.
    pub outside: Vec<String>,
    /// The mark.
    pub mark: u32,
    /// Its bits.
    pub mask: u32,
    /// Number of the routing table.
    pub table: u32,
    /// Priority of the policy rule.
    pub priority: u32,
}

/// Diversion in force, until dropped.
#[derive(Debug)]
pub struct Divert {
    watcher: Option<Watcher>,
}

impl Divert {
    /// Diverts, in the network namespace of the calling thread. What a killed predecessor left is taken over.
    pub fn install(settings: &DivertSettings) -> Result<Divert, SetupError> {
        Divert::take_up(settings, None, |_| {})
    }

    /// As `install`, with a table that another process has left in force, if it fits. `tell` is told of what keeps a table in
    /// force, each time that there is another one, until the diversion is removed or left.
    pub fn take_up(
        settings: &DivertSettings,
        left: Option<Ownership>,
        tell: impl Fn(Ownership) + Send + 'static,
    ) -> Result<Divert, SetupError> {
        settings.validate()?;
        let mut installed = Installed::open(settings, Box::new(tell))?;
        if settings.by == DivertBy::Route {
            installed.claim()?;
        }
        let links = installed.links()?;
        installed.table = left.and_then(|left| Table::adopt(settings, &links, left));
        installed.tell();
        installed.mend()?;
        if settings.by == DivertBy::Ingress {
            // Of a predecessor that diverted by route. Last, so that not one request is lost.
            installed.undo_rule_and_routes()?;
        }
        let watcher = Watcher::subscribe()?.start(installed)?;
        Ok(Divert { watcher: Some(watcher) })
    }

    /// Undoes what a killed gateway with these settings has left. One that lives is left alone: its table is its own.
    pub fn clear(settings: &DivertSettings) -> Result<(), SetupError> {
        settings.validate()?;
        Table::clear(&settings.table_name())?;
        let mut left = Installed::open(settings, Box::new(|_| {}))?;
        if settings.by == DivertBy::Route {
            left.claim()?;
        }
        left.undo_rule_and_routes()
    }

    /// Leaves the diversion in force, for whoever has its [`Ownership`] too.
    pub fn leave(mut self) -> Result<(), SetupError> {
        self.watcher.take().map_or(Ok(()), Watcher::leave)
    }

    /// Ends the diversion and undoes all of it.
    pub fn remove(mut self) -> Result<(), SetupError> {
        self.watcher.take().map_or(Ok(()), Watcher::stop)
    }
}

impl Drop for Divert {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.watcher.take().map(Watcher::stop) {
            tracing::error!(%error, "ending the diversion");
        }
    }
}

impl DivertSettings {
    /// The name of the nftables table.
    pub fn table_name(&self) -> String {
        match self.device.name.as_str() {
            DEFAULT_DEVICE => "echogate".to_owned(),
            other => format!("echogate-{other}"),
        }
    }

    /// Whether the settings make sense by themselves.
    pub(super) fn validate(&self) -> Result<(), SetupError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !self.device.name.bytes().all(plain) {
            let error = SetupError::new(format!("{:?} cannot be part of an nftables table's name", self.device.name));
            return Err(error.remedy("a device name of letters, digits, '_', '.' and '-'"));
        }
        // '*' would match a family of names, a quote would end the string.
        let quotable = |byte: u8| byte.is_ascii_graphic() && !b"\"\\*/".contains(&byte);
        for name in self.interfaces.iter().chain(&self.outside) {
            if name.is_empty() || name.len() > 15 || !name.bytes().all(quotable) {
                return Err(SetupError::new(format!("{name:?} is not the name of an interface")));
            }
            if *name == self.device.name {
                return Err(SetupError::new(format!(
                    "{name} is the gateway's own device: nobody comes from or goes there"
                )));
            }
        }
        if self.interfaces.is_empty() {
            return Err(SetupError::new("no interface to divert from is named"));
        }
        if self.clients.is_empty() || self.clients.iter().any(|prefix| prefix.length() == 0) {
            let error = SetupError::new("clients are no address, or every address: nothing outside is left to ping");
            return Err(error.remedy("the prefixes that clients' addresses come from, such as 10.66.0.0/24"));
        }
        if self.mark == 0 || self.mark & !self.mask != 0 {
            return Err(SetupError::new(format!(
                "mark {:#010x} is zero or outside its mask {:#010x}",
                self.mark, self.mask
            )));
        }
        if matches!(self.table, 0 | 253..=255) {
            return Err(SetupError::new(format!("routing table {} is the kernel's own", self.table)));
        }
        Ok(())
    }

    /// The clients' prefixes, sorted, without those inside another: what an nftables set accepts.
    fn disjoint_clients(&self) -> Vec<Prefix> {
        let mut prefixes = self.clients.clone();
        // Of two that start alike the shorter, which holds the other, comes first.
        prefixes.sort_unstable();
        let mut kept: Vec<Prefix> = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            if !kept.last().is_some_and(|last| last.overlaps(prefix)) {
                kept.push(prefix);
            }
        }
        kept
    }

    fn rule(&self) -> Rule {
        Rule {
            priority: self.priority,
            mark: Some((self.mark, self.mask)),
            incoming: None,
            protocol: None,
            table: self.table,
        }
    }

    fn throw_routes(&self) -> Vec<Route> {
        let thrown = |destination| Route { destination, gateway: None, device: None, table: self.table, source: None };
        self.disjoint_clients().into_iter().map(thrown).collect()
    }
}

/// The parts in force. Whoever holds this undoes them; dropping it does, too.
struct Installed {
    settings: DivertSettings,
    netlink: Netlink,
    table: Option<Table>,
    /// Whether there may be anything to undo. Until then rule and routes of these numbers are somebody else's.
    begun: bool,
    tell: Box<dyn Fn(Ownership) + Send>,
}

impl Installed {
    fn open(settings: &DivertSettings, tell: Box<dyn Fn(Ownership) + Send>) -> Result<Installed, SetupError> {
        let netlink = Netlink::open().map_err(|error| SetupError::caused("opening a netlink socket", error))?;
        Ok(Installed { settings: settings.clone(), netlink, table: None, begun: false, tell })
    }

    fn tell(&self) {
        if let Some(ownership) = self.table.as_ref().and_then(|table| table.ownership(&self.settings)) {
            (self.tell)(ownership);
        }
    }

    /// Lets go of everything, and leaves it in force.
    fn leave(&mut self) {
        self.begun = false;
        if let Some(table) = self.table.take() {
            table.leave();
        }
    }

    /// Makes sure that nobody else uses our numbers, and clears what a predecessor left under other settings.
    fn claim(&mut self) -> Result<(), SetupError> {
        let settings = &self.settings;
        let index = self.netlink.link_index(&settings.device.name).map_err(asking("for the TUN"))?;
        let routes = self.netlink.routes(settings.table).map_err(asking("for routes"))?;
        if let Some(other) = routes.iter().find(|route| route.device.is_some() && route.device != index) {
            let error = SetupError::new(format!(
                "routing table {} is in use: it leads {} elsewhere than to {}",
                settings.table, other.destination, settings.device.name
            ));
            return Err(error.remedy("a mark, a routing table and a rule priority of its own for each gateway"));
        }
        let wanted = settings.throw_routes();
        for stale in routes.iter().filter(|route| route.device.is_none() && !wanted.contains(route)) {
            self.netlink.delete_route(stale).map_err(changing("removing a stale route"))?;
        }
        let (rule, listed) = (settings.rule(), self.netlink.rules().map_err(asking("for rules"))?);
        let same_purpose = |other: &&Rule| other.mark == rule.mark && other.table == rule.table && **other != rule;
        for stale in listed.iter().filter(same_purpose) {
            self.netlink.delete_rule(stale).map_err(changing("removing a stale rule"))?;
        }
        Ok(())
    }

    /// Puts what is missing in place, rules that mark last, and names it. Changes nothing that is right.
    fn mend(&mut self) -> Result<Vec<&'static str>, SetupError> {
        self.begun = true;
        let mut mended = self.settings.device.mend(&mut self.netlink)?;
        if self.settings.by == DivertBy::Route {
            self.tun_is_up()?;
            if self.mend_routes()? {
                mended.push("routes");
            }
            if self.mend_rule()? {
                mended.push("rule");
            }
        }
        let links = self.links()?;
        if !self.table.as_mut().is_some_and(Table::in_force) {
            // The old one first: two owners of one table exclude each other.
            self.table = None;
            self.table = Some(Table::install(&self.settings, &links)?);
            self.tell();
            mended.push("nftables table");
        } else if let Some(table) = self.table.take_if(|table| !table.is_for(&links)) {
            self.table = Some(table.replaced(&self.settings, &links)?);
            self.tell();
            mended.push("chains of clients' interfaces");
        }
        // By ingress after the table, which without the TUN leaves requests to the kernel.
        self.tun_is_up()?;
        Ok(mended)
    }

    /// The devices that the table's rules are bound to: none of a diversion by route, whose rules match names.
    fn links(&mut self) -> Result<Links, SetupError> {
        let mut links = Links::default();
        let name = &self.settings.device.name;
        if self.settings.by == DivertBy::Route
            || self.netlink.link_is_up(name).map_err(asking("for the TUN"))? != Some(true)
        {
            return Ok(links);
        }
        links.tun = self.netlink.link_index(name).map_err(asking("for the TUN"))?;
        let mut names: Vec<&String> = self.settings.interfaces.iter().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let index = self.netlink.link_index(name).map_err(asking("for a client interface"))?;
            links.arrivals.extend(index.map(|index| (name.clone(), index)));
        }
        Ok(links)
    }

    fn tun_is_up(&mut self) -> Result<(), SetupError> {
        let name = &self.settings.device.name;
        if self.netlink.link_is_up(name).map_err(asking("for the TUN"))? == Some(true) {
            return Ok(());
        }
        let error = SetupError::new(format!("device {name} is down: echo requests are not diverted"));
        Err(error.remedy(format!("ip link set {name} up")))
    }

    fn mend_routes(&mut self) -> Result<bool, SetupError> {
        let settings = &self.settings;
        let name = &settings.device.name;
        let device = self.netlink.link_index(name).map_err(asking("for the TUN"))?;
        let default = Route { destination: Prefix::ALL, gateway: None, device, table: settings.table, source: None };
        let present = self.netlink.routes(settings.table).map_err(asking("for routes"))?;
        let mut missing = settings.throw_routes();
        missing.push(default);
        missing.retain(|route| !present.contains(route));
        for route in &missing {
            self.netlink.replace_route(route).map_err(changing("adding a route to the gateway's table"))?;
        }
        Ok(!missing.is_empty())
    }

    fn mend_rule(&mut self) -> Result<bool, SetupError> {
        let rule = self.settings.rule();
        if self.netlink.rules().map_err(asking("for rules"))?.contains(&rule) {
            return Ok(false);
        }
        self.netlink.add_rule(&rule).map_err(changing("adding the policy rule"))?;
        Ok(true)
    }

    /// Removes everything, marks first, so that no packet is marked for a route that is gone. Goes on after a failure
    /// and reports the first.
    fn undo(&mut self) -> Result<(), SetupError> {
        self.begun = false;
        let table = self.table.take().map_or(Ok(()), Table::remove);
        if self.settings.by == DivertBy::Ingress {
            return table;
        }
        let rule = self.netlink.delete_rule(&self.settings.rule()).map_err(changing("removing the policy rule"));
        let routes = self.undo_routes().map_err(changing("removing the gateway's routes"));
        table.and(rule).and(routes)
    }

    /// Removes rule and routes that a predecessor has left. Those that lead elsewhere than to this TUN are another gateway's.
    fn undo_rule_and_routes(&mut self) -> Result<(), SetupError> {
        let settings = &self.settings;
        let tun = self.netlink.link_index(&settings.device.name).map_err(asking("for the TUN"))?;
        let routes = self.netlink.routes(settings.table).map_err(asking("for routes"))?;
        if routes.iter().any(|route| route.device.is_some() && route.device != tun) {
            return Ok(());
        }
        if self.netlink.rules().map_err(asking("for rules"))?.contains(&settings.rule()) {
            self.netlink.delete_rule(&settings.rule()).map_err(changing("removing the policy rule"))?;
        }
        self.undo_routes().map_err(changing("removing the gateway's routes"))
    }

    fn undo_routes(&mut self) -> io::Result<()> {
        let device = self.netlink.link_index(&self.settings.device.name)?;
        for route in self.netlink.routes(self.settings.table)? {
            if route.device.is_none() || route.device == device {
                self.netlink.delete_route(&route)?;
            }
        }
        Ok(())
    }
}

/// A step of set-up that failed, or a watcher that panicked, leaves nothing behind either.
impl Drop for Installed {
    fn drop(&mut self) {
        if self.begun
            && let Err(error) = self.undo()
        {
            tracing::error!(%error, "undoing a diversion that did not come to its end");
        }
    }
}

fn asking(what: &'static str) -> impl Fn(io::Error) -> SetupError {
    move |error| SetupError::caused(format!("asking the kernel {what}"), error)
}

fn changing(operation: &'static str) -> impl Fn(io::Error) -> SetupError {
    move |error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let error = SetupError::caused(operation, error);
        if denied { error.remedy("run as root, or with CAP_NET_ADMIN") } else { error }
    }
}
