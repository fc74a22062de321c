//! The descriptors that a gateway moves packets through: what whoever sets it up opens, and what outlives those who use it.
//!
//! They can be handed to another process, each under a name. The kernel's side of them stays as it is meanwhile: packets wait in
//! the device's and the sockets' queues, and the steering program stays attached.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::device;
use crate::config::Config;
use crate::error::SetupError;
use crate::host::netlink::Netlink;
use crate::io::raw::{self, ReceiveSocket, SendSocket, Shards, Wanted};
use crate::io::tun::Tun;
use crate::io::{Ports, Sizes, Waker, steering};

/// What the names of descriptors begin with.
const TUN: &str = "tun";
const RECEIVE: &str = "receive";
const SEND: &str = "send";

/// The descriptors of every worker.
#[derive(Debug)]
pub struct Holding(Vec<Descriptors>);

/// Those of one worker.
#[derive(Debug)]
struct Descriptors {
    tun: Tun,
    receive: ReceiveSocket,
    /// By the addresses' numbers.
    send: Vec<SendSocket>,
}

/// Send sockets for other addresses than before.
#[derive(Debug)]
pub(super) struct Senders {
    /// By worker and by the addresses' numbers.
    pub(super) sockets: Vec<Vec<SendSocket>>,
    /// The names of those that are other sockets than before.
    pub(super) renewed: Vec<String>,
    /// The names of those that there are no more.
    pub(super) gone: Vec<String>,
}

impl Holding {
    /// Makes the device and opens the sockets. `seed`: see [`crate::proxy::Proxy::fragment_seed`].
    pub fn open(config: &Config, seed: u64) -> Result<Holding, SetupError> {
        let device = device(config);
        let workers = config.run.workers as usize;
        let tuns = Tun::open(&device.name, workers)?;
        let mut netlink = Netlink::open().map_err(|error| SetupError::caused("cannot open a netlink socket", error))?;
        device.configure(&mut netlink)?;
        let wanted = Wanted::with_errors(config.echo.icmp_errors);
        let send = |address: &_| SendSocket::open(*address, raw::SOCKET_BUFFER_BYTES);
        let open = |(number, tun)| {
            let shards = Shards::of_worker(number, workers);
            Ok(Descriptors {
                tun,
                receive: ReceiveSocket::open(shards, wanted, raw::SOCKET_BUFFER_BYTES)?,
                send: config.outside.addresses.iter().map(send).collect::<Result<_, _>>()?,
            })
        };
        let holding = tuns.into_iter().enumerate().map(open).collect::<Result<_, _>>().map(Holding)?;
        steer(&holding, seed);
        Ok(holding)
    }

    /// Whether every worker has a send socket for each of so many addresses.
    pub fn sends_from(&self, addresses: usize) -> bool {
        self.0.iter().all(|worker| worker.send.len() == addresses)
    }

    /// How many workers they are for.
    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// Another handle to each send socket, by worker and by the addresses' numbers.
    pub fn senders(&self) -> Result<Vec<Vec<SendSocket>>, SetupError> {
        self.0.iter().map(|worker| worker.send.iter().map(SendSocket::try_clone).collect()).collect()
    }

    /// Send sockets for these addresses, by worker and by the addresses' numbers: those that there are, where they are for the same
    /// address, and new ones. Changes nothing.
    pub(super) fn senders_for(&self, addresses: &[Ipv4Addr]) -> Result<Senders, SetupError> {
        let mut renewed = Vec::new();
        let of_worker = |(worker, Descriptors { send, .. }): (usize, &Descriptors)| {
            let of_address = |(number, address): (usize, &Ipv4Addr)| match send.get(number) {
                Some(socket) if socket.address() == Some(*address) => socket.try_clone(),
                _ => {
                    renewed.push(send_name(worker, number));
                    SendSocket::open(*address, raw::SOCKET_BUFFER_BYTES)
                }
            };
            addresses.iter().enumerate().map(of_address).collect()
        };
        let sockets = self.0.iter().enumerate().map(of_worker).collect::<Result<_, _>>()?;
        let before = (0..self.workers())
            .zip(&self.0)
            .flat_map(|(worker, had)| (addresses.len()..had.send.len()).map(move |number| send_name(worker, number)));
        let gone = before.collect();
        Ok(Senders { sockets, renewed, gone })
    }

    /// Lets these be the send sockets.
    pub(super) fn set_senders(&mut self, senders: Vec<Vec<SendSocket>>) {
        for (worker, send) in self.0.iter_mut().zip(senders) {
            worker.send = send;
        }
    }

    /// Each under its name.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut named = Vec::new();
        for (number, Descriptors { tun, receive, send }) in self.0.iter().enumerate() {
            named.push((format!("{TUN}-{number}"), tun.as_fd()));
            named.push((format!("{RECEIVE}-{number}"), receive.as_fd()));
            let sends = send.iter().enumerate();
            named.extend(sends.map(|(address, socket)| (send_name(number, address), socket.as_fd())));
        }
        named
    }

    /// Those that another process has opened, under the names of [`Holding::descriptors`], which are taken from `find`; of send sockets
    /// as many as there are. The error says which is missing, or is not what its name says.
    pub fn adopt(workers: usize, mut find: impl FnMut(&str) -> Option<OwnedFd>) -> Result<Holding, SetupError> {
        let mut all = Vec::with_capacity(workers);
        for number in 0..workers {
            let found = (0..).map_while(|address| find(&send_name(number, address)));
            let send = found.map(SendSocket::adopt).collect::<Result<_, _>>()?;
            let mut take = |name: String| {
                find(&name).ok_or_else(|| SetupError::new(format!("the descriptor {name} was not handed over")))
            };
            let tun = Tun::adopt(take(format!("{TUN}-{number}"))?)?;
            all.push(Descriptors { tun, receive: ReceiveSocket::adopt(take(format!("{RECEIVE}-{number}"))?)?, send });
        }
        Ok(Holding(all))
    }

    /// Whether the device is still there.
    pub fn is_attached(&self) -> bool {
        self.0.iter().all(|worker| worker.tun.is_attached())
    }

    pub(super) fn into_ports(self, wakers: Vec<Waker>, sizes: Sizes) -> Vec<Ports> {
        let ports = |(Descriptors { tun, receive, send }, waker)| Ports { tun, receive, send, waker, sizes };
        self.0.into_iter().zip(wakers).map(ports).collect()
    }
}

fn send_name(worker: usize, address: usize) -> String {
    format!("{SEND}-{worker}-{address}")
}

/// Lets the pings between one pair of hosts use all workers, where the kernel lets us say how.
pub(super) fn steer(holding: &Holding, seed: u64) {
    let [first, _, ..] = &holding.0[..] else { return };
    if let Err(error) = steering::attach(&first.tun, seed) {
        tracing::warn!(%error, "pings between one pair of hosts stay on one worker");
    }
}
