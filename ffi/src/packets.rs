//! Judging packets, one a call or many. Each call is a batch: it pins the forward map once, at one time.

use std::sync::OnceLock;
use std::time::Duration;

use echogate::clock::{Clock, Instant, Monotonic};
use echogate::proxy::{Batch, Handle};

use crate::answer::{EchogateAnswer, EchogateReason, EchogateVerdict};
use crate::guarded;
use crate::pointers;
use crate::proxy::{EchogateHandle, HANDLES};
use crate::status::EchogateStatus;

/// The most packets of one call.
pub const ECHOGATE_BATCH_MAX: usize = 1024;

/// The most bytes of an error for a client: room enough for any.
pub const ECHOGATE_ERROR_BYTES_MAX: usize = 576;

const _: () = assert!(ECHOGATE_ERROR_BYTES_MAX == echogate::wire::error::LEN_MAX);

/// For echogate_outbound: this worker is asked last, every other has answered ECHOGATE_VERDICT_ELSEWHERE; or the server has no
/// way to pass a packet from one worker to another.
pub const ECHOGATE_AT_LAST: u32 = 1;

/// In echogate_expire's `wait_ns`: the thread may sleep as long as it likes.
pub const ECHOGATE_FOREVER: u64 = u64::MAX;

/// One of several packets to judge.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EchogatePacket {
    /// In: the packet, an IPv4 datagram; rewritten in place as the answer says.
    pub bytes: *mut u8,
    /// In: how many bytes were received.
    pub length: usize,
    /// Out: what becomes of it.
    pub answer: EchogateAnswer,
}

/// The one clock of this process: a batch's time, and what the outside's thread matches replies by.
#[derive(Clone, Copy)]
pub(crate) struct ProcessClock;

impl Clock for ProcessClock {
    fn now(&self) -> Instant {
        static START: OnceLock<Monotonic> = OnceLock::new();
        START.get_or_init(Monotonic::new).now()
    }
}

/// The library's clock, in nanoseconds: monotonic, and the same for all threads. A server may use one of its own instead, for all
/// calls, if it never goes back; not with an outside, which reads this one.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_now() -> u64 {
    ProcessClock.now().as_nanos()
}

/// Judges a packet from a client. `now_ns` is the time (echogate_now), read half a second ago at most. `flags` is 0 or
/// ECHOGATE_AT_LAST.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outbound(
    handle: EchogateHandle,
    now_ns: u64,
    flags: u32,
    bytes: *mut u8,
    length: usize,
    answer: *mut EchogateAnswer,
) -> EchogateStatus {
    guarded(|| {
        let at_last = is_at_last(flags)?;
        // SAFETY: the header's contract for pointers.
        unsafe { judge_one(handle, now_ns, bytes, length, answer, |batch, packet| outbound(batch, packet, at_last)) }
    })
}

/// As echogate_outbound, for `count` packets, ECHOGATE_BATCH_MAX at most, which share the cost of a call. `packet_size` is
/// sizeof(EchogatePacket). If a packet cannot be looked at, that is the call's status, and those after it have no answer
/// (verdict 0).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outbound_batch(
    handle: EchogateHandle,
    now_ns: u64,
    flags: u32,
    packets: *mut EchogatePacket,
    count: usize,
    packet_size: usize,
) -> EchogateStatus {
    guarded(|| {
        let at_last = is_at_last(flags)?;
        // SAFETY: the header's contract for pointers.
        unsafe {
            judge_many(handle, now_ns, packets, count, packet_size, |batch, packet| outbound(batch, packet, at_last))
        }
    })
}

/// Judges a packet from outside, from any thread's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_inbound(
    handle: EchogateHandle,
    now_ns: u64,
    bytes: *mut u8,
    length: usize,
    answer: *mut EchogateAnswer,
) -> EchogateStatus {
    // SAFETY: the header's contract for pointers.
    guarded(|| unsafe { judge_one(handle, now_ns, bytes, length, answer, inbound) })
}

/// As echogate_inbound, for many packets; see echogate_outbound_batch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_inbound_batch(
    handle: EchogateHandle,
    now_ns: u64,
    packets: *mut EchogatePacket,
    count: usize,
    packet_size: usize,
) -> EchogateStatus {
    // SAFETY: the header's contract for pointers.
    guarded(|| unsafe { judge_many(handle, now_ns, packets, count, packet_size, inbound) })
}

/// After ECHOGATE_VERDICT_REFUSE, and after ECHOGATE_VERDICT_DROP of a packet from a client: makes the error that its client is to
/// get, if any. The packet is as it was offered, and `answer` what was answered. `error_length` is 0 if the client
/// is not to be told, or has been often enough. `error` has room for ECHOGATE_ERROR_BYTES_MAX bytes, apart from the packet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_tell(
    handle: EchogateHandle,
    now_ns: u64,
    bytes: *const u8,
    length: usize,
    answer: *const EchogateAnswer,
    error: *mut u8,
    error_room: usize,
    error_length: *mut usize,
) -> EchogateStatus {
    guarded(|| {
        check_error(error, error_room, bytes, length)?;
        // SAFETY: the header's contract for pointers.
        let packet = unsafe { pointers::bytes(bytes, length) }?;
        // SAFETY: as above.
        let answer = unsafe { pointers::get(answer) }?;
        // SAFETY: as above; and the two are apart.
        unsafe {
            make_error(handle, now_ns, error, error_length, |batch, error| {
                if answer.is(EchogateVerdict::Refuse) && answer.tell != 0 {
                    batch.prohibited(packet, answer.address, error)
                } else if answer.is(EchogateVerdict::Drop) && answer.is_because(EchogateReason::TtlExpired) {
                    batch.time_exceeded(packet, error)
                } else {
                    None
                }
            })
        }
    })
}

/// For a packet that was to be forwarded, as it is now, and that was not sent: forgets its echo, and makes the error that its
/// client is to get, if any, as echogate_tell does. `system_error` is the errno; `mtu` what fits on the way out in bytes, 0 if that is
/// not known (it matters for EMSGSIZE only). The packet becomes the client's own again where there is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_not_sent(
    handle: EchogateHandle,
    now_ns: u64,
    bytes: *mut u8,
    length: usize,
    system_error: i32,
    mtu: u32,
    error: *mut u8,
    error_room: usize,
    error_length: *mut usize,
) -> EchogateStatus {
    guarded(|| {
        check_error(error, error_room, bytes, length)?;
        // SAFETY: the header's contract for pointers.
        let packet = unsafe { pointers::bytes_mut(bytes, length) }?;
        let mtu = u16::try_from(mtu).ok().filter(|mtu| *mtu != 0);
        // SAFETY: as above; and the two are apart.
        unsafe {
            make_error(handle, now_ns, error, error_length, |batch, error| {
                batch.withdraw(packet);
                batch.not_sent(packet, system_error, |_, _| mtu, error)
            })
        }
    })
}

/// Ends what is due: idle mappings, hold-downs, unanswered echoes. To be called after each bunch of packets, and no later
/// than `wait_ns` after this call, which is how long the thread may sleep if no packet comes (ECHOGATE_FOREVER: as long as
/// it likes). NULL if that is of no interest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_expire(handle: EchogateHandle, now_ns: u64, wait_ns: *mut u64) -> EchogateStatus {
    guarded(|| {
        let now = Instant::from_nanos(now_ns);
        let wait = HANDLES.with(handle, |handle| {
            handle.batch(now).expire();
            Ok(handle.sleep_max(now).map_or(ECHOGATE_FOREVER, nanos))
        })?;
        // SAFETY: the header's contract for pointers.
        if wait_ns.is_null() { Ok(()) } else { unsafe { pointers::put(wait_ns, wait) } }
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(ECHOGATE_FOREVER)
}

fn is_at_last(flags: u32) -> Result<bool, EchogateStatus> {
    if flags & !ECHOGATE_AT_LAST == 0 { Ok(flags & ECHOGATE_AT_LAST != 0) } else { Err(EchogateStatus::Unsupported) }
}

fn outbound(batch: &mut Batch<'_>, packet: &mut [u8], at_last: bool) -> EchogateAnswer {
    let answer = if at_last { batch.outbound_at_last(packet) } else { batch.outbound(packet) };
    EchogateAnswer::outbound(answer, batch)
}

fn inbound(batch: &mut Batch<'_>, packet: &mut [u8]) -> EchogateAnswer {
    EchogateAnswer::inbound(batch.inbound(packet))
}

/// # Safety
/// As the header says of pointers.
unsafe fn judge_one(
    handle: EchogateHandle,
    now_ns: u64,
    bytes: *mut u8,
    length: usize,
    answer: *mut EchogateAnswer,
    judge: impl FnOnce(&mut Batch<'_>, &mut [u8]) -> EchogateAnswer,
) -> Result<(), EchogateStatus> {
    // Before the packet is judged: what has been recorded must be answered.
    pointers::check_value(answer)?;
    let judged = HANDLES.with(handle, |handle| {
        // SAFETY: the caller's contract.
        let packet = unsafe { pointers::bytes_mut(bytes, length) }?;
        Ok(judge(&mut batch(handle, now_ns), packet))
    })?;
    // SAFETY: the caller's contract.
    unsafe { pointers::put(answer, judged) }
}

/// # Safety
/// As the header says of pointers.
unsafe fn judge_many(
    handle: EchogateHandle,
    now_ns: u64,
    packets: *mut EchogatePacket,
    count: usize,
    packet_size: usize,
    mut judge: impl FnMut(&mut Batch<'_>, &mut [u8]) -> EchogateAnswer,
) -> Result<(), EchogateStatus> {
    if packet_size != size_of::<EchogatePacket>() {
        return Err(EchogateStatus::Size);
    }
    if count > ECHOGATE_BATCH_MAX {
        return Err(EchogateStatus::Length);
    }
    pointers::check_value(packets)?;
    HANDLES.with(handle, |handle| {
        let mut batch = batch(handle, now_ns);
        let mut status = Ok(());
        // Pointers, never a slice: nothing keeps a packet's bytes from being the array's own.
        for packet in (0..count).map(|number| packets.wrapping_add(number)) {
            // SAFETY: one of the caller's `count`.
            let mut one = unsafe { pointers::get(packet) }?;
            one.answer = EchogateAnswer::default();
            if status.is_ok() {
                // SAFETY: the caller's contract.
                match unsafe { pointers::bytes_mut(one.bytes, one.length) } {
                    Ok(bytes) => one.answer = judge(&mut batch, bytes),
                    Err(wrong) => status = Err(wrong),
                }
            }
            // SAFETY: as above.
            unsafe { pointers::put(packet, one) }?;
        }
        status
    })
}

/// There is room for an error, and apart from the packet.
fn check_error(error: *const u8, error_room: usize, bytes: *const u8, length: usize) -> Result<(), EchogateStatus> {
    pointers::check_bytes(bytes, length)?;
    if error_room < ECHOGATE_ERROR_BYTES_MAX {
        return Err(EchogateStatus::Short);
    }
    pointers::check_apart((bytes, length), (error, ECHOGATE_ERROR_BYTES_MAX))
}

/// # Safety
/// As the header says of pointers; and the error's buffer has been checked.
unsafe fn make_error(
    handle: EchogateHandle,
    now_ns: u64,
    error: *mut u8,
    error_length: *mut usize,
    make: impl FnOnce(&mut Batch<'_>, &mut [u8]) -> Option<usize>,
) -> Result<(), EchogateStatus> {
    pointers::check_value(error_length)?;
    // SAFETY: the caller's contract.
    let error = unsafe { pointers::bytes_mut(error, ECHOGATE_ERROR_BYTES_MAX) }?;
    let length = HANDLES.with(handle, |handle| Ok(make(&mut batch(handle, now_ns), error).unwrap_or(0)))?;
    // SAFETY: the caller's contract.
    unsafe { pointers::put(error_length, length) }
}

fn batch(handle: &mut Handle, now_ns: u64) -> Batch<'_> {
    handle.batch(Instant::from_nanos(now_ns))
}
