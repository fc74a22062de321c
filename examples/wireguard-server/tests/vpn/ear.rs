//! Raw ICMP sockets at the ends: what really arrives, and what only a forger sends.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use echogate::lab::Namespace;
use echogate::wire::build::echo_message;
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4::Ipv4;
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::PATIENCE;

/// An echo message as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Heard {
    pub(crate) kind: EchoKind,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
}

/// Hears all ICMP that arrives for one address of a namespace, or for any, and sends from it.
pub(crate) struct Ear(Socket);

impl Ear {
    /// In the namespace, at this address of its own.
    pub(crate) fn at(namespace: &Namespace, address: Ipv4Addr) -> Ear {
        let socket = namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.bind(&SocketAddrV4::new(address, 0).into())?;
            socket.set_broadcast(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, io::Error>(socket)
        });
        Ear(socket.expect("the namespace can be entered").expect("raw sockets take root: scripts/test"))
    }

    /// The next packet, which must be an echo message of whatever kind.
    pub(crate) fn next(&self) -> Heard {
        self.read().expect("a packet arrives")
    }

    /// The next packet, if it comes within this time.
    pub(crate) fn next_within(&self, time: Duration) -> Option<Heard> {
        self.0.set_read_timeout(Some(time)).expect("a timeout");
        let heard = self.read();
        self.0.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        match heard {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            heard => Some(heard.expect("a socket that works")),
        }
    }

    fn read(&self) -> io::Result<Heard> {
        let mut packet = vec![0; 65_536];
        let length = (&self.0).read(&mut packet)?;
        packet.truncate(length);
        let packet = Ipv4::check(packet).expect("an IPv4 packet");
        let echo = Echo::check(packet.payload()).expect("an echo message");
        assert!(echo.is_intact(), "its checksum is wrong");
        let (source, destination) = (packet.source(), packet.destination());
        Ok(Heard { kind: echo.kind(), source, destination, ident: echo.ident(), sequence: echo.sequence() })
    }

    /// Sends an echo request.
    pub(crate) fn ask(&self, remote: Ipv4Addr, ident: u16, sequence: u16) {
        self.send(remote, EchoKind::Request, ident, sequence);
    }

    /// Sends an echo reply, whoever asked.
    pub(crate) fn reply(&self, to: Ipv4Addr, ident: u16, sequence: u16) {
        self.send(to, EchoKind::Reply, ident, sequence);
    }

    fn send(&self, to: Ipv4Addr, kind: EchoKind, ident: u16, sequence: u16) {
        let message = echo_message(kind, ident, sequence, b"who hears this?");
        self.0.send_to(&message, &SocketAddrV4::new(to, 0).into()).expect("it is sent");
    }
}
