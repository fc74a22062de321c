//! Preallocated packet buffers and the handles that own them.
//!
//! A [`Pool`] is one mapped region cut into equal buffers. Each buffer has exactly one owner at a time:
//!
//! ```text
//!             take                       lend
//!   Frame <----------- free buffers -----------> kernel (a provided-buffer ring)
//!     |                    ^                        |
//!     +------- drop -------+                        |
//!     ^                                             |
//!     +------------------- claim -------------------+
//! ```
//!
//! Invariants:
//! * A [`Frame`] is the only way to a buffer's bytes. It is move-only and is made in three places: from a free buffer,
//!   from bytes (which copies them into a free buffer), and by `claim` when the kernel reports a buffer as filled.
//! * The pool knows each buffer's owner. A number that the kernel reports but does not own is refused, so that a
//!   kernel's or our own mistake ends as a fault, not as two frames over the same bytes.
//! * The region outlives every frame, because each frame holds the pool.
//! * Nothing is allocated after [`Pool::new`]. Returned buffers go on a stack: the one reused first is the one that
//!   the cache still has.
//!
//! Limits: at most 32,768 buffers a pool (numbers are 16 bits wide in a buffer ring), at most 65,536 bytes a buffer.
//! Pools and frames stay on their thread (`Rc`); a packet for another worker is copied.
//!
//! Rejected: numbers into a shared slab (`pool[number]`) instead of handles. Then care, not the compiler, keeps one
//! buffer from being in two places.
//!
//! In debug builds a returned buffer is overwritten with 0xa5: bytes that leak from one packet into the next are seen.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::error::SetupError;
use crate::sys::mem::Mapping;

/// The most buffers of one pool: what a provided-buffer ring can hold.
pub const BUFFERS_MAX: usize = 1 << 15;

/// The largest buffer, in bytes: any IPv4 datagram (65,535) fits.
pub const BUFFER_BYTES_MAX: usize = 1 << 16;

/// What a buffer may have beyond that: room for what the kernel writes in front of a message (its sender, its time stamp).
pub const AHEAD_BYTES_MAX: usize = 512;

const CACHE_LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;

/// What returned buffers are overwritten with in debug builds.
pub const POISON: u8 = 0xa5;

/// How many buffers of which size a [`Pool`] has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolSize {
    /// Buffers: 1 to [`BUFFERS_MAX`].
    pub buffers: usize,
    /// Bytes of each: 1 to [`BUFFER_BYTES_MAX`], and up to [`AHEAD_BYTES_MAX`] more.
    pub buffer_bytes: usize,
}

impl PoolSize {
    /// The memory that the pool maps (not what it uses: untouched pages cost nothing), in bytes.
    pub const fn mapped_bytes(self) -> usize {
        self.buffers * stride(self.buffer_bytes)
    }
}

/// From one buffer to the next: an odd number of cache lines, so that the headers of successive packets do not all fall
/// into the same few sets of the cache.
const fn stride(buffer_bytes: usize) -> usize {
    (buffer_bytes.div_ceil(CACHE_LINE_BYTES) | 1) * CACHE_LINE_BYTES
}

/// Who owns a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Free,
    Frame,
    Kernel,
}

/// A fixed number of packet buffers in one mapped region.
pub struct Pool {
    region: Mapping,
    buffer_bytes: u32,
    owners: Box<[Cell<Owner>]>,
    free: RefCell<Vec<u16>>,
    lent: Cell<usize>,
}

impl Pool {
    /// Maps the region; all buffers are free.
    pub fn new(size: PoolSize) -> Result<Rc<Pool>, SetupError> {
        let PoolSize { buffers, buffer_bytes } = size;
        if !(1..=BUFFERS_MAX).contains(&buffers) || !(1..=BUFFER_BYTES_MAX + AHEAD_BYTES_MAX).contains(&buffer_bytes) {
            return Err(SetupError::new(format!(
                "{buffers} packet buffers of {buffer_bytes} bytes: at most {BUFFERS_MAX} of {BUFFER_BYTES_MAX}"
            )));
        }
        let region = Mapping::anonymous(size.mapped_bytes()).map_err(|error| {
            SetupError::caused(format!("cannot map {} bytes of packet buffers", size.mapped_bytes()), error)
                .remedy("fewer buffers, or a higher memory limit (ulimit -v, MemoryMax=)")
        })?;
        if buffer_bytes > PAGE_BYTES {
            region.keep_pages_small();
        }
        // Both fit by the limits above; the lowest numbers are used first.
        let free = (0..buffers).rev().filter_map(|number| u16::try_from(number).ok()).collect();
        Ok(Rc::new(Pool {
            region,
            buffer_bytes: u32::try_from(buffer_bytes).unwrap_or(u32::MAX),
            owners: vec![Cell::new(Owner::Free); buffers].into(),
            free: RefCell::new(free),
            lent: Cell::new(0),
        }))
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.owners.len()
    }

    /// Bytes of each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes as usize
    }

    /// Buffers that nobody owns.
    pub fn free(&self) -> usize {
        self.free.borrow().len()
    }

    /// Buffers that the kernel may write to.
    pub(super) fn lent(&self) -> usize {
        self.lent.get()
    }

    /// A frame with a copy of `bytes`; none if no buffer is free or `bytes` are too many for one.
    pub fn frame_from(self: &Rc<Pool>, bytes: &[u8]) -> Option<Frame> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= self.buffer_bytes)?;
        let mut frame = self.take()?.received(len);
        frame.copy_from_slice(bytes);
        Some(frame)
    }

    /// A whole buffer to read a packet into, with whatever is in it: say how much was read by [`Frame::received`].
    pub(super) fn take(self: &Rc<Pool>) -> Option<Frame> {
        let number = self.free.borrow_mut().pop()?;
        self.owners[usize::from(number)].set(Owner::Frame);
        Some(self.frame(number, self.buffer_bytes))
    }

    /// A free buffer for the kernel to read a packet into: its number and address.
    pub(super) fn lend(&self) -> Option<(u16, NonNull<u8>)> {
        let number = self.free.borrow_mut().pop()?;
        self.owners[usize::from(number)].set(Owner::Kernel);
        self.lent.set(self.lent.get() + 1);
        Some((number, self.address(number)))
    }

    /// The frame for a lent buffer in which the kernel reports `len` bytes. Refused if the kernel does not own that
    /// buffer, or if it cannot hold so many bytes.
    ///
    /// # Safety
    ///
    /// The kernel has reported this buffer in a completion since it was last lent: it is done with it.
    #[expect(unsafe_code, reason = "whether the kernel is done with a buffer is for the caller to know")]
    pub(super) unsafe fn claim(self: &Rc<Pool>, number: u16, len: u32) -> Result<Frame, SetupError> {
        let owner = self.owners.get(usize::from(number));
        if owner.map(Cell::get) != Some(Owner::Kernel) {
            let owner = owner.map(Cell::get);
            return Err(SetupError::new(format!(
                "the kernel reported packet buffer {number}, which it does not have ({owner:?})"
            )));
        }
        if len > self.buffer_bytes {
            return Err(SetupError::new(format!(
                "the kernel reported {len} bytes in a packet buffer of {}",
                self.buffer_bytes
            )));
        }
        self.owners[usize::from(number)].set(Owner::Frame);
        self.lent.set(self.lent.get() - 1);
        Ok(self.frame(number, len))
    }

    fn frame(self: &Rc<Pool>, number: u16, len: u32) -> Frame {
        Frame {
            data: self.address(number),
            len,
            number,
            note: 0,
            #[cfg(debug_assertions)]
            filled: len,
            pool: Rc::clone(self),
        }
    }

    #[expect(unsafe_code, reason = "the address of a buffer in the region")]
    fn address(&self, number: u16) -> NonNull<u8> {
        debug_assert!(usize::from(number) < self.owners.len());
        // SAFETY: the region has `buffers` strides, and no number as large as that is ever on the free list.
        unsafe { self.region.address().add(usize::from(number) * stride(self.buffer_bytes())) }
    }

    fn put_back(&self, number: u16) {
        self.owners[usize::from(number)].set(Owner::Free);
        // Never grows: the vector had room for every buffer when it was made.
        self.free.borrow_mut().push(number);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pool({} buffers of {} bytes: {} free, {} lent)",
            self.buffers(),
            self.buffer_bytes,
            self.free(),
            self.lent()
        )
    }
}

/// A packet in its buffer. Owned and move-only; derefs to the packet's bytes; dropping it gives the buffer back.
pub struct Frame {
    /// The buffer's first byte: kept here to save the hot path a look into the pool.
    data: NonNull<u8>,
    len: u32,
    number: u16,
    note: u8,
    /// The most bytes that may have been written, for poisoning.
    #[cfg(debug_assertions)]
    filled: u32,
    pool: Rc<Pool>,
}

impl Frame {
    /// Cuts the packet to `len` bytes (trailing padding goes). Longer than it is: no change.
    pub fn truncate(&mut self, len: usize) {
        self.len = u32::try_from(len).map_or(self.len, |len| len.min(self.len));
    }

    /// Makes room for `count` zero bytes before the packet. Refused, without a change, if the buffer is too short.
    #[must_use]
    pub fn prepend(&mut self, count: usize) -> bool {
        let (len, longer) = (self.len(), self.len().saturating_add(count));
        match u32::try_from(longer).ok().filter(|longer| *longer <= self.pool.buffer_bytes) {
            Some(longer) => self.len = longer,
            None => return false,
        }
        #[cfg(debug_assertions)]
        {
            self.filled = self.filled.max(self.len);
        }
        self.copy_within(..len, count);
        self[..count].fill(0);
        true
    }

    /// The packet of `len` bytes that was read into a whole buffer.
    pub(super) fn received(mut self, len: u32) -> Frame {
        self.len = self.len.min(len);
        #[cfg(debug_assertions)]
        {
            self.filled = self.len;
        }
        self
    }

    /// What its owner noted on it; 0 at first.
    pub fn note(&self) -> u8 {
        self.note
    }

    /// Notes something on the frame, to know it by when it comes back from a send. Nothing else reads it.
    pub fn set_note(&mut self, note: u8) {
        self.note = note;
    }
}

impl Deref for Frame {
    type Target = [u8];

    #[expect(unsafe_code, reason = "the bytes of the buffer that this frame owns")]
    fn deref(&self) -> &[u8] {
        // SAFETY: `data` starts a buffer of at least `len` bytes, initialised (mapped zeroed) and alive as long as
        // `pool`. This frame is its one owner, so that nobody writes to it while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Frame {
    #[expect(unsafe_code, reason = "the bytes of the buffer that this frame owns")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and as its one owner is borrowed mutably, nobody else reads it either.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes in buffer {})", self.len, self.number)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        {
            self.len = self.filled;
            self.fill(POISON);
        }
        self.pool.put_back(self.number);
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "the tests play the kernel")]
mod tests {
    use super::*;

    fn pool(buffers: usize) -> Rc<Pool> {
        Pool::new(PoolSize { buffers, buffer_bytes: 100 }).unwrap()
    }

    #[test]
    fn frames_hold_their_own_bytes_until_dropped() {
        let pool = pool(3);
        let mut frames: Vec<Frame> = (1..=3u8).map(|n| pool.frame_from(&[n; 100]).unwrap()).collect();
        assert!(pool.frame_from(b"no buffer left").is_none());
        frames[1].fill(9);
        assert_eq!([frames[0][99], frames[1][0], frames[1][99], frames[2][0]], [1, 9, 9, 3]);
        drop(frames);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn too_long_or_absurd_is_refused() {
        assert!(pool(1).frame_from(&[0; 101]).is_none());
        for (buffers, buffer_bytes) in
            [(0, 100), (BUFFERS_MAX + 1, 100), (1, 0), (1, BUFFER_BYTES_MAX + AHEAD_BYTES_MAX + 1)]
        {
            assert!(Pool::new(PoolSize { buffers, buffer_bytes }).is_err());
        }
    }

    #[test]
    fn truncate_only_shortens() {
        let pool = pool(1);
        let mut frame = pool.frame_from(&[7; 50]).unwrap();
        frame.truncate(60);
        assert_eq!(frame.len(), 50);
        frame.truncate(usize::MAX);
        assert_eq!(frame.len(), 50);
        frame.truncate(20);
        frame.truncate(50);
        assert_eq!(*frame, [7; 20]);
    }

    #[test]
    fn prepend_moves_the_packet_and_shows_no_old_bytes() {
        let pool = pool(1);
        let mut frame = pool.frame_from(&[7; 50]).unwrap();
        assert!(frame.prepend(50));
        assert_eq!((&frame[..50], &frame[50..]), (&[0; 50][..], &[7; 50][..]));
        assert!(!frame.prepend(1) && !frame.prepend(usize::MAX));
        assert_eq!(frame.len(), 100);
    }

    #[test]
    fn a_frame_keeps_its_pool_mapped() {
        let frame = pool(1).frame_from(&[7; 100]).unwrap();
        assert_eq!(*frame, [7; 100]);
    }

    #[test]
    fn the_kernel_reports_only_what_it_was_lent() {
        let pool = pool(2);
        let (number, address) = pool.lend().unwrap();
        // SAFETY: the buffer was just lent, and the test is its borrower; it has at least 100 bytes.
        unsafe { address.write_bytes(3, 100) };
        // SAFETY: the test is the kernel and is done with the buffer.
        let frame = unsafe { pool.claim(number, 100) }.unwrap();
        assert_eq!(*frame, [3; 100]);
        // SAFETY: as above: all of these are refused before anything is made.
        let refused = |number, len| unsafe { pool.claim(number, len) }.unwrap_err().to_string();
        assert!(refused(number, 1).contains("does not have"), "a frame has it");
        assert!(refused(1 - number, 1).contains("does not have"), "it is free");
        assert!(refused(2, 1).contains("does not have"), "there is none");
        let (lent, _) = pool.lend().unwrap();
        assert!(refused(lent, 101).contains("101 bytes in a packet buffer of 100"));
        drop(frame);
        assert_eq!((pool.free(), pool.lent()), (1, 1));
    }

    #[cfg(debug_assertions)]
    #[test]
    fn returned_buffers_are_poisoned_even_where_the_frame_was_cut() {
        let pool = pool(1);
        let mut frame = pool.frame_from(&[7; 50]).unwrap();
        frame.truncate(10);
        drop(frame);
        let frame = pool.take().unwrap().received(51);
        assert_eq!(frame[..50], [POISON; 50]);
        assert_eq!(frame[50], 0);
    }
}
