//! With the transfer engine: what it publishes is what the cache's readers find.

use std::path::PathBuf;

use llm_local_source_common::{
    store::Store,
    transfer::{Files, Job, Transfer, TransferConfig},
};
use llm_local_testkit::hub::{Fault, Host};

use super::*;

impl Setup {
    /// Fetches `manifest` by the engine, whose own store is beside the cache.
    pub(super) fn fetch(&self, manifest: &Manifest, cx: &FetchContext) -> Result<Files> {
        let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(self.timer.clone()));
        let store = Store::new(self.cache.path().join("own"));
        let transfer = Transfer::new(network, store, TransferConfig::default());
        let job = Job::new(Arc::new(self.source.clone()), manifest.clone());
        block_on(transfer.fetch(vec![job], cx)).map(|mut files| files.remove(0))
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }
}

#[test]
fn a_model_is_fetched_once_and_found_ever_after() {
    let setup = with_token(Hub::builder().with_repo(model().private()).with_token(TOKEN).start(), TOKEN);
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    let files = setup.fetch(&manifest, &FetchContext::new()).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), MODEL_FILES);
    for (name, path) in &files {
        assert!(path.ends_with(format!("models--org--tiny/snapshots/{}/{name}", manifest.revision)), "{path:?}");
    }
    assert_eq!(fs::read(&files["model-00001-of-00002.safetensors"]).unwrap(), [1; 3000]);
    assert_eq!(fs::read_to_string(setup.repository().join("refs/main")).unwrap(), manifest.revision);
    for request in setup.hub.wait_until_idle() {
        assert_eq!(request.header("authorization").is_some(), request.host == Host::Hub, "{request:?}");
    }
    setup.asked();
    let offline = FetchContext::new().with_offline(true);
    let again = setup.offline("hf:org/tiny").unwrap();
    assert_eq!(setup.fetch(&again, &offline).unwrap(), files);
    assert_eq!(setup.asked(), [""; 0]);
}

#[test]
fn what_two_revisions_share_is_fetched_once() {
    let repo = model().with_tag("v1").with_commit().with_file("config.json", "{\"new\": true}");
    let setup = setup(Hub::builder().with_repo(repo).start());
    let cx = FetchContext::new();
    setup.fetch(&setup.resolve("hf:org/tiny@v1").unwrap(), &cx).unwrap();
    setup.asked();
    let files = setup.fetch(&setup.resolve("hf:org/tiny").unwrap(), &cx).unwrap();
    let asked = setup.asked();
    assert_eq!(asked.iter().filter(|path| path.contains("/resolve/")).count(), 1, "{asked:?}");
    assert_eq!(fs::read_to_string(&files["config.json"]).unwrap(), "{\"new\": true}");
    assert_eq!(fs::read_dir(setup.repository().join("blobs")).unwrap().count(), 6);
}

#[test]
fn a_snapshot_of_real_files_is_used_where_it_lies() {
    let setup = setup(Hub::builder().with_repo(model()).start());
    let manifest = setup.resolve("hf:org/tiny").unwrap();
    // As it is on systems without links.
    for (path, content) in [("config.json", b"{}".to_vec()), ("model-00001-of-00002.safetensors", vec![1; 3000])] {
        let path = setup.repository().join("snapshots").join(&manifest.revision).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    setup.asked();
    let files = setup.fetch(&manifest, &FetchContext::new()).unwrap();
    let asked = setup.asked();
    assert!(!asked.iter().any(|p| p.contains("config.json") || p.contains("00001-of")), "{asked:?}");
    assert_eq!(files.len(), 5);
}

#[test]
fn wrong_bytes_are_never_published() {
    for name in ["config.json", "model-00002-of-00002.safetensors"] {
        let setup = setup(Hub::builder().with_repo(model()).start());
        let manifest = setup.resolve("hf:org/tiny").unwrap();
        setup.hub.fault(Fault::wrong_bytes().path(name));
        let error = setup.fetch(&manifest, &FetchContext::new()).unwrap_err();
        assert_eq!(error.code(), "integrity_failed", "{error}");
        assert!(!setup.repository().join("snapshots").join(&manifest.revision).join(name).exists());
        assert!(!setup.repository().join("refs/main").exists(), "a ref is written once all is there");
        said(setup.offline("hf:org/tiny"), "offline", &["hf:org/tiny"]);
    }
}
