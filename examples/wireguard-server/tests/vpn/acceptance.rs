//! What the owner of a VPN server asks of it before and after its clients can ping: one body, two set-ups.

use crate::scene::{Scene, Setup, output};

#[test]
fn the_acceptance_list_holds_for_a_server_that_embeds_echogate() {
    the_acceptance_list(Setup::Embedded);
}

#[test]
fn the_acceptance_list_holds_for_stock_wireguard_in_front_of_echogate() {
    the_acceptance_list(Setup::Stock);
}

fn the_acceptance_list(setup: Setup) {
    let scene = Scene::new(setup, true);
    both_clients_ping_two_hosts_with_equal_idents(&scene);
    let said = scene.stop();
    println!("{}{}", said.server.printed, said.server.complaints);
    if let Some(g) = said.gateway {
        println!("{}{}", g.printed, g.complaints);
    }
}

fn both_clients_ping_two_hosts_with_equal_idents(scene: &Scene) {
    for client in 0..2 {
        for remote in 0..2 {
            let line = format!("ping -e 1 -c 3 -i 0.2 -W 10 {}", scene.remote(remote));
            let o = output(scene.client(client), &line);
            println!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
            assert!(o.status.success());
        }
    }
    println!("masq {}", scene.masqueraded());
}
