//! What lies in a folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use llm_local_weights::{is_gguf, is_pickle, is_trainer_state};

/// The content of a folder, one level deep. Links are followed.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Its files, by name.
    pub(crate) files: BTreeMap<String, PathBuf>,
    /// Its folders, by name.
    folders: Vec<String>,
    /// Links to what is gone.
    broken: Vec<String>,
}

impl Folder {
    /// Lists the folder at `path`. Names that are not UTF-8 are none of a model's and are left out.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::NotFound`] if it is empty.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("list", path, e);
        let mut folder =
            Self { path: path.to_owned(), files: BTreeMap::new(), folders: Vec::new(), broken: Vec::new() };
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match fs::metadata(entry.path()) {
                Ok(meta) if meta.is_file() => drop(folder.files.insert(name, entry.path())),
                Ok(meta) if meta.is_dir() => folder.folders.push(name),
                Ok(_) => {}
                Err(_) => folder.broken.push(name),
            }
        }
        folder.folders.sort();
        folder.broken.sort();
        if folder.files.is_empty() && folder.folders.is_empty() && folder.broken.is_empty() {
            return Err(Error::not_found(path.display(), "the folder is empty"));
        }
        Ok(folder)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The names of its GGUF files.
    pub(crate) fn ggufs(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).filter(|n| is_gguf(n)).collect()
    }

    /// The name of a pickle that holds weights, if there is one.
    pub(crate) fn pickle(&self) -> Option<&str> {
        self.files.keys().map(String::as_str).find(|n| is_pickle(n) && !is_trainer_state(n))
    }

    /// The error for a folder whose weights are a pickle.
    pub(crate) fn only_pickle(&self, name: &str) -> Error {
        pickle(&self.path.join(name))
    }

    /// The folders below it that have a file `name`.
    pub(crate) fn folders_with(&self, name: &str) -> Vec<&str> {
        self.folders.iter().map(String::as_str).filter(|f| self.path.join(f).join(name).is_file()).collect()
    }

    /// The error for several GGUF files of which one must be meant.
    pub(crate) fn several(&self, ggufs: &[&str]) -> Error {
        Error::load(
            self.path.display(),
            format!("the folder has {} GGUF files; give the path of one of them: {}", ggufs.len(), ggufs.join(", ")),
        )
    }

    /// The error for a folder that has nothing of what was `expected`: what there is instead, and what may be meant.
    pub(crate) fn nothing(&self, expected: &str) -> Error {
        let mut reason = format!("the folder has no {expected}");
        let found: Vec<_> = self.files.keys().map(String::as_str).take(20).collect();
        if !found.is_empty() {
            reason += &format!("; it has {}", found.join(", "));
        }
        if !self.broken.is_empty() {
            reason += &format!("; these are links to files that are gone: {}", self.broken.join(", "));
        }
        if self.folders.iter().any(|f| f == "snapshots") {
            reason +=
                "; it looks like a repository in the Hugging Face cache, so give one of the folders in `snapshots`";
        }
        Error::load(self.path.display(), reason)
    }
}

/// The error for weights that are a pickle.
pub(crate) fn pickle(path: &Path) -> Error {
    Error::unsupported_format(
        path.display(),
        "it is a pickle, which can run code when read, and therefore never is; convert it to safetensors, or get a safetensors version",
    )
}
