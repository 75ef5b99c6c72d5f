//! What an adapter says of itself, in the words of its format, whether or not it can be read.

use std::collections::BTreeSet;

use llm_local_core::{GgufMetadata, TensorEntry, lora::BaseHint};
use serde_json::{Map, Value};

use super::{AdapterFormat, Scaling};
use crate::lora::{self, AdapterOutline};

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
        let format = lora::config_format(config).map_or(AdapterFormat::Unknown, AdapterFormat::named);
        if format == AdapterFormat::Peft {
            let rooted = config.get("use_rslora").and_then(Value::as_bool) == Some(true);
            return Self {
                format,
                base: BaseHint::new(text("base_model_name_or_path"), text("revision")),
                alpha: config.get("lora_alpha").and_then(Value::as_f64),
                scaling: if rooted { Scaling::AlphaOverRootRank } else { Scaling::AlphaOverRank },
                targets: names(config.get("target_modules")),
            };
        }
        let parameters = config.get("lora_parameters").and_then(Value::as_object);
        let number = |key: &str| parameters.and_then(|p| p.get(key)).and_then(Value::as_f64);
        // mlx-vlm's own format has it at the top, and a scale that depends on the version.
        let alpha = match format {
            AdapterFormat::MlxVlm => config.get("alpha").and_then(Value::as_f64),
            _ => number("alpha"),
        };
        let is_mlx_lm = format == AdapterFormat::MlxLm;
        Self {
            format,
            base: BaseHint::new(text("model"), None),
            alpha,
            scaling: match number("scale") {
                Some(scale) => Scaling::Stored(scale),
                None if alpha.is_some() && is_mlx_lm => Scaling::AlphaOverRank,
                None => Scaling::Unknown,
            },
            targets: names(parameters.and_then(|p| p.get("keys"))),
        }
    }

    /// What the metadata of a GGUF file says. llama.cpp divides alpha by the rank; without alpha the scale is 1.
    pub(super) fn by_gguf(metadata: &GgufMetadata) -> Self {
        let alpha = metadata.f64("adapter.lora.alpha").filter(|alpha| *alpha != 0.0);
        Self {
            format: AdapterFormat::Gguf,
            base: lora::gguf_base(metadata),
            alpha,
            scaling: if alpha.is_some() { Scaling::AlphaOverRank } else { Scaling::Stored(1.0) },
            targets: Vec::new(),
        }
    }

    /// What a plugin's reader found.
    pub(super) fn by_outline(outline: &AdapterOutline) -> Self {
        Self {
            format: AdapterFormat::named(&outline.format),
            base: outline.base.clone(),
            alpha: None,
            scaling: match outline.scales()[..] {
                [scale] => Scaling::Stored(scale),
                _ => Scaling::Unknown,
            },
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
/// files and those of llama.cpp (`lora_a`), and `lora_a` of shape (in, r) in those of mlx-lm
/// and mlx-vlm.
pub(super) fn pairs(format: &AdapterFormat, entries: &[TensorEntry]) -> (BTreeSet<usize>, usize) {
    let is_mlx = matches!(format, AdapterFormat::MlxLm | AdapterFormat::MlxVlm);
    let (mut ranks, mut modules) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries {
        let factor = ["lora_A", "lora_a", "lora_embedding_A"].iter().find_map(|factor| {
            let at = entry.name.find(&format!(".{factor}"))?;
            Some((*factor, &entry.name[..at]))
        });
        let Some((factor, module)) = factor else { continue };
        let rank = if is_mlx && factor == "lora_a" { entry.shape.get(1) } else { entry.shape.first() };
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
        let vlm = said(json!({"rank": 8, "alpha": 0.1, "dropout": 0.0}));
        assert_eq!((vlm.format, vlm.scaling, vlm.alpha), (AdapterFormat::MlxVlm, Scaling::Unknown, Some(0.1)));
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
        // As the reader takes it: the repository, which tells more than a name.
        metadata.insert("general.base_model.0.repo_url", GgufValue::String("https://huggingface.co/org/base".into()));
        assert_eq!(Said::by_gguf(&metadata).base.name.as_deref(), Some("org/base"));
    }

    #[test]
    fn the_rank_is_the_side_of_a_that_the_format_says() {
        let entry =
            |name: &str, shape: &[usize]| TensorEntry::new(name, shape.to_vec(), Encoding::Float(FloatType::F32));
        let peft = [entry("m.q.lora_A.weight", &[8, 128]), entry("m.q.lora_B.weight", &[128, 8])];
        assert_eq!(pairs(&AdapterFormat::Peft, &peft), (BTreeSet::from([8]), 1));
        let mlx = [entry("m.q.lora_a", &[128, 4]), entry("m.q.lora_b", &[4, 128]), entry("m.v.lora_a", &[128, 8])];
        assert_eq!(pairs(&AdapterFormat::MlxLm, &mlx), (BTreeSet::from([4, 8]), 2));
        let gguf = [entry("blk.0.attn_q.weight.lora_a", &[16, 128]), entry("blk.0.attn_q.weight.lora_b", &[128, 16])];
        assert_eq!(pairs(&AdapterFormat::Gguf, &gguf), (BTreeSet::from([16]), 1));
    }
}
