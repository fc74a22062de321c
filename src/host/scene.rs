//! The scene of this floor's tests: a client, a gateway's host and a remote, each in a namespace of its own.
//!
//! ```text
//! client 10.66.0.2 c0 --- g0 10.66.0.1 [gateway] w0 198.18.0.1 --- r0 198.18.0.2 remote (no route to 10.66.0.0/24)
//! ```

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tun_tap::{Iface, Mode};

use super::device::{DEFAULT_ADDRESS, Device};
use super::divert::{
    DEFAULT_DEVICE, DEFAULT_MARK, DEFAULT_MASK, DEFAULT_PRIORITY, DEFAULT_TABLE, DivertBy, DivertSettings,
};
use super::netlink::{MAIN_TABLE, Netlink, Route};
use crate::checksum;
use crate::policy::Prefix;
use crate::sys::namespace::{new_network, run_in};

pub(super) const ROOT: &str = "these tests make namespaces and devices: run them as root";

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
pub(super) const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

pub(super) const ECHO_REQUEST: u8 = 8;
pub(super) const ECHO_REPLY: u8 = 0;

/// How long nothing must have come for "that was all".
const QUIET: Duration = Duration::from_millis(150);

pub(crate) struct Scene {
    pub(super) client: OwnedFd,
    pub(super) gateway: OwnedFd,
    pub(super) remote: OwnedFd,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        let [client, gateway, remote] = [(), (), ()].map(|()| new_network().expect(ROOT));
        let scene = Scene { client, gateway, remote };
        scene.at_gateway(|| {
            let mut netlink = Netlink::open().expect("netlink");
            netlink.add_veth("g0", "c0", scene.client.as_fd()).expect("veth");
            netlink.add_veth("w0", "r0", scene.remote.as_fd()).expect("veth");
            for (name, address) in [("g0", INSIDE), ("w0", OUTSIDE)] {
                number(&mut netlink, name, address);
            }
            default_route(&mut netlink, REMOTE);
            write("/proc/sys/net/ipv4/ip_forward", "1");
        });
        run_in(scene.client.as_fd(), || {
            let mut netlink = Netlink::open().expect("netlink");
            number(&mut netlink, "c0", CLIENT);
            default_route(&mut netlink, INSIDE);
        })
        .expect(ROOT);
        run_in(scene.remote.as_fd(), || number(&mut Netlink::open().expect("netlink"), "r0", REMOTE)).expect(ROOT);
        scene
    }

    pub(crate) fn at_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(self.gateway.as_fd(), work).expect(ROOT)
    }

    /// Sends one ICMP message from the client.
    pub(super) fn client_sends(&self, message: &[u8], to: Ipv4Addr) {
        run_in(self.client.as_fd(), || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect(ROOT);
            socket.send_to(message, &SocketAddrV4::new(to, 0).into()).expect("sends");
        })
        .expect(ROOT);
    }

    /// A raw socket at the client, which hears every ICMP packet that arrives there.
    pub(super) fn client_ear(&self) -> Socket {
        ear(&self.client)
    }

    /// As `client_ear`, for the remote.
    pub(super) fn remote_ear(&self) -> Socket {
        ear(&self.remote)
    }
}

fn ear(namespace: &OwnedFd) -> Socket {
    run_in(namespace.as_fd(), || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect(ROOT);
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    })
    .expect(ROOT)
}

fn number(netlink: &mut Netlink, name: &str, address: Ipv4Addr) {
    let index = netlink.link_index(name).expect("asks").expect("is there");
    let loopback = netlink.link_index("lo").expect("asks").expect("is there");
    netlink.add_address(index, address, 24).expect("address");
    netlink.set_up(index, true).expect("up");
    netlink.set_up(loopback, true).expect("up");
}

fn default_route(netlink: &mut Netlink, gateway: Ipv4Addr) {
    let route =
        Route { destination: Prefix::ALL, gateway: Some(gateway), device: None, table: MAIN_TABLE, source: None };
    netlink.replace_route(&route).expect("default route");
}

pub(super) fn write(path: &str, value: &str) {
    fs::write(path, value).expect("root may write sysctls of its namespaces");
}

pub(super) fn settings() -> DivertSettings {
    DivertSettings {
        by: DivertBy::Route,
        device: Device { name: DEFAULT_DEVICE.to_owned(), address: DEFAULT_ADDRESS, mtu: 1500, queue_length: 4096 },
        interfaces: vec!["g0".to_owned(), "not-yet".to_owned()],
        clients: vec!["10.66.0.0/24".parse().expect("a prefix")],
        outside: Vec::new(),
        mark: DEFAULT_MARK,
        mask: DEFAULT_MASK,
        table: DEFAULT_TABLE,
        priority: DEFAULT_PRIORITY,
    }
}

/// The TUN, read by a thread of its own. Removed when dropped, in the namespace of the thread that opened it.
pub(super) struct Tun {
    device: Arc<Iface>,
    heard: Receiver<Vec<u8>>,
    reader: Option<JoinHandle<()>>,
}

impl Tun {
    /// Opens the TUN in the calling thread's namespace and configures it.
    pub(super) fn open(settings: &Device) -> Tun {
        let device = Arc::new(Iface::without_packet_info(&settings.name, Mode::Tun).expect(ROOT));
        settings.configure(&mut Netlink::open().expect("netlink")).expect("the device can be configured");
        let (sender, heard) = mpsc::channel();
        let source = Arc::clone(&device);
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            loop {
                match source.recv(&mut buffer) {
                    Ok(length) => drop(sender.send(buffer[..length].to_vec())),
                    // Down: comes back. Any other error: removed.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => thread::sleep(QUIET / 10),
                    Err(_) => return,
                }
            }
        });
        Tun { device, heard, reader: Some(reader) }
    }

    /// What the kernel has sent into the TUN, until nothing has come for a while.
    pub(super) fn hear(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.heard.recv_timeout(QUIET).ok()).collect()
    }

    pub(super) fn send(&self, packet: &[u8]) {
        assert_eq!(self.device.send(packet).expect("writes"), packet.len());
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let mut netlink = Netlink::open().expect("netlink");
        if let Ok(Some(index)) = netlink.link_index(self.device.name()) {
            netlink.delete_link(index).expect("removed");
        }
        drop(self.reader.take().map(JoinHandle::join));
    }
}

/// An ICMP message of `kind` with an ident, a sequence and a payload of `size` bytes.
pub(super) fn message(kind: u8, ident: u16, sequence: u16, size: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(ident.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.resize(8 + size, 0x5a);
    let sum = checksum::checksum(&bytes).to_be_bytes();
    bytes.splice(2..4, sum);
    bytes
}

/// An IPv4 packet without options.
pub(super) fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("fits");
    let mut bytes = vec![0x45, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 1, 0, 0]);
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    let sum = checksum::checksum(&bytes).to_be_bytes();
    bytes.splice(10..12, sum);
    bytes.extend(payload);
    bytes
}

/// What a nonblocking `read` brings until nothing has come for a while.
pub(super) fn hear(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < QUIET {
        match read(&mut buffer) {
            Ok(length) => {
                packets.push(buffer[..length].to_vec());
                quiet_since = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("reading: {error}"),
        }
    }
    packets
}

/// Waits until `condition` holds, a second at most: the promise of the watcher.
pub(super) fn within_a_second(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(1);
    while !condition() {
        assert!(Instant::now() < deadline, "not within a second: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
