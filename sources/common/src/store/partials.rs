//! Files on their way that nobody goes on with.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use llm_local_core::{Error, Result};

use super::{Deleted, Store, tree};
use crate::disk::FileLock;

impl Store {
    /// Removes the partials into which nothing was written for `older_than` before `now`, except those that somebody
    /// writes at this moment. By a clock that was set back a partial is new.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear_partials(&self, older_than: Duration, now: SystemTime) -> Result<Deleted> {
        let mut deleted = Deleted::default();
        for (folder, is_folder) in tree::entries(&self.root().join("partials"))? {
            let Some(key) = folder.file_name().and_then(|name| name.to_str()).filter(|_| is_folder) else { continue };
            let Some(_lock) = FileLock::try_acquire(&self.locks().join(format!("{key}.lock")))? else { continue };
            // After the lock: it may have been worked on until just now.
            let age = newest(&folder)?.map(|at| now.duration_since(at).unwrap_or_default());
            if age.is_some_and(|age| age < older_than) {
                continue;
            }
            for path in tree::files(&folder)? {
                deleted.bytes += super::list::allocated(&path);
                deleted.files += 1;
            }
            match fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", &folder, e)),
                _ => {}
            }
        }
        Ok(deleted)
    }
}

/// When something below `folder`, or the folder itself, was last written.
fn newest(folder: &Path) -> Result<Option<SystemTime>> {
    let files = tree::files(folder)?;
    let paths = files.iter().map(std::path::PathBuf::as_path).chain([folder]);
    Ok(paths.filter_map(|path| fs::symlink_metadata(path).ok()?.modified().ok()).max())
}
