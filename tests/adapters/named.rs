//! Refs that name a version, and adapters of all sources.

use llm_local::{ArtifactRef, PinnedBy, core::Want};
use llm_local_testkit::github::Asset;
use pollster::block_on;

use crate::{common::fixture, world::*};

#[test]
fn an_archive_and_loose_assets_by_tag_generate_the_reference_tokens() {
    let world = World::new(zipped("v1", "peft"));
    world.github.publish("acme/lora", loose("v2", "peft"));
    let engine = world.engine();
    for tag in ["v1", "v2"] {
        assert_reference(&answers(&engine, &spec(&format!("github:acme/lora@{tag}"))).unwrap(), "peft");
    }
}

#[test]
fn the_same_adapter_gives_the_same_tokens_from_every_source_and_a_bad_url_of_each_the_same_error() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    let file = ArtifactRef::file(fixture("adapters/tiny-llama-lora-peft")).unwrap().to_string();
    let of = |reference: &str| answers(&engine, &spec(reference)).unwrap();
    let tokens = of(&file);
    assert_reference(&tokens, "peft");
    assert_eq!(of("hf:org/pirate"), tokens);
    assert_eq!(of("github:acme/lora@v1"), tokens);
    for (bad, cause) in [
        (format!("{file}-that-is-not-there"), "not_found"),
        ("hf:a/b/c".into(), "invalid_spec"),
        ("hf:org/nothing".into(), "not_found"),
        ("github:acme".into(), "invalid_spec"),
        ("github:acme/lora@v9".into(), "not_found"),
    ] {
        let error = answers(&engine, &spec(&bad)).unwrap_err();
        assert!(error.to_string().contains(bad.trim_start_matches("file:")), "{error}");
        assert_adapter_error::<()>(Err(error), cause, &[]);
    }
}

#[test]
fn a_tag_that_is_kept_is_used_without_a_request_and_offline() {
    let world = World::new(loose("v1", "peft"));
    let (named, engine) = (spec("github:acme/lora@v1"), world.engine());
    let plan = block_on(engine.plan(&named)).unwrap();
    assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Source);
    assert_reference(&answers(&engine, &named).unwrap(), "peft");
    world.github.publish("acme/lora", loose("v2", "rslora"));
    world.github.delete_release("acme/lora", "v1");
    world.requests();

    let later = world.engine();
    let plan = block_on(later.plan(&named)).unwrap();
    let adapter = &plan.adapters[0].0;
    assert_eq!((adapter.version.as_deref(), adapter.pinned_by, adapter.present), (Some("v1"), PinnedBy::Name, true));
    assert!(plan.to_string().contains(&format!("github:acme/lora@v1 at v1 ({}): 2 files", adapter.revision)), "{plan}");
    assert_reference(&answers(&later, &named).unwrap(), "peft");
    assert_eq!(world.asked(), Vec::<String>::new());
    world.requests();
    assert_reference(&answers(&world.offline(), &named).unwrap(), "peft");
    assert_eq!(world.requests(), 0);
}

#[test]
fn an_archive_that_is_kept_is_used_offline() {
    let world = World::new(zipped("v1", "peft"));
    let named = spec("github:acme/lora@v1");
    block_on(world.engine().download(&named, None)).unwrap();
    world.requests();
    assert_reference(&answers(&world.offline(), &named).unwrap(), "peft");
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_version_that_was_fetched_by_another_name_is_found_by_its_own() {
    let world = World::new(loose("v1", "peft"));
    block_on(world.engine().download(&spec("github:acme/lora"), None)).unwrap();
    world.requests();
    assert_reference(&answers(&world.offline(), &spec("github:acme/lora@v1")).unwrap(), "peft");
    assert_eq!(world.requests(), 0);
}

#[test]
fn a_tag_whose_bytes_changed_is_an_error_that_says_so() {
    let world = World::new(loose("v1", "peft"));
    let (engine, reference) = (world.engine(), "github:acme/lora@v1".parse().unwrap());
    let tokens = answers(&engine, &spec("github:acme/lora@v1")).unwrap();
    assert!(!block_on(engine.adapters().is_update_available(&reference)).unwrap());
    world.github.delete_asset("acme/lora", "v1", "adapter_model.safetensors");
    let (name, bytes) = adapter_files("rslora").swap_remove(1);
    world.github.upload("acme/lora", "v1", Asset::new(name, bytes));
    let asked = block_on(engine.adapters().is_update_available(&reference));
    assert_adapter_error(asked, "integrity_failed", &["the version v1", "its owner has changed it since"]);
    let updated = block_on(engine.adapters().update(&"github:acme/lora".parse().unwrap(), None));
    assert_adapter_error(updated, "integrity_failed", &["v1"]);
    // What was fetched first is what the tag means.
    assert_eq!(answers(&world.engine(), &spec("github:acme/lora@v1")).unwrap(), tokens);

    world.github.delete_release("acme/lora", "v1");
    let asked = block_on(engine.adapters().is_update_available(&reference));
    assert_adapter_error(asked, "not_found", &["or it was deleted", "v1 is kept and stays usable"]);
}

#[test]
fn a_tag_whose_archive_was_replaced_by_another_one_stays_what_it_was_until_it_is_deleted() {
    let world = World::new(zipped("v1", "peft"));
    let (engine, latest) = (world.engine(), spec("github:acme/lora@latest"));
    let first = answers(&engine, &spec("github:acme/lora@v1")).unwrap();
    world.github.delete_asset("acme/lora", "v1", "pirate.zip");
    world.github.upload("acme/lora", "v1", Asset::new("corsair.zip", zip_of("rslora")));
    for _ in 0..2 {
        let error = answers(&world.engine(), &latest);
        let parts =
            ["`corsair.zip`: files were replaced", "`pirate.zip`, as they", "delete (`rm`)", "`github:acme/lora@v1`"];
        assert_adapter_error(error, "integrity_failed", &parts);
    }
    assert_eq!(block_on(engine.adapters().list()).unwrap()[0].versions.len(), 1);
    assert_eq!(answers(&world.offline(), &spec("github:acme/lora@v1")).unwrap(), first);
    drop(engine);

    let adapters = world.engine().adapters();
    block_on(adapters.delete(&"github:acme/lora@v1".parse().unwrap(), None)).unwrap();
    assert_reference(&answers(&world.engine(), &latest).unwrap(), "rslora");
    assert_reference(&answers(&world.offline(), &spec("github:acme/lora@v1")).unwrap(), "rslora");
}

#[test]
fn a_version_is_compared_with_no_other_version() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    block_on(engine.download_artifact(&"github:acme/lora".parse().unwrap(), Want::Adapter, None)).unwrap();
    world.github.publish("acme/lora", loose("v2", "rslora"));
    let asked = |reference: &str| block_on(engine.adapters().is_update_available(&reference.parse().unwrap()));
    assert!(!asked("github:acme/lora@v2").unwrap(), "it never means another");
    assert!(!asked("github:acme/lora@v1").unwrap() && asked("github:acme/lora").unwrap());
    let error = asked("github:acme/lora@v9").unwrap_err().to_string();
    assert!(!error.contains("stays usable"), "v1 is no v9: {error}");
}

#[test]
fn a_tag_whose_asset_was_uploaded_anew_means_the_first_of_both() {
    let world = World::new(zipped("v1", "peft"));
    let engine = world.engine();
    let fetch = |reference: &str| {
        block_on(engine.download_artifact(&reference.parse().unwrap(), Want::Adapter, None)).unwrap();
    };
    fetch("github:acme/lora@v1");
    let planned =
        || block_on(world.engine().plan(&spec("github:acme/lora@v1"))).unwrap().adapters[0].0.revision.clone();
    let first = planned();
    world.github.delete_asset("acme/lora", "v1", "pirate.zip");
    world.github.upload("acme/lora", "v1", Asset::new("pirate.zip", zip_of("peft")));
    fetch("github:acme/lora@latest");
    assert_eq!(block_on(engine.adapters().list()).unwrap()[0].versions.len(), 2, "the same bytes, as another asset");
    assert_eq!(planned(), first);
    // To delete the name is to delete both.
    assert_eq!(block_on(engine.adapters().delete(&"github:acme/lora@v1".parse().unwrap(), None)).unwrap().artifacts, 2);
    assert_eq!(block_on(engine.adapters().list()).unwrap(), []);
}
