//! Tensors saved in full, and trained rows.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use llm_local_core::{LoraAdapter, lora::AdapterFeature};
use serde_json::{Value, json};

use super::PREFIX;
use crate::lora::{targets::BaseModules, write::files::Tensor};

/// What is saved beside pairs, and what the config says of it.
pub(super) struct Saved<'a> {
    pub(super) tensors: Vec<Tensor<'a>>,
    /// `bias`.
    pub(super) bias: &'static str,
    /// `modules_to_save`.
    pub(super) modules: Value,
    /// `trainable_token_indices`.
    pub(super) tokens: Value,
}

impl<'a> Saved<'a> {
    /// What `adapter` replaces. The error names the tensor and what PEFT cannot express.
    pub(super) fn of(adapter: &'a LoraAdapter) -> Result<Self, String> {
        let (mut tensors, mut modules, mut biases) = (Vec::new(), BTreeSet::new(), Vec::new());
        let has_pair = |module: &str| adapter.module(module).is_some_and(|pair| !pair.is_parameter);
        let has_rows = |module: &str| adapter.rows.iter().any(|rows| rows.name == format!("{module}.weight"));
        let keeps_tied = adapter.features.contains(&AdapterFeature::WeightTying);
        let trains_biases = adapter.features.contains(&AdapterFeature::TrainedBias);
        for replaced in &adapter.replacements {
            let name = &replaced.name;
            let (module, tensor) = name
                .rsplit_once('.')
                .ok_or_else(|| format!("it replaces `{name}`, a tensor of no module (modules_to_save)"))?;
            let weight = format!("{module}.weight");
            let whole = adapter.replacements.iter().any(|other| other.name == weight);
            let path = match (has_pair(module), has_rows(module)) {
                // A bias of its own, or of a module with a pair.
                (true, _) if tensor == "bias" => {
                    biases.push(module);
                    format!("{module}.base_layer")
                }
                (false, _) if tensor == "bias" && trains_biases && !whole => {
                    biases.push(module);
                    module.to_owned()
                }
                (true, _)
                    if tensor == "weight" && (BaseModules::is_embedding(module) || BaseModules::is_head(module)) =>
                {
                    format!("{module}.base_layer")
                }
                (true, _) => {
                    return Err(format!(
                        "`{module}` has a pair, and `{name}` is replaced (modules_to_save): PEFT has one of them"
                    ));
                }
                (false, true) => format!("{module}.token_adapter.base_layer"),
                (false, false) => {
                    // PEFT saves a head that it keeps tied beside the embedding, without a name in the config.
                    if !(keeps_tied && BaseModules::is_head(module)) {
                        modules.insert(module);
                    }
                    module.to_owned()
                }
            };
            let values = Cow::Borrowed(&replaced.values);
            tensors.push(Tensor::new(format!("{PREFIX}{path}.{tensor}"), &replaced.shape, values));
        }
        let mut tokens = BTreeMap::new();
        for rows in &adapter.rows {
            let module = rows.name.strip_suffix(".weight").ok_or_else(|| {
                format!(
                    "rows of `{}` are replaced (trainable_token_indices), which is no weight of a module",
                    rows.name
                )
            })?;
            let shape = [rows.rows.len(), rows.values.len() / rows.rows.len()];
            let key = format!("{PREFIX}{module}.token_adapter.trainable_tokens_delta");
            tensors.push(Tensor::new(key, &shape, Cow::Borrowed(&rows.values)));
            tokens.insert(module, &rows.rows);
        }
        Ok(Self {
            tensors,
            bias: match biases.iter().all(|module| has_pair(module)) {
                _ if biases.is_empty() => "none",
                true => "lora_only",
                false => "all",
            },
            modules: match declared(adapter, &modules) {
                _ if modules.is_empty() => Value::Null,
                Some(names) => json!(names),
                None => json!(modules),
            },
            tokens: if tokens.is_empty() { Value::Null } else { json!(tokens) },
        })
    }
}

/// `modules_to_save` as declared, if each of `modules` is one of them or in one, and each name has one. PEFT compares ends of
/// paths without regard to segments.
fn declared<'a>(adapter: &'a LoraAdapter, modules: &BTreeSet<&str>) -> Option<&'a [String]> {
    let names = &adapter.targets.as_ref()?.saved;
    let is_of = |module: &str, name: &String| {
        module.ends_with(name.as_str())
            || module.match_indices('.').any(|(end, _)| module[..end].ends_with(name.as_str()))
    };
    let all = modules.iter().all(|module| names.iter().any(|name| is_of(module, name)));
    let each = names.iter().all(|name| modules.iter().any(|module| is_of(module, name)));
    (all && each).then_some(names)
}
