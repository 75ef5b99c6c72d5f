//! The fields of a PEFT `adapter_config.json` that a plain LoRA adapter is read by.

use llm_local_core::lora::{BaseHint, DeclaredTargets, ModuleSelector};
use serde_json::{Map, Value};

use super::features::{self, shown};

/// PEFT's value for a config without `r`. The tensors tell whether it is right.
const DEFAULT_RANK: usize = 8;

/// What the config says.
#[derive(Debug, PartialEq)]
pub(super) struct PeftConfig {
    /// `r`.
    pub(super) rank: usize,
    /// What `B @ A` is multiplied by.
    pub(super) scale: f64,
    pub(super) targets: DeclaredTargets,
    pub(super) base: BaseHint,
}

impl PeftConfig {
    /// Reads `config`; the error is the reason, naming the field.
    pub(super) fn new(config: &Map<String, Value>) -> Result<Self, String> {
        let fields = Fields(config);
        match config.get("peft_type") {
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("LORA") => {}
            other => {
                let found = shown(other.unwrap_or(&Value::Null));
                return Err(format!("`peft_type` is {found}: of PEFT's kinds only \"LORA\" is supported"));
            }
        }
        features::check(config)?;
        let rank = fields.rank()?;
        let divisor = if fields.flag("use_rslora")? { (rank as f64).sqrt() } else { rank as f64 };
        let scale = fields.alpha()? / divisor;
        let base = BaseHint::new(fields.text("base_model_name_or_path")?, fields.text("revision")?);
        Ok(Self { rank, scale, targets: fields.targets()?, base })
    }
}

/// Typed access to the fields; null is the same as not there.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn wrong<T>(key: &str, expected: &str, found: &Value) -> Result<T, String> {
        Err(format!("`{key}` must be {expected}, found {}", shown(found)))
    }

    fn rank(&self) -> Result<usize, String> {
        let Some(value) = self.get("r") else { return Ok(DEFAULT_RANK) };
        match value.as_u64().and_then(|r| usize::try_from(r).ok()) {
            Some(rank) if rank > 0 => Ok(rank),
            _ => Self::wrong("r", "a rank of at least 1, as an integer", value),
        }
    }

    /// PEFT takes 8 where it is not given. No tensor tells whether that is right, and a wrong scale shows nowhere but in
    /// the model's answers: so it must be given.
    fn alpha(&self) -> Result<f64, String> {
        let Some(value) = self.get("lora_alpha") else {
            return Err("`lora_alpha` is missing, so the scale is unknown; set it to the value of the training".into());
        };
        match value.as_f64() {
            Some(0.0) => Err("`lora_alpha` is 0, so the adapter would do nothing".into()),
            Some(alpha) if alpha.is_finite() => Ok(alpha),
            _ => Self::wrong("lora_alpha", "a finite number", value),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Self::wrong(key, "true or false", other),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Self::wrong(key, "text or null", other),
        }
    }

    /// A list of names, none of them empty.
    fn names(key: &str, list: &[Value]) -> Result<Vec<String>, String> {
        let name = |v: &Value| match v {
            Value::String(name) if !name.is_empty() => Ok(name.clone()),
            other => Self::wrong(key, "a list of names", other),
        };
        list.iter().map(name).collect()
    }

    fn targets(&self) -> Result<DeclaredTargets, String> {
        let modules = match self.get("target_modules") {
            None => ModuleSelector::ArchitectureDefault,
            Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => ModuleSelector::AllLinear,
            Some(Value::String(pattern)) => ModuleSelector::Pattern(pattern.clone()),
            Some(Value::Array(list)) if list.is_empty() => {
                return Err("`target_modules` is an empty list: the adapter applies to nothing".into());
            }
            Some(Value::Array(list)) => ModuleSelector::Names(Self::names("target_modules", list)?),
            Some(other) => {
                return Self::wrong("target_modules", "a list of names, a regular expression or null", other);
            }
        };
        let is_text = matches!(modules, ModuleSelector::Pattern(_) | ModuleSelector::AllLinear);
        let mut targets = DeclaredTargets::new(modules);
        if let Some(exclude) = self.exclude()? {
            targets = targets.with_exclude(exclude);
        }
        let (layers, pattern) = (self.layers()?, self.layers_pattern()?);
        for (key, empty) in [("layers_to_transform", layers.is_empty()), ("layers_pattern", pattern.is_empty())] {
            if is_text && !empty {
                return Err(format!("`{key}` goes only with a list of `target_modules`, and that is text"));
            }
        }
        if layers.is_empty() && !pattern.is_empty() {
            return Err("`layers_pattern` is given without `layers_to_transform`".into());
        }
        Ok(targets.with_layers(layers, pattern))
    }

    fn exclude(&self) -> Result<Option<ModuleSelector>, String> {
        match self.get("exclude_modules") {
            None => Ok(None),
            Some(Value::String(pattern)) if pattern.is_empty() => Ok(None),
            Some(Value::String(pattern)) => Ok(Some(ModuleSelector::Pattern(pattern.clone()))),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(Value::Array(list)) => Ok(Some(ModuleSelector::Names(Self::names("exclude_modules", list)?))),
            Some(other) => Self::wrong("exclude_modules", "a list of names, a regular expression or null", other),
        }
    }

    fn layers(&self) -> Result<Vec<usize>, String> {
        let index = |v: &Value| match v.as_u64().and_then(|i| usize::try_from(i).ok()) {
            Some(index) => Ok(index),
            None => Self::wrong("layers_to_transform", "a layer's index from 0, or a list of them", v),
        };
        match self.get("layers_to_transform") {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(index).collect(),
            Some(one) => Ok(vec![index(one)?]),
        }
    }

    fn layers_pattern(&self) -> Result<Vec<String>, String> {
        match self.get("layers_pattern") {
            None => Ok(Vec::new()),
            Some(Value::String(one)) if one.is_empty() => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(Value::Array(list)) => Self::names("layers_pattern", list),
            Some(other) => Self::wrong("layers_pattern", "text, a list of texts or null", other),
        }
    }
}
