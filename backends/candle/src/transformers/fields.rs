//! config.json, of which no field is overlooked: what a model's reader has not asked for is refused, unless it is known
//! to leave the computation as it is.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value};

/// Fields that say nothing about the computation: of the file, of training, of generation.
const HARMLESS: [&str; 11] = [
    "architectures",
    "auto_map",
    "dtype",
    "initializer_range",
    "model_type",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

fn is_harmless(name: &str) -> bool {
    let suffixes = ["_token_id", "_dropout", "_pdrop"];
    HARMLESS.contains(&name) || name.starts_with('_') || suffixes.iter().any(|s| name.ends_with(s))
}

/// The fields of config.json. `null` counts as absent, as in transformers. Errors name the field, what it has and what
/// was expected.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, asked: RefCell::default() }
    }

    fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(name);
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn wrong(&self, name: &str, expected: &str) -> String {
        let found = self.map.get(name).filter(|v| !v.is_null());
        let found = found.map_or_else(|| "missing".to_owned(), shown);
        format!("config.json: {name} is {found}; candle-transformers needs {expected}")
    }

    /// A whole number above 0, if the field is there.
    pub(super) fn size_or_none(&self, name: &'static str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // Far above any model, and low enough that the product of any two fits.
        let size = value.as_u64().filter(|n| (1..1 << 31).contains(n)).and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(name, "a whole number from 1 to 2147483647"))
    }

    pub(super) fn size(&self, name: &'static str) -> Result<usize, String> {
        self.size_or_none(name)?.ok_or_else(|| self.wrong(name, "a whole number from 1 to 2147483647"))
    }

    /// A number above 0, if the field is there.
    pub(super) fn number_or_none(&self, name: &'static str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    pub(super) fn number(&self, name: &'static str) -> Result<f64, String> {
        self.number_or_none(name)?.ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    pub(super) fn bool(&self, name: &'static str, absent: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(absent) };
        value.as_bool().ok_or_else(|| self.wrong(name, "true or false"))
    }

    /// Checks a field that candle-transformers does not look at and takes to be `only`.
    pub(super) fn only_bool(&self, name: &'static str, only: bool, absent: bool) -> Result<(), String> {
        if self.bool(name, absent)? == only { Ok(()) } else { Err(self.wrong(name, &only.to_string())) }
    }

    /// The same for a text, where absence stands for `only`.
    pub(super) fn only_text(&self, name: &'static str, only: &str) -> Result<(), String> {
        match self.get(name) {
            Some(value) if value.as_str() != Some(only) => Err(self.wrong(name, &format!("{only:?}"))),
            _ => Ok(()),
        }
    }

    /// The same for a number.
    pub(super) fn only_size(&self, name: &'static str, only: usize) -> Result<(), String> {
        match self.size_or_none(name)? {
            Some(size) if size != only => Err(self.wrong(name, &only.to_string())),
            _ => Ok(()),
        }
    }

    /// `hidden_act`, one of those that are the same function in transformers and in candle.
    pub(super) fn activation(&self) -> Result<&'a str, String> {
        const SAME: [&str; 5] = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"];
        let found = self.get("hidden_act").and_then(Value::as_str).filter(|a| SAME.contains(a));
        found.ok_or_else(|| self.wrong("hidden_act", &SAME.join(", ")))
    }

    /// The rotary base, and the part of each head that is rotated: from `rope_theta` and `partial_rotary_factor`, from
    /// `rope_parameters`, or from both if they agree. Any scaling is refused.
    pub(super) fn rope(&self, theta: f64, partial: Option<f64>) -> Result<(f64, f64), String> {
        let none = Map::new();
        let mut nested = &none;
        for name in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(name) else { continue };
            let expected = "no scaling of rotary frequencies: null, or the rope_type \"default\"";
            nested = value.as_object().ok_or_else(|| self.wrong(name, expected))?;
            for (key, value) in nested {
                let fine = match key.as_str() {
                    "rope_type" | "type" => value == "default",
                    "rope_theta" => true,
                    "partial_rotary_factor" => partial.is_some(),
                    _ => value.is_null(),
                };
                if !fine {
                    return Err(self.wrong(name, expected));
                }
            }
        }
        let read = |name: &'static str, absent: f64| -> Result<f64, String> {
            let top = self.number_or_none(name)?;
            let Some(inner) = nested.get(name).filter(|v| !v.is_null()) else { return Ok(top.unwrap_or(absent)) };
            let inner = inner.as_f64().filter(|n| n.is_finite() && *n > 0.0);
            match (inner, top) {
                (Some(inner), Some(top)) if inner != top => Err(self.wrong(name, "what rope_parameters has")),
                (Some(inner), _) => Ok(inner),
                (None, _) => Err(self.wrong("rope_parameters", &format!("a number above 0 as {name}"))),
            }
        };
        let theta = read("rope_theta", theta)?;
        let Some(absent) = partial else { return Ok((theta, 1.0)) };
        match read("partial_rotary_factor", absent)? {
            part if part < 1.0 => Ok((theta, part)),
            _ => Err(self.wrong("partial_rotary_factor", "a number between 0 and 1")),
        }
    }

    /// Refuses the first field that nobody asked for.
    pub(super) fn nothing_overlooked(&self, class: &str) -> Result<(), String> {
        let asked = self.asked.borrow();
        let left = self
            .map
            .iter()
            .find(|(name, value)| !value.is_null() && !asked.contains(name.as_str()) && !is_harmless(name));
        match left {
            Some((name, value)) => Err(format!(
                "config.json: {name} is {}; candle-transformers' {class} does not know the field",
                shown(value)
            )),
            None => Ok(()),
        }
    }
}

/// A value for a message, cut to a length that a reader can take in.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
