//! Whether the firewall lets through what passes through the gateway, and the lines that make it.
//!
//! One ping passes four times: forwarded into the TUN, out of the host, into the host, forwarded out of the TUN; an error
//! about it takes the latter two. For each
//! the base chains of that hook are evaluated as the kernel would, with three truths: a condition that is not understood
//! here (a named set, a rate limit, an iptables match) is neither true nor false. A rule that certainly applies decides;
//! one that perhaps applies is taken as no decision, so a chain counts as dropping only if it drops by a rule that
//! certainly applies or by its policy. Perhaps-accepting rules on the way are mentioned.
//!
//! Requests in fragments are looked at on their way into the TUN only: further on, a host with rules about states puts them
//! together before its filter sees them.
//!
//! What is known of the packets: the inside pair is untracked (it is diverted so), the outside pair is tracked, so
//! requests are new, replies established, and errors about them related.
//!
//! The lines insert at the top of the base chain: an accept there ends that chain whatever follows, and only that chain.
//!
//! Limits: chains at prerouting and postrouting, where hardly anybody filters, are not looked at; rules of
//! iptables-legacy are not nftables': that there are some is said, what they do is not.

mod condition;
mod ruleset;

use std::fs;
use std::net::Ipv4Addr;

use super::Finding;
use ruleset::{Ruleset, Verdict};

/// The errors that are passed on to clients, by nft's names.
pub(super) const ERRORS: [&str; 3] = ["destination-unreachable", "time-exceeded", "parameter-problem"];

/// The kind of what has no type: every fragment but a request's first.
const FRAGMENT: &str = "fragment";

/// One way of the gateway's packets through a hook.
#[derive(Clone, Debug)]
pub(super) struct Passage<'a> {
    hook: &'static str,
    incoming: Option<&'a str>,
    outgoing: Option<&'a str>,
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    kind: &'static str,
    state: &'static str,
    /// Whether the remedy names the devices.
    names_devices: bool,
}

impl<'a> Passage<'a> {
    pub(super) fn into_tun(
        interface: Option<&'a str>,
        tun: &'a str,
        client: Option<Ipv4Addr>,
        remote: Ipv4Addr,
    ) -> Passage<'a> {
        Passage {
            hook: "forward",
            incoming: interface,
            outgoing: Some(tun),
            source: client,
            destination: Some(remote),
            kind: "echo-request",
            state: "untracked",
            names_devices: true,
        }
    }

    pub(super) fn out_of_tun(
        tun: &'a str,
        interface: Option<&'a str>,
        remote: Ipv4Addr,
        client: Option<Ipv4Addr>,
    ) -> Passage<'a> {
        Passage {
            hook: "forward",
            incoming: Some(tun),
            outgoing: interface,
            source: Some(remote),
            destination: client,
            kind: "echo-reply",
            state: "untracked",
            names_devices: true,
        }
    }

    pub(super) fn leaving(device: Option<&'a str>, outside: Option<Ipv4Addr>, remote: Ipv4Addr) -> Passage<'a> {
        Passage {
            hook: "output",
            incoming: None,
            outgoing: device,
            source: outside,
            destination: Some(remote),
            kind: "echo-request",
            state: "new",
            names_devices: false,
        }
    }

    pub(super) fn returning(device: Option<&'a str>, remote: Ipv4Addr, outside: Option<Ipv4Addr>) -> Passage<'a> {
        Passage {
            hook: "input",
            incoming: device,
            outgoing: None,
            source: Some(remote),
            destination: outside,
            kind: "echo-reply",
            state: "established",
            names_devices: false,
        }
    }

    /// Whether replies take this way.
    pub(super) fn is_of_replies(&self) -> bool {
        self.kind == "echo-reply"
    }

    /// The same way, taken by the fragments of a request that are not its first, and so have no type.
    pub(super) fn as_fragments(&self) -> Passage<'a> {
        Passage { kind: FRAGMENT, ..self.clone() }
    }

    /// The same way, taken by an error about the echo instead of by the reply.
    pub(super) fn as_error(&self, kind: &'static str) -> Passage<'a> {
        let state = if self.state == "established" { "related" } else { self.state };
        Passage { kind, state, ..self.clone() }
    }

    /// The rule that accepts it.
    fn accepting(&self) -> String {
        let mut rule = String::new();
        if self.names_devices {
            for (key, name) in [("iifname", self.incoming), ("oifname", self.outgoing)] {
                rule.extend(name.map(|name| format!("{key} \"{name}\" ")));
            }
        }
        if ERRORS.contains(&self.kind) {
            return format!("{rule}icmp type {{ {} }} accept", ERRORS.join(", "));
        }
        if self.kind == FRAGMENT {
            // Quoted for the shell that the line is typed into.
            return rule + "ip protocol icmp 'ip frag-off & 0x1fff != 0' accept";
        }
        rule + "icmp type " + self.kind + " accept"
    }
}

pub(super) fn examine(passages: &[Passage<'_>]) -> Vec<Finding> {
    let name = "firewall";
    let mut findings = match Ruleset::load() {
        Ok(ruleset) => judge(&ruleset, passages),
        Err(failure) => {
            let (what, remedy) = failure.into_setup_error("not looked at").parts();
            vec![Finding { remedy, ..Finding::warning(name, what) }]
        }
    };
    if findings.is_empty() {
        findings.push(Finding::ok(name, "forward, output and input let the gateway's echoes through"));
    }
    // Filled by the kernel modules of iptables-legacy only.
    let legacy = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "filter") {
        let what = "there is an iptables-legacy filter table, which is not looked at";
        findings.push(Finding::warning(name, what).remedy("iptables-legacy -S"));
    }
    findings
}

/// One finding for each base chain that drops one of the passages.
fn judge(ruleset: &Ruleset, passages: &[Passage<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for chain in ruleset.base_chains() {
        let at_hook = passages.iter().filter(|passage| chain.hook.as_deref() == Some(passage.hook));
        let mut unsure = false;
        let dropped: Vec<&Passage<'_>> = at_hook
            .filter(|passage| {
                let verdict = ruleset.verdict(chain, passage);
                unsure |= verdict == Verdict::PerhapsAccepted;
                verdict != Verdict::Accepted
            })
            .collect();
        if dropped.is_empty() {
            continue;
        }
        let place = format!("{} {} {}", chain.family, chain.table, chain.name);
        let mut lines: Vec<String> =
            dropped.iter().map(|passage| format!("nft insert rule {place} {}", passage.accepting())).collect();
        // All errors of one way share a line.
        lines.dedup();
        let hook = chain.hook.as_deref().unwrap_or_default();
        let what = match unsure {
            true => format!(
                "chain {place} ({hook}) drops echoes of the gateway, unless a rule accepts that is not understood"
            ),
            false => format!("chain {place} ({hook}) drops echoes of the gateway"),
        };
        let finding = if unsure { Finding::warning("firewall", what) } else { Finding::missing("firewall", what) };
        findings.push(finding.remedy(lines.join("\n")));
    }
    findings
}
