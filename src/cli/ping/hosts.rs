//! Whom to ping: what the command line, a list or a network names, resolved once and before the first request.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

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
        self.name.parse::<IpAddr>().is_err()
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

/// Resolves the names, several at once. What cannot be resolved is told apart.
pub(super) fn look_up(names: Vec<String>, family: Family) -> (Vec<Host>, Vec<PingError>) {
    let found: Vec<Mutex<Option<Result<SocketAddr, PingError>>>> = names
        .iter()
        .map(|name| {
            let literal = name.parse::<IpAddr>().ok().filter(|address| family.admits(*address));
            Mutex::new(literal.map(|address| Ok(SocketAddr::new(address, 0))))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let unknown = found.iter().filter(|place| place.lock().is_ok_and(|place| place.is_none())).count();
    thread::scope(|scope| {
        for _ in 0..unknown.min(RESOLVERS_MAX) {
            scope.spawn(|| {
                // Relaxed: only the number counts; the scope's end publishes what was found.
                let turns = std::iter::from_fn(|| {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    Some((names.get(number)?, found.get(number)?))
                });
                for (name, place) in turns {
                    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                    if place.is_none() {
                        *place = Some(resolve(name, family));
                    }
                }
            });
        }
    });
    let (mut hosts, mut failed) = (Vec::with_capacity(names.len()), Vec::new());
    for (name, place) in names.into_iter().zip(found) {
        match place.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(address)) => hosts.push(Host { name: name.into(), address, stats: None }),
            Some(Err(error)) => failed.push(error),
            None => {}
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
}
