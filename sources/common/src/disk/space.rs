//! File systems, and their free bytes.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};

/// Whether every file system has room for the bytes that are `needed` below each path, of which nothing need be there
/// yet.
///
/// # Errors
/// [`Error::InsufficientStorage`] with the bytes needed and free of the first file system that has too few, and
/// [`Error::Io`] that names a path whose file system does not say.
pub fn check(needed: &[(PathBuf, u64)]) -> Result<()> {
    check_with(needed, |path| fs4::available_space(path))
}

/// As [`check`], where `available` says how many bytes are free on the file system of a path.
///
/// # Errors
/// As [`check`].
fn check_with(needed: &[(PathBuf, u64)], available: impl Fn(&Path) -> io::Result<u64>) -> Result<()> {
    let mut volumes = BTreeMap::<_, (PathBuf, u64)>::new();
    for (path, bytes) in needed {
        let failed = |e| Error::io("find the file system of", path, e);
        let there = nearest(path).map_err(failed)?;
        let entry = volumes.entry(volume(&there).map_err(failed)?).or_insert_with(|| (there, 0));
        entry.1 = entry.1.saturating_add(*bytes);
    }
    for (path, required) in volumes.into_values() {
        let available = available(&path).map_err(|e| Error::io("ask for the free space of", &path, e))?;
        if required > available {
            return Err(Error::insufficient_storage(required, available));
        }
    }
    Ok(())
}

/// `error`, unless it says that a disk is full that has not room for the bytes that are `missing` still: then how many
/// those are, and how many are free there now. Of what a quota leaves nothing is known but that it is too little: none.
///
/// Where the bytes would fit, or none are missing, the room has been given back meanwhile, or it is not bytes that ran
/// out but the number of files, or what is full is a disk that the content is copied to: `error`, which names the path,
/// says more then. Blocks.
pub(crate) fn if_full(error: Error, missing: impl FnOnce() -> u64) -> Error {
    if_full_with(error, missing, |path| fs4::available_space(path))
}

/// As [`if_full`], where `available` says how many bytes are free on the file system of a path.
fn if_full_with(
    error: Error,
    missing: impl FnOnce() -> u64,
    available: impl FnOnce(&Path) -> io::Result<u64>,
) -> Error {
    let Error::Io { path, source, .. } = &error else { return error };
    let available = match source.kind() {
        io::ErrorKind::StorageFull => nearest(path).and_then(|there| available(&there)),
        io::ErrorKind::QuotaExceeded => Ok(0),
        _ => return error,
    };
    let (required, Ok(available)) = (missing(), available) else { return error };
    if required <= available {
        return error;
    }
    tracing::warn!(%error, "the disk is full");
    Error::insufficient_storage(required, available)
}

/// Whether both paths, of which nothing need be there yet, are on one file system. Where that is not known, they are taken
/// to be: what then fails says so itself.
pub fn same_volume(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| nearest(path).and_then(|there| volume(&there));
    match (of(one), of(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => true,
    }
}

/// The part of `path` that is there. What is not there yet will be on the file system of the folder it is made in.
fn nearest(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let there = absolute.ancestors().find(|p| p.exists()).map(Path::to_owned);
    Ok(there.unwrap_or(absolute))
}

/// What is one for all paths on one file system.
#[cfg(unix)]
fn volume(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.dev())
}

/// What is one for all paths on one drive. Another file system mounted in a folder of it is taken for the drive.
#[cfg(not(unix))]
fn volume(path: &Path) -> io::Result<std::ffi::OsString> {
    let path = path.canonicalize()?;
    Ok(path.components().next().map(|c| c.as_os_str().to_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_on_one_file_system_is_added_up() {
        let folder = tempfile::tempdir().unwrap();
        let needed = [(folder.path().join("a/b"), 60), (folder.path().join("c"), 40)];
        check_with(&needed, |_| Ok(100)).unwrap();
        let error = check_with(&needed, |path| {
            assert_eq!(path, folder.path());
            Ok(99)
        });
        assert!(matches!(error, Err(Error::InsufficientStorage { required: 100, available: 99, .. })));
        check_with(&[], |_| Ok(0)).unwrap();
    }

    #[test]
    fn the_disk_of_this_folder_has_room_for_a_byte_and_not_for_all() {
        let folder = tempfile::tempdir().unwrap();
        check(&[(folder.path().to_owned(), 1)]).unwrap();
        // Sizes come from remote listings: together they may be more than any number.
        let all = [(folder.path().join("a"), u64::MAX), (folder.path().join("b"), 1)];
        assert!(matches!(check(&all), Err(Error::InsufficientStorage { required: u64::MAX, .. })));
    }

    #[test]
    fn only_a_disk_too_full_for_what_is_missing_is_a_lack_of_space() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let error = |kind: io::ErrorKind| Error::io("write", &path, kind.into());
        let full = |missing, available: io::Result<u64>| {
            if_full_with(error(io::ErrorKind::StorageFull), || missing, |_| available)
        };
        let lacks = full(7, Ok(6));
        assert!(matches!(lacks, Error::InsufficientStorage { required: 7, available: 6, .. }), "{lacks}");
        let lacks = if_full(error(io::ErrorKind::QuotaExceeded), || 7);
        assert!(matches!(lacks, Error::InsufficientStorage { required: 7, available: 0, .. }), "{lacks}");
        // Out of files and not of bytes; the copy on another disk is what does not fit; nobody knows.
        let unknown = io::ErrorKind::PermissionDenied;
        for kept in [full(7, Ok(7)), full(0, Ok(0)), full(7, Err(unknown.into()))] {
            assert!(kept.code() == "io" && kept.to_string().contains(&path.display().to_string()), "{kept}");
        }
        let never = || unreachable!("nobody asks");
        assert_eq!(if_full(error(io::ErrorKind::PermissionDenied), never).code(), "io");
        assert_eq!(if_full(Error::Cancelled, never).code(), "cancelled");
    }

    #[test]
    fn what_is_not_there_yet_is_on_the_file_system_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(same_volume(&folder.path().join("a/b/c"), &folder.path().join("d")));
        #[cfg(target_os = "linux")]
        assert!(!same_volume(&folder.path().join("a"), Path::new("/proc/not/there")));
    }

    #[test]
    fn a_file_system_that_does_not_answer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_with(&[(folder.path().to_owned(), 1)], |_| Err(io::ErrorKind::PermissionDenied.into()));
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&folder.path().display().to_string()), "{text}");
    }
}
