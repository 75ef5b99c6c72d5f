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

/// As [`Seen`], with when anything of the file was last changed, on Unix: nobody sets that back. A new link to it changes
/// that, too, so a file with another stamp may well be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    since: Duration,
    /// Seconds and nanoseconds.
    changed: Option<(i64, i64)>,
    id: Option<(u64, u64)>,
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
        let stamp = since.map(|since| Stamp { since, changed: changed(&meta), id });
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
        write!(f, "{} {:?} {:?}", self.since.as_nanos(), self.changed, self.id)
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
