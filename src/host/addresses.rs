//! The gateway's addresses on this host: whether the host still has them, and which its default one is.
//!
//! A thread looks whenever the kernel has news of addresses, routes or devices, and says what has changed: an address is
//! lost, one is back, or (where nobody named the addresses) the default route's source is another one now. News only
//! wakes; the state itself is compared each time, so that a lost event costs nothing.
//!
//! A change that whoever is told cannot act on (a socket that cannot be bound anew, say) is told again a second later, and until it
//! is acted on. An address among the clients' is nobody's to follow to: the gateway would take its own pings for a client's.
//!
//! An address counts as the host's if the kernel takes it for local, by an address of a device or by a local route (AnyIP). Where
//! the default route goes altogether the address stays: the kernel says by itself that there is no way.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::default_source;
use super::netlink::{Events, Group, Netlink};
use crate::error::SetupError;
use crate::policy::Prefix;
use crate::sys::poll;

/// News comes in bursts: one look for all of it, at most ten a second.
const SETTLE: Duration = Duration::from_millis(100);

/// When to look again after a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What has changed about an address, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The host has this address no more.
    Lost(u8, Ipv4Addr),
    /// It has it again.
    Back(u8, Ipv4Addr),
    /// The number stands for this address from now on, which is the host's.
    Replaced(u8, Ipv4Addr),
    /// The default route's source is this address, which is among the clients': the number stands for what it stood for.
    Unfit(u8, Ipv4Addr),
}

/// Whether the first address is the default route's source, and goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Follow {
    /// The addresses were named, and stay.
    No,
    /// It goes with it, but to none of these clients'.
    Except(Vec<Prefix>),
}

/// The thread, until dropped.
#[derive(Debug)]
pub struct AddressWatch {
    /// Hangs up when dropped, and the thread ends.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// What is known, and how to know better.
struct Known {
    netlink: Netlink,
    addresses: Vec<Ipv4Addr>,
    lost: Vec<bool>,
    follow: Follow,
    /// What has been told of as unfit.
    unfit: Option<Ipv4Addr>,
}

impl AddressWatch {
    /// Watches these addresses in the network namespace of the calling thread, and calls `changed` on a thread of its own. An
    /// error from it means that the change has not been acted on.
    pub fn start(
        addresses: Vec<Ipv4Addr>,
        follow: Follow,
        mut changed: impl FnMut(Change) -> Result<(), SetupError> + Send + 'static,
    ) -> Result<AddressWatch, SetupError> {
        let failed = |error| SetupError::caused("watching the outside addresses", error);
        let mut news = Events::open(&[Group::Link, Group::Ipv4Address, Group::Ipv4Route]).map_err(failed)?;
        let lost = vec![false; addresses.len()];
        let netlink = Netlink::open().map_err(failed)?;
        let mut known = Known { netlink, addresses, lost, follow, unfit: None };
        let (stop, stopped) = UnixStream::pair().map_err(failed)?;
        let thread = thread::Builder::new()
            .name("address-watch".to_owned())
            .spawn(move || {
                // What has changed since they were given, and before there was news of it.
                let mut retry = Some(Duration::ZERO);
                while let Ok(true) = wait(&mut news, &stopped, retry) {
                    let looked = known.look(&mut changed);
                    retry = looked.is_err().then_some(RETRY);
                    if let Err(error) = looked {
                        tracing::debug!(%error, "looking at the outside addresses, again in a second");
                    }
                }
            })
            .map_err(failed)?;
        Ok(AddressWatch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().map(JoinHandle::join).is_some_and(|ended| ended.is_err()) {
            tracing::error!("the thread that watches the outside addresses has panicked");
        }
    }
}

/// Waits for news, then until it has settled. False: it is time to end.
fn wait(news: &mut Events, stopped: &UnixStream, retry: Option<Duration>) -> io::Result<bool> {
    let [ended, _] = poll::readable([stopped.as_fd(), news.as_fd()], retry)?;
    let [ended_since] = if ended { [true] } else { poll::readable([stopped.as_fd()], Some(SETTLE))? };
    news.drain()?;
    Ok(!ended && !ended_since)
}

impl Known {
    /// Compares what is with what is known, and tells what differs. What could not be told, or acted on, is not known yet.
    fn look(&mut self, changed: &mut impl FnMut(Change) -> Result<(), SetupError>) -> Result<(), SetupError> {
        let asking = |error| SetupError::caused("asking the kernel for an address", error);
        for number in 0..self.addresses.len() {
            let Ok(named) = u8::try_from(number) else { break };
            match self.successor(number).map_err(asking)? {
                Some(address) if !self.is_unfit(address) => {
                    changed(Change::Replaced(named, address))?;
                    (self.addresses[number], self.lost[number], self.unfit) = (address, false, None);
                    continue;
                }
                Some(unfit) if self.unfit != Some(unfit) => {
                    changed(Change::Unfit(named, unfit))?;
                    self.unfit = Some(unfit);
                }
                Some(_) | None => {}
            }
            let address = self.addresses[number];
            let lost = !self.has(address).map_err(asking)?;
            if lost != self.lost[number] {
                changed(if lost { Change::Lost(named, address) } else { Change::Back(named, address) })?;
                self.lost[number] = lost;
            }
        }
        Ok(())
    }

    /// What follows the address of this number, if something does.
    fn successor(&mut self, number: usize) -> io::Result<Option<Ipv4Addr>> {
        if self.follow == Follow::No || number != 0 {
            return Ok(None);
        }
        let now = default_source().ok().filter(|source| *source != self.addresses[0]);
        // Nobody is told of an address that is gone again.
        Ok(match now {
            Some(source) if self.has(source)? => Some(source),
            _ => None,
        })
    }

    fn is_unfit(&self, address: Ipv4Addr) -> bool {
        matches!(&self.follow, Follow::Except(clients) if clients.iter().any(|clients| clients.contains(address)))
    }

    fn has(&mut self, address: Ipv4Addr) -> io::Result<bool> {
        Ok(self.netlink.route_to(address, None)?.is_some_and(|way| way.local))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;

    use super::*;
    use crate::host::scene::{OUTSIDE, Scene};

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.expect("iproute2 is installed: apt-get install iproute2").success(), "ip {arguments}");
    }

    const CLIENTS: Prefix = Prefix::host(Ipv4Addr::new(10, 66, 0, 1));

    fn told(changed: &mpsc::Sender<Change>, change: Change) -> Result<(), SetupError> {
        // Nobody listens any more once all that was expected has come.
        changed.send(change).unwrap_or_default();
        Ok(())
    }

    #[test]
    fn a_change_that_could_not_be_acted_on_is_told_again() {
        let other = Ipv4Addr::new(198, 18, 0, 99);
        Scene::new().at_gateway(|| {
            let (changed, changes) = mpsc::channel();
            let mut failures = 2;
            let fail_twice = move |change| {
                told(&changed, change)?;
                if failures == 0 {
                    return Ok(());
                }
                failures -= 1;
                Err(SetupError::new("a socket that cannot be bound anew"))
            };
            let watch = AddressWatch::start(vec![OUTSIDE], Follow::Except(vec![CLIENTS]), fail_twice);
            let watch = watch.expect("it starts");
            ip("address add 198.18.0.99/32 dev w0");
            ip("route replace default via 198.18.0.2 src 198.18.0.99");
            for _ in 0..3 {
                assert_eq!(changes.recv_timeout(Duration::from_secs(10)), Ok(Change::Replaced(0, other)));
            }
            // Acted on, it is known.
            ip("address del 198.18.0.99/32 dev w0");
            assert_eq!(changes.recv_timeout(Duration::from_secs(10)), Ok(Change::Lost(0, other)));
            drop(watch);
        });
    }

    #[test]
    fn nobody_is_followed_to_an_address_among_the_clients() {
        let clients: Prefix = "198.51.100.0/24".parse().expect("a prefix");
        let (unfit, other) = (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 18, 0, 99));
        Scene::new().at_gateway(|| {
            let (changed, changes) = mpsc::channel();
            let send = move |change| told(&changed, change);
            let watch = AddressWatch::start(vec![OUTSIDE], Follow::Except(vec![clients]), send).expect("it starts");
            let next = || changes.recv_timeout(Duration::from_secs(10)).expect("a change is noticed");
            ip("address add 198.51.100.7/32 dev w0");
            ip("route replace default via 198.18.0.2 src 198.51.100.7");
            assert_eq!(next(), Change::Unfit(0, unfit));
            // Said once; what is there still counts.
            ip("address add 198.18.0.99/32 dev w0");
            ip("address del 198.18.0.1/24 dev w0");
            assert_eq!(next(), Change::Lost(0, OUTSIDE));
            // The route by that network has gone too.
            ip("address replace 198.18.0.99/24 dev w0");
            ip("route replace default via 198.18.0.2 src 198.18.0.99");
            assert_eq!(next(), Change::Replaced(0, other));
            drop(watch);
            assert_eq!(changes.try_iter().collect::<Vec<_>>(), [], "nothing else");
        });
    }

    #[test]
    fn an_address_that_was_lost_before_there_was_news_of_it_is_noticed() {
        Scene::new().at_gateway(|| {
            let (changed, changes) = mpsc::channel();
            let send = move |change| told(&changed, change);
            let gone = Ipv4Addr::new(198, 51, 100, 7);
            let _watch = AddressWatch::start(vec![OUTSIDE, gone], Follow::No, send).expect("it starts");
            assert_eq!(changes.recv_timeout(Duration::from_secs(10)), Ok(Change::Lost(1, gone)));
        });
    }

    #[test]
    fn an_address_that_goes_and_comes_and_a_default_that_changes_are_noticed() {
        let (anyip, other) = (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 18, 0, 99));
        let anybody = Follow::Except(vec![CLIENTS]);
        for (follow, at_last) in [(Follow::No, Change::Lost(0, OUTSIDE)), (anybody, Change::Replaced(0, other))] {
            Scene::new().at_gateway(|| {
                ip("route add local 198.51.100.0/24 dev lo");
                let (changed, changes) = mpsc::channel();
                let send = move |change| told(&changed, change);
                let follow_default = follow != Follow::No;
                let watch = AddressWatch::start(vec![OUTSIDE, anyip], follow, send).expect("it starts");
                let next = || changes.recv_timeout(Duration::from_secs(10)).expect("a change is noticed");
                ip("route del local 198.51.100.0/24 dev lo");
                assert_eq!(next(), Change::Lost(1, anyip));
                ip("route add local 198.51.100.0/24 dev lo");
                assert_eq!(next(), Change::Back(1, anyip));
                // Not of the network of the first, with which it would go.
                ip("address add 198.18.0.99/32 dev w0");
                ip("route replace default via 198.18.0.2 src 198.18.0.99");
                if follow_default {
                    assert_eq!(next(), at_last);
                }
                ip("address del 198.18.0.1/24 dev w0");
                if !follow_default {
                    assert_eq!(next(), at_last);
                }
                drop(watch);
                assert_eq!(changes.try_iter().collect::<Vec<_>>(), [], "nothing else");
            });
        }
    }
}
