//! What is resolved by the Hub.

use llm_local_core::{CancellationToken, Digest};
use llm_local_testkit::{conformance, hub::Gated};

use super::*;

#[test]
fn a_plan_asks_for_the_commit_once_and_for_its_list_once() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    let commit = setup.commit("main");
    assert_eq!((paths(&manifest), &manifest.revision), (MODEL_FILES.to_vec(), &commit));
    assert_eq!((manifest.license.as_deref(), manifest.gated), (Some("apache-2.0"), Some(false)));
    let digests = |is: fn(&Digest) -> bool| manifest.files.iter().filter(|f| f.digest.as_ref().is_some_and(is)).count();
    assert_eq!(digests(|d| matches!(d, Digest::Sha256(_))), 2);
    assert_eq!(digests(|d| matches!(d, Digest::GitSha1(_))), 3);
    let tree = format!("/api/models/org/tiny/tree/{commit}?recursive=true");
    let info = "/api/models/org/tiny/revision/main?expand=sha&expand=gated&expand=cardData".to_owned();
    assert_eq!(setup.asked(), [info.clone(), tree], "names tell what the index would");
    assert_eq!(setup.resolve("hf:org/tiny").unwrap(), manifest);
    assert_eq!(setup.asked(), [info], "the list of a commit never changes");
    let kept = setup.cache.path().join(format!("models--org--tiny/.llm-local/{commit}.json"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(kept).unwrap()).unwrap();
    assert!(setup.cache.path().join("models--org--tiny/snapshots").is_dir());
    assert_eq!(json["format_version"], 1);
    assert_eq!(json["files"]["model-00001-of-00002.safetensors"]["lfs_size"], 3000);
    assert_eq!(json["files"].as_object().unwrap().len(), 7);
    let tag = fs::read_to_string(setup.cache.path().join("CACHEDIR.TAG")).unwrap();
    assert!(tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"), "{tag}");
}

#[test]
fn a_list_of_many_pages_is_read_to_its_end() {
    let setup = setup(Hub::builder().with_repo(model()).with_page_size(2).start());
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), MODEL_FILES);
    assert_eq!(setup.asked().len(), 1 + 4);
}

#[test]
fn branches_tags_commits_and_pull_requests_are_pinned_to_their_commits() {
    let repo = model()
        .with_tag("v1.0")
        .with_branch("feature/x y")
        .with_commit()
        .with_file("config.json", "{\"new\": 1}")
        .with_branch("refs/pr/1");
    let setup = setup(Hub::builder().with_repo(repo).start());
    let (old, new) = (setup.commit("v1.0"), setup.commit("main"));
    assert_ne!(old, new);
    for (revision, commit) in [("v1.0", &old), ("feature/x y", &old), ("refs/pr/1", &new), (&old, &old), ("main", &new)]
    {
        let manifest = setup.resolve(&format!("hf:org/tiny@{revision}")).unwrap();
        assert_eq!(&manifest.revision, commit, "{revision}");
        let placed = setup.placement(&manifest);
        let refs = setup.cache.path().join("models--org--tiny/refs").join(revision);
        let expected = if revision == old { vec![] } else { vec![(refs, commit.clone())] };
        assert_eq!(placed.refs, expected);
        // `expand` is not of this comparison.
        let asked = setup.asked()[0].split('?').next().unwrap().to_owned();
        assert_eq!(asked.matches('/').count(), 6, "one segment: {asked}");
    }
}

#[test]
fn a_repository_by_its_former_name_works_and_its_files_are_asked_for_by_the_new_one() {
    let setup = setup(Hub::builder().with_repo(model().renamed_from("old/name")).start());
    let manifest = setup.resolve("hf:old/name").unwrap();
    assert_eq!(paths(&manifest), MODEL_FILES);
    let request = setup.request(&manifest, "config.json");
    assert!(request.url.contains("/org/tiny/resolve/"), "{request:?}");
    assert_eq!(setup.get(&request).1, b"{}");
    let root = setup.placement(&manifest).root;
    assert!(root.ends_with("models--old--name"), "{}", root.display());
}

#[test]
fn subfolders_and_gguf_files_are_named_by_the_ref() {
    let repo = Repo::new("org/quants")
        .with_lfs("tiny-Q4_K_M.gguf", vec![4; 40])
        .with_lfs("tiny-Q8_0.gguf", vec![8; 80])
        .with_lfs("big/tiny-BF16.gguf", vec![16; 160]);
    let setup = setup(Hub::builder().with_repo(repo).start());
    for (reference, path, in_repo, size) in [
        ("hf:org/quants#Q4_K_M", "tiny-Q4_K_M.gguf", "tiny-Q4_K_M.gguf", 40),
        ("hf:org/quants#tiny-Q8_0.gguf", "tiny-Q8_0.gguf", "tiny-Q8_0.gguf", 80),
        ("hf:org/quants:big", "tiny-BF16.gguf", "big/tiny-BF16.gguf", 160),
        ("hf:org/quants@main:big/tiny-BF16.gguf", "tiny-BF16.gguf", "big/tiny-BF16.gguf", 160),
        ("hf:org/quants#bf16", "big/tiny-BF16.gguf", "big/tiny-BF16.gguf", 160),
    ] {
        let manifest = setup.resolve(reference).unwrap();
        assert_eq!(paths(&manifest), [path], "{reference}");
        assert_eq!(setup.get(&setup.request(&manifest, path)).1.len(), size, "{reference}");
        let placed = setup.placement(&manifest);
        assert!(placed.files[0].link.ends_with(format!("{}/{in_repo}", manifest.revision)), "{placed:?}");
    }
    let text = said(setup.resolve("hf:org/quants"), "load_failed", &["3 GGUF files", "hf:org/quants#tiny-Q8_0.gguf"]);
    assert!(text.contains("(80 bytes)"), "{text}");
}

#[test]
fn adapters_are_resolved_as_such() {
    let repo = Repo::new("org/lora")
        .with_file("adapter_config.json", "{}")
        .with_lfs("adapter_model.safetensors", vec![1; 10])
        .with_file("README.md", "");
    let setup = setup(Hub::builder().with_repo(repo).with_repo(model()).start());
    let cx = FetchContext::new();
    let manifest = setup.resolve_as("hf:org/lora", Want::Adapter, &cx).unwrap();
    assert_eq!(paths(&manifest), ["adapter_config.json", "adapter_model.safetensors"]);
    said(setup.resolve("hf:org/lora"), "unsupported_model_format", &["is an adapter"]);
    said(setup.resolve_as("hf:org/tiny", Want::Adapter, &cx), "unsupported_model_format", &["is a model"]);
}

#[test]
fn gating_is_told_and_the_licence_too() {
    let setup = setup(Hub::builder().with_repo(single().gated(Gated::Manual)).start());
    assert_eq!(setup.resolve("hf:org/tiny").unwrap().gated, Some(true));
}

#[test]
fn a_name_in_a_list_that_could_leave_the_folder_is_refused() {
    for path in ["big/../../x.gguf", "C:x.gguf", "nul.gguf"] {
        let setup = setup(Hub::builder().with_repo(Repo::new("org/tiny").with_lfs(path, "x")).start());
        said(setup.resolve("hf:org/tiny"), "invalid_spec", &["file name"]);
    }
}

#[test]
fn the_source_passes_the_suite() {
    let adapter = Repo::new("org/lora").with_file("adapter_config.json", "{}").with_lfs("adapters.safetensors", "x");
    let setup = setup(Hub::builder().with_repo(model()).with_repo(adapter).start());
    block_on(conformance::model_source(&setup.source, &"hf:org/tiny".parse().unwrap()));
    block_on(conformance::adapter_source(&setup.source, &"hf:org/lora".parse().unwrap()));
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &[]);
    setup.asked();
    let pinned = format!("hf:org/tiny@{}", manifest.revision);
    block_on(conformance::model_source(&setup.source, &pinned.parse().unwrap()));
}

#[test]
fn cancelling_ends_the_request() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    setup.hub.fault(llm_local_testkit::hub::Fault::silence());
    let cancel = CancellationToken::new();
    let cx = FetchContext::new().with_cancel(cancel.clone());
    std::thread::scope(|scope| {
        let resolving = scope.spawn(|| setup.resolve_as("hf:org/tiny", Want::Model, &cx));
        setup.hub.wait_until(|requests| !requests.is_empty());
        cancel.cancel();
        assert!(matches!(resolving.join().unwrap(), Err(Error::Cancelled)));
    });
}
