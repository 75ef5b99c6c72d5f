//! What an application hears, whatever goes wrong.

use futures_util::StreamExt;
use llm_local_core::{DownloadProgress, ProgressEvent};
use llm_local_source_common::progress::download_stream;
use llm_local_testkit::hub::{Content, Fault};
use proptest::prelude::*;

use super::support::*;

/// Every fault, in a form that ends by itself.
fn fault() -> impl Strategy<Value = Fault> {
    let bytes = 0..300_000u64;
    prop_oneof![
        bytes.clone().prop_map(Fault::cut),
        Just(Fault::hang_up()),
        Just(Fault::ignore_range()),
        bytes.prop_map(|n| Fault::ignore_range().and(Fault::cut(n))),
        (0..3u8).prop_map(|n| Fault::etag(format!("etag-{n}"))),
        Just(Fault::changed(Content::generated(SIZE, 8))),
        Just(Fault::wrong_bytes()),
        (0..SIZE).prop_map(Fault::wrong_byte),
        Just(Fault::longer(7)),
        Just(Fault::shorter(7)),
        (-500..500i32).prop_map(Fault::content_length),
        Just(Fault::gzip()),
        Just(Fault::html()),
        prop::sample::select(vec![400u16, 401, 403, 404, 408, 416, 500, 503]).prop_map(Fault::status),
        prop::sample::select(vec!["1", "100", "1000"]).prop_map(Fault::too_many_requests),
        Just(Fault::redirect_loop()),
    ]
}

/// A fault, for some of the requests.
fn aimed() -> impl Strategy<Value = Fault> {
    let path = prop_oneof![Just(CONFIG), Just(MODEL), Just(MODEL)];
    (fault(), path, 0..6usize, prop::option::of(1..3usize)).prop_map(|(fault, path, skip, times)| {
        let fault = fault.path(path).skip(skip);
        times.into_iter().fold(fault, Fault::times)
    })
}

/// Fetches, and checks what was told. The bytes that are present at first are `present`.
fn told_right(setup: &Setup, present: u64) -> Result<bool, TestCaseError> {
    setup.events.lock().unwrap().clear();
    let result = setup.fetch();
    let events = setup.events.lock().unwrap();
    let downloads: Vec<&DownloadProgress> = events
        .iter()
        .filter_map(|event| match event {
            ProgressEvent::Download(progress) => Some(progress),
            _ => None,
        })
        .collect();
    let total = SIZE + 8;
    // Also before an error that comes at once.
    prop_assert_eq!(downloads.first().map(|first| first.completed_bytes), Some(present));
    for pair in downloads.windows(2) {
        prop_assert!(pair[0].fraction <= pair[1].fraction && pair[0].completed_bytes <= pair[1].completed_bytes);
    }
    prop_assert!(downloads.iter().all(|d| d.total_bytes == total && d.completed_bytes <= total));
    let ones = downloads.iter().filter(|d| d.fraction == 1.0).count();
    prop_assert_eq!(ones, usize::from(result.is_ok()));
    if result.is_ok() {
        let last = events.last();
        prop_assert!(matches!(last, Some(ProgressEvent::Download(p)) if p.fraction == 1.0), "{:?}", last);
    }
    Ok(result.is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn progress_begins_at_what_is_there_never_falls_and_ends_at_one_or_an_error(
        faults in prop::collection::vec(aimed(), 0..4),
        ranges in 1..4usize,
        again in prop::collection::vec(aimed(), 0..2),
    ) {
        let mut setup = Setup::new();
        setup.config = setup.config.clone().with_ranges_per_file(ranges).with_files_at_once(2);
        faults.into_iter().for_each(|fault| setup.hub.fault(fault));
        let whole = told_right(&setup, 0)?;
        // A second run begins with what the first one left, and with no fault or others.
        setup.hub.clear_faults();
        again.into_iter().for_each(|fault| setup.hub.fault(fault));
        let present = if whole { SIZE + 8 } else { setup.kept() };
        let whole = told_right(&setup, present)?;
        setup.hub.clear_faults();
        let present = if whole { SIZE + 8 } else { setup.kept() };
        prop_assert!(told_right(&setup, present)?, "without faults it succeeds");
    }
}

impl Setup {
    /// Bytes of all files that are there, published or in partials.
    fn kept(&self) -> u64 {
        let published: u64 = self.published().iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let Ok(partials) = self.root.path().join("partials").read_dir() else { return published };
        let counts = partials.map(|partial| {
            let state = std::fs::read(partial.unwrap().path().join("state")).unwrap();
            let counts = state.iter().position(|b| *b == b'\n').unwrap() + 1;
            let counts = state[counts..].chunks_exact(8);
            counts.map(|count| u64::from_le_bytes(count.try_into().unwrap())).sum::<u64>()
        });
        published + counts.sum::<u64>()
    }
}

#[test]
fn the_stream_ends_with_one_or_with_the_error() {
    for wrong in [false, true] {
        let setup = Setup::new();
        if wrong {
            setup.hub.fault(Fault::wrong_bytes().path(MODEL));
        }
        let (transfer, job) = (setup.transfer(), setup.job());
        let stream = download_stream(|handler| async move {
            let cx = llm_local_core::FetchContext::new().with_progress(handler);
            transfer.fetch(vec![job], &cx).await.map(drop)
        });
        let items: Vec<_> = pollster::block_on(stream.collect());
        let (last, others) = items.split_last().unwrap();
        let first = others.first().unwrap().as_ref().unwrap();
        assert_eq!((first.completed_bytes, first.total_bytes), (0, SIZE + 8));
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
    let (transfer, job) = (setup.transfer(), setup.job());
    let mut stream = download_stream(|handler| {
        let transfer = transfer.clone();
        async move {
            let cx = llm_local_core::FetchContext::new().with_progress(handler);
            transfer.fetch(vec![job], &cx).await.map(drop)
        }
    });
    let first = pollster::block_on(stream.next()).unwrap().unwrap();
    assert_eq!(first.fraction, 0.0);
    setup.hub.wait_until(|requests| requests.iter().any(|r| r.body_bytes_sent == 1000));
    drop(stream);
    setup.hub.wait_until_idle();
    assert!(setup.published().is_empty());
}
