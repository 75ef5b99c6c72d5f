//! Typed access to the fields of a PEFT config. Null is the same as not there; the errors name the field.

use serde_json::{Map, Value};

use crate::lora::read::value::shown;

/// The fields of a config.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn wrong<T>(key: &str, expected: &str, found: &Value) -> Result<T, String> {
        Err(format!("`{key}` must be {expected}, found {}", shown(found)))
    }

    /// A rank, the value of `key` or one of its values.
    pub(super) fn rank(key: &str, value: &Value) -> Result<usize, String> {
        match index(value) {
            Some(rank) if rank > 0 => Ok(rank),
            _ => Self::wrong(key, "a rank of at least 1, as an integer", value),
        }
    }

    /// An alpha, the value of `key` or one of its values.
    pub(super) fn alpha(key: &str, value: &Value) -> Result<f64, String> {
        match value.as_f64() {
            Some(0.0) => Err(format!("`{key}` is 0, so the adapter would do nothing")),
            Some(alpha) if alpha.is_finite() => Ok(alpha),
            _ => Self::wrong(key, "a finite number", value),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Self::wrong(key, "true or false", other),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Self::wrong(key, "text or null", other),
        }
    }

    /// A list of names, none of them empty.
    pub(super) fn names(key: &str, list: &[Value]) -> Result<Vec<String>, String> {
        let name = |v: &Value| match v {
            Value::String(name) if !name.is_empty() => Ok(name.clone()),
            other => Self::wrong(key, "a list of names", other),
        };
        list.iter().map(name).collect()
    }

    /// A list of names or null, which is an empty one.
    pub(super) fn names_or_null(&self, key: &str) -> Result<Vec<String>, String> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Self::names(key, list),
            Some(other) => Self::wrong(key, "a list of names or null", other),
        }
    }

    /// A list of indexes from 0.
    pub(super) fn indexes(key: &str, list: &[Value]) -> Result<Vec<usize>, String> {
        let one = |v: &Value| match index(v) {
            Some(index) => Ok(index),
            None => Self::wrong(key, "a list of indexes from 0", v),
        };
        list.iter().map(one).collect()
    }
}

/// An index from 0.
pub(super) fn index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|i| usize::try_from(i).ok())
}
