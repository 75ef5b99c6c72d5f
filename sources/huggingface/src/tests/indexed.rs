//! Models whose weights are those that an index names.

use llm_local_testkit::hub::{Fault, Gated, Host};

use super::*;

const INDEX: &str = "model.safetensors.index.json";

/// A model with shards of any name, and files that look like shards of it.
fn odd() -> Repo {
    Repo::new("org/tiny")
        .with_file("config.json", "{}")
        .with_file(INDEX, index(&["mtp.safetensors", "extra/e.safetensors"]))
        .with_lfs("mtp.safetensors", vec![1; 30])
        .with_lfs("extra/e.safetensors", vec![2; 20])
        .with_lfs("model-00001-of-00002.safetensors", vec![3; 40])
        .with_lfs("other.safetensors", vec![4; 50])
}

fn index(shards: &[&str]) -> String {
    let map: serde_json::Map<_, _> = shards.iter().enumerate().map(|(i, s)| (i.to_string(), (*s).into())).collect();
    serde_json::json!({ "metadata": { "total_size": 50 }, "weight_map": map }).to_string()
}

const ODD_FILES: [&str; 4] = ["config.json", "extra/e.safetensors", INDEX, "mtp.safetensors"];

#[test]
fn the_files_that_the_index_names_are_the_model_and_it_is_asked_for_once() {
    let setup = setup(Hub::builder().with_repo(odd()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    assert_eq!(paths(&manifest), ODD_FILES);
    let asked = setup.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked[2], format!("/org/tiny/resolve/{}/{INDEX}", manifest.revision));
    assert_eq!(setup.resolve("hf:org/tiny").unwrap(), manifest);
    assert_eq!(setup.asked().len(), 1);
    // Offline it counts too, with what is missing by its word.
    setup.publish(&manifest, &["mtp.safetensors"]);
    setup.asked();
    said(setup.offline("hf:org/tiny"), "offline", &["3 of 4 files", "(`mtp.safetensors`)"]);
    setup.publish(&manifest, &["config.json", "extra/e.safetensors", INDEX]);
    setup.asked();
    assert_eq!(setup.offline("hf:org/tiny").unwrap().files, manifest.files);
    let pinned = format!("hf:org/tiny@{}", manifest.revision);
    assert_eq!(setup.resolve(&pinned).unwrap().files, manifest.files);
    assert_eq!(setup.asked(), [""; 0]);
}

#[test]
fn an_index_is_left_unread_where_the_list_of_files_tells_all_that_it_can_name() {
    let shards: Vec<_> = (1..=3).map(|at| format!("model-{at:05}-of-00003.safetensors")).collect();
    let tensors: String =
        (0..40_000).map(|n| format!(r#","layers.{n}.mlp.experts.weight":"{}""#, shards[n % 3])).collect();
    let index = format!(r#"{{"weight_map":{{"a":"{}"{tensors}}}}}"#, shards[0]);
    assert!(index.len() > 2_000_000);
    let mut repo = Repo::new("org/tiny").with_file("config.json", "{}").with_lfs(INDEX, index.clone());
    for shard in &shards {
        repo = repo.with_lfs(shard, vec![1; 30]);
    }
    let setup = setup(Hub::builder().with_repo(repo.clone()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    assert_eq!((manifest.files.len(), setup.asked().len()), (5, 2));
    // Whoever wants it first brings it for all.
    for _ in 0..2 {
        assert!(setup.content(&manifest, INDEX) == index.as_bytes());
    }
    let files = setup.fetch(&manifest, &FetchContext::new()).unwrap();
    assert!(fs::read(&files[INDEX]).unwrap() == index.as_bytes());
    assert_eq!(setup.asked().iter().filter(|path| path.ends_with(INDEX)).count(), 1);
    setup.hub.publish(repo.with_commit().with_lfs("mtp.safetensors", vec![2; 20]));
    setup.resolve("hf:org/tiny").unwrap();
    assert_eq!(setup.asked().len(), 2, "there is a doubt, but this index was published for another commit");
}

#[test]
fn parts_of_an_index_come_from_what_is_kept_or_from_the_hub() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    let open = || block_on(setup.source.open(&manifest, manifest.file(INDEX).unwrap(), 3..9, &FetchContext::new()));
    assert!(matches!(open().unwrap(), Opened::Request(_)));
    let whole = setup.content(&manifest, INDEX);
    let Opened::Stream(part) = open().unwrap() else { panic!("it is kept") };
    let part = block_on(futures_util::TryStreamExt::try_collect::<Vec<_>>(part)).unwrap().concat();
    assert_eq!(part, whole[3..9]);
}

#[test]
fn a_kept_index_that_was_damaged_is_asked_for_again() {
    let setup = setup(Hub::builder().with_repo(odd()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    let kept = setup.cache.path().join(format!("models--org--tiny/.llm-local/{}/{INDEX}", manifest.revision));
    let right = fs::read(&kept).unwrap();
    for again in [true, false] {
        fs::write(&kept, vec![b' '; right.len()]).unwrap();
        setup.asked();
        if again {
            assert_eq!(setup.resolve("hf:org/tiny").unwrap(), manifest);
        } else {
            assert_eq!(setup.content(&manifest, INDEX), right);
        }
        assert!(setup.asked().iter().any(|path| path.ends_with(INDEX)));
        assert_eq!(fs::read(&kept).unwrap(), right);
    }
}

#[test]
fn an_index_that_is_in_the_cache_is_not_asked_for() {
    let setup = setup(Hub::builder().with_repo(odd()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &["mtp.safetensors"]);
    // As after a download by another tool.
    let kept = setup.cache.path().join("models--org--tiny/.llm-local");
    fs::remove_dir_all(&kept).unwrap();
    setup.asked();
    assert_eq!(setup.resolve("hf:org/tiny").unwrap(), manifest);
    assert_eq!(setup.asked().len(), 2, "revision and list");
    // With a list of another tool, but without the index, nobody knows what else is needed.
    fs::create_dir_all(setup.cache.path().join("models--org--tiny/trees")).unwrap();
    let trees = setup.cache.path().join(format!("models--org--tiny/trees/{}.json", manifest.revision));
    fs::rename(kept.join(format!("{}.json", manifest.revision)), trees).unwrap();
    let placed = &setup.placement(&manifest).files[2];
    fs::remove_file(&placed.link).unwrap();
    if placed.blob != placed.link {
        fs::remove_file(&placed.blob).unwrap();
    }
    let pinned = format!("hf:org/tiny@{}", manifest.revision);
    said(setup.offline(&pinned), "offline", &["some files of", "`model.safetensors.index.json`, and the weights"]);
    assert_eq!(setup.resolve(&pinned).unwrap().files, manifest.files);
    assert_eq!(setup.asked().len(), 2, "revision and index");
}

#[test]
fn an_index_in_a_subfolder_names_what_is_in_there() {
    let repo = Repo::new("org/tiny")
        .with_file("q/config.json", "{}")
        .with_file(format!("q/{INDEX}"), index(&["a.safetensors"]))
        .with_lfs("q/a.safetensors", vec![1; 30])
        .with_lfs("a.safetensors", vec![2; 20]);
    let setup = setup(Hub::builder().with_repo(repo).start());
    let manifest = setup.resolve("hf:org/tiny:q").unwrap();
    assert_eq!(paths(&manifest), ["a.safetensors", "config.json", INDEX]);
    assert_eq!(manifest.files[0].size, 30);
    assert_eq!(setup.asked()[2], format!("/org/tiny/resolve/{}/q/{INDEX}", manifest.revision));
}

#[test]
fn an_index_that_names_what_the_repository_lacks_says_what() {
    for (shards, words) in [
        (&["mtp.safetensors", "gone.safetensors"][..], &["names 1 of 2 shards", "lacks: gone.safetensors;"][..]),
        (&["../mtp.safetensors"], &["outside its folder"]),
    ] {
        let setup = setup(Hub::builder().with_repo(odd().with_file(INDEX, index(shards))).start());
        said(setup.resolve("hf:org/tiny"), "load_failed", words);
        assert_eq!(setup.asked().len(), 3);
    }
    let pickles = odd().with_file(INDEX, index(&["pytorch_model-00001-of-00001.bin"]));
    let setup = setup(Hub::builder().with_repo(pickles).start());
    said(setup.resolve("hf:org/tiny"), "unsupported_model_format", &["is a pickle"]);
}

#[test]
fn an_index_is_bounded_and_verified() {
    for (fault, code, words, requests) in [
        (Fault::wrong_bytes(), "integrity_failed", &["of hf:org/tiny", "git-sha1:"][..], 2),
        (Fault::longer(7), "download_failed", &["hf:org/tiny", "answered with more than"], 1),
        (Fault::html(), "integrity_failed", &["git-sha1:"], 2),
        (Fault::shorter(3), "integrity_failed", &["git-sha1:"], 2),
        (
            Fault::status(404).with_header("X-Error-Code", "EntryNotFound"),
            "not_found",
            &["no file `model.safetensors.i"],
            1,
        ),
    ] {
        let setup = setup(Hub::builder().with_repo(odd()).start());
        setup.hub.fault(fault.path(INDEX));
        said(setup.resolve("hf:org/tiny"), code, words);
        assert_eq!(setup.asked().len(), 2 + requests, "wrong bytes are asked for once more");
        setup.hub.clear_faults();
        assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), ODD_FILES, "nothing wrong was kept");
    }
    let setup = setup(Hub::builder().with_repo(odd()).start());
    let entry = |path: &str, size: u64| serde_json::json!({ "type": "file", "oid": "a".repeat(40), "size": size, "path": path });
    let tree = serde_json::json!([entry("config.json", 2), entry(INDEX, 1 << 40), entry("mtp.safetensors", 30)]);
    setup.hub.fault(Fault::answer(200, "application/json", tree.to_string()).path("*/tree/*"));
    said(setup.resolve("hf:org/tiny"), "load_failed", &["has 1099511627776 bytes; expected at most"]);
    assert_eq!(setup.asked().len(), 2, "so much is not asked for");
}

#[test]
fn an_index_that_does_not_come_is_tried_as_often_as_any_file() {
    for (fault, code, requests) in
        [(Fault::status(503), "download_failed", 5), (Fault::wrong_bytes(), "integrity_failed", 2)]
    {
        let setup = setup(Hub::builder().with_repo(model()).start());
        let manifest = setup.resolve("hf:org/tiny").unwrap();
        setup.hub.fault(fault.path(INDEX));
        said(setup.fetch(&manifest, &FetchContext::new()), code, &["hf:org/tiny"]);
        assert_eq!(setup.asked().iter().filter(|path| path.ends_with(INDEX)).count(), requests);
        let kept = setup.cache.path().join(format!("models--org--tiny/.llm-local/{}", manifest.revision));
        assert!(!kept.exists(), "nothing wrong is kept");
    }
}

#[test]
fn an_index_is_asked_for_again_where_that_helps() {
    let setup = setup(Hub::builder().with_repo(odd()).start());
    setup.hub.fault(Fault::status(503).path(INDEX).once());
    setup.hub.fault(Fault::cut(5).path(INDEX).once());
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), ODD_FILES);
    assert_eq!(setup.asked().len(), 2 + 3);
}

#[test]
fn an_index_in_lfs_comes_from_the_second_host_without_the_token() {
    let repo = odd().with_lfs(INDEX, index(&["mtp.safetensors"])).private();
    let setup = with_token(Hub::builder().with_repo(repo).with_token(TOKEN).start(), TOKEN);
    assert_eq!(paths(&setup.resolve("hf:org/tiny").unwrap()), ["config.json", INDEX, "mtp.safetensors"]);
    let requests = setup.hub.wait_until_idle();
    assert_eq!(requests.iter().filter(|r| r.host == Host::Cdn).count(), 1);
    for request in requests {
        assert_eq!(request.header("authorization").is_some(), request.host == Host::Hub, "{request:?}");
    }
}

#[test]
fn a_gated_repository_refuses_the_index_with_what_to_do() {
    let setup = setup(Hub::builder().with_repo(odd().gated(Gated::Auto)).start());
    said(setup.resolve("hf:org/tiny"), "unauthorized", &["accept the conditions at", "no token was sent"]);
    assert_eq!(setup.asked().len(), 3);
}
