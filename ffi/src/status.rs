//! How a call went, and the text for it.

use std::ffi::{CStr, c_char};

/// How a call went. What happened to a packet is its answer's verdict, not the call's status.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EchogateStatus {
    /// The call did what it is for.
    Ok = 0,
    /// A pointer that must not be is NULL, or a handle is 0.
    Null = 1,
    /// A pointer to a struct is not aligned for it.
    Misaligned = 2,
    /// A length is beyond any packet's (65,535 bytes), or a count beyond ECHOGATE_BATCH_MAX.
    Length = 3,
    /// A struct's size is not one that this library knows: header and library are of different versions, or a binding
    /// lays the struct out in another way.
    Size = 4,
    /// A flag, or a field beyond those that this library knows, is set.
    Unsupported = 5,
    /// There is no such handle (any more): it was freed, or is none of this kind.
    Unknown = 6,
    /// Another thread is in a call with this handle; or a callback would free an outside. Nothing was done.
    Busy = 7,
    /// A call with this handle has panicked before. Free it.
    Poisoned = 8,
    /// The library panicked: a bug in it. It has been stopped short of the caller.
    Panicked = 9,
    /// The worker's handle is taken, or there is no worker of this number.
    Taken = 10,
    /// There are as many of this kind as there can be: free some.
    Full = 11,
    /// The set-up failed, and the error text says why and what mends it.
    Setup = 12,
    /// The buffer is too short for what belongs there.
    Short = 13,
    /// Two buffers that must be apart share bytes.
    Overlap = 14,
    /// The kernel did not send the packet: see the errno, and give the packet to echogate_not_sent.
    NotSent = 15,
    /// Nothing came in the time given.
    Empty = 16,
    /// The receiving thread has ended: no reply comes any more.
    Ended = 17,
}

impl EchogateStatus {
    pub(crate) const ALL: [EchogateStatus; 18] = {
        use EchogateStatus::*;
        [
            Ok,
            Null,
            Misaligned,
            Length,
            Size,
            Unsupported,
            Unknown,
            Busy,
            Poisoned,
            Panicked,
            Taken,
            Full,
            Setup,
            Short,
            Overlap,
            NotSent,
            Empty,
            Ended,
        ]
    };

    fn text(self) -> &'static CStr {
        match self {
            EchogateStatus::Ok => c"all is well",
            EchogateStatus::Null => c"a pointer that must not be is NULL, or a handle is 0",
            EchogateStatus::Misaligned => c"a pointer to a struct is not aligned for it",
            EchogateStatus::Length => c"a length beyond any packet's, or a count beyond ECHOGATE_BATCH_MAX",
            EchogateStatus::Size => c"a struct of a size that this version of the library does not know",
            EchogateStatus::Unsupported => c"a flag or a field that this version of the library does not know is set",
            EchogateStatus::Unknown => c"no such handle: freed, or of another kind",
            EchogateStatus::Busy => {
                c"another thread is in a call with this handle, or a callback would free an outside"
            }
            EchogateStatus::Poisoned => c"a call with this handle has panicked before: free it",
            EchogateStatus::Panicked => c"the library panicked: a bug in it",
            EchogateStatus::Taken => c"the worker's handle is taken, or there is no such worker",
            EchogateStatus::Full => c"there are as many of this kind as there can be: free some",
            EchogateStatus::Setup => c"the set-up failed: the error text says why",
            EchogateStatus::Short => c"the buffer is too short",
            EchogateStatus::Overlap => c"two buffers that must be apart share bytes",
            EchogateStatus::NotSent => c"the kernel did not send the packet: see the errno",
            EchogateStatus::Empty => c"nothing came in time",
            EchogateStatus::Ended => c"the receiving thread has ended",
        }
    }
}

/// What a status means, in a few words. NULL for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn echogate_status_text(status: i32) -> *const c_char {
    let found = EchogateStatus::ALL.into_iter().find(|known| *known as i32 == status);
    found.map_or(std::ptr::null(), |found| found.text().as_ptr())
}
