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

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
