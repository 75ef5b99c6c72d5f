//! The fields of `adapter_config.json` that mlx-lm and mlx-vlm read an adapter by.

use llm_local_core::lora::{BaseHint, DeclaredTargets, ModuleSelector};
use serde_json::{Map, Value};

use super::keys::{Spelling, canonical, within_layer};
use crate::lora::read::{
    options::ReadOptions,
    value::{is_set, let_pass, shown, unknown_field},
};

/// Layers that mlx-lm trains if nothing is said (`lora.py`, `CONFIG_DEFAULTS`).
const DEFAULT_LAYERS: i64 = 16;
/// The rank that mlx-lm trains with if nothing is said. The tensors tell whether it is right.
const DEFAULT_RANK: usize = 8;

/// Fields of mlx-lm, and of mlx-vlm, that change nothing about what the finished adapter does: how it was trained.
const INERT: &[&str] = &[
    "adapter_path",
    "batch_size",
    "base_quantization",
    "clear_cache_threshold",
    "config",
    "data",
    "epochs",
    "grad_accumulation_steps",
    "grad_checkpoint",
    "hf_dataset",
    "iters",
    "learning_rate",
    "lr_schedule",
    "mask_prompt",
    "max_seq_length",
    "optimizer",
    "optimizer_config",
    "project_name",
    "report_to",
    "resume_adapter_file",
    "save_every",
    "seed",
    "steps_per_eval",
    "steps_per_report",
    "test",
    "test_batches",
    "train",
    "trust_remote_code",
    "val_batches",
    "wandb",
];

/// How an adapter was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tuning {
    /// Pairs.
    Lora,
    /// Pairs with a magnitude each.
    Dora,
    /// The tensors themselves.
    Full,
    /// Nothing says: pairs, with the magnitudes that there are.
    Untold,
}

/// Which modules it says it applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keys {
    /// These, relative to a layer or whole paths.
    Named(Vec<String>),
    /// Those that are the default of the mlx-lm that trained it. They were q_proj and v_proj, and are now all linear
    /// modules, and no field has the version: so it is the kinds of modules that it has tensors for.
    Default,
    /// It does not say.
    Untold,
}

/// What the config says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MlxConfig {
    pub(super) spelling: Spelling,
    pub(super) tuning: Tuning,
    /// The rank that the tensors should have.
    pub(super) rank: Option<usize>,
    /// What `B @ A` is multiplied by.
    pub(super) scale: f64,
    pub(super) keys: Keys,
    /// Layers, counted from the last; `None` for all.
    pub(super) last_layers: Option<usize>,
    pub(super) base: BaseHint,
    pub(super) notes: Vec<String>,
    /// As [`LoraAdapter::unknown_fields`](llm_local_core::LoraAdapter::unknown_fields).
    pub(super) unknown_fields: Vec<String>,
}

impl MlxConfig {
    /// Reads mlx-lm's config, as far as it is known or let pass by `options`, which also say the scale of one that does not.
    /// The error is the reason, naming the field.
    pub(super) fn mlx_lm(config: &Map<String, Value>, options: &ReadOptions) -> Result<Self, String> {
        let fields = Fields { of: config, within: "" };
        let tuning = fields.tuning()?;
        let mut read = Self {
            spelling: Spelling::MlxLm,
            tuning,
            rank: None,
            scale: 1.0,
            keys: Keys::Untold,
            last_layers: None,
            base: BaseHint::new(fields.text("model")?, None),
            notes: fields.unknown(),
            unknown_fields: Vec::new(),
        };
        if tuning == Tuning::Full {
            return Ok(read);
        }
        let parameters = match fields.get("lora_parameters") {
            Some(Value::Object(parameters)) => parameters,
            Some(other) => return wrong("lora_parameters", "an object", other),
            None => {
                return Err(
                    "`lora_parameters` is missing, so the scale is unknown; set it as it was in training".into()
                );
            }
        };
        let parameters = Fields { of: parameters, within: "lora_parameters." };
        let unknown = parameters.beyond(&["rank", "scale", "dropout", "keys", "alpha"]);
        read.unknown_fields = let_pass(unknown, &options.allow)?;
        let rank = parameters.rank()?;
        read.rank = Some(rank.unwrap_or(DEFAULT_RANK));
        read.scale = parameters.scale(rank, options.scale)?;
        read.keys = parameters.keys()?;
        read.last_layers = fields.last_layers()?;
        Ok(read)
    }

    /// Reads the config of mlx-vlm's own format, with `options` as for mlx-lm's.
    ///
    /// Its layers add `alpha * x A B` up to version 0.1 of mlx-vlm, and `alpha / rank * x A B` in those that have
    /// `lora_parameters` too and still load it (`trainer/lora.py` of 0.1.0, `trainer/peft/lora.py` of 0.7).
    pub(super) fn mlx_vlm(config: &Map<String, Value>, options: &ReadOptions) -> Result<Self, String> {
        let fields = Fields { of: config, within: "" };
        let unknown = fields.beyond(&["rank", "alpha", "dropout", "model", "model_type"]);
        let unknown_fields = let_pass(unknown, &options.allow)?;
        let Some(alpha) = fields.number("alpha")? else { return wrong("alpha", "a finite number", &Value::Null) };
        let rank = fields.rank()?;
        let scale = match (options.scale, rank) {
            // At rank 1 all versions agree.
            (Some(given), Some(1)) if given != alpha => {
                return Err(format!("the scale {given} was given for it, but `alpha` is {alpha} at rank 1; give none"));
            }
            (None, Some(1)) => alpha,
            (Some(scale), _) => scale,
            (None, rank) => {
                let divided = rank.map_or_else(|| "alpha / rank".into(), |rank| (alpha / rank as f64).to_string());
                return Err(format!(
                    "it is in mlx-vlm's own format (top-level `rank` and `alpha`), whose scale depends on the version \
                     that trained it: {alpha} up to 0.1, {divided} later, and no field has the version; give the scale \
                     (`scale` of the adapter in a spec, `--scale` of the program), or save it with \
                     `lora_parameters.scale`"
                ));
            }
        };
        Ok(Self {
            spelling: Spelling::MlxVlm,
            tuning: Tuning::Lora,
            rank,
            scale,
            keys: Keys::Untold,
            last_layers: None,
            base: BaseHint::new(fields.text("model")?, None),
            notes: Vec::new(),
            unknown_fields,
        })
    }

    /// That of tensors without a config.
    pub(super) fn bare(scale: f64) -> Self {
        Self {
            spelling: Spelling::MlxLm,
            tuning: Tuning::Untold,
            rank: None,
            scale,
            keys: Keys::Untold,
            last_layers: None,
            base: BaseHint::default(),
            notes: Vec::new(),
            unknown_fields: Vec::new(),
        }
    }

    /// The modules it says it applies to, where it has tensors for `modules`.
    pub(super) fn targets<'a>(&self, modules: impl Iterator<Item = &'a str>) -> Option<DeclaredTargets> {
        let mut names: Vec<String> = match &self.keys {
            Keys::Untold => return None,
            Keys::Named(keys) => keys.iter().map(|key| canonical(key).to_owned()).collect(),
            Keys::Default => modules.map(|module| within_layer(module).to_owned()).collect(),
        };
        names.sort();
        names.dedup();
        let targets = DeclaredTargets::new(ModuleSelector::Names(names));
        Some(match self.last_layers {
            Some(layers) => targets.with_last_layers(layers),
            None => targets,
        })
    }
}

/// Typed access to fields; null is the same as not there.
struct Fields<'a> {
    of: &'a Map<String, Value>,
    /// What stands before their names in messages.
    within: &'static str,
}

fn wrong<T>(key: &str, expected: &str, found: &Value) -> Result<T, String> {
    Err(format!("`{key}` must be {expected}, found {}", shown(found)))
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.of.get(key).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, key: &str, expected: &str, found: &Value) -> Result<T, String> {
        wrong(&format!("{}{key}", self.within), expected, found)
    }

    /// The fields that are set, and none of these, a sentence each.
    fn beyond(&self, known: &[&str]) -> Vec<String> {
        let unknown = self.of.iter().filter(|(key, value)| !known.contains(&key.as_str()) && is_set(value));
        unknown.map(|(key, value)| unknown_field(&format!("{}{key}", self.within), value)).collect()
    }

    fn unknown(&self) -> Vec<String> {
        const READ: [&str; 6] = ["fine_tune_type", "use_dora", "num_layers", "lora_layers", "lora_parameters", "model"];
        let known = |key: &str| READ.contains(&key) || INERT.contains(&key);
        let unknown = self.of.iter().filter(|(key, value)| !known(key) && is_set(value));
        let said = |(key, value): (&String, &Value)| {
            format!("the field `{key}` is {}, and what it changes is not known", shown(value))
        };
        unknown.map(said).collect()
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => self.wrong(key, "text or null", other),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => self.wrong(key, "a finite number", value),
            },
        }
    }

    /// `fine_tune_type`, and before there was one `use_dora`.
    fn tuning(&self) -> Result<Tuning, String> {
        match self.get("fine_tune_type") {
            Some(Value::String(kind)) if kind == "lora" => Ok(Tuning::Lora),
            Some(Value::String(kind)) if kind == "dora" => Ok(Tuning::Dora),
            Some(Value::String(kind)) if kind == "full" => Ok(Tuning::Full),
            Some(other) => self.wrong("fine_tune_type", "\"lora\", \"dora\" or \"full\"", other),
            None => match self.get("use_dora") {
                None | Some(Value::Bool(false)) => Ok(Tuning::Lora),
                Some(Value::Bool(true)) => Ok(Tuning::Dora),
                Some(other) => self.wrong("use_dora", "true or false", other),
            },
        }
    }

    fn rank(&self) -> Result<Option<usize>, String> {
        let Some(value) = self.get("rank") else { return Ok(None) };
        match value.as_u64().and_then(|rank| usize::try_from(rank).ok()) {
            Some(rank) if rank > 0 => Ok(Some(rank)),
            _ => self.wrong("rank", "a rank of at least 1, as an integer", value),
        }
    }

    /// The scale as it stands there: it is not divided by the rank. mlx-lm too refuses to load an adapter without one.
    fn scale(&self, rank: Option<usize>, given: Option<f64>) -> Result<f64, String> {
        let (scale, alpha) = (self.number("scale")?, self.number("alpha")?);
        match (scale, given) {
            (Some(0.0), _) => Err("`lora_parameters.scale` is 0, so the adapter would do nothing".into()),
            (Some(scale), Some(given)) if scale != given => {
                Err(format!("the scale {given} was given for it, but `lora_parameters.scale` is {scale}; give none"))
            }
            (None, Some(given)) => Ok(given),
            (None, None) => Err(format!(
                "`lora_parameters.scale` is missing, so the scale is unknown{}; set it to the value of the training \
                 (mlx-lm trains with 20.0 if nothing is said), or give it (`scale` of the adapter in a spec, `--scale` of the \
                 program)",
                if alpha.is_some() { " (`alpha` is not what mlx-lm multiplies by)" } else { "" }
            )),
            (Some(scale), _) => match (alpha, rank.unwrap_or(DEFAULT_RANK) as f64) {
                (Some(alpha), rank) if alpha != rank => Err(format!(
                    "`lora_parameters` has both `scale` {scale} and `alpha` {alpha}: the first versions of mlx-lm \
                     multiply by scale * alpha / rank = {}, all others by scale; set `scale` to the one that it was \
                     trained with, and remove `alpha`",
                    scale * alpha / rank
                )),
                _ => Ok(scale),
            },
        }
    }

    fn keys(&self) -> Result<Keys, String> {
        let Some(value) = self.get("keys") else { return Ok(Keys::Default) };
        let expected = "a list of names, or null";
        let Value::Array(list) = value else { return self.wrong("keys", expected, value) };
        if list.is_empty() {
            return Err("`lora_parameters.keys` is an empty list: the adapter applies to nothing".into());
        }
        let name = |v: &Value| match v {
            Value::String(name) if !name.is_empty() => Ok(name.clone()),
            other => self.wrong("keys", expected, other),
        };
        Ok(Keys::Named(list.iter().map(name).collect::<Result<_, _>>()?))
    }

    /// `num_layers`, which older versions call `lora_layers`: so many layers from the last, and all of them if it is 0 or
    /// less (`layers[-max(num_layers, 0):]`).
    fn last_layers(&self) -> Result<Option<usize>, String> {
        let key = if self.get("num_layers").is_some() { "num_layers" } else { "lora_layers" };
        let layers = match self.get(key) {
            None => DEFAULT_LAYERS,
            Some(value) => match value.as_i64() {
                Some(layers) => layers,
                None => return self.wrong(key, "a number of layers, as an integer", value),
            },
        };
        Ok(usize::try_from(layers).ok().filter(|layers| *layers > 0))
    }
}
