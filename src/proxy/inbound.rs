//! Replies from outside, back to whoever asked.

use std::net::Ipv4Addr;

use super::{Batch, Inbound, Reason, Ttl};
use crate::canary::{Canary, is_loose};
use crate::table::SlotIndex;
use crate::table::echoes::{Consumed, EchoKey};
use crate::table::slots::State;
use crate::wire::icmpv4::{self, Echo, EchoKind};
use crate::wire::ipv4::{self, Ipv4};

impl Batch<'_> {
    /// Judges a packet from outside and, if it answers an outstanding echo, uses that up and rewrites the packet in
    /// place. An error about an outstanding echo is rewritten too, and uses nothing up.
    pub fn inbound(&mut self, packet: &mut [u8]) -> Inbound {
        let mut packet = match Ipv4::check(packet) {
            Ok(packet) => packet,
            Err(malformed) => return Inbound::Drop(malformed.into()),
        };
        let client = match self.answered(&packet) {
            Ok(client) => client,
            Err(Reason::NotEchoReply) => return self.inbound_error(packet),
            Err(reason) => return Inbound::Drop(reason),
        };
        let Ok(mut echo) = Echo::check(packet.payload_mut()) else { return Inbound::Drop(Reason::IcmpTruncated) };
        echo.set_ident(client.ident);
        self.readdress(&mut packet, client.address);
        Inbound::Deliver { client: client.address, length: packet.total_len() }
    }

    /// Addresses what came from outside to the client, over one more hop.
    #[inline]
    pub(super) fn readdress(&mut self, packet: &mut Ipv4<&mut [u8]>, client: Ipv4Addr) {
        packet.set_destination(client);
        if self.proxy.ttl == Ttl::Decrement {
            packet.decrement_ttl();
        }
        // A reassembled packet keeps the fragments' DF: too big for the inside path it would be stuck, and the kernel
        // would complain to its sender about a packet that that one never sent.
        if packet.dont_fragment() && packet.total_len() > self.proxy.inside_mtu {
            packet.clear_dont_fragment();
            // Whole for good, it needed no identification of its own; in fragments it does.
            packet.set_identification(self.owner.identifications.next(client));
        }
    }

    /// Whose outstanding echo the packet answers; that echo is used up.
    #[inline]
    fn answered(&self, packet: &Ipv4<&mut [u8]>) -> Result<Receiver, Reason> {
        if packet.protocol() != ipv4::ICMP {
            return Err(Reason::NotEchoReply);
        }
        if packet.is_fragment() {
            return Err(Reason::Fragment);
        }
        let echo = match Echo::check(packet.payload()) {
            Ok(echo) if echo.kind() == EchoKind::Reply => echo,
            Err(icmpv4::Malformed::Truncated) => return Err(Reason::IcmpTruncated),
            Ok(_) | Err(icmpv4::Malformed::NotEcho | icmpv4::Malformed::Code) => return Err(Reason::NotEchoReply),
        };
        let address = self.proxy.address_number(packet.destination()).ok_or(Reason::NotOurAddress)?;
        // Delivered, it would expire on the way in (in the kernel's hands or in ours), and whoever says so to the remote
        // quotes the client's address.
        if packet.ttl() <= 1 {
            return Err(Reason::TtlExpired);
        }
        let index = SlotIndex::new(address, echo.ident());
        let key = EchoKey { index, sequence: echo.sequence(), remote: packet.source() };
        match self.proxy.echoes.consume(key, self.now) {
            Consumed::Matched => {}
            Consumed::Late => return Err(Reason::Late),
            Consumed::Unknown => return Err(Reason::NoEcho),
        }
        let receiver = self.receiver(index).ok_or(Reason::NoMapping)?;
        if is_loose(Canary::WrongClient) {
            let neighbour = Ipv4Addr::from(u32::from(receiver.address) ^ 1);
            return Ok(Receiver { address: neighbour, ident: receiver.ident });
        }
        Ok(receiver)
    }

    /// Whose identity the slot has. An echo never outlives it, but the tables are read one after the other.
    pub(super) fn receiver(&self, index: SlotIndex) -> Option<Receiver> {
        let identity = self.proxy.mappings.slots.identity(index);
        let is_there = matches!(identity.state(), State::Live | State::Held);
        is_there.then(|| Receiver { address: identity.client(), ident: identity.client_ident() })
    }
}

/// Who gets a reply.
pub(super) struct Receiver {
    pub(super) address: Ipv4Addr,
    pub(super) ident: u16,
}
