//! Versions that refs are held at, side by side, and those that go.

use std::fs;

use llm_local::{ArtifactRef, PinnedBy, adapters::HoldKind, core::Want};
use pollster::block_on;

use crate::{
    common::fixture,
    world::{World, adapter_files, answers, assert_adapter_error, assert_reference, loose, spec},
};

const LATEST: &str = "github:acme/lora";

fn two_releases() -> World {
    let world = World::new(loose("v1", "peft"));
    world.github.publish("acme/lora", loose("v2", "rslora"));
    world
}

#[test]
fn what_is_pinned_is_used_until_it_is_unpinned() {
    let (world, reference) = (two_releases(), LATEST.parse().unwrap());
    let (engine, spec) = (world.engine(), spec(LATEST));
    let adapters = engine.adapters();
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
    let pinned = block_on(adapters.pin(&reference, Some("v1"), None)).unwrap();
    assert_eq!((pinned.title(), pinned.installed), ("v1", true));
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    let plan = block_on(engine.plan(&spec)).unwrap();
    assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Hold(HoldKind::Pinned));
    assert!(plan.to_string().contains("; pinned"), "{plan}");
    world.requests();
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "peft");
    assert_eq!(world.asked(), Vec::<String>::new());

    let updated = block_on(adapters.update(&reference, None));
    assert_adapter_error(updated, "unsupported", &["it is pinned to v1; unpin it first"]);
    // A ref that names a version is not what is pinned: it is fetched.
    world.github.publish("acme/lora", loose("v3", "qv-last2"));
    let fetched = block_on(adapters.update(&"github:acme/lora@v3".parse().unwrap(), None)).unwrap();
    assert_eq!((fetched.title(), fetched.installed, fetched.current), ("v3", true, false));
    assert_eq!(block_on(adapters.update(&"github:acme/lora@v2".parse().unwrap(), None)).unwrap().title(), "v2");
    assert_eq!(block_on(engine.plan(&spec)).unwrap().adapters[0].0.version.as_deref(), Some("v1"), "it stays pinned");
    world.github.delete_release("acme/lora", "v3");
    let named = crate::world::spec("github:acme/lora@v2");
    assert_reference(&answers(&engine, &named).unwrap(), "rslora");
    block_on(adapters.unpin(&reference)).unwrap();
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
}

#[test]
fn a_version_that_is_not_kept_is_pinned_by_its_revision() {
    let world = World::new(loose("latest", "peft"));
    let reference = LATEST.parse().unwrap();
    let (engine, spec) = (world.engine(), spec(LATEST));
    let adapters = engine.adapters();
    let revision = |title: &str| {
        let listed = block_on(adapters.versions(&reference)).unwrap();
        listed.into_iter().find(|version| version.title() == title).unwrap().revision
    };
    let first = revision("latest");
    world.github.publish("acme/lora", loose("v2", "rslora"));
    let second = revision("v2");
    world.github.publish("acme/lora", loose("v3", "qv-last2"));
    assert_reference(&answers(&engine, &spec).unwrap(), "qv-last2");
    for (revision, title, adapter) in [(&first, &*first, "peft"), (&second, "v2", "rslora")] {
        let kept = block_on(adapters.list()).unwrap().remove(0);
        assert!(kept.versions.iter().all(|version| version.revision != *revision), "{kept:?}");
        let pinned = block_on(adapters.pin(&reference, Some(revision), None)).unwrap();
        assert_eq!((pinned.title(), &pinned.revision, pinned.current), (title, revision, true));
        assert_reference(&answers(&engine, &spec).unwrap(), adapter);
        world.requests();
        assert_reference(&answers(&world.offline(), &spec).unwrap(), adapter);
        assert_eq!(world.requests(), 0);
        let again = world.builder().offline(true).build().unwrap();
        assert_eq!(block_on(again.adapters().pin(&reference, Some(revision), None)).unwrap().revision, *revision);
    }
    let gone = first.replace('~', "0~");
    let missing = block_on(adapters.pin(&reference, Some(&gone), None));
    assert_adapter_error(missing, "not_found", &["no release with the id"]);
    let plan = block_on(engine.plan(&spec)).unwrap();
    assert_eq!(plan.adapters[0].0.revision, second, "it stays");
}

#[test]
fn versions_are_those_of_the_source_and_those_that_are_kept() {
    let (world, reference) = (two_releases(), LATEST.parse::<ArtifactRef>().unwrap());
    let adapters = world.engine().adapters();
    let shown = |adapters: &llm_local::Adapters| -> Vec<(String, bool, bool)> {
        let versions = block_on(adapters.versions(&reference)).unwrap();
        versions.iter().map(|v| (v.title().to_owned(), v.installed, v.current)).collect()
    };
    let row = |title: &str, installed, current| (title.to_owned(), installed, current);
    assert_eq!(shown(&adapters), [row("v2", false, false), row("v1", false, false)]);
    block_on(adapters.update(&reference, None)).unwrap();
    assert_eq!(shown(&adapters), [row("v2", true, true), row("v1", false, false)]);
    world.github.delete_release("acme/lora", "v2");
    assert_eq!(shown(&adapters), [row("v1", false, false), row("v2", true, true)]);
    world.requests();
    assert_eq!(shown(&world.offline().adapters()), [row("v2", true, true)]);
    assert_eq!(world.requests(), 0);
    let hub = block_on(adapters.versions(&"hf:org/pirate".parse().unwrap())).unwrap();
    assert_eq!(hub[0].version.as_deref(), Some("main"));
    // A path has one version: what lies there.
    let file = ArtifactRef::file(fixture("adapters/tiny-llama-lora-peft")).unwrap();
    let lies = block_on(adapters.versions(&file)).unwrap();
    assert_eq!((lies.len(), lies[0].installed), (1, false));
}

#[test]
fn versions_are_deleted_one_by_one_or_all_and_their_files_go() {
    let (world, reference) = (two_releases(), LATEST.parse().unwrap());
    let engine = world.engine();
    let adapters = engine.adapters();
    block_on(adapters.pin(&reference, Some("v1"), None)).unwrap();
    block_on(adapters.unpin(&reference)).unwrap();
    block_on(adapters.update(&reference, None)).unwrap();
    let size = |adapter: &str| adapter_files(adapter).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let listed = block_on(adapters.list()).unwrap();
    let bytes: Vec<_> = listed[0].versions.iter().map(|v| (v.title().to_owned(), v.bytes)).collect();
    assert!(
        bytes.contains(&("v1".into(), size("peft"))) && bytes.contains(&("v2".into(), size("rslora"))),
        "{bytes:?}"
    );

    assert_eq!(block_on(adapters.delete(&reference, Some("v1"))).unwrap().bytes, size("peft"));
    let again = block_on(adapters.delete(&reference, Some("v1")));
    assert_adapter_error(again, "not_found", &["the version `v1`", "kept are v2"]);
    assert_adapter_error(block_on(adapters.rollback(&reference)), "not_found", &["an earlier version"]);
    assert_eq!(block_on(adapters.delete(&reference, None)).unwrap().bytes, size("rslora"));
    assert_eq!(block_on(adapters.list()).unwrap(), []);
    assert_eq!(fs::read_dir(world.folder.path().join("store/blobs")).unwrap().count(), 0);
    assert_adapter_error(block_on(adapters.delete(&reference, None)), "not_found", &["nothing is deleted"]);
}

#[test]
fn a_ref_that_names_a_version_deletes_that_one_alone() {
    let (world, latest) = (two_releases(), LATEST.parse().unwrap());
    let adapters = world.engine().adapters();
    block_on(adapters.pin(&latest, Some("v1"), None)).unwrap();
    block_on(adapters.unpin(&latest)).unwrap();
    block_on(adapters.update(&latest, None)).unwrap();
    let delete = |reference: &str| block_on(adapters.delete(&reference.parse().unwrap(), None));
    assert_eq!(delete("github:acme/lora@v1").unwrap().artifacts, 1);
    let left = block_on(adapters.list()).unwrap();
    assert_eq!(left[0].versions.iter().map(|v| v.title().to_owned()).collect::<Vec<_>>(), ["v2"]);
    assert_adapter_error(delete("github:acme/lora@v1"), "not_found", &["the version `v1`", "kept are v2"]);
    assert_eq!(delete("github:acme/lora@latest").unwrap().artifacts, 1);
    assert_eq!(block_on(adapters.list()).unwrap(), []);
}

#[test]
fn what_is_only_remembered_of_a_version_can_be_deleted_so_that_its_change_is_accepted() {
    let world = two_releases();
    let (engine, v1) = (world.engine(), "github:acme/lora@v1".parse::<ArtifactRef>().unwrap());
    let adapters = engine.adapters();
    let evict = || {
        block_on(engine.download_artifact(&v1, Want::Adapter, None)).unwrap();
        engine.store().evict(0, 0).unwrap();
        assert_eq!(block_on(adapters.list()).unwrap(), []);
    };
    let (name, _) = adapter_files("peft").swap_remove(1);
    let replace = |adapter: &str| {
        world.github.delete_asset("acme/lora", "v1", &name);
        let (_, bytes) = adapter_files(adapter).swap_remove(1);
        world.github.upload("acme/lora", "v1", llm_local_testkit::github::Asset::new(&name, bytes));
        let refused = block_on(adapters.update(&v1, None));
        assert_adapter_error(refused, "integrity_failed", &["was replaced", "delete (`rm`)", "`github:acme/lora@v1`"]);
    };
    evict();
    replace("rslora");
    assert_adapter_error(
        block_on(adapters.delete(&"github:acme/lora@v2".parse().unwrap(), None)),
        "not_found",
        &["the version `v2`"],
    );
    assert_eq!(block_on(adapters.delete(&v1, None)).unwrap().artifacts, 0);
    assert_adapter_error(block_on(adapters.delete(&v1, None)), "not_found", &["the version `v1`"]);
    evict();
    // So does a ref that names all of them.
    replace("peft");
    block_on(adapters.delete(&LATEST.parse().unwrap(), None)).unwrap();
    assert_eq!(block_on(adapters.update(&v1, None)).unwrap().title(), "v1");
}

#[test]
fn all_versions_go_also_when_one_is_pinned() {
    let (world, reference) = (two_releases(), LATEST.parse().unwrap());
    let adapters = world.engine().adapters();
    block_on(adapters.update(&reference, None)).unwrap();
    block_on(adapters.pin(&reference, Some("v1"), None)).unwrap();
    block_on(adapters.delete(&reference, None)).unwrap();
    assert_eq!(block_on(adapters.list()).unwrap(), []);
}

#[test]
fn files_of_this_machine_are_kept_by_their_content() {
    let world = World::new(loose("v1", "peft"));
    let folder = world.folder.path().join("mine");
    fs::create_dir(&folder).unwrap();
    let place = |adapter: &str| adapter_files(adapter).iter().for_each(|(n, b)| fs::write(folder.join(n), b).unwrap());
    place("peft");
    let reference = ArtifactRef::file(&folder).unwrap();
    let (engine, spec) = (world.engine(), spec(&reference.to_string()));
    let adapters = engine.adapters();
    let first = block_on(adapters.update(&reference, None)).unwrap();
    assert!(first.installed && first.current, "{first:?}");
    assert!(!block_on(adapters.is_update_available(&reference)).unwrap());
    place("rslora");
    // What is not held is used where it lies.
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
    assert!(block_on(adapters.is_update_available(&reference)).unwrap());
    let second = block_on(adapters.update(&reference, None)).unwrap();
    assert_ne!(second.revision, first.revision);
    assert_eq!(block_on(adapters.rollback(&reference)).unwrap().revision, first.revision);
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    fs::remove_dir_all(&folder).unwrap();
    assert_reference(&answers(&world.offline(), &spec).unwrap(), "peft");
    block_on(adapters.unpin(&reference)).unwrap();
    assert_adapter_error(answers(&world.engine(), &spec), "not_found", &["no such file or folder"]);
    assert_eq!(block_on(adapters.pin(&reference, Some(&second.revision), None)).unwrap().revision, second.revision);
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "rslora");
}

#[test]
fn a_path_that_is_pinned_means_what_lay_there_then() {
    let world = World::new(loose("v1", "peft"));
    let path = world.folder.path().join("pirate.safetensors");
    let place = |adapter: &str| {
        let mut files = adapter_files(adapter).into_iter();
        fs::write(path.with_file_name("adapter_config.json"), files.next().unwrap().1).unwrap();
        fs::write(&path, files.next().unwrap().1).unwrap();
    };
    place("peft");
    let (engine, reference) = (world.engine(), ArtifactRef::file(&path).unwrap());
    let adapters = engine.adapters();
    let spec = spec(&reference.to_string());
    let first = block_on(adapters.pin(&reference, None, None)).unwrap();
    place("rslora");
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    assert!(block_on(adapters.is_update_available(&reference)).unwrap());
    let second = block_on(adapters.pin(&reference, None, None)).unwrap();
    assert_ne!(first.revision, second.revision);
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
    assert_eq!(block_on(adapters.list()).unwrap()[0].versions.len(), 2);
    // Of those that were loaded, the one before is in nobody's hands any more.
    block_on(adapters.delete(&reference, Some(&first.revision))).unwrap();
    assert_adapter_error(block_on(adapters.delete(&reference, None)), "io", &["is loaded"]);
    block_on(engine.unload(&spec)).unwrap();
    block_on(adapters.delete(&reference, None)).unwrap();
    assert!(path.exists(), "what lies there is its owner's");
    assert_eq!(fs::read_dir(world.folder.path().join("store/blobs")).unwrap().count(), 0);
}

#[test]
fn adapters_of_the_hub_are_kept_by_commit() {
    let world = World::new(loose("v1", "peft"));
    let (engine, reference) = (world.engine(), "hf:org/pirate".parse().unwrap());
    let (adapters, spec) = (engine.adapters(), spec("hf:org/pirate"));
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    assert!(!block_on(adapters.is_update_available(&reference)).unwrap());
    let repo = adapter_files("rslora")
        .into_iter()
        .fold(llm_local_testkit::hub::Repo::new("org/pirate"), |r, (n, b)| r.with_file(n, b));
    world.hub.publish(repo);
    assert!(block_on(adapters.is_update_available(&reference)).unwrap());
    block_on(adapters.update(&reference, None)).unwrap();
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
    world.requests();
    block_on(adapters.rollback(&reference)).unwrap();
    assert_eq!(world.requests(), 0);
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    assert!(!world.hub.wait_until_idle().iter().any(|r| r.path.contains("pirate")));
}
