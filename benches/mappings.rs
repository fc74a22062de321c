//! Making and expiring mappings: what one costs, what a burst of new ones does to live ones, and whether memory stays
//! where it was. Time is virtual, so hours of mappings pass in seconds. In the burst a batch counts only if nobody else
//! had the CPU meanwhile.
//!
//! With the feature `cli` the allocator is the command's (mimalloc), without it the system's.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

mod load;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echogate::clock;
use echogate::proxy::{CREATIONS_MAX, Handle, Inbound, Outbound, Proxy, Settings};
use echogate::table::clients::Allowance;
use echogate::wire::build;
use load::harness::conditions;
use load::{BATCH, CLIENTS, GATEWAY, is_bench};

#[cfg(feature = "cli")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const IDENT_AT: usize = 24;

struct Size {
    /// Every ident that there is, once.
    warm_up_mappings: u32,
    /// Made, used and expired again in one cycle.
    cycle_mappings: u32,
    cycle_echoes: u32,
    cycles: usize,
    burst_live: u32,
    burst: u32,
    burst_rounds: usize,
}

const FULL: Size = Size {
    warm_up_mappings: 65_536,
    cycle_mappings: 50_000,
    cycle_echoes: 500_000,
    cycles: 20,
    burst_live: 40_000,
    burst: 10_000,
    burst_rounds: 15,
};

const TINY: Size = Size {
    warm_up_mappings: 300,
    cycle_mappings: 200,
    cycle_echoes: 400,
    cycles: 2,
    burst_live: 200,
    burst: 100,
    burst_rounds: 1,
};

fn main() {
    let size = if is_bench() { FULL } else { TINY };
    let allocator = if cfg!(feature = "cli") { "mimalloc" } else { "the system's" };
    println!("{}; allocator: {allocator}", conditions());
    memory_and_throughput(&size);
    burst(&size);
    println!("test mappings ... ok");
}

/// A proxy of one worker, and its virtual clock.
struct Subject {
    proxy: Arc<Proxy>,
    handle: Handle,
    now: clock::Instant,
}

impl Subject {
    fn new() -> Subject {
        let mut settings = Settings::new(vec![CLIENTS.parse().expect("a prefix")], vec![GATEWAY]);
        settings.allowance = Allowance::UNLIMITED;
        settings.seed = Some(7);
        let proxy = Proxy::new(&settings).expect("settings that are right");
        let handle = proxy.handle(0).expect("its handle");
        Subject { proxy, handle, now: clock::Instant::START }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Makes mappings as fast as batches may.
    fn make(&mut self, first: u32, count: u32) -> Duration {
        let numbers: Vec<u32> = (first..first + count).collect();
        let mut spent = Duration::ZERO;
        for numbers in numbers.chunks(CREATIONS_MAX) {
            let mut packets: Vec<Vec<u8>> = numbers.iter().map(|&number| request(number, 0)).collect();
            self.pass(Duration::from_micros(10));
            let begin = Instant::now();
            let mut batch = self.handle.batch(self.now);
            for packet in &mut packets {
                assert!(matches!(batch.outbound(packet), Outbound::Forward { .. }));
            }
            drop(batch);
            spent += begin.elapsed();
        }
        spent
    }

    /// Echoes on live mappings: request and reply.
    fn echo(&mut self, first: u32, mappings: u32, echoes: u32) {
        for sequence in 0..echoes {
            let mut packet = request(first + sequence % mappings, sequence / mappings + 1);
            let mut batch = self.handle.batch(self.now);
            assert!(matches!(batch.outbound(&mut packet), Outbound::Forward { .. }));
            assert!(matches!(batch.inbound(&mut reply(&packet)), Inbound::Deliver { .. }));
            drop(batch);
            self.pass(Duration::from_nanos(100));
        }
    }

    /// Lets all mappings end and all hold-downs run out.
    fn expire_all(&mut self) -> Duration {
        let mut spent = Duration::ZERO;
        while self.handle.mappings() + self.handle.held() > 0 {
            self.pass(Duration::from_millis(10));
            let begin = Instant::now();
            self.handle.batch(self.now).expire();
            spent += begin.elapsed();
        }
        spent
    }
}

/// Mapping `number` is client number / 8's; the plan's idents are a few small ones, as real ones often are.
fn request(number: u32, sequence: u32) -> Vec<u8> {
    let client = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 66, 0, 1)) + number / 8 % 8192);
    let ident = u16::try_from(number % 8 + number / 65_536 * 8).expect("an ident");
    let sequence = u16::try_from(sequence % 65_536).expect("a sequence");
    build::echo_request(client, REMOTE, ident, sequence, 63, &[0x5a; 56])
}

/// The remote's answer to a request as it left the gateway.
fn reply(sent: &[u8]) -> Vec<u8> {
    let word = |at: usize| u16::from_be_bytes([sent[at], sent[at + 1]]);
    build::echo_reply(REMOTE, GATEWAY, word(IDENT_AT), word(IDENT_AT + 2), 60, &[0x5a; 56])
}

/// One warm-up cycle fills every table; after that, millions of echoes and mappings must leave the memory as it is.
fn memory_and_throughput(size: &Size) {
    let mut subject = Subject::new();
    let mut cycle = |first: u32, count: u32| {
        let make = subject.make(first, count);
        subject.echo(first, count, size.cycle_echoes);
        (make, subject.expire_all())
    };
    cycle(0, size.warm_up_mappings);
    let before = resident_kib();
    let count = size.cycle_mappings;
    let mut cycles = (2..).map(|n| cycle(n * count, count));
    let mut times: Vec<(Duration, Duration)> = cycles.by_ref().take(size.cycles / 2).collect();
    let half_way = resident_kib();
    times.extend(cycles.take(size.cycles - size.cycles / 2));
    let after = resident_kib();
    subject.handle.audit().expect("tables that agree");
    assert_eq!(subject.handle.mappings(), 0);
    let echoes = u64::from(size.cycle_echoes) * size.cycles as u64;
    println!(
        "resident after the tables were full once: {before} KiB; after {} mappings and {echoes} echoes more: {after} KiB ({:+} KiB; half way {:+})",
        u64::from(count) * size.cycles as u64,
        after - before,
        half_way - before
    );
    let ns = |times: Vec<Duration>| median(times).as_nanos() as f64 / f64::from(count);
    println!("a mapping made, with its first request: {:.0} ns", ns(times.iter().map(|(make, _)| *make).collect()));
    println!("a mapping expired, walks included:      {:.0} ns", ns(times.iter().map(|(_, end)| *end).collect()));
    println!("echoes that nobody answered are left to the sweep: {} outstanding", subject.proxy.outstanding());
}

/// The times of a round's batches: without a burst, and during one.
type Round = (Vec<Duration>, Vec<Duration>);

/// Batches of live echoes, alone and while a burst of new mappings waits for its turn as it would in a worker.
fn burst(size: &Size) {
    let mut rounds = Vec::new();
    for _ in 0..size.burst_rounds {
        let mut subject = Subject::new();
        subject.make(0, size.burst_live);
        let batches = size.burst as usize / CREATIONS_MAX + 1;
        let calm = batch_times(&mut subject, size, batches, 0);
        let busy = batch_times(&mut subject, size, batches, size.burst);
        assert_eq!(subject.handle.mappings(), (size.burst_live + size.burst) as usize);
        rounds.push((calm, busy));
    }
    let mut moved = Vec::new();
    for percent in [50, 99] {
        let of = |pick: fn(&Round) -> &Vec<Duration>| {
            median(rounds.iter().map(|round| percentile(pick(round), percent)).collect()).as_secs_f64() * 1e6
        };
        let (calm, busy) = (of(|round| &round.0), of(|round| &round.1));
        println!(
            "a batch of {BATCH} live echoes, p{percent}: {calm:.1} us alone, {busy:.1} us in a burst of {}",
            size.burst
        );
        moved.push(busy - calm);
    }
    println!("the burst moves a live mapping's p99 by {:.1} us (a batch's time)", moved[1]);
}

/// The time of each batch that the kernel did not interrupt; `new` requests for mappings arrive as fast as the waiting room (512) takes them.
fn batch_times(subject: &mut Subject, size: &Size, batches: usize, new: u32) -> Vec<Duration> {
    const WAITING_MAX: usize = 512;
    let mut arrivals = (size.burst_live..size.burst_live + new).map(|number| request(number, 0));
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut times = Vec::new();
    for number in 0..u32::try_from(batches).expect("few batches") {
        let first = number * 64 * 7919; // all over the tables
        let live = |i: u32| request(first.wrapping_add(i * 613) % size.burst_live, number + 1);
        let mut requests: Vec<Vec<u8>> = (0..64).map(live).collect();
        waiting.extend(arrivals.by_ref().take(WAITING_MAX - waiting.len()));
        subject.pass(Duration::from_micros(20));
        let queued = queued();
        let begin = Instant::now();
        let mut batch = subject.handle.batch(subject.now);
        waiting.retain_mut(|packet| matches!(batch.outbound(packet), Outbound::Later));
        for packet in &mut requests {
            assert!(matches!(batch.outbound(packet), Outbound::Forward { .. }));
        }
        batch.expire();
        drop(batch);
        let time = begin.elapsed();
        if queued == self::queued() {
            times.push(time);
        }
        let mut batch = subject.handle.batch(subject.now);
        for packet in &requests {
            batch.inbound(&mut reply(packet));
        }
    }
    times
}

/// How long this thread has waited for a CPU that others had, as the kernel prints it: unchanged if nobody took it away.
fn queued() -> String {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Resident memory of this process.
fn resident_kib() -> i64 {
    const PAGE_KIB: i64 = 4;
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).expect("a number of pages") * PAGE_KIB
}

fn median(times: Vec<Duration>) -> Duration {
    percentile(&times, 50)
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    assert!(!times.is_empty(), "every batch was interrupted: the machine is too busy");
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
