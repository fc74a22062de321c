//! Leading clients' echo requests into the TUN, and only those.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use echogate::wire::build::{Datagram, echo_request};
use echogate::wire::icmpv4::Echo;
use echogate::wire::ipv4::UDP;

use crate::namespace::{CLIENT, GATEWAY, PATIENCE, REMOTE, Tun, in_namespace, ip, nft, nft_ruleset, sysctl};

/// The host's own masquerade, without `oif`; and the mark that diverts.
const RULES: &str = "
    table ip nat {
        chain post {
            type nat hook postrouting priority srcnat
            ip saddr 10.66.0.0/24 masquerade
        }
    }
    table ip divert {
        chain pre {
            type filter hook prerouting priority raw
            iifname g0 ip daddr != 10.66.0.0/24 icmp type echo-request meta mark set 0x66
        }
    }
";

/// An echo request of the client's to the remote; `ident` tells it from others.
fn ping(ident: u16) -> Vec<u8> {
    echo_request(CLIENT, REMOTE, ident, 1, 64, b"echo")
}

#[test]
fn a_tun_without_an_address_and_rp_filter_2_drops_everything_and_with_a_slash_32_nothing() {
    in_namespace(|| {
        let outside = Tun::outside();
        let _clients = Tun::with_address("g0", "10.66.0.1/24");
        let tun = Tun::open("t0");
        sysctl("net/ipv4/conf/t0/rp_filter", "2");
        tun.inject(&ping(1));
        ip("address add 10.66.0.1/32 dev t0");
        for all in ["0", "1", "2"] {
            sysctl("net/ipv4/conf/all/rp_filter", all);
            tun.inject(&ping(2));
            let forwarded = outside.next();
            assert_eq!(Echo::check(forwarded.payload()).unwrap().ident(), 2, "all.rp_filter {all}");
        }
    });
}

#[test]
fn link_down_and_up_empties_the_diverting_route_table() {
    in_namespace(|| {
        let _tun = Tun::with_address("t0", "10.66.0.1/32");
        ip("route add default dev t0 table 100");
        assert!(ip("route show table 100").contains("default"));
        ip("link set t0 down");
        ip("link set t0 up");
        assert_eq!(ip("route show table 100"), "");
    });
}

#[test]
fn a_mark_in_raw_prerouting_and_a_rule_divert_echo_requests_alone_and_notrack_spares_them_the_masquerade() {
    in_namespace(|| {
        let outside = Tun::outside();
        let clients = Tun::with_address("g0", "10.66.0.1/24");
        let tun = Tun::with_address("t0", "10.66.0.1/32");
        ip("route add default dev t0 table 100");
        ip("rule add fwmark 0x66 lookup 100");
        nft(RULES);

        clients.inject(&ping(1));
        assert_ne!(tun.next().source(), CLIENT, "tracked: the masquerade comes before the TUN");

        nft("insert rule ip divert pre iifname g0 icmp type echo-request notrack");
        clients.inject(&ping(2));
        let diverted = tun.next();
        assert_eq!((diverted.source(), diverted.destination(), diverted.ttl()), (CLIENT, REMOTE, 63));

        let query = [0x9C, 0x40, 0x00, 0x35, 0x00, 0x08, 0x00, 0x00];
        clients.inject(&Datagram::new(CLIENT, REMOTE, UDP, query.to_vec()).build());
        let untouched = outside.next();
        assert_eq!((untouched.protocol(), untouched.source()), (UDP, GATEWAY));
    });
}

#[test]
fn a_table_with_an_owner_vanishes_when_the_pipe_to_its_nft_closes() {
    in_namespace(|| {
        let mut owner = Command::new("nft")
            .arg("-i")
            .env("HOME", "/dev/null") // or it writes a history file
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("nft; remedy: apt-get install nftables, and /usr/sbin in PATH");
        let mut pipe = owner.stdin.take().unwrap();
        writeln!(pipe, "add table ip owned {{ flags owner; }}").unwrap();
        wait_until("the table is there", || nft_ruleset().contains("table ip owned"));
        // What the end of this process does, however it comes: close its end of the pipe.
        drop(pipe);
        wait_until("the table is gone", || nft_ruleset().is_empty());
        owner.wait().unwrap();
    });
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
