//! Refs that mean the newest.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt;
use llm_local::{ArtifactRef, Engine, ModelSpec, PinnedBy, adapters::HoldKind, core::Want};
use llm_local_testkit::github::{Fault, Host, Release, Repository};
use pollster::block_on;

use crate::{common::fixture, world::*};

const LATEST: &str = "github:acme/lora@latest";

fn latest() -> ArtifactRef {
    LATEST.parse().unwrap()
}

/// The files that the store has of the version `version`, by their names in the artifact.
fn stored(engine: &Engine, version: &str) -> Vec<(String, PathBuf)> {
    let artifacts = engine.store().list().unwrap().artifacts;
    let adapters = block_on(engine.adapters().list()).unwrap();
    let revision = &adapters[0].versions.iter().find(|v| v.title() == version).unwrap().revision;
    artifacts.into_iter().find(|artifact| artifact.revision == *revision).unwrap().files
}

fn content(files: &[(String, PathBuf)]) -> Vec<(String, Vec<u8>)> {
    let mut content: Vec<_> = files.iter().map(|(name, path)| (name.clone(), fs::read(path).unwrap())).collect();
    content.sort();
    content
}

#[test]
fn a_new_release_is_an_update_that_can_be_rolled_back_byte_for_byte() {
    let world = World::new(zipped("v1", "peft"));
    let (engine, spec) = (world.engine(), spec(LATEST));
    let adapters = engine.adapters();
    let first = block_on(engine.load(&spec)).unwrap();
    let before = answers_of(&first);
    assert_reference(&before, "peft");
    assert!(!block_on(adapters.is_update_available(&latest())).unwrap());

    world.github.publish("acme/lora", loose("v2", "rslora"));
    assert!(block_on(adapters.is_update_available(&latest())).unwrap());
    assert!(block_on(engine.load(&spec)).unwrap().is_same(&first), "what is loaded stays until it is updated");
    let updated = block_on(adapters.update(&latest(), None)).unwrap();
    assert_eq!((updated.title(), updated.current, updated.installed), ("v2", true, true));
    let second = block_on(engine.load(&spec)).unwrap();
    assert_reference(&answers_of(&second), "rslora");
    assert_eq!(answers_of(&first), before, "whoever holds the old model keeps it");
    assert!(!block_on(adapters.is_update_available(&latest())).unwrap());

    world.requests();
    let back = block_on(adapters.rollback(&latest())).unwrap();
    assert_eq!(back.title(), "v1");
    assert_eq!(answers(&engine, &spec).unwrap(), before);
    assert_eq!(content(&stored(&engine, "v1")), adapter_files("peft"));
    assert_eq!(world.asked(), Vec::<String>::new());
    let plan = block_on(world.engine().plan(&spec)).unwrap();
    assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Hold(HoldKind::RolledBack));
    assert!(plan.to_string().contains("rolled back to"), "{plan}");

    assert!(block_on(adapters.is_update_available(&latest())).unwrap());
    assert_eq!(block_on(adapters.update(&latest(), None)).unwrap().title(), "v2");
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
}

#[test]
fn latest_is_asked_for_once_for_each_plan_and_is_in_the_statistics() {
    let world = World::new(loose("v1", "peft"));
    let (engine, spec) = (world.engine(), spec(LATEST));
    let asked = || {
        let asked = world.asked().iter().filter(|path| path.ends_with("/releases/latest")).count();
        world.requests();
        asked
    };
    let plan = block_on(engine.plan(&spec)).unwrap();
    assert_eq!(asked(), 1);
    assert_eq!((plan.adapters[0].0.version.as_deref(), plan.adapters[0].0.present), (Some("v1"), false));
    let model = block_on(engine.load(&spec)).unwrap();
    assert_eq!(asked(), 1);
    for _ in 0..2 {
        let (_, stats) = answer(&model, &[1, 5, 7]);
        assert_eq!(stats.adapters.len(), 1);
        let used = &stats.adapters[0];
        assert_eq!((used.version.as_deref(), &used.revision), (Some("v1"), &plan.adapters[0].0.revision));
        assert_eq!(used.to_string(), format!("{LATEST} at v1, weight 1"));
    }
    assert_eq!(asked(), 0);
    let kept = block_on(engine.adapters().list()).unwrap();
    assert_eq!((kept.len(), kept[0].versions.len()), (1, 1));
    assert_eq!((kept[0].versions[0].title(), kept[0].versions[0].current), ("v1", true));
}

#[test]
fn where_the_source_cannot_be_asked_it_is_what_was_used_last() {
    let world = World::new(loose("v1", "peft"));
    let spec = spec(LATEST);
    let before = answers(&world.engine(), &spec).unwrap();
    world.github.publish("acme/lora", loose("v2", "rslora"));
    world.requests();
    let offline = world.offline();
    let plan = block_on(offline.plan(&spec)).unwrap();
    assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::LastUse);
    assert!(plan.to_string().contains("at v1") && plan.to_string().contains("could not be asked"), "{plan}");
    assert_eq!(answers(&offline, &spec).unwrap(), before);
    assert_eq!(world.requests(), 0);
    assert_adapter_error(block_on(offline.adapters().is_update_available(&latest())), "offline", &[LATEST]);

    world.github.fault(Fault::hang_up().on(Host::Api));
    let engine = unpatient(&world);
    assert_eq!(answers(&engine, &spec).unwrap(), before);
    let asked = block_on(engine.adapters().is_update_available(&latest()));
    assert!(asked.as_ref().unwrap_err().is_retryable(), "{asked:?}");
    assert_adapter_error(asked, "download_failed", &[LATEST]);
    world.github.clear_faults();
    let hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600;
    world.github.exhaust_rate_limit(hour);
    assert_eq!(answers(&world.engine(), &spec).unwrap(), before);
    world.github.refill_rate_limit();
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "rslora");
}

/// An engine that asks once, so that no test waits.
fn unpatient(world: &World) -> Engine {
    let network = llm_local::NetworkConfig::new().with_attempts(1);
    let github = llm_local_source_github::GitHub::builder()
        .token("")
        .api(world.github.api_url())
        .network(llm_local_source_common::network::Network::new(network));
    world.builder().source(github.build().unwrap()).build().unwrap()
}

#[test]
fn a_version_that_is_no_adapter_does_not_become_the_current_one() {
    let world = World::new(loose("v1", "peft"));
    let (engine, spec) = (world.engine(), spec(LATEST));
    let before = answers(&engine, &spec).unwrap();
    let broken = loose("v2", "peft").with_file("README.md", "x");
    world.github.publish("acme/lora", broken);
    world.github.delete_asset("acme/lora", "v2", "adapter_model.safetensors");
    let bytes = llm_local_testkit::github::Asset::new("adapter_model.safetensors", "no safetensors at all");
    world.github.upload("acme/lora", "v2", bytes);
    let updated = block_on(engine.adapters().update(&latest(), None));
    assert_eq!(updated.unwrap_err().code(), "adapter_merge_failed");
    assert_eq!(answers(&world.offline(), &spec).unwrap(), before);
    let kept = block_on(engine.adapters().list()).unwrap();
    let current: Vec<_> = kept[0].versions.iter().filter(|v| v.current).map(|v| v.title().to_owned()).collect();
    assert_eq!(current, ["v1"]);
}

#[test]
fn what_was_only_downloaded_and_is_no_adapter_does_not_become_the_current_one() {
    let world = World::new(loose("v1", "peft"));
    let engine = world.engine();
    block_on(engine.download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap();
    block_on(engine.download_artifact(&latest(), Want::Adapter, None)).unwrap();
    let (name, _) = adapter_files("peft").swap_remove(0);
    let weights = adapter_files("peft").swap_remove(1);
    // By another rule than LoRA.
    let loha = Release::new("v2").with_file(name, r#"{"peft_type": "LOHA", "r": 8}"#).with_file(weights.0, weights.1);
    world.github.publish("acme/lora", loha);
    block_on(engine.download_artifact(&latest(), Want::Adapter, None)).unwrap();
    assert_reference(&answers(&world.offline(), &spec(LATEST)).unwrap(), "peft");
}

#[test]
fn a_load_that_began_before_another_version_was_chosen_is_not_kept() {
    let world = World::new(loose("v1", "peft"));
    world.github.publish("acme/lora", loose("v2", "rslora"));
    let (engine, spec) = (world.engine(), spec(LATEST));
    let adapters = engine.adapters();
    block_on(adapters.pin(&latest(), Some("v1"), None)).unwrap();
    let mut early = Box::pin(engine.load(&spec));
    assert!(early.as_mut().now_or_never().is_none());
    block_on(adapters.pin(&latest(), Some("v2"), None)).unwrap();
    let second = block_on(engine.load(&spec)).unwrap();
    assert_reference(&answers_of(&second), "rslora");
    let early = block_on(early).unwrap();
    assert!(!early.is_same(&second));
    assert!(block_on(engine.load(&spec)).unwrap().is_same(&second), "the early one took its place");
}

#[test]
fn a_model_of_a_release_is_found_again_by_its_tag_and_offline() {
    let world = World::new(loose("v1", "peft"));
    let gguf = fs::read(fixture("gguf/tiny-llama-q8_0.gguf")).unwrap();
    world.github.create(Repository::new("acme/tiny").with_release(Release::new("v1").with_file("tiny.gguf", gguf)));
    let [moving, named] = ["github:acme/tiny", "github:acme/tiny@v1"].map(|r| ModelSpec::new(r.parse().unwrap()));
    block_on(world.engine().download(&moving, None)).unwrap();
    world.requests();
    let by = |engine: &Engine, spec| block_on(engine.plan(spec)).unwrap().base.pinned_by;
    assert_eq!(by(&world.engine(), &named), PinnedBy::Name);
    assert_eq!(by(&world.offline(), &moving), PinnedBy::LastUse);
    assert_eq!(world.requests(), 0);
    assert_eq!(by(&world.engine(), &moving), PinnedBy::Source);
}

#[test]
fn a_release_that_is_called_latest_does_not_stay_the_latest() {
    let world = World::new(loose("latest", "peft"));
    let (engine, spec) = (world.engine(), spec(LATEST));
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
    world.github.publish("acme/lora", loose("v2", "rslora"));
    let plan = block_on(world.engine().plan(&spec)).unwrap();
    assert_eq!((plan.adapters[0].0.version.as_deref(), plan.adapters[0].0.pinned_by), (Some("v2"), PinnedBy::Source));
    assert!(block_on(engine.adapters().is_update_available(&latest())).unwrap());
    assert_eq!(block_on(engine.adapters().update(&latest(), None)).unwrap().title(), "v2");
    assert_reference(&answers(&engine, &spec).unwrap(), "rslora");
    // A tag that moves is no version, so that it is told by its revision.
    let before = block_on(engine.adapters().rollback(&latest())).unwrap();
    assert_eq!((before.version.as_deref(), before.title()), (None, before.revision.as_str()));
    assert_reference(&answers(&engine, &spec).unwrap(), "peft");
}
