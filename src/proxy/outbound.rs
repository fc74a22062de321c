//! Requests from clients, out under an ident of the gateway's.

use std::net::Ipv4Addr;

use super::{Batch, Outbound, Passing, Reason, Recorded, Ttl};
use crate::canary::{Canary, is_loose};
use crate::table::SlotIndex;
use crate::table::clients::Allowance;
use crate::table::echoes::EchoKey;
use crate::table::idents::Asker;
use crate::wire::icmpv4::{self, Echo, EchoKind};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::transport;

/// The well-known port of DNS (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;

impl Batch<'_> {
    /// Judges a packet from a client and, if it is to be forwarded, records and rewrites it in place.
    pub fn outbound(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::First)
    }

    /// As `outbound`, for a packet that another thread has sent [`Outbound::Elsewhere`].
    pub fn outbound_again(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::Again)
    }

    /// As `outbound`, for a packet that every other thread has sent [`Outbound::Elsewhere`]: refuses it if this one has no
    /// ident either.
    pub fn outbound_at_last(&mut self, packet: &mut [u8]) -> Outbound {
        self.judge_outbound(packet, Asked::Last)
    }

    fn judge_outbound(&mut self, packet: &mut [u8], asked: Asked) -> Outbound {
        let mut packet = match Ipv4::check(packet) {
            Ok(packet) => packet,
            Err(ipv4::Malformed::Version) => return Outbound::FallThrough(Passing::NotIpv4),
            Err(malformed) => return Outbound::Drop(malformed.into()),
        };
        match self.business(&packet) {
            Ok(Business::Request { place }) => self.judge_request(&mut packet, place, asked),
            Ok(Business::Fragment) => self.outbound_fragment(&mut packet),
            Ok(Business::Others(passing)) => Outbound::FallThrough(passing),
            Err(reason @ Reason::RemoteDenied) => self.refuse(packet.source(), reason),
            Err(reason) => Outbound::Drop(reason),
        }
    }

    /// Admits a request that may leave, of the client at `place`, and rewrites it: a whole one, or its first fragment.
    pub(super) fn judge_request(&mut self, packet: &mut Ipv4<&mut [u8]>, place: u64, asked: Asked) -> Outbound {
        let (client, remote) = (packet.source(), packet.destination());
        let length = packet.total_len();
        let Ok(mut echo) = Echo::check(packet.payload_mut()) else { return Outbound::Drop(Reason::IcmpTruncated) };

        let line = self.proxy.mappings.clients.index(place);
        let asker = Asker { client, line, client_ident: echo.ident() };
        let live = self.proxy.mappings.find(client, asker.client_ident, &self.guard);
        match live {
            // Its owner is about to end it.
            Some(index) if self.proxy.mappings.addresses.is_lost(index.address()) => {
                return self.refuse(client, Reason::AddressLost);
            }
            Some(_) => {}
            None => {
                if let Some(verdict) = self.before_making(asker, asked) {
                    return verdict;
                }
            }
        }
        let (_, allowance) = self.proxy.policy.allowance(client);
        let admitted = self.admit(live, asker, allowance, length).and_then(|index| {
            let key = EchoKey { index, sequence: echo.sequence(), remote };
            let recorded = self.proxy.echoes.record(key, self.now);
            if recorded == Recorded::Contended { Err(Reason::EchoContended) } else { Ok((index, recorded)) }
        });
        let (index, recorded) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => return self.refuse(client, reason),
        };
        echo.set_ident(index.ident());
        // What is whole for good needs no identification (RFC 6864, section 4.1); what can be cut up on its way needs one that
        // is unique among all that the gateway's address sends there, by whichever client (section 4.3).
        let divisible = (!packet.dont_fragment() || packet.is_fragment()) && !is_loose(Canary::SharedIdentification);
        let identification = divisible.then(|| self.owner.identifications.next(remote));
        self.leave_from(packet, index.address(), identification);
        Outbound::Forward { address: index.address(), remote, length, recorded }
    }

    /// What keeps this batch from making a mapping, if anything does.
    #[inline(never)]
    fn before_making(&self, asker: Asker, asked: Asked) -> Option<Outbound> {
        if self.creations_left == 0 {
            return Some(Outbound::Later);
        }
        let mappings = &self.proxy.mappings;
        let address = self.proxy.choose(asker.client, mappings.clients.pairing(asker.line));
        if mappings.addresses.is_closed(address) {
            return Some(self.refuse(asker.client, Reason::AddressLost));
        }
        // Whose the client's own ident is.
        let owner = SlotIndex::new(address, asker.client_ident).shard() % self.proxy.workers;
        if self.proxy.preserves_idents && asked == Asked::First && owner != self.owner.number {
            return Some(Outbound::BelongsTo { worker: owner });
        }
        (asked != Asked::Last && !self.owner.idents.is_ready(address)).then_some(Outbound::Elsewhere)
    }

    /// Makes the packet one of the gateway's own: under its address and, where it needs one, an identification.
    #[inline]
    pub(super) fn leave_from(&self, packet: &mut Ipv4<&mut [u8]>, address: u8, identification: Option<u16>) {
        let source = self.proxy.mappings.addresses.get(address).unwrap_or(Ipv4Addr::UNSPECIFIED);
        match identification {
            Some(identification) => packet.set_source_anew(source, identification),
            None => packet.set_source(source),
        }
        if self.proxy.ttl == Ttl::Decrement {
            packet.decrement_ttl();
        }
    }

    #[cold]
    pub(super) fn refuse(&self, client: Ipv4Addr, reason: Reason) -> Outbound {
        let (class, _) = self.proxy.policy.allowance(client);
        let tell_from = self.proxy.tell_from(client).filter(|_| self.may_be_told(client));
        Outbound::Refuse { reason, class, tell_from }
    }

    /// Whose business the packet is, or why it goes nowhere.
    #[inline]
    fn business(&self, packet: &Ipv4<&mut [u8]>) -> Result<Business, Reason> {
        if transport::destination_port(packet) == Some(DNS_PORT) {
            return Ok(Business::Others(Passing::Dns));
        }
        if packet.protocol() != ipv4::ICMP {
            return Ok(Business::Others(Passing::NotEchoRequest));
        }
        if self.proxy.policy.is_inside(packet.destination()) {
            return Ok(Business::Others(Passing::ToInside));
        }
        if self.proxy.pass_own && self.proxy.address_number(packet.destination()).is_some() {
            return Ok(Business::Others(Passing::ToOwn));
        }
        if packet.is_fragment() {
            return Ok(Business::Fragment);
        }
        match Echo::check(packet.payload()).map(|echo| echo.kind()) {
            Ok(EchoKind::Request) => self.may_leave(packet).map(|place| Business::Request { place }),
            Err(icmpv4::Malformed::Truncated) => Err(Reason::IcmpTruncated),
            Ok(EchoKind::Reply) | Err(icmpv4::Malformed::NotEcho | icmpv4::Malformed::Code) => {
                Ok(Business::Others(Passing::NotEchoRequest))
            }
        }
    }

    /// Whether an echo request, or a fragment of one, may go outside: then its client's place.
    #[inline]
    pub(super) fn may_leave(&self, packet: &Ipv4<&mut [u8]>) -> Result<u64, Reason> {
        // The kernel writes a new header checksum when it sends: a damaged header must not leave as an intact one.
        if !packet.header_is_intact() {
            return Err(Reason::HeaderChecksum);
        }
        // It would get round the list of remotes (RFC 7126, sections 4.3 and 4.4).
        if packet.has_source_route() {
            return Err(Reason::SourceRoute);
        }
        if packet.ttl() <= self.proxy.ttl.spent() {
            return Err(Reason::TtlExpired);
        }
        Ok(self.proxy.may_ping(packet.source(), packet.destination())?)
    }

    /// Charges the client for the packet; then its live mapping, or a new one.
    #[inline]
    fn admit(
        &mut self,
        live: Option<SlotIndex>,
        asker: Asker,
        allowance: &Allowance,
        bytes: usize,
    ) -> Result<SlotIndex, Reason> {
        let mappings = &self.proxy.mappings;
        mappings.clients.charge(asker.line, allowance, bytes, self.now)?;
        if let Some(index) = live {
            mappings.slots.touch(index, self.now);
            return Ok(index);
        }
        self.make(asker, allowance)
    }

    #[inline(never)]
    fn make(&mut self, asker: Asker, allowance: &Allowance) -> Result<SlotIndex, Reason> {
        let mappings = &self.proxy.mappings;
        let choose = |pairing| self.proxy.choose(asker.client, pairing);
        let address = mappings.clients.enter(asker.line, allowance, self.now, choose)?;
        self.creations_left -= 1;
        Ok(self.owner.idents.make(mappings, address, asker, self.now, &self.guard)?)
    }
}

/// How many threads have been asked about a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// None before.
    First,
    /// Some had no ident for it.
    Again,
    /// All others had none.
    Last,
}

/// Whose business an outbound packet is.
enum Business {
    /// A whole echo request that may leave, of the client at this place.
    Request { place: u64 },
    /// A fragment of ICMP: of what, only the first tells.
    Fragment,
    /// Somebody else's.
    Others(Passing),
}
