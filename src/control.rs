//! How a running gateway is looked at: the control socket, and /metrics and /healthz by HTTP.
//!
//! One thread serves both, by poll(2). It is none of the workers, and no worker ever waits for it: it reads their counters,
//! and what they leave for it in bounded queues. Whoever connects can at worst take this thread's time:
//!
//! * at most [`PEERS_MAX`] connections, the one that has been silent for longest making room for a new one;
//! * a request has to come, and an answer to be read, within seconds; neither is ever longer than a bound;
//! * what comes next from a connection is not read before it has taken its answer.
//!
//! The protocol of the control socket is lines of JSON (`protocol`), versioned. It is a socket in the file system, for
//! which the file's mode says who may; one in the abstract namespace would be open to everybody in the network namespace.
//!
//! Rejected: an HTTP library (those at hand either keep a thread a connection, without bound, or bring an async runtime,
//! and none of them cuts off a reader that does not read), and a thread a connection.

mod busiest;
mod client;
mod devices;
mod exposition;
pub mod http;
mod peer;
mod protocol;
mod server;
mod socket;
mod stats;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver};

pub use self::client::Client;
pub use self::protocol::{Answer, Ask, Followed, Order, Request, VERSION, read_answer, read_followed};
use self::server::Server;
pub use self::socket::{LISTENERS, Listeners, gateways, path_of_device};
pub use self::stats::{AddressNow, BySide, RoundTrips, Stats};
pub use self::traffic::{BusiestNow, Busy};
use crate::error::SetupError;
use crate::gateway::Observer;
use crate::io::Waker;

/// Connections at once, to either listener.
pub const PEERS_MAX: usize = 32;

/// Orders that may wait for whoever carries them out.
const ORDERS_MAX: usize = 4;

/// The thread that serves. Dropped, it ends, and the control socket's file with it.
#[derive(Debug)]
pub struct Control {
    stop: Arc<AtomicBool>,
    waker: Waker,
    orders: Receiver<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Begins to serve. What only the owner of the gateway can do arrives in [`Control::orders`]. `log_lines_lost`: a count
    /// that is not the gateway's, to be told with its numbers.
    pub fn start(
        listeners: Listeners,
        observer: Observer,
        log_lines_lost: Arc<AtomicU64>,
    ) -> Result<Control, SetupError> {
        let stop = Arc::new(AtomicBool::new(false));
        let waker = Waker::new()?;
        let (order, orders) = channel::bounded(ORDERS_MAX);
        let server = Server::new(listeners, observer, log_lines_lost, order, waker.clone());
        let stopped = Arc::clone(&stop);
        // Acquire: pairs with the Release of `drop`.
        let serve = move || server.serve(|| stopped.load(Ordering::Acquire));
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(serve)
            .map_err(|cause| SetupError::caused("cannot start the thread of the control socket", cause))?;
        Ok(Control { stop, waker, orders, thread: Some(thread) })
    }

    /// What somebody asked for by the control socket, to be carried out and answered by the owner of the gateway.
    pub fn orders(&self) -> &Receiver<Order> {
        &self.orders
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Release: pairs with the thread's Acquire.
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the control socket panicked");
        }
    }
}
