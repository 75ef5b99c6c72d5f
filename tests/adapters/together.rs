//! Refs of one spec that move together.

use std::sync::{Arc, Mutex};

use llm_local::{ModelSpec, PinnedBy, ProgressEvent, ProgressHandler};
use llm_local_testkit::github::{Release, Repository};
use pollster::block_on;

use crate::world::*;

/// A release with two adapters.
fn both(tag: &str, adapters: [&str; 2]) -> Release {
    let release = Release::new(tag);
    adapters.iter().zip(["a.zip", "b.zip"]).fold(release, |release, (a, name)| release.with_file(name, zip_of(a)))
}

fn spec(revision: &str) -> ModelSpec {
    let reference = |asset: &str| format!("github:acme/both{revision}#{asset}").parse().unwrap();
    ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter(reference("a.zip")).with_adapter(reference("b.zip"))
}

/// The versions that a plan has of its adapters.
fn versions(plan: &llm_local::Plan) -> Vec<&str> {
    plan.adapters.iter().map(|(adapter, _)| adapter.version.as_deref().unwrap()).collect()
}

#[test]
fn latest_is_one_release_for_all_refs_of_a_repository_and_asked_for_once() {
    let world = World::new(loose("v1", "peft"));
    world.github.create(Repository::new("acme/both").with_release(both("v1", ["peft", "rslora"])));
    for revision in ["", "@latest"] {
        world.requests();
        let plan = block_on(world.engine().plan(&spec(revision))).unwrap();
        let latest = world.asked().iter().filter(|path| path.ends_with("/releases/latest")).count();
        assert_eq!((versions(&plan), latest), (vec!["v1"; 2], 1), "{plan}");
        assert!(plan.adapters.iter().all(|(adapter, _)| adapter.pinned_by == PinnedBy::Source), "{plan}");
    }
    let mixed = ModelSpec::new("hf:org/tiny".parse().unwrap())
        .with_adapter("github:acme/both#b.zip".parse().unwrap())
        .with_adapter("github:acme/both@latest#a.zip".parse().unwrap());
    world.requests();
    block_on(world.engine().plan(&mixed)).unwrap();
    assert_eq!(world.asked().iter().filter(|path| path.ends_with("/releases/latest")).count(), 1);
}

/// Publishes a release once the second adapter is resolved.
struct Publish(Arc<World>, Mutex<usize>);

impl ProgressHandler for Publish {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Resolving { .. } = event {
            let mut seen = self.1.lock().unwrap();
            *seen += 1;
            if *seen == 3 {
                self.0.github.publish("acme/both", both("v2", ["rslora", "peft"]));
            }
        }
    }
}

#[test]
fn a_release_that_comes_while_a_spec_is_resolved_is_not_mixed_in() {
    let world = Arc::new(World::new(loose("v1", "peft")));
    world.github.create(Repository::new("acme/both").with_release(both("v1", ["peft", "rslora"])));
    let publish = Arc::new(Publish(world.clone(), Mutex::new(0)));
    let engine = world.engine();
    let model = block_on(engine.load_with_progress(&spec(""), Some(publish.clone()))).unwrap();
    assert_eq!(*publish.1.lock().unwrap(), 3);
    assert_eq!(versions(model.plan()), ["v1", "v1"]);
    // The next plan is of the newer one, all of it, and what was used is what is used offline.
    assert_eq!(versions(&block_on(world.engine().plan(&spec(""))).unwrap()), ["v2", "v2"]);
    assert_eq!(versions(&block_on(world.offline().plan(&spec(""))).unwrap()), ["v1", "v1"]);
}

#[test]
fn a_ref_that_is_held_or_names_a_version_does_not_move_with_others() {
    let world = World::new(loose("v1", "peft"));
    let releases = Repository::new("acme/both").with_release(both("v1", ["peft", "rslora"]));
    world.github.create(releases.with_release(both("v2", ["rslora", "peft"])));
    let engine = world.engine();
    block_on(engine.adapters().pin(&"github:acme/both#a.zip".parse().unwrap(), Some("v1"), None)).unwrap();
    assert_eq!(versions(&block_on(engine.plan(&spec(""))).unwrap()), ["v1", "v2"]);
    let named = spec("").with_adapter("github:acme/both@v1#b.zip".parse().unwrap());
    assert_eq!(versions(&block_on(engine.plan(&named)).unwrap()), ["v1", "v2", "v1"]);
}
