//! Where the kernel has thrown packets of a lab away.

use std::collections::BTreeMap;
use std::fs;

use super::{Lab, Namespace};
use crate::error::SetupError;

/// The place of drops that are not the lab's alone.
pub const MACHINES_QUEUES: &str = "input queues of the CPUs (net.core.netdev_max_backlog)";

/// Packets thrown away since the lab was made, by place: devices, raw sockets and IP in each namespace; and the CPUs'
/// input queues, which are the whole machine's.
pub(super) fn of(lab: &Lab) -> Result<BTreeMap<String, u64>, SetupError> {
    let mut found = BTreeMap::new();
    let softnet = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    found.insert(MACHINES_QUEUES.to_owned(), softnet_drops(&softnet));
    let clients = lab.clients().iter().map(|client| &client.namespace);
    for host in clients.chain([lab.gateway(), lab.internet()]) {
        host_drops(host, &mut found)?;
    }
    Ok(found)
}

fn host_drops(host: &Namespace, found: &mut BTreeMap<String, u64>) -> Result<(), SetupError> {
    let [devices, sockets, counters] = host.run(|| {
        // What a kernel does not have has dropped nothing.
        ["dev", "raw", "snmp"]
            .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default())
    })?;
    let name = host.name();
    for (device, received, sent) in device_drops(&devices) {
        *found.entry(format!("{name}: {device}, receiving")).or_default() += received;
        *found.entry(format!("{name}: {device}, sending")).or_default() += sent;
    }
    found.insert(format!("{name}: raw sockets, receive buffer full"), socket_drops(&sockets));
    for (counter, what) in [
        ("InDiscards", "IP, receiving, no room"),
        ("OutDiscards", "IP, sending, no room"),
        ("OutNoRoutes", "IP, no route"),
        ("InAddrErrors", "IP, address"),
    ] {
        found.insert(format!("{name}: {what}"), counter_value(&counters, "Ip:", counter));
    }
    Ok(())
}

/// The second word of each CPU's line, in hexadecimal.
fn softnet_drops(table: &str) -> u64 {
    let dropped = table.lines().filter_map(|line| line.split_whitespace().nth(1));
    dropped.filter_map(|word| u64::from_str_radix(word, 16).ok()).sum()
}

/// Name, receive drops and send drops of each device.
fn device_drops(table: &str) -> Vec<(String, u64, u64)> {
    let lines = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    lines
        .filter_map(|(name, counts)| {
            let counts: Vec<u64> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            Some((name.trim().to_owned(), *counts.get(3)?, *counts.get(11)?))
        })
        .collect()
}

/// The last word of each socket's line.
fn socket_drops(table: &str) -> u64 {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next_back()?.parse::<u64>().ok()).sum()
}

/// One value of a table whose lines come in pairs, names and values.
fn counter_value(table: &str, prefix: &str, name: &str) -> u64 {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let place = names.split_whitespace().position(|word| word == name);
    place.and_then(|place| values.split_whitespace().nth(place)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_found_where_the_kernel_writes_them() {
        let softnet = "00000001 00000010 00000000\n00000002 0000000a 00000000\n";
        assert_eq!(softnet_drops(softnet), 26);
        let devices = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|\n    \
                       g0: 1 2 0 3 0 0 0 0 5 6 0 7 0 0 0 0\n";
        assert_eq!(device_drops(devices), [("g0".to_owned(), 3, 7)]);
        let sockets = "  sl  local_address rem_address   st ... drops\n   1: 00000000:0001 00000000:0000 07 0 12\n   \
                       2: 00000000:0001 00000000:0000 07 0 30\n";
        assert_eq!(socket_drops(sockets), 42);
        let counters = "Ip: Forwarding InDiscards\nIp: 1 9\nIcmp: InMsgs\nIcmp: 4\n";
        assert_eq!(counter_value(counters, "Ip:", "InDiscards"), 9);
        assert_eq!(counter_value(counters, "Ip:", "OutNoRoutes"), 0);
    }
}
