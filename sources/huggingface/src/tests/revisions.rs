//! Branches and tags.

use llm_local_core::{CancellationToken, Revision};
use llm_local_source_common::network::Wait;
use llm_local_testkit::hub::{Fault, Gated, Host};

use super::*;

const REFS: &str = "/api/models/org/lora/refs";

/// An adapter that was released twice.
fn adapter() -> Repo {
    Repo::new("org/lora")
        .with_file("adapter_config.json", "{}")
        .with_lfs("adapter_model.safetensors", "1")
        .with_tag("v1.0")
        .with_branch("old/style")
        .with_commit()
        .with_lfs("adapter_model.safetensors", "2")
        .with_tag("v2.0+a b")
        .with_branch("refs/pr/1")
}

impl Setup {
    fn revisions(&self, reference: &str, cx: &FetchContext) -> Result<Vec<Revision>> {
        block_on(self.source.revisions(&reference.parse()?, cx))
    }
}

#[test]
fn branches_and_tags_come_with_their_commits_and_each_can_be_resolved() {
    let setup = setup(Hub::builder().with_repo(adapter()).start());
    let commit = |revision: &str| setup.hub.commit("org/lora", revision).unwrap();
    let (old, new) = (commit("v1.0"), commit("main"));
    assert_ne!(old, new);
    let cx = FetchContext::new();
    let revisions = setup.revisions("hf:org/lora", &cx).unwrap();
    let expected = [("main", &new), ("old/style", &old), ("v1.0", &old), ("v2.0+a b", &new)];
    assert_eq!(revisions, expected.map(|(name, commit)| Revision::new(name, commit)), "without pull requests");
    assert_eq!(setup.asked(), [REFS]);
    for revision in revisions {
        let reference = ArtifactRef::new("hf", "org/lora").unwrap().with_revision(&revision.name).unwrap();
        let manifest = setup.resolve_as(&reference.to_string(), Want::Adapter, &cx).unwrap();
        assert_eq!(manifest.revision, revision.pinned, "{}", revision.name);
        let text = setup.get(&setup.request(&manifest, "adapter_model.safetensors")).1;
        assert_eq!(text, if revision.pinned == old { b"1" } else { b"2" }, "{}", revision.name);
    }
}

#[test]
fn what_a_tag_stands_for_is_asked_anew_each_time() {
    let setup = setup(Hub::builder().with_repo(adapter()).start());
    let newest = || {
        let revisions = setup.revisions("hf:org/lora@v1.0:sub", &FetchContext::new()).unwrap();
        revisions.into_iter().find(|r| r.name == "main").unwrap().pinned
    };
    let before = newest();
    setup.hub.publish(adapter().with_commit().with_lfs("adapter_model.safetensors", "3"));
    assert_ne!(newest(), before);
    assert_eq!(setup.asked(), [REFS, REFS]);
}

#[test]
fn revisions_of_gated_private_and_renamed_repositories_are_listed_to_those_who_may_see_them() {
    let cx = FetchContext::new();
    let gated = setup(Hub::builder().with_repo(adapter().gated(Gated::Manual)).start());
    assert_eq!(gated.revisions("hf:org/lora", &cx).unwrap().len(), 4);
    let renamed = adapter().renamed_from("old/name").private();
    let setup = with_token(Hub::builder().with_repo(renamed).with_token(TOKEN).start(), TOKEN);
    for (reference, requests) in [("hf:org/lora", 1), ("hf:old/name", 2)] {
        assert_eq!(setup.revisions(reference, &cx).unwrap().len(), 4);
        let asked = setup.hub.wait_until_idle();
        assert_eq!(asked.len(), requests, "{asked:?}");
        let bearer = format!("Bearer {TOKEN}");
        assert!(asked.iter().all(|r| r.header("authorization") == Some(&bearer)), "{asked:?}");
        setup.hub.clear();
    }
}

#[test]
fn refused_lists_of_revisions_say_what_to_do() {
    let cx = FetchContext::new();
    let of = |setup: &Setup, reference: &str, code: &str, words: &[&str], requests: usize| {
        said(setup.revisions(reference, &cx), code, words);
        assert_eq!(setup.asked().len(), requests, "{reference}");
    };
    let private = setup(Hub::builder().with_repo(adapter().private()).start());
    for reference in ["hf:org/lora", "hf:org/none"] {
        of(&private, reference, "not_found", &[reference, "or it is private", "no token was sent"], 1);
    }
    let unknown = with_token(Hub::builder().with_repo(adapter()).start(), TOKEN);
    of(&unknown, "hf:org/lora", "unauthorized", &["does not know the token"], 1);
    let closed = setup(Hub::builder().with_repo(adapter().disabled()).start());
    of(&closed, "hf:org/lora", "unauthorized", &["has closed"], 1);
    let limited = setup(Hub::builder().with_repo(adapter()).start());
    limited.hub.fault(Fault::status(429).with_header("RateLimit", "\"api\";r=0;t=250"));
    of(&limited, "hf:org/lora", "rate_limited", &["hf:org/lora", "try again in 250 s"], 2);
    assert!(limited.timer.sleeps(Wait::Backoff).is_empty());
}

#[test]
fn an_answer_that_is_no_list_of_revisions_is_an_error_and_a_failing_server_is_asked_again() {
    let setup = setup(Hub::builder().with_repo(adapter()).start());
    let cx = FetchContext::new();
    let no_commit = r#"{"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "../x"}], "tags": []}"#;
    for (fault, word) in [
        (Fault::html(), "JSON"),
        (Fault::answer(200, "application/json", "{}"), "JSON"),
        (Fault::answer(200, "application/json", no_commit), "no commit for `main`"),
    ] {
        setup.hub.fault(fault);
        said(setup.revisions("hf:org/lora", &cx), "download_failed", &["hf:org/lora", word]);
        assert_eq!(setup.asked().len(), 1, "not tried again");
        setup.hub.clear_faults();
    }
    setup.hub.fault(Fault::status(503).once());
    setup.hub.fault(Fault::hang_up().once());
    assert_eq!(setup.revisions("hf:org/lora", &cx).unwrap().len(), 4);
    assert_eq!((setup.asked().len(), setup.timer.sleeps(Wait::Backoff).len()), (3, 2));
}

#[test]
fn the_list_of_revisions_is_not_asked_of_another_host() {
    let hub = Hub::builder().with_repo(adapter()).with_token(TOKEN).start();
    hub.fault(Fault::redirect(302, format!("{}/elsewhere", hub.cdn_endpoint())).on(Host::Hub));
    let setup = with_token(hub, TOKEN);
    said(setup.revisions("hf:org/lora", &FetchContext::new()), "download_failed", &["hf:org/lora", "302 Found"]);
    let requests = setup.hub.wait_until_idle();
    assert!(requests.iter().all(|r| r.host == Host::Hub) && requests.len() == 1, "{requests:?}");
}

#[test]
fn no_list_of_revisions_is_asked_for_offline_or_after_a_cancel() {
    let setup = setup(Hub::builder().with_repo(adapter()).start());
    let cancel = CancellationToken::new();
    cancel.cancel();
    said(setup.revisions("hf:org/lora", &FetchContext::new().with_cancel(cancel)), "cancelled", &[]);
    let offline = FetchContext::new().with_offline(true);
    said(setup.revisions("hf:org/lora", &offline), "offline", &["the list of revisions of hf:org/lora"]);
    assert_eq!(setup.asked(), [""; 0]);
}

#[test]
fn the_same_thing_at_another_revision_is_in_the_same_folder() {
    let setup = setup(Hub::builder().with_repo(single()).start());
    let at = |text: &str| setup.source.at_revision(&text.parse().unwrap(), "v2").unwrap().to_string();
    assert_eq!(at("hf:org/tiny"), "hf:org/tiny@v2");
    assert_eq!(at("hf:org/tiny:sub@main#x.gguf"), "hf:org/tiny:sub@v2#x.gguf");
    assert_eq!(at("hf:org/tiny@main:sub"), "hf:org/tiny@v2:sub");
}
