//! FIRST-ADDRESS HOSTS ROUNDS: each host once a second, spread evenly over it, on one unprivileged socket. Prints what was
//! sent, what was answered, and the percentiles of the round-trip times, as the example `ping_thousand` does.

use std::net::Ipv4Addr;
use std::time::Duration;

use surge_ping::{Client, Config, PingIdentifier, PingSequence};
use tokio::time;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let first: Ipv4Addr = arguments.next().ok_or("FIRST-ADDRESS HOSTS ROUNDS")?.parse()?;
    let hosts: u32 = arguments.next().ok_or("HOSTS")?.parse()?;
    let rounds: u16 = arguments.next().ok_or("ROUNDS")?.parse()?;
    let client = Client::new(&Config::default())?;
    let begin = time::Instant::now() + Duration::from_millis(100);
    let mut tasks = Vec::new();
    for number in 0..hosts {
        let client = client.clone();
        let address = Ipv4Addr::from(u32::from(first) + number);
        let start = begin + Duration::from_secs(1) * number / hosts;
        tasks.push(tokio::spawn(async move {
            let mut pinger = client.pinger(address.into(), PingIdentifier(0)).await;
            pinger.timeout(Duration::from_secs(1));
            let mut interval = time::interval_at(start, Duration::from_secs(1));
            let mut found = Vec::new();
            for sequence in 0..rounds {
                interval.tick().await;
                found.extend(pinger.ping(PingSequence(sequence), &[0; 56]).await.map(|(_, time)| time));
            }
            found
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await?);
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let sent = u64::from(hosts) * u64::from(rounds);
    println!("{sent} sent, {} answered, p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
    Ok(())
}
