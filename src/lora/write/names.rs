//! What the base calls its modules.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use llm_local_core::{LoraAdapter, ModelFormat, ModelInfo, lora::ModuleSelector, model::Layout};

use super::WriteFormat;
use crate::lora::{fit::Expert, read::MLX_DECODER as DECODER, targets::BaseModules};

/// The names of the base's tensors.
pub(super) struct Names<'a> {
    base: &'a ModelInfo,
    tensors: BTreeSet<String>,
    /// How many experts are stacked into the modules that mlx-lm calls so.
    experts: BTreeMap<String, usize>,
}

impl<'a> Names<'a> {
    /// Those of `base`, of a GGUF file in the Hugging Face layout; `None` for a base of which no tensors are known.
    pub(super) fn of(base: &'a ModelInfo) -> Option<Self> {
        let mut tensors: BTreeSet<String> = match (&base.format, &base.decoder) {
            (ModelFormat::Gguf { .. }, Ok(decoder)) => {
                decoder.base_tensors(Layout::HuggingFace).into_iter().map(|tensor| tensor.name).collect()
            }
            (ModelFormat::Gguf { .. }, Err(_)) => return None,
            _ => base.tensors.iter().map(|tensor| tensor.name.clone()).collect(),
        };
        if tensors.is_empty() {
            return None;
        }
        let mut experts = BTreeMap::<String, usize>::new();
        for entry in base.tensors.iter() {
            let Some(module) = entry.name.strip_suffix(".weight") else { continue };
            if let Some(expert) = Expert::of(module) {
                let count = experts.entry(expert.switch()).or_default();
                *count = (*count).max(expert.index + 1);
            } else if module.contains(".switch_mlp.") {
                experts.extend(entry.shape.first().map(|count| (module.to_owned(), *count)));
            }
        }
        tensors.extend(experts.keys().map(|module| format!("{module}.weight")));
        Some(Self { base, tensors, experts })
    }

    /// How many experts the base has in the module that mlx-lm calls `switch`, as far as its tensors tell.
    pub(super) fn experts(&self, switch: &str) -> Option<usize> {
        let found = self.experts.get(switch).or_else(|| self.experts.get(&format!("{DECODER}{switch}")));
        found.copied()
    }

    /// `adapter` with the names that the base has for what it changes: in models of several parts the name of the decoder
    /// stands before them. The error names the module that the base has under neither name, which whoever loads the file
    /// would pass over.
    pub(super) fn given_to<'b>(
        &self,
        adapter: Cow<'b, LoraAdapter>,
        format: WriteFormat,
    ) -> Result<Cow<'b, LoraAdapter>, String> {
        let tensors = adapter.modules.iter().map(|module| module.weight_name());
        let replaced = adapter.replacements.iter().map(|replacement| replacement.name.clone());
        let rows = adapter.rows.iter().map(|rows| rows.name.clone());
        let prefixed = tensors
            .chain(replaced)
            .chain(rows)
            .map(|tensor| self.is_prefixed(&tensor, format).map(|is_prefixed| is_prefixed.then_some(tensor)))
            .collect::<Result<Vec<_>, _>>()?;
        let prefixed: BTreeSet<String> = prefixed.into_iter().flatten().collect();
        if prefixed.is_empty() {
            return Ok(adapter);
        }
        let mut all = adapter.into_owned();
        let prefix = |name: &mut String| name.insert_str(0, DECODER);
        let mut modules = BTreeSet::new();
        for module in all.modules.iter_mut().filter(|module| prefixed.contains(&module.weight_name())) {
            modules.insert(module.name.clone());
            prefix(&mut module.name);
        }
        all.replacements.iter_mut().map(|r| &mut r.name).filter(|name| prefixed.contains(*name)).for_each(prefix);
        all.rows.iter_mut().map(|rows| &mut rows.name).filter(|name| prefixed.contains(*name)).for_each(prefix);
        // Names within a layer are the same; whole ones go with their module.
        if let Some(ModuleSelector::Names(names)) = all.targets.as_mut().map(|targets| &mut targets.modules) {
            names.iter_mut().filter(|name| modules.contains(*name)).for_each(prefix);
        }
        all.modules.sort_by(|x, y| x.name.cmp(&y.name));
        Ok(Cow::Owned(all))
    }

    /// Whether the base has the tensor behind the name of the decoder alone.
    fn is_prefixed(&self, tensor: &str, format: WriteFormat) -> Result<bool, String> {
        if self.tensors.contains(tensor) {
            return Ok(false);
        }
        if self.tensors.contains(&format!("{DECODER}{tensor}")) {
            return Ok(true);
        }
        let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
        // A tied head is no tensor. PEFT has the module nonetheless; that mlx-lm has none is said of a described base.
        if BaseModules::is_head(module) && (format == WriteFormat::Peft || self.base.decoder.is_ok()) {
            let is_part = self.tensors.iter().any(|name| name.starts_with(DECODER));
            return Ok(is_part && !module.starts_with(DECODER));
        }
        Err(format!(
            "`{}` has neither `{tensor}` nor `{DECODER}{tensor}`, so what is written for `{module}` would be passed over \
             where it is loaded; give the base that the adapter is for",
            self.base.id
        ))
    }
}
