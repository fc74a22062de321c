//! The firewall stays in force, and `check` knows which lines let the gateway's packets pass.

use crate::in_every_setup;
use crate::scene::{Scene, Setup, nft, run};

in_every_setup!(
    under_a_forward_policy_of_drop_the_lines_that_check_prints_are_what_is_missing,
    under_input_and_output_policies_of_drop_the_lines_that_check_prints_are_what_is_missing,
    a_stateful_input_policy_needs_nothing,
);

fn under_a_forward_policy_of_drop_the_lines_that_check_prints_are_what_is_missing(setup: &Setup) {
    let rules = "table inet filter {
        chain forward {
            type filter hook forward priority filter; policy drop;
            ct state established,related accept
            iifname g0 oifname wan accept
        }
    }";
    check_names_what_is_missing(setup, rules, &["inet filter forward"]);
}

fn under_input_and_output_policies_of_drop_the_lines_that_check_prints_are_what_is_missing(setup: &Setup) {
    let rules = "
    table ip local {
        chain incoming { type filter hook input priority filter; policy drop; iifname lo accept; }
        chain outgoing { type filter hook output priority filter; policy drop; oifname lo accept; }
    }";
    check_names_what_is_missing(setup, rules, &["ip local incoming", "ip local outgoing"]);
}

/// With the rules alone no ping passes; with them and the lines of `check`, in these chains, all do.
fn check_names_what_is_missing(setup: &Setup, rules: &str, chains: &[&str]) {
    let scene = Scene::new(1);
    nft(scene.gateway(), rules);
    let advice = scene.check(setup);
    assert_eq!(advice.code, Some(1), "{}{}", advice.printed, advice.complaints);
    let lines = advised(&advice.printed);
    assert!(!lines.is_empty(), "{}", advice.printed);
    for chain in chains {
        assert!(lines.iter().any(|line| line.contains(chain)), "nothing for {chain}: {}", advice.printed);
    }

    let gateway = scene.serve(setup);
    scene.assert_no_ping("before the advice is followed");
    for line in &lines {
        run(scene.gateway(), line);
    }
    scene.assert_pings("after it");
    gateway.stop();
    let advice = scene.check(setup);
    assert_eq!(advised(&advice.printed), Vec::<String>::new());
    assert_eq!(advice.code, Some(0), "{}{}", advice.printed, advice.complaints);
}

fn a_stateful_input_policy_needs_nothing(setup: &Setup) {
    let scene = Scene::new(1);
    nft(
        scene.gateway(),
        "table inet filter {
            chain input { type filter hook input priority filter; policy drop; ct state established,related accept; }
        }",
    );
    assert_eq!(advised(&scene.check(setup).printed), Vec::<String>::new());
    let gateway = scene.serve(setup);
    scene.assert_pings("through a stateful input");
    gateway.stop();
}

/// The commands about nftables that `check` prints.
fn advised(printed: &str) -> Vec<String> {
    let remedies = printed.lines().filter_map(|line| line.trim_start().strip_prefix("remedy: "));
    remedies.filter(|line| line.starts_with("nft ")).map(str::to_owned).collect()
}
