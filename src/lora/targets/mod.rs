//! Which modules of a base an adapter says it applies to.
//!
//! Source of the rules: PEFT `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`, `_inject_parameters` and
//! `_maybe_include_all_linear_layers`; the defaults are those of `src/peft/utils/constants.py`.

mod last;
mod matcher;
mod overrides;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use llm_local_core::{
    ModelFormat, ModelInfo, TensorEntry,
    lora::{DeclaredTargets, ModuleSelector},
};
use serde_json::Value;

use self::{
    last::LastLayers,
    matcher::{LayerFilter, Matcher, NoMatch, Pattern},
};
pub(super) use self::{matcher::ends_with_path, overrides::Overrides};
use super::message::some_of;

/// The modules of a base: whatever has a `<module>.weight`.
pub(super) struct BaseModules<'a> {
    by_name: BTreeMap<&'a str, &'a TensorEntry>,
    tensors: &'a [TensorEntry],
    model_type: Option<&'a str>,
}

/// Last path segments of embeddings, which have a matrix too but are no linear layers.
const EMBEDDINGS: &[&str] = &["embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "tok_embeddings"];

/// Last path segments of output heads.
const HEADS: &[&str] = &["lm_head", "embed_out"];

/// What PEFT takes when `target_modules` is null, by `model_type`.
const DEFAULTS: &[(&[&str], &[&str])] = &[
    (
        &[
            "llama",
            "llama4",
            "mistral",
            "mixtral",
            "stablelm",
            "gemma",
            "gemma2",
            "gemma3_text",
            "qwen2",
            "qwen3",
            "opt",
            "gptj",
            "gpt_neo",
        ],
        &["q_proj", "v_proj"],
    ),
    (&["phi"], &["q_proj", "v_proj", "fc1", "fc2"]),
    (&["nemotron_h"], &["q_proj", "k_proj", "v_proj", "o_proj"]),
    (&["gpt2", "gpt_bigcode"], &["c_attn"]),
    (&["gpt_neox", "bloom", "falcon", "RefinedWeb", "RefinedWebModel", "chatglm"], &["query_key_value"]),
    (&["codegen"], &["qkv_proj"]),
    (&["mpt"], &["Wqkv"]),
    (&["btlm"], &["c_proj", "c_attn"]),
    (&["rwkv"], &["key", "value", "receptance", "output"]),
    (&["rwkv7"], &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"]),
];

impl<'a> BaseModules<'a> {
    /// The modules of `info`, in the names of the Hugging Face layout.
    pub(super) fn new(info: &'a ModelInfo) -> Self {
        let module = |t: &'a TensorEntry| t.name.strip_suffix(".weight").map(|name| (name, t));
        let model_type = match &info.format {
            ModelFormat::Safetensors { config } => config.get("model_type").and_then(Value::as_str),
            _ => None,
        };
        Self { by_name: info.tensors.iter().filter_map(module).collect(), tensors: &info.tensors, model_type }
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

    /// What of a mixture of experts the module is.
    fn mixture(&self, module: &str) -> Option<Mixture> {
        let mut segments = module.split('.').skip_while(|segment| *segment != "experts").skip(1);
        if segments.next().is_some_and(|index| index.parse::<usize>().is_ok()) {
            return Some(Mixture::Expert);
        }
        let (parent, last) = module.rsplit_once('.')?;
        let experts = format!("{parent}.experts.");
        let is_router = ["gate", "router"].contains(&last) && self.tensors.iter().any(|t| t.name.starts_with(&experts));
        is_router.then_some(Mixture::Router)
    }

    /// The names of all tensors, also of those that are no module's weight.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &'a str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    fn linear_except_head(&self) -> Vec<String> {
        let linear = |(name, t): &(&&str, &&TensorEntry)| {
            t.shape.len() == 2 && !Self::is_embedding(name) && !Self::is_head(name)
        };
        self.by_name.iter().filter(linear).map(|(name, _)| (*name).to_owned()).collect()
    }
}

/// The parts of a mixture of experts that choose and that are chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mixture {
    Expert,
    Router,
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
    /// It is saved in full, or within what is.
    Saved,
    OtherLayer,
}

/// Declared targets, matched against a base.
pub(super) struct Targets {
    modules: Matcher,
    exclude: Option<Matcher>,
    layers: Option<LayerFilter>,
    last: Option<LastLayers>,
    saved: Vec<Pattern>,
    /// Whether it is all linear modules that are declared.
    all_linear: bool,
    /// The ends of the names of bare parameters.
    parameters: Vec<String>,
}

impl Targets {
    /// Prepares `declared` for `base`. The error names the field.
    pub(super) fn new(declared: &DeclaredTargets, base: &BaseModules<'_>) -> Result<Self, String> {
        let modules = match &declared.modules {
            ModuleSelector::Names(names) => Matcher::names(names.clone()),
            ModuleSelector::Pattern(pattern) => Matcher::pattern("target_modules", pattern)?,
            ModuleSelector::AllLinear => Matcher::names(base.linear_except_head()),
            ModuleSelector::ArchitectureDefault => match defaults(base.model_type) {
                // PEFT then leaves it at the parameters.
                Err(_) if !declared.parameters.is_empty() => Matcher::names(Vec::new()),
                names => Matcher::names(names?),
            },
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
        let last = declared.last_layers.map(|count| LastLayers::new(count, base.names()));
        let saved = declared.saved.iter().map(|name| Pattern::of_segments("modules_to_save", name));
        let saved = saved.collect::<Result<_, _>>()?;
        let all_linear = declared.modules == ModuleSelector::AllLinear;
        Ok(Self { modules, exclude, layers, last, saved, all_linear, parameters: declared.parameters.clone() })
    }

    /// Whether the adapter says that it applies to `module`. The error names a field whose regular expression cannot be
    /// decided in a bounded number of steps.
    pub(super) fn verdict(&self, module: &str) -> Result<Verdict, String> {
        if self.exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(module))? {
            return Ok(Verdict::Excluded);
        }
        for saved in &self.saved {
            if saved.is_match(module)? {
                return Ok(Verdict::Saved);
            }
        }
        if !self.modules.matches(module)? {
            return Ok(Verdict::NotDeclared);
        }
        // A whole path in the list counts in whichever layer it is.
        if self.modules.is_whole_path(module) {
            return Ok(Verdict::Covered);
        }
        let by_index = self.layers.as_ref().map_or(Ok(true), |layers| layers.matches(module))?;
        let from_last = self.last.as_ref().is_none_or(|last| last.holds(module));
        Ok(if by_index && from_last { Verdict::Covered } else { Verdict::OtherLayer })
    }

    /// The modules of `base` that the adapter, which `has` pairs for these, says it applies to.
    ///
    /// Experts and their routers are linear modules in some versions of transformers, and bare parameters in others, which
    /// `all-linear` does not reach: so they are meant by that where the adapter has one of their kind.
    pub(super) fn covered<'a>(&self, base: &BaseModules<'a>, has: &BTreeSet<&str>) -> Result<Vec<&'a str>, String> {
        let mixture = |name: &str| self.all_linear.then(|| base.mixture(name)).flatten();
        let kinds: Vec<_> = has.iter().filter_map(|name| mixture(name)).collect();
        let is_meant = |name: &str| mixture(name).is_none_or(|kind| kinds.contains(&kind));
        let covered = base.names().filter(|name| is_meant(name));
        let covered = covered.map(|name| Ok((name, self.verdict(name)? == Verdict::Covered)));
        let covered = covered.collect::<Result<Vec<_>, String>>()?;
        Ok(covered.into_iter().filter(|(_, covered)| *covered).map(|(name, _)| name).collect())
    }

    /// Whether bare parameters are declared.
    pub(super) fn has_parameters(&self) -> bool {
        !self.parameters.is_empty()
    }

    /// Whether the adapter says that it applies to the bare parameter `name`. Nothing else that it says confines those.
    pub(super) fn has_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|end| ends_with_path(name, end))
    }

    /// The ends of names of bare parameters that none of `tensors` has.
    pub(super) fn unmatched_parameters(&self, tensors: &BTreeSet<String>) -> Vec<String> {
        let none = |end: &&String| !tensors.iter().any(|name| ends_with_path(name, end));
        self.parameters.iter().filter(none).cloned().collect()
    }

    /// Whether nothing but bare parameters is declared.
    fn only_parameters(&self) -> bool {
        self.modules.is_empty() && !self.parameters.is_empty()
    }

    /// The declared names that match nothing in `base`: PEFT lets them pass, and one list for several architectures has
    /// such. The error is that nothing at all matches.
    pub(super) fn unmatched(&self, base: &BaseModules<'_>) -> Result<Vec<String>, String> {
        if self.only_parameters() {
            return Ok(Vec::new());
        }
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

/// Whether `modules` chooses `module`, as far as that can be told without the base; the error names the field.
pub(super) fn selects(modules: &ModuleSelector, module: &str) -> Result<Option<bool>, String> {
    match modules {
        ModuleSelector::Names(names) => Matcher::names(names.clone()).matches(module).map(Some),
        ModuleSelector::Pattern(pattern) => Matcher::pattern("target_modules", pattern)?.matches(module).map(Some),
        _ => Ok(None),
    }
}

/// A regular expression that matches `text` alone.
pub(super) fn literal(text: &str) -> String {
    fancy_regex::escape(text).into_owned()
}

/// What PEFT targets on an architecture when nothing is declared.
fn defaults(model_type: Option<&str>) -> Result<Vec<String>, String> {
    let known = DEFAULTS.iter().find(|(kinds, _)| model_type.is_some_and(|kind| kinds.contains(&kind)));
    known.map(|(_, names)| names.iter().map(|name| (*name).to_owned()).collect()).ok_or_else(|| {
        format!(
            "`target_modules` is null, and there is no default for the base's model_type ({}); name the modules",
            model_type.unwrap_or("none given")
        )
    })
}
