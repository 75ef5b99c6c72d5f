//! Whether a path still has the file that was there.

use std::{
    fmt,
    fs::Metadata,
    path::Path,
    time::{Duration, SystemTime},
};

use llm_local_core::{Error, Result};

/// What tells that a file at a path is still the one that was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) size: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are such.
    id: Option<(u64, u64)>,
}

/// What is written down to tell a file at a path later, in another process: as [`Seen`], with when anything of the file was
/// last changed, on Unix: nobody sets that back. A new link to it changes that, too, so a file with another stamp may well be
/// the same. The device is no part of it: many file systems get another number each time they are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    since: Duration,
    /// Seconds and nanoseconds.
    changed: Option<(i64, i64)>,
    inode: Option<u64>,
}

impl Seen {
    /// What is at `path` now, with its stamp, which there is none of on a system that does not keep times.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn with_stamp(path: &Path) -> Result<(Self, Option<Stamp>)> {
        let meta = fs_err::metadata(path).map_err(|e| Error::io("read", path, e))?;
        let (modified, id) = (meta.modified().ok(), id(&meta));
        let since = modified.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let stamp = since.map(|since| Stamp { since, changed: changed(&meta), inode: id.map(|(_, inode)| inode) });
        Ok((Self { size: meta.len(), modified, id }, stamp))
    }

    /// What is at `path` now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn now(path: &Path) -> Result<Self> {
        Self::with_stamp(path).map(|(seen, _)| seen)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.since.as_nanos(), self.changed, self.inode)
    }
}

#[cfg(unix)]
fn id(meta: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn id(_: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(unix)]
fn changed(meta: &Metadata) -> Option<(i64, i64)> {
    use std::os::unix::fs::MetadataExt as _;
    Some((meta.ctime(), meta.ctime_nsec()))
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> Option<(i64, i64)> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_stamp_is_the_same_after_the_file_system_was_mounted_anew_as_another_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (_, stamp) = Seen::with_stamp(file.path()).unwrap();
        let meta = std::fs::metadata(file.path()).unwrap();
        let since = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let expected = format!("{since} {:?} {:?}", Some((meta.ctime(), meta.ctime_nsec())), Some(meta.ino()));
        assert_eq!(stamp.unwrap().to_string(), expected);
    }
}
