//! The way of an echo, there and back, cut into sections between places where the kernel counts every packet: what is missing between
//! two places was lost there.
//!
//! The counts are namespaces' and devices', so they outlive the gateway's processes. While packets are under way they say nothing: a
//! round is counted from before its load begins until nothing moves any more after it. They are everybody's: another client's flood is
//! in them, forged replies appear in the middle of the way. So a section may miss more than the load has lost there, or less
//! than nothing.
//!
//! What queues count is not always packets that are missing (a socket counts what its filter would have refused), and not always once. So
//! a section's queues excuse no more than the section misses.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use echogate::lab::{Lab, Namespace};

/// The gateway's device.
const TUN: &str = "echogate0";

/// Places where the kernel counts.
const PLACES: usize = 9;

/// A part of the way.
pub(super) struct Section {
    pub(super) name: &'static str,
    /// The beginnings and ends of the names of its queues among the lab's drops.
    queues: &'static [(&'static str, &'static str)],
}

/// The queues of the load's own sockets, by the name that [`super::ledger::Drops`] gives to all of them.
pub(super) const OWN_SOCKETS: &str = "load: own sockets, receive buffer full";

/// Between the places, in their order; the last one ends at the load.
///
/// A device's queue is another one's input queue. Where a full one is told to whoever sends, IP counts it as well: it is looked for in
/// one of the two.
pub(super) const SECTIONS: [Section; PLACES] = [
    Section {
        name: "from the clients' sockets to the TUN",
        queues: &[("client ", "eth0, sending"), ("gateway: g", ", receiving"), ("gateway: IP, receiving, no room", "")],
    },
    Section { name: "into the TUN's queue", queues: &[("gateway: echogate0, sending", "")] },
    Section { name: "through the gateway, out", queues: &[] },
    Section {
        name: "from the gateway to the internet",
        queues: &[
            ("gateway: IP, sending, no room", ""),
            ("internet: eth0, receiving", ""),
            ("internet: IP, receiving, no room", ""),
        ],
    },
    Section { name: "answered by the internet's kernel", queues: &[("internet: ICMP, answering, no room", "")] },
    Section {
        name: "from the internet to the gateway's host",
        queues: &[("internet: eth0, sending", ""), ("gateway: wan, receiving", "")],
    },
    Section {
        name: "through the gateway's sockets and the gateway, in",
        queues: &[("gateway: raw sockets, receive buffer full", "")],
    },
    Section {
        name: "from the TUN to the clients",
        queues: &[
            ("gateway: echogate0, receiving", ""),
            ("gateway: g", ", sending"),
            ("client ", "eth0, receiving"),
            ("client ", "IP, receiving, no room"),
        ],
    },
    Section { name: "into the clients' sockets", queues: &[(OWN_SOCKETS, "")] },
];

/// What is missing in each section.
pub(super) type Missing = [i64; PLACES];

impl Section {
    /// What its queues have counted among these drops.
    pub(super) fn counted(&self, drops: &BTreeMap<String, u64>) -> u64 {
        let is_its =
            |name: &str| self.queues.iter().any(|(begins, ends)| name.starts_with(begins) && name.ends_with(ends));
        drops.iter().filter(|(name, _)| is_its(name)).map(|(_, count)| count).sum()
    }
}

/// How much of what is missing queues account for.
pub(super) fn excused(missing: &Missing, drops: &BTreeMap<String, u64>) -> u64 {
    let sections = SECTIONS.iter().zip(missing);
    sections.map(|(section, missing)| section.counted(drops).min(u64::try_from(*missing).unwrap_or(0))).sum()
}

/// How many packets have passed each place so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counts([u64; PLACES]);

impl Counts {
    pub(super) fn of(lab: &Lab) -> Counts {
        let clients: Vec<String> = lab.clients().iter().map(|client| file(&client.namespace, "snmp")).collect();
        let [gateway, internet] = [lab.gateway(), lab.internet()].map(|host| file(host, "snmp"));
        let tun = Tun::read(&file(lab.gateway(), "dev"));
        let of_clients = |name| clients.iter().map(|table| messages(table, name)).sum();
        Counts([
            of_clients("OutType8"),
            tun.offered,
            tun.taken,
            messages(&gateway, "OutType8"),
            messages(&internet, "InType8"),
            messages(&internet, "OutType0"),
            messages(&gateway, "InType0"),
            tun.written,
            of_clients("InType0"),
        ])
    }

    /// Those at a moment when nothing moves: no load, and what was under way has arrived or is lost.
    pub(super) fn at_rest(lab: &Lab) -> Counts {
        let (patience, mut before) = (Instant::now() + Duration::from_secs(20), Counts::of(lab));
        loop {
            thread::sleep(Duration::from_millis(200));
            let now = Counts::of(lab);
            if now == before {
                return now;
            }
            assert!(Instant::now() < patience, "something goes on moving: {before:?}, then {now:?}");
            before = now;
        }
    }

    /// What is missing in each section since, if the load has heard so many replies.
    pub(super) fn missing(&self, before: &Counts, heard: u64) -> Missing {
        // A device that is made anew counts from nothing.
        let since = |place: usize| self.0[place] - if self.0[place] < before.0[place] { 0 } else { before.0[place] };
        let passed =
            |place: usize| i64::try_from(if place < PLACES { since(place) } else { heard }).expect("not so many");
        std::array::from_fn(|section| passed(section) - passed(section + 1))
    }
}

/// A device's packets: those that the kernel had for it, those of them that its queue took, and those written to it.
#[derive(PartialEq, Eq, Default, Debug)]
struct Tun {
    offered: u64,
    taken: u64,
    written: u64,
}

impl Tun {
    fn read(table: &str) -> Tun {
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix(TUN)?.strip_prefix(':'));
        let counts: Vec<u64> =
            line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let count = |place: usize| counts.get(place).copied().unwrap_or(0);
        Tun { offered: count(9) + count(11), taken: count(9), written: count(1) }
    }
}

fn file(host: &Namespace, name: &str) -> String {
    let text = host.run(|| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    text.expect("the namespace can be entered").expect("the kernel tells")
}

/// ICMP messages of a type, each of which has a column only once it was seen.
fn messages(table: &str, name: &str) -> u64 {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("IcmpMsg:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let place = names.split_whitespace().position(|word| word == name);
    place.and_then(|place| values.split_whitespace().nth(place)?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_section_misses_what_has_not_passed_its_end_and_its_queues_excuse_no_more() {
    let before = Counts([10, 10, 10, 10, 10, 10, 10, 90, 10]);
    let after = Counts([110, 109, 107, 107, 107, 100, 105, 50, 50]);
    let missing = after.missing(&before, 38);
    assert_eq!(missing, [1, 2, 0, 0, 7, -5, 45, 10, 2]);
    assert_eq!(missing.iter().sum::<i64>(), 100 - 38, "in all, what was asked and not heard");
    let drops = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    for (counted, excuses) in [
        (("client 1: eth0, sending", 9), 1),
        (("gateway: g1, receiving", 9), 1),
        (("gateway: wan, receiving", 9), 0),
        (("internet: ICMP, answering, no room", 3), 3),
        (("gateway: raw sockets, receive buffer full", 99), 45),
        (("client 3: raw sockets, receive buffer full", 99), 0),
        ((OWN_SOCKETS, 1), 1),
        (("gateway: IP, no route", 9), 0),
    ] {
        assert_eq!(excused(&missing, &drops(&[counted])), excuses, "{counted:?}");
    }
}

#[test]
fn counts_are_found_where_the_kernel_writes_them() {
    let table = "Inter-| Receive\n echogate0: 7 6 0 5 0 0 0 0 4 30 0 2 0 0 0 0\n echogate01: 9 9 9\n";
    assert_eq!(Tun::read(table), Tun { offered: 32, taken: 30, written: 6 });
    assert_eq!(Tun::read("Inter-| Receive\n"), Tun::default());
    let table = "Icmp: InMsgs\nIcmp: 9\nIcmpMsg: InType8 OutType0\nIcmpMsg: 5 4\n";
    assert_eq!((messages(table, "InType8"), messages(table, "OutType0"), messages(table, "InType0")), (5, 4, 0));
}
