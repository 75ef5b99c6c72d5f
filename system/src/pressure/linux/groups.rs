//! What the sources of both versions of control groups do with several groups.

use std::{
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::listen::Heard;
use crate::{
    MemoryLimit,
    pressure::{Pressure, PressureLevel},
};

/// The groups in `folders` that can be watched by `watch`, which registers one for the source `name`. Left out are those that do
/// not have what it needs, as the group at the root of the tree, and those that are others' alone.
///
/// # Errors
/// Any other error of `watch`; where no group is left its first one, or that there are no folders: [`ErrorKind::Unsupported`].
pub(super) fn watch<G>(
    name: &str,
    folders: &[PathBuf],
    watch: impl FnMut(&PathBuf) -> io::Result<G>,
) -> io::Result<Vec<G>> {
    let mut groups = Vec::new();
    let mut missing = None;
    for watched in folders.iter().map(watch) {
        match watched {
            Ok(group) => groups.push(group),
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                tracing::debug!(%error, "a group is not watched");
                missing = missing.or(Some(error));
            }
            Err(error) => return Err(error),
        }
    }
    if groups.is_empty() {
        let none = || io::Error::new(ErrorKind::Unsupported, format!("{name}: there is no group to watch"));
        return Err(missing.unwrap_or_else(none));
    }
    Ok(groups)
}

/// What `heard` of the groups, the nearest first, comes to: the worst of it, or that no group is left.
pub(super) fn worst<G>(name: &str, groups: &[G], heard: Vec<(PressureLevel, String)>) -> Heard {
    // Of equals the last is taken.
    match heard.into_iter().rev().max_by_key(|(level, _)| *level) {
        Some((level, reason)) => Heard::Report(Pressure::new(level, name, reason)),
        None if groups.is_empty() => Heard::Gone,
        None => Heard::Nothing,
    }
}

/// What is left of `limit`, for people.
pub(super) fn left(limit: &MemoryLimit) -> String {
    format!("{} of {} bytes are left ({}), files aside", limit.available, limit.bytes, limit.by)
}

/// An error about `path`, which says what was tried. A file that is not there is a source that this machine does not have.
pub(super) fn failed(path: &Path, tried: impl fmt::Display, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    let kind = match error.kind() {
        ErrorKind::NotFound => ErrorKind::Unsupported,
        kind => kind,
    };
    io::Error::new(kind, format!("{}: {tried}: {error}", path.display()))
}
