//! What the pinger has sent and received, each packet under one name.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The engine counts, everybody reads.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)+
        }

        /// What a pinger has sent and received so far.
        ///
        /// Every packet that its sockets received is counted under exactly one name:
        /// `received = replies + duplicates + late + cancelled + other_source + wrong_cookie + unknown_sequence + malformed`
        /// (but for the one that is being counted while you look).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Tally {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(super) fn tally(&self) -> Tally {
                Tally { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Requests that the system took.
    sent,
    /// Requests that it refused.
    send_failures,
    /// Packets that arrived at the pinger's sockets.
    received,
    /// Those that were the reply of a ping.
    replies,
    /// Further replies of a ping that had its first.
    duplicates,
    /// Replies of pings whose time was over.
    late,
    /// Replies of pings that were cancelled.
    cancelled,
    /// From somebody else than the host that was asked.
    other_source,
    /// The right sequence number and source, and a payload that does not begin with the ping's cookie: forged, damaged, or
    /// the answer to an older request of the same number.
    wrong_cookie,
    /// A sequence number that no request had.
    unknown_sequence,
    /// No echo reply, or less than the header of one.
    malformed,
    /// ICMP errors about a ping under way.
    errors,
    /// ICMP errors about nothing that is under way.
    unmatched_errors,
    /// Packets that this host dropped because the receive buffer was full.
    dropped_here,
    /// Strays that nobody took in time.
    strays_lost,
}

/// One number, written by the engine only.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        // Relaxed, and a load and a store instead of a read-modify-write: there is one writer, and the number publishes
        // nothing but itself.
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        // Relaxed: see `add`.
        self.0.load(Ordering::Relaxed)
    }
}
