//! What is counted and measured beside a load: drops by name, memory, descriptors.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use echogate::control::Stats;
use echogate::lab::{Lab, MACHINES_QUEUES};

use super::faults::{CLIENTS, Stage};
use super::slope::Sample;
use super::way::OWN_SOCKETS;
use crate::process::Echogate;

/// A process that is younger has not touched all of its memory yet.
const SETTLED: Duration = Duration::from_secs(20);
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// What the kernel has dropped of the lab's, by place.
pub(super) struct Drops(BTreeMap<String, u64>);

impl Drops {
    pub(super) fn of(lab: &Lab) -> Drops {
        let mut drops = lab.drops().expect("the lab's counters");
        // Other labs on this machine have a part in these; what is dropped there counts at the device, too.
        drops.remove(MACHINES_QUEUES);
        let own = lab.clients()[..CLIENTS].iter().map(|client| {
            drops.remove(&format!("{}: raw sockets, receive buffer full", client.namespace.name())).unwrap_or(0)
        });
        let own = own.sum();
        drops.insert(OWN_SOCKETS.to_owned(), own);
        Drops(drops)
    }

    /// The same when the load is over, whose sockets went with it and had dropped so many.
    pub(super) fn after_load(lab: &Lab, own: u64) -> Drops {
        let mut drops = Drops::of(lab);
        drops.0.insert(OWN_SOCKETS.to_owned(), own);
        drops
    }

    pub(super) fn since(&self, before: &Drops) -> BTreeMap<String, u64> {
        // Sockets go with their process, and begin anew with the next.
        let earlier = |name: &String, count: u64| before.0.get(name).copied().filter(|earlier| *earlier <= count);
        let since = |(name, count): (&String, &u64)| (name.clone(), count - earlier(name, *count).unwrap_or(0));
        self.0.iter().map(since).filter(|(_, count)| *count > 0).collect()
    }
}

/// What the gateway has counted since. One count that is less than before: all of them are another process's.
pub(super) fn grown(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let begun = before.iter().any(|(name, count)| now.get(name).is_none_or(|later| later < count));
    let earlier = |name: &String| if begun { 0 } else { before.get(name).copied().unwrap_or(0) };
    now.iter().map(|(name, count)| (name.clone(), count - earlier(name))).filter(|(_, count)| *count > 0).collect()
}

pub(super) fn sum(mut one: BTreeMap<String, u64>, other: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    for (name, count) in other {
        *one.entry(name).or_default() += count;
    }
    one
}

/// What the gateway has dropped, by name.
pub(super) fn stats(gateway: &Echogate) -> BTreeMap<String, u64> {
    let answer = gateway.ask(&["stats", "--json"]);
    let read = serde_json::from_slice(&answer.stdout).map(Stats::read);
    let stats = read.unwrap_or_else(|_| panic!("no answer: {answer:?}"));
    stats.unwrap_or_else(|error| panic!("{error}")).drops
}

/// What the gateway's processes have resident, in KiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) keeper: f64,
    pub(super) packets: f64,
}

impl Memory {
    pub(super) fn of(gateway: &Echogate) -> Memory {
        let [keeper, packets] = [gateway.id(), gateway.packets_id()].map(|id| resident(id).expect("it runs"));
        Memory { keeper, packets }
    }
}

/// Samples of the gateway's processes over the whole soak.
pub(super) struct Watched {
    start: Instant,
    /// Each keeper's first packet process, and when it was seen with another one.
    kept: HashMap<u32, (u32, Option<Instant>)>,
    born: HashMap<u32, Instant>,
    /// In KiB.
    pub(super) keeper_memory: Vec<Sample>,
    pub(super) packets_memory: Vec<Sample>,
    pub(super) keeper_descriptors: Vec<Sample>,
    pub(super) packets_descriptors: Vec<Sample>,
}

impl Watched {
    pub(super) fn new(start: Instant) -> Watched {
        Watched {
            start,
            kept: HashMap::new(),
            born: HashMap::new(),
            keeper_memory: Vec::new(),
            packets_memory: Vec::new(),
            keeper_descriptors: Vec::new(),
            packets_descriptors: Vec::new(),
        }
    }

    /// Waits, and looks at the processes meanwhile.
    pub(super) fn until(&mut self, end: Instant, stage: &Stage<'_>) {
        loop {
            self.look(stage.gateway());
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(SAMPLE_EVERY));
        }
    }

    fn look(&mut self, gateway: &Echogate) {
        let now = Instant::now();
        let at = now.duration_since(self.start).as_secs_f64();
        // Once and for all a keeper takes some memory when it replaces its packet process.
        let packets = gateway.find_packets();
        let (first, replaced) = self.kept.entry(gateway.id()).or_insert((packets.unwrap_or(0), None));
        if packets.is_some_and(|packets| packets != *first) {
            replaced.get_or_insert(now);
        }
        let keeper_since = *replaced;
        let packets_since = packets.map(|packets| *self.born.entry(packets).or_insert(now));
        let processes = [
            (Some(gateway.id()), keeper_since, &mut self.keeper_memory, &mut self.keeper_descriptors),
            (packets, packets_since, &mut self.packets_memory, &mut self.packets_descriptors),
        ];
        for (process, since, memory, descriptors) in processes {
            let (Some(process), Some(since)) = (process, since) else { continue };
            if now.duration_since(since) < SETTLED {
                continue;
            }
            // One that ends at this moment has neither.
            let (Some(resident), Some(open)) = (resident(process), open(process)) else { continue };
            memory.push(Sample { of: process, at, value: resident });
            descriptors.push(Sample { of: process, at, value: open });
        }
    }
}

impl Watched {
    /// Each process's memory whenever it has changed.
    pub(super) fn told(&self) -> String {
        let changed = |samples: &[Sample]| {
            let kept = samples.iter().enumerate().filter(|(number, sample)| {
                number.checked_sub(1).is_none_or(|before| {
                    let before = &samples[before];
                    before.of != sample.of || (before.value - sample.value).abs() > 0.5
                })
            });
            kept.map(|(_, sample)| format!("{}: {} KiB at {:.0} s", sample.of, sample.value, sample.at)).collect()
        };
        let [keeper, packets]: [Vec<String>; 2] = [&self.keeper_memory, &self.packets_memory].map(|of| changed(of));
        format!("keeper: {}\npacket process: {}", keeper.join(", "), packets.join(", "))
    }
}

fn resident(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open(process: u32) -> Option<f64> {
    let count = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
    Some(f64::from(u32::try_from(count).ok()?))
}

#[test]
fn what_has_begun_anew_is_counted_from_zero_a_process_as_a_whole_and_a_socket_alone() {
    let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    let before = counts(&[("a", 5), ("b", 2)]);
    assert_eq!(grown(&before, &counts(&[("a", 7), ("b", 2), ("c", 1)])), counts(&[("a", 2), ("c", 1)]));
    assert_eq!(grown(&before, &counts(&[("a", 6), ("b", 1)])), counts(&[("a", 6), ("b", 1)]));
    let drops = |pairs: &[(&str, u64)]| Drops(counts(pairs));
    assert_eq!(drops(&[("a", 6), ("b", 1)]).since(&drops(&[("a", 5), ("b", 2)])), counts(&[("a", 1), ("b", 1)]));
}
