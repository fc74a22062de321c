//! The TUN device after it was opened: address, MTU, queue, sysctls, up.
//!
//! There is nothing to undo: the device belongs to the process that opened it and vanishes, with its address, routes
//! and sysctls, when the last descriptor of it is closed, however the process ends.
//!
//! Why each setting:
//! * **an address**, because reverse-path filtering (even loose) drops everything that comes in by a device without
//!   one. It is a /32 of scope link, so the kernel never picks it as a source for what leaves by another device. The
//!   default is RFC 7600's dummy address, 192.0.0.8, which may never be a host's;
//! * **rp_filter 2** (loose): replies carry the remotes' addresses, whose routes lead outside and not here. The kernel
//!   takes the maximum of `all` and the device, so 2 holds whatever `all` says;
//! * **forwarding**: replies go on to the clients by the host's routes; a host that forwards only between devices it
//!   names would not forward from this one;
//! * **no IPv6**: the kernel's own router solicitations and multicast reports would arrive as clients' packets.
//!
//! All but MTU and queue length are looked after by [`Device::mend`], because network managers flush the addresses of
//! devices they do not know and udev applies `net.ipv4.conf.*` patterns to new ones a moment after they appear.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::{fs, io};

use super::netlink::Netlink;
use crate::error::SetupError;

/// The device's address unless another is configured: the IPv4 dummy address of RFC 7600.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// rp_filter's "loose": a source needs a route, by whichever device.
const LOOSE: u8 = 2;

/// What the TUN device is to be like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its own address, a /32.
    pub address: Ipv4Addr,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// How many packets its queue holds before the kernel drops (500 by default, which a burst fills).
    pub queue_length: u32,
}

impl Device {
    /// Sets the device up, in the namespace of the calling thread, and returns its index.
    pub fn configure(&self, netlink: &mut Netlink) -> Result<u32, SetupError> {
        let index = self.index(netlink)?;
        let step = |what: &str, result: io::Result<()>| {
            result.map_err(|error| refused(format!("setting {what} of device {}", self.name), error))
        };
        self.loosen_reverse_path()?;
        self.forward()?;
        self.silence_ipv6();
        step(&format!("the MTU ({})", self.mtu), netlink.set_mtu(index, self.mtu))?;
        step("the queue length", netlink.set_queue_length(index, self.queue_length))?;
        step(&format!("the address ({})", self.address), netlink.add_link_address(index, self.address))?;
        step("the state (up)", netlink.set_up(index, true))?;
        Ok(index)
    }

    /// Puts back what somebody took away, and names it. The state is left alone: who sets the device down means it.
    pub fn mend(&self, netlink: &mut Netlink) -> Result<Vec<&'static str>, SetupError> {
        let index = self.index(netlink)?;
        let mut mended = Vec::new();
        let addresses = netlink.addresses().map_err(|error| refused("listing addresses".to_owned(), error))?;
        if !addresses.iter().any(|(device, address, _)| (*device, *address) == (index, self.address)) {
            netlink
                .add_link_address(index, self.address)
                .map_err(|error| refused(format!("putting back the address of device {}", self.name), error))?;
            mended.push("address");
        }
        if self.loosen_reverse_path()? {
            mended.push("rp_filter");
        }
        if self.forward()? {
            mended.push("forwarding");
        }
        Ok(mended)
    }

    fn index(&self, netlink: &mut Netlink) -> Result<u32, SetupError> {
        let found = netlink
            .link_index(&self.name)
            .map_err(|error| SetupError::caused(format!("looking for device {}", self.name), error))?;
        found.ok_or_else(|| SetupError::new(format!("there is no device {}", self.name)))
    }

    /// Whether it had to be changed. Where sysctls are read-only (containers), any state that works will do.
    fn loosen_reverse_path(&self) -> Result<bool, SetupError> {
        self.set_sysctl("rp_filter", LOOSE, || {
            let of = |device: &str| read_sysctl(&ipv4_sysctl(device, "rp_filter"));
            matches!((of("all"), of(&self.name)), (Some(all), Some(own)) if all.max(own) != 1)
        })
    }

    fn forward(&self) -> Result<bool, SetupError> {
        self.set_sysctl("forwarding", 1, || false)
    }

    /// Best effort: a kernel without IPv6 has no such file, and a stray packet of its kind is only counted.
    fn silence_ipv6(&self) {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        if let Err(error) = fs::write(&path, "1") {
            tracing::debug!(device = %self.name, %error, "IPv6 stays on");
        }
    }

    fn set_sysctl(&self, key: &str, value: u8, good_enough: impl Fn() -> bool) -> Result<bool, SetupError> {
        let path = ipv4_sysctl(&self.name, key);
        if read_sysctl(&path) == Some(value) {
            return Ok(false);
        }
        match fs::write(&path, value.to_string()) {
            Ok(()) => Ok(true),
            Err(_) if good_enough() => Ok(false),
            Err(error) => {
                let remedy = format!(
                    "run as root with /proc/sys writable, or preset it for new devices: \
                     `sysctl -w net.ipv4.conf.default.{key}={value}` (containers: `--sysctl`)"
                );
                Err(SetupError::caused(format!("writing {value} to {}", path.display()), error).remedy(remedy))
            }
        }
    }
}

/// A per-device IPv4 sysctl of the calling thread's namespace. A file path, so a dot in a device's name is only a dot.
pub(super) fn ipv4_sysctl(device: &str, key: &str) -> PathBuf {
    ["/proc/sys/net/ipv4/conf", device, key].iter().collect()
}

/// The number in a sysctl file; None if there is no such file or no number in it.
pub(super) fn read_sysctl(path: &std::path::Path) -> Option<u8> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn refused(operation: String, error: io::Error) -> SetupError {
    let permission = error.kind() == io::ErrorKind::PermissionDenied;
    let error = SetupError::caused(operation, error);
    if permission { error.remedy("run as root, or with CAP_NET_ADMIN in this network namespace") } else { error }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::host::scene::{Scene, Tun, settings};

    #[test]
    fn the_device_is_as_it_was_asked_to_be() {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let device = Device { mtu: 1380, queue_length: 3210, ..settings().device };
            let _tun = Tun::open(&device);
            let shown = |arguments: &[&str]| {
                let output = Command::new("ip").args(arguments).output();
                let output = output.expect("iproute2 is installed: apt-get install iproute2");
                String::from_utf8(output.stdout).expect("ASCII")
            };
            let link = shown(&["-o", "link", "show", "dev", "echogate0"]);
            assert!(link.contains("mtu 1380") && link.contains("qlen 3210") && link.contains(",UP"), "{link}");
            let addresses = shown(&["-o", "address", "show", "dev", "echogate0"]);
            assert!(addresses.contains("inet 192.0.0.8/32 scope link echogate0"), "{addresses}");
            assert!(!addresses.contains("inet6"), "{addresses}");
            assert_eq!(read_sysctl(&ipv4_sysctl("echogate0", "rp_filter")), Some(LOOSE));
            assert_eq!(read_sysctl(&ipv4_sysctl("echogate0", "forwarding")), Some(1));
            let mut netlink = Netlink::open().expect("netlink");
            assert_eq!(device.mend(&mut netlink).expect("looks"), Vec::<&str>::new());
            device.configure(&mut netlink).expect("again is no error");
        });
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let error = settings().device.configure(&mut Netlink::open().expect("netlink")).expect_err("no TUN");
            assert_eq!(error.to_string(), "there is no device echogate0");
        });
    }
}
