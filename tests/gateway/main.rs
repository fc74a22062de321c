//! The gateway as its users run it: the real command between clients and an internet made of network namespaces, with
//! the system's own `ping`, `ip` and `nft`.
//!
//! The internet has no route to the clients (see `echogate::lab`), and unless a test says so nothing translates: what
//! comes back to a client has come through the gateway. Each test makes its own scene, so they run beside each other,
//! and each that moves packets runs on both back ends with one, two and four workers. "Nothing came" is proven by a later packet
//! that is the first to come, not by waiting. All of them take root.

mod addresses;
mod beside;
mod control;
mod delivery;
mod differs;
mod drill;
mod ear;
mod ends;
mod errors;
mod faults;
mod firewall;
mod forged;
mod fragments;
mod heals;
mod hostile;
mod leaves;
mod logs;
mod metrics;
mod packaging;
mod policy;
mod pools;
mod process;
mod prometheus;
mod refuses;
mod reload;
mod restarts;
mod sandbox;
mod scene;
mod serves;
mod side_by_side;
mod soak;
mod supervised;
mod sys;
mod takeover;
mod tools;
mod web;

/// Makes tests of functions that take a set-up: one for each that moves packets in its own way.
macro_rules! in_every_setup {
    ($($name:ident),* $(,)?) => {
        in_every_setup!(@ uring "uring" 1: $($name)*);
        in_every_setup!(@ syscalls "syscalls" 1: $($name)*);
        in_every_setup!(@ two_on_uring "uring" 2: $($name)*);
        in_every_setup!(@ two_on_syscalls "syscalls" 2: $($name)*);
        in_every_setup!(@ four_on_uring "uring" 4: $($name)*);
        in_every_setup!(@ four_on_syscalls "syscalls" 4: $($name)*);
    };
    (@ $module:ident $io:literal $workers:literal: $($name:ident)*) => {
        mod $module {
            $(#[test] fn $name() { super::$name(&crate::scene::Setup { io: $io, workers: $workers }); })*
        }
    };
}
use in_every_setup;

/// Makes one more test of each, with clients' requests diverted at ingress.
macro_rules! and_at_ingress {
    ($($name:ident),* $(,)?) => {
        mod at_ingress {
            // The line of arguments goes on behind the word.
            const SETUP: crate::scene::Setup = crate::scene::Setup { io: "uring --divert-by ingress", workers: 2 };

            $(#[test] fn $name() { super::$name(&SETUP); })*
        }
    };
}
use and_at_ingress;
