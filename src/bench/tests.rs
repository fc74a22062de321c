//! Turns and choices, without any load. The bench as a whole is in tests/bench.rs.

use super::*;

fn options() -> BenchOptions {
    BenchOptions::new(PathBuf::from("echogate"))
}

#[test]
fn contenders_are_chosen_by_name_or_by_its_beginning_and_the_control_always() {
    let names = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        choose(2, &wanted).map(|chosen| chosen.into_iter().map(Contender::name).collect::<Vec<_>>())
    };
    let usual: Vec<String> = Contender::all(2).into_iter().map(Contender::name).collect();
    assert_eq!(names(&[]).expect("all"), usual, "and none of those that are there on request");
    let asked_for = names(&["masquerade", "echogate-uring-1-polling"]).expect("known");
    assert_eq!(asked_for, ["control", "masquerade", "echogate-uring-1-polling"]);
    assert_eq!(names(&["echogate-uring-1"]).expect("known"), ["control", "echogate-uring-1"]);
    assert_eq!(names(&["masquerade"]).expect("known"), ["control", "masquerade"]);
    assert_eq!(names(&["echogate-uring-2"]).expect("known"), ["control", "echogate-uring-2"]);
    let ours = names(&["echogate"]).expect("known");
    assert!(ours.len() == 8 && ours[1..].iter().all(|name| name.starts_with("echogate")), "{ours:?}");
    let refused = names(&["iptables"]).expect_err("unknown").to_string();
    assert!(refused.contains("\"iptables\"") && refused.contains("masquerade"), "{refused}");
}

#[test]
fn each_contender_has_a_turn_in_each_round_and_another_begins() {
    let contenders = [Contender::Control, Contender::Masquerade, Contender::Pasta];
    let turns = turns(&options(), &contenders);
    let rounds: Vec<Vec<Contender>> = turns
        .chunk_by(|a, b| a.round == b.round)
        .map(|round| round.iter().map(|turn| turn.contender).collect())
        .collect();
    assert_eq!(rounds.len(), 3);
    for (round, order) in rounds.iter().enumerate() {
        assert_eq!(order[0], contenders[round]);
        assert!(contenders.iter().all(|contender| order.contains(contender)));
    }
}

#[test]
fn a_run_without_arguments_takes_about_three_minutes_at_most() {
    let turns = turns(&options(), &Contender::all(64));
    assert!(left(&options(), Duration::ZERO, 0, &turns) <= Duration::from_secs(180));
    // A machine that is half as fast for the first half is so for the rest.
    let half = turns.len() / 2;
    let elapsed = left(&options(), Duration::ZERO, 0, &turns[..half]) * 2;
    let rest = left(&options(), elapsed, half, &turns);
    let expected = left(&options(), Duration::ZERO, 0, &turns[half..]) * 2;
    assert!(rest.abs_diff(expected) < Duration::from_millis(1), "{rest:?}, not {expected:?}");
}

#[test]
fn numbers_of_mappings_take_the_place_of_the_usual_traffic_and_change_nothing_else_about_it() {
    let of = |mappings: &[u16]| scenarios(&BenchOptions { mappings: mappings.to_vec(), ..options() });
    let [usual] = of(&[]).try_into().expect("one");
    let expected = [8, 30_000].map(|idents| Scenario { idents, ..usual.clone() });
    assert_eq!(of(&[16, 60_000]), expected);
    assert_eq!(of(&[63])[0].idents, 32, "two clients have no half a ping");
}

#[test]
fn user_mode_stacks_have_no_turn_with_thousands_of_clients() {
    let options = BenchOptions { full: true, ..options() };
    let turns = turns(&options, &Contender::all(2));
    assert!(turns.iter().filter(|turn| turn.contender == Contender::Pasta).all(|turn| turn.scenario.clients <= 2));
    assert!(turns.iter().any(|turn| turn.scenario.clients == usize::from(CLIENTS_MAX) && turn.contender.is_ours()));
    let sizes: std::collections::BTreeSet<usize> = turns.iter().map(|turn| turn.scenario.icmp_bytes).collect();
    assert_eq!(sizes, [64, 512, 1400].into());
}

#[test]
fn sizes_and_clients_take_a_slice_out_of_a_full_run_and_are_measured_in_a_closed_loop_too() {
    let of = |full, clients: &[u16], sizes: &[u16]| {
        scenarios(&BenchOptions { full, clients: clients.to_vec(), sizes: sizes.to_vec(), ..options() })
    };
    let full = of(true, &[], &[]);
    for is_full in [true, false] {
        assert_eq!(of(is_full, &[5000], &[]), full[4..5]);
        assert_eq!(of(is_full, &[], &[512, 1400]), full[1..3]);
        assert_eq!(of(is_full, &[1, 2], &[64]), [full[3].clone(), full[0].clone()]);
    }
    assert_eq!(of(false, &[3], &[])[0].clients, 4, "two hosts share them evenly");
}

#[test]
fn where_loads_are_searched_for_the_masquerade_is_the_first_and_what_it_carries_is_halved_once() {
    let contenders = [Contender::Control, Contender::Masquerade, Contender::Pasta];
    let first = |options: &BenchOptions| turns(options, &contenders)[0].contender;
    assert_eq!(first(&options()), Contender::Control);
    assert_eq!(first(&BenchOptions { full: true, ..options() }), Contender::Masquerade);
    assert_eq!(first(&BenchOptions { hold_seconds: Some(60), ..options() }), Contender::Masquerade);

    let mut trial = record::tests::trial_of("masquerade", 0, 1);
    assert_eq!(half_of_masquerades(&trial, None), None);
    trial.pdr_per_s = Some(90_000);
    assert_eq!(half_of_masquerades(&trial, None), Some(45_000));
    assert_eq!(half_of_masquerades(&trial, Some(40_000)), None);
    assert_eq!(half_of_masquerades(&Trial { contender: "pasta".to_owned(), ..trial }, None), None);
}
