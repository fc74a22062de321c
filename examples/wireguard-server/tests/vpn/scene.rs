//! The VPN: two clients, a server, an internet.
//!
//! ```text
//!   client 1  10.66.0.2 (wg0)  203.0.113.2 ──┐                                 ┌ 198.18.0.2
//!                                            ├ 203.0.113.1  server  198.18.0.1 ─┼ 198.18.0.3  internet
//!   client 2  10.66.0.3 (wg0)  203.0.113.3 ──┘        10.66.0.1 (wg0)           └ 198.18.0.4
//! ```
//!
//! The lab gives the cables. The addresses that it gives to the clients' cables become those of their tunnels, and the
//! cables get others. The server masquerades what its clients send by the kernel, as its owner would have it do.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use boringtun::x25519::{PublicKey, StaticSecret};
use echogate::lab::{Lab, LabOptions, Namespace, responder};
use tempfile::TempDir;

use crate::process::{Ended, Process};

pub(crate) const ROOT: &str = "these tests make network namespaces: run them as root (scripts/test)";

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The server's address inside.
pub(crate) const SERVER_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// The server's address outside.
pub(crate) const SERVER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where clients reach the server.
pub(crate) const ENDPOINT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const PORT: u16 = 51820;

const CLIENTS: usize = 2;

/// Who is the VPN server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Setup {
    /// This package's server, which embeds Echogate.
    Embedded,
    /// wireguard-go, and `echogate run` beside it.
    Stock,
}

pub(crate) struct Scene {
    lab: Lab,
    files: TempDir,
    setup: Setup,
    server: Option<Process>,
    gateway: Option<Process>,
    clients: Vec<Process>,
}

/// What the server's processes said until they ended.
pub(crate) struct Said {
    /// The VPN server.
    pub(crate) server: Ended,
    /// `echogate run`, if it is a process of its own.
    pub(crate) gateway: Option<Ended>,
}

impl Scene {
    /// With Echogate, or with nothing but the kernel's masquerade.
    pub(crate) fn new(setup: Setup, with_echogate: bool) -> Scene {
        if with_echogate {
            return Scene::with_flags(setup, &[]);
        }
        let mut scene = Scene::without_clients(setup, &["--without-echogate"]);
        scene.connect_clients();
        scene
    }

    /// With Echogate, and further flags for it.
    pub(crate) fn with_flags(setup: Setup, flags: &[&str]) -> Scene {
        let mut scene = Scene::prepare(setup);
        match setup {
            Setup::Embedded => scene.start_server(flags),
            Setup::Stock => {
                scene.start_server(&[]);
                scene.gateway = Some(scene.start_gateway(flags));
            }
        }
        scene.connect_clients();
        scene
    }

    /// This package's server in a lab of another shape.
    pub(crate) fn in_lab(options: &LabOptions) -> Scene {
        let mut scene = Scene::prepare_in(Setup::Embedded, options);
        scene.start_server(&[]);
        scene.connect_clients();
        scene
    }

    /// The server alone: whoever asks brings clients of his own.
    pub(crate) fn without_clients(setup: Setup, flags: &[&str]) -> Scene {
        let mut scene = Scene::prepare(setup);
        scene.start_server(flags);
        scene
    }

    fn prepare(setup: Setup) -> Scene {
        Scene::prepare_in(setup, &LabOptions { clients: CLIENTS, remotes: 3, ..LabOptions::default() })
    }

    fn prepare_in(setup: Setup, options: &LabOptions) -> Scene {
        if setup == Setup::Stock {
            // Before the clocks of anything run.
            echogate();
        }
        let lab = Lab::build(options).expect(ROOT);
        let files = tempfile::tempdir().expect("a directory for files");
        let scene = Scene { lab, files, setup, server: None, gateway: None, clients: Vec::new() };
        for number in 0..CLIENTS {
            lay_cable(&scene.lab, number);
        }
        let rules = "
            table ip nat {
                counter pings { }
                chain post {
                    type nat hook postrouting priority srcnat
                    ip saddr 10.66.0.0/24 icmp type echo-request counter name pings
                    ip saddr 10.66.0.0/24 oifname wan masquerade
                }
            }
        ";
        fs::write(scene.file("rules"), rules).expect("writes");
        run(scene.host(), &format!("nft -f {}", scene.file("rules").display()));
        scene
    }

    fn start_server(&mut self, flags: &[&str]) {
        let peers: String = (0..CLIENTS)
            .map(|number| {
                format!("[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n", public_key(1 + number), self.inside(number))
            })
            .collect();
        let keys = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", private_key(0));
        let server = match self.setup {
            Setup::Embedded => {
                fs::write(self.file("wg0.conf"), format!("{keys}Address = {SERVER_INSIDE}/24\n{peers}"))
                    .expect("writes");
                let mut command = Command::new(env!("CARGO_BIN_EXE_wireguard-server"));
                let resolver = self.remote(0).to_string();
                command.arg(self.file("wg0.conf")).args(["--dns", &resolver]).args(flags);
                let process = Process::start(self.host(), &mut command);
                let ready = if flags.contains(&"--without-echogate") { "serving" } else { "pings leave by" };
                process.until(|server| server.said().contains(ready))
            }
            Setup::Stock => {
                let server = self.wireguard_go(self.host(), "server.conf", &(keys + &peers));
                run(self.host(), &format!("ip address add {SERVER_INSIDE}/24 dev wg0 && ip link set wg0 mtu 1420 up"));
                server
            }
        };
        self.server = Some(server);
    }

    fn start_gateway(&self, flags: &[&str]) -> Process {
        let mut command = Command::new(echogate());
        let outside = SERVER_OUTSIDE.to_string();
        command.args(["run", "--clients", "10.66.0.0/24", "--divert", "wg0", "--outside", &outside]).args(flags);
        // Gateways of other tests, in namespaces of their own, would have theirs at the same path.
        command.args(["--control", "none"]);
        Process::start(self.host(), &mut command).until(|gateway| gateway.said().contains("serving "))
    }

    /// Ends the server's wireguard-go and with it wg0, and begins again. The clients forget their sessions: by themselves
    /// they would do so after the quarter of a minute that WireGuard waits for an answer.
    pub(crate) fn make_wireguard_anew(&mut self) {
        self.server.take().expect("it was started").stop();
        self.start_server(&[]);
        for (number, client) in self.clients.iter().enumerate() {
            let control = format!("nsenter --mount --target {} wg", client.id());
            let forget = format!("{control} set wg0 peer {} remove", public_key(0));
            let file = self.file(&client_file(number));
            run(self.client(number), &format!("{forget} && {control} setconf wg0 {}", file.display()));
        }
    }

    fn connect_clients(&mut self) {
        for number in 0..CLIENTS {
            let configuration = format!(
                "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {ENDPOINT}:{PORT}\n",
                private_key(1 + number),
                public_key(0),
            );
            let client = self.wireguard_go(self.client(number), &client_file(number), &configuration);
            let inner = self.inside(number);
            run(
                self.client(number),
                &format!(
                    "ip address add {inner}/32 dev wg0 && ip link set wg0 mtu 1420 up && ip route add default dev wg0"
                ),
            );
            self.clients.push(client);
        }
    }

    /// A wg0 in the namespace. Its control socket lies in a file system of its own, so scenes do not meet there.
    fn wireguard_go(&self, namespace: &Namespace, file: &str, configuration: &str) -> Process {
        fs::write(self.file(file), configuration).expect("writes");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /run && exec wireguard-go -f wg0"]);
        let process = Process::start(namespace, &mut command);
        let control = format!("nsenter --mount --target {} wg", process.id());
        let process = process.until(has_control_socket);
        run(namespace, &format!("{control} setconf wg0 {}", self.file(file).display()));
        process
    }

    /// Ends the server's processes.
    pub(crate) fn stop(mut self) -> Said {
        let gateway = self.gateway.take().map(Process::stop);
        let server = self.server.take().expect("it was started").stop();
        Said { server, gateway }
    }

    /// The server, which is to end by itself.
    pub(crate) fn server_ended(mut self) -> Ended {
        self.server.take().expect("it was started").ended()
    }

    /// What the server's processes have said so far.
    pub(crate) fn said(&self) -> String {
        [&self.server, &self.gateway].into_iter().flatten().map(Process::said).collect()
    }

    /// Where a packet may have been lost, for the message of a test that misses one: what the kernel has dropped in the lab, the
    /// echoes that each host has seen, and the server's own totals at its end.
    pub(crate) fn account(self) -> String {
        let dropped = self.lab.drops().map(|drops| {
            let some = drops.into_iter().filter(|(_, count)| *count > 0);
            some.map(|(place, count)| format!("{place} {count}; ")).collect::<String>()
        });
        let hosts = [self.client(0), self.host()].into_iter().chain(self.lab.routers()).chain([self.internet()]);
        let seen: String = hosts
            .map(|host| {
                let messages = run(host, "grep IcmpMsg: /proc/net/snmp || true");
                format!("{}: {:?}\n{messages}", host.name(), responder::counters(host))
            })
            .collect();
        let said = self.stop().server.complaints;
        format!("\ndropped by the kernel (the CPUs' queues since the machine started): {dropped:?}\n{seen}{said}")
    }

    /// The processor time that the server's process has used so far.
    pub(crate) fn server_time(&self) -> Duration {
        let id = self.server.as_ref().expect("it was started").id();
        let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
        let nanos = tasks.map(|task| {
            let path = task.expect("a task").path().join("schedstat");
            let text = fs::read_to_string(path).expect("the kernel keeps schedstat");
            text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("a number")
        });
        Duration::from_nanos(nanos.sum())
    }

    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }

    /// Where the server runs.
    pub(crate) fn host(&self) -> &Namespace {
        self.lab.gateway()
    }

    pub(crate) fn internet(&self) -> &Namespace {
        self.lab.internet()
    }

    pub(crate) fn client(&self, number: usize) -> &Namespace {
        &self.lab.clients()[number].namespace
    }

    /// A client's address inside.
    pub(crate) fn inside(&self, number: usize) -> Ipv4Addr {
        self.lab.clients()[number].address
    }

    pub(crate) fn remote(&self, number: usize) -> Ipv4Addr {
        self.lab.remotes()[number]
    }

    /// The file that this package's server reads.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.file("wg0.conf")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Echo requests that the kernel has masqueraded.
    pub(crate) fn masqueraded(&self) -> u64 {
        let listed = run(self.host(), "nft list counter ip nat pings");
        let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no counter: {listed}"))
    }
}

/// Gives the cable between a client and the server addresses of its own.
pub(crate) fn lay_cable(lab: &Lab, number: usize) {
    let client = &lab.clients()[number];
    let (outer, inner, device) = (outer_address(number), client.address, &client.interface);
    let at_server = format!(
        "ip route del {inner}/32 dev {device} && ip address del {SERVER_INSIDE}/32 dev {device} &&
         ip address add {ENDPOINT}/32 dev {device} && ip route add {outer}/32 dev {device}"
    );
    let at_client = format!(
        "ip address del {inner}/32 dev eth0 && ip address add {outer}/32 dev eth0 &&
         ip route add {ENDPOINT}/32 dev eth0 && ip route flush default"
    );
    run(lab.gateway(), &at_server);
    run(&client.namespace, &at_client);
}

/// A client's address on its cable.
pub(crate) fn outer_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ENDPOINT) + 1 + u32::try_from(number).expect("few clients"))
}

fn client_file(number: usize) -> String {
    format!("client{number}.conf")
}

/// Number 0 is the server's.
pub(crate) fn secret(number: usize) -> StaticSecret {
    StaticSecret::from([u8::try_from(number + 1).expect("few keys"); 32])
}

fn private_key(number: usize) -> String {
    BASE64.encode(secret(number).to_bytes())
}

fn public_key(number: usize) -> String {
    BASE64.encode(PublicKey::from(&secret(number)).as_bytes())
}

/// The command `echogate`, built if it is not yet: it is another package's. A test of that package needs it too, so this
/// asks for that test: what `cargo test --workspace` has built already then serves, and nothing is built twice.
pub(crate) fn echogate() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).stderr(Stdio::inherit());
        build.args(["test", "--no-run", "--quiet", "--locked", "--workspace", "--test", "cli"]);
        build.args(["--message-format", "json-render-diagnostics"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let output = build.output().expect("cargo runs");
        assert!(output.status.success(), "{build:?}");
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let executable = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_command = message["target"]["name"] == "echogate" && message["target"]["kind"][0] == "bin";
            message["executable"].as_str().filter(|_| is_command).map(PathBuf::from)
        });
        executable.unwrap_or_else(|| panic!("{build:?} tells of no executable: {messages}"))
    })
}

/// Whether wireguard-go can be asked: its socket listens. To ask it earlier would be no way to find out, since `wg` removes
/// a socket that does not listen.
fn has_control_socket(process: &Process) -> bool {
    const LISTENS: &str = "00010000";
    let sockets = fs::read_to_string(format!("/proc/{}/net/unix", process.id())).unwrap_or_default();
    sockets.lines().any(|line| line.ends_with("/wireguard/wg0.sock") && line.contains(LISTENS))
}

/// Runs a shell's line to its successful end; what it printed.
pub(crate) fn run(namespace: &Namespace, line: &str) -> String {
    let output = output(namespace, line);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line} ({}): {printed}{complaints}", namespace.name());
    printed
}

pub(crate) fn output(namespace: &Namespace, line: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("LC_ALL", "C").stdin(Stdio::null());
    let output = namespace.run(|| command.output()).expect(ROOT).expect("sh runs");
    assert_ne!(output.status.code(), Some(127), "{line}: no such program; remedy: scripts/test installs them");
    output
}

/// Waits until `condition` holds, and fails where it never does.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
