//! One safe function a system call; with `io` the only unsafe code.

pub mod namespace;
