//! The packet path, and the loop that drives it.
//!
//! ```text
//!  a peer's datagram -> opened (peers) -> DNS? -> the resolver (dns)
//!                                      -> a ping to outside? -> Echogate (pings)
//!                                      -> the kernel, by the TUN device
//!  an answer of the resolver  -> its client's peer
//!  a reply to a ping          -> its peer's mailbox -> the peer
//!  a packet from the kernel   -> whoever's address it has
//! ```
//!
//! One thread, which sleeps in poll and waits for nothing else. In each turn each source has a share of [`TURN`] packets, so
//! that none starves another. Packets cause drops, counted by name, and no log lines.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use echogate::clock::{Clock as _, Instant, Monotonic};
use echogate::error::SetupError;
use echogate::policy::Allowance;
use echogate::proxy::Settings;
use echogate::wire::ipv4::Ipv4;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::Arguments;
use crate::config::Config;
use crate::dns::Dns;
use crate::drops::Drops;
use crate::mailboxes::{Mailboxes, Postman};
use crate::peers::{BUFFER_BYTES, Opened, Peers};
use crate::pings::{Answer, Pings, Turn};
use crate::routes::Routes;

/// Packets that one source brings in a turn.
const TURN: usize = 64;

/// How often handshakes, keep-alives and expiries are looked at.
const TICK: Duration = Duration::from_millis(250);

/// An address for finding out from where this host reaches the internet (RFC 5737); nothing is sent there.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub(crate) struct Server {
    path: Path,
    pings: Option<Pings>,
    mailboxes: Arc<Mailboxes>,
    bell: Arc<EventFd>,
    clock: Monotonic,
}

/// Where packets come from and go to.
struct Path {
    peers: Peers,
    kernel: SyncDevice,
    dns: Option<Dns>,
    drops: Drops,
}

impl Path {
    /// A peer has sent a packet.
    fn from_peer(&mut self, Opened { peer, packet }: Opened<'_>, pings: Option<&mut Turn<'_>>, now: Instant) {
        if let Some(dns) = &mut self.dns
            && dns.take(packet, now)
        {
            return;
        }
        match pings.map_or(Answer::NotOurs, |pings| pings.offer(peer, packet)) {
            Answer::Taken => {}
            Answer::Tell(error) => self.peers.send(peer, error),
            Answer::NotOurs => self.to_kernel(packet),
        }
    }

    /// The kernel has routed a packet to the peers' network.
    fn from_kernel(&mut self, packet: &[u8]) {
        match Ipv4::check(packet).ok().and_then(|packet| self.peers.peer_of(packet.destination())) {
            Some(peer) => self.peers.send(peer, packet),
            None => self.drops.count("no_peer"),
        }
    }

    fn to_kernel(&mut self, packet: &[u8]) {
        if self.kernel.send(packet).is_err() {
            self.drops.count("kernel_refused");
        }
    }
}

impl Server {
    pub(crate) fn open(arguments: &Arguments, config: &Config) -> Result<Server, SetupError> {
        let clock = Monotonic::new();
        let peers = Peers::open(config)?;
        let kernel = open_tun(&arguments.device()?, config)?;
        let dns = arguments.dns.map(|resolver| Dns::open(config.address, resolver.address())).transpose()?;
        let mailboxes = Mailboxes::new(config.peers.len());
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| SetupError::caused("cannot make an eventfd", errno.into()).remedy("ulimit -n"))?;
        let bell = Arc::new(bell);
        let count = config.peers.len();
        tracing::info!("serving {count} peers on UDP port {}: {}", config.listen_port, config.network);

        let pings = if arguments.without_echogate {
            None
        } else {
            let postman = Postman {
                mailboxes: Arc::clone(&mailboxes),
                routes: Routes::new(&config.peers),
                bell: Arc::clone(&bell),
            };
            let address = arguments.outside.map_or_else(own_address, Ok)?;
            let mut settings = Settings::new(config.clients(), vec![address]);
            settings.echo_timeout = Duration::from_secs(arguments.echo_timeout);
            if arguments.no_limits {
                settings.allowance = Allowance::UNLIMITED;
            }
            let pings = Pings::start(settings, config.mtu, clock, postman)?;
            tracing::info!("pings leave by Echogate, from {address}");
            Some(pings)
        };
        Ok(Server { path: Path { peers, kernel, dns, drops: Drops::default() }, pings, mailboxes, bell, clock })
    }

    /// Serves until `stop` can be read. An error is the end of the device or of Echogate's thread.
    pub(crate) fn serve(&mut self, stop: &UnixStream) -> Result<(), SetupError> {
        let (mut datagram, mut plain) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
        let mut next_tick = self.clock.now();
        let mut more = false;
        loop {
            let ready = self.wait(stop, next_tick, more)?;
            if ready.stop {
                return Ok(());
            }
            if let Some(fault) = self.pings.as_ref().and_then(Pings::fault) {
                return Err(fault);
            }
            let now = self.clock.now();
            let path = &mut self.path;
            // A batch for each turn: it has the time, and ends before the loop waits.
            let mut pings = self.pings.as_mut().map(Pings::turn);

            for (peer, mut packet) in pings.as_mut().map(Turn::waiting).unwrap_or_default() {
                path.from_peer(Opened { peer, packet: &mut packet }, pings.as_mut(), now);
            }
            for _ in 0..if ready.peers { TURN } else { 0 } {
                let Some((length, from)) = path.peers.receive(&mut datagram) else { break };
                if let Ok(Some(opened)) = path.peers.open_datagram(&datagram[..length], from, &mut plain) {
                    path.from_peer(opened, pings.as_mut(), now);
                }
            }
            for _ in 0..if ready.kernel { TURN } else { 0 } {
                match path.kernel.recv(&mut plain) {
                    Ok(length) => path.from_kernel(&plain[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(SetupError::caused("the TUN device is gone", error)),
                }
            }
            for _ in 0..if ready.dns { TURN } else { 0 } {
                let Some((client, answer)) = path.dns.as_mut().and_then(|dns| dns.answer(now)) else { break };
                if let Some(peer) = path.peers.peer_of(client) {
                    path.peers.send(peer, &answer);
                }
            }
            more = self.mailboxes.take(TURN, |peer, reply| path.peers.send(peer, reply));
            if now >= next_tick {
                path.peers.tick();
                next_tick = now + TICK;
            }
            pings.into_iter().for_each(Turn::end);
        }
    }

    /// Sleeps until there is something to do: at once if there is `more`.
    fn wait(&self, stop: &UnixStream, next_tick: Instant, more: bool) -> Result<Ready, SetupError> {
        let until_tick = next_tick.since(self.clock.now());
        let until_expiry = self.pings.as_ref().and_then(Pings::sleep_max).unwrap_or(TICK);
        let sleep = if more { Duration::ZERO } else { until_tick.min(until_expiry) };
        // Rounded up, or the last fraction of a millisecond would be spun away.
        let timeout = PollTimeout::try_from(sleep + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
        // Without a resolver that place watches what is watched already.
        let dns = self.path.dns.as_ref().map_or(stop.as_fd(), AsFd::as_fd);
        let watch = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut watched =
            [stop.as_fd(), self.path.peers.as_fd(), self.path.kernel.as_fd(), dns, self.bell.as_fd()].map(watch);
        match poll(&mut watched, if more { PollTimeout::ZERO } else { timeout }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SetupError::caused("cannot wait for packets", errno.into())),
        }
        // Errors as well: a read tells which.
        let [stop, peers, kernel, dns, bell] = watched.map(|watch| watch.any().unwrap_or(false));
        if bell {
            // Emptied before the mailboxes are: what comes later rings again.
            let _ = self.bell.read();
        }
        Ok(Ready { stop, peers, kernel, dns })
    }

    /// Ends Echogate's thread and tells what was dropped.
    pub(crate) fn stop(self) -> Result<(), SetupError> {
        let mut drops = self.path.drops;
        drops.merge(self.path.peers.drops());
        if let Some(dns) = &self.path.dns {
            drops.merge(dns.drops());
        }
        tracing::info!("ended; dropped: {drops}");
        if let Some(pings) = self.pings {
            let (asked, answered) = pings.stop()?;
            let dropped = |drops: &[(String, u64)]| {
                drops.iter().map(|(name, count)| format!(", {name} {count}")).collect::<String>()
            };
            tracing::info!("pings sent {}{}", asked.outside_out.packets, dropped(&asked.drops));
            tracing::info!(
                "ping replies delivered {}, errors {}{}, overtaken {}",
                answered.delivered.packets,
                answered.told.packets,
                dropped(&answered.drops),
                self.mailboxes.overtaken(),
            );
        }
        Ok(())
    }
}

struct Ready {
    stop: bool,
    peers: bool,
    kernel: bool,
    dns: bool,
}

fn open_tun(name: &str, config: &Config) -> Result<SyncDevice, SetupError> {
    let device = DeviceBuilder::new()
        .name(name)
        .ipv4(config.address, config.network.length(), None)
        .mtu(config.mtu)
        .build_sync()
        .and_then(|device| device.set_nonblocking(true).map(|()| device));
    device.map_err(|cause| {
        SetupError::caused(format!("cannot make the TUN device {name}"), cause).remedy(
            "root, or CAP_NET_ADMIN and /dev/net/tun; the name must be free (ip link del removes one that was left)",
        )
    })
}

/// The address that this host reaches the internet from.
fn own_address() -> Result<Ipv4Addr, SetupError> {
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((SOMEWHERE, 9)).and_then(|()| socket.local_addr()));
    match found.map(|address| address.ip()) {
        Ok(std::net::IpAddr::V4(address)) => Ok(address),
        Ok(_) => Err(SetupError::new("the way to the internet has no IPv4 address")),
        Err(cause) => Err(SetupError::caused("cannot tell from which address pings leave", cause)),
    }
    .map_err(|error| error.remedy("a default route, or --outside ADDRESS with an address of this host"))
}
