//! What the nftables tables say.
//!
//! What diverts at ingress is a second table of the same name, of the netdev family, made and removed in the same
//! transactions by the same owner. Its chain is bound to devices, on kernels before 6.16 to those alone that are there when it is
//! made, and for good to none that has gone; the TUN is known to its rule by its index. So it is replaced when a device has come,
//! or come again ([`Links`]).
//!
//! There it sees packets that nobody has looked at yet. `meta l4proto` holds only where version and lengths of the IP header
//! are right; the rest of what the kernel's stack would refuse (a damaged header, a source route) the proxy refuses, and counts.
//! `fwd ip to` takes one from the TTL and gives the packet to the device without the link header that it came with; plain `fwd
//! to` does neither.

use super::{DivertBy, DivertSettings};
use crate::host::nft;
use crate::policy::Prefix;

/// The families of the two tables: nft asks for a prerouting chain in the first and for an ingress chain in the second.
pub(super) const FAMILIES: [&str; 2] = [IP, NETDEV];
pub(super) const IP: &str = "ip";
const NETDEV: &str = "netdev";

/// The chain's priority, the kernel's NF_IP_PRI_RAW_BEFORE_DEFRAG. At `raw` (-300) a host that tracks connections has
/// put fragments together already: a fragmented request would look whole, be diverted, and be cut up again on its way into
/// the TUN; and parts of requests would fill the memory in which that is done.
const BEFORE_DEFRAG: i32 = -450;

/// After every translation of addresses (NF_IP_PRI_NAT_SRC is 100, and helpers of connections come at 300).
const AFTER_NAT: i32 = 310;

/// After whatever the host's administrator filters at ingress (`filter` is 0): what is dropped there does not come here.
const AFTER_FILTER: i32 = 10;

/// The errors that are passed on, by nft's names.
const ERROR_TYPES: &str = "destination-unreachable, time-exceeded, parameter-problem";

/// The devices, by their indices, that the rules of a table are bound to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Links {
    /// The TUN, if it is up.
    pub(super) tun: Option<u32>,
    /// Those of the clients' interfaces that there are: all or, without the TUN, none.
    pub(super) arrivals: Vec<(String, u32)>,
}

/// What tables of these settings, bound to these devices, have in common.
pub(super) fn unstamped(settings: &DivertSettings, links: &Links) -> String {
    // A device that has come again has another index and the same name.
    format!("{}# {links:?}\n", ruleset("", settings, links, "", ""))
}

/// The line that puts the tables in force, in place of those that may be there with the flags `before`.
pub(super) fn transaction(before: &str, settings: &DivertSettings, links: &Links, stamp: &str, flags: &str) -> String {
    let netdev = format!("{NETDEV} {}", settings.table_name());
    // Not named without need: a kernel without the family refuses the whole line.
    let stale =
        settings.by == DivertBy::Route && nft::run(&["list", "table", NETDEV, &settings.table_name()], "").is_ok();
    let clearing = if stale { format!("add table {netdev} {before}; delete table {netdev}; ") } else { String::new() };
    clearing + &ruleset(before, settings, links, stamp, flags)
}

fn ruleset(before: &str, settings: &DivertSettings, links: &Links, stamp: &str, flags: &str) -> String {
    let mut commands = Vec::new();
    let mut begin = |family: &str| {
        let table = format!("{family} {}", settings.table_name());
        commands.extend([
            // Adding before deleting: deleting what is not there is an error.
            format!("add table {table} {before}"),
            format!("delete table {table}"),
            format!("add table {table} {flags}"),
            format!("add chain {table} {stamp}"),
        ]);
        table
    };
    let table = begin(IP);
    let at_ingress = (settings.by == DivertBy::Ingress).then(|| begin(NETDEV));
    let diversion = match at_ingress {
        None => by_route(&table, settings),
        Some(netdev) => by_ingress(&table, &netdev, settings, links),
    };
    commands.extend(diversion);
    commands.extend(what_comes_back(&table, settings));
    format!("{}\n", commands.join("; "))
}

fn by_route(table: &str, settings: &DivertSettings) -> Vec<String> {
    let (clients, device) = (clients(settings), &settings.device.name);
    let mut arrivals: Vec<&String> = settings.interfaces.iter().collect();
    arrivals.sort_unstable();
    arrivals.dedup();
    let arrivals: Vec<String> = arrivals.into_iter().map(|name| format!("\"{name}\" : goto arrivals")).collect();
    let arrivals = arrivals.join(", ");
    let (kept, mark, mtu) = (!settings.mask, settings.mark, settings.device.mtu);
    let way_out = way_out(settings);
    vec![
        format!("add chain {table} divert {{ type filter hook prerouting priority {BEFORE_DEFRAG}; policy accept; }}"),
        format!("add chain {table} arrivals"),
        format!("add chain {table} brought"),
        format!("add chain {table} requests"),
        format!("add chain {table} outward"),
        // One look at the interface for every packet of the host, instead of one a rule.
        format!("add rule {table} divert iifname vmap {{ {arrivals}, \"{device}\" : goto brought }}"),
        format!(
            "add rule {table} arrivals ip protocol icmp ip saddr {{ {clients} }} ip daddr != {{ {clients} }} goto requests"
        ),
        // Of a fragmented message only the first part has a type: all parts of all messages come, in their order, and what is no
        // request goes back. No fragment is tracked, so none is put together before that.
        format!("add rule {table} requests ip frag-off & 0x3fff != 0 goto outward"),
        format!("add rule {table} requests icmp type echo-request icmp code 0 goto outward"),
        // On its way into the TUN a packet over its MTU is cut, or its sender is told what fits there: which may be less than what
        // fits outside. The kernel's path takes it then. So does it what comes by another interface than the replies would
        // leave by: somebody writes with another client's address. The look-ups of routes are last: only packets that match all else pay for them.
        format!("add rule {table} outward ip length > {mtu} ip frag-off & 0x4000 != 0 return"),
        format!(
            "add rule {table} outward fib daddr type != local fib saddr . iif oif exists {way_out} \
             meta mark set meta mark & {kept:#010x} | {mark:#010x} notrack"
        ),
    ]
}

fn by_ingress(table: &str, netdev: &str, settings: &DivertSettings, links: &Links) -> Vec<String> {
    let (clients, device) = (clients(settings), &settings.device.name);
    let (address, mtu, way_out) = (settings.device.address, settings.device.mtu, way_out(settings));
    let names: Vec<String> = links.arrivals.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let mut commands = vec![
        format!("add chain {table} divert {{ type filter hook prerouting priority {BEFORE_DEFRAG}; policy accept; }}"),
        format!("add chain {table} brought"),
        format!("add rule {table} divert iifname \"{device}\" goto brought"),
    ];
    if names.is_empty() {
        // Nobody can come by now, or there is nowhere to go: the kernel's path.
        return commands;
    }
    let names = names.join(", ");
    commands.extend([
        format!(
            "add chain {netdev} divert {{ type filter hook ingress devices = {{ {names} }} priority {AFTER_FILTER}; policy accept; }}"
        ),
        format!("add chain {netdev} requests"),
        format!("add chain {netdev} outward"),
        // Not what a device in promiscuous mode overhears, nor what is for all. Without a hop left a packet takes the kernel's
        // path, where its sender is told.
        format!(
            "add rule {netdev} divert meta l4proto icmp meta pkttype host ip ttl > 1 \
             ip saddr {{ {clients} }} ip daddr != {{ {clients} }} goto requests"
        ),
        // Of a fragmented message only the first part has a type: all parts of all messages come, in their order, and what is no
        // request goes back.
        format!("add rule {netdev} requests ip frag-off & 0x3fff != 0 goto outward"),
        format!("add rule {netdev} requests icmp type echo-request icmp code 0 goto outward"),
        // Nobody cuts a packet on this way into the TUN. And a frame with a tag is another device's, which is looked for after
        // ingress only.
        format!("add rule {netdev} outward ip length > {mtu} return"),
        format!("add rule {netdev} outward ether type {{ 8021q, 8021ad }} return"),
        // As by route; and what the local table has no other name for is to be routed.
        format!(
            "add rule {netdev} outward fib daddr type unicast fib saddr . iif oif exists {way_out} \
             fwd ip to {address} device \"{device}\""
        ),
    ]);
    commands
}

/// What the gateway writes to the TUN, and what the host has to say about it.
fn what_comes_back(table: &str, settings: &DivertSettings) -> [String; 5] {
    let clients = clients(settings);
    let range = |prefix: &Prefix| format!("{:#010x}-{:#010x}", u32::from(prefix.address()), prefix.last());
    let ranges = settings.disjoint_clients().iter().map(range).collect::<Vec<_>>().join(", ");
    [
        // Replies that we bring. Not those that clients send: of a long one the first part alone has a type, and must not go
        // untracked without the others.
        format!("add rule {table} brought ip saddr {{ {clients} }} return"),
        format!("add rule {table} brought icmp type echo-reply notrack return"),
        // Errors that are passed on, about requests that conntrack never saw. Not those that clients send, which concern
        // flows of the kernel's own NAT.
        format!("add rule {table} brought icmp type {{ {ERROR_TYPES} }} ip daddr {{ {clients} }} notrack"),
        // What the kernel, or a router before the client, has to say to a remote about a reply that we brought: that one
        // never sent it to the client, whose address the quote would tell. By this priority a masquerade has made the
        // errors about replies of its own what they are to be. Looked at: the quoted header's length, protocol and
        // destination, and the type of what it carries.
        format!("add chain {table} private {{ type filter hook postrouting priority {AFTER_NAT}; policy accept; }}"),
        format!(
            "add rule {table} private icmp type {{ {ERROR_TYPES} }} ip daddr != {{ {clients} }} \
             @th,64,8 0x45 @th,136,8 1 @th,224,8 0 @th,192,32 {{ {ranges} }} drop"
        ),
    ]
}

fn clients(settings: &DivertSettings) -> String {
    settings.disjoint_clients().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The condition that a packet is routed out of an outside device.
fn way_out(settings: &DivertSettings) -> String {
    let names: Vec<String> = settings.outside.iter().map(|name| format!("\"{name}\"")).collect();
    if names.is_empty() { String::new() } else { format!("fib daddr oifname {{ {} }}", names.join(", ")) }
}
