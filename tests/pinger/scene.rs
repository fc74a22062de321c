//! A namespace with a wire that the test holds the other end of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use echogate::pinger::{Backend, PingOptions, Pinger, PingerBuilder};
use echogate::sys::ping::{self, Batch};
use echogate::sys::{control, namespace, poll};
use tun_tap::{Iface, Mode};

/// Our own addresses, and hosts beyond the wire.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(crate) const OWN_TOO: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 77);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 2);
pub(crate) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x66, 0, 1, 0, 0, 0, 9);

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Enough for a reply on a machine that does a lot else.
pub(crate) fn patient() -> PingOptions {
    PingOptions::new().timeout(PATIENCE)
}

/// A timeout for what is meant to time out.
pub(crate) fn hasty() -> PingOptions {
    PingOptions::new().timeout(Duration::from_millis(100))
}

/// Runs a test in a namespace of its own, once for each back end.
pub(crate) fn on_both(test: impl Fn(&Wire, &Pinger) + Sync) {
    for backend in [Backend::Uring, Backend::Syscalls] {
        with(|builder| builder.backend(backend).keep_strays(10_000), &test);
    }
}

/// Runs a test in a namespace of its own, with a pinger that is made so.
pub(crate) fn with(make: impl Fn(PingerBuilder) -> PingerBuilder + Sync, test: impl Fn(&Wire, &Pinger) + Sync) {
    in_network(|wire| {
        let pinger = make(Pinger::builder()).build().unwrap();
        test(wire, &pinger);
    });
}

/// Runs a test in a namespace of its own in which everybody may ping.
pub(crate) fn in_network(test: impl FnOnce(&Wire) + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    let work = || {
        ip("link set lo up");
        allow("0 2147483647");
        let _stamping = stamping();
        let wire = Wire(
            Iface::without_packet_info("wire", Mode::Tun)
                .expect("a TUN device; remedy: run as root, with /dev/net/tun (modprobe tun)"),
        );
        ip("link set wire up");
        ip("link set wire txqueuelen 200000");
        ip("address add 198.18.0.1/24 dev wire");
        ip("address add 198.18.0.77/24 dev wire");
        ip("-6 address add fd00:66::1/64 dev wire nodad");
        // The kernel takes what arrives for an address only when a worker of its own has got round to the address's route.
        until("taken as its own", || ip("-6 route show table local").contains("local fd00:66::1 "));
        ip("route add default dev wire");
        ip("-6 route add default dev wire");
        test(&wire);
    };
    namespace::run_in(network.as_fd(), work).expect("the namespace can be entered");
}

/// The kernel begins to stamp packets a moment after the first socket of the machine has asked for it. This one has, and has got
/// a stamp; as long as it lives, others get theirs at once.
fn stamping() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    ping::stamp_times(socket.as_fd()).unwrap();
    let mut batch = Batch::new();
    until("stamped", || {
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 8];
        let received = batch.receive(socket.as_fd(), std::iter::once(&mut buffer[..]), false);
        received.is_ok() && control::read(batch.received(0).2).any(|control| ping::software_stamp(&control).is_some())
    });
    socket
}

/// Sets which groups may ping in this thread's namespace.
pub(crate) fn allow(groups: &str) {
    fs::write("/proc/sys/net/ipv4/ping_group_range", groups).expect("a sysctl of the test's own namespace");
}

/// Runs `ip`; what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("apt-get install iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < PATIENCE, "not {what} after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The other end of the device.
pub(crate) struct Wire(Iface);

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[expect(unsafe_code, reason = "the device hands out a bare descriptor only")]
        // SAFETY: the device keeps it open as long as it is borrowed.
        unsafe {
            BorrowedFd::borrow_raw(self.0.as_raw_fd())
        }
    }
}

impl Wire {
    /// The next echo request, if one comes in this time.
    pub(crate) fn request_within(&self, time: Duration) -> Option<Request> {
        let begin = Instant::now();
        loop {
            let left = time.saturating_sub(begin.elapsed());
            let [readable] = poll::readable([self.as_fd()], Some(left)).unwrap();
            if readable {
                let mut packet = vec![0; 70_000];
                let length = self.0.recv(&mut packet).unwrap();
                packet.truncate(length);
                // Router solicitations and the like are nobody's here.
                if let Some(request) = Request::parse(packet) {
                    return Some(request);
                }
            } else if left.is_zero() {
                return None;
            }
        }
    }

    /// The next echo request.
    pub(crate) fn request(&self) -> Request {
        self.request_within(PATIENCE).expect("a request leaves")
    }

    /// Lets a packet arrive.
    pub(crate) fn inject(&self, packet: &[u8]) {
        self.0.send(packet).unwrap();
    }
}

/// An echo request as it left.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) packet: Vec<u8>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: Vec<u8>,
}

impl Request {
    fn parse(packet: Vec<u8>) -> Option<Request> {
        let v6 = packet[0] >> 4 == 6;
        let header = if v6 { 40 } else { usize::from(packet[0] & 15) * 4 };
        let message = packet.get(header..).filter(|message| message.len() >= 8)?;
        let expected = if v6 { (58, 128) } else { (1, 8) };
        if (packet[if v6 { 6 } else { 9 }], message[0]) != expected {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        let six = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        Some(Request {
            source: if v6 { six(8) } else { v4(12) },
            destination: if v6 { six(24) } else { v4(16) },
            ttl: packet[if v6 { 7 } else { 8 }],
            tos: if v6 { packet[0] << 4 | packet[1] >> 4 } else { packet[1] },
            ident: word(4),
            sequence: word(6),
            payload: message[8..].to_vec(),
            packet,
        })
    }

    pub(crate) fn dont_fragment(&self) -> bool {
        self.packet[6] & 0x40 != 0
    }

    /// The honest reply.
    pub(crate) fn reply(&self) -> Vec<u8> {
        self.answer(self.destination, self.ident, self.sequence, &self.payload)
    }

    /// A reply that says what it likes.
    pub(crate) fn answer(&self, from: IpAddr, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
        let icmp_type = if from.is_ipv6() { 129 } else { 0 };
        let rest = u32::from(ident) << 16 | u32::from(sequence);
        icmp(from, self.source, icmp_type, 0, rest, payload)
    }

    /// An ICMP error from `from` about this request, which quotes `quote` bytes of it.
    pub(crate) fn error(&self, from: IpAddr, icmp_type: u8, code: u8, rest: u32, quote: usize) -> Vec<u8> {
        icmp(from, self.source, icmp_type, code, rest, &self.packet[..quote.min(self.packet.len())])
    }
}

/// An ICMP or ICMPv6 message in an IP packet.
pub(crate) fn icmp(from: IpAddr, to: IpAddr, icmp_type: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![icmp_type, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(payload);
    let length = u16::try_from(message.len()).unwrap();
    let (mut packet, pseudo) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            header.extend([from.octets(), to.octets()].concat());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check);
            (header, Vec::new())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend(&addresses);
            let [high, low] = length.to_be_bytes();
            (header, [&addresses[..], &[0, 0, high, low, 0, 0, 0, 58]].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    let check = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&check);
    packet.extend(message);
    packet
}

/// RFC 1071, one word at a time.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum = bytes.chunks(2).fold(0_u16, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    (!sum).to_be_bytes()
}
