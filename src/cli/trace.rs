//! `echogate trace`: the packets of one client or one remote, as they pass a running gateway.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use serde_json::Value;

use super::reach::Which;
use super::{complain, print};
use crate::control::{Followed, Request};
use crate::error::SetupError;
use crate::worker::Subject;

/// Show the packets of one client or one remote, as they pass a running gateway
///
/// A line a packet: where it came from and went, and what became of it. A gateway tells at most 200 a second and worker;
/// how many it did not tell it says. A reply that is dropped names no client: look for it by its remote.
///
/// Exit codes: 0 as many were shown as were asked for; 1 the gateway went away; 2 there is no gateway to ask, or somebody
/// else is tracing.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,

    /// Packets of this client
    #[arg(long, value_name = "ADDRESS", required_unless_present = "remote", conflicts_with = "remote")]
    client: Option<Ipv4Addr>,

    /// Packets to and from this remote
    #[arg(long, value_name = "ADDRESS")]
    remote: Option<Ipv4Addr>,

    /// End after so many packets [default: never]
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Print one JSON object a packet
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, SetupError> {
    let subject = match (arguments.client, arguments.remote) {
        (Some(client), _) => Subject::Client(client),
        (None, Some(remote)) => Subject::Remote(remote),
        (None, None) => return Err(SetupError::new("trace whom?").remedy("give --client or --remote")),
    };
    let mut client = arguments.which.connect()?;
    client.ask(&Request::Trace(subject))?;
    client.wait_for_ever()?;
    let mut shown = 0;
    while arguments.count.is_none_or(|count| shown < count) {
        match client.follow() {
            Ok(Followed::Traced(packet)) => {
                print(&if arguments.json { format!("{packet}\n") } else { line(&packet) });
                shown += 1;
            }
            Ok(Followed::Missed(count)) => complain(&SetupError::new(format!("{count} packets were too many to tell"))),
            Err(error) => {
                complain(&error);
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `out  10.66.0.2 > 198.18.0.2  ident 7 seq 12  84 bytes  forwarded as ident 48879`
fn line(packet: &Value) -> String {
    let text = |name: &str| packet[name].as_str().unwrap_or("?");
    let direction = if text("direction") == "outbound" { "out" } else { "in " };
    let echo = match (packet["ident"].as_u64(), packet["sequence"].as_u64()) {
        (Some(ident), Some(sequence)) => format!("ident {ident} seq {sequence}"),
        _ => "no echo".to_owned(),
    };
    let fate = match text("fate") {
        "forwarded" => match packet["gateway_ident"].as_u64() {
            Some(ident) => format!("forwarded as ident {ident}"),
            None => "forwarded".to_owned(),
        },
        "delivered" => format!("delivered to {}", text("client")),
        "dropped" => format!("dropped: {}", text("reason")),
        "fell_through" => "falls through".to_owned(),
        fate => fate.to_owned(),
    };
    let (source, destination, bytes) = (text("source"), text("destination"), &packet["bytes"]);
    format!("{direction}  {source} > {destination}  {echo}  {bytes} bytes  {fate}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_where_from_where_to_and_what_became_of_it() {
        let packet = |fate: Value| {
            let mut packet = json!({ "direction": "outbound", "source": "10.66.0.2", "destination": "198.18.0.2",
                "ident": 7, "sequence": 12, "bytes": 84 });
            packet.as_object_mut().expect("an object").extend(fate.as_object().expect("an object").clone());
            line(&packet)
        };
        let begin = "out  10.66.0.2 > 198.18.0.2  ident 7 seq 12  84 bytes  ";
        for (fate, words) in [
            (json!({ "fate": "forwarded", "gateway_ident": 48879 }), "forwarded as ident 48879"),
            (json!({ "fate": "dropped", "reason": "over_packets" }), "dropped: over_packets"),
            (json!({ "fate": "fell_through" }), "falls through"),
            (json!({ "fate": "waits" }), "waits"),
        ] {
            assert_eq!(packet(fate), format!("{begin}{words}\n"));
        }
        let reply = json!({ "direction": "inbound", "source": "198.18.0.2", "destination": "198.18.0.1", "ident": null,
            "sequence": null, "bytes": 56, "fate": "delivered", "client": "10.66.0.2" });
        assert_eq!(line(&reply), "in   198.18.0.2 > 198.18.0.1  no echo  56 bytes  delivered to 10.66.0.2\n");
    }
}
