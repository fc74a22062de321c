//! Why there is no round-trip time: errors that a caller can tell apart, with who said so.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SetupError;
use crate::io::ping::Kind;

/// Why a ping has no reply.
///
/// ```
/// use echogate::pinger::PingError;
///
/// fn advise(error: &PingError) -> String {
///     match error {
///         PingError::Timeout { .. } => "nobody answers".to_owned(),
///         PingError::TimeExceeded { from, .. } => format!("{from} is a hop on the way"),
///         PingError::Unreachable { from, .. } => format!("ask whoever runs {from}"),
///         other => other.to_string(),
///     }
/// }
/// # advise(&PingError::Cancelled);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PingError {
    /// No reply in time.
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// No reply in time, and meanwhile this host has thrown packets away because the pinger's receive buffer was full:
    /// the reply may have come.
    DroppedHere {
        /// How long it was waited for.
        after: Duration,
        /// Packets that were thrown away meanwhile.
        drops: u32,
    },
    /// The name stands for no address, or for none of the wanted family.
    NotResolved {
        /// The name.
        name: Arc<str>,
        /// What the resolver said.
        cause: Arc<str>,
    },
    /// The system does not let this user ping; the error says what opens it.
    NotPermitted(Arc<SetupError>),
    /// Somebody on the way, or the target itself, says that it cannot be reached.
    Unreachable {
        /// Who says so.
        from: IpAddr,
        /// Why (ICMP type 3 in IPv4, type 1 in IPv6): [`PingError::reason`] has it in words.
        code: u8,
    },
    /// A router on the way cannot pass on a request of this size without fragmenting it.
    TooBig {
        /// The router.
        from: IpAddr,
        /// What it can pass on, in bytes; 0 if it did not say.
        mtu: u32,
    },
    /// The request's TTL was used up on the way, or not all its fragments arrived in time (code 1).
    TimeExceeded {
        /// Where.
        from: IpAddr,
        /// 0 in transit, 1 in reassembly.
        code: u8,
    },
    /// Another ICMP error about the request.
    Icmp {
        /// Who sent it.
        from: IpAddr,
        /// Its type.
        icmp_type: u8,
        /// Its code.
        code: u8,
    },
    /// This host could not send the request.
    SendFailed {
        /// The system's error number.
        errno: i32,
        /// Where the request was too long (EMSGSIZE): what fits, in bytes, if the system says.
        mtu: Option<u32>,
    },
    /// The ping was given up: the pinger was shut down.
    Cancelled,
    /// As many pings are under way as the pinger may have ([`PingerBuilder::in_flight_max`]), or so many more were cancelled
    /// and rest until their timeout.
    ///
    /// [`PingerBuilder::in_flight_max`]: super::PingerBuilder::in_flight_max
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// An option that no ping can have.
    InvalidOption(Cow<'static, str>),
    /// The pinger cannot work, or works no more.
    Broken(Arc<SetupError>),
}

impl PingError {
    /// Who sent the ICMP error, if it is one.
    pub fn sender(&self) -> Option<IpAddr> {
        match self {
            PingError::Unreachable { from, .. }
            | PingError::TooBig { from, .. }
            | PingError::TimeExceeded { from, .. }
            | PingError::Icmp { from, .. } => Some(*from),
            _ => None,
        }
    }

    /// Type and code of the ICMP error, if it is one: ICMP's or ICMPv6's, as the [sender](PingError::sender)'s address is.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let v6 = self.sender()?.is_ipv6();
        match *self {
            PingError::Unreachable { code, .. } => Some((if v6 { 1 } else { 3 }, code)),
            PingError::TooBig { .. } => Some(if v6 { (2, 0) } else { (3, 4) }),
            PingError::TimeExceeded { code, .. } => Some((if v6 { 3 } else { 11 }, code)),
            PingError::Icmp { icmp_type, code, .. } => Some((icmp_type, code)),
            _ => None,
        }
    }

    /// Whether the ping simply had no reply: nobody said why.
    pub fn is_silence(&self) -> bool {
        matches!(self, PingError::Timeout { .. } | PingError::DroppedHere { .. })
    }

    /// Whether no further ping to the same target can do better: the set-up, the name or an option is wrong.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            PingError::NotResolved { .. }
                | PingError::NotPermitted(_)
                | PingError::InvalidOption(_)
                | PingError::Broken(_)
        )
    }

    /// The words in which `ping` says it: `Time to live exceeded`, `Destination Host Unreachable`.
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            PingError::Timeout { .. } => "no answer".into(),
            PingError::DroppedHere { .. } => "no answer, and packets dropped on this host".into(),
            PingError::NotResolved { cause, .. } => cause.to_string().into(),
            PingError::Unreachable { from, code } => unreachable(*from, *code),
            PingError::TooBig { from: IpAddr::V4(_), mtu } => format!("Frag needed and DF set (mtu = {mtu})").into(),
            PingError::TooBig { mtu, .. } => format!("Packet too big: mtu={mtu}").into(),
            PingError::TimeExceeded { from: IpAddr::V4(_), code: 0 } => "Time to live exceeded".into(),
            PingError::TimeExceeded { from: IpAddr::V4(_), .. } => "Frag reassembly time exceeded".into(),
            PingError::TimeExceeded { code: 0, .. } => "Time exceeded: Hop limit".into(),
            PingError::TimeExceeded { .. } => "Time exceeded: Defragmentation failure".into(),
            PingError::Icmp { from: IpAddr::V4(_), icmp_type: 12, .. } => "Parameter problem".into(),
            PingError::Icmp { from: IpAddr::V4(_), icmp_type: 4, .. } => "Source Quench".into(),
            PingError::Icmp { from: IpAddr::V4(_), icmp_type: 5, .. } => "Redirect".into(),
            PingError::Icmp { from: IpAddr::V6(_), icmp_type: 4, .. } => "Parameter problem".into(),
            PingError::Icmp { icmp_type, code, .. } => format!("ICMP type {icmp_type}, code {code}").into(),
            PingError::SendFailed { errno: libc::EMSGSIZE, mtu: Some(mtu) } => {
                format!("message too long, mtu={mtu}").into()
            }
            PingError::SendFailed { errno, .. } => io::Error::from_raw_os_error(*errno).to_string().into(),
            PingError::Cancelled => "cancelled".into(),
            PingError::TooMany { limit } => format!(
                "too many pings: {limit} may be under way, and those that were cancelled rest until their timeout"
            )
            .into(),
            PingError::InvalidOption(what) => what.clone(),
            PingError::NotPermitted(error) | PingError::Broken(error) => error.to_string().into(),
        }
    }
}

/// ICMP's codes in `ping`'s words (RFC 792, RFC 1122, RFC 1812; RFC 4443 for IPv6).
fn unreachable(from: IpAddr, code: u8) -> Cow<'static, str> {
    const V4: [&str; 16] = [
        "Destination Net Unreachable",
        "Destination Host Unreachable",
        "Destination Protocol Unreachable",
        "Destination Port Unreachable",
        "Frag needed and DF set",
        "Source Route Failed",
        "Destination Net Unknown",
        "Destination Host Unknown",
        "Source Host Isolated",
        "Destination Net Prohibited",
        "Destination Host Prohibited",
        "Destination Net Unreachable for Type of Service",
        "Destination Host Unreachable for Type of Service",
        "Packet filtered",
        "Precedence Violation",
        "Precedence Cutoff",
    ];
    const V6: [&str; 7] = [
        "Destination unreachable: No route",
        "Destination unreachable: Administratively prohibited",
        "Destination unreachable: Beyond scope of source address",
        "Destination unreachable: Address unreachable",
        "Destination unreachable: Port unreachable",
        "Destination unreachable: Source address failed ingress/egress policy",
        "Destination unreachable: Reject route to destination",
    ];
    let (known, other) = match from {
        IpAddr::V4(_) => (&V4[..], "Dest Unreachable, Bad Code: "),
        IpAddr::V6(_) => (&V6[..], "Destination unreachable: Unknown code "),
    };
    known.get(usize::from(code)).map_or_else(|| format!("{other}{code}").into(), |words| (*words).into())
}

/// Why there is no socket, and what mends it.
pub(super) fn no_socket(kind: Kind, error: io::Error) -> PingError {
    let family = if kind.v6 { "IPv6" } else { "IPv4" };
    let what = format!("cannot open a ping socket for {family}");
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => PingError::NotPermitted(Arc::new(SetupError::caused(what, error).remedy(
            "this user's groups are not in net.ipv4.ping_group_range; as root: \
             sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        ))),
        Some(libc::EMFILE) => PingError::Broken(Arc::new(
            SetupError::caused(what, error).remedy("raise the limit of open files (ulimit -n)"),
        )),
        _ => PingError::Broken(Arc::new(SetupError::caused(what, error))),
    }
}

impl fmt::Display for PingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PingError::Timeout { after } => write!(f, "no answer within {after:?}"),
            PingError::DroppedHere { after, drops } => {
                write!(
                    f,
                    "no answer within {after:?}, and this host dropped {drops} packets because the pinger's receive buffer \
                     was full\n  remedy: a larger one (PingerBuilder::receive_buffer, net.core.rmem_max)"
                )
            }
            PingError::NotResolved { name, cause } => write!(f, "{name}: {cause}"),
            PingError::SendFailed { .. } => write!(f, "cannot send: {}", self.reason()),
            _ => match self.sender() {
                Some(from) => write!(f, "{from}: {}", self.reason()),
                None => f.write_str(&self.reason()),
            },
        }
    }
}

impl std::error::Error for PingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PingError::NotPermitted(error) | PingError::Broken(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn errors_are_told_in_the_words_of_ping_with_their_sender() {
        let router: IpAddr = Ipv4Addr::new(198, 18, 0, 254).into();
        let six: IpAddr = Ipv6Addr::LOCALHOST.into();
        for (error, text) in [
            (PingError::TimeExceeded { from: router, code: 0 }, "198.18.0.254: Time to live exceeded"),
            (PingError::Unreachable { from: router, code: 1 }, "198.18.0.254: Destination Host Unreachable"),
            (PingError::Unreachable { from: router, code: 99 }, "198.18.0.254: Dest Unreachable, Bad Code: 99"),
            (PingError::TooBig { from: router, mtu: 1400 }, "198.18.0.254: Frag needed and DF set (mtu = 1400)"),
            (PingError::Unreachable { from: six, code: 3 }, "::1: Destination unreachable: Address unreachable"),
            (
                PingError::SendFailed { errno: libc::ENETUNREACH, mtu: None },
                "cannot send: Network is unreachable (os error 101)",
            ),
        ] {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.icmp().is_some(), error.sender().is_some());
        }
        assert_eq!(PingError::TooBig { from: six, mtu: 1400 }.icmp(), Some((2, 0)));
        assert_eq!(PingError::TimeExceeded { from: router, code: 1 }.icmp(), Some((11, 1)));
    }
}
