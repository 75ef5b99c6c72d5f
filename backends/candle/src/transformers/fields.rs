//! config.json, of which no field is overlooked: what a model's reader has not asked for is refused, unless it is known
//! to leave the computation as it is.

use llm_local_core::model::ConfigFields;
use serde_json::{Map, Value};

/// The fields of config.json. `null` counts as absent, as in transformers. Errors name the field, what it has and what
/// was expected.
pub(super) struct Fields<'a>(ConfigFields<'a>);

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self(ConfigFields::new(map))
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name)
    }

    pub(super) fn wrong(&self, name: &str, expected: &str) -> String {
        format!("config.json: {name} is {}; candle-transformers needs {expected}", self.0.shown(name))
    }

    /// A whole number above 0, if the field is there.
    pub(super) fn size_or_none(&self, name: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // Far above any model, and low enough that the product of any two fits.
        let size = value.as_u64().filter(|n| (1..1 << 31).contains(n)).and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(name, "a whole number from 1 to 2147483647"))
    }

    pub(super) fn size(&self, name: &str) -> Result<usize, String> {
        self.size_or_none(name)?.ok_or_else(|| self.wrong(name, "a whole number from 1 to 2147483647"))
    }

    /// A number above 0, if the field is there.
    pub(super) fn number_or_none(&self, name: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    pub(super) fn number(&self, name: &str) -> Result<f64, String> {
        self.number_or_none(name)?.ok_or_else(|| self.wrong(name, "a number above 0"))
    }

    pub(super) fn bool(&self, name: &str, absent: bool) -> Result<bool, String> {
        let Some(value) = self.get(name) else { return Ok(absent) };
        value.as_bool().ok_or_else(|| self.wrong(name, "true or false"))
    }

    /// Checks a field that candle-transformers does not look at and takes to be `only`.
    pub(super) fn only_bool(&self, name: &str, only: bool, absent: bool) -> Result<(), String> {
        if self.bool(name, absent)? == only { Ok(()) } else { Err(self.wrong(name, &only.to_string())) }
    }

    /// The same for a text, where absence stands for `only`.
    pub(super) fn only_text(&self, name: &str, only: &str) -> Result<(), String> {
        match self.get(name) {
            Some(value) if value.as_str() != Some(only) => Err(self.wrong(name, &format!("{only:?}"))),
            _ => Ok(()),
        }
    }

    /// The same for a number.
    pub(super) fn only_size(&self, name: &str, only: usize) -> Result<(), String> {
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

    /// The rotary base, and the part of each head that is rotated: from the top of the file, from `rope_scaling` and from
    /// `rope_parameters`, which must agree where several of them say it. Any scaling is refused.
    pub(super) fn rope(&self, theta: f64, partial: Option<f64>) -> Result<(f64, f64), String> {
        let unscaled = |name| Ok::<_, String>((name, self.unscaled(name, partial.is_some())?));
        let nested = [unscaled("rope_scaling")?, unscaled("rope_parameters")?];
        let theta = self.one_number("rope_theta", nested)?.unwrap_or(theta);
        let Some(absent) = partial else { return Ok((theta, 1.0)) };
        match self.one_number("partial_rotary_factor", nested)?.unwrap_or(absent) {
            part if part < 1.0 => Ok((theta, part)),
            _ => Err(self.wrong("partial_rotary_factor", "a number between 0 and 1")),
        }
    }

    /// The object `name` of rotary parameters, if it is there; refused if it scales, or has what is not understood.
    fn unscaled(&self, name: &str, has_partial: bool) -> Result<Option<&'a Map<String, Value>>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let expected = "no scaling of rotary frequencies: null, or the rope_type \"default\"";
        let map = value.as_object().ok_or_else(|| self.wrong(name, expected))?;
        let is_fine = |(key, value): (&String, &Value)| match key.as_str() {
            _ if value.is_null() => true,
            "rope_type" | "type" => value == "default",
            "rope_theta" => true,
            "partial_rotary_factor" => has_partial,
            _ => false,
        };
        if map.iter().all(is_fine) { Ok(Some(map)) } else { Err(self.wrong(name, expected)) }
    }

    /// A number above 0 that may stand at the top of the file and in the objects `nested`, but only as one value.
    fn one_number(&self, name: &str, nested: [Nested<'a>; 2]) -> Result<Option<f64>, String> {
        let mut found = self.number_or_none(name)?.map(|number| (name.to_owned(), number));
        for (object, map) in nested {
            let Some(value) = map.and_then(|map| map.get(name)).filter(|v| !v.is_null()) else { continue };
            let path = format!("{object}.{name}");
            let Some(number) = value.as_f64().filter(|n| n.is_finite() && *n > 0.0) else {
                return Err(format!("config.json: {path} is {value}; candle-transformers needs a number above 0"));
            };
            match &found {
                Some((first, other)) if *other != number => {
                    return Err(format!(
                        "config.json: {first} is {other}, but {path} is {number}; remove the one that is wrong"
                    ));
                }
                _ => found = Some((path, number)),
            }
        }
        Ok(found.map(|(_, number)| number))
    }

    /// Notes fields that configs of an architecture have and transformers does not read.
    pub(super) fn unused(&self, names: &[&str]) {
        for name in names {
            self.get(name);
        }
    }

    /// Refuses the first field that nobody asked for, unless it leaves the computation as it is.
    pub(super) fn nothing_overlooked(&self, class: &str) -> Result<(), String> {
        let refused = self.0.refuse_unread(&format!("candle-transformers' {class}"), class);
        refused.map_err(|reason| format!("config.json: {reason}"))
    }
}

/// The name of an object of rotary parameters, and what it has, if it is there.
type Nested<'a> = (&'static str, Option<&'a Map<String, Value>>);
