//! Which CPU each worker runs on.
//!
//! The allowed set (cgroup, taskset, a container's limits) is read before the first thread is pinned, since a pinned
//! thread sees only its own CPU; threads that it starts would inherit that. Physical cores come first: two workers on the
//! two hardware threads of one core share it, while another core idles.
//!
//! Pinning that is refused or does not hold (the set was shrunk meanwhile) costs locality, not correctness: the worker
//! goes on unpinned, and that is said once.

use std::collections::HashSet;
use std::fs;

use core_affinity::CoreId;

use crate::error::SetupError;

/// The CPUs that this thread may use, the first hardware thread of each core before the second ones.
pub fn allowed() -> Result<Vec<CoreId>, SetupError> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if allowed.is_empty() {
        return Err(SetupError::new("the set of CPUs that this process may use is empty or cannot be read")
            .remedy("widen it: taskset -c, CPUAffinity= or AllowedCPUs= of the unit, cpuset.cpus of the cgroup"));
    }
    Ok(cores_first(allowed, siblings))
}

/// The hardware threads of a CPU's core as sysfs lists them, `0,4` or `0-1`; a name for the core, whatever its form.
fn siblings(cpu: CoreId) -> Option<String> {
    fs::read_to_string(format!("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu.id)).ok()
}

fn cores_first(allowed: Vec<CoreId>, core_of: impl Fn(CoreId) -> Option<String>) -> Vec<CoreId> {
    let mut cores = HashSet::new();
    // A CPU without a topology counts as a core of its own.
    let (mut first, second): (Vec<_>, Vec<_>) =
        allowed.into_iter().partition(|cpu| core_of(*cpu).is_none_or(|core| cores.insert(core)));
    first.extend(second);
    first
}

/// Pins the calling thread, and looks whether it holds.
pub fn pin(cpu: CoreId) -> bool {
    core_affinity::set_for_current(cpu) && is_pinned(cpu)
}

/// Whether the calling thread may run on this CPU and on no other.
pub fn is_pinned(cpu: CoreId) -> bool {
    core_affinity::get_core_ids().is_some_and(|held| held == [cpu])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(ids: &[usize]) -> Vec<CoreId> {
        ids.iter().map(|&id| CoreId { id }).collect()
    }

    #[test]
    fn physical_cores_come_before_their_second_threads() {
        let core = |cpu: CoreId| Some(format!("{},{}", cpu.id % 3, cpu.id % 3 + 3));
        assert_eq!(cores_first(cpus(&[0, 1, 2, 3, 4, 5]), core), cpus(&[0, 1, 2, 3, 4, 5]));
        let adjacent = |cpu: CoreId| Some(format!("{}", cpu.id / 2));
        assert_eq!(cores_first(cpus(&[0, 1, 2, 3, 5]), adjacent), cpus(&[0, 2, 5, 1, 3]));
        assert_eq!(cores_first(cpus(&[4, 2]), |_| None), cpus(&[4, 2]));
    }

    #[test]
    fn a_thread_is_pinned_to_one_of_the_allowed_cpus_and_not_to_others() {
        let allowed = allowed().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let [first, .., last] = allowed[..] else { panic!("this test needs two CPUs") };
                assert!(pin(last) && is_pinned(last) && !is_pinned(first));
            });
            scope.spawn(|| assert!(!pin(CoreId { id: 1023 })));
        });
        assert_eq!(core_affinity::get_core_ids().unwrap().len(), allowed.len(), "pinning is the thread's own");
    }
}
