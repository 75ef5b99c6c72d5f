//! A new folder, or file, that is there whole or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use llm_local_source_common::disk::write_staged;
use tempfile::{TempDir, TempPath};

use super::files::Files;
use crate::lora::CONFIG;

/// Whether nothing is at `into`, or an empty folder.
pub(super) fn check_free(into: &Path) -> Result<()> {
    let there = |reason: &str| {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, format!("{reason}; name a new one"));
        Err(Error::io("write an adapter to", into, error))
    };
    match fs::symlink_metadata(into) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", into, e)),
        Ok(metadata) if !metadata.is_dir() => there("it is there already, and no folder"),
        Ok(_) => {
            let mut entries = fs::read_dir(into).map_err(|e| Error::io("list", into, e))?;
            if entries.next().is_some() { there("the folder is there already, and not empty") } else { Ok(()) }
        }
    }
}

/// Writes `files` into the new folder `into`. Returns their paths.
pub(super) fn publish(files: &Files<'_>, into: &Path) -> Result<Vec<PathBuf>> {
    let made = make(files, into)?;
    let renamed = fs::rename(made.path(), into).or_else(|error| {
        // Not every system puts a folder in the place of an empty one.
        if into.is_dir() { fs::remove_dir(into).and_then(|()| fs::rename(made.path(), into)) } else { Err(error) }
    });
    renamed.map_err(|e| Error::io("write an adapter to", into, e))?;
    // Nothing is left there to remove.
    let _ = made.keep();
    sync_folder(parent(into))?;
    let config = files.config.iter().map(|_| into.join(CONFIG));
    Ok(config.chain([into.join(files.weights)]).collect())
}

/// Writes the one file of `files` to `into`. Returns its path.
pub(super) fn publish_file(files: &Files<'_>, into: &Path) -> Result<Vec<PathBuf>> {
    if into.is_dir() {
        return publish(files, into);
    }
    let made = make(files, into)?;
    let path = made.path().join(files.weights);
    let file = TempPath::try_from_path(&path).map_err(|e| Error::io("find", &path, e))?;
    file.persist_noclobber(into).map_err(|e| Error::io("write an adapter to", into, e.error))?;
    sync_folder(parent(into))?;
    Ok(vec![into.to_owned()])
}

/// A temporary folder beside `into` with all of `files`, of which the disk has every byte.
fn make(files: &Files<'_>, into: &Path) -> Result<TempDir> {
    let beside = parent(into);
    fs::create_dir_all(beside).map_err(|e| Error::io("create the folder", beside, e))?;
    let folder = tempfile::Builder::new().prefix(".llm-local-").suffix(".tmp").tempdir_in(beside);
    let folder = folder.map_err(|e| Error::io("create a folder in", beside, e))?;
    if let Some(config) = &files.config {
        write_staged(&folder.path().join(CONFIG), config.as_bytes(), folder.path())?;
    }
    let weights = folder.path().join(files.weights);
    files.write_tensors(&weights)?;
    // Windows syncs only what is open for writing.
    let synced = fs::OpenOptions::new().write(true).open(&weights).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::io("sync", &weights, e))?;
    sync_folder(folder.path())?;
    Ok(folder)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was renamed in the folder outlast a power loss, where the system can: some network file systems know no
/// such thing, and a folder may be writable but not readable.
fn sync_folder(path: &Path) -> Result<()> {
    use io::ErrorKind as K;
    if cfg!(not(unix)) {
        return Ok(());
    }
    match fs::File::open(path).and_then(|folder| folder.sync_all()) {
        Err(e) if matches!(e.kind(), K::InvalidInput | K::Unsupported | K::PermissionDenied) => Ok(()),
        other => other.map_err(|e| Error::io("sync the folder", path, e)),
    }
}
