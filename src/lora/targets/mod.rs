//! Which modules of a base an adapter says it applies to.
//!
//! Source of the rules: PEFT `src/peft/tuners/tuners_utils.py`, `check_target_module_exists` and
//! `_maybe_include_all_linear_layers`; the defaults are those of `src/peft/utils/constants.py`.

mod matcher;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use llm_local_core::{
    ModelFormat, ModelInfo, TensorEntry,
    lora::{DeclaredTargets, ModuleSelector},
};
use serde_json::Value;

use self::matcher::{LayerFilter, Matcher, NoMatch};
use super::message::some_of;

/// The modules of a base: whatever has a `<module>.weight`.
pub(super) struct BaseModules<'a> {
    by_name: BTreeMap<&'a str, &'a TensorEntry>,
    model_type: Option<&'a str>,
}

/// Last path segments of embeddings, which have a matrix too but are no linear layers.
const EMBEDDINGS: &[&str] = &["embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "tok_embeddings"];

/// Last path segments of output heads.
const HEADS: &[&str] = &["lm_head", "embed_out"];

/// `model_type`s for which PEFT takes q_proj and v_proj when `target_modules` is null.
const QUERY_AND_VALUE: &[&str] =
    &["llama", "llama4", "mistral", "mixtral", "stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"];

impl<'a> BaseModules<'a> {
    /// The modules of `info`, in the names of the Hugging Face layout.
    pub(super) fn new(info: &'a ModelInfo) -> Self {
        let module = |t: &'a TensorEntry| t.name.strip_suffix(".weight").map(|name| (name, t));
        let model_type = match &info.format {
            ModelFormat::Safetensors { config } => config.get("model_type").and_then(Value::as_str),
            _ => None,
        };
        Self { by_name: info.tensors.iter().filter_map(module).collect(), model_type }
    }

    /// The header of the module's weight.
    pub(super) fn weight(&self, module: &str) -> Option<&'a TensorEntry> {
        self.by_name.get(module).copied()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.by_name.keys().copied()
    }

    /// Whether the module is an embedding, as far as its name tells.
    pub(super) fn is_embedding(module: &str) -> bool {
        EMBEDDINGS.contains(&last_segment(module))
    }

    /// Whether the module is the output head, as far as its name tells.
    pub(super) fn is_head(module: &str) -> bool {
        HEADS.contains(&last_segment(module))
    }

    fn linear_except_head(&self) -> Vec<String> {
        let linear = |(name, t): &(&&str, &&TensorEntry)| {
            t.shape.len() == 2 && !Self::is_embedding(name) && !Self::is_head(name)
        };
        self.by_name.iter().filter(linear).map(|(name, _)| (*name).to_owned()).collect()
    }
}

fn last_segment(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// What the declared targets say of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Covered,
    NotDeclared,
    Excluded,
    OtherLayer,
}

/// Declared targets, matched against a base.
pub(super) struct Targets {
    modules: Matcher,
    exclude: Option<Matcher>,
    layers: Option<LayerFilter>,
}

impl Targets {
    /// Prepares `declared` for `base`. The error names the field.
    pub(super) fn new(declared: &DeclaredTargets, base: &BaseModules<'_>) -> Result<Self, String> {
        let modules = match &declared.modules {
            ModuleSelector::Names(names) => Matcher::names(names.clone()),
            ModuleSelector::Pattern(pattern) => Matcher::pattern("target_modules", pattern)?,
            ModuleSelector::AllLinear => Matcher::names(base.linear_except_head()),
            ModuleSelector::ArchitectureDefault => Matcher::names(defaults(base.model_type)?),
            other => return Err(format!("targets of the kind {other:?} are not known")),
        };
        let exclude = match &declared.exclude {
            None => None,
            Some(ModuleSelector::Names(names)) => Some(Matcher::names(names.clone())),
            Some(ModuleSelector::Pattern(pattern)) => Some(Matcher::pattern("exclude_modules", pattern)?),
            Some(other) => return Err(format!("excluded modules of the kind {other:?} are not known")),
        };
        let layers = match declared.layers.as_slice() {
            [] => None,
            layers => Some(LayerFilter::new(layers.to_vec(), &declared.layers_pattern)?),
        };
        Ok(Self { modules, exclude, layers })
    }

    /// Whether the adapter says that it applies to `module`. The error names a field whose regular expression cannot be
    /// decided in a bounded number of steps.
    pub(super) fn verdict(&self, module: &str) -> Result<Verdict, String> {
        if self.exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(module))? {
            return Ok(Verdict::Excluded);
        }
        if !self.modules.matches(module)? {
            return Ok(Verdict::NotDeclared);
        }
        match &self.layers {
            // A whole path in the list counts in whichever layer it is.
            Some(layers) if !self.modules.is_whole_path(module) && !layers.matches(module)? => Ok(Verdict::OtherLayer),
            _ => Ok(Verdict::Covered),
        }
    }

    /// The modules of `base` that the adapter says it applies to.
    pub(super) fn covered<'a>(&self, base: &BaseModules<'a>) -> Result<Vec<&'a str>, String> {
        let covered = base.names().map(|name| Ok((name, self.verdict(name)? == Verdict::Covered)));
        let covered = covered.collect::<Result<Vec<_>, String>>()?;
        Ok(covered.into_iter().filter(|(_, covered)| *covered).map(|(name, _)| name).collect())
    }

    /// The declared names that match nothing in `base`: PEFT lets them pass, and one list for several architectures has
    /// such. The error is that nothing at all matches.
    pub(super) fn unmatched(&self, base: &BaseModules<'_>) -> Result<Vec<String>, String> {
        self.modules.without_match(|| base.names()).map_err(|error| match error {
            NoMatch::Undecided(reason) => reason,
            NoMatch::Nothing(declared) if declared.is_empty() => {
                "the base has no linear modules that `target_modules` could mean".into()
            }
            NoMatch::Nothing(declared) => format!(
                "`target_modules` declares {}, and no module of the base matches; it has e.g. {}",
                some_of(&declared),
                some_of(&base.linear_except_head()),
            ),
        })
    }

    /// Why `layers_to_transform` does not fit `base`, if it does not; the error is as that of [`Self::verdict`].
    pub(super) fn absent_layers(&self, base: &BaseModules<'_>) -> Result<Option<String>, String> {
        let Some(layers) = &self.layers else { return Ok(None) };
        let mut targeted = Vec::new();
        for name in base.names() {
            if self.modules.matches(name)? {
                targeted.push(name);
            }
        }
        let absent = layers.without_match(&targeted)?;
        Ok((!absent.is_empty()).then(|| {
            format!("`layers_to_transform` names the layers {absent:?}, which have no targeted module in the base")
        }))
    }
}

/// What PEFT targets on an architecture when nothing is declared.
fn defaults(model_type: Option<&str>) -> Result<Vec<String>, String> {
    match model_type {
        Some(kind) if QUERY_AND_VALUE.contains(&kind) => Ok(vec!["q_proj".into(), "v_proj".into()]),
        kind => Err(format!(
            "`target_modules` is null, and there is no default for the base's model_type ({}); name the modules",
            kind.unwrap_or("none given")
        )),
    }
}
