//! News of changes: a hint that something moved, never the change itself.
//!
//! What arrives is thrown away unread, and whoever is woken looks at the state itself. So nothing is lost with a lost
//! event (ENOBUFS is one more hint), and events of any number cost one look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use super::uninterrupted;

/// A subject of news (`RTNLGRP_*`, `NFNLGRP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Devices that come, go, or change.
    Link,
    /// IPv4 addresses.
    Ipv4Address,
    /// IPv4 routes.
    Ipv4Route,
    /// IPv4 policy rules.
    Ipv4Rule,
    /// IPv4 sysctls of devices (rp_filter, forwarding).
    Ipv4Settings,
    /// nftables rule sets.
    Nftables,
}

impl Group {
    fn number(self) -> u32 {
        match self {
            Group::Link => 1,
            Group::Ipv4Address => 5,
            Group::Ipv4Route | Group::Nftables => 7,
            Group::Ipv4Rule => 8,
            Group::Ipv4Settings => 24,
        }
    }

    fn protocol(self) -> isize {
        match self {
            Group::Nftables => NETLINK_NETFILTER,
            _ => NETLINK_ROUTE,
        }
    }
}

/// A socket that becomes readable when something changed in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes to `groups`; all must be of one netlink family: routing, or nftables.
    pub fn open(groups: &[Group]) -> io::Result<Events> {
        let protocol = groups.first().map_or(NETLINK_ROUTE, |group| group.protocol());
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        for group in groups {
            if group.protocol() != protocol {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            socket.add_membership(group.number())?;
        }
        Ok(Events { socket })
    }

    /// Takes everything that has arrived and says whether there was anything.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut any = false;
        let mut discarded = Vec::with_capacity(64);
        loop {
            discarded.clear();
            match uninterrupted(|| self.socket.recv(&mut discarded, libc::MSG_TRUNC)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                // Some were lost: news all the same.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
                Ok(_) => any = true,
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
