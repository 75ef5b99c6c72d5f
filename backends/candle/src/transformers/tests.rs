//! Logits against transformers in float32, and what is refused.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor, safetensors};
use llm_local_backend_common::{decoder::Loading, worker::StepModel};
use llm_local_core::{ComputeDtype, Encoding, Error, FloatType, LoadOptions, ModelFormat, ModelInfo, TensorEntry};
use llm_local_weights::Checkpoint;
use serde_json::{Value, json};

use super::{description::Description, *};
use crate::device::Devices;

/// With each the largest difference to be expected, three times the measured ones or less: 2.6e-5 for Mixtral, 8e-6
/// else.
const MODELS: [(&str, f32); 5] =
    [("phi", 2e-5), ("starcoder2", 2e-5), ("stablelm", 2e-5), ("mixtral", 1e-4), ("olmo", 2e-5)];

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

fn checkpoint(model: &str) -> Checkpoint {
    let path = |f: &str| fixture(&format!("models/arch-{model}")).join(f);
    let files = ["config.json", "model.safetensors"].map(|f| (f.to_owned(), path(f)));
    Checkpoint::open(model, &BTreeMap::from(files)).unwrap()
}

fn supported(info: &ModelInfo, dtype: ComputeDtype) -> Option<Result<Supported, String>> {
    check(info, &LoadOptions::new(100).with_device("cpu").with_dtype(dtype), &Devices::probe())
}

fn load(model: &str, context: usize) -> Wrapped {
    let checkpoint = checkpoint(model);
    let supported = supported(&checkpoint.info, ComputeDtype::Auto).unwrap().unwrap();
    let loading = Loading::new(&LoadOptions::new(context), 1);
    Wrapped::load(supported, &*checkpoint.tensors, context, loading).unwrap()
}

struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    last: Vec<f32>,
    /// After every token of the prompt, where the reference has it.
    all: Option<Vec<Vec<f32>>>,
}

fn cases(model: &str) -> Vec<Case> {
    let json: Value =
        serde_json::from_slice(&fs::read(fixture(&format!("reference/arch-{model}.json"))).unwrap()).unwrap();
    let logits = safetensors::load(fixture(&format!("reference/arch-{model}.logits.safetensors")), &Device::Cpu);
    let logits = logits.unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let named = |v: &Value| -> Option<&Tensor> { v.as_str().map(|key| &logits[key]) };
    let cases: Vec<Case> = json["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| Case {
            prompt: ids(&case["prompt_ids"]),
            greedy: ids(&case["greedy_ids"]),
            last: named(&case["logits_key"]).unwrap().to_vec1().unwrap(),
            all: named(&case["all_logits_key"]).map(|t| t.to_vec2().unwrap()),
        })
        .collect();
    assert!(cases.len() == 2 && cases[1].all.is_some());
    cases
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// The logits after each step of `chunk` tokens, with the position of its last token.
fn steps(model: &mut Wrapped, tokens: &[u32], chunk: usize) -> Vec<(usize, Vec<f32>)> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut done = 0;
    tokens
        .chunks(chunk)
        .map(|step| {
            let logits = model.forward(&mut cache, step, done, None).unwrap();
            done += step.len();
            (done - 1, logits)
        })
        .collect()
}

#[test]
fn every_position_is_that_of_transformers_in_one_step_and_in_several() {
    for (name, bound) in MODELS {
        let (mut model, mut worst) = (load(name, 128), 0f32);
        for case in cases(name) {
            for chunk in [1, 7, case.prompt.len()] {
                let steps = steps(&mut model, &case.prompt, chunk);
                worst = worst.max(difference(&steps.last().unwrap().1, &case.last));
                for (at, logits) in case.all.iter().flat_map(|all| steps.iter().map(|(at, l)| (&all[*at], l))) {
                    worst = worst.max(difference(at, logits));
                }
            }
        }
        assert!(worst <= bound, "{name}: {worst}");
    }
}

#[test]
fn sequences_of_one_model_do_not_see_each_other() {
    for (name, _) in MODELS {
        let (mut model, cases) = (load(name, 128), cases(name));
        let mut caches: Vec<_> = cases.iter().map(|c| model.new_cache(c.prompt.len()).unwrap()).collect();
        let mut next: Vec<u32> = cases
            .iter()
            .zip(&mut caches)
            .map(|(case, cache)| best(&model.forward(cache, &case.prompt, 0, None).unwrap()))
            .collect();
        // In turns, as a worker with two generations would.
        for n in 0..cases[0].greedy.len() {
            for ((case, cache), next) in cases.iter().zip(&mut caches).zip(&mut next) {
                assert_eq!(*next, case.greedy[n], "{name}: greedy token {n}");
                *next = best(&model.forward(cache, &[*next], case.prompt.len() + n, None).unwrap());
            }
        }
    }
}

#[test]
fn what_a_step_cannot_be_is_an_error() {
    for (name, _) in MODELS {
        let mut model = load(name, 8);
        let mut cache = model.new_cache(4).unwrap();
        let error = model.forward(&mut cache, &[1; 9], 0, None).unwrap_err();
        assert!(matches!(error, Error::ContextLengthExceeded { prompt_tokens: 9, context_length: 8 }), "{error}");
        let mut error = |tokens: &[u32], at| model.forward(&mut cache, tokens, at, None).unwrap_err().to_string();
        assert!(error(&[384], 0).contains("384"));
        assert!(error(&[], 0).contains("without tokens"));
        assert!(error(&[1], 3).contains("position 3"));
    }
}

#[test]
fn the_estimate_counts_what_is_held() {
    for (name, _) in MODELS {
        let mut model = load(name, 100);
        let cache = model.new_cache(1).unwrap();
        let info = checkpoint(name).info;
        let supported = supported(&info, ComputeDtype::F32).unwrap().unwrap();
        let estimate = estimate(&supported, &info, 100);
        assert_eq!(estimate.weights, model.weight_bytes(), "{name}");
        assert_eq!(estimate.kv_cache, model.cache_bytes(&cache, 100), "{name}");
        // 2 · 3 layers · 2 heads · 16 · 4 bytes · 100 tokens.
        assert_eq!(estimate.kv_cache, 76_800, "{name}");
        assert!(estimate.working > 0 && estimate.load_peak >= 384 * 64 * 4, "{name}");
    }
}

/// The fixture `name` with `changes` in its config, and its tensors' headers changed by `change`.
fn changed(name: &str, changes: Value, change: impl FnOnce(&mut Vec<TensorEntry>)) -> ModelInfo {
    let info = checkpoint(name).info;
    let ModelFormat::Safetensors { config } = &info.format else { panic!("{name} has no config.json") };
    let mut config = Value::clone(config);
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let mut tensors = info.tensors.to_vec();
    change(&mut tensors);
    ModelInfo::new(name, ModelFormat::Safetensors { config: Arc::new(config) }, tensors)
}

fn ask(info: &ModelInfo) -> Result<Description, String> {
    supported(info, ComputeDtype::Auto).unwrap().map(|s| s.description)
}

#[test]
fn config_values_that_would_be_ignored_are_refused_by_name() {
    let table: &[(&str, Value, &[&str])] = &[
        ("phi", json!({ "qk_layernorm": true }), &["qk_layernorm", "true", "false"]),
        ("phi", json!({ "tie_word_embeddings": true }), &["tie_word_embeddings", "true"]),
        ("phi", json!({ "hidden_act": "quick_gelu" }), &["hidden_act", "quick_gelu", "gelu_new"]),
        ("phi", json!({ "head_dim": 32 }), &["head_dim", "32", "16"]),
        ("phi", json!({ "mystery": 7 }), &["mystery", "7", "PhiForCausalLM"]),
        ("phi", json!({ "architectures": ["PhiForSequenceClassification"] }), &["architectures", "PhiForCausalLM"]),
        ("phi", json!({ "quantization_config": { "bits": 4 } }), &["quantization_config", "bits"]),
        ("phi", json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }), &["rope_scaling", "linear", "default"]),
        ("phi", json!({ "mystery": false }), &["mystery is false", "expected no such field", "a copy of the model"]),
        ("phi", json!({ "_sliding_window_pattern": 6 }), &["_sliding_window_pattern is 6"]),
        ("phi", json!({ "is_encoder_decoder": true }), &["is_encoder_decoder is true", "expected false"]),
        (
            "phi",
            json!({ "auto_map": { "AutoModelForCausalLM": "mine.MyForCausalLM" } }),
            &["auto_map", "mine.MyForCausalLM", "PhiForCausalLM"],
        ),
        ("phi", json!({ "rope_theta": 5000 }), &["rope_theta", "5000", "rope_parameters"]),
        (
            "phi",
            json!({ "rope_theta": null, "rope_scaling": { "type": "default", "rope_theta": 5000 } }),
            &["rope_scaling.rope_theta is 5000", "rope_parameters.rope_theta is 10000", "remove the one that is wrong"],
        ),
        (
            "stablelm",
            json!({
                "rope_theta": null, "partial_rotary_factor": 0.5, "rope_parameters": { "rope_theta": 10000 },
                "rope_scaling": { "partial_rotary_factor": 0.25 },
            }),
            &["partial_rotary_factor is 0.5", "rope_scaling.partial_rotary_factor is 0.25"],
        ),
        (
            "phi",
            json!({ "rope_scaling": { "rope_theta": "1e4" } }),
            &["rope_scaling.rope_theta is \"1e4\"", "a number above 0"],
        ),
        ("mixtral", json!({ "rope_scaling": { "partial_rotary_factor": 0.5 } }), &["rope_scaling", "0.5", "default"]),
        ("phi", json!({ "partial_rotary_factor": 0.25 }), &["partial_rotary_factor", "0.25", "rope_parameters"]),
        ("phi", json!({ "rope_parameters": null, "partial_rotary_factor": 1.0 }), &["partial_rotary_factor", "1.0"]),
        ("phi", json!({ "rope_parameters": null, "partial_rotary_factor": 0.2 }), &["3 of the 16 dimensions"]),
        ("phi", json!({ "layer_norm_eps": null }), &["layer_norm_eps", "missing"]),
        ("phi", json!({ "num_attention_heads": 5 }), &["num_attention_heads", "5", "64"]),
        ("phi", json!({ "num_key_value_heads": 3 }), &["num_key_value_heads", "3", "4"]),
        ("phi", json!({ "vocab_size": 0 }), &["vocab_size", "0"]),
        ("stablelm", json!({ "use_parallel_residual": true }), &["use_parallel_residual", "true"]),
        ("stablelm", json!({ "qk_layernorm": true }), &["qk_layernorm", "true"]),
        ("starcoder2", json!({ "tie_word_embeddings": false }), &["tie_word_embeddings", "false", "true"]),
        ("starcoder2", json!({ "norm_type": "rms_norm" }), &["norm_type", "rms_norm", "layer_norm"]),
        ("starcoder2", json!({ "mlp_type": "gated" }), &["mlp_type", "gated", "default"]),
        ("mixtral", json!({ "num_experts_per_tok": 5 }), &["num_experts_per_tok", "5", "4"]),
        ("mixtral", json!({ "num_local_experts": 3 }), &["gate.weight", "[4, 64]", "[3, 64]"]),
        ("mixtral", json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } }), &["rope_parameters", "yarn"]),
        ("olmo", json!({ "pretraining_tp": 2 }), &["pretraining_tp", "2"]),
        ("olmo", json!({ "clip_qkv": -8 }), &["clip_qkv", "-8"]),
    ];
    for (name, changes, expected) in table {
        let why = ask(&changed(name, changes.clone(), |_| {})).expect_err(&changes.to_string());
        assert!(expected.iter().all(|part| why.contains(part)), "{changes}: {expected:?}: {why}");
    }
}

#[test]
fn configs_of_transformers_4_and_5_are_read_and_absent_fields_have_their_defaults() {
    for (name, _) in MODELS {
        let as_written = ask(&checkpoint(name).info).unwrap().config;
        let old = json!({ "rope_parameters": null, "dtype": null });
        let new = json!({ "rope_theta": null, "rope_scaling": null, "partial_rotary_factor": null });
        for form in [old, new] {
            assert_eq!(ask(&changed(name, form, |_| {})).unwrap().config, as_written, "{name}");
        }
    }
    let neither = json!({ "rope_parameters": null, "rope_theta": null, "partial_rotary_factor": null });
    let config = |name| ask(&changed(name, neither.clone(), |_| {})).unwrap().config;
    assert_eq!(
        (config("phi")["rope_theta"].as_f64(), config("phi")["partial_rotary_factor"].as_f64()),
        (Some(1e4), Some(0.5))
    );
    assert_eq!(config("stablelm")["partial_rotary_factor"], 0.25);
    assert_eq!(config("mixtral")["rope_theta"], 1e6);
    // What rope_scaling has counts beside rope_parameters too.
    let scaling = json!({
        "rope_theta": null, "partial_rotary_factor": null, "rope_parameters": { "rope_type": "default" },
        "rope_scaling": { "type": "default", "rope_theta": 5000, "partial_rotary_factor": 0.75 },
    });
    let read = ask(&changed("phi", scaling, |_| {})).unwrap().config;
    assert_eq!((read["rope_theta"].as_f64(), read["partial_rotary_factor"].as_f64()), (Some(5e3), Some(0.75)));
}

#[test]
fn what_published_configs_have_beside_it_passes() {
    for (name, more) in [
        (
            "phi",
            json!({
                "_name_or_path": "microsoft/phi-2", "embd_pdrop": 0.0, "resid_pdrop": 0.1, "attention_dropout": 0.0,
                "use_cache": true, "rope_scaling": null,
                "auto_map": { "AutoConfig": "configuration_phi.PhiConfig",
                    "AutoModelForCausalLM": "modeling_phi.PhiForCausalLM" },
            }),
        ),
        (
            "starcoder2",
            json!({
                "activation_function": "gelu", "attention_softmax_in_fp32": true, "embedding_dropout": 0.1,
                "residual_dropout": 0.1, "layer_norm_epsilon": 1e-5, "scale_attention_softmax_in_fp32": true,
                "scale_attn_weights": true,
            }),
        ),
        ("mixtral", json!({ "output_router_logits": false, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0 })),
        ("olmo", json!({ "pretraining_tp": 1, "rope_scaling": null, "attention_dropout": 0.0 })),
        ("stablelm", json!({ "hidden_dropout": 0.0, "bos_token_id": 0, "transformers_version": "4.38.0" })),
    ] {
        let as_written = ask(&checkpoint(name).info).unwrap().config;
        assert_eq!(ask(&changed(name, more, |_| {})).unwrap().config, as_written, "{name}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let refused = |name, change: fn(&mut Vec<TensorEntry>)| ask(&changed(name, json!({}), change)).unwrap_err();
    for (name, _) in MODELS {
        let all = ask(&checkpoint(name).info).unwrap().tensors;
        // Any one that is missing: each is named.
        for (missing, _) in &all {
            let info = changed(name, json!({}), |t| t.retain(|t| t.name != *missing));
            let why = ask(&info).unwrap_err();
            assert!(why.contains(missing) && why.contains("missing"), "{why}");
        }
    }
    let why = refused("phi", |t| t.push(TensorEntry::new("lm_head.scale", vec![1], Encoding::Float(FloatType::F32))));
    assert!(why.contains("lm_head.scale") && why.contains("ignored"), "{why}");
    let inv_freq = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let with = changed("phi", json!({}), |t| {
        t.push(TensorEntry::new(inv_freq, vec![4], Encoding::Float(FloatType::F32)));
    });
    ask(&with).unwrap();
    let why = refused("olmo", |t| t.iter_mut().for_each(|t| t.shape.reverse()));
    assert!(why.contains("model.embed_tokens.weight") && why.contains("[64, 384]"), "{why}");
}

#[test]
fn layers_and_experts_beyond_the_tensors_there_are_refused_before_they_are_listed() {
    // Listed, the largest would take a hundred gigabytes.
    let table: &[(&str, Value, &[&str])] = &[
        ("mixtral", json!({ "num_local_experts": 65_536 }), &["num_local_experts is 65536", "at most 4096"]),
        (
            "mixtral",
            json!({ "num_hidden_layers": 65_536, "num_local_experts": 4096 }),
            &["num_hidden_layers is 65536", "num_local_experts is 4096", "805765121 tensors", "has 60"],
        ),
        ("mixtral", json!({ "num_hidden_layers": 65_537 }), &["num_hidden_layers is 65537", "65536"]),
        ("phi", json!({ "num_hidden_layers": 65_536 }), &["num_hidden_layers is 65536", "917505 tensors"]),
        ("olmo", json!({ "num_hidden_layers": 5 }), &["num_hidden_layers is 5", "36 tensors"]),
        // One layer too many: what is missing is named.
        ("olmo", json!({ "num_hidden_layers": 4 }), &["model.layers.3.", "missing", "4 layers"]),
    ];
    for (name, changes, expected) in table {
        let why = ask(&changed(name, changes.clone(), |_| {})).expect_err(&changes.to_string());
        assert!(expected.iter().all(|part| why.contains(part)), "{changes}: {expected:?}: {why}");
    }
    let empty = changed("mixtral", json!({ "num_hidden_layers": 65_536 }), Vec::clear);
    assert!(ask(&empty).unwrap_err().contains("has 0"));
}

#[test]
fn only_f32_is_taken() {
    for (name, _) in MODELS {
        let info = checkpoint(name).info;
        assert!(supported(&info, ComputeDtype::F32).unwrap().is_ok());
        for dtype in [ComputeDtype::F16, ComputeDtype::Bf16] {
            let why = supported(&info, dtype).unwrap().unwrap_err();
            assert!(why.contains("dtype is") && why.contains(name) && why.contains("f32"), "{why}");
        }
    }
}

#[test]
fn a_sliding_window_bounds_the_context() {
    assert_eq!(ask(&checkpoint("starcoder2").info).unwrap().max_context, 128);
    assert_eq!(ask(&checkpoint("mixtral").info).unwrap().max_context, 256);
    let windowed = changed("mixtral", json!({ "sliding_window": 32 }), |_| {});
    assert_eq!(ask(&windowed).unwrap().max_context, 32);
}

#[test]
fn other_architectures_are_not_answered_for() {
    for name in ["gemma2", "llama3rope"] {
        assert!(supported(&checkpoint(name).info, ComputeDtype::Auto).is_none(), "{name}");
    }
}
