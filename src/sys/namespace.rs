//! Network namespaces without names: each is held by descriptors of this process only, so the kernel removes it, with
//! every device in it, when the process ends, however it ends.
//!
//! A namespace is a property of a thread. Changing the thread that a caller happens to run on is a trap (a later panic
//! or an early return leaves it in the wrong place), so [`run_in`] uses a thread of its own: it enters, runs, ends. What
//! that thread starts (threads, processes, sockets, netlink) belongs to the namespace; `/proc/thread-self/net` and
//! `/proc/sys/net` on it are the namespace's, `/proc/net` and `/sys/class/net` are not.
//!
//! Rejected: bind mounts under /run/netns as `ip netns` makes them. They need a name, a mount and somebody to remove
//! both; a killed process leaves them behind.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic;
use std::thread;

/// Makes a network namespace: empty but for a loopback device that is down. The calling thread stays where it is.
pub fn new_network() -> io::Result<OwnedFd> {
    on_own_thread(|| unshare(libc::CLONE_NEWNET).and_then(|()| current_network()))?
}

/// The calling thread's network namespace.
pub fn current_network() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// Runs `work` on a thread of its own inside the namespace and waits for it. A panic of `work` goes on in the caller;
/// an error means that `work` never ran.
pub fn run_in<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread(|| enter_network(namespace).map(|()| work()))?
}

/// Moves the calling thread into the namespace, for good. [`run_in`] is what most callers want.
#[expect(unsafe_code, reason = "setns")]
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours; the borrow keeps the descriptor open.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    succeeded(result)
}

/// Moves the process into a user namespace of its own, together with a network namespace: full rights over the latter,
/// none over the machine. The kernel refuses (EINVAL) when the process has more than one thread.
pub fn unshare_user_and_network() -> io::Result<()> {
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)
}

#[expect(unsafe_code, reason = "unshare")]
fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: only namespace flags arrive here (not CLONE_FILES or CLONE_VM): the thread's namespaces change, its
    // memory and descriptors do not.
    let result = unsafe { libc::unshare(flags) };
    succeeded(result)
}

/// The effective user and group of the process.
#[expect(unsafe_code, reason = "geteuid, getegid")]
pub fn effective_ids() -> (u32, u32) {
    // SAFETY: takes nothing, always succeeds.
    let user = unsafe { libc::geteuid() };
    // SAFETY: takes nothing, always succeeds.
    let group = unsafe { libc::getegid() };
    (user, group)
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().spawn_scoped(scope, work)?;
        Ok(handle.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use super::*;

    fn network_of_this_thread() -> PathBuf {
        fs::read_link("/proc/thread-self/ns/net").expect("/proc is mounted")
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let before = network_of_this_thread();
        let namespace = new_network().expect("making a network namespace takes CAP_SYS_ADMIN: run the tests as root");
        let inside = run_in(namespace.as_fd(), network_of_this_thread).expect("the namespace can be entered");
        let again = run_in(namespace.as_fd(), network_of_this_thread).expect("the namespace can be entered again");
        assert_ne!(inside, before);
        assert_eq!(inside, again);
        assert_eq!(network_of_this_thread(), before);
    }

    #[test]
    fn a_process_started_inside_is_inside() {
        let namespace = new_network().expect("making a network namespace takes CAP_SYS_ADMIN: run the tests as root");
        let inside = run_in(namespace.as_fd(), network_of_this_thread).expect("the namespace can be entered");
        let output = run_in(namespace.as_fd(), || {
            std::process::Command::new("readlink").arg("/proc/self/ns/net").output().expect("readlink runs")
        });
        let printed = String::from_utf8(output.expect("the namespace can be entered").stdout).expect("ASCII");
        assert_eq!(printed.trim_end(), inside.to_string_lossy());
    }

    #[test]
    fn a_panic_inside_goes_on_in_the_caller() {
        let namespace = new_network().expect("making a network namespace takes CAP_SYS_ADMIN: run the tests as root");
        let caught = panic::catch_unwind(|| run_in(namespace.as_fd(), || panic!("on purpose")));
        let message = caught.expect_err("the panic arrives");
        assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
    }

    #[test]
    fn a_descriptor_that_is_no_namespace_is_refused() {
        let file = File::open("/dev/null").expect("opens");
        let refused = run_in(file.as_fd(), || ()).expect_err("not a namespace");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
