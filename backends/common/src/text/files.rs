//! Bounded reads of a model's small files. They come from strangers, so each has a largest size.

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use llm_local_core::{Error, Result};
use serde_json::Value;

/// Files by name, as in [`llm_local_core::TextFiles`].
pub(super) type Files = BTreeMap<String, PathBuf>;

/// Largest `tokenizer.json`. Those of 262,144-token vocabularies have about 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest configuration file. A `tokenizer_config.json` that lists its added tokens has up to about 1 MB.
const MAX_CONFIG_BYTES: u64 = 32 << 20;
/// Largest chat template.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// The configuration files beside a tokenizer. Those that are not there are `None`.
#[derive(Debug, Default)]
pub(super) struct Configs {
    pub(super) tokenizer: Option<Value>,
    pub(super) generation: Option<Value>,
    pub(super) model: Option<Value>,
    /// The text of `chat_template.jinja`.
    pub(super) template: Option<String>,
}

impl Configs {
    pub(super) fn read(files: &Files) -> Result<Self> {
        let template = match read(files, "chat_template.jinja", MAX_TEMPLATE_BYTES)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|error| {
                Error::load(files["chat_template.jinja"].display(), format!("the chat template is not UTF-8: {error}"))
            })?),
            None => None,
        };
        Ok(Self {
            tokenizer: json(files, "tokenizer_config.json")?,
            generation: json(files, "generation_config.json")?,
            model: json(files, "config.json")?,
            template,
        })
    }
}

/// The bytes of `tokenizer.json`, if there is one.
pub(super) fn tokenizer(files: &Files) -> Result<Option<Vec<u8>>> {
    read(files, "tokenizer.json", MAX_TOKENIZER_BYTES)
}

fn json(files: &Files, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = read(files, name, MAX_CONFIG_BYTES)? else { return Ok(None) };
    let value = serde_json::from_slice::<Value>(&bytes).map_err(|error| {
        Error::load(files[name].display(), format!("it is not JSON: {error}; fetch the file again"))
    })?;
    if !value.is_object() {
        return Err(Error::load(files[name].display(), "expected a JSON object; fetch the file again"));
    }
    Ok(Some(value))
}

fn read(files: &Files, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(path) = files.get(name) else { return Ok(None) };
    let file = fs_err::File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::load(
            path.display(),
            format!("it has more than {limit} bytes, the most that is read of a {name}; is it the right file?"),
        ));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_its_limit_is_refused_by_name_and_one_at_its_limit_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs_err::write(&path, "12345678").unwrap();
        let files = Files::from([("config.json".to_owned(), path.clone())]);
        assert_eq!(read(&files, "config.json", 8).unwrap().unwrap(), b"12345678");
        let error = read(&files, "config.json", 7).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("more than 7 bytes"), "{error}");
        assert!(read(&files, "tokenizer.json", 7).unwrap().is_none());
    }

    #[test]
    fn a_config_that_is_not_an_object_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        for (text, why) in [("{", "not JSON"), ("[1]", "expected a JSON object")] {
            let path = folder.path().join("generation_config.json");
            fs_err::write(&path, text).unwrap();
            let files = Files::from([("generation_config.json".to_owned(), path)]);
            let error = Configs::read(&files).unwrap_err().to_string();
            assert!(error.contains("generation_config.json") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_listed_file_that_is_gone_is_an_io_error() {
        let files = Files::from([("config.json".to_owned(), PathBuf::from("/nowhere/config.json"))]);
        assert_eq!(Configs::read(&files).unwrap_err().code(), "io");
    }
}
