//! One host of the lab: a network namespace, what runs in it, and what it takes to be allowed to make one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::SetupError;
use crate::host::netlink::Netlink;
use crate::sys::namespace;

/// A network namespace held by this process alone, and its name in messages.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
    name: String,
}

impl Namespace {
    pub(super) fn new(name: impl Into<String>) -> Result<Namespace, SetupError> {
        let name = name.into();
        match namespace::new_network() {
            Ok(descriptor) => Ok(Namespace { descriptor, name }),
            Err(cause) => {
                let remedy = remedy_for(&cause);
                Err(SetupError::caused(format!("lab: cannot make the network namespace of the {name}"), cause)
                    .remedy(remedy))
            }
        }
    }

    /// The calling thread's own namespace, for a test that is started inside one.
    #[cfg(test)]
    pub(super) fn of_this_thread(name: &str) -> io::Result<Namespace> {
        Ok(Namespace { descriptor: namespace::current_network()?, name: name.to_owned() })
    }

    /// What messages call it: `gateway`, `client 1`, `internet`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside and waits for it. Sockets, threads and processes that it starts are
    /// inside too; the thread ends with `work`, so a child that asks for a signal at its parent's death gets it then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, SetupError> {
        namespace::run_in(self.as_fd(), work)
            .map_err(|cause| SetupError::caused(format!("lab: cannot enter the {}", self.name), cause))
    }

    /// Writes sysctls of the namespace, `("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), SetupError> {
        self.run(|| settings.iter().try_for_each(|(key, value)| self.write_sysctl(key, value)))?
    }

    fn write_sysctl(&self, key: &str, value: &str) -> Result<(), SetupError> {
        fs::write(format!("/proc/sys/{key}"), value).map_err(|cause| {
            SetupError::caused(format!("lab: cannot set {}={value} in the {}", key.replace('/', "."), self.name), cause)
                .remedy("/proc must be mounted writable: in a container, give it the right to set net.* sysctls")
        })
    }

    /// Changes devices, addresses, routes or rules of the namespace.
    pub fn configure<T: Send>(
        &self,
        change: impl FnOnce(&mut Netlink) -> io::Result<T> + Send,
    ) -> Result<T, SetupError> {
        self.run(|| Netlink::open().and_then(|mut netlink| change(&mut netlink)))?
            .map_err(|cause| SetupError::caused(format!("lab: cannot set up the network of the {}", self.name), cause))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Rights without root: if the process may not make network namespaces, moves it into a user namespace in which it
/// may, as root of nothing but that. To be called before any thread is started; the move cannot be undone.
pub fn enter_unprivileged() -> Result<(), SetupError> {
    if holds_capabilities() {
        return Ok(());
    }
    let (user, group) = namespace::effective_ids();
    namespace::unshare_user_and_network()
        .and_then(|()| {
            // A group map may be written only once this process has given up setgroups.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
            // AppArmor lets a process in and then denies it everything: only a try tells.
            namespace::new_network().map(drop)
        })
        .map_err(|cause| {
            let remedy = remedy_for(&cause);
            SetupError::caused(
                "lab: no right to make network namespaces, nor to enter a user namespace that has it",
                cause,
            )
            .remedy(remedy)
        })
}

/// CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN, by their bits in the effective set.
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 21;

fn holds_capabilities() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|held| held & NEEDED == NEEDED)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

fn remedy_for(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "allow more open files: ulimit -n",
        Some(libc::ENOSPC) => "raise the sysctls user.max_user_namespaces and user.max_net_namespaces",
        _ => {
            "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0); in a container: --privileged"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found_among_the_others() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000203000\nCapBnd:\t0\n";
        assert_eq!(effective_capabilities(status), Some(NEEDED));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
