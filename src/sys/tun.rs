//! The requests that the TUN driver takes, and making a descriptor nonblocking.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The longest name of a device, in bytes: 16 with the terminating zero.
pub const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// What the driver takes: linux/if.h's `ifreq` with its flags, as long as the kernel copies.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// How a queue is opened, besides being a TUN's (no Ethernet header) without packet information.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// The first of several: there must be no such device yet.
    First,
    /// A further one of a device that has its first.
    Further,
}

/// Attaches the descriptor (of /dev/net/tun) as a queue of the multi-queue TUN called `name`. Returns the name that the
/// device has.
#[expect(unsafe_code, reason = "ioctl(TUNSETIFF)")]
pub fn attach_queue(tun: BorrowedFd<'_>, name: &str, queue: Queue) -> io::Result<String> {
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    if queue == Queue::First {
        flags |= libc::IFF_TUN_EXCL;
    }
    // The 16 bits of IFF_TUN_EXCL include the sign.
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?.cast_signed();
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    let place = request.name[..NAME_BYTES_MAX].get_mut(..name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(name.as_bytes());
    // SAFETY: the driver reads and writes an ifreq at this address, which `request` is as long as.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&request.name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}

/// The name of the device whose queue the descriptor is. An error: it is none, or the device is gone.
#[expect(unsafe_code, reason = "ioctl(TUNGETIFF)")]
pub fn name_of(tun: BorrowedFd<'_>) -> io::Result<String> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: the driver writes an ifreq at this address, which `request` is as long as.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&request.name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}

/// Switches all offloads of the device off: a persistent one may have been left with some by its last user.
#[expect(unsafe_code, reason = "ioctl(TUNSETOFFLOAD)")]
pub fn reset_offloads(tun: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is a number, not an address.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets a loaded program of the socket filter's type choose the queue of every packet that the kernel sends by the
/// device: the low 16 bits of its result, modulo the number of queues. `tun` is any queue of it; the device keeps the
/// program, so its descriptor may be closed. EINVAL: Linux before 4.16, or `program` is no such program.
#[expect(unsafe_code, reason = "ioctl(TUNSETSTEERINGEBPF)")]
pub fn set_steering(tun: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program: libc::c_int = program.as_raw_fd();
    // SAFETY: the driver reads an int at this address, which lives until after the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes reads and writes of the descriptor return EAGAIN instead of waiting.
#[expect(unsafe_code, reason = "ioctl(FIONBIO)")]
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an int at this address, which lives until after the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw const on) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
