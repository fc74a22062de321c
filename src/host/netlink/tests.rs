use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::*;
use crate::policy::Prefix;
use crate::sys::namespace::{new_network, run_in};

const ROOT: &str = "making a network namespace takes CAP_SYS_ADMIN: run the tests as root";

fn namespace() -> OwnedFd {
    new_network().expect(ROOT)
}

fn within<T: Send>(namespace: &OwnedFd, work: impl FnOnce(&mut Netlink) -> T + Send) -> T {
    run_in(namespace.as_fd(), || work(&mut Netlink::open().expect("netlink opens"))).expect(ROOT)
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// A veth called `a` with 192.0.2.1/24, up, its peer in a namespace of its own. Returns a's index.
fn veth(netlink: &mut Netlink, far: &OwnedFd) -> u32 {
    netlink.add_veth("a", "b", far.as_fd()).expect("veth");
    let index = netlink.link_index("a").expect("asks").expect("is there");
    netlink.add_address(index, Ipv4Addr::new(192, 0, 2, 1), 24).expect("address");
    netlink.set_up(index, true).expect("up");
    index
}

#[test]
fn a_link_lives_from_making_to_removal() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        assert_eq!(netlink.link_index("a").expect("asks"), None);
        assert_eq!(netlink.link_index("a-name-too-long-for-a-device").expect("asks"), None);
        netlink.add_veth("a", "b", far.as_fd()).expect("veth");
        let again = netlink.add_veth("a", "c", far.as_fd()).expect_err("the name is taken");
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        let index = netlink.link_index("a").expect("asks").expect("is there");
        assert_eq!(netlink.link_is_up("a").expect("asks"), Some(false));
        netlink.set_up(index, true).expect("up");
        assert_eq!(netlink.link_is_up("a").expect("asks"), Some(true));
        netlink.set_mtu(index, 1400).expect("mtu");
        netlink.set_queue_length(index, 4321).expect("queue length");
        let listing = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc");
        assert!(listing.contains(" a:"), "{listing}");
        netlink.set_up(index, false).expect("down");
        netlink.delete_link(index).expect("removed");
        assert_eq!(netlink.link_index("a").expect("asks"), None);
        let gone = netlink.delete_link(index).expect_err("it is gone");
        assert_eq!(gone.raw_os_error(), Some(libc::ENODEV));
    });
    assert_eq!(within(&far, |netlink| netlink.link_index("b").expect("asks")), None);
}

#[test]
fn the_peer_appears_in_the_other_namespace() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| netlink.add_veth("a", "b", far.as_fd()).expect("veth"));
    assert!(within(&far, |netlink| netlink.link_index("b").expect("asks")).is_some());
    assert!(within(&near, |netlink| netlink.link_index("b").expect("asks")).is_none());
}

#[test]
fn addresses_are_listed_and_adding_one_again_is_no_error() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        let index = veth(netlink, &far);
        netlink.add_address(index, Ipv4Addr::new(192, 0, 2, 1), 24).expect("already there");
        netlink.add_link_address(index, Ipv4Addr::new(192, 0, 0, 8)).expect("scope link");
        let mut addresses = netlink.addresses().expect("lists");
        addresses.sort_unstable();
        let expected = vec![(index, Ipv4Addr::new(192, 0, 0, 8), 32), (index, Ipv4Addr::new(192, 0, 2, 1), 24)];
        assert_eq!(addresses, expected);
    });
}

#[test]
fn an_address_of_scope_link_is_no_source_elsewhere() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        netlink.add_veth("t", "u", far.as_fd()).expect("veth");
        let tun = netlink.link_index("t").expect("asks").expect("is there");
        netlink.add_link_address(tun, Ipv4Addr::new(192, 0, 0, 8)).expect("scope link");
        netlink.set_up(tun, true).expect("up");
        let index = veth(netlink, &far);
        let unnumbered = Route {
            destination: prefix("198.51.100.0/24"),
            gateway: None,
            device: Some(index),
            table: MAIN_TABLE,
            source: None,
        };
        netlink.replace_route(&unnumbered).expect("route");
        let lookup = netlink.route_to(Ipv4Addr::new(198, 51, 100, 7), None).expect("asks").expect("routed");
        assert_eq!(lookup.source, Some(Ipv4Addr::new(192, 0, 2, 1)));
    });
}

#[test]
fn routes_are_replaced_listed_by_table_and_removed() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        assert_eq!(netlink.routes(3776).expect("a table that does not exist is empty"), Vec::new());
        let index = veth(netlink, &far);
        let default = Route {
            destination: prefix("0.0.0.0/0"),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 2)),
            device: Some(index),
            table: 3776,
            source: Some(Ipv4Addr::new(192, 0, 2, 1)),
        };
        let thrown =
            Route { destination: prefix("10.66.0.0/24"), gateway: None, device: None, table: 3776, source: None };
        for route in [&default, &thrown, &default] {
            netlink.replace_route(route).expect("route");
        }
        assert_eq!(netlink.routes(3776).expect("lists"), [default.clone(), thrown.clone()]);
        assert!(netlink.routes(MAIN_TABLE).expect("lists").iter().all(|route| route.table == MAIN_TABLE));
        netlink.delete_route(&default).expect("removed");
        netlink.delete_route(&default).expect("not there: no error");
        assert_eq!(netlink.routes(3776).expect("lists"), std::slice::from_ref(&thrown));
        netlink.delete_route(&thrown).expect("removed");
        assert_eq!(netlink.routes(3776).expect("lists"), Vec::new());
    });
}

#[test]
fn a_list_of_many_datagrams_is_complete() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        let index = veth(netlink, &far);
        let wanted: Vec<Route> = (0..3000_u32)
            .map(|number| Route {
                destination: Prefix::host(Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number)),
                gateway: None,
                device: Some(index),
                table: 3776,
                source: None,
            })
            .collect();
        for route in &wanted {
            netlink.replace_route(route).expect("route");
        }
        let mut listed = netlink.routes(3776).expect("lists");
        listed.sort_by_key(|route| route.destination);
        assert!(listed == wanted, "{} of {} routes listed", listed.len(), wanted.len());
    });
}

#[test]
fn a_lookup_tells_device_source_and_locality() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        assert_eq!(netlink.route_to(Ipv4Addr::new(203, 0, 113, 1), None).expect("asks"), None);
        let index = veth(netlink, &far);
        let loopback = netlink.link_index("lo").expect("asks").expect("is there");
        netlink.set_up(loopback, true).expect("up");
        netlink.add_local_route(prefix("198.51.100.0/24")).expect("AnyIP");
        let remote = netlink.route_to(Ipv4Addr::new(192, 0, 2, 9), None).expect("asks").expect("routed");
        let expected = Lookup { device: Some(index), source: Some(Ipv4Addr::new(192, 0, 2, 1)), local: false };
        assert_eq!(remote, expected);
        let own = netlink.route_to(Ipv4Addr::new(198, 51, 100, 77), None).expect("asks").expect("routed");
        assert!(own.local, "{own:?}");
    });
}

#[test]
fn rules_are_added_once_listed_and_removed() {
    let near = namespace();
    within(&near, |netlink| {
        let before = netlink.rules().expect("lists");
        let marked = Rule {
            priority: 3776,
            mark: Some((0x0ec0_0000, 0x0ff0_0000)),
            incoming: None,
            protocol: None,
            table: 3776,
        };
        let narrow =
            Rule { priority: 100, mark: None, incoming: Some("g0".to_owned()), protocol: Some(1), table: MAIN_TABLE };
        for rule in [&marked, &narrow, &marked] {
            netlink.add_rule(rule).expect("rule");
        }
        let mut expected = before.clone();
        expected.extend([narrow.clone(), marked.clone()]);
        expected.sort_by_key(|rule| rule.priority);
        assert_eq!(netlink.rules().expect("lists"), expected);
        for rule in [&marked, &narrow, &marked] {
            netlink.delete_rule(rule).expect("removed, or not there");
        }
        assert_eq!(netlink.rules().expect("lists"), before);
    });
}

#[test]
fn the_kernels_refusal_arrives_as_its_errno() {
    within(&namespace(), |netlink| {
        let to_nowhere = Route {
            destination: prefix("198.51.100.0/24"),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 2)),
            device: None,
            table: MAIN_TABLE,
            source: None,
        };
        let error = netlink.replace_route(&to_nowhere).expect_err("the next hop is not reachable");
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    });
}

#[test]
fn a_change_is_news_and_silence_is_not() {
    let (near, far) = (namespace(), namespace());
    within(&near, |netlink| {
        let mut events = Events::open(&[Group::Link, Group::Ipv4Route, Group::Ipv4Rule]).expect("subscribes");
        assert!(!events.drain().expect("nothing yet"));
        veth(netlink, &far);
        // The kernel queues link news from a worker of its own.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !events.drain().expect("drains") {
            assert!(Instant::now() < deadline, "no news of a new device within 2 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mixed = Events::open(&[Group::Link, Group::Nftables]).expect_err("two families in one socket");
        assert_eq!(mixed.raw_os_error(), Some(libc::EINVAL));
    });
}
