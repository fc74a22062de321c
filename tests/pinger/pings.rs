//! Ordinary pings: what leaves, what comes back, who may.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use echogate::pinger::{
    Backend, Family, Measured, PathMtu, Payload, PingError, PingOptions, Pinger, PingerBuilder, SIZE_MAX, resolve,
};

use crate::scene::{HOST, HOST6, OWN, OWN_TOO, allow, hasty, in_network, on_both, patient, until, with};
use crate::sys;

#[test]
fn a_reply_is_told_with_all_that_is_known_of_it() {
    on_both(|wire, pinger| {
        let before = SystemTime::now();
        for (target, bytes) in [(IpAddr::from(HOST), 64), (HOST6.into(), 64)] {
            let ping = pinger.ping(target, &patient());
            let request = wire.request();
            assert_eq!((request.destination, request.payload.len()), (target, 56));
            wire.inject(&request.reply());
            let reply = ping.wait().unwrap();
            assert_eq!((reply.from, reply.bytes, reply.ttl), (target, bytes, Some(64)));
            assert_eq!((reply.sequence, reply.payload), (request.sequence, Payload::Intact));
            assert!(reply.received >= before && reply.received <= SystemTime::now());
            // The TUN's driver tells departures from Linux 6.13 on, as all do; before, the reply's arrival is the kernel's.
            assert!(reply.measured <= Measured::KernelReceive, "{reply:?}");
        }
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn the_kernels_departure_is_the_beginning_where_the_kernel_tells_it() {
    if !echogate::io::ping::knows_transmit_times() {
        // The other half of `measured`'s meaning is what is to be seen then.
        with(
            |builder| builder,
            |_, pinger| {
                assert_eq!(pinger.ping_blocking(OWN, &patient()).unwrap().measured, Measured::KernelReceive);
            },
        );
        return;
    }
    on_both(|_, pinger| {
        for target in [IpAddr::from(OWN), Ipv6Addr::LOCALHOST.into()] {
            assert_eq!(pinger.ping_blocking(target, &patient()).unwrap().measured, Measured::Kernel);
        }
    });
    with(
        |builder| builder.transmit_times(false),
        |_, pinger| {
            assert_eq!(pinger.ping_blocking(OWN, &patient()).unwrap().measured, Measured::KernelReceive);
        },
    );
}

#[test]
fn the_request_is_as_the_options_say() {
    on_both(|wire, pinger| {
        let options = hasty().ttl(7).unwrap().tos(0xB8).size(100).unwrap().pattern(&[0xAB, 0xCD]).unwrap();
        for target in [IpAddr::from(HOST), HOST6.into()] {
            let _ping = pinger.ping(target, &options);
            let request = wire.request();
            assert_eq!((request.ttl, request.tos, request.payload.len()), (7, 0xB8, 100));
            assert!(request.payload[8..].chunks(2).all(|pair| pair == [0xAB, 0xCD]));
        }
        for (path_mtu, df) in [(PathMtu::Forbid, true), (PathMtu::Allow, false), (PathMtu::Probe, true)] {
            let _ping = pinger.ping(HOST, &hasty().path_mtu(path_mtu));
            assert_eq!(wire.request().dont_fragment(), df, "{path_mtu:?}");
        }
        for source in [OWN, OWN_TOO] {
            let _ping = pinger.ping(HOST, &hasty().source(source.into()));
            assert_eq!(wire.request().source, IpAddr::from(source));
        }
        // By the interface alone: nothing routes this address to the wire's neighbour but it.
        let _ping = pinger.ping("198.51.100.9", &hasty().interface("wire").unwrap());
        assert_eq!(wire.request().destination, IpAddr::from([198, 51, 100, 9]));
        let counting: Vec<u8> = (8..56).collect();
        let _ping = pinger.ping(HOST, &hasty());
        assert_eq!(wire.request().payload[8..], counting);
    });
}

#[test]
fn the_largest_payload_makes_it_there_and_back() {
    on_both(|_, pinger| {
        for size in [0, 1, 8, 1472, SIZE_MAX] {
            for target in [IpAddr::from(OWN), Ipv6Addr::LOCALHOST.into()] {
                let reply = pinger.ping_blocking(target, &patient().size(size).unwrap()).unwrap();
                assert_eq!((reply.bytes, reply.payload), (size + 8, Payload::Intact), "{target}");
            }
        }
    });
}

#[test]
fn what_no_ping_can_have_is_refused_in_words() {
    let told = |result: Result<PingOptions, PingError>| result.unwrap_err().to_string();
    let options = PingOptions::new();
    assert_eq!(told(options.size(65_508)), "a payload of 65508 bytes: there can be 0 to 65507");
    assert_eq!(told(options.size(usize::MAX)), format!("a payload of {} bytes: there can be 0 to 65507", usize::MAX));
    assert_eq!(told(options.ttl(0)), "a TTL of 0: it can be 1 to 255");
    assert_eq!(told(options.pattern(&[])), "a pattern of 0 bytes: there can be 1 to 16");
    assert_eq!(told(options.pattern(&[1; 17])), "a pattern of 17 bytes: there can be 1 to 16");
    assert_eq!(told(options.interface("no/such")), "there is no network interface \"no/such\"");
    in_network(|_| {
        let pinger = Pinger::new().unwrap();
        let told = |target: &str, options: PingOptions| pinger.ping_blocking(target, &options).unwrap_err().to_string();
        assert_eq!(told("127.0.0.1", options.family(Family::V6)), "127.0.0.1 is not of the wanted address family");
        assert_eq!(told("::1", options.source(OWN.into())), "the source is not of the target's address family");
        let error = pinger.ping_blocking(HOST, &options.timeout(Duration::ZERO)).unwrap_err();
        assert!(matches!(error, PingError::Timeout { .. }), "{error:?}");
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn the_unspecified_address_means_this_host() {
    on_both(|_, pinger| {
        assert_eq!(pinger.ping_blocking("0.0.0.0", &patient()).unwrap().from, IpAddr::from([127, 0, 0, 1]));
        assert_eq!(pinger.ping_blocking("::", &patient()).unwrap().from, IpAddr::from(Ipv6Addr::LOCALHOST));
    });
}

#[test]
fn an_ordinary_user_pings_where_the_range_is_open_and_hears_how_to_open_it_where_not() {
    in_network(|_| {
        sys::become_ordinary_user(65_534).unwrap();
        let pinger = Pinger::new().unwrap();
        pinger.ping_blocking(OWN, &patient()).unwrap();
        pinger.ping_blocking(Ipv6Addr::LOCALHOST, &patient()).unwrap();
    });
    in_network(|_| {
        allow("1 0");
        for backend in [Backend::Auto, Backend::Syscalls] {
            let error = Pinger::builder().backend(backend).build().unwrap_err();
            assert!(matches!(error, PingError::NotPermitted(_)), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("remedy: ") && text.contains("sysctl -w net.ipv4.ping_group_range="), "{text}");
        }
    });
}

fn resolving(answers: &'static [IpAddr]) -> impl Fn(PingerBuilder) -> PingerBuilder {
    move |builder| {
        builder.resolver(move |name| match name {
            "host.example" => Ok(answers.to_vec()),
            _ => Err(std::io::Error::other("there is no such name")),
        })
    }
}

#[test]
fn the_first_address_of_the_wanted_family_is_pinged() {
    const ADDRESSES: &[IpAddr] = &[IpAddr::V6(HOST6), IpAddr::V4(HOST), IpAddr::V4(OWN)];
    with(resolving(ADDRESSES), |wire, pinger| {
        for (family, expected) in [(Family::Any, ADDRESSES[0]), (Family::V6, ADDRESSES[0]), (Family::V4, ADDRESSES[1])]
        {
            let _ping = pinger.ping("host.example", &patient().family(family));
            assert_eq!(wire.request().destination, expected);
        }
        let error = pinger.ping_blocking("other.example", &patient()).unwrap_err();
        assert_eq!(error.to_string(), "other.example: there is no such name");
    });
    with(resolving(&ADDRESSES[1..]), |_, pinger| {
        let error = pinger.ping_blocking("host.example", &patient().family(Family::V6)).unwrap_err();
        assert_eq!(error.to_string(), "host.example: it has no IPv6 address");
    });
}

#[test]
fn the_systems_resolver_knows_localhost_and_addresses_with_their_interface() {
    in_network(|_| {
        let pinger = Pinger::new().unwrap();
        let reply = pinger.ping_blocking("localhost", &patient().family(Family::V4)).unwrap();
        assert_eq!(reply.from, IpAddr::from([127, 0, 0, 1]));
        assert!(resolve("fe80::1%lo", Family::Any).unwrap().to_string().starts_with("[fe80::1%1]"));
        assert!(matches!(resolve("", Family::Any), Err(PingError::NotResolved { .. })));
    });
}

#[test]
fn a_resolver_that_hangs_delays_no_timeout_and_nobody_elses_ping() {
    let hangs = |builder: PingerBuilder| {
        builder.resolver(|_| {
            std::thread::sleep(Duration::from_secs(3600));
            Ok(Vec::new())
        })
    };
    with(hangs, |_, pinger| {
        // More names than there are threads.
        let hanging: Vec<_> = (0..100).map(|number| pinger.ping(format!("{number}.example"), &hasty())).collect();
        pinger.ping_blocking(OWN, &patient()).unwrap();
        for ping in hanging {
            assert!(matches!(ping.wait(), Err(PingError::Timeout { .. })));
        }
        until("free", || pinger.in_flight() == 0);
    });
}

#[test]
fn the_time_that_a_name_takes_is_not_in_the_round_trip() {
    const SLOW: Duration = Duration::from_millis(700);
    let slow = |builder: PingerBuilder| {
        builder.resolver(|_| {
            std::thread::sleep(SLOW);
            Ok(vec![OWN.into()])
        })
    };
    with(slow, |_, pinger| {
        let reply = pinger.ping_blocking("host.example", &patient()).unwrap();
        // By the kernel's time stamps of a ping to oneself; nothing but those 700 ms could be this long.
        assert!(reply.rtt < SLOW, "{reply:?}");
    });
}

#[test]
fn as_many_as_may_be_under_way_are_and_no_more() {
    with(
        |builder| builder.in_flight_max(3),
        |_, pinger| {
            let under_way: Vec<_> = (0..3).map(|_| pinger.ping(HOST, &patient())).collect();
            let error = pinger.ping_blocking(HOST, &patient()).unwrap_err();
            assert!(matches!(error, PingError::TooMany { limit: 3 }), "{error:?}");
            drop(under_way);
            pinger.ping_blocking(OWN, &patient()).unwrap();
        },
    );
}

#[test]
fn shutting_down_ends_what_is_under_way_and_what_comes_later() {
    on_both(|_, pinger| {
        let under_way: Vec<_> = (0..50).map(|_| pinger.ping(HOST, &patient())).collect();
        let clone = pinger.clone();
        pinger.shut_down();
        for ping in under_way {
            assert!(matches!(ping.wait(), Err(PingError::Cancelled)));
        }
        assert!(matches!(clone.ping_blocking(OWN, &patient()), Err(PingError::Cancelled)));
        assert_eq!(pinger.in_flight(), 0);
    });
}
