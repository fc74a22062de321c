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

use std::net::Ipv4Addr;

use super::inbound::Receiver;
use super::{Batch, Inbound, Reason};
use crate::canary::{Canary, is_loose};
use crate::table::SlotIndex;
use crate::table::echoes::{Consumed, EchoKey};
use crate::wire::error::{self, Message};
use crate::wire::icmpv4::{Echo, EchoKind};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::quote::{Malformed, Quote};

impl Batch<'_> {
    /// Judges what came from outside and is no echo reply.
    pub(super) fn inbound_error(&mut self, mut packet: Ipv4<&mut [u8]>) -> Inbound {
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
        // RFC 5508 REQ-3; RFC 4884's extensions are part of the first sum and not of the second (REQ-3d).
        if !quote.is_intact() || self.proxy.quoted_checksum && !quote.header_is_intact() {
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
        let is_outstanding = if is_loose(Canary::ErrorUsesUp) {
            self.proxy.echoes.consume(key, self.now) == Consumed::Matched
        } else {
            self.proxy.echoes.is_outstanding(key, self.now)
        };
        if !is_outstanding && !is_loose(Canary::WeakQuote) {
            return Err(Reason::ErrorUnmatched);
        }
        self.receiver(index).ok_or(Reason::ErrorUnmatched)
    }

    /// What to tell the client of a packet that `outbound` forwarded and whose sending failed with `errno` (as in
    /// errno(3)), and from which gateway address; the packet becomes the client's own again, so that the error can quote it.
    /// `mtu` is asked, once at most, what fits on the way out from that gateway address to that remote. `None` if the
    /// client is not to be told, or has been often enough.
    pub fn why_not_sent(
        &self,
        packet: &mut [u8],
        errno: i32,
        mtu: impl FnOnce(u8, Ipv4Addr) -> Option<u16>,
    ) -> Option<(u8, Message)> {
        let sent = Ipv4::check(&*packet).ok().filter(|sent| !sent.is_later_fragment())?;
        let (remote, length) = (sent.destination(), sent.total_len());
        match errno {
            // RFC 1812, section 5.2.7.1.
            libc::ENETUNREACH | libc::ENETDOWN => Some((self.give_back(packet)?, Message::NetUnreachable)),
            libc::EHOSTUNREACH => Some((self.give_back(packet)?, Message::HostUnreachable)),
            // RFC 4787 REQ-13. Who allows fragments is told nothing: it would look no different from a broken router.
            libc::EMSGSIZE if sent.dont_fragment() => {
                let address = self.give_back(packet)?;
                // Unless the way out has grown meanwhile: the next try will do.
                let mtu = mtu(address, remote).filter(|mtu| usize::from(*mtu) < length)?;
                Some((address, Message::FragmentationNeeded { mtu }))
            }
            // Nothing where the kernel would tell nobody: a blackhole, an output rule that drops. EACCES is a route of type
            // prohibit, but also a link's broadcast address, about which nobody may be told (RFC 1122, section 3.2.2).
            _ => None,
        }
    }

    /// For a server that embeds the proxy, after a failed send and [`Batch::withdraw`]: as `why_not_sent`, and writes the
    /// error, which is for the server to give to the packet's client, into `error`. Returns its length.
    pub fn not_sent(
        &self,
        packet: &mut [u8],
        errno: i32,
        mtu: impl FnOnce(u8, Ipv4Addr) -> Option<u16>,
        error: &mut [u8],
    ) -> Option<usize> {
        let (address, message) = self.why_not_sent(packet, errno, mtu)?;
        error::about(packet, self.address(address)?, message, error)
    }

    /// Makes the error about a request that has no hop left ([`Reason::TtlExpired`] from `outbound`, under
    /// [`super::Ttl::Decrement`]): time exceeded, RFC 1812, section 5.3.1. It is for the server to give it to the packet's
    /// client. Returns the error's length in `error`; `None` if the client is not to be told, or has been often enough.
    pub fn time_exceeded(&self, packet: &[u8], error: &mut [u8]) -> Option<usize> {
        let request = Ipv4::check(packet).ok()?;
        let (client, remote) = (request.source(), request.destination());
        let is_request = Echo::check(request.payload()).is_ok_and(|echo| echo.kind() == EchoKind::Request);
        // Nothing about a later fragment, or about a packet from or to where nobody is told anything (RFC 1122, section 3.2.2).
        if request.is_later_fragment() || !is_request || self.proxy.may_ping(client, remote).is_err() {
            return None;
        }
        let gateway = self.address(self.proxy.tell_from(client)?)?;
        if self.may_be_told(client) { error::about(packet, gateway, Message::TimeExceeded, error) } else { None }
    }

    /// Whether the client may be told of one more error. It is charged for that: to be asked last, when it will be told.
    pub(super) fn may_be_told(&self, client: Ipv4Addr) -> bool {
        let clients = &self.proxy.mappings.clients;
        clients.may_be_told(clients.index(self.proxy.policy.place(client)), self.now)
    }

    /// Makes a packet that `outbound` forwarded the client's own again. From which gateway address to tell the client;
    /// `None` if it is no client's any more, or has been told often enough.
    fn give_back(&self, packet: &mut [u8]) -> Option<u8> {
        let mut packet = Ipv4::check(packet).ok()?;
        let address = self.proxy.address_number(packet.source())?;
        let mut echo = Echo::check(packet.payload_mut()).ok()?;
        let client = self.receiver(SlotIndex::new(address, echo.ident()))?;
        echo.set_ident(client.ident);
        packet.set_source(client.address);
        self.may_be_told(client.address).then_some(address)
    }
}
