//! What is answered about a packet.

use std::ffi::c_char;
use std::net::Ipv4Addr;

use echogate::proxy::{Batch, Inbound, Outbound, Passing, Reason};

/// What becomes of a packet.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EchogateVerdict {
    /// From a client: none of Echogate's business. Carry on as before; the packet is unchanged.
    FallThrough = 1,
    /// From a client: rewritten. Send `length` bytes from the gateway address `from` to `to`.
    Forward = 2,
    /// From a client: too many new mappings at once. Unchanged: offer it again in a call of its own.
    Later = 3,
    /// From a client: this worker has no ident left. Unchanged: have another worker's thread judge it, and the last one
    /// with ECHOGATE_AT_LAST. Never with that flag.
    Elsewhere = 4,
    /// From a client: drop it, and give it to echogate_tell, which may make an error for the client.
    Refuse = 5,
    /// From either side: drop it. From outside, a server with a path of its own for what is not Echogate's carries on with it
    /// there: it is unchanged. From a client with ECHOGATE_REASON_TTL_EXPIRED: give it to echogate_tell first.
    Drop = 6,
    /// From outside: rewritten. Give `length` bytes to the client `to`.
    Deliver = 7,
    /// From outside: an error about a request of the client `to`. Give it `length` bytes.
    Tell = 8,
    /// From a client: a later fragment of a request that was forwarded, rewritten. Send it as ECHOGATE_VERDICT_FORWARD says; if
    /// that fails, there is nothing to withdraw.
    Carry = 9,
    /// From a client: a fragment that came before its request's first one. Unchanged: offer it again after the packets that
    /// came with it, for a second at most, or drop it.
    Hold = 10,
    /// From a client: a fragment whose request is judged by the worker `worker`. Unchanged: have that one's thread judge it.
    BelongsTo = 11,
}

/// Why a packet falls through, is refused or is dropped. A number keeps its meaning in later versions, which may have more.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EchogateReason {
    /// It is none of these.
    None = 0,
    /// Dropped: fewer bytes than an IPv4 header has.
    Truncated = 1,
    /// Dropped, from outside: not IPv4.
    Version = 2,
    /// Dropped: an impossible IPv4 header length.
    HeaderLength = 3,
    /// Dropped: a total length beyond the bytes received, or below the header's.
    TotalLength = 4,
    /// Dropped: a wrong IPv4 header checksum.
    HeaderChecksum = 5,
    /// Dropped: ICMP shorter than an echo's header.
    IcmpTruncated = 6,
    /// Dropped, from outside: a fragment of ICMP.
    Fragment = 7,
    /// Dropped: the TTL is used up.
    TtlExpired = 8,
    /// Dropped: a request from the gateway's own address.
    OwnSource = 9,
    /// Dropped: a request from an address that is no client's.
    NotClient = 10,
    /// Dropped: a request to an address that nobody may ping.
    RemoteRefused = 11,
    /// Dropped: a request to one of the gateway's own addresses.
    RemoteOwn = 12,
    /// Refused: a request to an address that the settings deny.
    RemoteDenied = 13,
    /// Refused: the client's packets are used up.
    OverPackets = 14,
    /// Refused: the client's bytes are used up.
    OverBytes = 15,
    /// Refused: the client's new mappings are used up.
    OverNewMappings = 16,
    /// Refused: the client has as many mappings as it may.
    OverMappings = 17,
    /// Refused: no ident is left.
    NoIdent = 18,
    /// Refused: the mapping was just being ended by another worker.
    MappingContended = 19,
    /// Refused: other workers kept changing the same place of the table of echoes.
    EchoContended = 20,
    /// Dropped, from outside: neither an echo reply nor an error that is wanted.
    NotEchoReply = 21,
    /// Dropped: an error with a wrong ICMP checksum.
    ErrorChecksum = 22,
    /// Dropped: an error that quotes no echo request, or too little of one.
    ErrorQuote = 23,
    /// Dropped: an error about a request that is not outstanding, or that the gateway never sent.
    ErrorUnmatched = 24,
    /// Dropped: a reply or an error to an address that is not the gateway's.
    NotOurAddress = 25,
    /// Dropped: a reply that no request waits for.
    NoEcho = 26,
    /// Dropped: a reply after the echo timeout.
    Late = 27,
    /// Dropped: a reply to a request whose mapping is gone.
    NoMapping = 28,
    /// Dropped: a request with a source route.
    SourceRoute = 29,
    /// Dropped: a first fragment that does not hold an echo's header.
    FragmentTiny = 30,
    /// Dropped: a fragment of a length that no fragment can have where it stands.
    FragmentLength = 31,
    /// Dropped: a fragment that overlaps another, or contradicts the request's length; and what follows of such a request.
    FragmentOverlap = 32,
    /// Dropped: of a request in too many pieces that do not meet.
    FragmentScattered = 33,
    /// Dropped: of a client that has begun too much and not completed it.
    FragmentUnfinished = 34,
    /// Dropped: a fragment whose first one did not come in time.
    FragmentEarly = 35,
    /// Refused: the gateway address of the client's mapping is lost; the next request gets another mapping.
    AddressLost = 36,
    /// Falls through: UDP or TCP to port 53.
    Dns = 101,
    /// Falls through: not an ICMP echo request.
    NotEchoRequest = 102,
    /// Falls through: to an address among the clients' own.
    ToInside = 103,
    /// Falls through: to one of the gateway's own addresses, with `pass_own` set.
    ToOwn = 104,
    /// Falls through: not IPv4.
    NotIpv4 = 105,
}

impl From<Reason> for EchogateReason {
    fn from(reason: Reason) -> EchogateReason {
        match reason {
            Reason::Truncated => EchogateReason::Truncated,
            Reason::Version => EchogateReason::Version,
            Reason::HeaderLength => EchogateReason::HeaderLength,
            Reason::TotalLength => EchogateReason::TotalLength,
            Reason::HeaderChecksum => EchogateReason::HeaderChecksum,
            Reason::IcmpTruncated => EchogateReason::IcmpTruncated,
            Reason::Fragment => EchogateReason::Fragment,
            Reason::TtlExpired => EchogateReason::TtlExpired,
            Reason::OwnSource => EchogateReason::OwnSource,
            Reason::NotClient => EchogateReason::NotClient,
            Reason::RemoteRefused => EchogateReason::RemoteRefused,
            Reason::RemoteOwn => EchogateReason::RemoteOwn,
            Reason::RemoteDenied => EchogateReason::RemoteDenied,
            Reason::OverPackets => EchogateReason::OverPackets,
            Reason::OverBytes => EchogateReason::OverBytes,
            Reason::OverNewMappings => EchogateReason::OverNewMappings,
            Reason::OverMappings => EchogateReason::OverMappings,
            Reason::NoIdent => EchogateReason::NoIdent,
            Reason::MappingContended => EchogateReason::MappingContended,
            Reason::EchoContended => EchogateReason::EchoContended,
            Reason::NotEchoReply => EchogateReason::NotEchoReply,
            Reason::ErrorChecksum => EchogateReason::ErrorChecksum,
            Reason::ErrorQuote => EchogateReason::ErrorQuote,
            Reason::ErrorUnmatched => EchogateReason::ErrorUnmatched,
            Reason::NotOurAddress => EchogateReason::NotOurAddress,
            Reason::NoEcho => EchogateReason::NoEcho,
            Reason::Late => EchogateReason::Late,
            Reason::NoMapping => EchogateReason::NoMapping,
            Reason::SourceRoute => EchogateReason::SourceRoute,
            Reason::FragmentTiny => EchogateReason::FragmentTiny,
            Reason::FragmentLength => EchogateReason::FragmentLength,
            Reason::FragmentOverlap => EchogateReason::FragmentOverlap,
            Reason::FragmentScattered => EchogateReason::FragmentScattered,
            Reason::FragmentUnfinished => EchogateReason::FragmentUnfinished,
            Reason::FragmentEarly => EchogateReason::FragmentEarly,
            Reason::AddressLost => EchogateReason::AddressLost,
        }
    }
}

impl From<Passing> for EchogateReason {
    fn from(passing: Passing) -> EchogateReason {
        match passing {
            Passing::Dns => EchogateReason::Dns,
            Passing::NotEchoRequest => EchogateReason::NotEchoRequest,
            Passing::ToInside => EchogateReason::ToInside,
            Passing::ToOwn => EchogateReason::ToOwn,
            Passing::NotIpv4 => EchogateReason::NotIpv4,
        }
    }
}

/// The answer about a packet. What its verdict does not speak of is 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EchogateAnswer {
    /// An EchogateVerdict.
    pub verdict: i32,
    /// An EchogateReason.
    pub reason: i32,
    /// How many bytes to send or deliver. What the buffer holds beyond is not part of the packet.
    pub length: u32,
    /// The gateway address to send from, as in `s_addr` of `struct in_addr`: in network byte order.
    pub from: u32,
    /// The remote or the client, in network byte order.
    pub to: u32,
    /// The number of the gateway address to send from, or to tell the client from, as they are listed in the settings.
    pub address: u8,
    /// Of ECHOGATE_VERDICT_REFUSE: whether the client is to be told. It is now and then, so that errors flood nobody.
    pub tell: u8,
    /// Of ECHOGATE_VERDICT_BELONGS_TO: the worker's number.
    pub worker: u8,
    /// 0.
    pub reserved: u8,
}

/// An address as C's `s_addr`.
pub(crate) fn network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The address of C's `s_addr`.
pub(crate) fn address_of(network_order: u32) -> Ipv4Addr {
    Ipv4Addr::from(network_order.to_ne_bytes())
}

fn verdict(verdict: EchogateVerdict) -> EchogateAnswer {
    EchogateAnswer { verdict: verdict as i32, ..EchogateAnswer::default() }
}

fn because(answer: EchogateVerdict, reason: impl Into<EchogateReason>) -> EchogateAnswer {
    EchogateAnswer { reason: reason.into() as i32, ..verdict(answer) }
}

/// A packet's length as C gets it: no packet is longer than 65,535 bytes.
fn length_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl EchogateAnswer {
    /// What `batch` judged.
    pub(crate) fn outbound(outbound: Outbound, batch: &Batch<'_>) -> EchogateAnswer {
        let leaves = |answer, address, remote, length| EchogateAnswer {
            length: length_of(length),
            from: batch.address(address).map_or(0, network_order),
            to: network_order(remote),
            address,
            ..verdict(answer)
        };
        match outbound {
            Outbound::FallThrough(passing) => because(EchogateVerdict::FallThrough, passing),
            Outbound::Forward { address, remote, length, .. } => {
                leaves(EchogateVerdict::Forward, address, remote, length)
            }
            Outbound::Carry { address, remote, length } => leaves(EchogateVerdict::Carry, address, remote, length),
            Outbound::Hold => verdict(EchogateVerdict::Hold),
            Outbound::BelongsTo { worker } => EchogateAnswer {
                // There are 64 workers at most.
                worker: u8::try_from(worker).unwrap_or(u8::MAX),
                ..verdict(EchogateVerdict::BelongsTo)
            },
            Outbound::Later => verdict(EchogateVerdict::Later),
            Outbound::Elsewhere => verdict(EchogateVerdict::Elsewhere),
            Outbound::Refuse { reason, tell_from, .. } => EchogateAnswer {
                address: tell_from.unwrap_or(0),
                tell: tell_from.is_some().into(),
                ..because(EchogateVerdict::Refuse, reason)
            },
            Outbound::Drop(reason) => because(EchogateVerdict::Drop, reason),
        }
    }

    pub(crate) fn inbound(inbound: Inbound) -> EchogateAnswer {
        let to = |client, length, answer| EchogateAnswer {
            length: length_of(length),
            to: network_order(client),
            ..verdict(answer)
        };
        match inbound {
            Inbound::Deliver { client, length } => to(client, length, EchogateVerdict::Deliver),
            Inbound::Tell { client, length, .. } => to(client, length, EchogateVerdict::Tell),
            Inbound::Drop(reason) => because(EchogateVerdict::Drop, reason),
        }
    }

    pub(crate) fn is(&self, answer: EchogateVerdict) -> bool {
        self.verdict == answer as i32
    }

    pub(crate) fn is_because(&self, reason: EchogateReason) -> bool {
        self.reason == reason as i32
    }
}

/// The name of a reason, as counters call it: "over_packets". NULL for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_reason_name(reason: i32) -> *const c_char {
    let name = match reason {
        0 => c"none",
        1 => c"truncated",
        2 => c"version",
        3 => c"header_length",
        4 => c"total_length",
        5 => c"header_checksum",
        6 => c"icmp_truncated",
        7 => c"fragment",
        8 => c"ttl_expired",
        9 => c"own_source",
        10 => c"not_client",
        11 => c"remote_refused",
        12 => c"remote_own",
        13 => c"remote_denied",
        14 => c"over_packets",
        15 => c"over_bytes",
        16 => c"over_new_mappings",
        17 => c"over_mappings",
        18 => c"no_ident",
        19 => c"mapping_contended",
        20 => c"echo_contended",
        21 => c"not_echo_reply",
        22 => c"error_checksum",
        23 => c"error_quote",
        24 => c"error_unmatched",
        25 => c"not_our_address",
        26 => c"no_echo",
        27 => c"late",
        28 => c"no_mapping",
        29 => c"source_route",
        30 => c"fragment_tiny",
        31 => c"fragment_length",
        32 => c"fragment_overlap",
        33 => c"fragment_scattered",
        34 => c"fragment_unfinished",
        35 => c"fragment_early",
        36 => c"address_lost",
        101 => c"dns",
        102 => c"not_echo_request",
        103 => c"to_inside",
        104 => c"to_own",
        105 => c"not_ipv4",
        _ => return std::ptr::null(),
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[expect(unsafe_code, reason = "reads a C string")]
    fn name_of(reason: i32) -> &'static str {
        let name = echogate_reason_name(reason);
        assert!(!name.is_null(), "{reason} has no name");
        // SAFETY: not NULL, and the library's own texts end with a NUL and live for ever.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap()
    }

    #[test]
    fn each_reason_has_the_name_that_counters_use() {
        for reason in Reason::ALL {
            assert_eq!(name_of(EchogateReason::from(reason) as i32), reason.name());
        }
        for passing in [Passing::Dns, Passing::NotEchoRequest, Passing::ToInside, Passing::ToOwn, Passing::NotIpv4] {
            let name: String = format!("{passing:?}")
                .chars()
                .flat_map(|letter| {
                    let separator = if letter.is_uppercase() { "_" } else { "" };
                    format!("{separator}{}", letter.to_lowercase()).into_bytes()
                })
                .map(char::from)
                .collect();
            assert_eq!(name_of(EchogateReason::from(passing) as i32), name.trim_start_matches('_'));
        }
        assert!(echogate_reason_name(100).is_null() && echogate_reason_name(-1).is_null());
    }

    #[test]
    fn addresses_are_in_network_byte_order() {
        let address = Ipv4Addr::new(198, 51, 100, 7);
        assert_eq!(network_order(address).to_ne_bytes(), [198, 51, 100, 7]);
        assert_eq!(address_of(network_order(address)), address);
    }
}
