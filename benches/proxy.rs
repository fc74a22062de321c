//! One echo (a request out, a reply in) on one thread: the tables with each forward map, and the whole proxy. For quick
//! comparisons while working; for a verdict between the maps use the bench `threads`, where they take turns.

mod load;

use std::time::Duration;

use criterion::{Criterion, Throughput};
use load::tables::{Map, Tables};
use load::whole::{Packets, Whole};
use load::{BATCH, Ring, Size};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let size = Size::of_this_run();
    let tables = Tables::new(size);
    map(&mut criterion, "papaya", size, &tables, &tables.mappings.forward);
    map(&mut criterion, "dashmap", size, &tables, &tables.dash);
    map(&mut criterion, "rwlock", size, &tables, &tables.locked);
    drop(tables);
    whole(&mut criterion, size);
    criterion.final_summary();
}

fn map<M: Map>(criterion: &mut Criterion, name: &str, size: Size, tables: &Tables, map: &M) {
    let mut group = criterion.benchmark_group(format!("tables/{name}"));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, ahead) in [("plain", false), ("ahead", true)] {
        let mut ring = Ring::new(size, &tables.indexes, 0, 1);
        tables.fill(&ring);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|batches| total(tables.run(map, &mut ring, count(batches), ahead).echo_ns, batches));
        });
        tables.drain(&ring);
    }
}

fn whole(criterion: &mut Criterion, size: Size) {
    let mut whole = Whole::new(size);
    let mut group = criterion.benchmark_group("proxy");
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut ring = Ring::new(size, &whole.indexes, 0, 1);
    let mut packets = Packets::new(&ring);
    let handle = &mut whole.handles[0];
    packets.fill(handle, &ring);
    for (name, ahead) in [("plain", false), ("ahead", true)] {
        group.bench_function(name, |bencher| {
            bencher
                .iter_custom(|batches| total(packets.run(handle, &mut ring, count(batches), ahead).echo_ns, batches));
        });
    }
}

fn count(batches: u64) -> usize {
    usize::try_from(batches).expect("a number of batches")
}

/// What criterion wants: the time of all batches, interruptions left out.
fn total(echo_ns: f64, batches: u64) -> Duration {
    Duration::from_secs_f64(echo_ns * 1e-9 * BATCH as f64 * batches as f64)
}
