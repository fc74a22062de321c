//! Which addresses may be pinged.
//!
//! Two lists of prefixes, denied and allowed, of which the longest that holds an address decides; and prefixes that nothing
//! opens. Flattened at the start into ranges of addresses, sorted, so that a request costs one binary search, whatever the
//! lists' length: n prefixes make 2n + 1 ranges at most. Most first octets have one answer for all their addresses, which
//! is looked up without a search.
//!
//! Rejected: a trie. It is faster from some thousands of prefixes on, which nobody writes by hand.

use std::net::Ipv4Addr;

use super::Prefix;

/// The most prefixes in each list: flattening them compares all with all.
pub const LIST_MAX: usize = 1024;

/// Never a remote: this network (RFC 791), loopback and link-local (RFC 1122, RFC 3927), multicast (RFC 5771), reserved
/// and the limited broadcast (RFC 1112). The kernel sends to some of them without complaint.
pub const NEVER: [Prefix; 5] = [
    Prefix { address: Ipv4Addr::new(0, 0, 0, 0), length: 8 },
    Prefix { address: Ipv4Addr::new(127, 0, 0, 0), length: 8 },
    Prefix { address: Ipv4Addr::new(169, 254, 0, 0), length: 16 },
    Prefix { address: Ipv4Addr::new(224, 0, 0, 0), length: 4 },
    Prefix { address: Ipv4Addr::new(240, 0, 0, 0), length: 4 },
];

/// What holds for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It may be pinged.
    Allowed,
    /// The lists say that it may not.
    Denied,
    /// It is nobody's that could be pinged ([`NEVER`]).
    Never,
}

/// Every address's standing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remotes {
    /// Each range's first address, ascending from 0; it ends before the next.
    starts: Vec<u32>,
    standings: Vec<Standing>,
    /// What holds for all addresses of a first octet, if one thing does.
    by_octet: Box<[Option<Standing>; 256]>,
}

impl Remotes {
    /// From the lists. Where equal prefixes are in both, it is allowed.
    pub fn new(denied: &[Prefix], allowed: &[Prefix]) -> Remotes {
        let prefixes = || NEVER.iter().chain(denied).chain(allowed);
        let ends = prefixes().filter_map(|prefix| prefix.last().checked_add(1));
        let mut points: Vec<u32> = prefixes().map(|prefix| u32::from(prefix.address)).chain(ends).chain([0]).collect();
        points.sort_unstable();
        points.dedup();
        let mut remotes = Remotes { starts: Vec::new(), standings: Vec::new(), by_octet: Box::new([None; 256]) };
        for start in points {
            let standing = standing(Ipv4Addr::from(start), denied, allowed);
            if remotes.standings.last() != Some(&standing) {
                remotes.starts.push(start);
                remotes.standings.push(standing);
            }
        }
        for octet in 0..=u8::MAX {
            let [first, last] = [0, u8::MAX].map(|rest| remotes.range(Ipv4Addr::new(octet, rest, rest, rest)));
            remotes.by_octet[usize::from(octet)] = (first == last).then(|| remotes.standings[first]);
        }
        remotes
    }

    /// What holds for `remote`.
    #[inline]
    pub fn standing(&self, remote: Ipv4Addr) -> Standing {
        let [octet, ..] = remote.octets();
        self.by_octet[usize::from(octet)].unwrap_or_else(|| self.standings[self.range(remote)])
    }

    fn range(&self, remote: Ipv4Addr) -> usize {
        self.starts.partition_point(|start| *start <= u32::from(remote)) - 1
    }
}

/// The rule itself, prefix by prefix.
fn standing(remote: Ipv4Addr, denied: &[Prefix], allowed: &[Prefix]) -> Standing {
    let longest =
        |list: &[Prefix]| list.iter().filter(|prefix| prefix.contains(remote)).map(|prefix| prefix.length).max();
    if longest(&NEVER).is_some() {
        Standing::Never
    } else if longest(denied) > longest(allowed) {
        Standing::Denied
    } else {
        Standing::Allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_longest_prefix_decides_and_nothing_opens_what_is_nobodys() {
        let denied = prefixes(&["10.0.0.0/8", "10.1.2.0/24", "198.51.100.7/32", "203.0.113.0/24"]);
        let allowed = prefixes(&["10.1.0.0/16", "10.1.2.3/32", "203.0.113.0/24", "0.0.0.0/0", "169.254.169.254/32"]);
        let remotes = Remotes::new(&denied, &allowed);
        for (remote, standing) in [
            ("10.0.0.1", Standing::Denied),
            ("10.0.255.255", Standing::Denied),
            ("10.1.0.0", Standing::Allowed),
            ("10.1.2.2", Standing::Denied),
            ("10.1.2.3", Standing::Allowed),
            ("10.1.2.4", Standing::Denied),
            ("10.1.3.0", Standing::Allowed),
            ("11.0.0.0", Standing::Allowed),
            ("198.51.100.6", Standing::Allowed),
            ("198.51.100.7", Standing::Denied),
            ("203.0.113.9", Standing::Allowed),
            ("169.254.169.254", Standing::Never),
            ("255.255.255.255", Standing::Never),
        ] {
            assert_eq!(remotes.standing(remote.parse().unwrap()), standing, "{remote}");
        }
    }

    #[test]
    fn everything_can_be_denied_but_for_a_few() {
        let remotes = Remotes::new(&[Prefix::ALL], &prefixes(&["198.18.0.0/15"]));
        let standing = |text: &str| remotes.standing(text.parse().unwrap());
        assert_eq!(standing("198.19.255.255"), Standing::Allowed);
        assert_eq!((standing("198.20.0.0"), standing("198.17.255.255")), (Standing::Denied, Standing::Denied));
        assert_eq!((standing("0.0.0.0"), standing("224.0.0.1")), (Standing::Never, Standing::Never));
    }

    proptest! {
        /// The flattened ranges say what the rule says, at every edge and anywhere.
        #[test]
        fn the_ranges_agree_with_the_rule(
            lists in prop::array::uniform2(prop::collection::vec((any::<u32>(), 0..=32_u8), 0..12)), anywhere: [u32; 8],
        ) {
            // Few high bits, so that prefixes nest and meet.
            let [denied, allowed] = lists.map(|list| -> Vec<Prefix> {
                let prefix = |(bits, length): (u32, u8)| Prefix::around(Ipv4Addr::from(bits & 0xc300_0003), length);
                list.into_iter().map(prefix).collect()
            });
            let remotes = Remotes::new(&denied, &allowed);
            let edges = denied.iter().chain(&allowed).flat_map(|prefix| {
                let (first, last) = (u32::from(prefix.address), prefix.last());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
            });
            for remote in edges.chain(anywhere).map(Ipv4Addr::from) {
                prop_assert_eq!(remotes.standing(remote), standing(remote, &denied, &allowed), "{}", remote);
            }
        }
    }
}
