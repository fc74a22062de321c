//! The bodies of the fuzz targets, over the committed corpora and over random bytes: so that they cannot rot, and that what was
//! found once stays found. `scripts/fuzz` runs them with a fuzzer's guidance.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

fn corpus(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(&folder).expect("a corpus").collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    for input in inputs {
        body(&fs::read(input.expect("a file").path()).expect("an input"));
    }
}

#[test]
fn the_corpora_pass() {
    corpus("wire", bodies::wire);
    corpus("proxy", bodies::proxy);
    corpus("restart", bodies::restart);
    corpus("configuration", bodies::configuration);
    corpus("control", bodies::control);
    corpus("pinger", bodies::pinger);
}

/// Steps as the histories of the targets have them: what, how much, and with what.
fn history(steps: Vec<(u8, Vec<u8>)>) -> Vec<u8> {
    let steps = steps.into_iter().map(|(step, given)| {
        let length = u8::try_from(given.len()).unwrap_or(0);
        [vec![step, length], given].concat()
    });
    steps.collect::<Vec<_>>().concat()
}

fn steps() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..12)), 0..60)
}

/// The body `proxy` sees what it says that it sees: with one of these faults let loose random histories do not pass. (They exist
/// where debug assertions do.)
#[cfg(debug_assertions)]
#[test]
fn no_fault_passes_that_brings_a_packet_to_who_does_not_wait_for_it() {
    use echogate::canary::{Canary, let_loose};
    use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::with_cases(1024) };
    for canary in
        [Canary::WrongClient, Canary::DoubleDelivery, Canary::WeakRemote, Canary::NeverLate, Canary::WeakQuote]
    {
        let_loose(Some(canary));
        let rng = TestRng::deterministic_rng(RngAlgorithm::default());
        let result = TestRunner::new_with_rng(config.clone(), rng).run(&steps(), |steps| {
            bodies::proxy(&history(steps));
            Ok(())
        });
        let_loose(None);
        assert!(matches!(result, Err(TestError::Fail(..))), "{canary:?}: {result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        bodies::wire(&bytes);
        bodies::proxy(&bytes);
        bodies::restart(&bytes);
        bodies::configuration(&bytes);
        bodies::control(&bytes);
        bodies::pinger(&bytes);
    }

    #[test]
    fn any_history_passes(steps in steps()) {
        bodies::proxy(&history(steps));
    }

    #[test]
    fn any_pings_pass(steps in prop::collection::vec((0_u8..12, prop::collection::vec(any::<u8>(), 0..40)), 0..60)) {
        bodies::pinger(&history(steps));
    }
}
