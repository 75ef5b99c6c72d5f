//! Logits against references computed by transformers in float32, step by step, without a worker.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::{Device, Tensor};
use llm_local_backend_common::{decoder::Loading, worker::StepModel};
use llm_local_core::{
    ComputeDtype, LoadOptions,
    model::{Architecture, DecoderConfig},
};
use llm_local_weights::Checkpoint;
use serde_json::Value;

use crate::{
    decoder::Decoder,
    device::Devices,
    support::{self, Supported},
};

mod adapters;
mod adapters_merged;
mod adapters_refused;
mod adapters_resplit;
mod architectures;
mod bounds;
mod longrope;
mod more;
mod quantized;
mod replaced;
mod sessions;
mod tiny_llama;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

/// What a model's config.json says.
pub(crate) fn description(model: &str, config: Option<&str>) -> DecoderConfig {
    dense_checkpoint(model, config).info.decoder.clone().unwrap()
}

/// The folder of a model; `config` replaces its config.json with that of a variant.
fn dense_checkpoint(model: &str, config: Option<&str>) -> Checkpoint {
    let path = |file: &str| fixture(&format!("models/{model}")).join(file);
    let config =
        config.map_or_else(|| path("config.json"), |name| fixture(&format!("models/variants/{name}.config.json")));
    let files = [("config.json", config), ("model.safetensors", path("model.safetensors"))];
    Checkpoint::open(model, &files.map(|(name, path)| (name.to_owned(), path)).into()).unwrap()
}

fn gguf_checkpoint(name: &str) -> Checkpoint {
    let file = format!("{name}.gguf");
    let path = fixture("gguf").join(&file);
    Checkpoint::open(&file, &BTreeMap::from([(file.clone(), path)])).unwrap()
}

fn options(context: usize, dtype: ComputeDtype) -> LoadOptions {
    LoadOptions::new(context).with_device("cpu").with_dtype(dtype)
}

fn supported(checkpoint: &Checkpoint, options: &LoadOptions) -> Supported {
    support::check(&checkpoint.info, options, &Devices::probe()).unwrap()
}

fn load(checkpoint: &Checkpoint, dtype: ComputeDtype) -> Decoder {
    let context = checkpoint.info.decoder.as_ref().unwrap().max_positions.min(512);
    let options = options(context, dtype);
    let loading = Loading::new(&options, 1);
    Decoder::load(&supported(checkpoint, &options), &*checkpoint.tensors, context, loading).unwrap()
}

/// tiny-llama in `dtype`.
fn tiny(dtype: ComputeDtype) -> Decoder {
    load(&dense_checkpoint("tiny-llama", None), dtype)
}

/// A GGUF file with what is dense in it in f32.
fn gguf(name: &str) -> Decoder {
    load(&gguf_checkpoint(name), ComputeDtype::F32)
}

/// The prompts of a reference, with their logits.
struct Reference {
    rows: Vec<Row>,
}

struct Row {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    margin: f64,
    /// Of the last position.
    logits: Vec<f32>,
    /// Of every position, for some prompts.
    all: Option<Vec<f32>>,
}

impl Reference {
    fn open(name: &str) -> Self {
        Self::open_merged(name, false)
    }

    /// With the logits of the merged model, where `merged`, and else of the model with the adapter beside it.
    fn open_merged(name: &str, merged: bool) -> Self {
        let json: Value =
            serde_json::from_slice(&std::fs::read(fixture(&format!("reference/{name}.json"))).unwrap()).unwrap();
        let path = fixture(&format!("reference/{name}.logits.safetensors"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let numbers =
            |name: String| tensors.get(&name).map(|t: &Tensor| t.flatten_all()?.to_vec1()).transpose().unwrap();
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let rows: Vec<_> = json["results"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, row)| Row {
                prompt: ids(&row["prompt_ids"]),
                greedy: ids(&row["greedy_ids"]),
                margin: row["min_margin"].as_f64().unwrap(),
                logits: numbers(format!("{}logits.{i}", if merged { "merged_" } else { "" })).unwrap(),
                all: numbers(format!("all_logits.{i}")),
            })
            .collect();
        assert!(!rows.is_empty());
        Self { rows }
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

/// The logits after `tokens`, computed in steps of `chunk`.
fn prefill<M: StepModel>(
    model: &mut M,
    cache: &mut M::Cache,
    tokens: &[u32],
    position: usize,
    chunk: usize,
) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut position = position;
    for step in tokens.chunks(chunk) {
        logits = model.forward(cache, step, position, None).unwrap();
        position += step.len();
    }
    logits
}

/// The logits of all positions of `tokens`, computed in steps of `chunk`.
fn all_logits(model: &mut Decoder, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut logits = Vec::new();
    for (i, step) in tokens.chunks(chunk).enumerate() {
        logits.extend(model.all_logits(&mut cache, step, i * chunk, None).unwrap());
    }
    logits
}

/// Checks greedy tokens.
fn greedy(model: &mut Decoder, row: &Row, what: &str) {
    let mut cache = model.new_cache(row.prompt.len()).unwrap();
    let mut next = best(&prefill(model, &mut cache, &row.prompt, 0, usize::MAX));
    for (i, expected) in row.greedy.iter().enumerate() {
        assert_eq!(next, *expected, "{what}: greedy token {i}");
        next = best(&model.forward(&mut cache, &[next], row.prompt.len() + i, None).unwrap());
    }
}

/// The largest error over every prompt's last position and over all positions where the reference has them, in one step
/// and in steps of 7, 3 and 1. Greedy tokens must be equal wherever the margin decides them.
fn largest_error(model: &mut Decoder, name: &str, rows: impl Fn(usize) -> bool) -> f32 {
    let reference = Reference::open(name);
    let mut error = 0f32;
    for (_, row) in reference.rows.iter().enumerate().filter(|(i, _)| rows(*i)) {
        for chunk in [usize::MAX, 7, 3, 1] {
            let mut cache = model.new_cache(row.prompt.len()).unwrap();
            let last = difference(&prefill(model, &mut cache, &row.prompt, 0, chunk), &row.logits);
            let all = row.all.as_ref().map_or(0.0, |all| difference(&all_logits(model, &row.prompt, chunk), all));
            error = error.max(last).max(all);
        }
    }
    for (i, row) in reference.rows.iter().enumerate().filter(|(i, row)| rows(*i) && row.margin > 2.0 * f64::from(error))
    {
        greedy(model, row, &format!("{name}, prompt {i}"));
    }
    error
}

#[track_caller]
fn agrees(model: &mut Decoder, name: &str, bound: f32) {
    let error = largest_error(model, name, |_| true);
    assert!(error <= bound, "{name}: largest error {error}, allowed {bound}");
}

/// How far logits may be from a model's references. Gemma's bound tells the tanh GELU from the exact one, which changes
/// its logits by 0.0017 to 0.003.
fn bound(name: &str) -> f32 {
    if name.contains("gemma") { 5e-4 } else { 1e-3 }
}

#[track_caller]
fn dense(model: &str, architecture: Architecture) {
    let checkpoint = dense_checkpoint(model, None);
    assert_eq!(checkpoint.info.decoder.as_ref().unwrap().architecture, architecture);
    agrees(&mut load(&checkpoint, ComputeDtype::F32), model, bound(model));
}

#[track_caller]
fn variant(model: &str, name: &str) {
    agrees(&mut load(&dense_checkpoint(model, Some(name)), ComputeDtype::F32), name, bound(name));
}

#[track_caller]
fn twin(name: &str) {
    agrees(&mut gguf(name), name, bound(name));
}
