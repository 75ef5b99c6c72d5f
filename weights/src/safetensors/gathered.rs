//! The tensors of a checkpoint's files, taken in one file after another.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result, TensorEntry};

/// Which file each tensor stands in, so far. It is the one place that checks files against each other and against their
/// index, whether they are opened or only their heads are known.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    files: Vec<PathBuf>,
    /// For each name, the number of its file.
    names: HashMap<String, usize>,
}

impl Gathered {
    /// Takes in `tensors`, all of the file called `file` in messages, and leaves those of them that are the checkpoint's:
    /// the ones `listed`, or all where there is no index.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for a name that stands in an earlier file too, listed or not, and for a listed tensor that is
    /// not there.
    pub(crate) fn take<T>(
        &mut self,
        file: &Path,
        tensors: &mut Vec<(TensorEntry, T)>,
        listed: Option<&[String]>,
    ) -> Result<()> {
        for (entry, _) in &*tensors {
            if let Some(first) = self.names.insert(entry.name.clone(), self.files.len()) {
                let reason = format!(
                    "the tensor `{}` stands in {} too; each name may stand in one file, so get the checkpoint again",
                    entry.name,
                    self.files.get(first).map_or(file, PathBuf::as_path).display()
                );
                return Err(Error::load(file.display(), reason));
            }
        }
        self.files.push(file.to_owned());
        let Some(listed) = listed else { return Ok(()) };
        let listed: HashSet<&str> = listed.iter().map(String::as_str).collect();
        tensors.retain(|(entry, _)| listed.contains(entry.name.as_str()));
        if tensors.len() == listed.len() {
            return Ok(());
        }
        let has: HashSet<&str> = tensors.iter().map(|(entry, _)| entry.name.as_str()).collect();
        let missing = listed.difference(&has).min().copied().unwrap_or_default();
        let reason = format!(
            "the index says that the tensor `{missing}` is in this file, but it is not; the index and the shards are of \
             different checkpoints"
        );
        Err(Error::load(file.display(), reason))
    }
}
