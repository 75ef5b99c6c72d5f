//! Folders, small files and links, written so that a crash leaves the old or the new.

use std::{
    fs,
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use llm_local_core::{Error, Result};

use super::{
    steps::{note, sync_file},
    temporary::{named, temporary},
};

/// What tells backup tools that a folder can be had again (<https://bford.info/cachedir/>).
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by llm-local.\n\
    # For information about cache directory tags see https://bford.info/cachedir/\n";

/// The folder, beside the links of a cache that other tools use too, in which a source keeps what it knows of a revision:
/// `<revision>.json` and `<revision>/...`. The store removes those with the revision, and all of it with the last one.
pub const SOURCE_NOTES: &str = ".llm-local";

/// The folder, below the store's root, in which GitHub's source keeps answers of the API: `<64 hex digits>.json`. The store
/// cleans away those that were not written for 30 days: whoever uses one writes its time anew.
pub const SOURCE_ANSWERS: &str = "github";

/// Makes the store's root, with the tag of a cache in it.
///
/// # Errors
/// [`Error::Io`] that names the file or folder.
pub(crate) fn prepare_root(root: &Path) -> Result<()> {
    let tag = root.join("CACHEDIR.TAG");
    if tag.exists() {
        return Ok(());
    }
    write_text_atomically(&tag, CACHEDIR_TAG)
}

/// Makes the folder at `path` and those above it.
///
/// # Errors
/// [`Error::Io`] that names the folder, or the file that is in its place.
pub(super) fn create_folders(path: &Path) -> Result<()> {
    create_each(path, &|_| Ok(()))
}

/// As [`create_folders`], and they outlast a power loss.
///
/// # Errors
/// As [`create_folders`].
pub(super) fn create_lasting_folders(path: &Path) -> Result<()> {
    create_each(path, &sync_folder)
}

/// Makes the folders, the highest first, and calls `made` with the parent of each.
pub(super) fn create_each(path: &Path, made: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let created = match (fs::create_dir(path), path.parent()) {
        (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound => {
            create_each(parent, made)?;
            fs::create_dir(path)
        }
        (created, _) => created,
    };
    match created {
        Ok(()) => made(parent(path)),
        Err(e) => already(path, e),
    }
}

/// Fine if somebody else made the folder in the meantime.
fn already(path: &Path, error: io::Error) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // `a/b` cannot be made where `a` is a file: name that one.
    let file = path.ancestors().find(|p| p.exists() && !p.is_dir()).unwrap_or(path);
    Err(Error::io("create the folder", file, error))
}

/// Makes what was made, renamed or removed in the folder at `path` outlast a power loss, where the system can.
///
/// # Errors
/// [`Error::Io`] that names the folder.
#[cfg(unix)]
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    // The parent of a path of one part.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match fs::File::open(path).and_then(|folder| folder.sync_all()) {
        Err(e) if is_no_sync(&e) => {}
        other => other.map_err(|e| Error::io("sync the folder", path, e))?,
    }
    note("sync folder", path, path);
    Ok(())
}

/// As on Unix, but the file system sees to that itself.
#[cfg(not(unix))]
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    note("sync folder", path, path);
    Ok(())
}

/// Whether `error` says that a folder cannot be synced at all: some network file systems know no such thing, and a
/// folder may be writable but not readable.
#[cfg(unix)]
fn is_no_sync(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

/// Writes a small text file in one step: a reader, and the disk after a power loss, has the old one or the new. Its
/// permissions follow the umask.
///
/// # Errors
/// [`Error::Io`] that names the file.
pub(crate) fn write_text_atomically(path: &Path, text: &str) -> Result<()> {
    write_text_staged(path, text, parent(path))
}

/// As [`write_text_atomically`], but what a crash may leave behind lies in `staging`, a folder on the same file system,
/// and not beside the file, where other tools would take it for one of theirs.
///
/// # Errors
/// As [`write_text_atomically`].
pub(crate) fn write_text_staged(path: &Path, text: &str, staging: &Path) -> Result<()> {
    write_staged(path, text.as_bytes(), staging)
}

/// Writes a small file in one step: a reader, and the disk after a power loss, has the old one or the new. Its folders are
/// made, and its permissions follow the umask. What a crash may leave behind lies in `staging`, a folder on the same file
/// system, under a name by which [`Store::clean`](crate::store::Store::clean) knows it.
///
/// # Errors
/// [`Error::Io`] that names the file.
pub fn write_staged(path: &Path, content: &[u8], staging: &Path) -> Result<()> {
    create_lasting_folders(parent(path))?;
    let mut file = temporary(staging)?;
    let written = file.write_all(content).and_then(|()| sync_file(file.as_file(), file.path()));
    written.map_err(|e| Error::io("write", file.path(), e))?;
    let from = file.path().to_owned();
    file.persist(path).map_err(|e| Error::io("replace", path, e.error))?;
    note("rename", &from, path);
    sync_folder(parent(path))
}

/// Puts a symbolic link to `target` at `link`; in place of what is there, it is made in the folder `staging` first.
///
/// # Errors
/// The system's: links may not be permitted.
pub(super) fn replace_with_symlink(target: &Path, link: &Path, staging: &Path) -> io::Result<()> {
    match symlink(target, link) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let made = named().make_in(staging, |path| symlink(target, path))?;
    let path = made.into_temp_path();
    // Not `persist`, which would open what it renames on some systems: the target is relative to another folder.
    fs::rename(&path, link)?;
    // Nothing is left there to remove.
    let _ = path.keep();
    Ok(())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Whether `error` says that there can be no links here: a file system without them, or a system that lets only some make
/// them. Not that a folder may not be written to.
pub(super) fn no_links_here(error: &io::Error) -> bool {
    /// `EPERM`, on every Unix: what FAT and exFAT answer. Rust has one kind for it and for `EACCES`.
    const NOT_PERMITTED: i32 = 1;
    /// `ENOTSUP` where that is not `EOPNOTSUPP`, for which Rust has a kind, as it has for `ENOSYS`.
    const NOT_SUPPORTED: i32 = 45;
    /// `ERROR_INVALID_FUNCTION`: the file system has none.
    const NO_SUCH_FUNCTION: i32 = 1;
    /// `ERROR_PRIVILEGE_NOT_HELD`: only developers and administrators may.
    const NOT_PRIVILEGED: i32 = 1314;
    let codes: &[i32] = match () {
        () if cfg!(windows) => &[NO_SUCH_FUNCTION, NOT_PRIVILEGED],
        () if cfg!(target_vendor = "apple") => &[NOT_PERMITTED, NOT_SUPPORTED],
        () => &[NOT_PERMITTED],
    };
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// The folder of `path`.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The lowest folder that both paths are below.
pub(super) fn common_folder<'a>(one: &'a Path, other: &Path) -> Option<&'a Path> {
    parent(one).ancestors().find(|folder| other.starts_with(folder))
}

/// How to get from the folder of `link` to `target`; `target` itself if nothing is common to them (two drives).
pub(super) fn relative(target: &Path, link: &Path) -> PathBuf {
    let Some(common) = common_folder(target, link) else { return target.to_owned() };
    let up = parent(link).components().count() - common.components().count();
    let down = target.components().skip(common.components().count());
    std::iter::repeat_n(Component::ParentDir, up).chain(down).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("refs/pr/1");
        write_text_staged(&path, "old and long", folder.path()).unwrap();
        write_text_atomically(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_text_file_that_cannot_be_replaced_is_named_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main");
        fs::create_dir(&path).unwrap();
        let error = write_text_atomically(&path, "x").unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // A file where a folder is needed.
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = write_text_atomically(&file.join("deep/er"), "x").unwrap_err();
        assert!(error.to_string().contains(&format!("{}:", file.display())), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, ours) = (folder.path().join("plain"), folder.path().join("ours"));
        fs::write(&plain, "").unwrap();
        write_text_atomically(&ours, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn the_way_from_a_link_to_its_target_is_relative() {
        let from = |target: &str, link: &str| relative(Path::new(target), Path::new(link));
        assert_eq!(from("/c/m/blobs/a", "/c/m/snapshots/1/x"), Path::new("../../blobs/a"));
        assert_eq!(from("/c/m/blobs/a", "/c/m/snapshots/1/d/x"), Path::new("../../../blobs/a"));
        assert_eq!(from("/c/a", "/c/x"), Path::new("a"));
        assert_eq!(from("/c/a", "/d/x"), Path::new("../c/a"));
        assert_eq!(from("c/a", "d/x"), Path::new("../c/a"));
        assert_eq!(common_folder(Path::new("/c/m/b/a"), Path::new("/c/m/s/x")), Some(Path::new("/c/m")));
    }

    #[test]
    fn the_root_is_tagged_as_a_cache_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/root");
        prepare_root(&root).unwrap();
        let tag = root.join("CACHEDIR.TAG");
        assert!(fs::read_to_string(&tag).unwrap().starts_with("Signature: 8a477f597d28d172789f06886806bc55"));
        fs::write(&tag, "mine").unwrap();
        prepare_root(&root).unwrap();
        assert_eq!(fs::read_to_string(&tag).unwrap(), "mine");
    }
}
