//! The replies that wait for their peer: one bounded queue a peer, from Echogate's receiving thread to the server's.
//!
//! A full queue drops its oldest: of two replies the younger is the one that its client still waits for. So one peer's
//! backlog costs no other a packet. Buffers go round: a mailbox in use allocates no more.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use echogate::outside::Deliver;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::routes::Routes;

/// How many replies wait for one peer.
pub(crate) const ROOM: usize = 256;

/// Buffers that are kept for the next replies.
const SPARE: usize = 1024;

/// All peers' queues, and who has something in his. Shared by the two threads.
pub(crate) struct Mailboxes {
    boxes: Vec<Mailbox>,
    /// Each peer once at most, so it is never full.
    announced: ArrayQueue<usize>,
    spare: ArrayQueue<Vec<u8>>,
    overtaken: AtomicU64,
}

struct Mailbox {
    packets: ArrayQueue<Vec<u8>>,
    is_announced: AtomicBool,
}

impl Mailboxes {
    pub(crate) fn new(peers: usize) -> Arc<Mailboxes> {
        let mailbox = || Mailbox { packets: ArrayQueue::new(ROOM), is_announced: AtomicBool::new(false) };
        Arc::new(Mailboxes {
            boxes: (0..peers).map(|_| mailbox()).collect(),
            announced: ArrayQueue::new(peers.max(1)),
            spare: ArrayQueue::new(SPARE),
            overtaken: AtomicU64::new(0),
        })
    }

    fn put(&self, peer: usize, packet: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        if let Some(oldest) = self.boxes[peer].packets.force_push(buffer) {
            // Relaxed: a number alone.
            self.overtaken.fetch_add(1, Ordering::Relaxed);
            self.recycle(oldest);
        }
        self.announce(peer);
    }

    fn announce(&self, peer: usize) {
        // AcqRel: pairs with the swap in `take`. Who finds it set knows that a `take` is to come which sees the packet.
        if !self.boxes[peer].is_announced.swap(true, Ordering::AcqRel) {
            // There is room: a peer is announced once at most.
            let _ = self.announced.push(peer);
        }
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // Enough of them are kept already: this one is freed.
        let _ = self.spare.push(buffer);
    }

    /// Hands what waits to `send`, peer by peer, `most` packets in all at most. Whether something may be left.
    pub(crate) fn take(&self, most: usize, mut send: impl FnMut(usize, &[u8])) -> bool {
        let mut left = most;
        while left > 0 {
            let Some(peer) = self.announced.pop() else { return false };
            let mailbox = &self.boxes[peer];
            // AcqRel: pairs with the swap in `announce`. Before the queue is emptied, so that whoever puts something in
            // afterwards announces it.
            mailbox.is_announced.swap(false, Ordering::AcqRel);
            while left > 0
                && let Some(packet) = mailbox.packets.pop()
            {
                send(peer, &packet);
                self.recycle(packet);
                left -= 1;
            }
            if !mailbox.packets.is_empty() {
                self.announce(peer);
            }
        }
        true
    }

    /// Replies that were dropped for younger ones.
    pub(crate) fn overtaken(&self) -> u64 {
        // Relaxed: see `put`.
        self.overtaken.load(Ordering::Relaxed)
    }
}

/// Puts each reply into its client's mailbox. Lives on Echogate's receiving thread.
pub(crate) struct Postman {
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) routes: Routes,
    /// Wakes the server.
    pub(crate) bell: Arc<EventFd>,
}

impl Deliver for Postman {
    fn deliver(&mut self, client: Ipv4Addr, packet: &mut [u8]) -> io::Result<()> {
        let peer = self.routes.peer_of(client).ok_or(Errno::EHOSTUNREACH)?;
        self.mailboxes.put(peer, packet);
        Ok(())
    }

    fn flush(&mut self) {
        // It fails only if the server has been rung 2^64 times and has not come.
        let _ = self.bell.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mailboxes: &Mailboxes, most: usize) -> (Vec<(usize, u8)>, bool) {
        let mut packets = Vec::new();
        let more = mailboxes.take(most, |peer, packet| packets.push((peer, packet[0])));
        (packets, more)
    }

    #[test]
    fn each_peer_gets_its_own_in_order() {
        let mailboxes = Mailboxes::new(3);
        for (peer, byte) in [(2, 1), (0, 2), (2, 3)] {
            mailboxes.put(peer, &[byte]);
        }
        assert_eq!(taken(&mailboxes, 100), (vec![(2, 1), (2, 3), (0, 2)], false));
        assert_eq!(taken(&mailboxes, 100), (vec![], false));
    }

    #[test]
    fn a_full_mailbox_drops_its_oldest_and_no_other_peers() {
        let mailboxes = Mailboxes::new(2);
        mailboxes.put(1, &[9]);
        for number in 0..ROOM + 3 {
            mailboxes.put(0, &[number.to_le_bytes()[0]]);
        }
        assert_eq!(mailboxes.overtaken(), 3);
        let (packets, _) = taken(&mailboxes, usize::MAX);
        assert_eq!((packets.len(), packets[0], packets[1]), (ROOM + 1, (1, 9), (0, 3)));
    }

    #[test]
    fn what_is_left_by_one_turn_is_there_in_the_next() {
        let mailboxes = Mailboxes::new(2);
        (0..5).for_each(|byte| mailboxes.put(0, &[byte]));
        mailboxes.put(1, &[7]);
        assert_eq!(taken(&mailboxes, 3), (vec![(0, 0), (0, 1), (0, 2)], true));
        assert_eq!(taken(&mailboxes, 100), (vec![(1, 7), (0, 3), (0, 4)], false), "the others first");
    }

    #[test]
    fn nothing_is_lost_between_two_threads() {
        const PACKETS: usize = 20_000;
        let mailboxes = Mailboxes::new(2);
        let post = Arc::clone(&mailboxes);
        let posting = std::thread::spawn(move || (0..PACKETS).for_each(|number| post.put(number % 2, &[1])));
        let mut count = 0;
        loop {
            let over = posting.is_finished();
            mailboxes.take(usize::MAX, |_, _| count += 1);
            if over {
                break;
            }
        }
        posting.join().unwrap();
        assert_eq!(count + usize::try_from(mailboxes.overtaken()).unwrap(), PACKETS);
    }
}
