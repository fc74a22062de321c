//! Set-up, the loop that drives the packet path, and the totals.
//!
//! One thread, which sleeps in poll and waits for nothing else. In each turn each source has a share of [`TURN`] packets, so
//! that none starves another; what is left wakes the next turn at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use echogate::clock::{Clock as _, Instant, Monotonic};
use echogate::error::SetupError;
use echogate::policy::Allowance;
use echogate::proxy::Settings;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::Arguments;
use crate::config::Config;
use crate::dns::Dns;
use crate::drops::Drops;
use crate::mailboxes::{Mailboxes, Postman};
use crate::path::Path;
use crate::peers::{BUFFER_BYTES, Opened, Peers};
use crate::pings::{Pings, Turn};
use crate::routes::Routes;

/// Packets that one source brings in a turn.
const TURN: usize = 64;

/// How often handshakes, keep-alives and Echogate's thread are looked at.
const TICK: Duration = Duration::from_millis(250);

/// An address for finding out from where this host reaches the internet (RFC 5737); nothing is sent there.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub(crate) struct Server {
    path: Path,
    pings: Option<Pings>,
    /// Rung when there is something in a mailbox.
    bell: Arc<EventFd>,
    clock: Monotonic,
}

impl Server {
    pub(crate) fn open(arguments: &Arguments, config: &Config) -> Result<Server, SetupError> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| SetupError::caused("cannot make an eventfd", errno.into()).remedy("raise ulimit -n"))?;
        let path = Path {
            peers: Peers::open(config)?,
            kernel: open_tun(&arguments.device()?, config)?,
            dns: arguments.dns.map(|resolver| Dns::open(config.address, resolver.address())).transpose()?,
            mailboxes: Mailboxes::new(config.peers.len()),
            drops: Drops::default(),
        };
        let mut server = Server { path, pings: None, bell: Arc::new(bell), clock: Monotonic::new() };
        let Config { network, listen_port, peers, .. } = config;
        tracing::info!("serving {network} on UDP port {listen_port}; peers: {}", peers.len());
        if !arguments.without_echogate {
            server.pings = Some(server.start_pings(arguments, config)?);
        }
        Ok(server)
    }

    fn start_pings(&self, arguments: &Arguments, config: &Config) -> Result<Pings, SetupError> {
        let address = arguments.outside.map_or_else(own_address, Ok)?;
        let mut settings = Settings::new(config.clients(), vec![address]);
        settings.inside_mtu = usize::from(config.mtu);
        settings.echo_timeout = Duration::from_secs(arguments.echo_timeout);
        if arguments.no_limits {
            settings.allowance = Allowance::UNLIMITED;
        }
        let postman = Postman {
            mailboxes: Arc::clone(&self.path.mailboxes),
            routes: Routes::new(&config.peers),
            bell: Arc::clone(&self.bell),
        };
        let pings = Pings::start(settings, self.clock, postman)?;
        tracing::info!("pings leave by Echogate, from {address}");
        Ok(pings)
    }

    /// Serves until `stop` can be read. An error is the end of the device, or of Echogate's thread.
    pub(crate) fn serve(&mut self, stop: &UnixStream) -> Result<(), SetupError> {
        let (mut datagram, mut plain) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
        let mut next_tick = self.clock.now();
        let mut more = false;
        loop {
            let ready = self.wait(stop, next_tick, more)?;
            if ready.stop {
                return Ok(());
            }
            let (path, now) = (&mut self.path, self.clock.now());
            // A batch for each turn: it has the time, and ends before the loop waits.
            let mut pings = self.pings.as_mut().map(|pings| pings.turn(now));

            for (peer, mut packet) in pings.as_mut().map(Turn::waiting).unwrap_or_default() {
                path.outbound(Opened { peer, packet: &mut packet }, pings.as_mut(), now);
            }
            for _ in turn(ready.peers) {
                let Some((length, from)) = path.peers.receive(&mut datagram) else { break };
                if let Ok(Some(opened)) = path.peers.open_datagram(&datagram[..length], from, &mut plain) {
                    path.outbound(opened, pings.as_mut(), now);
                }
            }
            for _ in turn(ready.kernel) {
                match path.kernel.recv(&mut plain) {
                    Ok(length) => path.inbound(&plain[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(SetupError::caused("the TUN device is gone", error)),
                }
            }
            for _ in turn(ready.dns) {
                if !path.dns_answer(now) {
                    break;
                }
            }
            more = path.ping_replies(TURN);

            pings.into_iter().for_each(Turn::end);
            if now >= next_tick {
                path.peers.tick();
                next_tick = now + TICK;
                if let Some(fault) = self.pings.as_ref().and_then(Pings::fault) {
                    return Err(fault);
                }
            }
        }
    }

    /// Sleeps until there is something to do; not at all if there is `more`.
    fn wait(&self, stop: &UnixStream, next_tick: Instant, more: bool) -> Result<Ready, SetupError> {
        let now = self.clock.now();
        let until_expiry = self.pings.as_ref().and_then(|pings| pings.sleep_max(now)).unwrap_or(TICK);
        let sleep = if more { Duration::ZERO } else { next_tick.since(now).min(until_expiry) };
        // Rounded up, or the last fraction of a millisecond would be spun away.
        let rounded = if sleep.is_zero() { sleep } else { sleep + Duration::from_micros(999) };
        let timeout = PollTimeout::try_from(rounded).unwrap_or(PollTimeout::ZERO);
        let Path { peers, kernel, dns, .. } = &self.path;
        // Without a resolver its place watches what is watched already.
        let dns = dns.as_ref().map_or(stop.as_fd(), AsFd::as_fd);
        let watched = [stop.as_fd(), peers.as_fd(), kernel.as_fd(), dns, self.bell.as_fd()];
        let mut watched = watched.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SetupError::caused("cannot wait for packets", errno.into())),
        }
        // An error as well: reading tells which.
        let [stop, peers, kernel, dns, bell] = watched.map(|watch| watch.any().unwrap_or(false));
        if bell {
            // Silenced before the mailboxes are emptied: what comes later rings again.
            let _ = self.bell.read();
        }
        Ok(Ready { stop, peers, kernel, dns })
    }

    /// Ends Echogate's thread, and tells what was dropped.
    pub(crate) fn stop(self) -> Result<(), SetupError> {
        let Path { peers, dns, mailboxes, mut drops, .. } = self.path;
        drops.merge(peers.drops());
        dns.iter().for_each(|dns| drops.merge(dns.drops()));
        tracing::info!("ended; dropped: {drops}");
        if let Some(pings) = self.pings {
            pings.stop(mailboxes.overtaken())?;
        }
        Ok(())
    }
}

/// What can be read.
struct Ready {
    stop: bool,
    peers: bool,
    kernel: bool,
    dns: bool,
}

/// A source's share of a turn.
fn turn(is_ready: bool) -> std::ops::Range<usize> {
    0..if is_ready { TURN } else { 0 }
}

fn open_tun(name: &str, config: &Config) -> Result<SyncDevice, SetupError> {
    let device = DeviceBuilder::new()
        .name(name)
        .ipv4(config.address, config.network.length(), None)
        .mtu(config.mtu)
        .build_sync()
        .and_then(|device| device.set_nonblocking(true).map(|()| device));
    device.map_err(|cause| {
        SetupError::caused(format!("cannot make the TUN device {name}"), cause).remedy(format!(
            "root, or CAP_NET_ADMIN and the right to open /dev/net/tun; if there is a device {name} already, ip link del {name}"
        ))
    })
}

/// The address that this host reaches the internet from.
fn own_address() -> Result<Ipv4Addr, SetupError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let local = socket.and_then(|socket| socket.connect((SOMEWHERE, 9)).and_then(|()| socket.local_addr()));
    let found = local.map_err(|cause| SetupError::caused("cannot tell from which address pings leave", cause));
    let IpAddr::V4(address) = found.map_err(|error| error.remedy("--outside with an address of this host"))?.ip()
    else {
        return Err(SetupError::new("the address that pings leave from is no IPv4 address"));
    };
    Ok(address)
}
