//! Echogate in this server: everything that "add ping" takes.
//!
//! ```text
//! client's packet ---> Turn::offer: outbound_at_last --- Forward ---> raw socket ---> internet
//!                                   |                                                  |
//!                     not a ping: the existing path                                    |
//!                                                                                      |
//! the peer's mailbox <--- Postman <--- Batch::inbound <--- raw socket <--- replies ----+
//! ```
//!
//! The upper line runs on the server's own thread, the lower one on Echogate's (`Outside`). A reply that nobody waits for
//! ends there: the kernel has its own copy of it for whoever else has asked.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use echogate::clock::{Instant, Monotonic};
use echogate::error::SetupError;
use echogate::metrics::{Counters, Snapshot, WorkerCounters};
use echogate::outside::{Outside, Sender};
use echogate::proxy::{Batch, CREATIONS_MAX, Handle, Outbound, Proxy, Reason, Recorded, Settings, Ttl};
use echogate::wire::error::LEN_MAX;
use echogate::wire::ipv4::Ipv4;

use crate::mailboxes::Postman;

/// Packets that wait for their mapping, at most: each batch makes a share of new ones.
const WAITING_MAX: usize = 512;

pub(crate) struct Pings {
    handle: Handle,
    outside: Outside,
    sender: Sender,
    counters: Counters,
    waiting: VecDeque<(usize, Vec<u8>)>,
    error: [u8; LEN_MAX],
}

/// What is to be done about a packet that was offered.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Answer<'t> {
    /// It is not for us: the existing path.
    NotOurs,
    /// Nothing: it is sent, or dropped.
    Taken,
    /// The client is to get this ICMP error.
    Tell(&'t [u8]),
}

impl Pings {
    /// `settings` are the clients' prefixes, the addresses that pings leave from, and what the operator asked for.
    pub(crate) fn start(mut settings: Settings, clock: Monotonic, postman: Postman) -> Result<Pings, SetupError> {
        // This server is the router that the packet crosses: nobody else lowers its TTL.
        settings.ttl = Ttl::Decrement;
        // Pings to the server itself are the kernel's to answer, as before.
        settings.pass_own = true;
        let proxy = Proxy::new(&settings)?;
        let outside = Outside::open_with(&proxy, clock, postman)?;
        Ok(Pings {
            handle: proxy.handle(0).ok_or_else(|| SetupError::new("Echogate's handle is taken"))?,
            sender: outside.sender(),
            outside,
            counters: Counters::new(1, 1),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            error: [0; LEN_MAX],
        })
    }

    /// Opens the batch of one wake-up of the loop.
    pub(crate) fn turn(&mut self, now: Instant) -> Turn<'_> {
        Turn {
            batch: self.handle.batch(now),
            sender: &self.sender,
            counters: self.counters.worker(0),
            waiting: &mut self.waiting,
            error: &mut self.error,
        }
    }

    /// How long the loop may sleep.
    pub(crate) fn sleep_max(&self, now: Instant) -> Option<Duration> {
        if self.waiting.is_empty() { self.handle.sleep_max(now) } else { Some(Duration::ZERO) }
    }

    /// Why no replies come any more, should the receiving thread have ended.
    pub(crate) fn fault(&self) -> Option<SetupError> {
        self.outside.faults().try_recv().ok()
    }

    /// Ends the receiving thread, and tells the totals.
    pub(crate) fn stop(self, overtaken: u64) -> Result<(), SetupError> {
        for (_, packet) in &self.waiting {
            self.counters.worker(0).inside_in.count(packet.len());
            self.counters.worker(0).ending.add(1);
        }
        let (asked, answered) = (self.counters.snapshot(), self.outside.stop()?);
        let (requests, own_errors) = (asked.outside_out.packets, asked.originated.packets);
        tracing::info!("pings sent: {requests}, errors to clients: {own_errors}{}", drops(&asked));
        let (replies, errors) = (answered.delivered.packets, answered.told.packets);
        tracing::info!("ping replies: {replies}, ICMP errors: {errors}, overtaken: {overtaken}{}", drops(&answered));
        Ok(())
    }
}

/// What was dropped, by name.
fn drops(totals: &Snapshot) -> String {
    totals.drops.iter().map(|(name, count)| format!(", {name}: {count}")).collect()
}

pub(crate) struct Turn<'t> {
    batch: Batch<'t>,
    sender: &'t Sender,
    counters: &'t WorkerCounters,
    waiting: &'t mut VecDeque<(usize, Vec<u8>)>,
    error: &'t mut [u8],
}

impl Turn<'_> {
    /// Takes the packet if it is a ping to outside.
    pub(crate) fn offer(&mut self, peer: usize, packet: &mut [u8]) -> Answer<'_> {
        // Fragments are left to the kernel, which puts them together for its own translation.
        if Ipv4::check(&*packet).is_ok_and(|packet| packet.is_fragment()) {
            return Answer::NotOurs;
        }
        // At last: there is no other thread to ask for an ident.
        let verdict = self.batch.outbound_at_last(packet);
        match verdict {
            Outbound::FallThrough(_) => return Answer::NotOurs,
            // Answers about fragments, or for a thread that is one of several: never given here.
            Outbound::Carry { .. } | Outbound::Hold | Outbound::BelongsTo { .. } | Outbound::Elsewhere => {
                return Answer::NotOurs;
            }
            // Not counted yet: it will be offered again.
            Outbound::Later if self.waiting.len() < WAITING_MAX => {
                self.waiting.push_back((peer, packet.to_vec()));
                return Answer::Taken;
            }
            _ => self.counters.inside_in.count(packet.len()),
        }
        let told = match verdict {
            Outbound::Forward { address, remote, length, recorded } => {
                self.forward(&mut packet[..length], address, remote, recorded)
            }
            Outbound::Refuse { reason, class, tell_from } => {
                self.counters.refuse(reason, class);
                tell_from.and_then(|from| self.batch.prohibited(packet, from, self.error))
            }
            Outbound::Drop(reason) => {
                self.counters.drop(reason);
                if reason == Reason::TtlExpired { self.batch.time_exceeded(packet, self.error) } else { None }
            }
            Outbound::Later => {
                self.counters.creations_backlog.add(1);
                None
            }
            // Answered above.
            _ => None,
        };
        let Some(length) = told else { return Answer::Taken };
        self.counters.originated.count(length);
        Answer::Tell(&self.error[..length])
    }

    /// Sends a request. The length of the error for its client, if it could not be sent and the client is to be told.
    fn forward(&mut self, request: &mut [u8], address: u8, remote: Ipv4Addr, recorded: Recorded) -> Option<usize> {
        let Err(error) = self.sender.send(request, address, remote) else {
            self.counters.outside_out.count(request.len());
            return None;
        };
        let errno = error.raw_os_error().unwrap_or_default();
        self.counters.send_outside.count(errno);
        // An echo that was outstanding before may still be answered.
        if recorded != Recorded::Again {
            self.batch.withdraw(request);
        }
        let mtu = |address, remote| self.sender.mtu_towards(address, remote);
        self.batch.not_sent(request, errno, mtu, self.error)
    }

    /// What waited for this batch, to be offered before anything else: as much as it makes new mappings for.
    pub(crate) fn waiting(&mut self) -> Vec<(usize, Vec<u8>)> {
        let share = self.waiting.len().min(CREATIONS_MAX);
        self.waiting.drain(..share).collect()
    }

    /// To be called when the packets of this wake-up are done.
    pub(crate) fn end(mut self) {
        self.batch.expire();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use echogate::clock::Clock as _;
    use echogate::lab::{GATEWAY_OUTSIDE, Lab, LabOptions};
    use echogate::policy::{Allowance, Prefix};
    use echogate::wire::build;
    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::config::PeerConfig;
    use crate::mailboxes::Mailboxes;
    use crate::routes::Routes;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

    /// One peer, on the gateway of a lab whose remote answers.
    struct Scene {
        pings: Pings,
        mailboxes: Arc<Mailboxes>,
        clock: Monotonic,
    }

    fn in_lab(work: impl FnOnce(Scene) + Send) {
        let lab = Lab::build(&LabOptions { clients: 1, ..LabOptions::default() });
        let lab = lab.expect("network namespaces take root: scripts/test");
        let play = || {
            let peer = PeerConfig {
                public_key: [2; 32],
                preshared_key: None,
                allowed: vec![Prefix::host(CLIENT)],
                endpoint: None,
                keepalive_seconds: None,
            };
            let mailboxes = Mailboxes::new(1);
            let postman = Postman {
                mailboxes: Arc::clone(&mailboxes),
                routes: Routes::new(&[peer]),
                bell: Arc::new(EventFd::new().unwrap()),
            };
            let mut settings = Settings::new(vec![Prefix::host(CLIENT)], vec![GATEWAY_OUTSIDE]);
            settings.allowance = Allowance::UNLIMITED;
            let clock = Monotonic::new();
            work(Scene { pings: Pings::start(settings, clock, postman).unwrap(), mailboxes, clock });
        };
        lab.gateway().run(play).expect("the namespace can be entered");
    }

    fn request(ident: u16) -> Vec<u8> {
        build::echo_request(CLIENT, REMOTE, ident, 7, 64, b"payload")
    }

    #[test]
    fn a_reply_comes_into_its_peers_mailbox_and_a_mapping_ends_when_it_is_idle() {
        in_lab(|Scene { mut pings, mailboxes, clock }| {
            let now = clock.now();
            assert_eq!(pings.sleep_max(now), None, "nothing is due");
            let mut turn = pings.turn(now);
            assert_eq!(turn.offer(0, &mut request(9)), Answer::Taken);
            turn.end();
            let mut replies = Vec::new();
            while replies.is_empty() {
                assert!(clock.now().since(now) < Duration::from_secs(15), "no reply");
                mailboxes.take(8, |peer, packet| replies.push((peer, packet.to_vec())));
            }
            // The remote's TTL is 64, and this server is a router on the way back as well.
            assert_eq!(
                replies,
                [(0, rewritten(&build::echo_reply(REMOTE, CLIENT, 9, 7, 63, b"payload"), &replies[0].1))]
            );

            let (idle, rest) = (Duration::from_secs(61), Duration::from_secs(62));
            assert!(pings.sleep_max(now).is_some_and(|sleep| sleep <= idle));
            pings.turn(now + idle).end();
            assert_eq!((pings.handle.mappings(), pings.handle.held()), (0, 1));
            pings.turn(now + idle + rest).end();
            // The table of echoes is gone through once more, and then nothing is due.
            assert!(pings.handle.held() == 0 && pings.sleep_max(now + idle + rest).is_some());
            pings.turn(now + idle + 2 * rest).end();
            assert_eq!(pings.sleep_max(now + idle + 2 * rest), None);
            pings.stop(0).unwrap();
        });
    }

    /// The expected packet with what the remote's kernel chose for itself: the identification, and so the checksum.
    fn rewritten(expected: &[u8], found: &[u8]) -> Vec<u8> {
        let mut packet = expected.to_vec();
        for at in [4..8, 10..12] {
            packet[at.clone()].copy_from_slice(&found[at]);
        }
        packet
    }

    #[test]
    fn what_needs_more_new_mappings_than_a_batch_makes_waits_for_the_next_and_no_more_than_there_is_room() {
        in_lab(|Scene { mut pings, clock, .. }| {
            let now = clock.now();
            let all = u16::try_from(CREATIONS_MAX + WAITING_MAX + 3).unwrap();
            let mut turn = pings.turn(now);
            for ident in 0..all {
                assert_eq!(turn.offer(0, &mut request(ident)), Answer::Taken);
            }
            assert!(turn.waiting.len() == WAITING_MAX && turn.waiting().len() == CREATIONS_MAX);
            turn.end();
            assert_eq!(pings.sleep_max(now), Some(Duration::ZERO), "the next batch is due at once");
            let totals = pings.counters.snapshot();
            assert_eq!(totals.outside_out.packets, CREATIONS_MAX as u64);
            assert_eq!(totals.drops, [("creations_backlog".to_owned(), 3)]);
            assert_eq!(totals.packets_in(), totals.packets_accounted());
        });
    }

    #[test]
    fn what_is_no_ping_to_outside_is_left_alone_byte_for_byte() {
        in_lab(|Scene { mut pings, clock, .. }| {
            let mut turn = pings.turn(clock.now());
            let dns = build::Datagram::new(CLIENT, REMOTE, 17, vec![0x9c, 0x40, 0, 53, 0, 8, 0, 0]).build();
            let to_neighbour = build::echo_request(CLIENT, CLIENT, 1, 1, 64, b"");
            let to_server = build::echo_request(CLIENT, GATEWAY_OUTSIDE, 1, 1, 64, b"");
            let reply = build::echo_reply(CLIENT, REMOTE, 1, 1, 64, b"");
            let first = build::Datagram::new(CLIENT, REMOTE, 1, to_server[20..].to_vec());
            let fragment = build::Datagram { more_fragments: true, ..first };
            for packet in [dns, to_neighbour, to_server, reply, fragment.build(), vec![0x60; 60]] {
                let mut offered = packet.clone();
                assert_eq!(turn.offer(0, &mut offered), Answer::NotOurs, "{packet:02x?}");
                assert_eq!(offered, packet);
            }
            turn.end();
        });
    }
}
