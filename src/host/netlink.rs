//! Links, addresses, routes and rules by rtnetlink, one request and its acknowledgement at a time.
//! (Skeleton of the signatures that `lab` builds on: the host helper writes this.)

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use crate::policy::Prefix;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink;

/// One IPv4 route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to; `0.0.0.0/0` for the default route.
    pub destination: Prefix,
    /// Next hop, if any.
    pub gateway: Option<Ipv4Addr>,
    /// Device index, if any.
    pub device: Option<u32>,
    /// Routing table: 254 is main.
    pub table: u32,
    /// Preferred source, if any.
    pub source: Option<Ipv4Addr>,
}

/// One IPv4 policy rule (`ip rule`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Priority: lower is looked at first.
    pub priority: u32,
    /// Firewall mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Incoming device.
    pub incoming: Option<String>,
    /// IP protocol (1: ICMP).
    pub protocol: Option<u8>,
    /// Table to look up.
    pub table: u32,
}

#[expect(unused_variables, clippy::unimplemented, reason = "skeleton")]
impl Netlink {
    /// Opens a NETLINK_ROUTE socket in the calling thread's namespace.
    pub fn open() -> io::Result<Netlink> {
        unimplemented!()
    }
    /// The index of the device called `name`; None if there is none.
    pub fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        unimplemented!()
    }
    /// Makes a veth pair: `name` here, `peer` in the namespace behind the descriptor.
    pub fn add_veth(&mut self, name: &str, peer: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        unimplemented!()
    }
    /// Removes a device.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        unimplemented!()
    }
    /// Sets a device up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        unimplemented!()
    }
    /// Sets a device's MTU, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        unimplemented!()
    }
    /// Sets a device's transmit queue length, in packets.
    pub fn set_queue_length(&mut self, index: u32, packets: u32) -> io::Result<()> {
        unimplemented!()
    }
    /// Adds `address/length` to a device; no error if it is there already.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, length: u8) -> io::Result<()> {
        unimplemented!()
    }
    /// Every local IPv4 address with its device index and prefix length.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr, u8)>> {
        unimplemented!()
    }
    /// Adds a route; replaces one with the same destination, table and metric.
    pub fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        unimplemented!()
    }
    /// Removes a route; no error if it is not there.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        unimplemented!()
    }
    /// Makes `prefix` local (AnyIP: `ip route add local PREFIX dev lo`).
    pub fn add_local_route(&mut self, prefix: Prefix) -> io::Result<()> {
        unimplemented!()
    }
    /// Adds a rule; no error if exactly this one is there.
    pub fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        unimplemented!()
    }
    /// Removes a rule; no error if it is not there.
    pub fn delete_rule(&mut self, rule: &Rule) -> io::Result<()> {
        unimplemented!()
    }
}
