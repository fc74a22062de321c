//! Which remotes may be pinged, by whom.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

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
    /// The prefix of `length` bits that `address` starts, or why there is none (length over 32, host bits set).
    pub fn new(address: Ipv4Addr, length: u8) -> Result<Prefix, PrefixError> {
        if length > 32 {
            return Err(PrefixError(format!("{address}/{length}: a prefix length is 0 to 32")));
        }
        let network = Ipv4Addr::from(u32::from(address) & mask(length));
        if network != address {
            return Err(PrefixError(format!("{address}/{length} has host bits set; the prefix is {network}/{length}")));
        }
        Ok(Prefix { address, length })
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

    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == u32::from(self.address)
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
