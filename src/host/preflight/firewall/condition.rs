//! Whether a rule's statements apply to a packet: yes, no, or not to be said.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::{FRAGMENT, Passage};
use crate::policy::Prefix;

/// What a statement says about a packet.
pub(super) enum Step<'a> {
    On,
    /// Not this rule.
    Apart,
    Unknown,
    Verdict(&'a Value),
}

pub(super) fn step<'a>(statement: &'a Value, passage: &Passage<'_>) -> Step<'a> {
    let Some((word, argument)) = statement.as_object().and_then(|object| object.iter().next()) else {
        return Step::Unknown;
    };
    match word.as_str() {
        "accept" | "drop" | "reject" | "return" | "jump" | "goto" => Step::Verdict(statement),
        "counter" | "log" | "mangle" | "notrack" | "flow" => Step::On,
        "match" => match condition(argument, passage) {
            Some(true) => Step::On,
            Some(false) => Step::Apart,
            None => Step::Unknown,
        },
        "vmap" => verdict_map(argument, passage),
        _ => Step::Unknown,
    }
}

fn verdict_map<'a>(map: &'a Value, passage: &Passage<'_>) -> Step<'a> {
    let (Some(key), Some(pairs)) = (map.get("key"), map.pointer("/data/set").and_then(Value::as_array)) else {
        return Step::Unknown;
    };
    for pair in pairs {
        let (Some(value), Some(verdict)) = (pair.get(0), pair.get(1)) else { return Step::Unknown };
        match equals(key, value, passage) {
            Some(true) => return Step::Verdict(verdict),
            Some(false) => {}
            None => return Step::Unknown,
        }
    }
    Step::Apart
}

fn condition(argument: &Value, passage: &Passage<'_>) -> Option<bool> {
    let equal = equals(argument.get("left")?, argument.get("right")?, passage)?;
    match argument.get("op")?.as_str()? {
        "==" | "in" => Some(equal),
        "!=" => Some(!equal),
        _ => None,
    }
}

/// Whether the field `left` of the packet is `right`, or one of a set; None if that cannot be said.
fn equals(left: &Value, right: &Value, passage: &Passage<'_>) -> Option<bool> {
    let members = right.get("set").or(Some(right)).and_then(Value::as_array);
    if let Some(members) = members {
        let mut unknown = false;
        for member in members {
            match equals(left, member, passage) {
                Some(true) => return Some(true),
                Some(false) => {}
                None => unknown = true,
            }
        }
        return if unknown { None } else { Some(false) };
    }
    if let Some(payload) = left.get("payload") {
        return match (text(payload, "protocol"), text(payload, "field")) {
            ("ip", "saddr") => address_in(passage.source?, right),
            ("ip", "daddr") => address_in(passage.destination?, right),
            ("ip", "protocol") => word_is("icmp", right),
            ("icmp", "type") => word_is(passage.kind, right),
            // Other protocols' fields: the rule is for other packets.
            ("tcp" | "udp" | "ip6" | "icmpv6" | "sctp" | "th" | "udplite" | "dccp", _) => Some(false),
            _ => None,
        };
    }
    if let Some(masked) = left.get("&") {
        return fragment_field_is(masked, right, passage);
    }
    match left.get("meta").map(|meta| text(meta, "key")) {
        Some("iifname" | "iif") => device_is(passage.incoming?, right),
        Some("oifname" | "oif") => device_is(passage.outgoing?, right),
        Some("l4proto") => word_is("icmp", right),
        Some("nfproto") => word_is("ipv4", right),
        Some("protocol") => word_is("ip", right),
        Some(_) => None,
        None if left.pointer("/ct/key").and_then(Value::as_str) == Some("state") => word_is(passage.state, right),
        None => None,
    }
}

/// `ip frag-off & MASK`: offset and "more follow" are known of a packet, "don't fragment" is not.
fn fragment_field_is(masked: &Value, right: &Value, passage: &Passage<'_>) -> Option<bool> {
    const KNOWN: u64 = 0x3fff;
    let payload = masked.get(0)?.get("payload")?;
    let (mask, wanted) = (masked.get(1)?.as_u64()?, right.as_u64()?);
    if (text(payload, "protocol"), text(payload, "field")) != ("ip", "frag-off") || mask & !KNOWN != 0 {
        return None;
    }
    // The last of an Ethernet's fragments, or a whole packet.
    let field = if passage.kind == FRAGMENT { 185 } else { 0 };
    Some(field & mask == wanted)
}

fn word_is(word: &str, right: &Value) -> Option<bool> {
    // "@name" is a named set; a number is a word in another spelling.
    right.as_str().filter(|right| !right.starts_with('@')).map(|right| right == word)
}

fn device_is(name: &str, right: &Value) -> Option<bool> {
    let pattern = right.as_str().filter(|pattern| !pattern.starts_with('@'))?;
    Some(match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    })
}

fn address_in(address: Ipv4Addr, right: &Value) -> Option<bool> {
    let parse = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
    if let Some(prefix) = right.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return Some(Prefix::new(parse(prefix.get("addr")?)?, length).ok()?.contains(address));
    }
    if let Some(range) = right.get("range") {
        return Some((parse(range.get(0)?)?..=parse(range.get(1)?)?).contains(&address));
    }
    Some(parse(right)? == address)
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}
