//! Requests that come in fragments: the first is judged as a whole one is, the others follow it.
//!
//! ```text
//! any      not from a client, to where nobody may ping, ... -> dropped, as a whole one
//!          this worker's? (by the addresses) -> no: that worker's
//! first    no echo request -> falls through, and all that follow it
//!          policy, budget, mapping, echo -> Forward, or dropped; so are those that follow it
//! later    the first was forwarded -> source, identification: Carry
//!          the first has not come yet -> Hold, or dropped
//! ```
//!
//! RFC 4787, REQ-14: fragments that come out of order are translated. The checksum of the whole message stands in the
//! first fragment, and follows the ident by RFC 1624 from there; so nothing has to be put together. A fragment is never
//! the cause of an error to its client but if it is the first (RFC 1122, section 3.2.2).
//!
//! Every fragment is charged to its client, packets and bytes. When the client's share ends in mid-request, the rest is
//! dropped too: the remote could do nothing with it.

use super::outbound::Asked;
use super::{Batch, Outbound, Passing, Reason};
use crate::policy::Refusal;
use crate::table::fragments::{Decision, Part, Refused, Series, worker_of};
use crate::wire::icmpv4::{self, ECHO_HEADER_LEN, Echo, EchoKind};
use crate::wire::ipv4::Ipv4;

impl Batch<'_> {
    /// Judges a fragment of ICMP to outside.
    pub(super) fn outbound_fragment(&mut self, packet: &mut Ipv4<&mut [u8]>) -> Outbound {
        let client = packet.source();
        let series = Series { client, remote: packet.destination(), identification: packet.identification() };
        let worker = worker_of(client, series.remote, self.proxy.fragment_seed, self.proxy.workers);
        if worker != self.owner.number {
            return Outbound::BelongsTo { worker };
        }
        let len = packet.payload().len();
        if packet.is_first_fragment() && len < ECHO_HEADER_LEN {
            return Outbound::Drop(Reason::FragmentTiny);
        }
        match Part::new(packet.fragment_offset(), len, packet.more_fragments()) {
            None => Outbound::Drop(Reason::FragmentLength),
            Some(_) if !self.proxy.policy.is_inside(client) => self.fragment_of_no_client(packet),
            Some(part) if packet.is_first_fragment() => self.first_fragment(packet, series, part),
            Some(part) => self.later_fragment(packet, series, part),
        }
    }

    /// Nothing is kept of it: who is no client has no place in the table, and must not take a client's. So a later fragment is not
    /// known to be of an echo request, and goes the way of all that is none; without the first one, which is dropped if it is of a
    /// request, it comes to nothing. But not with the gateway's own source: it would go round in a circle.
    fn fragment_of_no_client(&self, packet: &Ipv4<&mut [u8]>) -> Outbound {
        let is_request = || Echo::check(packet.payload()).is_ok_and(|echo| echo.kind() == EchoKind::Request);
        match self.proxy.may_ping(packet.source(), packet.destination()) {
            Err(refusal @ Refusal::OwnSource) if packet.is_later_fragment() => Outbound::Drop(refusal.into()),
            Err(refusal) if packet.is_first_fragment() && is_request() => Outbound::Drop(refusal.into()),
            _ => Outbound::FallThrough(Passing::NotEchoRequest),
        }
    }

    fn first_fragment(&mut self, packet: &mut Ipv4<&mut [u8]>, series: Series, part: Part) -> Outbound {
        let place = self.proxy.policy.place(series.client);
        if let Some(decision) = self.owner.fragments.decision(place, series, self.now) {
            return match decision {
                Decision::Passed => Outbound::FallThrough(Passing::NotEchoRequest),
                Decision::Dropped(reason) => Outbound::Drop(reason_of(reason)),
                Decision::Carried { .. } => match self.owner.fragments.note(place, series, part, self.now) {
                    Err(refused) => self.give_up(place, series, refused),
                    // A part of it has gone, so it cannot be new.
                    Ok(()) => Outbound::Drop(Reason::FragmentOverlap),
                },
            };
        }
        let verdict = match Echo::check(packet.payload()).map(|echo| echo.kind()) {
            Ok(EchoKind::Request) if !self.owner.fragments.may_begin(place, part, self.now) => {
                return Outbound::Drop(Reason::FragmentUnfinished);
            }
            Ok(EchoKind::Request) => match self.may_leave(packet) {
                // Whoever is asked about a fragment is asked last: the others must not have to know of it.
                Ok(place) => self.judge_request(packet, place, Asked::Last),
                Err(reason @ Reason::RemoteDenied) => self.refuse(series.client, reason),
                Err(reason) => Outbound::Drop(reason),
            },
            Err(icmpv4::Malformed::Truncated) => Outbound::Drop(Reason::IcmpTruncated),
            Ok(EchoKind::Reply) | Err(icmpv4::Malformed::NotEcho | icmpv4::Malformed::Code) => {
                Outbound::FallThrough(Passing::NotEchoRequest)
            }
        };
        let decision = match verdict {
            Outbound::Forward { address, .. } => Decision::Carried { address, identification: packet.identification() },
            Outbound::FallThrough(_) => Decision::Passed,
            Outbound::Drop(reason) | Outbound::Refuse { reason, .. } => Decision::Dropped(reason as u8),
            // It comes again, unchanged; what follows it meanwhile is early.
            Outbound::Later
            | Outbound::Elsewhere
            | Outbound::BelongsTo { .. }
            | Outbound::Hold
            | Outbound::Carry { .. } => {
                return verdict;
            }
        };
        self.owner.fragments.decide(place, series, part, decision, self.now);
        verdict
    }

    fn later_fragment(&mut self, packet: &mut Ipv4<&mut [u8]>, series: Series, part: Part) -> Outbound {
        let place = self.proxy.policy.place(series.client);
        let (address, identification) = match self.owner.fragments.decision(place, series, self.now) {
            Some(Decision::Carried { address, identification }) => (address, identification),
            Some(Decision::Passed) => return Outbound::FallThrough(Passing::NotEchoRequest),
            Some(Decision::Dropped(reason)) => return Outbound::Drop(reason_of(reason)),
            None => return self.early_fragment(place, series),
        };
        if let Err(reason) = self.may_leave(packet) {
            return Outbound::Drop(reason);
        }
        if let Err(refused) = self.owner.fragments.note(place, series, part, self.now) {
            return self.give_up(place, series, refused);
        }
        let length = packet.total_len();
        let clients = &self.proxy.mappings.clients;
        let (class, allowance) = self.proxy.policy.allowance(series.client);
        if let Err(over) = clients.charge(clients.index(place), allowance, length, self.now) {
            let reason = Reason::from(over);
            self.owner.fragments.give_up(place, series, reason as u8, self.now);
            return Outbound::Refuse { reason, class, tell_from: None };
        }
        self.leave_from(packet, address, Some(identification));
        Outbound::Carry { address, remote: series.remote, length }
    }

    fn early_fragment(&mut self, place: u64, series: Series) -> Outbound {
        // What would not go on anyway takes up no room.
        if let Err(refusal) = self.proxy.may_ping(series.client, series.remote) {
            return Outbound::Drop(refusal.into());
        }
        if self.owner.fragments.may_wait(place, series, self.now) {
            Outbound::Hold
        } else {
            Outbound::Drop(Reason::FragmentEarly)
        }
    }

    fn give_up(&mut self, place: u64, series: Series, refused: Refused) -> Outbound {
        let reason = match refused {
            // The network does that: what has gone is whole, and so is the rest.
            Refused::Repeated => return Outbound::Drop(Reason::FragmentOverlap),
            Refused::Contradicts => Reason::FragmentOverlap,
            Refused::Scattered => Reason::FragmentScattered,
            Refused::Unfinished => Reason::FragmentUnfinished,
        };
        self.owner.fragments.give_up(place, series, reason as u8, self.now);
        Outbound::Drop(reason)
    }

    /// Whether a first fragment that others waited for ([`Outbound::Hold`]) has been judged since this was last asked: then
    /// [`Batch::is_decided`] tells which of them wait no longer.
    pub fn take_awaited(&mut self) -> bool {
        self.owner.fragments.take_awaited()
    }

    /// Whether a fragment that was to be held can be offered again.
    pub fn is_decided(&self, packet: &[u8]) -> bool {
        let Ok(packet) = Ipv4::check(packet) else { return true };
        let client = packet.source();
        let series = Series { client, remote: packet.destination(), identification: packet.identification() };
        self.owner.fragments.decision(self.proxy.policy.place(client), series, self.now).is_some()
    }
}

/// The reason that was kept by its number.
fn reason_of(number: u8) -> Reason {
    Reason::ALL.get(usize::from(number)).copied().unwrap_or(Reason::Fragment)
}

#[cfg(test)]
mod tests;
