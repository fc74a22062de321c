//! One safe function a system call; with `io` the only unsafe code.

pub mod bpf;
pub mod event;
pub mod mem;
pub mod namespace;
pub mod net;
pub mod poll;
pub mod process;
pub mod tun;
