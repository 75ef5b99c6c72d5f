//! A process that holds models.

use std::{path::PathBuf, time::Duration};

use llm_local::{ComputeDtype, Engine, GenerateRequest, ModelSpec, memory::MemoryPolicy};

use super::{Says, engine, say, say_holds, wait_for_a_line};
use crate::{Result, files, ours};

/// Tokens generated with each model.
const TOKENS: usize = 12;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: folders or GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Unloads them when memory runs short.
    #[arg(long)]
    monitor: bool,
    /// Seconds after which pressure is over that nobody reports any more.
    #[arg(long, default_value_t = 10)]
    calm: u64,
}

pub(crate) fn hold(args: &Args) -> Result<()> {
    let engine = engine(MemoryPolicy::new().with_calm(Duration::from_secs(args.calm)))?;
    say_holds(0)?;
    if args.monitor {
        engine.start_monitoring()?;
    }
    let mut held = Vec::new();
    for path in &args.models {
        let spec = ours::spec(path, None, ComputeDtype::Auto)?;
        let tokens = pollster::block_on(generate(&engine, &spec))?;
        held.push((files::name(path), spec, tokens));
        say_holds(held.len())?;
    }
    wait_for_a_line()?;
    for (name, spec, before) in &held {
        let tokens = pollster::block_on(generate(&engine, spec))?;
        let same = tokens == *before;
        let (what, reason, expected) = (name.as_str(), "Length".to_owned(), before.len());
        say(&Says::Ended { what, reason, tokens: tokens.len(), expected, same, cached: 0 })?;
        if !same {
            return Err(format!("{name}: the tokens are {tokens:?}; expected {before:?}, as before").into());
        }
    }
    Ok(())
}

/// The tokens that the model of `spec` says, which is loaded if it is not.
async fn generate(engine: &Engine, spec: &ModelSpec) -> Result<Vec<u32>> {
    let request = GenerateRequest::new("Once upon a time").with_max_tokens(TOKENS).with_ignore_eos(true);
    let done = engine.generate(spec, request).await?.complete().await?;
    match done.tokens.len() {
        TOKENS => Ok(done.tokens),
        count => Err(format!("{count} tokens were generated; expected {TOKENS}").into()),
    }
}
