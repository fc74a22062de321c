//! Payloads that name their request, and tell by every byte whether they are still it.

/// What free buffers are filled with in debug builds; no payload has it.
pub(super) const POISON: u8 = 0xa5;

/// Begins with the number; the rest is a function of it.
pub(super) fn payload(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state.to_le_bytes()[0] {
            POISON => 0,
            byte => byte,
        }
    }));
    bytes
}

/// The number that a payload begins with.
pub(super) fn number_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}
