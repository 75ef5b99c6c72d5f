//! `export`: a model with its adapters merged in, as a folder.

use std::process::ExitCode;

use indicatif::DecimalBytes;
use llm_local::{Engine, Result};

use crate::{
    args::Export,
    bar,
    run::{cancel_on_interrupt, unless_cancelled},
};

/// Writes the model of the spec into a new folder.
pub(crate) async fn export(engine: &Engine, args: Export) -> Result<ExitCode> {
    let spec = args.spec.spec()?;
    let cancel = cancel_on_interrupt()?;
    let export = engine.export_with_progress(&spec, &args.into, Some(bar::progress()));
    let exported = unless_cancelled(export, &cancel).await?;
    exported.notes.iter().for_each(|note| eprintln!("warning: {note}"));
    eprintln!(
        "{} tensors, {} of them merged, {} in {}",
        exported.tensors,
        exported.merged_tensors,
        DecimalBytes(exported.weight_bytes),
        exported.folder.display()
    );
    Ok(ExitCode::SUCCESS)
}
