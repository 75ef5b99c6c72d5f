mod declared;
mod experts;
mod orientation;

use std::sync::Arc;

use llm_local_core::{
    Encoding, Error, FloatType, GgmlType, IntType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorEntry,
    lora::{BaseHint, DeclaredTargets, Floats, ModuleSelector, ReplacedRows, ReplacementTensor},
    model::{Architecture, GgufMetadata},
};
use serde_json::json;

use super::fit;
use crate::lora::{
    MergedSource,
    testing::{TestAdapter, Unreadable, f32_bytes, fit_unread, tiny_llama_info},
};

fn assert_names(label: &str, error: &Error, words: &[&str]) {
    assert_eq!(error.code(), "adapter_merge_failed", "{label}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "{label}: `{word}` is not in: {error}");
    }
}

/// Asserts that the changed adapter does not fit tiny-llama, with `words` in the message.
fn misfit(label: &str, change: impl FnOnce(&mut TestAdapter), words: &[&str]) {
    let mut adapter = TestAdapter::new();
    change(&mut adapter);
    assert_names(label, &adapter.fit().err().unwrap_or_else(|| panic!("{label} fits")), words);
}

#[test]
fn what_fits_is_reported_with_its_ranks_scales_and_tensors() {
    let report = TestAdapter::new().fit().unwrap();
    assert_eq!(report.touched.len(), 4);
    assert_eq!(report.touched[0].name, "model.layers.2.self_attn.q_proj.weight");
    assert_eq!(report.touched[1].shape, [64, 128]);
    assert_eq!(report.touched[1].stored, Encoding::Float(FloatType::Bf16));
    assert_eq!(report.touched[0].shape, [128, 128]);
    assert_eq!((report.adapters[0].ranks, report.adapters[0].scales), ((2, 2), (2.0, 2.0)));
    let mut wide = TestAdapter::new();
    wide.unset("layers_to_transform").unset("layers_pattern").set("target_modules", json!(r".*\.[23]\..*[qv]_proj"));
    assert_eq!(wide.fit().unwrap().touched.len(), 4);
}

#[test]
fn a_pattern_with_look_around_decides_as_any_other() {
    let mut adapter = TestAdapter::new();
    adapter.unset("layers_to_transform").unset("layers_pattern");
    adapter.set("target_modules", json!(r"(?!.*mlp).*(?<=[23]\.self_attn\.)[qv]_proj"));
    assert_eq!(adapter.fit().unwrap().touched.len(), 4);
}

#[test]
fn names_of_a_list_that_match_nothing_are_reported_and_not_refused() {
    assert_eq!(TestAdapter::new().fit().unwrap().adapters[0].unmatched_targets, [""; 0]);
    let mut adapter = TestAdapter::new();
    adapter.set("target_modules", json!(["q_proj", "query_key_value", "v_proj", "c_attn"]));
    let report = adapter.fit().unwrap();
    assert_eq!(report.touched.len(), 4);
    assert_eq!(report.adapters[0].unmatched_targets, ["query_key_value", "c_attn"]);
}

#[test]
fn lora_on_the_head_of_a_tied_model_changes_the_embedding_and_the_head_that_is_stored_beside_it() {
    let head = |info: &mut Vec<TensorEntry>| {
        info.push(TensorEntry::new("lm_head.weight", vec![896, 128], Encoding::Float(FloatType::Bf16)));
    };
    let mut adapter = TestAdapter::new();
    adapter.pair("lm_head", 2, 128, 896);
    adapter.unset("layers_to_transform").unset("layers_pattern");
    adapter.set("target_modules", json!(r".*\.[23]\..*[qv]_proj|lm_head"));
    let info = tiny_llama_info(head);
    assert!(info.decoder.as_ref().unwrap().tied_embeddings);
    let report = fit_unread(adapter.read().unwrap(), &info).unwrap();
    assert_eq!(report.touched.len(), 6);
    for (touched, name) in report.touched.iter().zip(["lm_head.weight", "model.embed_tokens.weight"]) {
        assert_eq!(
            (touched.name.as_str(), &touched.shape[..], &touched.adapters[..]),
            (name, &[896, 128][..], &[0][..])
        );
    }
    assert!(!report.unties_embeddings);
    let once = fit_unread(adapter.read().unwrap(), &tiny_llama_info(|_| {})).unwrap();
    assert_eq!(once.touched[0].name, "model.embed_tokens.weight");

    let ModelFormat::Safetensors { config } = &info.format else { panic!("it is in safetensors") };
    let mut config = (**config).clone();
    config["tie_word_embeddings"] = json!(false);
    let format = ModelFormat::Safetensors { config: Arc::new(config) };
    let untied = ModelInfo::new("untied", format, info.tensors);
    assert_eq!(fit_unread(adapter.read().unwrap(), &untied).unwrap().touched[0].name, "lm_head.weight");
}

#[test]
fn a_delta_that_is_zero_in_f32_is_refused() {
    let alpha = |alpha: f64| {
        move |t: &mut TestAdapter| {
            t.set("lora_alpha", json!(alpha));
        }
    };
    misfit("alpha", alpha(1e-300), &["too small for f32", "all 4 modules", "scale is 5e-301", "weight 1"]);
    let mut small = TestAdapter::new();
    alpha(1e-40)(&mut small);
    small.fit().unwrap();
    let weighted = fit(&[(Arc::new(small.read().unwrap()), 1e-10)], &tiny_llama_info(|_| {})).unwrap_err();
    assert_names("weight", &weighted, &["too small for f32", "weight 0.0000000001"]);
    let mut rest = TestAdapter::new();
    for tensor in rest.tensors.iter_mut().skip(2) {
        tensor.3 = f32_bytes(&vec![1e-38; tensor.3.len() / 4]);
    }
    rest.fit().unwrap();
}

#[test]
fn each_adapter_of_several_is_checked_and_reported() {
    let info = tiny_llama_info(|_| {});
    let adapter = Arc::new(TestAdapter::new().read().unwrap());
    let report = fit(&[(adapter.clone(), 1.0), (adapter.clone(), -0.5)], &info).unwrap();
    assert_eq!(report.touched[0].adapters, [0, 1]);
    assert_eq!(report.adapters[1].scales, (-1.0, -1.0));
    for weight in [0.0, f32::NAN, f32::INFINITY] {
        let error = fit(&[(adapter.clone(), 1.0), (adapter.clone(), weight)], &info).unwrap_err();
        assert_names("weight", &error, &[&format!("weight is {weight}")]);
    }
    assert_eq!(fit(&[], &info).unwrap().touched.len(), 0);
}

#[test]
fn tensors_without_a_base_tensor_or_of_another_shape_are_named() {
    let key = |factor| TestAdapter::key(3, "q_proj", factor);
    let module = TestAdapter::module(3, "q_proj");
    misfit(
        "layer out of range",
        |t| {
            t.at(&key("lora_A")).0 = TestAdapter::key(9, "q_proj", "lora_A");
            t.at(&key("lora_B")).0 = TestAdapter::key(9, "q_proj", "lora_B");
        },
        &["`model.layers.9.self_attn.q_proj.weight`, which `tiny-llama` does not have", &module],
    );
    let replaced = |rank, inputs, outputs| {
        let module = module.clone();
        move |t: &mut TestAdapter| {
            t.remove(&TestAdapter::key(3, "q_proj", "lora_A")).remove(&TestAdapter::key(3, "q_proj", "lora_B"));
            t.pair(&module, rank, inputs, outputs);
        }
    };
    let words = [&format!("`{module}.lora_B` has the shape (64, 2)"), "expected (128, 2)", "(128, 128)"];
    misfit("wrong out", replaced(2, 128, 64), &words);
    let words = [&format!("`{module}.lora_A` has the shape (2, 96)"), "expected (2, 128)"];
    misfit("wrong in", replaced(2, 96, 128), &words);
    misfit(
        "swapped factors",
        |t| {
            let (a, b) = (TestAdapter::key(3, "v_proj", "lora_A"), TestAdapter::key(3, "v_proj", "lora_B"));
            t.remove(&a).remove(&b).pair(&TestAdapter::module(3, "v_proj"), 2, 64, 128);
        },
        &["v_proj.lora_A` has the shape (2, 64), which would fit transposed", "expected (2, 128)"],
    );
    misfit(
        "a norm",
        |t| {
            t.pair("model.layers.3.input_layernorm", 2, 128, 128);
        },
        &["`model.layers.3.input_layernorm.weight` has the shape (128)"],
    );
    misfit(
        "tied head",
        |t| {
            t.pair("lm_head", 2, 128, 800);
        },
        &["`lm_head.lora_B` has the shape (800, 2)", "`lm_head.weight` has the shape (896, 128)"],
    );
    misfit(
        "embedding",
        |t| {
            t.pair("model.embed_tokens", 2, 96, 896);
        },
        &["`model.embed_tokens.lora_A` has the shape (2, 96)", "(896, 128)"],
    );
}

#[test]
fn tensors_and_declarations_must_agree() {
    let q3 = "`model.layers.3.self_attn.q_proj`";
    let set = |key: &'static str, value| {
        move |t: &mut TestAdapter| {
            t.set(key, value);
        }
    };
    let words = [q3, "`target_modules` does not cover"];
    misfit("not declared", set("target_modules", json!(["v_proj"])), &words);
    misfit("other layer", set("layers_to_transform", json!(2)), &[q3, "`layers_to_transform` leaves out"]);
    misfit("other pattern", set("layers_pattern", json!("h")), &["`layers_to_transform`"]);
    misfit("excluded", set("exclude_modules", json!(".*3.*q_proj")), &[q3, "`exclude_modules` excludes"]);
    misfit("excluded name", set("exclude_modules", json!(["q_proj"])), &[q3, "`exclude_modules` excludes"]);
    let words = ["declares 2 targets that it has no tensors for", "model.layers.2.self_attn.k_proj"];
    misfit("incomplete", set("target_modules", json!(["q_proj", "v_proj", "k_proj"])), &words);
    let words = ["`target_modules` declares `c_attn`, `c_proj`"];
    misfit("unknown", set("target_modules", json!(["c_attn", "c_proj"])), &words);
    let words = ["layers [4]", "`layers_to_transform`"];
    misfit("no such layer", set("layers_to_transform", json!([2, 3, 4])), &words);
    let missing = |t: &mut TestAdapter| {
        t.remove(&TestAdapter::key(2, "q_proj", "lora_A")).remove(&TestAdapter::key(2, "q_proj", "lora_B"));
    };
    misfit("a pair missing", missing, &["declares 1 target that", "`model.layers.2.self_attn.q_proj`"]);
    let text = |value: &'static str| {
        move |t: &mut TestAdapter| {
            t.unset("layers_to_transform").unset("layers_pattern").set("target_modules", json!(value));
        }
    };
    misfit("broken", text(r".*(?<=[23]\.self_attn\.[qv]_proj"), &["`target_modules`", "broken"]);
    misfit("all-linear", text("all-linear"), &["declares 24 targets that it has no tensors for"]);
    misfit("covers all", text(".*"), &["has no tensors for", "model.embed_tokens"]);
}

#[test]
fn bases_that_no_delta_can_be_added_to_are_refused() {
    let stored_as = |encoding| {
        tiny_llama_info(|entries| {
            let entry = entries.iter_mut().find(|e| e.name == "model.layers.2.self_attn.v_proj.weight").unwrap();
            entry.encoding = encoding;
        })
    };
    let stored = |encoding| fit_unread(TestAdapter::new().read().unwrap(), &stored_as(encoding));
    assert!(stored(Encoding::Float(FloatType::F64)).is_ok());
    let words = ["model.layers.2.self_attn.v_proj.weight", "u8", "adapters are of floats"];
    assert_names("u8", &stored(Encoding::Int(IntType::U8)).unwrap_err(), &words);
    // Whether anything can be done with those is decided by whoever knows the backend; the merge cannot.
    for encoding in [Encoding::Ggml(GgmlType::IQ4_NL), Encoding::MlxAffine { bits: 4, group_size: 64 }] {
        let info = stored_as(encoding);
        let adapters = vec![(Arc::new(TestAdapter::new().read().unwrap()), 1.0)];
        let report = fit(&adapters, &info).unwrap();
        let quantized = report.quantized().unwrap();
        assert_eq!((quantized.name.as_str(), quantized.stored), ("model.layers.2.self_attn.v_proj.weight", encoding));
        let error = MergedSource::new(Arc::new(Unreadable(info.tensors.clone())), adapters, &info).err().unwrap();
        assert_names("merge", &error, &["v_proj.weight", &encoding.to_string(), "keep the adapter unmerged"]);
    }
    assert_eq!(stored(Encoding::Float(FloatType::F32)).unwrap().quantized(), None);
    let format = ModelFormat::Gguf { metadata: Arc::new(GgufMetadata::default()) };
    let info = ModelInfo::new("tiny.gguf", format, tiny_llama_info(|_| {}).tensors);
    let error = fit_unread(TestAdapter::new().read().unwrap(), &info).unwrap_err();
    assert_names("GGUF", &error, &["GGUF file whose architecture is not understood", "tiny.gguf", "safetensors"]);
}

#[test]
fn what_another_reader_may_bring_is_not_ignored() {
    let info = tiny_llama_info(|_| {});
    let module =
        || LoraModule::new("model.layers.0.self_attn.q_proj", (1, 128, 128), vec![1.0; 128], vec![1.0; 128], 1.0);
    let adapter = |modules| LoraAdapter::new("test", "digest", modules);
    assert_eq!(fit_unread(adapter(vec![module()]), &info).unwrap().touched.len(), 1);

    let dora = module().with_magnitude(vec![1.0; 128]);
    assert_eq!(fit_unread(adapter(vec![dora]), &info).unwrap().touched.len(), 1);
    let biased = module().with_bias(vec![1.0; 128]);
    let mut scaled = module();
    scaled.scale = f64::NAN;
    let mut short = module();
    short.a = Floats::F32(vec![1.0; 127]);
    let long = module().with_magnitude(vec![1.0; 129]);
    let of_experts = LoraModule::of_experts(
        "model.layers.0.self_attn.q_proj",
        2,
        (1, 128, 128),
        vec![1.0; 256],
        vec![1.0; 256],
        1.0,
    );
    let named = |name: &str| {
        let mut module = module();
        module.name = name.into();
        module
    };
    let replacing = |name: &str, shape: Vec<usize>| {
        let values = vec![1.0; shape.iter().product()];
        adapter(vec![]).with_replacements(vec![ReplacementTensor::new(name, shape, values)])
    };
    let rows = |rows: Vec<usize>, columns: usize| {
        let values = vec![1.0; rows.len() * columns];
        adapter(vec![]).with_rows(vec![ReplacedRows::new("model.embed_tokens.weight", rows, values)])
    };
    assert_eq!(fit_unread(rows(vec![0, 895], 128), &info).unwrap().adapters[0].replaced, 1);
    let mut empty_rows = ReplacedRows::new("model.embed_tokens.weight", vec![1], vec![1.0; 128]);
    empty_rows.rows.clear();
    let too_few = ReplacementTensor::new("model.norm.weight", vec![128], vec![1.0; 127]);
    // llama.cpp converts Mistral as Llama, so an adapter that says so may be of either.
    let of_llama = adapter(vec![module()]).with_base(BaseHint::default().with_architecture(Architecture::Mistral));
    assert_eq!(fit_unread(of_llama, &info).unwrap().touched.len(), 1);
    let twice = || ReplacementTensor::new("model.norm.weight", vec![128], vec![1.0; 128]);
    let unknown = adapter(vec![module()]).with_targets(
        DeclaredTargets::new(ModuleSelector::Names(vec!["q_proj".into()])).with_exclude(ModuleSelector::AllLinear),
    );
    for (label, adapter, words) in [
        ("magnitude", adapter(vec![long]), &["q_proj", "lengths"][..]),
        ("bias", adapter(vec![biased]), &["`model.layers.0.self_attn.q_proj.bias`", "does not have one"]),
        ("experts", adapter(vec![of_experts]), &["q_proj", "(128, 128)", "(2, out, in)"]),
        ("no such layer", adapter(vec![named("model.layers.4.self_attn.q_proj")]), &["layers.4", "does not have"]),
        ("no such tensor", replacing("score.weight", vec![2, 128]), &["`score.weight`", "does not have"]),
        ("shape", replacing("model.norm.weight", vec![64]), &["`model.norm.weight`", "(64)", "(128)"]),
        ("fewer rows", replacing("model.embed_tokens.weight", vec![4, 128]), &["(4, 128)", "cannot be taken away"]),
        ("row", rows(vec![1, 896], 128), &["row 896", "which has 896"]),
        ("columns", rows(vec![1], 64), &["rows of 64 values", "expected 128"]),
        (
            "replaced twice",
            adapter(vec![]).with_replacements(vec![twice(), twice()]),
            &["replacement of `model.norm.weight`", "twice"],
        ),
        ("no rows", adapter(vec![]).with_rows(vec![empty_rows]), &["embed_tokens", "no whole rows"]),
        ("too few values", adapter(vec![]).with_replacements(vec![too_few]), &["model.norm.weight", "(128) and 127"]),
        (
            "architecture",
            adapter(vec![module()]).with_base(BaseHint::default().with_architecture(Architecture::Qwen2)),
            &["architecture `qwen2`", "is of `llama`"],
        ),
        ("scale", adapter(vec![scaled]), &["q_proj", "scale NaN"]),
        ("lengths", adapter(vec![short]), &["q_proj", "lengths"]),
        ("twice", adapter(vec![module(), module()]), &["q_proj", "twice"]),
        ("nothing", adapter(vec![]), &["no low-rank pairs"]),
        ("exclusion", unknown, &["AllLinear"]),
    ] {
        assert_names(label, &fit_unread(adapter, &info).unwrap_err(), words);
    }
}
