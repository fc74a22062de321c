//! Cancelling and timing out, ten thousand at a time, towards an address that answers nothing:
//!
//! ```sh
//! cargo run --release --example ping_cancel -- 192.0.2.1
//! ```
//!
//! It prints how late the timeouts came, and how long it took to cancel all.

#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use std::env;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use echogate::pinger::{PingError, PingOptions, Pinger};

const PINGS: usize = 10_000;

fn main() -> Result<(), PingError> {
    let silent = env::args().nth(1).unwrap_or_else(|| "192.0.2.1".to_owned());
    let timeout = Duration::from_secs(2);
    println!("one after the other: {}", time_out(&silent, PINGS, timeout, timeout / 2)?);
    println!("all at once: {}", time_out(&silent, PINGS, timeout, Duration::ZERO)?);
    println!("{}", cancel(&silent, PINGS)?);
    Ok(())
}

/// Many pings under way at once to a silent host, begun within `spread`, and when each is told that its time is over.
pub(crate) fn time_out(silent: &str, pings: usize, timeout: Duration, spread: Duration) -> Result<String, PingError> {
    let pinger = Pinger::new()?;
    let options = PingOptions::new().timeout(timeout);
    let target = echogate::pinger::resolve(silent, echogate::pinger::Family::Any)?;
    let begin = Instant::now();
    let mut under_way = Vec::with_capacity(pings);
    for number in 0..pings {
        let due = spread.mul_f64(number as f64 / pings as f64);
        thread::sleep(due.saturating_sub(begin.elapsed()));
        under_way.push((Instant::now(), pinger.ping(target, &options)));
    }
    let most = pinger.in_flight();
    let mut late: Vec<Duration> = Vec::with_capacity(pings);
    for (begun, ping) in under_way {
        match ping.wait() {
            Err(PingError::Timeout { .. }) => late.push(begun.elapsed().saturating_sub(timeout)),
            Err(error) => return Err(error),
            Ok(reply) => return Err(PingError::InvalidOption(format!("{} answers", reply.from).into())),
        }
    }
    late.sort_unstable();
    let at = |part: usize| late[(late.len() - 1) * part / 100];
    Ok(format!("{most} under way; late by p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100)))
}

/// Many pings, dropped: their places are free when the last has been.
pub(crate) fn cancel(silent: &str, pings: usize) -> Result<String, PingError> {
    let pinger = Pinger::new()?;
    let target = echogate::pinger::resolve(silent, echogate::pinger::Family::Any)?;
    let mut under_way: Vec<_> = (0..pings).map(|_| pinger.ping(target, &PingOptions::new())).collect();
    // As an executor would have done: somebody waits for each.
    for ping in &mut under_way {
        let _ = pin!(ping).poll(&mut Context::from_waker(Waker::noop()));
    }
    let (before, begin) = (pinger.in_flight(), Instant::now());
    drop(under_way);
    let (elapsed, after) = (begin.elapsed(), pinger.in_flight());
    Ok(format!("{before} under way, {after} after all were dropped, which took {elapsed:?}"))
}
