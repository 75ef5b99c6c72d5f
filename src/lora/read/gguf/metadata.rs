//! The metadata that a GGUF adapter is read by.

use std::collections::BTreeSet;

use llm_local_core::{Allowance, GgufMetadata, GgufValue, lora::BaseHint, model::Architecture};

use crate::lora::read::value::{cut, let_pass};

const TYPE: &str = "general.type";
const ARCHITECTURE: &str = "general.architecture";
const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
/// Tokens that switch an activated LoRA on.
const INVOCATION: &str = "adapter.alora.invocation_tokens";
/// A text that prompts were given in training, which no adapter can apply.
const PROMPT_PREFIX: &str = "adapter.lora.prompt_prefix";
/// Keys of adapters that say nothing about what they compute.
const INERT: [&str; 1] = ["adapter.lora.task_name"];

/// What the metadata says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GgufConfig {
    pub(super) architecture: Architecture,
    /// `general.architecture`.
    pub(super) architecture_name: String,
    /// Alpha, unless it is 0 or not there: the scale is 1 then.
    pub(super) alpha: Option<f64>,
    pub(super) base: BaseHint,
    pub(super) notes: Vec<String>,
    /// As [`LoraAdapter::unknown_fields`](llm_local_core::LoraAdapter::unknown_fields).
    pub(super) unknown_fields: Vec<String>,
}

impl GgufConfig {
    /// Reads `metadata`, as far as it is known or `allow` has what is not; the error is the reason, naming the key.
    pub(super) fn new(metadata: &GgufMetadata, allow: &BTreeSet<Allowance>) -> Result<Self, String> {
        is(metadata, TYPE, "adapter", "it is no adapter")?;
        is(metadata, KIND, "lora", "of adapters only LoRA is supported")?;
        let name = text(metadata, ARCHITECTURE)?.ok_or_else(|| format!("`{ARCHITECTURE}` is missing"))?;
        let architecture = Architecture::of_gguf(name).map_err(|names| {
            format!("`{ARCHITECTURE}` is {name:?}, whose tensors are not known; expected one of {names}")
        })?;
        let (mut notes, mut unknown) = (Vec::new(), Vec::new());
        for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with("adapter.")) {
            match key {
                KIND | ALPHA => {}
                INVOCATION if is_empty(value) => {}
                INVOCATION => {
                    return Err(format!(
                        "`{INVOCATION}` is there: it is an activated LoRA (aLoRA), which applies only from those tokens \
                         on, and that is not supported"
                    ));
                }
                PROMPT_PREFIX if is_empty(value) => {}
                PROMPT_PREFIX => {
                    let value = cut(format!("{value:?}"));
                    notes.push(format!("`{PROMPT_PREFIX}` is {value}: prompts do not get it by themselves"))
                }
                _ if INERT.contains(&key) => {}
                _ if is_empty(value) => {}
                _ => {
                    let value = cut(format!("{value:?}"));
                    unknown.push(format!("the unknown key `{key}` is {value}: what it changes is not known"));
                }
            }
        }
        Ok(Self {
            architecture,
            architecture_name: name.to_owned(),
            alpha: alpha(metadata)?,
            base: base(metadata).with_architecture(architecture),
            notes,
            unknown_fields: let_pass(unknown, allow)?,
        })
    }

    /// What `B @ A` of rank `rank` is multiplied by (`llama_adapter_lora_weight::get_scale`).
    pub(super) fn scale(&self, rank: usize) -> f64 {
        self.alpha.map_or(1.0, |alpha| alpha / rank as f64)
    }
}

/// Whether it is an adapter, of whatever kind.
pub(in super::super) fn is_adapter(metadata: &GgufMetadata) -> bool {
    metadata.string(TYPE) == Some("adapter")
}

fn text<'a>(metadata: &'a GgufMetadata, key: &str) -> Result<Option<&'a str>, String> {
    match metadata.get(key) {
        None => Ok(None),
        Some(GgufValue::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` must be text, found {}", cut(format!("{other:?}")))),
    }
}

fn is(metadata: &GgufMetadata, key: &str, expected: &str, otherwise: &str) -> Result<(), String> {
    match text(metadata, key)? {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(format!("`{key}` is {found:?}: {otherwise}; expected {expected:?}")),
        None => Err(format!("`{key}` is missing; expected {expected:?}")),
    }
}

fn alpha(metadata: &GgufMetadata) -> Result<Option<f64>, String> {
    match (metadata.get(ALPHA), metadata.f64(ALPHA)) {
        (None, _) => Ok(None),
        (_, Some(alpha)) if alpha.is_finite() => Ok((alpha != 0.0).then_some(alpha)),
        (Some(other), _) => Err(format!("`{ALPHA}` must be a finite number, found {}", cut(format!("{other:?}")))),
    }
}

/// The base that the converter writes down: its repository, else its name.
pub(crate) fn base(metadata: &GgufMetadata) -> BaseHint {
    let of = |key: &str| metadata.string(&format!("general.base_model.0.{key}")).map(str::to_owned);
    let repository = of("repo_url").map(|url| match url.strip_prefix("https://huggingface.co/") {
        Some(id) => id.to_owned(),
        None => url,
    });
    BaseHint::new(repository.or_else(|| of("name")), of("version"))
}

fn is_empty(value: &GgufValue) -> bool {
    match value {
        GgufValue::String(text) => text.is_empty(),
        GgufValue::Ints(v) => v.is_empty(),
        GgufValue::Floats(v) => v.is_empty(),
        GgufValue::Bools(v) => v.is_empty(),
        GgufValue::Strings(v) => v.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_a_fix_and_a_short_value_unless_it_is_allowed() {
        let mut metadata = GgufMetadata::default();
        for (key, value) in [(TYPE, "adapter"), (KIND, "lora"), (ARCHITECTURE, "llama")] {
            metadata.insert(key, GgufValue::String(value.into()));
        }
        metadata.insert("adapter.new", GgufValue::Ints(vec![7; 1000]));
        metadata.insert("adapter.empty", GgufValue::Ints(Vec::new()));
        let error = GgufConfig::new(&metadata, &BTreeSet::new()).unwrap_err();
        assert!(error.contains("`adapter.new`") && error.contains("`unknown-fields`"), "{error}");
        assert!(error.len() < 300 && !error.contains("adapter.empty"), "{error}");
        let config = GgufConfig::new(&metadata, &BTreeSet::from([Allowance::UnknownFields])).unwrap();
        assert_eq!(config.unknown_fields.len(), 1);
    }
}
