//! Raw ICMP sockets at the ends: what really arrives, and what only a forger sends.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};

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
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: Vec<u8>,
}

/// Hears all ICMP that arrives in a namespace, and sends from one of its addresses.
pub(crate) struct Ear(Socket);

impl Ear {
    /// In the namespace, at this address of its own.
    pub(crate) fn at(namespace: &Namespace, address: Ipv4Addr) -> Ear {
        let socket = namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.bind(&SocketAddrV4::new(address, 0).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok::<_, std::io::Error>(socket)
        });
        Ear(socket.expect("the namespace can be entered").expect("raw sockets take root: scripts/test"))
    }

    /// The next packet, whole.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0; 65_536];
        let length = (&self.0).read(&mut packet).expect("a packet arrives");
        packet.truncate(length);
        packet
    }

    /// The next packet, which must be an echo message of whatever kind.
    pub(crate) fn next(&self) -> Heard {
        self.read().expect("an echo message")
    }

    /// The next echo request, whatever else arrives before it.
    pub(crate) fn next_request(&self) -> Heard {
        std::iter::repeat_with(|| self.read())
            .flatten()
            .find(|heard| heard.kind == EchoKind::Request)
            .expect("it goes on for ever")
    }

    /// The next packet, if it is an echo message.
    fn read(&self) -> Option<Heard> {
        let packet = Ipv4::check(self.packet()).expect("an IPv4 packet");
        let echo = Echo::check(packet.payload()).ok()?;
        assert!(echo.is_intact(), "its checksum is wrong");
        let payload = echo.payload().to_vec();
        let (source, ident, sequence) = (packet.source(), echo.ident(), echo.sequence());
        Some(Heard { kind: echo.kind(), source, ident, sequence, payload })
    }

    /// Sends an echo request.
    pub(crate) fn ask(&self, remote: Ipv4Addr, ident: u16, sequence: u16, payload: &[u8]) {
        self.send(remote, EchoKind::Request, ident, sequence, payload);
    }

    /// Sends an echo reply, whoever asked.
    pub(crate) fn reply(&self, to: Ipv4Addr, ident: u16, sequence: u16, payload: &[u8]) {
        self.send(to, EchoKind::Reply, ident, sequence, payload);
    }

    fn send(&self, to: Ipv4Addr, kind: EchoKind, ident: u16, sequence: u16, payload: &[u8]) {
        let message = echo_message(kind, ident, sequence, payload);
        self.0.send_to(&message, &SocketAddrV4::new(to, 0).into()).expect("it is sent");
    }
}

/// Sends whole IP packets, header included, as they are.
pub(crate) struct Injector(Socket);

impl Injector {
    /// In the namespace.
    pub(crate) fn at(namespace: &Namespace) -> Injector {
        let socket = namespace.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))));
        Injector(socket.expect("the namespace can be entered").expect("raw sockets take root: scripts/test"))
    }

    /// Sends the packet to `to`, to which it is addressed.
    pub(crate) fn send(&self, packet: &[u8], to: Ipv4Addr) {
        self.0.send_to(packet, &SocketAddrV4::new(to, 0).into()).expect("it is sent");
    }
}
