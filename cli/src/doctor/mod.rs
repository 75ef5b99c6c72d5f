//! `doctor`: what this machine has for models, and which of them fit.

mod fits;
mod found;
mod json;
mod text;

use std::process::ExitCode;

use llm_local::{Engine, Result};

use crate::{args::Doctor, print};
use {fits::Verdict, found::Found};

/// Shows what `engine` can use here, and which models fit. Those that are kept are judged by `offline`, an engine that asks
/// nobody. What cannot be told of one part is said in its place.
pub(crate) async fn doctor(engine: &Engine, offline: &Engine, args: &Doctor) -> Result<ExitCode> {
    let found = Found::of(engine, args.memory.policy(false)?);
    let models = fits::all((engine, offline), &found.status, &args.references).await;
    let text = match args.json {
        true => json::of(&found, &models).to_string() + "\n",
        false => text::of(&found, &models),
    };
    let printed = print(&text)?;
    let cannot_run = models.models.iter().any(|model| model.asked && !matches!(model.verdict, Verdict::Fits { .. }));
    Ok(if cannot_run { ExitCode::FAILURE } else { printed })
}
