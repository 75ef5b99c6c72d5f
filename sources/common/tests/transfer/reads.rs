//! Small ranges that come in several answers.

use std::ops::Range;

use llm_local_core::Result;
use llm_local_testkit::hub::{Fault, Host};

use super::support::*;

fn read(setup: &Setup, range: Range<u64>) -> Result<Vec<u8>> {
    let read = setup.transfer();
    let read = pollster::block_on(read.read(&setup.job(), MODEL, range, &setup.cx()));
    read.map(|bytes| bytes.to_vec())
}

fn bytes(setup: &Setup, range: Range<u64>) -> Vec<u8> {
    setup.contents[MODEL].read(range).unwrap()
}

/// An answer with only these bytes of the large file, whatever was asked for.
fn part(setup: &Setup, range: Range<u64>, etag: Option<&str>) -> Fault {
    let said = format!("bytes {}-{}/{SIZE}", range.start, range.end - 1);
    let fault = Fault::answer(206, "application/octet-stream", bytes(setup, range)).with_header("Content-Range", said);
    let fault = etag.into_iter().fold(fault, |fault, etag| fault.with_header("ETag", etag));
    fault.path(MODEL).on(Host::Cdn).once()
}

fn asked(setup: &Setup) -> Vec<(Option<String>, Option<String>)> {
    let header = |r: &llm_local_testkit::hub::Recorded, name| r.header(name).map(str::to_owned);
    setup.asked(MODEL).iter().map(|r| (header(r, "range"), header(r, "if-range"))).collect()
}

fn expected(asked: &[(&str, Option<&str>)]) -> Vec<(Option<String>, Option<String>)> {
    asked.iter().map(|(range, etag)| (Some((*range).to_owned()), etag.map(str::to_owned))).collect()
}

#[test]
fn an_answer_shorter_than_asked_for_is_continued() {
    let setup = Setup::new();
    let etag = "\"v1\"";
    for range in [100..300, 300..301, 301..1000] {
        setup.hub.fault(part(&setup, range, Some(etag)));
    }
    assert!(read(&setup, 100..1000).unwrap() == bytes(&setup, 100..1000));
    let each = [("bytes=100-999", None), ("bytes=300-999", Some(etag)), ("bytes=301-999", Some(etag))];
    assert_eq!((asked(&setup), setup.waits().len()), (expected(&each), 0));
}

#[test]
fn a_read_that_is_cut_off_goes_on_where_it_was() {
    let setup = Setup::new();
    setup.hub.fault(Fault::cut(4000).path(MODEL).on(Host::Cdn).times(7));
    assert!(read(&setup, 0..30_000).unwrap() == bytes(&setup, 0..30_000));
    let asked = asked(&setup);
    assert_eq!((asked.len(), setup.waits().len()), (8, 7), "progress is not counted");
    assert_eq!(asked[7].0.as_deref(), Some("bytes=28000-29999"));
    assert!(asked[1..].iter().all(|(_, etag)| etag.is_some()), "{asked:?}");
    assert_eq!(setup.served(), 30_000, "no byte twice");
}

#[test]
fn parts_of_two_versions_are_never_put_together() {
    // The second answer is of another one, with If-Range ignored, or by a 200 with all of it.
    for second in [Fault::etag("v2").path(MODEL).on(Host::Cdn), Fault::header("ETag", "\"v2\"").on(Host::Cdn)] {
        let setup = Setup::new();
        setup.hub.fault(part(&setup, 0..50, Some("\"v1\"")));
        setup.hub.fault(second);
        let error = read(&setup, 0..100).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("became another one after 50 bytes"), "{error}");
        assert!(error.to_string().contains("model.bin of test:org/tiny"), "{error}");
        assert_eq!(setup.asked(MODEL).len(), 2);
    }
    // Nothing tells that the second is of the same one.
    for etag in [None, Some("W/\"v1\"")] {
        let setup = Setup::new();
        setup.hub.fault(part(&setup, 0..50, etag));
        let error = read(&setup, 0..100).unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains("no ETag"), "{error}");
        assert_eq!(setup.asked(MODEL).len(), 1);
    }
    // Nor is one that silently drops its ETag taken for the same.
    let setup = Setup::new();
    setup.hub.fault(part(&setup, 0..50, Some("\"v1\"")));
    setup.hub.fault(part(&setup, 50..100, None));
    assert!(read(&setup, 0..100).unwrap_err().to_string().contains("became another one"));
}

#[test]
fn without_an_etag_a_read_that_is_cut_off_starts_over() {
    let setup = Setup::new();
    let weak = || Fault::header("ETag", "W/\"weak\"").path(MODEL).on(Host::Cdn);
    setup.hub.fault(weak().and(Fault::cut(40)).once());
    setup.hub.fault(weak());
    assert!(read(&setup, 10..100).unwrap() == bytes(&setup, 10..100));
    assert_eq!(asked(&setup), expected(&[("bytes=10-99", None), ("bytes=10-99", None)]));
    // And not for ever.
    let setup = Setup::new();
    setup.hub.fault(weak().and(Fault::cut(40)));
    assert!(read(&setup, 10..100).unwrap_err().to_string().contains("after 5 attempts in a row"));
    assert_eq!(setup.asked(MODEL).len(), 5);
}

#[test]
fn a_host_that_brings_a_byte_at_a_time_is_not_asked_for_ever() {
    let setup = Setup::new();
    for at in 0..300 {
        setup.hub.fault(part(&setup, at..at + 1, Some("\"v1\"")));
    }
    let error = read(&setup, 0..400).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("256 answers brought 256 bytes;"), "{error}");
    assert_eq!(setup.asked(MODEL).len(), 256);
}
