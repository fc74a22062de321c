//! Numbers in place of pointers: what C gets of a proxy, a handle or an outside is the number of a place in a table.
//!
//! So a number that is freed, made up or of another kind is told from one in use, always: a number carries its kind and its
//! place's generation, which freeing advances. A pointer to freed memory could not be. The price is a compare-and-swap
//! on a cache line of the handle's own for each call, and a bound on how many there can be.
//!
//! A place's lock is what makes a handle one thread's at a time, and its poison is the handle's: whoever panics while
//! using a value leaves it locked away from all but the one who frees it. Whether a place is taken stands beside the lock: whoever
//! looks for a free one must not hold that of somebody else's, who would be told that his handle is in use.
//!
//! Limit: 40 bits of generation: a number repeats after 2^40 frees of its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crossbeam::utils::CachePadded;

use crate::status::EchogateStatus;

const PLACE_BITS: u32 = 16;
const GENERATION_BITS: u32 = 40;

/// What the numbers of a table are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Proxy = 1,
    Handle = 2,
    Outside = 3,
}

/// Values of one kind, at most `ROOM` of them.
pub(crate) struct Registry<T, const ROOM: usize> {
    kind: Kind,
    places: [CachePadded<Slot<T>>; ROOM],
}

struct Slot<T> {
    taken: AtomicBool,
    place: Mutex<Place<T>>,
}

struct Place<T> {
    generation: u64,
    value: Option<T>,
}

impl<T, const ROOM: usize> Registry<T, ROOM> {
    pub(crate) const fn new(kind: Kind) -> Registry<T, ROOM> {
        const { assert!(ROOM <= 1 << PLACE_BITS) };
        // The first number of a place is not the zero that C programs begin their variables with.
        Registry { kind, places: [const { CachePadded::new(Slot::free()) }; ROOM] }
    }

    /// Keeps `value`; its number, never 0.
    pub(crate) fn insert(&self, value: T) -> Result<u64, EchogateStatus> {
        // Acquire: pairs with the Release of `vacate`.
        let free = |slot: &CachePadded<Slot<T>>| {
            slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let position = self.places.iter().position(free).ok_or(EchogateStatus::Full)?;
        // Locked at most by whoever has a number that is freed, and is just told so. A free place is not poisoned.
        let mut place = self.places[position].place.lock().unwrap_or_else(PoisonError::into_inner);
        place.value = Some(value);
        Ok(self.number(position as u64, place.generation))
    }

    /// Does `work` with the value, which is nobody else's meanwhile.
    pub(crate) fn with<R>(
        &self,
        number: u64,
        work: impl FnOnce(&mut T) -> Result<R, EchogateStatus>,
    ) -> Result<R, EchogateStatus> {
        let mut place = self.locked(number)?;
        work(place.value.as_mut().ok_or(EchogateStatus::Unknown)?)
    }

    /// Takes the value out, a poisoned one too. Its number means nothing any more.
    pub(crate) fn remove(&self, number: u64) -> Result<T, EchogateStatus> {
        let slot = self.slot(number)?;
        let place = match slot.place.try_lock() {
            Ok(place) => place,
            Err(TryLockError::WouldBlock) => return Err(EchogateStatus::Busy),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let value = self.taken(number, place)?;
        slot.place.clear_poison();
        slot.vacate();
        Ok(value)
    }

    fn taken(&self, number: u64, mut place: MutexGuard<'_, Place<T>>) -> Result<T, EchogateStatus> {
        self.assert_current(number, &place)?;
        place.generation = (place.generation + 1) % (1 << GENERATION_BITS);
        place.value.take().ok_or(EchogateStatus::Unknown)
    }

    fn locked(&self, number: u64) -> Result<MutexGuard<'_, Place<T>>, EchogateStatus> {
        match self.slot(number)?.place.try_lock() {
            Ok(place) => self.assert_current(number, &place).map(|()| place),
            Err(TryLockError::WouldBlock) => Err(EchogateStatus::Busy),
            Err(TryLockError::Poisoned(poisoned)) => {
                Err(self.assert_current(number, &poisoned.into_inner()).err().unwrap_or(EchogateStatus::Poisoned))
            }
        }
    }

    fn slot(&self, number: u64) -> Result<&Slot<T>, EchogateStatus> {
        if number == 0 {
            return Err(EchogateStatus::Null);
        }
        if number >> (PLACE_BITS + GENERATION_BITS) != self.kind as u64 {
            return Err(EchogateStatus::Unknown);
        }
        let position = usize::try_from(number % (1 << PLACE_BITS)).unwrap_or(usize::MAX);
        self.places.get(position).map(|place| &**place).ok_or(EchogateStatus::Unknown)
    }

    fn assert_current(&self, number: u64, place: &Place<T>) -> Result<(), EchogateStatus> {
        let current = (number >> PLACE_BITS) % (1 << GENERATION_BITS) == place.generation && place.value.is_some();
        if current { Ok(()) } else { Err(EchogateStatus::Unknown) }
    }

    fn number(&self, position: u64, generation: u64) -> u64 {
        (self.kind as u64) << (PLACE_BITS + GENERATION_BITS) | generation << PLACE_BITS | position
    }
}

impl<T> Slot<T> {
    const fn free() -> Slot<T> {
        Slot { taken: AtomicBool::new(false), place: Mutex::new(Place { generation: 1, value: None }) }
    }

    /// The place is anybody's again: its value has been taken out.
    fn vacate(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

impl<T: Clone, const ROOM: usize> Registry<T, ROOM> {
    /// A clone of the value, for kinds that several threads use at once. Waits for whoever else is just cloning.
    pub(crate) fn get(&self, number: u64) -> Result<T, EchogateStatus> {
        // Nothing panics with the lock of a value that is only cloned.
        let place = self.slot(number)?.place.lock().unwrap_or_else(PoisonError::into_inner);
        self.assert_current(number, &place)?;
        place.value.clone().ok_or(EchogateStatus::Unknown)
    }

    /// As `remove`, for such kinds: waits for whoever else is just cloning, where a caller must not be told that it is
    /// somebody's.
    pub(crate) fn release(&self, number: u64) -> Result<T, EchogateStatus> {
        // As in `get`.
        let slot = self.slot(number)?;
        let value = self.taken(number, slot.place.lock().unwrap_or_else(PoisonError::into_inner))?;
        slot.vacate();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::guarded;

    #[test]
    fn a_freed_number_is_known_as_such_also_when_its_place_is_anothers() {
        let registry: Registry<&str, 2> = Registry::new(Kind::Handle);
        let first = registry.insert("first").unwrap();
        assert_eq!(registry.with(first, |value| Ok(*value)), Ok("first"));
        assert_eq!(registry.remove(first), Ok("first"));
        let second = registry.insert("second").unwrap();
        assert_ne!(first, second);
        for freed in [first, first + 1, 7] {
            assert_eq!(registry.with(freed, |value| Ok(*value)), Err(EchogateStatus::Unknown));
            assert_eq!(registry.get(freed), Err(EchogateStatus::Unknown));
            assert_eq!(registry.remove(freed), Err(EchogateStatus::Unknown));
        }
        assert_eq!(registry.get(second), Ok("second"));
        assert_eq!(registry.get(0), Err(EchogateStatus::Null));
    }

    #[test]
    fn a_number_of_another_kind_is_unknown() {
        let (handles, proxies) = (Registry::<u8, 2>::new(Kind::Handle), Registry::<u8, 2>::new(Kind::Proxy));
        let (handle, proxy) = (handles.insert(1).unwrap(), proxies.insert(1).unwrap());
        assert_eq!(handles.get(proxy), Err(EchogateStatus::Unknown));
        assert_eq!(proxies.get(handle), Err(EchogateStatus::Unknown));
    }

    #[test]
    fn there_are_no_more_than_there_is_room_for() {
        let registry: Registry<u8, 2> = Registry::new(Kind::Proxy);
        let first = registry.insert(1).unwrap();
        registry.insert(2).unwrap();
        assert_eq!(registry.insert(3), Err(EchogateStatus::Full));
        registry.remove(first).unwrap();
        assert!(registry.insert(3).is_ok());
    }

    /// A thread that uses the value until it is released.
    fn used(registry: &'static Registry<u8, 2>, number: u64) -> (JoinHandle<()>, Arc<Barrier>) {
        let (entered, release) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let theirs = [&entered, &release].map(Arc::clone);
        let user = thread::spawn(move || {
            registry.with(number, |_| Ok(theirs.each_ref().map(|barrier| barrier.wait()))).unwrap();
        });
        entered.wait();
        (user, release)
    }

    #[test]
    fn whoever_comes_while_a_value_is_in_use_is_told_so() {
        static REGISTRY: Registry<u8, 2> = Registry::new(Kind::Handle);
        let number = REGISTRY.insert(1).unwrap();
        let (user, release) = used(&REGISTRY, number);
        assert_eq!(REGISTRY.with(number, |_| Ok(())), Err(EchogateStatus::Busy));
        assert_eq!(REGISTRY.remove(number), Err(EchogateStatus::Busy));
        release.wait();
        user.join().unwrap();
        assert_eq!(REGISTRY.remove(number), Ok(1));
    }

    /// A caller was told once in a while that its own handle is in use, while somebody else made one.
    #[test]
    fn nobody_is_busy_because_others_come_and_go() {
        static REGISTRY: Registry<u64, 8> = Registry::new(Kind::Handle);
        let number = REGISTRY.insert(0).unwrap();
        thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    for value in 0..20_000 {
                        let other = REGISTRY.insert(value).unwrap();
                        assert_eq!(REGISTRY.remove(other), Ok(value));
                    }
                });
            }
            for _ in 0..100_000 {
                let counted = REGISTRY.with(number, |count| {
                    *count += 1;
                    Ok(*count)
                });
                counted.expect("it is nobody else's");
            }
        });
        assert_eq!(REGISTRY.remove(number), Ok(100_000));
    }

    #[test]
    fn what_threads_share_is_freed_however_many_are_just_looking_it_up() {
        static REGISTRY: Registry<u8, 2> = Registry::new(Kind::Outside);
        let number = REGISTRY.insert(1).unwrap();
        let (user, release) = used(&REGISTRY, number);
        let freeing = thread::spawn(move || REGISTRY.release(number));
        assert_eq!(REGISTRY.remove(number), Err(EchogateStatus::Busy));
        release.wait();
        user.join().unwrap();
        assert_eq!(freeing.join().unwrap(), Ok(1));
        assert_eq!(REGISTRY.release(number), Err(EchogateStatus::Unknown));
    }

    #[test]
    fn a_panic_ends_at_the_call_and_poisons_the_value_until_it_is_freed() {
        static REGISTRY: Registry<u8, 1> = Registry::new(Kind::Handle);
        let number = REGISTRY.insert(1).unwrap();
        let call = || guarded(|| REGISTRY.with(number, |_| -> Result<(), _> { panic!("on purpose") }));
        assert_eq!(call(), EchogateStatus::Panicked);
        assert_eq!(call(), EchogateStatus::Poisoned);
        assert_eq!(REGISTRY.insert(2), Err(EchogateStatus::Full), "a poisoned one keeps its place");
        assert_eq!(REGISTRY.remove(number), Ok(1));
        assert_eq!(call(), EchogateStatus::Unknown);
        let next = REGISTRY.insert(2).unwrap();
        assert_eq!(REGISTRY.with(next, |value| Ok(*value)), Ok(2), "the place is whole again");
    }
}
