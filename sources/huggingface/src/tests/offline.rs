//! What the cache gives without a request.

use super::*;

/// A repository in the cache as other tools write it, without a list of its files.
fn found_in(cache: &Path, commit: &str, files: &[(&str, &str)]) {
    let root = cache.join("models--org--tiny");
    for (at, (path, content)) in files.iter().enumerate() {
        link(
            &root.join(format!("blobs/{at:040x}")),
            &root.join("snapshots").join(commit).join(path),
            content.as_bytes(),
        );
    }
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), commit).unwrap();
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn what_was_published_is_found_again_without_a_request() {
    let setup = setup(Hub::builder().with_repo(model().with_tag("v1")).start());
    let online = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&online, &[]);
    setup.asked();
    let offline = setup.offline("hf:org/tiny").unwrap();
    assert_eq!((&offline.files, &offline.revision), (&online.files, &online.revision));
    let placed = setup.placement(&offline);
    assert!(placed.files.iter().zip(&offline.files).all(|(p, f)| fs::metadata(&p.link).unwrap().len() == f.size));
    let pinned = format!("hf:org/tiny@{}", online.revision);
    assert_eq!(setup.resolve(&pinned).unwrap().files, online.files, "a commit never changes, so online neither");
    assert_eq!(setup.offline(&pinned).unwrap().files, online.files);
    let forced = source(&setup.hub.endpoint(), setup.cache.path(), &setup.timer).offline(true).build().unwrap();
    let reference: ArtifactRef = "hf:org/tiny".parse().unwrap();
    assert_eq!(block_on(forced.resolve(&reference, Want::Model, &FetchContext::new())).unwrap().files, online.files);
    assert_eq!(setup.asked(), [""; 0]);
    // A tag that was never asked for stands for no commit yet.
    said(setup.offline("hf:org/tiny@v1"), "offline", &["hf:org/tiny@v1"]);
    said(setup.offline("hf:org/other"), "offline", &["hf:org/other", "network may not be used"]);
}

#[test]
fn without_the_network_no_file_and_no_list_of_revisions_is_opened() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.asked();
    let cx = FetchContext::new().with_offline(true);
    let error = block_on(setup.source.open(&manifest, &manifest.files[0], 0..1, &cx)).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }) && error.to_string().contains("config.json"), "{error}");
    let reference = "hf:org/tiny".parse().unwrap();
    assert!(matches!(block_on(setup.source.revisions(&reference, &cx)), Err(Error::Offline { .. })));
    assert_eq!(setup.asked(), [""; 0]);
}

#[test]
fn a_snapshot_that_lacks_files_says_which() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &["model-00002-of-00002.safetensors"]);
    let words = ["4 of 5 files", "the rest (`model-00002-of-00002.safetensors`) is not on this machine"];
    let text = said(setup.offline("hf:org/tiny"), "offline", &words);
    assert!(!text.contains("00001"), "{text}");
    // Half a file is none.
    let short = &setup.placement(&manifest).files[1].link;
    fs::write(short, "short").unwrap();
    said(setup.offline("hf:org/tiny"), "offline", &["3 of 5 files", "`model-00001-of-00002.safetensors`"]);
    let pinned = format!("hf:org/tiny@{}", manifest.revision);
    assert_eq!(setup.resolve(&pinned).unwrap().files, manifest.files, "online the rest can be fetched");
}

#[test]
fn a_snapshot_of_another_tool_without_a_list_is_used_if_it_is_whole() {
    let index = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
    let index = ("model.safetensors.index.json", index);
    let setup = setup(Hub::start());
    let whole = [
        ("config.json", "{}"),
        index,
        ("model-1-of-2.safetensors", "1"),
        ("model-2-of-2.safetensors", "22"),
        ("tokenizer.model", "4444"),
    ];
    found_in(setup.cache.path(), COMMIT, &whole);
    let manifest = setup.offline("hf:org/tiny").unwrap();
    assert_eq!(manifest.revision, COMMIT);
    assert_eq!(manifest.files.iter().map(|f| f.size).collect::<Vec<_>>(), [2, 1, 2, index.1.len() as u64, 4]);
    #[cfg(unix)]
    assert_eq!(manifest.files[0].digest.unwrap().to_string(), format!("git-sha1:{:040x}", 0));
    let placed = setup.placement(&manifest);
    assert!(placed.files.iter().all(|p| p.link.is_file() && p.blob.is_file()), "{placed:?}");

    for (files, missing) in [
        (&whole[..3], "`model-2-of-2.safetensors`"),
        (&whole[..4], "`tokenizer.json`"),
        (&whole[1..], "`config.json`"),
        (&[whole[0], index][..], "(`model-1-of-2.safetensors`, `model-2-of-2.safetensors`)"),
        (&whole[..1], "the weights"),
        (&[whole[0], whole[3]][..], "`model-1-of-2.safetensors`"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        found_in(cache.path(), COMMIT, files);
        let source = source("https://hub.test", cache.path(), &setup.timer).build().unwrap();
        let cx = FetchContext::new().with_offline(true);
        said(block_on(source.resolve(&"hf:org/tiny".parse().unwrap(), Want::Model, &cx)), "offline", &[missing]);
    }
}

#[test]
fn a_tokenizer_that_another_tool_asked_for_in_vain_is_not_missing() {
    let setup = setup(Hub::start());
    found_in(setup.cache.path(), COMMIT, &[("config.json", "{}"), ("model.safetensors", "1")]);
    said(setup.offline("hf:org/tiny"), "offline", &["2 of 3 files", "`tokenizer.json`"]);
    let noted = setup.cache.path().join("models--org--tiny/.no_exist").join(COMMIT);
    fs::create_dir_all(&noted).unwrap();
    fs::write(noted.join("tokenizer.json"), "").unwrap();
    assert_eq!(paths(&setup.offline("hf:org/tiny").unwrap()), ["config.json", "model.safetensors"]);
}

#[test]
fn a_gguf_file_that_is_not_in_the_cache_is_missing_and_not_unknown() {
    let setup = setup(Hub::start());
    found_in(setup.cache.path(), COMMIT, &[("m-Q4_0.gguf", "GGUF")]);
    assert_eq!(paths(&setup.offline("hf:org/tiny#Q4_0").unwrap()), ["m-Q4_0.gguf"]);
    said(setup.offline("hf:org/tiny#Q8_0"), "offline", &["the GGUF file"]);
}

#[test]
fn a_list_that_is_broken_or_of_another_version_is_asked_for_again() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    let tree = setup.cache.path().join(format!("models--org--tiny/.llm-local/{}.json", manifest.revision));
    for text in ["{", r#"{"format_version": 2, "files": {}}"#] {
        setup.asked();
        fs::write(&tree, text).unwrap();
        assert_eq!(setup.resolve("hf:org/tiny").unwrap(), manifest);
        assert_eq!(setup.asked().len(), 2);
    }
}

#[test]
fn a_hub_that_cannot_be_reached_is_replaced_by_the_cache() {
    let Setup { hub, source, cache, timer } = setup(Hub::builder().with_repo(model()).start());
    let endpoint = hub.endpoint();
    let setup = Setup { hub, source, cache, timer };
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &[]);
    let Setup { hub, source, cache, timer } = setup;
    drop(hub);
    let reference: ArtifactRef = "hf:org/tiny".parse().unwrap();
    let resolved = block_on(source.resolve(&reference, Want::Model, &FetchContext::new())).unwrap();
    assert_eq!(resolved.files, manifest.files);
    assert!(timer.sleeps(llm_local_source_common::network::Wait::Backoff).is_empty(), "nobody waits for what is there");
    // With nothing in the cache it is tried again, and then told.
    let empty = tempfile::tempdir().unwrap();
    let fresh = super::source(&endpoint, empty.path(), &timer).build().unwrap();
    let error = block_on(fresh.resolve(&reference, Want::Model, &FetchContext::new())).unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("download_failed", true), "{error}");
    assert_eq!(timer.sleeps(llm_local_source_common::network::Wait::Backoff).len(), 4);
    drop(cache);
}

#[test]
fn an_answer_of_the_hub_is_not_replaced_by_the_cache() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &[]);
    setup.hub.remove("org/tiny");
    said(setup.resolve("hf:org/tiny"), "not_found", &["there is no", "or it is private"]);
}
