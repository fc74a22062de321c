//! One safe function a system call; with `io` the only unsafe code.

pub mod mem;
pub mod namespace;
pub mod poll;
