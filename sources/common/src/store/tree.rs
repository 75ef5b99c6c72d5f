//! Trees of links and files, as other tools may have left them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};

use super::below::real;

/// Every file and link below `folder`, none of whose folders is a link. What vanishes meanwhile is left out.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for (path, is_folder) in entries(&folder)? {
            if is_folder { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// What is directly in `folder`, with whether it is a folder itself. None if it is not there.
pub(super) fn entries(folder: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let failed = |e| Error::io("list", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match entry.file_type() {
            Ok(kind) => found.push((entry.path(), kind.is_dir())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", entry.path(), e)),
        }
    }
    Ok(found)
}

/// Where the link at `path` points, one step far: content may itself be a link into a place that several repositories
/// share. `None` if it is no link.
pub(super) fn target(path: &Path) -> Option<PathBuf> {
    let target = fs::read_link(path).ok()?;
    Some(real(&path.parent()?.join(target)))
}

/// The size of the regular file at `path`; 0 for a link or nothing.
pub(super) fn own_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map_or(0, |m| m.len())
}

/// Removes the file or link at `path`, and gives the bytes that frees; nothing if it is gone already.
pub(super) fn remove(path: &Path) -> Result<Option<u64>> {
    let bytes = own_bytes(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("delete", path, e)),
    }
}
