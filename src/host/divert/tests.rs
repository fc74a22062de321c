mod ingress;

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::*;
use crate::host::netlink::MAIN_TABLE;
use crate::host::nft;
use crate::host::scene::{
    CLIENT, ECHO_REPLY, ECHO_REQUEST, INSIDE, OUTSIDE, REMOTE, Scene, Tun, hear, message, packet, settings,
    within_a_second, write,
};
use crate::policy::Prefix;

/// Everything that a diversion may leave behind, as text.
fn state() -> String {
    let mut netlink = Netlink::open().expect("netlink");
    let rules = netlink.rules().expect("lists");
    let routes = netlink.routes(DEFAULT_TABLE).expect("lists");
    format!("{rules:?}\n{routes:?}\n{}", nft::run(&["list", "ruleset"], "").expect("nft"))
}

const EITHER: [DivertBy; 2] = [DivertBy::Route, DivertBy::Ingress];

/// An installation that nobody watches yet, whose table no child owns.
fn with_plain_table(settings: &DivertSettings) -> Installed {
    let mut installed = Installed::open(settings, Box::new(|_| {})).expect("opens");
    let links = installed.links().expect("asks");
    installed.table = Some(Table::install_plain(settings, &links).expect("installs"));
    installed
}

fn addresses(packet: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    let at = |start: usize| {
        let octets: [u8; 4] = packet[start..start + 4].try_into().expect("four bytes");
        Ipv4Addr::from(octets)
    };
    (at(12), at(16))
}

/// One ping of the client arrives in the TUN.
fn assert_diverted(scene: &Scene, tun: &Tun) {
    let ping = message(ECHO_REQUEST, 7, 1, 56);
    scene.client_sends(&ping, REMOTE);
    let heard = tun.hear();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(addresses(&heard[0]), (CLIENT, REMOTE));
    assert_eq!(heard[0][20..], ping);
    assert_eq!(heard[0][8], 63, "the kernel forwards into the TUN, so it has counted one hop");
}

/// A reply written to the TUN arrives at the client.
fn assert_replies_arrive(scene: &Scene, tun: &Tun) {
    let ear = scene.client_ear();
    let reply = packet(REMOTE, CLIENT, &message(ECHO_REPLY, 7, 1, 56));
    tun.send(&reply);
    let heard = hear(|buffer| (&ear).read(buffer));
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(addresses(&heard[0]), (REMOTE, CLIENT));
    assert_eq!(heard[0][20..], reply[20..]);
}

#[test]
fn echo_requests_of_clients_to_outside_are_diverted_and_nothing_else() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let mut settings = DivertSettings { by, ..settings() };
            settings.device.mtu = 1280;
            let tun = Tun::open(&settings.device);
            let divert = Divert::install(&settings).expect("installs");
            assert_diverted(&scene, &tun);
            assert_replies_arrive(&scene, &tun);

            let ping = message(ECHO_REQUEST, 7, 1, 56);
            let ear = scene.client_ear();
            // The host's own addresses, inside and outside, are answered by the host, whose firewall sees them tracked.
            let input = "table ip fw { chain input { type filter hook input priority 0; ct state untracked drop; }; }";
            nft::run(&["-f", "-"], input).expect("rules");
            for own in [INSIDE, OUTSIDE] {
                scene.client_sends(&ping, own);
                let answers = hear(|buffer| (&ear).read(buffer));
                assert_eq!(answers.len(), 1, "no answer from {own}");
            }
            scene.client_sends(&ping, Ipv4Addr::new(10, 66, 0, 77));
            scene.client_sends(&message(ECHO_REPLY, 7, 1, 56), REMOTE);
            scene.client_sends(&message(13, 7, 1, 12), REMOTE);
            let mut coded = message(ECHO_REQUEST, 7, 1, 56);
            coded[1] = 1;
            scene.client_sends(&coded, REMOTE);
            // Whole and not to be fragmented, but too long for the TUN: diverted, it would bring the client "fragmentation needed".
            scene.client_sends(&message(ECHO_REQUEST, 7, 1, 1300), REMOTE);
            let errors = hear(|buffer| (&ear).read(buffer));
            assert!(errors.iter().all(|error| error[20..22] != [3, 4]), "{errors:?}");
            crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&scene.client), || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
                socket.send_to(b"x", (REMOTE, 53)).expect("sends");
            })
            .expect("entered before");
            assert_eq!(tun.hear(), Vec::<Vec<u8>>::new());
            divert.remove().expect("removes");
        });
    }
}

/// By way of the gateway, as in most VPNs: clients that have a link of their own with each other never come there.
#[test]
fn a_ping_of_one_client_to_another_is_not_diverted() {
    let other = Ipv4Addr::new(10, 66, 0, 77);
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let counts = "table ip seen { chain before { type filter hook prerouting priority -500; ip daddr 10.66.0.77 counter; }; }";
            nft::run(&["-f", "-"], counts).expect("rules");
            let settings = DivertSettings { by, ..settings() };
            let tun = Tun::open(&settings.device);
            let divert = Divert::install(&settings).expect("installs");
            assert_diverted(&scene, &tun);
            crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&scene.client), || {
                let by_way_of_gateway = Route {
                    destination: Prefix::host(other),
                    gateway: Some(INSIDE),
                    device: None,
                    table: MAIN_TABLE,
                    source: None,
                };
                Netlink::open().expect("netlink").replace_route(&by_way_of_gateway).expect("a route");
            })
            .expect("entered before");
            scene.client_sends(&message(ECHO_REQUEST, 7, 1, 56), other);
            assert_eq!(tun.hear(), Vec::<Vec<u8>>::new());
            let listed = nft::run(&["list", "table", "ip", "seen"], "").expect("lists");
            assert!(listed.contains("counter packets 1 "), "it came by the gateway, and was left there: {listed}");
            divert.remove().expect("removes");
        });
    }
}

/// Each part by itself, although the gateway's host, tracking, would put them together; of whatever type, for only the
/// first one has one.
#[test]
fn fragments_of_icmp_are_diverted_one_by_one_and_those_of_other_protocols_are_not() {
    // Three from the client; two of them are cut once more on their way into a smaller TUN, if by route.
    for (by, mtu, parts) in [(DivertBy::Route, 1280, 5), (DivertBy::Ingress, 1500, 3)] {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let tracking =
                "table ip fw { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }";
            nft::run(&["-f", "-"], tracking).expect("rules");
            let mut settings = DivertSettings { by, ..settings() };
            settings.device.mtu = mtu;
            let tun = Tun::open(&settings.device);
            let divert = Divert::install(&settings).expect("installs");
            for kind in [ECHO_REQUEST, ECHO_REPLY] {
                let ping = message(kind, 7, 1, 4000);
                scene.client_sends(&ping, REMOTE);
                let heard = tun.hear();
                assert_eq!(heard.len(), parts, "{heard:?}");
                let mut whole = vec![0; ping.len()];
                for fragment in &heard {
                    assert_eq!(addresses(fragment), (CLIENT, REMOTE));
                    let at = usize::from(u16::from_be_bytes([fragment[6] & 0x1f, fragment[7]])) * 8;
                    whole[at..at + fragment.len() - 20].copy_from_slice(&fragment[20..]);
                }
                assert_eq!(whole, ping);
            }
            crate::sys::namespace::run_in(std::os::fd::AsFd::as_fd(&scene.client), || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("binds");
                socket.send_to(&[7; 4000], (REMOTE, 9)).expect("sends");
            })
            .expect("entered before");
            assert_eq!(tun.hear(), Vec::<Vec<u8>>::new());
            divert.remove().expect("removes");
        });
    }
}

/// Of a long reply of the client's, which is not ours, the gateway puts all parts back; they must share one fate.
#[test]
fn fragments_of_a_clients_reply_that_are_put_back_are_tracked_all_or_none() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let tracking =
                "table ip fw { chain forward { type filter hook forward priority 0; ct state invalid counter; }; }";
            nft::run(&["-f", "-"], tracking).expect("rules");
            let settings = DivertSettings { by, ..settings() };
            let tun = Tun::open(&settings.device);
            let divert = Divert::install(&settings).expect("installs");
            let ear = scene.remote_ear();
            let reply = message(ECHO_REPLY, 7, 1, 4000);
            scene.client_sends(&reply, REMOTE);
            let parts = tun.hear();
            assert_eq!(parts.len(), 3, "{parts:?}");
            parts.iter().for_each(|part| tun.send(part));
            let heard = hear(|buffer| (&ear).read(buffer));
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert_eq!(heard[0][20..], reply);
            divert.remove().expect("removes");
        });
    }
}

#[test]
fn neither_masquerading_nor_state_nor_reverse_path_filtering_is_in_the_way() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
        // A masquerade rule without an outgoing interface, and what most stateful firewalls begin with.
        let rules = "table ip nat { chain post { type nat hook postrouting priority srcnat; ip saddr 10.66.0.0/24 masquerade; }; }; \
            table ip fw { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }";
        nft::run(&["-f", "-"], rules).expect("rules");
        let settings = DivertSettings { by, ..settings() };
        let tun = Tun::open(&settings.device);
        let divert = Divert::install(&settings).expect("installs");
        for (filter, by_mark) in [("0", "0"), ("1", "0"), ("2", "0"), ("1", "1"), ("2", "1")] {
            write("/proc/sys/net/ipv4/conf/all/rp_filter", filter);
            write("/proc/sys/net/ipv4/conf/all/src_valid_mark", by_mark);
            assert_diverted(&scene, &tun);
            assert_replies_arrive(&scene, &tun);
        }
        divert.remove().expect("removes");
    });
    }
}

#[test]
fn other_bits_of_a_mark_are_kept() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = settings();
        let tun = Tun::open(&settings.device);
        let others = "table ip others { \
            chain before { type filter hook prerouting priority -451; meta mark set 0xa5500001; }; \
            chain after { type filter hook prerouting priority -449; meta mark 0xaec00001 counter; }; }";
        nft::run(&["-f", "-"], others).expect("another program's marks");
        let _divert = Divert::install(&settings).expect("installs");
        assert_diverted(&scene, &tun);
        let listed = nft::run(&["list", "table", "ip", "others"], "").expect("lists");
        assert!(listed.contains("counter packets 1 "), "{listed}");
    });
}

#[test]
fn the_end_leaves_everything_as_it_was() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let settings = DivertSettings { by, ..settings() };
            let _tun = Tun::open(&settings.device);
            let before = state();
            let divert = Divert::install(&settings).expect("installs");
            assert_ne!(state(), before);
            divert.remove().expect("removes");
            assert_eq!(state(), before);
            drop(Divert::install(&settings).expect("installs again"));
            assert_eq!(state(), before);
        });
    }
}

#[test]
fn what_others_take_away_is_back_within_a_second() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = settings();
        let tun = Tun::open(&settings.device);
        let divert = Divert::install(&settings).expect("installs");
        let mut netlink = Netlink::open().expect("netlink");
        let index = netlink.link_index(DEFAULT_DEVICE).expect("asks").expect("is there");
        let in_force = |netlink: &mut Netlink| {
            let routes = netlink.routes(settings.table).expect("lists");
            netlink.rules().expect("lists").contains(&settings.rule())
                && routes.iter().any(|route| route.destination == Prefix::ALL && route.device == Some(index))
                && settings.throw_routes().iter().all(|route| routes.contains(route))
        };

        netlink.set_up(index, false).expect("down");
        within_a_second("the kernel drops the route", || !in_force(&mut netlink));
        netlink.set_up(index, true).expect("up");
        within_a_second("routes after link down and up", || in_force(&mut netlink));
        assert_diverted(&scene, &tun);

        for route in netlink.routes(settings.table).expect("lists") {
            netlink.delete_route(&route).expect("removed");
        }
        netlink.delete_rule(&settings.rule()).expect("removed");
        within_a_second("routes and rule after a flush", || in_force(&mut netlink));

        write("/proc/sys/net/ipv4/conf/echogate0/rp_filter", "1");
        within_a_second("rp_filter", || {
            let text = std::fs::read_to_string("/proc/sys/net/ipv4/conf/echogate0/rp_filter").expect("reads");
            text.trim() == "2"
        });

        let flushed = Command::new("ip").args(["address", "flush", "dev", DEFAULT_DEVICE]).status();
        assert!(flushed.expect("iproute2 is installed: apt-get install iproute2").success());
        within_a_second("the address", || {
            netlink.addresses().expect("lists").iter().any(|(device, ..)| *device == index)
        });
        assert_diverted(&scene, &tun);
        assert_replies_arrive(&scene, &tun);
        divert.remove().expect("removes");
    });
}

/// The process ids of this process's children that run nft.
fn nft_children() -> Vec<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // "pid (name) state parent ..."
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        stat.contains("(nft)") && rest.nth(1) == Some(&own.to_string())
    })
    .collect()
}

#[test]
fn a_killed_nft_takes_the_table_with_it_and_is_replaced() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let settings = DivertSettings { by, ..settings() };
            let tun = Tun::open(&settings.device);
            let mut installed = Installed::open(&settings, Box::new(|_| {})).expect("opens");
            installed.mend().expect("installs");
            let first = installed.table.as_ref().map(|table| table.child_id()).expect("a table");
            let id = first.expect("owned by a child");
            assert!(nft_children().contains(&id));
            // "pid (nft) state parent group ...": a terminal's Ctrl-C is for its foreground group.
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("runs");
            assert_eq!(stat.split_whitespace().nth(4), Some(id.to_string().as_str()), "{stat}");
            let subscribed = Watcher::subscribe().expect("subscribes");
            let divert = Divert { watcher: Some(subscribed.start(installed).expect("starts")) };
            let killed = Command::new("kill").args(["-9", &id.to_string()]).status().expect("kill is installed");
            assert!(killed.success());
            within_a_second("a table of another child", || {
                let listed = nft::run(&["list", "table", "ip", "echogate"], "").unwrap_or_default();
                listed.contains("notrack") && !nft_children().contains(&id)
            });
            assert_diverted(&scene, &tun);
            divert.remove().expect("removes");
        });
    }
}

#[test]
fn a_plain_table_does_the_same_and_is_watched_too() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let settings = DivertSettings { by, ..settings() };
            let tun = Tun::open(&settings.device);
            let before = state();
            let mut installed = with_plain_table(&settings);
            assert!(!installed.mend().expect("mends").contains(&"nftables table"));
            assert_diverted(&scene, &tun);
            installed.undo().expect("removes");
            assert_eq!(state(), before);

            let installed = with_plain_table(&settings);
            let subscribed = Watcher::subscribe().expect("subscribes");
            let divert = Divert { watcher: Some(subscribed.start(installed).expect("starts")) };
            nft::run(&["flush", "ruleset"], "").expect("another program's flush");
            within_a_second("the table after a flush", || {
                nft::run(&["list", "table", "ip", "echogate"], "").is_ok_and(|listed| listed.contains("notrack"))
            });
            divert.remove().expect("removes");
            assert_eq!(state(), before);
        });
    }
}

#[test]
fn what_a_predecessor_left_is_taken_over() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = settings();
        let tun = Tun::open(&settings.device);
        let before = state();
        // A predecessor with other clients, another priority and a plain table, killed.
        let mut other = settings.clone();
        other.clients.push("10.99.0.0/16".parse().expect("a prefix"));
        other.priority = 3000;
        let mut killed = with_plain_table(&other);
        killed.mend().expect("installs");
        std::mem::forget(killed);
        let divert = Divert::install(&settings).expect("installs over it");
        let mut netlink = Netlink::open().expect("netlink");
        assert_eq!(netlink.routes(settings.table).expect("lists").len(), 2);
        assert_diverted(&scene, &tun);
        divert.remove().expect("removes");
        assert_eq!(state(), before);
    });
}

#[test]
fn two_gateways_need_numbers_of_their_own() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let first = settings();
        let _tun = Tun::open(&first.device);
        let _divert = Divert::install(&first).expect("installs");
        let mut second = settings();
        second.device.name = "eg1".to_owned();
        second.interfaces = vec!["g1".to_owned()];
        let _other = Tun::open(&second.device);
        let error = Divert::install(&second).expect_err("the routing table is taken");
        assert!(error.to_string().contains("routing table 3776 is in use"), "{error}");
        (second.mark, second.table, second.priority) = (0x0ed0_0000, 3777, 3777);
        let both = Divert::install(&second).expect("installs beside it");
        let listed = nft::run(&["list", "tables"], "").expect("lists");
        assert!(listed.contains("echogate-eg1") && listed.contains("echogate\n"), "{listed}");
        both.remove().expect("removes");
        assert!(nft::run(&["list", "table", "ip", "echogate"], "").is_ok(), "the first is untouched");
    });
}

#[test]
fn who_is_refused_takes_nothing_away_from_the_other() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let first = settings();
        let _tun = Tun::open(&first.device);
        // Without a watcher, which would put back what was taken.
        let mut installed = Installed::open(&first, Box::new(|_| {})).expect("opens");
        installed.mend().expect("installs");
        let during = state();
        let mut second = settings();
        second.device.name = "eg1".to_owned();
        let _other = Tun::open(&second.device);
        Divert::install(&second).expect_err("the routing table is taken");
        assert_eq!(state(), during);
    });
}

#[test]
fn a_set_up_that_gets_no_further_is_undone() {
    for by in EITHER {
        let scene = Scene::new();
        scene.at_gateway(|| {
            let settings = DivertSettings { by, ..settings() };
            let _tun = Tun::open(&settings.device);
            let before = state();
            let mut installed = with_plain_table(&settings);
            installed.mend().expect("installs");
            assert_ne!(state(), before);
            drop(installed);
            assert_eq!(state(), before);
        });
    }
}

#[test]
fn a_table_that_another_gateway_owns_is_refused_and_nothing_is_left() {
    let scene = Scene::new();
    scene.at_gateway(|| {
        let settings = settings();
        let _tun = Tun::open(&settings.device);
        let before = state();
        let owned = Table::install(&settings, &Links::default()).expect("installs");
        let error = Divert::install(&settings).expect_err("the table is owned");
        assert!(error.to_string().contains("another gateway owns this table"), "{error}");
        owned.remove().expect("removes");
        assert_eq!(state(), before);
    });
}

const ROLE: &str = "ECHOGATE_TEST_DIVERTS_UNTIL_KILLED";

#[test]
fn after_sigkill_nothing_marks() {
    if let Some(by) = env::var_os(ROLE) {
        let by = if by == "ingress" { DivertBy::Ingress } else { DivertBy::Route };
        let settings = DivertSettings { by, ..settings() };
        let _tun = Tun::open(&settings.device);
        let _divert = Divert::install(&settings).expect("installs");
        println!("in force");
        thread::sleep(Duration::from_secs(60));
        return;
    }
    for by in ["route", "ingress"] {
        let scene = Scene::new();
        scene.at_gateway(|| {
        let name = "host::divert::tests::after_sigkill_nothing_marks";
        let mut process = Command::new(env::current_exe().expect("known"))
            .args(["--exact", name, "--nocapture"])
            .env(ROLE, by)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts again");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let in_force = output.lines().map_while(Result::ok).any(|line| line.contains("in force"));
        let listed = nft::run(&["list", "ruleset"], "").expect("nft");
        process.kill().expect("SIGKILL");
        process.wait().expect("waits");
        assert!(in_force && listed.contains("echogate"), "{listed}");
        within_a_second("the table vanishes", || {
            nft::run(&["list", "ruleset"], "").is_ok_and(|listed| !listed.contains("echogate"))
        });
        // The kernel's own path is whole again: the remote knows no way back, so NAT has to work.
        let nat =
            "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname \"w0\" masquerade; }; }";
        nft::run(&["-f", "-"], nat).expect("a masquerade rule");
        let ear = scene.client_ear();
        scene.client_sends(&message(ECHO_REQUEST, 7, 1, 56), REMOTE);
        let heard = hear(|buffer| (&ear).read(buffer));
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(addresses(&heard[0]), (REMOTE, CLIENT));
    });
    }
}

#[test]
fn prefixes_inside_others_are_left_out() {
    let mut settings = settings();
    let prefixes = ["10.66.0.0/24", "10.0.0.0/8", "10.66.0.7", "192.168.1.0/24", "10.0.0.0/8"];
    settings.clients = prefixes.iter().map(|text| text.parse().expect("a prefix")).collect();
    let kept: Vec<String> = settings.disjoint_clients().iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["10.0.0.0/8", "192.168.1.0/24"]);
}

#[test]
fn absurd_settings_are_refused_before_anything_is_changed() {
    type Spoil = fn(&mut DivertSettings);
    let cases: [(&str, Spoil); 8] = [
        ("every address", |settings| settings.clients = vec![Prefix::ALL]),
        ("no interface", |settings| settings.interfaces.clear()),
        ("own device", |settings| settings.interfaces.push(DEFAULT_DEVICE.to_owned())),
        ("not the name", |settings| settings.interfaces.push("wg*".to_owned())),
        ("not the name", |settings| settings.interfaces.push("a\" accept".to_owned())),
        ("table's name", |settings| settings.device.name = "eg;flush".to_owned()),
        ("outside its mask", |settings| settings.mark = 1),
        ("kernel's own", |settings| settings.table = 254),
    ];
    for (words, spoil) in cases {
        let mut settings = settings();
        spoil(&mut settings);
        let error = Divert::install(&settings).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}
