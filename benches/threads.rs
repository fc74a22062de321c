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

fn main() {
    let size = Size::of_this_run();
    println!("{}", conditions());
    let mut tables = TablesBench::new(size);
    let mut whole = WholeBench::new(size);
    let [mut papaya, mut papaya_ahead] = ["tables, papaya", "tables, papaya, lines ahead"].map(Pair::new);
    let [mut dash, mut dash_ahead] = ["tables, DashMap", "tables, DashMap, lines ahead"].map(Pair::new);
    let mut locked = Pair::new("tables, RwLock<HashMap>");
    let [mut proxy, mut proxy_ahead] = ["whole proxy", "whole proxy, lines ahead"].map(Pair::new);
    for _ in 0..size.rounds {
        tables.round(&mut papaya, |tables| &tables.mappings.forward, false);
        tables.round(&mut dash, |tables| &tables.dash, false);
        tables.round(&mut locked, |tables| &tables.locked, false);
        tables.round(&mut papaya_ahead, |tables| &tables.mappings.forward, true);
        tables.round(&mut dash_ahead, |tables| &tables.dash, true);
        whole.round(&mut proxy, false);
        whole.round(&mut proxy_ahead, true);
    }
    for pair in [&papaya, &dash, &locked, &papaya_ahead, &dash_ahead, &proxy, &proxy_ahead] {
        println!("{}\n{}", pair.one.line(), pair.two.line());
    }
    println!("papaya on one thread, times the rate of DashMap:       {:.2}", papaya.one.rate_over(&dash.one));
    println!("papaya on two threads, times the rate of DashMap:      {:.2}", papaya.two.rate_over(&dash.two));
    println!("papaya on two threads, times the rate of RwLock:       {:.2}", papaya.two.rate_over(&locked.two));
    println!("papaya on two threads, times its own on one:           {:.2}", papaya.two.rate_over(&papaya.one));
    println!("whole proxy on two threads, times its own on one:      {:.2}", proxy.two.rate_over(&proxy.one));
    println!("tables on one thread, lines ahead, times without:      {:.2}", papaya_ahead.one.rate_over(&papaya.one));
    println!("whole proxy on one thread, lines ahead, times without: {:.2}", proxy_ahead.one.rate_over(&proxy.one));
    println!("whole proxy on two threads, lines ahead, without:      {:.2}", proxy_ahead.two.rate_over(&proxy.two));
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
            let (tables, map, batches) = (&self.tables, map(&self.tables), self.size.batches);
            series.add(&on_threads(rings, |ring: &mut Ring, barrier: &Barrier| -> Timing {
                tables.fill(ring);
                barrier.wait();
                let timing = tables.run(map, ring, batches, ahead);
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
            let batches = self.size.batches;
            let mut states: Vec<_> = lanes.iter_mut().zip(&mut self.whole.handles).collect();
            series.add(&on_threads(&mut states, |((ring, packets), handle), barrier| {
                packets.fill(handle, ring);
                barrier.wait();
                let timing = packets.run(handle, ring, batches, ahead);
                barrier.wait();
                packets.drain(handle, ring);
                timing
            }));
            drop(states);
            self.now = lanes[0].0.now;
        }
    }
}
