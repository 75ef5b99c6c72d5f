//! Results of merges, kept in the store: from a spec to logits, and what is left on disk.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::common::{fixture, fixture_ref};
use llm_local::{
    AdapterPolicy, ArtifactRef, ComputeDtype, Engine, LogitsRequest, ModelSpec, Store,
    core::CancellationToken,
    lora::Combination,
    store::{MERGED_SCHEME, Outcome},
};
use pollster::block_on;

fn engine(cache: &Path) -> Engine {
    Engine::builder().cache_dir(cache).keep_merged(true).build().unwrap()
}

/// A copy of tiny-llama that can be changed.
fn base() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("models/tiny-llama")).unwrap() {
        let file = file.unwrap();
        fs::write(folder.path().join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
    }
    folder
}

fn spec(base: &Path, adapter: &str) -> ModelSpec {
    ModelSpec::new(ArtifactRef::file(base).unwrap())
        .with_adapter(fixture_ref(&format!("adapters/tiny-llama-lora-{adapter}")))
        .with_dtype(ComputeDtype::F32)
}

fn logits(engine: &Engine, spec: &ModelSpec) -> Vec<f32> {
    block_on(engine.logits(spec, LogitsRequest::new(vec![5, 17, 200, 3]))).unwrap()
}

/// The names and sizes of the results that are kept.
fn kept(store: &Store) -> Vec<(String, u64)> {
    let artifacts = store.list().unwrap().artifacts.into_iter();
    let merged = artifacts.filter(|artifact| artifact.reference.scheme() == MERGED_SCHEME);
    merged.map(|artifact| (artifact.reference.locator().to_owned(), artifact.bytes)).collect()
}

/// Zeroes the data of the projections in the file at `path`, which keeps its size and the time of its writing.
fn spoil(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let spans: Vec<_> = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| name.contains("_proj"))
        .map(|(_, tensor)| {
            let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert!(start > header);
            start..start + tensor.data().len()
        })
        .collect();
    assert_eq!(spans.len(), 28);
    spans.into_iter().for_each(|span| bytes[span].fill(0));
    // Another file under the same name: the old one may be mapped.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_second_load_reads_what_was_kept() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let spec = spec(base.path(), "peft");
    let plain = Engine::builder().cache_dir(cache.path()).build().unwrap();
    let expected = logits(&plain, &spec);
    assert!(kept(plain.store()).is_empty(), "nothing is kept unless asked for");
    let first = engine(cache.path());
    assert_eq!(logits(&first, &spec), expected);
    let results = kept(first.store());
    let name = base.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(results.len(), 1);
    assert!(results[0].0.ends_with("+tiny-llama-lora-peft") && results[0].0.contains(&name[1..]), "{results:?}");
    // Seven modules in each of four layers, in f32.
    let values = 4 * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 384 * 3) as u64;
    assert!((values * 4..values * 4 + 20_000).contains(&results[0].1), "{results:?}");
    drop(first);

    assert_eq!(logits(&engine(cache.path()), &spec), expected);
    // It was not merged again: who changes what is kept changes the model.
    let store = Store::new(cache.path());
    spoil(&store.list().unwrap().artifacts[0].files[0].1);
    let spoilt = logits(&engine(cache.path()), &spec);
    assert_ne!(spoilt, expected);
    assert_eq!(kept(&store).len(), 1);
    // As if the base's projections were zero, and nothing added to them.
    spoil(&base.path().join("model.safetensors"));
    assert_eq!(spoilt, logits(&plain, &ModelSpec::new(spec.base.clone()).with_dtype(ComputeDtype::F32)));
}

#[cfg(unix)]
#[test]
fn another_base_of_the_same_size_and_time_makes_another_result() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let spec = spec(base.path(), "peft");
    let before = logits(&engine(cache.path()), &spec);
    spoil(&base.path().join("model.safetensors"));
    let plain = Engine::builder().cache_dir(cache.path()).build().unwrap();
    let after = logits(&plain, &spec);
    assert_ne!(after, before);
    let engine = engine(cache.path());
    assert_eq!(logits(&engine, &spec), after);
    assert_eq!(kept(engine.store()).len(), 2);
}

#[test]
fn a_spec_with_a_lock_uses_what_was_made_of_files_that_were_held_to_it() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let spec = spec(base.path(), "peft");
    let expected = logits(&engine(cache.path()), &spec);
    let engine = engine(cache.path());
    let locked = spec.clone().with_lock(block_on(engine.lock(&spec)).unwrap());
    let store = engine.store().clone();
    spoil(&store.list().unwrap().artifacts[0].files[0].1);
    assert_eq!(logits(&engine, &locked), expected);
    assert_eq!(kept(&store).len(), 2);
    assert_eq!(logits(&self::engine(cache.path()), &locked), expected);
    assert_eq!(kept(&store).len(), 2);
}

#[test]
fn whatever_a_result_depends_on_makes_another() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let engine = engine(cache.path());
    let one = spec(base.path(), "peft");
    let plain = Engine::builder().cache_dir(cache.path()).build().unwrap();
    let weighted = |weight| {
        let adapter = fixture_ref("adapters/tiny-llama-lora-peft");
        ModelSpec::new(ArtifactRef::file(base.path()).unwrap())
            .with_weighted_adapter(adapter, weight)
            .with_dtype(ComputeDtype::F32)
    };
    let both = |first: &str, second: &str| {
        spec(base.path(), first).with_adapter(fixture_ref(&format!("adapters/tiny-llama-lora-{second}")))
    };
    let all = [
        one.clone(),
        weighted(0.5),
        spec(base.path(), "rslora"),
        both("peft", "rslora"),
        both("rslora", "peft"),
        both("peft", "rslora").with_combination(Combination::Cat),
        both("peft", "rslora").with_combination(Combination::Svd { rank: Some(4), clamp: None }),
        one.clone().with_dtype(ComputeDtype::F16),
        one.clone().with_adapter_policy(AdapterPolicy::MergeDequantized),
        spec(base.path(), "modules-to-save-lm_head"),
    ];
    for (number, spec) in all.iter().enumerate() {
        assert_eq!(logits(&engine, spec), logits(&plain, spec), "{number}");
        assert_eq!(kept(engine.store()).len(), number + 1, "{number}");
    }
    // The base, by its time of writing alone.
    let weights = base.path().join("model.safetensors");
    let file = fs::File::options().write(true).open(&weights).unwrap();
    file.set_modified(file.metadata().unwrap().modified().unwrap() + Duration::from_secs(1)).unwrap();
    let again = self::engine(cache.path());
    logits(&again, &one);
    assert_eq!(kept(again.store()).len(), all.len() + 1);
    // And of those beside the weights nothing is kept.
    logits(&again, &one.clone().with_adapter_policy(AdapterPolicy::KeepUnmerged));
    assert_eq!(kept(again.store()).len(), all.len() + 1);
    // Each is found again.
    let last = self::engine(cache.path());
    for spec in &all[1..] {
        assert_eq!(logits(&last, spec), logits(&plain, spec));
    }
}

#[test]
fn results_are_verified_repaired_deleted_and_held_like_other_contents() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let spec = spec(base.path(), "peft");
    let first = engine(cache.path());
    let expected = logits(&first, &spec);
    let store = first.store().clone();
    let which: ArtifactRef = format!("{MERGED_SCHEME}:{}", kept(&store)[0].0).parse().unwrap();
    let error = store.delete(&which).unwrap_err().to_string();
    assert!(error.contains("is loaded"), "{error}");
    assert!(store.evict(0, 0).is_err(), "it is in use");
    block_on(first.unload(&spec)).unwrap();

    let verify = || store.verify(Some(&which), &CancellationToken::new()).unwrap();
    assert_eq!(verify()[0].outcome, Outcome::Intact);
    let path: PathBuf = verify()[0].file.clone();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    let damaged = verify();
    assert!(matches!(damaged[0].outcome, Outcome::WrongDigest { .. }));
    store.remove_damaged(&damaged).unwrap();
    assert!(!path.exists());
    assert_eq!(logits(&engine(cache.path()), &spec), expected);
    assert_eq!(verify()[0].outcome, Outcome::Intact);

    // Cut off, it is seen at once.
    fs::write(&path, &fs::read(&path).unwrap()[..1000]).unwrap();
    assert_eq!(store.list().unwrap().artifacts[0].damaged, ["merged.safetensors"]);
    let again = engine(cache.path());
    assert_eq!(logits(&again, &spec), expected);
    assert_eq!(verify()[0].outcome, Outcome::Intact);
    block_on(again.unload(&spec)).unwrap();
    assert!(store.delete(&which).unwrap().bytes > 1_000_000);
    assert!(kept(&store).is_empty());
}

#[test]
fn results_stay_within_the_quota_and_without_room_the_load_goes_on() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let bounded =
        |bytes| Engine::builder().cache_dir(cache.path()).cache_quota(bytes).keep_merged(true).build().unwrap();
    let spec = |adapter| spec(base.path(), adapter);
    let plain = Engine::builder().cache_dir(tempfile::tempdir().unwrap().path()).build().unwrap();
    let expected = ["peft", "rslora"].map(|adapter| logits(&plain, &spec(adapter)));
    let small = bounded(10_000);
    assert_eq!(logits(&small, &spec("peft")), expected[0]);
    let size = small.store().size().unwrap();
    assert_eq!((kept(small.store()).len(), size.partials, size.unrecorded), (0, 0, 0));
    drop(small);

    // Room for one.
    let engine = bounded(5_000_000);
    assert_eq!(logits(&engine, &spec("peft")), expected[0]);
    assert_eq!(logits(&engine, &spec("rslora")), expected[1]);
    let names = || kept(engine.store()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert!(names().len() == 1 && names()[0].ends_with("-peft"), "{:?}", names());
    block_on(async {
        engine.unload(&spec("peft")).await.unwrap();
        engine.unload(&spec("rslora")).await.unwrap();
    });
    // Now that it is in use no more, it makes room.
    assert_eq!(logits(&engine, &spec("rslora")), expected[1]);
    assert!(names().len() == 1 && names()[0].ends_with("-rslora"), "{:?}", names());
}

#[test]
fn loads_at_once_by_several_engines_are_right_and_keep_one_result() {
    let (cache, base) = (tempfile::tempdir().unwrap(), base());
    let spec = spec(base.path(), "peft");
    let expected = logits(&Engine::builder().cache_dir(cache.path()).build().unwrap(), &spec);
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| logits(&engine(cache.path()), &spec))).collect();
        for load in loads {
            assert_eq!(load.join().unwrap(), expected);
        }
    });
    let store = Store::new(cache.path());
    assert_eq!((kept(&store).len(), store.size().unwrap().partials), (1, 0));
    assert!(store.verify(None, &CancellationToken::new()).unwrap().iter().all(|file| file.outcome == Outcome::Intact));
    assert_eq!(logits(&engine(cache.path()), &spec), expected);
}

#[test]
fn of_a_quantized_base_what_becomes_floats_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let spec = ModelSpec::new(fixture_ref("gguf/tiny-llama-q8_0.gguf"))
        .with_adapter(fixture_ref("adapters/tiny-llama-lora-peft"))
        .with_adapter_policy(AdapterPolicy::MergeDequantized);
    let expected = logits(&Engine::builder().cache_dir(cache.path()).build().unwrap(), &spec);
    for _ in 0..2 {
        let engine = engine(cache.path());
        assert_eq!(logits(&engine, &spec), expected);
        assert_eq!(kept(engine.store())[0].0, "tiny-llama-q8_0+tiny-llama-lora-peft");
    }
}
