//! Files of few bytes: one request, no partial, and everything that holds for large ones.

use std::fs;

use llm_local_core::{Digest, Error, ManifestFile, ProgressEvent, Want};
use llm_local_source_common::transfer::TransferConfig;
use llm_local_testkit::hub::{Content, Fault, Host, Repo};

use super::support::*;

/// A setup of one file of so many bytes, on the second host.
pub(super) fn of(size: u64) -> Setup {
    let mut setup = Setup::new().only(MODEL);
    let content = Content::generated(size, 5);
    setup.hub.publish(Repo::new(REPO).with_lfs(MODEL, content.clone()));
    setup.files = vec![ManifestFile::new(MODEL, size).with_digest(sha256(&content))];
    setup.contents.insert(MODEL.into(), content);
    setup.config = TransferConfig::new();
    setup
}

const SMALL: u64 = 512 << 10;

#[test]
fn up_to_512_kib_come_in_one_request_and_more_by_way_of_a_partial() {
    for (size, kept) in [(SMALL, false), (SMALL + 1, true)] {
        let setup = of(size);
        setup.hub.fault(Fault::cut(1000).path(MODEL).on(Host::Cdn).once());
        setup.hub.fault(Fault::status(404).path(MODEL).on(Host::Cdn).once());
        setup.fetch().unwrap_err();
        let partials = || setup.root.path().join("partials").read_dir().map_or(0, Iterator::count);
        assert_eq!(partials(), usize::from(kept));
        setup.hub.clear();
        setup.hub.clear_faults();
        setup.fetch().unwrap();
        let requests = setup.asked(MODEL);
        // A file that comes in one request is asked for without a range.
        let expected = if kept { Some(format!("bytes=1000-{}", size - 1)) } else { None };
        assert_eq!(ranges(&requests), [expected]);
        assert_eq!(partials(), 0);
    }
    // Unless less is to be asked for at once.
    let mut setup = of(SMALL);
    setup.config = TransferConfig::new().with_segment_bytes(SMALL / 2);
    setup.fetch().unwrap();
    assert_eq!(setup.asked(MODEL).len(), 2);
}

#[test]
fn a_file_that_is_cut_goes_on_where_it_was() {
    let setup = of(SMALL);
    setup.hub.fault(Fault::cut(100_000).path(MODEL).on(Host::Cdn));
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!(requests[1].header("range"), Some("bytes=100000-524287"));
    assert!(requests[1].header("if-range").is_some_and(|etag| etag.starts_with('"')));
    assert_eq!((requests.len(), setup.served(), setup.waits().len()), (6, SMALL, 5));
}

#[test]
fn a_file_that_changes_midway_is_never_mixed() {
    let other = Content::generated(SMALL, 9);
    let setup = of(SMALL);
    setup.hub.fault(Fault::cut(100_000).path(MODEL).on(Host::Cdn).once());
    setup.hub.fault(Fault::changed(other.clone()).path(MODEL));
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    // All of the new file, not of two.
    assert!(error.to_string().contains(&sha256(&other).to_string()), "{error}");
    assert!(setup.published().is_empty());
}

#[test]
fn wrong_bytes_come_twice_and_then_an_error_with_both_digests() {
    let setup = of(1000);
    setup.hub.fault(Fault::wrong_bytes().path(MODEL));
    let error = setup.fetch().unwrap_err();
    let wrong: Vec<u8> = setup.contents[MODEL].read(0..1000).unwrap().iter().map(|byte| !byte).collect();
    for digest in [sha256(&setup.contents[MODEL]), sha256(&Content::from(wrong))] {
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
    }
    assert_eq!((error.code(), setup.asked(MODEL).len()), ("integrity_failed", 2));
    assert!(setup.published().is_empty());
}

#[test]
fn a_file_of_another_size_is_an_error_that_names_both() {
    for (fault, size) in [(Fault::longer(5), "1005"), (Fault::shorter(5), "995")] {
        let setup = of(1000);
        setup.hub.fault(fault.path(MODEL));
        let error = setup.fetch().unwrap_err();
        assert!(error.to_string().contains("1000 bytes") && error.to_string().contains(size), "{error}");
        assert_eq!((error.code(), setup.asked(MODEL).len()), ("integrity_failed", 1));
    }
}

#[test]
fn without_a_digest_a_small_file_is_fetched_and_its_digest_recorded() {
    let mut setup = of(1000);
    setup.files[0].digest = None;
    setup.fetch().unwrap();
    let records = setup.root.path().join("artifacts").read_dir().unwrap();
    let record = records.map(|e| fs::read_to_string(e.unwrap().path()).unwrap()).collect::<String>();
    assert!(record.contains(&sha256(&setup.contents[MODEL]).to_string()), "{record}");
}

#[test]
fn the_partial_of_an_earlier_version_goes() {
    let setup = of(1000);
    let Some(Digest::Sha256(_)) = setup.files[0].digest else { panic!() };
    let partial = setup.root.path().join("partials").join(setup.files[0].digest.unwrap().to_string().replace(':', "-"));
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("data"), [7; 1000]).unwrap();
    fs::write(partial.join("state"), "{}\n").unwrap();
    setup.fetch().unwrap();
    assert!(!partial.exists());
}

#[test]
fn progress_counts_small_files_and_ends_at_one() {
    let mut setup = of(1000);
    setup.want = Want::Adapter;
    setup.hub.fault(Fault::cut(600).path(MODEL).on(Host::Cdn).once());
    setup.fetch().unwrap();
    let events = setup.events.lock().unwrap();
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ProgressEvent::Download(progress) => Some(progress.completed_bytes),
            _ => None,
        })
        .collect();
    assert!(told.is_sorted() && told.first() == Some(&0) && told.last() == Some(&1000), "{told:?}");
}

#[test]
fn a_cancel_leaves_nothing_of_a_small_file() {
    let setup = of(1000);
    setup.hub.fault(Fault::stall(100).path(MODEL).on(Host::Cdn));
    let error = std::thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let fetched = scope.spawn(|| setup.fetch());
        setup.hub.wait_until(|requests| requests.iter().any(|r| r.body_bytes_sent == 100));
        setup.cancel.cancel();
        until("the fetch ends", || fetched.is_finished());
        fetched.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, Error::Cancelled));
    setup.hub.wait_until_idle();
    assert!(setup.published().is_empty() && !setup.root.path().join("partials").exists());
}

/// Whoever cancels may delete the folder next, or its disk may be taken away: nobody reads or writes there any more.
#[cfg(target_os = "linux")]
#[test]
fn after_a_cancel_no_file_of_the_store_is_open() {
    for _ in 0..10 {
        let setup = Setup::new().only(MODEL);
        setup.hub.fault(Fault::stall(100_000).path(MODEL).on(Host::Cdn).skip(1));
        let root = setup.root.path().canonicalize().unwrap();
        let open = || {
            let open = fs::read_dir("/proc/self/fd").unwrap();
            open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|path| path.starts_with(&root)).count()
        };
        std::thread::scope(|scope| {
            let _end = EndOnPanic(&setup);
            let fetched = scope.spawn(|| {
                let transfer = setup.transfer();
                let ended = pollster::block_on(transfer.fetch(vec![setup.job()], &setup.cx()));
                // At once, and while the threads of the network still are.
                assert_eq!((ended.unwrap_err().code(), open()), ("cancelled", 0));
            });
            setup.hub.wait_until(|requests| requests.iter().any(|r| r.body_bytes_sent == 100_000));
            assert!(open() > 0);
            setup.cancel.cancel();
            fetched.join().unwrap();
        });
    }
}
