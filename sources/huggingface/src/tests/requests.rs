//! How files are asked for, and where the token goes.

use llm_local_core::ManifestFile;
use llm_local_testkit::hub::Fault;

use super::*;

#[test]
fn the_token_goes_to_the_endpoint_and_to_nobody_else() {
    let setup = with_token(Hub::builder().with_repo(model().private()).with_token(TOKEN).start(), TOKEN);
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.publish(&manifest, &[]);
    let requests = setup.hub.wait_until_idle();
    assert!(requests.iter().any(|r| r.host == llm_local_testkit::hub::Host::Cdn));
    for request in requests {
        let expected = (request.host == llm_local_testkit::hub::Host::Hub).then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.header("authorization"), expected.as_deref(), "{request:?}");
    }
    let request = setup.request(&manifest, "config.json");
    assert!(!format!("{request:?}").contains(TOKEN));
}

#[test]
fn without_a_token_no_header_is_sent_whatever_the_environment_has() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    setup.get(&setup.request(&manifest, "config.json"));
    let requests = setup.hub.wait_until_idle();
    assert!(requests.len() == 3 && requests.iter().all(|r| r.header("authorization").is_none()), "{requests:?}");
}

#[test]
fn names_are_encoded_part_by_part() {
    let names = ["a b#c?d%20.gguf", "ümlaut+[x]&y.gguf"];
    let repo = Repo::new("org/names")
        .with_lfs(format!("q v/{}", names[0]), "GGUF0")
        .with_file(format!("w/{}", names[1]), "GGUF1");
    let setup = setup(Hub::builder().with_repo(repo).start());
    for (folder, name, content) in [("q v", names[0], b"GGUF0"), ("w", names[1], b"GGUF1")] {
        let manifest = setup.resolve(&format!("hf:org/names:{folder}")).unwrap();
        assert_eq!(paths(&manifest), [name]);
        let request = setup.request(&manifest, name);
        assert!(!request.url.contains([' ', '#', '?', 'ü']), "{}", request.url);
        assert_eq!(setup.get(&request), (200, content.to_vec()));
    }
}

#[test]
fn a_list_that_goes_on_at_another_host_is_not_followed() {
    let setup = with_token(Hub::builder().with_repo(model()).with_token(TOKEN).start(), TOKEN);
    let next = format!("<{}/api/models/org/tiny/tree/x?cursor=2>; rel=\"next\"", setup.hub.cdn_endpoint());
    setup.hub.fault(Fault::header("Link", next).path("*/tree/*"));
    said(setup.resolve("hf:org/tiny"), "download_failed", &["hf:org/tiny", "another host"]);
    assert!(setup.hub.wait_until_idle().iter().all(|r| r.host == llm_local_testkit::hub::Host::Hub));
}

#[test]
fn what_is_not_in_the_manifest_or_is_no_commit_is_not_asked_for() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let mut manifest = setup.resolve("hf:org/tiny").unwrap();
    let cx = FetchContext::new();
    let open =
        |manifest: &Manifest, file: &ManifestFile| block_on(setup.source.open(manifest, file, 0..1, &cx)).unwrap_err();
    assert_eq!(open(&manifest, &ManifestFile::new("README.md", 6)).code(), "not_found");
    manifest.files[0].path = "../x".into();
    assert_eq!(open(&manifest, &manifest.files[0]).code(), "invalid_spec");
    assert_eq!(setup.source.placement(&manifest).unwrap_err().code(), "invalid_spec");
    manifest.files[0].path = "x".into();
    manifest.revision = "../main".into();
    assert_eq!(open(&manifest, &manifest.files[0]).code(), "invalid_spec");
    assert_eq!(setup.source.placement(&manifest).unwrap_err().code(), "invalid_spec");
}

#[test]
fn a_file_that_has_no_other_way_is_asked_of_xet() {
    let hash = "a1".repeat(32);
    let repo = Repo::new("org/huge").with_xet("huge.gguf", vec![7; 500], &hash).with_lfs("small-Q4_0.gguf", "x");
    let hub = Hub::builder().with_repo(repo).with_token(TOKEN).start();
    let (cache, timer) = (tempfile::tempdir().unwrap(), FakeTimer::new());
    let mut builder = source(&hub.endpoint(), cache.path(), &timer).token(TOKEN);
    builder.plain_limit = Some(499);
    let setup = Setup { source: builder.build().unwrap(), hub, cache, timer };
    let manifest = setup.resolve("hf:org/huge#huge.gguf").unwrap();
    let file = &manifest.files[0];
    setup.asked();
    // Whoever keeps the chunks must be reached as safely as the Hub.
    let token = r#"{"accessToken": "t", "exp": 4000000000, "casUrl": "http://cas.test"}"#;
    setup.hub.fault(Fault::answer(200, "application/json", token).path("*xet-read-token*"));
    let error = block_on(setup.source.open(&manifest, file, 0..500, &FetchContext::new())).unwrap_err();
    assert!(error.to_string().contains("cas.test"), "{error}");
    assert!(!error.to_string().contains(TOKEN));
    let asked = setup.hub.wait_until_idle();
    assert_eq!(asked[0].path, format!("/api/models/org/huge/xet-read-token/{}", manifest.revision));
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let plain = setup.resolve("hf:org/huge#Q4_0").unwrap();
    setup.request(&plain, "small-Q4_0.gguf");

    // By a client of its own xet would ask whatever hosts its storage names.
    setup.asked();
    let network = Network::new(NetworkConfig::new().with_allowed_hosts(["127.0.0.1", "cas.test"]));
    let mut builder = source(&setup.hub.endpoint(), setup.cache.path(), &setup.timer).token(TOKEN).network(network);
    builder.plain_limit = Some(499);
    let bound = builder.build().unwrap();
    let opened = |manifest: &Manifest, file| block_on(bound.open(manifest, file, 0..1, &FetchContext::new()));
    said(opened(&manifest, file), "not_allowed", &["hf:org/huge", "500 bytes", "xet", "allowed hosts"]);
    assert_eq!(setup.asked(), [""; 0], "not even for a token");
    assert!(matches!(opened(&plain, &plain.files[0]), Ok(Opened::Request(_))));
}
