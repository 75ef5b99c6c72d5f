//! Releases whose assets take a second step: numbered parts, and digests that stand in an asset of their own.

use std::time::{Duration, SystemTime};

use llm_local::{ArtifactRef, core::Want};
use llm_local_testkit::github::{Asset, Host, Release};
use pollster::block_on;
use sha2::{Digest as _, Sha256};

use crate::world::*;

const NAMED: &str = "github:acme/lora@v1";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// `release` with the file `name` in three numbered parts, the last of which is the shortest.
fn with_parts(release: Release, name: &str, content: &[u8]) -> Release {
    let parts = content.chunks(content.len() / 3 + 1).enumerate();
    let release = parts.fold(release, |r, (i, part)| r.with_file(format!("{name}.{:03}", i + 1), part.to_vec()));
    assert!(!content.len().is_multiple_of(3), "the parts are all of one size");
    release
}

#[test]
fn an_adapter_in_numbered_parts_generates_the_reference_tokens_and_no_part_is_kept() {
    let [(_, config), (_, weights)] = adapter_files("peft").try_into().unwrap();
    let loose = with_parts(Release::new("v1").with_file(CONFIG, config), WEIGHTS, &weights);
    let archive = with_parts(Release::new("v1"), "pirate.zip", &zip_of("peft"));
    for (release, whole) in [(loose, WEIGHTS), (archive, "pirate.zip")] {
        let world = World::new(release.with_file("NOTES.md", "about it"));
        // A part stands for its whole.
        for reference in [NAMED, "github:acme/lora", &format!("{NAMED}#{whole}.002")] {
            let engine = world.engine();
            let spec = spec(reference);
            assert_reference(&answers(&engine, &spec).unwrap(), "peft");
            let mut whole_files: Vec<_> = adapter_files("peft").into_iter().map(|(_, bytes)| bytes).collect();
            whole_files.sort();
            assert!(
                world.contents() == whole_files,
                "{reference}: not the files that were split: {:?}",
                world.stored()
            );
            let requests = world.github.wait_until_idle();
            for part in ["001", "002", "003"] {
                let name = format!("{whole}.{part}");
                let came = |r: &&llm_local_testkit::github::Recorded| r.host == Host::Cdn && r.is_for(&name);
                assert!(requests.iter().any(|r| came(&r)), "{name} of {reference}: {requests:?}");
            }
            assert!(!requests.iter().any(|r| r.is_for("NOTES.md")), "{requests:?}");
            world.requests();
            assert_reference(&answers(&world.offline(), &spec).unwrap(), "peft");
            assert_eq!(world.requests(), 0);
            world.forget();
        }
    }
}

#[test]
fn a_missing_part_is_named_before_a_byte_is_asked_for() {
    let world = World::new(with_parts(Release::new("v1"), "pirate.zip", &zip_of("peft")));
    world.github.delete_asset("acme/lora", "v1", "pirate.zip.002");
    assert_adapter_error(answers(&world.engine(), &spec(NAMED)), "not_found", &["pirate.zip.002"]);
    assert!(world.github.wait_until_idle().iter().all(|r| r.host == Host::Api));
    assert_eq!(world.stored(), Vec::<String>::new());
}

/// A release of which GitHub tells no digest, and the list in `SHA256SUMS` a wrong one for `wrong`.
fn with_wrong_sum(files: Vec<(String, Vec<u8>)>, wrong: &str) -> Release {
    let mut sums = String::new();
    let mut release = Release::new("v1");
    for (name, content) in files {
        let mut digest = Sha256::digest(&content);
        digest[31] ^= u8::from(name == wrong);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        sums += &format!("{hex}  {name}\n");
        release = release.with_asset(Asset::new(name, content).without_digest());
    }
    release.with_file("SHA256SUMS", sums)
}

#[test]
fn a_wrong_digest_in_a_list_of_the_release_is_an_error_and_the_file_is_not_kept() {
    let archive = vec![("pirate.zip".to_owned(), zip_of("peft"))];
    for (files, name) in [(adapter_files("peft"), WEIGHTS), (archive, "pirate.zip")] {
        // So that it is the list that decides.
        let world = World::new(with_wrong_sum(files.clone(), "none"));
        assert_reference(&answers(&world.engine(), &spec(NAMED)).unwrap(), "peft");

        let world = World::new(with_wrong_sum(files.clone(), name));
        let reference: ArtifactRef = NAMED.parse().unwrap();
        let (_, content) = files.iter().find(|(n, _)| n == name).unwrap();
        let found: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let says = [NAMED, name, &found];
        let engine = world.engine();
        let fetched = block_on(engine.download_artifact(&reference, Want::Adapter, None));
        assert_adapter_error(fetched, "integrity_failed", &says);
        assert_adapter_error(block_on(engine.adapters().update(&reference, None)), "integrity_failed", &says);
        // A file that is as the list has it may have come before the other was refused, and need not come again, should
        // that be mended. Nothing else is there.
        let right: Vec<_> = files.iter().filter(|(n, _)| n != name).map(|(_, content)| content.clone()).collect();
        let is_right = world.contents().iter().all(|kept| right.contains(kept));
        assert!(is_right && world.stored().len() == world.contents().len(), "{:?}", world.stored());
        let later = SystemTime::now() + Duration::from_secs(2 * 60 * 60);
        engine.store().clean(Duration::ZERO, later).unwrap();
        assert_eq!(world.stored(), Vec::<String>::new());
        assert_adapter_error(block_on(engine.load(&spec(NAMED))), "integrity_failed", &says);
        assert!(world.contents().iter().all(|kept| right.contains(kept)), "{:?}", world.stored());
        assert_eq!(block_on(engine.adapters().list()).unwrap(), []);
        let requests = world.github.wait_until_idle();
        assert!(requests.iter().any(|r| r.is_for("SHA256SUMS") && r.host == Host::Cdn), "{requests:?}");
    }
}
