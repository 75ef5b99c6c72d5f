//! Prefill and decode of one model, a round at a time, for scripts that compare with an engine in another process.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use llm_local::{BackendPreference, ComputeDtype};

use crate::{Result, files, ours, speed};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a folder or a GGUF file.
    model: PathBuf,
    /// The backend.
    #[arg(long)]
    backend: String,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Tokens generated.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..))]
    decode: u16,
}

/// One round for each line of standard input, and a line of JSON for each round.
pub(crate) fn serve(args: &Args) -> Result<()> {
    files::touch(&args.model)?;
    let spec = ours::spec(&args.model, None, ComputeDtype::F32)?;
    let spec = spec.with_backend(BackendPreference::Named(args.backend.clone()));
    let model = pollster::block_on(ours::engine()?.load(&spec))?;
    let prompt = speed::prompt(args.prompt, model.info().vocab_size);
    for line in io::stdin().lock().lines() {
        line?;
        let round = ours::run(&model, &prompt, args.decode.into())?;
        let (prefill, decode) = (round.prefill_rate(), round.decode_rate());
        println!("{}", serde_json::json!({ "prefill": prefill, "decode": decode, "tokens": round.tokens }));
        io::stdout().flush()?;
    }
    Ok(pollster::block_on(model.unload())?)
}
