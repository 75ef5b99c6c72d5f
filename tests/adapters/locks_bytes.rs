//! A locked spec gives the locked bytes, or an error, also where other bytes of the same size lie in a cache.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use llm_local::{
    Engine, ModelSpec, Result,
    core::{ProgressEvent, ProgressHandler},
};
use pollster::block_on;

use crate::{
    common::fixture,
    world::{World, adapter_files, answers, assert_adapter_error, assert_reference, files, loose, spec, zipped},
};

const ADAPTER: &str = "github:acme/lora@v1";

fn locked(engine: &Engine) -> ModelSpec {
    let spec = spec(ADAPTER);
    spec.clone().with_lock(block_on(engine.lock(&spec)).unwrap())
}

/// The one regular file below `folder` that has this content.
#[track_caller]
fn holding(folder: &Path, content: &[u8]) -> PathBuf {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && fs::read(entry.path()).unwrap() == content {
                found.push(entry.path());
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Loads `locked` after one byte of the file at `path` was flipped, and puts it back.
fn with_a_flipped_byte(world: &World, locked: &ModelSpec, path: &Path) -> Result<()> {
    let bytes = fs::read(path).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, flipped).unwrap();
    let result = block_on(world.engine().load(locked)).map(drop);
    fs::write(path, bytes).unwrap();
    result
}

#[test]
fn a_flipped_byte_of_a_locked_file_that_was_fetched_before_is_an_error() {
    let world = World::new(loose("v1", "peft"));
    let locked = locked(&world.engine());
    assert_reference(&answers(&world.engine(), &locked).unwrap(), "peft");
    // One by its SHA-256, and one by git's digest.
    for name in ["model.safetensors", "tokenizer.json"] {
        let (_, content) = files(&fixture("models/tiny-llama")).into_iter().find(|(n, _)| n == name).unwrap();
        let path = holding(&world.folder.path().join("hub"), &content);
        let error = with_a_flipped_byte(&world, &locked, &path).unwrap_err();
        assert_eq!(error.code(), "integrity_failed", "{error}");
        for part in [name, "as it was locked", "is fetched anew"] {
            assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
        }
    }
    let path = holding(&world.folder.path().join("store"), &adapter_files("peft")[1].1);
    let result = with_a_flipped_byte(&world, &locked, &path);
    assert_adapter_error(result, "integrity_failed", &["adapter_model.safetensors", "as it was locked"]);
    assert_reference(&answers(&world.engine(), &locked).unwrap(), "peft");
}

#[test]
fn a_flipped_byte_of_what_came_out_of_a_locked_archive_is_an_error() {
    let world = World::new(zipped("v1", "peft"));
    let locked = locked(&world.engine());
    assert_reference(&answers(&world.engine(), &locked).unwrap(), "peft");
    for (name, content) in adapter_files("peft") {
        let path = holding(&world.folder.path().join("store"), &content);
        let result = with_a_flipped_byte(&world, &locked, &path);
        assert_adapter_error(result, "integrity_failed", &[&name, "as it was locked"]);
    }
    assert_reference(&answers(&world.engine(), &locked).unwrap(), "peft");
}

/// Puts another file in the place of one once the backend loads, when all was held to the lock.
struct Replace(Mutex<Option<PathBuf>>);

impl ProgressHandler for Replace {
    fn on_progress(&self, event: &ProgressEvent) {
        if matches!(event, ProgressEvent::Loading { .. })
            && let Some(path) = self.0.lock().unwrap().take()
        {
            let other = path.with_extension("other");
            fs::write(&other, fs::read(&path).unwrap()).unwrap();
            fs::rename(&other, &path).unwrap();
        }
    }
}

/// Loads `locked`, of which another file is put in the place of the one with this content meanwhile.
#[track_caller]
fn load_while_replaced(engine: &Engine, locked: &ModelSpec, folder: &Path, content: &[u8]) -> Result<()> {
    let replace = Arc::new(Replace(Mutex::new(Some(holding(folder, content)))));
    let loaded = block_on(engine.load_with_progress(locked, Some(replace.clone())));
    assert!(replace.0.lock().unwrap().is_none(), "it was replaced");
    loaded.map(drop)
}

#[test]
fn a_locked_file_that_is_replaced_while_it_is_loaded_is_an_error() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    let locked = locked(&engine);
    block_on(engine.download(&locked, None)).unwrap();
    let (_, content) =
        files(&fixture("models/tiny-llama")).into_iter().find(|(n, _)| n == "model.safetensors").unwrap();
    let error = load_while_replaced(&engine, &locked, &world.folder.path().join("hub"), &content).unwrap_err();
    assert_eq!(error.code(), "integrity_failed", "{error}");
    assert!(error.to_string().contains("load it again"), "{error}");
    // What is wrong with an adapter's file is wrong with the adapter.
    for (_, content) in adapter_files("peft") {
        let loaded = load_while_replaced(&engine, &locked, &world.folder.path().join("store"), &content);
        assert_adapter_error(loaded, "integrity_failed", &[ADAPTER, "load it again"]);
    }
    assert_reference(&answers(&engine, &locked).unwrap(), "peft");
}
