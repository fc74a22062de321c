//! What is left of the host to a process that only moves packets: its memory, its threads, and the descriptors that it has.
//!
//! Whoever gets into that process by a packet (there is no way that we know of) finds neither a capability, nor a file, nor a
//! program to run, nor a way to open another device or socket. In two steps, since a ring can only be made by the thread that
//! uses it, and must be made with calls that nobody needs afterwards:
//!
//! 1. [`give_up_privileges`], before the first thread is started, for what it does is each thread's own: no capability, no
//!    way to gain one (no_new_privs), and of the file system nothing but looking at itself and at the CPUs (Landlock, as far as the
//!    kernel has it).
//! 2. [`allow_only_packets`], once every worker serves: a list of system calls for all threads at once (seccomp). Others, and these
//!    with other arguments, fail with EPERM: a library that tries something on a path that nobody has seen goes on
//!    without it.
//!
//! The rings restrict themselves (`crate::io::uring`): what goes through one is no system call, and no filter sees it.
//!
//! Rejected: ending the process at a call that is not on the list. It keeps an intruder out no better than a refusal,
//! and a libc that has begun to ask the kernel another way would take the gateway down.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetStatus, Scope,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use crate::error::SetupError;
use crate::sys::privileges;

/// What the sandbox's makers have tested against; what a later kernel could refuse besides is not asked for.
const LANDLOCK: ABI = ABI::V6;

/// What may be looked at: the process's own threads and devices, the boot's id, the CPUs' topology.
const READABLE: [&str; 3] = ["/proc/self", "/proc/sys/kernel/random", "/sys/devices/system/cpu"];

const OPERATION: &str = "cannot give up privileges";
const REMEDY: &str = "nothing around this process that forbids it to restrict itself, or --no-sandbox";

/// How much of the file system is left: what the kernel could do of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Files {
    /// Looking at itself and at the CPUs.
    OnlyLooking,
    /// As far as this kernel's Landlock goes, which is not all the way.
    Partly,
    /// What the user may: the kernel has no Landlock.
    AsTheUser,
}

/// Step 1. Called by the only thread.
pub fn give_up_privileges() -> Result<Files, SetupError> {
    let refused = |cause| SetupError::caused(OPERATION, cause).remedy(REMEDY);
    privileges::never_gain_privileges().map_err(refused)?;
    let files = leave_files().map_err(|error| SetupError::new(format!("{OPERATION}: {error}")).remedy(REMEDY))?;
    privileges::drop_capabilities().map_err(refused)?;
    Ok(files)
}

fn leave_files() -> Result<Files, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    // One that is not there (a container without /sys) need not be allowed.
    for path in READABLE.iter().filter_map(|path| PathFd::new(path).ok()) {
        rules = rules.add_rule(PathBeneath::new(path, AccessFs::ReadFile | AccessFs::ReadDir))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Files::OnlyLooking,
        RulesetStatus::PartiallyEnforced => Files::Partly,
        RulesetStatus::NotEnforced => Files::AsTheUser,
    })
}

/// Step 2, for every thread of the process. Called once the rings are made.
pub fn allow_only_packets() -> Result<(), SetupError> {
    let refused = |error: seccompiler::Error| {
        SetupError::new(format!("cannot restrict the system calls: {error}"))
            .remedy("a kernel with CONFIG_SECCOMP_FILTER, or --no-sandbox")
    };
    for program in programs().map_err(|error| refused(error.into()))? {
        seccompiler::apply_filter_all_threads(&program).map_err(refused)?;
    }
    Ok(())
}

/// The first program sends the C library from clone3, whose arguments a filter cannot see, to clone, whose it can; the second is
/// the list, which allows nobody to install another.
fn programs() -> Result<[BpfProgram; 2], BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let list =
        SeccompFilter::new(allowed()?.into_iter().collect(), errno(libc::EPERM), SeccompAction::Allow, architecture)?;
    let clone3 = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    let detour = SeccompFilter::new(clone3, SeccompAction::Allow, errno(libc::ENOSYS), architecture)?;
    Ok([detour.try_into()?, list.try_into()?])
}

/// System calls, and for some what an argument must be; one of several rules suffices.
fn allowed() -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let mut allowed: Vec<_> = WHATEVER_ARGUMENTS.iter().map(|call| (*call, Vec::new())).collect();
    for (call, rules) in [
        // Memory, but none that can be run: the allocator, stacks of threads.
        (libc::SYS_mmap, vec![without(2, libc::PROT_EXEC)?]),
        (libc::SYS_mprotect, vec![without(2, libc::PROT_EXEC)?]),
        // Threads, and no processes.
        (libc::SYS_clone, vec![with(0, libc::CLONE_THREAD)?]),
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)?, is(0, libc::PR_SET_VMA)?]),
        // The MTU of a way out is asked by a socket of UDP, made for each question; nothing is sent. No other protocol: not a
        // ping socket.
        (
            libc::SYS_socket,
            vec![rule([is_condition(0, libc::AF_INET)?, of_type(libc::SOCK_DGRAM)?, is_condition(2, 0)?])?],
        ),
        // Closing a ring.
        (libc::SYS_io_uring_register, vec![is(1, REGISTER_SYNC_CANCEL)?, is(1, UNREGISTER_FILES)?]),
        (libc::SYS_ioctl, vec![is(1, i32::try_from(libc::FIONBIO).unwrap_or(0))?]),
        // Itself, as abort(3) does.
        (libc::SYS_tgkill, vec![is(0, std::process::id().cast_signed())?]),
    ] {
        allowed.push((call, rules));
    }
    Ok(allowed)
}

/// Of linux/io_uring.h.
const REGISTER_SYNC_CANCEL: i32 = 24;
const UNREGISTER_FILES: i32 = 3;

/// Calls that do no harm to anything but what the process has already.
const WHATEVER_ARGUMENTS: &[i64] = &[
    // Packets, wake-ups, answers to who looks (over connections to sockets that were opened before), log lines.
    libc::SYS_io_uring_enter,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_close,
    // What is looked at in /proc (Landlock says what else there is, and it is for reading).
    libc::SYS_openat,
    // Memory and threads.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

fn rule(conditions: impl Into<Vec<SeccompCondition>>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into())
}

/// Flags are small and not negative.
fn number(flags: i32) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn is_condition(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Length::Dword, Compare::Eq, number(value))
}

/// The argument equals `value`.
fn is(argument: u8, value: i32) -> Result<SeccompRule, BackendError> {
    rule([is_condition(argument, value)?])
}

/// The argument has these bits.
fn with(argument: u8, bits: i32) -> Result<SeccompRule, BackendError> {
    rule([SeccompCondition::new(argument, Length::Dword, Compare::MaskedEq(number(bits)), number(bits))?])
}

/// The argument has none of these bits.
fn without(argument: u8, bits: i32) -> Result<SeccompRule, BackendError> {
    rule([SeccompCondition::new(argument, Length::Dword, Compare::MaskedEq(number(bits)), 0)?])
}

/// A socket of this type, with whatever flags.
fn of_type(socket_type: i32) -> Result<SeccompCondition, BackendError> {
    let but_flags = number(!(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK));
    SeccompCondition::new(1, Length::Dword, Compare::MaskedEq(but_flags), number(socket_type))
}
