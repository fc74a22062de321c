//! WireGuard: the UDP socket, the keys, and for each peer a tunnel (`boringtun`), the endpoint it was last heard from, and
//! its addresses inside.
//!
//! A datagram is opened in four steps, cheapest first, so that who has no key costs little:
//! 1. its form, and for handshakes the first checksum, which takes the server's public key; beyond
//!    [`HANDSHAKES_PER_SECOND`] a handshake must also carry a cookie, which proves that its source address is true;
//! 2. whose it is: a handshake initiation says it in an encrypted part, all others by the number that the server gave out;
//! 3. decryption. From here on it is authentic, and the peer is where it came from (roaming);
//! 4. its source inside must be an address of that peer's.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use echogate::error::SetupError;

use crate::config::{Config, Key};
use crate::drops::Drops;
use crate::routes::Routes;

/// Room for the longest datagram, and for what encrypting adds to the longest packet.
pub(crate) const BUFFER_BYTES: usize = 65_536 + 64;

/// Handshakes a second, of all peers, from which on cookies are asked for.
const HANDSHAKES_PER_SECOND: u64 = 100;

/// A cookie reply (WireGuard's protocol, section 5.4.7).
const COOKIE_REPLY_BYTES: usize = 64;

/// The low bits of a session's number count the peer's sessions; boringtun shifts the peer's number by as many.
const SESSION_BITS: u32 = 8;

/// A packet that a peer has sent.
pub(crate) struct Opened<'p> {
    pub(crate) peer: usize,
    pub(crate) packet: &'p mut [u8],
}

/// Why a datagram brings no packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// No WireGuard message, or a handshake by somebody who does not know this server's key.
    Garbage,
    /// A handshake without a cookie while there are too many: a cookie was sent.
    CookieWanted,
    /// From nobody that the configuration names.
    UnknownPeer,
    /// It was not made with the peer's keys, or it is a repetition, or its session is over.
    NotAuthentic,
    /// Its source inside is not the peer's.
    ForeignSource,
    /// This server carries IPv4.
    NotIpv4,
}

impl Refused {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refused::Garbage => "garbage",
            Refused::CookieWanted => "cookie_wanted",
            Refused::UnknownPeer => "unknown_peer",
            Refused::NotAuthentic => "not_authentic",
            Refused::ForeignSource => "foreign_source",
            Refused::NotIpv4 => "not_ipv4",
        }
    }
}

pub(crate) struct Peers {
    udp: UdpSocket,
    private_key: StaticSecret,
    public_key: PublicKey,
    gate: RateLimiter,
    peers: Vec<Peer>,
    by_key: HashMap<Key, usize>,
    routes: Routes,
    /// Where datagrams are made.
    sealed: Box<[u8]>,
    drops: Drops,
}

struct Peer {
    tunnel: Tunn,
    endpoint: Option<SocketAddr>,
}

impl Peers {
    pub(crate) fn open(config: &Config) -> Result<Peers, SetupError> {
        let port = config.listen_port;
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|cause| {
            SetupError::caused(format!("cannot listen on UDP port {port}"), cause)
                .remedy("choose another ListenPort, or end who has it (ss -ulpn tells)")
        })?;
        udp.set_nonblocking(true).map_err(|cause| SetupError::caused("cannot prepare the UDP socket", cause))?;
        let private_key = StaticSecret::from(config.private_key);
        let public_key = PublicKey::from(&private_key);
        // Tunnels look at handshakes again, and count them; the gate has let them in already.
        let open_gate = Arc::new(RateLimiter::new(&public_key, u64::MAX));
        let peers = (0..).zip(&config.peers).map(|(number, peer)| Peer {
            tunnel: Tunn::new(
                private_key.clone(),
                PublicKey::from(peer.public_key),
                peer.preshared_key,
                peer.keepalive_seconds,
                number,
                Some(Arc::clone(&open_gate)),
            ),
            endpoint: peer.endpoint,
        });
        Ok(Peers {
            udp,
            gate: RateLimiter::new(&public_key, HANDSHAKES_PER_SECOND),
            peers: peers.collect(),
            by_key: config.peers.iter().enumerate().map(|(number, peer)| (peer.public_key, number)).collect(),
            routes: Routes::new(&config.peers),
            private_key,
            public_key,
            sealed: vec![0; BUFFER_BYTES].into(),
            drops: Drops::default(),
        })
    }

    /// The next datagram, if there is one: its length and where it came from.
    pub(crate) fn receive(&mut self, datagram: &mut [u8]) -> Option<(usize, SocketAddr)> {
        match self.udp.recv_from(datagram) {
            Ok(received) => Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => {
                self.drops.count("receive_failed");
                None
            }
        }
    }

    /// Opens a datagram into `plain` ([`BUFFER_BYTES`]). Answers to handshakes are sent from here; they bring no packet,
    /// nor does what only keeps the tunnel alive. What is refused is counted.
    pub(crate) fn open_datagram<'p>(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        plain: &'p mut [u8],
    ) -> Result<Option<Opened<'p>>, Refused> {
        let opened = self.try_open(datagram, from, plain);
        if let Err(refused) = &opened {
            self.drops.count(refused.name());
        }
        opened
    }

    fn try_open<'p>(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        plain: &'p mut [u8],
    ) -> Result<Option<Opened<'p>>, Refused> {
        let mut cookie = [0; COOKIE_REPLY_BYTES];
        let message = match self.gate.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                send(&self.udp, cookie, from, &mut self.drops);
                return Err(Refused::CookieWanted);
            }
            Err(_) => return Err(Refused::Garbage),
        };
        let number = self.sender_of(&message).ok_or(Refused::UnknownPeer)?;
        // Who sees a handshake can make a cookie reply to it: that one proves nothing.
        let proves_sender = !matches!(message, Packet::PacketCookieReply(_));
        let peer = self.peers.get_mut(number).ok_or(Refused::UnknownPeer)?;

        let (packet, source) = match peer.tunnel.decapsulate(Some(from.ip()), datagram, plain) {
            TunnResult::Err(_) => return Err(Refused::NotAuthentic),
            TunnResult::Done => (None, None),
            TunnResult::WriteToNetwork(answer) => {
                send(&self.udp, answer, from, &mut self.drops);
                (None, None)
            }
            TunnResult::WriteToTunnelV4(packet, source) => (Some(packet), Some(source)),
            TunnResult::WriteToTunnelV6(..) => return Err(Refused::NotIpv4),
        };
        if proves_sender {
            peer.endpoint = Some(from);
        }
        let Some((packet, source)) = packet.zip(source) else {
            self.send_queued(number);
            return Ok(None);
        };
        if self.routes.peer_of(source) != Some(number) {
            return Err(Refused::ForeignSource);
        }
        Ok(Some(Opened { peer: number, packet }))
    }

    fn sender_of(&self, message: &Packet<'_>) -> Option<usize> {
        let session = match message {
            Packet::HandshakeInit(initiation) => {
                let half = parse_handshake_anon(&self.private_key, &self.public_key, initiation).ok()?;
                return self.by_key.get(&half.peer_static_public).copied();
            }
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
            Packet::PacketData(data) => data.receiver_idx,
        };
        usize::try_from(session >> SESSION_BITS).ok()
    }

    /// What waited for the handshake that is done now.
    fn send_queued(&mut self, number: usize) {
        let Peer { tunnel, endpoint } = &mut self.peers[number];
        while let (TunnResult::WriteToNetwork(datagram), Some(to)) =
            (tunnel.decapsulate(None, &[], &mut self.sealed), *endpoint)
        {
            send(&self.udp, datagram, to, &mut self.drops);
        }
    }

    /// Whose the inside address is.
    pub(crate) fn peer_of(&self, inside: Ipv4Addr) -> Option<usize> {
        self.routes.peer_of(inside)
    }

    /// Sends a packet to a peer. Without a session it waits in the tunnel, a handshake is begun instead.
    pub(crate) fn send(&mut self, number: usize, packet: &[u8]) {
        let Some(Peer { tunnel, endpoint: Some(to) }) = self.peers.get_mut(number) else {
            return self.drops.count("no_endpoint");
        };
        match tunnel.encapsulate(packet, &mut self.sealed) {
            TunnResult::WriteToNetwork(datagram) => send(&self.udp, datagram, *to, &mut self.drops),
            TunnResult::Err(_) => self.drops.count("not_sealed"),
            _ => {}
        }
    }

    /// To be called a few times a second: handshakes that are due or were lost, keep-alives, sessions that are over.
    pub(crate) fn tick(&mut self) {
        self.gate.reset_count();
        for Peer { tunnel, endpoint } in &mut self.peers {
            if let (TunnResult::WriteToNetwork(datagram), Some(to)) =
                (tunnel.update_timers(&mut self.sealed), *endpoint)
            {
                send(&self.udp, datagram, to, &mut self.drops);
            }
        }
    }

    pub(crate) fn drops(&self) -> &Drops {
        &self.drops
    }
}

impl AsFd for Peers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }
}

/// A datagram that cannot be sent now is lost, like any other on its way.
fn send(udp: &UdpSocket, datagram: &[u8], to: SocketAddr, drops: &mut Drops) {
    if udp.send_to(datagram, to).is_err() {
        drops.count("send_failed");
    }
}
