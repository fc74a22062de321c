use std::collections::HashMap;

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);
const KEY: EchoKey =
    EchoKey { index: SlotIndex::new(3, 0x1234), sequence: 0x5678, remote: Ipv4Addr::new(198, 18, 0, 2) };

fn table(words_log2: u32) -> Echoes {
    Echoes::new(words_log2, TIMEOUT, &mut StdRng::seed_from_u64(7))
}

fn key(ident: u16, sequence: u16, remote: u32) -> EchoKey {
    EchoKey { index: SlotIndex::new(0, ident), sequence, remote: remote.into() }
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

/// A table whose keys scramble nothing: a key's lower 57 bits are its tag.
fn unscrambled() -> Echoes {
    Echoes::with_buckets(Storage::own(buckets(14)), 5, TIMEOUT, [0; 4])
}

/// One more than a bucket holds.
fn crowd(echoes: &Echoes) -> Vec<EchoKey> {
    let bucket = echoes.bucket(key(64, 0, 0));
    let same = (0..10_000).map(|remote| key(64, 0, remote)).filter(|&key| echoes.bucket(key) == bucket);
    let crowd: Vec<EchoKey> = same.take(WAYS + 1).collect();
    assert_eq!(crowd.len(), WAYS + 1, "one in 32 is of the same bucket");
    crowd
}

/// Found by the simulator (seed 1041): the old echo passed for the new one, and when that could not be sent, a reply to the old
/// one was in time again.
#[test]
fn an_echo_that_is_over_is_not_renewed_by_its_like() {
    let echoes = table(14);
    assert_eq!(echoes.record(key(1, 1, 1), at(0)), Recorded::New);
    assert_eq!(echoes.record(key(1, 1, 1), at(59)), Recorded::Again);
    assert_eq!(echoes.record(key(1, 1, 1), at(130)), Recorded::OverExpired);
    assert_eq!((echoes.occupied(), echoes.consume(key(1, 1, 1), at(131))), (1, Consumed::Matched));
}

#[test]
fn a_bucket_is_one_cache_line() {
    assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
    assert_eq!(table(14).bytes(), 8 << 14, "a word each and no more");
}

#[test]
fn an_echo_is_used_once() {
    let echoes = table(20);
    assert_eq!(echoes.record(key(1, 2, 3), at(0)), Recorded::New);
    assert_eq!(echoes.consume(key(1, 2, 3), at(1)), Consumed::Matched);
    assert_eq!(echoes.consume(key(1, 2, 3), at(1)), Consumed::Unknown);
}

#[test]
fn asking_whether_an_echo_is_outstanding_does_not_use_it_up() {
    let echoes = table(20);
    assert!(!echoes.is_outstanding(key(1, 2, 3), at(0)));
    echoes.record(key(1, 2, 3), at(0));
    for _ in 0..3 {
        assert!(echoes.is_outstanding(key(1, 2, 3), at(1)));
    }
    for other in [key(2, 2, 3), key(1, 3, 3), key(1, 2, 4)] {
        assert!(!echoes.is_outstanding(other, at(1)));
    }
    assert!(!echoes.is_outstanding(key(1, 2, 3), at(62)), "too old");
    assert_eq!(echoes.consume(key(1, 2, 3), at(1)), Consumed::Matched);
    assert!(!echoes.is_outstanding(key(1, 2, 3), at(1)));
}

#[test]
fn every_bit_of_the_key_counts() {
    let echoes = table(20);
    echoes.record(KEY, at(0));
    let indexes = (0..20).map(|bit| EchoKey { index: SlotIndex(KEY.index.0 ^ 1 << bit), ..KEY });
    let sequences = (0..16).map(|bit| EchoKey { sequence: KEY.sequence ^ 1 << bit, ..KEY });
    let remotes = (0..32).map(|bit| EchoKey { remote: (u32::from(KEY.remote) ^ 1 << bit).into(), ..KEY });
    for other in indexes.chain(sequences).chain(remotes) {
        assert_eq!(echoes.consume(other, at(1)), Consumed::Unknown, "{other:?}");
    }
    assert_eq!(echoes.consume(KEY, at(1)), Consumed::Matched);
}

/// Others read the words that this version has written: another number here is another layout (`LAYOUT`, in
/// `crate::state`).
#[test]
fn a_word_and_its_bucket_are_those_of_the_layout() {
    let keys = [0x0123_4567_89ab_cdef, 0x2345_6789_abcd_ef01, 0x4567_89ab_cdef_0123, 0x6789_abcd_ef01_2345];
    let echoes = Echoes::with_buckets(Storage::own(buckets(14)), 5, TIMEOUT, keys);
    echoes.record(KEY, at(1000));
    let BucketIndex(bucket) = echoes.bucket(KEY);
    assert_eq!((bucket, echoes.buckets[bucket].0[0].load(Ordering::Relaxed)), (1683, 0xd065_b1ec_9ac0_7b7d));
}

#[test]
fn a_word_of_zeroes_but_for_its_first_bit_is_told_from_an_empty_one() {
    let echoes = unscrambled();
    let zeroes = key(0, 0, 0);
    assert_eq!(echoes.consume(zeroes, at(0)), Consumed::Unknown, "none yet");
    assert_eq!(echoes.record(zeroes, at(0)), Recorded::New);
    assert!(echoes.is_outstanding(zeroes, at(0)));
    assert_eq!((echoes.occupied(), echoes.take_stock(at(0)).outstanding), (1, 1));
    assert_eq!(echoes.consume(zeroes, at(0)), Consumed::Matched);
}

/// The memory of a table outlives its user, who leaves it to another.
#[test]
fn who_takes_a_table_up_finds_its_echoes_if_it_has_its_keys() {
    let memory: &'static [Bucket] = Vec::leak((0..buckets(14)).map(|_| Bucket::default()).collect());
    let user = |seed| Echoes::over(memory, TIMEOUT, round_keys(&mut StdRng::seed_from_u64(seed)));
    assert_eq!(user(1).shard_buckets(), table(14).shard_buckets());
    user(1).record(KEY, at(0));
    assert_eq!(user(2).consume(KEY, at(1)), Consumed::Unknown);
    assert_eq!(user(1).consume(KEY, at(1)), Consumed::Matched);
    user(1).record(KEY, at(0));
    user(2).forget();
    assert_eq!(user(1).occupied(), 0);
}

#[test]
fn the_keys_that_scramble_are_odd_so_that_none_leaves_its_round_out() {
    for seed in 0..8 {
        let keys = round_keys(&mut StdRng::seed_from_u64(seed));
        assert!(keys.iter().all(|key| key % 2 == 1), "{keys:x?}");
    }
}

#[test]
fn a_reply_after_the_timeout_is_late_and_a_reply_at_the_timeout_is_not() {
    let echoes = table(20);
    echoes.record(key(1, 1, 1), at(0));
    echoes.record(key(1, 2, 1), at(0));
    assert_eq!(echoes.consume(key(1, 1, 1), at(60)), Consumed::Matched);
    let after = Instant::START + echoes.longest_life();
    assert!(after.since(Instant::START) < Duration::from_secs(61));
    assert_eq!(echoes.consume(key(1, 2, 1), after), Consumed::Late);
    assert_eq!(echoes.consume(key(1, 2, 1), after), Consumed::Unknown, "late is gone, too");
}

#[test]
fn all_who_look_at_an_echo_agree_on_the_moment_when_its_life_is_over() {
    let over = Instant::START + table(14).longest_life();
    let last = Instant::from_nanos(over.as_nanos() - 1);
    for (now, in_time) in [(last, true), (over, false)] {
        let recorded = |keys: &[EchoKey]| {
            let echoes = table(14);
            keys.iter().for_each(|key| assert_eq!(echoes.record(*key, at(0)), Recorded::New));
            echoes
        };
        let one = key(64, 0, 0);
        let [outstanding, unanswered] = [in_time, !in_time].map(u64::from);
        assert_eq!(recorded(&[one]).is_outstanding(one, now), in_time);
        let consumed = if in_time { Consumed::Matched } else { Consumed::Late };
        assert_eq!(recorded(&[one]).consume(one, now), consumed);
        let again = if in_time { Recorded::Again } else { Recorded::OverExpired };
        assert_eq!(recorded(&[one]).record(one, now), again);
        assert_eq!(recorded(&[one]).sweep(0, 0, 32, now), unanswered);
        assert_eq!(recorded(&[one]).take_stock(now), Stock { outstanding, unanswered });
        let crowd = crowd(&table(14));
        let room = recorded(&crowd[..WAYS]).record(crowd[WAYS], now);
        assert!(if in_time { matches!(room, Recorded::Evicted(_)) } else { room == Recorded::OverExpired }, "{room:?}");
    }
}

/// The request is stamped one batch after an ending that it did not see, and its reply is judged in a batch that began
/// one before the ident is another's.
#[test]
fn the_shortest_hold_down_outlasts_every_echo_and_no_longer() {
    let (echoes, batch) = (table(20), Duration::from_millis(500));
    let before = |now: Instant, time: Duration| Instant::START + now.since(Instant::START + time);
    // At the beginning of a tick of the stamps, where an echo lives longest.
    let sent = Instant::START + echoes.longest_life() * 2;
    let freed = before(sent, batch) + echoes.hold_down_min(batch);
    let judged = before(freed, batch);
    echoes.record(KEY, sent);
    assert!(echoes.is_outstanding(KEY, before(judged, Duration::from_nanos(1))));
    assert_eq!(echoes.consume(KEY, judged), Consumed::Late);
}

#[test]
fn a_timeout_of_nothing_or_of_centuries_makes_a_table_too() {
    for timeout in [Duration::ZERO, Duration::MAX] {
        let echoes = Echoes::new(14, timeout, &mut StdRng::seed_from_u64(7));
        assert_eq!(echoes.record(KEY, at(1)), Recorded::New);
        assert_eq!(echoes.consume(KEY, at(1)), Consumed::Matched);
    }
}

#[test]
fn a_stamp_wraps_no_sooner_than_four_timeouts() {
    for words_log2 in WORDS_LOG2 {
        for timeout in [1, 7, 60, 600].map(Duration::from_secs) {
            // Without its memory, which would be half a gigabyte.
            let shard_buckets_log2 = words_log2 - WAYS.ilog2() - SHARDS.ilog2();
            let echoes = Echoes::with_buckets(Storage::own(0), shard_buckets_log2, timeout, [1; 4]);
            let wrap = (echoes.stamp_mask() + 1) << echoes.tick_shift;
            assert!(u128::from(wrap) >= timeout.as_nanos() * 4, "2^{words_log2} words, {timeout:?}");
            assert!(u128::from(wrap) < timeout.as_nanos() * 8 + u128::from(echoes.stamp_mask()) + 1);
        }
    }
}

#[test]
fn an_echo_stamped_just_ahead_of_now_is_new_not_ancient() {
    let echoes = table(20);
    echoes.record(key(1, 1, 1), at(10));
    assert_eq!(echoes.consume(key(1, 1, 1), at(9)), Consumed::Matched);
}

#[test]
fn a_stamp_is_just_ahead_up_to_half_a_timeout_and_beyond_that_ancient() {
    let echoes = table(20);
    let half = echoes.timeout_ticks / 2;
    for (ticks, consumed) in [(half, Consumed::Matched), (half + 1, Consumed::Late)] {
        echoes.record(KEY, at(10) + Duration::from_nanos(ticks << echoes.tick_shift));
        assert_eq!(echoes.consume(KEY, at(10)), consumed, "{ticks} ticks ahead");
    }
}

#[test]
fn a_full_bucket_evicts_its_oldest_and_says_how_old_it_was() {
    let echoes = table(14);
    let keys = crowd(&echoes);
    for (second, &key) in keys[..WAYS].iter().enumerate() {
        assert_eq!(echoes.record(key, at(second as u64 * 5)), Recorded::New);
    }
    let Recorded::Evicted(age) = echoes.record(keys[WAYS], at(50)) else { panic!("a ninth echo found room") };
    assert!(age.abs_diff(Duration::from_secs(50)) < Duration::from_secs(9), "{age:?}");
    assert_eq!(echoes.consume(keys[0], at(50)), Consumed::Unknown);
    for &key in &keys[1..] {
        assert_eq!(echoes.consume(key, at(50)), Consumed::Matched);
    }
}

#[test]
fn taking_stock_counts_those_in_time_and_removes_the_others() {
    let echoes = table(14);
    for number in 0..300u16 {
        echoes.record(key(200 * number, 1, 1), at(u64::from(number) / 3));
    }
    let stock = echoes.take_stock(at(99));
    // Those that have waited for 60 seconds and a little are in time still.
    let in_time = (0..300u16).filter(|number| echoes.is_outstanding(key(200 * number, 1, 1), at(99))).count() as u64;
    assert!((180..=185).contains(&in_time), "{in_time}");
    assert_eq!(stock, Stock { outstanding: in_time, unanswered: 300 - in_time });
    assert_eq!((echoes.occupied() as u64, echoes.take_stock(at(99)).unanswered), (in_time, 0));
}

#[test]
fn taking_stock_overlooks_no_bucket_whose_words_cancel_each_other_out() {
    let echoes = unscrambled();
    for remote in [1, 2, 4, 7] {
        echoes.record(key(0, 0, remote), at(0));
    }
    assert_eq!(echoes.take_stock(at(1)), Stock { outstanding: 4, unanswered: 0 });
}

#[test]
fn the_sweep_removes_the_unanswered_and_only_those() {
    let echoes = table(18);
    for remote in 0..100 {
        echoes.record(key(5, 0, remote), at(0));
        echoes.record(key(5, 1, remote), at(50));
    }
    assert_eq!(echoes.sweep(5, 0, echoes.shard_buckets(), at(80)), 100);
    assert_eq!(echoes.occupied(), 100);
    assert_eq!(echoes.sweep(6, 0, echoes.shard_buckets(), at(200)), 0, "another shard's");
    assert_eq!(echoes.consume(key(5, 1, 99), at(80)), Consumed::Matched);
}

#[test]
fn a_sweep_keeps_to_its_slice_of_its_shard() {
    let echoes = table(18);
    for remote in 0..100 {
        for ident in [4, 5, 6] {
            echoes.record(key(ident, 0, remote), at(0));
        }
    }
    let all = echoes.shard_buckets();
    let is_behind = |remote: &u32| echoes.bucket(key(5, 0, *remote)).0 % all >= all / 2;
    let behind = (0..100).filter(is_behind).count() as u64;
    // The end first; what would go beyond it ends there.
    assert_eq!(echoes.sweep(5, all / 2, all, at(80)), behind);
    assert_eq!(echoes.sweep(5, 0, all / 2, at(80)), 100 - behind);
    assert_eq!(echoes.occupied(), 200, "the neighbours'");
}

#[test]
fn no_two_keys_share_place_and_tag() {
    let echoes = table(14);
    let mut seen = std::collections::HashSet::new();
    for ident in [0, 1, 64, 0xffff] {
        for sequence in [0, 1, 0x8000, 0xffff] {
            for remote in 0..5000_u32 {
                assert!(seen.insert(echoes.place(key(ident, sequence, remote.wrapping_mul(0x9e37_79b9)))));
            }
        }
    }
}

/// In the order of the remotes, of their networks, and of the sequences.
#[test]
fn keys_that_an_outsider_chooses_spread_over_the_buckets() {
    let (echoes, keys) = (table(17), if cfg!(miri) { 1000 } else { 100_000 });
    let in_order: [fn(u32) -> EchoKey; 3] = [
        |number| key(0, 0, number),
        |number| key(0, 0, number << 15),
        |number| key(0, u16::try_from(number % 0x1_0000).unwrap(), number / 0x1_0000),
    ];
    for chosen in in_order {
        let mut filled = vec![0_u32; echoes.shard_buckets()];
        for number in 0..keys {
            filled[echoes.place(chosen(number)).0] += 1;
        }
        // Balls in bins: the fullest of 256 holds some three deviations more than the mean, not hundreds.
        let mean = f64::from(keys) / filled.len() as f64;
        assert!(f64::from(*filled.iter().max().unwrap()) < mean + 5.0 * mean.sqrt() + 8.0, "{filled:?}");
    }
}

/// Eight threads record and consume one another's echoes: none is matched twice.
#[test]
fn concurrent_replies_match_an_echo_once() {
    let echoes = table(14);
    let matched = AtomicU64::new(0);
    let (mut recorded, rounds) = (0, if cfg!(miri) { 5_u16 } else { 500 });
    for round in 0..rounds {
        let keys: Vec<EchoKey> = (0..16).map(|remote| key(round % 4, round, remote)).collect();
        for &key in &keys {
            assert!(!matches!(echoes.record(key, at(0)), Recorded::Contended));
            recorded += 1;
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for &key in &keys {
                        if echoes.consume(key, at(1)) == Consumed::Matched {
                            matched.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
    }
    assert_eq!(matched.into_inner(), recorded);
}

#[derive(Clone, Debug)]
enum Step {
    Record(EchoKey),
    Consume(EchoKey),
    Wait(u64),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let key = (0..3_u8, 0..3_u16, 0..3_u16, 0..3_u32).prop_map(|(address, ident, sequence, remote)| EchoKey {
        index: SlotIndex::new(address, ident * 64),
        sequence,
        remote: remote.into(),
    });
    prop_oneof![
        4 => key.clone().prop_map(Step::Record),
        4 => key.prop_map(Step::Consume),
        1 => (0..90_u64).prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    /// The table against a plain map that knows every key whole. 81 keys in 2^17 words: nothing is evicted.
    #[test]
    fn behaves_like_a_map_with_ages(steps in prop::collection::vec(step(), 1..100)) {
        let echoes = table(17);
        let mut model: HashMap<EchoKey, u64> = HashMap::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Record(key) => {
                    let known = model.insert(key, now).is_some();
                    prop_assert_eq!(echoes.record(key, at(now)) == Recorded::Again, known);
                }
                Step::Consume(key) => {
                    // Seconds against ticks of half a second: 61 s and more is surely late, 60 s and less surely is not.
                    let expected = match model.remove(&key) {
                        None => Consumed::Unknown,
                        Some(sent) if now - sent > 60 => Consumed::Late,
                        Some(_) => Consumed::Matched,
                    };
                    prop_assert_eq!(echoes.consume(key, at(now)), expected);
                }
                Step::Wait(seconds) => {
                    // A sweep at least once a timeout is the owner's duty; without it a stamp would wrap.
                    now += seconds;
                    let old = model.len();
                    model.retain(|_, sent| now - *sent <= 60);
                    let swept: u64 = (0..SHARDS).map(|shard| echoes.sweep(shard, 0, usize::MAX >> 8, at(now))).sum();
                    prop_assert_eq!(swept, (old - model.len()) as u64);
                }
                Step::Sweep => prop_assert_eq!(echoes.sweep(0, 0, echoes.shard_buckets(), at(now)), 0),
            }
            prop_assert_eq!(echoes.occupied(), model.len());
        }
    }
}
