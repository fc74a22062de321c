//! bpf(2): loading an eBPF program.
//!
//! A program is loaded into the kernel, lives as long as a descriptor or something that it is attached to refers to it,
//! and runs there only after the kernel's verifier has shown that it ends and reads nothing but its packet and its
//! stack. So no program can harm this process's memory, and the function that loads one is safe.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// One instruction as the kernel takes it (RFC 9669, section 3; linux/bpf.h's `bpf_insn`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

impl Instruction {
    /// From its fields; the registers are numbers below 16.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        // A bit field of C: which half comes first depends on the byte order.
        let registers = if cfg!(target_endian = "little") {
            destination & 15 | source << 4
        } else {
            destination << 4 | source & 15
        };
        Instruction { code, registers, offset, immediate }
    }
}

/// What BPF_PROG_LOAD takes: the part of linux/bpf.h's `bpf_attr` that every kernel since 4.15 knows. Newer ones take
/// what is left out as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES_MAX + 1],
}

const LOAD_BYTES: u32 = 64;
const _: () = assert!(size_of::<Load>() == LOAD_BYTES as usize);

/// The longest name of a program, in bytes: 16 with the terminating zero.
const NAME_BYTES_MAX: usize = 15;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// What `bpftool prog` shows. Helpers reserved for the GPL are refused to a program with this one.
const LICENSE: &CStr = c"MIT OR Apache-2.0";

/// Loads a program of the socket filter's type. `name` is for whoever lists the host's programs: letters, digits, `_`
/// and `.`, at most 15.
///
/// EPERM: neither CAP_BPF nor CAP_SYS_ADMIN in the initial user namespace (where kernel.unprivileged_bpf_disabled is 0
/// none is needed), or refused by seccomp; up to Linux 5.10 also: over RLIMIT_MEMLOCK. EACCES or EINVAL: the verifier
/// rejects it.
#[expect(unsafe_code, reason = "bpf(BPF_PROG_LOAD)")]
pub fn load_socket_filter(instructions: &[Instruction], name: &str) -> io::Result<OwnedFd> {
    let mut load = Load {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; NAME_BYTES_MAX + 1],
    };
    let place = load.name[..NAME_BYTES_MAX].get_mut(..name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads LOAD_BYTES bytes at this address, which is what `load` has, and through it
    // `instruction_count` instructions and a zero-terminated license. All live until after the call, and it writes to
    // none of them: there is no log buffer.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, LOAD_BYTES) };
    let fd = RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor (closed on exec) to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "loading a program takes CAP_BPF: run the tests as root";

    /// `R0 = 0; exit`.
    const NOTHING: [Instruction; 2] = [Instruction::new(0xb7, 0, 0, 0, 0), Instruction::new(0x95, 0, 0, 0, 0)];

    fn errno_of(instructions: &[Instruction], name: &str) -> Option<i32> {
        load_socket_filter(instructions, name).expect_err("must be refused").raw_os_error()
    }

    #[test]
    fn a_program_is_loaded_under_a_name_of_up_to_15_bytes() {
        load_socket_filter(&NOTHING, "").expect(ROOT);
        load_socket_filter(&NOTHING, "fifteen_bytes_x").expect(ROOT);
        let error = load_socket_filter(&NOTHING, "sixteen_bytes_xx").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(errno_of(&NOTHING, "a-b"), Some(libc::EINVAL));
    }

    #[test]
    fn what_the_verifier_rejects_is_an_error() {
        load_socket_filter(&NOTHING, "").expect(ROOT);
        // The result is not set.
        assert_eq!(errno_of(&NOTHING[1..], "no_result"), Some(libc::EACCES));
        // It runs off its end.
        assert_eq!(errno_of(&NOTHING[..1], "no_exit"), Some(libc::EINVAL));
        assert_eq!(errno_of(&[], "empty"), Some(libc::E2BIG));
    }
}
