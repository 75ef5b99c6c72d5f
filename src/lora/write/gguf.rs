//! GGUF, of llama.cpp.
//!
//! Source of the rules: llama.cpp `src/llama-adapter.cpp` and `convert_lora_to_gguf.py`.

use std::borrow::Cow;

use gguf_rs_lib::format::metadata::MetadataValue;
use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, BaseHint},
    model::{Architecture, Layout, ModuleRole},
};

use super::{
    files::{Container, Files, Tensor},
    order::{Base, required},
    scale::{folded, most_common},
};
use crate::lora::{floats, message::some_of, rows::rows_of};

/// `adapter` as llama.cpp's converter writes it. The error names the module and what GGUF cannot express.
pub(super) fn files<'a>(adapter: &'a LoraAdapter, base: &Base<'_>) -> Result<Files<'a>, String> {
    check(adapter)?;
    let base = required(base, "names of tensors and the order of their rows are the base's in GGUF")?;
    let decoder = base.decoder;
    let alphas: Vec<_> = adapter.modules.iter().map(alpha).map(f64::from).collect();
    let possible: Vec<_> = alphas.iter().copied().filter(|alpha| alpha.is_finite() && *alpha != 0.0).collect();
    let common = most_common(&possible)
        .ok_or_else(|| format!("the scale of `{}` is beyond an alpha in f32", adapter.modules[0].name))?;
    // `get_scale` divides alpha by the rank of each pair.
    let factor = |module: &LoraModule| match f64::from(alpha(module)) == common {
        true => 1.0,
        false => module.scale * module.rank as f64 / common,
    };
    let (factors, note) = folded(&adapter.modules, factor, "GGUF")?;
    let mut notes: Vec<_> = note.into_iter().collect();
    let rounded = adapter.modules.iter().filter(|m| f64::from(alpha(m)) == common && common / m.rank as f64 != m.scale);
    let rounded: Vec<_> = rounded.map(|module| module.name.as_str()).collect();
    if !rounded.is_empty() {
        notes.push(format!("alpha is an f32 in GGUF, so the scale of {} is rounded to one", some_of(&rounded)));
    }
    let mut tensors = Vec::with_capacity(2 * adapter.modules.len());
    for (module, b) in adapter.modules.iter().zip(factors) {
        let role = base.role(module)?.filter(|_| !module.is_parameter).ok_or_else(|| {
            format!("`{}` is no module of the base's architecture {}", module.name, decoder.architecture.name())
        })?;
        let weight = format!("{}.weight", module.name);
        let name = llm_local_core::model::rename(decoder.architecture, &weight, Layout::HuggingFace, Layout::Gguf)
            .ok_or_else(|| format!("`{}` has no name in GGUF", module.name))?;
        let (rank, inputs, outputs) = (module.rank, module.in_features, module.out_features);
        let b = match decoder.gguf_row_order(role) {
            Some(order) => Cow::Owned(rows_of(&b, rank, |row| order.original(row))),
            None => b,
        };
        let (first, second) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
        if role == ModuleRole::Embedding {
            // Rows of A are looked up there, and multiplied by B.
            let turned = Cow::Owned(floats::transposed(&module.a, inputs));
            tensors.push(Tensor::new(first, &[outputs, rank], b));
            tensors.push(Tensor::new(second, &[inputs, rank], turned));
        } else {
            tensors.push(Tensor::new(first, &[rank, inputs], Cow::Borrowed(&module.a)));
            tensors.push(Tensor::new(second, &[outputs, rank], b));
        }
    }
    let metadata = metadata(&adapter.base, decoder.architecture, common as f32);
    Ok(Files { config: None, weights: "adapter.gguf", container: Container::Gguf(metadata), tensors, notes })
}

/// The alpha that the module would have alone.
fn alpha(module: &LoraModule) -> f32 {
    (module.scale * module.rank as f64) as f32
}

fn metadata(base: &BaseHint, architecture: Architecture, alpha: f32) -> Vec<(&'static str, MetadataValue)> {
    let text = |text: &str| MetadataValue::String(text.into());
    let mut metadata = vec![
        ("general.type", text("adapter")),
        ("general.architecture", text(architecture.gguf_name())),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", MetadataValue::F32(alpha)),
    ];
    if base.name.is_some() || base.revision.is_some() {
        metadata.push(("general.base_model.count", MetadataValue::U32(1)));
    }
    if let Some(name) = &base.name {
        if is_repository(name) {
            let url = format!("https://huggingface.co/{name}");
            metadata.push(("general.base_model.0.repo_url", text(&url)));
        }
        metadata.push(("general.base_model.0.name", text(name)));
    }
    if let Some(revision) = &base.revision {
        metadata.push(("general.base_model.0.version", text(revision)));
    }
    metadata
}

/// Whether a base's name is the id of a repository of the Hugging Face Hub, as far as it tells.
fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Whether llama.cpp has all that the adapter uses.
fn check(adapter: &LoraAdapter) -> Result<(), String> {
    if let Some(replaced) = adapter.replacements.first() {
        let feature = if replaced.name.ends_with(".bias") { "bias" } else { "modules_to_save" };
        return Err(format!("it replaces `{}` ({feature}), which GGUF adapters do not have", replaced.name));
    }
    if let Some(rows) = adapter.rows.first() {
        return Err(format!(
            "it replaces rows of `{}` (trainable_token_indices), which GGUF adapters do not have",
            rows.name
        ));
    }
    if adapter.features.contains(&AdapterFeature::WeightTying) {
        return Err(
            "it trains what is tied to the embedding with it (ensure_weight_tying), which GGUF cannot say".into()
        );
    }
    adapter.modules.iter().try_for_each(|module| {
        let refused = |feature: &str, what: &str| {
            Err(format!("`{}` {what} ({feature}), which GGUF adapters do not have", module.name))
        };
        match module {
            LoraModule { magnitude: Some(_), .. } => refused("DoRA", "has a magnitude"),
            LoraModule { bias: Some(_), .. } => refused("lora_bias", "has a bias of B"),
            LoraModule { experts: Some(_), .. } => refused("experts", "is of stacked experts"),
            LoraModule { is_parameter: true, .. } => refused("target_parameters", "is a bare parameter"),
            LoraModule { transposed: true, .. } => refused("fan_in_fan_out", "is stored as (in, out)"),
            _ => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_the_name_that_its_files_are_read_by() {
        for architecture in Architecture::ALL {
            let read = Architecture::of_gguf(architecture.gguf_name()).unwrap();
            let expected = if architecture == Architecture::Mistral { Architecture::Llama } else { architecture };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn repositories_are_told_from_paths() {
        for (name, expected) in [("org/base-1.5", true), ("base", false), ("/models/base", false), ("./m/x", false)] {
            assert_eq!(is_repository(name), expected, "{name}");
        }
        assert!(!is_repository("a/b/c") && !is_repository("org/") && !is_repository("https://x/y"));
    }
}
