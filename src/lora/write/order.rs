//! Rows of queries and keys, from GGUF's order to that of the Hugging Face layout.

use std::borrow::Cow;

use llm_local_core::{
    Error, LoraAdapter, LoraModule,
    lora::ReplacementTensor,
    model::{DecoderConfig, Layout, ModuleRole},
};

use super::gather::rows_of;

/// The base's description, if a base is given, and if it can be described.
pub(super) type Decoder<'a> = Option<Result<&'a DecoderConfig, &'a Error>>;

/// What the base is, where it must be known: `why` begins the message otherwise.
pub(super) fn required<'a>(decoder: Decoder<'a>, why: &str) -> Result<&'a DecoderConfig, String> {
    match decoder {
        None => Err(format!("{why}; give the base model that the adapter is for")),
        Some(Err(error)) => Err(format!("{why}, and the base that is given is not understood: {error}")),
        Some(Ok(decoder)) => Ok(decoder),
    }
}

/// `adapter` with all rows in the order of the Hugging Face layout.
pub(super) fn as_hugging_face<'a>(
    adapter: &'a LoraAdapter,
    decoder: Decoder<'_>,
) -> Result<Cow<'a, LoraAdapter>, String> {
    if adapter.row_order == Layout::HuggingFace {
        return Ok(Cow::Borrowed(adapter));
    }
    let why =
        "its rows of queries and keys are in GGUF's order, which depends on the base's architecture and its heads";
    let decoder = required(decoder, why)?;
    if let Some(ReplacementTensor { name, .. }) = adapter.replacements.first() {
        return Err(format!("it replaces `{name}` in the order of a GGUF file, which no other format has"));
    }
    let mut ordered = adapter.clone();
    ordered.row_order = Layout::HuggingFace;
    for module in &mut ordered.modules {
        if let Some(order) = role(decoder, module)?.and_then(|role| decoder.gguf_row_order(role)) {
            permute(module, |row| order.stored(row));
        }
    }
    Ok(Cow::Owned(ordered))
}

/// Puts in each row of the output that which `from` says.
pub(super) fn permute(module: &mut LoraModule, from: impl Fn(usize) -> usize) {
    module.b = rows_of(&module.b, module.rank, &from);
    for vector in [&mut module.magnitude, &mut module.bias].into_iter().flatten() {
        *vector = (0..vector.len()).map(|row| vector[from(row)]).collect();
    }
}

/// The role of the module in the base; `None` if it has no such module. The error is that the base's has another shape.
pub(super) fn role(decoder: &DecoderConfig, module: &LoraModule) -> Result<Option<ModuleRole>, String> {
    let weight = module.weight_name();
    let found = decoder.base_tensors(Layout::HuggingFace).into_iter().find(|tensor| tensor.name == weight);
    let Some(tensor) = found else { return Ok(None) };
    if tensor.shape != [module.out_features, module.in_features] {
        return Err(format!(
            "`{}` has {} outputs and {} inputs, and the base's has the shape {}: it is for another base",
            module.name,
            module.out_features,
            module.in_features,
            crate::lora::message::shape_text(&tensor.shape)
        ));
    }
    Ok(Some(tensor.role))
}
