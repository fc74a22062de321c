//! Errors as values: who said what about which request.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use echogate::lab::{Lab, LabOptions};
use echogate::pinger::{PathMtu, PingError, PingOptions, Pinger};

use crate::scene::{HOST, HOST6, OTHER, OWN, ROUTER, ROUTER6, Request, ip, on_both, patient};

const V4: IpAddr = IpAddr::V4(ROUTER);
const V6: IpAddr = IpAddr::V6(ROUTER6);

#[test]
fn an_icmp_error_ends_the_ping_with_its_sender() {
    type Expected = fn(&PingError) -> bool;
    const CASES: &[(IpAddr, u8, u8, u32, Expected)] = &[
        (V4, 3, 1, 0, |error| matches!(error, PingError::Unreachable { from: V4, code: 1 })),
        (V4, 3, 13, 0, |error| matches!(error, PingError::Unreachable { from: V4, code: 13 })),
        (V4, 3, 4, 1400, |error| matches!(error, PingError::TooBig { from: V4, mtu: 1400 })),
        (V4, 11, 0, 0, |error| matches!(error, PingError::TimeExceeded { from: V4, code: 0 })),
        (V4, 12, 0, 0, |error| matches!(error, PingError::Icmp { from: V4, icmp_type: 12, code: 0 })),
        (V6, 1, 3, 0, |error| matches!(error, PingError::Unreachable { from: V6, code: 3 })),
        (V6, 2, 0, 1400, |error| matches!(error, PingError::TooBig { from: V6, mtu: 1400 })),
        (V6, 3, 0, 0, |error| matches!(error, PingError::TimeExceeded { from: V6, code: 0 })),
    ];
    on_both(|wire, pinger| {
        for (from, icmp_type, code, rest, expected) in CASES {
            let target = if from.is_ipv6() { IpAddr::from(HOST6) } else { HOST.into() };
            // A quote of eight bytes is all that RFC 792 promises.
            for quote in [28 + if from.is_ipv6() { 20 } else { 0 }, 1000] {
                let ping = pinger.ping(target, &patient());
                wire.inject(&wire.request().error(*from, *icmp_type, *code, *rest, quote));
                let error = ping.wait().unwrap_err();
                assert!(expected(&error) && error.sender() == Some(*from), "{icmp_type}, {code}: {error:?}");
            }
        }
        assert_eq!(pinger.tally().errors, 2 * CASES.len() as u64);
    });
}

#[test]
fn an_error_that_quotes_no_request_under_way_changes_nothing() {
    on_both(|wire, pinger| {
        let ping = pinger.ping(HOST, &patient());
        let request = wire.request();
        let changed = |change: fn(&mut Request)| {
            let mut other = request.clone();
            change(&mut other);
            other.error(V4, 3, 1, 0, 1000)
        };
        // Another sequence, another destination, another cookie, a reply instead of a request.
        wire.inject(&changed(|other| other.packet[26] ^= 0x40));
        wire.inject(&changed(|other| other.packet[16..20].copy_from_slice(&OTHER.octets())));
        wire.inject(&changed(|other| other.packet[28] ^= 1));
        wire.inject(&request.reply());
        assert_eq!(ping.wait().unwrap().from, IpAddr::from(HOST));
        assert_eq!((pinger.tally().errors, pinger.tally().unmatched_errors), (0, 3));
    });
}

#[test]
fn the_error_of_one_ping_is_not_anothers() {
    // An error on a ping socket fails the next call on it, whatever that is about: here, hundreds of other sends.
    on_both(|wire, pinger| {
        let unreachable: Vec<_> = (0..200).map(|_| pinger.ping(HOST, &patient())).collect();
        let mut others = Vec::new();
        for _ in 0..200 {
            let request = wire.request();
            wire.inject(&request.error(V4, 3, 1, 0, 1000));
            others.push(pinger.ping(OWN, &patient()));
        }
        for ping in unreachable {
            let error = ping.wait().unwrap_err();
            assert!(matches!(error, PingError::Unreachable { from: V4, code: 1 }), "{error:?}");
        }
        for ping in others {
            ping.wait().unwrap();
        }
        assert_eq!(pinger.tally().send_failures, 0);
    });
}

#[test]
fn what_this_host_cannot_send_is_told_by_errno() {
    on_both(|_, pinger| {
        let errno = |target: Ipv4Addr, options: &PingOptions| match pinger.ping_blocking(target, options) {
            Err(PingError::SendFailed { errno, mtu }) => (errno, mtu),
            other => panic!("{other:?}"),
        };
        ip("route add unreachable 203.0.113.0/25");
        ip("route add prohibit 203.0.113.128/25");
        assert_eq!(errno(Ipv4Addr::new(203, 0, 113, 1), &patient()).0, libc::EHOSTUNREACH);
        assert_eq!(errno(Ipv4Addr::new(203, 0, 113, 129), &patient()).0, libc::EACCES);
        assert_eq!(errno(Ipv4Addr::BROADCAST, &patient()).0, libc::EACCES);
        let large = patient().path_mtu(PathMtu::Forbid).size(2000).unwrap();
        assert_eq!(errno(HOST, &large), (libc::EMSGSIZE, Some(1500)));
        // None of the host's own; EINVAL on older kernels.
        let foreign = errno(HOST, &patient().source(OTHER.into())).0;
        assert!([libc::ENETUNREACH, libc::EINVAL].contains(&foreign), "{foreign}");
        pinger.ping_blocking(OWN, &patient()).unwrap();
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn across_a_router_the_one_where_the_hops_end_is_told() {
    let lab = Lab::build(&LabOptions { routers: 2, ..LabOptions::default() }).unwrap();
    lab.gateway().sysctl(&[("net/ipv4/ping_group_range", "0 2147483647")]).unwrap();
    let remote = lab.remotes()[0];
    let found = lab.gateway().run(|| {
        let pinger = Pinger::new().unwrap();
        let options = PingOptions::new().timeout(Duration::from_secs(20));
        (1..=3).map(|ttl| pinger.ping_blocking(remote, &options.ttl(ttl).unwrap())).collect::<Vec<_>>()
    });
    let found = found.unwrap();
    let hop = |outcome: &Result<_, PingError>| match outcome {
        Err(PingError::TimeExceeded { from, code: 0 }) => *from,
        other => panic!("{other:?}"),
    };
    assert_eq!(hop(&found[0]), IpAddr::from([198, 18, 0, 254]), "the first router");
    assert_ne!(hop(&found[0]), hop(&found[1]));
    assert_eq!(found[2].as_ref().map(|reply| reply.from).ok(), Some(IpAddr::from(remote)));
}
