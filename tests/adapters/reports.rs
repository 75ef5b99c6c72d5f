//! What an adapter is, before and after it is fetched, and in another format.

use std::{
    fs,
    sync::mpsc,
    task::{Context, Poll, Waker},
};

use futures_util::FutureExt;
use llm_local::{
    AdapterSpec, ArtifactRef, ModelSpec,
    adapters::{AdapterFormat, Scaling},
    core::lora::AdapterFeature,
    lora::WriteFormat,
};
use llm_local_testkit::github::{Host, Release};
use pollster::block_on;

use crate::{
    common::{ToldOfWaiting, engine, fixture_ref},
    world::{World, adapter_files, loose, zipped},
};

#[test]
fn an_adapter_is_described_by_its_config_and_the_header_of_its_weights() {
    let world = World::new(loose("v1", "rslora"));
    let (engine, reference) = (world.engine(), "github:acme/lora".parse::<ArtifactRef>().unwrap());
    let report = block_on(engine.adapters().inspect(&reference.clone().into())).unwrap();
    assert_eq!((&report.format, report.version.as_deref()), (&AdapterFormat::Peft, Some("v1")));
    assert_eq!(report.base.name.as_deref(), Some("tiny-llama"));
    assert_eq!((&report.ranks[..], report.alpha, report.scaling), (&[4][..], Some(8.0), Scaling::AlphaOverRootRank));
    assert!(report.targets.contains(&"q_proj".to_owned()), "{report:?}");
    assert_eq!((report.tensors, report.unusable.as_deref()), (2 * report.modules, None));
    let files = adapter_files("rslora");
    assert_eq!((&report.features[..], &report.scales[..]), (&[AdapterFeature::RankStabilized][..], &[4.0][..]));
    assert_eq!(report.bytes, files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert!(engine.store().list().unwrap().artifacts.is_empty(), "nothing was fetched");
    let text = report.to_string();
    for part in
        ["PEFT", "tiny-llama", "rank     4", "alpha / sqrt(r), alpha 8, so times 4", "features rsLoRA", "q_proj"]
    {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    block_on(engine.adapters().update(&reference, None)).unwrap();
    world.requests();
    let here = block_on(world.offline().adapters().inspect(&reference.clone().into())).unwrap();
    assert_eq!(here, report);
    assert_eq!(world.requests(), 0);
}

#[test]
fn what_an_adapter_uses_is_what_its_reader_found() {
    let report = |adapter: &str| {
        let world = World::new(loose("v1", adapter));
        let (engine, reference) = (world.engine(), "github:acme/lora".parse::<ArtifactRef>().unwrap());
        let elsewhere = block_on(engine.adapters().inspect(&reference.clone().into())).unwrap();
        block_on(engine.adapters().update(&reference, None)).unwrap();
        assert_eq!(block_on(engine.adapters().inspect(&reference.clone().into())).unwrap(), elsewhere);
        assert_eq!(elsewhere.unusable, None);
        elsewhere
    };
    let dora = report("dora");
    assert_eq!((&dora.format, &dora.features[..]), (&AdapterFormat::Peft, &[AdapterFeature::Dora][..]));
    let patterns = report("patterns");
    assert_eq!(patterns.features, [AdapterFeature::RankPattern, AdapterFeature::AlphaPattern]);
    assert!(patterns.ranks.len() > 1 && patterns.scales.len() > 1, "{patterns:?}");
    let mlx = report("dora-mlx");
    assert_eq!((&mlx.format, &mlx.features[..]), (&AdapterFormat::MlxLm, &[AdapterFeature::Dora][..]));
    assert_eq!(mlx.scaling, Scaling::Stored(mlx.scales[0]));
    // Pairs and magnitudes.
    assert_eq!(mlx.tensors, 3 * mlx.modules);
}

#[test]
fn an_archive_is_fetched_to_be_described() {
    let world = World::new(zipped("v1", "peft"));
    let report = block_on(world.engine().adapters().inspect(&"github:acme/lora@v1".parse().unwrap())).unwrap();
    assert_eq!((&report.ranks[..], report.scaling, report.unusable), (&[8][..], Scaling::AlphaOverRank, None));
    assert!(world.github.wait_until_idle().iter().any(|r| r.host == Host::Cdn));
}

#[test]
fn what_cannot_be_used_is_described_with_the_reason() {
    let world = World::new(loose("v1", "peft"));
    let adapters = world.engine().adapters();
    // An adapter, one field of whose config is another.
    let report = |name: &str, field: &str, value: &str| {
        let folder = world.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        for (name, mut bytes) in adapter_files(name) {
            if name == "adapter_config.json" {
                let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes).unwrap();
                assert!(config.insert(field.into(), value.into()).is_some(), "{config:?}");
                bytes = serde_json::to_vec(&config).unwrap();
            }
            fs::write(folder.join(name), bytes).unwrap();
        }
        block_on(adapters.inspect(&ArtifactRef::file(folder).unwrap().into())).unwrap()
    };
    let mlx = report("mlx", "fine_tune_type", "prefix");
    assert_eq!(mlx.format, AdapterFormat::MlxLm);
    assert_eq!(mlx.ranks.len(), 1, "{mlx:?}");
    let why = mlx.unusable.as_ref().unwrap();
    assert!(why.contains("fine_tune_type") && why.contains("\"prefix\""), "{mlx:?}");
    let loha = report("peft", "peft_type", "LOHA");
    assert_eq!((&loha.format, &loha.ranks[..]), (&AdapterFormat::Peft, &[8][..]));
    assert!(loha.unusable.as_ref().unwrap().contains("`peft_type` is \"LOHA\""), "{loha:?}");
}

/// A GGUF adapter as llama.cpp writes it: alpha 16, and a pair of rank 4 for one module.
///
/// Source of the form: ggml `docs/gguf.md`, and llama.cpp `convert_lora_to_gguf.py`.
fn gguf() -> Vec<u8> {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let string = |key: &str, value: &str| [text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat();
    let float = |key: &str, value: f32| [text(key), 6u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat();
    let tensor = |name: &str, shape: [u64; 2], offset: u64| {
        let shape = [shape[0].to_le_bytes(), shape[1].to_le_bytes()].concat();
        let rest = [&0u32.to_le_bytes()[..], &offset.to_le_bytes()].concat();
        [text(name), 2u32.to_le_bytes().to_vec(), shape, rest].concat()
    };
    let mut file = [
        b"GGUF".to_vec(),
        3u32.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        5u64.to_le_bytes().to_vec(),
        string("general.type", "adapter"),
        string("adapter.type", "lora"),
        string("general.architecture", "llama"),
        string("general.base_model.0.name", "Tiny Llama"),
        float("adapter.lora.alpha", 16.0),
        tensor("blk.0.attn_q.weight.lora_a", [128, 4], 0),
        tensor("blk.0.attn_q.weight.lora_b", [4, 128], 2048),
    ]
    .concat();
    file.resize(file.len().next_multiple_of(32), 0);
    // Two factors of 4 x 128 ones.
    file.extend([1f32.to_le_bytes(); 2 * 4 * 128].as_flattened());
    file
}

#[test]
fn a_gguf_adapter_is_described_by_its_metadata() {
    let world = World::new(Release::new("v1").with_file("pirate.gguf", gguf()));
    let (engine, reference) = (world.engine(), "github:acme/lora".parse::<ArtifactRef>().unwrap());
    let report = block_on(engine.adapters().inspect(&reference.clone().into())).unwrap();
    assert!(engine.store().list().unwrap().artifacts.is_empty(), "its header was enough");
    assert_eq!((&report.format, report.base.name.as_deref()), (&AdapterFormat::Gguf, Some("Tiny Llama")));
    assert_eq!((&report.ranks[..], report.alpha, report.scaling), (&[4][..], Some(16.0), Scaling::AlphaOverRank));
    assert_eq!((report.modules, report.tensors), (1, 2));
    assert_eq!((&report.scales[..], &report.unusable), (&[4.0][..], &None));
    block_on(engine.adapters().update(&reference, None)).unwrap();
    assert_eq!(block_on(world.offline().adapters().inspect(&reference.clone().into())).unwrap(), report);
}

#[test]
fn an_adapter_is_converted_by_the_headers_of_a_base_that_is_elsewhere() {
    let world = World::new(loose("v1", "peft"));
    let (engine, reference) = (world.engine(), "github:acme/lora".parse::<ArtifactRef>().unwrap());
    let (into, base) = (world.folder.path().join("pirate.gguf"), "hf:org/tiny".parse().unwrap());
    let adapters = engine.adapters();
    let written =
        block_on(adapters.convert(&reference.clone().into(), WriteFormat::Gguf, Some(&base), &into, None)).unwrap();
    assert_eq!(written.files, std::slice::from_ref(&into));
    let kept: Vec<_> = engine.store().list().unwrap().artifacts.into_iter().map(|it| it.reference).collect();
    assert_eq!(kept, std::slice::from_ref(&reference), "the adapter alone");
    let cached = block_on(engine.plan(&ModelSpec::new(base))).unwrap().base.present;
    assert!(!cached, "headers were enough");
    let [before, after] = [reference, ArtifactRef::file(into).unwrap()]
        .map(|reference| block_on(engine.adapters().inspect(&reference.into())).unwrap());
    assert_eq!((&after.format, after.unusable), (&AdapterFormat::Gguf, None));
    assert_eq!((after.ranks, after.scales, after.modules), (before.ranks, before.scales, before.modules));
}

#[test]
fn a_conversion_that_is_given_up_leaves_nothing() {
    let (engine, base) = (engine(), fixture_ref("models/tiny-llama"));
    let (adapters, adapter) = (engine.adapters(), AdapterSpec::from(fixture_ref("adapters/tiny-llama-lora-peft")));
    for (name, format) in [("folder", WriteFormat::MlxLm), ("file.gguf", WriteFormat::Gguf)] {
        let given_up = || {
            let folder = tempfile::tempdir().unwrap();
            let names = || fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect::<Vec<_>>();
            let into = folder.path().join(name);
            let mut converting = adapters.convert(&adapter, format, Some(&base), &into, None).boxed();
            let mut context = Context::from_waker(Waker::noop());
            // Until some of it is on the disk.
            while names().is_empty() {
                if let Poll::Ready(written) = converting.poll_unpin(&mut context) {
                    written.unwrap();
                    break;
                }
            }
            let (waits, waiting) = mpsc::channel();
            tracing::subscriber::with_default(ToldOfWaiting(waits), || drop(converting));
            let left = names();
            assert!(left.is_empty() || left == [name], "half of it is left: {left:?}");
            waiting.try_recv().is_ok() && left.is_empty()
        };
        // Where the other thread is done before it is given up, once more.
        assert!((0..1000).any(|_| given_up()), "none of {name} was waited for");
    }
}
