//! Which files of a folder hold a model's weights.

use std::{collections::BTreeMap, path::PathBuf};

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
        let index = files.get(ShardIndex::FILE).map(|path| ShardIndex::read(path)).transpose()?;
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        Self::among(&names, index, |name| files.get(name).map_or_else(|| name.to_owned(), |p| p.display().to_string()))
    }

    /// Chooses among files called `names`, of which `index` is the index if there is one; `shown` is what each is called in
    /// messages.
    ///
    /// # Errors
    /// As [`SafetensorsFiles::choose`], but those of the index.
    pub(crate) fn among(
        names: &[&str],
        index: Option<ShardIndex>,
        shown: impl Fn(&str) -> String,
    ) -> Result<Option<Self>> {
        if let Some(index) = index {
            let shards: Vec<_> = index.shards().map(str::to_owned).collect();
            if names.contains(&SINGLE) && !shards.iter().any(|n| n == SINGLE) {
                return Err(Error::load(
                    shown(ShardIndex::FILE),
                    format!("it does not name `{SINGLE}`, which lies beside it; remove the one that is not the model"),
                ));
            }
            return Ok(Some(Self { names: shards, index: Some(index) }));
        }
        if names.contains(&SINGLE) {
            return Ok(Some(Self { names: vec![SINGLE.into()], index: None }));
        }
        let several: Vec<_> = names.iter().filter(|n| is_weights(n)).map(|n| (*n).to_owned()).collect();
        for name in &several {
            check_complete(name, names, &shown)?;
        }
        Ok((!several.is_empty()).then_some(Self { names: several, index: None }))
    }

    /// Whether a model of files called `names` is in safetensors, whatever its index may say.
    pub(crate) fn are_among(names: &[&str]) -> bool {
        names.iter().any(|n| *n == ShardIndex::FILE || is_weights(n))
    }

    /// Their names, `/`-separated. Those that an index names need not have been among the files.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The tensors that the file `name` shall hold, where there is an index.
    pub(crate) fn listed(&self, name: &str) -> Option<&[String]> {
        self.index.as_ref().map(|index| index.listed(name))
    }

    /// Checks that `has` knows all of them.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] naming those of the index that it does not; [`Error::NotFound`] without an index.
    pub(crate) fn check_present(&self, has: impl Fn(&str) -> bool) -> Result<()> {
        let missing: Vec<_> = self.names.iter().map(String::as_str).filter(|name| !has(name)).collect();
        match (&self.index, missing.first()) {
            (_, None) => Ok(()),
            (Some(index), Some(_)) => Err(index.without(&missing)),
            (None, Some(name)) => Err(Error::not_found(format!("`{name}`"), "it is not among the files of the model")),
        }
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
        self.check_present(|name| files.contains_key(name))?;
        let listed = self.names.iter().map(|name| (files[name].as_path(), self.listed(name)));
        SafetensorsSource::open_listed(listed)
    }
}

/// Whether a file of this name holds weights of a model that has no index.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/') && !is_adapter_file(name)
}

/// Whether all shards are there of which `name`, `<stem>-00001-of-00003.safetensors`, says that it is one.
fn check_complete(name: &str, names: &[&str], shown: impl Fn(&str) -> String) -> Result<()> {
    let numbers = |name: &str| {
        let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, at) = rest.rsplit_once('-')?;
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        (digits(at) && digits(of)).then(|| (stem.to_owned(), of.to_owned(), at.parse::<u32>().ok()))
    };
    let Some((stem, of, _)) = numbers(name) else { return Ok(()) };
    let have = names
        .iter()
        .filter_map(|n| numbers(n))
        .filter(|(s, o, at)| *s == stem && *o == of && at.is_some_and(|at| at >= 1))
        .count();
    if of.parse().is_ok_and(|of: usize| have == of) {
        return Ok(());
    }
    Err(Error::load(
        shown(name),
        format!(
            "it is one of {of} shards, but {have} are there, and no {} lists them; get the others too",
            ShardIndex::FILE
        ),
    ))
}
