//! Echogate lets the clients of a VPN ping the internet, and brings nobody but the asker the answer. It takes echo
//! requests off a TUN device, sends them from the gateway's own address through a raw socket, and returns each reply to
//! the client that asked.
//!
//! There are two ways to use it. The command `echogate run` is a gateway of its own: [`gateway`]. A VPN server that has the
//! packets in its hands already embeds the proxy: this page first shows how, and `docs/embedding.md` tells the rest.
//!
//! # Embedding
//!
//! ```
//! use std::net::Ipv4Addr;
//! use std::thread;
//!
//! use echogate::clock::{Clock, Monotonic};
//! use echogate::proxy::{Inbound, Outbound, Proxy, Reason, Settings, Ttl};
//! use echogate::wire::build;
//! use echogate::wire::icmpv4::Echo;
//! use echogate::wire::ipv4::{self, Ipv4};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, gateway) = (Ipv4Addr::new(10, 66, 0, 2), Ipv4Addr::new(198, 51, 100, 1));
//! let remote = Ipv4Addr::new(192, 0, 2, 7);
//!
//! // One proxy for the server; it is shared, and does no I/O.
//! let mut settings = Settings::new(vec!["10.66.0.0/24".parse()?], vec![gateway]);
//! settings.workers = 2; // threads that have packets of clients
//! settings.ttl = Ttl::Decrement; // this server is the router
//! let proxy = Proxy::new(&settings)?;
//! let clock = Monotonic::new(); // one clock for all threads
//!
//! let threads = (0..2).map(|worker| {
//!     // A handle for each thread.
//!     let mut handle = proxy.handle(worker).expect("nobody else has it");
//!     thread::spawn(move || {
//!         // A batch for each wake-up: it has the time, and ends before the thread waits again.
//!         let mut batch = handle.batch(clock.now());
//!
//!         // From a client. What falls through goes on as ever.
//!         let ports_length_checksum = vec![0x9c, 0x40, 0, 53, 0, 8, 0, 0];
//!         let mut dns = build::Datagram::new(client, remote, ipv4::UDP, ports_length_checksum).build();
//!         assert!(matches!(batch.outbound(&mut dns), Outbound::FallThrough(_)));
//!         let ident = 1 + u16::try_from(worker).expect("a small number");
//!         let mut request = build::echo_request(client, remote, ident, 7, 64, b"payload");
//!         let Outbound::Forward { address, remote: to, length, .. } = batch.outbound(&mut request) else {
//!             panic!("an echo request from a client to outside is forwarded")
//!         };
//!         // Now it is to be sent: `&request[..length]`, from gateway address number `address`, to `to`.
//!         let sent = Ipv4::check(&request[..length]).expect("it was rewritten in place");
//!         assert_eq!((sent.source(), sent.destination(), sent.ttl()), (gateway, to, 63));
//!         assert_eq!(batch.address(address), Some(gateway));
//!
//!         // From outside (here we are the remote).
//!         let echo = Echo::check(sent.payload()).expect("an echo");
//!         let reply = build::echo_reply(remote, gateway, echo.ident(), echo.sequence(), 60, echo.payload());
//!         let mut first = reply.clone();
//!         assert_eq!(batch.inbound(&mut first), Inbound::Deliver { client, length: first.len() });
//!         assert_eq!(first, build::echo_reply(remote, client, ident, 7, 59, b"payload"));
//!         // A duplicate answers nothing that is still asked.
//!         let mut second = reply.clone();
//!         assert_eq!(batch.inbound(&mut second), Inbound::Drop(Reason::NoEcho));
//!         assert_eq!(second, reply, "and is left as it came");
//!
//!         // At each batch's end, what the clock has made due; and this is how long the thread may then wait.
//!         batch.expire();
//!         drop(batch);
//!         assert!(handle.sleep_max(clock.now()).is_some(), "a mapping lives: it will be due");
//!     })
//! });
//! for thread in threads.collect::<Vec<_>>() {
//!     thread.join().expect("every answer was as expected");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A program that wants to ping, without privileges and without a gateway, takes [`pinger`] (feature `pinger`).
//!
//! A server that wants the raw sockets done for it adds [`outside::Outside`] (feature `gateway`); one in C, Go or F# takes the
//! library in `ffi/`.
//!
//! For it are [`proxy`], [`policy`], [`clock`], [`error`], [`wire`], [`outside`] and [`metrics`]; for who runs the whole gateway
//! as a value, [`gateway`] and [`config`]; for tests of a server, [`lab`]. The modules that this documentation leaves
//! out (`canary`, `checksum`, `table`, `io`, `sys`, `host`, `worker`, `cli`) are public for the gateway's own tests, benches and
//! binary, and change without notice.
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
//! 1. **Into the TUN.** `host::divert` has the kernel mark echo requests from clients to outside, and only those; a
//!    rule and a route lead what is marked into the TUN. (Told to divert at ingress, it has them put there as they come off the
//!    clients' interfaces.) DNS, TCP and all else never come near.
//! 2. **Off the TUN.** A worker's ring (`io::uring`) has read a batch of packets into buffers of its own. Each is a
//!    `io::Frame`: owned, move-only, rewritten where it lies and sent from there.
//! 3. **Judged.** [`proxy::Batch::outbound`]: DNS falls through, an echo request from a client to outside is proxied,
//!    anything else falls through. Validated once ([`wire`]); then policy; then the mapping of (client, client ident) is
//!    found or made (`table`); then the echo is recorded as outstanding.
//! 4. **Rewritten.** The source becomes the gateway's address and the ident the mapping's; both checksums follow by
//!    RFC 1624 (`checksum`). Sequence, payload, TOS, DF and options stay; what can be cut up gets an identification of
//!    the gateway's own. A damaged payload stays damaged. Of a request in fragments the first one is judged so; the others
//!    follow it, each by itself (`table::fragments`).
//! 5. **Out.** The send socket of that gateway address (`io::raw`). If the kernel refuses, the echo is withdrawn and the
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
//! A reviewer opens `src/worker.rs` (one turn, top to bottom), `src/proxy/outbound.rs` and `src/proxy/inbound.rs` first; below them are
//! `src/table/`, `src/wire/`, `src/checksum.rs`, and the ring in `src/io/uring.rs`.
//!
//! # Floors
//!
//! A module imports only from floors below its own; `tests/layers.rs` reads this table and holds the source to it.
//!
//! | floor | modules |
//! | --- | --- |
//! | 0 | canary, checksum, clock, error, models |
//! | 1 | wire, table, sys |
//! | 2 | policy, io |
//! | 3 | proxy |
//! | 4 | metrics |
//! | 5 | worker, outside, host, pinger |
//! | 6 | config, state |
//! | 7 | gateway, lab |
//! | 8 | bench, control, demo |
//! | 9 | keeper |
//! | 10 | cli, main |
//!
//! # Features
//!
//! Without features: the proxy and what it needs (no I/O, no system call). `gateway`: the data plane of `echogate run`.
//! `pinger`: pings without privileges ([`pinger`]), and nothing of the gateway. `lab`: clients, gateway and internet as network
//! namespaces in this process. `bench`: measuring in them. `cli`: the command `echogate`.

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod canary;
#[doc(hidden)]
pub mod checksum;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod clock;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod control;
#[cfg(feature = "lab")]
pub mod demo;
pub mod error;
#[cfg(feature = "gateway")]
pub mod gateway;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod host;
#[cfg(any(feature = "gateway", feature = "pinger"))]
#[doc(hidden)]
pub mod io;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod keeper;
#[cfg(feature = "lab")]
pub mod lab;
pub mod metrics;
#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(feature = "gateway")]
pub mod outside;
#[cfg(feature = "pinger")]
pub mod pinger;
pub mod policy;
pub mod proxy;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod state;
#[cfg(any(feature = "gateway", feature = "pinger"))]
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod table;
pub mod wire;
#[cfg(feature = "gateway")]
#[doc(hidden)]
pub mod worker;

/// The README's code, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// That of docs/embedding.md, which opens sockets.
#[cfg(all(doctest, feature = "gateway"))]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
