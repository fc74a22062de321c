//! What a proxy is told once, at its start.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::policy::{ORDINARY, Override, Prefix};
use crate::table::clients::Allowance;

/// Who takes one from the TTL of what is forwarded (RFC 1812, section 5.3.1): the gateway is a router, and somebody must.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ttl {
    /// The kernel does: it routed the request to us, and will route the reply from us. So it is for `echogate run`.
    #[default]
    AlreadyDecremented,
    /// The proxy does, for requests and replies. For a server that takes packets out of its own tunnel and puts them
    /// back there: nobody else on the way is a router. A request that has no hop left is dropped (`ttl_expired`).
    Decrement,
}

impl Ttl {
    /// The largest TTL with which a request goes no further.
    pub(super) const fn spent(self) -> u8 {
        match self {
            Ttl::AlreadyDecremented => 0,
            Ttl::Decrement => 1,
        }
    }
}

/// What a proxy is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The prefixes that clients come from.
    pub clients: Vec<Prefix>,
    /// The gateway's addresses outside: 1 to 16.
    pub addresses: Vec<Ipv4Addr>,
    /// A mapping ends when no request has used it for this long (RFC 5508 REQ-2: at least 60 s).
    pub mapping_idle: Duration,
    /// How long a reply is waited for.
    pub echo_timeout: Duration,
    /// How long an ident rests after its mapping; `None`: just long enough that no echo outlives it.
    pub hold_down: Option<Duration>,
    /// Words of the table of outstanding echoes, as a power of two: 14 to 26.
    pub echo_words_log2: u32,
    /// The largest packet, in bytes, that reaches a client unfragmented.
    pub inside_mtu: usize,
    /// Whether errors about proxied echoes are brought to the clients; without, traceroute shows no routers.
    pub icmp_errors: bool,
    /// Whether an error is dropped if the checksum of the IP header that it quotes is wrong (RFC 5508 REQ-3a).
    pub quoted_checksum: bool,
    /// Who counts the hop that the gateway is.
    pub ttl: Ttl,
    /// Addresses that nobody may ping, besides those that nobody can ([`crate::policy::remotes::NEVER`]).
    pub denied: Vec<Prefix>,
    /// Addresses that may be pinged in spite of `denied`: the longest prefix of both decides.
    pub allowed: Vec<Prefix>,
    /// Whether requests to the gateway's own addresses fall through, for whoever answers them, or are dropped.
    pub pass_own: bool,
    /// What each client may do.
    pub allowance: Allowance,
    /// What clients of some prefixes may do instead; of overlapping ones the longest decides.
    pub overrides: Vec<Override>,
    /// Threads that will take a handle.
    pub workers: usize,
    /// Seed of the random choices, for tests and simulations; `None`: the operating system's.
    pub seed: Option<u64>,
}

impl Settings {
    /// The defaults, for these clients and gateway addresses and one worker.
    pub fn new(clients: Vec<Prefix>, addresses: Vec<Ipv4Addr>) -> Settings {
        Settings {
            clients,
            addresses,
            mapping_idle: Duration::from_secs(60),
            echo_timeout: Duration::from_secs(60),
            hold_down: None,
            echo_words_log2: 20,
            inside_mtu: 1500,
            icmp_errors: true,
            quoted_checksum: false,
            ttl: Ttl::AlreadyDecremented,
            denied: Vec::new(),
            allowed: Vec::new(),
            pass_own: false,
            allowance: ORDINARY.into(),
            overrides: Vec::new(),
            workers: 1,
            seed: None,
        }
    }
}
