//! What an application hears, whatever goes wrong.

use std::{
    fs,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use futures_util::{
    StreamExt,
    future::{Either, select},
};
use llm_local_core::{DownloadProgress, FetchContext, ManifestFile, ProgressEvent, Result};
use llm_local_source_common::{
    network::testing::FakeTimer,
    progress::{DownloadStream, download_stream},
    transfer::{Files, Transfer},
};
use llm_local_testkit::hub::{Content, Fault, Host, Outcome, Recorded, Repo};
use proptest::{prelude::*, test_runner::RngSeed};
use tokio::sync::oneshot;

use super::{sources::placed, support::*};

/// Bytes of both files of a setup that is not drawn.
const TOTAL: u64 = SIZE + 8;
/// After so many bytes an answer stalls; no other stops there.
const STALLS_AT: u64 = 77_777;

/// Every fault of a file of `size` bytes; those that nothing but a digest tells only `with_wrong`.
fn fault(size: u64, with_wrong: bool) -> impl Strategy<Value = Fault> {
    let bytes = 0..300_000u64;
    let passing = prop_oneof![
        bytes.clone().prop_map(Fault::cut),
        Just(Fault::hang_up()),
        Just(Fault::stall(STALLS_AT)),
        (-500..500i32).prop_map(Fault::content_length),
    ];
    let contents = prop_oneof![
        Just(Fault::ignore_range()),
        bytes.prop_map(|n| Fault::ignore_range().and(Fault::cut(n))),
        (0..3u8).prop_map(|n| Fault::etag(format!("etag-{n}"))),
        (0..2u8).prop_map(|n| Fault::header("ETag", format!("W/\"weak-{n}\""))),
        Just(Fault::changed(Content::generated(size, 8))),
        Just(Fault::longer(7)),
        Just(Fault::shorter(7)),
        Just(Fault::gzip()),
        Just(Fault::html()),
    ];
    let wrong = prop_oneof![Just(Fault::wrong_bytes()), (0..size).prop_map(Fault::wrong_byte)];
    // 400, 401 and 403 of the second host say that the signed URL has expired.
    let statuses = prop::sample::select(vec![400u16, 401, 403, 404, 408, 416, 500, 503]).prop_map(Fault::status);
    let waits = prop::sample::select(vec!["0", "1", "100", "1000", "Fri, 15 Jan 2027 08:00:09 GMT"]);
    let refusals = prop_oneof![
        statuses,
        waits.clone().prop_map(Fault::too_many_requests),
        waits.prop_map(|after| Fault::status(503).with_header("Retry-After", after)),
        Just(Fault::redirect_loop()),
    ];
    prop_oneof![3 => passing, 4 => contents, u32::from(with_wrong) => wrong, 3 => refusals]
}

/// What is drawn of the two files.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    /// Of the smaller one, which comes in one request or, the largest of them, in two.
    size: u64,
    small_has_digest: bool,
    large_has_digest: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let sizes = prop_oneof![1..400_000u64, 1..1000u64];
    (sizes, prop::bool::weighted(0.7), prop::bool::weighted(0.7))
        .prop_map(|(size, small_has_digest, large_has_digest)| Drawn { size, small_has_digest, large_has_digest })
}

/// A fault, for some of the requests.
fn aimed(files: Drawn) -> impl Strategy<Value = Fault> {
    let small = fault(files.size, files.small_has_digest).prop_map(|fault| (fault, CONFIG));
    let large = fault(SIZE, files.large_has_digest).prop_map(|fault| (fault, MODEL));
    let host = prop_oneof![Just(None), Just(Some(Host::Cdn))];
    (prop_oneof![small, large], host, 0..6usize, prop::option::of(1..3usize)).prop_map(
        |((fault, path), host, skip, times)| {
            let fault = fault.path(path).skip(skip);
            let fault = host.filter(|_| path == MODEL).into_iter().fold(fault, Fault::on);
            times.into_iter().fold(fault, Fault::times)
        },
    )
}

/// What happens in a run: faults, and for how many requests a signed URL is good.
type Troubles = (Vec<Fault>, Option<usize>);

fn troubles(files: Drawn) -> impl Strategy<Value = Troubles> {
    let url_uses = prop_oneof![4 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(0))];
    (prop::collection::vec(aimed(files), 0..5), url_uses)
}

/// The files, and what happens in two runs.
fn two_runs() -> impl Strategy<Value = (Drawn, [Troubles; 2])> {
    drawn().prop_flat_map(|files| (Just(files), [troubles(files), troubles(files)]))
}

/// The same cases each time, but for another seed in `PROPTEST_RNG_SEED`.
fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(4),
        given => given,
    };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..default }
}

impl Setup {
    /// A setup for a property: some ranges and two files at a time.
    fn of_a_case(ranges: usize, files: Drawn) -> Self {
        let mut setup = Self::new();
        setup.config = setup.config.clone().with_ranges_per_file(ranges).with_files_at_once(2);
        setup.is_hurried = true;
        let small = Content::generated(files.size, 6);
        let repo = Repo::new(REPO).with_file(CONFIG, small.clone()).with_lfs(MODEL, setup.contents[MODEL].clone());
        setup.hub.publish(repo);
        setup.files[0] = ManifestFile::new(CONFIG, files.size).with_digest(git_blob(&small));
        setup.contents.insert(CONFIG.to_owned(), small);
        for (file, has_digest) in setup.files.iter_mut().zip([files.small_has_digest, files.large_has_digest]) {
            if !has_digest {
                file.digest = None;
                setup.versions.push(Content::generated(file.size, 8));
            }
        }
        setup
    }

    /// Bytes of all files.
    fn total(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn trouble(&self, (faults, url_uses): Troubles) {
        self.hub.clear_faults();
        self.hub.set_url_uses(url_uses);
        faults.into_iter().for_each(|fault| self.hub.fault(fault));
    }

    /// Bytes of all files that are there, published or in partials.
    fn kept(&self) -> u64 {
        let published: u64 = self.published().iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let Ok(partials) = self.root.path().join("partials").read_dir() else { return published };
        let counts = partials.map(|partial| {
            let state = fs::read(partial.unwrap().path().join("state")).unwrap();
            let counts = state.iter().position(|b| *b == b'\n').unwrap() + 1;
            let counts = state[counts..].chunks_exact(8);
            counts.map(|count| u64::from_le_bytes(count.try_into().unwrap())).sum::<u64>()
        });
        published + counts.sum::<u64>()
    }

    /// The progress of a fetch as a stream; what its handler hears, and what comes of it, are put down too.
    fn stream(&self, transfer: &Transfer) -> (DownloadStream, Arc<Mutex<Option<Result<Files>>>>) {
        let result = Arc::new(Mutex::new(None));
        let (transfer, job, cx, put) = (transfer.clone(), self.job(), self.cx(), result.clone());
        let stream = download_stream(|handler| async move {
            let events = cx.progress.clone().unwrap();
            let both = move |event: &ProgressEvent| {
                events.on_progress(event);
                handler.on_progress(event);
            };
            let fetched = transfer.fetch(vec![job], &cx.with_progress(Arc::new(both))).await;
            let told = fetched.as_ref().map(drop).map_err(Clone::clone);
            *put.lock().unwrap() = Some(fetched.map(|mut files| files.remove(0)));
            told
        });
        (stream, result)
    }

    /// What `work` gives, while every answer that stalls is found to do so.
    fn past_stalls<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = EndOnPanic(self);
            let working = scope.spawn(|| {
                let _over = Over(&over, self);
                work()
            });
            let is_over = || over.load(Ordering::SeqCst);
            let state = |requests: &[Recorded]| {
                (requests.len(), requests.iter().filter(|request| request.outcome.is_over()).count())
            };
            loop {
                let requests = self.hub.wait_until(|requests| is_over() || requests.iter().any(is_stalled));
                if is_over() {
                    return working.join().unwrap();
                }
                // It may meet another one that has nothing to read at this moment, which is then tried again.
                self.timer.end_stalls(1);
                self.hub.wait_until(|now| is_over() || state(now) != state(&requests));
            }
        })
    }
}

fn is_stalled(request: &Recorded) -> bool {
    request.outcome == Outcome::Open && request.body_bytes_sent == STALLS_AT
}

/// Tells, when dropped, that some work is over to whoever waits for requests.
struct Over<'a>(&'a AtomicBool, &'a Setup);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.hub.clear();
    }
}

/// Fetches, and checks what was told. The bytes that are present at first are `present`.
fn told_right(setup: &mut Setup, present: u64) -> Result<bool, TestCaseError> {
    setup.events = Default::default();
    // What stalls in one run does not in another.
    setup.timer = FakeTimer::new();
    let setup = &*setup;
    // There to the end: it is not its end that ends requests.
    let transfer = setup.transfer();
    let (items, result) = setup.past_stalls(|| {
        let (stream, result) = setup.stream(&transfer);
        let items: Vec<_> = pollster::block_on(stream.collect());
        let result = result.lock().unwrap().take().unwrap();
        setup.check(&result);
        (items, result)
    });
    setup.hub.wait_until_idle();
    let events = std::mem::take(&mut *setup.events.lock().unwrap());
    let heard = events.iter().filter_map(|event| match event {
        ProgressEvent::Download(progress) => Some(progress.clone()),
        _ => None,
    });
    never_falls(&heard.collect::<Vec<_>>(), present, setup.total(), result.is_ok())?;
    if result.is_ok() {
        let last = events.last();
        prop_assert!(matches!(last, Some(ProgressEvent::Download(p)) if p.fraction == 1.0), "{:?}", last);
    }
    // The stream: values, and then one error if that is how it ends.
    let values: Vec<_> = items.iter().map_while(|item| item.as_ref().ok().cloned()).collect();
    never_falls(&values, present, setup.total(), result.is_ok())?;
    prop_assert_eq!(items.len() - values.len(), usize::from(result.is_err()), "{:?}", items);
    if let Err(error) = &result {
        prop_assert_eq!(items.last().unwrap().as_ref().unwrap_err().to_string(), error.to_string());
    }
    Ok(result.is_ok())
}

/// Checks that the first value is what is `present` of the `total`, that none is lower than one before, and that the last is 1.0 if it
/// `ended_well`, and no other.
fn never_falls(values: &[DownloadProgress], present: u64, total: u64, ended_well: bool) -> Result<(), TestCaseError> {
    // Also before an error that comes at once.
    prop_assert_eq!(values.first().map(|first| first.completed_bytes), Some(present));
    for pair in values.windows(2) {
        prop_assert!(pair[0].fraction <= pair[1].fraction && pair[0].completed_bytes <= pair[1].completed_bytes);
    }
    prop_assert!(values.iter().all(|d| d.total_bytes == total && d.completed_bytes <= total));
    prop_assert_eq!(values.iter().filter(|d| d.fraction == 1.0).count(), usize::from(ended_well));
    prop_assert_eq!(values.last().is_some_and(|last| last.fraction == 1.0), ended_well);
    Ok(())
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn progress_begins_at_what_is_there_never_falls_and_ends_at_one_or_an_error(
        (files, [first, second]) in two_runs(),
        ranges in 1..4usize,
    ) {
        let mut setup = Setup::of_a_case(ranges, files);
        setup.trouble(first);
        told_right(&mut setup, 0)?;
        // A second run begins with what the first one left, and a third one, in which nothing goes wrong, ends well.
        setup.trouble(second);
        let present = setup.kept();
        told_right(&mut setup, present)?;
        setup.trouble(Default::default());
        let present = setup.kept();
        prop_assert!(told_right(&mut setup, present)?, "without faults it succeeds");
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn dropping_the_stream_ends_its_requests_and_nothing_wrong_is_there(
        (files, [troubles, _]) in two_runs(),
        ranges in 1..4usize,
        seen in 0..14usize,
    ) {
        let mut setup = Setup::of_a_case(ranges, files);
        setup.trouble(troubles);
        let transfer = setup.transfer();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let (drop_it, dropped) = oneshot::channel::<()>();
            let (setup, over) = (&setup, &over);
            scope.spawn(move || {
                // A stall is ended by nothing else.
                let enough = |requests: &[Recorded]| requests.len() >= seen || requests.iter().any(is_stalled);
                setup.hub.wait_until(|requests| over.load(Ordering::SeqCst) || enough(requests));
                // It may have ended before.
                let _ = drop_it.send(());
            });
            let _over = Over(over, setup);
            let (stream, _) = setup.stream(&transfer);
            pollster::block_on(async {
                if let Either::Left((items, _)) = select(pin!(stream.collect::<Vec<_>>()), dropped).await {
                    assert!(!items.is_empty());
                }
            });
            // The threads of the network are still there: it is the stream that ended the requests.
            setup.hub.wait_until_idle();
        });
        // What was being written then is written, and nobody has a file any more.
        setup.locks().iter().for_each(|lock| lock.lock().unwrap());
        let there = pollster::block_on(transfer.present(&setup.job(), &setup.cx())).unwrap();
        setup.check(&there.ok_or(llm_local_core::Error::Cancelled));
        setup.trouble(Default::default());
        let present = setup.kept();
        prop_assert!(told_right(&mut setup, present)?, "without faults it succeeds");
    }
}

#[test]
fn one_is_told_when_all_is_published_recorded_and_named_by_the_ref_and_not_before() {
    let mut setup = Setup::new();
    let (cache, root) = (placed(&mut setup), setup.root.path().to_owned());
    let found = Arc::new(Mutex::new(Vec::new()));
    let put = found.clone();
    let handler = move |event: &ProgressEvent| {
        if !matches!(event, ProgressEvent::Download(progress) if progress.fraction >= 1.0) {
            return;
        }
        let entries = |path| fs::read_dir(path).map_or(0, Iterator::count);
        let sizes =
            [CONFIG, MODEL].map(|name| fs::metadata(cache.join("snapshots/1").join(name)).map_or(0, |m| m.len()));
        let named = fs::read_to_string(cache.join("refs/main")).unwrap_or_default();
        let is_record = |e: &fs::DirEntry| e.path().extension().is_some_and(|extension| extension == "json");
        let records = fs::read_dir(root.join("artifacts")).map_or(0, |all| all.flatten().filter(is_record).count());
        put.lock().unwrap().push((sizes, named, records, entries(root.join("partials"))));
    };
    let cx = FetchContext::new().with_progress(Arc::new(handler));
    pollster::block_on(setup.transfer().fetch(vec![setup.job()], &cx)).unwrap();
    assert_eq!(*found.lock().unwrap(), [([8, SIZE], "1".to_owned(), 1, 0)]);
}

#[test]
fn the_stream_ends_with_one_or_with_the_error() {
    for wrong in [false, true] {
        let setup = Setup::new();
        if wrong {
            setup.hub.fault(Fault::wrong_bytes().path(MODEL));
        }
        let (stream, _) = setup.stream(&setup.transfer());
        let items: Vec<_> = pollster::block_on(stream.collect());
        let (last, others) = items.split_last().unwrap();
        let first = others.first().unwrap().as_ref().unwrap();
        assert_eq!((first.completed_bytes, first.total_bytes), (0, TOTAL));
        assert!(others.iter().all(|item| item.as_ref().is_ok_and(|p| p.fraction < 1.0)));
        match last {
            Ok(progress) => assert_eq!((wrong, progress.fraction), (false, 1.0)),
            Err(error) => assert_eq!((wrong, error.code()), (true, "integrity_failed")),
        }
    }
}

#[test]
fn dropping_the_stream_ends_the_requests() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::stall(1000).path(MODEL));
    let transfer = setup.transfer();
    let (mut stream, _) = setup.stream(&transfer);
    let first = pollster::block_on(stream.next()).unwrap().unwrap();
    assert_eq!(first.fraction, 0.0);
    let stalled = |r: &Recorded| r.body_bytes_sent == 1000 && r.outcome == Outcome::Open;
    setup.hub.wait_until(|requests| requests.iter().any(stalled));
    drop(stream);
    let requests = setup.hub.wait_until_idle();
    assert_eq!((requests.len(), requests.iter().filter(|r| r.outcome == Outcome::Aborted).count()), (2, 1));
    assert!(setup.published().is_empty());
}
