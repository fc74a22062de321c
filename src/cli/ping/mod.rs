//! `echogate ping`: hosts, options and a schedule go in; lines, numbers or a picture come out.
//!
//! * `hosts`: whom to ping. `session`: the run itself, which hands what happens to a [`Report`](session::Report).
//! * `single` (one host, iputils' words), `several` (fping's), `records` (JSON, CSV), `graph` (a picture) are reports.
//! * `stats`: a host's numbers. `prometheus`: the same for a scraper.

mod graph;
mod health;
mod hosts;
mod prometheus;
mod records;
mod session;
mod several;
mod single;
mod stats;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::ValueEnum;
use socket2::{Domain, Socket, Type};

use super::{EXIT_USAGE, complain};
use crate::error::SetupError;
use crate::pinger::{Family, PathMtu, PingError, PingOptions, Pinger, TIMEOUT_MAX};
use crate::policy::Prefix;
use health::Thresholds;
use hosts::{Host, Hosts};
use session::{Report, Schedule, lock};
use stats::Stats;

/// Duplicates and late replies that wait to be told; a flood of forged ones is counted, not kept.
const STRAYS_MAX: usize = 1024;

/// The gap that a user may ask for without --flood, and what many hosts get.
const GAP_MIN: Duration = Duration::from_millis(1);

/// Why a host cannot be reached from here, whatever is sent to it.
const NO_WAY: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EAFNOSUPPORT];

/// Ping hosts, without root
///
/// One host reads as with the system's ping, several as with fping: without -c who is alive, with -c or --loop each reply and a
/// line a host at the end. Round-trip times are taken by the kernel's clock, intervals do not drift, and errors say
/// who sent them. Ctrl-C ends it with the summary, SIGQUIT (Ctrl-\) shows an interim one.
///
/// Exit codes: 0 every host answered, within --max-loss and --max-rtt where they are given; 1 not so; 2 it could not
/// start (a single host to which there is no route included), or a name is unknown.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Arguments {
    /// Names or addresses
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,

    /// Print help (-h: the short one)
    #[arg(short, long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Also every host of a network, such as 198.18.0.0/24
    #[arg(short = 'g', long = "generate", value_name = "PREFIX")]
    networks: Vec<Prefix>,

    /// Also the hosts of a list, the first word of each line; - is standard input. (-f is --flood, as with ping)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Requests to each host [default: one host without end, several once]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Several hosts without end, instead of once
    #[arg(long = "loop", conflicts_with = "count")]
    endless: bool,

    /// Seconds from one request to a host to its next; those of several hosts are spread over it
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,

    /// The most requests a second to all hosts together; the interval grows where it must
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Seconds to wait for a reply, up to 3600; 0 is as long as that
    #[arg(short = 'W', long, value_name = "SECONDS", default_value = "2", value_parser = wait)]
    timeout: Duration,

    /// Seconds after which all ends; 0 is never. With one host and --count it goes on until so many have been answered
    #[arg(short = 'w', long, value_name = "SECONDS", value_parser = seconds)]
    deadline: Option<Duration>,

    /// Bytes of payload, 0 to 65507
    #[arg(short, long, value_name = "BYTES", default_value_t = 56)]
    size: usize,

    /// Time to live (IPv6: hop limit)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    ttl: Option<u8>,

    /// Type of service (IPv6: traffic class), 0 to 255 or hexadecimal as 0x10
    #[arg(short = 'Q', long, value_name = "N", value_parser = tos)]
    tos: Option<u8>,

    /// Path MTU: do (never fragment), want (fragment here if need be), dont (let routers do it), probe
    #[arg(short = 'M', long, value_name = "HOW")]
    pmtudisc: Option<Pmtudisc>,

    /// Interface to send by, or own address to send from
    #[arg(short = 'I', long, value_name = "NAME|ADDRESS")]
    interface: Option<String>,

    /// Fill the payload with up to 16 bytes, in hexadecimal
    #[arg(short, long, value_name = "HEX")]
    pattern: Option<String>,

    /// Summary only, after the first line
    #[arg(short, long)]
    quiet: bool,

    /// Show addresses without looking up their names
    #[arg(short, long)]
    numeric: bool,

    /// As fast as replies come, and at least 100 a second; a dot for each that is missing
    #[arg(short, long)]
    flood: bool,

    /// Where round-trip times begin: wire (where the kernel gives the request to the device), send (at the call that sends
    /// it, as the system's ping counts)
    #[arg(long, value_name = "WHERE", default_value = "wire")]
    rtt_from: RttFrom,

    /// A time stamp before each line
    #[arg(short = 'D', long)]
    timestamps: bool,

    /// IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,

    /// IPv6 only
    #[arg(short = '6', long)]
    ipv6: bool,

    /// Percentiles, jitter, late and reordered replies and the senders of errors at the end
    #[arg(short, long)]
    verbose: bool,

    /// Nothing but the summary
    #[arg(long)]
    summary_only: bool,

    /// One JSON object a line
    #[arg(long, conflicts_with_all = ["csv", "graph"])]
    json: bool,

    /// Comma-separated values, a line an outcome
    #[arg(long, conflicts_with_all = ["graph", "summary_only"])]
    csv: bool,

    /// A picture of round-trip times, losses and each host's health, without end
    #[arg(long, conflicts_with = "summary_only")]
    graph: bool,

    /// Exit with 1 if a host lost more than this
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_loss: Option<f64>,

    /// Exit with 1 if a host's mean round-trip time is longer; with --graph it counts as degraded from there
    #[arg(long, value_name = "MILLISECONDS", value_parser = positive)]
    max_rtt: Option<f64>,

    /// With --graph: losses in a row that make a host count as down
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    down_after: u32,

    /// Serve the numbers to Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    prometheus: Option<SocketAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RttFrom {
    Wire,
    Send,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pmtudisc {
    Do,
    Want,
    Dont,
    Probe,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let options = options(arguments)?;
    let names = hosts::names(&arguments.hosts, arguments.file.as_deref(), &arguments.networks)?;
    if arguments.prometheus.is_some() && names.len() > prometheus::HOSTS_MAX {
        return Err(SetupError::new(format!("--prometheus: {} hosts are too many to serve", names.len()))
            .remedy(format!("at most {}, in one run", prometheus::HOSTS_MAX)));
    }
    // Before names are resolved: who may not ping need not wait for a resolver.
    let pinger = Pinger::builder()
        .keep_strays(STRAYS_MAX)
        .transmit_times(matches!(arguments.rtt_from, RttFrom::Wire))
        .build()
        .map_err(unusable)?;
    let one = names.len() == 1;
    let (found, failed) = hosts::look_up(names, family(arguments));
    for error in &failed {
        complain(&SetupError::new(format!("ping: {error}")));
    }
    if found.is_empty() {
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    if one {
        begins(arguments, &found[0])?;
    }
    let schedule = schedule(arguments, found.len(), one)?;
    let shared = Arc::new(Mutex::new(Hosts::new(found)));
    if let Some(at) = arguments.prometheus {
        let bound = prometheus::serve(at, &shared)?;
        tracing::info!("metrics at http://{bound}/metrics");
    }
    let mut report = report(arguments, &shared, one)?;
    let ended = session::run(&pinger, &options, arguments.timeout, &schedule, &shared, report.as_mut());
    // The terminal is given back before anything else is said.
    drop(report);
    ended?;
    let good = lock(&shared).list.iter().all(|host| is_good(host, arguments));
    Ok(match (failed.is_empty(), good) {
        (false, _) => ExitCode::from(EXIT_USAGE),
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
    })
}

fn is_good(host: &Host, arguments: &Arguments) -> bool {
    let none = Stats::new(false);
    let stats = host.stats().unwrap_or(&none);
    let answers = stats.received > 0 || arguments.max_loss.is_some_and(|most| most >= 100.0);
    let loss = arguments.max_loss.is_none_or(|most| stats.loss_percent(0) <= most);
    let rtt = arguments.max_rtt.is_none_or(|most| stats.times().is_none_or(|times| times.avg <= most));
    // As with `ping`: who gives both a count and a deadline wants so many by then, unless --max-loss says how many may be missing.
    let in_time = deadline(arguments).is_none() || arguments.count.is_none_or(|count| stats.received >= count);
    answers && loss && rtt && (in_time || arguments.max_loss.is_some())
}

fn report(arguments: &Arguments, hosts: &session::Shared, one: bool) -> Result<Box<dyn Report>, SetupError> {
    if arguments.graph {
        let thresholds = Thresholds { degraded_ms: arguments.max_rtt, down_after: arguments.down_after };
        return Ok(Box::new(graph::Graph::open(&lock(hosts), thresholds, arguments.interval)?));
    }
    if arguments.json {
        return Ok(Box::new(records::Json { summary_only: arguments.summary_only || arguments.quiet }));
    }
    if arguments.csv {
        return Ok(Box::new(records::Csv));
    }
    if !one {
        let alive = arguments.count.is_none() && !arguments.endless;
        let quiet = arguments.quiet || arguments.summary_only;
        return Ok(Box::new(several::Several { alive, quiet, timestamps: arguments.timestamps, width: 0 }));
    }
    let literal = lock(hosts).list.first().is_some_and(|host| !host.is_named());
    let from = match &arguments.interface {
        Some(address) if address.parse::<IpAddr>().is_ok() => format!(" from {address} :"),
        Some(name) => match lock(hosts).list.first().and_then(|host| source(name, host.address)) {
            Some(address) => format!(" from {address} {name}:"),
            None => format!(" by {name}:"),
        },
        None => String::new(),
    };
    Ok(Box::new(single::Single {
        size: arguments.size,
        pattern: arguments.pattern.as_deref().map(bytes).transpose()?,
        from,
        quiet: arguments.quiet,
        summary_only: arguments.summary_only,
        flood: arguments.flood,
        timestamps: arguments.timestamps,
        percentiles: arguments.verbose,
        names: single::Names::new(!arguments.numeric && !literal),
    }))
}

/// The address that the kernel would send from by this interface.
fn source(interface: &str, to: SocketAddr) -> Option<IpAddr> {
    Some(route(Some(interface), None, to).ok()?.local_addr().ok()?.as_socket()?.ip())
}

/// Has the route looked up, by a socket that sends nothing.
fn route(interface: Option<&str>, source: Option<IpAddr>, mut to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    to.set_port(9);
    socket.connect(&to.into())?;
    Ok(socket)
}

/// What would make each request to a single host fail in the same way is told before the first, as `ping` does. Who watches it (a
/// picture, a scraper, a program) is told each time instead: it may come right.
fn begins(arguments: &Arguments, host: &Host) -> Result<(), SetupError> {
    let (source, interface) = own_end(arguments);
    if let Some(source) = source.filter(|source| source.is_ipv6() != host.address.is_ipv6()) {
        return Err(SetupError::new(format!("--interface: {source} is not of the address family of {}", host.shown()))
            .remedy("an address of the same family, -4 or -6"));
    }
    let is_watched = arguments.graph || arguments.json || arguments.csv || arguments.prometheus.is_some();
    match route(interface, source, host.address) {
        Err(error) if !is_watched && NO_WAY.contains(&error.raw_os_error().unwrap_or(0)) => {
            Err(SetupError::caused(format!("ping: {}", host.shown()), error))
        }
        _ => Ok(()),
    }
}

/// What `--interface` names: an address, or an interface.
fn own_end(arguments: &Arguments) -> (Option<IpAddr>, Option<&str>) {
    match arguments.interface.as_deref().map(|text| text.parse().map_err(|_| text)) {
        Some(Ok(address)) => (Some(address), None),
        Some(Err(name)) => (None, Some(name)),
        None => (None, None),
    }
}

/// How long all may take, if that is bounded.
fn deadline(arguments: &Arguments) -> Option<Duration> {
    arguments.deadline.filter(|deadline| !deadline.is_zero())
}

fn schedule(arguments: &Arguments, hosts: usize, one: bool) -> Result<Schedule, SetupError> {
    if arguments.interval < GAP_MIN && !arguments.flood {
        return Err(SetupError::new(format!("--interval: {:?} is too short", arguments.interval))
            .remedy("at least 0.001 seconds, or --flood"));
    }
    let spread = arguments.interval / u32::try_from(hosts).unwrap_or(u32::MAX);
    let gap = if arguments.flood { Duration::ZERO } else { spread.max(Duration::from_secs(1) / arguments.rate) };
    if gap > spread && arguments.count != Some(1) && (arguments.count.is_some() || arguments.endless || one) {
        tracing::warn!(
            "{hosts} hosts at {} requests a second: each is asked every {:.1} s (see --rate)",
            arguments.rate,
            gap.as_secs_f64() * stats::float(u64::try_from(hosts).unwrap_or(u64::MAX))
        );
    }
    let once = !one && !arguments.endless && !arguments.graph && arguments.prometheus.is_none();
    let count = arguments.count.or(once.then_some(1));
    let deadline = deadline(arguments);
    let replies = count.filter(|_| one && deadline.is_some());
    let count = count.filter(|_| replies.is_none());
    // A scraper reads elsewhere.
    let for_reader = arguments.prometheus.is_none();
    Ok(Schedule { gap, count, replies, deadline, flood: arguments.flood, for_reader })
}

fn family(arguments: &Arguments) -> Family {
    match (arguments.ipv4, arguments.ipv6) {
        (true, _) => Family::V4,
        (_, true) => Family::V6,
        _ => Family::Any,
    }
}

fn options(arguments: &Arguments) -> Result<PingOptions, SetupError> {
    let wrong = |error: PingError| SetupError::new(error.to_string());
    let mut options = PingOptions::new().timeout(arguments.timeout).family(family(arguments));
    options = options.size(arguments.size).map_err(wrong)?;
    if let Some(ttl) = arguments.ttl {
        options = options.ttl(ttl).map_err(wrong)?;
    }
    if let Some(tos) = arguments.tos {
        options = options.tos(tos);
    }
    if let Some(how) = arguments.pmtudisc {
        options = options.path_mtu(match how {
            Pmtudisc::Do => PathMtu::Forbid,
            Pmtudisc::Want => PathMtu::Want,
            Pmtudisc::Dont => PathMtu::Allow,
            Pmtudisc::Probe => PathMtu::Probe,
        });
    }
    if let Some(pattern) = &arguments.pattern {
        options = options.pattern(&bytes(pattern)?).map_err(wrong)?;
    }
    if let Some(interface) = &arguments.interface {
        options = match interface.parse::<IpAddr>() {
            Ok(address) => options.source(own(address)?),
            Err(_) => options.interface(interface).map_err(wrong)?,
        };
    }
    Ok(options)
}

/// An address, if it is one of this host's.
fn own(address: IpAddr) -> Result<IpAddr, SetupError> {
    match UdpSocket::bind((address, 0)) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            Err(SetupError::caused(format!("--interface: cannot send from {address}"), error)
                .remedy("an address of this host (ip address), or an interface"))
        }
        // Others tell nothing: a link-local address is bound with its interface only.
        _ => Ok(address),
    }
}

/// Bytes in hexadecimal; a digit that stands alone at the end is a byte.
fn bytes(text: &str) -> Result<Vec<u8>, SetupError> {
    let wrong = || {
        SetupError::new(format!("--pattern: {text:?} is no pattern"))
            .remedy("1 to 16 bytes in hexadecimal, such as ff or 00ff")
    };
    if text.is_empty() || text.len() > 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        u8::from_str_radix(pair, 16).map_err(|_| wrong())
    });
    pairs.collect()
}

/// What keeps the pinger from starting, remedy and all.
fn unusable(error: PingError) -> SetupError {
    SetupError::new(error.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let allowed = "seconds, such as 0.2: 0 to 86400";
    let number: f64 = text.parse().map_err(|_| allowed.to_owned())?;
    if !(0.0..=86_400.0).contains(&number) {
        return Err(allowed.to_owned());
    }
    Duration::try_from_secs_f64(number).map_err(|_| allowed.to_owned())
}

/// As `ping` has it, 0 is for ever; here, as long as a ping can wait.
fn wait(text: &str) -> Result<Duration, String> {
    match seconds(text).map_err(|_| "seconds, such as 0.2: 0 to 3600".to_owned())? {
        Duration::ZERO => Ok(TIMEOUT_MAX),
        time if time <= TIMEOUT_MAX => Ok(time),
        _ => Err("seconds, such as 0.2: 0 to 3600".to_owned()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number| (0.0..=100.0).contains(number)).ok_or_else(|| "0 to 100".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number| (0.0..=1e9).contains(number))
        .ok_or_else(|| "milliseconds, such as 250".to_owned())
}

fn tos(text: &str) -> Result<u8, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = digits.map_or_else(|| text.parse(), |digits| u8::from_str_radix(digits, 16));
    number.map_err(|_| "0 to 255, or 0x00 to 0xff".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_finite_and_a_day_at_most() {
        assert_eq!(seconds("0.2"), Ok(Duration::from_millis(200)));
        for wrong in ["-1", "nan", "inf", "1e300", "86401", "", "1s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_time_to_wait_is_all_the_time_there_is() {
        assert_eq!((wait("0"), wait("0.3")), (Ok(TIMEOUT_MAX), Ok(Duration::from_millis(300))));
        assert!(wait("3601").is_err() && wait("-1").is_err());
    }

    #[test]
    fn patterns_and_classes_are_hexadecimal() {
        assert_eq!(bytes("ff0").unwrap(), [0xff, 0]);
        assert!(bytes("0x").is_err() && bytes("").is_err() && bytes(&"0".repeat(33)).is_err());
        assert_eq!((tos("0x10"), tos("0X1f"), tos("16")), (Ok(16), Ok(31), Ok(16)));
        assert!(tos("256").is_err());
    }
}
