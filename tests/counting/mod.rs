//! An allocator that counts for each thread apart, for the tests that say what allocates nothing: here and in `ffi/`. Tests
//! beside each other do not disturb one another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// By thread id, modulo their number: two threads of one process do not come to be so far apart.
static ALLOCATIONS: [AtomicU64; 1 << 16] = [const { AtomicU64::new(0) }; 1 << 16];

thread_local! {
    /// This thread's id; 0 before it is asked for.
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

// `realloc` and `alloc_zeroed` are the trait's own, which call `alloc`.
#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: memory comes from `System`, whose contract this keeps by passing everything on unchanged; counting neither
// allocates (the id is a constant-initialised cell without a destructor) nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a number alone.
        ALLOCATIONS[own_id() % ALLOCATIONS.len()].fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` comes from `alloc` above, so from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[expect(unsafe_code, reason = "std does not tell a thread's id")]
fn own_id() -> usize {
    if THREAD.get() == 0 {
        // SAFETY: it takes nothing and always succeeds.
        let id = unsafe { libc::gettid() };
        THREAD.set(usize::try_from(id).unwrap_or(0));
    }
    THREAD.get()
}

/// How often the thread of this id has allocated.
pub(crate) fn allocations_of(thread: usize) -> u64 {
    // Relaxed: what is compared was counted before something else that the tests wait for.
    ALLOCATIONS[thread % ALLOCATIONS.len()].load(Ordering::Relaxed)
}

/// How often this thread allocates in `work`.
pub(crate) fn allocations(work: impl FnOnce()) -> u64 {
    let before = allocations_of(own_id());
    work();
    allocations_of(own_id()) - before
}

/// The id of the thread that receives for the outside of this network namespace.
pub(crate) fn outside_thread() -> usize {
    let own = fs::read_link("/proc/thread-self/ns/net").expect("/proc is there");
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is there").map(|task| task.expect("a thread").path());
    let mut found = tasks.filter(|task| {
        fs::read_link(task.join("ns/net")).is_ok_and(|namespace| namespace == own)
            && fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "echogate-outsid")
    });
    let task = found.next().expect("a thread that receives");
    task.file_name().and_then(|id| id.to_str()?.parse().ok()).expect("a number")
}
