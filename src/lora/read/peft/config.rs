//! The fields of a PEFT `adapter_config.json` that an adapter is read by.

use std::collections::{BTreeMap, BTreeSet};

use llm_local_core::{
    Allowance,
    lora::{BaseHint, DeclaredTargets},
};
use serde_json::{Map, Value};

use super::{declared, features, fields::Fields, kinds, patterns::Patterns};
use crate::lora::read::value::let_pass;

/// PEFT's value for a config without `r`. The tensors tell whether it is right.
const DEFAULT_RANK: usize = 8;

/// What the config says.
pub(super) struct PeftConfig {
    /// `r`, of modules without their own.
    rank: usize,
    /// `lora_alpha`, of modules without their own.
    alpha: f64,
    pub(super) patterns: Patterns,
    /// alpha / sqrt(r) instead of alpha / r.
    pub(super) rank_stabilized: bool,
    /// Whether each pair has a magnitude.
    pub(super) dora: bool,
    /// Whether each B has a bias.
    pub(super) lora_bias: bool,
    pub(super) bias: TrainedBias,
    /// Ends of the paths of modules that are saved in full.
    pub(super) modules_to_save: Vec<String>,
    pub(super) fan_in_fan_out: bool,
    pub(super) trained_tokens: Option<TrainedTokens>,
    /// Whether what is tied to the embedding is trained and saved with it.
    pub(super) ensure_weight_tying: bool,
    /// Whether stacked weights of experts are taken for (experts, in, out), whatever the model makes of them.
    pub(super) experts_by_position: bool,
    pub(super) targets: DeclaredTargets,
    pub(super) base: BaseHint,
    /// Whether it is for a task whose head is new: PEFT then adds names of heads to `modules_to_save`, most of which no
    /// model has.
    pub(super) adds_heads: bool,
    /// As [`LoraAdapter::unknown_fields`](llm_local_core::LoraAdapter::unknown_fields).
    pub(super) unknown_fields: Vec<String>,
}

/// Which biases of the base are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrainedBias {
    None,
    All,
    /// Those of the modules that have pairs.
    OfPairs,
}

/// Rows of embeddings that are trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TrainedTokens {
    /// Of the input embedding.
    OfInput(Vec<usize>),
    /// By the end of a module's path.
    ByModule(BTreeMap<String, Vec<usize>>),
}

impl PeftConfig {
    /// Reads `config`, which was read from `bytes`, as far as it is known or `allow` has what is not. The error is the
    /// reason, naming the field.
    pub(super) fn new(config: &Map<String, Value>, bytes: &[u8], allow: &BTreeSet<Allowance>) -> Result<Self, String> {
        let fields = Fields(config);
        kinds::check(config.get("peft_type"))?;
        let unknown_fields = let_pass(features::check(config)?, allow)?;
        let rank = fields.get("r").map_or(Ok(DEFAULT_RANK), |value| Fields::rank("r", value))?;
        let config = Self {
            rank,
            alpha: alpha(&fields)?,
            patterns: Patterns::new(&fields, bytes)?,
            rank_stabilized: fields.flag("use_rslora")?,
            dora: fields.flag("use_dora")?,
            lora_bias: fields.flag("lora_bias")?,
            bias: bias(&fields)?,
            modules_to_save: fields.names_or_null("modules_to_save")?,
            fan_in_fan_out: fields.flag("fan_in_fan_out")?,
            trained_tokens: trained_tokens(&fields)?,
            ensure_weight_tying: fields.flag("ensure_weight_tying")?,
            experts_by_position: experts_by_position(fields.text("peft_version")?.as_deref()),
            targets: declared::targets(&fields)?,
            base: BaseHint::new(fields.text("base_model_name_or_path")?, fields.text("revision")?),
            adds_heads: matches!(fields.text("task_type")?.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS")),
            unknown_fields,
        };
        config.check_together()?;
        Ok(config)
    }

    /// The rank of the module, or parameter, `path`, and what its `B @ A` is multiplied by.
    pub(super) fn rank_and_scale(&self, path: &str) -> Result<(usize, f64), String> {
        let rank = self.patterns.rank(path)?.unwrap_or(self.rank);
        let alpha = self.patterns.alpha(path)?.unwrap_or(self.alpha);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }

    /// Refuses what PEFT itself does not put together: what such an adapter would mean, nobody has said.
    fn check_together(&self) -> Result<(), String> {
        let parameters = !self.targets.parameters.is_empty();
        for (both, first, second) in [
            (self.dora && self.lora_bias, "use_dora", "lora_bias"),
            (self.dora && parameters, "use_dora", "target_parameters"),
            (self.lora_bias && parameters, "lora_bias", "target_parameters"),
            (self.fan_in_fan_out && parameters, "fan_in_fan_out", "target_parameters"),
        ] {
            if both {
                return Err(format!("`{first}` and `{second}` are both set, which PEFT does not know together"));
            }
        }
        Ok(())
    }
}

/// PEFT takes 8 where it is not given. No tensor tells whether that is right, and a wrong scale shows nowhere but in the
/// model's answers: so it must be given.
fn alpha(fields: &Fields<'_>) -> Result<f64, String> {
    match fields.get("lora_alpha") {
        Some(value) => Fields::alpha("lora_alpha", value),
        None => Err("`lora_alpha` is missing, so the scale is unknown; set it to the value of the training".into()),
    }
}

fn bias(fields: &Fields<'_>) -> Result<TrainedBias, String> {
    match fields.get("bias") {
        None => Ok(TrainedBias::None),
        Some(Value::String(kind)) if kind == "none" => Ok(TrainedBias::None),
        Some(Value::String(kind)) if kind == "all" => Ok(TrainedBias::All),
        Some(Value::String(kind)) if kind == "lora_only" => Ok(TrainedBias::OfPairs),
        Some(other) => Fields::wrong("bias", "\"none\", \"all\" or \"lora_only\"", other),
    }
}

fn trained_tokens(fields: &Fields<'_>) -> Result<Option<TrainedTokens>, String> {
    const KEY: &str = "trainable_token_indices";
    match fields.get(KEY) {
        None => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Object(lists)) if lists.is_empty() => Ok(None),
        Some(Value::Array(list)) => Ok(Some(TrainedTokens::OfInput(Fields::indexes(KEY, list)?))),
        Some(Value::Object(lists)) => {
            let one = |(module, list): (&String, &Value)| match list {
                Value::Array(list) => Ok((module.clone(), Fields::indexes(KEY, list)?)),
                other => Fields::wrong(&format!("{KEY}.{module}"), "a list of indexes from 0", other),
            };
            Ok(Some(TrainedTokens::ByModule(lists.iter().map(one).collect::<Result<_, String>>()?)))
        }
        Some(other) => Fields::wrong(KEY, "a list of indexes from 0, or an object of them by module", other),
    }
}

/// Whether a PEFT of this version takes the shape of experts' stacked weights for (experts, in, out) in every model. From
/// 0.19 on it takes it for (experts, out, in), but in models that say otherwise; before 0.18.1 no version was written.
///
/// Source: PEFT `src/peft/tuners/lora/layer.py`, `ParamWrapper`, of the versions 0.17.1, 0.18.1 and 0.19.0.
fn experts_by_position(version: Option<&str>) -> bool {
    let Some(version) = version else { return true };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (0, 19)
}
