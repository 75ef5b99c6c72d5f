//! llm-local as an application uses it, timed from outside.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use llm_local::{ArtifactRef, ComputeDtype, Engine, GenerateRequest, GenerationEvent, Model, ModelSpec};

use crate::Result;

/// A run of prompt and answer, or several of them.
#[derive(Debug)]
pub(crate) struct Timing {
    /// From the request to the first token.
    pub(crate) prefill: Duration,
    /// Tokens computed in that time.
    pub(crate) prefilled: usize,
    /// From the first token to the last.
    pub(crate) decode: Duration,
    /// Tokens computed in that time.
    pub(crate) decoded: usize,
    /// What was generated, in the last run.
    pub(crate) tokens: Vec<u32>,
}

impl Timing {
    /// One run.
    pub(crate) fn new(prefill: Duration, prefilled: usize, decode: Duration, tokens: Vec<u32>) -> Self {
        Self { prefill, prefilled, decode, decoded: tokens.len().saturating_sub(1), tokens }
    }

    /// `runs` runs one after the other, at least one.
    pub(crate) fn sum(runs: usize, mut run: impl FnMut() -> Result<Self>) -> Result<Self> {
        let mut sum = run()?;
        for _ in 1..runs {
            let next = run()?;
            sum.prefill += next.prefill;
            sum.prefilled += next.prefilled;
            sum.decode += next.decode;
            sum.decoded += next.decoded;
            sum.tokens = next.tokens;
        }
        Ok(sum)
    }

    /// Prompt tokens per second.
    pub(crate) fn prefill_rate(&self) -> f64 {
        self.prefilled as f64 / self.prefill.as_secs_f64()
    }

    /// Tokens per second after the first.
    pub(crate) fn decode_rate(&self) -> f64 {
        self.decoded as f64 / self.decode.as_secs_f64()
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
        Ok(Timing::new(first - start, prompt.len(), last - first, tokens))
    })
}
