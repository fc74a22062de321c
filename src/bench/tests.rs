//! Turns and choices, without any load. The bench as a whole is in tests/bench.rs.

use super::*;

fn options() -> BenchOptions {
    BenchOptions::new(PathBuf::from("echogate"))
}

#[test]
fn contenders_are_chosen_by_name_or_by_its_beginning_and_the_control_always() {
    let all = Contender::all(2);
    let names = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        choose(&all, &wanted).map(|chosen| chosen.into_iter().map(Contender::name).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).expect("all").len(), all.len());
    assert_eq!(names(&["masquerade"]).expect("known"), ["control", "masquerade"]);
    assert_eq!(names(&["echogate-uring-2"]).expect("known"), ["control", "echogate-uring-2"]);
    let ours = names(&["echogate"]).expect("known");
    assert!(ours.len() == 6 && ours[1..].iter().all(|name| name.starts_with("echogate")), "{ours:?}");
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
    let turns = turns(&options(), &Contender::all(64)).len();
    assert!(left(&options(), Duration::ZERO, 0, turns) <= Duration::from_secs(180));
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
    assert!(turns.iter().any(|turn| turn.scenario.clients == MANY_CLIENTS && turn.contender.is_ours()));
    let sizes: std::collections::BTreeSet<usize> = turns.iter().map(|turn| turn.scenario.icmp_bytes).collect();
    assert_eq!(sizes, [64, 512, 1400].into());
}
