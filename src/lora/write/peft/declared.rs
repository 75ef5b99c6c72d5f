//! `target_modules`, and what confines it.

use llm_local_core::{
    LoraAdapter,
    lora::{DeclaredTargets, ModuleSelector},
};
use serde_json::{Map, Value, json};

use crate::lora::{WriteFormat, targets};

/// The fields that say which modules the adapter applies to: as it declares them where PEFT can say that, else the whole
/// names of the modules that have pairs.
pub(super) fn fields(adapter: &LoraAdapter) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    match adapter.targets.as_ref().and_then(|declared| Some((declared, selector(declared, adapter)?))) {
        Some((declared, modules)) => {
            set("target_modules", modules);
            set("exclude_modules", declared.exclude.as_ref().map_or(Value::Null, names_or_pattern));
            set("layers_to_transform", null_if_empty(&declared.layers));
            set("layers_pattern", null_if_empty(&declared.layers_pattern));
        }
        None => {
            let modules = adapter.modules.iter().filter(|module| !module.is_parameter);
            set("target_modules", json!(modules.map(|module| &module.name).collect::<Vec<_>>()));
        }
    }
    set("target_parameters", null_if_empty(&parameters(adapter)));
    fields
}

fn null_if_empty<T: serde::Serialize>(list: &[T]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

fn names_or_pattern(selector: &ModuleSelector) -> Value {
    match selector {
        ModuleSelector::Names(names) => json!(names),
        ModuleSelector::Pattern(pattern) => json!(pattern),
        ModuleSelector::AllLinear => json!("all-linear"),
        _ => Value::Null,
    }
}

/// `target_modules` as declared, if it chooses every module that has a pair.
fn selector(declared: &DeclaredTargets, adapter: &LoraAdapter) -> Option<Value> {
    // What only mlx-lm has.
    if declared.last_layers.is_some() {
        return None;
    }
    let is_of_peft = adapter.format == WriteFormat::Peft.as_str();
    let chosen = |name: &str| match targets::selects(&declared.modules, name) {
        Ok(Some(chosen)) => chosen,
        // What it chooses, the base says: PEFT saved it so.
        Ok(None) => is_of_peft,
        Err(_) => false,
    };
    let is_chosen = adapter.modules.iter().filter(|module| !module.is_parameter).all(|module| chosen(&module.name));
    is_chosen.then(|| names_or_pattern(&declared.modules))
}

/// `target_parameters`: as declared if each name has a path before it and each parameter with a pair has one, else the
/// whole names.
fn parameters(adapter: &LoraAdapter) -> Vec<String> {
    let pairs = || adapter.modules.iter().filter(|module| module.is_parameter);
    let declared = adapter.targets.as_ref().map_or(&[][..], |declared| &declared.parameters);
    let is_declared = |name: &str| declared.iter().any(|end| targets::ends_with_path(name, end));
    if declared.iter().all(|end| end.contains('.')) && pairs().all(|module| is_declared(&module.name)) {
        return declared.to_vec();
    }
    pairs().map(|module| module.name.clone()).collect()
}
