//! Versions that were used by their names, and what is the version before.

use llm_local::{ArtifactRef, core::Want};
use llm_local_testkit::github::Release;
use pollster::block_on;

use crate::world::*;

const MOVING: &str = "github:acme/lora";
const V1: &str = "github:acme/lora@v1";

fn moving() -> ArtifactRef {
    MOVING.parse().unwrap()
}

/// The files of the adapter that the model of this spec has, by what the store has of it.
fn files_of(world: &World, version: &str) -> Vec<(String, Vec<u8>)> {
    let engine = world.engine();
    let listed = block_on(engine.adapters().list()).unwrap();
    let revision = &listed[0].versions.iter().find(|v| v.title() == version).unwrap().revision;
    let artifacts = engine.store().list().unwrap().artifacts;
    let artifact = artifacts.into_iter().find(|artifact| artifact.revision == *revision).unwrap();
    let mut files: Vec<_> = artifact.files.iter().map(|(n, p)| (n.clone(), std::fs::read(p).unwrap())).collect();
    files.sort();
    files
}

/// What was used by its tag is what a ref without one goes back to.
fn update_and_roll_back(first: Release) {
    let world = World::new(first);
    let engine = world.engine();
    let adapters = engine.adapters();
    let before = answers(&engine, &spec(V1)).unwrap();
    assert_reference(&before, "peft");
    assert!(!block_on(adapters.is_update_available(&moving())).unwrap(), "v1 is the newest");

    world.github.publish("acme/lora", loose("v2", "rslora"));
    assert!(block_on(adapters.is_update_available(&moving())).unwrap());
    assert_eq!(block_on(adapters.update(&moving(), None)).unwrap().title(), "v2");
    let after = answers(&engine, &spec(MOVING)).unwrap();
    assert_reference(&after, "rslora");
    assert_ne!(after, before);
    assert!(!block_on(adapters.is_update_available(&moving())).unwrap());
    assert_eq!(answers(&engine, &spec(V1)).unwrap(), before, "a tag means what it meant");

    world.requests();
    assert_eq!(block_on(adapters.rollback(&moving())).unwrap().title(), "v1");
    assert_eq!(answers(&engine, &spec(MOVING)).unwrap(), before);
    assert_eq!(answers(&world.offline(), &spec(MOVING)).unwrap(), before);
    assert_eq!(files_of(&world, "v1"), adapter_files("peft"), "byte for byte");
    assert_eq!(world.asked(), Vec::<String>::new());
    // There is none before it.
    assert_adapter_error(block_on(adapters.rollback(&moving())), "not_found", &["`v1` is selected"]);
    assert!(block_on(adapters.is_update_available(&moving())).unwrap());
    assert_eq!(block_on(adapters.update(&moving(), None)).unwrap().title(), "v2");
    assert_eq!(answers(&engine, &spec(MOVING)).unwrap(), after);
}

#[test]
fn what_was_loaded_by_its_tag_is_the_version_before_an_update() {
    update_and_roll_back(loose("v1", "peft"));
}

#[test]
fn an_archive_that_was_loaded_by_its_tag_is_the_version_before_an_update() {
    update_and_roll_back(zipped("v1", "peft"));
}

#[test]
fn what_was_loaded_by_its_tag_is_the_version_before_what_a_moving_ref_means_first() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    let before = answers(&engine, &spec(V1)).unwrap();
    world.github.publish("acme/lora", loose("v2", "rslora"));
    assert_reference(&answers(&engine, &spec(MOVING)).unwrap(), "rslora");
    assert_eq!(block_on(engine.adapters().rollback(&moving())).unwrap().title(), "v1");
    assert_eq!(answers(&engine, &spec(MOVING)).unwrap(), before);
}

#[test]
fn of_several_that_were_used_by_their_tags_the_last_is_the_version_before() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    let fetch = |text: &str| block_on(engine.download_artifact(&text.parse().unwrap(), Want::Adapter, None)).unwrap();
    world.github.publish("acme/lora", loose("v2", "rslora"));
    fetch(V1);
    fetch("github:acme/lora@v2");
    answers(&engine, &spec(V1)).unwrap();
    world.github.publish("acme/lora", zipped("v3", "rslora"));
    block_on(engine.adapters().update(&moving(), None)).unwrap();
    assert_eq!(block_on(engine.adapters().rollback(&moving())).unwrap().title(), "v1");
}

#[test]
fn a_version_that_is_not_whole_any_more_is_not_the_one_before() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    block_on(engine.download_artifact(&V1.parse().unwrap(), Want::Adapter, None)).unwrap();
    let kept = engine.store().list().unwrap().artifacts.remove(0);
    std::fs::remove_file(&kept.files[0].1).unwrap();
    world.github.publish("acme/lora", loose("v2", "rslora"));
    block_on(engine.adapters().update(&moving(), None)).unwrap();
    assert_adapter_error(block_on(engine.adapters().rollback(&moving())), "not_found", &["`v2` is selected"]);
}

#[test]
fn a_name_means_the_version_that_is_whole_of_those_that_have_it() {
    let world = World::new(zipped("v1", "peft"));
    let engine = world.engine();
    let fetch = |text: &str| block_on(engine.download_artifact(&text.parse().unwrap(), Want::Adapter, None)).unwrap();
    fetch(V1);
    let kept = || engine.store().list().unwrap().artifacts;
    let first = kept().remove(0);
    // The same files in another archive are another revision of the same name.
    world.github.delete_asset("acme/lora", "v1", "pirate.zip");
    world.github.upload("acme/lora", "v1", llm_local_testkit::github::Asset::new("pirate.zip", zip_of("peft")));
    fetch(MOVING);
    assert_eq!(kept().len(), 2);
    block_on(engine.download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap();
    let planned = || block_on(world.offline().plan(&spec(V1))).unwrap().adapters[0].0.revision.clone();
    assert_eq!(planned(), first.revision);
    // Of the first alone a record says that a file has another size than what is there.
    let records = world.folder.path().join("store/artifacts");
    let texts = std::fs::read_dir(records).unwrap().map(|entry| entry.unwrap().path());
    let mine: Vec<_> = texts.filter(|path| std::fs::read_to_string(path).unwrap().contains(&first.revision)).collect();
    assert_eq!(mine.len(), 1);
    let text = std::fs::read_to_string(&mine[0]).unwrap();
    let size = first.files.iter().map(|(_, path)| std::fs::metadata(path).unwrap().len()).max().unwrap();
    std::fs::write(&mine[0], text.replace(&size.to_string(), &(size + 1).to_string())).unwrap();
    assert_ne!(planned(), first.revision);
    assert_reference(&answers(&world.engine(), &spec(V1)).unwrap(), "peft");
}

/// A release whose weights are none.
fn broken(tag: &str) -> Release {
    let (name, config) = adapter_files("peft").swap_remove(0);
    Release::new(tag).with_file(name, config).with_file("adapter_model.safetensors", "no weights at all")
}

/// What is broken was downloaded by its tag and never used; then `choose` makes a newer one the current.
fn not_gone_back_to(choose: impl Fn(&llm_local::Engine)) {
    for used in [false, true] {
        let world = World::new(loose("v1", "peft"));
        let engine = world.engine();
        let before = used.then(|| answers(&engine, &spec(V1)).unwrap());
        world.github.publish("acme/lora", broken("v2"));
        let v2: ArtifactRef = "github:acme/lora@v2".parse().unwrap();
        block_on(engine.download_artifact(&v2, Want::Adapter, None)).unwrap();
        let kept = block_on(engine.adapters().list()).unwrap().remove(0);
        assert!(kept.versions.iter().all(|version| !version.current && version.installed), "{kept:?}");
        world.github.publish("acme/lora", loose("v3", "rslora"));
        choose(&engine);
        assert_reference(&answers(&engine, &spec(MOVING)).unwrap(), "rslora");
        let back = block_on(engine.adapters().rollback(&moving()));
        match before {
            Some(before) => {
                assert_eq!(back.unwrap().title(), "v1");
                assert_eq!(answers(&engine, &spec(MOVING)).unwrap(), before);
            }
            None => assert_adapter_error(back, "not_found", &["`v3` is selected"]),
        }
    }
}

#[test]
fn what_was_downloaded_and_is_no_adapter_is_not_the_version_before_an_update() {
    not_gone_back_to(|engine| assert_eq!(block_on(engine.adapters().update(&moving(), None)).unwrap().title(), "v3"));
}

#[test]
fn what_was_downloaded_and_is_no_adapter_is_not_the_version_before_what_a_moving_ref_means_first() {
    not_gone_back_to(|engine| drop(block_on(engine.load(&spec(MOVING))).unwrap()));
}
