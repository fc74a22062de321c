//! A ring of provided buffers: what the kernel reads packets into, and how frames come of it.

use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::error::SetupError;
use crate::io::buffers::{Frame, Pool};
use crate::sys::mem::Mapping;

/// One part in so many of a pool is never lent: it is for frames that we make ourselves.
const RESERVE_PART: usize = 16;

/// The buffer ring of one pool. It has room for every buffer, so that it is never full.
#[derive(Debug)]
pub(super) struct BufferRing {
    pool: Rc<Pool>,
    entries: Mapping,
    mask: u16,
    tail: u16,
    group: u16,
    reserve: usize,
}

impl BufferRing {
    /// A ring under the number `group`; without buffers until `refill`.
    pub(super) fn new(pool: Rc<Pool>, group: u16) -> io::Result<BufferRing> {
        let count = pool.buffers().next_power_of_two();
        let entries = Mapping::anonymous(count * size_of::<BufRingEntry>())?;
        // A pool has at most 2^15 buffers.
        let mask = u16::try_from(count - 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let reserve = pool.buffers() / RESERVE_PART;
        Ok(BufferRing { pool, entries, mask, tail: 0, group, reserve })
    }

    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Makes the ring known to the kernel. The caller keeps `self` until the io_uring has ended.
    #[expect(unsafe_code, reason = "io_uring_register(2)")]
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.address().as_ptr().expose_provenance() as u64;
        // SAFETY: the mapping has `mask + 1` entries. The kernel pins its pages, so that they stay what they are even if
        // `self` ended first; nothing but this type writes to them.
        unsafe { submitter.register_buf_ring_with_flags(address, self.mask + 1, self.group, 0) }
    }

    /// Lends the kernel every free buffer but the reserve. Whether the kernel has any now.
    pub(super) fn refill(&mut self) -> bool {
        let before = self.tail;
        while self.pool.free() > self.reserve {
            let Some((number, address)) = self.pool.lend() else { break };
            self.provide(number, address);
        }
        if self.tail != before {
            self.publish();
        }
        self.pool.lent() > 0
    }

    /// The frame of a completion that names buffer `number` and says that it holds `len` bytes.
    #[expect(unsafe_code, reason = "a completion was reaped")]
    pub(super) fn claim(&self, number: u16, len: u32) -> Result<Frame, SetupError> {
        // SAFETY: the caller has it from a completion of this ring's group, after which the kernel does not touch the
        // buffer until it is provided again (buffers are not consumed by parts: IOU_PBUF_RING_INC is not set).
        unsafe { self.pool.claim(number, len) }
    }

    #[expect(unsafe_code, reason = "the entry is in memory shared with the kernel")]
    fn provide(&mut self, number: u16, address: NonNull<u8>) {
        let index = usize::from(self.tail & self.mask);
        // SAFETY: `index` is below the number of entries that the mapping was made for.
        let entry = unsafe { self.entries.address().cast::<BufRingEntry>().add(index) };
        // SAFETY: aligned to a page plus whole entries, initialised (mapped zeroed). The kernel does not look at it: it
        // is past the tail, and the ring has an entry for every buffer. Entry 0 holds the tail in a field of its own,
        // which the kernel only reads.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address.as_ptr().expose_provenance() as u64);
        entry.set_len(u32::try_from(self.pool.buffer_bytes()).unwrap_or(0));
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
    }

    #[expect(unsafe_code, reason = "the tail is in memory shared with the kernel")]
    fn publish(&self) {
        let first = self.entries.address().cast::<BufRingEntry>().as_ptr();
        // SAFETY: `first` is the first entry of the ring, initialised.
        let tail = unsafe { BufRingEntry::tail(first) }.cast_mut();
        // SAFETY: two aligned bytes of the mapping, alive while borrowed; we and the kernel only use them atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        // Release: pairs with the kernel's load-acquire of the tail, before it reads the entries written above.
        tail.store(self.tail, Ordering::Release);
    }
}
