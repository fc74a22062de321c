//! The host around the gateway: its TUN device, the rules that lead clients' echo requests into it, the preconditions of
//! both, and what of the host is left to a process that only moves packets.

pub mod addresses;
pub mod cpus;
pub mod device;
pub mod divert;
pub mod netlink;
pub mod nft;
pub mod preflight;
pub mod sandbox;
#[cfg(test)]
pub(crate) mod scene;

use std::net::Ipv4Addr;

use crate::error::SetupError;
use netlink::Netlink;

/// Remotes for asking how the host would reach the internet: documentation addresses (RFC 5737). Nothing is sent.
const EXAMPLE_REMOTES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(203, 0, 113, 1)];

/// The source address that the host uses for the internet.
pub fn default_source() -> Result<Ipv4Addr, SetupError> {
    let operation = "looking for the default route's source address";
    let asked = |error| SetupError::caused(operation, error);
    let mut netlink = Netlink::open().map_err(asked)?;
    for remote in EXAMPLE_REMOTES {
        // A host may use one of the documentation networks itself, or blackhole them all.
        match netlink.route_to(remote, None).map_err(asked)? {
            Some(way) if !way.local && way.source.is_some_and(|source| !source.is_loopback()) => {
                return Ok(way.source.unwrap_or(Ipv4Addr::UNSPECIFIED));
            }
            _ => {}
        }
    }
    let error = SetupError::new(format!("{operation}: there is no route to the internet"));
    Err(error.remedy("name the address, --outside ADDRESS, or add a route: ip route add default via GATEWAY"))
}
