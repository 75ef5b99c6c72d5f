//! Too little room for an adapter.

use std::ops::Range;

use llm_local::{
    ArtifactRef, Result,
    core::{
        AdapterSource, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, ModelSource, Opened, Want,
        async_trait,
    },
};
use pollster::block_on;

use crate::world::*;

#[test]
fn what_an_adapter_alone_has_no_room_for_within_the_quota_is_an_error_of_the_adapter() {
    let world = World::new(loose("v1", "peft"));
    let free = world.engine();
    block_on(free.download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap();
    drop(free);
    let engine = world.builder().cache_quota(1).build().unwrap();
    let loaded = block_on(engine.load(&spec("github:acme/lora@v1")));
    assert!(loaded.as_ref().is_err_and(Error::is_retryable), "{loaded:?}");
    assert_adapter_error(loaded, "insufficient_storage", &["github:acme/lora@v1", "not enough disk space"]);
    let fetched = block_on(engine.download(&spec("github:acme/lora@v1"), None));
    assert_adapter_error(fetched, "insufficient_storage", &["github:acme/lora@v1"]);
}

#[test]
fn what_the_base_has_no_room_for_either_is_no_error_of_the_adapter() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.builder().cache_quota(1).build().unwrap();
    let error = block_on(engine.load(&spec("github:acme/lora@v1"))).unwrap_err();
    assert_eq!(error.code(), "insufficient_storage", "{error}");
}

/// An adapter with a file beside it that no disk has room for.
struct Huge;

#[async_trait]
impl ArtifactSource for Huge {
    fn scheme(&self) -> &str {
        "mem"
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        let files = adapter_files("peft").into_iter();
        let files = files.map(|(name, bytes)| ManifestFile::new(name, bytes.len() as u64));
        let files = files.chain([ManifestFile::new("notes.txt", 1 << 60)]).collect();
        Manifest::new(reference.clone(), want, "1", files)
    }

    async fn open(&self, _: &Manifest, file: &ManifestFile, range: Range<u64>, _: &FetchContext) -> Result<Opened> {
        let Some((_, bytes)) = adapter_files("peft").into_iter().find(|(name, _)| *name == file.path) else {
            return Ok(Opened::bytes(Vec::new()));
        };
        Ok(Opened::bytes(bytes[range.start as usize..range.end as usize].to_vec()))
    }
}

impl ModelSource for Huge {}
impl AdapterSource for Huge {}

#[test]
fn what_an_adapter_alone_has_no_room_for_on_the_disk_is_an_error_of_the_adapter() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.builder().source(Huge).build().unwrap();
    block_on(engine.download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap();
    let result = block_on(engine.load(&spec("mem:huge")));
    assert_adapter_error(result, "insufficient_storage", &["mem:huge", "not enough disk space"]);
    // Also within a spec whose base is of this machine.
    let adapter = "mem:huge".parse().unwrap();
    let file = llm_local::ModelSpec::new(ArtifactRef::file(crate::common::fixture("models/tiny-llama")).unwrap());
    assert_adapter_error(
        block_on(engine.download(&file.with_adapter(adapter), None)),
        "insufficient_storage",
        &["mem:huge"],
    );
}
