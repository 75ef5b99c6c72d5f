//! Revisions that the source gave, asked for again.

use llm_local_testkit::github::Asset;

use super::{downloads::fetch, *};

/// A release that is called latest, whose tag promises nothing.
fn rolling() -> Setup {
    let release = Release::new("latest").with_asset(Asset::new("a.gguf", "one").without_digest());
    let repository = Repository::new("acme/lora").with_license("MIT").with_release(release);
    setup(server().with_repository(repository), TOKEN)
}

/// What `reference` is, by the revision that it has.
fn at_revision(setup: &Setup, reference: &str, manifest: &Manifest) -> Result<Manifest> {
    let reference = setup.source.at_revision(&reference.parse().unwrap(), &manifest.revision).unwrap();
    setup.resolve(&reference.to_string())
}

#[test]
fn a_revision_that_the_source_gave_can_be_asked_for() {
    let setup = rolling();
    for reference in ["github:acme/lora", "github:acme/lora@latest", "github:acme/lora@latest#a.gguf"] {
        let manifest = setup.resolve(reference).unwrap();
        let id = setup.server.release_id("acme/lora", "latest");
        setup.server.clear();
        let mut again = at_revision(&setup, reference, &manifest).unwrap();
        assert_eq!(setup.asked(), [format!("/repos/acme/lora/releases/{id}"), "/repos/acme/lora".into()]);
        again.reference = manifest.reference.clone();
        assert_eq!(again, manifest);
        assert_eq!(fetch(&setup, &tempfile::tempdir().unwrap(), again).unwrap(), b"one");
    }
    // What came since then changes nothing.
    let first = setup.resolve("github:acme/lora").unwrap();
    setup.server.upload("acme/lora", "latest", Asset::new("b.gguf", "more"));
    setup.server.publish("acme/lora", Release::new("v2").with_file("a.gguf", "two"));
    assert_eq!(setup.resolve("github:acme/lora").unwrap().version.as_deref(), Some("v2"));
    let again = at_revision(&setup, "github:acme/lora@latest", &first).unwrap();
    assert_eq!((&again.files, &again.version), (&first.files, &None));
    assert_eq!(fetch(&setup, &tempfile::tempdir().unwrap(), again).unwrap(), b"one");
}

#[test]
fn the_revision_of_a_tag_has_its_version_and_the_digests_of_its_list() {
    let release = Release::new("v/1").with_asset(Asset::new("a.gguf", "one").without_digest());
    let repository = Repository::new("acme/lora").with_release(release.with_sha256sums("SHA256SUMS"));
    let setup = setup(server().with_repository(repository), "");
    let manifest = setup.resolve("github:acme/lora@v/1").unwrap();
    let again = at_revision(&setup, "github:acme/lora", &manifest).unwrap();
    assert!(again.files[0].digest.is_some());
    assert_eq!((&again.version, &again.files), (&Some("v/1".into()), &manifest.files));
    assert_eq!(setup.tags("github:acme/lora@7~1"), ["v/1"]);
}

#[test]
fn a_revision_that_is_gone_gives_no_other_bytes() {
    let setup = rolling();
    let first = setup.resolve("github:acme/lora").unwrap();
    setup.server.upload("acme/lora", "latest", Asset::new("a.gguf", "two"));
    let said_of = |part: &str| {
        let error = said(at_revision(&setup, "github:acme/lora@latest", &first), "not_found", &[part, &first.revision]);
        assert!(!error.is_retryable());
    };
    said_of("no longer has the assets with the ids");
    setup.server.delete_release("acme/lora", "latest");
    said_of("no release with the id");
    said_of("it has no published release");
}
