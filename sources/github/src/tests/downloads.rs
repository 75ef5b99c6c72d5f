//! Bytes, moved by the transfer engine.

use llm_local_source_common::{
    store::Store,
    transfer::{Job, Transfer, TransferConfig},
};
use llm_local_testkit::github::{Fault, Host};

use super::*;

/// The bytes of the first file of `manifest`, fetched into the store at `root`.
pub(super) fn fetch(setup: &Setup, root: &TempDir, manifest: Manifest) -> Result<Vec<u8>> {
    let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(FakeTimer::new()));
    let transfer = Transfer::new(network, Store::new(root.path()), TransferConfig::default());
    let path = manifest.files[0].path.clone();
    let job = Job::new(Arc::new(setup.source.clone()) as Arc<dyn AdapterSource>, manifest);
    let files = block_on(transfer.fetch(vec![job], &FetchContext::new()))?;
    Ok(std::fs::read(&files[0][&path]).unwrap())
}

fn with_gguf(token: &str) -> Setup {
    let release = Release::new("v/1+x").with_file("a b.gguf", vec![7; 300_000]);
    setup(server().with_repository(Repository::new("acme/lora").private().with_release(release)), token)
}

#[test]
fn the_token_goes_to_the_api_and_never_to_the_host_it_redirects_to() {
    let (setup, root) = (with_gguf(TOKEN), tempfile::tempdir().unwrap());
    let manifest = setup.resolve("github:acme/lora@v/1+x").unwrap();
    assert_eq!(fetch(&setup, &root, manifest).unwrap(), vec![7; 300_000]);
    let requests = setup.server.wait_until_idle();
    let with_token =
        |r: &&llm_local_testkit::github::Recorded| r.headers.iter().any(|(_, value)| value.contains(TOKEN));
    assert!(requests.iter().filter(|r| r.host == Host::Api).all(|r| with_token(&r)));
    let elsewhere: Vec<_> = requests.iter().filter(|r| r.host != Host::Api).collect();
    assert!(!elsewhere.is_empty() && !elsewhere.into_iter().any(|r| with_token(&r)));
}

#[test]
fn a_signed_url_that_expired_is_asked_for_again() {
    let (setup, root) = (with_gguf(TOKEN), tempfile::tempdir().unwrap());
    let manifest = setup.resolve("github:acme/lora@v/1+x").unwrap();
    setup.server.fault(Fault::status(403).on(Host::Cdn).once());
    setup.server.clear();
    assert_eq!(fetch(&setup, &root, manifest).unwrap().len(), 300_000);
    let requests = setup.server.wait_until_idle();
    let hosts: Vec<_> = requests.iter().map(|r| (r.host, r.status)).collect();
    assert_eq!(hosts.iter().filter(|(host, _)| *host == Host::Api).count(), 2, "{hosts:?}");
    assert!(hosts.contains(&(Host::Cdn, 403)), "{hosts:?}");
}

#[test]
fn what_is_refused_while_it_is_fetched_is_said_in_githubs_words() {
    let (setup, root) = (with_gguf(TOKEN), tempfile::tempdir().unwrap());
    let manifest = setup.resolve("github:acme/lora@v/1+x").unwrap();
    setup.server.delete_asset("acme/lora", "v/1+x", "a b.gguf");
    let error = fetch(&setup, &root, manifest).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.to_string().contains("the asset is gone"), "{error}");
    assert!(!root.path().join("blobs").exists() || std::fs::read_dir(root.path().join("blobs")).unwrap().count() == 0);
}
