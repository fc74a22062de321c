//! The gateway as its users run it: the real command between clients and an internet made of network namespaces, with
//! the system's own `ping`, `ip` and `nft`.
//!
//! The internet has no route to the clients (see `echogate::lab`), and unless a test says so nothing translates: what
//! comes back to a client has come through the gateway. Each test makes its own scene, so they run beside each other,
//! and each that moves packets runs on both back ends. "Nothing came" is proven by a later packet that is the first to
//! come, not by waiting. All of them take root.

mod beside;
mod delivery;
mod ear;
mod firewall;
mod heals;
mod leaves;
mod process;
mod refuses;
mod scene;
mod serves;
mod sys;

/// Makes a test on each back end of functions that take its name.
macro_rules! on_both_back_ends {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test] fn $name() { super::$name("uring"); })*
        }
        mod syscalls {
            $(#[test] fn $name() { super::$name("syscalls"); })*
        }
    };
}
use on_both_back_ends;
