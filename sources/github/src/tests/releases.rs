//! What refs mean.

use llm_local_testkit::github::Asset;

use super::*;

#[test]
fn a_tag_is_pinned_to_its_release_and_the_assets_of_it() {
    let setup = setup(server().with_repository(one()), "");
    let manifest = setup.resolve("github:acme/lora@v1").unwrap();
    let release = setup.server.release_id("acme/lora", "v1");
    let asset = setup.server.asset_id("acme/lora", "v1", "pirate.zip");
    assert_eq!(manifest.revision, format!("{release}~{asset}"));
    assert_eq!(manifest.version.as_deref(), Some("v1"));
    assert_eq!(manifest.license.as_deref(), Some("MIT"));
    assert_eq!((manifest.files[0].path.as_str(), manifest.files[0].size), ("pirate.zip", 2));
    assert!(manifest.files[0].digest.is_some());
    assert_eq!(manifest.unpack.len(), 1);
    assert_eq!(setup.asked(), ["/repos/acme/lora/releases/tags/v1", "/repos/acme/lora"]);
}

#[test]
fn latest_is_the_newest_release_that_is_neither_draft_nor_prerelease() {
    let repository = one()
        .with_release(Release::new("v2").with_file("pirate.zip", "PK2"))
        .with_release(Release::new("v3-rc").prerelease().with_file("pirate.zip", "PK3"))
        .with_release(Release::new("v4").draft().with_file("pirate.zip", "PK4"));
    let setup = setup(server().with_repository(repository), "");
    for reference in ["github:acme/lora", "github:acme/lora@latest", "github:acme/lora@latest#pirate.zip"] {
        assert_eq!(setup.resolve(reference).unwrap().version.as_deref(), Some("v2"), "{reference}");
    }
    assert_eq!(setup.resolve("github:acme/lora@v3-rc").unwrap().version.as_deref(), Some("v3-rc"));
    assert_eq!(setup.tags("github:acme/lora"), ["v3-rc", "v2", "v1"]);
}

#[test]
fn a_tag_may_have_any_characters() {
    for tag in ["adapters/v1", "v1.0+build.5", "first try", "100%", "ü/é"] {
        let repository = Repository::new("acme/lora").with_release(Release::new(tag).with_file("a.gguf", "GGUF"));
        let setup = setup(server().with_repository(repository), "");
        let reference = llm_local_core::ArtifactRef::new("github", "acme/lora").unwrap().with_revision(tag).unwrap();
        let manifest = setup.resolve(&reference.to_string()).unwrap();
        assert_eq!(manifest.version.as_deref(), Some(tag));
        assert_eq!(setup.tags("github:acme/lora"), [tag]);
    }
}

#[test]
fn what_is_not_there_says_what_is() {
    let repository = one().with_release(Release::new("v2").draft().with_file("pirate.zip", "PK"));
    let setup = setup(server().with_repository(repository).with_token("ghp_push", Access::Push), "");
    said(
        setup.resolve("github:acme/lora@v9"),
        "not_found",
        &["no release `v9`, or it was deleted or is a draft", "github:acme/lora@v1"],
    );
    said(setup.resolve("github:acme/lora@v2"), "not_found", &["no release `v2`"]);
    said(setup.resolve("github:acme/none@v1"), "not_found", &["no repository acme/none", "GITHUB_TOKEN"]);
    said(setup.resolve("github:acme/lora@v1#no.zip"), "not_found", &["no asset `no.zip`", "pirate.zip"]);
    setup.server.delete_release("acme/lora", "v1");
    said(setup.resolve("github:acme/lora@v1"), "not_found", &["no published release"]);
    said(setup.resolve("github:acme/lora@latest"), "not_found", &["neither a draft nor a prerelease"]);
    let pushing = GitHub::builder().token("ghp_push").api(setup.server.api_url()).build().unwrap();
    let asked = block_on(pushing.resolve(&"github:acme/lora@v2".parse().unwrap(), Want::Adapter, &FetchContext::new()));
    said(asked, "not_found", &["`v2` is a draft"]);
}

#[test]
fn an_asset_that_is_still_being_uploaded_can_be_had_later() {
    let release = Release::new("v1").with_asset(Asset::new("a.gguf", "GGUF").uploading());
    let setup = setup(server().with_repository(Repository::new("acme/lora").with_release(release)), "");
    let error = said(setup.resolve("github:acme/lora@v1"), "download_failed", &["a.gguf", "still being uploaded"]);
    assert!(error.is_retryable());
    setup.server.finish_upload("acme/lora", "v1", "a.gguf");
    assert_eq!(setup.resolve("github:acme/lora@v1").unwrap().files[0].size, 4);
}

#[test]
fn a_digest_that_github_does_not_tell_is_looked_for_in_a_list() {
    let bare = |content: &str| Asset::new("a.gguf", content.to_owned()).without_digest();
    let with = Release::new("v1").with_asset(bare("GGUF")).with_sha256sums("SHA256SUMS.txt");
    let own = Release::new("v2").with_asset(bare("GGUF")).with_file("a.gguf.sha256", "0".repeat(64));
    let without = Release::new("v3").with_asset(bare("GGUF"));
    let repository = Repository::new("acme/lora").with_release(with).with_release(own).with_release(without);
    let setup = setup(server().with_repository(repository), "");
    let digest = |tag: &str| setup.resolve(&format!("github:acme/lora@{tag}")).unwrap().files[0].digest;
    let text = |digest: llm_local_core::Digest| digest.to_string();
    // Of `GGUF`, by sha256sum.
    let sum = "sha256:b83633aa785344791618f2fddf131b010ea04912a60430760b070bad293f65bd";
    assert_eq!(digest("v1").map(text).unwrap(), sum);
    assert_eq!(digest("v2").map(text).unwrap(), format!("sha256:{}", "0".repeat(64)));
    assert_eq!(digest("v3"), None);
}

#[test]
fn a_sum_of_an_assets_own_that_says_nothing_of_it_leaves_the_list_and_two_that_differ_are_an_error() {
    let bare = || Asset::new("a.gguf", "GGUF").without_digest();
    let (a, b) = ("0".repeat(64), "1".repeat(64));
    let own = Release::new("v1").with_asset(bare()).with_file("a.gguf.sha256", format!("{a}  other.gguf"));
    let twice = Release::new("v2").with_asset(bare()).with_file("SHA256SUMS", format!("{a}  a.gguf\n{b}  a.gguf\n"));
    let repository = Repository::new("acme/lora").with_release(own.with_sha256sums("SHA256SUMS")).with_release(twice);
    let setup = setup(server().with_repository(repository), "");
    let digest = setup.resolve("github:acme/lora@v1").unwrap().files[0].digest.unwrap().to_string();
    // Of `GGUF`, by sha256sum.
    assert_eq!(digest, "sha256:b83633aa785344791618f2fddf131b010ea04912a60430760b070bad293f65bd");
    let parts = ["`SHA256SUMS` of github:acme/lora@v2", "one digest of `a.gguf`", a.as_str(), b.as_str()];
    said(setup.resolve("github:acme/lora@v2"), "integrity_failed", &parts);
}

#[test]
fn versions_of_an_adapter_are_no_releases_of_models_alone() {
    let model = |tag: &str| {
        let release = Release::new(tag).with_file("config.json", "{}");
        release.with_file("model-00001-of-00002.safetensors", "x").with_file("model-00002-of-00002.safetensors", "x")
    };
    let models = Repository::new("acme/model").with_release(model("m1")).with_release(model("m2"));
    let both = Repository::new("acme/lora").with_release(Release::new("v1").with_file("a.gguf", "x"));
    let setup = setup(server().with_repository(models).with_repository(both.with_release(model("m1"))), "");
    assert_eq!(setup.tags("github:acme/lora"), ["v1"]);
    assert_eq!(setup.tags("github:acme/model"), ["m2", "m1"]);
}

#[test]
fn versions_are_the_releases_that_have_the_asset() {
    let mut repository = Repository::new("acme/lora");
    for i in 0..130 {
        let name = if i % 2 == 0 { "a.gguf" } else { "notes.txt" };
        repository = repository.with_release(Release::new(format!("v{i}")).with_file(name, "x"));
    }
    let setup = setup(server().with_repository(repository), "");
    let tags = setup.tags("github:acme/lora");
    assert_eq!((tags.len(), tags[0].as_str(), tags[64].as_str()), (65, "v128", "v0"));
    assert_eq!(setup.asked().len(), 2);
}

#[test]
fn a_release_that_is_called_latest_promises_nothing() {
    let repository = Repository::new("acme/lora").with_release(Release::new("latest").with_file("a.gguf", "GGUF"));
    let setup = setup(server().with_repository(repository), "");
    let manifest = setup.resolve("github:acme/lora@latest").unwrap();
    assert_eq!((manifest.version, manifest.files[0].path.as_str()), (None, "a.gguf"));
}
