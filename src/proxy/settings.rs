//! What a proxy is told once, at its start.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::SetupError;
use crate::policy::{ORDINARY, Override, Prefix};
use crate::table::clients::Allowance;
use crate::table::echoes::WORDS_LOG2;
use crate::table::idents::IdentPolicy;
use crate::table::{ADDRESSES_MAX, SHARDS};

/// The longest that any of the times may be set to. Past all use, and far from where sums of times end.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// RFC 791, section 3.2: every link takes so much.
const MTU_MIN: usize = 68;

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
    /// Which idents there are, and whether a mapping gets its client's own where that is free.
    pub idents: IdentPolicy,
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
    /// Whether a proxy can be made of them; the error names the one that is impossible.
    pub(super) fn check(&self) -> Result<(), SetupError> {
        if self.clients.is_empty() {
            return Err(SetupError::new("no clients: nobody could ping").remedy("set the prefixes that they come from"));
        }
        if !(1..=ADDRESSES_MAX).contains(&self.addresses.len()) {
            let count = self.addresses.len();
            return Err(SetupError::new(format!("{count} gateway addresses: there can be 1 to {ADDRESSES_MAX}")));
        }
        for (number, address) in self.addresses.iter().enumerate() {
            if self.addresses[..number].contains(address) {
                return Err(SetupError::new(format!("the gateway address {address} is listed twice")));
            }
            if let Some(clients) = self.clients.iter().find(|clients| clients.contains(*address)) {
                return Err(SetupError::new(format!("the gateway address {address} is among the clients, {clients}")));
            }
        }
        if !(1..=SHARDS).contains(&self.workers) {
            return Err(SetupError::new(format!("{} workers: there can be 1 to {SHARDS}", self.workers)));
        }
        if !WORDS_LOG2.contains(&self.echo_words_log2) {
            let (least, most) = (WORDS_LOG2.start(), WORDS_LOG2.end());
            let log2 = self.echo_words_log2;
            return Err(SetupError::new(format!("2^{log2} words for echoes: there can be 2^{least} to 2^{most}")));
        }
        if self.inside_mtu < MTU_MIN {
            let mtu = self.inside_mtu;
            return Err(SetupError::new(format!("an inside MTU of {mtu} bytes: it must be {MTU_MIN} at least")));
        }
        let times = [("mapping idle", self.mapping_idle), ("echo timeout", self.echo_timeout)];
        let hold_down = self.hold_down.map(|hold_down| ("hold-down", hold_down));
        for (name, time) in times.into_iter().chain(hold_down) {
            if time.is_zero() || time > TIME_MAX {
                return Err(SetupError::new(format!(
                    "{name} {time:?}: it must be more than nothing, and a day at most"
                )));
            }
        }
        Ok(())
    }

    /// The defaults, for these clients and gateway addresses and one worker.
    pub fn new(clients: Vec<Prefix>, addresses: Vec<Ipv4Addr>) -> Settings {
        Settings {
            clients,
            addresses,
            mapping_idle: Duration::from_secs(60),
            echo_timeout: Duration::from_secs(60),
            hold_down: None,
            idents: IdentPolicy::default(),
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
