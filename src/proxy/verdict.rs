//! What the proxy answers: where a packet goes, or why it goes nowhere.

use std::net::Ipv4Addr;

use crate::policy::{Class, Refusal};
use crate::table::clients::Over;
use crate::table::echoes::Recorded;
use crate::table::idents::Refused;
use crate::wire::ipv4;

/// Why an outbound packet is none of the proxy's business.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passing {
    /// UDP or TCP to port 53.
    Dns,
    /// Not an ICMP echo request.
    NotEchoRequest,
    /// To an address among the clients' own.
    ToInside,
    /// To one of the gateway's own addresses, where those are left to others ([`crate::proxy::Settings::pass_own`]).
    ToOwn,
    /// Not IPv4.
    NotIpv4,
}

/// What becomes of a packet from a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outbound {
    /// Carry on as before, unchanged.
    FallThrough(Passing),
    /// Rewritten and recorded: send it from gateway address number `address` to `remote`. Without DF it has an
    /// identification of the gateway's own (RFC 6864, section 4.3).
    Forward {
        /// Which of the settings' addresses it leaves from.
        address: u8,
        /// Where it goes.
        remote: Ipv4Addr,
        /// Its length in bytes; what the buffer holds beyond is not part of it.
        length: usize,
        /// What recording it did to the table of outstanding echoes.
        recorded: Recorded,
    },
    /// A later fragment of a request that was forwarded, rewritten: send it from gateway address number `address` to `remote`
    /// too. Nothing was recorded for it, and nothing is to be withdrawn if it cannot be sent.
    Carry {
        /// Which of the settings' addresses it leaves from.
        address: u8,
        /// Where it goes.
        remote: Ipv4Addr,
        /// Its length in bytes.
        length: usize,
    },
    /// A fragment that came before its request's first one. Keep it, unchanged, for [`crate::table::fragments::EARLY_TIME`]
    /// at most, and offer it again when that has been judged ([`crate::proxy::Batch::take_awaited`]); or drop it.
    Hold,
    /// A fragment whose request is judged by this thread, by the number of its handle; or, where idents are preserved
    /// ([`crate::proxy::IdentPolicy`]), a request whose client's own ident is that thread's. Let that one judge the packet,
    /// which is unchanged.
    BelongsTo {
        /// The number that [`crate::proxy::Proxy::handle`] was asked for.
        worker: usize,
    },
    /// This batch has made its share of new mappings: offer the packet, which is unchanged, to the next one.
    Later,
    /// This thread has no ident left on the client's gateway address, and another may have: let that one judge the packet,
    /// which is unchanged. Who is asked last says so ([`crate::proxy::Batch::outbound_at_last`]).
    Elsewhere,
    /// Drop it: a share or a table is used up (nobody's live mapping was evicted), or the remote is denied.
    Refuse {
        /// What is used up, or [`Reason::RemoteDenied`].
        reason: Reason,
        /// The client's class.
        class: Class,
        /// The number of the gateway address from which to tell the client (unreachable, code 13, RFC 5508 REQ-8);
        /// `None` if it has been told often enough.
        tell_from: Option<u8>,
    },
    /// Drop it.
    Drop(Reason),
}

/// What becomes of a packet from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// Rewritten: it goes to this client.
    Deliver {
        /// Who asked.
        client: Ipv4Addr,
        /// Its length in bytes.
        length: usize,
    },
    /// An ICMP error about an echo that this client waits for, rewritten to be about the client's own request. The echo
    /// stays outstanding.
    Tell {
        /// Who asked.
        client: Ipv4Addr,
        /// Its length in bytes.
        length: usize,
        /// The number of the gateway address that the error comes from, if the gateway's own kernel made it. A kernel drops a
        /// packet with one of its own addresses that comes from a TUN: this one must be sent.
        from_own: Option<u8>,
    },
    /// Not ours, or not deliverable: unchanged. A server with an inbound path of its own carries on with it there.
    Drop(Reason),
}

/// Why a packet is dropped. There is no reason called "other".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// Fewer bytes than an IPv4 header has.
    Truncated,
    /// From outside: not IPv4.
    Version,
    /// An impossible IPv4 header length.
    HeaderLength,
    /// A total length beyond the bytes received, or below the header's.
    TotalLength,
    /// A wrong IPv4 header checksum.
    HeaderChecksum,
    /// A request with a source route: it would end elsewhere than at the remote that it names.
    SourceRoute,
    /// ICMP shorter than an echo's header.
    IcmpTruncated,
    /// From outside: a fragment of ICMP. (The kernel puts them together before a raw socket sees them.)
    Fragment,
    /// A first fragment that does not hold an echo's header.
    FragmentTiny,
    /// A fragment without payload, or of a length that no fragment can have where it stands, or beyond the largest datagram.
    FragmentLength,
    /// A fragment that overlaps one that has gone on, or came twice, or contradicts the request's length; and what follows
    /// of such a request.
    FragmentOverlap,
    /// A request in too many pieces that do not meet.
    FragmentScattered,
    /// A fragment of a client that has begun too much and not completed it.
    FragmentUnfinished,
    /// A fragment whose first one did not come in time, or of which too many waited for theirs.
    FragmentEarly,
    /// The TTL is used up.
    TtlExpired,
    /// A request whose source is the gateway itself: it went round in a circle.
    OwnSource,
    /// A request whose source is not among the clients.
    NotClient,
    /// A request to an address that must not be pinged.
    RemoteRefused,
    /// A request to one of the gateway's own addresses.
    RemoteOwn,
    /// Refused: a request to an address that the configuration denies.
    RemoteDenied,
    /// Refused: the client's packets are used up.
    OverPackets,
    /// Refused: the client's bytes are used up.
    OverBytes,
    /// Refused: the client's new mappings are used up.
    OverNewMappings,
    /// Refused: the client has as many mappings as it may.
    OverMappings,
    /// Refused: no ident is left.
    NoIdent,
    /// Refused: the gateway address of the client's mapping is lost; the next request gets another mapping.
    AddressLost,
    /// Refused: the mapping was being ended by another worker.
    MappingContended,
    /// Refused: others kept changing the echo's bucket.
    EchoContended,
    /// From outside: neither an echo reply nor an error that is asked for.
    NotEchoReply,
    /// An error whose ICMP checksum is wrong or, if that is asked for, the checksum of the header that it quotes (RFC 5508
    /// REQ-3).
    ErrorChecksum,
    /// An error that quotes no echo request, or too little of one.
    ErrorQuote,
    /// An error about an echo that is not outstanding, or that the gateway never sent.
    ErrorUnmatched,
    /// A reply or an error to an address that is not the gateway's.
    NotOurAddress,
    /// A reply that no outstanding echo waits for: unsolicited, a duplicate, or from somebody who was not asked.
    NoEcho,
    /// A reply after the echo timeout.
    Late,
    /// A reply to an echo whose mapping is gone.
    NoMapping,
}

impl Reason {
    /// All of them, in order.
    pub const ALL: [Reason; 36] = [
        Reason::Truncated,
        Reason::Version,
        Reason::HeaderLength,
        Reason::TotalLength,
        Reason::HeaderChecksum,
        Reason::SourceRoute,
        Reason::IcmpTruncated,
        Reason::Fragment,
        Reason::FragmentTiny,
        Reason::FragmentLength,
        Reason::FragmentOverlap,
        Reason::FragmentScattered,
        Reason::FragmentUnfinished,
        Reason::FragmentEarly,
        Reason::TtlExpired,
        Reason::OwnSource,
        Reason::NotClient,
        Reason::RemoteRefused,
        Reason::RemoteOwn,
        Reason::RemoteDenied,
        Reason::OverPackets,
        Reason::OverBytes,
        Reason::OverNewMappings,
        Reason::OverMappings,
        Reason::NoIdent,
        Reason::AddressLost,
        Reason::MappingContended,
        Reason::EchoContended,
        Reason::NotEchoReply,
        Reason::ErrorChecksum,
        Reason::ErrorQuote,
        Reason::ErrorUnmatched,
        Reason::NotOurAddress,
        Reason::NoEcho,
        Reason::Late,
        Reason::NoMapping,
    ];

    /// Its name in counters and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Truncated => "truncated",
            Reason::Version => "version",
            Reason::HeaderLength => "header_length",
            Reason::TotalLength => "total_length",
            Reason::HeaderChecksum => "header_checksum",
            Reason::SourceRoute => "source_route",
            Reason::IcmpTruncated => "icmp_truncated",
            Reason::Fragment => "fragment",
            Reason::FragmentTiny => "fragment_tiny",
            Reason::FragmentLength => "fragment_length",
            Reason::FragmentOverlap => "fragment_overlap",
            Reason::FragmentScattered => "fragment_scattered",
            Reason::FragmentUnfinished => "fragment_unfinished",
            Reason::FragmentEarly => "fragment_early",
            Reason::TtlExpired => "ttl_expired",
            Reason::OwnSource => "own_source",
            Reason::NotClient => "not_client",
            Reason::RemoteRefused => "remote_refused",
            Reason::RemoteOwn => "remote_own",
            Reason::RemoteDenied => "remote_denied",
            Reason::OverPackets => "over_packets",
            Reason::OverBytes => "over_bytes",
            Reason::OverNewMappings => "over_new_mappings",
            Reason::OverMappings => "over_mappings",
            Reason::NoIdent => "no_ident",
            Reason::AddressLost => "address_lost",
            Reason::MappingContended => "mapping_contended",
            Reason::EchoContended => "echo_contended",
            Reason::NotEchoReply => "not_echo_reply",
            Reason::ErrorChecksum => "error_checksum",
            Reason::ErrorQuote => "error_quote",
            Reason::ErrorUnmatched => "error_unmatched",
            Reason::NotOurAddress => "not_our_address",
            Reason::NoEcho => "no_echo",
            Reason::Late => "late",
            Reason::NoMapping => "no_mapping",
        }
    }

    /// Whether the dropped packet was a reply that used its outstanding echo up. (An error uses none up, and one about an
    /// echo without a mapping is `ErrorUnmatched`.)
    pub const fn uses_echo_up(self) -> bool {
        matches!(self, Reason::Late | Reason::NoMapping)
    }
}

impl From<ipv4::Malformed> for Reason {
    fn from(malformed: ipv4::Malformed) -> Reason {
        match malformed {
            ipv4::Malformed::Truncated => Reason::Truncated,
            ipv4::Malformed::Version => Reason::Version,
            ipv4::Malformed::HeaderLength => Reason::HeaderLength,
            ipv4::Malformed::TotalLength => Reason::TotalLength,
        }
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Reason {
        match refusal {
            Refusal::OwnSource => Reason::OwnSource,
            Refusal::NotClient => Reason::NotClient,
            Refusal::Remote => Reason::RemoteRefused,
            Refusal::Denied => Reason::RemoteDenied,
            Refusal::OwnRemote => Reason::RemoteOwn,
        }
    }
}

impl From<Over> for Reason {
    fn from(over: Over) -> Reason {
        match over {
            Over::Packets => Reason::OverPackets,
            Over::Bytes => Reason::OverBytes,
            Over::NewMappings => Reason::OverNewMappings,
            Over::Mappings => Reason::OverMappings,
        }
    }
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Reason {
        match refused {
            Refused::NoIdent => Reason::NoIdent,
            Refused::Contended => Reason::MappingContended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_stands_at_its_number_and_is_called_what_it_is() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            let words = reason.name().split('_').map(|word| word[..1].to_uppercase() + &word[1..]);
            assert_eq!((reason as usize, words.collect::<String>()), (number, format!("{reason:?}")));
        }
    }
}
