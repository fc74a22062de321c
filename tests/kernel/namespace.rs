//! A network namespace for one test: made, equipped, entered, and gone when the test's thread ends.

use std::ffi::OsStr;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io, panic, thread};

use echogate::wire::ipv4::Ipv4;
use tun_tap::{Iface, Mode};

use crate::sys;

/// A client, inside.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
/// Our own address, outside.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// A host outside.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Another.
pub(crate) const OTHER_REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the test in a new namespace with loopback up, forwarding on, rp_filter off and no IPv6 chatter.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    let run = move || {
        sys::unshare_network().expect("a network namespace; remedy: run the tests as root (CAP_SYS_ADMIN)");
        for (name, value) in [
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            if fs::exists(format!("/proc/sys/{name}")).expect("/proc/sys") {
                sysctl(name, value);
            }
        }
        ip("link set lo up");
        test();
    };
    thread::scope(|scope| {
        if let Err(failure) = scope.spawn(run).join() {
            panic::resume_unwind(failure);
        }
    });
}

/// Writes a sysctl of this namespace, its name with slashes.
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).unwrap_or_else(|error| panic!("sysctl {name} = {value}: {error}"));
}

/// Runs `ip` with arguments separated by blanks; what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments.split_whitespace(), "")
}

/// Runs `tc` with arguments separated by blanks.
pub(crate) fn tc(arguments: &str) -> String {
    run("tc", arguments.split_whitespace(), "")
}

/// Loads an nftables script.
pub(crate) fn nft(script: &str) -> String {
    run("nft", ["-f", "-"], script)
}

/// The ruleset of this namespace.
pub(crate) fn nft_ruleset() -> String {
    run("nft", ["list", "ruleset"], "")
}

/// Runs a program to its end in this namespace; what it printed.
fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("{program}: {error}; remedy: apt-get install iproute2 nftables, and /usr/sbin in PATH")
    });
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("its input");
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{command:?}\n{input}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A TUN device, and the network behind it.
pub(crate) struct Tun(Iface);

impl Tun {
    /// Opens a single-queue TUN and sets it up.
    pub(crate) fn open(name: &str) -> Tun {
        let device = Iface::without_packet_info(name, Mode::Tun)
            .expect("a TUN device; remedy: run as root, with /dev/net/tun (modprobe tun)");
        ip(&format!("link set {name} up"));
        Tun(device)
    }

    /// Opens one and gives it an address, `198.18.0.1/24`.
    pub(crate) fn with_address(name: &str, address: &str) -> Tun {
        let device = Tun::open(name);
        ip(&format!("address add {address} dev {name}"));
        device
    }

    /// Our way to the internet: `out0`, with the gateway's address and a default route.
    pub(crate) fn outside() -> Tun {
        let device = Tun::with_address("out0", "198.18.0.1/24");
        ip("route add default dev out0");
        device
    }

    /// Lets a packet arrive.
    pub(crate) fn inject(&self, packet: &[u8]) {
        self.try_inject(packet).expect("a write to the TUN");
    }

    /// Lets a packet arrive, or says what `write` said.
    pub(crate) fn try_inject(&self, packet: &[u8]) -> io::Result<usize> {
        self.0.send(packet)
    }

    /// The next packet that leaves.
    pub(crate) fn next(&self) -> Ipv4<Vec<u8>> {
        let readable = sys::wait_readable(&self.0, PATIENCE).expect("poll");
        assert!(readable, "no packet left by {}", self.0.name());
        let mut packet = vec![0; 65_536];
        let length = self.0.recv(&mut packet).expect("a read from the TUN");
        packet.truncate(length);
        Ipv4::check(packet).expect("an IPv4 packet")
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
