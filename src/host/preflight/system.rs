//! What the machine and the process's rights have to offer.

use std::fs::{self, OpenOptions};
use std::io;

use super::Finding;
use crate::host::nft;
use crate::io::{Backend, uring};
use crate::sys::namespace::effective_ids;

/// Bits of the capability sets (capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13)];

pub(super) fn capabilities() -> Finding {
    let name = "capabilities";
    // The calling thread's: capabilities are a thread's own.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else {
        return Finding::warning(name, "/proc/thread-self/status does not tell them")
            .remedy("mount -t proc proc /proc");
    };
    let lacking: Vec<&str> =
        CAPABILITIES.into_iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| name).collect();
    if lacking.is_empty() {
        return Finding::ok(name, "CAP_NET_ADMIN and CAP_NET_RAW");
    }
    Finding::missing(name, format!("no {}", lacking.join(", no ")))
        .remedy("run as root, or in a unit with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW")
        .fatal()
}

pub(super) fn effective_capabilities(status: &str) -> Option<u64> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(field.trim(), 16).ok()
}

pub(super) fn tun_device() -> Finding {
    let name = "TUN";
    let path = "/dev/net/tun";
    // Opening it makes no device yet.
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::ok(name, format!("{path} can be opened")),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200 (containers: --device /dev/net/tun)"
                }
                io::ErrorKind::PermissionDenied => {
                    "run as root, or allow the device (containers: --device /dev/net/tun)"
                }
                _ => "modprobe tun",
            };
            Finding::missing(name, format!("opening {path}: {error}")).remedy(remedy).fatal()
        }
    }
}

pub(super) fn ring(backend: Backend) -> Finding {
    let name = "io_uring";
    if backend == Backend::Syscalls {
        return Finding::ok(name, "not used");
    }
    // The sysctl says why, the attempt (the one that `run` makes) says whether: seccomp filters, rights and the kernel's
    // age come in too.
    let error = match uring::probe() {
        Ok(()) => return Finding::ok(name, "allowed"),
        Err(error) => error,
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let remedy = match (disabled.trim(), error.errno()) {
        ("1" | "2", _) => "sysctl -w kernel.io_uring_disabled=0",
        (_, Some(libc::EPERM)) => "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile",
        (_, Some(libc::ENOMEM)) => "raise the limit of locked memory: `ulimit -l`",
        _ => "Linux 6.7 or newer with CONFIG_IO_URING",
    };
    let (what, _) = error.parts();
    match backend {
        Backend::Uring => Finding::missing(name, what).remedy(format!("{remedy}; or --io syscalls")).fatal(),
        _ => Finding::warning(name, format!("{what}; system calls do its work")).remedy(remedy),
    }
}

pub(super) fn nft() -> Finding {
    match nft::run(&["--version"], "") {
        Ok(version) => Finding::ok("nft", version.trim()),
        Err(failure) => Finding::refused("nft", failure.into_setup_error("diverting needs nftables")),
    }
}

/// Whether the kernel takes rules that divert at ingress. It is asked to check one, and forgets it again.
pub(super) fn ingress() -> Finding {
    let name = "ingress";
    let rules = "add table netdev echogate-check; \
        add chain netdev echogate-check try { type filter hook ingress devices = { \"lo\" } priority 10; }; \
        add rule netdev echogate-check try fib daddr type unicast fib saddr . iif oif exists fwd ip to 192.0.0.8 device \"lo\"\n";
    match nft::run(&["-c", "-f", "-"], rules) {
        Ok(_) => Finding::ok(name, "nftables diverts there; the host's forward chains see no diverted request"),
        // Said already.
        Err(nft::Failure::NotRun(_)) => Finding::warning(name, "not looked at without nft").remedy(nft::REMEDY),
        Err(nft::Failure::Refused(words)) => {
            let remedy = "a kernel with CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_FWD_NETDEV and CONFIG_NFT_FIB_NETDEV (Linux 5.5 or \
                          newer), and CAP_NET_ADMIN; or --divert-by route";
            Finding::missing(name, format!("nftables cannot divert there: {words}")).remedy(remedy).fatal()
        }
    }
}

/// The pinger's matter only, so never more than a warning.
pub(super) fn ping_groups() -> Finding {
    let name = "ping sockets";
    let path = "/proc/sys/net/ipv4/ping_group_range";
    let text = fs::read_to_string(path).unwrap_or_default();
    let (_, group) = effective_ids();
    if includes(&text, group) {
        return Finding::ok(name, format!("group {group} may open them"));
    }
    let what = format!("net.ipv4.ping_group_range ({}) leaves out group {group}: only `ping` needs it", text.trim());
    Finding::warning(name, what).remedy("sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"")
}

pub(super) fn includes(range: &str, group: u32) -> bool {
    let mut bounds = range.split_whitespace().map_while(|bound| bound.parse::<u32>().ok());
    matches!((bounds.next(), bounds.next()), (Some(low), Some(high)) if (low..=high).contains(&group))
}
