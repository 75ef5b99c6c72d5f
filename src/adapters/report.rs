//! What an adapter is, as data and as text.

use std::fmt;

use llm_local_core::{
    ArtifactRef,
    lora::{AdapterFeature, BaseHint},
};

/// What an adapter is: what its reader found, and, as far as that can be told, what it says where no reader takes it
/// ([`AdapterReport::unusable`]).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterReport {
    /// The ref that was inspected.
    pub reference: ArtifactRef,
    /// The immutable revision.
    pub revision: String,
    /// The revision's name for people, where it has one.
    pub version: Option<String>,
    /// What it was saved by.
    pub format: AdapterFormat,
    /// The base that it names, as far as it does.
    pub base: BaseHint,
    /// The ranks of its pairs, smallest first, each once. Those of the tensors, not of the config.
    pub ranks: Vec<usize>,
    /// Alpha, where the format has one; with [`AdapterFeature::AlphaPattern`], that of the modules without one of their own.
    pub alpha: Option<f64>,
    /// How its scale comes about.
    pub scaling: Scaling,
    /// What `B @ A` is multiplied by in the end, smallest first, each once. Empty if its reader refuses it.
    pub scales: Vec<f64>,
    /// What it uses beside plain pairs, sorted. Empty if its reader refuses it.
    pub features: Vec<AdapterFeature>,
    /// The modules that it says it applies to: names, or one regular expression. Empty in a format that does not say.
    pub targets: Vec<String>,
    /// The modules that it has tensors for.
    pub modules: usize,
    /// Its tensors.
    pub tensors: usize,
    /// Bytes of its files as the source has them; of an archive, those of the archive.
    pub bytes: u64,
    /// What its reader has to report though it reads it.
    pub notes: Vec<String>,
    /// Why it cannot be used with any base, if that can be told without one.
    pub unusable: Option<String>,
}

/// What an adapter was saved by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// Hugging Face PEFT: `adapter_config.json` with `peft_type`.
    Peft,
    /// mlx-lm: `adapter_config.json` with `fine_tune_type` or `lora_parameters`.
    MlxLm,
    /// mlx-vlm: `adapter_config.json` with `rank` and `alpha`.
    MlxVlm,
    /// A GGUF file, of llama.cpp.
    Gguf,
    /// That of a plugin, by its name.
    Plugin(String),
    /// None of these.
    Unknown,
}

impl AdapterFormat {
    /// The format that a reader has this name of.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "peft" => Self::Peft,
            "mlx-lm" => Self::MlxLm,
            "mlx-vlm" => Self::MlxVlm,
            "gguf" => Self::Gguf,
            other => Self::Plugin(other.to_owned()),
        }
    }
}

impl fmt::Display for AdapterFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "PEFT",
            Self::MlxLm => "mlx-lm",
            Self::MlxVlm => "mlx-vlm",
            Self::Gguf => "GGUF",
            Self::Plugin(name) => name,
            Self::Unknown => "unknown",
        })
    }
}

/// How the scale of an adapter comes about: `delta = scale * (B @ A)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Scaling {
    /// alpha / r (arXiv:2106.09685).
    AlphaOverRank,
    /// alpha / sqrt(r): rank-stabilized (arXiv:2312.03732).
    AlphaOverRootRank,
    /// The scale as it is stored.
    Stored(f64),
    /// It does not say.
    Unknown,
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlphaOverRank => f.write_str("alpha / r"),
            Self::AlphaOverRootRank => f.write_str("alpha / sqrt(r)"),
            Self::Stored(scale) => write!(f, "{scale}, as stored"),
            Self::Unknown => f.write_str("not known"),
        }
    }
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        match &self.version {
            Some(version) => writeln!(f, "adapter  {} at {version} ({})", self.reference, self.revision)?,
            None => writeln!(f, "adapter  {} at {}", self.reference, self.revision)?,
        }
        writeln!(f, "format   {}", self.format)?;
        let base = self.base.name.as_deref().unwrap_or("it names none");
        match &self.base.revision {
            Some(revision) => writeln!(f, "base     {base} at {revision}")?,
            None => writeln!(f, "base     {base}")?,
        }
        writeln!(f, "rank     {}", or(joined(&self.ranks), "none"))?;
        let alpha = self.alpha.map_or("none".to_owned(), |alpha| alpha.to_string());
        write!(f, "scaling  {}, alpha {alpha}", self.scaling)?;
        match self.scales[..] {
            [] => writeln!(f)?,
            _ => writeln!(f, ", so times {}", joined(&self.scales))?,
        }
        writeln!(f, "features {}", or(joined(&self.features), "plain pairs"))?;
        writeln!(f, "targets  {}", or(self.targets.join(", "), "it does not say"))?;
        writeln!(f, "tensors  {} for {} modules, {} bytes of files", self.tensors, self.modules, self.bytes)?;
        for note in &self.notes {
            writeln!(f, "note     {note}")?;
        }
        match &self.unusable {
            Some(why) => writeln!(f, "unusable {why}"),
            None => Ok(()),
        }
    }
}

fn joined(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
