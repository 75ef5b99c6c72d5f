//! Ends that the caller wants.

use std::{
    future::Future,
    ops::Range,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Waker},
};

use futures_util::future::{Either, select};
use llm_local_core::{
    ArtifactRef, ArtifactSource, FetchContext, Manifest, ManifestFile, Opened, ProgressEvent, Result, Want, async_trait,
};
use llm_local_source_common::transfer::Job;
use llm_local_testkit::hub::{Fault, Host, Outcome};
use tokio::sync::oneshot;

use super::support::*;

/// A setup whose third and later answers stall midway.
fn stalling() -> Setup {
    Setup::new().only(MODEL).with_fault(Fault::stall(100_000).path(MODEL).on(Host::Cdn).skip(2))
}

fn wait_for_the_stall(setup: &Setup) {
    let stalled = |r: &llm_local_testkit::hub::Recorded| r.body_bytes_sent == 100_000 && r.outcome == Outcome::Open;
    setup.hub.wait_until(|requests| requests.iter().any(stalled));
}

/// What holds after an end that the caller wanted: the next fetch brings what is missing, and no more.
fn goes_on(mut setup: Setup, kept: u64) {
    let requests = setup.hub.wait_until_idle();
    assert_eq!(requests.iter().filter(|r| r.outcome == Outcome::Aborted).count(), 1, "{requests:?}");
    assert!(setup.published().is_empty());
    setup.cancel = Default::default();
    assert!(pollster::block_on(setup.transfer().present(&setup.job(), &setup.cx())).unwrap().is_none());
    setup.hub.clear();
    setup.hub.clear_faults();
    setup.fetch().unwrap();
    assert!(setup.served() <= SIZE - kept, "{} bytes again, {kept} were kept", setup.served());
    assert!(setup.asked(MODEL).iter().all(|r| r.header("if-range").is_some()), "tied to what is there");
}

#[test]
fn a_cancel_ends_the_requests_and_keeps_what_came() {
    let setup = stalling();
    let error = std::thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let fetched = scope.spawn(|| setup.fetch());
        wait_for_the_stall(&setup);
        setup.cancel.cancel();
        until("the fetch ends", || fetched.is_finished());
        fetched.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), "cancelled");
    let finished = |e: &ProgressEvent| matches!(e, ProgressEvent::Download(p) if p.fraction >= 1.0);
    assert!(!setup.events.lock().unwrap().iter().any(finished));
    setup.assert_unlocked();
    goes_on(setup, 2 * SEGMENT);
}

/// A source that, when it is asked for a second range, says so and does not answer until it is told to.
struct SlowMidway {
    inner: HubSource,
    opened: AtomicUsize,
    asked: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

#[async_trait]
impl ArtifactSource for SlowMidway {
    fn scheme(&self) -> &str {
        self.inner.scheme()
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        self.inner.resolve(reference, want, cx).await
    }

    async fn open(&self, all: &Manifest, file: &ManifestFile, range: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        // The first time it is asked whether the file is on this machine, then for the first range.
        if self.opened.fetch_add(1, Ordering::SeqCst) == 2 {
            // Within one poll, which nothing can end; a test that has failed tells nobody to go on.
            self.asked.send(()).unwrap();
            let _ = self.go.lock().unwrap().recv();
        }
        self.inner.open(all, file, range, cx).await
    }
}

#[test]
fn a_cancelled_fetch_returns_when_its_workers_have_stopped_and_not_before() {
    let setup = Setup::new().only(MODEL);
    let inner = HubSource { endpoint: setup.hub.endpoint(), words: None, placement: None };
    let ((asked, was_asked), (go, told)) = (mpsc::channel(), mpsc::channel());
    let source = Arc::new(SlowMidway { inner, opened: AtomicUsize::new(0), asked, go: Mutex::new(told) });
    let (transfer, cx) = (setup.transfer(), setup.cx());
    let mut fetch = pin!(transfer.fetch(vec![Job::new(source.clone(), setup.manifest())], &cx));
    let mut polled = || fetch.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled().is_pending());
    until("the second range is asked for", || was_asked.try_recv().is_ok());
    setup.cancel.cancel();
    // All that does not wait for the source gets its turn meanwhile.
    let turns = transfer.network().run(async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        Ok(())
    });
    pollster::block_on(turns).unwrap();
    assert!(polled().is_pending(), "a worker is still at work");
    go.send(()).unwrap();
    assert_eq!(pollster::block_on(fetch).unwrap_err().code(), "cancelled");
    setup.assert_unlocked();
    // And none asks for anything after.
    assert_eq!((source.opened.load(Ordering::SeqCst), setup.hub.wait_until_idle().len()), (3, 2));
    assert_eq!(setup.served(), SEGMENT);
}

#[test]
fn dropping_the_future_ends_the_requests_and_keeps_what_was_written() {
    let setup = stalling();
    std::thread::scope(|scope| {
        let (drop_it, dropped) = oneshot::channel::<()>();
        let fetching = scope.spawn(|| {
            let (transfer, cx) = (setup.transfer(), setup.cx());
            pollster::block_on(async {
                match select(pin!(transfer.fetch(vec![setup.job()], &cx)), dropped).await {
                    Either::Left((result, _)) => panic!("it cannot end: {result:?}"),
                    Either::Right(_) => {}
                }
            });
            // The network is still there: it is the future that ended the work.
            setup.hub.wait_until_idle();
        });
        wait_for_the_stall(&setup);
        drop_it.send(()).unwrap();
        fetching.join().unwrap();
    });
    goes_on(setup, 2 * SEGMENT);
}

#[test]
fn a_cancel_before_the_start_does_nothing() {
    let setup = Setup::new();
    setup.cancel.cancel();
    assert_eq!(setup.fetch().unwrap_err().code(), "cancelled");
    assert!(setup.hub.requests().is_empty() && setup.events.lock().unwrap().is_empty());
}

#[test]
fn the_first_error_ends_the_other_files() {
    let mut setup = Setup::new();
    setup.config = setup.config.clone().with_files_at_once(2);
    setup.network = setup.network.clone().with_attempts(u32::MAX);
    // Both are under way; one may try for ever, the other meets its error when it tries again.
    setup.hub.fault(Fault::stall(0).path(MODEL).on(Host::Cdn));
    setup.hub.fault(Fault::stall(1).path(CONFIG).once());
    setup.hub.fault(Fault::status(404).path(CONFIG));
    let error = setup.fetch_past_stalls(|_| true).unwrap_err();
    assert_eq!(error.code(), "not_found", "{error}");
    setup.hub.wait_until_idle();
    assert!(setup.published().is_empty());
}
