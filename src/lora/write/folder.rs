//! The files of an adapter in a new folder, or its one file.

use std::path::{Path, PathBuf};

use llm_local_core::{Error, Result};
use tempfile::TempPath;

use super::files::Files;
use crate::{
    blocking::Wanted,
    lora::CONFIG,
    new_folder::{self, NewFolder},
};

/// What is done, in messages.
const DOING: &str = "write an adapter to";

/// Whether an adapter can be written to `into`.
pub(super) fn check_free(into: &Path) -> Result<()> {
    new_folder::check_free(DOING, into)
}

/// Writes `files` into the new folder `into`, if that is wanted still once they are there. Returns their paths.
pub(super) fn publish(files: &Files<'_>, into: &Path, wanted: &Wanted) -> Result<Vec<PathBuf>> {
    let names = make(files, into, wanted)?.publish(into, wanted)?;
    Ok(names.into_iter().map(|name| into.join(name)).collect())
}

/// Writes the one file of `files` to `into`, if that is wanted still once it is there. Returns its path.
pub(super) fn publish_file(files: &Files<'_>, into: &Path, wanted: &Wanted) -> Result<Vec<PathBuf>> {
    if into.is_dir() {
        return publish(files, into, wanted);
    }
    let made = make(files, into, wanted)?;
    let path = made.path(files.weights);
    let file = TempPath::try_from_path(&path).map_err(|e| Error::io("find", &path, e))?;
    wanted.commit(|| file.persist_noclobber(into).map_err(|e| Error::io(DOING, into, e.error)))?;
    new_folder::sync_folder(new_folder::parent(into))?;
    Ok(vec![into.to_owned()])
}

/// A new folder beside `into` with all of `files`, the config first, of which the disk has every byte.
fn make(files: &Files<'_>, into: &Path, wanted: &Wanted) -> Result<NewFolder> {
    let mut folder = NewFolder::beside(DOING, into)?;
    if let Some(config) = &files.config {
        folder.write(CONFIG, config.as_bytes())?;
    }
    let weights = folder.create(files.weights)?;
    files.write_tensors(&weights, wanted)?;
    NewFolder::close(&weights)?;
    Ok(folder)
}
