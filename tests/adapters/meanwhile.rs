//! What is chosen while something else is fetched.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::BoxFuture;
use llm_local::{
    ArtifactRef, Engine, Result,
    adapters::HoldKind,
    core::{
        AdapterSource, ArtifactSource, FetchContext, Manifest, ManifestFile, ModelSource, Opened, Want, async_trait,
    },
};
use pollster::block_on;
use tempfile::TempDir;

use crate::world::{adapter_files, assert_adapter_error};

/// The adapters that are its versions `v1`, `v2`, ...
const ADAPTERS: [&str; 3] = ["peft", "rslora", "qv-last2"];

type Hook = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// An adapter in memory. What happens when its bytes are asked for the next time is up to the test.
#[derive(Clone, Default)]
struct Moving {
    newest: Arc<AtomicUsize>,
    on_open: Arc<Mutex<Option<Hook>>>,
}

#[async_trait]
impl ArtifactSource for Moving {
    fn scheme(&self) -> &str {
        "mem"
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        let named = reference.revision().and_then(|revision| revision.strip_prefix('v')?.parse().ok());
        let version = named.unwrap_or_else(|| self.newest.load(Ordering::SeqCst));
        let files = adapter_files(ADAPTERS[version - 1]).into_iter();
        let files = files.map(|(name, bytes)| ManifestFile::new(name, bytes.len() as u64)).collect();
        let manifest = Manifest::new(reference.clone(), want, format!("{version}"), files)?;
        Ok(manifest.with_version(format!("v{version}")))
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        _: &FetchContext,
    ) -> Result<Opened> {
        let hook = self.on_open.lock().unwrap().take();
        if let Some(hook) = hook {
            hook().await;
        }
        let version: usize = manifest.revision.parse().unwrap();
        let files = adapter_files(ADAPTERS[version - 1]);
        let (_, bytes) = files.into_iter().find(|(name, _)| *name == file.path).unwrap();
        Ok(Opened::bytes(bytes[range.start as usize..range.end as usize].to_vec()))
    }
}

impl ModelSource for Moving {}
impl AdapterSource for Moving {}

struct Fixture {
    source: Moving,
    engine: Engine,
    _folder: TempDir,
}

fn adapter() -> ArtifactRef {
    "mem:lora".parse().unwrap()
}

impl Fixture {
    /// An engine that knows the adapter, of which the version `newest` is the newest.
    fn new(newest: usize) -> Self {
        let (folder, source) = (tempfile::tempdir().unwrap(), Moving::default());
        source.newest.store(newest, Ordering::SeqCst);
        let engine = Engine::builder().source(source.clone()).cache_dir(folder.path().join("store")).build().unwrap();
        Self { source, engine, _folder: folder }
    }

    fn publish(&self, newest: usize) {
        self.source.newest.store(newest, Ordering::SeqCst);
    }

    /// Does `what` with another engine's worth of calls when bytes are asked for the next time.
    fn meanwhile<F: Future<Output = ()> + Send + 'static>(&self, what: impl FnOnce(Engine) -> F + Send + 'static) {
        let engine = self.engine.clone();
        *self.source.on_open.lock().unwrap() = Some(Box::new(move || Box::pin(what(engine))));
    }

    /// The current version, and what holds it.
    fn current(&self) -> (String, Option<HoldKind>) {
        let listed = block_on(self.engine.adapters().list()).unwrap().remove(0);
        let current = listed.versions.iter().find(|version| version.current).unwrap();
        assert!(self.source.on_open.lock().unwrap().is_none(), "nothing happened meanwhile");
        (current.title().to_owned(), listed.hold)
    }

    fn fetch(&self) {
        block_on(self.engine.download_artifact(&adapter(), Want::Adapter, None)).unwrap();
    }
}

#[test]
fn what_began_before_an_update_does_not_undo_it() {
    let f = Fixture::new(1);
    f.fetch();
    assert_eq!(f.current(), ("v1".into(), None));
    f.publish(2);
    let newest = f.source.newest.clone();
    f.meanwhile(move |engine| async move {
        newest.store(3, Ordering::SeqCst);
        assert_eq!(engine.adapters().update(&adapter(), None).await.unwrap().title(), "v3");
    });
    f.fetch();
    assert_eq!(f.current(), ("v3".into(), None));
    // So that this is what it goes back to.
    assert_eq!(block_on(f.engine.adapters().rollback(&adapter())).unwrap().title(), "v1");
}

#[test]
fn a_pin_outlasts_an_update_that_began_before_it() {
    let f = Fixture::new(1);
    f.fetch();
    f.publish(2);
    f.meanwhile(|engine| async move {
        engine.adapters().pin(&adapter(), Some("v1"), None).await.unwrap();
    });
    let updated = block_on(f.engine.adapters().update(&adapter(), None));
    assert_adapter_error(updated, "unsupported", &["it was pinned to v1 meanwhile; unpin it first"]);
    assert_eq!(f.current(), ("v1".into(), Some(HoldKind::Pinned)));
}

#[test]
fn an_update_overrules_what_was_fetched_meanwhile_and_agrees_with_one_like_it() {
    let f = Fixture::new(1);
    f.meanwhile(|engine| async move {
        engine.adapters().update(&"mem:lora@v2".parse().unwrap(), None).await.unwrap();
        engine.download_artifact(&"mem:lora@newest".parse().unwrap(), Want::Adapter, None).await.unwrap();
    });
    f.publish(3);
    assert_eq!(block_on(f.engine.adapters().update(&adapter(), None)).unwrap().title(), "v3");
    assert_eq!(f.current(), ("v3".into(), None));
    block_on(f.engine.adapters().pin(&adapter(), Some("v2"), None)).unwrap();
    block_on(f.engine.adapters().unpin(&adapter())).unwrap();
    f.publish(1);
    f.meanwhile(|engine| async move {
        assert_eq!(engine.adapters().update(&adapter(), None).await.unwrap().title(), "v1");
    });
    assert_eq!(block_on(f.engine.adapters().update(&adapter(), None)).unwrap().title(), "v1");
    assert_eq!(f.current(), ("v1".into(), None));
}
