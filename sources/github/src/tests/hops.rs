//! Bytes that come after a redirect, or without one.

use llm_local_testkit::github::{Fault, Host, Recorded};

use super::{downloads::fetch, *};

const SIZE: usize = 300_000;
const HALF: u64 = 100_000;

fn with_asset(server: ServerBuilder, token: &str) -> Setup {
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let release = Release::new("v1").with_file("a.gguf", bytes);
    setup(server.with_repository(Repository::new("acme/lora").with_release(release)), token)
}

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|i| (i % 251) as u8).collect()
}

fn range(request: &Recorded) -> Option<&str> {
    request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("range")).map(|(_, value)| value.as_str())
}

#[test]
fn a_signature_that_expired_midway_is_made_anew_and_the_rest_asked_for_on_both_hops() {
    for (token, first) in [("", Host::Web), (TOKEN, Host::Api)] {
        let (setup, root) = (with_asset(server(), token), tempfile::tempdir().unwrap());
        let manifest = setup.resolve("github:acme/lora@v1").unwrap();
        setup.server.clear();
        // Each URL is good for one request, and the first of these breaks off.
        setup.server.set_url_uses(Some(1));
        setup.server.fault(Fault::cut(HALF).on(Host::Cdn).once());
        assert_eq!(fetch(&setup, &root, manifest).unwrap(), bytes());
        let requests = setup.server.wait_until_idle();
        let hops: Vec<_> = requests.iter().map(|r| (r.host, r.status)).collect();
        assert_eq!(hops, [(first, 302), (Host::Cdn, 200), (first, 302), (Host::Cdn, 206)]);
        assert!(requests[..2].iter().all(|request| range(request).is_none()), "{requests:?}");
        let (one, other) = (range(&requests[2]).unwrap(), range(&requests[3]).unwrap());
        assert_eq!(one, other);
        let (from, to) = one.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (from, to): (u64, usize) = (from.parse().unwrap(), to.parse().unwrap());
        assert!(from > 0 && from <= HALF && to == SIZE - 1, "{one}");
    }
}

#[test]
fn a_url_that_expires_between_the_hops_is_asked_for_again() {
    for (token, first) in [("", Host::Web), (TOKEN, Host::Api)] {
        let (setup, root) = (with_asset(server(), token), tempfile::tempdir().unwrap());
        let manifest = setup.resolve("github:acme/lora@v1").unwrap();
        // What the first answer leads to was used up by somebody else.
        setup.server.set_url_uses(Some(0));
        setup.server.clear();
        let error = fetch(&setup, &root, manifest.clone()).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("has expired"), "{error}");
        setup.server.set_url_uses(None);
        setup.server.clear();
        assert_eq!(fetch(&setup, &root, manifest).unwrap(), bytes());
        let hops: Vec<_> = setup.server.wait_until_idle().iter().map(|r| (r.host, r.status)).collect();
        assert_eq!(hops, [(first, 302), (Host::Cdn, 200)]);
    }
}

#[test]
fn bytes_that_the_api_sends_itself_are_taken_and_resumed() {
    let (setup, root) = (with_asset(server().with_assets_from_the_api(true), TOKEN), tempfile::tempdir().unwrap());
    let manifest = setup.resolve("github:acme/lora@v1").unwrap();
    setup.server.clear();
    setup.server.fault(Fault::cut(HALF).path("a.gguf").once());
    assert_eq!(fetch(&setup, &root, manifest).unwrap(), bytes());
    let requests = setup.server.wait_until_idle();
    let hops: Vec<_> = requests.iter().map(|r| (r.host, r.status)).collect();
    assert_eq!(hops, [(Host::Api, 200), (Host::Api, 206)]);
    assert!(range(&requests[1]).is_some_and(|range| range.ends_with(&format!("-{}", SIZE - 1))), "{requests:?}");
}
