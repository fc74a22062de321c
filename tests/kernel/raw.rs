//! Raw and ping sockets: what they receive, what forged errors do to them, how the send socket behaves.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::{fs, thread};

use echogate::checksum::checksum;
use echogate::wire::build::{Datagram, echo_message, echo_reply, echo_request};
use echogate::wire::icmpv4::{DESTINATION_UNREACHABLE, ECHO_REPLY, Echo, EchoKind};
use echogate::wire::ipv4::{ICMP, Ipv4};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::namespace::{GATEWAY, OTHER_REMOTE, PATIENCE, REMOTE, Tun, in_namespace, ip, sysctl, tc};
use crate::sys::set_option;

/// Level of the options of raw sockets (linux/socket.h).
const SOL_RAW: i32 = 255;
/// Bit n set: ICMP type n is not delivered (linux/icmp.h).
const ICMP_FILTER: i32 = 1;

fn at(address: Ipv4Addr) -> SockAddr {
    SocketAddrV4::new(address, 0).into()
}

/// A raw socket that receives ICMP.
fn receiver() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))
        .expect("a raw socket; remedy: run as root (CAP_NET_RAW)");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    socket
}

/// A raw socket that sends whole datagrams.
fn unbound_sender() -> Socket {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
        .expect("a raw socket; remedy: run as root (CAP_NET_RAW)")
}

/// The same as the gateway has it: bound to its address, connected to where nothing comes from.
fn sender() -> Socket {
    let socket = unbound_sender();
    socket.bind(&at(GATEWAY)).expect("our own address");
    socket.connect(&at(Ipv4Addr::new(127, 66, 0, 1))).expect("a loopback address");
    socket
}

/// The next datagram that the socket delivers.
fn receive(mut socket: &Socket) -> Ipv4<Vec<u8>> {
    let mut datagram = vec![0; 65_536];
    let length = socket.read(&mut datagram).expect("a datagram");
    datagram.truncate(length);
    Ipv4::check(datagram).expect("an IPv4 datagram")
}

fn reply(ident: u16) -> Vec<u8> {
    echo_reply(REMOTE, GATEWAY, ident, 1, 64, b"echo")
}

/// "Destination unreachable" of a code from a router, about a ping of ours that was never sent.
fn forged_unreachable(code: u8, mtu: u16, remote: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![DESTINATION_UNREACHABLE, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(echo_request(GATEWAY, remote, 0x6666, 1, 64, &[]));
    let check = checksum(&message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    Datagram::new(Ipv4Addr::new(198, 18, 0, 9), GATEWAY, ICMP, message).build()
}

fn errno(outcome: io::Result<usize>) -> Option<i32> {
    outcome.err().and_then(|error| error.raw_os_error())
}

#[test]
fn every_raw_icmp_socket_gets_a_copy_of_every_icmp_packet() {
    in_namespace(|| {
        let outside = Tun::outside();
        let (first, second) = (receiver(), receiver());
        outside.inject(&reply(7));
        for socket in [first, second] {
            assert_eq!(Echo::check(receive(&socket).payload()).unwrap().ident(), 7);
        }
    });
}

#[test]
fn icmp_filter_limits_types_but_not_those_from_32_on() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = receiver();
        set_option(&socket, SOL_RAW, ICMP_FILTER, !(1 << ECHO_REPLY)).unwrap();
        let of_type = |icmp_type: u8| {
            let mut message = vec![icmp_type, 0, 0, 0, 0, 0, 0, 0];
            let check = checksum(&message);
            message[2..4].copy_from_slice(&check.to_be_bytes());
            Datagram::new(REMOTE, GATEWAY, ICMP, message).build()
        };
        for icmp_type in [3, 11, 12, 31, 32, 200, ECHO_REPLY] {
            outside.inject(&of_type(icmp_type));
        }
        let delivered = [(); 3].map(|()| receive(&socket).payload()[0]);
        assert_eq!(delivered, [32, 200, ECHO_REPLY]);
    });
}

#[test]
fn a_raw_socket_delivers_a_wrong_icmp_checksum() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = receiver();
        let mut damaged = reply(7);
        *damaged.last_mut().unwrap() ^= 0x10;
        outside.inject(&damaged);
        assert!(!Echo::check(receive(&socket).payload()).unwrap().is_intact());
    });
}

#[test]
fn a_raw_socket_delivers_options_that_the_kernel_has_filled_in_under_the_old_header_checksum() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = receiver();
        let message = echo_message(EchoKind::Reply, 7, 1, b"echo");
        // Room for two addresses: the kernel, for which the datagram is, adds its own.
        let options = [&[7, 11, 4][..], &[0; 8]].concat();
        let sent = Datagram { options, ..Datagram::new(REMOTE, GATEWAY, ICMP, message) }.build();
        outside.inject(&sent);
        let received = receive(&socket);
        assert_eq!(received.options(), [&[7, 11, 8][..], &GATEWAY.octets(), &[0; 5]].concat());
        assert_eq!(received.header_checksum().to_be_bytes(), sent[10..12]);
        assert!(!received.header_is_intact());
    });
}

#[test]
fn a_raw_socket_delivers_whole_datagrams_that_came_in_fragments() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = receiver();
        let message = echo_message(EchoKind::Reply, 7, 1, &[0xA5; 2000]);
        let (first, last) = message.split_at(1480);
        let fragment = |payload: &[u8], more_fragments, fragment_offset| {
            let whole = Datagram::new(REMOTE, GATEWAY, ICMP, payload.to_vec());
            Datagram { identification: 1, more_fragments, fragment_offset, ..whole }.build()
        };
        outside.inject(&fragment(first, true, 0));
        outside.inject(&fragment(last, false, 1480));
        assert_eq!(receive(&socket).payload(), message);
    });
}

#[test]
fn a_forged_fragmentation_needed_sets_the_path_mtu_unless_ip_mtu_discover_is_interface() {
    in_namespace(|| {
        let outside = Tun::outside();
        let path_mtu_is_set = |remote: Ipv4Addr| ip(&format!("route get {remote}")).contains("mtu 600");

        let guarded = receiver();
        set_option(&guarded, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_INTERFACE).unwrap();
        outside.inject(&forged_unreachable(4, 600, REMOTE));
        assert!(!path_mtu_is_set(REMOTE));

        let _unguarded = receiver();
        outside.inject(&forged_unreachable(4, 600, OTHER_REMOTE));
        assert!(path_mtu_is_set(OTHER_REMOTE), "{}", ip(&format!("route get {OTHER_REMOTE}")));
    });
}

#[test]
fn under_ip_recverr_a_forged_unreachable_fails_the_next_send_of_protocol_icmp_but_not_of_protocol_raw() {
    in_namespace(|| {
        let outside = Tun::outside();
        let (icmp, raw) = (receiver(), sender());
        icmp.set_header_included_v4(true).unwrap();
        for socket in [&icmp, &raw] {
            set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        }
        outside.inject(&forged_unreachable(1, 0, REMOTE));
        let ping = echo_request(GATEWAY, OTHER_REMOTE, 1, 1, 64, &[]);
        assert_eq!(errno(icmp.send_to(&ping, &at(OTHER_REMOTE))), Some(libc::EHOSTUNREACH));
        assert_eq!(raw.send_to(&ping, &at(OTHER_REMOTE)).unwrap(), ping.len());
    });
}

/// RFC 6864, section 4.3.
#[test]
fn the_send_socket_sends_to_any_remote_and_the_kernel_fills_in_what_only_it_knows() {
    in_namespace(|| {
        let outside = Tun::outside();
        let socket = sender();
        let remotes = [REMOTE, Ipv4Addr::new(203, 0, 113, 5)];
        let idents = remotes.map(|remote| {
            let mut packet = echo_request(GATEWAY, remote, 1, 1, 63, b"echo");
            packet[2..4].fill(0xEE); // total length
            packet[10..12].fill(0xEE); // header checksum
            socket.send_to(&packet, &at(remote)).unwrap();
            let sent = outside.next();
            assert_eq!((sent.source(), sent.destination(), sent.ttl()), (GATEWAY, remote, 63));
            assert!(sent.header_is_intact());
            assert_eq!((sent.total_len(), sent.payload()), (packet.len(), &packet[20..]));
            sent.identification()
        });
        assert_ne!(idents[0], idents[1]);
    });
}

#[test]
fn policy_routing_sees_the_source_of_a_bound_send_socket_only() {
    in_namespace(|| {
        let _outside = Tun::outside();
        ip("rule add from 198.18.0.1 prohibit");
        let ping = echo_request(GATEWAY, REMOTE, 1, 1, 64, &[]);
        let bound = unbound_sender();
        bound.bind(&at(GATEWAY)).unwrap();
        assert_eq!(unbound_sender().send_to(&ping, &at(REMOTE)).unwrap(), ping.len());
        assert_eq!(errno(bound.send_to(&ping, &at(REMOTE))), Some(libc::EACCES));
    });
}

#[test]
fn sends_to_addresses_that_nobody_should_ping_succeed() {
    in_namespace(|| {
        let _outside = Tun::outside();
        let socket = sender();
        for remote in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, GATEWAY] {
            let ping = echo_request(GATEWAY, remote, 1, 1, 64, &[]);
            assert_eq!(socket.send_to(&ping, &at(remote)).unwrap(), ping.len(), "{remote}");
        }
    });
}

#[test]
fn over_the_path_s_mtu_a_send_leaves_in_fragments_or_with_df_fails() {
    in_namespace(|| {
        let outside = Tun::outside();
        ip("route add 198.18.0.2 dev out0 mtu 600");
        let socket = sender();
        let message = echo_message(EchoKind::Request, 1, 1, &[0; 800]);
        let datagram = Datagram::new(GATEWAY, REMOTE, ICMP, message);
        socket.send_to(&datagram.build(), &at(REMOTE)).unwrap();
        assert!(outside.next().is_first_fragment());
        assert!(outside.next().is_later_fragment());
        let datagram = Datagram { dont_fragment: true, ..datagram };
        assert_eq!(errno(socket.send_to(&datagram.build(), &at(REMOTE))), Some(libc::EMSGSIZE));
    });
}

#[test]
fn a_full_queue_shows_as_enobufs_under_ip_recverr_only() {
    in_namespace(|| {
        let _outside = Tun::outside();
        // Room for a few packets, and less than one a second out of it.
        tc("qdisc add dev out0 root tbf rate 8kbit burst 1600 limit 3000");
        let socket = sender();
        let ping = echo_request(GATEWAY, REMOTE, 1, 1, 64, &[0; 1000]);
        for _ in 0..60 {
            assert_eq!(socket.send_to(&ping, &at(REMOTE)).unwrap(), ping.len());
        }
        set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        let outcomes = [(); 10].map(|()| errno(socket.send_to(&ping, &at(REMOTE))));
        assert!(outcomes.contains(&Some(libc::ENOBUFS)), "{outcomes:?}");
    });
}

/// What the soak looks for on the remotes' side (`src/lab/drops.rs`): answers wait in a bounded buffer, one a CPU.
#[test]
fn answers_to_pings_for_which_the_kernels_own_socket_has_no_room_are_output_errors() {
    in_namespace(|| {
        let outside = Tun::outside();
        // Room for all of them, and a packet a second out of it.
        tc("qdisc add dev out0 root tbf rate 800bit burst 1600 limit 100000000");
        let cpus = thread::available_parallelism().expect("known").get();
        let asked = 400 * (cpus + 1);
        for sequence in 0..asked {
            let sequence = u16::try_from(sequence % 0x1_0000).expect("16 bits");
            outside.inject(&echo_request(REMOTE, GATEWAY, 1, sequence, 64, &[0; 56]));
        }
        let table = fs::read_to_string("/proc/thread-self/net/snmp").expect("the kernel tells");
        let count = |prefix: &str, name: &str| -> usize {
            let mut lines = table.lines().filter_map(|line| line.strip_prefix(prefix));
            let [names, values] = [(); 2].map(|()| lines.next().expect("two lines").split_whitespace());
            let found = names.zip(values).find(|(found, _)| *found == name);
            found.and_then(|(_, value)| value.parse().ok()).expect("a number")
        };
        let (answered, failed) = (count("Icmp:", "OutEchoReps"), count("Icmp:", "OutErrors"));
        assert_eq!((count("Icmp:", "InEchos"), answered + failed), (asked, asked), "{table}");
        assert!(answered > 0 && failed > 0, "{table}");
        assert_eq!(count("Ip:", "OutDiscards"), failed, "the same once more: {table}");
    });
}

#[test]
fn by_default_ping_group_range_refuses_ping_sockets_even_to_root() {
    in_namespace(|| {
        let open = || Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).map(|_| 0);
        assert_eq!(errno(open()), Some(libc::EACCES));
        sysctl("net/ipv4/ping_group_range", "0 0");
        assert_eq!(errno(open()), None);
    });
}

/// Pieces of one datagram must leave under one identification, which therefore is never zero.
#[test]
fn the_kernel_chooses_an_identification_where_a_sent_datagram_has_none_and_keeps_one_that_it_has() {
    in_namespace(|| {
        let outside = Tun::outside();
        let sender = sender();
        let send = |identification| {
            let message = echo_message(EchoKind::Request, 1, 1, b"echo");
            let datagram = Datagram::new(GATEWAY, REMOTE, ICMP, message);
            let fragment = Datagram { identification, more_fragments: true, ..datagram }.build();
            sender.send_to(&fragment[..], &at(REMOTE)).expect("sent");
            outside.next().identification()
        };
        assert_eq!([send(0x4321), send(0x4321)], [0x4321; 2]);
        assert_ne!(send(0), send(0), "each piece would be a datagram of its own");
    });
}
