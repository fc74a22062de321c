//! The pinger between hosts that answer, that do not, and that lie.
//!
//! Each test makes a network namespace, which ends with it, so they run as root. In it is a TUN device ([`scene::Wire`]): what
//! the pinger sends is read there, and what it is to receive is written there, byte for byte. A packet written to a TUN has
//! been through the kernel's stack when the write returns. Most tests run on both back ends.
//!
//! Each bug that another pinger has had, and that this one was built not to have, has a test in `bugs`.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod bugs;
mod errors;
mod examples;
mod hostile;
mod many;
mod patience;
mod pings;
mod runtimes;
mod scene;
mod sys;
