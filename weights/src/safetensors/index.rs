//! The index of a sharded checkpoint.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result, manifest::check_relative_path};
use serde::Deserialize;

use crate::{
    is_pickle,
    json::{UniqueMap, parse, read_bounded},
};

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

    /// Bytes that an index may have; that of a model with 100,000 tensors has about 9 MB.
    pub const LARGEST: u64 = 64 << 20;

    /// Reads the index at `path`.
    ///
    /// The shards must be plain relative names of safetensors files: an index comes with a download, and must not make
    /// a reader open files outside its folder.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for an index that is not JSON, lists nothing, or names such a file;
    /// [`Error::UnsupportedModelFormat`] if its shards are pickles.
    pub fn read(path: &Path) -> Result<Self> {
        Self::new(path, read_bounded(path, Self::LARGEST)?)
    }

    /// Reads the index in `bytes`, called `file` in messages.
    ///
    /// # Errors
    /// As [`ShardIndex::read`].
    pub(crate) fn parse(bytes: &[u8], file: &Path) -> Result<Self> {
        Self::new(file, parse(file, bytes)?)
    }

    fn new(path: &Path, Raw { weight_map: UniqueMap(pairs) }: Raw) -> Result<Self> {
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
    pub(super) fn listed(&self, name: &str) -> &[String] {
        self.shards.get(name).map_or(&[], Vec::as_slice)
    }

    /// The error for shards that are not there.
    pub(super) fn without(&self, missing: &[&str]) -> Error {
        let reason = format!(
            "{} of its {} shards are missing: {}; get them too",
            missing.len(),
            self.shards.len(),
            missing.join(", ")
        );
        Error::load(self.path.display(), reason)
    }
}
