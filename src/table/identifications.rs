//! IP identifications for what leaves under an address that was not its own: unique for (gateway address, remote) as long
//! as 16 bits allow (RFC 6864, section 5.3).
//!
//! Two clients use the same identification all the time. Under one source address their fragments would be put together
//! into a datagram that nobody sent. So every datagram that is a fragment, or that a router further on may fragment,
//! gets one here: from a counter that remotes share by a keyed hash, and that begins anywhere. Each owner has
//! a range of its own, so that owners need not talk to each other.
//!
//! Zero is never given: a raw socket takes it for "none", and would give each fragment one of the kernel's.
//!
//! Limits: a remote that gets more than 65,535 / owners datagrams within the time that it keeps fragments can be given
//! one twice, which all of IPv4 has to live with; threads that only receive number replies for clients from four ranges, and of
//! more than four such threads some from the same; what the host itself sends from the same address to the same remote is
//! numbered by the kernel, which does not ask us.

use std::net::Ipv4Addr;

use rand::RngExt;
use rand::rngs::StdRng;

/// Counters, as a power of two.
const COUNTERS_LOG2: u32 = 10;

/// The identifications of one owner.
#[derive(Debug)]
pub struct Identifications {
    counters: Box<[u16; 1 << COUNTERS_LOG2]>,
    first: u16,
    /// How many there are from `first` on.
    count: u16,
    key: u64,
}

impl Identifications {
    /// The range of owner number `owner` of `owners`.
    pub fn new(owner: usize, owners: usize, rng: &mut StdRng) -> Identifications {
        let owners = u16::try_from(owners).unwrap_or(u16::MAX).max(1);
        let owner = u16::try_from(owner).unwrap_or(0) % owners;
        let count = u16::MAX / owners;
        let counters = std::array::from_fn(|_| rng.random_range(..count));
        Identifications { counters: Box::new(counters), first: 1 + owner * count, count, key: rng.random() }
    }

    /// The next one for a datagram to, or from, `remote`.
    #[inline]
    pub fn next(&mut self, remote: Ipv4Addr) -> u16 {
        let hash = (u64::from(u32::from(remote)) ^ self.key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = usize::try_from(hash >> (u64::BITS - COUNTERS_LOG2)).unwrap_or(0);
        let counter = &mut self.counters[place];
        let number = *counter;
        *counter = if number + 1 < self.count { number + 1 } else { 0 };
        self.first + number
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::table::idents::generator;

    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    #[test]
    fn none_is_zero_or_given_twice_before_all_others() {
        for owners in [1, 3, 64] {
            let mut all = HashSet::new();
            for owner in 0..owners {
                let mut own = Identifications::new(owner, owners, &mut generator(Some(7)));
                for _ in 0..65_535 / owners {
                    let next = own.next(REMOTE);
                    assert!(next != 0 && all.insert(next), "{next} of owner {owner} of {owners}");
                }
                assert!(all.contains(&own.next(REMOTE)), "then they begin again");
            }
        }
    }

    #[test]
    fn a_remote_does_not_use_up_those_of_another() {
        let mut own = Identifications::new(0, 1, &mut generator(Some(7)));
        let other = (3..=u8::MAX).map(|host| Ipv4Addr::new(198, 18, 0, host));
        let first = own.next(REMOTE);
        for remote in other {
            own.next(remote);
        }
        let shared = own.next(REMOTE).wrapping_sub(first);
        assert!(shared < 8, "253 remotes on {} counters: {shared}", 1 << COUNTERS_LOG2);
    }
}
