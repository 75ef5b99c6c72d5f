//! Waits: those that a host asks for, which whoever asks it keeps, and what is waited for at all.

use std::{sync::Arc, time::Duration};

use llm_local_core::{Request, Result};
use llm_local_source_common::network::{Network, NetworkConfig, Wait, testing::FakeTimer};
use llm_local_testkit::hub::{Fault, Host, Hub};

use super::support::*;

const SEGMENTS: usize = 8;

/// Four ranges of the large file under way, of which three stall midway and one was told to wait for 7 s; no wait ends by
/// itself.
fn one_of_four_is_told_to_wait() -> Setup {
    let mut setup = Setup::new().only(MODEL);
    setup.timer = FakeTimer::new().holding(&[Wait::Backoff, Wait::Pause]);
    setup.config = setup.config.clone().with_segment_bytes(SIZE / SEGMENTS as u64).with_ranges_per_file(4);
    setup
        .with_fault(Fault::too_many_requests("7").path(MODEL).on(Host::Hub).skip(3).once())
        .with_fault(Fault::stall(1000).path(MODEL).on(Host::Cdn).times(3))
}

/// Lets the three go on, and returns when they wait too; or when there are more than the seven requests until then.
fn wait_for_all(setup: &Setup) {
    setup.hub.wait_until(|requests| requests.iter().filter(|r| r.body_bytes_sent == 1000).count() == 3);
    until("one waits", || !setup.waits().is_empty());
    setup.hub.release();
    until("all wait", || setup.timer.sleeps(Wait::Pause).len() >= 3 || setup.hub.requests().len() > 7);
}

fn requests(setup: &Setup) -> (usize, usize) {
    let requests = setup.hub.wait_until_idle();
    let of = |host| requests.iter().filter(|r| r.host == host).count();
    (of(Host::Hub), of(Host::Cdn))
}

#[test]
fn a_wait_that_one_range_is_asked_for_is_kept_by_all() {
    let setup = one_of_four_is_told_to_wait();
    let (while_waiting, pauses) = std::thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let fetched = scope.spawn(|| setup.fetch());
        wait_for_all(&setup);
        let seen = (requests(&setup), setup.timer.sleeps(Wait::Pause));
        setup.timer.advance(Duration::from_secs(7));
        fetched.join().unwrap().unwrap();
        seen
    });
    assert_eq!(while_waiting, (4, 3), "nobody asks while the host wants to be left alone");
    assert_eq!(pauses, [Duration::from_secs(7); 3]);
    assert_eq!(requests(&setup), (SEGMENTS + 1, SEGMENTS));
    assert_eq!((setup.waits(), setup.served()), (vec![Duration::from_secs(7)], SIZE));
}

#[test]
fn a_wait_for_a_host_ends_with_a_cancel() {
    let setup = one_of_four_is_told_to_wait();
    std::thread::scope(|scope| {
        let _end = EndOnPanic(&setup);
        let fetched = scope.spawn(|| setup.fetch());
        wait_for_all(&setup);
        setup.cancel.cancel();
        assert_eq!(fetched.join().unwrap().unwrap_err().code(), "cancelled");
    });
    assert_eq!(requests(&setup), (4, 3));
}

/// The status of `url`, by one request.
fn get(network: &Network, url: &str) -> Result<u16> {
    let (inner, request) = (network.clone(), Request::new(url));
    pollster::block_on(network.run(async move {
        let response = inner.get(&request, &[]).await.map_err(|f| f.error)?;
        Ok(response.status())
    }))
}

#[test]
fn a_wait_is_for_the_host_that_asked_and_until_it_is_over() {
    let (hub, timer) = (Hub::start(), FakeTimer::new());
    let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(timer.clone()));
    let (one, other) = (format!("{}/a", hub.endpoint()), format!("{}/a", hub.cdn_endpoint()));
    let pauses = || timer.sleeps(Wait::Pause);
    hub.fault(Fault::status(503).with_header("Retry-After", "9").once());
    assert_eq!(get(&network, &one).unwrap(), 503);
    assert_eq!((get(&network, &other).unwrap(), pauses()), (403, vec![]), "another port is another host");
    timer.advance(Duration::from_secs(2));
    assert_eq!((get(&network, &one).unwrap(), pauses()), (404, vec![Duration::from_secs(7)]));
    assert_eq!((get(&network, &one).unwrap(), pauses().len()), (404, 1), "it is over");
    assert_eq!(hub.requests().len(), 4);
    // What a redirect leads to is a host too.
    hub.fault(Fault::redirect(302, &other).on(Host::Hub));
    network.pause(&other, Duration::from_secs(3));
    assert_eq!((get(&network, &one).unwrap(), pauses().len()), (403, 2));
    // A source that asks by itself.
    network.pause(&one, Duration::from_secs(5));
    let (inner, url) = (network.clone(), one.clone());
    let waited = network.run(async move {
        inner.turn(&url).await;
        Ok(())
    });
    pollster::block_on(waited).unwrap();
    assert_eq!(pauses()[2], Duration::from_secs(5));
}

#[test]
fn a_wait_that_nobody_would_keep_holds_nobody_up() {
    let (hub, timer) = (Hub::start(), FakeTimer::new());
    let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(timer.clone()));
    let url = format!("{}/a", hub.endpoint());
    for value in ["121", "0", "Fri, 15 Jan 2027 07:59:59 GMT", "18446744073709551615"] {
        hub.fault(Fault::too_many_requests(value).once());
        assert_eq!((get(&network, &url).unwrap(), get(&network, &url).unwrap()), (429, 404), "{value}");
    }
    assert!(timer.sleeps(Wait::Pause).is_empty());
}

#[test]
fn what_a_host_cannot_do_is_not_waited_for() {
    for status in [501, 505] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::status(status));
        let error = setup.fetch().unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!((setup.hub.requests().len(), setup.waits().len()), (1, 0), "{status}");
    }
    for status in [500, 502, 503, 504, 507, 408, 429] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::status(status).times(4));
        setup.fetch().unwrap();
        assert_eq!(setup.waits().len(), 4, "{status}");
    }
}

#[test]
fn a_host_that_nobody_listens_at_is_tried_again() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut setup = Setup::new().only(CONFIG);
    setup.source.endpoint = format!("http://127.0.0.1:{port}");
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("after 5 attempts in a row"), "{error}");
    assert!(error.to_string().contains("config.json of test:org/tiny"), "{error}");
    assert_eq!(setup.waits().len(), 4);
}
