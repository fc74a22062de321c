//! The packet path.
//!
//! ```text
//!  a peer's packet ------> DNS, to us? -------> the resolver (dns)
//!                          a ping to outside? -> Echogate (pings)
//!                          anything else ------> the kernel, by the TUN device
//!
//!  the resolver's answer ------------------------------------> the peer that asked
//!  a reply to a ping ------> its peer's mailbox (mailboxes) --> the peer that asked
//!  a packet of the kernel's ----------------------------------> whose address it has
//! ```
//!
//! The line in the middle is all that Echogate adds: without it a ping is "anything else". Packets cause drops, counted by
//! name, never errors or log lines.

use std::sync::Arc;

use echogate::clock::Instant;
use echogate::wire::ipv4::Ipv4;
use tun_rs::SyncDevice;

use crate::dns::Dns;
use crate::drops::Drops;
use crate::mailboxes::Mailboxes;
use crate::peers::{Opened, Peers};
use crate::pings::{Answer, Turn};

/// Where packets come from and go to.
pub(crate) struct Path {
    pub(crate) peers: Peers,
    pub(crate) kernel: SyncDevice,
    pub(crate) dns: Option<Dns>,
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) drops: Drops,
}

impl Path {
    /// A peer's packet. Its source is the peer's own: that was looked at when it was decrypted.
    pub(crate) fn outbound(&mut self, opened: Opened<'_>, pings: Option<&mut Turn<'_>>, now: Instant) {
        let Opened { peer, packet } = opened;
        if self.dns.as_mut().is_some_and(|dns| dns.take(packet, now)) {
            return;
        }
        match pings.map_or(Answer::NotOurs, |pings| pings.offer(peer, packet)) {
            Answer::Taken => {}
            Answer::Tell(error) => self.peers.send(peer, error),
            Answer::NotOurs => self.hand_to_kernel(packet),
        }
    }

    fn hand_to_kernel(&mut self, packet: &[u8]) {
        if self.kernel.send(packet).is_err() {
            self.drops.count("kernel_refused");
        }
    }

    /// A packet that the kernel has routed to the peers' network.
    pub(crate) fn inbound(&mut self, packet: &[u8]) {
        match Ipv4::check(packet).ok().and_then(|packet| self.peers.peer_of(packet.destination())) {
            Some(peer) => self.peers.send(peer, packet),
            None => self.drops.count("no_peer"),
        }
    }

    /// The resolver's next answer. Whether there was one.
    pub(crate) fn dns_answer(&mut self, now: Instant) -> bool {
        let answer = self.dns.as_mut().and_then(|dns| dns.answer(now));
        answer.inspect(|packet| self.inbound(packet)).is_some()
    }

    /// Replies to pings, `most` of them. Whether some may be left.
    pub(crate) fn ping_replies(&mut self, most: usize) -> bool {
        let peers = &mut self.peers;
        self.mailboxes.take(most, |peer, reply| peers.send(peer, reply))
    }
}
