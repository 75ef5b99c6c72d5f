//! Ends that the caller wants.

use std::{
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures_util::future::{Either, select};
use llm_local_core::{
    ArtifactRef, ArtifactSource, CancellationToken, FetchContext, Manifest, ManifestFile, Opened, ProgressEvent,
    Result, Want, async_trait,
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
        fetched.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), "cancelled");
    let finished = |e: &ProgressEvent| matches!(e, ProgressEvent::Download(p) if p.fraction >= 1.0);
    assert!(!setup.events.lock().unwrap().iter().any(finished));
    setup.assert_unlocked();
    goes_on(setup, 2 * SEGMENT);
}

/// A source that cancels the fetch when it is asked for a second range, and takes its time to answer.
struct CancelsMidway {
    inner: HubSource,
    cancel: CancellationToken,
    asked: AtomicUsize,
    /// Whether the fetch has returned.
    returned: Arc<AtomicBool>,
    answered: AtomicBool,
}

#[async_trait]
impl ArtifactSource for CancelsMidway {
    fn scheme(&self) -> &str {
        self.inner.scheme()
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        self.inner.resolve(reference, want, cx).await
    }

    async fn open(&self, all: &Manifest, file: &ManifestFile, range: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        // The first time it is asked whether the file is on this machine, then for the first range.
        if self.asked.fetch_add(1, Ordering::SeqCst) == 2 {
            // From another thread: this one has no time for those that it wakes.
            let cancel = self.cancel.clone();
            std::thread::spawn(move || cancel.cancel()).join().unwrap();
            // Within one poll, which nothing can end. Whoever does not wait for it has returned long before.
            let patience = (0..100_000).take_while(|_| !self.returned.load(Ordering::SeqCst));
            patience.for_each(|_| std::thread::yield_now());
            self.answered.store(true, Ordering::SeqCst);
        }
        self.inner.open(all, file, range, cx).await
    }
}

#[test]
fn a_cancelled_fetch_returns_when_its_workers_have_stopped_and_not_before() {
    let setup = Setup::new().only(MODEL);
    let inner = HubSource { endpoint: setup.hub.endpoint(), words: None, placement: None };
    let (cancel, returned) = (setup.cancel.clone(), Arc::new(AtomicBool::new(false)));
    let (asked, answered) = Default::default();
    let source = Arc::new(CancelsMidway { inner, cancel, asked, returned: returned.clone(), answered });
    let job = Job::new(source.clone(), setup.manifest());
    let result = pollster::block_on(setup.transfer().fetch(vec![job], &setup.cx()));
    // Before the source learns of it.
    let had_answered = source.answered.load(Ordering::SeqCst);
    returned.store(true, Ordering::SeqCst);
    assert_eq!(result.unwrap_err().code(), "cancelled");
    assert!(had_answered, "a worker was still at work");
    setup.assert_unlocked();
    // And none asks for anything after.
    assert_eq!((source.asked.load(Ordering::SeqCst), setup.hub.wait_until_idle().len()), (3, 2));
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
