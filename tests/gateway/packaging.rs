//! What the package brings for a host, used on one.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::in_every_setup;
use crate::process::Echogate;
use crate::scene::{Scene, Setup, nft, run};

const SETUP: Setup = Setup { io: "uring", workers: 1 };

fn packaged(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

in_every_setup!(under_policies_of_drop_the_packaged_rules_let_pings_pass_and_nothing_else,);

fn under_policies_of_drop_the_packaged_rules_let_pings_pass_and_nothing_else(setup: &Setup) {
    let scene = Scene::new(1);
    nft(
        scene.gateway(),
        "table inet filter {
            chain input { type filter hook input priority filter; policy drop; iifname lo accept; }
            chain forward { type filter hook forward priority filter; policy drop; }
            chain output { type filter hook output priority filter; policy drop; oifname lo accept; }
        }",
    );
    let gateway = scene.serve(setup);
    scene.assert_no_ping("before the rules are loaded");
    let rules = packaged("echogate.nft");
    assert!(rules.contains(r#"define clients = { "wg0" }"#), "the sample names its interface otherwise now");
    nft(scene.gateway(), &rules.replace(r#""wg0""#, r#""g0""#));
    scene.assert_pings("with them");
    let large = scene.pings(0, 3, scene.remote(0), "-s 4000");
    assert!(large.all_came_back(3), "in fragments: {}", large.text);
    // Still closed: the gateway's own address for clients, and anything that is no ping.
    let own = scene.ping(0, "-c 1 -W 1 198.18.0.1");
    assert!(!own.all_came_back(1), "{}", own.text);
    let findings = scene.check(setup);
    assert_eq!(findings.code, Some(0), "{}", findings.printed);
    assert!(!findings.printed.contains("nft insert"), "check would add nothing: {}", findings.printed);
    gateway.stop();
}

#[test]
fn the_packaged_sysctls_are_what_check_asks_for() {
    let scene = Scene::new(1);
    run(scene.gateway(), "sysctl -qw net.ipv4.ip_forward=0");
    let before = scene.check(&SETUP);
    assert!(before.printed.contains("sysctl -w net.ipv4.ip_forward=1"), "{}", before.printed);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/60-echogate.sysctl.conf");
    run(scene.gateway(), &format!("sysctl -qp {}", file.display()));
    let after = scene.check(&SETUP);
    assert_eq!(after.code, Some(0), "{}", after.printed);
}

#[test]
fn the_units_capabilities_are_all_that_a_gateway_with_a_user_of_its_own_needs() {
    let scene = Scene::new(1);
    let unit = packaged("echogate.service");
    let of = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
    let names = of("AmbientCapabilities=").to_lowercase();
    let list: Vec<String> = names.split(' ').map(|name| format!("+{}", name.trim_start_matches("cap_"))).collect();
    let set = format!("-all,{}", list.join(","));
    // Nobody's program, where nobody may read it: the build's own directories may be closed to others.
    let directory = tempfile::Builder::new().prefix("echogate-").tempdir_in("/tmp").expect("a directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).expect("it is ours");
    let program = directory.path().join("echogate");
    fs::copy(env!("CARGO_BIN_EXE_echogate"), &program).expect("it can be copied");
    // As udev makes the device on every distribution, and systemd the directory; seen by this process only.
    let prepare = format!(
        "mknod {0}/tun c 10 200 && chmod 666 {0}/tun && mount --bind {0}/tun /dev/net/tun && \
         mkdir {0}/run && chown 65534:65534 {0}/run && export RUNTIME_DIRECTORY={0}/run && exec \"$@\"",
        directory.path().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &prepare, "sh"]);
    command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    // The bounding set first: what is left in it may be inherited, and then be ambient.
    command.arg(format!("--bounding-set={set}"));
    command.args([format!("--inh-caps={set}"), format!("--ambient-caps={set}")]);
    command.arg(&program).arg("run").args(scene.arguments(&Setup { io: "uring", workers: 2 }));
    let gateway = Echogate::start(scene.gateway(), &mut command).serving();
    scene.assert_pings("as nobody, with the unit's capabilities");
    let ended = gateway.stop();
    assert!(!ended.complaints.contains("WARN"), "nothing is missing: {}", ended.complaints);
}

#[test]
fn what_a_killed_gateway_left_is_undone_and_one_that_runs_is_left_alone() {
    let scene = Scene::new(1);
    let untouched = scene.state();
    let undo = || Echogate::start(scene.gateway(), Echogate::command("undo").args(scene.arguments(&SETUP))).ended();
    let nothing = undo();
    assert_eq!((nothing.code, nothing.complaints.as_str()), (Some(0), ""), "there was nothing");
    let gateway = scene.serve(&SETUP);
    let refused = undo();
    assert_eq!(refused.code, Some(2), "{}", refused.complaints);
    assert!(refused.complaints.contains("another gateway owns this table"), "{}", refused.complaints);
    scene.assert_pings("all the same");
    gateway.killed();
    assert_ne!(scene.state(), untouched, "something is left, or this shows nothing");
    let undone = undo();
    assert_eq!(undone.code, Some(0), "{}", undone.complaints);
    crate::scene::wait_until("nothing is left", || scene.state() == untouched);
}
