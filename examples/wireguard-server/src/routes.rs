//! Cryptokey routing: which peer an inside address belongs to, by the longest of all AllowedIPs that hold it. The same
//! table says where a packet goes and whose a packet's source may be.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use echogate::policy::Prefix;

use crate::config::PeerConfig;

#[derive(Clone, Default)]
pub(crate) struct Routes {
    /// The lengths of all prefixes, longest first: one look-up each.
    lengths: Vec<u8>,
    peers: HashMap<(u8, u32), usize>,
}

impl Routes {
    pub(crate) fn new(peers: &[PeerConfig]) -> Routes {
        let mut routes = Routes::default();
        for (number, peer) in peers.iter().enumerate() {
            peer.allowed.iter().for_each(|prefix| routes.add(*prefix, number));
        }
        routes
    }

    fn add(&mut self, prefix: Prefix, peer: usize) {
        self.peers.insert((prefix.length(), u32::from(prefix.address())), peer);
        self.lengths.push(prefix.length());
        self.lengths.sort_unstable_by(|one, other| other.cmp(one));
        self.lengths.dedup();
    }

    pub(crate) fn peer_of(&self, address: Ipv4Addr) -> Option<usize> {
        self.lengths.iter().find_map(|length| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
            self.peers.get(&(*length, u32::from(address) & mask)).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let mut routes = Routes::default();
        for (prefix, peer) in [("10.66.0.0/24", 0), ("10.66.0.2/32", 1), ("10.66.0.128/25", 2), ("192.168.7.0/24", 2)] {
            routes.add(prefix.parse().unwrap(), peer);
        }
        for (address, peer) in [
            ("10.66.0.2", Some(1)),
            ("10.66.0.3", Some(0)),
            ("10.66.0.200", Some(2)),
            ("192.168.7.255", Some(2)),
            ("10.66.1.2", None),
            ("0.0.0.0", None),
            ("255.255.255.255", None),
        ] {
            assert_eq!(routes.peer_of(address.parse().unwrap()), peer, "{address}");
        }
    }
}
