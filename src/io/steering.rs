//! Which queue of the TUN a packet goes to, and so which worker reads it: a program that the kernel runs for each packet.
//!
//! By itself the kernel chooses by the addresses, or by the queue that last wrote the flow: all pings between one pair of
//! hosts take one queue, and one core. The program chooses by source and a second value instead:
//!
//! | packet | second value |
//! | --- | --- |
//! | a whole ICMP echo request or reply | ident |
//! | any other: ICMP errors, fragments (first ones, too) | destination |
//! | no IPv4 header, or not all of its 20 bytes | none: queue 0 |
//!
//! In numbers, of which `queue_hash` in the tests is the plain version:
//!
//! ```text
//! key   = (source << 32 | value >> 4) ^ seed
//! hash  = mix(key), 15 bits
//! queue = (hash + value % 16) % queues               the kernel does the last step
//! ```
//!
//! Fragments but the first have no ident, and those of a datagram must go together; those of one pair of hosts all do, so that
//! two datagrams of one flow do not race each other on their way out (connection tracking drops one of two that make the same entry).
//! [`crate::table::fragments::worker_of`] is the same hash for them.
//!
//! Sixteen values in a row are thus dealt to the queues in turn, from a queue that the hash picks: the kernel hands out
//! the idents of unprivileged pings in a row, so forty pings side by side spread evenly, where a hash alone may give one
//! of four queues five and another sixteen of them. The hash does what is left: sources, and blocks of sixteen values,
//! share no pattern.
//!
//! The seed is drawn anew at each start and secret, so that whose pings share a worker cannot be worked out from this
//! source code, and clients cannot agree on idents that all take one worker. It is no cryptographic hash: who can tell
//! the workers apart by their timing can still find such idents, and gains a crowded worker by it; what one client may
//! load a worker with is bounded elsewhere, since a single ident is enough for that.
//!
//! What is relied on: results are cut to 16 bits before the modulo (so they have no more); a packet's byte 0 is the first
//! of its IP header; the program sees the packet as it will be read. Right whatever the number of queues, also while it
//! changes: a packet on the "wrong" queue costs a hand-over.
//!
//! Rejected: BPF_ABS and BPF_IND loads, which do work here, without a call; but one past the packet's end ends the program
//! with 0, so everything cut short would meet on queue 0, and RFC 9669 deprecates them. Direct packet access: the
//! verifier refuses it to programs of this type. A map of queues: a state that someone must fill.

mod assembler;

use std::os::fd::AsFd;

use self::Operation::{Add, And, Move, Mul, Or, ShiftLeft, ShiftRight, Xor};
use self::Register::{R0, R1, R2, R3, R4, R6, R7, R8};
use self::assembler::{
    Line, Operation, Register, Width, assemble, call_skb_load_bytes, compute, exit, jump, jump_if_below,
    jump_if_not_equal, read_stack, set, stack_address,
};
use super::tun::Tun;
use crate::error::SetupError;
use crate::sys::bpf::{self, Instruction};
use crate::sys::tun;

/// What `bpftool prog` calls it.
const NAME: &str = "echogate_steer";

/// Lets the packets that the kernel sends by the device of `tun` choose their queue by the program above; for all queues
/// of the device, those opened later too. `seed` is random. An error leaves the kernel's own choice in force: everything
/// still works, with the pings between one pair of hosts on one worker.
pub fn attach(tun: &Tun, seed: u64) -> Result<(), SetupError> {
    let program = bpf::load_socket_filter(&program(seed), NAME).map_err(|error| {
        let errno = error.raw_os_error();
        let plain = SetupError::caused("cannot load the program that spreads pings over the TUN's queues", error);
        match errno {
            Some(libc::EPERM) => plain.remedy(
                "run as root, or give the binary CAP_BPF too (setcap cap_net_admin,cap_net_raw,cap_bpf=ep); in a \
                 container: --cap-add BPF; a user namespace cannot give it",
            ),
            Some(libc::ENOSYS) => plain.remedy("a kernel with CONFIG_BPF_SYSCALL"),
            _ => plain,
        }
    })?;
    tun::set_steering(tun.as_fd(), program.as_fd()).map_err(|error| {
        SetupError::caused(
            format!("cannot attach the program that spreads pings over the queues of {}", tun.name()),
            error,
        )
        .remedy("Linux 4.16 or later")
    })
}

/// Places in the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Label {
    ByAddresses,
    Choose,
    NoChoice,
}

/// The packet's first bytes lie on the stack, as far as the program needs them; offsets are from the stack's end.
const IP_HEADER: i16 = -20;
const IP_HEADER_LEN: u16 = 20;
const FIRST_BYTE: i16 = IP_HEADER;
const FRAGMENT: i16 = IP_HEADER + 6;
const PROTOCOL: i16 = IP_HEADER + 9;
const SOURCE: i16 = IP_HEADER + 12;
const DESTINATION: i16 = IP_HEADER + 16;
const ECHO_HEADER: i16 = IP_HEADER - 8;
const ECHO_HEADER_LEN: u16 = 8;
const TYPE: i16 = ECHO_HEADER;
const IDENT: i16 = ECHO_HEADER + 4;

const IPV4: u16 = 4;
const ICMP: u16 = 1;
/// MF and the offset: all zero in a whole datagram.
const FRAGMENT_BITS: u16 = 0x3FFF;
/// Of a type's eight bits those that are zero in both 0 (echo reply) and 8 (echo request), and in no other type.
const NOT_ECHO_BITS: u16 = 0xF7;

/// Values in a row that are dealt to the queues in turn: 2 to the power of this.
const DEALT_LOG2: u16 = 4;
const DEALT_BITS: u16 = (1 << DEALT_LOG2) - 1;
/// 15 bits are left of the hash: with a dealt value added it still fits into 16.
const HASH_SHIFT: u16 = 64 - 15;
/// Two odd constants whose bits look random (splitmix64's).
const MULTIPLIERS: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

/// The program. R6 is the packet, R7 the source and then the hash, R8 the second value.
fn program(seed: u64) -> Vec<Instruction> {
    let lines = [
        vec![compute(R6, Move, R1)],
        vec![compute(R2, Move, 0)],
        load_packet(IP_HEADER, IP_HEADER_LEN, Label::NoChoice),
        read_stack(R2, Width::Byte, FIRST_BYTE),
        vec![compute(R3, Move, R2), compute(R3, ShiftRight, 4), jump_if_not_equal(R3, IPV4, Label::NoChoice)],
        read_stack(R7, Width::Word, SOURCE),
        second_value(),
        mix(seed),
        vec![compute(R8, And, DEALT_BITS), compute(R7, Add, R8)],
        vec![compute(R0, Move, R7), exit()],
        vec![Line::Label(Label::NoChoice), compute(R0, Move, 0), exit()],
    ];
    assemble(&lines.concat())
}

/// Sets R8; R2 is the header's first byte.
fn second_value() -> Vec<Line<Label>> {
    [
        read_stack(R8, Width::Half, FRAGMENT),
        vec![compute(R8, And, FRAGMENT_BITS), jump_if_not_equal(R8, 0, Label::ByAddresses)],
        read_stack(R8, Width::Byte, PROTOCOL),
        vec![jump_if_not_equal(R8, ICMP, Label::ByAddresses)],
        // The header's length in words becomes one in bytes: the ICMP message comes after the options.
        vec![compute(R2, And, 15), compute(R2, ShiftLeft, 2), jump_if_below(R2, IP_HEADER_LEN, Label::ByAddresses)],
        load_packet(ECHO_HEADER, ECHO_HEADER_LEN, Label::ByAddresses),
        read_stack(R8, Width::Byte, TYPE),
        vec![compute(R8, And, NOT_ECHO_BITS), jump_if_not_equal(R8, 0, Label::ByAddresses)],
        read_stack(R8, Width::Half, IDENT),
        vec![jump(Label::Choose), Line::Label(Label::ByAddresses)],
        read_stack(R8, Width::Word, DESTINATION),
        vec![Line::Label(Label::Choose)],
    ]
    .concat()
}

/// Copies the packet's `len` bytes from R2 on to the stack; R0 to R5 are lost. Where there are not so many: `otherwise`.
fn load_packet(to: i16, len: u16, otherwise: Label) -> Vec<Line<Label>> {
    let loaded = [compute(R4, Move, len), call_skb_load_bytes(), jump_if_not_equal(R0, 0, otherwise)];
    [&[compute(R1, Move, R6)], &stack_address(R3, to)[..], &loaded].concat()
}

/// R7, so far the source, becomes the hash.
fn mix(seed: u64) -> Vec<Line<Label>> {
    // A multiplication carries upward only: between two the upper half is brought down.
    let fold = [compute(R1, Move, R7), compute(R1, ShiftRight, 32), compute(R7, Xor, R1)];
    [
        &[compute(R0, Move, R8), compute(R0, ShiftRight, DEALT_LOG2)][..],
        &[compute(R7, ShiftLeft, 32), compute(R7, Or, R0)],
        &set(R1, seed),
        &[compute(R7, Xor, R1)],
        &fold,
        &set(R1, MULTIPLIERS[0]),
        &[compute(R7, Mul, R1)],
        &fold,
        &set(R1, MULTIPLIERS[1]),
        &[compute(R7, Mul, R1), compute(R7, ShiftRight, HASH_SHIFT)],
    ]
    .concat()
}

#[cfg(test)]
mod tests;
