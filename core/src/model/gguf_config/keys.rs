//! Typed access to metadata, with errors that name the key and show what was found.

use super::{
    GgufMetadata, GgufValue,
    family::{COMMON, GgufFamily},
};
use crate::{Error, Result};

/// The metadata of one file. Keys are given without the architecture's name before them.
pub(super) struct Keys<'a> {
    pub(super) id: &'a str,
    pub(super) metadata: &'a GgufMetadata,
    pub(super) gguf: &'static GgufFamily,
}

impl<'a> Keys<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a GgufValue> {
        self.metadata.get(&self.gguf.key(name))
    }

    pub(super) fn wrong(&self, name: &str, expected: &str) -> Error {
        let found = shown(self.get(name));
        Error::unsupported_format(self.id, format!("{} is {found}; expected {expected}", self.gguf.key(name)))
    }

    /// What `read` gives for a key that is there.
    fn read<T>(&self, name: &str, expected: &str, read: impl Fn(&'a GgufValue) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|value| read(value).ok_or_else(|| self.wrong(name, expected))).transpose()
    }

    /// A number that may also stand there once per layer, if all layers have the same.
    pub(super) fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.read(name, "one whole number, not negative", |value| match value {
            GgufValue::Int(n) => usize::try_from(*n).ok(),
            GgufValue::Ints(layers) => {
                let first = layers.first()?;
                layers.iter().all(|n| n == first).then(|| usize::try_from(*first).ok())?
            }
            _ => None,
        })
    }

    pub(super) fn size(&self, name: &str) -> Result<usize> {
        match self.usize(name)? {
            None | Some(0) => Err(self.wrong(name, "a whole number above 0")),
            Some(n) => Ok(n),
        }
    }

    pub(super) fn f64(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a number", |value| match value {
            GgufValue::Float(x) => Some(*x),
            GgufValue::Int(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// A number above 0, where llama.cpp takes 0 for an absent key.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.f64(name)? {
            Some(0.0) => Ok(None),
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.wrong(name, "a number above 0")),
            x => Ok(x),
        }
    }

    /// A number above 0 that turns something on: that of the file, or what the architecture has for an absent key.
    pub(super) fn setting(&self, name: &str) -> Result<Option<f64>> {
        let value = self.positive(name)?;
        if value.is_none() && self.gguf.required.contains(&name) {
            return Err(self.wrong(name, "a number above 0"));
        }
        Ok(if self.get(name).is_none() { self.gguf.default(name) } else { value })
    }

    pub(super) fn string(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "text", |value| match value {
            GgufValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Refuses another value than `expected`.
    pub(super) fn must_be(&self, name: &str, expected: usize) -> Result<()> {
        match self.usize(name)? {
            Some(n) if n != expected => Err(self.wrong(name, &format!("{expected}, or no such key"))),
            _ => Ok(()),
        }
    }

    /// Keys of the architecture that are not understood, unless they turn nothing on: they may change the computation.
    pub(super) fn refuse_unknown(&self) -> Result<()> {
        let begin = self.gguf.key("");
        for (key, value) in self.metadata.iter() {
            let Some(name) = key.strip_prefix(&begin) else { continue };
            // How experts are used says nothing without them, and with them no decoder here runs the model.
            let is_known = COMMON.contains(&name) || self.gguf.has(name) || name.starts_with("expert_");
            if !is_known && !is_off(value) {
                let expected = format!("no such key, or 0, for the architecture {}", self.gguf.name);
                return Err(self.wrong(name, &expected));
            }
        }
        let mut switches = vec!["attention.causal"];
        if self.gguf.rotation_is_optional {
            switches.push("rope.scaling.finetuned");
        }
        for name in switches {
            if !matches!(self.get(name), None | Some(GgufValue::Bool(true))) {
                return Err(self.wrong(name, "true, or no such key"));
            }
        }
        Ok(())
    }
}

pub(super) fn required<T>(keys: &Keys<'_>, name: &str, value: Option<T>, expected: &str) -> Result<T> {
    value.ok_or_else(|| keys.wrong(name, expected))
}

/// Whether a value is what llama.cpp writes down for a feature that is off.
fn is_off(value: &GgufValue) -> bool {
    match value {
        GgufValue::Int(n) => *n == 0,
        GgufValue::Float(x) => *x == 0.0,
        GgufValue::Bool(b) => !b,
        GgufValue::String(text) => text.is_empty(),
        GgufValue::Ints(all) => all.iter().all(|n| *n == 0),
        GgufValue::Floats(all) => all.iter().all(|x| *x == 0.0),
        GgufValue::Bools(all) => !all.contains(&true),
        GgufValue::Strings(all) => all.is_empty(),
    }
}

/// A value for a message.
pub(super) fn shown(value: Option<&GgufValue>) -> String {
    match value {
        None => "missing".to_owned(),
        Some(GgufValue::Int(n)) => n.to_string(),
        Some(GgufValue::Float(x)) => x.to_string(),
        Some(GgufValue::Bool(b)) => b.to_string(),
        Some(GgufValue::String(s)) => format!("{s:?}"),
        Some(GgufValue::Ints(v)) => format!("an array of {} integers", v.len()),
        Some(GgufValue::Floats(v)) => format!("an array of {} floats", v.len()),
        Some(GgufValue::Bools(v)) => format!("an array of {} booleans", v.len()),
        Some(GgufValue::Strings(v)) => format!("an array of {} texts", v.len()),
    }
}
