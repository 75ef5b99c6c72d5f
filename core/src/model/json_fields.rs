//! Typed access to the fields of config.json, with errors that name the field and show what was found.

use serde_json::{Map, Value};

use super::config_fields::{ConfigFields, shown};
use crate::{Error, Result};

/// An object of config.json. `null` counts as absent, as in transformers.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    id: &'a str,
    /// The path of this object in the file: empty, or `rope_parameters.`.
    prefix: &'a str,
    map: &'a Map<String, Value>,
    /// The same at the top of the file, where what is read is remembered.
    top: Option<&'a ConfigFields<'a>>,
}

impl<'a> Fields<'a> {
    /// The top of the file, which is `map`.
    pub(super) fn new(id: &'a str, map: &'a Map<String, Value>, top: &'a ConfigFields<'a>) -> Self {
        Self { id, prefix: "", map, top: Some(top) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        match self.top {
            Some(top) => top.get(name),
            None => self.map.get(name).filter(|v| !v.is_null()),
        }
    }

    /// Whether the field is written down, be it as `null`.
    pub(super) fn is_written(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// The path of the field `name` in the file.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k)
    }

    /// An error about the field `name`: its value and what was expected.
    pub(super) fn wrong(&self, name: &str, expected: &str) -> Error {
        let found = self.get(name).map_or_else(|| "missing".to_owned(), shown);
        self.error(format!("{} is {found}; expected {expected}", self.path(name)))
    }

    pub(super) fn error(&self, reason: String) -> Error {
        Error::unsupported_format(self.id, format!("config.json: {reason}"))
    }

    fn read<T>(&self, name: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(name).map(|v| read(v).ok_or_else(|| self.wrong(name, expected))).transpose()
    }

    pub(super) fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.read(name, "a whole number, not negative", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn f64(&self, name: &str) -> Result<Option<f64>> {
        self.read(name, "a number", Value::as_f64)
    }

    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.f64(name)? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.wrong(name, "a number above 0")),
            x => Ok(x),
        }
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", Value::as_bool)
    }

    pub(super) fn str(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "text", Value::as_str)
    }

    pub(super) fn strings(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        self.read(name, "a list of texts", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.read(name, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// The object `name`, which has to refuse itself what it does not understand. `prefix` is its path in the file.
    pub(super) fn object(&self, name: &str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        let object = |v: &'a Value| Some(Fields { id: self.id, prefix, map: v.as_object()?, top: None });
        self.read(name, "an object", object)
    }

    pub(super) fn required<T>(&self, name: &str, value: Option<T>, expected: &str) -> Result<T> {
        value.ok_or_else(|| self.wrong(name, expected))
    }
}
