//! What workers hand over to one another: requests that one has no ident for, and fragments that are another's to judge.
//! In copies, since a frame stays on its thread; through bounded queues, which drop what has no room.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::io::Waker;

/// Packets that may wait for a worker that they were handed over to.
pub(super) const INBOX_MAX: usize = 256;

/// A request that another worker had no ident for.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) packet: Box<[u8]>,
    /// How many workers have had none.
    pub(super) refusals: usize,
}

/// A worker's queue of requests that others hand over to it. Clones are handles to the same queue.
#[derive(Clone, Debug)]
pub struct Inbox(Arc<ArrayQueue<Parcel>>);

impl Inbox {
    fn new(room: usize) -> Inbox {
        Inbox(Arc::new(ArrayQueue::new(room)))
    }

    /// Whether nothing waits in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Empties it and tells how many there were: once its worker has ended, those are given up.
    pub fn give_up(&self) -> usize {
        std::iter::from_fn(|| self.0.pop()).count()
    }
}

/// Where a worker gets requests that others had no ident for, and where it hands over its own. Clones are the same worker's.
#[derive(Clone, Debug)]
pub struct Post {
    /// This worker's number.
    number: usize,
    /// The workers' inboxes by their numbers, and what wakes them; for a lone worker its own, and nothing.
    inboxes: Vec<(Inbox, Option<Waker>)>,
}

impl Post {
    /// For a worker that is alone.
    pub fn alone() -> Post {
        Post { number: 0, inboxes: vec![(Inbox::new(1), None)] }
    }

    /// One for each of the workers that these wakers wake: each hands over to the next, the last to the first; and a
    /// fragment to the one it belongs to.
    pub fn ring(wakers: &[Waker]) -> Vec<Post> {
        let inbox = |waker: &Waker| (Inbox::new(INBOX_MAX), Some(waker.clone()));
        let inboxes: Vec<_> = wakers.iter().map(inbox).collect();
        (0..wakers.len()).map(|number| Post { number, inboxes: inboxes.clone() }).collect()
    }

    /// This worker's own queue.
    pub fn inbox(&self) -> Inbox {
        self.inboxes[self.number].0.clone()
    }

    pub(super) fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// The worker after this one.
    pub(super) fn next(&self) -> usize {
        (self.number + 1) % self.inboxes.len()
    }

    /// The next packet that others handed over.
    pub(super) fn take(&self) -> Option<Parcel> {
        self.inboxes[self.number].0.0.pop()
    }

    /// Hands a packet over to another worker. Whether that has room.
    pub(super) fn put(&self, worker: usize, parcel: Parcel) -> bool {
        let Some((inbox, Some(waker))) = self.inboxes.get(worker) else { return false };
        let taken = inbox.0.push(parcel).is_ok();
        if taken {
            waker.wake();
        }
        taken
    }
}
