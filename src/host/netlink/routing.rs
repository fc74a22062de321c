//! Routes, policy rules, and the kernel's own decision about a destination.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::{Netlink, allowing};
use crate::policy::Prefix;

/// The table that holds a host's ordinary routes.
pub const MAIN_TABLE: u32 = 254;

/// The table of the host's own addresses.
const LOCAL_TABLE: u32 = 255;

/// One IPv4 route.
///
/// With neither gateway nor device it is a `throw` route: this table has no answer for the destination, the next
/// rule's table is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to; `0.0.0.0/0` for the default route.
    pub destination: Prefix,
    /// Next hop, if any.
    pub gateway: Option<Ipv4Addr>,
    /// Device index, if any.
    pub device: Option<u32>,
    /// Routing table: 254 is main.
    pub table: u32,
    /// Preferred source, if any.
    pub source: Option<Ipv4Addr>,
}

/// One IPv4 policy rule (`ip rule`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Priority: lower is looked at first.
    pub priority: u32,
    /// Firewall mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Incoming device.
    pub incoming: Option<String>,
    /// IP protocol (1: ICMP).
    pub protocol: Option<u8>,
    /// Table to look up.
    pub table: u32,
}

/// What the kernel would do with a packet (`ip route get`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// The device it leaves by.
    pub device: Option<u32>,
    /// The source it would carry if it had none.
    pub source: Option<Ipv4Addr>,
    /// Whether the destination is one of the host's own addresses.
    pub local: bool,
}

impl Netlink {
    /// Adds a route; replaces one with the same destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        let mut message = route_message(route);
        let thrown = route.gateway.is_none() && route.device.is_none();
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = if thrown { RouteType::Throw } else { RouteType::Unicast };
        // A next hop may itself be routed; without one the destination must be on the link.
        message.header.scope = if route.gateway.is_some() || thrown { RouteScope::Universe } else { RouteScope::Link };
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; no error if it is not there.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        let mut message = route_message(route);
        // "Any scope", as `ip route del` asks; the kind is left open by default.
        message.header.scope = RouteScope::NoWhere;
        allowing(self.change(RouteNetlinkMessage::DelRoute(message), 0), libc::ESRCH)
    }

    /// Makes `prefix` local (AnyIP: `ip route add local PREFIX dev lo`).
    pub fn add_local_route(&mut self, prefix: Prefix) -> io::Result<()> {
        let message = self.local_route(prefix)?;
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Undoes [`add_local_route`](Netlink::add_local_route). One that is gone already is no error.
    pub fn delete_local_route(&mut self, prefix: Prefix) -> io::Result<()> {
        let message = self.local_route(prefix)?;
        allowing(self.change(RouteNetlinkMessage::DelRoute(message), 0), libc::ESRCH)
    }

    fn local_route(&mut self, prefix: Prefix) -> io::Result<RouteMessage> {
        let loopback = self.link_index("lo")?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let route =
            Route { destination: prefix, gateway: None, device: Some(loopback), table: LOCAL_TABLE, source: None };
        let mut message = route_message(&route);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        Ok(message)
    }

    /// The unicast and throw routes of one table.
    pub fn routes(&mut self, table: u32) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.attributes.push(RouteAttribute::Table(table));
        let listed = self.dump(&RouteNetlinkMessage::GetRoute(message), |payload| {
            decode_route(&RouteMessage::parse(payload).ok()?).filter(|route| route.table == table)
        });
        match listed {
            // A table comes into being with its first route.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            other => other,
        }
    }

    /// How the kernel would route a packet to `destination`, from `source` if one is given. None: it has no route.
    pub fn route_to(&mut self, destination: Ipv4Addr, source: Option<Ipv4Addr>) -> io::Result<Option<Lookup>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
        if let Some(source) = source {
            message.header.source_prefix_length = 32;
            message.attributes.push(RouteAttribute::Source(RouteAddress::Inet(source)));
        }
        let mut found = None;
        let result = self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK, |payload| {
            found = RouteMessage::parse(payload).ok().map(|message| decode_lookup(&message));
        });
        match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    /// Adds a rule; no error if exactly this one is there.
    pub fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        let mut message = rule_message(rule);
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static));
        let result = self.change(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL);
        allowing(result, libc::EEXIST)
    }

    /// Removes a rule; no error if it is not there.
    pub fn delete_rule(&mut self, rule: &Rule) -> io::Result<()> {
        allowing(self.change(RouteNetlinkMessage::DelRule(rule_message(rule)), 0), libc::ENOENT)
    }

    /// The rules that look up a table and say no more than [`Rule`] can.
    pub fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetRule(message), |payload| decode_rule(&RuleMessage::parse(payload).ok()?))
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.destination.length();
    message.header.table = short_table(route.table);
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.destination.length() > 0 {
        let destination = RouteAddress::Inet(route.destination.address());
        message.attributes.push(RouteAttribute::Destination(destination));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    }
    if let Some(device) = route.device {
        message.attributes.push(RouteAttribute::Oif(device));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    message
}

/// The header's eight bits; a larger number is in the attribute only.
fn short_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC)
}

fn decode_route(message: &RouteMessage) -> Option<Route> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Throw) {
        return None;
    }
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut route = Route {
        destination: Prefix::host(destination),
        gateway: None,
        device: None,
        table: u32::from(message.header.table),
        source: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.gateway = Some(*address),
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => route.source = Some(*address),
            _ => {}
        }
    }
    route.destination = Prefix::new(destination, message.header.destination_prefix_length).ok()?;
    Some(route)
}

fn decode_lookup(message: &RouteMessage) -> Lookup {
    let mut lookup = Lookup { device: None, source: None, local: message.header.kind == RouteType::Local };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => lookup.device = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => lookup.source = Some(*address),
            _ => {}
        }
    }
    lookup
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = short_table(rule.table);
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    if let Some((mark, mask)) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(mask));
    }
    if let Some(name) = &rule.incoming {
        message.attributes.push(RuleAttribute::Iifname(name.clone()));
    }
    if let Some(protocol) = rule.protocol {
        message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(protocol)));
    }
    message
}

fn decode_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let plain = header.action == RuleAction::ToTable
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert);
    if !plain {
        return None;
    }
    let mut rule = Rule { priority: 0, mark: None, incoming: None, protocol: None, table: u32::from(header.table) };
    let (mut mark, mut mask) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
            RuleAttribute::IpProtocol(protocol) => rule.protocol = Some(u8::from(*protocol)),
            RuleAttribute::Table(table) => rule.table = *table,
            // Who made it, and the table's "no suppression": no condition.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    if mark.is_some() || mask.is_some() {
        rule.mark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    Some(rule)
}
