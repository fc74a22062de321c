//! Memory that outlives a process: where the tables of a gateway lie, so that the next packet process goes on with them.
//!
//! A file in memory, sealed against becoming shorter before anybody maps it, so that no touch of it can fail. What is mapped once
//! stays mapped as long as the process runs; what is lent of it is therefore `'static`. It can become longer: then it is mapped
//! once more, which costs addresses and no memory.
//!
//! It is shared with whoever has the descriptor: the process that keeps it, and in a bad case a predecessor that is just ending. So
//! only atomics are lent, for which every bit pattern is a value; what the values mean is judged by those who know
//! (`crate::state`, `crate::table::slots`).

use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::error::SetupError;
use crate::sys::mem::{self as memory, Mapping};
use crate::table::echoes::Bucket;
use crate::table::slots::Slot;

/// What may be lent.
///
/// # Safety
///
/// Nothing but atomics and padding: any bytes are a value of it, and others may change them at any time.
#[expect(unsafe_code, reason = "a promise about a type's bytes")]
pub unsafe trait Atomics: Sync + 'static {}

// SAFETY: it is one.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Atomics for AtomicU32 {}

// SAFETY: it is one.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Atomics for AtomicU64 {}

// SAFETY: two 64-bit and two 32-bit ones, and padding to a cache line; `repr(C)`.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Atomics for Slot {}

// SAFETY: eight 64-bit ones; `repr(C)`.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Atomics for Bucket {}

/// The mapped file.
#[derive(Debug)]
pub struct Region {
    file: OwnedFd,
    mapping: &'static Mapping,
}

impl Region {
    /// A new one of `len` zeroed bytes.
    pub fn create(len: usize) -> Result<Region, SetupError> {
        let refused = |cause| SetupError::caused(format!("cannot make {len} bytes of memory for the tables"), cause);
        let file = File::from(memory::memory_file(c"echogate-tables").map_err(refused)?);
        file.set_len(len as u64).map_err(refused)?;
        memory::forbid_shrinking(file.as_fd()).map_err(refused)?;
        Region::map(file.into(), len).map_err(refused)
    }

    /// One that another process has made. The error says why it is none.
    pub fn open(file: OwnedFd) -> Result<Region, SetupError> {
        let refused = |cause| SetupError::caused("this is no memory of tables", cause);
        if !memory::cannot_shrink(file.as_fd()).map_err(refused)? {
            return Err(SetupError::new("the memory of the tables is not sealed: it could shrink under us"));
        }
        let file = File::from(file);
        let len = usize::try_from(file.metadata().map_err(refused)?.len()).unwrap_or(usize::MAX);
        Region::map(file.into(), len).map_err(refused)
    }

    /// The same memory with `len` bytes at least; what is there stays as it is, and so does what has been lent of it.
    pub fn grown(&self, len: usize) -> Result<Region, SetupError> {
        let refused = |cause| SetupError::caused(format!("cannot make {len} bytes of memory for the tables"), cause);
        let file = File::from(self.file.try_clone().map_err(refused)?);
        if len <= self.len() {
            return Ok(Region { file: file.into(), mapping: self.mapping });
        }
        // Another one may have made it longer than this one knows.
        let long = usize::try_from(file.metadata().map_err(refused)?.len()).unwrap_or(usize::MAX);
        if long < len {
            file.set_len(len as u64).map_err(refused)?;
        }
        Region::map(file.into(), len.max(long)).map_err(refused)
    }

    fn map(file: OwnedFd, len: usize) -> std::io::Result<Region> {
        let mapping = Mapping::shared(file.as_fd(), len)?;
        // For the life of the process: a few megabytes of addresses, once and when it grows.
        Ok(Region { file, mapping: Box::leak(Box::new(mapping)) })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// `count` values from byte `offset` on; none where that is not inside, or not where such values can lie.
    #[expect(unsafe_code, reason = "the bytes become values")]
    pub fn part<T: Atomics>(&self, offset: usize, count: usize) -> Option<&'static [T]> {
        let bytes = count.checked_mul(mem::size_of::<T>())?;
        let fits = offset.checked_add(bytes)? <= self.len() && offset.is_multiple_of(mem::align_of::<T>());
        if !fits {
            return None;
        }
        // SAFETY: `offset` is inside of the mapping.
        let first = unsafe { self.mapping.address().add(offset) }.cast::<T>();
        // SAFETY: the values lie inside of the mapping, which begins at a page and is never given back, at a multiple of
        // their alignment. Any bytes are values of them, and only their atomic operations touch them, here and elsewhere
        // (see `Atomics`). The file is sealed against becoming shorter: every page is there.
        Some(unsafe { slice::from_raw_parts(first.as_ptr(), count) })
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_one_writes_the_other_reads() {
        let made = Region::create(8192).unwrap();
        let opened = Region::open(made.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((opened.len(), opened.is_empty()), (8192, false));
        made.part::<AtomicU64>(4096, 512).unwrap()[511].store(7, Ordering::Relaxed);
        assert_eq!(opened.part::<AtomicU64>(4096, 512).unwrap()[511].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn one_that_grows_keeps_what_is_there_and_what_was_lent() {
        let made = Region::create(8192).unwrap();
        let lent = made.part::<AtomicU64>(4096, 512).unwrap();
        let grown = made.grown(16384).unwrap();
        assert_eq!((grown.len(), made.grown(4096).unwrap().len()), (16384, 8192), "and never becomes shorter");
        lent[1].store(7, Ordering::Relaxed);
        assert_eq!(grown.part::<AtomicU64>(4096, 1536).unwrap()[1].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn nothing_is_lent_beyond_the_end_or_between_places() {
        let made = Region::create(8192).unwrap();
        assert!(made.part::<AtomicU64>(4096, 513).is_none() && made.part::<AtomicU64>(8193, 0).is_none());
        assert!(made.part::<AtomicU64>(4, 1).is_none() && made.part::<Slot>(32, 1).is_none());
        assert!(made.part::<Slot>(64, usize::MAX / 2).is_none() && made.part::<Slot>(usize::MAX - 63, 1).is_none());
        assert!(made.part::<Slot>(4096, 64).is_some() && made.part::<Slot>(4096, 65).is_none());
    }

    #[test]
    fn what_could_shrink_or_is_no_memory_is_refused() {
        let loose = File::from(memory::memory_file(c"loose").unwrap());
        loose.set_len(8192).unwrap();
        assert!(Region::open(loose.into()).unwrap_err().to_string().contains("not sealed"));
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(Region::open(file.into()).unwrap_err().errno(), Some(libc::EINVAL));
    }
}
