//! What the kernel does: the facts that the gateway is built on, each as a test named by its sentence.
//!
//! A test that fails here says that this kernel differs from those the gateway was made on; the code that relies on
//! the fact is wrong there, whatever its own tests say. Linux only, and as root.
//!
//! Each test runs in a network namespace of its own, which ends with it. The devices are TUNs, so a test is at once the
//! kernel's user and the network around it: it sees every packet that leaves and injects what arrives. A packet
//! written to a TUN has been through the stack when the write returns; so "nothing came" is proven by a second packet
//! that does come and is the first to do so, not by waiting.

mod divert;
mod namespace;
mod raw;
mod sys;
mod tun;
mod uring;
