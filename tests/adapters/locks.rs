//! Specs that are locked, when upstream moves on.

use std::fs;

use llm_local::{ArtifactRef, ModelSpec, PinnedBy, lock};
use llm_local_testkit::github::Asset;
use pollster::block_on;

use crate::world::{World, adapter_files, answers, assert_adapter_error, assert_reference, loose, spec, zipped};

const LATEST: &str = "github:acme/lora@latest";

/// The spec of the latest adapter, locked while that is v1; through a file, as an application has it.
fn locked(world: &World) -> ModelSpec {
    let path = world.folder.path().join("spec.lock");
    let locked = block_on(world.engine().lock(&spec(LATEST))).unwrap();
    lock::write(&locked, &path).unwrap();
    spec(LATEST).with_lock(lock::read(&path).unwrap())
}

/// Nothing that was fetched is here any more.
fn forget(world: &World) {
    for folder in ["store", "hub", "answers"] {
        let _ = fs::remove_dir_all(world.folder.path().join(folder));
    }
}

#[test]
fn a_locked_spec_gives_the_first_bytes_when_there_is_a_newer_release() {
    for release in [loose("v1", "peft"), zipped("v1", "peft")] {
        let world = World::new(release);
        let spec = locked(&world);
        world.github.publish("acme/lora", loose("v2", "rslora"));
        forget(&world);
        let engine = world.engine();
        let plan = block_on(engine.plan(&spec)).unwrap();
        assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Lock);
        assert!(plan.to_string().contains("at v1") && plan.to_string().contains("; locked"), "{plan}");
        assert_reference(&answers(&engine, &spec).unwrap(), "peft");
        // Whatever is held for others, and offline.
        let reference: ArtifactRef = LATEST.parse().unwrap();
        block_on(engine.adapters().pin(&reference, Some("v2"), None)).unwrap();
        world.requests();
        assert_reference(&answers(&world.offline(), &spec).unwrap(), "peft");
        assert_eq!(world.requests(), 0);
    }
}

#[test]
fn other_bytes_under_the_locked_tag_are_an_error() {
    let world = World::new(loose("v1", "peft"));
    let spec = locked(&world);
    world.github.delete_asset("acme/lora", "v1", "adapter_model.safetensors");
    let (name, mut bytes) = adapter_files("peft").swap_remove(1);
    *bytes.last_mut().unwrap() ^= 1;
    world.github.upload("acme/lora", "v1", Asset::new(name, bytes));
    forget(&world);
    assert_adapter_error(answers(&world.engine(), &spec), "integrity_failed", &["as it was locked at v1"]);
    world.github.delete_release("acme/lora", "v1");
    assert_adapter_error(answers(&world.engine(), &spec), "not_found", &["v1"]);
}

#[test]
fn a_spec_with_an_adapter_that_is_not_in_its_lock_is_an_error() {
    let world = World::new(loose("v1", "peft"));
    let lock = locked(&world).lock.unwrap();
    let other = spec("github:acme/lora@v1").with_lock(lock);
    assert_adapter_error(answers(&world.engine(), &other), "not_found", &["it is not in the lock"]);
}

#[test]
fn files_of_this_machine_that_changed_since_they_were_locked_are_an_error() {
    let world = World::new(loose("v1", "peft"));
    let folder = world.folder.path().join("mine");
    fs::create_dir(&folder).unwrap();
    let place = |adapter: &str| adapter_files(adapter).iter().for_each(|(n, b)| fs::write(folder.join(n), b).unwrap());
    place("peft");
    let unlocked = spec(&folder.display().to_string());
    let locked = unlocked.clone().with_lock(block_on(world.engine().lock(&unlocked)).unwrap());
    assert_reference(&answers(&world.engine(), &locked).unwrap(), "peft");
    place("rslora");
    assert_adapter_error(answers(&world.engine(), &locked), "integrity_failed", &["as it was locked"]);
}
