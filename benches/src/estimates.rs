//! What a model was estimated to take, by part, against what a process that runs it does take.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use llm_local::{
    ComputeDtype, ContextLength, GenerateRequest, GenerationEvent, Model,
    core::{MemoryEstimate, SessionId, TrimLevel},
};
use serde::{Deserialize, Serialize};

use crate::{
    Result, files, ours,
    resident::{resident, status},
};

/// Tokens generated behind the prompt, which together fill the context.
const TOKENS: usize = 4;

/// The KV cache of the generation stays with it.
const SESSION: &str = "measured";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Context lengths. One that a model does not reach, or the engine does not give it here, is left out, and said so.
    #[arg(long, value_delimiter = ',', default_value = "512,2048,4096,8192")]
    contexts: Vec<u32>,
    /// What dense weights are computed in.
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// How far an estimate may be from what is measured, in percent of the latter.
    #[arg(long, default_value_t = 10.0)]
    within: f64,
}

#[derive(clap::Args)]
pub(crate) struct One {
    /// The model: a folder or a GGUF file.
    model: PathBuf,
    /// Tokens.
    #[arg(long)]
    context: u32,
    /// What dense weights are computed in.
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dtype {
    Auto,
    F32,
    F16,
}

impl Dtype {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn compute(self) -> ComputeDtype {
        match self {
            Self::Auto => ComputeDtype::Auto,
            Self::F32 => ComputeDtype::F32,
            Self::F16 => ComputeDtype::F16,
        }
    }
}

/// What a process saw: anonymous memory in bytes, as growth since before the load.
#[derive(Serialize, Deserialize)]
struct Seen {
    /// Tokens that the model was loaded for.
    context: usize,
    /// Why so many.
    context_reason: String,
    estimate: MemoryEstimate,
    /// When the load had ended.
    loaded: u64,
    /// The most while tokens were computed.
    peak: u64,
    /// Behind the generation, with the session's KV cache, and with what the allocator keeps of the step's tensors.
    after: u64,
    /// The same after [`Model::trim`].
    trimmed: u64,
    /// Bytes of the KV cache, as the model reports them.
    kv_cache: u64,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "estimates against RssAnon, in MB (10^6 bytes), growth since before the load; {TOKENS} tokens behind a prompt that \
         fill the context together;\n\
         \"running\" is the estimate's weights + text + KV cache + working against the peak of the generation, \"held\" its \
         weights + text + KV cache\nagainst what is there behind the generation, its session's KV cache with it, once the \
         model was trimmed. Ratios are estimate / measured,\nat most {} % from 1. Beside them, not judged: after the load, \
         and behind the generation before the trim",
        args.within
    );
    println!(
        "  {:<34} {:>5} {:>7} | {:>7} {:>5} {:>6} {:>7} {:>6} | {:>7} {:>7} {:>5} | {:>7} {:>7} {:>5} | {:>7} {:>7}",
        "",
        "dtype",
        "context",
        "weights",
        "text",
        "KV",
        "working",
        "l.peak",
        "running",
        "peak",
        "ratio",
        "held",
        "trimmed",
        "ratio",
        "loaded",
        "after"
    );
    let mut failures = Vec::new();
    for model in &args.models {
        // Beforehand, so that whether it is cached makes no difference.
        files::touch(model)?;
        for context in &args.contexts {
            failures.extend(one(model, *context, args)?);
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Prints the row of one model with one context; gives what is wrong with it.
fn one(model: &Path, context: u32, args: &Args) -> Result<Vec<String>> {
    let (name, dtype) = (files::name(model), args.dtype.name());
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("estimated").arg(model).args(["--context", &context.to_string(), "--dtype", &dtype]);
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let seen: Seen = serde_json::from_slice(&output.stdout)?;
    if seen.context != context as usize {
        println!("  {name:<34} {dtype:>5} {context:>7} | left out: {}", seen.context_reason);
        return Ok(Vec::new());
    }
    let e = seen.estimate;
    let (running, held) = (e.running(), e.held() + e.kv_cache);
    let ratio = |estimate: u64, measured: u64| estimate as f64 / measured as f64;
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    println!(
        "  {name:<34} {dtype:>5} {context:>7} | {:>7} {:>5} {:>6} {:>7} {:>6} | {:>7} {:>7} {:>5.2} | {:>7} {:>7} {:>5.2} | \
         {:>7} {:>7}",
        mb(e.weights),
        mb(e.text),
        mb(e.kv_cache),
        mb(e.working),
        mb(e.load_peak),
        mb(running),
        mb(seen.peak),
        ratio(running, seen.peak),
        mb(held),
        mb(seen.trimmed),
        ratio(held, seen.trimmed),
        mb(seen.loaded),
        mb(seen.after)
    );
    let judged = [("while running", running, seen.peak), ("held with its KV cache", held, seen.trimmed)];
    let mut failures: Vec<String> = judged
        .iter()
        .filter(|(_, estimate, measured)| !is_within(*estimate, *measured, args.within))
        .map(|(when, estimate, measured)| {
            format!("{name}, {dtype}, {context} tokens: {} MB {when}, estimated {}", mb(*measured), mb(*estimate))
        })
        .collect();
    if seen.kv_cache != e.kv_cache {
        let (found, expected) = (seen.kv_cache, e.kv_cache);
        failures.push(format!("{name}, {context} tokens: the KV cache has {found} bytes, estimated {expected}"));
    }
    Ok(failures)
}

/// Whether `estimate` is at most `percent` of `measured` away from it.
fn is_within(estimate: u64, measured: u64, percent: f64) -> bool {
    estimate.abs_diff(measured) as f64 <= measured as f64 * percent / 100.0
}

/// Loads, fills the context, and prints what was seen; `measure` runs it.
pub(crate) fn estimated(args: &One) -> Result<()> {
    let spec =
        ours::spec(&args.model, None, args.dtype.compute())?.with_context_length(ContextLength::Tokens(args.context));
    let engine = ours::engine()?;
    let before = resident()?.anonymous;
    let growth = |now: u64| now.saturating_sub(before);
    let model = pollster::block_on(engine.load(&spec))?;
    let loaded = growth(resident()?.anonymous);
    let planned = model.plan().model.as_ref().ok_or("the plan of a loaded model says nothing of it")?;
    let (estimate, context) = (planned.estimate, model.info().context_length);
    // The peak of all resident memory begins anew here (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").map_err(|e| format!("/proc/self/clear_refs: {e}; this needs Linux"))?;
    pollster::block_on(fill(&model, context))?;
    // What is no anonymous memory are pages of the program, of which there are never fewer.
    let anonymous = resident()?.anonymous;
    let peak = growth(status("VmHWM")?.saturating_sub(status("VmRSS")?.saturating_sub(anonymous)));
    let kv_cache = model.memory().kv_cache;
    pollster::block_on(model.trim(TrimLevel::Caches))?;
    let trimmed = growth(resident()?.anonymous);
    let context_reason = format!("{context} tokens: {}", planned.context_reason);
    let seen = Seen { context, context_reason, estimate, loaded, peak, after: growth(anonymous), trimmed, kv_cache };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// Generates in a session until the context is full.
async fn fill(model: &Model, context: usize) -> Result<()> {
    let vocab = model.info().vocab_size;
    // Any tokens will do; a step that spreads them over the vocabulary.
    let prompt: Vec<u32> = (0..context - TOKENS).map(|i| (i * 7919 % vocab) as u32).collect();
    let request = GenerateRequest::new(prompt).with_max_tokens(TOKENS).with_ignore_eos(true);
    let mut generation = model.generate(request.with_session(SessionId::new(SESSION)));
    let mut tokens = 0;
    while let Some(event) = generation.next().await {
        if let GenerationEvent::Token { .. } = event? {
            tokens += 1;
        }
    }
    if tokens == TOKENS { Ok(()) } else { Err(format!("{tokens} tokens were generated; expected {TOKENS}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_the_base_of_the_percentage() {
        assert!(is_within(90, 100, 10.0) && is_within(110, 100, 10.0));
        assert!(!is_within(89, 100, 10.0) && !is_within(111, 100, 10.0));
    }
}
