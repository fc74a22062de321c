//! A small WireGuard server in user space: the worked answer to "how do I add ping to my VPN server?".
//!
//! Read `path` first: the way of every packet, on one page. `pings` is all that Echogate takes; without it (the flag
//! `--without-echogate`) this is a server whose clients' pings go to the kernel with everything else.
//!
//! | module | what |
//! | --- | --- |
//! | `path` | where each packet goes |
//! | `pings` | Echogate: the proxy, its raw sockets, its answers |
//! | `mailboxes` | the replies that wait for their peer |
//! | `dns` | the forwarding DNS proxy |
//! | `peers` | WireGuard: datagrams, keys, endpoints |
//! | `routes` | which inside address is whose |
//! | `server` | set-up, the loop, the totals |
//! | `config` | the file |
//! | `drops` | what was dropped, by name |

mod config;
mod dns;
mod drops;
mod mailboxes;
mod path;
mod peers;
mod pings;
mod routes;
mod server;

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use echogate::error::SetupError;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::EnvFilter;

use config::Config;
use server::Server;

/// It could not start.
const EXIT_USAGE: u8 = 2;

/// What is logged unless RUST_LOG says otherwise. boringtun calls a peer that has gone to sleep an error.
const LOG: &str = "info,boringtun=off";

/// A small WireGuard server in user space whose clients can ping
#[derive(Parser)]
#[command(name = "wireguard-server", version)]
pub(crate) struct Arguments {
    /// The configuration, as wg-quick takes it: wg0.conf makes the device wg0
    config: PathBuf,

    /// Forward queries to the server's own address inside to this resolver
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    dns: Option<Resolver>,

    /// Where pings leave from: an address of this host [default: that of the default route]
    #[arg(long, value_name = "ADDRESS")]
    outside: Option<Ipv4Addr>,

    /// How long a ping's reply is waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    echo_timeout: u64,

    /// Let each client ping as much as it likes
    #[arg(long)]
    no_limits: bool,

    /// Hand clients' pings to the kernel, like everything else
    #[arg(long)]
    without_echogate: bool,
}

impl Arguments {
    /// The device's name, as wg-quick finds it.
    pub(crate) fn device(&self) -> Result<String, SetupError> {
        let name = self.config.file_stem().and_then(|stem| stem.to_str());
        let name = name.filter(|name| (1..=15).contains(&name.len()) && !name.contains(char::is_whitespace));
        let unfit = || {
            SetupError::new(format!("{} names no device", self.config.display()))
                .remedy("call the file after the device, such as wg0.conf: at most 15 bytes before the dot")
        };
        name.map(str::to_owned).ok_or_else(unfit)
    }
}

/// A resolver's address; the port is DNS's unless it says another.
#[derive(Clone, Copy)]
struct Resolver(SocketAddr);

impl Resolver {
    fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Resolver {
    type Err = String;

    fn from_str(text: &str) -> Result<Resolver, String> {
        let alone = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        alone.or_else(|_| text.parse()).map(Resolver).map_err(|_| "not an address such as 192.0.2.53".to_owned())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match open(&arguments) {
        Ok((server, stop)) => run(server, &stop),
        Err(error) => {
            complain(&error);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn open(arguments: &Arguments) -> Result<(Server, UnixStream), SetupError> {
    let config = Config::read(&arguments.config)?;
    // Before the set-up: a signal during it is obeyed after it.
    let stop = signals().map_err(|cause| SetupError::caused("signals cannot be watched", cause))?;
    Ok((Server::open(arguments, &config)?, stop))
}

fn run(mut server: Server, stop: &UnixStream) -> ExitCode {
    let failures = [server.serve(stop).err(), server.stop().err()];
    failures.iter().flatten().for_each(complain);
    if failures.iter().all(Option::is_none) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Can be read from when SIGINT or SIGTERM has come.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

fn complain(error: &SetupError) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "wireguard-server: {error}");
}
