//! One ping as a future, and waiting for it without a runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use super::error::PingError;
use super::handle::{Ask, Handle, Ticket};
use super::options::{PingOptions, Target};
use super::reply::Reply;

/// A ping under way. Awaiting it gives the reply; dropping it cancels the ping, at once and without a word to the engine.
#[derive(Debug)]
#[must_use = "dropping it cancels the ping"]
pub struct Ping(State);

#[derive(Debug)]
enum State {
    UnderWay(Ticket),
    /// It failed before it began.
    Failed(PingError),
    Over,
}

impl Ping {
    pub(super) fn start(handle: &Arc<Handle>, target: Target, options: &PingOptions) -> Ping {
        let ask = Ask {
            target,
            options: *options,
            at: None,
            number: 0,
            refill: false,
            patience: Duration::ZERO,
            gathering: None,
        };
        let started = handle.ask(ask);
        Ping(started.map_or_else(State::Failed, State::UnderWay))
    }

    /// Waits for the outcome here and now: the calling thread sleeps until the ping has one.
    pub fn wait(mut self) -> Result<Reply, PingError> {
        wait_for(|context| Pin::new(&mut self).poll(context))
    }
}

impl Future for Ping {
    type Output = Result<Reply, PingError>;

    /// Polled again after its end, it is [`PingError::Cancelled`].
    fn poll(mut self: Pin<&mut Ping>, context: &mut Context<'_>) -> Poll<Result<Reply, PingError>> {
        let outcome = match &mut self.0 {
            State::UnderWay(ticket) => match ticket.poll(context.waker()) {
                Some(outcome) => outcome,
                None => return Poll::Pending,
            },
            State::Failed(error) => Err(error.clone()),
            State::Over => Err(PingError::Cancelled),
        };
        self.0 = State::Over;
        Poll::Ready(outcome)
    }
}

/// Polls until it is ready, asleep in between.
pub(super) fn wait_for<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let waker = Waker::from(Arc::new(Sleeper(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match poll(&mut context) {
            Poll::Ready(value) => return value,
            // A wake-up before this makes it return at once.
            Poll::Pending => thread::park(),
        }
    }
}

struct Sleeper(Thread);

impl Wake for Sleeper {
    fn wake(self: Arc<Sleeper>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Sleeper>) {
        self.0.unpark();
    }
}
