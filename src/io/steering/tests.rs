use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, ptr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::*;
use crate::sys::{event, namespace};
use crate::table::fragments::worker_of;
use crate::wire::build::{Datagram, echo_message, echo_reply, echo_request};
use crate::wire::icmpv4::EchoKind;
use crate::wire::ipv4::{self, Ipv4};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const OTHER_REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
const SEED: u64 = 0x0123_4567_89AB_CDEF;

/// How long a packet that must come is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program's meaning in plain words.
fn queue_hash(packet: &[u8], seed: u64) -> u16 {
    let Some(header) = packet.get(..20).filter(|header| header[0] >> 4 == 4) else { return 0 };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (more_fragments, offset) = (half(6) & 0x2000 != 0, half(6) & 0x1FFF);
    let ident = if more_fragments || offset != 0 { None } else { echo_ident(packet) };
    let value = ident.map_or(word(16), u32::from);
    let mut hash = (u64::from(word(12)) << 32 | u64::from(value / 16)) ^ seed;
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x94D0_49BB_1331_11EB);
    u16::try_from((hash >> 49) + u64::from(value % 16)).expect("15 bits and a little")
}

fn echo_ident(packet: &[u8]) -> Option<u16> {
    let header_len = usize::from(packet[0] & 15) * 4;
    let is_icmp = header_len >= 20 && packet[9] == 1;
    let message = packet.get(header_len..header_len + 8).filter(|_| is_icmp)?;
    matches!(message[0], 0 | 8).then(|| u16::from_be_bytes([message[4], message[5]]))
}

/// A TUN device of several queues that is up, and a socket that sends anything at all by it.
struct Device {
    queues: Vec<Tun>,
    socket: Socket,
    address: SockAddr,
}

/// Runs `test` in a network namespace of its own, which ends with it.
fn in_network(test: impl FnOnce() + Send) {
    let network = namespace::new_network().expect("a network namespace takes CAP_SYS_ADMIN: run the tests as root");
    namespace::run_in(network.as_fd(), test).expect("the namespace can be entered");
}

/// Runs `ip` with arguments separated by blanks.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("`ip` runs; it is in the Debian package iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

impl Device {
    /// `t0`, up, without a program.
    fn open(queues: usize) -> Device {
        let queues =
            Tun::open("t0", queues).expect("a TUN takes CAP_NET_ADMIN and /dev/net/tun: run the tests as root");
        ip("link set t0 up");
        let listed = ip("-o link show t0");
        let index = listed.split(':').next().and_then(|index| index.parse().ok()).expect("the device's index");
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0))).expect("a packet socket");
        Device { queues, socket, address: link_address(index) }
    }

    fn steered(queues: usize, seed: u64) -> Device {
        let device = Device::open(queues);
        attach(&device.queues[0], seed).expect("loading the program takes CAP_BPF: run the tests as root");
        device
    }

    /// The queue that the packet comes out of when the kernel sends it by this device.
    fn queue_of(&self, packet: &[u8]) -> usize {
        assert_eq!(self.socket.send_to(packet, &self.address).expect("the device takes it"), packet.len());
        self.receive(|received| received == packet).0
    }

    /// The next packet that is `wanted`, after the queue that it came from; others (the kernel's own) are thrown away.
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> (usize, Vec<u8>) {
        let give_up = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < give_up {
            for (number, queue) in self.queues.iter().enumerate() {
                match event::read(queue.as_fd(), &mut buffer) {
                    Ok(len) if wanted(&buffer[..len]) => return (number, buffer[..len].to_vec()),
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
            }
        }
        panic!("the packet has not come out of any queue");
    }

    fn assert_as_the_plain_version_says(&self, packet: &[u8], seed: u64) -> usize {
        let queue = self.queue_of(packet);
        assert_eq!(queue, usize::from(queue_hash(packet, seed)) % self.queues.len(), "{packet:02x?}");
        queue
    }
}

/// The address of a packet socket's peer: IPv4 by this device.
#[expect(unsafe_code, reason = "socket2 has no constructor for AF_PACKET's addresses")]
fn link_address(index: i32) -> SockAddr {
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: u16::try_from(libc::ETH_P_IP).unwrap().to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut storage = socket2::SockAddrStorage::zeroed();
    assert!(size_of_val(&address) <= size_of_val(&storage));
    // SAFETY: the storage is larger than the address, and aligned for every kind of address.
    unsafe { ptr::from_mut(&mut storage).cast::<libc::sockaddr_ll>().write(address) };
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the storage has just been set to an address of this length.
    unsafe { SockAddr::new(storage, length) }
}

fn ping(ident: u16) -> Vec<u8> {
    echo_request(CLIENT, REMOTE, ident, 1, 64, b"payload")
}

/// How many of the queues' numbers are 0, 1 and so on.
fn tally(queues: usize, numbers: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut tally = vec![0; queues];
    numbers.into_iter().for_each(|number| tally[number] += 1);
    tally
}

#[test]
fn forty_idents_between_one_pair_of_hosts_take_every_queue_about_equally() {
    in_network(|| {
        let device = Device::steered(4, SEED);
        // The idents of different starts, and across the end of the numbers.
        for first in [0_u16, 1, 4321, 65_520] {
            let idents = (0..40).map(|number| first.wrapping_add(number));
            let queues = idents.map(|ident| device.assert_as_the_plain_version_says(&ping(ident), SEED));
            let tally = tally(4, queues);
            assert!(tally.iter().all(|&count| (8..=12).contains(&count)), "{tally:?}");
        }
    });
}

#[test]
fn without_the_program_they_share_a_queue() {
    in_network(|| {
        let device = Device::open(4);
        let mut tally = tally(4, (0..40).map(|ident| device.queue_of(&ping(ident))));
        tally.sort_unstable();
        assert_eq!(tally, [0, 0, 0, 40]);
    });
}

#[test]
fn forwarded_pings_are_steered() {
    in_network(|| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("/proc/sys is writable");
        let device = Device::steered(4, SEED);
        let clients = Tun::open("c0", 1).expect("a second TUN");
        for command in [
            "address add 192.0.0.8/32 dev t0",
            "route add 198.18.0.0/15 dev t0",
            "link set c0 up",
            "address add 10.66.0.1/24 dev c0",
        ] {
            ip(command);
        }
        let mut queues = Vec::new();
        for ident in 0..40 {
            event::write(clients[0].as_fd(), &ping(ident)).expect("the kernel takes it");
            let (queue, packet) = device.receive(|packet| packet.get(9) == Some(&ipv4::ICMP));
            assert_eq!(Ipv4::check(&packet[..]).unwrap().ttl(), 63, "it has come through the kernel's forwarding");
            assert_eq!(queue, usize::from(queue_hash(&packet, SEED)) % 4);
            queues.push(queue);
        }
        let tally = tally(4, queues);
        assert!(tally.iter().all(|&count| (8..=12).contains(&count)), "{tally:?}");
    });
}

#[test]
fn one_client_and_ident_is_one_queue() {
    in_network(|| {
        let device = Device::steered(4, SEED);
        for ident in [0, 1, 0x1234, u16::MAX] {
            let queue = device.queue_of(&ping(ident));
            for (remote, sequence, ttl, payload) in
                [(REMOTE, 2, 64, &b""[..]), (REMOTE, 3, 1, &[0xFF; 1400]), (OTHER_REMOTE, u16::MAX, 255, b"x")]
            {
                let request = echo_request(CLIENT, remote, ident, sequence, ttl, payload);
                assert_eq!(device.queue_of(&request), queue);
                assert_eq!(device.queue_of(&echo_reply(CLIENT, remote, ident, sequence, ttl, payload)), queue);
            }
            for options in (4..=40).step_by(4) {
                let message = echo_message(EchoKind::Request, ident, 9, b"behind options");
                let datagram = Datagram {
                    options: vec![1; options],
                    identification: 77,
                    dont_fragment: true,
                    ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message)
                };
                assert_eq!(device.assert_as_the_plain_version_says(&datagram.build(), SEED), queue);
            }
        }
    });
}

/// A fragment that is read by the worker whose queue it takes is that worker's own: no hand-over.
#[test]
fn fragments_come_to_the_worker_that_judges_them() {
    for number in 0..1000 {
        let seed = SEED.wrapping_mul(u64::from(number) | 1);
        let remote = Ipv4Addr::from(u32::from(REMOTE).wrapping_mul(number));
        let whole = Datagram::new(CLIENT, remote, ipv4::ICMP, vec![7; 16]);
        let later = Datagram { fragment_offset: 8, ..whole }.build();
        for workers in 1..=5 {
            let queue = usize::from(queue_hash(&later, seed)) % workers;
            assert_eq!(worker_of(CLIENT, remote, seed, workers), queue);
        }
    }
}

#[test]
fn the_fragments_between_two_hosts_share_a_queue_and_those_of_others_take_another() {
    in_network(|| {
        let device = Device::steered(4, SEED);
        let message = echo_message(EchoKind::Request, 1, 1, &[0xA5; 3000]);
        let queue_towards = |remote| {
            let mut queues = message.chunks(1000).enumerate().map(|(number, piece)| {
                let fragment = Datagram {
                    identification: u16::try_from(number % 2).expect("0 or 1"),
                    more_fragments: (number + 1) * 1000 < message.len(),
                    fragment_offset: number * 1000,
                    ..Datagram::new(CLIENT, remote, ipv4::ICMP, piece.to_vec())
                };
                device.assert_as_the_plain_version_says(&fragment.build(), SEED)
            });
            let first = queues.next().expect("four fragments");
            assert!(queues.all(|queue| queue == first), "the fragments to {remote}");
            first
        };
        let tally = tally(4, (2..42).map(|host| queue_towards(Ipv4Addr::new(198, 18, 0, host))));
        assert!(tally.iter().all(|&count| count > 0), "{tally:?}");
    });
}

#[test]
fn what_is_no_echo_goes_by_its_addresses_whatever_it_has_where_the_ident_would_be() {
    in_network(|| {
        let device = Device::steered(4, SEED);
        let datagram =
            |protocol, destination, payload: Vec<u8>| Datagram::new(CLIENT, destination, protocol, payload).build();
        let queue = device.queue_of(&datagram(ipv4::UDP, REMOTE, vec![0; 8]));
        for word in (0..=u16::MAX).step_by(1111) {
            let [high, low] = word.to_be_bytes();
            // The type of an echo request, and all else of it different each time.
            let payload = vec![8, 0, high, low, high, low, low, high];
            for protocol in [ipv4::UDP, ipv4::TCP, 47] {
                let packet = datagram(protocol, REMOTE, payload.clone());
                assert_eq!(device.assert_as_the_plain_version_says(&packet, SEED), queue);
            }
            // Destination unreachable, about whatever.
            let unreachable = datagram(ipv4::ICMP, REMOTE, [&[3], &payload[1..]].concat());
            assert_eq!(device.assert_as_the_plain_version_says(&unreachable, SEED), queue);
        }
        let destinations = (0..16).map(|last| Ipv4Addr::new(198, 18, 0, last));
        let queues = destinations.map(|remote| device.queue_of(&datagram(ipv4::UDP, remote, vec![0; 8])));
        assert_eq!(tally(4, queues), [4; 4]);
    });
}

#[test]
fn packets_shorter_than_their_header_pretends_go_somewhere() {
    in_network(|| {
        let device = Device::steered(7, SEED);
        let message = echo_message(EchoKind::Request, 0xBEEF, 1, b"payload");
        let options = vec![1; 40];
        let packet = Datagram { options, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) }.build();
        for len in 1..=packet.len() {
            device.assert_as_the_plain_version_says(&packet[..len], SEED);
        }
        for first_byte in 0..=u8::MAX {
            device.assert_as_the_plain_version_says(&[&[first_byte], &packet[1..]].concat(), SEED);
        }
    });
}

/// Bytes that are often nearly an ICMP packet; the interesting fields take few values.
fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let first_byte = prop_oneof![4 => 0x45..=0x4F_u8, 1 => any::<u8>()];
    let fragment = prop_oneof![Just(0_u16), Just(0x4000), Just(0x2000), any::<u16>()];
    let protocol = prop_oneof![3 => Just(ipv4::ICMP), 1 => any::<u8>()];
    let icmp_type = prop_oneof![2 => Just(8_u8), 1 => Just(0), 1 => any::<u8>()];
    (vec(any::<u8>(), 1..120), first_byte, fragment, protocol, icmp_type).prop_map(
        |(mut packet, first_byte, fragment, protocol, icmp_type)| {
            let [high, low] = fragment.to_be_bytes();
            // A header length below five words is no header's: its packet's type is not looked for.
            let header_len = usize::from(first_byte & 15).max(5) * 4;
            for (at, byte) in [(0, first_byte), (6, high), (7, low), (9, protocol), (header_len, icmp_type)] {
                if let Some(place) = packet.get_mut(at) {
                    *place = byte;
                }
            }
            packet
        },
    )
}

#[test]
fn the_program_means_what_the_plain_version_says_for_any_bytes() {
    in_network(|| {
        for (queues, seed) in [(8, 0), (7, u64::MAX), (5, SEED)] {
            let device = Device::steered(queues, seed);
            TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })
                .run(&any_packet(), |packet| {
                    device.assert_as_the_plain_version_says(&packet, seed);
                    Ok(())
                })
                .unwrap();
        }
    });
}

#[test]
fn clients_with_one_ident_and_idents_at_a_distance_spread_evenly() {
    let clients = (0..4000_u32).map(|number| (Ipv4Addr::from(0x0A42_0000 + number), 1));
    let mut populations = vec![("clients that all use ident 1", clients.collect::<Vec<_>>())];
    for (name, step) in [("every ident", 1_u16), ("every 4th", 4), ("every 16th", 16)] {
        populations.push((name, (0..4000_u16).map(|number| (CLIENT, number * step)).collect()));
    }
    for (name, population) in populations {
        for queues in 2..=8 {
            for seed in [0, 1, SEED, u64::MAX] {
                let hashes = population
                    .iter()
                    .map(|&(client, ident)| queue_hash(&echo_request(client, REMOTE, ident, 1, 64, &[]), seed));
                let tally = tally(queues, hashes.map(|hash| usize::from(hash) % queues));
                let fair = population.len() / queues;
                let even = fair * 3 / 4..=fair * 5 / 4;
                assert!(tally.iter().all(|count| even.contains(count)), "{name}, {queues} queues: {tally:?}");
            }
        }
    }
}

#[test]
fn another_seed_is_another_choice() {
    let choice = |seed| {
        let idents = (0..1000).map(|block| queue_hash(&ping(block * 16), seed) % 4);
        idents.collect::<Vec<_>>()
    };
    for (seed, other) in [(0, 1), (1, 2), (SEED, SEED ^ 1 << 63), (SEED, SEED ^ 1 << 31)] {
        let equal = choice(seed).iter().zip(choice(other)).filter(|(mine, other)| **mine == *other).count();
        // A quarter is chance.
        assert!((150..=350).contains(&equal), "{seed:x} {other:x}: {equal} of 1000");
    }
}

#[test]
fn without_cap_bpf_the_error_says_so_and_the_kernel_goes_on_choosing() {
    in_network(|| {
        let device = Device::open(4);
        renounce_bpf();
        let free_for_all = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").expect("the sysctl");
        let attached = attach(&device.queues[0], SEED);
        if free_for_all.trim() == "0" {
            attached.expect("no capability is needed on this host");
            return;
        }
        let error = attached.expect_err("loading must be refused");
        assert_eq!(error.errno(), Some(libc::EPERM));
        assert!(error.to_string().contains("cap_bpf"), "{error}");
        device.queue_of(&ping(1));
    });
}

#[test]
fn a_descriptor_that_is_no_program_is_refused() {
    in_network(|| {
        let device = Device::open(2);
        let file = fs::File::open("/dev/null").unwrap();
        let error = tun::set_steering(device.queues[0].as_fd(), file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}

/// Takes CAP_BPF, and CAP_SYS_ADMIN which implies it, from the calling thread, for good.
#[expect(unsafe_code, reason = "capget(2) and capset(2)")]
fn renounce_bpf() {
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    // linux/capability.h: version 3, this thread; effective, permitted, inheritable, of the low and of the high 32.
    let mut header = [0x2008_0522_u32, 0];
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: version 3 reads and writes a header of 8 bytes and writes two sets of 12, which these are.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
    assert_eq!(result, 0, "capget: {}", std::io::Error::last_os_error());
    for set in &mut sets[0][..2] {
        *set &= !(1 << SYS_ADMIN);
    }
    for set in &mut sets[1][..2] {
        *set &= !(1 << (BPF - 32));
    }
    // SAFETY: as above; the sets are only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const sets) };
    assert_eq!(result, 0, "capset: {}", std::io::Error::last_os_error());
}
