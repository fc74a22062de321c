//! Where the kernel has thrown packets of a lab away.
//!
//! * What does not get from one end of a cable into the other's input queue is counted at both ends, by the sender and by the receiver:
//!   it is told of the sender, and of the receiver only what is more.
//! * A raw socket counts what it has no room for before its filter sees it: of several sockets each counts what is for another. That is
//!   an upper bound.
//! * The kernel answers pings from a socket of its own, one a CPU, which has room for some 170 answers that are still under way. Those
//!   for which there is none are ICMP's output errors, and IP counts them among what it had no room for, where other things are, too.
//!
//! Not here: the neighbours' queues (`/proc/net/stat/arp_cache`) and the IP layer's drops in netfilter, which belong to the machine or
//! are wanted.

use std::collections::BTreeMap;
use std::fs;

use super::{FAR_DEVICE, HOST_DEVICE, Lab, Namespace, OUTSIDE_DEVICE};
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
    for host in clients.chain([lab.gateway(), lab.internet()]).chain(lab.routers()) {
        host_drops(host, &mut found)?;
    }
    let end = |host: &Namespace, device: &str| format!("{}: {device}", host.name());
    let mut cables: Vec<[String; 2]> = lab
        .clients()
        .iter()
        .map(|client| [end(lab.gateway(), &client.interface), end(&client.namespace, HOST_DEVICE)])
        .collect();
    let mut nearer = end(lab.gateway(), OUTSIDE_DEVICE);
    for router in lab.routers() {
        cables.push([nearer, end(router, HOST_DEVICE)]);
        nearer = end(router, FAR_DEVICE);
    }
    cables.push([nearer, end(lab.internet(), HOST_DEVICE)]);
    for [one, other] in &cables {
        once(&mut found, one, other);
        once(&mut found, other, one);
    }
    Ok(found)
}

/// Leaves of what this end of a cable has thrown away as it received what its other end has not counted as well.
fn once(found: &mut BTreeMap<String, u64>, receiver: &str, sender: &str) {
    let sent = found.get(&format!("{sender}, sending")).copied().unwrap_or(0);
    if let Some(received) = found.get_mut(&format!("{receiver}, receiving")) {
        *received = received.saturating_sub(sent);
    }
}

fn host_drops(host: &Namespace, found: &mut BTreeMap<String, u64>) -> Result<(), SetupError> {
    let [devices, sockets, counters, more] = host.run(|| {
        // What a kernel does not have has dropped nothing.
        ["dev", "raw", "snmp", "netstat"]
            .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default())
    })?;
    let name = host.name();
    for (device, received, sent) in device_drops(&devices) {
        *found.entry(format!("{name}: {device}, receiving")).or_default() += received;
        *found.entry(format!("{name}: {device}, sending")).or_default() += sent;
    }
    found.insert(format!("{name}: raw sockets, receive buffer full"), socket_drops(&sockets));
    for (table, prefix, counter, what) in [
        (&counters, "Ip:", "InDiscards", "IP, receiving, no room"),
        (&counters, "Ip:", "OutDiscards", "IP, sending, no room"),
        (&counters, "Ip:", "OutNoRoutes", "IP, no route"),
        (&counters, "Ip:", "InAddrErrors", "IP, address"),
        (&counters, "Icmp:", "OutErrors", "ICMP, answering, no room"),
        (&more, "IpExt:", "InNoRoutes", "IP, receiving, no route"),
        (&more, "TcpExt:", "IPReversePathFilter", "IP, reverse path"),
    ] {
        found.insert(format!("{name}: {what}"), counter_value(table, prefix, counter));
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
        let mut found: BTreeMap<String, u64> =
            [("a: eth0, receiving".to_owned(), 9), ("b: eth0, sending".to_owned(), 7)].into_iter().collect();
        once(&mut found, "a: eth0", "b: eth0");
        assert_eq!(found["a: eth0, receiving"], 2, "seven are the sender's");
        once(&mut found, "a: eth0", "c: eth0");
        assert_eq!(found["a: eth0, receiving"], 2);
        let counters = "Ip: Forwarding InDiscards\nIp: 1 9\nIcmp: InMsgs\nIcmp: 4\n";
        assert_eq!(counter_value(counters, "Ip:", "InDiscards"), 9);
        assert_eq!(counter_value(counters, "Ip:", "OutNoRoutes"), 0);
    }
}
