//! The far side: the internet namespace's own kernel answers the echoes, and its counters say how many arrived.
//!
//! Rejected: a responder of ours on a raw socket. The kernel answers from the softirq that received the request, several
//! times as fast, is what real remotes run, and cannot share a fault with the gateway.

use std::fs;

use super::namespace::Namespace;
use crate::error::SetupError;

/// What one namespace's kernel has counted since the namespace was made. Packets with a bad ICMP checksum are in
/// neither count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EchoCounters {
    /// Echo requests that arrived.
    pub requests_in: u64,
    /// Echo replies that were sent.
    pub replies_out: u64,
    /// ICMP messages thrown away for a bad checksum.
    pub checksum_errors: u64,
}

/// Reads the namespace's counters.
pub fn counters(namespace: &Namespace) -> Result<EchoCounters, SetupError> {
    namespace.run(counters_here)?
}

/// Reads those of the calling thread's namespace.
pub fn counters_here() -> Result<EchoCounters, SetupError> {
    let table = fs::read_to_string("/proc/thread-self/net/snmp")
        .map_err(|cause| SetupError::caused("lab: cannot read /proc/thread-self/net/snmp", cause))?;
    parse(&table).ok_or_else(|| SetupError::new("lab: /proc/thread-self/net/snmp has no ICMP counters"))
}

/// Two lines begin with `Icmp:`: names, then values in the same order.
fn parse(table: &str) -> Option<EchoCounters> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Icmp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let place = names.split_whitespace().position(|name| name == wanted)?;
        values.split_whitespace().nth(place)?.parse().ok()
    };
    Some(EchoCounters {
        requests_in: value("InEchos")?,
        replies_out: value("OutEchoReps")?,
        checksum_errors: value("InCsumErrors")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_names() {
        let table = "Ip: Forwarding\nIp: 1\nIcmp: InMsgs InCsumErrors InEchos OutEchoReps\nIcmp: 9 1 7 6\n\
                     IcmpMsg: InType8\nIcmpMsg: 7\n";
        let expected = EchoCounters { requests_in: 7, replies_out: 6, checksum_errors: 1 };
        assert_eq!(parse(table), Some(expected));
        assert_eq!(parse("Icmp: InMsgs\nIcmp: 9\n"), None);
        assert_eq!(parse(""), None);
    }
}
