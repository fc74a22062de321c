//! How the model reads packets: by code of its own, word by word, so that a mistake in the gateway's cannot hide in both.

use std::net::Ipv4Addr;

pub(super) const ICMP: u8 = 1;
pub(super) const ECHO_REPLY: u8 = 0;
pub(super) const ECHO_REQUEST: u8 = 8;

/// An IPv4 packet whose lengths agree with the bytes that there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'b> {
    /// Without what stands behind it.
    pub(super) bytes: &'b [u8],
    pub(super) header: &'b [u8],
    pub(super) payload: &'b [u8],
    pub(super) tos: u8,
    pub(super) identification: u16,
    pub(super) dont_fragment: bool,
    pub(super) more_fragments: bool,
    pub(super) offset: usize,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
}

/// An echo message, or as much of one as there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo<'b> {
    pub(super) icmp_type: u8,
    pub(super) code: u8,
    pub(super) ident: u16,
    pub(super) sequence: u16,
    pub(super) body: &'b [u8],
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// RFC 1071: 0 and 0xFFFF are the same number.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
    u16::try_from(words.sum::<u64>() % 65_535).expect("less than 65,535")
}

/// Whether the bytes include their own checksum. (All zeros sum to zero too, and have none.)
pub(super) fn is_intact(bytes: &[u8]) -> bool {
    sum(bytes) == 0 && bytes.iter().any(|byte| *byte != 0)
}

impl<'b> Packet<'b> {
    /// The packet that is exactly these bytes.
    pub(super) fn see(bytes: &'b [u8]) -> Option<Packet<'b>> {
        Packet::see_long(bytes).filter(|packet| packet.bytes.len() == bytes.len())
    }

    /// The packet that these bytes begin with.
    pub(super) fn see_long(bytes: &'b [u8]) -> Option<Packet<'b>> {
        Packet::see_quoted(bytes).filter(|packet| packet.bytes.len() == usize::from(word(bytes, 2)))
    }

    /// What an error quotes may be cut short.
    pub(super) fn see_quoted(bytes: &'b [u8]) -> Option<Packet<'b>> {
        if bytes.len() < 20 || bytes[0] >> 4 != 4 {
            return None;
        }
        let (header_len, total) = (usize::from(bytes[0] & 15) * 4, usize::from(word(bytes, 2)));
        let end = total.min(bytes.len());
        if header_len < 20 || end < header_len {
            return None;
        }
        let flags = word(bytes, 6);
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Packet {
            bytes: &bytes[..end],
            header: &bytes[..header_len],
            payload: &bytes[header_len..end],
            tos: bytes[1],
            identification: word(bytes, 4),
            dont_fragment: flags & 0x4000 != 0,
            more_fragments: flags & 0x2000 != 0,
            offset: usize::from(flags & 0x1FFF) * 8,
            ttl: bytes[8],
            protocol: bytes[9],
            source: address(12),
            destination: address(16),
        })
    }

    pub(super) fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset > 0
    }

    /// The message that begins here, if this is ICMP and not what follows a first fragment.
    pub(super) fn echo(&self) -> Option<Echo<'b>> {
        if self.protocol != ICMP || self.offset > 0 || self.payload.len() < 8 {
            return None;
        }
        let message = self.payload;
        Some(Echo {
            icmp_type: message[0],
            code: message[1],
            ident: word(message, 4),
            sequence: word(message, 6),
            body: &message[8..],
        })
    }

    /// The echo request that this error quotes.
    pub(super) fn quoted(&self) -> Option<(Packet<'b>, Echo<'b>)> {
        let error = self.echo().filter(|error| [3, 11, 12].contains(&error.icmp_type))?;
        let quoted = Packet::see_quoted(error.body)?;
        let echo = quoted.echo().filter(|echo| (echo.icmp_type, echo.code) == (ECHO_REQUEST, 0))?;
        Some((quoted, echo))
    }
}

/// Whether two packets differ in nothing but checksums (in a header, and in the ICMP message behind it) and in the given ranges.
pub(super) fn same_but(one: &[u8], other: &[u8], header_len: usize, ranges: &[std::ops::Range<usize>]) -> bool {
    let free = |at: usize| {
        (10..12).contains(&at)
            || (header_len + 2..header_len + 4).contains(&at)
            || ranges.iter().any(|range| range.contains(&at))
    };
    one.len() == other.len() && one.iter().zip(other).enumerate().all(|(at, (one, other))| one == other || free(at))
}
