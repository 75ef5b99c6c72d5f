//! References, and how far logits are from them.

use llm_local_core::{FloatType, TensorData, TensorSource};
use llm_local_weights::SafetensorsSource;
use serde_json::Value;

use super::*;
use crate::decoder::Adapted;

/// The prompts of a reference, with their logits.
pub(super) struct Reference {
    pub(super) rows: Vec<Row>,
}

pub(super) struct Row {
    pub(super) prompt: Vec<u32>,
    pub(super) greedy: Vec<u32>,
    /// Of the last position.
    pub(super) logits: Vec<f32>,
    /// Of every position, for some prompts.
    pub(super) all: Option<Vec<f32>>,
}

impl Reference {
    pub(super) fn open(name: &str) -> Self {
        Self::open_merged(name, false)
    }

    /// With the logits of the merged model, where `merged`, and else of the model with the adapter beside it.
    pub(super) fn open_merged(name: &str, merged: bool) -> Self {
        let json: Value =
            serde_json::from_slice(&std::fs::read(fixture(&format!("reference/{name}.json"))).unwrap()).unwrap();
        let tensors = SafetensorsSource::open(&fixture(&format!("reference/{name}.logits.safetensors"))).unwrap();
        let numbers = |name: String| {
            tensors.entry(&name)?;
            match tensors.read(&name, Some(FloatType::F32)).unwrap() {
                TensorData::F32(v) => Some(v),
                TensorData::Borrowed(bytes) => {
                    Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
                }
                other => panic!("{other:?}"),
            }
        };
        let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let row = |(i, row): (usize, &Value)| Row {
            prompt: ids(&row["prompt_ids"]),
            greedy: ids(&row["greedy_ids"]),
            logits: numbers(format!("{}logits.{i}", if merged { "merged_" } else { "" })).unwrap(),
            all: numbers(format!("all_logits.{i}")),
        };
        let rows: Vec<_> = json["results"].as_array().unwrap().iter().enumerate().map(row).collect();
        assert!(!rows.is_empty());
        Self { rows }
    }
}

pub(super) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

pub(super) fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

/// The logits after `tokens`, which are at `position`, computed in steps of `chunk`.
pub(super) fn prefill(
    model: &mut Decoder,
    cache: &mut <Decoder as StepModel>::Cache,
    tokens: &[u32],
    position: usize,
    chunk: usize,
    adapters: Option<&Adapted>,
) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut position = position;
    for step in tokens.chunks(chunk) {
        logits = model.forward(cache, step, position, adapters).unwrap();
        position += step.len();
    }
    logits
}

/// The logits of all positions of `tokens`, computed in steps of `chunk`.
pub(super) fn all_logits(model: &mut Decoder, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut logits = Vec::new();
    for (i, step) in tokens.chunks(chunk).enumerate() {
        logits.extend(model.all_logits(&mut cache, step, i * chunk, None).unwrap());
    }
    logits
}

/// Checks greedy tokens, as far as logits that are off by `error` decide them.
fn greedy(model: &mut Decoder, row: &Row, adapters: Option<&Adapted>, error: f32, what: &str) {
    let mut cache = model.new_cache(row.prompt.len()).unwrap();
    let mut logits = prefill(model, &mut cache, &row.prompt, 0, usize::MAX, adapters);
    for (i, expected) in row.greedy.iter().enumerate() {
        let next = best(&logits);
        let others = logits.iter().enumerate().filter(|(id, _)| *id != next as usize);
        let second = others.fold(f32::NEG_INFINITY, |most, (_, logit)| most.max(*logit));
        if logits[next as usize] - second <= 3.0 * error {
            return;
        }
        assert_eq!(next, *expected, "{what}: greedy token {i}");
        logits = model.forward(&mut cache, &[next], row.prompt.len() + i, adapters).unwrap();
    }
}

/// The largest error over every prompt's last position and over all positions where the reference has them, in one step
/// and in steps of 7, 3 and 1. Greedy tokens must be equal as far as the
/// error lets the logits decide them.
pub(super) fn largest_error(model: &mut Decoder, reference: &str) -> f32 {
    largest_error_with(model, None, reference, false)
}

/// The same with `adapters`; of a `merged` model no greedy tokens are known.
pub(super) fn largest_error_with(
    model: &mut Decoder,
    adapters: Option<&Adapted>,
    reference: &str,
    merged: bool,
) -> f32 {
    let rows = Reference::open_merged(reference, merged).rows;
    let mut error = 0f32;
    for row in &rows {
        for chunk in [usize::MAX, 7, 3, 1] {
            let mut cache = model.new_cache(row.prompt.len()).unwrap();
            let last = prefill(model, &mut cache, &row.prompt, 0, chunk, adapters);
            error = error.max(difference(&last, &row.logits));
            if let (Some(all), None) = (&row.all, adapters) {
                error = error.max(difference(&all_logits(model, &row.prompt, chunk), all));
            }
        }
    }
    for row in rows.iter().filter(|_| !merged) {
        greedy(model, row, adapters, error, reference);
    }
    error
}

#[track_caller]
pub(super) fn agrees(model: &mut Decoder, reference: &str, bound: f32) {
    let error = largest_error(model, reference);
    assert!(error <= bound, "{reference}: largest error {error}, allowed {bound}");
}
