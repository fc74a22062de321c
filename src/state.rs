//! What outlives a packet process: the tables, in memory that somebody else keeps meanwhile.
//!
//! ```text
//! 0      header: what this is, for which settings, under which keys; which addresses there are, when it was last used
//! 4096   outstanding echoes, in buckets of 64 bytes
//! then   slots, 65,536 of 64 bytes for each address
//! ```
//!
//! Only what cannot be worked out again is here: whose each ident is, which echoes are awaited, what the addresses' numbers stand
//! for. The way from a client to its slot, the ready idents and the clients' numbers of mappings follow from the slots by one scan
//! (`crate::table::idents`). Token buckets, parts of requests in fragments and counters begin anew: a client that was at its
//! limit gets one more burst, which is less than what it costs to keep its bucket right while somebody is killed in it.
//!
//! Time stamps are of the machine's monotonic clock ([`clock`]), which is one for all processes.
//!
//! **Whose.** What another layout, another boot of the machine or other settings have left is no use to anybody: it is *foreign*,
//! said to be so, and left alone. So is what has not been used for so long that all of it has ended. The header is written before
//! the memory is given to anybody, and never changes but for these, each in words by themselves: the addresses, how many they are,
//! which of them are lost and which drain (all by the process that keeps the memory), and when it was last used (by the one that
//! uses it).
//!
//! Other addresses than before are taken up between two processes that use the memory, which grows for those that are added
//! (`places`).
//!
//! Rejected: a file. A disk has its own troubles, and after a reboot there is nothing worth reading.

mod places;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, fs, hint};

use crate::clock::{Clock as _, Instant, Monotonic};
use crate::error::SetupError;
use crate::io::region::Region;
use crate::proxy::{Keys, Tables};
use crate::sys::time;
use crate::table::slots::SLOT_BYTES;
use crate::table::{ADDRESSES_MAX, SHARDS, addresses, echoes};

/// To be raised with every change of what the bytes mean: of the header, a slot, a word of an echo, or the ways of sealing
/// and scrambling.
pub const LAYOUT: u64 = 2;

/// The first bytes.
const MAGIC: u64 = u64::from_ne_bytes(*b"echogate");

const HEADER_BYTES: usize = 4096;
/// Where the kernel's pages are larger, some are looked at twice.
const PAGE_BYTES: usize = 4096;
const SLOTS_AN_ADDRESS: usize = 1 << 16;

/// Words of the header that never change; the last of them is a sum over the others.
const FIXED_WORDS: usize = 16;
/// The word that says when the tables were last used.
const USED: usize = FIXED_WORDS;
const HEADER_WORDS: usize = FIXED_WORDS + 1;
/// Where the addresses are, the words that mark them, and the one that says how many they are, in bytes.
const ADDRESSES: usize = 1024;
const MARKS: usize = ADDRESSES + 4 * ADDRESSES_MAX;
const COUNT: usize = MARKS + 4 * addresses::MARKS;

/// Everything in the tables has ended by then: no idle time and no hold-down is longer than a day.
const ALL_ENDED: Duration = Duration::from_secs(2 * 24 * 60 * 60);

pub use places::Place;

/// What the tables must have been made for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Words of the table of outstanding echoes, as a power of two.
    pub echo_words_log2: u32,
    /// How long a reply is waited for.
    pub echo_timeout: Duration,
}

/// Why tables are not taken up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign(String);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The memory with the tables.
#[derive(Debug)]
pub struct State {
    region: Region,
    header: &'static [AtomicU64],
    shape: Shape,
    tables: Tables,
}

/// The machine's clock, for time stamps that another process is to read.
pub fn clock() -> Result<Monotonic, SetupError> {
    let now = time::monotonic().map_err(|cause| SetupError::caused("the monotonic clock cannot be read", cause))?;
    Ok(Monotonic::reading(Instant::START + now))
}

impl State {
    /// Memory for empty tables of these addresses, of which there are 1 to [`ADDRESSES_MAX`].
    pub fn create(shape: &Shape, addresses: &[Ipv4Addr]) -> Result<State, SetupError> {
        let region = Region::create(shape.bytes(addresses.len()))?;
        let fixed = shape.header(&boot_id()?, Keys::draw());
        let layout = || SetupError::new("the memory of the tables is smaller than was asked for");
        let header = region.part::<AtomicU64>(0, HEADER_WORDS).ok_or_else(layout)?;
        // Relaxed, as all here: whoever the memory is given to gets it by a message or as a child, which come after.
        header.iter().zip(fixed).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        count_of(&region).ok_or_else(layout)?.store(u32::try_from(addresses.len()).unwrap_or(0), Ordering::Relaxed);
        let words = region.part::<AtomicU32>(ADDRESSES, addresses.len()).ok_or_else(layout)?;
        for (word, address) in words.iter().zip(addresses) {
            word.store(u32::from(*address), Ordering::Relaxed);
        }
        let state = State::over(region, shape).ok_or_else(layout)?;
        state.used(clock()?.now());
        Ok(state)
    }

    /// Memory that another process has left.
    pub fn open(file: OwnedFd, shape: &Shape) -> Result<State, Foreign> {
        let foreign = |why: String| Foreign(why);
        let region = Region::open(file).map_err(|error| foreign(error.to_string()))?;
        let boot_id = boot_id().map_err(|error| foreign(error.to_string()))?;
        let header = region.part::<AtomicU64>(0, HEADER_WORDS).ok_or_else(|| foreign("it is too short".to_owned()))?;
        let found: [u64; FIXED_WORDS] = std::array::from_fn(|word| header[word].load(Ordering::Relaxed));
        shape.compare(&found, &boot_id).map_err(Foreign)?;
        let unfit = || foreign("it is too short, or says that it has other addresses".to_owned());
        let state = State::over(region, shape).ok_or_else(unfit)?;
        let now = clock().map_err(|error| foreign(error.to_string()))?.now();
        let unused = now.since(state.last_used());
        if unused >= ALL_ENDED {
            return Err(foreign(format!("nobody has used it for {} s", unused.as_secs())));
        }
        Ok(state)
    }

    fn over(region: Region, shape: &Shape) -> Option<State> {
        let header = region.part::<AtomicU64>(0, HEADER_WORDS)?;
        let count = count_of(&region)?.load(Ordering::Relaxed) as usize;
        if !(1..=ADDRESSES_MAX).contains(&count) {
            return None;
        }
        let word = |number: usize| header[number].load(Ordering::Relaxed);
        let tables = Tables {
            slots: region.part(shape.slots_at(), count * SLOTS_AN_ADDRESS)?,
            buckets: region.part(HEADER_BYTES, echoes::buckets(shape.echo_words_log2))?,
            addresses: region.part(ADDRESSES, count)?,
            marks: region.part(MARKS, addresses::MARKS)?,
            keys: Keys { echoes: [word(9), word(10), word(11), word(12)], seal: word(13), fragments: word(14) },
        };
        Some(State { region, header, shape: shape.clone(), tables })
    }

    /// Has every page of it here, so that the first look at the tables waits for none.
    pub fn bring_in(&self) {
        for page in 0..self.region.len() / PAGE_BYTES {
            let word = self.region.part::<AtomicU64>(page * PAGE_BYTES, 1);
            // Looking at it is all.
            let _ = hint::black_box(word.and_then(|word| Some(word.first()?.load(Ordering::Relaxed))));
        }
    }

    /// The gateway's addresses as they are now, which whoever keeps the memory may change.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.tables.addresses.iter().map(|word| word.load(Ordering::Relaxed).into()).collect()
    }

    /// The tables.
    pub fn tables(&self) -> Tables {
        self.tables
    }

    /// Says that the tables are in use now: now and then, by whoever uses them.
    pub fn used(&self, now: Instant) {
        self.header[USED].store(now.as_nanos(), Ordering::Relaxed);
    }

    /// When somebody last said so.
    pub fn last_used(&self) -> Instant {
        Instant::from_nanos(self.header[USED].load(Ordering::Relaxed))
    }
}

impl AsFd for State {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.region.as_fd()
    }
}

impl Shape {
    fn slots_at(&self) -> usize {
        HEADER_BYTES + 8 * (1 << self.echo_words_log2)
    }

    fn bytes(&self, addresses: usize) -> usize {
        self.slots_at() + addresses * SLOTS_AN_ADDRESS * SLOT_BYTES
    }

    fn header(&self, boot_id: &[u64; 2], keys: Keys) -> [u64; FIXED_WORDS] {
        let [k0, k1, k2, k3] = keys.echoes;
        let mut words = [
            MAGIC,
            LAYOUT,
            HEADER_BYTES as u64,
            boot_id[0],
            boot_id[1],
            (SHARDS as u64) << 32 | SLOT_BYTES as u64,
            SLOTS_AN_ADDRESS as u64,
            self.echo_words_log2.into(),
            u64::try_from(self.echo_timeout.as_nanos()).unwrap_or(u64::MAX),
            k0,
            k1,
            k2,
            k3,
            keys.seal,
            keys.fragments,
            0,
        ];
        words[FIXED_WORDS - 1] = sum(&words);
        words
    }

    /// Says what differs, the plainest first.
    fn compare(&self, found: &[u64; FIXED_WORDS], boot_id: &[u64; 2]) -> Result<(), String> {
        let keys = Keys { echoes: [0; 4], seal: 0, fragments: 0 };
        let wanted = self.header(boot_id, keys);
        if found[0] != wanted[0] {
            return Err("it is no table of this program's".to_owned());
        }
        if found[1] != wanted[1] {
            return Err(format!("it has layout {}, and this version knows layout {}", found[1], wanted[1]));
        }
        if found[FIXED_WORDS - 1] != sum(found) {
            return Err("its header is damaged".to_owned());
        }
        if found[3..5] != wanted[3..5] {
            return Err("it is from before the machine was started".to_owned());
        }
        let named = [
            (5, "the form of its slots"),
            (6, "the number of slots of an address"),
            (7, "its echo.table_words"),
            (8, "its echo.timeout"),
            (2, "the length of its header"),
        ];
        if let Some((_, name)) = named.into_iter().find(|(word, _)| found[*word] != wanted[*word]) {
            return Err(format!("{name} is another one"));
        }
        Ok(())
    }
}

/// The word that says how many addresses there are.
fn count_of(region: &Region) -> Option<&'static AtomicU32> {
    region.part(COUNT, 1)?.first()
}

/// Over all words but the last.
fn sum(words: &[u64; FIXED_WORDS]) -> u64 {
    let mix = |sum: u64, word: &u64| (sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    words[..FIXED_WORDS - 1].iter().fold(LAYOUT, mix)
}

/// What the kernel has drawn when the machine was started.
fn boot_id() -> Result<[u64; 2], SetupError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let unreadable = |cause| SetupError::caused(format!("{path} cannot be read"), cause);
    let text = fs::read_to_string(path).map_err(unreadable)?.trim().replace('-', "");
    let half = |digits: Option<&str>| digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match (half(text.get(..16)), half(text.get(16..))) {
        (Some(high), Some(low)) => Ok([high, low]),
        _ => Err(SetupError::new(format!("{path} is no UUID: {text:?}"))),
    }
}

#[cfg(test)]
mod tests;
