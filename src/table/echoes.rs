//! Outstanding echoes: what has been sent and not answered, exactly.
//!
//! A fixed, set-associative table. A bucket is one cache line of eight 64-bit words; a word is
//!
//! ```text
//! | occupied 1 | stamp | tag |
//! ```
//!
//! The key is (gateway address 4 bits, gateway ident 16, sequence 16, remote 32): 68 bits. The low six bits of the
//! ident are the shard, which picks a region of the table (so that a worker's echoes are its own cache lines). A keyed
//! bijection scrambles the other 62; its high bits pick the bucket in the region and the rest is the tag. Nothing of the
//! key is lost: a word together with its place *is* the key, so there is no false match, and one compare-and-swap
//! records an echo and one uses it up. The bijection's key is random, so nobody outside can aim at a bucket.
//!
//! The stamp counts ticks of the smallest power of two of nanoseconds that makes it wrap no sooner than four times the
//! echo timeout. `consume` checks the age itself; the sweep, paced by the clock, removes words long before their stamps
//! could wrap, whatever the load.
//!
//! The very same request sent twice is one echo, renewed, and has one reply. Recorded by two threads at the same moment,
//! while a third empties a word of the bucket, it may take two words; then two were sent and each may be answered.
//! Either way a word is consumed once, so no more replies are delivered than requests were recorded.
//!
//! A full bucket evicts its oldest echo. Every loop here is bounded: an operation that loses its race too often gives
//! up, and its caller drops the packet by name.
//!
//! Rejected: a hash and a stored key (two words, so no single compare-and-swap), and a hash alone (false matches would
//! hand a reply to the wrong client).

use std::net::Ipv4Addr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::atomic::{AtomicU64, Ordering};
use super::{SHARDS, SlotIndex, Storage};
use crate::canary::{Canary, is_loose};
use crate::clock::Instant;

/// Keys for a new table.
pub fn round_keys(rng: &mut StdRng) -> RoundKeys {
    std::array::from_fn(|_| rng.next_u64() | 1)
}

/// How many buckets a table of 2^`words_log2` words has.
pub const fn buckets(words_log2: u32) -> usize {
    1 << (words_log2 - WAYS.ilog2())
}

/// What identifies an echo until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EchoKey {
    /// Gateway address and gateway ident.
    pub index: SlotIndex,
    /// The client's sequence, which is also the one on the wire.
    pub sequence: u16,
    /// Who was asked.
    pub remote: Ipv4Addr,
}

/// What `record` did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// The echo has a word of its own.
    New,
    /// The very same echo was outstanding already, in time; it is as young as this one now.
    Again,
    /// The echo took the word of one that had waited longer than the echo timeout: nobody answered that.
    OverExpired,
    /// The bucket was full of younger ones: the oldest, of this age, is outstanding no longer.
    Evicted(Duration),
    /// Others kept changing the bucket: not recorded.
    Contended,
}

/// What `consume` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consumed {
    /// The echo was outstanding, and is no longer.
    Matched,
    /// The echo was recorded, but longer ago than the echo timeout. It is gone now.
    Late,
    /// No such echo is outstanding.
    Unknown,
}

/// Two in the checkers' builds: there a bucket must be full after a few operations.
const WAYS: usize = if cfg!(any(loom, shuttle)) { 2 } else { 8 };
const OCCUPIED: u64 = 1 << 63;
const SCRAMBLED_BITS: u32 = 62;
const HALF_BITS: u32 = SCRAMBLED_BITS / 2;
const HALF_MASK: u64 = (1 << HALF_BITS) - 1;
const ATTEMPTS_MAX: usize = 8;

/// The smallest and largest table, as powers of two of its words.
pub const WORDS_LOG2: std::ops::RangeInclusive<u32> = 14..=26;

/// A bucket: one cache line of words, and nothing but them.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Bucket([AtomicU64; WAYS]);

/// What scrambles the keys of a table.
pub type RoundKeys = [u64; 4];

/// The number of a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BucketIndex(usize);

/// The table of outstanding echoes.
#[derive(Debug)]
pub struct Echoes {
    buckets: Storage<Bucket>,
    /// Buckets of one shard, as a power of two.
    shard_buckets_log2: u32,
    tag_bits: u32,
    /// A tick lasts 2^this nanoseconds.
    tick_shift: u32,
    timeout_ticks: u64,
    round_keys: RoundKeys,
}

/// What there is in a table that somebody has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stock {
    /// Echoes that are outstanding.
    pub outstanding: u64,
    /// Echoes that nobody had answered in time.
    pub unanswered: u64,
}

impl Echoes {
    /// A table of 2^`words_log2` words (in [`WORDS_LOG2`]) for echoes that wait up to `timeout`.
    pub fn new(words_log2: u32, timeout: Duration, rng: &mut StdRng) -> Echoes {
        assert!(WORDS_LOG2.contains(&words_log2), "the table holds 2^14 to 2^26 words");
        Echoes::with_shards(SHARDS, words_log2 - WAYS.ilog2() - SHARDS.ilog2(), timeout, rng)
    }

    /// A table for the first `shards` shards.
    pub(super) fn with_shards(shards: usize, shard_buckets_log2: u32, timeout: Duration, rng: &mut StdRng) -> Echoes {
        let buckets = Storage::own(shards << shard_buckets_log2);
        Echoes::with_buckets(buckets, shard_buckets_log2, timeout, round_keys(rng))
    }

    /// The table in these buckets, as many as [`buckets`] tells, whose keys have been scrambled by `round_keys` ever since
    /// they were empty.
    pub fn over(buckets: &'static [Bucket], timeout: Duration, round_keys: RoundKeys) -> Echoes {
        let shard_buckets_log2 = buckets.len().ilog2() - SHARDS.ilog2();
        Echoes::with_buckets(Storage::Lent(buckets), shard_buckets_log2, timeout, round_keys)
    }

    fn with_buckets(
        buckets: Storage<Bucket>,
        shard_buckets_log2: u32,
        timeout: Duration,
        round_keys: RoundKeys,
    ) -> Echoes {
        let tag_bits = SCRAMBLED_BITS - shard_buckets_log2;
        let stamp_bits = 63 - tag_bits;
        let timeout_nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX >> 3);
        let tick_nanos = (timeout_nanos * 4).div_ceil(1 << stamp_bits).next_power_of_two();
        Echoes {
            buckets,
            shard_buckets_log2,
            tag_bits,
            tick_shift: tick_nanos.ilog2(),
            timeout_ticks: timeout_nanos.div_ceil(tick_nanos),
            round_keys,
        }
    }

    /// How long an echo can at most be matched: the timeout and the coarseness of the stamp.
    pub fn longest_life(&self) -> Duration {
        Duration::from_nanos((self.timeout_ticks + 1) << self.tick_shift)
    }

    /// How long an ident must rest after its mapping, if no batch lasts longer than `batch_max`, so that none of its echoes
    /// is matched when it is another's. Two batches: a request may be stamped one batch after an ending that it did not
    /// see, and a reply that is matched in a batch's beginning is addressed by its end.
    pub fn hold_down_min(&self, batch_max: Duration) -> Duration {
        self.longest_life() + batch_max * 2
    }

    /// The bytes it occupies.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// Where the echo's bucket is, for `read_ahead`.
    #[inline]
    pub fn bucket(&self, key: EchoKey) -> BucketIndex {
        BucketIndex(self.place(key).0)
    }

    /// Reads a bucket ahead of its use, so that a batch's cache misses overlap.
    #[inline]
    pub fn read_ahead(&self, bucket: BucketIndex) {
        // Relaxed: the value is not used.
        std::hint::black_box(self.buckets[bucket.0].0[0].load(Ordering::Relaxed));
    }

    /// Records an echo as outstanding from `now` on.
    pub fn record(&self, key: EchoKey, now: Instant) -> Recorded {
        let (bucket, tag) = self.place(key);
        let bucket = &self.buckets[bucket].0;
        let word = OCCUPIED | self.stamp(now) << self.tag_bits | tag;
        for _ in 0..ATTEMPTS_MAX {
            let Choice { way, seen, outcome } = self.choose(bucket, tag, now);
            // Release: pairs with `consume`'s Acquire, so that who matches this echo sees the identity that it left
            // under. No Acquire: of whoever emptied the word nothing is needed but the emptiness.
            if bucket[way].compare_exchange(seen, word, Ordering::Release, Ordering::Relaxed).is_ok() {
                return outcome;
            }
        }
        Recorded::Contended
    }

    /// The word that an echo with this tag goes to: its own, a free one, an expired one, or the oldest.
    fn choose(&self, bucket: &[AtomicU64; WAYS], tag: u64, now: Instant) -> Choice {
        let mut free = None;
        // From the end, so that the echoes of a bucket stand at its beginning, where `consume` looks first.
        for (way, word) in bucket.iter().enumerate().rev() {
            // Relaxed: the compare-and-swap that follows decides.
            let seen = word.load(Ordering::Relaxed);
            if seen == 0 {
                free = Some(way);
            } else if self.tag(seen) == tag {
                // Over, and not swept yet: this one is a new one, whatever becomes of it.
                let over = self.age_ticks(seen, now) > self.timeout_ticks;
                return Choice { way, seen, outcome: if over { Recorded::OverExpired } else { Recorded::Again } };
            }
        }
        match free {
            Some(way) => Choice { way, seen: 0, outcome: Recorded::New },
            None => self.choose_of_full(bucket, now),
        }
    }

    /// The word that gives way in a bucket that was full a moment ago.
    #[cold]
    fn choose_of_full(&self, bucket: &[AtomicU64; WAYS], now: Instant) -> Choice {
        let mut oldest = (0, 0, 0);
        for (way, word) in bucket.iter().enumerate() {
            // Relaxed: as in `choose`.
            let seen = word.load(Ordering::Relaxed);
            if seen == 0 {
                return Choice { way, seen, outcome: Recorded::New };
            }
            oldest = oldest.max((self.age_ticks(seen, now), way, seen));
        }
        let (age, way, seen) = oldest;
        let outcome = if age > self.timeout_ticks {
            Recorded::OverExpired
        } else {
            Recorded::Evicted(Duration::from_nanos(age << self.tick_shift))
        };
        Choice { way, seen, outcome }
    }

    /// Uses an echo up: of two replies to it, the first is matched.
    pub fn consume(&self, key: EchoKey, now: Instant) -> Consumed {
        let (bucket, tag) = self.place(key);
        for word in &self.buckets[bucket].0 {
            for _ in 0..ATTEMPTS_MAX {
                // Relaxed: the compare-and-swap that follows decides.
                let seen = word.load(Ordering::Relaxed);
                if seen == 0 || self.tag(seen) != tag {
                    break;
                }
                if is_loose(Canary::DoubleDelivery) {
                    return Consumed::Matched;
                }
                // Acquire: pairs with `record`'s Release.
                if word.compare_exchange(seen, 0, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    let late = self.age_ticks(seen, now) > self.timeout_ticks && !is_loose(Canary::NeverLate);
                    return if late { Consumed::Late } else { Consumed::Matched };
                }
            }
        }
        Consumed::Unknown
    }

    /// Whether the echo is outstanding: for errors about it, which must not use it up (RFC 5508 REQ-6).
    pub fn is_outstanding(&self, key: EchoKey, now: Instant) -> bool {
        let (bucket, tag) = self.place(key);
        self.buckets[bucket].0.iter().any(|word| {
            // Acquire: pairs with `record`'s Release, as in `consume`: the identity that the echo left under is seen.
            let seen = word.load(Ordering::Acquire);
            seen != 0 && self.tag(seen) == tag && self.age_ticks(seen, now) <= self.timeout_ticks
        })
    }

    /// Empties the words of `shard` that have waited longer than the timeout, from bucket `from` of the shard on,
    /// `count` buckets far. Returns how many there were: nobody answered those.
    pub fn sweep(&self, shard: usize, from: usize, count: usize, now: Instant) -> u64 {
        let first = shard << self.shard_buckets_log2;
        let range = first + from..first + (from + count).min(self.shard_buckets());
        let mut unanswered = 0;
        for word in self.buckets[range].iter().flat_map(|bucket| &bucket.0) {
            // Relaxed: the compare-and-swap that follows decides.
            let seen = word.load(Ordering::Relaxed);
            if seen != 0
                && self.age_ticks(seen, now) > self.timeout_ticks
                // Relaxed: only the word changes. Lost the race: somebody renewed it, or its reply came.
                && word.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                unanswered += 1;
            }
        }
        unanswered
    }

    /// Looks at every word, once, and empties those that have waited longer than the timeout: before anybody else uses the table.
    pub fn take_stock(&self, now: Instant) -> Stock {
        let mut stock = Stock::default();
        for bucket in self.buckets.iter() {
            // Relaxed, here and below: nobody else uses it.
            let seen = bucket.0.each_ref().map(|word| word.load(Ordering::Relaxed));
            // Most are empty.
            if seen.iter().fold(0, |any, word| any | word) == 0 {
                continue;
            }
            for (word, seen) in bucket.0.iter().zip(seen).filter(|(_, seen)| *seen != 0) {
                if self.age_ticks(seen, now) > self.timeout_ticks {
                    word.store(0, Ordering::Relaxed);
                    stock.unanswered += 1;
                } else {
                    stock.outstanding += 1;
                }
            }
        }
        stock
    }

    /// Empties every word: nobody is waited for any more.
    pub fn forget(&self) {
        // Relaxed: before anybody else uses the table.
        self.buckets.iter().flat_map(|bucket| &bucket.0).for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// How many buckets a shard has.
    pub fn shard_buckets(&self) -> usize {
        1 << self.shard_buckets_log2
    }

    /// Counts the occupied words: for audits, not for the packet path.
    pub fn occupied(&self) -> usize {
        self.buckets.iter().flat_map(|bucket| &bucket.0).filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }

    /// Bucket and tag of a key.
    pub(super) fn place(&self, key: EchoKey) -> (usize, u64) {
        let scrambled = self.scramble(
            u64::from(key.index.address()) << 58
                | u64::from(key.index.ident() >> 6) << 48
                | u64::from(if is_loose(Canary::WeakSequence) { 0 } else { key.sequence }) << 32
                | u64::from(if is_loose(Canary::WeakRemote) { 0 } else { u32::from(key.remote) }),
        );
        let in_shard = usize::try_from(scrambled >> self.tag_bits).unwrap_or(usize::MAX);
        (key.index.shard() << self.shard_buckets_log2 | in_shard, self.tag(scrambled))
    }

    /// A keyed bijection on 62 bits: a Feistel network, which is one whatever its round function.
    fn scramble(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value >> HALF_BITS, value & HALF_MASK);
        for key in self.round_keys {
            let mixed = (right ^ key >> 32).wrapping_mul(key) >> (64 - HALF_BITS);
            (left, right) = (right, left ^ mixed);
        }
        left << HALF_BITS | right
    }

    fn tag(&self, word: u64) -> u64 {
        word & ((1 << self.tag_bits) - 1)
    }

    fn stamp_mask(&self) -> u64 {
        (1 << (63 - self.tag_bits)) - 1
    }

    fn stamp(&self, now: Instant) -> u64 {
        now.as_nanos() >> self.tick_shift & self.stamp_mask()
    }

    /// Ticks since the word was recorded. A stamp just ahead of `now` (another worker's later batch) is age 0.
    fn age_ticks(&self, word: u64, now: Instant) -> u64 {
        let stamp = word >> self.tag_bits & self.stamp_mask();
        let age = self.stamp(now).wrapping_sub(stamp) & self.stamp_mask();
        if age > self.stamp_mask() - self.timeout_ticks / 2 { 0 } else { age }
    }
}

struct Choice {
    way: usize,
    seen: u64,
    outcome: Recorded,
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
