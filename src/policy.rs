//! Which remotes may be pinged, by whom.

pub mod remotes;

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::canary::{Canary, is_loose};
use crate::table::addresses::Addresses;
pub use crate::table::clients::{Allowance, Rate};
use remotes::{Remotes, Standing};

/// An IPv4 prefix, `10.66.0.0/24`: an address whose host bits are zero, and a length of 0 to 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    address: Ipv4Addr,
    length: u8,
}

/// Why a text is not a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrefixError(String);

impl Prefix {
    /// Every address, `0.0.0.0/0`.
    pub const ALL: Prefix = Prefix { address: Ipv4Addr::UNSPECIFIED, length: 0 };

    /// The prefix of `length` bits that `address` starts, or why there is none (length over 32, host bits set).
    pub fn new(address: Ipv4Addr, length: u8) -> Result<Prefix, PrefixError> {
        if length > 32 {
            return Err(PrefixError(format!("{address}/{length}: a prefix length is 0 to 32")));
        }
        let prefix = Prefix::around(address, length);
        if prefix.address != address {
            return Err(PrefixError(format!("{address}/{length} has host bits set; the prefix is {prefix}")));
        }
        Ok(prefix)
    }

    /// The prefix of `length` bits, 32 at most, that holds `address`.
    fn around(address: Ipv4Addr, length: u8) -> Prefix {
        Prefix { address: Ipv4Addr::from(u32::from(address) & mask(length)), length }
    }

    /// Its last address, as a number.
    pub(crate) fn last(self) -> u32 {
        u32::from(self.address) | !mask(self.length)
    }

    /// The prefix that holds this one address.
    pub const fn host(address: Ipv4Addr) -> Prefix {
        Prefix { address, length: 32 }
    }

    /// Its first address.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Its length in bits, 0 to 32.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// How many addresses it has.
    pub const fn addresses(self) -> u64 {
        1 << (32 - self.length)
    }

    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == u32::from(self.address)
    }

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Prefix) -> bool {
        self.length <= other.length && self.contains(other.address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Prefix) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `10.66.0.0/24`, or a lone address as its /32.
    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let bad = || PrefixError(format!("{text:?} is not an IPv4 prefix such as 10.66.0.0/24"));
        let length = length.parse().map_err(|_| bad())?;
        Prefix::new(address.parse().map_err(|_| bad())?, length)
    }
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PrefixError {}

/// Why an echo request is not forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It comes from the gateway's own address: a packet that we sent came back to us.
    OwnSource,
    /// It does not come from a client.
    NotClient,
    /// Nobody can be pinged there.
    Remote,
    /// Nobody may ping that: the configuration says so.
    Denied,
    /// It goes to the gateway itself, which answers for itself.
    OwnRemote,
}

/// What clients of a prefix may do, unlike the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// Which clients.
    pub prefix: Prefix,
    /// What they may do.
    pub allowance: Allowance,
}

/// What a client may do unless the configuration says otherwise: a shell full of pings, an mtr, a monitoring host's fping
/// over a thousand remotes stay below it; a flood does not.
pub const ORDINARY: Limits = Limits {
    packets_per_second: 1000,
    packets_burst: 2000,
    bytes_per_second: 1_000_000,
    bytes_burst: 4_000_000,
    mappings_per_second: 20,
    mappings_burst: 200,
    mappings: 256,
};

/// An [`Allowance`] in the units in which it is configured; 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Echo requests a second.
    pub packets_per_second: u32,
    /// Echo requests at once.
    pub packets_burst: u32,
    /// Bytes of echo requests a second.
    pub bytes_per_second: u32,
    /// Bytes at once.
    pub bytes_burst: u32,
    /// New mappings a second.
    pub mappings_per_second: u32,
    /// New mappings at once.
    pub mappings_burst: u32,
    /// Mappings living at once.
    pub mappings: u32,
}

impl From<Limits> for Allowance {
    fn from(limits: Limits) -> Allowance {
        Allowance {
            packets: Rate::new(limits.packets_per_second, limits.packets_burst),
            bytes: Rate::new(limits.bytes_per_second, limits.bytes_burst),
            new_mappings: Rate::new(limits.mappings_per_second, limits.mappings_burst),
            mappings_max: limits.mappings,
        }
    }
}

/// A class of clients: 0 is everybody, 1 and up the overrides in their order.
pub type Class = usize;

/// The addresses of one of the clients' prefixes, as each packet needs them.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    mask: u32,
    /// How many addresses the prefixes before it have.
    before: u64,
}

impl Range {
    #[inline]
    fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask == self.first
    }
}

/// Who may ping whom, and how much.
#[derive(Clone, Debug)]
pub struct Policy {
    clients: Vec<Range>,
    everybody: Allowance,
    overrides: Vec<Override>,
    remotes: Remotes,
}

impl Policy {
    /// The policy for these clients.
    pub fn new(clients: &[Prefix], everybody: Allowance, overrides: &[Override], remotes: Remotes) -> Policy {
        let mut before = 0;
        let ranges = clients.iter().map(|prefix| {
            let range = Range { first: prefix.address.into(), mask: mask(prefix.length), before };
            before += prefix.addresses();
            range
        });
        Policy { clients: ranges.collect(), everybody, overrides: overrides.to_vec(), remotes }
    }

    /// What the client may do, and in which class it is: the longest prefix decides.
    #[inline]
    pub fn allowance(&self, client: Ipv4Addr) -> (Class, &Allowance) {
        if self.overrides.is_empty() { (0, &self.everybody) } else { self.special_allowance(client) }
    }

    fn special_allowance(&self, client: Ipv4Addr) -> (Class, &Allowance) {
        let of_client = self.overrides.iter().enumerate().filter(|(_, special)| special.prefix.contains(client));
        of_client
            .max_by_key(|(_, special)| special.prefix.length())
            .map_or((0, &self.everybody), |(number, special)| (number + 1, &special.allowance))
    }

    /// How many addresses clients can have.
    pub fn client_addresses(&self) -> u64 {
        self.clients.iter().map(|range| u64::from(!range.mask) + 1).sum()
    }

    /// The place of a client among all clients' addresses; `None` for an address that is no client's.
    #[inline]
    pub fn place_of(&self, client: Ipv4Addr) -> Option<u64> {
        let range = self.clients.iter().find(|range| range.contains(client))?;
        Some(range.before + u64::from(u32::from(client) - range.first))
    }

    /// As `place_of`, with 0 for an address that is no client's.
    pub fn place(&self, client: Ipv4Addr) -> u64 {
        self.place_of(client).unwrap_or(0)
    }

    /// Whether the address is among the clients' own.
    #[inline]
    pub fn is_inside(&self, address: Ipv4Addr) -> bool {
        self.clients.iter().any(|range| range.contains(address))
    }

    /// Whether an echo request from `source` to `remote` may be forwarded by a gateway with addresses of its `own`: then the
    /// client's place ([`Policy::place_of`]).
    #[inline]
    pub fn check(&self, source: Ipv4Addr, remote: Ipv4Addr, own: &Addresses) -> Result<u64, Refusal> {
        if own.has(source) {
            return Err(Refusal::OwnSource);
        }
        let anybody = is_loose(Canary::AnySource).then_some(0);
        let place = self.place_of(source).or(anybody).ok_or(Refusal::NotClient)?;
        if own.has(remote) {
            return Err(Refusal::OwnRemote);
        }
        match self.remotes.standing(remote) {
            Standing::Allowed => Ok(place),
            _ if is_loose(Canary::AnyRemote) => Ok(place),
            Standing::Denied => Err(Refusal::Denied),
            Standing::Never => Err(Refusal::Remote),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_reads_what_it_writes_and_contains_its_own() {
        for text in ["10.66.0.0/24", "0.0.0.0/0", "198.18.0.1/32", "192.168.0.0/16"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("198.18.0.1"), Prefix::host(Ipv4Addr::new(198, 18, 0, 1)));
        let clients = prefix("10.66.0.0/24");
        assert!(clients.contains(Ipv4Addr::new(10, 66, 0, 0)) && clients.contains(Ipv4Addr::new(10, 66, 0, 255)));
        assert!(!clients.contains(Ipv4Addr::new(10, 66, 1, 0)) && !clients.contains(Ipv4Addr::new(10, 65, 255, 255)));
        assert!(prefix("0.0.0.0/0").contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn what_is_no_prefix_says_why() {
        for (text, why) in [
            ("10.66.0.1/24", "10.66.0.1/24 has host bits set; the prefix is 10.66.0.0/24"),
            ("10.66.0.0/33", "10.66.0.0/33: a prefix length is 0 to 32"),
            ("10.66.0/24", "\"10.66.0/24\" is not an IPv4 prefix such as 10.66.0.0/24"),
            ("fd00::/8", "\"fd00::/8\" is not an IPv4 prefix such as 10.66.0.0/24"),
            ("", "\"\" is not an IPv4 prefix such as 10.66.0.0/24"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn prefixes_overlap_when_one_holds_the_other() {
        assert!(prefix("10.0.0.0/8").overlaps(prefix("10.66.0.0/24")));
        assert!(prefix("10.66.0.0/24").overlaps(prefix("10.0.0.0/8")));
        assert!(!prefix("10.66.0.0/24").overlaps(prefix("10.66.1.0/24")));
    }

    #[test]
    fn a_prefix_covers_itself_and_its_parts() {
        for (one, other, covers) in [
            ("10.66.0.0/24", "10.66.0.0/24", true),
            ("10.0.0.0/8", "10.66.0.0/24", true),
            ("10.66.0.0/24", "10.66.0.0/23", false),
            ("10.66.0.0/24", "10.66.1.0/24", false),
            ("10.66.0.0/24", "10.66.1.0/32", false),
        ] {
            assert_eq!(prefix(one).covers(prefix(other)), covers, "{one} and {other}");
        }
    }

    #[test]
    fn who_may_ping_whom() {
        let own = Ipv4Addr::new(198, 18, 0, 1);
        let policy = Policy::new(
            &[prefix("10.66.0.0/24"), prefix("192.168.7.0/24")],
            Allowance::UNLIMITED,
            &[],
            Remotes::new(&[prefix("198.18.0.64/26")], &[]),
        );
        let remote = Ipv4Addr::new(198, 18, 0, 2);
        let client = Ipv4Addr::new(10, 66, 0, 2);
        let addresses = Addresses::new(&[own]);
        let check = |source, remote| policy.check(source, remote, &addresses);
        assert_eq!(check(client, remote), Ok(2));
        assert_eq!(check(Ipv4Addr::new(192, 168, 7, 9), remote), Ok(256 + 9));
        assert_eq!(check(Ipv4Addr::new(10, 66, 1, 2), remote), Err(Refusal::NotClient));
        assert_eq!(check(own, remote), Err(Refusal::OwnSource));
        assert_eq!(check(client, own), Err(Refusal::OwnRemote));
        assert_eq!(check(client, Ipv4Addr::new(198, 18, 0, 64)), Err(Refusal::Denied));
        for never in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert_eq!(check(client, never.parse().unwrap()), Err(Refusal::Remote), "{never}");
        }
    }

    #[test]
    fn each_client_has_a_place_of_its_own() {
        let policy = Policy::new(
            &[prefix("10.66.0.0/24"), prefix("192.168.7.0/30")],
            Allowance::UNLIMITED,
            &[],
            Remotes::new(&[], &[]),
        );
        assert_eq!(policy.client_addresses(), 260);
        assert_eq!(policy.place(Ipv4Addr::new(10, 66, 0, 255)), 255);
        assert_eq!(policy.place(Ipv4Addr::new(192, 168, 7, 0)), 256);
        assert_eq!(policy.place(Ipv4Addr::new(192, 168, 7, 3)), 259);
        let stranger = Ipv4Addr::new(192, 168, 7, 4);
        assert_eq!((policy.place_of(stranger), policy.place(stranger)), (None, 0));
        assert!(policy.is_inside(Ipv4Addr::new(192, 168, 7, 3)) && !policy.is_inside(stranger));
        assert_eq!(prefix("0.0.0.0/0").addresses(), 1 << 32);
    }

    #[test]
    fn the_longest_override_decides_what_a_client_may_do() {
        let special =
            |text, mappings| Override { prefix: prefix(text), allowance: Limits { mappings, ..ORDINARY }.into() };
        let overrides = [special("10.66.0.8/32", 1), special("10.66.0.0/25", 2), special("10.66.0.0/30", 3)];
        let policy = Policy::new(&[prefix("10.66.0.0/24")], ORDINARY.into(), &overrides, Remotes::new(&[], &[]));
        for (host, class, mappings_max) in [(200, 0, 256), (8, 1, 1), (100, 2, 2), (3, 3, 3)] {
            let (found, allowance) = policy.allowance(Ipv4Addr::new(10, 66, 0, host));
            assert_eq!((found, allowance.mappings_max), (class, mappings_max));
        }
    }
}
