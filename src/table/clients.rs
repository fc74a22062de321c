//! Clients and their fair shares: one cache line a client, shared by all workers.
//!
//! A line holds what bounds a client: token buckets for packets, bytes, new mappings and error answers, how many
//! mappings it has, and on which gateway address: all on the same one (RFC 6888 REQ-2), for as long as it has any. A bucket is one word, kept by the generic cell rate algorithm (GCRA): not how many tokens there are
//! but when the bucket will be full again. What has been asked for pushes that time ahead; when it would lie further ahead
//! than the burst allows, the answer is no and nothing is pushed. One compare-and-swap, exact to the nanosecond, nothing
//! to refill and nothing to sweep: a client that has been silent needs no tending.
//!
//! The line of a client is its place among all addresses of the clients' prefixes. There is no map, nothing is allocated
//! or freed, and no client can take another's line, however many addresses one invents. Of prefixes with more than
//! [`LINES_MAX`] addresses in all, some share a line, and with it their shares.
//!
//! Rejected: lines made on demand behind a map. They must be freed, a client whose line is freed at the right moment has a
//! fresh bucket, and a table that can be full refuses the wrong ones.

use super::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::canary::{Canary, is_loose};
use crate::clock::Instant;

/// The most lines (16 MiB): beyond, clients share them.
pub const LINES_MAX: usize = 1 << 18;

/// The bytes of one line.
pub const LINE_BYTES: usize = size_of::<Line>();

const ATTEMPTS_MAX: usize = 8;

/// How fast, and how much at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// What one unit costs of the bucket, in nanoseconds with 16 binary places (a byte at 4 GB/s is a quarter of one);
    /// 0: unlimited.
    unit_cost: u64,
    /// How far ahead of now the bucket may be empty, in nanoseconds.
    burst_ns: u64,
}

const COST_PLACES: u32 = 16;
const SECOND_NS: u64 = 1_000_000_000;

impl Rate {
    /// No limit.
    pub const UNLIMITED: Rate = Rate { unit_cost: 0, burst_ns: 0 };

    /// `per_second` units a second in the long run and `burst` at once; 0 a second: no limit. A burst of less than one
    /// unit would refuse everything and counts as one.
    pub const fn new(per_second: u32, burst: u32) -> Rate {
        if per_second == 0 {
            return Rate::UNLIMITED;
        }
        let unit_cost = (SECOND_NS << COST_PLACES) / per_second as u64;
        let burst = if burst == 0 { 1 } else { burst as u64 };
        // Rounded up: a burst of n lets n pass.
        Rate { unit_cost, burst_ns: (burst * SECOND_NS).div_ceil(per_second as u64) }
    }

    /// What `units` cost, in nanoseconds.
    #[inline]
    const fn cost_ns(self, units: u64) -> u64 {
        self.unit_cost.saturating_mul(units) >> COST_PLACES
    }
}

/// What a client may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Echo requests.
    pub packets: Rate,
    /// Bytes of echo requests, IP header included.
    pub bytes: Rate,
    /// New mappings.
    pub new_mappings: Rate,
    /// Mappings at once; 0: no limit.
    pub mappings_max: u32,
}

impl Allowance {
    /// Whatever it likes.
    pub const UNLIMITED: Allowance =
        Allowance { packets: Rate::UNLIMITED, bytes: Rate::UNLIMITED, new_mappings: Rate::UNLIMITED, mappings_max: 0 };
}

/// Error answers to one client: rate-limited by themselves (RFC 1812, section 4.3.2.8), whatever its allowance.
const ERRORS: Rate = Rate::new(10, 20);

/// One token bucket: when it will be full again, in nanoseconds on the gateway's clock.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes `units` at `now` if the bucket holds them.
    #[inline]
    fn take(&self, rate: Rate, units: u64, now: Instant) -> bool {
        if rate.unit_cost == 0 {
            return true;
        }
        let now = now.as_nanos();
        let cost = rate.cost_ns(units);
        let cost = if is_loose(Canary::TooStrict) { cost.saturating_add(cost) } else { cost };
        // Relaxed throughout: the word is all there is; no other memory is published with it.
        let mut full_at = self.0.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS_MAX {
            let next = full_at.max(now).saturating_add(cost);
            if next - now > rate.burst_ns {
                return false;
            }
            match self.0.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => full_at = seen,
            }
        }
        false // so many others took from it meanwhile that it is as good as empty
    }
}

/// Why a client is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Too many packets.
    Packets,
    /// Too many bytes.
    Bytes,
    /// Too many new mappings.
    NewMappings,
    /// Too many mappings at once.
    Mappings,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    packets: Bucket,
    bytes: Bucket,
    new_mappings: Bucket,
    errors: Bucket,
    /// One more than the number of the gateway address of its mappings (8 bits; 0: there was none yet), and how many they are.
    mappings: AtomicU32,
}

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// On which gateway address a client's mappings are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pairing(u32);

impl Pairing {
    /// The number of the gateway address of its last mapping; none if it never had one.
    pub fn address(self) -> Option<u8> {
        u8::try_from(self.0 >> COUNT_BITS).ok()?.checked_sub(1)
    }

    /// How many mappings it has.
    pub const fn mappings(self) -> u32 {
        self.0 & COUNT_MASK
    }

    /// With one mapping more, on this gateway address.
    fn entered(self, address: u8) -> u32 {
        (u32::from(address) + 1) << COUNT_BITS | (self.mappings() + 1)
    }
}

/// The line of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientIndex(u32);

impl ClientIndex {
    pub(super) const fn to_word(self) -> u32 {
        self.0
    }

    pub(super) const fn from_word(word: u32) -> ClientIndex {
        ClientIndex(word)
    }
}

/// All clients.
#[derive(Debug)]
pub struct Clients(Box<[Line]>);

impl Clients {
    /// Lines for this many addresses.
    pub fn new(addresses: u64) -> Clients {
        let lines = usize::try_from(addresses).unwrap_or(LINES_MAX).clamp(1, LINES_MAX);
        Clients((0..lines).map(|_| Line::default()).collect())
    }

    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// The line of the client at this place among all clients' addresses.
    #[inline]
    pub fn index(&self, place: u64) -> ClientIndex {
        let lines = self.0.len() as u64;
        // Most have a line for each: then nothing is divided.
        let line = if place < lines { place } else { place % lines };
        ClientIndex(u32::try_from(line).unwrap_or(0))
    }

    #[inline]
    fn line(&self, client: ClientIndex) -> &Line {
        &self.0[client.0 as usize]
    }

    /// Reads the client's line ahead of its use, so that a batch's cache misses overlap.
    pub fn read_ahead(&self, client: ClientIndex) {
        // Relaxed: the value is not used.
        std::hint::black_box(self.line(client).mappings.load(Ordering::Relaxed));
    }

    /// Charges a client for a packet of `bytes` bytes.
    #[inline]
    pub fn charge(&self, client: ClientIndex, allowance: &Allowance, bytes: usize, now: Instant) -> Result<(), Over> {
        if is_loose(Canary::NoShare) {
            return Ok(());
        }
        let line = self.line(client);
        if !line.packets.take(allowance.packets, 1, now) {
            return Err(Over::Packets);
        }
        if !line.bytes.take(allowance.bytes, bytes as u64, now) {
            return Err(Over::Bytes);
        }
        Ok(())
    }

    /// Charges a client for a new mapping on the gateway address that `choose` names, and counts it; `leave` takes it back.
    /// `choose` is asked again when another thread was faster, and must name the address that is told if there are mappings on it, for
    /// those must not be apart unless it is closed. Returns the address.
    pub fn enter(
        &self,
        client: ClientIndex,
        allowance: &Allowance,
        now: Instant,
        mut choose: impl FnMut(Pairing) -> u8,
    ) -> Result<u8, Over> {
        let line = self.line(client);
        // Relaxed throughout: the word is all there is. Counted before the bucket is asked, so that two at once cannot both pass.
        let mut before = Pairing(line.mappings.load(Ordering::Relaxed));
        let most = if allowance.mappings_max == 0 || is_loose(Canary::NoLimit) {
            COUNT_MASK
        } else {
            allowance.mappings_max.min(COUNT_MASK)
        };
        let address = loop {
            if before.mappings() >= most {
                return Err(Over::Mappings);
            }
            let address = choose(before);
            let after = before.entered(address);
            match line.mappings.compare_exchange_weak(before.0, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break address,
                // Bounded: each time, another thread has entered or left, which costs it far more.
                Err(seen) => before = Pairing(seen),
            }
        };
        if !line.new_mappings.take(allowance.new_mappings, 1, now) {
            self.leave(client);
            return Err(Over::NewMappings);
        }
        Ok(address)
    }

    /// On which gateway address the client's mappings are.
    pub fn pairing(&self, client: ClientIndex) -> Pairing {
        // Relaxed: see `enter`, which decides.
        Pairing(self.line(client).mappings.load(Ordering::Relaxed))
    }

    /// A mapping of the client has ended, or was not made after all.
    pub fn leave(&self, client: ClientIndex) {
        // Relaxed: see `enter`.
        let before = Pairing(self.line(client).mappings.fetch_sub(1, Ordering::Relaxed));
        debug_assert_ne!(before.mappings(), 0, "a mapping ended that had not begun");
    }

    /// How many mappings the client has.
    pub fn mappings(&self, client: ClientIndex) -> u32 {
        self.pairing(client).mappings()
    }

    /// All clients' mappings together: for audits, not for the packet path.
    pub fn mappings_sum(&self) -> u64 {
        self.0.iter().map(|line| u64::from(Pairing(line.mappings.load(Ordering::Relaxed)).mappings())).sum()
    }

    /// Whether the client may be told of an error now.
    pub fn may_be_told(&self, client: ClientIndex, now: Instant) -> bool {
        self.line(client).errors.take(ERRORS, 1, now) || is_loose(Canary::EndlessErrors)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: ClientIndex = ClientIndex(0);

    fn allowance(per_second: u32, burst: u32) -> Allowance {
        Allowance { packets: Rate::new(per_second, burst), ..Allowance::UNLIMITED }
    }

    fn at(millis: u64) -> Instant {
        Instant::START + Duration::from_millis(millis)
    }

    #[test]
    fn a_line_is_one_cache_line() {
        assert_eq!((LINE_BYTES, Clients::new(3).bytes()), (64, 192));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let clients = Clients::new(1);
        let hundred = allowance(100, 5);
        let passed = |now| (0..50).filter(|_| clients.charge(FIRST, &hundred, 84, now).is_ok()).count();
        assert_eq!(passed(at(1000)), 5);
        assert_eq!(passed(at(1000)), 0);
        assert_eq!(passed(at(1030)), 3, "a hundred a second is one in 10 ms");
        assert_eq!(passed(at(9000)), 5, "what is not used does not add up beyond the burst");
    }

    #[test]
    fn the_rate_holds_over_time_and_a_refusal_costs_nothing() {
        let clients = Clients::new(1);
        let allowance = allowance(1000, 10);
        let passed = (0..10_000_000_u64)
            .step_by(997)
            .filter(|micros| {
                let now = Instant::from_nanos(micros * 1000);
                clients.charge(FIRST, &allowance, 84, now).is_ok()
            })
            .count();
        assert!((10_000..=10_010).contains(&passed), "{passed} of 10 s at 1000 a second");
    }

    #[test]
    fn a_rate_holds_within_a_percent_however_fast_it_is() {
        for per_second in [1, 3, 999, 1_000_000, 750_000_000, u32::MAX] {
            let cost = Rate::new(per_second, 1).cost_ns(65_000);
            let exact = 65_000 * 1_000_000_000 / u128::from(per_second);
            assert!(u128::from(cost).abs_diff(exact) * 100 <= exact, "{per_second}: {cost} against {exact}");
        }
    }

    #[test]
    fn bytes_are_charged_by_the_byte() {
        let clients = Clients::new(1);
        let bytes = Allowance { bytes: Rate::new(10_000, 2000), ..Allowance::UNLIMITED };
        assert_eq!(clients.charge(FIRST, &bytes, 1500, at(0)), Ok(()));
        assert_eq!(clients.charge(FIRST, &bytes, 501, at(0)), Err(Over::Bytes));
        assert_eq!(clients.charge(FIRST, &bytes, 500, at(0)), Ok(()));
        assert_eq!(clients.charge(FIRST, &bytes, 1000, at(99)), Err(Over::Bytes));
        assert_eq!(clients.charge(FIRST, &bytes, 1000, at(100)), Ok(()));
    }

    /// RFC 6888 REQ-4.
    #[test]
    fn mappings_are_bounded_at_once_and_in_their_rate() {
        let clients = Clients::new(1);
        let few = Allowance { mappings_max: 2, new_mappings: Rate::new(1, 3), ..Allowance::UNLIMITED };
        assert_eq!([(); 3].map(|()| clients.enter(FIRST, &few, at(0), |_| 3)), [Ok(3), Ok(3), Err(Over::Mappings)]);
        clients.leave(FIRST);
        clients.leave(FIRST);
        assert_eq!([(); 2].map(|()| clients.enter(FIRST, &few, at(0), |_| 3)), [Ok(3), Err(Over::NewMappings)]);
        assert_eq!(clients.mappings(FIRST), 1, "a refused one is not counted");
        assert_eq!(clients.enter(FIRST, &few, at(1000), |_| 3), Ok(3));
    }

    #[test]
    fn a_client_is_remembered_with_its_address() {
        let clients = Clients::new(2);
        assert_eq!((clients.pairing(FIRST).address(), clients.pairing(FIRST).mappings()), (None, 0));
        let mut seen = Vec::new();
        for address in [15, 15, 0] {
            let entered = clients.enter(FIRST, &Allowance::UNLIMITED, at(0), |pairing| {
                seen.push((pairing.address(), pairing.mappings()));
                address
            });
            assert_eq!(entered, Ok(address));
        }
        assert_eq!(seen, [(None, 0), (Some(15), 1), (Some(15), 2)]);
        (0..3).for_each(|_| clients.leave(FIRST));
        assert_eq!((clients.pairing(FIRST).address(), clients.pairing(FIRST).mappings()), (Some(0), 0));
        assert_eq!(clients.pairing(clients.index(1)).address(), None);
    }

    #[test]
    fn one_clients_share_is_not_anothers() {
        let clients = Clients::new(256);
        let one = allowance(1, 1);
        for place in 0..256 {
            assert_eq!(clients.charge(clients.index(place), &one, 84, at(0)), Ok(()));
        }
        assert_eq!(clients.charge(clients.index(7), &one, 84, at(0)), Err(Over::Packets));
        let too_many = Clients::new(1 << 24);
        for (place, line) in [(5, 5), ((1 << 18) - 1, (1 << 18) - 1), (1 << 18, 0), ((1 << 18) + 5, 5)] {
            assert_eq!(too_many.index(place), ClientIndex(line), "of too many, some share: {place}");
        }
    }

    #[test]
    fn two_threads_together_get_what_one_would() {
        let clients = Clients::new(1);
        let burst = if cfg!(miri) { 100 } else { 10_000 }; // an interpreter is slow
        let allowance = allowance(1, burst);
        let passed = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mine = (0..2 * burst).filter(|_| clients.charge(FIRST, &allowance, 84, at(0)).is_ok()).count();
                    passed.fetch_add(mine, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(passed.into_inner(), burst as usize);
    }
}
