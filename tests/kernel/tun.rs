//! The TUN device: who may open it, what a write to it means, what a dead link says.

use std::io;

use echogate::wire::build::{Datagram, echo_message, echo_request};
use echogate::wire::icmpv4::{Echo, EchoKind};
use echogate::wire::ipv4;
use tun_tap::{Iface, Mode};

use crate::namespace::{CLIENT, GATEWAY, REMOTE, Tun, in_namespace, ip};

fn errno(outcome: io::Result<usize>) -> Option<i32> {
    outcome.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_second_opener_of_a_single_queue_tun_gets_ebusy() {
    in_namespace(|| {
        let _first = Tun::open("t0");
        let second = Iface::without_packet_info("t0", Mode::Tun).map(|_| 0);
        assert_eq!(errno(second), Some(libc::EBUSY));
    });
}

#[test]
fn a_write_gives_eio_when_the_link_is_down_and_ebadfd_when_it_is_deleted() {
    in_namespace(|| {
        let tun = Tun::open("t0");
        let packet = echo_request(CLIENT, REMOTE, 1, 1, 64, &[]);
        tun.inject(&packet);
        ip("link set t0 down");
        assert_eq!(errno(tun.try_inject(&packet)), Some(libc::EIO));
        ip("link delete t0");
        assert_eq!(errno(tun.try_inject(&packet)), Some(libc::EBADFD));
    });
}

#[test]
fn a_write_that_succeeds_is_not_delivery() {
    in_namespace(|| {
        let tun = Tun::open("t0");
        let packet = echo_request(CLIENT, REMOTE, 1, 1, 64, &[]);
        for length in [1, 19] {
            assert_eq!(tun.try_inject(&packet[..length]).unwrap(), length);
        }
        let version_5 = [&[0x55], &packet[1..]].concat();
        assert_eq!(errno(tun.try_inject(&version_5)), Some(libc::EINVAL));
    });
}

/// A reply that the kernel has put together is written back in one piece, whatever the device's MTU.
#[test]
fn a_packet_far_over_the_mtu_is_taken_from_a_tun_and_leaves_in_fragments_unless_it_has_df() {
    in_namespace(|| {
        let outside = Tun::outside();
        let tun = Tun::open("t0");
        let message = echo_message(EchoKind::Request, 1, 1, &vec![7; 65_507]);
        let whole = Datagram { identification: 9, ..Datagram::new(CLIENT, REMOTE, ipv4::ICMP, message) };
        tun.inject(&Datagram { dont_fragment: true, ..whole.clone() }.build());
        let told = outside.next();
        assert_eq!(
            (told.destination(), &told.payload()[..2]),
            (CLIENT, &[3, 4][..]),
            "its sender is told, wherever it is"
        );
        tun.inject(&whole.build());
        let mut length = 0;
        while length < whole.payload.len() {
            let fragment = outside.next();
            assert_eq!((fragment.identification(), fragment.fragment_offset()), (9, length));
            assert!(fragment.total_len() <= 1500 && !fragment.dont_fragment());
            length += fragment.payload().len();
        }
    });
}

#[test]
fn packets_from_the_host_s_own_address_vanish_when_written_to_a_tun() {
    in_namespace(|| {
        let outside = Tun::outside();
        let tun = Tun::open("t0");
        tun.inject(&echo_request(GATEWAY, REMOTE, 1, 1, 64, &[]));
        tun.inject(&echo_request(CLIENT, REMOTE, 2, 1, 64, &[]));
        let forwarded = outside.next();
        assert_eq!(Echo::check(forwarded.payload()).unwrap().ident(), 2);
    });
}
