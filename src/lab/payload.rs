//! Echoes whose every byte says whose they are: making them, and judging what comes back.
//!
//! The payload is a pseudo-random function of client, remote, ident, sequence and the run's seed. Two clients that use
//! equal idents and sequences still send different bytes, so a reply that reaches the wrong one is told from its own
//! and from a damaged one.
//!
//! Reads and writes packets by itself and not through the modules that the gateway uses: what checks the gateway does
//! not share its faults.

use std::net::Ipv4Addr;

/// The ICMP header in front of a payload, in bytes.
pub(super) const HEADER: usize = 8;
const IPV4_HEADER_MIN: usize = 20;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// What an echo's payload is computed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Echo {
    pub(super) client: Ipv4Addr,
    pub(super) remote: Ipv4Addr,
    pub(super) ident: u16,
    pub(super) sequence: u16,
}

/// What a datagram that arrived at a client turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The reply to this echo of an own address, every byte as it was sent.
    Own(Echo),
    /// Another client's reply, intact.
    WrongClient,
    /// A reply that is nobody's as it stands. The echo it claims to answer, if its headers can be read.
    Altered { claims: Option<Echo> },
    /// ICMP of another type: an error.
    NoReply,
}

/// Writes the ICMP message that asks for `echo` into `message` (header and payload, so at least [`HEADER`] bytes).
pub(super) fn write_request(seed: u64, echo: Echo, message: &mut [u8]) {
    let (header, payload) = message.split_at_mut(HEADER);
    fill(seed, echo, payload);
    header[..4].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0]);
    header[4..6].copy_from_slice(&echo.ident.to_be_bytes());
    header[6..].copy_from_slice(&echo.sequence.to_be_bytes());
    let checksum = !ones_complement_sum(message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// Judges the datagram (IPv4 header first) that the host with the addresses `own` received; `others` are all clients it
/// could be meant for, `own` is in ascending order, and `expected` is room for one payload.
pub(super) fn judge(seed: u64, own: &[Ipv4Addr], others: &[Ipv4Addr], datagram: &[u8], expected: &mut [u8]) -> Verdict {
    let Some(reply) = Reply::parse(datagram) else {
        return Verdict::Altered { claims: None };
    };
    if !reply.is_reply {
        return Verdict::NoReply;
    }
    let client = reply.destination;
    let claims = Echo { client, remote: reply.source, ident: reply.ident, sequence: reply.sequence };
    let altered = Verdict::Altered { claims: Some(claims) };
    if !reply.intact || reply.payload.len() != expected.len() {
        return altered;
    }
    let mut is_for = |client| {
        fill(seed, Echo { client, ..claims }, expected);
        reply.payload == expected
    };
    let is_own = |address| own.binary_search(address).is_ok();
    let addressed_to_us = is_own(&client);
    if addressed_to_us && is_for(client) {
        Verdict::Own(claims)
    } else if others.iter().any(|other| (addressed_to_us || !is_own(other)) && is_for(*other)) {
        Verdict::WrongClient
    } else {
        altered
    }
}

struct Reply<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ident: u16,
    sequence: u16,
    payload: &'a [u8],
    is_reply: bool,
    /// Code, lengths and ICMP checksum are as they should be.
    intact: bool,
}

impl Reply<'_> {
    fn parse(datagram: &[u8]) -> Option<Reply<'_>> {
        let (ip, _) = datagram.split_first_chunk::<IPV4_HEADER_MIN>()?;
        let header_length = usize::from(ip[0] & 0x0f) * 4;
        let message = datagram.get(header_length.max(IPV4_HEADER_MIN)..)?;
        let (icmp, payload) = message.split_first_chunk::<HEADER>()?;
        let total_length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        Some(Reply {
            source: Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            destination: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
            ident: u16::from_be_bytes([icmp[4], icmp[5]]),
            sequence: u16::from_be_bytes([icmp[6], icmp[7]]),
            payload,
            is_reply: icmp[0] == ECHO_REPLY,
            intact: icmp[1] == 0 && total_length == datagram.len() && ones_complement_sum(message) == 0xffff,
        })
    }
}

fn fill(seed: u64, echo: Echo, payload: &mut [u8]) {
    let addresses = u64::from(u32::from(echo.client)) << 32 | u64::from(u32::from(echo.remote));
    let identity = u64::from(echo.ident) << 16 | u64::from(echo.sequence);
    let mut state = mixed(mixed(seed ^ addresses) ^ identity);
    for chunk in payload.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mixed(state).to_le_bytes()[..chunk.len()]);
    }
}

/// The output function of SplitMix64: a bijection, every output bit depends on every input bit.
fn mixed(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

/// RFC 1071, one 16-bit word at a time.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
    const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(10, 66, 0, 3)];

    /// The datagram with which the remote answers `client`.
    fn reply_to(client: Ipv4Addr, payload_len: usize) -> Vec<u8> {
        let mut message = vec![0; HEADER + payload_len];
        write_request(SEED, Echo { client, remote: REMOTE, ident: 1, sequence: 9 }, &mut message);
        assert_eq!(ones_complement_sum(&message), 0xffff, "the request's own checksum");
        message[0] = ECHO_REPLY;
        set_checksum(&mut message);
        let total = u16::try_from(20 + message.len()).expect("short");
        let mut datagram = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        datagram[2..4].copy_from_slice(&total.to_be_bytes());
        datagram.extend(REMOTE.octets());
        datagram.extend(client.octets());
        datagram.extend(message);
        datagram
    }

    fn set_checksum(message: &mut [u8]) {
        message[2..4].fill(0);
        let checksum = !ones_complement_sum(message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }

    fn judged(datagram: &[u8], payload_len: usize) -> Verdict {
        judge(SEED, &CLIENTS[..1], &CLIENTS, datagram, &mut vec![0; payload_len])
    }

    #[test]
    fn an_own_reply_is_told_from_another_clients() {
        for payload_len in [16, 17, 56, 1472] {
            let own = judged(&reply_to(CLIENTS[0], payload_len), payload_len);
            assert_eq!(own, Verdict::Own(Echo { client: CLIENTS[0], remote: REMOTE, ident: 1, sequence: 9 }));
            assert_eq!(judged(&reply_to(CLIENTS[1], payload_len), payload_len), Verdict::WrongClient);
        }
    }

    #[test]
    fn another_clients_reply_readdressed_to_us_is_still_not_ours() {
        let mut datagram = reply_to(CLIENTS[1], 56);
        datagram[16..20].copy_from_slice(&CLIENTS[0].octets());
        assert_eq!(judged(&datagram, 56), Verdict::WrongClient);
    }

    #[test]
    fn any_byte_of_the_message_that_changes_is_seen_with_and_without_a_matching_checksum() {
        let original = reply_to(CLIENTS[0], 57);
        for place in 21..original.len() {
            let mut datagram = original.clone();
            datagram[place] ^= 0x20;
            assert!(matches!(judged(&datagram, 57), Verdict::Altered { .. }), "byte {place}");
            set_checksum(&mut datagram[20..]);
            // Bytes 2 and 3 are the checksum itself: mended, the datagram is as it was.
            let mended = matches!(place, 22 | 23);
            assert_eq!(matches!(judged(&datagram, 57), Verdict::Altered { .. }), !mended, "byte {place}");
        }
    }

    #[test]
    fn an_error_is_no_reply() {
        let mut datagram = reply_to(CLIENTS[0], 56);
        datagram[20] = 3;
        assert_eq!(judged(&datagram, 56), Verdict::NoReply);
    }

    #[test]
    fn a_changed_source_and_every_truncation_are_seen() {
        let original = reply_to(CLIENTS[0], 56);
        let mut moved = original.clone();
        moved[15] = 3;
        assert!(matches!(judged(&moved, 56), Verdict::Altered { .. }));
        for length in 0..original.len() {
            assert!(matches!(judged(&original[..length], 56), Verdict::Altered { .. }), "{length} bytes");
        }
    }
}
