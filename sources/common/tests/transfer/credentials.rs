//! Who gets what the source sends along, and which URLs are followed.

use llm_local_core::{Error, Request};
use llm_local_source_common::network::{Failure, Network, NetworkConfig, Retry};
use llm_local_testkit::hub::{Fault, Host, Hub};

use super::support::*;

#[test]
fn no_credential_reaches_the_second_host() {
    // `fetch` looks at every request; here, that there were any.
    let setup = Setup::new();
    setup.fetch().unwrap();
    let of = |host| setup.hub.requests().iter().filter(|r| r.host == host).count();
    assert_eq!((of(Host::Hub), of(Host::Cdn)), (1 + 4, 4));
    let bearer = format!("Bearer {TOKEN}");
    let named = setup.hub.requests().into_iter().filter(|r| r.host == Host::Hub);
    assert!(named.into_iter().all(|r| r.header("authorization") == Some(&bearer)));
}

#[test]
fn a_credential_once_dropped_is_not_sent_again() {
    let setup = Setup::new().only(CONFIG);
    let back = format!("{}/{REPO}/resolve/main/{CONFIG}", setup.hub.endpoint());
    let away = format!("{}/away", setup.hub.cdn_endpoint());
    setup.hub.fault(Fault::redirect(302, away).on(Host::Hub).once());
    setup.hub.fault(Fault::redirect(307, back).on(Host::Cdn));
    let result = pollster::block_on(setup.transfer().fetch(vec![setup.job()], &setup.cx()));
    assert!(result.is_ok(), "{result:?}");
    let sent: Vec<_> = setup.hub.requests().iter().map(|r| (r.host, r.header("authorization").is_some())).collect();
    assert_eq!(sent, [(Host::Hub, true), (Host::Cdn, false), (Host::Hub, false)]);
}

#[test]
fn a_redirect_on_one_host_keeps_them() {
    let setup = Setup::new().only(CONFIG);
    let there = format!("/{REPO}/resolve/main/{CONFIG}");
    setup.hub.fault(Fault::redirect(307, there).once());
    setup.fetch().unwrap();
    assert_eq!(setup.hub.requests().len(), 2);
}

#[test]
fn redirects_end_somewhere() {
    let setup = Setup::new().only(CONFIG).with_fault(Fault::redirect_loop());
    let error = setup.fetch().unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(setup.hub.requests().len(), 11);
}

#[test]
fn a_redirect_to_another_machine_without_encryption_is_refused() {
    let location = "http://cdn.example.invalid/a?Signature=abc";
    let setup = Setup::new().only(CONFIG).with_fault(Fault::redirect(302, location));
    let error = setup.fetch().unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("cdn.example.invalid/a:"), "{error}");
    assert_eq!(setup.hub.requests().len(), 1);
}

#[test]
fn a_url_that_expired_is_asked_for_anew_at_once() {
    for status in [400, 401, 403] {
        let setup = Setup::new().only(MODEL).with_fault(Fault::status(status).on(Host::Cdn).skip(1).once());
        setup.fetch().unwrap();
        assert_eq!((setup.asked(MODEL).len(), setup.waits().len(), setup.served()), (5, 0, SIZE));
        assert_eq!(setup.hub.requests().len(), 2 * 5);
    }
}

#[test]
fn a_url_that_is_never_good_is_an_error_in_the_end() {
    let setup = Setup::new().only(MODEL);
    setup.hub.set_url_uses(Some(0));
    let error = setup.fetch().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("has expired"), "{error}");
    assert_eq!((setup.asked(MODEL).len(), setup.waits().len()), (5, 3));
    assert!(setup.published().is_empty());
}

#[test]
fn a_header_that_cannot_be_sent_is_named_without_its_value() {
    let network = Network::new(NetworkConfig::new());
    let inner = network.clone();
    let request =
        Request::new("http://127.0.0.1:9/x?sig=abc").with_header("Authorization", format!("Bearer {TOKEN}\n"));
    let error =
        pollster::block_on(network.run(async move { inner.get(&request, &[]).await.map(drop).map_err(|f| f.error) }));
    let text = format!("{:?} {}", error, error.as_ref().unwrap_err());
    assert!(text.contains("Authorization") && !text.contains(TOKEN) && !text.contains("abc"), "{text}");
}

#[test]
fn a_client_for_api_calls_follows_redirects_within_an_origin_only() {
    let hub = Hub::start();
    let network = Network::new(NetworkConfig::new().with_user_agent("tests/1"));
    hub.fault(Fault::redirect(302, "http://example.invalid/a?sig=abc").path("/elsewhere"));
    hub.fault(Fault::redirect(302, format!("{}/there", hub.cdn_endpoint())).path("/away"));
    hub.fault(Fault::redirect(307, format!("{}/api/models", hub.endpoint())).path("/renamed"));
    hub.fault(Fault::redirect(307, "/away").path("/then-away"));
    hub.fault(Fault::redirect_loop().path("/loop"));
    let get = |path: &str| {
        let (inner, url) = (network.clone(), format!("{}{path}?sig=abc", hub.endpoint()));
        pollster::block_on(network.run(async move {
            let request = inner.client()?.get(url).header("authorization", format!("Bearer {TOKEN}"));
            let sent = request.header("PRIVATE-TOKEN", TOKEN).header("X-Api-Key", TOKEN).send().await;
            sent.map(|r| r.status().as_u16()).map_err(|e| {
                let failure = Failure::connection("host/path", e);
                assert_eq!(failure.retry, Retry::Never);
                failure.error
            })
        }))
    };
    for (path, status, requests) in
        [("/elsewhere", 302, 1), ("/away", 302, 1), ("/then-away", 302, 2), ("/renamed", 404, 2)]
    {
        hub.clear();
        assert_eq!((get(path).unwrap(), hub.requests().len()), (status, requests), "{path}");
        assert!(hub.requests().iter().all(|r| r.host == Host::Hub && r.header("user-agent") == Some("tests/1")));
        assert!(hub.requests().iter().all(|r| r.header("private-token") == Some(TOKEN)));
    }
    hub.clear();
    let error: Error = get("/loop").unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
    assert!(!format!("{error} {error:?} {error:#?}").contains("abc"), "{error:?}");
    assert_eq!(hub.requests().len(), 11);
    assert!(network.check_url("http://example.invalid/").is_err() && network.check_url(&hub.endpoint()).is_ok());
}

#[test]
fn a_redirect_that_is_not_followed_is_an_error_that_says_so() {
    for status in [301, 302, 303, 307, 308] {
        let refusal = llm_local_core::Refusal::new(status, vec![]);
        let failure = Failure::refusal("x", &refusal, "hub.test/a", true, std::time::UNIX_EPOCH);
        let text = failure.error.to_string();
        assert!(text.contains("hub.test/a") && text.contains("redirects to another host"), "{text}");
        assert_eq!(failure.retry, Retry::Never);
    }
}
