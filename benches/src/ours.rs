//! llm-local as an application uses it, timed from outside.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use llm_local::{ArtifactRef, ComputeDtype, Engine, GenerateRequest, GenerationEvent, Model, ModelSpec};

use crate::Result;

/// A run of prompt and answer.
#[derive(Debug)]
pub(crate) struct Timing {
    /// From the request to the first token.
    pub(crate) prefill: Duration,
    /// From the first token to the last.
    pub(crate) decode: Duration,
    /// What was generated.
    pub(crate) tokens: Vec<u32>,
}

impl Timing {
    /// Prompt tokens per second, for a prompt of `tokens`.
    pub(crate) fn prefill_rate(&self, tokens: usize) -> f64 {
        tokens as f64 / self.prefill.as_secs_f64()
    }

    /// Tokens per second after the first.
    pub(crate) fn decode_rate(&self) -> f64 {
        (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64()
    }
}

/// An engine that knows of no model.
pub(crate) fn engine() -> Result<Engine> {
    Ok(Engine::builder().cache_dir(std::env::temp_dir().join("llm-local-measure")).offline(true).build()?)
}

/// The spec of the files at `base` and `adapter`.
pub(crate) fn spec(base: &Path, adapter: Option<&Path>, dtype: ComputeDtype) -> Result<ModelSpec> {
    let spec = ModelSpec::new(ArtifactRef::file(base)?).with_dtype(dtype);
    Ok(match adapter {
        Some(adapter) => spec.with_adapter(ArtifactRef::file(adapter)?),
        None => spec,
    })
}

/// Generates `count` tokens greedily, whatever they are.
pub(crate) fn run(model: &Model, prompt: &[u32], count: usize) -> Result<Timing> {
    let request = GenerateRequest::new(prompt.to_vec()).with_max_tokens(count).with_ignore_eos(true);
    let start = Instant::now();
    let mut generation = model.generate(request);
    pollster::block_on(async move {
        let (mut first, mut last, mut tokens) = (start, start, Vec::with_capacity(count));
        while let Some(event) = generation.next().await {
            if let GenerationEvent::Token { id, .. } = event? {
                last = Instant::now();
                if tokens.is_empty() {
                    first = last;
                }
                tokens.push(id);
            }
        }
        if tokens.len() != count {
            return Err(format!("{} tokens were generated; expected {count}", tokens.len()).into());
        }
        Ok(Timing { prefill: first - start, decode: last - first, tokens })
    })
}
