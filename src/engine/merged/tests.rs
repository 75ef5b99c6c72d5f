//! Merges kept, of a real base and adapter.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use llm_local_core::{ArtifactRef, FloatType, Result, TensorData, TensorSource};
use llm_local_source_common::store::{Hold, MergeKey, Store};
use llm_local_testkit::fakes::CountingTensorSource;
use llm_local_weights::Checkpoint;

use super::{Keeping, key::KeyOfMerge};
use crate::{
    blocking::Wanted,
    lora::{MergedSource, read},
};

fn files(path: &str) -> (ArtifactRef, BTreeMap<String, PathBuf>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let named = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    (ArtifactRef::file(&folder).unwrap(), named.collect())
}

/// tiny-llama with an adapter merged in, and what counts the reads of the base.
fn merged() -> (MergedSource, Arc<CountingTensorSource>) {
    let base = Checkpoint::open("tiny-llama", &files("models/tiny-llama").1).unwrap();
    let (reference, files) = files("adapters/tiny-llama-lora-peft");
    let adapter = Arc::new(read(&reference, &files).unwrap());
    let counting = Arc::new(CountingTensorSource::new(base.tensors));
    let merged = MergedSource::new(counting.clone(), vec![(adapter, 1.0)], &base.info).unwrap();
    (merged, counting)
}

fn key() -> KeyOfMerge {
    KeyOfMerge {
        key: MergeKey::new("tiny-llama+peft", ["one"]).unwrap(),
        base: vec!["base".into()],
        is_locked: false,
        float: None,
    }
}

fn open(
    store: &Store,
    quota: Option<u64>,
    key: KeyOfMerge,
    merged: MergedSource,
) -> (Arc<dyn TensorSource>, Option<Keeping>) {
    super::open(store, quota, key, merged, &Wanted::new()).unwrap()
}

/// All bytes of all tensors of `source`, read as `want`.
fn bytes_of(source: &dyn TensorSource, want: Option<FloatType>) -> BTreeMap<String, Vec<u8>> {
    let bytes = |name: &str| match source.read(name, want).unwrap() {
        TensorData::Borrowed(bytes) => bytes.to_vec(),
        TensorData::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        TensorData::Half(bits) => bits.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    };
    source.entries().iter().map(|entry| (entry.name.clone(), bytes(&entry.name))).collect()
}

fn finish(keeping: Option<Keeping>, known: &str) -> Result<Option<Hold>> {
    let Some(Keeping::Writing(writing, quota)) = keeping else { panic!("nothing is written") };
    writing.finish(Some(vec![known.into()]), quota)
}

#[test]
fn a_merge_that_was_kept_gives_the_same_bytes_and_reads_no_touched_tensor_of_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    for (want, key) in [(None, "stored"), (Some(FloatType::F32), "f32"), (Some(FloatType::F16), "f16")] {
        let key = || KeyOfMerge { key: MergeKey::new("tiny-llama+peft", [key]).unwrap(), ..self::key() };
        let expected = bytes_of(&merged().0, want);
        let (writing, keeping) = open(&store, None, key(), merged().0);
        assert_eq!(bytes_of(&*writing, want), expected);
        // Twice, as a tied head is.
        assert_eq!(bytes_of(&*writing, want), expected);
        assert!(finish(keeping, "base").unwrap().is_some());

        let (merged, base) = merged();
        let touched: Vec<_> = merged.report().touched.iter().map(|touched| touched.name.clone()).collect();
        assert_eq!(touched.len(), 28);
        let (kept, keeping) = open(&store, None, key(), merged);
        assert!(matches!(keeping, Some(Keeping::Kept(_))));
        assert_eq!(bytes_of(&*kept, want), expected);
        for (name, bytes) in &expected {
            let mut out = vec![0; bytes.len()];
            kept.read_into(name, want, &mut out).unwrap();
            assert!(out == *bytes, "{name} as {want:?}");
        }
        assert_eq!(touched.iter().map(|name| base.reads_of(name)).sum::<usize>(), 0);
        assert!(base.reads_of("model.norm.weight") > 0);
        // In a type that was not kept, it is computed.
        if want == Some(FloatType::F16) {
            let other = Some(FloatType::F32);
            assert_eq!(bytes_of(&*kept, other), bytes_of(&self::merged().0, other));
            assert_eq!(touched.iter().map(|name| base.reads_of(name)).sum::<usize>(), 28);
        }
    }
    assert_eq!(store.list().unwrap().artifacts.len(), 3);
    assert_eq!(store.size().unwrap().partials, 0);
}

#[test]
fn what_is_kept_and_damaged_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let keep = || {
        let (writing, keeping) = open(&store, None, key(), merged().0);
        let bytes = bytes_of(&*writing, None);
        assert!(finish(keeping, "base").unwrap().is_some());
        bytes
    };
    let expected = keep();
    let path = store.list().unwrap().artifacts[0].files[0].1.clone();
    let whole = fs::read(&path).unwrap();
    let cut = whole[..whole.len() - 1].to_vec();
    let (mut broken, mut renamed) = (whole.clone(), whole.clone());
    broken[..20].fill(0xff);
    // A tensor that the merge does not have.
    let at = renamed.windows(6).position(|text| text == b"q_proj").unwrap();
    renamed[at] = b'x';
    for damaged in [cut, broken, renamed] {
        // As a whole: it may be mapped still.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damaged).unwrap();
        assert_eq!(keep(), expected);
        let (kept, keeping) = open(&store, None, key(), merged().0);
        assert!(matches!(keeping, Some(Keeping::Kept(_))));
        assert_eq!(bytes_of(&*kept, None), expected);
        assert_eq!((fs::read(&path).unwrap(), store.list().unwrap().artifacts.len()), (whole.clone(), 1));
    }
}

#[test]
fn where_the_spec_has_a_lock_other_bytes_of_the_same_size_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let (writing, keeping) = open(&store, None, key(), merged().0);
    let expected = bytes_of(&*writing, None);
    assert!(finish(keeping, "base").unwrap().is_some());
    let path = store.list().unwrap().artifacts[0].files[0].1.clone();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let (kept, _hold) = open(&store, None, key(), merged().0);
    assert_ne!(bytes_of(&*kept, None), expected);
    let locked = || KeyOfMerge { is_locked: true, ..key() };
    let (writing, keeping) = open(&store, None, locked(), merged().0);
    assert_eq!(bytes_of(&*writing, None), expected);
    assert!(finish(keeping, "base").unwrap().is_some());
    let (kept, keeping) = open(&store, None, locked(), merged().0);
    assert!(matches!(keeping, Some(Keeping::Kept(_))));
    assert_eq!(bytes_of(&*kept, None), expected);
}

#[test]
fn a_load_that_is_given_up_while_what_is_kept_is_read_does_not_merge_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let (writing, keeping) = open(&store, None, key(), merged().0);
    bytes_of(&*writing, None);
    assert!(finish(keeping, "base").unwrap().is_some());
    let given_up = Wanted::new();
    given_up.give_up();
    let locked = KeyOfMerge { is_locked: true, ..key() };
    let opened = super::open(&store, None, locked, merged().0, &given_up);
    assert!(matches!(opened, Err(llm_local_core::Error::Cancelled)));
}

#[test]
fn of_two_merges_at_once_one_is_kept_and_both_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let (first, keeping) = open(&store, None, key(), merged().0);
    let (second, none) = open(&store, None, key(), merged().0);
    assert!(none.is_none());
    let expected = bytes_of(&merged().0, None);
    // From two threads, too.
    std::thread::scope(|scope| {
        let all = [&first, &first, &second].map(|source| scope.spawn(|| bytes_of(&**source, None)));
        for bytes in all {
            assert_eq!(bytes.join().unwrap(), expected);
        }
    });
    assert!(finish(keeping, "base").unwrap().is_some());
    let (kept, keeping) = open(&store, None, key(), merged().0);
    assert!(matches!(keeping, Some(Keeping::Kept(_))));
    assert_eq!(bytes_of(&*kept, None), expected);
}

#[test]
fn what_cannot_be_kept_is_merged_all_the_same_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let expected = bytes_of(&merged().0, None);
    let is_empty = || {
        let size = store.size().unwrap();
        store.list().unwrap().artifacts.is_empty() && (size.partials, size.unrecorded, size.fetched) == (0, 0, 0)
    };
    // A quota without room for it.
    let (source, keeping) = open(&store, Some(1000), key(), merged().0);
    assert!(keeping.is_none());
    assert_eq!(bytes_of(&*source, None), expected);
    assert!(is_empty());
    // One for the 1.6 MB that are stored, and not for the 3.1 MB that are asked for.
    let quota = 2_000_000;
    let (source, keeping) = open(&store, Some(quota), key(), merged().0);
    bytes_of(&*source, Some(FloatType::F32));
    assert_eq!(finish(keeping, "base").unwrap_err().code(), "insufficient_storage");
    drop(source);
    assert!(is_empty());
    // Where it is known what will be asked for, nothing is begun.
    let in_f32 = KeyOfMerge { float: Some(FloatType::F32), ..key() };
    let (source, keeping) = open(&store, Some(quota), in_f32, merged().0);
    assert!(keeping.is_none());
    drop(source);
    // A base that was another when it had been read.
    let (source, keeping) = open(&store, None, key(), merged().0);
    assert_eq!(bytes_of(&*source, None), expected);
    let error = finish(keeping, "another").unwrap_err();
    assert!(error.code() == "load_failed" && error.to_string().contains("its base changed"), "{error}");
    drop(source);
    assert!(is_empty());
    // Of which nothing was asked for.
    let (source, keeping) = open(&store, None, key(), merged().0);
    assert!(finish(keeping, "base").unwrap().is_none());
    drop(source);
    assert!(is_empty());
    // A load that failed.
    let (source, keeping) = open(&store, None, key(), merged().0);
    source.read("model.layers.0.self_attn.q_proj.weight", None).unwrap();
    assert!(!is_empty());
    drop((source, keeping));
    assert!(is_empty());
    // A store that cannot be made.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (source, keeping) = open(&Store::new(&file), None, key(), merged().0);
    assert!(keeping.is_none());
    assert_eq!(bytes_of(&*source, None), expected);
}
