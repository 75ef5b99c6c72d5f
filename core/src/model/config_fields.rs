//! config.json, of which no field is overlooked.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value};

use super::harmless::{is_harmless, neutral};

/// The fields of a config.json, which remembers which of them were read. A backend that reads one itself, of an
/// architecture that [`DecoderConfig`](super::DecoderConfig) does not describe, can so refuse what it does not
/// understand instead of computing something else.
#[derive(Debug)]
pub struct ConfigFields<'a> {
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> ConfigFields<'a> {
    /// The fields of `map`, none of them read.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, read: RefCell::default() }
    }

    /// The field `name`, which counts as read from then on. `null` counts as absent, as in transformers.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let mut read = self.read.borrow_mut();
        if !read.contains(name) {
            read.insert(name.to_owned());
        }
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// What the field `name` has, for a message: cut to a length that a reader can take in, or `missing`.
    pub fn shown(&self, name: &str) -> String {
        self.map.get(name).filter(|v| !v.is_null()).map_or_else(|| "missing".to_owned(), shown)
    }

    /// Checks that every field was read, or is known to say nothing about what is computed: names of files and tokens,
    /// dtypes, settings of training, of caches, of outputs and of generation. Of others only `null` is nothing: `false`
    /// or 0 of an unknown field may turn off what every model of `class` has.
    ///
    /// Code of the checkpoint's own (`auto_map`), which is never run, must be that of `class`, as it is where a
    /// checkpoint was published before transformers had the class.
    ///
    /// # Errors
    /// A sentence that names the first field that is not understood, what it has, `reader`, which does not have it, and
    /// what to do.
    pub fn refuse_unread(&self, reader: &str, class: &str) -> Result<(), String> {
        let read = self.read.borrow();
        for (name, value) in self.map.iter().filter(|(name, value)| !value.is_null() && !read.contains(*name)) {
            if name == "auto_map" {
                own_code(value, class)?;
            } else if !is_harmless(name) && !neutral(name).is_some_and(|neutral| same(value, &neutral)) {
                let expected = match neutral(name) {
                    Some(neutral) => format!("{neutral}, or no such field"),
                    None => "no such field".to_owned(),
                };
                return Err(format!(
                    "{name} is {}; expected {expected}, for {reader}: it is not understood, and may change what the model \
                     computes; if it does not, use a copy of the model without the field",
                    shown(value)
                ));
            }
        }
        Ok(())
    }
}

/// Checks that the model's class in `auto_map`, such as `modeling_phi3.Phi3ForCausalLM`, is `class`.
fn own_code(auto_map: &Value, class: &str) -> Result<(), String> {
    let found = match auto_map.as_object() {
        Some(map) => map.get("AutoModelForCausalLM").filter(|v| !v.is_null()),
        None => Some(auto_map),
    };
    let is_class = |v: &Value| v.as_str().and_then(|path| path.rsplit('.').next()) == Some(class);
    match found {
        Some(found) if !is_class(found) => Err(format!(
            "auto_map has the model's code as {}; expected a class {class}: code of a checkpoint is never run, and this one \
             may compute something else; if it does not, use a copy of the model without the field",
            shown(found)
        )),
        _ => Ok(()),
    }
}

/// Whether two values are the same, 1 and 1.0 too.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value for a message, cut to a length that a reader can take in.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
