//! Everything that keeps one adapter from being used on a base.

use std::collections::BTreeSet;

use llm_local_core::{Encoding, LoraAdapter, LoraModule, ModelFormat, ModelInfo};

use crate::lora::{
    floats,
    message::{all_of, shape_text, some_of},
    outline::{AdapterOutline, ModuleOutline},
    targets::{BaseModules, Targets, Verdict},
};

/// Checks `adapter` against `base` and gives the declared names that match nothing; the error is everything that keeps
/// the adapter from being used.
pub(super) fn check(
    adapter: &AdapterOutline,
    weight: f32,
    info: &ModelInfo,
    base: &BaseModules<'_>,
) -> Result<Vec<String>, Vec<String>> {
    if !matches!(info.format, ModelFormat::Safetensors { .. }) {
        return Err(vec![format!(
            "adapters on GGUF bases are not supported yet, and `{}` is one; use the safetensors checkpoint of it",
            info.id
        )]);
    }
    let mut defects = Vec::new();
    if !weight.is_finite() || weight == 0.0 {
        defects.push(format!("its weight is {weight}; expected a finite number other than 0"));
    }
    let replaced = adapter.replacements.iter().map(|r| &r.name).chain(adapter.rows.iter().map(|r| &r.name));
    let replaced: Vec<_> = replaced.collect();
    if !replaced.is_empty() {
        let names = some_of(&replaced);
        defects.push(format!("it replaces {names}: full weights in an adapter are not supported yet"));
    }
    if adapter.modules.is_empty() {
        defects.push("it has no low-rank pairs, so it would do nothing".into());
    }
    if !defects.is_empty() {
        return Err(defects);
    }
    let targets = adapter.targets.as_ref().map(|declared| Targets::new(declared, base)).transpose();
    let targets = targets.map_err(|reason| vec![reason])?;
    let mut unmatched = Vec::new();
    if let Some(targets) = &targets {
        match targets.unmatched(base) {
            Ok(names) => unmatched = names,
            Err(reason) => defects.push(reason),
        }
        defects.extend(targets.absent_layers(base).map_err(|reason| vec![reason])?);
    }
    let mut seen = BTreeSet::new();
    for module in &adapter.modules {
        if !seen.insert(module.name.as_str()) {
            defects.push(format!("the module `{}` stands there twice", module.name));
        }
        defects.extend(module_defect(module, base, info));
        if let Some(targets) = &targets {
            defects.extend(undeclared(module, targets).map_err(|reason| vec![reason])?);
        }
    }
    if let Some(targets) = &targets {
        let covered = targets.covered(base).map_err(|reason| vec![reason])?;
        let missing: Vec<_> = covered.into_iter().filter(|name| !seen.contains(name)).collect();
        if !missing.is_empty() {
            defects.push(format!(
                "it declares {} target{} that it has no tensors for: {}; it is incomplete, or `target_modules` covers \
                 more than was trained",
                missing.len(),
                if missing.len() == 1 { "" } else { "s" },
                some_of(&missing)
            ));
        }
    }
    if defects.is_empty() { Ok(unmatched) } else { Err(defects) }
}

/// Why the values of an adapter that fits would do nothing, if that is so: the merge would add nothing but zeros.
pub(super) fn without_effect(adapter: &LoraAdapter, weight: f32) -> Option<String> {
    let is_zero = |m: &LoraModule| floats::scaled_product_is_zero(&m.a, &m.b, m.rank, m.scale * f64::from(weight));
    adapter.modules.iter().all(is_zero).then(|| {
        format!(
            "its delta is too small for f32 and becomes 0 in {}, so it would do nothing; its scale is {:e} and its \
             weight {weight}: are `lora_alpha` and the weight right?",
            all_of(adapter.modules.len(), "module"),
            adapter.modules[0].scale
        )
    })
}

/// Why the pair of `module` cannot be added to its base tensor.
fn module_defect(module: &ModuleOutline, base: &BaseModules<'_>, info: &ModelInfo) -> Option<String> {
    let ModuleOutline { name, rank, in_features, out_features, scale, defect, .. } = module;
    if let Some(defect) = defect {
        return Some(format!("`{name}` {defect}"));
    }
    if module.has_magnitude || module.has_bias {
        return Some(format!("`{name}` has a magnitude (DoRA) or a bias of lora_B, which are not supported yet"));
    }
    if module.experts.is_some() || module.transposed || module.is_parameter {
        return Some(format!(
            "`{name}` is of experts, of a bare parameter or of a transposed weight, which is not supported yet"
        ));
    }
    if !scale.is_finite() || *scale == 0.0 {
        return Some(format!("`{name}` has the scale {scale}; expected a finite number other than 0"));
    }
    if BaseModules::is_head(name) && info.decoder.as_ref().is_ok_and(|decoder| decoder.tied_embeddings) {
        return Some(format!(
            "`{name}.lora_A` and `.lora_B` belong to the output head `{name}.weight`, which `{}` has tied to its \
             embedding (`tie_word_embeddings`): a delta would change both, and LoRA on a tied head is not supported \
             yet",
            info.id
        ));
    }
    let Some(entry) = base.weight(name) else {
        let hint = if BaseModules::is_head(name) {
            ": its output head is tied to the embedding, and LoRA on a tied head is not supported yet"
        } else {
            "; was the adapter trained on another base?"
        };
        return Some(format!(
            "`{name}.lora_A` and `.lora_B` belong to the tensor `{name}.weight`, which `{}` does not have{hint}",
            info.id
        ));
    };
    if BaseModules::is_embedding(name) {
        return Some(format!("`{name}` is an embedding, on which LoRA is not supported yet"));
    }
    let Encoding::Float(_) = entry.encoding else {
        return Some(format!(
            "the base stores `{}` as {}; adapters on quantized weights are not supported yet, use a checkpoint in \
             f32, f16 or bf16",
            entry.name, entry.encoding
        ));
    };
    let [rows, columns] = entry.shape[..] else {
        return Some(format!(
            "the base tensor `{}` has the shape {}; LoRA needs a matrix (out, in)",
            entry.name,
            shape_text(&entry.shape)
        ));
    };
    let swapped = (*in_features, *out_features) == (rows, columns) && rows != columns;
    let hint = if swapped { ", which would fit transposed: is it of a layout with (in, out) weights?" } else { "" };
    for (factor, found, expected, matches) in [
        ("lora_A", [*rank, *in_features], [*rank, columns], *in_features == columns),
        ("lora_B", [*out_features, *rank], [rows, *rank], *out_features == rows),
    ] {
        if !matches {
            return Some(format!(
                "`{name}.{factor}` has the shape {}{hint}; expected {}, since the base tensor `{}` has the shape {}",
                shape_text(&found),
                shape_text(&expected),
                entry.name,
                shape_text(&entry.shape)
            ));
        }
    }
    None
}

/// Why `module` should have no pair by what the adapter declares, if it should not; the error is as that of
/// [`Targets::verdict`].
fn undeclared(module: &ModuleOutline, targets: &Targets) -> Result<Option<String>, String> {
    let why = match targets.verdict(&module.name)? {
        Verdict::Covered => return Ok(None),
        Verdict::NotDeclared => "`target_modules` does not cover",
        Verdict::Excluded => "`exclude_modules` excludes",
        Verdict::OtherLayer => "`layers_to_transform` leaves out",
    };
    Ok(Some(format!("it has tensors for the module `{}`, which {why}", module.name)))
}
