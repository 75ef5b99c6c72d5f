//! What is said when the Hub refuses.

use std::time::Duration;

use llm_local_core::Refusal;
use llm_local_source_common::network::Wait;
use llm_local_testkit::hub::{Fault, Gated};

use super::*;

impl Setup {
    /// What is said where the Hub refuses a file of what it listed.
    fn refused(&self, reference: &str, path: &str) -> Error {
        let manifest = self.resolve(reference).unwrap();
        let (network, request) = (Network::new(NetworkConfig::new()), self.request(&manifest, path));
        let inner = network.clone();
        let getting = async move { inner.get(&request, &[]).await.map_err(|failure| failure.error) };
        let refusal = block_on(network.run(getting)).unwrap().as_refusal();
        self.source.explain(&manifest, manifest.file(path).unwrap(), &refusal).unwrap()
    }
}

fn holds(error: &Error, code: &str, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    assert!(!text.contains(TOKEN), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?}: {text}");
    }
}

#[test]
fn a_gated_repository_says_where_to_ask_and_whether_a_token_was_sent() {
    let hub = || Hub::builder().with_repo(single().gated(Gated::Auto)).with_token_without_access(TOKEN).start();
    let anonymous = setup(hub());
    let page = format!("{}/org/tiny", anonymous.hub.endpoint());
    for path in ["config.json", "model.safetensors"] {
        let error = anonymous.refused("hf:org/tiny", path);
        holds(
            &error,
            "unauthorized",
            &["hf:org/tiny", "accept the conditions at", &page, "no token was sent", "HF_TOKEN"],
        );
    }
    let error = with_token(hub(), TOKEN).refused("hf:org/tiny", "config.json");
    holds(&error, "unauthorized", &["accept the conditions at", "(a token was sent;"]);
}

#[test]
fn a_private_repository_and_none_look_the_same() {
    let hub = || Hub::builder().with_repo(model().private()).with_token_without_access(TOKEN).start();
    for reference in ["hf:org/tiny", "hf:org/none"] {
        let words = [reference, "there is no http://", "or it is private", "no token was sent", "look at the name"];
        said(setup(hub()).resolve(reference), "not_found", &words);
        said(with_token(hub(), TOKEN).resolve(reference), "not_found", &["the token that was sent may not read it"]);
    }
}

#[test]
fn a_token_that_the_hub_does_not_know_is_said_to_be_unknown() {
    let setup = with_token(Hub::builder().with_repo(model()).start(), TOKEN);
    said(setup.resolve("hf:org/tiny"), "unauthorized", &["does not know the token", "settings/tokens"]);
    assert_eq!(setup.asked().len(), 1, "not tried again");
}

#[test]
fn a_revision_that_is_not_there_is_told_with_those_that_are() {
    let setup = setup(Hub::builder().with_repo(model().with_tag("v1.0").with_branch("dev")).start());
    let words = ["no branch, tag or commit `v9`", "it has ", "main", "dev", "v1.0"];
    said(setup.resolve("hf:org/tiny@v9"), "not_found", &words);
    let unknown = "f".repeat(40);
    said(setup.resolve(&format!("hf:org/tiny@{unknown}")), "not_found", &[&unknown, "v1.0"]);
}

#[test]
fn a_file_that_is_gone_and_a_closed_repository_are_said() {
    let gone = setup(Hub::builder().with_repo(model()).start());
    let manifest = gone.resolve("hf:org/tiny").unwrap();
    let refusal = Refusal::new(404, vec![("x-error-code".into(), "EntryNotFound".into())]);
    let error = gone.source.explain(&manifest, &manifest.files[0], &refusal).unwrap();
    holds(&error, "not_found", &["no file `config.json` at `main`"]);
    let closed = setup(Hub::builder().with_repo(model().disabled()).start());
    said(closed.resolve("hf:org/tiny"), "unauthorized", &["has closed"]);
    let forbidden = Refusal::new(403, vec![("x-error-message".into(), "Upgrade your plan\u{1b}[0m".into())]);
    let error = gone.source.explain(&manifest, &manifest.files[0], &forbidden).unwrap();
    holds(&error, "unauthorized", &["(\"Upgrade your plan[0m\")", "no token was sent"]);
    for status in [408, 429, 500, 503] {
        let refusal = Refusal::new(status, vec![]);
        assert!(gone.source.explain(&manifest, &manifest.files[0], &refusal).is_none(), "{status} is the engine's");
    }
}

#[test]
fn a_limit_of_the_rate_is_waited_for_if_it_is_short_and_said_if_it_is_long() {
    for (fault, wait) in
        [(Fault::too_many_requests("7"), 7), (Fault::status(429).with_header("RateLimit", "\"api\";r=0;t=30"), 30)]
    {
        let setup = setup(Hub::builder().with_repo(model()).start());
        // The second request is the one that reads the header that hf-hub does not keep.
        setup.hub.fault(fault.times(if wait == 30 { 2 } else { 1 }));
        assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), MODEL_FILES);
        assert_eq!(setup.timer.sleeps(Wait::Backoff), [Duration::from_secs(wait)]);
    }
    for path in ["*/revision/*", "*/tree/*"] {
        let setup = setup(Hub::builder().with_repo(model()).start());
        setup.hub.fault(Fault::status(429).with_header("RateLimit", "\"api\";r=0;t=250").path(path));
        said(setup.resolve("hf:org/tiny"), "rate_limited", &["hf:org/tiny", "try again in 250 s"]);
        assert!(setup.timer.sleeps(Wait::Backoff).is_empty());
    }
}

#[test]
fn a_server_in_trouble_is_asked_again_and_a_web_page_is_not() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    setup.hub.fault(Fault::status(503).path("*/revision/*").times(2));
    setup.hub.fault(Fault::hang_up().path("*/tree/*").times(2));
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), MODEL_FILES);
    assert_eq!((setup.asked().len(), setup.timer.sleeps(Wait::Backoff).len()), (7, 4));
    for path in ["*/revision/*", "*/tree/*"] {
        setup.hub.clear_faults();
        setup.hub.publish(model().with_commit().with_file(path.replace(['*', '/'], "_"), "x"));
        setup.hub.fault(Fault::html().path(path));
        said(setup.resolve("hf:org/tiny"), "download_failed", &["hf:org/tiny", "JSON"]);
        assert!(setup.timer.sleeps(Wait::Backoff).len() == 4, "not tried again");
    }
}
