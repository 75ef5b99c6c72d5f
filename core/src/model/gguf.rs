//! Metadata of GGUF files, as data: the key-value pairs of the header, whoever parsed them.

use std::collections::BTreeMap;

/// The key-value pairs of a GGUF header.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufMetadata(BTreeMap<String, GgufValue>);

/// A value of [`GgufMetadata`]. Integers of all widths are one kind, and so are floats.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// An integer of any width and sign.
    Int(i128),
    /// A float of any width.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    String(String),
    /// An array of integers.
    Ints(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of texts.
    Strings(Vec<String>),
}

impl GgufMetadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.0.get(key)
    }

    /// Sets the value of `key`. Returns the value it had.
    pub fn insert(&mut self, key: impl Into<String>, value: GgufValue) -> Option<GgufValue> {
        self.0.insert(key.into(), value)
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The text of `key`.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            GgufValue::String(s) => Some(s),
            _ => None,
        }
    }

    /// The integer of `key`, if it is one and not negative.
    pub fn usize(&self, key: &str) -> Option<usize> {
        match self.get(key)? {
            GgufValue::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The number of `key`, integer or float.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            GgufValue::Float(x) => Some(*x),
            GgufValue::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// The boolean of `key`.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            GgufValue::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The texts of `key`.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        match self.get(key)? {
            GgufValue::Strings(v) => Some(v),
            _ => None,
        }
    }

    /// The integers of `key`.
    pub fn ints(&self, key: &str) -> Option<&[i64]> {
        match self.get(key)? {
            GgufValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// The floats of `key`.
    pub fn floats(&self, key: &str) -> Option<&[f32]> {
        match self.get(key)? {
            GgufValue::Floats(v) => Some(v),
            _ => None,
        }
    }
}

impl FromIterator<(String, GgufValue)> for GgufMetadata {
    fn from_iter<I: IntoIterator<Item = (String, GgufValue)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}
