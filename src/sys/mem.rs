//! Memory that the kernel writes to: mapped by the page, so that its address never moves and untouched parts cost
//! nothing.

use std::io;
use std::ptr::{self, NonNull};

/// Zeroed anonymous memory of this process, aligned to a page and given back on drop.
///
/// It hands out its address, never a reference: who may touch which bytes when is the owner's to decide.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes (rounded up to whole pages by the kernel). Pages are backed when first touched.
    #[expect(unsafe_code, reason = "mmap(2)")]
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { address, len })
    }

    /// Keeps the kernel from backing it with huge pages, which would touch 2 MiB where one page was meant.
    #[expect(unsafe_code, reason = "madvise(2)")]
    pub fn keep_pages_small(&self) {
        // SAFETY: the range is this mapping, and MADV_NOHUGEPAGE changes no byte of it.
        let result = unsafe { libc::madvise(self.address.as_ptr().cast(), self.len, libc::MADV_NOHUGEPAGE) };
        // A kernel without huge pages refuses (EINVAL): then the pages are small anyway.
        let _ = result;
    }

    /// Its first byte.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "munmap(2)")]
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `anonymous` and is unmapped once; whoever uses its address keeps this value
        // alive meanwhile.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_page_aligned_and_nothing_cannot_be_mapped() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert_eq!(mapping.address().as_ptr().addr() % 4096, 0);
        assert_eq!(Mapping::anonymous(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
