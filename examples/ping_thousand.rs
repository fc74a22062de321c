//! A thousand hosts a second, for as many rounds as wanted, from one engine thread:
//!
//! ```sh
//! cargo run --release --example ping_thousand -- 198.18.0.0 1000 10
//! ```
//!
//! The arguments: the first address, how many hosts, and rounds of a second each. With a fourth, how many pings a second
//! instead of a thousand; with a fifth, `uring`, `syscalls` or `auto`; with a sixth, how many milliseconds an answer may wait
//! to be told together with others (10); with a seventh, how many a ping may wait to be sent together with others (0); with an
//! eighth, where round-trip times begin: on the `wire`, or with the `send`.

#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use std::env;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use echogate::pinger::{Backend, PingError, PingOptions, Pinger};

fn main() -> Result<(), PingError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |at: usize, otherwise| arguments.get(at).map_or(Ok(otherwise), |text| text.parse());
    let usage = |_| {
        PingError::InvalidOption(
            "FIRST-ADDRESS [HOSTS [ROUNDS [RATE [uring|syscalls|auto [TOLD-MS [SENT-MS [wire|send]]]]]]]".into(),
        )
    };
    let first = arguments.first().map_or("127.0.0.1", String::as_str);
    let first = first.parse().map_err(|_| PingError::InvalidOption(format!("{first} is no IPv4 address").into()))?;
    let (hosts, rounds, rate) =
        (number(1, 1000).map_err(usage)?, number(2, 1).map_err(usage)?, number(3, 1000).map_err(usage)?);
    let backend = match arguments.get(4).map(String::as_str) {
        Some("uring") => Backend::Uring,
        Some("syscalls") => Backend::Syscalls,
        _ => Backend::Auto,
    };
    let patience = Patience {
        told_within: Duration::from_millis(number(5, 10).map_err(usage)?.into()),
        together: Duration::from_millis(number(6, 0).map_err(usage)?.into()),
    };
    let on_the_wire = arguments.get(7).is_none_or(|text| text != "send");
    let pinger = Pinger::builder().backend(backend).transmit_times(on_the_wire).build()?;
    println!("{}", ping_all(&pinger, first, hosts, rounds, rate, patience)?);
    Ok(())
}

/// What is cheap to give, and saves most of the wake-ups.
#[derive(Clone, Copy, Default)]
pub(crate) struct Patience {
    pub(crate) told_within: Duration,
    pub(crate) together: Duration,
}

/// Pings each of `hosts` addresses from `first` on once a round, `rate` a second, and sums up.
pub(crate) fn ping_all(
    pinger: &Pinger,
    first: Ipv4Addr,
    hosts: u32,
    rounds: u32,
    rate: u32,
    patience: Patience,
) -> Result<String, PingError> {
    let addresses = (0..hosts).map(|number| Ipv4Addr::from(u32::from(first).wrapping_add(number)));
    let targets = (0..rounds).flat_map(|_| addresses.clone());
    let begin = Instant::now();
    let answers = pinger
        .ping_many(targets, &PingOptions::new())
        .every(Duration::from_secs(1) / rate)
        .told_within(patience.told_within)
        .together(patience.together)
        .at_most(4 * usize::try_from(rate).unwrap_or(1024));
    let (mut sent, mut times) = (0_u64, Vec::new());
    for answer in answers.wait() {
        sent += 1;
        match answer.outcome {
            Ok(reply) => times.push(reply.rtt),
            Err(error) if error.is_final() => return Err(error),
            Err(_) => {}
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let (elapsed, replies) = (begin.elapsed(), times.len());
    Ok(format!(
        "{sent} sent, {replies} answered, {:.2} s, p50 {:?}, p99 {:?}; {:?}, {:?}",
        elapsed.as_secs_f64(),
        at(50),
        at(99),
        pinger.engine(),
        pinger.tally()
    ))
}
