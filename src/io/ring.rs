//! What every io_uring here does alike: queueing an entry, entering the kernel, and saying what refused it.

use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};

use crate::error::SetupError;

/// Queues an entry, submitting others if the queue is full. Whether there was room.
///
/// # Safety
///
/// What the entry points to must be valid until its completion is reaped.
#[expect(unsafe_code, reason = "the kernel acts on what the entry says")]
pub(super) unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    // SAFETY: the caller's promise.
    if unsafe { ring.submission().push(entry) }.is_ok() {
        return true;
    }
    // An error leaves the queue full, and the next wait tells it.
    let _ = ring.submit();
    // SAFETY: the caller's promise; the first attempt queued nothing.
    unsafe { ring.submission().push(entry) }.is_ok()
}

/// Submits what is queued and waits for one completion, unless some are there already. `waits_for` is the end of the error's
/// "cannot wait for ...".
pub(super) fn enter(ring: &mut IoUring, timeout: Option<Duration>, waits_for: &str) -> Result<(), SetupError> {
    let no_wait = timeout.is_some_and(|timeout| timeout.is_zero()) || !ring.completion().is_empty();
    let result = if no_wait {
        let submission = ring.submission();
        if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
            return Ok(());
        }
        drop(submission);
        ring.submit()
    } else if let Some(timeout) = timeout {
        let timeout = Timespec::from(timeout);
        ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
    } else {
        ring.submit_and_wait(1)
    };
    entered(result, waits_for)
}

/// Submits what is queued, and leaves alone what has come meanwhile: to receive is the work of an enter that asks for completions.
#[cfg(feature = "pinger")]
#[expect(unsafe_code, reason = "the one way to enter without asking for completions")]
pub(super) fn submit(ring: &mut IoUring, waits_for: &str) -> Result<(), SetupError> {
    let queued = u32::try_from(ring.submission().len()).unwrap_or(u32::MAX);
    if queued == 0 {
        return Ok(());
    }
    // SAFETY: no argument goes with it, and what the entries point to was promised when they were pushed.
    let result = unsafe { ring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) };
    entered(result, waits_for)
}

fn entered(result: io::Result<usize>, waits_for: &str) -> Result<(), SetupError> {
    match result {
        // The time is over, a signal came, or completions must be reaped first: what was not submitted stays queued.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
            Ok(())
        }
        result => result
            .map(drop)
            .map_err(|error| SetupError::caused(format!("cannot wait for {waits_for} by io_uring"), error)),
    }
}

/// The errno of a send's completion; a part of a packet is not a packet.
pub(super) fn errno_of_send(result: i32, len: usize) -> i32 {
    match usize::try_from(result) {
        Ok(sent) if sent == len => 0,
        Ok(_) => libc::EIO,
        Err(_) => -result,
    }
}

/// A refusal and its remedies; `instead` is how one does without, `linux` the version that has all that is needed.
pub(super) fn explain(what: &str, error: io::Error, instead: &str, linux: &str) -> SetupError {
    let errno = error.raw_os_error();
    let plain = SetupError::caused(what, error);
    match errno {
        Some(libc::EPERM | libc::EACCES) => plain.remedy(format!(
            "allow it (sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile with io_uring_setup, \
             io_uring_enter and io_uring_register), or {instead}"
        )),
        Some(libc::ENOMEM) => plain.remedy(format!("raise the limit of locked memory (ulimit -l), or {instead}")),
        _ => plain.remedy(format!("{instead}, or Linux {linux} or newer")),
    }
}
