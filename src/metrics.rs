//! Counters. (Skeleton of what readers see; the writer's side follows.)

/// Packets and bytes in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP header included.
    pub bytes: u64,
}

/// The sum of all workers' counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Read from the TUN.
    pub inside_in: Traffic,
    /// Written to the TUN: replies delivered and packets reinjected.
    pub inside_out: Traffic,
    /// Received by the raw sockets.
    pub outside_in: Traffic,
    /// Sent by the raw sockets: proxied requests.
    pub outside_out: Traffic,
    /// Replies delivered to clients (part of `inside_out`).
    pub delivered: Traffic,
    /// Packets put back on the existing path (part of `inside_out`).
    pub reinjected: Traffic,
    /// Drops by name, zero ones left out: in = out + the sum of these, exactly, once nothing is in flight.
    pub drops: Vec<(String, u64)>,
    /// Requests refused because a table or an allowance was full (part of `drops`).
    pub refused: u64,
    /// Mappings live now.
    pub mappings: u64,
    /// The most mappings that were live at once.
    pub mappings_peak: u64,
    /// Echoes outstanding now.
    pub outstanding: u64,
    /// Echoes that nobody answered within the echo timeout.
    pub unanswered: u64,
}

impl Snapshot {
    /// Packets in, both sides.
    pub fn packets_in(&self) -> u64 {
        self.inside_in.packets + self.outside_in.packets
    }

    /// Packets out, both sides, and drops: equal to `packets_in` once nothing is in flight.
    pub fn packets_accounted(&self) -> u64 {
        let drops: u64 = self.drops.iter().map(|(_, count)| count).sum();
        self.inside_out.packets + self.outside_out.packets + drops
    }
}
