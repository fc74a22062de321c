//! The system calls that no crate at hand wraps.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Asks a process to end.
pub(crate) fn terminate(process: u32) -> io::Result<()> {
    signal(process, libc::SIGTERM)
}

/// Sends a process a signal.
#[expect(unsafe_code, reason = "kill(2) has no safe wrapper")]
pub(crate) fn signal(process: u32, signal: i32) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).expect("a process number");
    // SAFETY: no pointers; the number is of a child of ours that has not been waited for, or of a child of that one.
    let result = unsafe { libc::kill(process, signal) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether two descriptors are one open file.
#[expect(unsafe_code, reason = "kcmp(2) has no safe wrapper")]
pub(crate) fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let process = std::process::id();
    // SAFETY: takes integers: two process numbers, KCMP_FILE (0) and two descriptors.
    unsafe { libc::syscall(libc::SYS_kcmp, process, process, 0, one.as_raw_fd(), other.as_raw_fd()) == 0 }
}

/// Lets the command have these descriptors as its numbers 3, 4 and so on.
#[expect(unsafe_code, reason = "system calls between fork and exec")]
pub(crate) fn hand_down(command: &mut Command, descriptors: Vec<OwnedFd>) {
    // SAFETY: `place` makes system calls and allocates nothing, which is allowed after fork.
    unsafe { command.pre_exec(move || place(&descriptors)) };
}

#[expect(unsafe_code, reason = "fcntl(2) and dup2(2) have no safe wrapper that takes a number")]
fn place(descriptors: &[OwnedFd]) -> io::Result<()> {
    // Out of the way first, so that none is overwritten before it is in its place. What is left there is closed on exec.
    const ASIDE: RawFd = 512;
    for (aside, descriptor) in (ASIDE..).zip(descriptors) {
        // SAFETY: takes integers.
        let moved = unsafe { libc::dup3(descriptor.as_raw_fd(), aside, libc::O_CLOEXEC) };
        if moved < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (aside, wanted) in (ASIDE..).zip(3..).take(descriptors.len()) {
        // SAFETY: takes integers; the process that this is done to runs nothing but this and exec.
        let placed = unsafe { libc::dup2(aside, wanted) };
        if placed < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A call of io_uring's; the numbers are the same on every architecture.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    Setup = 425,
    Register = 427,
}

/// Lets the command run as where io_uring is refused: this call fails with EPERM.
///
/// A filter on this process alone, because the sysctl kernel.io_uring_disabled is the whole machine's.
#[expect(unsafe_code, reason = "a system call between fork and exec")]
pub(crate) fn refuse_io_uring(command: &mut Command, call: Call) {
    // SAFETY: `refuse_io_uring_here` makes one system call and allocates nothing, which is allowed after fork.
    unsafe { command.pre_exec(move || refuse_io_uring_here(call as u32)) };
}

#[expect(unsafe_code, reason = "prctl(2) has no safe wrapper")]
fn refuse_io_uring_here(number: u32) -> io::Result<()> {
    // The first word of what the filter sees is the call's number.
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let instruction = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut filter = [
        instruction(0x20, 0, 0),                       // load word 0
        instruction(0x15, 1, number),                  // equal? skip one
        instruction(0x06, 0, libc::SECCOMP_RET_ALLOW), // return
        instruction(0x06, 0, REFUSE),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to four instructions, which like it outlive the call; the kernel copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptors of this process that are queues of a TUN, in the order in which they were opened.
pub(crate) fn open_tun_queues() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").expect("proc is mounted");
    let is_tun = |path: &std::path::Path| fs::read_link(path).is_ok_and(|target| target.ends_with("net/tun"));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_tun(path));
    let mut queues: Vec<RawFd> = paths.filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect();
    queues.sort_unstable();
    queues
}

/// Puts something under this number that can be neither read nor polled for reading: what its user sees of a closed
/// descriptor, without the number becoming another file's.
#[expect(unsafe_code, reason = "dup2(2) over a descriptor that another thread uses: that is what is tested")]
pub(crate) fn take_away(descriptor: RawFd) {
    let (_, write_only) = io::pipe().expect("a pipe");
    // SAFETY: no pointers. The number stays open, so nobody's later file can be taken for this one.
    let result = unsafe { libc::dup2(write_only.as_raw_fd(), descriptor) };
    assert_eq!(result, descriptor, "{}", io::Error::last_os_error());
}

/// A thread of another process that stands still until this is dropped.
pub(crate) struct Stopped(libc::pid_t);

impl Stopped {
    /// Stops it. The calling thread is its tracer, and has to be the one that drops this.
    #[expect(unsafe_code, reason = "ptrace(2) has no safe wrapper")]
    pub(crate) fn stop(thread: u32) -> io::Result<Stopped> {
        let thread = libc::pid_t::try_from(thread).expect("a thread's number");
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: no pointers; the kernel checks the number.
        let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let stopped = Stopped(thread);
        // SAFETY: as above.
        let result = unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stopped) }
    }
}

impl Drop for Stopped {
    #[expect(unsafe_code, reason = "waitpid(2) and ptrace(2) have no safe wrappers")]
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // It can be let go of once its stop has been seen.
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        // SAFETY: no pointers; a thread that has ended meanwhile is refused.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// Whether writes to it wait for room.
#[expect(unsafe_code, reason = "fcntl(2) has no safe wrapper")]
pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let flags = if nonblocking { libc::O_NONBLOCK } else { 0 };
    // SAFETY: no pointers.
    let result = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
