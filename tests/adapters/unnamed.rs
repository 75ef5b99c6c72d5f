//! Adapters whose names and files do not say what they are: tensors without a config, and formats of plugins, by every
//! source.

use std::{collections::BTreeSet, fs, sync::Arc};

use llm_local::{
    AdapterPolicy, AdapterSpec, ArtifactRef, Engine, LogitsRequest, ModelSpec, Result,
    core::{
        Error, LoraAdapter, Want,
        lora::{AdapterFiles, AdapterFormat},
    },
    lora::{self, BareFormat, ReadOptions},
};
use llm_local_testkit::github::Release;
use pollster::block_on;

use crate::world::{World, adapter_files};

const WEIGHTS: &str = "adapter_model.safetensors";

fn weights() -> Vec<u8> {
    adapter_files("peft").into_iter().find(|(name, _)| name == WEIGHTS).unwrap().1
}

fn logits(engine: &Engine, adapter: AdapterSpec, policy: AdapterPolicy) -> Result<Vec<f32>> {
    let spec = ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter_spec(adapter).with_adapter_policy(policy);
    block_on(engine.logits(&spec, LogitsRequest::new(vec![1, 5, 9])))
}

/// The logits with the whole adapter.
fn expected(engine: &Engine) -> Vec<f32> {
    logits(engine, AdapterSpec::new("hf:org/pirate".parse().unwrap()), AdapterPolicy::Auto).unwrap()
}

/// The refs by which `files` are had: a folder of this machine, a repository of the Hub, the first as an asset of a release.
fn refs(world: &mut World, files: &[(&str, Vec<u8>)]) -> [ArtifactRef; 3] {
    let folder = world.folder.path().join("mine");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    [ArtifactRef::file(&folder).unwrap(), "hf:org/unnamed".parse().unwrap(), "github:acme/lora@v1".parse().unwrap()]
}

fn world(name: &str, bytes: &[u8]) -> (World, [ArtifactRef; 3]) {
    let mut world = World::with_repository(Release::new("v1").with_file(name, bytes.to_vec()), name, bytes);
    let refs = refs(&mut world, &[(name, bytes.to_vec())]);
    (world, refs)
}

#[test]
fn tensors_without_a_config_are_used_from_everywhere_as_the_spec_says() {
    let (world, refs) = world(WEIGHTS, &weights());
    let engine = world.engine();
    let expected = expected(&engine);
    for reference in refs {
        let bare = AdapterSpec::new(reference.clone());
        let said = bare.clone().with_scale(2.0).with_format(BareFormat::Peft);
        // Before it is here its header is enough, and what is not said is refused.
        let spec = ModelSpec::new("hf:org/tiny".parse().unwrap());
        let plan = block_on(engine.plan(&spec.clone().with_adapter_spec(said.clone()))).unwrap();
        assert_eq!(plan.adapters[0].0.present, reference.is_file(), "{reference}");
        assert_eq!(plan.model.unwrap().merged_tensors, 28, "{reference}");
        let error = block_on(engine.plan(&spec.clone().with_adapter_spec(bare.with_scale(2.0)))).unwrap_err();
        assert!(error.to_string().contains("no format is given"), "{reference}: {error}");
        let other = ModelSpec::new("hf:org/tiny".parse().unwrap())
            .with_adapter_spec(said.clone().with_format(BareFormat::MlxLm));
        let error = block_on(engine.plan(&other)).unwrap_err().to_string();
        assert!(error.contains("as PEFT does"), "{reference}: {error}");
        let report = block_on(engine.adapters().inspect(&said)).unwrap();
        assert_eq!((report.unusable, &report.scales[..]), (None, &[2.0][..]), "{reference}");
        assert!(block_on(engine.adapters().check(&spec.base, &said)).unwrap().fits, "{reference}");
        for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
            let found = logits(&engine, said.clone(), policy).unwrap();
            let difference = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
            // Merged to the bit; beside, sums are in another order. Found: 3e-6.
            assert!(
                difference <= if policy == AdapterPolicy::Auto { 0.0 } else { 2e-5 },
                "{reference}: {difference:e}"
            );
        }
    }
}

#[test]
fn tensors_without_a_config_are_pulled_locked_and_updated_from_everywhere() {
    for index in 0..3 {
        let (world, refs) = world(WEIGHTS, &weights());
        let engine = world.engine();
        let reference = &refs[index];
        assert!(block_on(engine.adapters().is_update_available(reference)).is_ok(), "{reference}");
        block_on(engine.download_artifact(reference, Want::Adapter, None)).unwrap_or_else(|e| panic!("{e}"));
        block_on(engine.adapters().update(reference, None)).unwrap_or_else(|e| panic!("{e}"));
        assert!(!block_on(engine.adapters().is_update_available(reference)).unwrap(), "{reference}");
        let said = AdapterSpec::new(reference.clone()).with_scale(2.0).with_format(BareFormat::Peft);
        let spec = ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter_spec(said);
        // The lock does not say what the spec does.
        let lock = block_on(engine.lock(&spec)).unwrap();
        block_on(engine.download_locked(&lock, None)).unwrap_or_else(|e| panic!("{e}"));
    }
    let (world, [folder, ..]) = world(WEIGHTS, &weights());
    let engine = world.engine();
    let said = AdapterSpec::new(folder).with_scale(2.0).with_format(BareFormat::Peft);
    let lock = block_on(engine.lock(&ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter_spec(said))).unwrap();
    let mut changed = weights();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(world.folder.path().join("mine").join(WEIGHTS), changed).unwrap();
    let error = block_on(engine.download_locked(&lock, None)).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
}

#[test]
fn what_training_left_beside_tensors_without_a_config_is_neither_fetched_nor_locked() {
    const DONE: &str = "adapters.safetensors";
    let done = adapter_files("mlx").into_iter().find(|(name, _)| name == DONE).unwrap().1;
    let steps = (1..=10).map(|step| (format!("{:07}_{DONE}", 100 * step), format!("step {step}").into_bytes()));
    let files: Vec<_> = steps.chain([(DONE.to_owned(), done)]).collect();
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
    let world = World::with_unnamed(&files);
    let said = |reference| AdapterSpec::new(reference).with_scale(2.0).with_format(BareFormat::MlxLm);
    let [folder, repository] = [ArtifactRef::file(folder.path()).unwrap(), "hf:org/unnamed".parse().unwrap()].map(said);
    let of_folder = logits(&world.engine(), folder.clone(), AdapterPolicy::Auto).unwrap();
    for adapter in [folder, repository] {
        let engine = world.engine();
        let spec = ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter_spec(adapter.clone());
        let lock = block_on(engine.lock(&spec)).unwrap();
        let locked: Vec<_> = lock.artifacts[1].files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(locked, [DONE], "{}", adapter.reference);
        assert_eq!(logits(&engine, adapter.clone(), AdapterPolicy::Auto).unwrap(), of_folder, "{}", adapter.reference);
        let asked = world.hub.wait_until_idle();
        assert!(!asked.iter().any(|request| request.path.contains(&files[0].0)), "{}", adapter.reference);
        // What is here is enough, also for the lock.
        assert_eq!(logits(&world.offline(), adapter, AdapterPolicy::Auto).unwrap(), of_folder);
        let request = LogitsRequest::new(vec![1, 5, 9]);
        assert_eq!(block_on(world.offline().logits(&spec.with_lock(lock), request)).unwrap(), of_folder);
    }
}

/// A format of one file, `voice.factors`: the tensors of PEFT's adapter behind a line of text.
struct Factors;

const MARK: &[u8] = b"factors\n";

impl AdapterFormat for Factors {
    fn name(&self) -> &str {
        "factors"
    }

    fn recognizes(&self, files: &AdapterFiles<'_>) -> Result<bool> {
        let Some(path) = files.files.get("voice.factors") else { return Ok(false) };
        Ok(fs::read(path).map_err(|e| Error::io("read", path, e))?.starts_with(MARK))
    }

    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter> {
        let path = &files.files["voice.factors"];
        let content = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let folder = tempfile::tempdir().unwrap();
        let bare = folder.path().join(WEIGHTS);
        fs::write(&bare, &content[MARK.len()..]).unwrap();
        let options = ReadOptions::new().with_scale(2.0).with_format(BareFormat::Peft);
        lora::read_with(files.reference, &[(WEIGHTS.to_owned(), bare)].into(), options, &[])
    }
}

#[test]
fn adapters_in_a_plugins_format_are_used_from_everywhere() {
    let (world, refs) = world("voice.factors", &[MARK, &weights()].concat());
    let engine = world.builder().adapter_format(Arc::new(Factors)).build().unwrap();
    let expected = expected(&engine);
    let file = ArtifactRef::file(world.folder.path().join("mine/voice.factors")).unwrap();
    let asset = "github:acme/lora@v1#voice.factors".parse().unwrap();
    let mut digests = BTreeSet::new();
    for reference in refs.into_iter().chain([file, asset]) {
        let spec = ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter(reference.clone());
        block_on(engine.plan(&spec)).unwrap_or_else(|e| panic!("{reference}: {e}"));
        assert_eq!(logits(&engine, reference.clone().into(), AdapterPolicy::Auto).unwrap(), expected, "{reference}");
        assert_eq!(block_on(engine.adapters().inspect(&reference.into())).unwrap().format.to_string(), "factors");
        digests.insert(block_on(block_on(engine.load(&spec)).unwrap().digest()).unwrap().adapters);
    }
    assert_eq!(digests.len(), 1, "they are one adapter: {digests:?}");
    // Nobody else knows it for an adapter.
    let error = logits(&world.engine(), "hf:org/unnamed".parse().unwrap(), AdapterPolicy::Auto).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
}
