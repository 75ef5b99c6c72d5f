//! The modules that a PEFT config says it applies to.

use llm_local_core::lora::{DeclaredTargets, ModuleSelector};
use serde_json::Value;

use super::fields::{Fields, index};

/// Reads the targets; the error names the field.
pub(super) fn targets(fields: &Fields<'_>) -> Result<DeclaredTargets, String> {
    let parameters = fields.names_or_null("target_parameters")?;
    let modules = match fields.get("target_modules") {
        None => ModuleSelector::ArchitectureDefault,
        Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => ModuleSelector::AllLinear,
        Some(Value::String(pattern)) => ModuleSelector::Pattern(pattern.clone()),
        Some(Value::Array(list)) if list.is_empty() && parameters.is_empty() => {
            return Err("`target_modules` is an empty list: the adapter applies to nothing".into());
        }
        Some(Value::Array(list)) => ModuleSelector::Names(Fields::names("target_modules", list)?),
        Some(other) => {
            return Fields::wrong("target_modules", "a list of names, a regular expression or null", other);
        }
    };
    let is_text = matches!(modules, ModuleSelector::Pattern(_) | ModuleSelector::AllLinear);
    let mut targets = DeclaredTargets::new(modules);
    if let Some(exclude) = exclude(fields)? {
        targets = targets.with_exclude(exclude);
    }
    let (layers, pattern) = (layers(fields)?, layers_pattern(fields)?);
    for (key, empty) in [("layers_to_transform", layers.is_empty()), ("layers_pattern", pattern.is_empty())] {
        if is_text && !empty {
            return Err(format!("`{key}` goes only with a list of `target_modules`, and that is text"));
        }
    }
    if layers.is_empty() && !pattern.is_empty() {
        return Err("`layers_pattern` is given without `layers_to_transform`".into());
    }
    let saved = fields.names_or_null("modules_to_save")?;
    Ok(targets.with_layers(layers, pattern).with_parameters(parameters).with_saved(saved))
}

fn exclude(fields: &Fields<'_>) -> Result<Option<ModuleSelector>, String> {
    match fields.get("exclude_modules") {
        None => Ok(None),
        Some(Value::String(pattern)) if pattern.is_empty() => Ok(None),
        Some(Value::String(pattern)) => Ok(Some(ModuleSelector::Pattern(pattern.clone()))),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) => Ok(Some(ModuleSelector::Names(Fields::names("exclude_modules", list)?))),
        Some(other) => Fields::wrong("exclude_modules", "a list of names, a regular expression or null", other),
    }
}

fn layers(fields: &Fields<'_>) -> Result<Vec<usize>, String> {
    let one = |v: &Value| match index(v) {
        Some(index) => Ok(index),
        None => Fields::wrong("layers_to_transform", "a layer's index from 0, or a list of them", v),
    };
    match fields.get("layers_to_transform") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

fn layers_pattern(fields: &Fields<'_>) -> Result<Vec<String>, String> {
    match fields.get("layers_pattern") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) if one.is_empty() => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => Fields::names("layers_pattern", list),
        Some(other) => Fields::wrong("layers_pattern", "text, a list of texts or null", other),
    }
}
