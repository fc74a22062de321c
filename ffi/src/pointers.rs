//! What C's pointers are checked for before anything is behind them: NULL, alignment, length, overlap.
//!
//! That a pointer which passes points to what the header says is the caller's part of the contract, and the reason in
//! every SAFETY comment here: nobody can check it.

use std::ffi::c_char;
use std::slice;

use crate::status::EchogateStatus;

/// The longest IP packet. Also what catches a negative length, such as a failed read's, that was made a `size_t`.
const PACKET_BYTES_MAX: usize = 65_535;

/// The longest text that a setting may have.
const TEXT_BYTES_MAX: usize = 65_536;

/// A packet, to read.
///
/// # Safety
/// `bytes` is NULL, or points to `length` bytes that nobody writes while the slice lives.
pub(crate) unsafe fn bytes<'a>(bytes: *const u8, length: usize) -> Result<&'a [u8], EchogateStatus> {
    check_bytes(bytes, length)?;
    // SAFETY: not NULL, and no longer than a packet, so that it does not wrap; the rest is the caller's contract.
    Ok(unsafe { slice::from_raw_parts(bytes, length) })
}

/// A packet or buffer, to change.
///
/// # Safety
/// `bytes` is NULL, or points to `length` bytes that nobody else reads or writes while the slice lives.
pub(crate) unsafe fn bytes_mut<'a>(bytes: *mut u8, length: usize) -> Result<&'a mut [u8], EchogateStatus> {
    check_bytes(bytes, length)?;
    // SAFETY: as in `bytes`, and nobody else has them.
    Ok(unsafe { slice::from_raw_parts_mut(bytes, length) })
}

/// A pointer to bytes may be used as such.
pub(crate) fn check_bytes(bytes: *const u8, length: usize) -> Result<(), EchogateStatus> {
    if bytes.is_null() {
        return Err(EchogateStatus::Null);
    }
    if length > PACKET_BYTES_MAX { Err(EchogateStatus::Length) } else { Ok(()) }
}

/// Two buffers that are to be used at once are apart; for lengths and pointers that have been checked.
pub(crate) fn check_apart(one: (*const u8, usize), other: (*const u8, usize)) -> Result<(), EchogateStatus> {
    let ends_before = |(left, length): (*const u8, usize), (right, _)| left.wrapping_add(length) <= right;
    if ends_before(one, other) || ends_before(other, one) { Ok(()) } else { Err(EchogateStatus::Overlap) }
}

/// A pointer to a value may be used as one.
pub(crate) fn check_value<T>(value: *const T) -> Result<(), EchogateStatus> {
    if value.is_null() {
        return Err(EchogateStatus::Null);
    }
    if value.is_aligned() { Ok(()) } else { Err(EchogateStatus::Misaligned) }
}

/// Puts `value` where C wants it.
///
/// # Safety
/// `place` is NULL, or points to memory for a `T`.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> Result<(), EchogateStatus> {
    check_value(place)?;
    // SAFETY: neither NULL nor misaligned; that there is memory is the caller's contract. Nothing is read or dropped.
    unsafe { place.write(value) };
    Ok(())
}

/// A copy of the value that C shows.
///
/// # Safety
/// `place` is NULL, or points to a `T`.
pub(crate) unsafe fn get<T: Copy>(place: *const T) -> Result<T, EchogateStatus> {
    check_value(place)?;
    // SAFETY: neither NULL nor misaligned; that it is a `T` is the caller's contract.
    Ok(unsafe { place.read() })
}

/// A setting's text; empty for NULL.
///
/// # Safety
/// `text` is NULL, or ends with a NUL.
pub(crate) unsafe fn text(text: *const c_char) -> Result<String, String> {
    let mut bytes = Vec::new();
    if text.is_null() {
        return Ok(String::new());
    }
    while bytes.len() < TEXT_BYTES_MAX {
        let next = text.wrapping_add(bytes.len());
        // SAFETY: no NUL came before it, so it is still the text's.
        let byte = unsafe { next.cast::<u8>().read() };
        if byte == 0 {
            return String::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned());
        }
        bytes.push(byte);
    }
    Err(format!("a text has no end within {TEXT_BYTES_MAX} bytes"))
}

/// Writes as much of `text` as there is room for, and a NUL. Without room nothing.
///
/// # Safety
/// `buffer` is NULL, or points to `room` bytes.
pub(crate) unsafe fn put_text(buffer: *mut c_char, room: usize, text: &str) {
    let Some(most) = room.checked_sub(1).filter(|_| !buffer.is_null()) else { return };
    // A character is written whole or not at all.
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = &text[..end];
    // SAFETY: `text` and the buffer are apart, since the text is ours, and it fits.
    unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len()) };
    let end = buffer.wrapping_add(text.len());
    // SAFETY: at most the buffer's last byte.
    unsafe { end.write(0) };
}
