//! The system calls that no crate at hand wraps.

use std::io;

/// Makes the calling thread, and the threads that it starts, an ordinary user's without groups. By the bare system calls: the C
/// library's functions would change every thread of the process.
#[expect(unsafe_code, reason = "setgroups, setresgid, setresuid of one thread")]
pub(crate) fn become_ordinary_user(id: libc::c_long) -> io::Result<()> {
    let none = std::ptr::null::<libc::gid_t>();
    // SAFETY: of zero groups no list is read.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, none) })?;
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    // SAFETY: three integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })
}

/// Whether `work` is true in a process that is forked from this one, and ends there.
#[expect(unsafe_code, reason = "fork, waitpid")]
pub(crate) fn in_a_fork(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child goes on with a copy of this thread alone. What it does after takes no lock of this program's that another
    // thread may have held; the C library has its own in order after a fork.
    match unsafe { libc::fork() } {
        0 => {
            let code =
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(false) { 0 } else { 1 };
            // SAFETY: ends the child at once, without what is to happen at an exit.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is written to a value that lives until after the call.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            ended == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
