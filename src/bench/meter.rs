//! What the machine, a process and the queues on the way did between two moments.
//!
//! All of it is read from /proc, whose counters only grow: a reading before, one after, and the difference. CPU time of
//! the machine is the kernel's own account by its ticks (/proc/stat), since softirqs, io_uring's kernel threads and
//! others' time all have to be in it; its grain of 10 ms is a third of a percent of the shortest load that is reported.
//!
//! Rejected: getrusage and perf counters. The first sees one process, the second are missing in most virtual machines.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, io, thread};

use super::record::{CpuTimes, ProcessUse};
use crate::error::SetupError;
use crate::lab::Lab;

/// The unit of /proc/stat's times. USER_HZ is 100 on every architecture that Linux's ABI fixes it on, which is all but
/// Alpha and Itanium.
const TICK_US: u64 = 10_000;

/// One reading of everything.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    cpu: CpuTimes,
    process: Option<ProcessUse>,
    drops: BTreeMap<String, u64>,
}

/// What happened between two readings.
#[derive(Clone, Debug)]
pub(super) struct Spent {
    pub(super) cpu: CpuTimes,
    pub(super) process: Option<ProcessUse>,
    pub(super) drops: BTreeMap<String, u64>,
}

impl Reading {
    /// Reads now. `process` is the contender's.
    pub(super) fn take(lab: &Lab, process: Option<u32>) -> Result<Reading, SetupError> {
        let failed = |cause| SetupError::caused("bench: cannot read counters of /proc", cause);
        Ok(Reading {
            cpu: machine_now()?,
            process: process.map(process_use).transpose().map_err(failed)?,
            drops: lab.drops()?,
        })
    }

    /// What happened since `before`.
    pub(super) fn since(&self, before: &Reading) -> Spent {
        let (now, then) = (&self.cpu, &before.cpu);
        let cpu = CpuTimes {
            user_us: now.user_us.saturating_sub(then.user_us),
            system_us: now.system_us.saturating_sub(then.system_us),
            interrupt_us: now.interrupt_us.saturating_sub(then.interrupt_us),
            idle_us: now.idle_us.saturating_sub(then.idle_us),
            steal_us: now.steal_us.saturating_sub(then.steal_us),
        };
        let process = self.process.zip(before.process).map(|(now, then)| ProcessUse {
            user_us: now.user_us.saturating_sub(then.user_us),
            system_us: now.system_us.saturating_sub(then.system_us),
            waits: now.waits.saturating_sub(then.waits),
            preemptions: now.preemptions.saturating_sub(then.preemptions),
            ..now
        });
        let grown = |(place, count): (&String, &u64)| {
            let more = count.saturating_sub(before.drops.get(place).copied().unwrap_or(0));
            (more > 0).then(|| (place.clone(), more))
        };
        Spent { cpu, process, drops: self.drops.iter().filter_map(grown).collect() }
    }
}

/// The share of the machine's time that is busy while the caller waits, in percent: what others do.
pub(super) fn background_percent(watched: Duration) -> Result<u64, SetupError> {
    let before = machine_now()?;
    thread::sleep(watched);
    let now = machine_now()?;
    let busy = now.busy_us().saturating_sub(before.busy_us());
    let idle = now.idle_us.saturating_sub(before.idle_us);
    Ok(busy * 100 / (busy + idle).max(1))
}

fn machine_now() -> Result<CpuTimes, SetupError> {
    let stat = fs::read_to_string("/proc/stat")
        .map_err(|cause| SetupError::caused("bench: cannot read counters of /proc", cause))?;
    cpu_times(&stat).ok_or_else(|| SetupError::new("bench: /proc/stat has no line for all CPUs"))
}

/// The line of /proc/stat that sums up all CPUs: user nice system idle iowait irq softirq steal (guests are in user).
fn cpu_times(stat: &str) -> Option<CpuTimes> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, idle, waiting, hard, soft, steal, ..] = ticks[..] else { return None };
    Some(CpuTimes {
        user_us: (user + nice) * TICK_US,
        system_us: system * TICK_US,
        interrupt_us: (hard + soft) * TICK_US,
        idle_us: (idle + waiting) * TICK_US,
        steal_us: steal * TICK_US,
    })
}

/// Of a process and of those that it has started: a contender may be several.
fn process_use(id: u32) -> io::Result<ProcessUse> {
    let mut used = own_use(id)?;
    for thread in fs::read_dir(format!("/proc/{id}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        // One that ends meanwhile takes its use with it.
        for child in children.split_whitespace().filter_map(|child| process_use(child.parse().ok()?).ok()) {
            used.user_us += child.user_us;
            used.system_us += child.system_us;
            used.resident_bytes += child.resident_bytes;
            used.threads += child.threads;
            used.waits += child.waits;
            used.preemptions += child.preemptions;
        }
    }
    Ok(used)
}

fn own_use(id: u32) -> io::Result<ProcessUse> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let mut used = process_times(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    used.resident_bytes = status_value(&status, "VmRSS:").unwrap_or(0) * 1024;
    used.threads = status_value(&status, "Threads:").unwrap_or(0);
    // The process's own lines count its first thread only.
    for thread in fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread that ends meanwhile takes its counts with it.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        used.waits += status_value(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        used.preemptions += status_value(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(used)
}

/// Words 14 and 15 of /proc/PID/stat, counted behind the name, which may hold spaces and brackets.
fn process_times(stat: &str) -> Option<ProcessUse> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace().skip(11);
    let mut ticks = || words.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(ProcessUse { user_us: user * TICK_US, system_us: system * TICK_US, ..ProcessUse::default() })
}

fn status_value(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_line_of_all_cpus_is_read_in_its_order() {
        let stat = "cpu  10 2 30 400 5 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let expected = CpuTimes {
            user_us: 120_000,
            system_us: 300_000,
            interrupt_us: 130_000,
            idle_us: 4_050_000,
            steal_us: 80_000,
        };
        assert_eq!(cpu_times(stat), Some(expected));
        assert_eq!(cpu_times("cpu  1 2 3\n"), None);
        assert_eq!(cpu_times("cpu0 1 2 3 4 5 6 7 8\n"), None);
    }

    #[test]
    fn a_process_is_read_behind_its_name_whatever_that_is() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 25 31 0 0 20 0 3 0 1 1 1";
        let used = process_times(stat).expect("it is complete");
        assert_eq!((used.user_us, used.system_us), (250_000, 310_000));
        assert_eq!(process_times("7 (a) S 1"), None);
    }

    #[test]
    fn what_a_process_does_shows() {
        let before = process_use(std::process::id()).expect("our own");
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_millis(1));
        let after = process_use(std::process::id()).expect("our own");
        assert!(after.user_us > before.user_us && after.resident_bytes > 1 << 20 && after.threads > 1, "{after:?}");
    }
}
