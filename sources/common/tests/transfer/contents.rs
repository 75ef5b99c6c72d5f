//! Contents that are not what was promised, or become others.

use llm_local_core::ManifestFile;
use llm_local_testkit::hub::{Content, Fault, Host, Repo};

use super::support::*;

#[test]
fn wrong_bytes_are_fetched_once_more_and_then_an_error_with_both_digests() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::wrong_bytes().path(MODEL));
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    let wrong: Vec<u8> = setup.contents[MODEL].read(0..SIZE).unwrap().iter().map(|byte| !byte).collect();
    for digest in [sha256(&setup.contents[MODEL]), sha256(&Content::from(wrong))] {
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
    }
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (2 * 4, 2 * SIZE));
    assert!(setup.published().is_empty());
    let partials = setup.root.path().join("partials");
    assert_eq!(partials.read_dir().unwrap().count(), 0, "nothing of it is kept");
}

#[test]
fn one_wrong_byte_of_a_plain_file_is_found_and_mended() {
    let setup = Setup::new().only(CONFIG).with_fault(Fault::wrong_byte(3).path(CONFIG).once());
    setup.fetch().unwrap();
    assert_eq!(setup.asked(CONFIG).len(), 2);
}

#[test]
fn a_file_of_another_size_is_an_error_that_names_both() {
    for (fault, size) in [(Fault::longer(5), "1048581"), (Fault::shorter(5), "1048571")] {
        let setup = Setup::new().only(MODEL).with_fault(fault.path(MODEL));
        let error = setup.fetch().unwrap_err();
        assert_eq!(error.code(), "integrity_failed");
        assert!(error.to_string().contains("1048576 bytes") && error.to_string().contains(size), "{error}");
        assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (1, 0));
    }
}

#[test]
fn a_host_that_ignores_ranges_is_asked_once_for_all() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::ignore_range().path(MODEL));
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (1, SIZE));
}

#[test]
fn a_whole_answer_midway_starts_over() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::ignore_range().path(MODEL).skip(2).once());
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (3, 2 * SEGMENT + SIZE));
}

#[test]
fn a_host_without_ranges_that_always_cuts_is_not_asked_for_ever() {
    let fault = Fault::ignore_range().and(Fault::cut(300_000)).path(MODEL);
    let setup = Setup::new().only(MODEL).with_fault(fault);
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // Only the first brings something new.
    assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (5, 0));
}

#[test]
fn another_etag_midway_starts_over_with_it() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::etag("second").path(MODEL).skip(4));
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!(requests.last().unwrap().header("if-range"), Some("\"second\""));
    assert_eq!(requests[2].status, 200, "If-Range failed: {requests:?}");
    assert_eq!(requests.len(), 2 + 1 + 4);
}

#[test]
fn a_file_replaced_midway_is_never_mixed() {
    let other = Content::generated(SIZE, 8);
    let setup = Setup::new().only(MODEL).with_fault(Fault::changed(other.clone()).path(MODEL).skip(2));
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    // All of the new file, not of two: twice, since the digest is another one.
    assert!(error.to_string().contains(&sha256(&other).to_string()), "{error}");
    assert_eq!(setup.asked(MODEL).len(), 2 + 1 + 4 + 4);
    assert!(setup.published().is_empty());
}

#[test]
fn a_file_that_keeps_changing_is_an_error() {
    let setup = Setup::new().only(MODEL);
    for turn in 0..8 {
        setup.hub.fault(Fault::etag(format!("etag-{turn}")).on(Host::Cdn).times(2));
    }
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("changed 3 times"), "{error}");
    // Two under each ETag, of which the second tells the next one.
    assert_eq!(setup.asked(MODEL).len(), 7);
    assert!(setup.published().is_empty());
}

#[test]
fn a_file_that_keeps_changing_is_an_error_also_where_several_ranges_of_it_come() {
    let mut setup = Setup::new().only(MODEL);
    for turn in 0..8 {
        setup.hub.fault(Fault::etag(format!("etag-{turn}")).on(Host::Cdn).times(2));
    }
    setup.config = setup.config.clone().with_ranges_per_file(4);
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("changed 3 times"), "{error}");
    assert!(setup.published().is_empty());
}

#[test]
fn without_a_digest_one_etag_holds_the_parts_together() {
    let mut setup = Setup::new().only(MODEL);
    setup.files[0].digest = None;
    setup.fetch().unwrap();
    assert_eq!(setup.asked(MODEL).len(), 4);
    // Replaced midway: all of the new one.
    let mut setup = Setup::new().only(MODEL);
    setup.files[0].digest = None;
    let other = Content::generated(SIZE, 8);
    setup.contents.insert(MODEL.to_owned(), other.clone());
    setup.hub.fault(Fault::changed(other).path(MODEL).on(Host::Cdn).skip(2));
    setup.fetch().unwrap();
    assert_eq!(setup.asked(MODEL).len(), 2 + 1 + 4);
    let published: Vec<_> =
        setup.published().into_iter().map(|(_, bytes)| Content::from(bytes).sha256().to_owned()).collect();
    assert_eq!(published, [setup.contents[MODEL].sha256()]);
}

#[test]
fn without_a_digest_and_a_strong_etag_all_comes_in_one_answer() {
    let weak = || Fault::header("ETag", "W/\"weak\"").path(MODEL);
    let mut setup = Setup::new().only(MODEL).with_fault(weak().and(Fault::cut(300_000)).skip(1).once());
    setup.files[0].digest = None;
    setup.hub.fault(weak());
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    // The first finds out, the second is cut off and its bytes are forgotten.
    let expected = [Some("bytes=0-262143".to_owned()), None, None];
    assert_eq!(ranges(&requests), expected, "{requests:?}");
}

#[test]
fn with_a_digest_a_weak_etag_does_no_harm() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::header("ETag", "W/\"weak\"").path(MODEL));
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!(requests.len(), 4);
    assert!(requests.iter().all(|r| r.header("if-range").is_none()));
}

/// An answer with only the byte at `at`, whatever was asked for.
fn byte(setup: &Setup, at: u64) -> Fault {
    let (size, bytes) = (setup.files[0].size, setup.contents[MODEL].read(at..at + 1).unwrap());
    let fault = Fault::answer(206, "application/octet-stream", bytes).with_header("ETag", "\"v1\"");
    fault.with_header("Content-Range", format!("bytes {at}-{at}/{size}")).path(MODEL).on(Host::Cdn).once()
}

#[test]
fn a_host_that_brings_a_byte_at_a_time_is_not_asked_for_ever() {
    for setup in [Setup::new().only(MODEL), super::small::of(100_000)] {
        // Each is an answer, and no failure that would be waited for.
        (0..300).for_each(|at| setup.hub.fault(byte(&setup, at)));
        let error = setup.fetch().unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("256 answers brought 256 bytes;"), "{error}");
        assert_eq!((setup.asked(MODEL).len(), setup.waits().len()), (256, 0));
        // Nor one that cuts each of them.
        let setup = Setup { files: setup.files, contents: setup.contents, config: setup.config, ..Setup::new() };
        let model = setup.contents[MODEL].clone();
        setup.hub.publish(Repo::new(REPO).with_lfs(MODEL, model));
        setup.hub.fault(Fault::cut(1).path(MODEL).on(Host::Cdn));
        let error = setup.fetch().unwrap_err();
        assert!(error.to_string().contains("256 answers brought 256 bytes;"), "{error}");
        assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (256, 0));
    }
}

#[test]
fn a_large_file_may_come_in_many_small_pieces() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::cut(4096).path(MODEL).on(Host::Cdn));
    setup.fetch().unwrap();
    // 64 of each segment.
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (256, SIZE));
    let mut setup = Setup::new().only(MODEL).with_fault(Fault::cut(5000).path(MODEL).on(Host::Cdn));
    let content = Content::generated(3 * SIZE, 3);
    setup.hub.publish(Repo::new(REPO).with_lfs(MODEL, content.clone()));
    setup.config = setup.config.clone().with_segment_bytes(3 * SIZE);
    setup.files[0] = ManifestFile::new(MODEL, 3 * SIZE).with_digest(sha256(&content));
    setup.contents.insert(MODEL.to_owned(), content);
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len() as u64, setup.served()), ((3 * SIZE).div_ceil(5000), 3 * SIZE));
}

#[test]
fn an_empty_file_needs_no_request() {
    let mut setup = Setup::new().only(CONFIG);
    let empty = Content::from("");
    setup.files[0].size = 0;
    setup.files[0].digest = Some(git_blob(&empty));
    setup.contents.insert(CONFIG.to_owned(), empty);
    setup.fetch().unwrap();
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn a_small_file_without_digest_and_etag_is_never_put_together_from_parts() {
    let weak = || Fault::header("ETag", "W/\"weak\"").path(CONFIG);
    let setup = Setup::new().only(CONFIG).with_fault(weak().and(Fault::cut(3)).once()).with_fault(weak());
    let mut setup = setup;
    setup.files[0].digest = None;
    setup.fetch().unwrap();
    assert_eq!(ranges(&setup.asked(CONFIG)), [None, None]);
}

#[test]
fn a_host_that_always_answers_with_a_part_is_not_asked_for_ever() {
    let mut setup = Setup::new().only(CONFIG);
    setup.files[0].digest = None;
    let part = format!("bytes 0-3/{}", setup.files[0].size);
    let fault = Fault::answer(206, "application/json", "{\"a\"").with_header("Content-Range", part);
    // More often than it may be asked.
    setup.hub.fault(fault.path(CONFIG).times(20));
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "download_failed", "{error}");
    assert!(error.to_string().contains("a part where the whole was asked for"), "{error}");
    // The first brings something, after which five attempts in a row are tried: it is the first of them.
    assert_eq!((setup.asked(CONFIG).len(), setup.waits().len()), (5, 4));
    assert!(setup.published().is_empty());
}
