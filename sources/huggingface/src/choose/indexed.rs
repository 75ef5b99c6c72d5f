//! A model whose weights are those that an index names.

use std::collections::BTreeMap;

use llm_local_core::{Error, ManifestFile, Result};
use llm_local_weights::ShardIndex;

use super::{Folder, is_safetensors, listed};

/// What is chosen once the index is read.
#[derive(Debug)]
pub(crate) struct Indexed {
    /// The ref, as text.
    reference: String,
    index: ManifestFile,
    /// Config and tokenizer.
    others: Vec<ManifestFile>,
    /// All safetensors files below the folder, by path.
    safetensors: BTreeMap<String, ManifestFile>,
}

impl Indexed {
    pub(super) fn new(folder: &Folder<'_>, index: &str, others: &[&str]) -> Self {
        let safetensors = folder.files.iter().filter(|(path, _)| is_safetensors(path));
        Self {
            reference: folder.reference.to_string(),
            index: folder.get(index).map_or_else(|| ManifestFile::new(index, 0), |file| file.at(index)),
            others: folder.manifest(others),
            safetensors: safetensors.map(|(path, file)| ((*path).to_owned(), file.at(path))).collect(),
        }
    }

    /// The index, with its path below the folder.
    pub(crate) fn index(&self) -> &ManifestFile {
        &self.index
    }

    /// All files of the model, sorted, where the index is `read`.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for shards that the repository lacks.
    pub(crate) fn by(self, read: &ShardIndex) -> Result<Vec<ManifestFile>> {
        let Self { reference, index, mut others, mut safetensors } = self;
        let mut lacking = Vec::new();
        for shard in read.shards() {
            match safetensors.remove(shard) {
                Some(file) => others.push(file),
                None => lacking.push(shard),
            }
        }
        if !lacking.is_empty() {
            return Err(Error::load(
                reference,
                format!(
                    "`{}` names {} of {} shards that the repository lacks: {}; its owner must add them, or choose another \
                     revision",
                    index.path,
                    lacking.len(),
                    read.shards().count(),
                    listed(&lacking)
                ),
            ));
        }
        others.push(index);
        others.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(others)
    }
}
