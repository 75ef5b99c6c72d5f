//! The object in an `adapter_config.json`, read without leniency.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The object that `bytes` hold. The error continues a sentence that starts with the file's name.
///
/// A field given twice is refused: readers differ in which of them they take.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice::<UniqueFields>(bytes).map(|fields| fields.0).map_err(|error| {
        let hint = python_number(bytes).map(|field| format!("; `{field}` is NaN or infinite")).unwrap_or_default();
        if error.is_data() { format!("is wrong: {error}") } else { format!("is not JSON: {error}{hint}") }
    })
}

/// Names of the fields, for messages.
pub(super) fn keys(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "no fields".into();
    }
    object.keys().take(8).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
}

/// The first field whose value is a `NaN` or `Infinity` as Python writes it, which no JSON reader takes.
fn python_number(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let number = regex::Regex::new(r#""([^"\\]*)"\s*:\s*-?(NaN|Infinity)"#).expect("a constant pattern");
    Some(number.captures(text)?[1].to_owned())
}

struct UniqueFields(Map<String, Value>);

impl<'de> Deserialize<'de> for UniqueFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = UniqueFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueFields, A::Error> {
                let mut fields = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if fields.contains_key(&key) {
                        return Err(A::Error::custom(format!("the field `{key}` stands there twice")));
                    }
                    fields.insert(key, value);
                }
                Ok(UniqueFields(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_an_object_says_what_it_is() {
        for (text, why) in [
            ("[1]", "invalid type: sequence, expected an object"),
            ("\"LORA\"", "expected an object"),
            ("{\"r\": 8,}", "is not JSON"),
            ("", "is not JSON"),
            ("{\"r\": 8, \"r\": 4}", "`r` stands there twice"),
            ("{\"lora_alpha\": NaN}", "`lora_alpha` is NaN or infinite"),
            ("{\"lora_alpha\": -Infinity}", "`lora_alpha` is NaN or infinite"),
        ] {
            let reason = object(text.as_bytes()).unwrap_err();
            assert!(reason.contains(why), "{text}: {reason}");
        }
        assert!(object(b"\xff").is_err());
        assert_eq!(object(b"{\"r\": 8}").unwrap()["r"], 8);
    }
}
