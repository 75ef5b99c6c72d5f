//! JSON files, bounded in size.

use std::{fmt, fs::File, io::Read, marker::PhantomData, path::Path};

use llm_local_core::{Error, Result};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::{Map, Value};

/// Bytes that a config file may have. The largest in use are a few hundred kilobytes.
pub const LARGEST_CONFIG: u64 = 16 << 20;

/// Reads the JSON file at `path`, such as `config.json` or `adapter_config.json`, of at most 16 MiB.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Io`] if it cannot be read, [`Error::LoadFailed`] if it is too large or not JSON.
pub fn read_json(path: &Path) -> Result<Value> {
    read_bounded(path, LARGEST_CONFIG)
}

/// Reads the JSON object in the file at `path`, of at most 16 MiB, and gives the bytes it was read from beside it.
///
/// # Errors
/// As [`read_json`], and [`Error::LoadFailed`] if the file holds something else than an object or names a field twice:
/// readers differ in which of the two they take.
pub fn read_json_object(path: &Path) -> Result<(Map<String, Value>, Vec<u8>)> {
    let bytes = bytes(path, LARGEST_CONFIG)?;
    let UniqueMap(fields) = parse(path, &bytes)?;
    Ok((fields.into_iter().collect(), bytes))
}

/// As [`read_json_object`], of bytes that are here already, of the file called `file` in messages.
///
/// # Errors
/// [`Error::LoadFailed`] as [`read_json_object`].
pub fn parse_json_object(bytes: &[u8], file: &str) -> Result<Map<String, Value>> {
    let UniqueMap(fields) = parse(Path::new(file), bytes)?;
    Ok(fields.into_iter().collect())
}

/// Reads the JSON file at `path` of at most `limit` bytes.
pub(crate) fn read_bounded<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    parse(path, &bytes(path, limit)?)
}

/// The content of the file at `path`, of at most `limit` bytes.
fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(path.display(), "there is no such file"),
        _ => Error::io("read", path, error),
    };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::load(path.display(), "expected a JSON file, found a folder or a device"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Error::load(
            path.display(),
            format!("it has more than {limit} bytes, too many for a JSON file of its kind"),
        ));
    }
    Ok(bytes)
}

/// The value in `bytes`, the content of the file at `path`, or called so in messages.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = if error.is_data() {
            format!("it is not the JSON expected: {error}")
        } else {
            let hint = python_number(bytes).map(|field| format!("; `{field}` is NaN or infinite")).unwrap_or_default();
            format!("it is not JSON: {error}{hint}")
        };
        Error::load(path.display(), reason)
    })
}

/// The first field whose value is a `NaN` or `Infinity` as Python writes it, which no JSON reader takes.
fn python_number(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    ["NaN", "Infinity"].iter().flat_map(|word| text.match_indices(word)).find_map(|(at, _)| {
        let before = text[..at].trim_end_matches('-').trim_end().strip_suffix(':')?;
        before.trim_end().strip_suffix('"')?.rsplit('"').next()
    })
}

/// A JSON object in its order, in which no name may stand twice: parsers differ in which of the two they take.
#[derive(Debug)]
pub(crate) struct UniqueMap<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for UniqueMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = UniqueMap<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<T>, A::Error> {
                let mut pairs = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!("the name `{name}` stands there twice")));
                    }
                    pairs.push((name, value));
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_limit_and_a_file_that_is_not_json_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "[1, 2]").unwrap();
        assert_eq!(read_json(&path).unwrap(), serde_json::json!([1, 2]));
        assert!(read_bounded::<Value>(&path, 6).is_ok());
        let large = read_bounded::<Value>(&path, 5).unwrap_err().to_string();
        assert!(large.contains("config.json") && large.contains("more than 5 bytes"), "{large}");
        std::fs::write(&path, "{broken").unwrap();
        let broken = read_json(&path).unwrap_err().to_string();
        assert!(broken.contains("config.json") && broken.contains("line 1"), "{broken}");
        assert_eq!(read_json(&folder.path().join("none.json")).unwrap_err().code(), "not_found");
        assert_eq!(read_json(folder.path()).unwrap_err().code(), "load_failed");
    }

    #[test]
    fn an_object_is_read_with_its_bytes_and_anything_else_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter_config.json");
        for (text, why) in [
            ("[1]", "invalid type: sequence, expected an object"),
            ("\"LORA\"", "expected an object"),
            ("{\"r\": 8,}", "is not JSON"),
            ("", "is not JSON"),
            ("{\"r\": 8, \"r\": 4}", "`r` stands there twice"),
            ("{\"lora_alpha\": NaN}", "`lora_alpha` is NaN or infinite"),
            ("{\"r\": 8, \"lora_alpha\" : -Infinity}", "`lora_alpha` is NaN or infinite"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_json_object(&path).unwrap_err();
            assert_eq!(error.code(), "load_failed");
            let message = error.to_string();
            assert!(message.contains("adapter_config.json") && message.contains(why), "{text}: {message}");
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_json_object(&path).is_err());
        std::fs::write(&path, "{\"r\": 8}").unwrap();
        let (fields, bytes) = read_json_object(&path).unwrap();
        assert_eq!((&fields["r"], &bytes[..]), (&serde_json::json!(8), &b"{\"r\": 8}"[..]));
    }

    #[test]
    fn an_object_with_a_name_twice_is_refused() {
        assert!(serde_json::from_str::<UniqueMap<u8>>(r#"{"a":1,"b":2}"#).is_ok());
        let error = serde_json::from_str::<UniqueMap<u8>>(r#"{"a":1,"a":1}"#).unwrap_err().to_string();
        assert!(error.contains("`a` stands there twice"), "{error}");
    }
}
