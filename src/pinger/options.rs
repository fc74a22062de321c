//! What a ping may be told: whom to ask, how long to wait, what the request looks like.

use std::ffi::CString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use super::error::PingError;
use crate::io::ping::PathMtu;
use crate::sys::ping as sys;

/// The most payload bytes of a request: what fits into an IPv4 datagram beside the two headers.
pub const SIZE_MAX: usize = 65_507;

/// The payload bytes of a request unless told otherwise: 64 with the ICMP header, as every `ping` has it.
pub const SIZE_DEFAULT: usize = 56;

/// The most bytes of a pattern.
pub const PATTERN_MAX: usize = 16;

/// How long a ping waits for its reply unless told otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// The longest that a ping may wait.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The host to ping: an address, or a name that stands for one.
///
/// Made from either by `into()`; a text that is an address is one, and asks no resolver.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// An address; an IPv6 one with the number of its interface, if it needs one to mean anything (fe80::/10).
    Address(SocketAddr),
    /// A name, resolved when the ping begins.
    Name(String),
}

impl From<IpAddr> for Target {
    fn from(address: IpAddr) -> Target {
        Target::Address(SocketAddr::new(address, 0))
    }
}

impl From<Ipv4Addr> for Target {
    fn from(address: Ipv4Addr) -> Target {
        Target::Address(SocketAddrV4::new(address, 0).into())
    }
}

impl From<Ipv6Addr> for Target {
    fn from(address: Ipv6Addr) -> Target {
        Target::Address(SocketAddrV6::new(address, 0, 0, 0).into())
    }
}

impl From<SocketAddr> for Target {
    /// The port is of no consequence.
    fn from(mut address: SocketAddr) -> Target {
        address.set_port(0);
        Target::Address(address)
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Target {
        text.parse::<IpAddr>().map_or_else(|_| Target::Name(text.to_owned()), Target::from)
    }
}

impl From<String> for Target {
    fn from(text: String) -> Target {
        text.parse::<IpAddr>().map_or(Target::Name(text), Target::from)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(address) => address.ip().fmt(f),
            Target::Name(name) => f.write_str(name),
        }
    }
}

/// Which kind of address a name is to stand for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Family {
    /// The first that the resolver tells, of either kind.
    #[default]
    Any,
    /// The first IPv4 address.
    V4,
    /// The first IPv6 address.
    V6,
}

impl Family {
    /// Whether the address is of this family.
    pub fn admits(self, address: IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        }
    }
}

/// What a request looks like and how long its reply is waited for. Small and `Copy`: one value serves any number of
/// pings.
///
/// ```
/// use std::time::Duration;
///
/// use echogate::pinger::{PathMtu, PingOptions};
///
/// # fn main() -> Result<(), echogate::pinger::PingError> {
/// let options = PingOptions::new()
///     .timeout(Duration::from_millis(300))
///     .size(1472)?
///     .path_mtu(PathMtu::Forbid) // sets DF: a router with a smaller MTU has to say so
///     .ttl(12)?;
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PingOptions {
    pub(super) timeout: Duration,
    pub(super) size: u16,
    pub(super) pattern: [u8; PATTERN_MAX],
    /// How many bytes of `pattern` count; none means the counting bytes that `ping` sends.
    pub(super) pattern_len: u8,
    pub(super) ttl: Option<u8>,
    pub(super) tos: Option<u8>,
    pub(super) path_mtu: PathMtu,
    pub(super) source: Option<IpAddr>,
    pub(super) interface: Option<u32>,
    pub(super) family: Family,
}

impl Default for PingOptions {
    fn default() -> PingOptions {
        PingOptions::new()
    }
}

impl PingOptions {
    /// One second, 56 bytes, and for all else what the system does by default.
    pub const fn new() -> PingOptions {
        PingOptions {
            timeout: TIMEOUT_DEFAULT,
            size: 56,
            pattern: [0; PATTERN_MAX],
            pattern_len: 0,
            ttl: None,
            tos: None,
            path_mtu: PathMtu::System,
            source: None,
            interface: None,
            family: Family::Any,
        }
    }

    /// How long to wait, resolving the name included; at most an hour. Zero fails at once, without a request.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> PingOptions {
        self.timeout = if timeout.as_nanos() > TIMEOUT_MAX.as_nanos() { TIMEOUT_MAX } else { timeout };
        self
    }

    /// Payload bytes, 0 to [`SIZE_MAX`]. Of the first eight, as many as there are hold the ping's cookie.
    pub fn size(mut self, bytes: usize) -> Result<PingOptions, PingError> {
        self.size = u16::try_from(bytes).ok().filter(|size| usize::from(*size) <= SIZE_MAX).ok_or_else(|| {
            PingError::InvalidOption(format!("a payload of {bytes} bytes: there can be 0 to {SIZE_MAX}").into())
        })?;
        Ok(self)
    }

    /// What the payload is filled with, over and over: 1 to [`PATTERN_MAX`] bytes. Some faults on a line depend on it.
    pub fn pattern(mut self, pattern: &[u8]) -> Result<PingOptions, PingError> {
        if !(1..=PATTERN_MAX).contains(&pattern.len()) {
            let text = format!("a pattern of {} bytes: there can be 1 to {PATTERN_MAX}", pattern.len());
            return Err(PingError::InvalidOption(text.into()));
        }
        self.pattern[..pattern.len()].copy_from_slice(pattern);
        self.pattern_len = u8::try_from(pattern.len()).unwrap_or(0);
        Ok(self)
    }

    /// The time to live (IPv6: the hop limit), from 1: how many routers may pass the request on, and one more.
    pub fn ttl(mut self, ttl: u8) -> Result<PingOptions, PingError> {
        if ttl == 0 {
            return Err(PingError::InvalidOption("a TTL of 0: it can be 1 to 255".into()));
        }
        self.ttl = Some(ttl);
        Ok(self)
    }

    /// The type of service (IPv6: the traffic class): DSCP in the upper six bits, ECN in the lower two.
    #[must_use]
    pub const fn tos(mut self, tos: u8) -> PingOptions {
        self.tos = Some(tos);
        self
    }

    /// Whether the request may be fragmented, and what of the path's MTU is believed.
    #[must_use]
    pub const fn path_mtu(mut self, path_mtu: PathMtu) -> PingOptions {
        self.path_mtu = path_mtu;
        self
    }

    /// The address to send from: one of this host's.
    #[must_use]
    pub const fn source(mut self, source: IpAddr) -> PingOptions {
        self.source = Some(source);
        self
    }

    /// The interface to send by, by name, looked up in the calling thread's network namespace.
    pub fn interface(mut self, name: &str) -> Result<PingOptions, PingError> {
        let index = CString::new(name).ok().and_then(|name| sys::interface_index(&name).ok());
        let unknown = || PingError::InvalidOption(format!("there is no network interface {name:?}").into());
        self.interface = Some(index.ok_or_else(unknown)?);
        Ok(self)
    }

    /// Which kind of address a name is to stand for. An address of the other kind is then refused.
    #[must_use]
    pub const fn family(mut self, family: Family) -> PingOptions {
        self.family = family;
        self
    }

    pub(super) fn pattern_bytes(&self) -> Option<&[u8]> {
        (self.pattern_len > 0).then(|| &self.pattern[..usize::from(self.pattern_len)])
    }
}

/// The unspecified address is not one that answers: as everywhere, it means this host.
pub(super) fn reachable(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        // What a resolver may say for IPv4; an IPv6 socket could not reach it.
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or_else(|| address.into(), IpAddr::V4),
        ip => ip,
    };
    match to {
        SocketAddr::V6(mut six) if ip.is_ipv6() => {
            if let IpAddr::V6(address) = ip {
                six.set_ip(address);
            }
            SocketAddr::V6(six)
        }
        _ => SocketAddr::new(ip, 0),
    }
}
