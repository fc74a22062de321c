//! The commands of the documentation, run as they stand: README.md here, and docs/wireguard.md.
//!
//! Which block is run where is settled by its place on the page; a block more or less fails. What is built is not built
//! again, and nothing is installed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use echogate::lab::{Lab, LabOptions, Namespace};
use tempfile::TempDir;

use crate::process::Process;
use crate::scene::{self, ROOT, run};

#[test]
fn the_commands_of_the_page_about_stock_wireguard_lead_to_a_ping() {
    let blocks = blocks("../../docs/wireguard.md");
    let [install, keys, server, routing, check, serve, client, ping, undo] = &blocks[..] else {
        panic!("{} blocks", blocks.len())
    };
    assert!(install.starts_with("apt-get install"));
    let stage = Stage::new();
    for block in [keys, server, routing, check] {
        stage.host.run(block);
    }
    let gateway = stage.host.start(serve).until(|gateway| gateway.said().contains("serving "));
    stage.client.run(client);
    assert!(stage.client.run(ping).contains("3 received"));
    let ended = gateway.stop();
    assert!(ended.printed.contains("replies delivered                        3"), "{}", ended.printed);
    for host in [&stage.host, &stage.client] {
        host.run(undo);
    }
}

#[test]
fn the_commands_of_the_readme_lead_to_a_ping() {
    let blocks = blocks("README.md");
    let [build, keys, routing, serve, client, ping, tests] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    assert!(build.starts_with("cargo build") && tests.starts_with("scripts/test"));
    let stage = Stage::new();
    for block in [keys, routing] {
        stage.host.run(block);
    }
    let server = stage.host.start(serve).until(|server| server.said().contains("pings leave by"));
    stage.client.run(client);
    assert!(stage.client.run(ping).contains("3 received"));
    // The lines that are shown.
    let said = server.stop().complaints;
    for line in page("README.md").lines().filter(|line| line.starts_with("INFO ")) {
        assert!(said.contains(line), "{line}: {said}");
    }
    run(stage.client.namespace(), "ip link del wg0");
}

#[test]
fn the_files_that_the_readme_names_exist() {
    let text = page("README.md");
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let spans = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let files = links.chain(spans.filter(|span| span.starts_with("src/") || span.starts_with("tests/")));
    let missing: Vec<_> = files.filter(|file| !Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn page(file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).expect("a page")
}

fn blocks(file: &str) -> Vec<String> {
    let page = page(file);
    page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next().map(str::to_owned)).collect()
}

/// A server and a client that share a directory, which is how their public keys change hands.
struct Stage {
    host: Host,
    client: Host,
}

/// One of them: its namespace, and its own /run, where wireguard-go has its control socket.
struct Host {
    lab: Arc<Lab>,
    is_server: bool,
    files: Arc<TempDir>,
    /// Process 1 of a process namespace: with it end the daemons that the commands leave behind.
    _home: Process,
    first: u32,
}

impl Stage {
    fn new() -> Stage {
        let lab = Arc::new(Lab::build(&LabOptions { clients: 1, remotes: 1, ..LabOptions::default() }).expect(ROOT));
        scene::lay_cable(&lab, 0);
        let files = Arc::new(tempfile::tempdir().expect("a directory for files"));
        let host = |is_server| Host::new(Arc::clone(&lab), is_server, Arc::clone(&files));
        Stage { host: host(true), client: host(false) }
    }
}

impl Host {
    fn new(lab: Arc<Lab>, is_server: bool, files: Arc<TempDir>) -> Host {
        let namespace = if is_server { lab.gateway() } else { &lab.clients()[0].namespace };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
        command.arg("mount -t tmpfs none /run && echo ready && exec sleep 600");
        let home = Process::start(namespace, &mut command).until(|home| home.said().contains("ready"));
        let children = format!("/proc/{0}/task/{0}/children", home.id());
        let children = fs::read_to_string(children).expect("the kernel tells a task's children");
        let first = children.trim().parse().expect("it has one child");
        Host { lab, is_server, files, _home: home, first }
    }

    fn namespace(&self) -> &Namespace {
        if self.is_server { self.lab.gateway() } else { &self.lab.clients()[0].namespace }
    }

    /// Runs a block to its successful end; what it printed.
    fn run(&self, block: &str) -> String {
        run(self.namespace(), &format!("{} -e -c {}", self.shell(), quoted(&built(block))))
    }

    /// Starts a block of one command that stays.
    fn start(&self, block: &str) -> Process {
        let mut command = Command::new("sh");
        command.current_dir(self.files.path()).args(["-c", &format!("exec {}", built(block).trim())]);
        Process::start(self.namespace(), &mut command)
    }

    fn shell(&self) -> String {
        let directory = self.files.path().display();
        format!("cd {directory} && nsenter --mount --pid --target {} --wd={directory} sh", self.first)
    }
}

/// The block with the programs that this test was built with in the place of those that its reader builds.
fn built(block: &str) -> String {
    let server = block.replace("target/release/wireguard-server", env!("CARGO_BIN_EXE_wireguard-server"));
    if !server.contains("target/release/echogate") {
        return server;
    }
    server.replace("target/release/echogate", &scene::echogate().display().to_string())
}

/// As one word of a shell's line.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
