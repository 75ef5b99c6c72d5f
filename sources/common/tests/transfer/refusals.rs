//! Answers that are no file.

use std::time::Duration;

use llm_local_core::Error;
use llm_local_testkit::hub::{Fault, Host};

use super::support::*;

#[test]
fn a_refusal_is_an_error_of_its_own_after_one_request() {
    for (status, code) in [(401, "unauthorized"), (403, "unauthorized"), (404, "not_found"), (400, "download_failed")] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::status(status).on(Host::Hub));
        let error = setup.fetch().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("model.bin of test:org/tiny"), "{error}");
        assert!(!error.is_retryable());
        assert_eq!((setup.hub.requests().len(), setup.published().len(), setup.waits().len()), (1, 0, 0));
    }
}

#[test]
fn the_source_explains_refusals_of_its_host_in_its_own_words() {
    let mut setup = Setup::new().only(MODEL).with_fault(Fault::status(403).on(Host::Hub));
    setup.source.words = Some("accept the licence first");
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.to_string(), "access to model.bin was refused: 403 accept the licence first");
    // Another host does not speak of the source's licences.
    let mut setup = Setup::new().only(MODEL).with_fault(Fault::status(404).on(Host::Cdn));
    setup.source.words = Some("accept the licence first");
    assert_eq!(setup.fetch().unwrap_err().code(), "not_found");
    assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (1, 0));
}

#[test]
fn a_web_page_is_not_the_file() {
    for path in [CONFIG, MODEL] {
        let setup = Setup::new().only(path).with_fault(Fault::html().on(Host::Hub));
        let error = setup.fetch().unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains("web page"), "{error}");
        assert_eq!((setup.hub.requests().len(), setup.published().len()), (1, 0));
    }
}

#[test]
fn an_encoded_answer_is_not_the_file() {
    let setup = Setup::new().only(CONFIG).with_fault(Fault::gzip());
    let error = setup.fetch().unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("`gzip`"), "{error}");
    assert_eq!((setup.hub.requests().len(), setup.published().len()), (1, 0));
}

#[test]
fn a_range_said_to_lie_beyond_the_end_is_tried_once_from_the_start() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::status(416).path(MODEL).on(Host::Cdn).skip(2).once());
    setup.fetch().unwrap();
    assert_eq!(setup.asked(MODEL).len(), 2 + 1 + 4);
    let setup = Setup::new().only(MODEL).with_fault(Fault::status(416).path(MODEL).on(Host::Cdn));
    let error = setup.fetch().unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("beyond its end"), "{error}");
    assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (2, 0));
}

#[test]
fn a_host_that_knows_another_size_ends_it_and_names_both() {
    let fault = Fault::status(416).with_header("Content-Range", "bytes */4711").on(Host::Cdn);
    let setup = Setup::new().only(MODEL).with_fault(fault);
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "integrity_failed");
    assert!(error.to_string().contains("1048576 bytes") && error.to_string().contains("4711 bytes"), "{error}");
    assert_eq!((setup.asked(MODEL).len(), setup.published().len()), (1, 0));
}

#[test]
fn the_wait_that_a_host_asks_for_is_kept_to_the_second() {
    // By the test's clock it is Fri, 15 Jan 2027 08:00:00 GMT.
    for (value, seconds) in [("7", 7), ("Fri, 15 Jan 2027 08:00:09 GMT", 9)] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::too_many_requests(value).once());
        setup.fetch().unwrap();
        assert_eq!(setup.waits(), [Duration::from_secs(seconds)], "{value}");
        assert_eq!(setup.hub.requests().len(), 1 + 2 * 4);
    }
    let fault = Fault::status(429).with_header("RateLimit", "\"resolvers\";r=0;t=42").once();
    let setup = Setup::new().only(MODEL).with_fault(fault);
    setup.fetch().unwrap();
    assert_eq!(setup.waits(), [Duration::from_secs(42)]);
    assert_eq!(setup.hub.requests().len(), 1 + 2 * 4);
}

#[test]
fn a_wait_too_long_is_an_error_at_once() {
    for fault in [Fault::too_many_requests("3600"), Fault::status(503).with_header("Retry-After", "3600")] {
        let setup = Setup::new().only(MODEL).with_fault(fault);
        let error = setup.fetch().unwrap_err();
        let Error::RateLimited { retry_after, .. } = error else { panic!("{error}") };
        assert_eq!(retry_after, Some(Duration::from_secs(3600)));
        assert_eq!((setup.hub.requests().len(), setup.waits().len()), (1, 0));
    }
}

#[test]
fn a_host_that_stays_busy_is_an_error_in_the_end() {
    let setup = Setup::new().only(MODEL).with_fault(Fault::too_many_requests("1"));
    let error = setup.fetch().unwrap_err();
    assert_eq!((error.code(), setup.hub.requests().len()), ("rate_limited", 5));
    assert_eq!(setup.waits(), [Duration::from_secs(1); 4]);
}

#[test]
fn errors_of_an_adapter_are_adapter_errors() {
    let mut setup = Setup::new().only(MODEL).with_fault(Fault::status(404).on(Host::Hub));
    setup.want = llm_local_core::Want::Adapter;
    let error = setup.fetch().unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.to_string().contains("test:org/tiny") && error.to_string().contains("not found"), "{error}");
}

#[test]
fn without_the_network_what_is_missing_is_named_and_nothing_is_asked() {
    let setup = Setup::new();
    let error = pollster::block_on(setup.transfer().fetch(vec![setup.job()], &setup.cx().with_offline(true)));
    let error = error.unwrap_err();
    assert_eq!(error.code(), "offline");
    assert!(error.to_string().contains("config.json of test:org/tiny"), "{error}");
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn a_disk_without_room_is_found_before_the_first_byte() {
    let mut setup = Setup::new();
    setup.files[1].size = 1 << 60;
    let error = setup.fetch().unwrap_err();
    let Error::InsufficientStorage { required, available, .. } = error else { panic!("{error}") };
    assert!(required >= 1 << 60 && available < required);
    assert!(setup.hub.requests().is_empty() && setup.published().is_empty());
}

#[test]
fn a_host_that_is_not_allowed_gets_no_request_and_nothing_is_published() {
    for size in [SIZE, 1000] {
        let mut setup = if size == SIZE { Setup::new().only(MODEL) } else { super::small::of(size) };
        setup.network = setup.network.clone().with_allowed_hosts([setup.hub.address().to_string()]);
        let error = setup.fetch().unwrap_err();
        let text = error.to_string();
        assert!(error.code() == "not_allowed" && text.contains("model.bin of test:org/tiny"), "{text}");
        assert!(text.contains(&setup.hub.cdn_address().to_string()), "{text}");
        let requests = setup.hub.wait_until_idle();
        assert!(requests.len() == 1 && requests[0].host == Host::Hub, "{requests:?}");
        assert!(setup.published().is_empty() && setup.waits().is_empty());
        // With that host, too, all is well.
        let hosts = [setup.hub.address(), setup.hub.cdn_address()].map(|address| address.to_string());
        setup.network = setup.network.clone().with_allowed_hosts(hosts);
        setup.fetch().unwrap();
    }
}
