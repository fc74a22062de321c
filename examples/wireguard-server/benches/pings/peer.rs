//! A light WireGuard client that pings: boringtun and a UDP socket, in this process. What it gets is checked byte by byte.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use echogate::wire::build;
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::Ipv4;

use crate::scene::{ENDPOINT, PATIENCE, PORT, Scene, outer_address, secret};

const IDENT: u16 = 1;
const PAYLOAD: [u8; 56] = *b"a payload as long as that of ping, which is fifty-six by";

/// An echo without a reply for this long is lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Peer {
    udp: UdpSocket,
    tunnel: Tunn,
    inside: Ipv4Addr,
    remote: Ipv4Addr,
    next: u16,
    /// When the echo of each sequence was sent, if it is under way.
    sent: Vec<Option<Instant>>,
    buffer: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Load {
    pub(crate) round_trips: Vec<Duration>,
    pub(crate) lost: u64,
}

impl Peer {
    /// Once it has a session.
    pub(crate) fn connect(scene: &Scene, number: usize) -> Peer {
        let udp = scene.client(number).run(|| UdpSocket::bind((outer_address(number), 0)));
        let udp = udp.expect("the namespace can be entered").expect("binds");
        udp.connect((ENDPOINT, PORT)).expect("connects");
        udp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let tunnel = Tunn::new(secret(1 + number), PublicKey::from(&secret(0)), None, None, 1, None);
        let mut peer = Peer {
            udp,
            tunnel,
            inside: scene.inside(number),
            remote: scene.remote(0),
            next: 0,
            sent: vec![None; 1 << 16],
            buffer: vec![0; 2048],
        };
        match peer.tunnel.format_handshake_initiation(&mut peer.buffer, false) {
            TunnResult::WriteToNetwork(initiation) => peer.udp.send(initiation).expect("sends"),
            other => panic!("{other:?}"),
        };
        let mut datagram = [0; 2048];
        let length = peer.udp.recv(&mut datagram).expect("an answer to the handshake");
        match peer.tunnel.decapsulate(None, &datagram[..length], &mut peer.buffer) {
            TunnResult::WriteToNetwork(confirmation) => peer.udp.send(confirmation).expect("sends"),
            other => panic!("{other:?}"),
        };
        peer.udp.set_read_timeout(Some(REPLY_TIMEOUT / 10)).expect("a timeout");
        peer
    }

    /// Keeps `window` echoes under way for this time, and waits for the last.
    pub(crate) fn load(&mut self, window: usize, time: Duration) -> Load {
        let mut load = Load::default();
        let until = Instant::now() + time;
        let mut under_way = 0;
        loop {
            let is_over = Instant::now() >= until;
            while under_way < window && !is_over {
                self.ask();
                under_way += 1;
            }
            if under_way == 0 {
                return load;
            }
            match self.reply() {
                Some(round_trip) => {
                    load.round_trips.push(round_trip);
                    under_way -= 1;
                }
                None => {
                    let lost = self.give_up();
                    load.lost += lost as u64;
                    under_way -= lost;
                }
            }
        }
    }

    fn ask(&mut self) {
        let request = build::echo_request(self.inside, self.remote, IDENT, self.next, 64, &PAYLOAD);
        self.sent[usize::from(self.next)] = Some(Instant::now());
        self.next = self.next.wrapping_add(1);
        match self.tunnel.encapsulate(&request, &mut self.buffer) {
            TunnResult::WriteToNetwork(datagram) => self.udp.send(datagram).expect("sends"),
            other => panic!("{other:?}"),
        };
    }

    /// The next reply's round trip; none if none comes for a while.
    fn reply(&mut self) -> Option<Duration> {
        let mut datagram = [0; 2048];
        let length = match self.udp.recv(&mut datagram) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        let TunnResult::WriteToTunnelV4(packet, _) =
            self.tunnel.decapsulate(None, &datagram[..length], &mut self.buffer)
        else {
            panic!("no packet")
        };
        let packet = Ipv4::check(&*packet).expect("an IPv4 packet");
        let echo = Echo::check(packet.payload()).expect("an echo");
        assert_eq!((packet.source(), packet.destination()), (self.remote, self.inside));
        assert_eq!((echo.ident(), echo.payload()), (IDENT, &PAYLOAD[..]));
        assert!(echo.is_intact() && packet.header_is_intact());
        let sent = self.sent[usize::from(echo.sequence())].take();
        Some(sent.expect("a reply to an echo that is under way").elapsed())
    }

    /// How many echoes have been under way for too long: they are not waited for any more.
    fn give_up(&mut self) -> usize {
        let old = |sent: &&mut Option<Instant>| sent.is_some_and(|sent| sent.elapsed() > REPLY_TIMEOUT);
        self.sent.iter_mut().filter(old).map(|sent| *sent = None).count()
    }
}
