//! What is said when the Hub refuses.

use std::time::Duration;

use llm_local_core::Refusal;
use llm_local_source_common::network::Wait;
use llm_local_testkit::hub::{Fault, Gated, Host};

use super::*;

impl Setup {
    /// What is said of `reference` as a model, after so many requests.
    fn told(&self, reference: &str, code: &str, words: &[&str], requests: usize) -> String {
        let text = said(self.resolve(reference), code, words);
        self.asked_with_care(requests);
        text
    }

    /// What is said where a file of `reference` is refused, after so many requests for files.
    fn refused(&self, reference: &str, code: &str, words: &[&str], requests: usize) {
        let manifest = self.resolve(reference).unwrap();
        self.asked();
        said(self.fetch(&manifest, &FetchContext::new()), code, words);
        self.asked_with_care(requests);
        let files = self.placement(&manifest).files;
        assert!(files.iter().all(|f| !f.link.exists() && !f.blob.exists()), "nothing of it is published");
    }

    /// Checks that there were so many requests since the last look, and that those to the Hub alone have the token, if
    /// there is one.
    fn asked_with_care(&self, requests: usize) {
        let asked = self.hub.wait_until_idle();
        assert_eq!(asked.len(), requests, "{asked:?}");
        let has_token = format!("{:?}", self.source).contains("Some(Token(..))");
        for request in asked {
            let expected = (has_token && request.host == Host::Hub).then(|| format!("Bearer {TOKEN}"));
            assert_eq!(request.header("authorization"), expected.as_deref(), "{request:?}");
        }
        self.hub.clear();
    }
}

/// Each as a visitor without a token, and as one whose token has no access.
fn visitors(repo: &Repo) -> [Setup; 2] {
    let hub = || Hub::builder().with_repo(repo.clone()).with_token_without_access(TOKEN).start();
    [setup(hub()), with_token(hub(), TOKEN)]
}

/// A model in one file.
fn gguf() -> Repo {
    Repo::new("org/tiny").with_lfs("m-Q4_0.gguf", vec![7; 500])
}

#[test]
fn a_gated_repository_says_where_to_ask_and_whether_a_token_was_sent() {
    for repo in [gguf(), Repo::new("org/tiny").with_file("m-Q4_0.gguf", "GGUF")] {
        let [anonymous, known] = visitors(&repo.gated(Gated::Auto));
        let page = format!("accept the conditions at {}/org/tiny", anonymous.hub.endpoint());
        let words = ["hf:org/tiny", &page, "no token was sent", "HF_TOKEN", "hf auth login"];
        anonymous.refused("hf:org/tiny", "unauthorized", &words, 1);
        known.refused("hf:org/tiny", "unauthorized", &["accept the conditions at", "(a token was sent;"], 1);
    }
    // Its index must be read to know which files are needed.
    let [anonymous, known] = visitors(&model().with_lfs("more.safetensors", "x").gated(Gated::Manual));
    anonymous.told("hf:org/tiny", "unauthorized", &["accept the conditions at", "no token was sent"], 3);
    known.told("hf:org/tiny", "unauthorized", &["wait until access is granted"], 3);
}

#[test]
fn a_private_repository_and_none_look_the_same() {
    for reference in ["hf:org/tiny", "hf:org/none"] {
        let [anonymous, known] = visitors(&model().private());
        let words = [reference, "there is no http://", "or it is private", "no token was sent", "look at the name"];
        anonymous.told(reference, "not_found", &words, 1);
        known.told(reference, "not_found", &["the token that was sent may not read it"], 1);
    }
}

#[test]
fn a_repository_that_becomes_private_is_said_to_be_so_at_its_files() {
    for (setup, words) in visitors(&gguf()).into_iter().zip(["no token was sent", "the token that was sent may not"]) {
        let manifest = setup.resolve("hf:org/tiny").unwrap();
        setup.asked();
        setup.hub.publish(gguf().private());
        said(setup.fetch(&manifest, &FetchContext::new()), "not_found", &["hf:org/tiny", "or it is private", words]);
        setup.asked_with_care(1);
    }
}

#[test]
fn a_token_that_the_hub_does_not_know_is_said_to_be_unknown() {
    let setup = with_token(Hub::builder().with_repo(model()).start(), TOKEN);
    setup.told("hf:org/tiny", "unauthorized", &["does not know the token", "settings/tokens"], 1);
}

#[test]
fn a_closed_repository_is_said_to_be_closed() {
    for setup in visitors(&model().disabled()) {
        setup.told("hf:org/tiny", "unauthorized", &["the Hub has closed", "/org/tiny"], 1);
    }
}

#[test]
fn a_revision_that_is_not_there_is_told_with_those_that_are() {
    for setup in visitors(&model().with_tag("v1.0").with_branch("dev")) {
        let words = ["/org/tiny has no branch, tag or commit `v9`", "; it has ", "main", "dev", "v1.0"];
        setup.told("hf:org/tiny@v9", "not_found", &words, 2);
        let unknown = "f".repeat(40);
        setup.told(&format!("hf:org/tiny@{unknown}"), "not_found", &[&unknown, "v1.0"], 2);
    }
}

#[test]
fn a_folder_or_a_file_that_is_not_there_is_told_with_those_that_are() {
    let repo = gguf().with_lfs("q/m-Q8_0.gguf", "GGUF").with_file("docs/a.md", "");
    for setup in visitors(&repo) {
        setup.told("hf:org/tiny:none", "not_found", &["no folder `none`", "it has docs, q"], 2);
        setup.told("hf:org/tiny:docs", "not_found", &["no weights of a model", "a.md"], 1);
        setup.told("hf:org/tiny#Q9", "not_found", &["`Q9` in its name", "hf:org/tiny#m-Q4_0.gguf"], 1);
        setup.told("hf:org/tiny:q/x.gguf", "not_found", &["GGUF file `x.gguf`", "hf:org/tiny:q#m-Q8_0.gguf"], 1);
    }
}

#[test]
fn a_file_that_is_gone_is_said_to_be_gone() {
    for setup in visitors(&gguf()) {
        setup.hub.fault(Fault::status(404).with_header("X-Error-Code", "EntryNotFound").path("*/resolve/*"));
        setup.refused("hf:org/tiny", "not_found", &["/org/tiny has no file `m-Q4_0.gguf` at `main`"], 1);
        setup.hub.clear_faults();
        setup.hub.fault(Fault::status(404).with_header("X-Error-Code", "RevisionNotFound").path("*/resolve/*"));
        setup.refused("hf:org/tiny", "not_found", &["no branch, tag or commit `main`"], 1);
    }
}

#[test]
fn what_the_hub_says_when_it_forbids_is_passed_on_without_control_characters() {
    for (setup, words) in visitors(&gguf()).into_iter().zip(["no token was sent", "lacks the permission"]) {
        setup.hub.fault(Fault::status(403).with_header("X-Error-Message", "Upgrade your\tplan").path("*/resolve/*"));
        setup.refused("hf:org/tiny", "unauthorized", &["(\"Upgrade yourplan\")", words], 1);
    }
}

#[test]
fn what_is_no_answer_about_the_repository_is_left_to_the_engine() {
    let setup = setup(Hub::builder().with_repo(gguf()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    for status in [408, 429, 500, 503] {
        let refusal = Refusal::new(status, vec![]);
        assert!(setup.source.explain(&manifest, &manifest.files[0], &refusal).is_none(), "{status}");
    }
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_host() {
    // An API's client does not even go there.
    for (path, elsewhere) in [("*/revision/*", 0), ("*/tree/*", 1), ("*/resolve/*", 1)] {
        // Its index must be read to know which files are needed.
        let repo = model().with_lfs("more.safetensors", "x");
        let hub = Hub::builder().with_repo(repo.private()).with_token(TOKEN).start();
        hub.fault(Fault::redirect(307, format!("{}/elsewhere", hub.cdn_endpoint())).on(Host::Hub).path(path));
        hub.fault(Fault::status(404).on(Host::Cdn));
        let setup = with_token(hub, TOKEN);
        setup.resolve("hf:org/tiny").unwrap_err();
        let requests = setup.hub.wait_until_idle();
        assert_eq!(requests.iter().filter(|r| r.host == Host::Cdn).count(), elsewhere, "{requests:?}");
        setup.asked_with_care(requests.len());
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
    let setup_of = |repo| setup(Hub::builder().with_repo(repo).start());
    for path in ["*/revision/*", "*/tree/*"] {
        let setup = setup_of(model());
        setup.hub.fault(Fault::status(429).with_header("RateLimit", "\"api\";r=0;t=250").path(path));
        // The second request for the revision is the one that reads the header that hf-hub does not keep.
        setup.told("hf:org/tiny", "rate_limited", &["hf:org/tiny", "try again in 250 s"], 2);
        assert!(setup.timer.sleeps(Wait::Backoff).is_empty());
    }
    let setup = setup_of(gguf());
    setup.hub.fault(Fault::status(429).with_header("RateLimit", "\"resolvers\";r=0;t=260").path("*/resolve/*"));
    setup.refused("hf:org/tiny", "rate_limited", &["hf:org/tiny", "try again in 260 s"], 1);
}

#[test]
fn a_pause_that_the_hub_asks_for_holds_for_whatever_asks_it() {
    let (hub, cache, timer) =
        (Hub::builder().with_repo(model()).start(), tempfile::tempdir().unwrap(), FakeTimer::new());
    let network = Network::new(NetworkConfig::new().with_attempts(1)).with_timer(Arc::new(timer.clone()));
    let source = source(&hub.endpoint(), cache.path(), &timer).network(network.clone()).build().unwrap();
    let setup = Setup { hub, source, cache, timer };
    let pauses = || setup.timer.sleeps(Wait::Pause);
    // One that somebody else heard of makes requests of hf-hub wait, ...
    network.pause(&setup.hub.endpoint(), Duration::from_secs(9));
    block_on(setup.source.revisions(&"hf:org/tiny".parse().unwrap(), &FetchContext::new())).unwrap();
    assert_eq!(pauses(), [Duration::from_secs(9)]);
    // ... and one that hf-hub hears of makes all others wait.
    setup.hub.fault(Fault::too_many_requests("7").path("*/revision/*").once());
    said(setup.resolve("hf:org/tiny"), "rate_limited", &["hf:org/tiny", "7 s"]);
    assert_eq!(pauses().len(), 1);
    let request = Request::new(format!("{}/x", setup.hub.endpoint()));
    let asking = network.clone();
    let status = async move { Ok(asking.get(&request, &[]).await.map_err(|failure| failure.error)?.status()) };
    assert_eq!(block_on(network.run(status)).unwrap(), 404);
    assert_eq!(pauses()[1..], [Duration::from_secs(7)]);
}

#[test]
fn a_list_that_does_not_come_is_said_to_be_of_the_ref() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    setup.hub.fault(Fault::hang_up().path("*/tree/*"));
    let host = setup.hub.endpoint().replace("http://", "");
    said(setup.resolve("hf:org/tiny"), "download_failed", &["hf:org/tiny", &host]);
}

#[test]
fn a_server_in_trouble_is_asked_again_and_a_web_page_is_not() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    setup.hub.fault(Fault::status(503).path("*/revision/*").times(2));
    setup.hub.fault(Fault::hang_up().path("*/tree/*").times(2));
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), MODEL_FILES);
    assert_eq!((setup.asked().len(), setup.timer.sleeps(Wait::Backoff).len()), (6, 4));
    for path in ["*/revision/*", "*/tree/*"] {
        setup.hub.clear_faults();
        setup.hub.publish(model().with_commit().with_file(path.replace(['*', '/'], "_"), "x"));
        setup.hub.fault(Fault::html().path(path));
        said(setup.resolve("hf:org/tiny"), "download_failed", &["hf:org/tiny", "JSON"]);
        assert!(setup.timer.sleeps(Wait::Backoff).len() == 4, "not tried again");
    }
}
