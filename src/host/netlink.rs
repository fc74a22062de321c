//! Links, addresses, routes and rules by rtnetlink, one request and its acknowledgement at a time.
//!
//! A [`Netlink`] is a blocking socket in the network namespace of the thread that opened it, and stays there whichever
//! thread uses it later. The kernel answers a request before `send` returns, so nothing here waits for anybody and
//! nothing needs a time-out. Errors carry the kernel's own errno.
//!
//! Limits: IPv4 routes, rules and addresses only; of what other programs made only what [`Route`] and [`Rule`] can say
//! in full is reported. An object that cannot be decoded (a newer kernel's attribute) is left out of a list: it is not
//! one that was made here.
//!
//! Rejected: `rtnetlink`, which brings an async runtime for a dozen requests at start; running `ip`, which need not be
//! installed and whose output is not an interface.

mod events;
mod routing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    DoneBuffer, ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkMessage, Parseable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use events::{Events, Group};
pub use routing::{Lookup, MAIN_TABLE, Route, Rule};

/// Types of the control messages (netlink(7)); everything else is an object.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Room for the largest datagram the kernel builds for a dump (32 KiB), twice.
const RECEIVE_SIZE: usize = 64 * 1024;

/// How often a dump is started over because the list changed under it.
const DUMP_ATTEMPTS: u32 = 16;

/// The longest name a device can have, in bytes (IFNAMSIZ without the closing zero).
const NAME_LENGTH_MAX: usize = 15;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    /// Opens a NETLINK_ROUTE socket in the calling thread's namespace.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Connected to the kernel: nobody else's datagram is ever delivered.
        socket.connect(&SocketAddr::new(0, 0))?;
        // Lets the kernel filter a dump by table (4.20); an older one sends everything, and the lists filter again.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Netlink { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_SIZE) })
    }

    /// The index of the device called `name`; None if there is none.
    pub fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.link_header(name)?.map(|header| header.index))
    }

    /// The name of the device with an index; None if there is none.
    pub fn link_name(&mut self, index: u32) -> io::Result<Option<String>> {
        let mut found = None;
        let result = self.request(RouteNetlinkMessage::GetLink(link(index)), NLM_F_ACK, |payload| {
            let attributes = LinkMessage::parse(payload).map(|message| message.attributes).unwrap_or_default();
            found = attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
        });
        allowing(result, libc::ENODEV).map(|()| found)
    }

    /// Whether the device called `name` is up; None if there is none.
    pub fn link_is_up(&mut self, name: &str) -> io::Result<Option<bool>> {
        Ok(self.link_header(name)?.map(|header| header.flags.contains(LinkFlags::Up)))
    }

    /// Whether the device called `name` carries packets by now: a device that is set up drops in silence what it is given before
    /// the kernel has noticed its carrier, which can be a second later. None if there is none.
    pub fn link_runs(&mut self, name: &str) -> io::Result<Option<bool>> {
        Ok(self.link_header(name)?.map(|header| header.flags.contains(LinkFlags::Running)))
    }

    fn link_header(&mut self, name: &str) -> io::Result<Option<LinkHeader>> {
        if name.is_empty() || name.len() > NAME_LENGTH_MAX {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        let result = self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK, |payload| {
            found = LinkHeader::parse(payload).ok();
        });
        allowing(result, libc::ENODEV).map(|()| found)
    }

    /// Makes a veth pair: `name` here, `peer` in the namespace behind the descriptor.
    pub fn add_veth(&mut self, name: &str, peer: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        far.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.change(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a device.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelLink(link(index)), 0)
    }

    /// Sets a device up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = link(index);
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a device's MTU, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut message = link(index);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a device's transmit queue length, in packets.
    pub fn set_queue_length(&mut self, index: u32, packets: u32) -> io::Result<()> {
        let mut message = link(index);
        message.attributes.push(LinkAttribute::TxQueueLen(packets));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Adds `address/length` to a device; no error if it is there already.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, length: u8) -> io::Result<()> {
        self.add_scoped_address(index, address, length, AddressScope::Universe)
    }

    /// Adds `address/32` with scope link: the kernel chooses it as a source for nothing that leaves by another device.
    /// No error if it is there already.
    pub fn add_link_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        self.add_scoped_address(index, address, 32, AddressScope::Link)
    }

    fn add_scoped_address(&mut self, index: u32, address: Ipv4Addr, length: u8, scope: AddressScope) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = length;
        message.header.scope = scope;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
        message.attributes.push(AddressAttribute::Address(IpAddr::V4(address)));
        let result = self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
        allowing(result, libc::EEXIST)
    }

    /// Every local IPv4 address with its device index and prefix length.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr, u8)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetAddress(message), |payload| {
            let message = AddressMessage::parse(payload).ok()?;
            // On a point-to-point device IFA_ADDRESS is the peer; IFA_LOCAL is ours everywhere.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some((message.header.index, local, message.header.prefix_len))
        })
    }

    /// A request that changes something, acknowledged.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK, |_| ())
    }

    /// Lists objects; starts over when the kernel says that the list changed while it was sent.
    fn dump<T>(&mut self, message: &RouteNetlinkMessage, decode: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut objects = Vec::new();
            let result = self.request(message.clone(), NLM_F_DUMP, |payload| objects.extend(decode(payload)));
            match result {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(objects),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// Sends one request and hands each object of the answer to `each`, up to the acknowledgement (a request with
    /// NLM_F_ACK) or the end of the list (one with NLM_F_DUMP). EINTR means an inconsistent list.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        uninterrupted(|| self.socket.send(&bytes, 0))?;

        let mut interrupted = false;
        loop {
            self.receive()?;
            if let Some(end) = read_datagram(&self.received, self.sequence, &mut interrupted, &mut each)? {
                end?;
                return if interrupted { Err(io::Error::from_raw_os_error(libc::EINTR)) } else { Ok(()) };
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.received.clear();
        let length = uninterrupted(|| self.socket.recv(&mut self.received, libc::MSG_TRUNC))?;
        if length > self.received.len() {
            return Err(malformed(format!("a netlink datagram of {length} bytes was cut to {RECEIVE_SIZE}")));
        }
        Ok(())
    }
}

/// Walks the messages of one datagram. Some(result) when the answer to request `sequence` ends in it.
fn read_datagram(
    mut bytes: &[u8],
    sequence: u32,
    interrupted: &mut bool,
    each: &mut impl FnMut(&[u8]),
) -> io::Result<Option<io::Result<()>>> {
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(bytes).map_err(malformed)?;
        let length = usize::try_from(message.length()).map_err(malformed)?;
        if message.sequence_number() == sequence {
            *interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_ERROR => {
                    let error = ErrorBuffer::new_checked(message.payload()).map_err(malformed)?;
                    return Ok(Some(from_code(error.code().map_or(0, |code| code.get()))));
                }
                // An empty NLMSG_DONE is a success.
                NLMSG_DONE => {
                    let done = DoneBuffer::new_checked(message.payload());
                    return Ok(Some(from_code(done.map_or(0, |done| done.code()))));
                }
                _ => each(message.payload()),
            }
        }
        // Messages start at multiples of four; the last one need not be padded.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(None)
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn from_code(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_abs())) }
}

fn malformed(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Success too if the kernel refused with `errno`: things already are as they were asked to be.
fn allowing(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

/// Calls again while a signal interrupts.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
