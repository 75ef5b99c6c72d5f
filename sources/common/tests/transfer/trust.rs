//! Versions whose owner promises that they never change, and what becomes of one that does.

use std::{fs, ops::Range, sync::Arc};

use llm_local_core::{
    ArtifactRef, ArtifactSource, Digest, Error, FetchContext, Manifest, ManifestFile, Opened, Request, Result, Unpack,
    Want, async_trait,
};
use llm_local_source_common::transfer::Job;
use llm_local_testkit::{
    github::{Asset, GitHub, Release, Repository},
    hub::Content,
};

use super::assets::*;

const V1: &str = "test:org/lora@v1";
/// More than comes in one piece, so that it goes by way of a partial.
const LARGE: usize = 600 << 10;

impl Assets {
    /// The release `v1` as it is now, its asset numbered `asset`.
    fn v1(&self, asset: u32, told: bool) -> Manifest {
        self.manifest(V1, &format!("7:{asset}"), &[WEIGHTS], told).with_version("v1")
    }

    /// Asserts that a file was refused as another than the one that came first.
    fn refused(&self, manifest: &Manifest, was: &str, is: &str) {
        let error = self.fetch(manifest).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        assert!(!error.is_retryable());
        let Error::AdapterMergeFailed { source: Some(cause), .. } = &error else { panic!("{error:?}") };
        let cause = cause.downcast_ref::<Error>();
        let Some(Error::IntegrityFailed { what, expected, found }) = cause else { panic!("{cause:?}") };
        assert_eq!(*what, format!("{WEIGHTS} of {}", manifest.reference));
        assert_eq!(*expected, format!("{was}, as it was first fetched under `v1` on 2027-01-15"));
        assert!(found.starts_with(&format!("{is}: the file was replaced")), "{found}");
        assert!(found.contains("delete") && found.contains(&format!("`{V1}`")), "{found}");
        self.assert_nothing_left();
    }
}

fn bytes(seed: u64, size: usize) -> Vec<u8> {
    Content::generated(size as u64, seed).read(0..size as u64).unwrap()
}

#[test]
fn a_replaced_file_whose_digest_is_told_is_refused_before_a_byte_moves() {
    let (old, new) = (bytes(1, 1000), bytes(2, 1000));
    let assets = Assets::new(&[(WEIGHTS, old.clone())]);
    let first = assets.v1(1, true);
    assets.fetch(&first).unwrap();
    assets.asked();
    assets.put(WEIGHTS, new.clone());
    let replaced = assets.v1(2, true);
    let (was, is) = (sha256_of(&old).to_string(), sha256_of(&new).to_string());
    assets.refused(&replaced, &was, &is);
    // Not even where its bytes happen to be here.
    assets.fetch(&assets.manifest("test:org/other", "1", &[WEIGHTS], true)).unwrap();
    assets.asked();
    assets.refused(&replaced, &was, &is);
    let present = pollster::block_on(assets.transfer().present(&assets.job(&replaced), &assets.cx()));
    assert_eq!(present.unwrap_err().code(), "adapter_merge_failed");
    // Nothing is evicted for what is refused.
    let room = pollster::block_on(assets.transfer().unpublished_bytes(&[assets.job(&replaced)], &assets.cx()));
    assert_eq!(room.unwrap_err().code(), "adapter_merge_failed");
    assert_eq!(assets.asked(), 0);
    // Those of the first are.
    assert!(assets.present(&first).is_some());
    // Another version is another matter, and so is the same of another repository.
    for (reference, version) in [("test:org/lora@v2", "v2"), ("test:org/fork@v1", "v1")] {
        assets.fetch(&assets.manifest(reference, "8:1", &[WEIGHTS], true).with_version(version)).unwrap();
    }
}

#[test]
fn a_replaced_file_without_a_told_digest_is_refused_before_it_is_published() {
    for size in [1000, LARGE] {
        let (old, new) = (bytes(1, size), bytes(2, size));
        let assets = Assets::new(&[(WEIGHTS, old.clone())]);
        assets.fetch(&assets.v1(1, false)).unwrap();
        let before = assets.blobs();
        assets.put(WEIGHTS, new.clone());
        assets.asked();
        assets.refused(&assets.v1(2, false), &sha256_of(&old).to_string(), &sha256_of(&new).to_string());
        assert!(assets.asked() > 0, "only its bytes tell");
        assert_eq!(assets.blobs(), before);
        assert_eq!(assets.recorded(), [V1]);
        // The same bytes under a new number are the same file.
        assets.put(WEIGHTS, old);
        assets.fetch(&assets.v1(3, false)).unwrap();
    }
}

#[test]
fn a_replaced_file_of_another_size_is_refused_before_a_byte_moves() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, 1000))]);
    assets.fetch(&assets.v1(1, false)).unwrap();
    assets.put(WEIGHTS, bytes(1, 1001));
    assets.asked();
    assets.refused(&assets.v1(2, false), "1000 bytes", "1001 bytes");
    assert_eq!(assets.asked(), 0);
}

#[test]
fn digests_of_two_kinds_are_held_together_by_the_bytes() {
    for size in [1000, LARGE] {
        let (old, new) = (bytes(1, size), bytes(2, size));
        let git = |bytes: &[u8]| -> Digest {
            format!("git-sha1:{}", Content::from(bytes.to_vec()).git_blob()).parse().unwrap()
        };
        let assets = Assets::new(&[(WEIGHTS, old.clone())]);
        assets.fetch(&assets.v1(1, true)).unwrap();
        let mut same = assets.v1(2, false);
        same.files[0] = same.files[0].clone().with_digest(git(&old));
        assets.fetch(&same).unwrap();
        assets.put(WEIGHTS, new.clone());
        let mut other = assets.v1(3, false);
        other.files[0] = other.files[0].clone().with_digest(git(&new));
        let before = assets.blobs();
        assets.refused(&other, &sha256_of(&old).to_string(), &sha256_of(&new).to_string());
        assert_eq!(assets.blobs(), before);
    }
}

#[test]
fn what_is_trusted_outlasts_eviction_and_a_deletion_forgets_it() {
    let (old, new) = (bytes(1, 1000), bytes(2, 1000));
    let (was, is) = (sha256_of(&old).to_string(), sha256_of(&new).to_string());
    let assets = Assets::new(&[(WEIGHTS, old)]);
    assets.fetch(&assets.v1(1, true)).unwrap();
    assets.put(WEIGHTS, new.clone());
    let (store, replaced) = (assets.store(), assets.v1(2, true));
    assert_eq!(store.evict(0, 0).unwrap().artifacts, 1);
    assert_eq!(assets.recorded(), Vec::<String>::new());
    assets.refused(&replaced, &was, &is);
    // What is evicted can be deleted still: all that is left of it is what is remembered.
    assert_eq!(store.delete(&"test:org/lora@v2".parse().unwrap()).unwrap_err().code(), "not_found");
    assert_eq!(store.delete(&V1.parse().unwrap()).unwrap().artifacts, 0);
    assert_eq!(store.delete(&V1.parse().unwrap()).unwrap_err().code(), "not_found");
    assets.fetch(&replaced).unwrap();
    assets.assert_has(&[&new]);
    // So it is from now on.
    assets.put(WEIGHTS, bytes(3, 1000));
    let third = assets.v1(3, true);
    assets.refused(&third, &is, &third.files[0].digest.unwrap().to_string());
    assert_eq!(store.delete_kept(&V1.parse().unwrap(), Want::Adapter, "v1").unwrap().artifacts, 1);
    assets.fetch(&third).unwrap();
}

#[test]
fn one_version_is_the_same_by_whatever_ref_and_stays_so_while_one_has_it() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, 1000))]);
    let by = |reference: &str, asset: u32| {
        assets.manifest(reference, &format!("7:{asset}"), &[WEIGHTS], true).with_version("v1")
    };
    let whole = "test:org/lora@latest#adapter_model.safetensors";
    assets.fetch(&by("test:org/lora@latest", 1)).unwrap();
    assets.fetch(&by(whole, 1)).unwrap();
    assets.put(WEIGHTS, bytes(2, 1000));
    let error = assets.fetch(&by(V1, 2)).unwrap_err().to_string();
    let other = format!("{V1}#{WEIGHTS}");
    assert!(error.contains(&format!("`{V1}` and `{other}`")), "each ref that has to go is named: {error}");
    // Its name finds it, though it was asked for by another.
    assert_eq!(assets.store().delete(&V1.parse().unwrap()).unwrap().artifacts, 1);
    let error = assets.fetch(&by(V1, 2)).unwrap_err().to_string();
    assert!(error.contains(&other), "{error}");
    assert_eq!(assets.store().delete(&other.parse().unwrap()).unwrap().artifacts, 1);
    assets.fetch(&by(V1, 2)).unwrap();
}

/// A zip by the name `name`, in the release `v1`, as `reference` resolves it.
fn zipped_as(assets: &Assets, reference: &str, asset: u32, name: &str) -> Manifest {
    let steps = vec![Unpack::Archive { file: name.into() }];
    let manifest = assets.manifest(reference, &format!("7:{asset}"), &[name], true).with_version("v1");
    manifest.with_unpack(steps).unwrap()
}

#[test]
fn a_file_that_was_replaced_by_one_of_another_name_is_refused_before_a_byte_moves() {
    let zip = |config: &[u8]| zip_of(&[(CONFIG, config), (WEIGHTS, &bytes(1, 1000))]);
    let (a, b) = (("a.zip", zip(b"{\"r\":8}")), ("b.zip", zip(b"{\"r\":9}")));
    // By whichever ref of the group it comes, also where another group had it first.
    for first in ["test:org/lora@v1", "test:org/lora@v1#a.zip"] {
        let assets = Assets::new(&[a.clone(), b.clone()]);
        assets.fetch(&zipped_as(&assets, first, 1, "a.zip")).unwrap();
        assets.fetch(&zipped_as(&assets, V1, 1, "a.zip")).unwrap();
        let refused = |times: usize| {
            assets.asked();
            for reference in ["test:org/lora@latest", V1, "test:org/lora"] {
                let replaced = zipped_as(&assets, reference, 2, "b.zip");
                let error = assets.fetch(&replaced).unwrap_err().to_string();
                for part in
                    ["`a.zip`, as they were first", "on 2027-01-15", "`b.zip`", "delete (`rm`)", &format!("`{V1}`")]
                {
                    assert!(error.contains(part), "{part} is not in: {error}");
                }
                let present = pollster::block_on(assets.transfer().present(&assets.job(&replaced), &assets.cx()));
                assert_eq!(present.unwrap_err().code(), "adapter_merge_failed");
            }
            assert_eq!((assets.asked(), assets.recorded().len()), (0, times));
        };
        refused(if first == V1 { 1 } else { 2 });
        // It is remembered, too, when none of it is kept any more.
        assets.store().evict(0, 0).unwrap();
        refused(0);
        for version in assets.store().remembered(&V1.parse().unwrap(), Want::Adapter).unwrap() {
            assets.store().delete(&format!("test:org/lora@{version}").parse().unwrap()).unwrap();
        }
        assets.fetch(&zipped_as(&assets, "test:org/lora@latest", 2, "b.zip")).unwrap();
    }
}

#[test]
fn a_file_that_was_added_to_a_version_is_refused_and_the_same_files_are_not() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, 1000)), (CONFIG, b"{}".to_vec())]);
    assets.fetch(&assets.v1(1, true)).unwrap();
    let added = assets.manifest(V1, "7:1,2", &[WEIGHTS, CONFIG], true).with_version("v1");
    let error = assets.fetch(&added).unwrap_err().to_string();
    assert!(error.contains(&format!("`{CONFIG}`, `{WEIGHTS}`: files were replaced")), "{error}");
    // Uploaded anew they are what they were, and another part of the release is another matter.
    assets.fetch(&assets.v1(3, true)).unwrap();
    let part = format!("{V1}#{CONFIG}");
    assets.fetch(&assets.manifest(&part, "7:2", &[CONFIG], true).with_version("v1")).unwrap();
    assets.store().delete_kept(&V1.parse().unwrap(), Want::Adapter, "v1").unwrap();
    assets.fetch(&added).unwrap();
}

#[test]
fn what_is_here_already_is_held_to_what_a_version_was() {
    let content = |seed: u64| zip_of(&[(CONFIG, b"{}"), (WEIGHTS, &bytes(seed, 1000))]);
    let (old, new) = (content(1), content(2));
    for (recorded, archive) in [(true, false), (false, false), (true, true)] {
        let assets = Assets::new(&[(WEIGHTS, old.clone()), ("a.zip", old.clone())]);
        let name = if archive { "a.zip" } else { WEIGHTS };
        let at = |reference: &str, version: &str, asset: u32| {
            let manifest = assets.manifest(reference, &format!("7:{asset}"), &[name], false).with_version(version);
            let steps = archive.then(|| Unpack::Archive { file: name.into() });
            manifest.with_unpack(steps.into_iter().collect()).unwrap()
        };
        assets.fetch(&at(V1, "v1", 1)).unwrap();
        let of_v1 = assets.below("artifacts");
        assets.put(name, new.clone());
        assets.fetch(&at("test:org/lora@latest", "latest", 2)).unwrap();
        if !recorded {
            let others = assets.below("artifacts").into_iter().filter(|record| !of_v1.contains(record));
            others.for_each(|record| fs::remove_file(record).unwrap());
        }
        let (before, records) = (assets.blobs(), assets.recorded());
        assets.asked();
        // The same assets, under the tag that had others.
        let error = assets.fetch(&at(V1, "v1", 2)).unwrap_err().to_string();
        for part in [name, V1, &sha256_of(&old).to_string(), &sha256_of(&new).to_string(), "was replaced"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        let present = pollster::block_on(assets.transfer().present(&assets.job(&at(V1, "v1", 2)), &assets.cx()));
        assert_eq!(present.is_err(), recorded, "to look at it digests nothing");
        assert_eq!((assets.asked(), assets.blobs(), assets.recorded()), (0, before, records));
        // Another tag that nobody knows is taken for what it is, and is that from now on.
        assets.fetch(&at("test:org/lora@v2", "v2", 2)).unwrap();
        assert_eq!(assets.asked(), 0);
        let error = assets.fetch(&at("test:org/lora@v2", "v2", 1)).unwrap_err().to_string();
        assert!(error.contains("`v2`") && error.contains("was replaced"), "{error}");
    }
}

#[test]
fn what_has_no_version_may_change() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, 1000))]);
    assets.fetch(&assets.manifest("test:org/lora@main", "c1", &[WEIGHTS], true)).unwrap();
    assets.put(WEIGHTS, bytes(2, 1000));
    assets.fetch(&assets.manifest("test:org/lora@main", "c2", &[WEIGHTS], true)).unwrap();
    assert!(assets.below("trust").is_empty());
}

#[test]
fn what_came_in_an_earlier_call_is_trusted_too() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, LARGE)), (CONFIG, b"{}".to_vec())]);
    let v1 = |asset: u32| {
        let names = [WEIGHTS, CONFIG];
        assets.manifest(V1, &format!("7:{asset}"), &names, false).with_version("v1")
    };
    // Both came once without being recorded as a version.
    let plain = assets.manifest("test:org/lora@main", "7:1", &[WEIGHTS, CONFIG], false);
    assets.fetch(&plain).unwrap();
    assets.asked();
    assets.fetch(&v1(1)).unwrap();
    assert_eq!(assets.asked(), 0);
    assert_eq!(assets.below("trust").len(), 2);
    assets.put(CONFIG, b"[]".to_vec());
    let error = assets.fetch(&v1(2)).unwrap_err().to_string();
    assert!(error.contains(CONFIG) && error.contains("replaced"), "{error}");
}

#[test]
fn what_is_remembered_and_cannot_be_read_is_named() {
    let assets = Assets::new(&[(WEIGHTS, bytes(1, 1000))]);
    assets.fetch(&assets.v1(1, true)).unwrap();
    let file = assets.below("trust").remove(0);
    let good = fs::read_to_string(&file).unwrap();
    for (text, part) in [("{", "cannot be read"), (&good.replace("\"form\": 1", "\"form\": 2"), "update the program")] {
        fs::write(&file, text).unwrap();
        let error = assets.fetch(&assets.v1(1, true)).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(&file.display().to_string()), "{error}");
        // What a newer program wrote is not to be removed.
        assert_eq!(error.contains("remove it"), text == "{", "{error}");
    }
}

#[test]
fn a_replaced_archive_is_refused_also_after_it_was_unpacked_and_is_gone() {
    let of = |config: &[u8]| zip_of(&[(CONFIG, config), (WEIGHTS, &bytes(1, 1000))]);
    for told in [true, false] {
        let assets = Assets::new(&[("a.zip", of(b"{\"r\":8}"))]);
        let v1 = |asset: u32| {
            let steps = vec![Unpack::Archive { file: "a.zip".into() }];
            let manifest = assets.manifest(V1, &format!("7:{asset}"), &["a.zip"], told).with_version("v1");
            manifest.with_unpack(steps).unwrap()
        };
        assets.fetch(&v1(1)).unwrap();
        let before = assets.blobs();
        assert_eq!(before.len(), 2);
        assets.put("a.zip", of(b"{\"r\":9}"));
        let error = assets.fetch(&v1(2)).unwrap_err().to_string();
        assert!(error.contains("a.zip") && error.contains("was replaced"), "{error}");
        assert_eq!(assets.blobs(), before);
        assets.assert_nothing_left();
        assets.store().delete(&V1.parse().unwrap()).unwrap();
        assets.fetch(&v1(2)).unwrap();
        assert_eq!(assets.recorded(), [V1]);
    }
}

/// Asks for the assets of GitHub's releases by the numbers in a revision.
struct Releases {
    api: String,
}

#[async_trait]
impl ArtifactSource for Releases {
    fn scheme(&self) -> &str {
        "test"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "these tests make their manifests themselves"))
    }

    async fn open(&self, manifest: &Manifest, _: &ManifestFile, _: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        if cx.offline {
            return Err(Error::Offline { what: manifest.reference.to_string() });
        }
        let (_, asset) = manifest.revision.split_once(':').unwrap();
        let url = format!("{}/repos/{}/releases/assets/{asset}", self.api, manifest.reference.locator());
        Ok(Opened::Request(Request::new(url).with_header("Accept", "application/octet-stream")))
    }
}

#[test]
fn an_asset_that_was_uploaded_anew_under_the_same_tag_is_refused() {
    let (old, new) = (bytes(1, LARGE), bytes(2, LARGE));
    let release = Release::new("v1").with_asset(Asset::new(WEIGHTS, old.clone()).without_digest());
    let github = GitHub::builder().with_repository(Repository::new("org/lora").with_release(release)).start();
    let assets = Assets::new(&[]);
    let job = || {
        let id = github.asset_id("org/lora", "v1", WEIGHTS);
        let revision = format!("{}:{id}", github.release_id("org/lora", "v1"));
        let files = vec![ManifestFile::new(WEIGHTS, LARGE as u64)];
        let manifest = Manifest::new(V1.parse().unwrap(), Want::Adapter, revision, files).unwrap();
        Job::new(Arc::new(Releases { api: github.api_url() }), manifest.with_version("v1"))
    };
    let fetch = || pollster::block_on(assets.transfer().fetch(vec![job()], &assets.cx()));
    assert_eq!(fs::read(&fetch().unwrap()[0][WEIGHTS]).unwrap(), old);
    github.delete_asset("org/lora", "v1", WEIGHTS);
    github.upload("org/lora", "v1", Asset::new(WEIGHTS, new.clone()).without_digest());
    let error = fetch().unwrap_err().to_string();
    for part in ["v1", "2027-01-15", &sha256_of(&old).to_string(), &sha256_of(&new).to_string(), "replaced"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert_eq!(assets.blobs().into_values().collect::<Vec<_>>(), [old]);
    assets.store().delete(&V1.parse().unwrap()).unwrap();
    assert_eq!(fs::read(&fetch().unwrap()[0][WEIGHTS]).unwrap(), new);
}
