//! Several outside addresses: who leaves from which, what happens when one has no ident left, is lost, or becomes another.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;

use echogate::wire::build;
use echogate::wire::icmpv4::EchoKind;
use tempfile::NamedTempFile;

use crate::ear::{Ear, Injector};
use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, run, wait_until};
use crate::serves::limits_off;

in_every_setup!(
    where_one_address_has_no_ident_left_its_clients_keep_theirs_and_new_ones_go_on_to_the_next,
    what_is_on_a_lost_address_goes_on_from_another,
    the_default_address_is_followed,
    the_default_address_is_not_followed_to_one_among_the_clients,
    a_clients_own_ident_leaves_where_it_is_free_and_none_that_is_the_hosts,
);

/// One by a device, two by local routes (AnyIP), and none next to another.
const POOL: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(203, 0, 113, 9)];

/// Idents of an address, where the others are reserved.
const IDENTS: usize = 1024;

/// A client's host with 192 clients in it, beside its own.
fn crowd(number: u8) -> Ipv4Addr {
    assert!(number < 192, "client {number}");
    Ipv4Addr::new(10, 66, 0, 64 + number)
}

struct Pool {
    scene: Scene,
    injector: Injector,
    remote: Ear,
}

impl Pool {
    fn new() -> Pool {
        let scene = Scene::new(1);
        for prefix in ["10.66.0.64/26", "10.66.0.128/25"] {
            run(scene.gateway(), &format!("ip route add {prefix} dev g0"));
            run(scene.client(0), &format!("ip route add local {prefix} dev lo"));
        }
        for address in &POOL[1..] {
            run(scene.gateway(), &format!("ip route add local {address} dev lo"));
            run(scene.internet(), &format!("ip route add {address} via {}", POOL[0]));
        }
        let (injector, remote) = (Injector::at(scene.client(0)), Ear::at(scene.internet(), scene.remote(0)));
        Pool { scene, injector, remote }
    }

    fn serve(&self, setup: &Setup, file: &str) -> Echogate {
        let mut config = NamedTempFile::new().expect("a temporary file");
        config.write_all(file.as_bytes()).expect("it is written");
        let mut arguments = [self.scene.arguments(setup), limits_off()].concat();
        for address in &POOL[1..] {
            arguments.extend(["--outside".to_owned(), address.to_string()]);
        }
        arguments.extend(["--config".to_owned(), config.path().display().to_string()]);
        Echogate::serve(self.scene.gateway(), &arguments)
    }

    fn ask(&self, client: Ipv4Addr, ident: u16) {
        let request = build::echo_request(client, self.scene.remote(0), ident, 1, 64, &client.octets());
        self.injector.send(&request, self.scene.remote(0));
    }

    /// From which address each of the next requests comes, by the client that its payload names.
    fn heard(&self, count: usize) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        let heard = (0..count).map(|_| {
            let request = self.remote.next();
            (Ipv4Addr::from(<[u8; 4]>::try_from(&request.payload[..]).expect("an address")), request.source)
        });
        heard.collect()
    }

    /// As `heard`, for one request of each of these clients.
    fn addresses_of(&self, clients: impl IntoIterator<Item = u8>, ident: u16) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        let clients: Vec<Ipv4Addr> = clients.into_iter().map(crowd).collect();
        clients.iter().for_each(|client| self.ask(*client, ident));
        let heard = self.heard(clients.len());
        assert_eq!(heard.len(), clients.len(), "each is heard once");
        heard
    }
}

/// RFC 6888 REQ-2, REQ-3, REQ-11.
fn where_one_address_has_no_ident_left_its_clients_keep_theirs_and_new_ones_go_on_to_the_next(setup: &Setup) {
    let pool = Pool::new();
    let gateway = pool.serve(setup, "[mapping]\nreserved_idents = [\"1024-65535\"]\n");
    let first = pool.addresses_of(0..64, 1);
    let on = |address| first.values().filter(|from| **from == address).count();
    assert!(POOL.iter().all(|address| on(*address) > 0), "{first:?}");

    // One client takes all that are left on its address, in portions that are made at once.
    let (greedy, full) = (crowd(0), first[&crowd(0)]);
    let mut left = IDENTS - on(full);
    let mut ident = 1;
    while left > 0 {
        let portion = left.min(30);
        for _ in 0..portion {
            ident += 1;
            pool.ask(greedy, ident);
        }
        let heard = pool.heard(portion);
        assert_eq!(heard, [(greedy, full)].into(), "RFC 6888 REQ-2: a client's mappings are on one address");
        left -= portion;
    }
    pool.ask(greedy, ident + 1);

    // RFC 6888 REQ-11: nobody's mapping was evicted.
    assert_eq!(pool.addresses_of(0..64, 1), first);
    let new = pool.addresses_of(64..128, 1);
    assert!(new.values().all(|address| *address != full), "{full}: {new:?}");
    assert_eq!(pool.addresses_of(64..128, 2), new, "and they stay where they went");

    let ended = gateway.stop();
    assert_eq!((ended.total("no_ident"), ended.total("requests refused")), (1, 1), "{}", ended.printed);
    assert_eq!(ended.total("replies delivered"), ended.total("to outside"), "{}", ended.printed);
}

fn what_is_on_a_lost_address_goes_on_from_another(setup: &Setup) {
    let pool = Pool::new();
    let gateway = pool.serve(setup, "");
    let first = pool.addresses_of(0..32, 1);
    let lost = POOL[2];
    let (theirs, others): (Vec<u8>, Vec<u8>) = (0..32).partition(|number| first[&crowd(*number)] == lost);
    assert!(!theirs.is_empty() && !others.is_empty(), "{first:?}");

    run(pool.scene.gateway(), &format!("ip route del local {lost} dev lo"));
    // Until it is noticed it leaves as before, and the answer finds nobody; then it is refused, and then it leaves from elsewhere.
    wait_until("a client of a lost address is served from another", || {
        pool.ask(crowd(theirs[0]), 1);
        pool.ask(crowd(others[0]), 1);
        let heard = pool.remote.next_request();
        heard.payload == crowd(theirs[0]).octets() && heard.source != lost
    });
    // The other request of the last round may still be under way.
    let ended = gateway.stop();
    assert!(ended.complaints.contains("the host has this outside address no more"), "{}", ended.complaints);
}

fn the_default_address_is_followed(setup: &Setup) {
    let scene = Scene::new(1);
    let arguments = scene.arguments(setup).join(" ").replace("--outside 198.18.0.1 ", "");
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    scene.assert_pings("from the first address");
    run(scene.gateway(), "ip address add 198.18.0.99/24 dev wan");
    run(scene.gateway(), &format!("ip route replace default via {} src 198.18.0.99", scene.remote(0)));
    run(scene.gateway(), "ip address del 198.18.0.1/24 dev wan");
    // The address that went was the first of its network and took the others along; so do the routes by it.
    run(scene.gateway(), "ip address replace 198.18.0.99/24 dev wan");
    run(scene.gateway(), &format!("ip route replace default via {} src 198.18.0.99", scene.remote(0)));
    scene.await_ping("from the second address");
    let remote = Ear::at(scene.internet(), scene.remote(0));
    scene.assert_pings("from the second address");
    for _ in 0..3 {
        assert_eq!(remote.next().source, Ipv4Addr::new(198, 18, 0, 99));
    }
    let ended = gateway.stop();
    assert!(ended.complaints.contains("another source"), "{}", ended.complaints);
}

/// The default route leads into a tunnel of the clients', say. A ping from there would be taken for a client's.
fn the_default_address_is_not_followed_to_one_among_the_clients(setup: &Setup) {
    let scene = Scene::new(1);
    let arguments = scene.arguments(setup).join(" ").replace("--outside 198.18.0.1 ", "");
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let remote = Ear::at(scene.internet(), scene.remote(0));
    run(scene.gateway(), "ip address add 10.66.0.250/32 dev lo");
    run(scene.gateway(), &format!("ip route replace default via {} src 10.66.0.250", scene.remote(0)));
    wait_until("it is said", || gateway.has_said("the default route's source is among the clients' addresses"));
    scene.assert_pings("from the address that it began with");
    for _ in 0..3 {
        assert_eq!(remote.next().source, POOL[0]);
    }
    let ended = gateway.stop();
    assert!(ended.complaints.contains("10.66.0.250"), "{}", ended.complaints);
}

/// With `mapping.preserve_idents`, whichever worker reads the request; two clients have the same ident all the same.
fn a_clients_own_ident_leaves_where_it_is_free_and_none_that_is_the_hosts(setup: &Setup) {
    let scene = Scene::new(2);
    let mut config = NamedTempFile::new().expect("a temporary file");
    let file = "[mapping]\npreserve_idents = \"on\"\nreserved_idents = [\"1000-1999\"]\n";
    config.write_all(file.as_bytes()).expect("it is written");
    let mut arguments = scene.arguments(setup);
    arguments.extend(["--config".to_owned(), config.path().display().to_string()]);
    let gateway = Echogate::serve(scene.gateway(), &arguments);
    let remote = Ear::at(scene.internet(), scene.remote(0));
    let clients = [0, 1].map(|number| Ear::at(scene.client(number), scene.client_address(number)));
    let leaves_as = |client: usize, ident| {
        clients[client].ask(scene.remote(0), ident, 1, b"payload");
        let heard = remote.next_request();
        let reply = clients[client].next();
        assert_eq!((reply.kind, reply.ident), (EchoKind::Reply, ident), "it is the client's own again");
        heard.ident
    };
    // Of many shards, and so of each worker.
    let idents = [0, 1, 7, 999, 2000, 4098, 30_003, 65_535];
    assert_eq!(idents.map(|ident| leaves_as(0, ident)), idents);
    assert_eq!(idents.map(|ident| leaves_as(0, ident)), idents, "and again");
    for ident in idents {
        let other = leaves_as(1, ident);
        assert!(!idents.contains(&other) && !(1000..2000).contains(&other), "{other} for {ident}, which is another's");
    }
    for ident in [1000, 1500, 1999] {
        let other = leaves_as(0, ident);
        assert!(!(1000..2000).contains(&other), "{other} for {ident}, which is the host's");
    }
    let ended = gateway.stop();
    assert_eq!((ended.total("replies delivered"), ended.total("mappings at most")), (27, 19), "{}", ended.printed);
}

#[test]
fn a_pool_with_an_address_that_is_not_ours_or_a_clients_is_refused_by_name() {
    let pool = Pool::new();
    let setup = Setup { io: "syscalls", workers: 1 };
    for (address, words) in [("203.0.113.10", "is not an address of this host"), ("10.66.0.9", "among the clients")] {
        let mut arguments = pool.scene.arguments(&setup);
        arguments.extend(["--outside".to_owned(), address.to_owned()]);
        let ended = Echogate::start(pool.scene.gateway(), Echogate::command("run").args(&arguments)).ended();
        ended.assert_refused(&[address, words, "remedy: "]);
        let ended = Echogate::start(pool.scene.gateway(), Echogate::command("check").args(&arguments)).ended();
        assert_ne!(ended.code, Some(0), "{}", ended.printed);
        let said = format!("{}{}", ended.printed, ended.complaints);
        assert!(said.contains(address) && said.contains(words), "{said}");
    }
}
