//! Names of repositories, tags and assets on their way.

use llm_local_testkit::github::Host;

use super::{downloads::fetch, *};

#[test]
fn a_repository_of_another_name_is_warned_of() {
    let repository = |name: &str| {
        Repository::new(name).with_release(Release::new("v1").with_file("a.gguf", "GGUF")).renamed_from("moved/old")
    };
    let setup = setup(server().with_repository(repository("moved/new")), TOKEN);
    let manifest = setup.resolve("github:MOVED/New@v1").unwrap();
    assert_eq!(warned::lines(&["moved/new", "renamed or transferred"]), 0);
    let again = setup.resolve("github:moved/old@v1").unwrap();
    assert_eq!(again.revision, manifest.revision);
    assert_eq!((manifest.owner.as_deref(), again.owner.as_deref()), (Some("moved"), Some("moved")));
    assert_eq!(warned::lines(&["github:moved/old@v1", "moved/new", "renamed or transferred"]), 1);
    setup.server.rename("moved/new", "moved-elsewhere/new");
    let elsewhere = setup.resolve("github:moved/old@v1").unwrap();
    assert_eq!(elsewhere.owner.as_deref(), Some("moved-elsewhere"));
    assert_eq!(warned::lines(&["github:moved/old@v1", "moved-elsewhere/new", "renamed or transferred"]), 1);
}

#[test]
fn tags_and_assets_of_any_characters_are_asked_for_encoded() {
    let tag = "adapters/v1.0+build 5";
    let release = Release::new(tag).with_file("a b+c%.gguf", vec![7; 5000]);
    for token in ["", TOKEN] {
        let repository = Repository::new("acme/lora").with_release(release.clone());
        let setup = setup(server().with_repository(repository), token);
        let manifest = setup.resolve("github:acme/lora@adapters/v1.0+build 5#a b+c%25.gguf").unwrap();
        assert_eq!((manifest.version.as_deref(), manifest.files[0].path.as_str()), (Some(tag), "a b+c%.gguf"));
        assert_eq!(setup.asked()[0], "/repos/acme/lora/releases/tags/adapters%2Fv1.0%2Bbuild%205");
        let id = setup.server.asset_id("acme/lora", tag, "a b+c%.gguf");
        assert_eq!(fetch(&setup, &tempfile::tempdir().unwrap(), manifest).unwrap(), vec![7; 5000]);
        let requests = setup.server.wait_until_idle();
        let first = match token {
            "" => "/acme/lora/releases/download/adapters%2Fv1.0%2Bbuild%205/a%20b%2Bc%25.gguf".to_owned(),
            _ => format!("/repos/acme/lora/releases/assets/{id}"),
        };
        let asked: Vec<_> = requests.iter().map(|r| (r.host, r.status)).collect();
        let host = if token.is_empty() { Host::Web } else { Host::Api };
        assert_eq!((asked, requests[0].path.as_str()), (vec![(host, 302), (Host::Cdn, 200)], first.as_str()));
    }
}
