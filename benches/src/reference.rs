//! A model's outputs against reference outputs, through the facade, in f32.

use std::{
    fs,
    path::{Path, PathBuf},
};

use llm_local::{AdapterPolicy, BackendPreference, ComputeDtype, Model, core::LogitsRequest};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::{Result, files, ours};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a folder or a GGUF file.
    base: PathBuf,
    /// The adapter's folder.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Runs the adapter beside the weights instead of merging it.
    #[arg(long, requires = "adapter")]
    beside: bool,
    /// The backend; without it, the best that can run the model.
    #[arg(long)]
    backend: Option<String>,
    /// The reference: a `.json` file with a `.logits.safetensors` file beside it.
    #[arg(long)]
    reference: PathBuf,
    /// The largest absolute difference of logits that passes.
    #[arg(long, default_value_t = 5e-4)]
    bound: f32,
}

/// What a reference implementation gave.
#[derive(Deserialize)]
struct Reference {
    engine: String,
    results: Vec<Expected>,
}

/// What it gave for one prompt.
#[derive(Deserialize)]
struct Expected {
    prompt: String,
    prompt_ids: Vec<u32>,
    /// The name of the logits after the prompt's last token.
    logits_key: String,
    /// Greedy tokens, not stopped by an end of sequence.
    greedy_ids: Vec<u32>,
    /// The smallest gap between the two best logits on the greedy path.
    min_margin: f32,
}

pub(crate) fn check(args: &Args) -> Result<()> {
    let at = |path: &Path| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let reference: Reference = serde_json::from_slice(&at(&args.reference)?)?;
    let logits = at(&args.reference.with_extension("logits.safetensors"))?;
    let logits = SafeTensors::deserialize(&logits)?;
    let policy = if args.beside { AdapterPolicy::KeepUnmerged } else { AdapterPolicy::Auto };
    let mut spec = ours::spec(&args.base, args.adapter.as_deref(), ComputeDtype::F32)?.with_adapter_policy(policy);
    if let Some(name) = &args.backend {
        spec = spec.with_backend(BackendPreference::Named(name.clone()));
    }
    let model = pollster::block_on(ours::engine()?.load(&spec))?;
    println!(
        "{}{} {}{} against {}: at most {}",
        files::name(&args.base),
        args.backend.as_deref().map_or(String::new(), |name| format!(" on {name}")),
        args.adapter.as_deref().map_or("without an adapter".into(), |a| format!("with {}", files::name(a))),
        if args.beside { " beside its weights" } else { "" },
        reference.engine,
        args.bound
    );
    let mut failures = 0;
    for expected in &reference.results {
        let verdict = one(&model, expected, &floats(&logits, &expected.logits_key)?, args.bound)?;
        println!("  {:?}: {}", expected.prompt, verdict.as_deref().unwrap_or_else(|failure| failure));
        failures += usize::from(verdict.is_err());
    }
    pollster::block_on(model.unload())?;
    match (failures, reference.results.len()) {
        (_, 0) => Err(format!("{}: it has no results", args.reference.display()).into()),
        (0, _) => Ok(()),
        (failures, all) => Err(format!("{failures} of {all} prompts differ from the reference").into()),
    }
}

/// What was found for one prompt; the inner error is a difference from the reference.
fn one(model: &Model, expected: &Expected, logits: &[f32], bound: f32) -> Result<Result<String, String>> {
    let found = pollster::block_on(model.logits(LogitsRequest::new(expected.prompt_ids.clone())))?;
    if found.len() != logits.len() {
        return Ok(Err(format!("FAILED: {} logits; expected {}", found.len(), logits.len())));
    }
    let error = largest_difference(&found, logits);
    if error.is_nan() || error > bound {
        return Ok(Err(format!("FAILED: largest difference {error:.2e}")));
    }
    // The same bits for the text as for its tokens: the tokenizer gives the same tokens.
    if pollster::block_on(model.logits(LogitsRequest::new(expected.prompt.as_str())))? != found {
        return Ok(Err(format!("FAILED: the text gives other logits than its tokens {:?}", expected.prompt_ids)));
    }
    if expected.min_margin <= 2.0 * error {
        return Ok(Ok(format!("largest difference {error:.2e}; the greedy path is too close to compare")));
    }
    let tokens = ours::run(model, &expected.prompt_ids, expected.greedy_ids.len())?.tokens;
    if tokens != expected.greedy_ids {
        return Ok(Err(format!("FAILED: greedy tokens {tokens:?}; expected {:?}", expected.greedy_ids)));
    }
    Ok(Ok(format!("largest difference {error:.2e}, {} greedy tokens equal", tokens.len())))
}

/// NaN if any difference is.
fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, d| if largest.is_nan() || d <= largest { largest } else { d })
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let tensor = tensors.tensor(name)?;
    if tensor.dtype() != safetensors::Dtype::F32 {
        return Err(format!("`{name}` is {:?}; expected F32", tensor.dtype()).into());
    }
    let (values, _) = tensor.data().as_chunks::<4>();
    Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_the_largest_difference() {
        assert_eq!(largest_difference(&[1.0, 2.0, 3.5], &[1.5, 2.0, 3.0]), 0.5);
        assert!(largest_difference(&[1.0, f32::NAN, 9.0], &[1.0, 2.0, 3.0]).is_nan());
        assert!(largest_difference(&[f32::NAN, 9.0], &[1.0, 3.0]).is_nan());
    }
}
