//! Whether the base is the one that an adapter was trained on.

use llm_local_core::{LoraAdapter, ModelFormat, ModelInfo};
use serde::Serialize;

use crate::lora::targets::BaseModules;

/// What is known of a base and an adapter beside their tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseFacts {
    /// The base's repository id. `None` for a folder of this machine, whose name says nothing.
    pub repository: Option<String>,
    /// The revision that the base's ref asks for.
    pub asked_revision: Option<String>,
    /// The immutable revision of the base.
    pub revision: Option<String>,
    /// SHA-256 of the base's config.json, as hex.
    pub config_digest: Option<String>,
    /// The architecture that the adapter says it is of: a class of transformers (`LlamaForCausalLM`), or llama.cpp's name.
    pub adapter_architecture: Option<String>,
}

/// Whether the base is the one that an adapter was trained on, by everything that can be compared. None of it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BaseIdentity {
    /// The name: `org/name` without case, or the name alone where one of them has no organization or another one.
    pub name: IdentityCheck,
    /// The revision.
    pub revision: IdentityCheck,
    /// SHA-256 of config.json. No format of adapters says that of its base yet.
    pub config_digest: IdentityCheck,
    /// The rows of the embedding, where the adapter has such.
    pub vocabulary: IdentityCheck,
    /// The architecture.
    pub architecture: IdentityCheck,
}

/// Two values and what they tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct IdentityCheck {
    /// What they tell.
    pub verdict: IdentityVerdict,
    /// What the adapter says of its base.
    pub adapter: Option<String>,
    /// What the base is.
    pub base: Option<String>,
}

/// What two values tell of a base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum IdentityVerdict {
    /// They are the same.
    Match,
    /// They differ.
    Mismatch,
    /// One is missing, or they cannot be compared.
    #[default]
    Unknown,
}

impl IdentityVerdict {
    /// Its name, as data has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::Unknown => "unknown",
        }
    }
}

impl IdentityCheck {
    /// Compares two values, of which `same` tells whether they are the same, if that can be told.
    fn new(adapter: Option<String>, base: Option<String>, same: impl FnOnce(&str, &str) -> Option<bool>) -> Self {
        let verdict = match (&adapter, &base) {
            (Some(adapter), Some(base)) => match same(adapter, base) {
                Some(true) => IdentityVerdict::Match,
                Some(false) => IdentityVerdict::Mismatch,
                None => IdentityVerdict::Unknown,
            },
            _ => IdentityVerdict::Unknown,
        };
        Self { verdict, adapter, base }
    }
}

impl BaseIdentity {
    pub(super) fn new(adapter: &LoraAdapter, info: &ModelInfo, facts: &BaseFacts) -> Self {
        let own = base_name(info, facts);
        let is_certain = facts.repository.is_some();
        let revision = facts.revision.clone().or_else(|| facts.asked_revision.clone());
        Self {
            name: IdentityCheck::new(adapter.base.name.clone(), own, |hint, base| same_name(hint, base, is_certain)),
            revision: IdentityCheck::new(adapter.base.revision.clone(), revision, |hint, base| {
                let asked = facts.asked_revision.as_deref();
                same_revision(hint, base, asked)
            }),
            config_digest: IdentityCheck::new(None, facts.config_digest.clone(), |x, y| Some(x == y)),
            vocabulary: IdentityCheck::new(
                adapter_rows(adapter).map(|rows| rows.to_string()),
                base_rows(info).map(|rows| rows.to_string()),
                |x, y| Some(x == y),
            ),
            architecture: architecture(info, facts),
        }
    }
}

/// The base's name: its repository's, that of the model that its GGUF file was made of, or what its config or its folder is
/// called.
fn base_name(info: &ModelInfo, facts: &BaseFacts) -> Option<String> {
    if facts.repository.is_some() {
        return facts.repository.clone();
    }
    if let ModelFormat::Gguf { metadata } = &info.format {
        let url = metadata.string("general.base_model.0.repo_url");
        if let Some(repository) = url.and_then(|url| url.split_once("huggingface.co/")) {
            return Some(repository.1.trim_end_matches('/').to_owned());
        }
    }
    let id = info.id.strip_prefix("file:").unwrap_or(&info.id);
    Some(last_segment(id).to_owned()).filter(|name| !name.is_empty())
}

/// Whether two names are of one model. Of a path of the trainer's disk, and of a folder of this one (unless `is_certain`),
/// only that they are can be told.
fn same_name(hint: &str, base: &str, is_certain: bool) -> Option<bool> {
    let is_same = last_segment(hint).eq_ignore_ascii_case(last_segment(base));
    if is_path(hint) {
        // What a trainer calls a folder is no name.
        return None;
    }
    if is_same || is_certain { Some(is_same) } else { None }
}

/// Whether `name` is a path and not `org/name`.
fn is_path(name: &str) -> bool {
    let is_rooted = name.starts_with(['/', '.', '~', '\\']) || name.contains(['\\', ':']);
    is_rooted || name.trim_end_matches('/').matches('/').count() > 1
}

fn last_segment(name: &str) -> &str {
    let name = name.trim_end_matches(['/', '\\']);
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

/// Whether two revisions are one: a commit is compared with a commit, and a name with what was asked for. A name that is
/// another tells nothing, for it may be of the same commit.
fn same_revision(hint: &str, base: &str, asked: Option<&str>) -> Option<bool> {
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_commit(hint) && is_commit(base) {
        return Some(hint.eq_ignore_ascii_case(base));
    }
    (hint == base || asked == Some(hint)).then_some(true)
}

/// The rows of the adapter's embedding or head, where it has such.
fn adapter_rows(adapter: &LoraAdapter) -> Option<usize> {
    let is_vocabulary = |module: &str| BaseModules::is_embedding(module) || BaseModules::is_head(module);
    let pairs = adapter
        .modules
        .iter()
        .filter(|m| is_vocabulary(&m.name))
        .map(|m| if m.transposed { m.in_features } else { m.out_features });
    let whole = adapter.replacements.iter().filter_map(|replacement| {
        let module = replacement.name.strip_suffix(".weight").filter(|module| is_vocabulary(module))?;
        (!module.is_empty()).then(|| replacement.shape.first().copied()).flatten()
    });
    pairs.chain(whole).max()
}

/// The rows of the base's embedding.
fn base_rows(info: &ModelInfo) -> Option<usize> {
    if let Ok(decoder) = &info.decoder {
        return Some(decoder.vocab_size);
    }
    let is_embedding = |name: &str| name.strip_suffix(".weight").is_some_and(BaseModules::is_embedding);
    info.tensors.iter().find(|entry| is_embedding(&entry.name)).and_then(|entry| entry.shape.first().copied())
}

/// The architectures, by the name of a class or by llama.cpp's.
fn architecture(info: &ModelInfo, facts: &BaseFacts) -> IdentityCheck {
    let described = info.decoder.as_ref().ok().map(|decoder| decoder.architecture.name().to_owned());
    let (class, own) = match &info.format {
        ModelFormat::Safetensors { config } => {
            let class = config.get("architectures").and_then(|all| all.get(0)).and_then(|class| class.as_str());
            let kind = config.get("model_type").and_then(|kind| kind.as_str());
            (class.map(str::to_owned), kind.map(str::to_owned))
        }
        ModelFormat::Gguf { metadata } => (None, metadata.string("general.architecture").map(str::to_owned)),
        _ => (None, None),
    };
    let said = facts.adapter_architecture.clone();
    let is_class = said.as_deref().is_some_and(|name| name.starts_with(|first: char| first.is_ascii_uppercase()));
    let base = if is_class { class } else { own.clone().or(described.clone()) };
    let base = base.or(described).or(own);
    IdentityCheck::new(said, base, |said, base| {
        let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
        let base_is_class = base.starts_with(|first: char| first.is_ascii_uppercase());
        // A class and a model type have no common words.
        (is_class == base_is_class).then(|| plain(said) == plain(base))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case_and_organization_and_paths_tell_nothing() {
        for (hint, base, is_certain, expected) in [
            ("Org/Name", "org/name", true, Some(true)),
            ("unsloth/Name", "org/name", true, Some(true)),
            ("name", "org/Name", true, Some(true)),
            ("org/other", "org/name", true, Some(false)),
            ("org/other", "name", false, None),
            ("org/name", "name", false, Some(true)),
            ("/home/me/name", "org/name", true, None),
            ("./name", "org/name", true, None),
            ("runs/1/name", "org/other", true, None),
            (r"C:\models\name", "org/other", true, None),
        ] {
            assert_eq!(same_name(hint, base, is_certain), expected, "{hint} {base}");
        }
    }

    #[test]
    fn commits_are_compared_and_names_only_with_what_was_asked_for() {
        let (x, y) = ("a".repeat(40), "b".repeat(40));
        assert_eq!(same_revision(&x, &x.to_uppercase(), None), Some(true));
        assert_eq!(same_revision(&x, &y, Some("main")), Some(false));
        assert_eq!(same_revision("main", &y, Some("main")), Some(true));
        assert_eq!(same_revision("v1", &y, Some("main")), None);
        assert_eq!(same_revision(&x, "1700000000", None), None);
    }
}
