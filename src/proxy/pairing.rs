//! Which gateway address a client uses: always the same one (RFC 6888 REQ-2), for as long as it has a mapping.
//!
//! Clients are spread over the addresses by a hash of their own. Where the idents of one are used up, a client that has no
//! mapping takes the next that has any, and stays there; one that has mappings stays with them and is refused. An
//! address that is lost is nobody's: its mappings end, and whoever had them begins elsewhere. One that drains keeps its
//! mappings, and a client's new ones are on another meanwhile: only so does it ever become empty.

use std::net::Ipv4Addr;

use super::Proxy;
use crate::table::clients::Pairing;

impl Proxy {
    /// The number of the gateway address for a new mapping of this client. Closed only if all are.
    pub(super) fn choose(&self, client: Ipv4Addr, pairing: Pairing) -> u8 {
        let addresses = &self.mappings.addresses;
        let paired = pairing.address().filter(|number| !addresses.is_closed(*number));
        if let Some(number) = paired
            && (pairing.mappings() > 0 || addresses.has_ident(number))
        {
            return number;
        }
        let preferred = paired.unwrap_or_else(|| self.preferred(client));
        let open = || self.from(preferred).filter(|number| !addresses.is_closed(*number));
        open().find(|number| addresses.has_ident(*number)).or_else(|| open().next()).unwrap_or(preferred)
    }

    /// The number of the gateway address that tells this client of what went wrong; none if all are lost.
    pub(super) fn tell_from(&self, client: Ipv4Addr) -> Option<u8> {
        let clients = &self.mappings.clients;
        let paired = clients.pairing(clients.index(self.policy.place(client))).address();
        let first = paired.unwrap_or_else(|| self.preferred(client));
        self.from(first).find(|number| !self.mappings.addresses.is_lost(*number))
    }

    fn preferred(&self, client: Ipv4Addr) -> u8 {
        let spread = u64::from(u32::from(client)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        u8::try_from(spread % self.mappings.addresses.len().max(1) as u64).unwrap_or(0)
    }

    /// All numbers once, beginning with this one.
    fn from(&self, first: u8) -> impl Iterator<Item = u8> + use<> {
        let count = u8::try_from(self.mappings.addresses.len()).unwrap_or(u8::MAX).max(1);
        (0..count).map(move |step| (first + step) % count)
    }
}
