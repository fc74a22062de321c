//! The outside for C: raw sockets, with replies to a callback or into a queue that the server reads.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use echogate::outside::{Delivered, Outside, Sender};

use crate::answer::{address_of, network_order};
use crate::guarded;
use crate::packets::{ECHOGATE_FOREVER, ProcessClock};
use crate::pointers;
use crate::proxy::{EchogateProxy, PROXIES};
use crate::registry::{Kind, Registry};
use crate::status::EchogateStatus;

/// The outside of an embedded gateway: its sockets and the thread that receives. Any thread may use it at any time. 0 is
/// none.
pub type EchogateOutside = u64;

/// Takes a reply, or an error about a request, for the client with this address (network byte order): an IPv4 datagram, which
/// may be changed in place and is gone when the callback returns. Returns 0, or the errno by which the drop is
/// counted (ENOBUFS for a queue that is full). Runs on the receiving thread: it must not block, and no exception may
/// leave it.
pub type EchogateDeliver =
    Option<unsafe extern "C" fn(context: *mut c_void, client: u32, bytes: *mut u8, length: usize) -> i32>;

/// What an outside has counted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EchogateCounters {
    /// Packets received by the raw socket: every echo reply that reaches the host, and every error about an echo.
    pub received: u64,
    /// Replies that were delivered.
    pub delivered: u64,
    /// Errors that were delivered.
    pub told: u64,
    /// All others: none of Echogate's, or the callback or queue did not take it.
    pub dropped: u64,
}

static OUTSIDES: Registry<Arc<Open>, 64> = Registry::new(Kind::Outside);

/// What callers share. Freeing takes the outside out of it; who is in a call meanwhile finds that it has ended.
struct Open {
    sender: Sender,
    /// None: a callback takes the replies.
    replies: Option<Receiver<Delivered>>,
    outside: Mutex<Option<Outside>>,
    fault: OnceLock<String>,
}

/// The server's pointer, on its way to the receiving thread.
struct Context(*mut c_void);

// SAFETY: it is only ever given back to the server's own callback, and the header says that this is called on another
// thread.
unsafe impl Send for Context {}

impl Context {
    /// Taken as a whole, so that a closure captures what is `Send`.
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

thread_local! {
    /// Whether this thread is in a server's callback.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Opens raw sockets in the calling thread's network namespace (CAP_NET_RAW) and starts a thread that calls `deliver`
/// with each reply, and with `context`. The time of every call with the proxy's handles must be echogate_now's.
/// ECHOGATE_STATUS_SETUP comes with a text in `error`. There can be 64 at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_open(
    proxy: EchogateProxy,
    deliver: EchogateDeliver,
    context: *mut c_void,
    outside: *mut EchogateOutside,
    error: *mut c_char,
    error_size: usize,
) -> EchogateStatus {
    guarded(|| {
        let deliver = deliver.ok_or(EchogateStatus::Null)?;
        let context = Context(context);
        let callback = move |client: Ipv4Addr, packet: &mut [u8]| {
            IN_CALLBACK.set(true);
            // SAFETY: the server's own function, with what it asked for; the packet is nobody else's during the call.
            let errno = unsafe { deliver(context.pointer(), network_order(client), packet.as_mut_ptr(), packet.len()) };
            IN_CALLBACK.set(false);
            if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        };
        let open = || {
            let proxy = PROXIES.get(proxy)?;
            Ok(Outside::open(&proxy, ProcessClock, callback).map(|outside| (outside, None)))
        };
        // SAFETY: the header's contract for pointers.
        unsafe { keep(open, outside, error, error_size) }
    })
}

/// As echogate_outside_open, with replies put into a queue with room for `room` of them, for echogate_outside_receive; when
/// it is full they are dropped and counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_open_queue(
    proxy: EchogateProxy,
    room: usize,
    outside: *mut EchogateOutside,
    error: *mut c_char,
    error_size: usize,
) -> EchogateStatus {
    guarded(|| {
        if room > QUEUE_ROOM_MAX {
            return Err(EchogateStatus::Length);
        }
        let open = || {
            let proxy = PROXIES.get(proxy)?;
            let opened = Outside::open_queue(&proxy, ProcessClock, room);
            Ok(opened.map(|(outside, replies)| (outside, Some(replies))))
        };
        // SAFETY: the header's contract for pointers.
        unsafe { keep(open, outside, error, error_size) }
    })
}

/// The most replies that a queue may have room for: its places are made at the start.
const QUEUE_ROOM_MAX: usize = 65_536;

/// Sends a packet that is to be forwarded: `length`, `address` and `to` of the answer. Does not block. ECHOGATE_STATUS_NOT_SENT comes
/// with the errno in `system_error` (NULL if that is of no interest); the packet is then for echogate_not_sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_send(
    outside: EchogateOutside,
    bytes: *const u8,
    length: usize,
    address: u8,
    to: u32,
    system_error: *mut i32,
) -> EchogateStatus {
    guarded(|| {
        let open = OUTSIDES.get(outside)?;
        // SAFETY: the header's contract for pointers.
        let packet = unsafe { pointers::bytes(bytes, length) }?;
        let Err(error) = open.sender.send(packet, address, address_of(to)) else { return Ok(()) };
        if !system_error.is_null() {
            // SAFETY: as above.
            unsafe { pointers::put(system_error, error.raw_os_error().unwrap_or(libc::EIO)) }?;
        }
        Err(EchogateStatus::NotSent)
    })
}

/// What fits into one packet from gateway address number `address` to `to`, in bytes, for echogate_not_sent after EMSGSIZE; 0 if
/// that cannot be told. A few system calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_mtu(
    outside: EchogateOutside,
    address: u8,
    to: u32,
    mtu: *mut u32,
) -> EchogateStatus {
    guarded(|| {
        let found = OUTSIDES.get(outside)?.sender.mtu_towards(address, address_of(to));
        // SAFETY: the header's contract for pointers.
        unsafe { pointers::put(mtu, found.map_or(0, u32::from)) }
    })
}

/// Takes a reply, or an error about a request, out of the queue of echogate_outside_open_queue; waits up to `wait_ns` for one (0: not
/// at all, ECHOGATE_FOREVER: until it comes or the outside ends). Several threads may wait. With ECHOGATE_STATUS_SHORT
/// the reply is lost, and `length` says how long it was. ECHOGATE_STATUS_EMPTY: none came.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_receive(
    outside: EchogateOutside,
    wait_ns: u64,
    buffer: *mut u8,
    room: usize,
    client: *mut u32,
    length: *mut usize,
) -> EchogateStatus {
    guarded(|| {
        pointers::check_value(client)?;
        pointers::check_value(length)?;
        let open = OUTSIDES.get(outside)?;
        let replies = open.replies.as_ref().ok_or(EchogateStatus::Unsupported)?;
        // SAFETY: the header's contract for pointers. No reply is longer than a packet.
        let buffer = unsafe { pointers::bytes_mut(buffer, room.min(PACKET_BYTES_MAX)) }?;
        let reply = match wait_ns {
            ECHOGATE_FOREVER => replies.recv().map_err(|_| EchogateStatus::Ended),
            _ => replies.recv_timeout(Duration::from_nanos(wait_ns)).map_err(|error| match error {
                RecvTimeoutError::Timeout => EchogateStatus::Empty,
                RecvTimeoutError::Disconnected => EchogateStatus::Ended,
            }),
        }?;
        // SAFETY: as above.
        unsafe { pointers::put(length, reply.len()) }?;
        // SAFETY: as above.
        unsafe { pointers::put(client, network_order(reply.client())) }?;
        buffer.get_mut(..reply.len()).ok_or(EchogateStatus::Short)?.copy_from_slice(&reply);
        Ok(())
    })
}

const PACKET_BYTES_MAX: usize = 65_535;

/// What an outside has counted by now: received = delivered + told + dropped, once nothing is in flight.
/// `counters_size` is sizeof(EchogateCounters).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_counters(
    outside: EchogateOutside,
    counters: *mut EchogateCounters,
    counters_size: usize,
) -> EchogateStatus {
    guarded(|| {
        if counters_size != size_of::<EchogateCounters>() {
            return Err(EchogateStatus::Size);
        }
        let open = OUTSIDES.get(outside)?;
        let opened = open.outside.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = opened.as_ref().ok_or(EchogateStatus::Ended)?.snapshot();
        let counted = EchogateCounters {
            received: snapshot.outside_in.packets,
            delivered: snapshot.delivered.packets,
            told: snapshot.told.packets,
            dropped: snapshot.drops.iter().map(|(_, count)| count).sum(),
        };
        // SAFETY: the header's contract for pointers.
        unsafe { pointers::put(counters, counted) }
    })
}

/// Whether the receiving thread still runs. If not: ECHOGATE_STATUS_ENDED, with a text in `error` that says why. Free the outside
/// then, and open another.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn echogate_outside_fault(
    outside: EchogateOutside,
    error: *mut c_char,
    error_size: usize,
) -> EchogateStatus {
    guarded(|| {
        let open = OUTSIDES.get(outside)?;
        if let Some(opened) = &*open.outside.lock().unwrap_or_else(PoisonError::into_inner)
            && let Ok(fault) = opened.faults().try_recv()
        {
            // It is the only one that ever comes.
            let _ = open.fault.set(fault.to_string());
        }
        let Some(fault) = open.fault.get() else { return Ok(()) };
        // SAFETY: the header's contract for pointers.
        unsafe { pointers::put_text(error, error_size, fault) };
        Err(EchogateStatus::Ended)
    })
}

/// Ends the receiving thread, waits for it and closes the sockets. The callback is not called any more when this returns; threads
/// that wait in echogate_outside_receive return. Not from a callback: ECHOGATE_STATUS_BUSY.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_outside_free(outside: EchogateOutside) -> EchogateStatus {
    guarded(|| {
        if IN_CALLBACK.get() {
            return Err(EchogateStatus::Busy);
        }
        let open = OUTSIDES.release(outside)?;
        let opened = open.outside.lock().unwrap_or_else(PoisonError::into_inner).take();
        // What made the thread end before was told by echogate_outside_fault.
        drop(opened);
        Ok(())
    })
}

/// What opening gives, or the status that says why it was not even tried.
type Opened = Result<Result<(Outside, Option<Receiver<Delivered>>), echogate::error::SetupError>, EchogateStatus>;

/// Opens an outside and gives its number.
///
/// # Safety
/// As the header says of pointers.
unsafe fn keep(
    open: impl FnOnce() -> Opened,
    outside: *mut EchogateOutside,
    error: *mut c_char,
    error_size: usize,
) -> Result<(), EchogateStatus> {
    pointers::check_value(outside)?;
    let (opened, replies) = open()?.map_err(|reason| {
        // SAFETY: the caller's contract.
        unsafe { pointers::put_text(error, error_size, &reason.to_string()) };
        EchogateStatus::Setup
    })?;
    let sender = opened.sender();
    let open = Open { sender, replies, outside: Mutex::new(Some(opened)), fault: OnceLock::new() };
    // SAFETY: the caller's contract.
    unsafe { pointers::put(outside, OUTSIDES.insert(Arc::new(open))?) }
}
