//! What is none of Echogate's business: a DNS query and a TCP transfer of the first client's, byte by byte.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use echogate::lab::Namespace;

use crate::scene::{PATIENCE, SERVER_INSIDE, SERVER_OUTSIDE, Scene, Setup};

const TRANSFER_BYTES: usize = 1 << 20;
const DNS: u16 = 53;
const SERVICE: u16 = 8080;

/// What client and internet saw of each other.
#[derive(PartialEq, Eq)]
pub(crate) struct Exchange {
    resolver_saw: IpAddr,
    query_arrived: Vec<u8>,
    answer_arrived: Vec<u8>,
    service_saw: IpAddr,
    uploaded: Vec<u8>,
    downloaded: Vec<u8>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("resolver_saw", &self.resolver_saw)
            .field("query_arrived", &self.query_arrived)
            .field("answer_arrived", &self.answer_arrived.len())
            .field("service_saw", &self.service_saw)
            .field("uploaded", &self.uploaded.len())
            .field("downloaded", &self.downloaded.len())
            .finish()
    }
}

impl Exchange {
    pub(crate) fn of(scene: &Scene) -> Exchange {
        let (resolver_saw, query_arrived, answer_arrived) = dns(scene);
        let (service_saw, uploaded, downloaded) = transfer(scene);
        let exchange = Exchange { resolver_saw, query_arrived, answer_arrived, service_saw, uploaded, downloaded };
        assert!(exchange == Exchange::expected(), "{exchange:?}");
        exchange
    }

    fn expected() -> Exchange {
        Exchange {
            resolver_saw: SERVER_OUTSIDE.into(),
            query_arrived: question(1)[2..].to_vec(),
            answer_arrived: answer(&question(1)),
            service_saw: SERVER_OUTSIDE.into(),
            uploaded: pattern(TRANSFER_BYTES, 5),
            downloaded: pattern(TRANSFER_BYTES, 7),
        }
    }
}

/// Where the clients of this set-up ask: the server's own proxy, or a resolver outside.
pub(crate) fn resolver_of_clients(scene: &Scene) -> SocketAddr {
    let address = match scene.setup() {
        Setup::Embedded => SERVER_INSIDE,
        Setup::Stock => scene.remote(0),
    };
    (address, DNS).into()
}

/// A question for the address of example.com.
pub(crate) fn question(id: u16) -> Vec<u8> {
    let header = [&id.to_be_bytes()[..], &[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    [&header[..], b"\x07example\x03com\x00", &[0, 1, 0, 1]].concat()
}

/// What a resolver says to a question: as long as an answer with signatures.
pub(crate) fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = [question, &pattern(1100, 3)].concat();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer
}

/// Bytes that no other `seed` has.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(seed) ^ (at >> 8)).to_le_bytes()[0]).collect()
}

/// Whom the resolver saw, what it was asked without the id (which a proxy chooses anew), and what the client got.
fn dns(scene: &Scene) -> (IpAddr, Vec<u8>, Vec<u8>) {
    let resolver = udp(scene.internet(), scene.remote(0), DNS);
    let client = udp(scene.client(0), scene.inside(0), 0);
    client.send_to(&question(1), resolver_of_clients(scene)).expect("sends");
    let mut buffer = [0; 2048];
    let (length, peer) = resolver.recv_from(&mut buffer).expect("the query arrives");
    let asked = buffer[..length].to_vec();
    resolver.send_to(&answer(&asked), peer).expect("answers");
    let (length, from) = client.recv_from(&mut buffer).expect("the answer arrives");
    assert_eq!(from, resolver_of_clients(scene));
    (peer.ip(), asked[2..].to_vec(), buffer[..length].to_vec())
}

/// What each side of a TCP connection got from the other.
fn transfer(scene: &Scene) -> (IpAddr, Vec<u8>, Vec<u8>) {
    let listener = scene.internet().run(|| TcpListener::bind((scene.remote(1), SERVICE))).expect("enters");
    let listener = listener.expect("listens");
    let service = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a connection");
        let mut uploaded = Vec::new();
        stream.read_to_end(&mut uploaded).expect("all of it");
        stream.write_all(&pattern(TRANSFER_BYTES, 7)).expect("writes");
        (peer.ip(), uploaded)
    });
    let address = SocketAddr::from((scene.remote(1), SERVICE));
    let stream = scene.client(0).run(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("enters");
    let mut stream = stream.expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&pattern(TRANSFER_BYTES, 5)).expect("writes");
    stream.shutdown(Shutdown::Write).expect("shuts down");
    let mut downloaded = Vec::new();
    stream.read_to_end(&mut downloaded).expect("all of it");
    let (peer, uploaded) = service.join().expect("the service ends well");
    (peer, uploaded, downloaded)
}

pub(crate) fn udp(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind((address, port))).expect("enters").expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}
