//! One safe function a system call; with `io` the only unsafe code.

#[cfg(feature = "gateway")]
pub mod bpf;
#[cfg(any(feature = "gateway", feature = "pinger"))]
pub mod control;
pub mod event;
pub mod mem;
#[cfg(feature = "gateway")]
pub mod namespace;
pub mod net;
#[cfg(feature = "gateway")]
pub mod passing;
#[cfg(feature = "pinger")]
pub mod ping;
pub mod poll;
#[cfg(feature = "gateway")]
pub mod privileges;
#[cfg(feature = "gateway")]
pub mod process;
#[cfg(feature = "gateway")]
pub mod time;
#[cfg(feature = "gateway")]
pub mod tun;
