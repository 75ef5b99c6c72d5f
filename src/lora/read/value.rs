//! Values of a config.

use std::collections::BTreeSet;

use llm_local_core::Allowance;
use serde_json::Value;

use crate::lora::message::reason;

/// Whether a value is anything but null, false or empty.
pub(in crate::lora::read) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// A value as JSON, cut short.
pub(in crate::lora::read) fn shown(value: &Value) -> String {
    cut(value.to_string())
}

/// Any value's text, cut short.
pub(in crate::lora::read) fn cut(text: String) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What is said of the field `path`, which is set to `value`, if nobody knows what it changes.
pub(in crate::lora::read) fn unknown_field(path: &str, value: &Value) -> String {
    format!("the unknown field `{path}` is {}: what it changes is not known", shown(value))
}

/// The sentences of fields that are not known, if these are let pass.
pub(in crate::lora::read) fn let_pass(
    unknown: Vec<String>,
    allow: &BTreeSet<Allowance>,
) -> Result<Vec<String>, String> {
    if unknown.is_empty() || allow.contains(&Allowance::UnknownFields) {
        return Ok(unknown);
    }
    Err(format!(
        "{}; remove it if it changes nothing, or let it pass (`{}` in what the adapter is allowed)",
        reason(&unknown),
        Allowance::UnknownFields
    ))
}
