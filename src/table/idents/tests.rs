use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::table::clients::Allowance;

const LIFETIMES: Lifetimes = Lifetimes { idle: Duration::from_secs(8), hold_down: Duration::from_secs(3) };

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, 0, number)
}

fn asker(mappings: &Mappings, host: u8, client_ident: u16) -> Asker {
    let line = mappings.clients.index(host.into());
    mappings.clients.enter(line, &Allowance::UNLIMITED, Instant::START, |_| 0).expect("there is no limit");
    Asker { client: client(host), line, client_ident }
}

/// One shard on one address: 1024 idents, few enough to run out of.
fn owner() -> (Mappings, Idents) {
    (Mappings::new(&[GATEWAY], 256), Idents::new(1, &[5], &IdentPolicy::default(), LIFETIMES, generator(Some(1))))
}

#[derive(Clone, Debug)]
enum Step {
    Use(u8, u16),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8, 0..4_u16).prop_map(|(client, ident)| Step::Use(client, ident)),
        2 => (1..6000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a plain map of who used what when.
    #[test]
    fn mappings_live_while_used_and_idents_rest(steps in prop::collection::vec(step(), 1..120)) {
        let (mappings, mut idents) = owner();
        let mut now = Instant::START;
        let mut used: HashMap<(u8, u16), (SlotIndex, Instant)> = HashMap::new();
        let mut last_seen: HashMap<SlotIndex, ((u8, u16), Instant)> = HashMap::new();
        for step in steps {
            match step {
                Step::Use(host, ident) => {
                    let guard = mappings.forward.guard();
                    let found = mappings.find(client(host), ident, &guard);
                    if let Some((index, last)) = used.get(&(host, ident)) {
                        // Surely alive before the idle time; surely ended one walk and one slice after it.
                        if now.since(*last) < LIFETIMES.idle {
                            prop_assert_eq!(found, Some(*index));
                        }
                        if now.since(*last) > LIFETIMES.idle * 2 {
                            prop_assert_eq!(found, None);
                        }
                    }
                    let index = match found {
                        Some(index) => {
                            mappings.slots.touch(index, now);
                            index
                        }
                        None => idents.make(&mappings, 0, asker(&mappings, host, ident), now, &guard).unwrap(),
                    };
                    if let Some((whose, last)) = last_seen.get(&index) {
                        let rested = now.since(*last) >= LIFETIMES.idle + LIFETIMES.hold_down;
                        prop_assert!(*whose == (host, ident) || rested, "{:?} changed hands too soon", index);
                    }
                    prop_assert_eq!(index.shard(), 5);
                    used.insert((host, ident), (index, now));
                    last_seen.insert(index, ((host, ident), now));
                }
                Step::Wait(millis) => {
                    let until = now + Duration::from_millis(millis);
                    while now < until {
                        now = now + SLICE.min(until.since(now));
                        let guard = mappings.forward.guard();
                        idents.expire(&mappings, now, 32, &guard);
                    }
                }
            }
            prop_assert_eq!(idents.audit(&mappings, &[5]), Ok(()));
            prop_assert_eq!(mappings.forward.len(), idents.live());
            prop_assert_eq!(mappings.clients.mappings_sum(), idents.live() as u64);
        }
    }
}

/// The map's entry goes after its slot has ended: until then, and if it stayed for good, the identity decides.
#[test]
fn an_entry_whose_slot_is_no_longer_the_clients_is_a_miss() {
    let (mappings, _) = owner();
    let guard = mappings.forward.guard();
    let index = SlotIndex::new(0, 5);
    let occupy = |host| mappings.slots.occupy(index, client(host), mappings.clients.index(0), 1, Instant::START);
    occupy(1);
    mappings.forward.try_insert(client(1), 1, index, &guard).unwrap();
    assert_eq!(mappings.find(client(1), 1, &guard), Some(index));
    mappings.slots.hold(index, Instant::START);
    assert_eq!(mappings.find(client(1), 1, &guard), None, "ended");
    mappings.slots.free(index, State::Held);
    assert_eq!(mappings.find(client(1), 1, &guard), None, "nobody's");
    occupy(2);
    assert_eq!(mappings.find(client(1), 1, &guard), None, "another's");
}

#[test]
fn when_the_ready_pool_is_empty_the_new_is_refused_and_an_expired_ident_returns() {
    let (mappings, mut idents) = owner();
    let mut now = Instant::START;
    let guard = mappings.forward.guard();
    for ident in 0..1024 {
        assert!(idents.is_ready(0));
        idents.make(&mappings, 0, asker(&mappings, 1, ident), now, &guard).unwrap();
    }
    assert!(!idents.is_ready(0), "none is left");
    assert!(!idents.is_ready(1), "there is no such address");
    assert_eq!(idents.make(&mappings, 0, asker(&mappings, 2, 0), now, &guard), Err(Refused::NoIdent));
    now = now + LIFETIMES.idle;
    assert_eq!(idents.expire(&mappings, now, 32, &guard), 32, "no more than its share of a batch");
    assert_eq!(idents.make(&mappings, 0, asker(&mappings, 2, 0), now, &guard), Err(Refused::NoIdent), "they rest");
    now = now + LIFETIMES.hold_down;
    idents.expire(&mappings, now, 32, &guard);
    idents.make(&mappings, 0, asker(&mappings, 2, 0), now, &guard).unwrap();
    idents.audit(&mappings, &[5]).unwrap();
}

#[test]
fn what_is_on_a_lost_address_ends_at_once_and_the_rest_lives_on() {
    let mappings = Mappings::new(&[GATEWAY, Ipv4Addr::new(198, 18, 0, 9)], 256);
    let mut idents = Idents::new(2, &[5], &IdentPolicy::default(), LIFETIMES, generator(Some(1)));
    idents.announce(&mappings.addresses);
    let guard = mappings.forward.guard();
    for ident in 0..200 {
        let address = u8::try_from(ident % 2).unwrap();
        idents.make(&mappings, address, asker(&mappings, 1, ident), Instant::START, &guard).unwrap();
    }
    mappings.addresses.set_lost(1, true);
    let ended: Vec<usize> = (0..5).map(|_| idents.expire(&mappings, Instant::START, 32, &guard)).collect();
    assert_eq!((ended, idents.live()), (vec![32, 32, 32, 4, 0], 100));
    assert!(mappings.find(client(1), 0, &guard).is_some_and(|index| index.address() == 0));
    assert_eq!(mappings.find(client(1), 1, &guard), None);
    idents.audit(&mappings, &[5]).unwrap();
}

#[test]
fn an_address_has_idents_as_long_as_any_owner_has() {
    let mappings = Mappings::new(&[GATEWAY], 256);
    let policy = IdentPolicy { reserved: vec![64..=u16::MAX], preserve: false };
    let mut owners = [5, 6].map(|shard| Idents::new(1, &[shard], &policy, LIFETIMES, generator(Some(1))));
    owners.iter().for_each(|idents| idents.announce(&mappings.addresses));
    let guard = mappings.forward.guard();
    for (ident, idents) in (0..).zip(&mut owners) {
        assert!(mappings.addresses.has_ident(0));
        idents.make(&mappings, 0, asker(&mappings, 1, ident), Instant::START, &guard).unwrap();
    }
    assert!(!mappings.addresses.has_ident(0));
    let rested = Instant::START + LIFETIMES.idle + LIFETIMES.hold_down;
    owners[0].expire(&mappings, rested, 32, &guard);
    assert!(!mappings.addresses.has_ident(0), "it rests");
    owners[0].expire(&mappings, rested + LIFETIMES.hold_down, 32, &guard);
    assert!(mappings.addresses.has_ident(0));
}

#[test]
fn a_clients_own_ident_is_kept_where_it_is_free_and_a_reserved_one_is_nobodys() {
    let mappings = Mappings::new(&[GATEWAY], 256);
    let policy = IdentPolicy { reserved: vec![0..=999, 5000..=5000], preserve: true };
    let shards: Vec<usize> = (0..SHARDS).collect();
    let mut idents = Idents::new(1, &shards, &policy, LIFETIMES, generator(Some(1)));
    let guard = mappings.forward.guard();
    let mut make =
        |host, ident| idents.make(&mappings, 0, asker(&mappings, host, ident), Instant::START, &guard).unwrap().ident();
    assert_eq!([make(1, 1000), make(1, 4999), make(1, 65_535)], [1000, 4999, 65_535]);
    for (host, ident) in [(2, 1000), (1, 5000), (1, 999), (1, 0)] {
        let made = make(host, ident);
        assert!(made != ident && made > 1000 && made != 5000, "{made} for {ident}");
    }
    // A random one may have been somebody's own.
    let kept = (6000..7000).filter(|ident| make(3, *ident) == *ident).count();
    assert!(kept > 990, "{kept} of 1000");
}

#[test]
fn a_mapping_that_is_ending_is_not_taken_for_a_live_one() {
    let (mappings, mut idents) = owner();
    let guard = mappings.forward.guard();
    let ended = idents.make(&mappings, 0, asker(&mappings, 1, 7), Instant::START, &guard).unwrap();
    // As while another worker ends it: held already, and still in the map.
    mappings.slots.hold(ended, Instant::START);
    let made = idents.make(&mappings, 0, asker(&mappings, 1, 7), Instant::START, &guard).unwrap();
    assert_ne!(made, ended);
    assert_eq!(mappings.find(client(1), 7, &guard), Some(made));
}

#[test]
fn an_owner_without_mappings_may_sleep_as_long_as_it_likes() {
    let (mappings, mut idents) = owner();
    assert_eq!(idents.sleep_max(Instant::START), None);
    idents.make(&mappings, 0, asker(&mappings, 1, 1), Instant::START, &mappings.forward.guard()).unwrap();
    assert_eq!(idents.sleep_max(Instant::START), Some(SLICE));
    let mut now = Instant::START;
    while idents.sleep_max(now).is_some() {
        now = now + SLICE;
        idents.expire(&mappings, now, 32, &mappings.forward.guard());
        assert!(now.since(Instant::START) < Duration::from_secs(30), "never sleeps again");
    }
    assert_eq!((idents.live(), idents.held()), (0, 0));
}

#[test]
fn many_mappings_that_end_together_end_in_time_without_any_traffic() {
    let (mappings, mut idents) = owner();
    let guard = mappings.forward.guard();
    for ident in 0..1000 {
        idents.make(&mappings, 0, asker(&mappings, 1, ident), Instant::START, &guard).unwrap();
    }
    let (mut now, mut wakes) = (Instant::START, 0);
    while idents.live() > 0 {
        now = now + idents.sleep_max(now).unwrap();
        idents.expire(&mappings, now, 32, &guard);
        wakes += 1;
        assert!(wakes < 100, "32 for the endings, and four a second");
    }
    let late = now.since(Instant::START + LIFETIMES.idle);
    assert!(late <= LIFETIMES.idle / WALKS_PER_IDLE + SLICE, "{late:?}");
}

#[test]
fn a_walk_takes_its_time_however_often_it_is_looked_at() {
    let walk = LIFETIMES.idle / WALKS_PER_IDLE;
    let mut latest = Duration::ZERO;
    for unused in 0..100 {
        let (mappings, mut idents) = owner();
        let guard = mappings.forward.guard();
        let make = |ident| idents.make(&mappings, 0, asker(&mappings, 1, ident), Instant::START, &guard).unwrap();
        let made: Vec<SlotIndex> = (0..100).map(make).collect();
        // One is due every 10 ms: a look every 19 ms passes one, and nearly two.
        let (mut now, mut late) = (Instant::START, Duration::ZERO);
        while idents.live() == 100 {
            now = now + Duration::from_millis(19);
            made.iter().filter(|index| **index != made[unused]).for_each(|index| mappings.slots.touch(*index, now));
            idents.expire(&mappings, now, 32, &guard);
            late = now.since(Instant::START + LIFETIMES.idle);
            assert!(late <= walk + SLICE, "{late:?}");
        }
        latest = latest.max(late);
    }
    assert!(latest > walk / 2, "{latest:?}: it is spread over its time, not run through at once");
}

#[test]
fn an_audit_tells_of_each_contradiction() {
    type Fault = fn(&Mappings, &mut Idents, SlotIndex);
    // What the audit says of each.
    let faults: [(&str, Fault); 4] = [
        ("listed as Free", |mappings, idents, _| {
            let ready = idents.ready[0].list[0];
            mappings.slots.occupy(ready, client(2), mappings.clients.index(2), 1, Instant::START);
        }),
        ("in the map: false", |mappings, _, live| {
            mappings.forward.remove(client(1), 1, live, &mappings.forward.guard());
        }),
        ("listed as Live, in the map: true", |_, idents, live| idents.live.push(live)),
        ("is in no list", |_, idents, _| idents.ready[0].list.truncate(1)),
    ];
    for (says, fault) in faults {
        let (mappings, mut idents) = owner();
        let asker = asker(&mappings, 1, 1);
        let live = idents.make(&mappings, 0, asker, Instant::START, &mappings.forward.guard()).unwrap();
        assert_eq!(idents.audit(&mappings, &[5]), Ok(()));
        fault(&mappings, &mut idents, live);
        let audit = idents.audit(&mappings, &[5]);
        assert!(audit.as_ref().is_err_and(|what| what.contains(says)), "{says}: {audit:?}");
    }
}

/// Two owners make mappings for the same clients and idents at once: one mapping each, and no ident is lost.
#[test]
fn of_two_that_make_the_same_mapping_one_wins_and_both_use_it() {
    for _ in 0..if cfg!(miri) { 1 } else { 200 } {
        let mappings = Mappings::new(&[GATEWAY], 256);
        let make = |shard: usize| {
            let mut idents =
                Idents::new(1, &[shard], &IdentPolicy::default(), LIFETIMES, generator(Some(shard as u64)));
            idents.announce(&mappings.addresses);
            let guard = mappings.forward.guard();
            let made: Vec<SlotIndex> = (0..64)
                .map(|ident| idents.make(&mappings, 0, asker(&mappings, 1, ident), Instant::START, &guard).unwrap())
                .collect();
            (made, idents)
        };
        let make = &make;
        let [(first, a), (second, b)] = std::thread::scope(|scope| {
            [1, 2].map(|shard| scope.spawn(move || make(shard))).map(|thread| thread.join().unwrap())
        });
        assert_eq!(first, second);
        assert_eq!((mappings.forward.len(), a.live() + b.live()), (64, 64));
        assert_eq!(mappings.clients.mappings_sum(), 64);
        assert_eq!(mappings.addresses.ready(0), 2 * 1024 - 64);
        assert_eq!((a.audit(&mappings, &[1]), b.audit(&mappings, &[2])), (Ok(()), Ok(())));
    }
}
