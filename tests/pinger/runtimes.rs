//! The futures need no particular runtime: the same function under three executors, and under none. And what befalls a process or
//! a task leaves nobody waiting for ever.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use echogate::pinger::{PingError, Pinger};
use futures_core::Stream;

use crate::scene::{HOST, OTHER, OWN, OWN_TOO, hasty, on_both, patient};
use crate::sys;

/// Two at once, a stream, and a timeout.
async fn visit(pinger: Pinger) {
    let (one, other) = (pinger.ping(OWN, &patient()), pinger.ping(OWN_TOO, &patient()));
    assert_eq!(other.await.unwrap().from, IpAddr::from(OWN_TOO));
    assert_eq!(one.await.unwrap().from, IpAddr::from(OWN));
    let mut answers = pinger.ping_many([OWN; 100], &patient()).at_most(7);
    let mut count = 0;
    while let Some(answer) = std::future::poll_fn(|context| Pin::new(&mut answers).poll_next(context)).await {
        answer.outcome.unwrap();
        count += 1;
    }
    assert_eq!(count, 100);
    assert!(matches!(pinger.ping(HOST, &hasty()).await, Err(PingError::Timeout { .. })));
}

#[test]
fn under_a_plain_block_on() {
    on_both(|_, pinger| pollster::block_on(visit(pinger.clone())));
}

#[test]
fn under_smol() {
    on_both(|_, pinger| {
        smol::block_on(async { smol::spawn(visit(pinger.clone())).await });
    });
}

#[test]
fn under_tokio() {
    on_both(|_, pinger| {
        for mut builder in [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()]
        {
            let runtime = builder.enable_time().build().unwrap();
            let tasks: Vec<_> = (0..20).map(|_| runtime.spawn(visit(pinger.clone()))).collect();
            for task in tasks {
                runtime.block_on(task).unwrap();
            }
        }
    });
}

#[test]
fn an_abandoned_select_cancels() {
    on_both(|_, pinger| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                outcome = pinger.ping(HOST, &patient()) => panic!("{outcome:?}"),
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
            }
        });
        assert_eq!(pinger.in_flight(), 0);
    });
}

#[test]
fn a_future_polled_after_its_end_says_so_and_does_not_panic() {
    on_both(|_, pinger| {
        let mut ping = pinger.ping(OWN, &patient());
        pollster::block_on(&mut ping).unwrap();
        let again = Pin::new(&mut ping).poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(again, Poll::Ready(Err(PingError::Cancelled))));
    });
}

#[test]
fn futures_and_streams_go_from_thread_to_thread() {
    fn sent<T: Send + Unpin>() {}
    fn shared<T: Send + Sync + Clone>() {}
    sent::<echogate::pinger::Ping>();
    sent::<echogate::pinger::PingMany<std::vec::IntoIter<echogate::pinger::Target>>>();
    shared::<Pinger>();
    shared::<PingError>();
}

#[test]
fn in_a_forked_process_a_ping_fails_at_once_and_another_pinger_works() {
    on_both(|wire, pinger| {
        let under_way = pinger.ping(HOST, &patient());
        let request = wire.request();
        let also_under_way = pinger.ping(OTHER, &patient());
        assert!(sys::in_a_fork(|| {
            let broken = |outcome| matches!(outcome, Err(PingError::Broken(_)));
            let fails = broken(pinger.ping_blocking(OWN, &patient())) && broken(also_under_way.wait());
            fails && Pinger::new().is_ok_and(|own| own.ping_blocking(OWN, &patient()).is_ok())
        }));
        // Here all is as it was.
        wire.inject(&request.reply());
        under_way.wait().unwrap();
        pinger.ping_blocking(OWN, &patient()).unwrap();
    });
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Panicking>) {
        panic!("on purpose");
    }
}

#[test]
fn a_task_that_panics_when_it_is_woken_leaves_nobody_waiting() {
    on_both(|wire, pinger| {
        let waker = Arc::new(Panicking).into();
        let mut context = Context::from_waker(&waker);
        let mut panicking = [pinger.ping(HOST, &patient()), pinger.ping(OTHER, &patient())];
        for ping in &mut panicking {
            assert!(Pin::new(ping).poll(&mut context).is_pending());
        }
        let request = wire.request();
        let mut stream = pinger.ping_many([OTHER; 3], &patient());
        assert!(stream.poll_answer(&mut context).is_pending());
        let (calm, calm_stream) = (pinger.ping(OTHER, &patient()), pinger.ping_many([OTHER; 3], &patient()));
        wire.inject(&request.reply());
        assert!(matches!(calm.wait(), Err(PingError::Broken(_))));
        assert!(calm_stream.wait().all(|answer| matches!(answer.outcome, Err(PingError::Broken(_)))));
        assert!(stream.wait().all(|answer| matches!(answer.outcome, Err(PingError::Broken(_)))));
    });
}
