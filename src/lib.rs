//! Echogate lets the clients of a VPN ping the internet, and brings nobody but the asker the answer. It takes echo
//! requests off a TUN device, sends them from the gateway's own address through a raw socket, and returns each reply to
//! the client that asked.
//!
//! # The packet's journey
//!
//! ```text
//!  client 10.66.0.2                     the gateway, 198.18.0.1                       remote 198.18.0.2
//!       |                                                                                    |
//!       |  echo request      nft: mark       +--------------- worker ---------------+        |
//!       +-----------------> fwmark rule ---> | TUN queue ---> outbound ---> send    | -----> |
//!       |  ident 1, seq 7    (host::divert)  | (io)           (proxy)       socket  | ident  |
//!       |                                    |                   |  ^         (io)  | 0xbeef |
//!       |                                    |           record  v  | match         |        |
//!       |                                    |              +----------+            |        |
//!       |                                    |              |  table   |            |        |
//!       |  echo reply        the kernel's    |              +----------+            |        |
//!       +<----------------- forwarding <---- | TUN queue <--- inbound <--- receive  | <----- |
//!          ident 1, seq 7                    |                             socket   | echo
//!                                            +--------------------------------------+ reply
//! ```
//!
//! 1. **Into the TUN.** [`host::divert`] has the kernel mark echo requests from clients to outside, and only those; a
//!    rule and a route lead what is marked into the TUN. DNS, TCP and all else never come near.
//! 2. **Off the TUN.** A worker's ring ([`io::uring`]) has read a batch of packets into buffers of its own. Each is a
//!    [`io::Frame`]: owned, move-only, rewritten where it lies and sent from there.
//! 3. **Judged.** [`proxy::Batch::outbound`]: DNS falls through, an echo request from a client to outside is proxied,
//!    anything else falls through. Validated once ([`wire`]); then policy; then the mapping of (client, client ident) is
//!    found or made ([`table`]); then the echo is recorded as outstanding.
//! 4. **Rewritten.** The source becomes the gateway's address and the ident the mapping's; both checksums follow by
//!    RFC 1624 ([`checksum`]). Sequence, payload, TOS, DF and options stay. A damaged payload stays damaged.
//! 5. **Out.** The send socket of that gateway address ([`io::raw`]). If the kernel refuses, the echo is withdrawn and the
//!    drop is counted by errno.
//! 6. **Back.** The raw receive socket gets echo replies, and errors that quote an echo request. [`proxy::Batch::inbound`]: own address, ident, sequence and
//!    remote must be those of an outstanding echo, which is then used up. The ident is the number of the mapping's slot,
//!    and the slot says whose it is. Destination and ident become the client's again. An error must quote an outstanding
//!    echo, becomes one about the client's own request, and uses nothing up (`proxy::errors`).
//! 7. **To the client.** Written to the TUN; the kernel routes it. Whatever did not match was none of ours: dropped, counted
//!    by reason, not logged.
//!
//! Packets in = packets out + the sum of the named drops, exactly.
//!
//! # The hot path
//!
//! A reviewer opens [`worker`] (one turn, top to bottom) and [`proxy`] (both verdicts) first; below them are
//! [`table`], [`wire`], [`checksum`], and the ring in [`io::uring`].
//!
//! # Floors
//!
//! A module imports only from floors below its own; `tests/layers.rs` reads this table and holds the source to it.
//!
//! | floor | modules |
//! | --- | --- |
//! | 0 | checksum, clock, error |
//! | 1 | wire, table, sys |
//! | 2 | policy, io |
//! | 3 | proxy |
//! | 4 | metrics |
//! | 5 | worker, outside, host |
//! | 6 | config |
//! | 7 | gateway, lab |
//! | 8 | demo |
//! | 9 | cli, main |
//!
//! # Features
//!
//! Without features: the proxy and what it needs (no I/O, no system call). `gateway`: the data plane of `echogate run`.
//! `lab`: clients, gateway and internet as network namespaces in this process. `cli`: the command `echogate`.

pub mod checksum;
#[cfg(feature = "cli")]
pub mod cli;
pub mod clock;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "lab")]
pub mod demo;
pub mod error;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
pub mod host;
#[cfg(feature = "gateway")]
pub mod io;
#[cfg(feature = "lab")]
pub mod lab;
pub mod metrics;
#[cfg(feature = "gateway")]
pub mod outside;
pub mod policy;
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod sys;
pub mod table;
pub mod wire;
#[cfg(feature = "gateway")]
pub mod worker;

/// The README's code, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
