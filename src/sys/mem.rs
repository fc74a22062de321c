//! Memory by the page: what the kernel writes to, so that its address never moves and untouched parts cost nothing; and
//! what several processes share.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// Memory mapped into this process, aligned to a page and given back on drop.
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

    /// Maps the first `len` bytes of a file that whoever has it shares. One that is made shorter meanwhile ends the process
    /// at the next touch of what is gone: the file should be sealed against that.
    #[expect(unsafe_code, reason = "mmap(2)")]
    pub fn shared(file: BorrowedFd<'_>, len: usize) -> io::Result<Mapping> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
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

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none, which the kernel refuses.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "munmap(2)")]
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us and is unmapped once; whoever uses its address keeps this value
        // alive meanwhile.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// The seals of a file that cannot be made shorter, and that stays so.
const NEVER_SHORTER: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// A file without a name in any directory, gone with its last descriptor and mapping; it can be sealed.
#[expect(unsafe_code, reason = "memfd_create(2)")]
pub fn memory_file(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Keeps the file from being made shorter, for good.
#[expect(unsafe_code, reason = "fcntl(2)")]
pub fn forbid_shrinking(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes integers.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, NEVER_SHORTER) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the file is kept from being made shorter for good. EINVAL: it is of a kind that cannot be.
#[expect(unsafe_code, reason = "fcntl(2)")]
pub fn cannot_shrink(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: takes integers.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals & NEVER_SHORTER == NEVER_SHORTER) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_sealed_file_is_never_shorter_and_shows_one_memory_in_every_mapping() {
        let file = File::from(memory_file(c"test").unwrap());
        assert!(!cannot_shrink(file.as_fd()).unwrap());
        file.set_len(8192).unwrap();
        forbid_shrinking(file.as_fd()).unwrap();
        assert!(cannot_shrink(file.as_fd()).unwrap());
        assert!(file.set_len(4096).is_err() && file.set_len(16384).is_ok());
        let [one, other] = [(), ()].map(|()| Mapping::shared(file.as_fd(), 8192).unwrap());
        assert_ne!(one.address(), other.address());
        let other_kind = File::open("/proc/self/status").unwrap();
        assert_eq!(cannot_shrink(other_kind.as_fd()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_mapping_is_page_aligned_and_nothing_cannot_be_mapped() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert_eq!(mapping.address().as_ptr().addr() % 4096, 0);
        assert_eq!(Mapping::anonymous(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
