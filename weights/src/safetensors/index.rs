//! The index of a sharded checkpoint.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result, manifest::check_relative_path};
use serde::Deserialize;

use crate::{
    is_pickle,
    json::{UniqueMap, read_bounded},
};

/// Bytes that an index may have; that of a model with 100,000 tensors has about 9 MB.
const INDEX_LIMIT: u64 = 64 << 20;

/// `model.safetensors.index.json`: which shard holds which tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    path: PathBuf,
    shards: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Raw {
    weight_map: UniqueMap<String>,
}

impl ShardIndex {
    /// Its name in a folder.
    pub const FILE: &'static str = "model.safetensors.index.json";

    /// Reads the index at `path`.
    ///
    /// The shards must be plain relative names of safetensors files: an index comes with a download, and must not make
    /// a reader open files outside its folder.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for an index that is not JSON, lists nothing, or names such a file;
    /// [`Error::UnsupportedModelFormat`] if its shards are pickles.
    pub fn read(path: &Path) -> Result<Self> {
        let Raw { weight_map: UniqueMap(pairs) } = read_bounded(path, INDEX_LIMIT)?;
        let mut shards = BTreeMap::<String, Vec<String>>::new();
        for (tensor, shard) in pairs {
            if let Some(tensors) = shards.get_mut(&shard) {
                tensors.push(tensor);
                continue;
            }
            check_relative_path(&shard).map_err(|reason| {
                Error::load(
                    path.display(),
                    format!("it places the tensor `{tensor}` outside its folder: {reason}; do not use this checkpoint"),
                )
            })?;
            if is_pickle(&shard) {
                return Err(Error::unsupported_format(
                    path.display(),
                    format!(
                        "its shard `{shard}` is a pickle, which can run code and is never read; convert it to safetensors"
                    ),
                ));
            }
            if !shard.ends_with(".safetensors") {
                return Err(Error::load(
                    path.display(),
                    format!("it places the tensor `{tensor}` in `{shard}`; expected a name ending in .safetensors"),
                ));
            }
            shards.insert(shard, vec![tensor]);
        }
        if shards.is_empty() {
            return Err(Error::load(path.display(), "its weight_map lists no tensors"));
        }
        Ok(Self { path: path.to_owned(), shards })
    }

    /// The names of the shards, sorted, `/`-separated below the index's folder.
    pub fn shards(&self) -> impl Iterator<Item = &str> {
        self.shards.keys().map(String::as_str)
    }

    /// The tensors that the shard `name` shall hold.
    pub(crate) fn listed(&self, name: &str) -> &[String] {
        self.shards.get(name).map_or(&[], Vec::as_slice)
    }

    /// Its shards, found in `files`, with the tensors that each shall hold.
    pub(super) fn locate<'a>(&'a self, files: &'a BTreeMap<String, PathBuf>) -> Result<Vec<(&'a Path, &'a [String])>> {
        let missing: Vec<_> = self.shards().filter(|s| !files.contains_key(*s)).collect();
        if !missing.is_empty() {
            return Err(Error::load(
                self.path.display(),
                format!(
                    "{} of its {} shards are missing: {}; get them too",
                    missing.len(),
                    self.shards.len(),
                    missing.join(", ")
                ),
            ));
        }
        Ok(self.shards.iter().map(|(shard, tensors)| (files[shard].as_path(), tensors.as_slice())).collect())
    }
}
