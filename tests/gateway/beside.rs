//! What is none of the gateway's business goes on as before: beside the host's own masquerade.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::scene::{PATIENCE, Scene, Setup, nft, run};
use crate::{and_at_ingress, in_every_setup};

in_every_setup!(
    beside_a_masquerade_with_an_interface_pings_are_ours_and_all_else_is_as_before,
    beside_a_masquerade_without_an_interface_pings_are_ours_and_all_else_is_as_before,
);

and_at_ingress!(
    beside_a_masquerade_with_an_interface_pings_are_ours_and_all_else_is_as_before,
    beside_a_masquerade_without_an_interface_pings_are_ours_and_all_else_is_as_before,
);

/// What is sent by TCP each way.
const TRANSFER_BYTES: usize = 3 << 20;
const DNS: u16 = 53;
const SERVICE: u16 = 8080;

fn beside_a_masquerade_with_an_interface_pings_are_ours_and_all_else_is_as_before(setup: &Setup) {
    beside_a_masquerade(setup, "ip saddr 10.66.0.0/24 oifname wan");
}

fn beside_a_masquerade_without_an_interface_pings_are_ours_and_all_else_is_as_before(setup: &Setup) {
    beside_a_masquerade(setup, "ip saddr 10.66.0.0/24");
}

fn beside_a_masquerade(setup: &Setup, condition: &str) {
    let scene = Scene::new(1);
    let rules = format!(
        "table ip nat {{
            counter pings {{ }}
            chain post {{
                type nat hook postrouting priority srcnat
                {condition} icmp type echo-request counter name pings
                {condition} masquerade
            }}
        }}"
    );
    nft(scene.gateway(), &rules);
    scene.assert_pings("by the kernel");
    let by_the_kernel = masqueraded_pings(&scene);
    assert!(by_the_kernel > 0, "the counter counts");
    let before = Exchange::of(&scene);
    let state = scene.state();

    let gateway = scene.serve(setup);
    scene.assert_pings("by the gateway");
    assert_eq!(Exchange::of(&scene), before);
    scene.assert_pings("by the gateway again");
    assert_eq!(masqueraded_pings(&scene), by_the_kernel, "a ping was masqueraded");
    let ended = gateway.stop();
    assert_eq!(ended.total("replies delivered"), 6, "{}", ended.printed);
    assert_eq!(scene.state(), state);
    scene.assert_pings("by the kernel again");
    assert!(masqueraded_pings(&scene) > by_the_kernel);
}

/// Flows of pings that the masquerade has seen.
fn masqueraded_pings(scene: &Scene) -> u64 {
    let listed = run(scene.gateway(), "nft list counter ip nat pings");
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no counter: {listed}"))
}

/// What client and remote saw of each other.
#[derive(PartialEq, Eq)]
struct Exchange {
    client_seen_as: IpAddr,
    query_arrived: Vec<u8>,
    answer_arrived: Vec<u8>,
    uploaded: Vec<u8>,
    downloaded: Vec<u8>,
    sending_to_a_closed_port: io::ErrorKind,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("client_seen_as", &self.client_seen_as)
            .field("query_arrived", &self.query_arrived)
            .field("answer_arrived", &self.answer_arrived.len())
            .field("uploaded", &self.uploaded.len())
            .field("downloaded", &self.downloaded.len())
            .field("sending_to_a_closed_port", &self.sending_to_a_closed_port)
            .finish()
    }
}

impl Exchange {
    fn of(scene: &Scene) -> Exchange {
        let (client_seen_as, query_arrived, answer_arrived) = dns(scene);
        let (uploaded, downloaded) = transfer(scene);
        let sending_to_a_closed_port = port_unreachable(scene);
        let exchange =
            Exchange { client_seen_as, query_arrived, answer_arrived, uploaded, downloaded, sending_to_a_closed_port };
        assert!(exchange == Exchange::expected(), "{exchange:?}");
        exchange
    }

    fn expected() -> Exchange {
        Exchange {
            client_seen_as: Ipv4Addr::new(198, 18, 0, 1).into(),
            query_arrived: query(),
            answer_arrived: pattern(1200, 3),
            uploaded: pattern(TRANSFER_BYTES, 5),
            downloaded: pattern(TRANSFER_BYTES, 7),
            sending_to_a_closed_port: io::ErrorKind::ConnectionRefused,
        }
    }
}

/// A question for the address of example.com.
fn query() -> Vec<u8> {
    let header = [0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], b"\x07example\x03com\x00", &[0, 1, 0, 1]].concat()
}

/// Bytes that no other `seed` has.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(seed) ^ (at >> 8)).to_le_bytes()[0]).collect()
}

/// A query and its answer over UDP: whom the server saw, and what each got.
fn dns(scene: &Scene) -> (IpAddr, Vec<u8>, Vec<u8>) {
    let server = udp(scene, Side::Internet, DNS);
    let client = udp(scene, Side::Client, 0);
    client.send_to(&query(), (scene.remote(0), DNS)).expect("sends");
    let mut buffer = [0; 2048];
    let (length, peer) = server.recv_from(&mut buffer).expect("the query arrives");
    let asked = buffer[..length].to_vec();
    server.send_to(&pattern(1200, 3), peer).expect("answers");
    let (length, from) = client.recv_from(&mut buffer).expect("the answer arrives");
    assert_eq!(from, SocketAddr::from((scene.remote(0), DNS)));
    (peer.ip(), asked, buffer[..length].to_vec())
}

/// What each side of a TCP connection got from the other.
fn transfer(scene: &Scene) -> (Vec<u8>, Vec<u8>) {
    let listener = scene.internet().run(|| TcpListener::bind((scene.remote(0), SERVICE))).expect("enters");
    let listener = listener.expect("listens");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut uploaded = Vec::new();
        stream.read_to_end(&mut uploaded).expect("all of it");
        stream.write_all(&pattern(TRANSFER_BYTES, 7)).expect("writes");
        uploaded
    });
    let address = SocketAddr::from((scene.remote(0), SERVICE));
    let stream = scene.client(0).run(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("enters");
    let mut stream = stream.expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&pattern(TRANSFER_BYTES, 5)).expect("writes");
    stream.shutdown(Shutdown::Write).expect("shuts down");
    let mut downloaded = Vec::new();
    stream.read_to_end(&mut downloaded).expect("all of it");
    (server.join().expect("the server ends well"), downloaded)
}

/// What the remote is told after it has sent to a client whose port is closed by now: the client's own port-unreachable
/// says so, and must find its way back through the masquerade.
fn port_unreachable(scene: &Scene) -> io::ErrorKind {
    let server = udp(scene, Side::Internet, 5000);
    let client = udp(scene, Side::Client, 0);
    client.send_to(b"here I am", (scene.remote(0), 5000)).expect("sends");
    let (_, peer) = server.recv_from(&mut [0; 64]).expect("it arrives");
    server.connect(peer).expect("connects");
    drop(client);
    server.set_read_timeout(Some(PATIENCE / 50)).expect("a timeout");
    // Not once: another test's process, forked and not yet another program, may hold the port open for a moment.
    let mut heard = (0..50).map(|_| {
        let told = server.send(b"are you there?").and_then(|_| server.recv(&mut [0; 64]));
        told.expect_err("nobody answers").kind()
    });
    heard.find(|kind| *kind != io::ErrorKind::WouldBlock).unwrap_or(io::ErrorKind::WouldBlock)
}

enum Side {
    Client,
    Internet,
}

fn udp(scene: &Scene, side: Side, port: u16) -> UdpSocket {
    let (namespace, address) = match side {
        Side::Client => (scene.client(0), scene.client_address(0)),
        Side::Internet => (scene.internet(), scene.remote(0)),
    };
    let socket = namespace.run(|| UdpSocket::bind((address, port))).expect("enters").expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}
