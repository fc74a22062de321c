//! ICMP errors about proxied echoes: those that come from outside, and what those that the gateway makes need.
//!
//! An error from outside belongs to an echo if it comes to the gateway address that the quoted request left from, and if that request
//! (address, ident, sequence, remote) is outstanding. Then it is the client's: the quote becomes the client's own request
//! again, type, code and outer source stay (so traceroute shows the router), and it goes to the client. It refreshes no
//! mapping, ends none, and uses no echo up (RFC 5508 REQ-4 and REQ-6): the reply may come all the same, and whoever forges an error has
//! gained nothing. Nor is its source looked at, since any router on the way may say so (RFC 4787 REQ-12a).
//!
//! Rejected: matching the mapping only. Everybody can guess one of 65,536 idents; nobody who does not see the
//! request guesses the sequence and the remote too.
//!
//! Limit: whoever sees a request can tell its client any number of errors for as long as the request is outstanding.

use super::{Batch, Inbound, Reason, Receiver};
use crate::table::SlotIndex;
use crate::table::echoes::EchoKey;
use crate::table::slots::State;
use crate::wire::icmpv4::Echo;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::quote::{Malformed, Quote};

impl Batch<'_> {
    /// Judges what came from outside and is no echo reply.
    pub(super) fn inbound_error(&self, mut packet: Ipv4<&mut [u8]>) -> Inbound {
        let client = match self.asker_of_quoted(&packet) {
            Ok(client) => client,
            Err(reason) => return Inbound::Drop(reason),
        };
        if let Ok(mut quote) = Quote::check(packet.payload_mut()) {
            quote.restore(client.address, client.ident);
        }
        let from_own = self.proxy.address_number(packet.source());
        self.readdress(&mut packet, client.address);
        Inbound::Tell { client: client.address, length: packet.total_len(), from_own }
    }

    /// Whose outstanding echo the error is about.
    fn asker_of_quoted(&self, packet: &Ipv4<&mut [u8]>) -> Result<Receiver, Reason> {
        if !self.proxy.icmp_errors || packet.protocol() != ipv4::ICMP {
            return Err(Reason::NotEchoReply);
        }
        let quote = Quote::check(packet.payload()).map_err(|malformed| match malformed {
            Malformed::NotError => Reason::NotEchoReply,
            Malformed::Truncated | Malformed::NotEchoRequest => Reason::ErrorQuote,
        })?;
        if !quote.is_intact() {
            return Err(Reason::ErrorChecksum);
        }
        let address = self.proxy.address_number(packet.destination()).ok_or(Reason::NotOurAddress)?;
        if quote.source() != packet.destination() {
            return Err(Reason::ErrorUnmatched);
        }
        // It would expire on the way in.
        if packet.ttl() <= 1 {
            return Err(Reason::TtlExpired);
        }
        let index = SlotIndex::new(address, quote.ident());
        let key = EchoKey { index, sequence: quote.sequence(), remote: quote.destination() };
        if !self.proxy.echoes.is_outstanding(key, self.now) {
            return Err(Reason::ErrorUnmatched);
        }
        // An echo never outlives its identity, but the tables are read one after the other.
        let identity = self.proxy.mappings.slots.identity(index);
        match identity.state() {
            State::Live | State::Held => Ok(Receiver { address: identity.client(), ident: identity.client_ident() }),
            State::Free => Err(Reason::ErrorUnmatched),
        }
    }

    /// Makes a packet that `outbound` forwarded, and that could not be sent, the client's own again, so that an error can
    /// quote it. From which gateway address to tell the client; `None` if it is not to be told, or has been often enough.
    pub fn give_back(&self, packet: &mut [u8]) -> Option<u8> {
        let mut packet = Ipv4::check(packet).ok()?;
        let address = self.proxy.address_number(packet.source())?;
        let mut echo = Echo::check(packet.payload_mut()).ok()?;
        let identity = self.proxy.mappings.slots.identity(SlotIndex::new(address, echo.ident()));
        if identity.state() == State::Free {
            return None;
        }
        echo.set_ident(identity.client_ident());
        packet.set_source(identity.client());
        let clients = &self.proxy.mappings.clients;
        let line = clients.index(self.proxy.policy.place(identity.client()));
        clients.may_be_told(line, self.now).then_some(address)
    }
}
