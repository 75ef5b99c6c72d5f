use std::{collections::BTreeMap, path::Path, sync::Arc};

use llm_local_core::{
    Encoding, FloatType, GgmlType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorEntry,
    lora::{ReplacedRows, ReplacementTensor},
};
use llm_local_weights::Checkpoint;
use serde_json::json;

use super::*;
use crate::lora::fit;

/// A report of one pair on a matrix that is stored so.
fn report(stored: Encoding) -> FitReport {
    described(stored).0
}

/// As [`report`], with the description of the base.
fn described(stored: Encoding) -> (FitReport, Arc<ModelInfo>) {
    let config = Arc::new(json!({"model_type": "test"}));
    let entries = vec![TensorEntry::new("m.weight", vec![32, 64], stored)];
    let info = ModelInfo::new("base", ModelFormat::Safetensors { config }, entries);
    let module = LoraModule::new("m", (1, 64, 32), vec![1.0; 64], vec![1.0; 32], 1.0);
    let adapter = Arc::new(LoraAdapter::new("hf:some/adapter", "", vec![module]));
    (fit(&[(adapter, 1.0)], &info).unwrap(), Arc::new(info))
}

fn decide(policy: AdapterPolicy, stored: Encoding, not_beside: Option<&str>) -> Result<(Route, Option<Dequantized>)> {
    Route::decide(policy, &report(stored), not_beside.map(str::to_owned))
}

const FLOATS: Encoding = Encoding::Float(FloatType::Bf16);
const UNKNOWN: Encoding = Encoding::Ggml(GgmlType::IQ4_NL);
const REQUANTIZED: AdapterPolicy = AdapterPolicy::MergeRequantized { max_error: 0.1 };
const AFFINE: Encoding = Encoding::MlxAffine { bits: 4, group_size: 64 };
const ODD_AFFINE: Encoding = Encoding::MlxAffine { bits: 7, group_size: 64 };

#[test]
fn floats_are_merged_unless_they_are_to_be_kept() {
    for (policy, route) in [
        (AdapterPolicy::Auto, Route::Merged),
        (AdapterPolicy::MergeDequantized, Route::Merged),
        (REQUANTIZED, Route::Merged),
        (AdapterPolicy::KeepUnmerged, Route::Beside),
    ] {
        let (found, dequantized) = decide(policy, FLOATS, None).unwrap();
        assert_eq!(found, route, "{policy}");
        assert!(dequantized.is_none());
    }
}

#[test]
fn quantized_weights_keep_adapters_beside_them_where_nothing_else_is_asked_for() {
    for encoding in [Encoding::Ggml(GgmlType::Q4_0), UNKNOWN, AFFINE] {
        for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
            assert_eq!(decide(policy, encoding, None).unwrap().0, Route::Beside, "{policy} {encoding}");
        }
    }
}

#[test]
fn formats_that_nothing_dequantizes_are_refused_with_all_that_is_in_the_way() {
    for encoding in [UNKNOWN, ODD_AFFINE] {
        let error = decide(AdapterPolicy::MergeDequantized, encoding, None).unwrap_err().to_string();
        for word in ["hf:some/adapter", "`m.weight`", &encoding.to_string(), "`merge-dequantized`", "checkpoint"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
        let error = decide(AdapterPolicy::Auto, encoding, Some("the backend cannot")).unwrap_err().to_string();
        for word in [&encoding.to_string(), "and the backend cannot", "`auto`"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
    for encoding in [UNKNOWN, ODD_AFFINE] {
        let error = decide(REQUANTIZED, encoding, None).unwrap_err().to_string();
        for word in ["`m.weight`", &encoding.to_string(), "`merge-requantized, at most 0.1 lost`", "`keep-unmerged`"] {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    }
    let error = decide(AdapterPolicy::KeepUnmerged, FLOATS, Some("the backend cannot")).unwrap_err().to_string();
    assert!(error.contains("the backend cannot") && error.contains("let it be merged"), "{error}");
}

#[cfg(feature = "candle")]
#[test]
fn what_cannot_run_beside_quantized_weights_is_merged_if_there_is_memory() {
    let blocks = Encoding::Ggml(GgmlType::Q4_0);
    let (route, dequantized) = decide(AdapterPolicy::MergeDequantized, blocks, None).unwrap();
    assert!(route == Route::Merged && dequantized.is_none(), "what was asked for is done");
    let (route, dequantized) = decide(AdapterPolicy::Auto, blocks, Some("the backend cannot")).unwrap();
    assert_eq!(route, Route::Merged);
    let dequantized = dequantized.unwrap();
    let error = dequantized.short(&report(blocks), Error::insufficient_memory(5000, 4999));
    assert_eq!(error.code(), "adapter_merge_failed");
    for word in ["hf:some/adapter", "the backend cannot", "5000 bytes", "4999 are available", "`auto`"] {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}

#[cfg(feature = "candle")]
#[test]
fn what_is_quantized_again_is_measured_against_what_the_backend_can_run() {
    let blocks = Encoding::Ggml(GgmlType::Q4_0);
    let (route, dequantized) = decide(REQUANTIZED, blocks, None).unwrap();
    assert_eq!(route, Route::Requantized(Requantizing { max_error: 0.1, can_be_beside: true }));
    assert!(dequantized.is_none());
    let (route, dequantized) = decide(REQUANTIZED, blocks, Some("the backend cannot")).unwrap();
    assert_eq!(route, Route::Requantized(Requantizing { max_error: 0.1, can_be_beside: false }));
    let short = Error::insufficient_memory(5000, 4999);
    let error = dequantized.unwrap().short(&report(blocks), short).to_string();
    for word in ["the backend cannot", "tells what is lost", "5000 bytes", "`merge-requantized, at most 0.1 lost`"] {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[cfg(feature = "candle")]
#[test]
fn what_is_quantized_again_is_described_as_the_base_is() {
    let (report, info) = described(Encoding::Ggml(GgmlType::Q4_0));
    let route = decide(REQUANTIZED, Encoding::Ggml(GgmlType::Q4_0), None).unwrap().0;
    assert!(Arc::ptr_eq(&route.info(&report, &info), &info));
    assert!(Arc::ptr_eq(&Route::Beside.info(&report, &info), &info));
    let dequantized = Route::Merged.info(&report, &info);
    assert_eq!(dequantized.tensors[0].encoding, Encoding::Float(FloatType::F16));
}

#[cfg(not(feature = "candle"))]
#[test]
fn blocks_take_the_feature_that_dequantizes_them() {
    let error = decide(AdapterPolicy::MergeDequantized, Encoding::Ggml(GgmlType::Q4_0), None).unwrap_err();
    assert!(error.to_string().contains("cargo feature `candle`"), "{error}");
}

#[test]
fn no_way_is_advised_that_is_not_open() {
    const CHECKPOINT: &str = "use a checkpoint of the base in f32, f16 or bf16";
    const KEEP: &str = "keep it unmerged (`keep-unmerged`), or use a checkpoint";
    let hint = |policy, stored, not_beside| {
        let error = decide(policy, stored, not_beside).unwrap_err().to_string();
        error.rsplit_once("`); ").unwrap_or_else(|| panic!("{error}")).1.to_owned()
    };
    let cannot = Some("the backend cannot");
    for stored in [UNKNOWN, ODD_AFFINE] {
        for policy in [AdapterPolicy::MergeDequantized, REQUANTIZED] {
            assert!(hint(policy, stored, None).starts_with(KEEP), "{policy} {stored}");
            assert_eq!(hint(policy, stored, cannot), CHECKPOINT, "{policy} {stored}");
        }
        for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged] {
            assert_eq!(hint(policy, stored, cannot), CHECKPOINT, "{policy} {stored}");
        }
    }
    for stored in [FLOATS, AFFINE] {
        let merged = hint(AdapterPolicy::KeepUnmerged, stored, cannot);
        assert_eq!(merged, "let it be merged (`adapter_policy` `auto`)", "{stored}");
        assert!(decide(AdapterPolicy::Auto, stored, cannot).is_ok(), "what is advised is not refused");
    }
}

#[test]
fn without_adapters_nothing_is_asked_of_a_backend() {
    let (_, info) = described(UNKNOWN);
    let report = fit(&[], &info).unwrap();
    for policy in [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged, AdapterPolicy::MergeDequantized, REQUANTIZED] {
        for not_beside in [None, Some("the backend cannot".to_owned())] {
            let (route, dequantized) = Route::decide(policy, &report, not_beside).unwrap();
            assert!(route == Route::Merged && dequantized.is_none(), "{policy}");
        }
    }
}

#[test]
fn a_head_that_leaves_its_packed_embedding_is_not_counted_as_quantized_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tiny-llama-mlx-4bit");
    let files = ["config.json", "model.safetensors", "model.safetensors.index.json"];
    let files = BTreeMap::from(files.map(|file| (file.to_owned(), folder.join(file))));
    let info = Checkpoint::open("tiny", &files).unwrap().info;
    let embedding = ReplacedRows::new("model.embed_tokens.weight", vec![3], vec![1.0; 128]);
    let head = ReplacementTensor::new("lm_head.weight", vec![896, 128], vec![1.0; 896 * 128]);
    let adapter =
        LoraAdapter::new("hf:some/adapter", "", vec![]).with_rows(vec![embedding]).with_replacements(vec![head]);
    let report = fit(&[(Arc::new(adapter), 1.0)], &info).unwrap();
    assert!(report.unties_embeddings && report.touched.len() == 2);
    let route = Route::Requantized(Requantizing { max_error: 0.1, can_be_beside: false });
    let info = route.info(&report, &info);
    let names: Vec<_> = requantized(&report, &info).map(|touched| &*touched.name).collect();
    assert_eq!(names, ["model.embed_tokens.weight"]);
}
