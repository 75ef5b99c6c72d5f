//! What an adapter says of itself, in the words of its format.

use std::{collections::BTreeSet, fmt};

use llm_local_core::{ArtifactRef, GgufMetadata, TensorEntry, lora::BaseHint};
use serde_json::{Map, Value};

/// What an adapter is, by its config and the headers of its weights: no value is read.
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
    /// Alpha, where the format has one.
    pub alpha: Option<f64>,
    /// How its scale comes about.
    pub scaling: Scaling,
    /// The modules that it says it applies to: names, or one regular expression. Empty in a format that does not say.
    pub targets: Vec<String>,
    /// The modules that it has tensors for.
    pub modules: usize,
    /// Its tensors.
    pub tensors: usize,
    /// Bytes of its files as the source has them; of an archive, those of the archive.
    pub bytes: u64,
    /// Why it cannot be used with any base, if that can be told without one.
    pub unusable: Option<String>,
}

/// What an adapter was saved by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AdapterFormat {
    /// Hugging Face PEFT: `adapter_config.json` with `peft_type`.
    Peft,
    /// mlx-lm: `adapter_config.json` with `lora_parameters`.
    MlxLm,
    /// A GGUF file, of llama.cpp.
    Gguf,
    /// None of these.
    Unknown,
}

impl fmt::Display for AdapterFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "PEFT",
            Self::MlxLm => "mlx-lm",
            Self::Gguf => "GGUF",
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

/// What a config or the metadata says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub(super) format: AdapterFormat,
    pub(super) base: BaseHint,
    pub(super) alpha: Option<f64>,
    pub(super) scaling: Scaling,
    pub(super) targets: Vec<String>,
}

impl Said {
    /// What `adapter_config.json` says. Fields of other types than they should have are as good as missing: what is wrong
    /// with them is [`AdapterReport::unusable`].
    pub(super) fn by_config(config: &Map<String, Value>) -> Self {
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        if config.contains_key("peft_type") {
            let rooted = config.get("use_rslora").and_then(Value::as_bool) == Some(true);
            return Self {
                format: AdapterFormat::Peft,
                base: BaseHint::new(text("base_model_name_or_path"), text("revision")),
                alpha: config.get("lora_alpha").and_then(Value::as_f64),
                scaling: if rooted { Scaling::AlphaOverRootRank } else { Scaling::AlphaOverRank },
                targets: names(config.get("target_modules")),
            };
        }
        let is_mlx = config.contains_key("fine_tune_type") || config.contains_key("lora_parameters");
        let parameters = config.get("lora_parameters").and_then(Value::as_object);
        let number = |key: &str| parameters.and_then(|p| p.get(key)).and_then(Value::as_f64);
        let alpha = number("alpha");
        Self {
            format: if is_mlx { AdapterFormat::MlxLm } else { AdapterFormat::Unknown },
            base: BaseHint::new(text("model"), None),
            alpha,
            scaling: match number("scale") {
                Some(scale) => Scaling::Stored(scale),
                None if alpha.is_some() => Scaling::AlphaOverRank,
                None => Scaling::Unknown,
            },
            targets: names(parameters.and_then(|p| p.get("keys"))),
        }
    }

    /// What the metadata of a GGUF file says. llama.cpp divides alpha by the rank; without alpha the scale is 1.
    pub(super) fn by_gguf(metadata: &GgufMetadata) -> Self {
        let text = |key: &str| metadata.string(key).map(str::to_owned);
        let alpha = metadata.f64("adapter.lora.alpha").filter(|alpha| *alpha != 0.0);
        Self {
            format: AdapterFormat::Gguf,
            base: BaseHint::new(text("general.base_model.0.name"), text("general.base_model.0.version")),
            alpha,
            scaling: if alpha.is_some() { Scaling::AlphaOverRank } else { Scaling::Stored(1.0) },
            targets: Vec::new(),
        }
    }

    /// Nothing.
    pub(super) fn nothing() -> Self {
        let (base, alpha, targets) = Default::default();
        Self { format: AdapterFormat::Unknown, base, alpha, scaling: Scaling::Unknown, targets }
    }
}

/// The rank of each pair and its module, by the names and shapes of the tensors: A is `lora_A` of shape (r, in) in PEFT's
/// files and those of llama.cpp (`lora_a`), and `lora_a` of shape (in, r) in those of mlx-lm.
pub(super) fn pairs(format: AdapterFormat, entries: &[TensorEntry]) -> (BTreeSet<usize>, usize) {
    let (mut ranks, mut modules) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries {
        let factor = ["lora_A", "lora_a", "lora_embedding_A"].iter().find_map(|factor| {
            let at = entry.name.find(&format!(".{factor}"))?;
            Some((*factor, &entry.name[..at]))
        });
        let Some((factor, module)) = factor else { continue };
        let rank =
            if format == AdapterFormat::MlxLm && factor == "lora_a" { entry.shape.get(1) } else { entry.shape.first() };
        ranks.extend(rank);
        modules.insert(module);
    }
    (ranks, modules.len())
}

/// A name, or a list of names.
fn names(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            let mut names: Vec<_> = all.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            names.sort();
            names
        }
        _ => Vec::new(),
    }
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: String, none: &str| if text.is_empty() { none.to_owned() } else { text };
        let joined = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
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
        writeln!(f, "scaling  {}, alpha {alpha}", self.scaling)?;
        writeln!(f, "targets  {}", or(self.targets.join(", "), "it does not say"))?;
        writeln!(f, "tensors  {} for {} modules, {} bytes of files", self.tensors, self.modules, self.bytes)?;
        match &self.unusable {
            Some(why) => writeln!(f, "unusable {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::{Encoding, FloatType, GgufValue};
    use serde_json::json;

    use super::*;

    fn said(config: Value) -> Said {
        Said::by_config(config.as_object().unwrap())
    }

    #[test]
    fn the_scale_of_each_format_comes_about_in_its_own_way() {
        let peft = said(json!({"peft_type": "LORA", "lora_alpha": 16, "r": 8, "target_modules": ["v", "q"]}));
        assert_eq!((peft.format, peft.alpha, peft.scaling), (AdapterFormat::Peft, Some(16.0), Scaling::AlphaOverRank));
        assert_eq!(peft.targets, ["q", "v"]);
        let rooted = said(json!({"peft_type": "LORA", "use_rslora": true, "target_modules": ".*q"}));
        assert_eq!((rooted.scaling, &rooted.targets[..]), (Scaling::AlphaOverRootRank, &[".*q".to_owned()][..]));
        let mlx = said(json!({"model": "m", "lora_parameters": {"rank": 8, "scale": 2.0, "keys": ["q"]}}));
        assert_eq!((mlx.format, mlx.scaling), (AdapterFormat::MlxLm, Scaling::Stored(2.0)));
        assert_eq!((mlx.base.name.as_deref(), &mlx.targets[..]), (Some("m"), &["q".to_owned()][..]));
        let older = said(json!({"lora_parameters": {"rank": 8, "alpha": 16.0}}));
        assert_eq!((older.scaling, older.alpha), (Scaling::AlphaOverRank, Some(16.0)));
        assert_eq!(said(json!({"x": 1})).format, AdapterFormat::Unknown);

        let mut metadata = GgufMetadata::default();
        assert_eq!(Said::by_gguf(&metadata).scaling, Scaling::Stored(1.0));
        metadata.insert("adapter.lora.alpha", GgufValue::Float(16.0));
        metadata.insert("general.base_model.0.name", GgufValue::String("Base".into()));
        let gguf = Said::by_gguf(&metadata);
        assert_eq!(
            (gguf.alpha, gguf.scaling, gguf.base.name.as_deref()),
            (Some(16.0), Scaling::AlphaOverRank, Some("Base"))
        );
    }

    #[test]
    fn the_rank_is_the_side_of_a_that_the_format_says() {
        let entry =
            |name: &str, shape: &[usize]| TensorEntry::new(name, shape.to_vec(), Encoding::Float(FloatType::F32));
        let peft = [entry("m.q.lora_A.weight", &[8, 128]), entry("m.q.lora_B.weight", &[128, 8])];
        assert_eq!(pairs(AdapterFormat::Peft, &peft), (BTreeSet::from([8]), 1));
        let mlx = [entry("m.q.lora_a", &[128, 4]), entry("m.q.lora_b", &[4, 128]), entry("m.v.lora_a", &[128, 8])];
        assert_eq!(pairs(AdapterFormat::MlxLm, &mlx), (BTreeSet::from([4, 8]), 2));
        let gguf = [entry("blk.0.attn_q.weight.lora_a", &[16, 128]), entry("blk.0.attn_q.weight.lora_b", &[128, 16])];
        assert_eq!(pairs(AdapterFormat::Gguf, &gguf), (BTreeSet::from([16]), 1));
    }
}
