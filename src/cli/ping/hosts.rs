//! Whom to ping: what the command line, a list or a network names, resolved once and before the first request.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam::channel;

use super::stats::{HISTOGRAMS_MAX, Stats};
use crate::error::SetupError;
use crate::pinger::{Family, PingError, resolve};
use crate::policy::Prefix;

/// The most hosts of one run: memory for each is a name, an address and, once it was asked, its numbers.
pub(super) const HOSTS_MAX: usize = 1 << 20;

/// The longest line of a list: no name is longer than 255.
const LINE_MAX: u64 = 1024;

/// Names that are resolved at once.
const RESOLVERS_MAX: usize = 16;

/// How long the resolver may say nothing before the run goes on without it: more than the C library's two attempts.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(15);

/// One host and what is known of it.
#[derive(Debug)]
pub(super) struct Host {
    /// As the user wrote it.
    pub(super) name: Box<str>,
    pub(super) address: SocketAddr,
    /// From its first outcome on.
    stats: Option<Box<Stats>>,
}

/// All hosts of a run.
#[derive(Debug)]
pub(super) struct Hosts {
    pub(super) list: Vec<Host>,
    percentiles: bool,
}

impl Host {
    pub(super) fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// `name (address)`, or the address alone if that is its name.
    pub(super) fn is_named(&self) -> bool {
        !is_literal(&self.name)
    }

    /// Its address; with the interface that the user named with it.
    pub(super) fn shown(&self) -> String {
        let interface = self.name.split_once('%').filter(|_| !self.is_named());
        interface.map_or_else(|| self.ip().to_string(), |(_, interface)| format!("{}%{interface}", self.ip()))
    }

    pub(super) fn stats(&self) -> Option<&Stats> {
        self.stats.as_deref()
    }
}

impl Hosts {
    pub(super) fn new(list: Vec<Host>) -> Hosts {
        let percentiles = list.len() <= HISTOGRAMS_MAX;
        Hosts { list, percentiles }
    }

    pub(super) fn stats_mut(&mut self, host: usize) -> &mut Stats {
        let percentiles = self.percentiles;
        self.list[host].stats.get_or_insert_with(|| Box::new(Stats::new(percentiles)))
    }
}

/// Whether it is an address and no name; an IPv6 one perhaps with its interface (`fe80::1%eth0`).
pub(super) fn is_literal(name: &str) -> bool {
    name.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// The names to ping, in the order in which they were given: arguments, then the list, then the networks.
pub(super) fn names(given: &[String], file: Option<&Path>, networks: &[Prefix]) -> Result<Vec<String>, SetupError> {
    let mut names: Vec<String> = given.to_vec();
    if let Some(path) = file {
        read_list(path, &mut names)?;
    }
    for network in networks {
        let hosts = usize::try_from(network.addresses()).unwrap_or(usize::MAX);
        if names.len().saturating_add(hosts) > HOSTS_MAX {
            return Err(too_many());
        }
        names.extend(addresses(*network).map(|address| address.to_string()));
    }
    if names.is_empty() {
        return Err(
            SetupError::new("there is nobody to ping").remedy("name a host, or give a list (--file) with hosts in it")
        );
    }
    Ok(names)
}

/// A network's hosts: without the network's own and the broadcast address, where there are such.
fn addresses(network: Prefix) -> impl Iterator<Item = Ipv4Addr> {
    let first = u64::from(u32::from(network.address()));
    let count = network.addresses();
    let edge = u64::from(network.length() < 31);
    (first + edge..first + count - edge).filter_map(|number| u32::try_from(number).ok()).map(Ipv4Addr::from)
}

fn too_many() -> SetupError {
    SetupError::new("too many hosts")
        .remedy(format!("one run pings at most {HOSTS_MAX}: split the list or the network"))
}

/// One host a line, the first word of it; what follows and lines that begin with # are comments, as in /etc/hosts.
fn read_list(path: &Path, names: &mut Vec<String>) -> Result<(), SetupError> {
    let shown = if path == Path::new("-") { PathBuf::from("standard input") } else { path.to_owned() };
    let refused = |cause| {
        SetupError::caused(format!("{}: cannot be read", shown.display()), cause)
            .remedy("give --file a list that this user may read, or - for standard input")
    };
    let mut reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).map_err(refused)?))
    };
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let length = reader.by_ref().take(LINE_MAX).read_line(&mut line).map_err(refused)?;
        if length == 0 {
            break;
        }
        let Some(name) = line.split_whitespace().next().filter(|word| !word.starts_with('#')) else { continue };
        if name.len() > 255 || u64::try_from(length).is_ok_and(|length| length == LINE_MAX) {
            return Err(SetupError::new(format!("{}:{number}: a line too long for a host", shown.display())));
        }
        if names.len() >= HOSTS_MAX {
            return Err(too_many());
        }
        names.push(name.to_owned());
    }
    Ok(())
}

/// Resolves the names, several at once. What cannot be resolved is told apart, and so is all that is left when the resolver
/// has said nothing for [`RESOLVER_PATIENCE`]: a run must begin, or fail, although a resolver hangs.
pub(super) fn look_up(names: Vec<String>, family: Family) -> (Vec<Host>, Vec<PingError>) {
    look_up_by(names, family, RESOLVER_PATIENCE, move |name| resolve(name, family))
}

fn look_up_by(
    names: Vec<String>,
    family: Family,
    patience: Duration,
    ask: impl Fn(&str) -> Result<SocketAddr, PingError> + Clone + Send + 'static,
) -> (Vec<Host>, Vec<PingError>) {
    let literal = |name: &String| name.parse().ok().filter(|address| family.admits(*address));
    let mut found: Vec<Option<Result<SocketAddr, PingError>>> =
        names.iter().map(|name| literal(name).map(|address| Ok(SocketAddr::new(address, 0)))).collect();
    let (jobs, queue) = channel::unbounded();
    let (teller, told) = channel::unbounded();
    for (number, name) in names.iter().enumerate().filter(|(number, _)| found[*number].is_none()) {
        // The receiver is at hand, here and below.
        let _ = jobs.send((number, name.clone()));
    }
    drop(jobs);
    for _ in 0..queue.len().min(RESOLVERS_MAX) {
        let (queue, teller, ask) = (queue.clone(), teller.clone(), ask.clone());
        // Left behind if the resolver hangs. Without a single thread, nobody tells anything, and that is told.
        let work = move || queue.iter().try_for_each(|(number, name)| teller.send((number, ask(&name))));
        let _ = thread::Builder::new().name("names".to_owned()).spawn(work);
    }
    drop(teller);
    while let Ok((number, outcome)) = told.recv_timeout(patience) {
        found[number] = Some(outcome);
    }
    let (mut hosts, mut failed) = (Vec::with_capacity(names.len()), Vec::new());
    for (name, outcome) in names.into_iter().zip(found) {
        match outcome {
            Some(Ok(address)) => hosts.push(Host { name: name.into(), address, stats: None }),
            Some(Err(error)) => failed.push(error),
            None => {
                let cause = format!("the resolver has said nothing for {} s", patience.as_secs_f32());
                failed.push(PingError::NotResolved { name: name.into(), cause: cause.into() });
            }
        }
    }
    (hosts, failed)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_network_is_its_hosts() {
        let of = |text: &str| addresses(text.parse().unwrap()).map(|address| address.to_string()).collect::<Vec<_>>();
        assert_eq!(of("198.18.0.0/30"), ["198.18.0.1", "198.18.0.2"]);
        assert_eq!(of("198.18.0.0/31"), ["198.18.0.0", "198.18.0.1"]);
        assert_eq!(of("198.18.0.7/32"), ["198.18.0.7"]);
    }

    #[test]
    fn a_list_has_comments_and_an_empty_one_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(names(&[], Some(file.path()), &[]).is_err());
        writeln!(file, "# routers\n198.18.0.1  the first\n\n  198.18.0.2").unwrap();
        assert_eq!(names(&[], Some(file.path()), &[]).unwrap(), ["198.18.0.1", "198.18.0.2"]);
        writeln!(file, "{}", "x".repeat(5000)).unwrap();
        assert!(names(&[], Some(file.path()), &[]).unwrap_err().to_string().contains(":5: "));
    }

    #[test]
    fn more_hosts_than_fit_are_refused_before_they_are_made() {
        let error = names(&[], None, &["0.0.0.0/0".parse().unwrap()]).unwrap_err().to_string();
        assert!(error.starts_with("too many hosts"), "{error}");
    }

    #[test]
    fn a_resolver_that_hangs_holds_up_a_run_for_a_bounded_time() {
        let (release, hung) = channel::bounded::<()>(0);
        let ask = move |name: &str| match name {
            "quick" => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)),
            _ => {
                let _ = hung.recv();
                Err(PingError::Cancelled)
            }
        };
        let names = ["hangs", "127.0.0.1", "quick"].map(str::to_owned).to_vec();
        let (hosts, failed) = look_up_by(names, Family::Any, Duration::from_millis(500), ask);
        assert_eq!(hosts.iter().map(|host| &*host.name).collect::<Vec<_>>(), ["127.0.0.1", "quick"]);
        assert_eq!(failed[0].to_string(), "hangs: the resolver has said nothing for 0.5 s");
        drop(release);
    }
}
