//! Models of the tables' protocols: `scripts/models` runs them under loom, which tries every interleaving of a few
//! threads and every value that the memory model lets a load return. The code is the tables' own, but for the map
//! (`forward_model.rs`) and for sizes: two words a bucket, one or two slots.
//!
//! The checker remembers one last access to a word, so a thread that loads a word before it stores to it hides an earlier load by
//! another thread, and with it an interleaving to try; so each model runs with its threads in every order. How it is explored, and
//! why each says how many executions it has: `src/models.rs`.
//!
//! What they assume: a batch lasts at most [`BATCH`], and what a thread did longer ago than that the others see. Where
//! the order in time matters, a model ends its threads and begins new ones, later.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::thread;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::SlotIndex;
use super::addresses::Addresses;
use super::clients::{Allowance, Clients, Over, Rate};
use super::echoes::{Consumed, EchoKey, Echoes, Recorded};
use super::forward::Forward;
use super::idents::{Asker, IdentPolicy, Idents, Lifetimes, Mappings};
use super::slots::{Identity, Slots, State};
use crate::clock::Instant;
use crate::models::explore;

const ASKER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const SOMEBODY_ELSE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CLIENT_IDENT: u16 = 1;
const FIRST: SlotIndex = SlotIndex::new(0, 0);
const SECOND: SlotIndex = SlotIndex::new(0, 1);

const TIMEOUT: Duration = Duration::from_secs(60);
const BATCH: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(60);

/// In which order the threads of a model begin.
#[derive(Clone, Copy)]
struct Order([usize; 3]);

const OF_TWO: &[Order] = &[Order([0, 1, 2]), Order([1, 0, 2])];
const OF_THREE: &[Order] =
    &[Order([0, 1, 2]), Order([0, 2, 1]), Order([1, 0, 2]), Order([1, 2, 0]), Order([2, 0, 1]), Order([2, 1, 0])];

impl Order {
    /// Runs both at once over the same tables.
    fn both<S, A, B>(
        self,
        shared: &Arc<S>,
        a: impl FnOnce(&S) -> A + 'static,
        b: impl FnOnce(&S) -> B + 'static,
    ) -> (A, B)
    where
        (S, A, B): 'static,
    {
        let (mut a, mut b) = (Racer::new(shared, a), Racer::new(shared, b));
        for next in self.0 {
            match next {
                0 => a.start(),
                1 => b.start(),
                _ => {}
            }
        }
        (a.join(), b.join())
    }

    /// Runs the three at once over the same tables.
    fn all<S, A, B, C>(
        self,
        shared: &Arc<S>,
        a: impl FnOnce(&S) -> A + 'static,
        b: impl FnOnce(&S) -> B + 'static,
        c: impl FnOnce(&S) -> C + 'static,
    ) -> (A, B, C)
    where
        (S, A, B, C): 'static,
    {
        let (mut a, mut b, mut c) = (Racer::new(shared, a), Racer::new(shared, b), Racer::new(shared, c));
        for next in self.0 {
            match next {
                0 => a.start(),
                1 => b.start(),
                _ => c.start(),
            }
        }
        (a.join(), b.join(), c.join())
    }
}

/// A thread of a model, before and after it begins.
struct Racer<S, F, T> {
    run: Option<(Arc<S>, F)>,
    thread: Option<thread::JoinHandle<T>>,
}

impl<S: 'static, T: 'static, F: FnOnce(&S) -> T + 'static> Racer<S, F, T> {
    fn new(shared: &Arc<S>, run: F) -> Racer<S, F, T> {
        Racer { run: Some((Arc::clone(shared), run)), thread: None }
    }

    fn start(&mut self) {
        self.thread = self.run.take().map(|(shared, run)| thread::spawn(move || run(&shared)));
    }

    fn join(self) -> T {
        self.thread.expect("started").join().expect("did not panic")
    }
}

fn at(seconds: u64) -> Instant {
    Instant::START + Duration::from_secs(seconds)
}

fn before(instant: Instant, by: Duration) -> Instant {
    Instant::START + instant.since(Instant::START + by)
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

/// The words of one shard, and echoes that share one bucket of it.
fn echoes<const N: usize>() -> (Arc<Echoes>, [EchoKey; N]) {
    let echoes = Echoes::with_shards(1, 5, TIMEOUT, &mut rng());
    let key = |remote: u32| EchoKey { index: FIRST, sequence: 1, remote: remote.into() };
    let bucket = echoes.place(key(0)).0;
    let mut same = (0..).map(key).filter(|&key| echoes.place(key).0 == bucket);
    let keys = std::array::from_fn(|_| same.next().expect("more remotes than buckets"));
    (Arc::new(echoes), keys)
}

fn sweep(echoes: &Echoes, key: EchoKey, now: Instant) -> u64 {
    echoes.sweep(0, echoes.place(key).0, 1, now)
}

#[test]
fn of_two_replies_to_one_echo_one_is_matched() {
    explore(OF_TWO, 36, |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let reply = move |echoes: &Echoes| echoes.consume(key, at(1));
        let both = order.both(&echoes, reply, reply);
        assert!(
            matches!(both, (Consumed::Matched, Consumed::Unknown) | (Consumed::Unknown, Consumed::Matched)),
            "{both:?}"
        );
        assert_eq!(echoes.occupied(), 0);
    });
}

#[test]
fn a_request_sent_twice_at_once_is_one_echo() {
    explore(OF_TWO, 36, |order| {
        let (echoes, [key]) = echoes();
        let request = move |echoes: &Echoes| echoes.record(key, at(0));
        let both = order.both(&echoes, request, request);
        assert!(matches!(both, (Recorded::New, Recorded::Again) | (Recorded::Again, Recorded::New)), "{both:?}");
        assert_eq!(echoes.consume(key, at(1)), Consumed::Matched);
        assert_eq!(echoes.consume(key, at(1)), Consumed::Unknown);
    });
}

/// The same while a reply to another echo empties a word of the bucket: now the two may take a word each. Two requests
/// were sent and at most two replies are delivered; what is counted as outstanding is what there is.
#[test]
fn a_request_sent_twice_at_once_is_answered_no_more_than_twice() {
    explore(OF_THREE, 10_362, |order| {
        let (echoes, [key, another]) = echoes();
        echoes.record(another, at(0));
        let request = move |echoes: &Echoes| echoes.record(key, at(0));
        let reply = move |echoes: &Echoes| echoes.consume(another, at(1));
        let (a, b, consumed) = order.all(&echoes, request, request, reply);
        assert_eq!(consumed, Consumed::Matched);
        let new = match (a, b) {
            (Recorded::New, Recorded::New) => 2,
            (Recorded::New, Recorded::Again) | (Recorded::Again, Recorded::New) => 1,
            other => panic!("{other:?}"),
        };
        assert_eq!(echoes.occupied(), new);
        let matched = (0..3).filter(|_| echoes.consume(key, at(1)) == Consumed::Matched).count();
        assert_eq!(matched, new);
    });
}

#[test]
fn a_reply_finds_the_echo_that_is_being_renewed() {
    explore(OF_TWO, 36, |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let request = move |echoes: &Echoes| echoes.record(key, at(5));
        let (recorded, consumed) = order.both(&echoes, request, move |echoes| echoes.consume(key, at(5)));
        assert_eq!(consumed, Consumed::Matched);
        let left = match recorded {
            Recorded::Again => 0,
            Recorded::New => 1,
            other => panic!("{other:?}"),
        };
        assert_eq!(echoes.occupied(), left);
    });
}

#[test]
fn the_sweep_takes_no_echo_that_was_just_renewed() {
    explore(OF_TWO, 36, |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let request = move |echoes: &Echoes| echoes.record(key, at(100));
        let (recorded, swept) = order.both(&echoes, request, move |echoes| sweep(echoes, key, at(100)));
        assert!(matches!((recorded, swept), (Recorded::OverExpired, 0) | (Recorded::New, 1)), "{recorded:?} {swept}");
        assert_eq!(echoes.occupied(), 1);
        assert_eq!(echoes.consume(key, at(100)), Consumed::Matched);
    });
}

/// An unanswered echo is counted once: by whoever takes its word, the sweep, its late reply or the echo in need of room.
#[test]
fn an_expired_echo_is_taken_by_one() {
    explore(OF_THREE, 64_512, |order| {
        let (echoes, [old, young, new]) = echoes();
        let now = at(100);
        echoes.record(old, at(0));
        echoes.record(young, now);
        let request = move |echoes: &Echoes| echoes.record(new, now);
        let late_reply = move |echoes: &Echoes| echoes.consume(old, now) == Consumed::Late;
        let (swept, recorded, late) = order.all(&echoes, move |echoes| sweep(echoes, old, now), request, late_reply);
        let taken_over = match recorded {
            Recorded::New => 0,
            Recorded::OverExpired => 1,
            other => panic!("{other:?}"),
        };
        assert_eq!(swept + u64::from(late) + taken_over, 1, "{swept} {late} {recorded:?}");
        assert_eq!(echoes.occupied(), 2);
    });
}

#[test]
fn an_echo_is_either_answered_or_evicted() {
    explore(OF_TWO, 48, |order| {
        let (echoes, [oldest, young, new]) = echoes();
        echoes.record(oldest, at(0));
        echoes.record(young, at(10));
        let request = move |echoes: &Echoes| echoes.record(new, at(20));
        let (recorded, consumed) = order.both(&echoes, request, move |echoes| echoes.consume(oldest, at(20)));
        match consumed {
            Consumed::Matched => assert_eq!(recorded, Recorded::New),
            _ => assert!(matches!(recorded, Recorded::Evicted(_)), "{consumed:?} {recorded:?}"),
        }
        assert_eq!(echoes.consume(young, at(20)), Consumed::Matched);
        assert_eq!(echoes.consume(new, at(20)), Consumed::Matched);
    });
}

#[test]
fn of_two_sweeps_one_takes_an_expired_echo() {
    explore(OF_TWO, 36, |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let take = move |echoes: &Echoes| sweep(echoes, key, at(100));
        let (a, b) = order.both(&echoes, take, take);
        assert_eq!((a + b, echoes.occupied()), (1, 0));
    });
}

#[test]
fn an_error_finds_the_echo_that_is_being_renewed() {
    explore(OF_TWO, 18, |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let request = move |echoes: &Echoes| echoes.record(key, at(5));
        let both = order.both(&echoes, request, move |echoes| echoes.is_outstanding(key, at(5)));
        assert_eq!(both, (Recorded::Again, true));
    });
}

#[test]
fn an_error_uses_up_no_echo_that_is_being_answered() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    explore(OF_TWO, 18, move |order| {
        let (echoes, [key]) = echoes();
        echoes.record(key, at(0));
        let reply = move |echoes: &Echoes| echoes.consume(key, at(1));
        let (consumed, outstanding) = order.both(&echoes, reply, move |echoes| echoes.is_outstanding(key, at(1)));
        assert_eq!(consumed, Consumed::Matched);
        assert!(!echoes.is_outstanding(key, at(1)));
        count.fetch_add(usize::from(outstanding), Ordering::Relaxed);
    });
    assert!(told.load(Ordering::Relaxed) > 0, "no error was ever told");
}

#[test]
fn an_error_finds_no_echo_that_is_over_whether_it_is_swept_or_not() {
    explore(OF_TWO, 30, |order| {
        let (echoes, [old, young]) = echoes();
        echoes.record(old, at(0));
        echoes.record(young, at(100));
        let error = move |echoes: &Echoes| [old, young].map(|key| echoes.is_outstanding(key, at(100)));
        let both = order.both(&echoes, move |echoes| sweep(echoes, old, at(100)), error);
        assert_eq!(both, (1, [false, true]));
    });
}

/// The slots alone: what they promise does not rest on the map. (The checker reorders no stores, but a load may return what there
/// was before one.)
#[test]
fn who_sees_an_identity_sees_its_seal_and_the_time_it_began_with() {
    explore(OF_TWO, 168, |order| {
        let slots = Arc::new(Slots::with_len(1));
        let line = Clients::new(1).index(0);
        let begin = move |slots: &Slots| slots.occupy(FIRST, ASKER, line, CLIENT_IDENT, at(1));
        let look = |slots: &Slots| {
            assert!(slots.is_whole(FIRST));
            let is_live = slots.identity(FIRST).is_live_for(ASKER, CLIENT_IDENT);
            is_live.then(|| slots.idle_ms(FIRST, at(1)))
        };
        let ((), idle_ms) = order.both(&slots, begin, look);
        assert_eq!(idle_ms.unwrap_or(0), 0, "idle since before it began");
    });
}

/// Both kinds of table.
struct Tables {
    mappings: Mappings,
    echoes: Echoes,
}

impl Tables {
    /// With one slot for each owner, and an echo's key under the first slot.
    fn new<const N: usize>(hold_down: impl FnOnce(&Echoes) -> Duration) -> (Arc<Tables>, [Idents; N], EchoKey) {
        let echoes = Echoes::with_shards(1, 5, TIMEOUT, &mut rng());
        let lifetimes = Lifetimes { idle: IDLE, hold_down: hold_down(&echoes) };
        let mappings = Mappings {
            slots: Slots::with_len(N),
            forward: Forward::new(N),
            clients: Clients::new(2),
            addresses: Addresses::new(&[GATEWAY]),
        };
        let slots = [FIRST, SECOND];
        let owners = std::array::from_fn(|owner| {
            Idents::with_ready(vec![vec![slots[owner]]], &IdentPolicy::default(), lifetimes, rng())
        });
        let key = EchoKey { index: FIRST, sequence: 1, remote: Ipv4Addr::new(198, 18, 0, 2) };
        (Arc::new(Tables { mappings, echoes }), owners, key)
    }

    fn find(&self, client: Ipv4Addr) -> Option<SlotIndex> {
        self.mappings.find(client, CLIENT_IDENT, &self.mappings.forward.guard())
    }

    fn make(&self, owner: &mut Idents, client: Ipv4Addr, now: Instant) -> SlotIndex {
        let mappings = &self.mappings;
        let line = mappings.clients.index(u64::from(u32::from(client)));
        mappings.clients.enter(line, &Allowance::UNLIMITED, now, |_| 0).expect("no limit");
        let asker = Asker { client, line, client_ident: CLIENT_IDENT };
        owner.make(mappings, 0, asker, now, &mappings.forward.guard()).expect("an ident is ready")
    }

    fn expire(&self, owner: &mut Idents, now: Instant) -> usize {
        owner.expire(&self.mappings, now, 1, &self.mappings.forward.guard())
    }

    /// The judgement of a reply: whose it is, if it is anybody's.
    fn answered(&self, key: EchoKey, now: Instant) -> Option<Identity> {
        let matched = self.echoes.consume(key, now) == Consumed::Matched;
        matched.then(|| self.mappings.slots.identity(key.index))
    }

    /// That of an error about the echo.
    fn told(&self, key: EchoKey, now: Instant) -> Option<Identity> {
        let outstanding = self.echoes.is_outstanding(key, now);
        outstanding.then(|| self.mappings.slots.identity(key.index))
    }
}

/// One of the two.
type Judgement = fn(&Tables, EchoKey, Instant) -> Option<Identity>;

#[test]
fn who_matches_an_echo_sees_the_identity_that_it_left_under() {
    an_ident_changes_hands(1014, Tables::answered);
}

#[test]
fn who_finds_an_echo_outstanding_sees_the_identity_that_it_left_under() {
    an_ident_changes_hands(1014, Tables::told);
}

/// An ident changes hands while a request leaves under it and its reply returns, or an error about it, each on a thread of its
/// own: who finds the echo sees whose it is now, not whose it was.
fn an_ident_changes_hands(executions: usize, judge: Judgement) {
    let found = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&found);
    explore(OF_THREE, executions, move |order| {
        let (tables, [mut owner], key) = Tables::new(|_| Duration::ZERO);
        tables.make(&mut owner, SOMEBODY_ELSE, at(0));
        assert_eq!(tables.expire(&mut owner, at(60)), 1);
        let change_hands = move |tables: &Tables| {
            tables.expire(&mut owner, at(61));
            tables.make(&mut owner, ASKER, at(61));
        };
        let request = move |tables: &Tables| {
            if tables.find(ASKER).is_some() {
                tables.echoes.record(key, at(61));
            }
        };
        let outside = move |tables: &Tables| judge(tables, key, at(61));
        let ((), (), identity) = order.all(&tables, change_hands, request, outside);
        assert!(identity.is_none_or(|identity| identity.is_live_for(ASKER, CLIENT_IDENT)), "{identity:?}");
        count.fetch_add(usize::from(identity.is_some()), Ordering::Relaxed);
    });
    assert!(found.load(Ordering::Relaxed) > 0, "the echo was never found");
}

#[test]
fn a_reply_reaches_who_asked_or_nobody_however_late() {
    a_whole_life(573, Tables::answered);
}

#[test]
fn an_error_reaches_who_asked_or_nobody_however_late() {
    a_whole_life(573, Tables::told);
}

/// The owner ends a mapping while a last request leaves under it; when the hold-down is over, the owner gives the ident to
/// somebody else while the reply is judged, or an error. It reaches the one who asked, or nobody.
///
/// The batches are as long as they may be, and the clocks as unlucky: the request is stamped one batch after the ending
/// that it did not see, and the reply is judged in a batch that began one batch before the ident's new life.
fn a_whole_life(executions: usize, judge: Judgement) {
    let missed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&missed);
    explore(OF_TWO, executions, move |order| {
        let (tables, [mut owner], key) = Tables::new(|echoes| echoes.hold_down_min(BATCH));
        let hold_down = tables.echoes.hold_down_min(BATCH);
        tables.make(&mut owner, ASKER, at(0));

        // Sent at the beginning of a tick of the stamps, where an echo lives longest.
        let sent = Instant::START + tables.echoes.longest_life() * 2;
        let ended = before(sent, BATCH);
        let end = move |tables: &Tables| (tables.expire(&mut owner, ended), owner);
        let request = move |tables: &Tables| {
            let found = tables.find(ASKER);
            if let Some(index) = found {
                tables.mappings.slots.touch(index, sent);
                tables.echoes.record(key, sent);
            }
            found.is_some()
        };
        let ((has_ended, mut owner), has_left) = order.both(&tables, end, request);
        if has_ended == 0 {
            return; // The request came first: the mapping is in use, and lives.
        }
        assert_eq!(tables.find(ASKER), None, "an ended mapping carries nothing new");
        count.fetch_add(usize::from(has_left), Ordering::Relaxed);

        let freed = ended + hold_down;
        let change_hands = move |tables: &Tables| {
            tables.expire(&mut owner, freed);
            assert_eq!(tables.make(&mut owner, SOMEBODY_ELSE, freed), FIRST);
        };
        let outside = move |tables: &Tables| judge(tables, key, before(freed, BATCH));
        let ((), identity) = order.both(&tables, change_hands, outside);
        assert!(identity.is_none_or(|identity| identity.client() == ASKER), "{identity:?}");
    });
    assert!(missed.load(Ordering::Relaxed) > 0, "no request left while its mapping was being ended");
}

#[test]
fn a_reply_in_time_reaches_who_asked_although_the_mapping_ends() {
    in_time(18, Tables::answered);
}

#[test]
fn an_error_in_time_reaches_who_asked_although_the_mapping_ends() {
    in_time(18, Tables::told);
}

/// What comes from outside comes while the mapping ends, in time, and is delivered.
fn in_time(executions: usize, judge: Judgement) {
    explore(OF_TWO, executions, move |order| {
        let (tables, [mut owner], key) = Tables::new(|echoes| echoes.hold_down_min(BATCH));
        tables.make(&mut owner, ASKER, at(0));
        tables.echoes.record(key, at(59));
        let outside = move |tables: &Tables| judge(tables, key, at(60));
        let (ended, identity) = order.both(&tables, move |tables| tables.expire(&mut owner, at(60)), outside);
        assert_eq!(ended, 1);
        let identity = identity.expect("in time");
        assert!(identity.client() == ASKER && identity.state() != State::Free, "{identity:?}");
    });
}

#[test]
fn of_two_that_make_the_same_mapping_one_wins_and_both_use_it() {
    explore(OF_TWO, 324, |order| {
        let (tables, [mut first, mut second], _) = Tables::new(|_| TIMEOUT);
        let (a, b) = order.both(
            &tables,
            move |tables| (tables.make(&mut first, ASKER, at(0)), first),
            move |tables| (tables.make(&mut second, ASKER, at(0)), second),
        );
        assert_eq!(a.0, b.0);
        assert_eq!(tables.find(ASKER), Some(a.0));
        assert_eq!((a.1.live() + b.1.live(), tables.mappings.clients.mappings_sum()), (1, 1));
        assert_eq!((a.1.audit(&tables.mappings, &[]), b.1.audit(&tables.mappings, &[])), (Ok(()), Ok(())));
    });
}

/// Each ends a mapping of its own and gives the ident back. They meet in the clients' line, which here both clients share, and in
/// the count of what is ready.
#[test]
fn of_two_owners_each_ends_its_own_and_nothing_is_lost_count_of() {
    explore(OF_TWO, 54, |order| {
        let (mut tables, [mut first, mut second], _) = Tables::new(|_| Duration::ZERO);
        Arc::get_mut(&mut tables).expect("nobody has it yet").mappings.clients = Clients::new(1);
        first.announce(&tables.mappings.addresses);
        second.announce(&tables.mappings.addresses);
        tables.make(&mut first, ASKER, at(0));
        tables.make(&mut second, SOMEBODY_ELSE, at(0));
        let end = |mut owner: Idents| {
            move |tables: &Tables| (tables.expire(&mut owner, at(60)), tables.expire(&mut owner, at(61)), owner)
        };
        let (first, second) = order.both(&tables, end(first), end(second));
        for (ended, later, owner) in [first, second] {
            assert_eq!((ended, later, owner.live(), owner.held()), (1, 0, 0, 0));
            assert_eq!(owner.audit(&tables.mappings, &[]), Ok(()));
        }
        assert_eq!((tables.mappings.clients.mappings_sum(), tables.mappings.addresses.ready(0)), (0, 2));
    });
}

/// A client's mapping ends at its owner while another worker has a request of the same client and ident: it uses the
/// ending one or makes its own, and who makes its own sees that the other has ended.
#[test]
fn a_client_and_ident_never_have_two_live_slots() {
    explore(OF_TWO, 390, |order| {
        let (tables, [mut owner, mut other], _) = Tables::new(|_| TIMEOUT);
        tables.make(&mut owner, ASKER, at(0));
        let end = move |tables: &Tables| {
            tables.expire(&mut owner, at(60));
            owner
        };
        let request = move |tables: &Tables| {
            let index = tables.find(ASKER).unwrap_or_else(|| tables.make(&mut other, ASKER, at(60)));
            if index == SECOND {
                assert_eq!(tables.mappings.slots.identity(FIRST).state(), State::Held, "two live slots");
            }
            (index, other)
        };
        let (owner, (index, other)) = order.both(&tables, end, request);
        assert_eq!(tables.find(ASKER), (index == SECOND).then_some(SECOND));
        assert_eq!((owner.audit(&tables.mappings, &[]), other.audit(&tables.mappings, &[])), (Ok(()), Ok(())));
        assert_eq!(tables.mappings.clients.mappings_sum(), other.live() as u64);
    });
}

#[test]
fn a_use_is_not_undone_by_the_mappings_own_beginning() {
    explore(OF_TWO, 27, |order| {
        let (tables, [mut owner], _) = Tables::new(|_| TIMEOUT);
        let request = |tables: &Tables| tables.find(ASKER).inspect(|&index| tables.mappings.slots.touch(index, at(1)));
        let (_, found) = order.both(&tables, move |tables| tables.make(&mut owner, ASKER, at(0)), request);
        let idle_ms = if found.is_some() { 0 } else { 1000 };
        assert_eq!(tables.mappings.slots.idle_ms(FIRST, at(1)), idle_ms);
    });
}

#[test]
fn two_that_take_from_one_bucket_get_its_burst_together() {
    explore(OF_TWO, 558, |order| {
        let clients = Arc::new(Clients::new(1));
        let line = clients.index(0);
        let allowance = Allowance { packets: Rate::new(1, 3), ..Allowance::UNLIMITED };
        let take =
            move |clients: &Clients| (0..2).filter(|_| clients.charge(line, &allowance, 84, at(9)).is_ok()).count();
        let (a, b) = order.both(&clients, take, take);
        assert_eq!(a + b, 3);
    });
}

/// Their clocks may differ by a batch: together they get what a single clock would have given, that of the one ahead.
#[test]
fn two_whose_clocks_differ_get_the_burst_and_what_is_due() {
    explore(OF_TWO, 36, |order| {
        let clients = Arc::new(Clients::new(1));
        let line = clients.index(0);
        let allowance = Allowance { packets: Rate::new(1, 1), ..Allowance::UNLIMITED };
        let take = move |clients: &Clients, now| usize::from(clients.charge(line, &allowance, 84, now).is_ok());
        let (a, b) = order.both(&clients, move |clients| take(clients, at(9)), move |clients| take(clients, at(10)));
        assert!((1..=2).contains(&(a + b)), "{a} {b}");
        assert_eq!(take(&clients, at(10)), 0, "{a} {b}");
    });
}

#[test]
fn two_that_enter_at_once_share_what_is_left() {
    explore(OF_TWO, 36, |order| {
        let clients = Arc::new(Clients::new(1));
        let line = clients.index(0);
        let one = Allowance { mappings_max: 1, ..Allowance::UNLIMITED };
        let enter = move |clients: &Clients| clients.enter(line, &one, at(0), |_| 0);
        let both = order.both(&clients, enter, enter);
        assert!(matches!(both, (Ok(0), Err(Over::Mappings)) | (Err(Over::Mappings), Ok(0))), "{both:?}");
        assert_eq!(clients.mappings(line), 1);
    });
}

/// What a client may do once.
fn once() -> Allowance {
    Allowance { packets: Rate::new(1, 1), new_mappings: Rate::new(1, 1), mappings_max: 1, ..Allowance::UNLIMITED }
}

#[test]
fn a_packet_and_a_mapping_are_charged_apart() {
    explore(OF_TWO, 6, |order| {
        let clients = Arc::new(Clients::new(1));
        let line = clients.index(0);
        let charge = move |clients: &Clients| clients.charge(line, &once(), 84, at(0));
        let enter = move |clients: &Clients| clients.enter(line, &once(), at(0), |_| 0);
        assert_eq!(order.both(&clients, charge, enter), (Ok(()), Ok(0)));
        assert_eq!((charge(&clients), enter(&clients)), (Err(Over::Packets), Err(Over::Mappings)));
        assert_eq!(clients.mappings(line), 1);
    });
}

#[test]
fn a_packet_is_charged_while_a_mapping_ends() {
    explore(OF_TWO, 6, |order| {
        let clients = Arc::new(Clients::new(1));
        let line = clients.index(0);
        let charge = move |clients: &Clients| clients.charge(line, &once(), 84, at(0));
        assert_eq!(clients.enter(line, &once(), at(0), |_| 0), Ok(0));
        let both = order.both(&clients, charge, move |clients| clients.leave(line));
        assert_eq!(both, (Ok(()), ()));
        assert_eq!((charge(&clients), clients.mappings(line)), (Err(Over::Packets), 0));
        assert_eq!(clients.enter(line, &once(), at(0), |_| 0), Err(Over::NewMappings), "what was charged stays so");
    });
}
