//! The description of a model, and what of it must stay.

use llm_local_core::{
    Encoding, Error, ModelInfo,
    model::{DecoderConfig, Layout, ModuleRole},
};

/// The description of a model that a decoder computes.
///
/// # Errors
/// Why there is none, without the model's id: whoever passes this on says which model it is about.
pub fn described(info: &ModelInfo) -> Result<&DecoderConfig, String> {
    info.decoder.as_ref().map_err(|error| match error {
        Error::UnsupportedModelFormat { reason, .. } => reason.clone(),
        error => error.to_string(),
    })
}

/// How the first layer's queries are stored: as most of the model is.
pub fn first_matrix(info: &ModelInfo, c: &DecoderConfig, layout: Layout) -> Option<Encoding> {
    let module = [ModuleRole::Query, ModuleRole::QueryKeyValue].iter().find_map(|role| c.module(*role, 0, layout))?;
    info.tensor(&format!("{module}.weight")).map(|t| t.encoding)
}

/// Checks that a model in memory, described by `before`, can have tensors of a checkpoint that `after` describes.
///
/// # Errors
/// What of it would be held otherwise.
pub fn check_same(before: (&DecoderConfig, Layout), after: (&DecoderConfig, Layout)) -> Result<(), String> {
    let ((before, layout), (after, other)) = (before, after);
    if before.tied_embeddings != after.tied_embeddings {
        let is = |tied| if tied { "tied to" } else { "a tensor apart from" };
        let (now, then) = (is(before.tied_embeddings), is(after.tied_embeddings));
        return Err(format!("the output head is {now} the embedding in memory, and would be {then} it"));
    }
    if before.vocab_size != after.vocab_size {
        let (now, then) = (before.vocab_size, after.vocab_size);
        return Err(format!("the vocabulary has {now} rows in memory, and would have {then}"));
    }
    if before != after || layout != other {
        return Err("the description of the model is another than that of what is in memory".into());
    }
    Ok(())
}

/// The error of a replacement that the model `id` does not take.
pub fn refuse_replacement(id: &str, why: &str) -> Error {
    Error::unsupported("replace_tensors", format!("{why}; load `{id}` by another spec for that"))
}
