//! A fixed number of batches on one thread, for whatever counts or samples instructions: `scripts/instructions`, perf.
//!
//! The arguments are what to run (`tables` or `proxy`, each also with `-ahead`; `proxy-seen`: as `proxy-ahead`, and others see
//! samples, as they do of a worker) and how many batches. With 0 batches it
//! is set-up only: the difference between two runs is the batches' own.

mod load;

use load::tables::Tables;
use load::whole::{Packets, Whole};
use load::{Ring, Size};

const SUBJECTS: &[&str] = &[
    "tables",
    "tables-ahead",
    "proxy",
    "proxy-ahead",
    #[cfg(feature = "gateway")]
    "proxy-seen",
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let subject = SUBJECTS.iter().find(|subject| arguments.iter().any(|argument| argument == *subject));
    let batches = arguments.iter().find_map(|argument| argument.parse().ok());
    match (subject, batches) {
        (Some(subject), Some(batches)) => run(subject, Size::of_this_run(), batches),
        _ => SUBJECTS.iter().for_each(|subject| run(subject, Size::TINY, Size::TINY.batches)),
    }
}

fn run(subject: &str, size: Size, batches: usize) {
    let ahead = subject.ends_with("-ahead");
    if subject.starts_with("proxy") {
        let mut whole = Whole::new(size);
        let mut ring = Ring::new(size, &whole.indexes, 0, 1);
        let mut packets = Packets::new(&ring);
        packets.fill(&mut whole.handles[0], &ring);
        #[cfg(feature = "gateway")]
        if subject == "proxy-seen" {
            packets.run_seen(&mut whole.handles[0], &mut ring, batches);
            return;
        }
        packets.run(&mut whole.handles[0], &mut ring, batches, ahead);
    } else {
        let tables = Tables::new(size);
        let mut ring = Ring::new(size, &tables.indexes, 0, 1);
        tables.fill(&ring);
        tables.run(&tables.mappings.forward, &mut ring, batches, ahead);
    }
}
