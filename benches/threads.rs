//! One echo on one thread and on two: the tables with papaya, DashMap and a locked `HashMap` as the forward map, and the
//! whole proxy. The contenders take turns, which is why this is not a criterion bench.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

mod load;

use std::sync::Barrier;

use echogate::clock::Instant;
use load::harness::{Series, conditions, on_threads};
use load::tables::{Map, Tables};
use load::whole::{Packets, Whole};
use load::{Ring, Size, Timing, WORKERS};

/// A contender on one thread and on two.
struct Pair {
    one: Series,
    two: Series,
}

impl Pair {
    fn new(name: &'static str) -> Pair {
        Pair { one: Series::new(name, 1), two: Series::new(name, WORKERS) }
    }
}

type Round = fn(&mut TablesBench, &mut WholeBench, &mut Pair);

/// The contenders, in the order of the output.
const CONTENDERS: [(&str, Round); 7] = [
    ("tables, papaya", |tables, _, pair| tables.round(pair, |tables| &tables.mappings.forward, false)),
    ("tables, DashMap", |tables, _, pair| tables.round(pair, |tables| &tables.dash, false)),
    ("tables, RwLock<HashMap>", |tables, _, pair| tables.round(pair, |tables| &tables.locked, false)),
    ("tables, papaya, lines ahead", |tables, _, pair| tables.round(pair, |tables| &tables.mappings.forward, true)),
    ("tables, DashMap, lines ahead", |tables, _, pair| tables.round(pair, |tables| &tables.dash, true)),
    ("whole proxy", |_, whole, pair| whole.round(pair, false)),
    ("whole proxy, lines ahead", |_, whole, pair| whole.round(pair, true)),
];

fn main() {
    let size = Size::of_this_run();
    println!("before: {}", conditions());
    let mut tables = TablesBench::new(size);
    let mut whole = WholeBench::new(size);
    let mut pairs = CONTENDERS.map(|(name, _)| Pair::new(name));
    for round in 0..size.rounds {
        // Nobody always follows the same one, whose leavings are in the cache.
        for turn in 0..CONTENDERS.len() {
            let contender = (turn + round) % CONTENDERS.len();
            CONTENDERS[contender].1(&mut tables, &mut whole, &mut pairs[contender]);
        }
    }
    for pair in &pairs {
        println!("{}\n{}", pair.one.line(), pair.two.line());
    }
    let [papaya, dash, locked, papaya_ahead, dash_ahead, proxy, proxy_ahead] = &pairs;
    for (what, own, other) in [
        ("papaya, times the rate of DashMap", papaya, dash),
        ("papaya, times the rate of RwLock<HashMap>", papaya, locked),
        ("papaya, lines ahead, times the rate of DashMap, lines ahead", papaya_ahead, dash_ahead),
        ("tables, lines ahead, times the rate without", papaya_ahead, papaya),
        ("whole proxy, lines ahead, times the rate without", proxy_ahead, proxy),
    ] {
        let (one, two) = (own.one.rate_over(&other.one), own.two.rate_over(&other.two));
        println!("{what}: {one:.2} on one thread, {two:.2} on two");
    }
    for pair in [papaya, papaya_ahead, proxy, proxy_ahead] {
        println!("{}: on two threads {:.2} times the rate on one", pair.one.name, pair.two.rate_over(&pair.one));
    }
    println!("after: {}", conditions());
    println!("test threads ... ok");
}

/// Rings for one thread that has all mappings, and for two that share them.
fn rings(size: Size, indexes: &[echogate::table::SlotIndex]) -> [Vec<Ring>; 2] {
    [1, WORKERS].map(|threads| (0..threads).map(|thread| Ring::new(size, indexes, thread, threads)).collect())
}

struct TablesBench {
    size: Size,
    tables: Tables,
    rings: [Vec<Ring>; 2],
    now: Instant,
}

impl TablesBench {
    fn new(size: Size) -> TablesBench {
        let tables = Tables::new(size);
        TablesBench { size, rings: rings(size, &tables.indexes), tables, now: Instant::START }
    }

    fn round<M: Map>(&mut self, pair: &mut Pair, map: impl Fn(&Tables) -> &M, ahead: bool) {
        for (rings, series) in self.rings.iter_mut().zip([&mut pair.one, &mut pair.two]) {
            rings.iter_mut().for_each(|ring| ring.now = self.now);
            let (tables, map, size) = (&self.tables, map(&self.tables), self.size);
            series.add(&on_threads(rings, |ring: &mut Ring, barrier: &Barrier| -> Timing {
                tables.fill(ring);
                tables.run(map, ring, size.warm_up_batches, ahead);
                barrier.wait();
                let timing = tables.run(map, ring, size.batches, ahead);
                barrier.wait();
                tables.drain(ring);
                timing
            }));
            self.now = rings[0].now;
        }
    }
}

struct WholeBench {
    size: Size,
    whole: Whole,
    lanes: [Vec<(Ring, Packets)>; 2],
    now: Instant,
}

impl WholeBench {
    fn new(size: Size) -> WholeBench {
        let whole = Whole::new(size);
        let lanes = rings(size, &whole.indexes).map(|rings| {
            let lane = |ring: Ring| {
                let packets = Packets::new(&ring);
                (ring, packets)
            };
            rings.into_iter().map(lane).collect()
        });
        WholeBench { size, whole, lanes, now: Instant::START }
    }

    fn round(&mut self, pair: &mut Pair, ahead: bool) {
        for (lanes, series) in self.lanes.iter_mut().zip([&mut pair.one, &mut pair.two]) {
            lanes.iter_mut().for_each(|(ring, _)| ring.now = self.now);
            let size = self.size;
            let mut states: Vec<_> = lanes.iter_mut().zip(&mut self.whole.handles).collect();
            series.add(&on_threads(&mut states, |((ring, packets), handle), barrier| {
                packets.fill(handle, ring);
                packets.run(handle, ring, size.warm_up_batches, ahead);
                barrier.wait();
                let timing = packets.run(handle, ring, size.batches, ahead);
                barrier.wait();
                packets.drain(handle, ring);
                timing
            }));
            drop(states);
            self.now = lanes[0].0.now;
        }
    }
}
