//! What the policy says of versions that are kept already: an engine that allows everything has fetched them.

use llm_local::{ArtifactRef, Engine, PinnedBy, Policy, adapters::HoldKind, core::Want, policy::WeightFormat};
use llm_local_testkit::github::Release;
use pollster::block_on;

use crate::world::*;

const LATEST: &str = "github:acme/lora";
const V1: &str = "github:acme/lora@v1";
const V2: &str = "github:acme/lora@v2";

fn parsed(text: &str) -> ArtifactRef {
    text.parse().unwrap()
}

fn size(adapter: &str) -> u64 {
    adapter_files(adapter).iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

/// Both releases are kept, and the first is the one that moving refs meant last.
fn kept(first: Release, second: Release) -> World {
    let world = World::new(first);
    let engine = world.engine();
    block_on(engine.adapters().update(&parsed(LATEST), None)).unwrap();
    world.github.publish("acme/lora", second);
    block_on(engine.download_artifact(&parsed(V2), Want::Adapter, None)).unwrap();
    assert_eq!(chosen(&world.engine()), (vec!["v1".into()], None));
    world
}

/// The current version of those that are kept, which are two, and what holds it.
fn chosen(engine: &Engine) -> (Vec<String>, Option<HoldKind>) {
    let listed = block_on(engine.adapters().list()).unwrap().remove(0);
    assert_eq!(listed.versions.len(), 2);
    let current = listed.versions.iter().filter(|version| version.current);
    (current.map(|version| version.title().to_owned()).collect(), listed.hold)
}

/// Asserts that v2, which is kept, does not become what refs mean under `policy`, by rule `says`.
#[track_caller]
fn assert_not_chosen(world: &World, policy: Policy, says: &str) {
    let engine = world.builder().policy(policy.clone()).build().unwrap();
    let adapters = engine.adapters();
    let v1 = (vec!["v1".to_owned()], None);
    world.requests();
    assert_adapter_error(block_on(adapters.pin(&parsed(LATEST), Some("v2"), None)), "not_allowed", &[says]);
    assert_eq!(chosen(&engine), v1, "after the pin by version");
    assert_adapter_error(block_on(adapters.pin(&parsed(V2), None, None)), "not_allowed", &[says]);
    assert_eq!(chosen(&engine), v1, "after the pin by ref");
    assert_adapter_error(block_on(adapters.update(&parsed(V2), None)), "not_allowed", &[says]);
    assert_eq!(chosen(&engine), v1, "after the update of the version");
    assert_eq!(world.requests(), 0, "of what is kept the record tells");
    assert_adapter_error(block_on(adapters.update(&parsed(LATEST), None)), "not_allowed", &[says]);
    assert_eq!(chosen(&engine), v1, "after the update to the newest");
    let offline = world.builder().policy(policy).offline(true).build().unwrap();
    assert_adapter_error(block_on(offline.adapters().pin(&parsed(LATEST), Some("v2"), None)), "not_allowed", &[says]);
    assert_adapter_error(block_on(offline.download_artifact(&parsed(V2), Want::Adapter, None)), "not_allowed", &[says]);
    assert_eq!(chosen(&offline), v1);
}

#[test]
fn a_kept_version_that_is_larger_than_allowed_is_neither_pinned_nor_updated_to() {
    let world = kept(loose("v1", "rslora"), loose("v2", "peft"));
    let policy = || Policy::new().max_adapter_bytes(size("peft") - 1);
    assert!(size("rslora") < size("peft"));
    assert_not_chosen(&world, policy(), &format!("it has {}", size("peft")));
    // The other one is allowed.
    let engine = world.builder().policy(policy()).build().unwrap();
    assert_eq!(block_on(engine.adapters().pin(&parsed(LATEST), Some("v1"), None)).unwrap().title(), "v1");
    assert_reference(&answers(&engine, &spec(LATEST)).unwrap(), "rslora");
    // And v2 is not harmed: without the rule it can be chosen.
    let free = world.engine();
    block_on(free.adapters().pin(&parsed(LATEST), Some("v2"), None)).unwrap();
    assert_reference(&answers(&free, &spec(LATEST)).unwrap(), "peft");
}

#[test]
fn a_kept_archive_that_unpacked_to_more_than_is_allowed_is_neither_pinned_nor_updated_to() {
    let world = kept(loose("v1", "rslora"), zipped("v2", "peft"));
    let plan = block_on(world.engine().plan(&spec(V2))).unwrap();
    let (listed, unpacked) = (plan.adapters[0].0.bytes, size("peft"));
    assert!(listed < unpacked, "{plan}");
    assert_not_chosen(&world, Policy::new().max_adapter_bytes(unpacked - 1), &format!("unpacked has {unpacked}"));
}

#[test]
fn a_kept_version_of_a_licence_format_owner_or_scheme_that_is_not_allowed_is_not_chosen() {
    for second in [loose("v2", "peft"), zipped("v2", "peft")] {
        let world = kept(loose("v1", "rslora"), second);
        for (policy, says) in [
            (Policy::new().allow_licenses(["apache-2.0"]), "its licence `MIT`"),
            (Policy::new().allow_formats([WeightFormat::Gguf]), "is safetensors"),
            (Policy::new().allow_owners(["org"]), "its owner `acme`"),
            (Policy::new().allow_schemes(["hf"]), "its scheme `github`"),
        ] {
            assert_not_chosen(&world, policy, says);
        }
        assert_not_chosen(&world, Policy::new().allow_licenses(["mit"]).max_adapter_bytes(1), "an adapter may have 1 ");
        let allowed = Policy::new().allow_licenses(["mit"]).allow_formats([WeightFormat::Safetensors]);
        let engine = world.builder().policy(allowed.allow_owners(["acme"])).build().unwrap();
        assert_eq!(block_on(engine.adapters().pin(&parsed(LATEST), Some("v2"), None)).unwrap().title(), "v2");
    }
}

#[test]
fn what_was_pinned_or_rolled_back_to_before_there_was_a_rule_is_not_used() {
    let world = kept(loose("v1", "peft"), loose("v2", "rslora"));
    let policy = || Policy::new().max_adapter_bytes(size("peft") - 1);
    let (free, ruled) = (world.engine(), world.builder().policy(policy()).build().unwrap());
    let says = ["an adapter may have", LATEST];
    block_on(free.adapters().pin(&parsed(LATEST), Some("v1"), None)).unwrap();
    assert_adapter_error(block_on(ruled.load(&spec(LATEST))), "not_allowed", &says);
    assert_adapter_error(block_on(ruled.plan(&spec(LATEST))), "not_allowed", &says);
    assert_eq!(block_on(ruled.adapters().pin(&parsed(LATEST), Some("v2"), None)).unwrap().title(), "v2");
    assert_reference(&answers(&ruled, &spec(LATEST)).unwrap(), "rslora");

    let refused = block_on(ruled.adapters().rollback(&parsed(LATEST)));
    assert_adapter_error(refused, "not_allowed", &says);
    assert_eq!(chosen(&ruled), (vec!["v2".into()], Some(HoldKind::Pinned)), "nothing was gone back to");
    block_on(free.adapters().rollback(&parsed(LATEST))).unwrap();
    let plan = block_on(free.plan(&spec(LATEST))).unwrap();
    assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Hold(HoldKind::RolledBack));
    // Another process: what this one has loaded stays.
    let ruled = world.builder().policy(policy()).build().unwrap();
    assert_adapter_error(block_on(ruled.load(&spec(LATEST))), "not_allowed", &says);
    // Nor offline, nor by its name.
    let offline = world.builder().policy(policy()).offline(true).build().unwrap();
    for reference in [LATEST, V1] {
        assert_adapter_error(block_on(offline.load(&spec(reference))), "not_allowed", &says[..1]);
    }
    assert_eq!(block_on(ruled.adapters().update(&parsed(LATEST), None)).unwrap().title(), "v2");
    assert_reference(&answers(&ruled, &spec(LATEST)).unwrap(), "rslora");
}

#[test]
fn a_version_that_is_not_allowed_is_not_gone_back_to() {
    for first in [loose("v1", "peft"), zipped("v1", "peft")] {
        let world = kept(first, loose("v2", "rslora"));
        let free = world.engine();
        assert_eq!(block_on(free.adapters().update(&parsed(LATEST), None)).unwrap().title(), "v2");
        for (policy, says) in [
            (Policy::new().max_adapter_bytes(size("peft") - 1), "an adapter may have"),
            (Policy::new().allow_licenses(["apache-2.0"]), "its licence `MIT`"),
            (Policy::new().allow_formats([WeightFormat::Gguf]), "is safetensors"),
            (Policy::new().allow_owners(["org"]), "its owner `acme`"),
            (Policy::new().allow_schemes(["hf"]), "its scheme `github`"),
        ] {
            let ruled = world.builder().policy(policy).build().unwrap();
            world.requests();
            let refused = block_on(ruled.adapters().rollback(&parsed(LATEST)));
            assert_adapter_error(refused, "not_allowed", &[says, "acme/lora"]);
            assert_eq!(world.requests(), 0);
            assert_eq!(chosen(&free), (vec!["v2".into()], None), "{says}");
        }
        assert_reference(&answers(&free, &spec(LATEST)).unwrap(), "rslora");
        let ruled = world.builder().policy(Policy::new().max_adapter_bytes(size("peft"))).build().unwrap();
        assert_eq!(block_on(ruled.adapters().rollback(&parsed(LATEST))).unwrap().title(), "v1");
        assert_reference(&answers(&free, &spec(LATEST)).unwrap(), "rslora");
        block_on(free.unload(&spec(LATEST))).unwrap();
        assert_reference(&answers(&free, &spec(LATEST)).unwrap(), "peft");
    }
}

/// Whoever fetched it had no rule, and its source told then whose it is now.
#[test]
fn what_was_fetched_of_a_repository_that_was_given_away_is_its_new_owners_also_once_it_is_kept() {
    let world = World::new(loose("v1", "peft"));
    world.github.rename("acme/lora", "mallory/lora");
    let policy = || Policy::new().allow_owners(["acme", "org"]);
    let says = "its source now has it from the owner `mallory`";
    let ruled = world.builder().policy(policy()).build().unwrap();
    assert_adapter_error(block_on(ruled.load(&spec(V1))), "not_allowed", &[V1, says]);
    assert_eq!(world.stored().iter().filter(|path| path.starts_with("blobs/")).count(), 0);
    block_on(world.engine().load(&spec(V1))).unwrap();
    for offline in [false, true] {
        let ruled = world.builder().policy(policy()).offline(offline).build().unwrap();
        world.requests();
        assert_adapter_error(block_on(ruled.load(&spec(V1))), "not_allowed", &[V1, says]);
        assert_adapter_error(block_on(ruled.adapters().pin(&parsed(V1), None, None)), "not_allowed", &[says]);
        assert_eq!(world.asked(), Vec::<String>::new(), "the record tells");
    }
    let both = world.builder().policy(policy().allow_owners(["Mallory"])).build().unwrap();
    block_on(both.load(&spec(V1))).unwrap();
}
