//! The whole proxy: real packets of 84 bytes (ping's default) through `outbound` and `inbound`, with validation, policy,
//! the client's token buckets, the tables and the rewriting. Packets are copied into a batch's buffers outside of the
//! time that is measured, as the kernel would have done.

use std::sync::Arc;
use std::time::Instant;

use echogate::clock;
#[cfg(feature = "gateway")]
use echogate::metrics::Counters;
use echogate::proxy::{Handle, Inbound, Outbound, Proxy, Settings};
use echogate::table::SlotIndex;
use echogate::table::clients::{Allowance, Rate};
use echogate::wire::build;
#[cfg(feature = "gateway")]
use echogate::worker::{Basin, Tap};

use super::{BATCH, BatchTimes, CLIENTS, GATEWAY, Ring, Size, Timing, WORKERS, asker};

const PAYLOAD: [u8; 56] = [0x5a; 56];
const PACKET_LEN: usize = 84;
const CLIENT_IDENT_AT: usize = 24;

type Packet = [u8; PACKET_LEN];

/// Limits that count and never refuse: a bucket holds a second's worth.
fn allowance() -> Allowance {
    let rate = Rate::new(1_000_000_000, 1_000_000_000);
    Allowance { packets: rate, bytes: rate, new_mappings: rate, mappings_max: 1 << 16 }
}

/// A proxy with all its mappings made.
pub(crate) struct Whole {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) handles: Vec<Handle>,
    /// By mapping.
    pub(crate) indexes: Vec<SlotIndex>,
}

impl Whole {
    pub(crate) fn new(size: Size) -> Whole {
        let mut settings = Settings::new(vec![CLIENTS.parse().expect("a prefix")], vec![GATEWAY]);
        settings.allowance = allowance();
        settings.echo_words_log2 = size.echo_words_log2;
        settings.workers = WORKERS;
        settings.seed = Some(7);
        let proxy = Proxy::new(&settings).expect("settings that are right");
        let mut handles: Vec<Handle> = (0..WORKERS).map(|worker| proxy.handle(worker).expect("its handle")).collect();
        let now = clock::Instant::START;
        let remote = "198.18.0.0".parse().expect("an address");
        let indexes = (0..size.mappings)
            .map(|mapping| {
                let (client, ident) = asker(mapping);
                let mut packet = build::echo_request(client, remote, ident, 0, 64, &[]);
                let mut batch = handles[mapping % WORKERS].batch(now);
                assert!(matches!(batch.outbound(&mut packet), Outbound::Forward { .. }));
                assert!(batch.withdraw(&packet));
                SlotIndex::new(0, u16::from_be_bytes([packet[CLIENT_IDENT_AT], packet[CLIENT_IDENT_AT + 1]]))
            })
            .collect();
        Whole { proxy, handles, indexes }
    }
}

/// One thread's packets, ready made.
pub(crate) struct Packets {
    requests: Vec<Packet>,
    replies: Vec<Packet>,
    buffers: [Vec<Packet>; 2],
}

impl Packets {
    pub(crate) fn new(ring: &Ring) -> Packets {
        let packet = |bytes: Vec<u8>| Packet::try_from(bytes).expect("84 bytes");
        let (requests, replies) = (0..ring.len())
            .map(|position| {
                let echo = &ring[position];
                let ident = echo.index.ident();
                (
                    packet(build::echo_request(
                        echo.client,
                        echo.remote,
                        echo.client_ident,
                        echo.sequence,
                        63,
                        &PAYLOAD,
                    )),
                    packet(build::echo_reply(echo.remote, GATEWAY, ident, echo.sequence, 60, &PAYLOAD)),
                )
            })
            .unzip();
        Packets { requests, replies, buffers: [vec![[0; PACKET_LEN]; BATCH], vec![[0; PACKET_LEN]; BATCH]] }
    }

    /// Sends what must be outstanding, or has it answered.
    pub(crate) fn fill(&mut self, handle: &mut Handle, ring: &Ring) {
        for position in ring.window() {
            let verdict = handle.batch(ring.now).outbound(&mut self.requests[position].clone());
            assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
        }
    }

    pub(crate) fn drain(&mut self, handle: &mut Handle, ring: &Ring) {
        for position in ring.window() {
            handle.batch(ring.now).inbound(&mut self.replies[position].clone());
        }
    }

    /// Runs this many batches and times them. `ahead`: each batch's lines are read before they are used.
    /// As `run` with lines ahead, as a worker does it that lets others see samples.
    #[cfg(feature = "gateway")]
    pub(crate) fn run_seen(&mut self, handle: &mut Handle, ring: &mut Ring, batches: usize) -> u64 {
        let (basin, counters) = (Basin::new(), Counters::new(1, 1));
        let (mut tap, counters) = (Tap::new(&basin, 0), counters.worker(0));
        let [requests, replies] = &mut self.buffers;
        let mut matched = 0;
        for _ in 0..batches {
            let [record, consume] = ring.next_batch();
            for i in 0..BATCH {
                requests[i] = self.requests[record[i]];
                replies[i] = self.replies[consume[i]];
            }
            let now = ring.now;
            tap.begin_turn(now);
            let mut batch = handle.batch(now);
            batch.touch_inbound(replies.iter().map(|packet| &packet[..]));
            for packet in replies.iter_mut() {
                let verdict = if tap.picks_inbound(packet) {
                    let seen = tap.look_inbound(packet);
                    let verdict = batch.inbound(packet);
                    tap.note_inbound(seen, &verdict, now, counters);
                    verdict
                } else {
                    batch.inbound(packet)
                };
                matched += u64::from(matches!(verdict, Inbound::Deliver { .. }));
            }
            batch.touch_outbound(requests.iter().map(|packet| &packet[..]));
            for packet in requests.iter_mut() {
                let verdict = if tap.picks_outbound() {
                    let seen = tap.look_outbound(packet);
                    let verdict = batch.outbound(packet);
                    if let Some(seen) = seen {
                        tap.note_outbound(seen, &verdict, packet, now, counters);
                    }
                    verdict
                } else {
                    batch.outbound(packet)
                };
                assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
            }
            batch.expire();
        }
        matched
    }

    pub(crate) fn run(&mut self, handle: &mut Handle, ring: &mut Ring, batches: usize, ahead: bool) -> Timing {
        let mut times = BatchTimes::with_capacity(batches);
        let [requests, replies] = &mut self.buffers;
        for _ in 0..batches {
            let [record, consume] = ring.next_batch();
            for i in 0..BATCH {
                requests[i] = self.requests[record[i]];
                replies[i] = self.replies[consume[i]];
            }
            let begin = Instant::now();
            let mut batch = handle.batch(ring.now);
            if ahead {
                batch.touch_inbound(replies.iter().map(|packet| &packet[..]));
            }
            let delivered = |packet: &mut Packet| matches!(batch.inbound(packet), Inbound::Deliver { .. });
            times.matched(replies.iter_mut().map(delivered).filter(|delivered| *delivered).count());
            if ahead {
                batch.touch_outbound(requests.iter().map(|packet| &packet[..]));
            }
            for packet in requests.iter_mut() {
                let verdict = batch.outbound(packet);
                assert!(matches!(verdict, Outbound::Forward { .. }), "{verdict:?}");
            }
            batch.expire();
            drop(batch);
            times.push(begin.elapsed());
        }
        times.timing()
    }
}
