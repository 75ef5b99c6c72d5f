//! Which files of a folder hold a model's weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};

use crate::is_adapter_file;

use super::{SafetensorsSource, ShardIndex};

/// The one file of a checkpoint that is not sharded.
const SINGLE: &str = "model.safetensors";

/// The safetensors files that hold a model's weights.
///
/// Where there is an index, they are the shards it names. Without one it is `model.safetensors`, and without that, all
/// `.safetensors` files that are not adapters. Only files at the root count, except those that an index names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsFiles {
    names: Vec<String>,
    index: Option<ShardIndex>,
}

impl SafetensorsFiles {
    /// Chooses among `files`: paths of a manifest, `/`-separated, with where each is on disk. `None` if there are none.
    ///
    /// # Errors
    /// What [`ShardIndex::read`] gives; [`Error::LoadFailed`] if there is an index but also a `model.safetensors` that
    /// it does not name, since the two may differ, or if numbered shards without an index are not complete.
    pub fn choose(files: &BTreeMap<String, PathBuf>) -> Result<Option<Self>> {
        if let Some(path) = files.get(ShardIndex::FILE) {
            let index = ShardIndex::read(path)?;
            let names: Vec<_> = index.shards().map(str::to_owned).collect();
            if files.contains_key(SINGLE) && !names.iter().any(|n| n == SINGLE) {
                return Err(Error::load(
                    path.display(),
                    format!("it does not name `{SINGLE}`, which lies beside it; remove the one that is not the model"),
                ));
            }
            return Ok(Some(Self { names, index: Some(index) }));
        }
        if files.contains_key(SINGLE) {
            return Ok(Some(Self { names: vec![SINGLE.into()], index: None }));
        }
        let names: Vec<_> = files
            .keys()
            .filter(|n| n.ends_with(".safetensors") && !n.contains('/') && !is_adapter_file(n))
            .cloned()
            .collect();
        for name in &names {
            check_complete(name, files)?;
        }
        Ok((!names.is_empty()).then_some(Self { names, index: None }))
    }

    /// Their names, `/`-separated. Those that an index names need not have been among the files.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the tensor `name` of the shard `shard` is one of the checkpoint's.
    pub(crate) fn lists(&self, shard: &str, name: &str) -> bool {
        self.index.as_ref().is_none_or(|index| index.listed(shard).iter().any(|n| n == name))
    }

    /// Opens them as one source.
    ///
    /// Of an indexed checkpoint, exactly the tensors that the index lists are entries; what else the shards hold is
    /// left out.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for a shard that is not among `files`, for a listed tensor that its shard does not hold,
    /// and for a name that stands in two files; else as [`SafetensorsSource::open`].
    pub fn open(&self, files: &BTreeMap<String, PathBuf>) -> Result<SafetensorsSource> {
        match &self.index {
            Some(index) => SafetensorsSource::open_indexed(index.locate(files)?),
            None => {
                let paths: Result<Vec<&Path>> = self
                    .names
                    .iter()
                    .map(|n| {
                        let missing = || Error::not_found(format!("`{n}`"), "it is not among the files of the model");
                        files.get(n).map(PathBuf::as_path).ok_or_else(missing)
                    })
                    .collect();
                SafetensorsSource::open_all(paths?)
            }
        }
    }
}

/// Whether all shards are there of which `name`, `<stem>-00001-of-00003.safetensors`, says that it is one.
fn check_complete(name: &str, files: &BTreeMap<String, PathBuf>) -> Result<()> {
    let numbers = |name: &str| {
        let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, at) = rest.rsplit_once('-')?;
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        (digits(at) && digits(of)).then(|| (stem.to_owned(), of.to_owned(), at.parse::<u32>().ok()))
    };
    let Some((stem, of, _)) = numbers(name) else { return Ok(()) };
    let have = files
        .keys()
        .filter_map(|n| numbers(n))
        .filter(|(s, o, at)| *s == stem && *o == of && at.is_some_and(|at| at >= 1))
        .count();
    if of.parse().is_ok_and(|of: usize| have == of) {
        return Ok(());
    }
    Err(Error::load(
        files.get(name).map_or_else(|| name.to_owned(), |p| p.display().to_string()),
        format!(
            "it is one of {of} shards, but {have} are there, and no {} lists them; get the others too",
            ShardIndex::FILE
        ),
    ))
}
