//! Modules that lie in one matrix or in no layer, and those that tensors are of.

use std::collections::HashSet;

use llm_local_core::{
    Error, Result,
    model::{DecoderConfig, Layout, ModuleRole as R},
};

use super::TIED_HEAD;

/// The modules of no layer.
pub const AROUND: [R; 3] = [R::Embedding, R::FinalNorm, R::Head];

/// Modules whose rows are one matrix where they are held alike.
pub const STACKED: [&[R]; 2] = [&[R::Query, R::Key, R::Value], &[R::Gate, R::Up]];

/// The modules, by role and layer, that have the tensors `names` of the model `id`. Of a tied model, a head that is stored
/// beside the embedding is that.
///
/// # Errors
/// [`Error::InvalidSpec`] for a name that is none of the model's.
pub fn touched(id: &str, c: &DecoderConfig, layout: Layout, names: &[String]) -> Result<HashSet<(R, usize)>> {
    let mut names: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut touched = HashSet::new();
    for tensor in c.base_tensors(layout) {
        if names.remove(&*tensor.name) {
            touched.insert((tensor.role, tensor.layer));
        }
    }
    if c.tied_embeddings && layout == Layout::HuggingFace && names.remove(TIED_HEAD) {
        touched.insert((R::Embedding, 0));
    }
    match names.into_iter().min() {
        None => Ok(touched),
        Some(name) => {
            let architecture = c.architecture.name();
            let reason = format!("`{name}` is no tensor of `{id}`, which is a {architecture}");
            Err(Error::invalid_spec("names of tensors to replace", reason))
        }
    }
}
