//! Who is measured: what carries the clients' echoes outside, and how each is set up in a lab.
//!
//! Echogate is a process of its own, the command `echogate run` inside the lab's gateway namespace, as users run it: so its
//! memory, its context switches and its CPU time are its own and not mixed with the generators'; its allocator is the
//! command's; and another build can take its place (`--program`).
//!
//! pasta and slirp4netns give one namespace its network, by a tap device in it: so they have one client, whose generator
//! has all the echoes under way that others share among two.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use super::process::Program;
use super::record::Absent;
use crate::error::SetupError;
use crate::host::divert::DivertBy;
use crate::host::nft;
use crate::io::{Backend, Engine};
use crate::lab::{GATEWAY_OUTSIDE, Lab, Namespace};

/// The device that user-mode stacks make in the client's namespace.
const TAP: &str = "tap0";

/// Longer than the time between two pings of the light load, so that who polls never sleeps in it.
const BUSY_POLL_US: &str = "2000";

const MASQUERADE: &str = "table ip bench {
  chain outbound {
    type nat hook postrouting priority srcnat
    oifname \"wan\" masquerade
  }
}
";

/// Has the host track connections, as one with a stateful firewall does: any rule that asks for a state loads it.
const TRACKING: &str = "table ip bench {
  chain stateful {
    type filter hook output priority filter
    ct state invalid counter
  }
}
";

/// One way outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contender {
    /// No gateway: plain forwarding, and a route back. What the lab itself costs.
    Control,
    /// Echogate.
    Echogate {
        /// What moves its packets.
        io: Backend,
        /// Its threads.
        workers: u32,
        /// Whether the host tracks connections, so that the gateway's own echoes outside are tracked.
        tracked: bool,
        /// Whether its threads look again and again for packets before they sleep.
        polling: bool,
        /// How requests are led to it.
        divert: DivertBy,
    },
    /// nftables' masquerade, which tracks connections.
    Masquerade,
    /// passt's mode for namespaces.
    Pasta,
    /// What rootless containers used before.
    Slirp4netns,
}

/// A contender that carries echoes.
#[derive(Debug)]
pub(super) struct Running {
    /// Its process, if it has one.
    pub(super) program: Option<Program>,
}

impl Contender {
    /// All there are on a machine with this many usable CPUs, in the order of the tables.
    pub fn all(cpus: usize) -> Vec<Contender> {
        let many = u32::try_from(cpus.min(4)).unwrap_or(1);
        let workers = if many > 1 { vec![1, many] } else { vec![1] };
        let echogate = |io, workers, tracked| Contender::Echogate {
            io,
            workers,
            tracked,
            polling: false,
            divert: DivertBy::Route,
        };
        let mut all = vec![Contender::Control];
        for io in [Backend::Uring, Backend::Syscalls] {
            all.extend(workers.iter().map(|workers| echogate(io, *workers, false)));
        }
        all.push(echogate(Backend::Uring, many, true));
        all.extend(workers.iter().map(|workers| Contender::Echogate {
            io: Backend::Uring,
            workers: *workers,
            tracked: false,
            polling: false,
            divert: DivertBy::Ingress,
        }));
        all.extend([Contender::Masquerade, Contender::Pasta, Contender::Slirp4netns]);
        all
    }

    /// Those that take part only if they are asked for by their names: they show one side of the gateway, a single ping's
    /// time, and take a CPU for it.
    pub fn on_request() -> Vec<Contender> {
        let polling =
            |io| Contender::Echogate { io, workers: 1, tracked: false, polling: true, divert: DivertBy::Route };
        vec![polling(Backend::Uring), polling(Backend::Syscalls)]
    }

    /// What tables, JSON and `--contenders` call it: `echogate-uring-2`.
    pub fn name(self) -> String {
        match self {
            Contender::Control => "control".to_owned(),
            Contender::Echogate { io, workers, tracked, polling, divert } => {
                let tracked = if tracked { "-conntrack" } else { "" };
                let polling = if polling { "-polling" } else { "" };
                let ingress = if divert == DivertBy::Ingress { "-ingress" } else { "" };
                format!("echogate-{}-{workers}{tracked}{polling}{ingress}", backend(io))
            }
            Contender::Masquerade => "masquerade".to_owned(),
            Contender::Pasta => "pasta".to_owned(),
            Contender::Slirp4netns => "slirp4netns".to_owned(),
        }
    }

    /// What it is, in words.
    pub fn description(self) -> String {
        match self {
            Contender::Control => "no gateway: plain forwarding, with a route back to the clients".to_owned(),
            Contender::Echogate { io, workers, tracked, polling, divert } => {
                let threads = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
                let moved = if io == Backend::Syscalls { "plain system calls" } else { "io_uring" };
                let tracked = if tracked { ", on a host that tracks connections" } else { "" };
                let polling = if polling { ", polling before it sleeps" } else { "" };
                let ingress = if divert == DivertBy::Ingress { ", diverted to at ingress" } else { "" };
                format!("Echogate, {threads}, {moved}{tracked}{polling}{ingress}")
            }
            Contender::Masquerade => "nftables masquerade, in the kernel".to_owned(),
            Contender::Pasta => "pasta (passt), in user space; one client".to_owned(),
            Contender::Slirp4netns => "slirp4netns, in user space; one client".to_owned(),
        }
    }

    /// Whether it is one of ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Contender::Echogate { .. })
    }

    /// Whether one namespace is all it can serve.
    pub(super) fn has_one_client(self) -> bool {
        matches!(self, Contender::Pasta | Contender::Slirp4netns)
    }

    /// Why it cannot take part on this machine, if it cannot.
    pub(super) fn absence(self) -> Option<Absent> {
        let absent = |cause: String, cure: &str| Some(Absent { name: self.name(), cause, cure: cure.to_owned() });
        match self {
            Contender::Control => None,
            Contender::Masquerade | Contender::Echogate { .. } if nft::program().is_none() => {
                absent("nft is not installed".to_owned(), nft::REMEDY)
            }
            Contender::Echogate { io: Backend::Uring, .. } => match crate::io::choose(Backend::Uring) {
                Ok(Engine::Uring) => None,
                Ok(Engine::Syscalls) => absent("io_uring is refused here".to_owned(), "see `echogate check`"),
                Err(error) => {
                    let (cause, cure) = error.parts();
                    absent(cause, &cure.unwrap_or_else(|| "see `echogate check`".to_owned()))
                }
            },
            Contender::Pasta if program("pasta").is_none() => {
                absent("pasta is not installed".to_owned(), "install passt: `apt-get install passt`")
            }
            Contender::Slirp4netns if program("slirp4netns").is_none() => {
                absent("slirp4netns is not installed".to_owned(), "install slirp4netns: `apt-get install slirp4netns`")
            }
            _ => None,
        }
    }

    /// The program whose version belongs into the record, if it is not part of Echogate or the kernel.
    pub(super) fn foreign_program(self) -> Option<&'static str> {
        match self {
            Contender::Masquerade => Some("nft"),
            Contender::Pasta => Some("pasta"),
            Contender::Slirp4netns => Some("slirp4netns"),
            Contender::Control | Contender::Echogate { .. } => None,
        }
    }

    /// Has it carry echoes between the lab's clients and its internet, or at least begin to. To be called on a thread
    /// inside the gateway's namespace that lives until it has ended.
    pub(super) fn start(self, lab: &Lab, echogate: &Path) -> Result<Running, SetupError> {
        let program = match self {
            Contender::Control => lab.route_back().map(|()| None)?,
            Contender::Masquerade => load_rules(MASQUERADE).map(|()| None)?,
            Contender::Echogate { io, workers, tracked, polling, divert } => {
                if tracked {
                    load_rules(TRACKING)?;
                }
                let mut command = gateway_command(lab, echogate, io, workers);
                if polling {
                    command.args(["--busy-poll-us", BUSY_POLL_US]);
                }
                if divert == DivertBy::Ingress {
                    // Not named otherwise: an older build (`--program`) does not know it.
                    command.args(["--divert-by", "ingress"]);
                }
                Some(Program::start(&mut command)?)
            }
            Contender::Pasta => Some(start_user_mode(lab, &mut pasta_command(lab))?),
            Contender::Slirp4netns => Some(start_user_mode(lab, &mut slirp4netns_command())?),
        };
        Ok(Running { program })
    }
}

/// The flag's word.
fn backend(io: Backend) -> &'static str {
    match io {
        Backend::Auto => "auto",
        Backend::Uring => "uring",
        Backend::Syscalls => "syscalls",
    }
}

fn load_rules(rules: &str) -> Result<(), SetupError> {
    nft::run(&["-f", "-"], rules).map(drop).map_err(|failure| failure.into_setup_error("bench: loading rules"))
}

fn gateway_command(lab: &Lab, program: &Path, io: Backend, workers: u32) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--log", "error", "--io", backend(io), "--workers", &workers.to_string()]);
    // The load is far above what one client may send by default: measured is the gateway, not its limits.
    command.args(["--limits", "off", "--control", "none", "--outside", &GATEWAY_OUTSIDE.to_string()]);
    for prefix in lab.client_prefixes() {
        command.args(["--clients", &prefix.to_string()]);
    }
    for client in lab.clients() {
        command.args(["--divert", &client.interface]);
    }
    command.stdin(Stdio::null());
    command
}

fn pasta_command(lab: &Lab) -> Command {
    let mut command = Command::new(program("pasta").unwrap_or_else(|| PathBuf::from("pasta")));
    let client = lab.clients()[0].address.to_string();
    // It gives up root by default, and could then not enter the client's namespace.
    command.args(["--foreground", "--runas", "0", "--config-net", "--netns", "/proc/self/fd/0", "-4"]);
    command.args(["-a", &client, "-n", "24", "-g", "10.66.0.1", "-I", TAP]);
    command
}

fn slirp4netns_command() -> Command {
    let mut command = Command::new(program("slirp4netns").unwrap_or_else(|| PathBuf::from("slirp4netns")));
    // Its client's address is the network's with 100 as the last number.
    command.args(["--netns-type=path", "--configure", "--mtu=1500", "--cidr=10.66.0.0/24", "--disable-dns"]);
    command.args(["/proc/self/fd/0", TAP]);
    command
}

/// Takes the client off the gateway's wire, and starts a program that connects it instead. The client's namespace is the
/// program's standard input: a descriptor that a child inherits without further ado, and that it may open whatever rights
/// it has given up by then.
fn start_user_mode(lab: &Lab, command: &mut Command) -> Result<Program, SetupError> {
    let client = &lab.clients()[0];
    lab.gateway().configure(|netlink| match netlink.link_index(&client.interface)? {
        Some(index) => netlink.delete_link(index),
        None => Ok(()),
    })?;
    // Its echoes leave by ping sockets.
    lab.gateway().sysctl(&[("net/ipv4/ping_group_range", "0 0")])?;
    let namespace = descriptor_of(&client.namespace)
        .map_err(|cause| SetupError::caused("bench: cannot hand over the client's namespace", cause))?;
    command.stdin(Stdio::from(namespace));
    Program::start(command)
}

fn descriptor_of(namespace: &Namespace) -> io::Result<File> {
    namespace.as_fd().try_clone_to_owned().map(File::from)
}

/// Where a program is installed.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(places).map(|directory| directory.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_has_a_name_of_its_own() {
        for cpus in [1, 2, 64] {
            let everybody = Contender::all(cpus).into_iter().chain(Contender::on_request());
            let mut names: Vec<String> = everybody.map(Contender::name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{names:?}");
        }
        let two: Vec<String> = Contender::all(2).into_iter().map(Contender::name).collect();
        let expected = [
            "control",
            "echogate-uring-1",
            "echogate-uring-2",
            "echogate-syscalls-1",
            "echogate-syscalls-2",
            "echogate-uring-2-conntrack",
            "echogate-uring-1-ingress",
            "echogate-uring-2-ingress",
            "masquerade",
            "pasta",
            "slirp4netns",
        ];
        assert_eq!(two, expected);
    }
}
