//! The folders that one call publishes into.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use llm_local_core::{Error, Result};

use super::folder::{create_each, parent, relative, sync_folder};

/// The folders of one call: each is made once, looked up once, and made to outlast a power loss once all is in it,
/// however many files come.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    made: Mutex<HashSet<PathBuf>>,
    /// Whether the relative way from one to another leads there.
    ways: Mutex<HashMap<(PathBuf, PathBuf), bool>>,
    changed: Mutex<Changed>,
    without_links: AtomicBool,
}

/// Folders in which something was made or renamed since they were synced.
#[derive(Debug, Default)]
struct Changed {
    /// The number of the last change in each.
    folders: BTreeMap<PathBuf, u64>,
    /// Of all changes there were. It never starts over, so that no change is taken for an earlier one of its folder.
    count: u64,
}

impl Folders {
    /// Makes the folder at `path` and those above it.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder, or the file that is in its place.
    pub(crate) fn make(&self, path: &Path) -> Result<()> {
        if locked(&self.made).contains(path) {
            return Ok(());
        }
        create_each(path, &|parent| {
            self.changed(parent);
            Ok(())
        })?;
        locked(&self.made).insert(path.to_owned());
        Ok(())
    }

    /// Whether the relative way from the folder `from` to the folder `to`, which are there, leads there: `..` leads out of
    /// where a folder really is, which may be elsewhere.
    ///
    /// # Errors
    /// [`Error::Io`] that names a folder.
    pub(super) fn is_way(&self, from: &Path, to: &Path) -> Result<bool> {
        let pair = (from.to_owned(), to.to_owned());
        if let Some(is_way) = locked(&self.ways).get(&pair) {
            return Ok(*is_way);
        }
        let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("find", path, e));
        let way = relative(&to.join("x"), &from.join("x"));
        let way = real(from)?.join(parent(&way));
        let is_way = way.canonicalize().ok() == Some(real(to)?);
        locked(&self.ways).insert(pair, is_way);
        Ok(is_way)
    }

    /// Notes that something was made or renamed in the folder at `path`.
    pub(crate) fn changed(&self, path: &Path) {
        let mut changed = locked(&self.changed);
        changed.count += 1;
        let number = changed.count;
        match changed.folders.get_mut(path) {
            Some(last) => *last = number,
            None => drop(changed.folders.insert(path.to_owned(), number)),
        }
    }

    /// Makes all that was made and renamed so far outlast a power loss, where the system can. Before anything is written
    /// that says that it is there. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] that names the folder.
    pub(crate) fn sync(&self) -> Result<()> {
        self.sync_by(&sync_folder)
    }

    /// [`Folders::sync`], where `sync` is what makes one folder outlast a power loss.
    pub(super) fn sync_by(&self, sync: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
        let all = locked(&self.changed).folders.clone();
        for (path, last) in all {
            sync(&path)?;
            let folders = &mut locked(&self.changed).folders;
            // Unless something was made there meanwhile. Until now others had to sync it, too.
            if folders.get(&path) == Some(&last) {
                folders.remove(&path);
            }
        }
        Ok(())
    }

    /// Says once that links cannot be made, because of `error`.
    pub(super) fn has_no_links(&self, link: &Path, error: &std::io::Error) {
        if !self.without_links.swap(true, Ordering::Relaxed) {
            tracing::warn!(link = %link.display(), %error, "no links can be made here: files are moved or copied instead");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call: a panic leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_once_and_synced_once_with_those_they_were_made_in() {
        let folder = tempfile::tempdir().unwrap();
        let (path, folders) = (folder.path().join("a/b"), Folders::default());
        folders.make(&path).unwrap();
        folders.make(&path).unwrap();
        folders.changed(&path);
        let changed = || locked(&folders.changed).folders.keys().cloned().collect::<Vec<_>>();
        assert_eq!(changed(), [folder.path(), &folder.path().join("a"), &path]);
        assert!(folders.is_way(&path, folder.path()).unwrap() && folders.is_way(folder.path(), &path).unwrap());
        folders.sync().unwrap();
        assert!(path.is_dir() && changed().is_empty());
    }

    #[test]
    fn what_was_made_while_two_sync_is_synced_again() {
        let (path, folders) = (Path::new("a"), Folders::default());
        folders.changed(path);
        let (outer, last) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let count = |counter: &std::cell::Cell<u32>| counter.set(counter.get() + 1);
        // While one syncs, a second begins and ends with the same change, and then there is another one.
        let sync = |_: &Path| {
            count(&outer);
            folders.sync_by(&|_| Ok(()))?;
            folders.changed(path);
            Ok(())
        };
        folders.sync_by(&sync).unwrap();
        let again = |_: &Path| {
            count(&last);
            Ok(())
        };
        folders.sync_by(&again).unwrap();
        folders.sync_by(&again).unwrap();
        assert_eq!((outer.get(), last.get()), (1, 1), "the second change is synced, and once");
    }

    #[cfg(unix)]
    #[test]
    fn what_could_not_be_synced_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, folders) = (folder.path().join("a"), Folders::default());
        folders.changed(&path);
        for _ in 0..2 {
            let error = folders.sync().unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        folders.make(&path).unwrap();
        folders.sync().unwrap();
    }
}
