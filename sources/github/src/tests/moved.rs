//! Tags that mean something else than they did.

use llm_local_source_common::store::Store;
use llm_local_testkit::github::Asset;

use super::{downloads::fetch, *};

const V1: &str = "github:acme/lora@v1";
const NAME: &str = "a.gguf";

/// An asset of always the same size, of which GitHub tells the digest, or does not.
fn asset(byte: u8, told: bool) -> Asset {
    let asset = Asset::new(NAME, vec![byte; 3000]);
    if told { asset } else { asset.without_digest() }
}

fn with_asset(told: bool) -> Setup {
    with_asset_and_token(told, TOKEN)
}

fn with_asset_and_token(told: bool, token: &str) -> Setup {
    let release = Release::new("v1").with_asset(asset(7, told));
    setup(server().with_repository(Repository::new("acme/lora").with_release(release)), token)
}

#[test]
fn a_tag_that_moved_is_another_revision_whose_bytes_are_refused_until_the_first_are_deleted() {
    let moves: [fn(&Server, Asset) -> u64; 2] = [
        |server, asset| server.publish("acme/lora", Release::new("v1").with_asset(asset)),
        |server, asset| server.upload("acme/lora", "v1", asset),
    ];
    for (i, to) in moves.into_iter().enumerate() {
        for told in [true, false] {
            let (setup, root) = (with_asset(told), tempfile::tempdir().unwrap());
            let first = setup.resolve(V1).unwrap();
            assert_eq!(fetch(&setup, &root, first.clone()).unwrap(), vec![7; 3000]);
            let release = setup.server.release_id("acme/lora", "v1");
            to(&setup.server, asset(8, told));
            assert_eq!(setup.server.release_id("acme/lora", "v1") == release, i == 1);

            let moved = setup.resolve(V1).unwrap();
            assert_ne!(moved.revision, first.revision);
            assert_eq!((&moved.version, moved.files[0].size), (&first.version, first.files[0].size));
            setup.asked();
            let parts = ["first fetched under `v1`", NAME, "was replaced in the release", "delete (`rm`)", V1];
            let error = said(fetch(&setup, &root, moved.clone()), "adapter_merge_failed", &parts);
            let Error::AdapterMergeFailed { source: Some(cause), .. } = &error else { panic!("{error:?}") };
            assert_eq!(cause.downcast_ref::<Error>().unwrap().code(), "integrity_failed");
            assert!(!error.is_retryable());
            assert_eq!(setup.asked().is_empty(), told, "a digest that is told spares the bytes");

            // What the tag was first is kept as it was, and needs nobody.
            assert_eq!(fetch(&setup, &root, first.clone()).unwrap(), vec![7; 3000]);
            assert_eq!(setup.asked(), Vec::<String>::new());
            Store::new(root.path()).delete(&V1.parse().unwrap()).unwrap();
            assert_eq!(fetch(&setup, &root, moved).unwrap(), vec![8; 3000]);

            // And who still wants the first ones is not given the others.
            let elsewhere = tempfile::tempdir().unwrap();
            said(fetch(&setup, &elsewhere, first), "adapter_merge_failed", &["the asset is gone"]);
            assert!(!elsewhere.path().join("artifacts").exists());
        }
    }
}

#[test]
fn a_tag_whose_commit_alone_moved_has_the_assets_that_it_had() {
    let setup = with_asset(false);
    let first = setup.resolve(V1).unwrap();
    setup.server.move_tag("acme/lora", "v1", &"e".repeat(40));
    assert_eq!(setup.resolve(V1).unwrap(), first);
    setup.server.delete_tag("acme/lora", "v1");
    said(setup.resolve(V1), "not_found", &["no release `v1`"]);
}

#[test]
fn the_same_bytes_under_a_tag_that_moved_are_taken() {
    for told in [true, false] {
        let (setup, root) = (with_asset(told), tempfile::tempdir().unwrap());
        let first = setup.resolve(V1).unwrap();
        fetch(&setup, &root, first.clone()).unwrap();
        setup.server.publish("acme/lora", Release::new("v1").with_asset(asset(7, told)));
        let moved = setup.resolve(V1).unwrap();
        assert_ne!(moved.revision, first.revision);
        assert_eq!(fetch(&setup, &root, moved).unwrap(), vec![7; 3000]);
    }
}

#[test]
fn without_a_token_too_a_tag_that_moves_before_its_bytes_are_asked_for_gives_no_others() {
    for (told, says) in [(true, "integrity_failed"), (false, "not_found")] {
        let (setup, root) = (with_asset_and_token(told, ""), tempfile::tempdir().unwrap());
        let manifest = setup.resolve(V1).unwrap();
        // By the web where the digest tells whether they are the ones, else by the id.
        let url = setup.request(&manifest, NAME).url;
        let id = setup.server.asset_id("acme/lora", "v1", NAME);
        assert_eq!(url.contains("/releases/download/v1/"), told, "{url}");
        assert_eq!(url.ends_with(&format!("/releases/assets/{id}")), !told, "{url}");
        setup.server.publish("acme/lora", Release::new("v1").with_asset(asset(8, told)));
        let error = said(
            fetch(&setup, &root, manifest),
            "adapter_merge_failed",
            &[V1, if told { NAME } else { "the asset is gone" }],
        );
        let Error::AdapterMergeFailed { source: Some(cause), .. } = &error else { panic!("{error:?}") };
        assert_eq!(cause.downcast_ref::<Error>().unwrap().code(), says, "{error}");
        assert!(!root.path().join("artifacts").exists());
    }
}

#[test]
fn a_list_of_digests_is_asked_for_by_its_id() {
    let release = Release::new("v1").with_asset(asset(7, false)).with_sha256sums("SHA256SUMS");
    let setup = setup(server().with_repository(Repository::new("acme/lora").with_release(release)), "");
    let list = setup.server.asset_id("acme/lora", "v1", "SHA256SUMS");
    assert!(setup.resolve(V1).unwrap().files[0].digest.is_some());
    let asked = setup.asked();
    assert!(asked.contains(&format!("/repos/acme/lora/releases/assets/{list}")), "{asked:?}");
    assert!(!asked.iter().any(|path| path.contains("/releases/download/")), "{asked:?}");
}

#[test]
fn a_large_asset_without_a_digest_takes_one_request_of_the_limit() {
    let large = asset(7, false).with_size((64 << 20) + 1);
    let repository = Repository::new("acme/lora").with_release(Release::new("v1").with_asset(large));
    let setup = setup(server().with_repository(repository), "");
    let manifest = setup.resolve(V1).unwrap();
    assert_eq!(manifest.files[0].digest, None);
    assert!(setup.request(&manifest, NAME).url.contains("/releases/download/v1/"));
}
