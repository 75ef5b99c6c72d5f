//! Digests from a list among the assets.

use llm_local_testkit::github::{Asset, Fault};

use super::*;

/// Of `GGUF`, by sha256sum.
const GGUF: &str = "b83633aa785344791618f2fddf131b010ea04912a60430760b070bad293f65bd";

fn bare(name: &str) -> Asset {
    Asset::new(name, "GGUF").without_digest()
}

/// The repository `name` with the release `v1`.
fn with(name: &str, release: impl FnOnce(Release) -> Release) -> Setup {
    setup(server().with_repository(Repository::new(name).with_release(release(Release::new("v1")))), "")
}

fn resolve_model(setup: &Setup, reference: &str) -> Manifest {
    let reference = reference.parse().unwrap();
    block_on(setup.source.resolve(&reference, Want::Model, &FetchContext::new())).unwrap()
}

#[test]
fn a_list_is_fetched_once_for_all_the_assets_that_it_is_asked_about() {
    let names = ["config.json", "model-1.safetensors", "model-2.safetensors", "model-3.safetensors", "tokenizer.json"];
    let setup = with("acme/lora", |release| {
        names.iter().fold(release, |release, name| release.with_asset(bare(name))).with_sha256sums("SHA256SUMS")
    });
    let manifest = resolve_model(&setup, "github:acme/lora@v1");
    let digests: Vec<_> = manifest.files.iter().map(|file| file.digest.unwrap().to_string()).collect();
    assert_eq!(digests, vec![format!("sha256:{GGUF}"); 5]);
    let asked = setup.asked();
    let list = format!("/releases/assets/{}", setup.server.asset_id("acme/lora", "v1", "SHA256SUMS"));
    let lists: Vec<_> = asked.iter().filter(|path| path.ends_with(&list)).collect();
    assert_eq!((lists.len(), asked.len()), (1, 4), "{asked:?}");
}

#[test]
fn lists_of_release_tools_are_found_and_their_paths_read() {
    for list in ["lora_1.0_SHA256SUMS", "lora_1.0_checksums.txt", "lora.sha256sums"] {
        let setup = with("acme/lora", |release| {
            release.with_asset(bare("a.gguf")).with_file(list, format!("{GGUF}  dist/a.gguf\n"))
        });
        let digest = setup.resolve("github:acme/lora@v1").unwrap().files[0].digest.unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{GGUF}"), "{list}");
    }
}

#[test]
fn a_list_that_is_still_being_uploaded_can_be_had_later() {
    let text = format!("{GGUF}  a.gguf\n");
    let setup = with("acme/lora", |release| {
        release.with_asset(bare("a.gguf")).with_asset(Asset::new("SHA256SUMS", text).uploading())
    });
    let parts = ["SHA256SUMS", "still being uploaded", "github:acme/lora@v1"];
    assert!(said(setup.resolve("github:acme/lora@v1"), "download_failed", &parts).is_retryable());
    setup.server.finish_upload("acme/lora", "v1", "SHA256SUMS");
    assert!(setup.resolve("github:acme/lora@v1").unwrap().files[0].digest.is_some());
    // Who needs no list does not wait for it.
    let told = with("acme/lora", |release| {
        release.with_file("a.gguf", "GGUF").with_asset(Asset::new("SHA256SUMS", "").uploading())
    });
    assert!(told.resolve("github:acme/lora@v1").unwrap().files[0].digest.is_some());
}

#[test]
fn a_web_page_or_bytes_are_no_list() {
    let setup =
        with("acme/lora", |release| release.with_asset(bare("a.gguf")).with_file("SHA256SUMS", vec![0xff, 0xfe]));
    let what = "`SHA256SUMS` of github:acme/lora@v1";
    said(setup.resolve("github:acme/lora@v1"), "download_failed", &[what, "no text in UTF-8"]);
    setup.server.fault(Fault::html().path("SHA256SUMS"));
    let error = said(setup.resolve("github:acme/lora@v1"), "download_failed", &[what, "answered with a web page"]);
    assert!(!error.is_retryable());
}

#[test]
fn a_list_that_does_not_tell_an_asset_is_warned_of() {
    let unnamed = with("warns/unnamed", |release| {
        release.with_asset(bare("a.gguf")).with_file("SHA256SUMS", format!("{GGUF}  b.gguf\n"))
    });
    assert_eq!(unnamed.resolve("github:warns/unnamed@v1").unwrap().files[0].digest, None);
    assert_eq!(warned::lines(&["github:warns/unnamed@v1", "a.gguf", "SHA256SUMS", "tells none of this asset"]), 1);
    let none = with("warns/none", |release| release.with_asset(bare("a.gguf")));
    assert_eq!(none.resolve("github:warns/none@v1").unwrap().files[0].digest, None);
    let named = with("warns/named", |release| release.with_asset(bare("a.gguf")).with_sha256sums("SHA256SUMS"));
    assert!(named.resolve("github:warns/named@v1").unwrap().files[0].digest.is_some());
    assert_eq!(warned::lines(&["github:warns/n"]), 0);
}
