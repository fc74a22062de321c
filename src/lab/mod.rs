//! Clients, gateway and internet as network namespaces inside this process: what the demo, the tests and the bench run
//! in.
//!
//! ```text
//!   client 1  10.66.0.2 ──── g0 ┐                                  ┌ 198.18.0.2
//!   client 2  10.66.0.3 ──── g1 ┼ gateway  198.18.0.1 (wan) ───────┼ 198.18.0.3   internet
//!   client n  10.66.0.* ──── g* ┘                                  └ 198.18.0.*
//! ```
//!
//! Every host is a namespace that only descriptors of this process hold ([`Namespace`]): when the process ends, by
//! whatever means, the kernel removes them and every device in them. Set-up is netlink and /proc/sys, no external
//! program.
//!
//! What the topology is for:
//! * The internet has no route to the clients. A packet that leaves the gateway with a client's own address is never
//!   answered, so nothing passes a test by accident.
//! * Every client has a namespace and a device of its own, so that equal idents, equal sequences and misdelivery are
//!   seen at sockets that cannot confuse them. The clients' prefix is not on-link: each has a /32 and the gateway a
//!   route to it, as in most VPNs.
//! * With [`LabOptions::routers`] some routers stand between gateway and remotes, one behind the other (time exceeded,
//!   traceroute, path MTU).
//!
//! IPv6 is off, so that no neighbour discovery disturbs exact counts, and no host limits the ICMP it originates.
//!
//! * With [`LabOptions::addresses`] each client's host has that many addresses, as if so many clients were behind it.
//!
//! Limits: [`CLIENTS_MAX`] clients, [`REMOTES_MAX`] remotes, [`ROUTERS_MAX`] routers, [`ADDRESSES_MAX`] addresses a
//! client. The network devices' per-CPU input queue
//! (net.core.netdev_max_backlog, 1,000 packets by default) belongs to the machine, not to the lab: more than that in
//! flight at once is lost, whoever forwards.

mod drops;
pub mod forger;
pub mod load;
mod namespace;
mod payload;
pub mod responder;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

pub use drops::MACHINES_QUEUES;
pub use namespace::{Namespace, enter_unprivileged};

use crate::error::SetupError;
use crate::host::netlink::{MAIN_TABLE, Netlink, Route};
use crate::policy::Prefix;

/// The most clients of one lab.
pub const CLIENTS_MAX: usize = 200;
/// The most remotes of one lab.
pub const REMOTES_MAX: usize = 200;
/// The most routers between the gateway and the remotes of one lab.
pub const ROUTERS_MAX: usize = 8;

/// The most addresses of one client's host.
pub const ADDRESSES_MAX: usize = 4094;

/// The gateway's address on the clients' side.
pub const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// The gateway's address on the internet's side.
pub const GATEWAY_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The gateway's device on the internet's side.
pub const OUTSIDE_DEVICE: &str = "wan";

/// Where the blocks of clients with several addresses begin.
const BLOCKS: Ipv4Addr = Ipv4Addr::new(10, 67, 0, 0);
/// The device of a host that has one only.
const HOST_DEVICE: &str = "eth0";
/// A router's device towards the remotes.
const FAR_DEVICE: &str = "far";

/// What to build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LabOptions {
    /// Clients, each a namespace.
    pub clients: usize,
    /// Remotes, all addresses of one namespace.
    pub remotes: usize,
    /// Routers between gateway and remotes, one behind the other.
    pub routers: usize,
    /// The gateway's rp_filter (all and default): 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Addresses of each client's host.
    pub addresses: usize,
}

impl Default for LabOptions {
    fn default() -> LabOptions {
        LabOptions { clients: 2, remotes: 1, routers: 0, rp_filter: 2, addresses: 1 }
    }
}

/// How long the cables may take to carry packets, all together. The kernel looks at carriers once a second where many change.
const LINKS_TIME_MAX: Duration = Duration::from_secs(20);
const LINKS_POLL: Duration = Duration::from_millis(5);

/// A client and the gateway's device towards it.
#[derive(Debug)]
pub struct Client {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
    /// The addresses that it pings from, in ascending order: its address, or those of its block.
    pub addresses: Vec<Ipv4Addr>,
    /// The prefix that is routed to it besides its address, if it has several.
    pub block: Option<Prefix>,
    /// The gateway's device towards it: `g0` for the first.
    pub interface: String,
}

/// Clients, gateway and internet, up and routed. Gone when dropped.
#[derive(Debug)]
pub struct Lab {
    clients: Vec<Client>,
    gateway: Namespace,
    routers: Vec<Namespace>,
    internet: Namespace,
    remotes: Vec<Ipv4Addr>,
}

impl Lab {
    /// Makes the namespaces and connects them.
    pub fn build(options: &LabOptions) -> Result<Lab, SetupError> {
        within("clients", options.clients, CLIENTS_MAX)?;
        within("remotes", options.remotes, REMOTES_MAX)?;
        within("addresses", options.addresses, ADDRESSES_MAX)?;
        if options.routers > ROUTERS_MAX {
            return Err(SetupError::new(format!("lab: {} routers: there can be {ROUTERS_MAX}", options.routers)));
        }
        let mut lab = Lab {
            clients: (0..options.clients)
                .map(|number| Client::new(number, options.addresses))
                .collect::<Result<_, _>>()?,
            gateway: Namespace::new("gateway")?,
            routers: (1..=options.routers)
                .map(|number| Namespace::new(format!("router {number}")))
                .collect::<Result<_, _>>()?,
            internet: Namespace::new("internet")?,
            remotes: Vec::new(),
        };
        let last_link = near_end(options.routers);
        lab.remotes = (1..=options.remotes).map(|number| offset(last_link, number)).collect();
        lab.prepare_gateway(options.rp_filter)?;
        for client in &lab.clients {
            lab.connect_client(client)?;
        }
        lab.connect_outside()?;
        lab.await_links()?;
        Ok(lab)
    }

    /// Waits until every cable carries packets. One that does not yet loses the first question for its neighbour, which is asked
    /// again a second later; of the packets that wait for the answer, the kernel keeps some 160.
    fn await_links(&self) -> Result<(), SetupError> {
        let of_clients = self
            .clients
            .iter()
            .flat_map(|client| [(&self.gateway, client.interface.as_str()), (&client.namespace, HOST_DEVICE)]);
        let of_routers = self.routers.iter().flat_map(|router| [(router, HOST_DEVICE), (router, FAR_DEVICE)]);
        let outside = [(&self.gateway, OUTSIDE_DEVICE), (&self.internet, HOST_DEVICE)];
        let until = Instant::now() + LINKS_TIME_MAX;
        for (host, device) in of_clients.chain(of_routers).chain(outside) {
            while !host.configure(|netlink| Ok(netlink.link_runs(device)? == Some(true)))? {
                if Instant::now() >= until {
                    let name = host.name();
                    return Err(SetupError::new(format!("lab: {device} of the {name} carries nothing yet")));
                }
                thread::sleep(LINKS_POLL);
            }
        }
        Ok(())
    }

    /// The clients, in order of their addresses from 10.66.0.2.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// The prefix that all clients' own addresses are in.
    pub fn client_prefix(&self) -> Prefix {
        Prefix::new(Ipv4Addr::new(10, 66, 0, 0), 24).expect("its host bits are zero")
    }

    /// The prefixes that all addresses which clients ping from are in.
    pub fn client_prefixes(&self) -> Vec<Prefix> {
        let blocks = self.clients.iter().filter_map(|client| client.block);
        std::iter::once(self.client_prefix()).chain(blocks).collect()
    }

    /// Where the gateway runs: forwarding is on, addresses and routes are there, nothing translates yet.
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// The routers between gateway and remotes, the gateway's neighbour first. Each has the address
    /// [`router_address`] towards the gateway, and its device `far` leads on to the remotes.
    pub fn routers(&self) -> &[Namespace] {
        &self.routers
    }

    /// Where the remotes are.
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    /// The remotes' addresses, from 198.18.0.2 (behind n routers from 198.18.n.2).
    pub fn remotes(&self) -> &[Ipv4Addr] {
        &self.remotes
    }

    /// Packets that the kernel has thrown away since the lab was made, by place: devices, raw sockets, IP and ICMP in each namespace; and
    /// the CPUs' input queues, which are the whole machine's ([`MACHINES_QUEUES`]).
    pub fn drops(&self) -> Result<BTreeMap<String, u64>, SetupError> {
        drops::of(self)
    }

    fn prepare_gateway(&self, rp_filter: u8) -> Result<(), SetupError> {
        let rp_filter = rp_filter.to_string();
        quiet(&self.gateway)?;
        forwards(&self.gateway)?;
        // "default" is what devices made later begin with: the TUN's, too.
        self.gateway
            .sysctl(&[("net/ipv4/conf/all/rp_filter", &rp_filter), ("net/ipv4/conf/default/rp_filter", &rp_filter)])?;
        self.gateway.configure(|netlink| up(netlink, "lo").map(drop))
    }

    fn connect_client(&self, client: &Client) -> Result<(), SetupError> {
        self.gateway.configure(|netlink| {
            netlink.add_veth(&client.interface, HOST_DEVICE, client.namespace.as_fd())?;
            let index = up(netlink, &client.interface)?;
            netlink.add_address(index, GATEWAY_INSIDE, 32)?;
            netlink.replace_route(&on_link(Prefix::host(client.address), index))?;
            // By way of its address: thousands of neighbours are more than the kernel's table of them takes.
            let block = client.block.map(|block| Route { gateway: Some(client.address), ..on_link(block, index) });
            block.map_or(Ok(()), |block| netlink.replace_route(&block))
        })?;
        quiet(&client.namespace)?;
        client.namespace.sysctl(&[("net/ipv4/ping_group_range", "0 0")])?;
        client.namespace.configure(|netlink| {
            up(netlink, "lo")?;
            let index = up(netlink, HOST_DEVICE)?;
            netlink.add_address(index, client.address, 32)?;
            client.block.map_or(Ok(()), |block| netlink.add_local_route(block))?;
            netlink.replace_route(&on_link(Prefix::host(GATEWAY_INSIDE), index))?;
            netlink.replace_route(&default_via(GATEWAY_INSIDE, index))
        })
    }

    /// Gives the internet a route to the clients, so that echoes are answered without any translation: what gateways are
    /// compared with. For a lab without a router.
    pub fn route_back(&self) -> Result<(), SetupError> {
        self.internet.configure(|netlink| {
            let device = Some(existing(netlink, HOST_DEVICE)?);
            let gateway = Some(GATEWAY_OUTSIDE);
            let back = |destination| Route { destination, gateway, device, table: MAIN_TABLE, source: None };
            self.client_prefixes().into_iter().try_for_each(|prefix| netlink.replace_route(&back(prefix)))
        })
    }

    /// A chain of links 198.18.n.0/24: the gateway, the routers, the remotes' host. Outward everybody has a default route to
    /// the next, so that what goes nowhere ends at the remotes' host in silence. Back there is a route to the gateway's
    /// network and no further: the clients stay unknown.
    fn connect_outside(&self) -> Result<(), SetupError> {
        let (mut nearer, mut device) = (&self.gateway, OUTSIDE_DEVICE);
        for (number, router) in self.routers.iter().enumerate() {
            connect(nearer, device, router, near_end(number), &[router_address(number)])?;
            forwards(router)?;
            if number > 0 {
                leads_back(router, near_end(number))?;
            }
            (nearer, device) = (router, FAR_DEVICE);
        }
        let number = self.routers.len();
        connect(nearer, device, &self.internet, near_end(number), &self.remotes)?;
        self.internet.sysctl(&[("net/ipv4/icmp_echo_ignore_all", "0")])?;
        if number > 0 { leads_back(&self.internet, near_end(number)) } else { Ok(()) }
    }
}

/// Connects two hosts, and gives the nearer one its default route. The farther one, which is new, is made ready.
fn connect(
    nearer: &Namespace,
    device: &str,
    farther: &Namespace,
    near_end: Ipv4Addr,
    far_ends: &[Ipv4Addr],
) -> Result<(), SetupError> {
    let near_index = nearer.configure(|netlink| {
        netlink.add_veth(device, HOST_DEVICE, farther.as_fd())?;
        let index = up(netlink, device)?;
        netlink.add_address(index, near_end, 24)?;
        Ok(index)
    })?;
    quiet(farther)?;
    farther.configure(|netlink| {
        up(netlink, "lo")?;
        let index = up(netlink, HOST_DEVICE)?;
        far_ends.iter().try_for_each(|address| netlink.add_address(index, *address, 24))
    })?;
    nearer.configure(|netlink| netlink.replace_route(&default_via(far_ends[0], near_index)))
}

/// A route to the gateway's network.
fn leads_back(host: &Namespace, next_hop: Ipv4Addr) -> Result<(), SetupError> {
    let destination = Prefix::new(Ipv4Addr::new(198, 18, 0, 0), 24).expect("its host bits are zero");
    host.configure(|netlink| {
        let device = Some(existing(netlink, HOST_DEVICE)?);
        netlink.replace_route(&Route { destination, gateway: Some(next_hop), device, table: MAIN_TABLE, source: None })
    })
}

impl Client {
    fn new(number: usize, addresses: usize) -> Result<Client, SetupError> {
        let address = client_address(number);
        let block = (addresses > 1).then(|| block(number, addresses));
        Ok(Client {
            namespace: Namespace::new(format!("client {}", number + 1))?,
            address,
            addresses: match block {
                Some(block) => (1..=addresses).map(|place| offset(block.address(), place)).collect(),
                None => vec![address],
            },
            block,
            interface: format!("g{number}"),
        })
    }
}

/// A prefix with room for this many addresses besides its first and last, for client `number`: 10.67.0.0 and up.
fn block(number: usize, addresses: usize) -> Prefix {
    let size = (addresses + 2).next_power_of_two();
    let first = offset(BLOCKS, number * size);
    let length = 32 - u8::try_from(size.ilog2()).unwrap_or(0);
    Prefix::new(first, length).expect("a multiple of its size, which is at most 2^12, has no host bits")
}

/// The address of client `number`, from 0.
pub fn client_address(number: usize) -> Ipv4Addr {
    offset(GATEWAY_INSIDE, number + 1)
}

/// The address of router `number`, from 0, towards the gateway.
pub fn router_address(number: usize) -> Ipv4Addr {
    offset(near_end(number), 253)
}

/// The nearer end of link `number` of the chain that leads outside.
fn near_end(number: usize) -> Ipv4Addr {
    offset(GATEWAY_OUTSIDE, number * 256)
}

/// The address of remote `number`, from 0, of a lab without routers.
pub fn remote_address(number: usize) -> Ipv4Addr {
    offset(GATEWAY_OUTSIDE, number + 1)
}

fn within(what: &str, count: usize, most: usize) -> Result<(), SetupError> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(SetupError::new(format!("lab: {count} {what}: there can be 1 to {most}")))
}

/// `address` plus `number`, which the limits keep within the lab's networks.
fn offset(address: Ipv4Addr, number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from(u32::from(address).saturating_add(number))
}

/// IPv6 off and no limit on ICMP. The ratemask, too: without it the host-wide limit (icmp_msgs_per_sec) still holds.
fn quiet(namespace: &Namespace) -> Result<(), SetupError> {
    namespace.sysctl(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv4/icmp_ratemask", "0")])?;
    let has_ipv6 = namespace.run(|| std::path::Path::new("/proc/sys/net/ipv6").exists())?;
    if has_ipv6 {
        namespace.sysctl(&[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")])?;
    }
    Ok(())
}

/// Turning forwarding on resets other sysctls of every device to a router's defaults: so it comes first.
fn forwards(namespace: &Namespace) -> Result<(), SetupError> {
    namespace.sysctl(&[("net/ipv4/ip_forward", "1")])
}

fn existing(netlink: &mut Netlink, device: &str) -> io::Result<u32> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no device {device}"));
    netlink.link_index(device)?.ok_or_else(missing)
}

fn up(netlink: &mut Netlink, device: &str) -> io::Result<u32> {
    let index = existing(netlink, device)?;
    netlink.set_up(index, true)?;
    Ok(index)
}

fn on_link(destination: Prefix, device: u32) -> Route {
    Route { destination, gateway: None, device: Some(device), table: MAIN_TABLE, source: None }
}

fn default_via(gateway: Ipv4Addr, device: u32) -> Route {
    let destination = Prefix::new(Ipv4Addr::UNSPECIFIED, 0).expect("its host bits are zero");
    Route { destination, gateway: Some(gateway), device: Some(device), table: MAIN_TABLE, source: None }
}
