//! Connections that break, stall and bring too much or too little.

use std::time::Duration;

use llm_local_testkit::hub::{Fault, Host};

use super::support::*;

#[test]
fn every_file_comes_verified_and_a_second_fetch_asks_for_nothing() {
    let setup = Setup::new();
    let files = setup.fetch().unwrap();
    assert_eq!((setup.asked(CONFIG).len(), setup.asked(MODEL).len(), setup.served()), (1, 4, SIZE));
    assert_eq!(setup.hub.requests().len(), 1 + 2 * 4);
    assert!(setup.waits().is_empty());
    setup.hub.clear();
    assert_eq!(setup.fetch().unwrap(), files);
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn segments_after_the_first_are_tied_to_its_etag() {
    let setup = Setup::new().only(MODEL);
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    let expected = ["bytes=0-262143", "bytes=262144-524287", "bytes=524288-786431", "bytes=786432-1048575"];
    assert_eq!(ranges(&requests), expected.map(|range| Some(range.to_owned())));
    assert_eq!(requests[0].header("if-range"), None);
    assert!(requests[1..].iter().all(|r| r.header("if-range").is_some_and(|etag| etag.starts_with('"'))));
    assert!(requests.iter().all(|r| r.header("accept-encoding") == Some("identity")), "bytes as they are");
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::cut(100_000).path(MODEL).once());
    setup.fetch().unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!((requests.len(), setup.waits().len()), (5, 1));
    assert_eq!(requests[1].header("range"), Some("bytes=100000-262143"));
    assert_eq!(setup.served(), SIZE, "no byte twice");
}

#[test]
fn cuts_with_progress_are_not_counted_and_cuts_without_end_it() {
    // Each answer brings some bytes: 27 of them for a segment, far more than attempts.
    let setup = Setup::new().only(MODEL).with_fault(Fault::cut(10_000).path(MODEL));
    setup.fetch().unwrap();
    assert_eq!(setup.served(), SIZE);
    assert_eq!(setup.asked(MODEL).len(), 4 * 27);
    let setup = Setup::new().only(MODEL).with_fault(Fault::cut(0).path(MODEL));
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("after 5 attempts in a row"), "{error}");
    assert_eq!((setup.asked(MODEL).len(), setup.waits().len()), (5, 4));
    assert!(setup.published().is_empty());
}

#[test]
fn a_connection_that_ends_without_an_answer_is_tried_again() {
    let setup = Setup::new().only(CONFIG).with_fault(Fault::hang_up().times(2));
    setup.fetch().unwrap();
    assert_eq!((setup.hub.requests().len(), setup.waits().len()), (3, 2));
}

#[test]
fn a_connection_that_stalls_is_given_up_and_goes_on_where_it_was() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::stall(100_000).path(MODEL).once());
    setup.fetch_past_stalls(|r| r.body_bytes_sent == 100_000).unwrap();
    let requests = setup.asked(MODEL);
    assert_eq!((requests.len(), setup.waits().len()), (5, 1));
    // The time may have been up before the last of what was sent had come.
    let range = requests[1].header("range").unwrap();
    let start: u64 = range.strip_prefix("bytes=").unwrap().strip_suffix("-262143").unwrap().parse().unwrap();
    assert!(start <= 100_000 && setup.served() == SIZE + 100_000 - start, "{range}");
    setup.hub.wait_until_idle();
}

#[test]
fn a_connection_that_always_stalls_is_an_error_in_the_end() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::stall(0).path(MODEL));
    let error = setup.fetch_past_stalls(|r| r.host == Host::Cdn && r.status == 206).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("no byte came for 30 s"), "{error}");
    setup.hub.wait_until_idle();
    // Those that stalled before their head was read do not count with those after it.
    let asked = setup.asked(MODEL).len();
    assert!((5..10).contains(&asked), "{asked}");
    assert_eq!((setup.hub.requests().len(), setup.waits().len(), setup.served()), (2 * asked, asked - 1, 0));
    assert!(setup.published().is_empty());
}

#[test]
fn a_host_that_says_nothing_is_given_up() {
    let setup = Setup::new().only(CONFIG).with_fault(Fault::silence());
    let error = setup.fetch_past_stalls(|_| true).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("no byte came for 30 s"), "{error}");
    assert_eq!((setup.hub.wait_until_idle().len(), setup.waits().len(), setup.published().len()), (5, 4, 0));
}

#[test]
fn a_promise_of_more_bytes_than_come_does_no_harm() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::content_length(1000).path(MODEL).once());
    setup.fetch().unwrap();
    assert_eq!((setup.asked(MODEL).len(), setup.served()), (4, SIZE));
    // Of a whole file it says that this is another one.
    let setup = Setup::new().only(CONFIG).with_fault(Fault::content_length(10));
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "integrity_failed", "{error}");
    assert!(error.to_string().contains("8 bytes") && error.to_string().contains("18 bytes"), "{error}");
    assert_eq!((setup.hub.requests().len(), setup.published().len()), (1, 0));
}

#[test]
fn fewer_bytes_than_the_range_are_asked_for_again() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::content_length(-1000).path(MODEL).once());
    setup.fetch().unwrap();
    assert_eq!(ranges(&setup.asked(MODEL))[1].as_deref(), Some("bytes=261144-262143"));
    assert_eq!((setup.asked(MODEL).len(), setup.waits().len()), (5, 1));
}

#[test]
fn passing_errors_of_a_host_are_waited_out() {
    for status in [500, 502, 503, 504, 408] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::status(status).path(MODEL).times(3));
        setup.fetch().unwrap();
        let waits = setup.waits();
        assert_eq!((waits.len(), setup.hub.requests().len(), setup.served()), (3, 3 + 2 * 4, SIZE), "{status}");
        for (i, wait) in waits.iter().enumerate() {
            let least = Duration::from_millis(500 << i);
            assert!((least..=2 * least).contains(wait), "{waits:?}");
        }
    }
    let setup = Setup::new().only(MODEL).with_fault(Fault::status(503).path(MODEL));
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("503 Service Unavailable"), "{error}");
    assert_eq!((setup.hub.requests().len(), setup.published().len()), (5, 0));
}
