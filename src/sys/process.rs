//! Child processes: one that ends with the thread that started it, and requests to end.

use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

/// Has the kernel send the child SIGTERM when the thread that spawns it ends, by whatever means: the thread has to live
/// as long as the child is wanted.
pub fn end_with_this_thread(command: &mut Command) {
    signal_at_the_end(command, libc::SIGTERM);
}

/// As `end_with_this_thread`, by a signal that cannot be ignored.
pub fn kill_with_this_thread(command: &mut Command) {
    signal_at_the_end(command, libc::SIGKILL);
}

#[expect(unsafe_code, reason = "a system call between fork and exec")]
fn signal_at_the_end(command: &mut Command, signal: libc::c_int) {
    // SAFETY: `ask_for_the_end` makes one system call and allocates nothing, which is allowed after fork.
    unsafe { command.pre_exec(move || ask_for_the_end(signal)) };
}

/// Limit: a parent that ends between fork and this call is not noticed. The child then outlives it by what it does by
/// itself; a window of microseconds that only SIGKILL can hit.
#[expect(unsafe_code, reason = "prctl(2)")]
fn ask_for_the_end(signal: libc::c_int) -> io::Result<()> {
    let signal = libc::c_ulong::try_from(signal).unwrap_or(15);
    // SAFETY: PR_SET_PDEATHSIG takes a number and no pointer.
    succeeded(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })
}

/// Closes on exec whatever descriptors whoever started this process has left open beyond the standard ones: none of its children
/// is to have them. Needs Linux 5.11.
#[expect(unsafe_code, reason = "close_range(2)")]
pub fn keep_inherited_from_children() -> io::Result<()> {
    let (first, last) = (3, libc::c_uint::MAX);
    // SAFETY: takes numbers, and closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets what the calling thread is called, and with the first one the process: 15 bytes of it.
#[expect(unsafe_code, reason = "prctl(2)")]
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that ends with a zero. It refuses nothing.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// `MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED`, of linux/membarrier.h.
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Has the kernel prepare barriers among this process's threads (membarrier(2)): the forward map asks for them when it is made. In
/// a process with several threads the kernel then waits for a grace period (RCU), some 10 ms; with one it does not, so this
/// is for before the first thread is started.
#[expect(unsafe_code, reason = "membarrier(2)")]
pub fn prepare_barriers() -> io::Result<()> {
    let no_flags: libc::c_uint = 0;
    // SAFETY: takes numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, no_flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks the child to end (SIGTERM). It must not have been waited for with success: its number is then another's.
#[expect(unsafe_code, reason = "kill(2)")]
pub fn terminate(child: &Child) -> io::Result<()> {
    let id = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: no pointers.
    succeeded(unsafe { libc::kill(id, libc::SIGTERM) })
}

/// Lets the calling thread's timed waits end when they are due, and not up to 50 us later: a load by the clock.
#[expect(unsafe_code, reason = "prctl(2)")]
pub fn wait_exactly() -> io::Result<()> {
    let slack_nanos: libc::c_ulong = 1;
    // SAFETY: PR_SET_TIMERSLACK takes a number and no pointer.
    succeeded(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_nanos) })
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::thread;

    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("60");
        command
    }

    #[test]
    fn barriers_that_have_been_prepared_work() {
        prepare_barriers().expect("the kernel has them");
        assert_eq!(barrier(), 0, "refused (EPERM) in a process that has not prepared for it");
    }

    #[expect(unsafe_code, reason = "membarrier(2)")]
    fn barrier() -> libc::c_long {
        /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`.
        const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
        let no_flags: libc::c_uint = 0;
        // SAFETY: takes numbers.
        unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED, no_flags) }
    }

    #[test]
    fn a_child_ends_when_it_is_asked_to() {
        let mut child = sleeper().spawn().expect("sleep runs");
        terminate(&child).expect("it runs");
        assert_eq!(child.wait().expect("a child").signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let started = thread::spawn(|| {
            let mut command = sleeper();
            end_with_this_thread(&mut command);
            command.spawn().expect("sleep runs")
        });
        let mut child = started.join().expect("the thread ends");
        assert_eq!(child.wait().expect("a child").signal(), Some(libc::SIGTERM));
    }
}
