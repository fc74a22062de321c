//! One ping, awaited. As any user who may ping (net.ipv4.ping_group_range):
//!
//! ```sh
//! cargo run --example ping_one -- 127.0.0.1
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use std::env;

use echogate::pinger::{PingError, PingOptions, Pinger};

fn main() -> Result<(), PingError> {
    let host = env::args().nth(1).unwrap_or_else(|| "127.0.0.1".to_owned());
    println!("{}", pollster::block_on(ping(&host))?);
    Ok(())
}

/// Runs under this executor or any other.
pub(crate) async fn ping(host: &str) -> Result<String, PingError> {
    let pinger = Pinger::new()?;
    match pinger.ping(host, &PingOptions::new()).await {
        Ok(reply) => Ok(format!("{} answers after {:?}", reply.from, reply.rtt)),
        // Somebody on the way says why not.
        Err(error) if error.sender().is_some() => Ok(format!("{error}")),
        Err(error) if error.is_silence() => Ok(format!("{host} does not answer")),
        Err(error) => Err(error),
    }
}
