//! Specs that are locked, when upstream moves on.

use std::fs;

use llm_local::{ArtifactRef, ModelSpec, PinnedBy, core::Want, lock};
use llm_local_testkit::github::{Asset, Host, Release};
use pollster::block_on;
use sha2::{Digest as _, Sha256};

use crate::world::*;

const LATEST: &str = "github:acme/lora@latest";

/// The spec of the latest adapter, locked while that is v1; through a file, as an application has it.
fn locked(world: &World) -> ModelSpec {
    let path = world.folder.path().join("spec.lock");
    let locked = block_on(world.engine().lock(&spec(LATEST))).unwrap();
    lock::write(&locked, &path).unwrap();
    spec(LATEST).with_lock(lock::read(&path).unwrap())
}

#[test]
fn a_locked_spec_gives_the_first_bytes_when_there_is_a_newer_release() {
    for release in [loose("v1", "peft"), zipped("v1", "peft")] {
        let world = World::new(release);
        let spec = locked(&world);
        world.github.publish("acme/lora", loose("v2", "rslora"));
        world.forget();
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
fn a_spec_that_is_locked_to_a_release_that_is_called_latest_gives_the_first_bytes_and_never_others() {
    for release in [loose("latest", "peft"), zipped("latest", "peft")] {
        let world = World::new(release);
        let spec = locked(&world);
        let adapter = spec.lock.as_ref().unwrap().artifacts.iter().find(|a| a.want == Want::Adapter).unwrap();
        // A tag that is made to move is no version: the ids of the release and its assets are what it is.
        assert_eq!(adapter.version, None);
        let release = world.github.release_id("acme/lora", "latest");
        assert!(adapter.revision.starts_with(&format!("{release}~")), "{}", adapter.revision);
        let of_release = format!("/repos/acme/lora/releases/{release}");
        world.github.publish("acme/lora", loose("v2", "rslora"));
        world.forget();
        world.requests();
        let engine = world.engine();
        assert_reference(&answers(&engine, &spec).unwrap(), "peft");
        let asked = world.asked();
        assert!(asked.contains(&of_release) && !asked.iter().any(|p| p.ends_with("/latest")), "{asked:?}");
        // As it means itself, it is the other one.
        assert_reference(&answers(&engine, &crate::world::spec(LATEST)).unwrap(), "rslora");
        world.requests();
        assert_reference(&answers(&world.offline(), &spec).unwrap(), "peft");
        assert_eq!(world.requests(), 0);

        // Its assets are replaced under the same tag, as such a tag is used.
        world.github.publish("acme/lora", loose("latest", "rslora"));
        assert_reference(&answers(&world.engine(), &spec).unwrap(), "peft");
        world.forget();
        assert_adapter_error(answers(&world.engine(), &spec), "not_found", &["acme/lora", &adapter.revision]);
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
    world.forget();
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

/// An archive of which GitHub tells no digest.
fn untold(archive: Vec<u8>) -> Asset {
    Asset::new("pirate.zip", archive).without_digest()
}

#[test]
fn an_archive_whose_source_tells_no_digest_is_locked_to_the_one_that_it_came_with() {
    let archive = zip_of("peft");
    let world = World::new(Release::new("v1").with_asset(untold(archive.clone())));
    let spec = locked(&world);
    let digest: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let artifacts = &spec.lock.as_ref().unwrap().artifacts;
    let files = &artifacts.iter().find(|artifact| artifact.want == Want::Adapter).unwrap().files;
    let [file] = files.as_slice() else { panic!("{files:?}") };
    assert_eq!((file.path.as_str(), file.size), ("pirate.zip", archive.len() as u64));
    assert_eq!(file.digest.unwrap().to_string(), format!("sha256:{digest}"));
    let text = fs::read_to_string(world.folder.path().join("spec.lock")).unwrap();
    assert!(text.contains(&digest), "{text}");

    // From the store that has unpacked it, and then from another one.
    world.requests();
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "peft");
    assert_eq!(world.github.wait_until_idle().len(), 0);
    world.forget();
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "peft");

    // The same size, so that only the bytes can tell; more bytes; and another archive altogether.
    let mut flipped = archive.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let longer = [archive.clone(), vec![0]].concat();
    for (other, says) in
        [(flipped, digest.as_str()), (longer, "bytes, as it was locked"), (zip_of("rslora"), "pirate.zip")]
    {
        let is_of_one_size = other.len() == archive.len();
        world.github.upload("acme/lora", "v1", untold(other));
        world.forget();
        world.requests();
        assert_adapter_error(answers(&world.engine(), &spec), "integrity_failed", &["pirate.zip", says]);
        // Another size is seen in the list already.
        let asked = world.github.wait_until_idle();
        assert_eq!(asked.iter().any(|r| r.host == Host::Cdn), is_of_one_size, "{asked:?}");
        assert!(!world.contents().iter().any(|content| content.starts_with(b"PK")), "{:?}", world.stored());
        assert!(block_on(world.engine().adapters().list()).unwrap().is_empty());
    }
    world.github.upload("acme/lora", "v1", untold(archive));
    world.forget();
    assert_reference(&answers(&world.engine(), &spec).unwrap(), "peft");
}
