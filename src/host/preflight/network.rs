//! Addresses, routes, forwarding and reverse-path filtering.

use std::net::Ipv4Addr;
use std::path::Path;

use super::firewall::{self, Passage};
use super::{DEVICE, Finding, Plan};
use crate::host::device::{ipv4_sysctl, read_sysctl};
use crate::host::divert::{DivertBy, DivertSettings};
use crate::host::netlink::Netlink;
use crate::host::{EXAMPLE_REMOTES, default_source};
use crate::policy::Prefix;

/// rp_filter's "strict": the way back must be by the device that a packet came in by.
const STRICT: u8 = 1;

/// The rule that leads to the host's ordinary routes has this priority; ours must come before it.
const MAIN_PRIORITY: u32 = 32_766;

/// What is wrong with the prefixes by themselves; nothing, if nothing.
pub(super) fn prefixes(plan: &Plan) -> Vec<Finding> {
    let name = "prefixes";
    let mut wrong = Vec::new();
    if plan.clients.is_empty() {
        wrong.push(("no client's address is named".to_owned(), "--clients 10.66.0.0/24"));
    }
    for (position, prefix) in plan.clients.iter().enumerate() {
        if let Some(what) = absurd(*prefix) {
            let remedy = "the prefixes that clients' addresses come from, such as 10.66.0.0/24";
            wrong.push((format!("{prefix} as clients: {what}"), remedy));
        }
        let earlier = plan.clients.iter().take(position);
        for other in earlier.filter(|other| other.overlaps(*prefix)) {
            wrong.push((format!("clients' prefixes {other} and {prefix} overlap"), "name the wider one only"));
        }
        for address in plan.outside.iter().filter(|address| prefix.contains(**address)) {
            let what = format!("outside address {address} is among the clients ({prefix})");
            wrong.push((what, "an outside address that no client can have"));
        }
        if prefix.contains(plan.device.address) {
            let what = format!("the TUN's own address {} is among the clients ({prefix})", plan.device.address);
            wrong.push((what, "another address for the TUN"));
        }
    }
    let mut findings: Vec<Finding> =
        wrong.into_iter().map(|(what, remedy)| Finding::missing(name, what).remedy(remedy).fatal()).collect();
    if findings.is_empty() {
        let clients: Vec<String> = plan.clients.iter().map(ToString::to_string).collect();
        findings.push(Finding::ok(name, format!("clients are {}", clients.join(", "))));
    }
    findings
}

fn absurd(prefix: Prefix) -> Option<&'static str> {
    let address = prefix.address();
    if prefix.length() == 0 {
        Some("every address, so nothing is left outside to ping")
    } else if address.is_loopback() {
        Some("loopback addresses never travel")
    } else if address.is_multicast() || address.octets()[0] >= 240 {
        Some("no host has such an address")
    } else if address.octets()[0] == 0 {
        Some("\"this network\" is no host's address")
    } else {
        None
    }
}

pub(super) fn examine(plan: &Plan, netlink: &mut Netlink) -> Vec<Finding> {
    let mut findings = vec![device_name(plan, netlink), forwarding(plan)];
    if let Some(divert) = &plan.divert {
        findings.extend(diversion(divert, netlink));
    }
    let (outside, found) = outside_addresses(plan, netlink);
    findings.extend(found);
    let way_out = outside.first().map(|source| way_out(plan, netlink, *source));
    let outside_device = way_out.as_ref().and_then(|(device, _)| *device);
    findings.extend(way_out.map(|(_, finding)| finding));
    findings.extend(firewall(plan, netlink, outside.first().copied(), outside_device));
    findings
}

fn device_name(plan: &Plan, netlink: &mut Netlink) -> Finding {
    let (name, device) = (DEVICE, &plan.device.name);
    match netlink.link_index(device) {
        Ok(None) => Finding::ok(name, format!("{device} is free")),
        Ok(Some(_)) => {
            Finding::warning(name, format!("{device} exists already: a gateway that runs, or a persistent TUN"))
                .remedy("end the other gateway, or give this one another --device")
        }
        Err(error) => Finding::warning(name, format!("looking for {device}: {error}")),
    }
}

fn forwarding(plan: &Plan) -> Finding {
    let name = "forwarding";
    if read_sysctl(Path::new("/proc/sys/net/ipv4/ip_forward")) == Some(1) {
        return Finding::ok(name, "net.ipv4.ip_forward is 1");
    }
    let interfaces = plan.divert.as_ref().map_or(&[][..], |divert| &divert.interfaces);
    let forwards = |interface: &String| read_sysctl(&ipv4_sysctl(interface, "forwarding")) == Some(1);
    if !interfaces.is_empty() && interfaces.iter().all(forwards) {
        return Finding::ok(name, format!("on for {}", interfaces.join(", ")));
    }
    Finding::missing(name, "off: no packet of a client goes anywhere").remedy("sysctl -w net.ipv4.ip_forward=1")
}

fn diversion(divert: &DivertSettings, netlink: &mut Netlink) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = divert.validate() {
        findings.push(Finding::refused("divert", error));
    }
    findings.extend(divert.interfaces.iter().map(|interface| divert_interface(divert, interface, netlink)));
    if divert.by == DivertBy::Route {
        findings.extend(mark_and_rule(divert, netlink));
    }
    findings
}

fn divert_interface(divert: &DivertSettings, interface: &str, netlink: &mut Netlink) -> Finding {
    let name = "divert";
    let index = match netlink.link_index(interface) {
        Ok(Some(index)) => index,
        Ok(None) => {
            return Finding::warning(name, format!("{interface} does not exist; it is diverted from once it does"))
                .remedy("ip link; or another --divert");
        }
        Err(error) => return Finding::warning(name, format!("looking for {interface}: {error}")),
    };
    let of = |device: &str| read_sysctl(&ipv4_sysctl(device, "rp_filter")).unwrap_or(0);
    // The kernel takes the maximum. What is diverted at ingress does not come to it.
    if divert.by == DivertBy::Ingress || of("all").max(of(interface)) != STRICT {
        return Finding::ok(name, interface);
    }
    let astray = divert.clients.iter().find(|prefix| {
        // One of them may be the host's own.
        !two_of(**prefix)
            .into_iter()
            .any(|client| matches!(netlink.route_to(client, None), Ok(Some(way)) if way.device == Some(index)))
    });
    match astray {
        None => Finding::ok(name, format!("{interface}, strict reverse-path filter")),
        Some(prefix) => {
            let what = format!("{interface} filters reverse paths strictly, and the way back to {prefix} is not by it");
            Finding::warning(name, what)
                .remedy(format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", interface.replace('.', "/")))
        }
    }
}

/// Two addresses that clients of the prefix may have (the same one, if there is no more).
fn two_of(prefix: Prefix) -> [Ipv4Addr; 2] {
    let first = u32::from(prefix.address());
    match prefix.length() {
        32 => [prefix.address(); 2],
        31 => [first, first + 1].map(Ipv4Addr::from),
        _ => [first + 1, first + 2].map(Ipv4Addr::from),
    }
}

fn mark_and_rule(divert: &DivertSettings, netlink: &mut Netlink) -> Vec<Finding> {
    let name = "mark and rule";
    let mut findings = Vec::new();
    if divert.priority == 0 || divert.priority >= MAIN_PRIORITY {
        let what = format!("rule priority {} is not between 1 and {}", divert.priority, MAIN_PRIORITY - 1);
        findings.push(Finding::missing(name, what).remedy("a priority such as 3776").fatal());
    }
    let rules = match netlink.rules() {
        Ok(rules) => rules,
        Err(error) => {
            findings.push(Finding::warning(name, format!("listing rules: {error}")));
            return findings;
        }
    };
    let others = rules.iter().filter(|rule| rule.table != divert.table);
    for rule in others.filter(|rule| rule.mark.is_some_and(|(_, mask)| mask & divert.mask != 0)) {
        // A rule for exactly another value of the same bits is no conflict.
        let (mark, mask) = rule.mark.unwrap_or_default();
        if (mark ^ divert.mark) & mask & divert.mask == 0 {
            let what = format!(
                "the rule of priority {} (mark {mark:#x}/{mask:#x}) reads bits of ours ({:#x}/{:#x})",
                rule.priority, divert.mark, divert.mask
            );
            findings.push(Finding::warning(name, what).remedy("other bits of the mark for the gateway"));
        }
    }
    if findings.is_empty() {
        findings
            .push(Finding::ok(name, format!("{:#010x}/{:#010x}, table {}", divert.mark, divert.mask, divert.table)));
    }
    findings
}

fn outside_addresses(plan: &Plan, netlink: &mut Netlink) -> (Vec<Ipv4Addr>, Vec<Finding>) {
    let name = "outside";
    if plan.outside.is_empty() {
        return match default_source() {
            Ok(source) if plan.clients.iter().any(|prefix| prefix.contains(source)) => {
                let what = format!("the default route's source {source} is among the clients");
                (vec![], vec![Finding::missing(name, what).remedy("--outside ADDRESS").fatal()])
            }
            Ok(source) => (vec![source], vec![Finding::ok(name, format!("{source}, the default route's source"))]),
            Err(error) => (vec![], vec![Finding::refused(name, error)]),
        };
    }
    let findings = plan.outside.iter().map(|address| match netlink.route_to(*address, None) {
        Ok(Some(way)) if way.local => Finding::ok(name, format!("{address} is the host's")),
        Ok(_) => Finding::missing(name, format!("{address} is not an address of this host"))
            .remedy(format!("ip address add {address}/32 dev DEVICE, or ip route add local {address} dev lo"))
            .fatal(),
        Err(error) => Finding::warning(name, format!("looking up {address}: {error}")),
    });
    let findings = findings.collect();
    (plan.outside.clone(), findings)
}

/// By which device proxied requests leave, and whether that is a way out at all.
fn way_out(plan: &Plan, netlink: &mut Netlink, source: Ipv4Addr) -> (Option<u32>, Finding) {
    let name = "way out";
    let tun = netlink.link_index(&plan.device.name).ok().flatten();
    let remotes =
        EXAMPLE_REMOTES.into_iter().filter(|remote| !plan.clients.iter().any(|prefix| prefix.contains(*remote)));
    for remote in remotes {
        // A source that is not the host's is refused here, and reported elsewhere.
        let Ok(Some(way)) = netlink.route_to(remote, Some(source)) else { continue };
        if way.device.is_some() && way.device == tun {
            let device = &plan.device.name;
            let what =
                format!("from {source} to {remote} leads into {device}: proxied requests would come back for ever");
            let remedy =
                format!("remove that route: ip route get {remote} from {source}; ip route show table all dev {device}");
            return (way.device, Finding::missing(name, what).remedy(remedy).fatal());
        }
        return (way.device, Finding::ok(name, format!("routed from {source}, not by the TUN")));
    }
    let what = format!("no route from {source} to {}, for example", EXAMPLE_REMOTES[0]);
    (None, Finding::missing(name, what).remedy("ip route add default via GATEWAY"))
}

fn firewall(
    plan: &Plan,
    netlink: &mut Netlink,
    outside: Option<Ipv4Addr>,
    outside_device: Option<u32>,
) -> Vec<Finding> {
    let outside_name = outside_device.and_then(|index| netlink.link_name(index).ok().flatten());
    let client = plan.clients.first().map(|prefix| two_of(*prefix)[1]);
    let remote = EXAMPLE_REMOTES[0];
    let interfaces = plan.divert.as_ref().map_or(&[][..], |divert| &divert.interfaces);
    // Who leads packets into the TUN by hand names no interface: any.
    let inside: Vec<Option<&str>> = match interfaces {
        [] => vec![None],
        named => named.iter().map(|name| Some(name.as_str())).collect(),
    };
    let mut passages = Vec::new();
    for interface in inside {
        // At ingress requests are past every chain that there is.
        if plan.divert.as_ref().is_none_or(|divert| divert.by == DivertBy::Route) {
            let into_tun = Passage::into_tun(interface, &plan.device.name, client, remote);
            passages.extend([into_tun.as_fragments(), into_tun]);
        }
        passages.push(Passage::out_of_tun(&plan.device.name, interface, remote, client));
    }
    passages.push(Passage::leaving(outside_name.as_deref(), outside, remote));
    passages.push(Passage::returning(outside_name.as_deref(), remote, outside));
    if plan.icmp_errors {
        let back: Vec<_> = passages.iter().filter(|passage| passage.is_of_replies()).cloned().collect();
        passages.extend(back.iter().flat_map(|passage| firewall::ERRORS.map(|kind| passage.as_error(kind))));
    }
    firewall::examine(&passages)
}
