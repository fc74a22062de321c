//! The few eBPF instructions that a steering program is made of, under names, with jumps to labels (RFC 9669).
//!
//! All arithmetic is on 64 bits. Immediate numbers are extended with their sign, so here they are never negative.

use crate::sys::bpf::Instruction;

/// A register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Register {
    /// What a helper, and the program itself, returns.
    R0 = 0,
    /// The packet at the program's start; the first argument of a helper.
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    /// R6 to R9 are kept over the call of a helper; R0 to R5 are not.
    R6 = 6,
    R7 = 7,
    R8 = 8,
    /// The end of the 512 bytes of stack, read-only.
    Frame = 10,
}

/// What is combined with a register.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Register(Register),
    Number(u16),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Operand {
        Operand::Register(register)
    }
}

impl From<u16> for Operand {
    fn from(number: u16) -> Operand {
        Operand::Number(number)
    }
}

/// One line of a program whose labels are of type `L`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Line<L> {
    /// An instruction. One of a 64-bit number takes two places, and so two lines.
    Plain(Instruction),
    /// A jump: its opcode, the register and number it compares, and where to.
    Jump(u8, Register, u16, L),
    /// The place that jumps name.
    Label(L),
}

/// Opcode classes.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ALU32: u8 = 0x04;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
/// Where the operand comes from: the instruction or a register.
const K: u8 = 0x00;
const X: u8 = 0x08;
/// Modes of loads.
const IMM: u8 = 0x00;
const MEM: u8 = 0x60;
/// A load of eight bytes.
const DOUBLE_WORD: u8 = 0x18;
/// Other operations.
const MOV: u8 = 0xb0;
const END: u8 = 0xd0;
const TO_BIG_ENDIAN: u8 = 0x08;
const JA: u8 = 0x00;
const JNE: u8 = 0x50;
const JLT: u8 = 0xa0;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

/// The number of the helper bpf_skb_load_bytes(packet, offset, to, count).
const SKB_LOAD_BYTES: i32 = 26;

/// An arithmetic operation.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Operation {
    Add = 0x00,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = MOV,
}

/// How much a load from the stack takes.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
}

/// `to` is combined with the operand, or becomes it.
pub(super) fn compute<L>(to: Register, operation: Operation, operand: impl Into<Operand>) -> Line<L> {
    Line::Plain(match operand.into() {
        Operand::Register(from) => Instruction::new(ALU64 | X | operation as u8, to as u8, from as u8, 0, 0),
        Operand::Number(number) => Instruction::new(ALU64 | K | operation as u8, to as u8, 0, 0, i32::from(number)),
    })
}

/// `to` becomes the address of the stack's byte at `offset` (negative) from its end.
pub(super) fn stack_address<L>(to: Register, offset: i16) -> [Line<L>; 2] {
    let add = Instruction::new(ALU64 | K | Operation::Add as u8, to as u8, 0, 0, i32::from(offset));
    [compute(to, Operation::Move, Register::Frame), Line::Plain(add)]
}

/// `to` becomes a number of 64 bits.
pub(super) fn set<L>(to: Register, number: u64) -> [Line<L>; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    let (high, low) = (i32::from_be_bytes([a, b, c, d]), i32::from_be_bytes([e, f, g, h]));
    [
        Line::Plain(Instruction::new(LD | IMM | DOUBLE_WORD, to as u8, 0, 0, low)),
        Line::Plain(Instruction::new(0, 0, 0, 0, high)),
    ]
}

/// `to` becomes the stack's bytes at `offset` (negative) from its end, read in network byte order.
pub(super) fn read_stack<L>(to: Register, width: Width, offset: i16) -> Vec<Line<L>> {
    let load = Instruction::new(LDX | MEM | width as u8, to as u8, Register::Frame as u8, offset, 0);
    let swap = |bits| Line::Plain(Instruction::new(ALU32 | END | TO_BIG_ENDIAN, to as u8, 0, 0, bits));
    match width {
        Width::Word => vec![Line::Plain(load), swap(32)],
        Width::Half => vec![Line::Plain(load), swap(16)],
        Width::Byte => vec![Line::Plain(load)],
    }
}

/// Calls bpf_skb_load_bytes with R1 to R4; R0 is 0 if all bytes are there.
pub(super) fn call_skb_load_bytes<L>() -> Line<L> {
    Line::Plain(Instruction::new(JMP | CALL, 0, 0, 0, SKB_LOAD_BYTES))
}

/// Ends the program with the result R0.
pub(super) fn exit<L>() -> Line<L> {
    Line::Plain(Instruction::new(JMP | EXIT, 0, 0, 0, 0))
}

pub(super) fn jump<L>(to: L) -> Line<L> {
    Line::Jump(JMP | JA, Register::R0, 0, to)
}

pub(super) fn jump_if_not_equal<L>(register: Register, number: u16, to: L) -> Line<L> {
    Line::Jump(JMP | K | JNE, register, number, to)
}

pub(super) fn jump_if_below<L>(register: Register, number: u16, to: L) -> Line<L> {
    Line::Jump(JMP | K | JLT, register, number, to)
}

/// The program as the kernel takes it, the labels replaced by distances.
///
/// # Panics
///
/// If a jump names a label that does not stand in the program, or the program is longer than a jump can reach.
pub(super) fn assemble<L: PartialEq>(lines: &[Line<L>]) -> Vec<Instruction> {
    let mut instructions = Vec::with_capacity(lines.len());
    for line in lines {
        match line {
            Line::Plain(instruction) => instructions.push(*instruction),
            Line::Jump(code, register, number, to) => {
                // A jump counts from the instruction after it.
                let offset = place(lines, to) - place_of(instructions.len() + 1);
                instructions.push(Instruction::new(*code, *register as u8, 0, offset, i32::from(*number)));
            }
            Line::Label(_) => {}
        }
    }
    instructions
}

/// How many instructions stand before the label.
fn place<L: PartialEq>(lines: &[Line<L>], label: &L) -> i16 {
    let line = lines.iter().position(|line| matches!(line, Line::Label(here) if here == label));
    let before = &lines[..line.expect("every label that a jump names stands in the program")];
    place_of(before.iter().filter(|line| !matches!(line, Line::Label(_))).count())
}

fn place_of(number: usize) -> i16 {
    i16::try_from(number).expect("a program of fewer than 32,768 instructions")
}
