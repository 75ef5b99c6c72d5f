//! Adapters that lie at a path of this machine.

use std::{fs, path::PathBuf};

use llm_local::{ArtifactRef, ModelSpec, PinnedBy, adapters::HoldKind};
use pollster::block_on;

use crate::world::*;

/// A folder to put adapters into.
struct Mine(PathBuf);

impl Mine {
    fn new(world: &World) -> Self {
        let folder = world.folder.path().join("pirate");
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn place(&self, adapter: &str) {
        adapter_files(adapter).iter().for_each(|(name, bytes)| fs::write(self.0.join(name), bytes).unwrap());
    }

    fn reference(&self) -> ArtifactRef {
        ArtifactRef::file(&self.0).unwrap()
    }

    fn spec(&self) -> ModelSpec {
        spec(&self.reference().to_string())
    }
}

#[test]
fn a_path_with_a_separator_at_its_end_is_the_same_path() {
    let world = World::new(loose("v1", "peft"));
    let mine = Mine::new(&world);
    mine.place("peft");
    let engine = world.engine();
    let adapters = engine.adapters();
    let with_separator: ArtifactRef = format!("{}/", mine.0.display()).parse().unwrap();
    let pinned = block_on(adapters.pin(&with_separator, None, None)).unwrap();
    mine.place("rslora");
    for spelling in [mine.spec(), spec(&with_separator.to_string())] {
        let plan = block_on(engine.plan(&spelling)).unwrap();
        assert_eq!(plan.adapters[0].0.pinned_by, PinnedBy::Hold(HoldKind::Pinned), "{plan}");
        assert_reference(&answers(&engine, &spelling).unwrap(), "peft");
    }
    let again = block_on(adapters.pin(&mine.reference(), Some(&pinned.revision), None)).unwrap();
    assert_eq!(again.revision, pinned.revision);
    assert_eq!(block_on(adapters.list()).unwrap().len(), 1);
    block_on(adapters.unpin(&mine.reference())).unwrap();
    assert_reference(&answers(&engine, &spec(&with_separator.to_string())).unwrap(), "rslora");
}

#[test]
fn the_lock_of_a_path_that_was_pinned_or_rolled_back_finds_the_copy() {
    let world = World::new(loose("v1", "peft"));
    let mine = Mine::new(&world);
    mine.place("peft");
    let engine = world.engine();
    let adapters = engine.adapters();
    block_on(adapters.pin(&mine.reference(), None, None)).unwrap();
    assert_reference(&answers(&engine, &mine.spec()).unwrap(), "peft");
    let pinned = mine.spec().with_lock(block_on(engine.lock(&mine.spec())).unwrap());
    block_on(adapters.unpin(&mine.reference())).unwrap();
    mine.place("rslora");
    block_on(adapters.update(&mine.reference(), None)).unwrap();
    block_on(adapters.rollback(&mine.reference())).unwrap();
    let rolled_back = mine.spec().with_lock(block_on(engine.lock(&mine.spec())).unwrap());
    // Whatever lies there, whether something does, and whatever is held.
    for gone in [false, true] {
        if gone {
            fs::remove_dir_all(&mine.0).unwrap();
            block_on(adapters.unpin(&mine.reference())).unwrap();
        }
        for locked in [&pinned, &rolled_back] {
            let engine = world.offline();
            let plan = block_on(engine.plan(locked)).unwrap();
            assert_eq!((plan.adapters[0].0.pinned_by, plan.adapters[0].0.present), (PinnedBy::Lock, true), "{plan}");
            assert_reference(&answers(&engine, locked).unwrap(), "peft");
        }
    }
    // What is locked to is in use, and is not deleted meanwhile.
    let loaded = block_on(engine.load(&pinned)).unwrap();
    assert_adapter_error(block_on(adapters.delete(&mine.reference(), None)), "io", &["is loaded"]);
    drop(loaded);
    block_on(engine.unload(&pinned)).unwrap();
    block_on(adapters.delete(&mine.reference(), None)).unwrap();
    assert_adapter_error(answers(&world.offline(), &pinned), "not_found", &["no such file or folder"]);
}
