//! Capabilities of the calling thread, and of those that it starts: prctl(2), capset(2).

use std::io;

/// As of 2026 the kernel has 41; the bounding set is asked about each, and does not know the ones beyond.
const CAPABILITIES_MAX: libc::c_ulong = 64;

/// `_LINUX_CAPABILITY_VERSION_3`, of linux/capability.h: two words a set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    thread: libc::c_int,
}

/// `struct __user_cap_data_struct`: one word of each set.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up the right to gain privileges by running another program, for good.
#[expect(unsafe_code, reason = "prctl(2)")]
pub fn never_gain_privileges() -> io::Result<()> {
    let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers and no pointer.
    succeeded(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, unused, unused, unused) })
}

/// Gives up every capability: the ambient, inheritable, permitted and effective ones, and those that might be gained (where
/// that is allowed: it takes CAP_SETPCAP, and who has given up gaining any loses nothing by keeping the set).
pub fn drop_capabilities() -> io::Result<()> {
    clear_ambient()?;
    for capability in 0..CAPABILITIES_MAX {
        match drop_from_bounding(capability) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => break,
            Err(error) => return Err(error),
        }
    }
    set_none()
}

#[expect(unsafe_code, reason = "prctl(2)")]
fn clear_ambient() -> io::Result<()> {
    let all = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_CLEAR_ALL).unwrap_or(4);
    let unused: libc::c_ulong = 0;
    // SAFETY: PR_CAP_AMBIENT takes numbers and no pointer.
    succeeded(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, all, unused, unused, unused) })
}

#[expect(unsafe_code, reason = "prctl(2)")]
fn drop_from_bounding(capability: libc::c_ulong) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes a number and no pointer.
    succeeded(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) })
}

#[expect(unsafe_code, reason = "capset(2), for which the C library has no name")]
fn set_none() -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION, thread: 0 };
    let none = [Sets::default(); 2];
    // SAFETY: both pointers are to values of the types that this version of the call reads, and live until after it.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn a_thread_that_gives_up_its_privileges_has_none_and_others_keep_theirs() {
        let status = || fs::read_to_string("/proc/thread-self/status").unwrap();
        let before = status();
        let after = thread::spawn(move || {
            never_gain_privileges().unwrap();
            drop_capabilities().unwrap();
            status()
        });
        let after = after.join().unwrap();
        for line in [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(after.contains(line), "{line}: {after}");
        }
        let capabilities =
            |status: &str| status.lines().filter(|line| line.starts_with("Cap")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(capabilities(&status()), capabilities(&before));
    }
}
