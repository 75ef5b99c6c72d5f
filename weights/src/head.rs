//! What a model is, from the heads of its files: before its weights are on this machine.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use llm_local_core::{Error, ModelFormat, ModelInfo, Result};

use crate::{SafetensorsFiles, checkpoint, gguf, is_gguf, safetensors};

/// The start of a weights file, with its whole header.
#[derive(Debug, Clone)]
pub struct Head {
    /// The first bytes.
    pub bytes: Vec<u8>,
    /// The size of the whole file in bytes.
    pub size: u64,
}

/// Where the header of the weights file `name` ends, in bytes from its start, judged by its first bytes. `None` if more
/// of them are needed to tell. What comes back may lie beyond `prefix`.
///
/// # Errors
/// [`Error::LoadFailed`] and [`Error::UnsupportedModelFormat`] for a header that more bytes would not mend.
pub fn header_end(name: &str, prefix: &[u8]) -> Result<Option<u64>> {
    if is_gguf(name) { gguf::header_end(prefix, name) } else { safetensors::header_end(prefix, name) }
}

/// The names of the files that hold the weights of the model `id`. Of `files`, paths of its manifest with where each is
/// to be on disk, the shard index must be there already.
///
/// # Errors
/// As [`crate::Checkpoint::open`] for missing files and several GGUF files.
pub fn weight_files(id: &str, files: &BTreeMap<String, PathBuf>) -> Result<Vec<String>> {
    match SafetensorsFiles::choose(files)? {
        Some(weights) => Ok(weights.names().to_vec()),
        None => Ok(vec![checkpoint::the_gguf(id, files)?.0.to_owned()]),
    }
}

/// The description of the model `id`, as [`crate::Checkpoint::open`] would make it. Of `files`, `config.json` and the
/// shard index must be there already; `heads` are those of [`weight_files`].
///
/// # Errors
/// As [`crate::Checkpoint::open`].
pub fn describe(id: &str, files: &BTreeMap<String, PathBuf>, heads: &BTreeMap<String, Head>) -> Result<Arc<ModelInfo>> {
    let head = |name: &str| heads.get(name).ok_or_else(|| Error::load(id, format!("`{name}` is missing; get it too")));
    let info = match SafetensorsFiles::choose(files)? {
        Some(weights) => {
            let mut entries = Vec::new();
            for name in weights.names() {
                let Head { bytes, size } = head(name)?;
                let all = safetensors::entries(bytes, *size, name)?;
                entries.extend(all.into_iter().filter(|entry| weights.lists(name, &entry.name)));
            }
            let config = Arc::new(checkpoint::config(id, files)?);
            ModelInfo::new(id, ModelFormat::Safetensors { config }, entries)
        }
        None => {
            let (name, _) = checkpoint::the_gguf(id, files)?;
            let Head { bytes, size } = head(name)?;
            let (metadata, entries) = gguf::describe(bytes, *size, name)?;
            ModelInfo::new(id, ModelFormat::Gguf { metadata: Arc::new(metadata) }, entries)
        }
    };
    Ok(Arc::new(info))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use std::{fs, path::Path};

    /// Files of a model's folder, and its description by the first bytes of its weights alone.
    fn by_heads(files: &BTreeMap<String, PathBuf>) -> Result<Arc<ModelInfo>> {
        let mut heads = BTreeMap::new();
        for name in weight_files("m", files)? {
            let whole = fs::read(&files[&name]).unwrap();
            let mut have = 16;
            let end = loop {
                match header_end(&name, &whole[..have])? {
                    Some(end) => break end as usize,
                    None => have = (2 * have).min(whole.len()),
                }
            };
            heads.insert(name, Head { bytes: whole[..end].to_vec(), size: whole.len() as u64 });
        }
        describe("m", files, &heads)
    }

    fn folder(path: &str) -> BTreeMap<String, PathBuf> {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models")).join(path);
        let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), e.path())).filter(|(n, _)| !is_gguf(n)).collect()
    }

    #[test]
    fn headers_alone_describe_a_model_as_its_files_do() {
        let gguf = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/arch-gemma3.gguf"));
        for files in [folder("tiny-llama"), BTreeMap::from([("m.gguf".to_owned(), gguf)])] {
            let (heads, whole) = (by_heads(&files).unwrap(), Checkpoint::open("m", &files).unwrap().info);
            assert_eq!(format!("{:?}", heads.decoder), format!("{:?}", whole.decoder));
            let entries = |info: &ModelInfo| info.tensors.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>();
            assert_eq!(entries(&heads), entries(&whole));
        }
    }
}
