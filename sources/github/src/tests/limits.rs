//! Too many requests.

use std::time::{Duration, UNIX_EPOCH};

use llm_local_source_common::network::{Timer as _, Wait};
use llm_local_testkit::github::{Fault, Host, secondary_rate_limit};

use super::{downloads::fetch, *};

const V1: &str = "github:acme/lora@v1";
const MINUTE: Duration = Duration::from_secs(60);

/// What an error that nothing else is wrong with than a rate limit says of the wait; it may lie within one of adapters.
fn wait(error: &Error) -> Option<Duration> {
    assert!(error.is_retryable(), "{error:?}");
    match error {
        Error::RateLimited { retry_after, .. } => *retry_after,
        Error::AdapterMergeFailed { source: Some(cause), .. } => wait(cause.downcast_ref().unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_that_come_too_fast_are_made_a_minute_later() {
    for status in [403, 429] {
        let setup = setup(server().with_repository(one()), TOKEN);
        setup.server.fault(secondary_rate_limit(status, None).once());
        setup.resolve(V1).unwrap();
        assert_eq!(setup.timer.sleeps(Wait::Backoff), [MINUTE], "{status}");
        setup.server.fault(secondary_rate_limit(status, None));
        let error = said(setup.resolve(V1), "rate_limited", &[V1, "too many requests in a short time"]);
        assert_eq!(wait(&error), Some(MINUTE));
    }
}

#[test]
fn requests_for_bytes_that_come_too_fast_are_made_a_minute_later() {
    let setup = setup(server().with_repository(one()), TOKEN);
    let manifest = setup.resolve(V1).unwrap();
    setup.server.fault(secondary_rate_limit(403, None).path("pirate.zip").once());
    setup.server.clear();
    // That it is no archive is found out once all of it is there.
    let bytes = fetch(&setup, &tempfile::tempdir().unwrap(), manifest.clone()).unwrap_err();
    assert!(bytes.to_string().contains("pirate.zip") && !bytes.is_retryable(), "{bytes}");
    let asked: Vec<_> = setup.server.wait_until_idle().iter().map(|r| (r.host, r.status)).collect();
    assert_eq!(asked, [(Host::Api, 403), (Host::Api, 302), (Host::Cdn, 200)]);

    setup.server.fault(secondary_rate_limit(403, None).path("pirate.zip"));
    let error = fetch(&setup, &tempfile::tempdir().unwrap(), manifest).unwrap_err();
    assert_eq!(wait(&error), Some(MINUTE));
    // A right that is missing is no limit.
    setup.server.clear_faults();
    let body = r#"{"message": "Resource not accessible by personal access token"}"#;
    setup.server.fault(Fault::answer(403, "application/json", body).on(Host::Api));
    said(setup.resolve(V1), "unauthorized", &["the permission to read contents"]);
}

#[test]
fn a_limit_that_is_used_up_while_bytes_are_asked_for_says_when_it_resets() {
    for status in [403, 429] {
        let setup = setup(server().with_repository(one()).with_rate_limit_status(status), TOKEN);
        let manifest = setup.resolve(V1).unwrap();
        let now = setup.timer.wall().duration_since(UNIX_EPOCH).unwrap().as_secs();
        setup.server.exhaust_rate_limit(now + 1800);
        setup.server.clear();
        let error = fetch(&setup, &tempfile::tempdir().unwrap(), manifest).unwrap_err();
        let wait = wait(&error).unwrap().as_secs();
        assert!((1700..=1800).contains(&wait), "{wait}");
        let asked: Vec<_> = setup.server.wait_until_idle().iter().map(|r| (r.host, r.status)).collect();
        assert_eq!(asked, [(Host::Api, status)]);
    }
}

#[test]
fn the_wait_of_a_429_is_kept() {
    let setup = setup(server().with_repository(one()), "");
    setup.server.fault(Fault::too_many_requests("7").on(Host::Api).once());
    setup.resolve(V1).unwrap();
    assert_eq!(setup.timer.sleeps(Wait::Backoff), [Duration::from_secs(7)]);
    setup.server.fault(Fault::too_many_requests("900").on(Host::Api));
    let error = said(setup.resolve(V1), "rate_limited", &[V1]);
    assert_eq!(wait(&error), Some(Duration::from_secs(900)));
}
