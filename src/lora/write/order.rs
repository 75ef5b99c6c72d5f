//! Rows of queries and keys, from GGUF's order to that of the Hugging Face layout.

use std::{borrow::Cow, collections::BTreeMap};

use llm_local_core::{
    Error, LoraAdapter, LoraModule, ModelInfo,
    model::{BaseTensor, DecoderConfig, Layout, ModuleRole},
};

use crate::lora::{message::shape_text, rows::permute};

/// The base, if one is given, and if it can be described.
pub(super) type Base<'a> = Option<Result<Described<'a>, &'a Error>>;

/// A base that can be described.
pub(super) struct Described<'a> {
    pub(super) decoder: &'a DecoderConfig,
    tensors: BTreeMap<String, BaseTensor>,
}

impl<'a> Described<'a> {
    /// That of `info`.
    pub(super) fn of(info: &'a ModelInfo) -> Result<Self, &'a Error> {
        let decoder = info.decoder.as_ref()?;
        let tensors = decoder.base_tensors(Layout::HuggingFace).into_iter();
        Ok(Self { decoder, tensors: tensors.map(|tensor| (tensor.name.clone(), tensor)).collect() })
    }

    /// The role of the module in the base; `None` if it has no such module. The error is that the base's has another shape.
    pub(super) fn role(&self, module: &LoraModule) -> Result<Option<ModuleRole>, String> {
        let Some(tensor) = self.tensors.get(&module.weight_name()) else { return Ok(None) };
        if module.experts.is_none() && !module.transposed && tensor.shape != [module.out_features, module.in_features] {
            return Err(format!(
                "`{}` has {} outputs and {} inputs, and the base's has the shape {}: it is for another base",
                module.name,
                module.out_features,
                module.in_features,
                shape_text(&tensor.shape)
            ));
        }
        Ok(Some(tensor.role))
    }
}

/// Whether the modules of `adapter` are shaped as those of the base are, as far as that is known.
pub(super) fn check(adapter: &LoraAdapter, base: &Base<'_>) -> Result<(), String> {
    let Some(Ok(base)) = base else { return Ok(()) };
    adapter.modules.iter().try_for_each(|module| base.role(module).map(drop))
}

/// What the base is, where it must be known: `why` begins the message otherwise.
pub(super) fn required<'b, 'a>(base: &'b Base<'a>, why: &str) -> Result<&'b Described<'a>, String> {
    match base {
        None => Err(format!("{why}; give the base model that the adapter is for")),
        Some(Err(error)) => Err(format!("{why}, and the base that is given is not understood: {error}")),
        Some(Ok(base)) => Ok(base),
    }
}

/// `adapter` with all rows in the order of the Hugging Face layout.
pub(super) fn as_hugging_face<'a>(adapter: &'a LoraAdapter, base: &Base<'_>) -> Result<Cow<'a, LoraAdapter>, String> {
    if adapter.row_order == Layout::HuggingFace {
        return Ok(Cow::Borrowed(adapter));
    }
    let why =
        "its rows of queries and keys are in GGUF's order, which depends on the base's architecture and its heads";
    let base = required(base, why)?;
    let replaced = adapter.replacements.iter().map(|r| &r.name).chain(adapter.rows.iter().map(|r| &r.name)).next();
    if let Some(name) = replaced {
        return Err(format!("it replaces `{name}` in the order of a GGUF file, which no other format has"));
    }
    let mut ordered = adapter.clone();
    ordered.row_order = Layout::HuggingFace;
    for module in &mut ordered.modules {
        if let Some(order) = base.role(module)?.and_then(|role| base.decoder.gguf_row_order(role)) {
            permute(module, |row| order.stored(row));
        }
    }
    Ok(Cow::Owned(ordered))
}
