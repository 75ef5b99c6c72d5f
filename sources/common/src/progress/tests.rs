use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::StreamExt;
use llm_local_core::{ArtifactRef, DownloadProgress, Error, FileProgress, ProgressEvent, ProgressHandler, Result};
use pollster::block_on;
use proptest::prelude::*;

use super::{
    DownloadStream, FileMeter, Meter,
    delivery::{Kind, Note},
    download_stream,
    tally::Tally,
};
use crate::network::testing::FakeTimer;

fn reference() -> ArtifactRef {
    "hf:org/name".parse().unwrap()
}

/// A handler that keeps what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<ProgressEvent>>);

impl ProgressHandler for Heard {
    fn on_progress(&self, event: &ProgressEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Heard {
    fn events(&self) -> Vec<ProgressEvent> {
        self.0.lock().unwrap().clone()
    }

    fn downloads(&self) -> Vec<DownloadProgress> {
        let events = self.events().into_iter();
        events.filter_map(|e| if let ProgressEvent::Download(d) = e { Some(d) } else { None }).collect()
    }

    fn files(&self, path: &str) -> Vec<FileProgress> {
        let events = self.events().into_iter();
        let files = events.filter_map(|e| if let ProgressEvent::File(f) = e { Some(f) } else { None });
        files.filter(|f| f.path == path).collect()
    }
}

fn meter(timer: &FakeTimer, total: u64) -> (Arc<Heard>, Meter) {
    let heard = Arc::new(Heard::default());
    let meter = Meter::new(Arc::new(timer.clone()), Some(heard.clone()), total).unwrap();
    (heard, meter)
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, u64),
    Reset(usize, u64),
    Done(usize),
    Wait(usize),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..400_u64).prop_map(|(i, n)| Step::Add(i, n)),
        1 => (0..3_usize, 0..400_u64).prop_map(|(i, n)| Step::Reset(i, n)),
        1 => (0..3_usize).prop_map(Step::Done),
        1 => (0..3_usize).prop_map(Step::Wait),
        4 => (0..250_u64).prop_map(Step::Advance),
    ]
}

fn take(step: &Step, files: &[FileMeter], timer: &FakeTimer) {
    match *step {
        Step::Add(i, n) => files[i].add(n),
        Step::Reset(i, n) => files[i].reset_to(n),
        Step::Done(i) => files[i].done(),
        Step::Wait(i) => files[i].waiting("process 7"),
        Step::Advance(ms) => timer.advance(Duration::from_millis(ms)),
    }
}

const SIZES: [u64; 3] = [1000, 300, 0];

proptest! {
    #[test]
    fn a_plan_begins_with_what_is_present_never_decreases_and_ends_once(
        present in proptest::array::uniform3(0..400_u64),
        before in proptest::collection::vec(0..3_usize, 0..3),
        steps in proptest::collection::vec(step(), 0..60),
        how in 0..3_u8,
        after in proptest::collection::vec(step(), 0..10),
    ) {
        let timer = FakeTimer::new();
        let (heard, meter) = meter(&timer, SIZES.iter().sum());
        let files: Vec<_> = (0..3).map(|i| meter.file(reference(), i.to_string(), SIZES[i])).collect();
        let mut there = 0;
        for i in 0..3 {
            if before.contains(&i) {
                files[i].done();
                there += SIZES[i];
            } else {
                files[i].reset_to(present[i]);
                there += present[i].min(SIZES[i]);
            }
        }
        meter.begin();
        steps.iter().for_each(|s| take(s, &files, &timer));
        match how {
            0 => block_on(meter.finish()),
            _ => block_on(meter.stop()),
        }
        let told = heard.events();
        after.iter().for_each(|s| take(s, &files, &timer));
        meter.begin();
        block_on(meter.finish());
        drop(meter);
        prop_assert_eq!(&heard.events(), &told, "nothing comes after the end");

        let plan = heard.downloads();
        if how == 0 {
            let Some(ProgressEvent::Download(last)) = told.last() else { panic!("{told:?}") };
            prop_assert_eq!(last, &DownloadProgress::finished(1300));
            prop_assert!(matches!(&told[0], ProgressEvent::Download(_)));
        }
        prop_assert_eq!(plan.iter().filter(|p| p.fraction >= 1.0).count(), usize::from(how == 0));
        if let Some(first) = plan.first() {
            prop_assert_eq!(first.completed_bytes, there);
        }
        prop_assert!(plan.windows(2).all(|w| w[0].fraction <= w[1].fraction), "{:?}", plan);
        prop_assert!(plan.windows(2).all(|w| w[0].completed_bytes <= w[1].completed_bytes), "{:?}", plan);
        prop_assert!(plan.iter().all(|p| p.total_bytes == 1300 && p.completed_bytes <= 1300));
        for (i, size) in SIZES.iter().enumerate() {
            let file = heard.files(&i.to_string());
            prop_assert!(file.windows(2).all(|w| w[0].completed_bytes < w[1].completed_bytes), "{:?}", file);
            let is_done = before.contains(&i) || steps.iter().any(|s| matches!(s, Step::Done(j) if *j == i));
            let whole = file.iter().filter(|f| f.completed_bytes == *size).count();
            if how == 0 {
                prop_assert_eq!(whole, usize::from(is_done), "{:?}", file);
            }
        }
    }

    #[test]
    fn events_in_between_keep_their_distance(steps in proptest::collection::vec(step(), 1..80)) {
        let mut tally = Tally::new(1300);
        for (i, size) in SIZES.iter().enumerate() {
            tally.file(reference(), i.to_string(), *size);
        }
        let mut now = Duration::ZERO;
        let mut told: Vec<(Duration, Note)> = tally.begin(now).into_iter().map(|n| (now, n)).collect();
        for step in &steps {
            let notes = match *step {
                Step::Add(i, n) => tally.add(i, n, now),
                Step::Reset(i, n) => tally.reset_to(i, n, now),
                Step::Done(i) => tally.done(i, now),
                Step::Wait(i) => tally.waiting(i, "process 7".into()),
                Step::Advance(ms) => {
                    now += Duration::from_millis(ms);
                    Vec::new()
                }
            };
            told.extend(notes.into_iter().map(|n| (now, n)));
        }
        for kind in [Kind::Plan, Kind::File(0), Kind::File(1), Kind::File(2)] {
            let times: Vec<_> = told.iter().filter(|(_, n)| n.kind == kind).map(|(at, _)| *at).collect();
            prop_assert!(times.windows(2).all(|w| w[1] - w[0] >= Duration::from_millis(100)), "{:?} {:?}", kind, times);
        }
    }
}

#[test]
fn what_is_told_has_the_file_and_the_speed_of_now() {
    let mut tally = Tally::new(1000);
    tally.file(reference(), "a".into(), 400);
    tally.file(reference(), "b".into(), 600);
    tally.begin(Duration::ZERO);
    tally.add(0, 100, Duration::from_millis(500));
    let notes = tally.add(1, 100, Duration::from_millis(1500));
    let [file, plan] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!(file.event, ProgressEvent::File(FileProgress::new(reference(), "b", 100, 600)));
    let expected = DownloadProgress::new(200, 1000).with_current_file("b").with_speed(200.0);
    assert_eq!(plan.event, ProgressEvent::Download(expected));
}

#[test]
fn a_restart_is_not_told_until_it_is_passed() {
    let timer = FakeTimer::new();
    let (heard, meter) = meter(&timer, 1000);
    let file = meter.file(reference(), "a", 1000);
    meter.begin();
    let step = |change: &dyn Fn()| {
        timer.advance(Duration::from_millis(100));
        change();
    };
    step(&|| file.add(600));
    step(&|| file.reset_to(0));
    step(&|| file.add(500));
    step(&|| file.add(200));
    step(&|| file.done());
    block_on(meter.finish());
    let files: Vec<u64> = heard.files("a").iter().map(|f| f.completed_bytes).collect();
    // What the handler's thread was too late for is left out, in order.
    assert!(files.iter().all(|n| [600, 700, 1000].contains(n)) && files.last() == Some(&1000), "{files:?}");
    let plan = heard.downloads();
    assert!(plan.iter().all(|p| [0, 600, 700, 1000].contains(&p.completed_bytes)), "{plan:?}");
}

#[test]
fn a_slow_handler_holds_up_nobody_and_hears_first_latest_and_last() {
    let timer = FakeTimer::new();
    let heard = Arc::new(Heard::default());
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (theirs, released, entered) = (heard.clone(), Mutex::new(released), Mutex::new(entered));
    let slow = move |event: &ProgressEvent| {
        theirs.on_progress(event);
        entered.lock().unwrap().send(()).unwrap();
        if theirs.events().len() == 1 {
            released.lock().unwrap().recv().unwrap();
        }
    };
    let meter = Meter::new(Arc::new(timer.clone()), Some(Arc::new(slow)), 1000).unwrap();
    let file = meter.file(reference(), "a", 1000);
    file.reset_to(10);
    meter.begin();
    is_in.recv().unwrap();
    // The handler is in its first call for all of this.
    for _ in 0..900 {
        timer.advance(Duration::from_millis(100));
        file.add(1);
    }
    release.send(()).unwrap();
    // Its second and third call, before there is anything later.
    is_in.recv().unwrap();
    is_in.recv().unwrap();
    file.done();
    block_on(meter.finish());
    let events = heard.events();
    let bytes: Vec<u64> = heard.downloads().iter().map(|p| p.completed_bytes).collect();
    assert_eq!(bytes.first(), Some(&10));
    assert_eq!(bytes[1], 910);
    assert_eq!(bytes.last(), Some(&1000));
    assert_eq!(heard.files("a").iter().map(|f| f.completed_bytes).collect::<Vec<_>>(), [910, 1000]);
    assert!(events.len() <= 6, "{events:?}");
}

#[test]
fn a_dropped_meter_tells_nothing_that_was_still_unheard() {
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (released, entered) = (Mutex::new(released), Mutex::new(entered));
    let slow = move |_: &ProgressEvent| {
        entered.lock().unwrap().send(()).unwrap();
        released.lock().unwrap().recv().unwrap();
    };
    let meter = Meter::new(Arc::new(FakeTimer::new()), Some(Arc::new(slow)), 10).unwrap();
    let file = meter.file(reference(), "a", 10);
    meter.begin();
    is_in.recv().unwrap();
    file.done();
    drop(meter);
    release.send(()).unwrap();
    // The thread has ended: it called no more, and dropped the handler, which was all that could send.
    assert!(is_in.recv().is_err());
}

#[test]
fn a_handler_that_panics_is_called_no_more_and_the_plan_goes_on() {
    let calls = Arc::new(Mutex::new(0));
    let theirs = calls.clone();
    let handler = move |_: &ProgressEvent| {
        *theirs.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += 1;
        panic!("a handler's own trouble");
    };
    let meter = Meter::new(Arc::new(FakeTimer::new()), Some(Arc::new(handler)), 10).unwrap();
    let file = meter.file(reference(), "a", 10);
    meter.begin();
    file.add(10);
    file.done();
    block_on(meter.finish());
    assert_eq!(*calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner), 1);
}

#[test]
fn a_handler_may_drop_the_meter_it_hears_of() {
    let slot: Arc<Mutex<Option<Meter>>> = Arc::default();
    let (told, heard) = mpsc::channel();
    let (theirs, told) = (slot.clone(), Mutex::new(told));
    let handler = move |_: &ProgressEvent| {
        drop(theirs.lock().unwrap().take());
        told.lock().unwrap().send(()).unwrap();
    };
    let meter = Meter::new(Arc::new(FakeTimer::new()), Some(Arc::new(handler)), 10).unwrap();
    let mut guard = slot.lock().unwrap();
    meter.begin();
    *guard = Some(meter);
    drop(guard);
    heard.recv().unwrap();
    // The thread has ended and dropped the handler, which was all that could send.
    assert!(heard.recv().is_err());
}

#[test]
fn without_a_handler_nothing_is_done() {
    let meter = Meter::new(Arc::new(FakeTimer::new()), None, 10).unwrap();
    let file = meter.file(reference(), "a", 10);
    meter.begin();
    file.add(3);
    file.done();
    block_on(meter.finish());
    block_on(meter.stop());
}

fn download(bytes: u64) -> ProgressEvent {
    ProgressEvent::Download(DownloadProgress::new(bytes, 100))
}

fn done() -> ProgressEvent {
    ProgressEvent::Download(DownloadProgress::finished(100))
}

/// What a stream gives until its end, errors by their codes.
fn collect(stream: DownloadStream) -> Vec<Result<u64, &'static str>> {
    let items = stream.map(|item| item.map(|p| p.completed_bytes).map_err(|e| e.code()));
    block_on(items.collect())
}

#[test]
fn a_stream_gives_the_first_the_latest_and_one_at_the_end() {
    let stream = download_stream(|handler| async move {
        for bytes in [5, 10, 20, 30] {
            handler.on_progress(&download(bytes));
        }
        tokio::task::yield_now().await;
        handler.on_progress(&ProgressEvent::Loaded);
        handler.on_progress(&download(40));
        handler.on_progress(&done());
        Ok(())
    });
    assert_eq!(collect(stream), [Ok(5), Ok(40), Ok(100)]);
}

#[test]
fn a_stream_ends_with_the_error_alone_even_after_the_last_byte() {
    let stream = download_stream(|handler| async move {
        handler.on_progress(&download(5));
        handler.on_progress(&done());
        Err(Error::Cancelled)
    });
    assert_eq!(collect(stream), [Ok(5), Err("cancelled")]);
}

#[test]
fn a_stream_over_nothing_to_do_is_done() {
    let mut stream = download_stream(|_| async { Ok(()) });
    assert_eq!(block_on(stream.next()).unwrap().unwrap(), DownloadProgress::finished(0));
    assert!(block_on(stream.next()).is_none());
    assert!(block_on(stream.next()).is_none());
}

#[test]
fn one_does_not_come_before_the_work_is_over() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let mut stream = download_stream(|handler| async move {
        handler.on_progress(&done());
        ended.await.unwrap();
        Ok(())
    });
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(stream.poll_next_unpin(&mut cx).is_pending());
    end.send(()).unwrap();
    assert_eq!(collect(stream), [Ok(100)]);
}

#[test]
fn a_value_from_another_thread_wakes_the_consumer() {
    let stream = download_stream(|handler| async move {
        let meter = Meter::new(Arc::new(FakeTimer::new()), Some(handler), 100)?;
        let file = meter.file(reference(), "a", 100);
        file.reset_to(7);
        meter.begin();
        file.add(93);
        file.done();
        meter.finish().await;
        Ok(())
    });
    let items = collect(stream);
    assert_eq!((items.first(), items.last()), (Some(&Ok(7)), Some(&Ok(100))));
}

#[test]
fn dropping_a_stream_drops_the_work() {
    struct Work(Arc<AtomicBool>);
    impl Drop for Work {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let work = Work(dropped.clone());
    let mut stream = download_stream(|handler| async move {
        let _work = work;
        handler.on_progress(&download(5));
        std::future::pending().await
    });
    assert_eq!(block_on(stream.next()).unwrap().unwrap().completed_bytes, 5);
    assert!(!dropped.load(Ordering::Relaxed));
    drop(stream);
    assert!(dropped.load(Ordering::Relaxed));
}
