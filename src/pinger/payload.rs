//! What a request carries, and whether a reply brings it back.
//!
//! The cookie first, eight random bytes of the ping's own; then the pattern. No time: a remote could not be believed
//! about one.

use super::options::PingOptions;
use super::reply::Payload;

/// An ICMP echo's header, in bytes (RFC 792; RFC 4443 has the same).
pub(super) const HEADER_LEN: usize = 8;

pub(super) const COOKIE_LEN: usize = 8;

/// Byte `at` of a payload, after the cookie.
fn filling(options: &PingOptions, at: usize) -> u8 {
    match options.pattern_bytes() {
        Some(pattern) => pattern[at % pattern.len()],
        // Counting bytes, as in every `ping`.
        None => u8::try_from(at & 0xFF).unwrap_or(0),
    }
}

/// Writes the echo request. Ident and checksum are the kernel's to write.
pub(super) fn write_request(
    options: &PingOptions,
    icmp_type: u8,
    sequence: u16,
    cookie: [u8; COOKIE_LEN],
    message: &mut Vec<u8>,
) {
    let [high, low] = sequence.to_be_bytes();
    message.extend([icmp_type, 0, 0, 0, 0, 0, high, low]);
    let size = usize::from(options.size);
    message.extend(&cookie[..size.min(COOKIE_LEN)]);
    message.extend((COOKIE_LEN..size).map(|at| filling(options, at)));
}

/// Judges a reply's payload. None: the cookie is not that of the request.
pub(super) fn judge(options: &PingOptions, cookie: [u8; COOKIE_LEN], payload: &[u8]) -> Option<Payload> {
    let size = usize::from(options.size);
    let expected = &cookie[..size.min(COOKIE_LEN)];
    let filled = payload.strip_prefix(expected)?;
    let altered = filled.iter().zip(COOKIE_LEN..size).find(|(byte, at)| **byte != filling(options, *at));
    if let Some((found, at)) = altered {
        return Some(Payload::Altered { at, sent: filling(options, at), found: *found });
    }
    Some(match payload.get(size) {
        Some(found) => Payload::Altered { at: size, sent: 0, found: *found },
        None if payload.len() < size => Payload::Truncated,
        None => Payload::Intact,
    })
}

/// Whether a quote, of which there may be little, can be of the request.
pub(super) fn may_be(options: &PingOptions, cookie: [u8; COOKIE_LEN], quoted: &[u8]) -> bool {
    let expected = &cookie[..usize::from(options.size).min(COOKIE_LEN)];
    expected.iter().zip(quoted).all(|(expected, found)| expected == found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn payload(options: &PingOptions) -> Vec<u8> {
        let mut message = Vec::new();
        write_request(options, 8, 0x1234, COOKIE, &mut message);
        assert_eq!(message[..8], [8, 0, 0, 0, 0, 0, 0x12, 0x34]);
        message.split_off(8)
    }

    #[test]
    fn every_byte_of_a_reply_is_looked_at() {
        for size in [0, 3, 8, 9, 56, 300] {
            for pattern in [&[][..], &[0xAA], &[1, 2, 3]] {
                let mut options = PingOptions::new().size(size).unwrap();
                if !pattern.is_empty() {
                    options = options.pattern(pattern).unwrap();
                }
                let sent = payload(&options);
                assert_eq!(sent.len(), size);
                assert_eq!(judge(&options, COOKIE, &sent), Some(Payload::Intact));
                for at in 0..size {
                    let mut other = sent.clone();
                    other[at] ^= 0x10;
                    let (was, found) = (sent[at], other[at]);
                    let expected = (at >= COOKIE_LEN).then_some(Payload::Altered { at, sent: was, found });
                    assert_eq!(judge(&options, COOKIE, &other), expected, "byte {at} of {size}");
                    let expected = (at >= size.min(COOKIE_LEN)).then_some(Payload::Truncated);
                    assert_eq!(judge(&options, COOKIE, &sent[..at]), expected, "{at} of {size} bytes");
                }
                let longer = [&sent[..], b"x"].concat();
                assert_eq!(judge(&options, COOKIE, &longer), Some(Payload::Altered { at: size, sent: 0, found: b'x' }));
            }
        }
    }

    #[test]
    fn a_short_quote_may_be_of_the_request_and_another_cookie_is_not() {
        let options = PingOptions::new();
        let sent = payload(&options);
        assert!((0..=sent.len()).all(|len| may_be(&options, COOKIE, &sent[..len])));
        assert!(!may_be(&options, COOKIE, &[1, 2, 4]));
    }
}
