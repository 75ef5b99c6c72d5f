//! Archives that are unpacked and parts that are joined on their way into the store.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime},
};

use llm_local_core::{CancellationToken, Error, Manifest, PlacedFile, Placement, ProgressEvent, Unpack, Want};
use llm_local_source_common::store::Outcome;
use llm_local_testkit::hub::Content;

use super::{assets::*, support::until};

pub(crate) const ARCHIVE: &str = "pirate.zip";
pub(crate) const V1: &str = "test:org/lora@v1";
pub(crate) const LATEST: &str = "test:org/lora@latest";
pub(crate) const JSON: &[u8] = br#"{"peft_type": "LORA", "r": 8}"#;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn weights() -> Vec<u8> {
    Content::generated(700_000, 3).read(0..700_000).unwrap()
}

pub(crate) fn good() -> Vec<u8> {
    zip_of(&[("pirate/adapter_config.json", JSON), ("pirate/adapter_model.safetensors", &weights())])
}

/// A release with a good archive.
pub(crate) fn setup() -> (Assets, Manifest) {
    let assets = Assets::new(&[(ARCHIVE, good())]);
    let manifest = assets.archive(V1, ARCHIVE);
    (assets, manifest)
}

#[test]
fn an_archive_becomes_the_files_in_it() {
    let (assets, manifest) = setup();
    let size = good().len() as u64;
    assert_eq!(assets.missing(&[&manifest]), size + size + size / 2, "the archive, and an estimate of what is in it");
    assert!(assets.present(&manifest).is_none());
    let files = assets.fetch(&manifest).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), [CONFIG, WEIGHTS]);
    assert_eq!((fs::read(&files[CONFIG]).unwrap(), fs::read(&files[WEIGHTS]).unwrap()), (JSON.to_vec(), weights()));
    assets.assert_has(&[JSON, &weights()]);
    // Nothing is final before it is unpacked, and the last event is.
    let events = std::mem::take(&mut *assets.events.lock().unwrap());
    let fractions = events.iter().filter_map(|event| match event {
        ProgressEvent::Download(progress) => Some(progress.fraction),
        _ => None,
    });
    let fractions: Vec<_> = fractions.collect();
    assert_eq!(fractions.iter().filter(|fraction| **fraction >= 1.0).count(), 1);
    assert_eq!(fractions.last(), Some(&1.0));
    // It is there without the archive, and nobody is asked.
    assert!(assets.asked() > 0);
    assert_eq!(assets.present(&manifest), Some(files.clone()));
    assert_eq!(assets.missing(&[&manifest]), 0);
    assert_eq!(assets.fetch(&manifest).unwrap(), files);
    assert_eq!(assets.asked(), 0);
    let first = assets.events.lock().unwrap().iter().find_map(|event| match event {
        ProgressEvent::Download(progress) => Some(progress.completed_bytes),
        _ => None,
    });
    assert_eq!(first, Some(size), "what is unpacked is present");
}

#[test]
fn what_was_unpacked_is_listed_verified_repaired_and_deleted_as_any_artifact() {
    let (assets, manifest) = setup();
    let files = assets.fetch(&manifest).unwrap();
    let store = assets.store();
    let listed = store.list().unwrap().artifacts.remove(0);
    let bytes = JSON.len() as u64 + 700_000;
    assert_eq!((listed.bytes, listed.files), (bytes, files.clone().into_iter().collect()));
    assert_eq!((store.size().unwrap().fetched, store.size().unwrap().unrecorded), (bytes, 0));
    let verified = store.verify(None, &CancellationToken::new()).unwrap();
    assert!(verified.len() == 2 && verified.iter().all(|v| v.outcome == Outcome::Intact), "{verified:?}");
    fs::write(&files[WEIGHTS], vec![0; 700_000]).unwrap();
    let verified = store.verify(None, &CancellationToken::new()).unwrap();
    assert_eq!(store.remove_damaged(&verified).unwrap().files, 1);
    assert!(assets.present(&manifest).is_none());
    assets.fetch(&manifest).unwrap();
    assets.assert_has(&[JSON, &weights()]);
    // As its source resolved it: a job made of it needs no request.
    let kept = store.kept(&manifest.reference, Want::Adapter).unwrap().remove(0);
    assert_eq!(kept.manifest, manifest);
    assert!(kept.whole && kept.bytes == bytes);
    store.delete(&manifest.reference).unwrap();
    assets.assert_has(&[]);
}

#[test]
fn one_release_is_unpacked_once_by_whatever_ref() {
    let (assets, v1) = setup();
    let files = assets.fetch(&v1).unwrap();
    assets.asked();
    let latest = assets.archive(LATEST, ARCHIVE);
    assert_eq!(assets.present(&latest), Some(files.clone()));
    assert_eq!(assets.recorded(), [V1]);
    assert_eq!(assets.fetch(&latest).unwrap(), files);
    assert_eq!((assets.asked(), assets.recorded()), (0, vec![LATEST.to_owned(), V1.to_owned()]));
    // Of another revision, or another archive, it is not.
    let mut other = latest.clone();
    other.revision = "7:2".into();
    assert!(assets.present(&other).is_none());
    other = latest.clone();
    other.files[0].size += 1;
    other.version = None;
    assert!(assets.present(&other).is_none());
    // Both in one call, from nothing.
    let (assets, _) = setup();
    assert_eq!(assets.missing(&[&v1, &latest]), assets.missing(&[&v1]));
    assert_eq!(assets.fetch_all(&[&v1, &latest]).unwrap().len(), 2);
    assert_eq!(assets.recorded().len(), 2);
    assets.assert_has(&[JSON, &weights()]);
}

#[test]
fn parts_are_joined_and_files_that_no_step_takes_stay() {
    let archive = good();
    let (one, two) = archive.split_at(300_001);
    let assets = Assets::new(&[
        ("a.zip.001", one.to_vec()),
        ("a.zip.002", two.to_vec()),
        ("w.gguf.001", b"GG".to_vec()),
        ("w.gguf.002", b"UF".to_vec()),
        ("extra.json", b"{}".to_vec()),
    ]);
    let names = ["a.zip.001", "a.zip.002", "w.gguf.001", "w.gguf.002", "extra.json"];
    let join = |into: &str, parts: &[&str]| Unpack::Join {
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        into: into.into(),
    };
    let steps =
        vec![join("a.zip", &names[..2]), Unpack::Archive { file: "a.zip".into() }, join("w.gguf", &names[2..4])];
    let manifest = assets.manifest(V1, "7:1,2,3,4,5", &names, false).with_unpack(steps).unwrap();
    let total = archive.len() as u64;
    assert_eq!(assets.missing(&[&manifest]), (total + 6) + total + (total + total / 2) + 4);
    let files = assets.fetch(&manifest).unwrap();
    let names: Vec<_> = files.keys().map(String::as_str).collect();
    assert_eq!(names, [CONFIG, WEIGHTS, "extra.json", "w.gguf"]);
    assert_eq!(fs::read(&files["w.gguf"]).unwrap(), b"GGUF");
    assert_eq!(assets.blobs().len(), 4, "{:?}", assets.blobs().keys());
    assets.assert_nothing_left();
    assert_eq!(assets.present(&manifest), Some(files));
}

#[test]
fn two_archives_with_one_file_are_refused() {
    let assets = Assets::new(&[("a.zip", good()), ("b.zip", zip_of(&[(CONFIG, b"{}")]))]);
    let steps = ["a.zip", "b.zip"].map(|file| Unpack::Archive { file: file.into() });
    let manifest = assets.manifest(V1, "7:1,2", &["a.zip", "b.zip"], true).with_unpack(steps.into()).unwrap();
    let error = assets.fetch(&manifest).unwrap_err().to_string();
    assert!(error.contains("b.zip") && error.contains(CONFIG), "{error}");
    assets.assert_has(&[]);
}

#[test]
fn what_two_artifacts_are_unpacked_from_and_into_is_shared() {
    let (assets, one) = setup();
    let other = assets.archive("test:org/fork@v1", ARCHIVE);
    // In one call the archive comes once, and goes when both have it.
    assets.fetch_all(&[&one, &other]).unwrap();
    let requests = assets.asked();
    assets.assert_has(&[JSON, &weights()]);
    assert_eq!(assets.store().size().unwrap().fetched, JSON.len() as u64 + 700_000);
    assets.store().delete(&one.reference).unwrap();
    assets.assert_has(&[JSON, &weights()]);
    assert!(assets.present(&one).is_none() && assets.present(&other).is_some());
    // Alone, it comes as often as both did together.
    assets.fetch(&one).unwrap();
    assert_eq!(assets.asked(), requests);
    // What uses the archive itself keeps it.
    assets.store().delete(&one.reference).unwrap();
    let plain = assets.manifest("test:org/files", "1", &[ARCHIVE], true);
    assets.fetch(&plain).unwrap();
    assets.asked();
    assets.fetch(&one).unwrap();
    assert_eq!(assets.asked(), 0, "it was here");
    assets.assert_has(&[JSON, &weights(), &good()]);
}

/// What is locked to its archive is held to this: the engine reads the digest of a file from its name.
#[test]
fn what_was_unpacked_is_called_by_its_digest_and_is_not_used_where_other_bytes_are_under_that_name() {
    let (assets, one) = setup();
    let files = assets.fetch(&one).unwrap();
    let mut changed = weights();
    changed[9] ^= 1;
    for (name, content) in [(CONFIG, JSON.to_vec()), (WEIGHTS, weights())] {
        let digest = sha256_of(&content).to_string().replace(':', "-");
        assert_eq!(files[name].file_name().unwrap().to_str().unwrap(), digest);
    }
    fs::write(&files[WEIGHTS], &changed).unwrap();
    let verified = || assets.store().verify(None, &CancellationToken::new()).unwrap();
    let outcome = Outcome::WrongDigest { expected: sha256_of(&weights()), found: sha256_of(&changed) };
    assert!(verified().iter().any(|v| v.path == WEIGHTS && v.outcome == outcome), "{:?}", verified());
    // Another artifact has the same content, so that it stays when this one goes: what is unpacked then replaces it.
    assets.fetch(&assets.archive("test:org/fork@v1", ARCHIVE)).unwrap();
    assets.assert_has(&[JSON, &weights()]);
    fs::write(&files[WEIGHTS], &changed).unwrap();
    assets.store().delete(&one.reference).unwrap();
    assert_eq!(fs::read(&files[WEIGHTS]).unwrap(), changed);
    assert_eq!(assets.fetch(&one).unwrap(), files);
    assets.assert_has(&[JSON, &weights()]);
    assert_eq!(verified().len(), 4);
    assert!(verified().iter().all(|v| v.outcome == Outcome::Intact), "{:?}", verified());
}

/// The lock under which the archive of [`setup`] is unpacked: its name does not depend on the store.
fn lock_name() -> PathBuf {
    let (assets, manifest) = setup();
    assets.fetch(&manifest).unwrap();
    let locks = assets.below("locks").into_iter();
    let mut locks = locks.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    PathBuf::from(locks.find(|name| name.starts_with("unpack-")).unwrap())
}

/// Holds that lock, as another process that unpacks does.
fn other_process(assets: &Assets) -> fs::File {
    let locks = assets.root.path().join("locks");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(lock_name())).unwrap();
    lock.lock().unwrap();
    lock
}

fn waits(assets: &Assets) -> usize {
    let is_waiting = |event: &&ProgressEvent| matches!(event, ProgressEvent::Waiting { .. });
    assets.events.lock().unwrap().iter().filter(is_waiting).count()
}

#[test]
fn of_several_at_once_one_unpacks_and_the_others_find_it() {
    let (assets, manifest) = setup();
    let lock = other_process(&assets);
    thread::scope(|scope| {
        let fetches: Vec<_> = (0..3).map(|_| scope.spawn(|| assets.fetch(&manifest))).collect();
        until("all wait", || waits(&assets) >= 3);
        drop(lock);
        // Whoever came second would find no archive any more, if he looked for it.
        for fetch in fetches {
            assert_eq!(fetch.join().unwrap().unwrap().len(), 2);
        }
    });
    assets.assert_has(&[JSON, &weights()]);
    assert_eq!(assets.recorded(), [V1]);
}

#[test]
fn a_cancel_before_it_is_unpacked_leaves_the_archive_for_the_next_try() {
    let (mut assets, manifest) = setup();
    let lock = other_process(&assets);
    thread::scope(|scope| {
        let fetch = scope.spawn(|| assets.fetch(&manifest));
        until("it waits", || waits(&assets) > 0);
        assets.cancel.cancel();
        assert!(matches!(fetch.join().unwrap(), Err(Error::Cancelled)));
    });
    drop(lock);
    assets.assert_has(&[&good()]);
    assert_eq!(assets.recorded(), Vec::<String>::new());
    let finished = |event: &ProgressEvent| matches!(event, ProgressEvent::Download(p) if p.fraction >= 1.0);
    assert!(!assets.events.lock().unwrap().iter().any(finished));
    assets.cancel = CancellationToken::new();
    assets.asked();
    let size = good().len() as u64;
    assert_eq!(assets.missing(&[&manifest]), size + size / 2);
    assets.fetch(&manifest).unwrap();
    assert_eq!(assets.asked(), 0);
    assets.assert_has(&[JSON, &weights()]);
}

#[test]
fn what_a_crash_leaves_is_in_nobodys_way_and_is_cleaned() {
    let (assets, manifest) = setup();
    let key = lock_name().to_str().unwrap().replace("unpack-", "").replace(".lock", "");
    let half = assets.root.path().join("unpacking").join(key).join("0/.llm-local-unpacking/half");
    let leave = || {
        fs::create_dir_all(half.parent().unwrap()).unwrap();
        fs::write(&half, "half of a file").unwrap();
    };
    leave();
    assets.fetch(&manifest).unwrap();
    assets.assert_has(&[JSON, &weights()]);
    // Cut off before it was recorded, and before the archive went.
    leave();
    assets.below("artifacts").iter().for_each(|record| fs::remove_file(record).unwrap());
    let archive = sha256_of(&good()).to_string().replace(':', "-");
    fs::write(assets.root.path().join("blobs").join(archive), good()).unwrap();
    assert!(assets.present(&manifest).is_none());
    let store = assets.store();
    assert_eq!(store.size().unwrap().unrecorded, good().len() as u64 + JSON.len() as u64 + 700_000);
    assert!(store.size().unwrap().partials > 0);
    // Young ones may be at work.
    store.clean(Duration::ZERO, SystemTime::now() + HOUR / 2).unwrap();
    assert!(half.exists());
    leave();
    let lock = other_process(&assets);
    store.clean(Duration::ZERO, SystemTime::now() + 2 * HOUR).unwrap();
    assert!(half.exists(), "who has the lock is at work");
    drop(lock);
    store.clean(Duration::ZERO, SystemTime::now() + 2 * HOUR).unwrap();
    assets.assert_has(&[]);
    // Cut off before the archive went alone: the next use finds that.
    assets.fetch(&manifest).unwrap();
    let archive = sha256_of(&good()).to_string().replace(':', "-");
    fs::write(assets.root.path().join("blobs").join(archive), good()).unwrap();
    assets.asked();
    assets.fetch(&manifest).unwrap();
    assert_eq!(assets.asked(), 0);
    assets.assert_has(&[JSON, &weights()]);
    // Cut off with all of that still there: the next fetch brings nothing twice, and all of it goes.
    assets.fetch(&manifest).unwrap();
    assets.below("artifacts").iter().for_each(|record| fs::remove_file(record).unwrap());
    leave();
    assets.fetch(&manifest).unwrap();
    assets.assert_has(&[JSON, &weights()]);
    assert_eq!(assets.recorded(), [V1]);
}

#[test]
fn the_digest_of_an_archive_is_known_when_it_is_gone() {
    let (assets, told) = setup();
    let mut untold = told.clone();
    untold.files[0].digest = None;
    assert!(assets.store().digests(&untold).unwrap().is_empty());
    assets.fetch(&untold).unwrap();
    assets.asked();
    let digests = assets.store().digests(&untold).unwrap();
    assert_eq!(digests, [(ARCHIVE.to_owned(), sha256_of(&good()))].into());
    // So what is locked to it is found.
    assert!(assets.present(&told).is_some() && assets.present(&untold).is_some());
    assets.fetch(&told).unwrap();
    assert_eq!(assets.asked(), 0);
    let mut other = told.clone();
    other.version = None;
    other.files[0] = other.files[0].clone().with_digest(sha256_of(b"other"));
    assert!(assets.present(&other).is_none());
    let plain = assets.manifest("test:org/files", "1", &[ARCHIVE], false);
    assets.fetch(&plain).unwrap();
    assert_eq!(assets.store().digests(&plain).unwrap(), digests);
}

#[test]
fn a_quota_counts_what_was_unpacked_and_evicts_it() {
    let (assets, manifest) = setup();
    assets.fetch(&manifest).unwrap();
    let (store, bytes) = (assets.store(), JSON.len() as u64 + 700_000);
    assert_eq!(store.evict(bytes, 0).unwrap().artifacts, 0);
    let hold = store.hold(&manifest, None).unwrap();
    assert_eq!(store.evict(bytes, 1).unwrap_err().code(), "insufficient_storage");
    // By another ref of it, too.
    drop(hold);
    let hold = store.hold(&assets.archive(LATEST, ARCHIVE), None).unwrap();
    assert!(store.evict(bytes, 1).is_err() && assets.present(&manifest).is_some());
    drop(hold);
    assert_eq!(store.evict(bytes, 1).unwrap().bytes, bytes);
    assets.assert_has(&[]);
    assert!(assets.present(&manifest).is_none());
    assets.fetch(&manifest).unwrap();
}

#[test]
fn what_goes_into_the_cache_of_another_tool_is_not_unpacked() {
    let mut setup = super::support::Setup::new().only(super::support::MODEL);
    let root = setup.root.path().join("cache");
    let file = PlacedFile::new(root.join("blobs/x"), root.join("snapshots/1/x"));
    setup.source.placement = Some(Placement::new(&root, root.join("snapshots"), vec![file]));
    let mut job = setup.job();
    job.manifest = job.manifest.with_unpack(vec![Unpack::Archive { file: super::support::MODEL.into() }]).unwrap();
    let error = pollster::block_on(setup.transfer().fetch(vec![job], &setup.cx())).unwrap_err();
    assert_eq!(error.code(), "invalid_spec", "{error}");
    assert!(setup.hub.requests().is_empty());
}

#[test]
fn the_header_of_an_archive_can_be_read_before_it_comes() {
    let (assets, manifest) = setup();
    let read = pollster::block_on(assets.transfer().read(&assets.job(&manifest), ARCHIVE, 0..4, &assets.cx()));
    assert_eq!(&read.unwrap()[..], b"PK\x03\x04");
    assets.fetch(&manifest).unwrap();
    assets.asked();
    // It is gone, so that its source is asked again.
    let read = pollster::block_on(assets.transfer().read(&assets.job(&manifest), ARCHIVE, 0..2, &assets.cx()));
    assert_eq!((&read.unwrap()[..], assets.asked()), (&b"PK"[..], 1));
}
