//! The configuration: every value the gateway runs with, resolved and checked before anything is opened.
//!
//! Three sources, the later winning: the defaults, a TOML file, the flags of the command line. [`KEYS`] is the one
//! list of what may be set; the file's reader, the flags with their help, the range checks and the tables in the
//! documentation all come from it, so none of them can know a key that another does not.
//!
//! * A value is read where it stands and checked once, in [`Config::validate`], whoever made the [`Config`]: a file, a
//!   command line or a program that embeds the gateway. What passes needs no second look further down.
//! * Every error names the key or the flag, the file and the line, what is wrong and what is allowed.
//! * A flag replaces the file's value of its key; lists are not merged, or nobody could take an element away.
//! * Nothing here looks at the host: addresses left out are filled in by the gateway, which then validates again.
//!
//! Rejected: deriving the reader with serde. Its errors know the struct's field names but neither the flag nor what is
//! allowed, and ranges, help texts and documentation would each be a list of their own.

mod idents;
mod key;
mod keys;
mod limits;
mod log;
mod reload;
mod sources;
#[cfg(test)]
mod tests;
mod validate;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::host::divert::DivertBy;
use crate::io::{Backend, FallThrough};
use crate::policy::Prefix;
pub use idents::IdentRange;
pub use key::{BACKENDS, Key, KeyDefault};
pub use keys::KEYS;
pub use limits::{ClientLimits, Exception};
pub use log::{LOG_FORMATS, LogFormat};
pub use reload::FIXED;
pub use sources::Source;

/// The most prefixes of clients: they are compared one after the other for each packet.
pub const CLIENTS_MAX: usize = 64;

/// RFC 5508 REQ-2: "an ICMP Query session timer MUST NOT expire in less than 60 seconds".
const QUERY_SESSION_MIN: Duration = Duration::from_secs(60);

/// More workers than this gain nothing by themselves: each raw socket costs every reply a copy.
const WORKERS_UNASKED_MAX: u32 = 4;

/// Everything the gateway runs with. One field a table of the file, one field of that a key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// The side of the clients.
    pub inside: Inside,
    /// The side of the internet.
    pub outside: Outside,
    /// How the gateway runs.
    pub run: Run,
    /// How long a client keeps its gateway ident.
    pub mapping: Mapping,
    /// The requests that wait for their reply.
    pub echo: Echo,
    /// Which addresses may be pinged.
    pub remotes: Remotes,
    /// What each client may do.
    pub limits: ClientLimits,
    /// How the running gateway is looked at.
    pub observe: Observe,
}

/// Table `inside`: the TUN device and what is led into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inside {
    /// The TUN device's name.
    pub device: String,
    /// The prefixes that clients' addresses come from.
    pub clients: Vec<Prefix>,
    /// Interfaces whose clients' echo requests are led into the TUN.
    pub divert: Vec<String>,
    /// How they are led there.
    pub divert_by: DivertBy,
    /// The TUN device's own address, as a /32.
    pub address: Ipv4Addr,
    /// The TUN device's MTU, in bytes.
    pub mtu: u32,
    /// The TUN device's queue, in packets.
    pub queue_length: u32,
    /// The firewall mark of diverted packets.
    pub mark: u32,
    /// The bits of the firewall mark that are ours.
    pub mark_mask: u32,
    /// The routing table that leads diverted packets to the TUN.
    pub table: u32,
    /// The priority of the rule that looks at that table.
    pub rule_priority: u32,
}

/// Table `outside`: the addresses that requests leave with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outside {
    /// The gateway's addresses; empty until the gateway has put the default route's source address here.
    pub addresses: Vec<Ipv4Addr>,
    /// Interfaces that lead to the internet; empty: whatever leads there.
    pub devices: Vec<String>,
}

/// Table `remotes`: which addresses may be pinged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remotes {
    /// Nobody may ping these.
    pub deny: Vec<Prefix>,
    /// Unless they are in a longer prefix here.
    pub allow: Vec<Prefix>,
    /// Whether requests to the outside addresses are left to the kernel.
    pub own: bool,
}

/// Table `run`: how the gateway runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Number of workers.
    pub workers: u32,
    /// Which implementation moves the packets.
    pub io: Backend,
    /// What happens to packets that are none of the proxy's business.
    pub fall_through: FallThrough,
    /// Whether the process that moves the packets gives up all else.
    pub sandbox: bool,
    /// How long a worker looks for the next packet before it sleeps, in microseconds.
    pub busy_poll_us: u32,
}

/// Table `mapping`: the life of a mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// A mapping unused for this long expires.
    pub idle: Duration,
    /// An expired mapping's ident rests this long; `None`: just long enough that no echo outlives it.
    pub hold_down: Option<Duration>,
    /// Whether a mapping gets its client's own ident where that is free.
    pub preserve_idents: bool,
    /// Idents that no mapping gets.
    pub reserved_idents: Vec<IdentRange>,
}

/// Table `echo`: outstanding echoes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Echo {
    /// A reply later than this is not delivered.
    pub timeout: Duration,
    /// Whether errors about proxied echoes are brought to the clients.
    pub icmp_errors: bool,
    /// Whether an error must quote an IP header whose checksum is right.
    pub quoted_checksum: bool,
    /// Size of the table of outstanding echoes, in 64-bit words (one an echo).
    pub table_words: u32,
}

/// Table `observe`: how the running gateway is looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observe {
    /// Where the control socket is.
    pub control: ControlSocket,
    /// Where scrapers and health checks connect to; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged, unless the command line says otherwise; `None`: what the environment says.
    pub log: Option<String>,
    /// How log lines look, unless the command line says otherwise.
    pub log_format: LogFormat,
}

/// Where the control socket is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ControlSocket {
    /// In the run directory, under the TUN device's name.
    #[default]
    ByDevice,
    /// Here.
    At(PathBuf),
    /// There is none.
    Nowhere,
}

impl Default for Inside {
    fn default() -> Inside {
        Inside {
            device: "echogate0".to_owned(),
            clients: Vec::new(),
            divert: Vec::new(),
            divert_by: DivertBy::default(),
            // The IPv4 dummy address (RFC 7600): reserved for interfaces that need some address, routed by nobody.
            address: Ipv4Addr::new(192, 0, 0, 8),
            mtu: 1500,
            queue_length: 10_000,
            mark: 0x0ec0_0000,
            mark_mask: 0x0ff0_0000,
            table: 3776,
            rule_priority: 3776,
        }
    }
}

impl Default for Run {
    fn default() -> Run {
        let cores = thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        Run {
            workers: cores.min(WORKERS_UNASKED_MAX),
            io: Backend::default(),
            fall_through: FallThrough::default(),
            sandbox: true,
            busy_poll_us: 0,
        }
    }
}

impl Default for Mapping {
    fn default() -> Mapping {
        Mapping { idle: QUERY_SESSION_MIN, hold_down: None, preserve_idents: false, reserved_idents: Vec::new() }
    }
}

impl Default for Echo {
    fn default() -> Echo {
        Echo { timeout: Duration::from_secs(60), icmp_errors: true, quoted_checksum: false, table_words: 1 << 20 }
    }
}

impl Config {
    /// Values that are allowed and questionable, one sentence each, for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.mapping.idle < QUERY_SESSION_MIN {
            warnings.push(format!(
                "mapping.idle is {}: RFC 5508 (REQ-2) asks for at least 60s, or a client that pings rarely changes its \
                 ident between two pings",
                humantime::format_duration(self.mapping.idle)
            ));
        }
        if !self.run.sandbox {
            warnings.push(
                "run.sandbox is off: the process that reads strangers' packets keeps the gateway's capabilities, its user's \
                 files, and every system call"
                    .to_owned(),
            );
        }
        warnings
    }
}
