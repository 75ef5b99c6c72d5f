//! Adapters in either order of rows on bases in either layout, and with projections split or fused.

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{
    FloatType, LoraAdapter, ModelFormat, ModelInfo, TensorSource,
    lora::{Floats, ReplacedRows, ReplacementTensor},
    model::{GgufMetadata, GgufValue, Layout},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    MergedSource, bytes, decode,
    naive::{Tensors, merged, wide, worst},
    numbers, stored_floats,
    variants::{Kind, TOLERANCE, kind},
};

pub(super) const VOCABULARY: usize = 10;
const HEAD_DIM: usize = 8;

/// A small decoder.
pub(super) struct Small {
    pub(super) info: ModelInfo,
    pub(super) tensors: Arc<Tensors>,
    /// By the name in the Hugging Face layout: the name in its own, shape and values in the order of the former.
    pub(super) by_name: BTreeMap<String, (String, Vec<usize>, Vec<f64>)>,
}

fn config(kind: &str, tied: bool) -> Value {
    let mut config = json!({
        "model_type": kind, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 32, "tie_word_embeddings": tied, "rope_theta": 10000.0,
    });
    if kind != "phi3" {
        config["attention_bias"] = json!(true);
    }
    config
}

fn metadata(kind: &str) -> GgufMetadata {
    let key = |name: &str| format!("{kind}.{name}");
    let mut metadata = GgufMetadata::default();
    metadata.insert("general.architecture", GgufValue::String(kind.into()));
    for (name, value) in [
        ("context_length", 32),
        ("embedding_length", 16),
        ("block_count", 2),
        ("feed_forward_length", 12),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", HEAD_DIM as i128),
        ("attention.value_length", HEAD_DIM as i128),
        ("rope.dimension_count", HEAD_DIM as i128),
        ("vocab_size", VOCABULARY as i128),
    ] {
        metadata.insert(key(name), GgufValue::Int(value));
    }
    metadata.insert(key("attention.layer_norm_rms_epsilon"), GgufValue::Float(1e-5));
    metadata
}

/// `reshape(heads, 2, head_dim / 2, width).swapaxes(1, 2)` of rows of `width` values: llama.cpp's `permute`.
fn permute<T: Copy>(values: &[T], width: usize) -> Vec<T> {
    let heads = values.len() / width / HEAD_DIM;
    let mut all = Vec::new();
    for head in 0..heads {
        for i in 0..HEAD_DIM / 2 {
            for half in 0..2 {
                let row = head * HEAD_DIM + half * HEAD_DIM / 2 + i;
                all.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
    }
    all
}

fn is_permuted(kind: &str, name: &str) -> bool {
    kind == "llama" && (name.contains("q_proj") || name.contains("k_proj"))
}

pub(super) fn small(kind: &str, layout: Layout, tied: bool, stored: FloatType) -> Small {
    let format = ModelFormat::Safetensors { config: Arc::new(config(kind, tied)) };
    let decoder = ModelInfo::new(kind, format.clone(), Vec::new()).decoder.unwrap();
    let (own, named) = (decoder.base_tensors(layout), decoder.base_tensors(Layout::HuggingFace));
    let mut by_name = BTreeMap::new();
    let mut tensors = Vec::new();
    for (index, (tensor, hf)) in own.into_iter().zip(named).enumerate() {
        let values: Vec<f64> = numbers(index as u64 + 1, tensor.shape.iter().product());
        let in_file = match layout {
            Layout::Gguf if is_permuted(kind, &hf.name) => permute(&values, tensor.shape.get(1).copied().unwrap_or(1)),
            Layout::Gguf if kind == "gemma" && hf.name.contains("norm") => values.iter().map(|v| v + 1.0).collect(),
            _ => values.clone(),
        };
        tensors.push((tensor.name.clone(), tensor.shape.clone(), in_file));
        by_name.insert(hf.name, (tensor.name, tensor.shape, values));
    }
    let tensors = Tensors::new(stored, tensors);
    let format = match layout {
        Layout::Gguf => ModelFormat::Gguf { metadata: Arc::new(metadata(kind)) },
        _ => format,
    };
    let info = ModelInfo::new("small", format, tensors.entries().to_vec());
    assert_eq!(info.decoder.as_ref().unwrap().tied_embeddings, tied);
    Small { info, tensors: Arc::new(tensors), by_name }
}

/// The adapter with its rows of queries and keys in the order of GGUF files.
fn reordered(adapter: &LoraAdapter) -> LoraAdapter {
    let floats = |values: &Floats, width| match values {
        Floats::F32(v) => Floats::F32(permute(v, width)),
        Floats::F16(v) => Floats::F16(permute(v, width)),
        Floats::Bf16(v) => Floats::Bf16(permute(v, width)),
        _ => unreachable!(),
    };
    let mut adapter = adapter.clone().with_row_order(Layout::Gguf);
    for module in adapter.modules.iter_mut().filter(|m| is_permuted("llama", &m.name)) {
        module.b = floats(&module.b, module.rank);
        module.magnitude = module.magnitude.as_ref().map(|m| permute(m, 1));
        module.bias = module.bias.as_ref().map(|b| permute(b, 1));
    }
    for replaced in adapter.replacements.iter_mut().filter(|r| is_permuted("llama", &r.name)) {
        replaced.values = floats(&replaced.values, replaced.shape.get(1).copied().unwrap_or(1));
    }
    adapter
}

fn read(source: &MergedSource, name: &str) -> Vec<f64> {
    decode(&bytes(&source.read(name, Some(FloatType::F32)).unwrap()), FloatType::F32).collect()
}

/// The merged tensor `name`, in the order of the Hugging Face layout, against the definition.
fn check(kind: &str, small: &Small, source: &MergedSource, name: &str, adapters: &[(&LoraAdapter, f64)]) {
    let (own, shape, values) = &small.by_name[name];
    let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
    let is_gguf = matches!(small.info.format, ModelFormat::Gguf { .. });
    let mut values: Vec<f64> = values.iter().map(|v| f64::from(*v as f32)).collect();
    if is_gguf && kind == "gemma" && name.contains("norm") {
        values = small.tensors.values(own).iter().map(|v| v - 1.0).collect();
    }
    let mut expected = merged(name, &values, (rows, columns), false, adapters);
    if is_gguf && is_permuted(kind, name) {
        (expected.values, expected.terms) = (permute(&expected.values, columns), permute(&expected.terms, columns));
    }
    if is_gguf && kind == "gemma" && name.contains("norm") {
        expected.values.iter_mut().for_each(|v| *v += 1.0);
        expected.terms.iter_mut().for_each(|v| *v += 2.0);
    }
    let worst = worst(&read(source, own), &expected, FloatType::F32);
    assert!(worst <= TOLERANCE, "{name}: {worst} of f32's roundings");
}

const MODULES: [(&str, [usize; 2]); 4] = [
    ("model.layers.1.self_attn.q_proj", [16, 16]),
    ("model.layers.1.self_attn.k_proj", [8, 16]),
    ("model.layers.0.self_attn.v_proj", [8, 16]),
    ("model.layers.0.mlp.down_proj", [16, 12]),
];

/// One adapter for all of [`MODULES`].
fn adapter(kind: &Kind, seed: u64) -> LoraAdapter {
    let mut all = LoraAdapter::new(format!("adapter {seed}"), "", vec![]);
    for (index, (name, shape)) in MODULES.into_iter().enumerate() {
        let one = kind.adapter(name, shape, false, seed + 100 * index as u64);
        all.modules.extend(one.modules);
        all.replacements.extend(one.replacements);
        let bias = numbers(seed ^ 77, shape[0]);
        if name.contains("_proj") && !name.contains("mlp") {
            let values = stored_floats(&bias, kind.stored);
            all.replacements.push(ReplacementTensor::new(format!("{name}.bias"), vec![shape[0]], values));
        }
    }
    for module in all.modules.iter_mut().filter(|m| m.name.contains("self_attn")) {
        module.bias = Some(numbers(seed ^ 78, module.out_features).iter().map(|v| *v as f32).collect());
    }
    let (modules, replacements) = (all.modules, all.replacements);
    LoraAdapter::new(all.reference, "", modules).with_replacements(replacements)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn adapters_in_either_order_of_rows_fit_bases_in_either_layout(
        kinds in proptest::collection::vec((kind(), any::<bool>()), 1..3),
        is_gguf: bool,
        seed in 1u64..1 << 30,
    ) {
        let small = small("llama", if is_gguf { Layout::Gguf } else { Layout::HuggingFace }, true, FloatType::F32);
        let plain: Vec<_> = kinds.iter().enumerate().map(|(i, (kind, _))| adapter(kind, seed + i as u64)).collect();
        let given = plain.iter().zip(&kinds).map(|(adapter, (kind, is_gguf))| {
            (Arc::new(if *is_gguf { reordered(adapter) } else { adapter.clone() }), kind.weight)
        }).collect();
        let source = MergedSource::new(small.tensors.clone(), given, &small.info).unwrap();
        let named: Vec<_> = plain.iter().zip(&kinds).map(|(a, (kind, _))| (a, f64::from(kind.weight))).collect();
        for (module, _) in MODULES {
            check("llama", &small, &source, &format!("{module}.weight"), &named);
            if module.contains("self_attn") {
                check("llama", &small, &source, &format!("{module}.bias"), &named);
            }
        }
    }

    #[test]
    fn split_pairs_fit_fused_projections_and_fused_pairs_split_ones(
        kind in kind(),
        is_gguf: bool,
        is_fused: bool,
        seed in 1u64..1 << 30,
    ) {
        let layout = if is_gguf { Layout::Gguf } else { Layout::HuggingFace };
        let base = if is_fused { "phi3" } else { "llama" };
        let small = small(base, layout, true, FloatType::F32);
        let path = "model.layers.1";
        let split = [
            ("self_attn.q_proj", 16),
            ("self_attn.k_proj", 8),
            ("self_attn.v_proj", 8),
            ("mlp.gate_proj", 12),
            ("mlp.up_proj", 12),
        ];
        let fused = [("self_attn.qkv_proj", 32), ("mlp.gate_up_proj", 24)];
        let mut all = LoraAdapter::new("x", "", vec![]);
        for (index, (module, rows)) in if is_fused { &split[..] } else { &fused[..] }.iter().enumerate() {
            let one = kind.adapter(&format!("{path}.{module}"), [*rows, 16], false, seed + index as u64);
            all.modules.extend(one.modules);
            all.replacements.extend(one.replacements);
            all.rows.extend(one.rows);
        }
        let (modules, replacements, rows) = (all.modules, all.replacements, all.rows);
        let adapter = LoraAdapter::new("x", "", modules).with_replacements(replacements).with_rows(rows);
        let weight = f64::from(kind.weight);
        let source =
            MergedSource::new(small.tensors.clone(), vec![(Arc::new(adapter.clone()), kind.weight)], &small.info).unwrap();
        // The whole as a fused one, from whichever there are.
        let one = |names: &[(&str, usize)]| {
            let name = |module: &str| format!("{path}.{module}.weight");
            let mut whole = (Vec::new(), super::naive::Exact::new(Vec::new()));
            for (module, rows) in names {
                let parts: &[(&str, usize)] = match (is_fused, *module) {
                    (true, _) => &[(module, *rows)],
                    (false, "self_attn.qkv_proj") => &split[..3],
                    (false, _) => &split[3..],
                };
                let values: Vec<f64> = if is_fused {
                    let (fused, before) = match *module {
                        "self_attn.q_proj" => ("self_attn.qkv_proj", 0),
                        "self_attn.k_proj" => ("self_attn.qkv_proj", 16),
                        "self_attn.v_proj" => ("self_attn.qkv_proj", 24),
                        "mlp.gate_proj" => ("mlp.gate_up_proj", 0),
                        _ => ("mlp.gate_up_proj", 12),
                    };
                    small.by_name[&name(fused)].2[before * 16..][..rows * 16].to_vec()
                } else {
                    parts.iter().flat_map(|(part, _)| small.by_name[&name(part)].2.clone()).collect()
                };
                let values: Vec<f64> = values.into_iter().map(|v| f64::from(v as f32)).collect();
                let expected = merged(&name(module), &values, (*rows, 16), false, &[(&adapter, weight)]);
                whole.1.values.extend(expected.values);
                whole.1.terms.extend(expected.terms);
                if !is_fused {
                    for (part, _) in parts {
                        let found = read(&source, &small.by_name[&name(part)].0);
                        let back = if is_gguf && is_permuted("llama", part) { unpermute(&found) } else { found };
                        whole.0.extend(back);
                    }
                }
            }
            whole
        };
        let (groups, names): ([&[(&str, usize)]; 2], _) = if is_fused {
            ([&split[..3], &split[3..]], ["self_attn.qkv_proj", "mlp.gate_up_proj"])
        } else {
            ([&fused[..1], &fused[1..]], ["", ""])
        };
        for (group, fused) in groups.into_iter().zip(names) {
            let (mut found, expected) = one(group);
            if is_fused {
                found = read(&source, &small.by_name[&format!("{path}.{fused}.weight")].0);
            }
            let worst = worst(&found, &expected, FloatType::F32);
            prop_assert!(worst <= TOLERANCE, "{worst} of f32's roundings");
        }
    }
}

/// The inverse of [`permute`] for rows of 16 values.
fn unpermute(values: &[f64]) -> Vec<f64> {
    let order = permute(&(0..values.len() / 16).collect::<Vec<_>>(), 1);
    let mut back = vec![0.0; values.len()];
    for (stored, row) in order.into_iter().enumerate() {
        back[row * 16..(row + 1) * 16].copy_from_slice(&values[stored * 16..(stored + 1) * 16]);
    }
    back
}

#[test]
fn replaced_norms_of_gemma_have_their_offset_in_gguf_files() {
    for layout in [Layout::HuggingFace, Layout::Gguf] {
        let small = small("gemma", layout, true, FloatType::F32);
        let names = ["model.norm.weight", "model.layers.1.input_layernorm.weight"];
        let replaced =
            names.map(|name| ReplacementTensor::new(name, vec![16], stored_floats(&numbers(9, 16), FloatType::F32)));
        let adapter = LoraAdapter::new("x", "", vec![]).with_replacements(replaced.to_vec());
        for weight in [1.0, 0.5] {
            let given = vec![(Arc::new(adapter.clone()), weight)];
            let source = MergedSource::new(small.tensors.clone(), given, &small.info).unwrap();
            for name in names {
                check("gemma", &small, &source, name, &[(&adapter, f64::from(weight))]);
            }
        }
    }
}

#[test]
fn rows_are_counted_in_the_adapter_s_own_order() {
    let small = small("llama", Layout::Gguf, true, FloatType::F32);
    let name = "model.layers.0.self_attn.q_proj.weight";
    let rows = ReplacedRows::new(name, vec![1, 12], numbers(5, 32).iter().map(|v| *v as f32).collect::<Vec<_>>());
    let adapter = LoraAdapter::new("x", "", vec![]).with_rows(vec![rows.clone()]);
    let source = MergedSource::new(small.tensors.clone(), vec![(Arc::new(adapter.clone()), 1.0)], &small.info).unwrap();
    check("llama", &small, &source, name, &[(&adapter, 1.0)]);
    // Row 1 of the first head stands third in the file; row 4 of the second eleventh there, after row 0's place.
    let found = read(&source, "blk.0.attn_q.weight");
    assert_eq!(found[2 * 16..3 * 16], wide(&rows.values)[..16]);
    assert_eq!(found[9 * 16..10 * 16], wide(&rows.values)[16..]);
}
