//! The examples, run.

use std::time::Duration;

use echogate::pinger::Pinger;

use crate::scene::{HOST, OWN, in_network};

#[path = "../../examples/ping_cancel.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod ping_cancel;
#[path = "../../examples/ping_one.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod ping_one;
#[path = "../../examples/ping_thousand.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod ping_thousand;

#[test]
fn one_ping_is_awaited() {
    in_network(|_| {
        let text = pollster::block_on(ping_one::ping("127.0.0.1")).unwrap();
        assert!(text.starts_with("127.0.0.1 answers after "), "{text}");
        assert_eq!(pollster::block_on(ping_one::ping(&HOST.to_string())).unwrap(), "198.18.0.2 does not answer");
    });
}

#[test]
fn a_thousand_hosts_a_second_all_answer() {
    in_network(|_| {
        let first = OWN.octets();
        assert_eq!(first, [198, 18, 0, 1]);
        // 127.0.0.0/8 is all this host.
        let text = ping_thousand::ping_all(
            &Pinger::new().unwrap(),
            [127, 0, 0, 1].into(),
            1000,
            1,
            1000,
            ping_thousand::Patience { told_within: Duration::from_millis(10), together: Duration::from_millis(10) },
        )
        .unwrap();
        assert!(text.starts_with("1000 sent, 1000 answered"), "{text}");
    });
}

#[test]
fn thousands_are_timed_out_and_cancelled() {
    in_network(|_| {
        let silent = HOST.to_string();
        let text = ping_cancel::time_out(&silent, 2000, Duration::from_secs(3), Duration::from_millis(100)).unwrap();
        assert!(text.starts_with("2000 under way"), "{text}");
        let text = ping_cancel::cancel(&silent, 2000).unwrap();
        assert!(text.starts_with("2000 under way, 0 after"), "{text}");
    });
}
