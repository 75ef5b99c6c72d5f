//! Files on their way to a name, and what a crash left of such.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use llm_local_core::{Error, Result};
use tempfile::NamedTempFile;

use super::folder::create_folders;

/// How the name of a temporary file or link begins ...
const PREFIX: &str = ".llm-local-";
/// ... and how it ends.
const SUFFIX: &str = ".tmp";
/// How the name of a copy beside a blob ends. Other tools take it for an unfinished download.
const INCOMPLETE: &str = ".incomplete";

/// A new file in `folder`, with permissions by the umask; gone when dropped.
///
/// # Errors
/// [`Error::Io`] that names the folder.
pub(crate) fn temporary(folder: &Path) -> Result<NamedTempFile> {
    create_folders(folder)?;
    temporary_in(folder)
}

/// As [`temporary`], in a folder that is there.
///
/// # Errors
/// As [`temporary`].
pub(super) fn temporary_in(folder: &Path) -> Result<NamedTempFile> {
    let make = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).open(path);
    named().make_in(folder, make).map_err(|e| Error::io("create a file in", folder, e))
}

/// How everything is called that a crash may leave behind, but copies beside a blob.
pub(super) fn named() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    builder
}

/// The copy beside `blob` of the partial with this tag of eight hex digits. By the name alone nobody can tell it from what
/// huggingface_hub calls `<digest>.<eight hex digits>.incomplete`, so it is looked for by the partial and not swept.
pub(super) fn incomplete(blob: &Path, tag: &str) -> PathBuf {
    let mut name = blob.file_name().map_or_else(OsString::new, ToOwned::to_owned);
    name.push(format!(".{tag}{INCOMPLETE}"));
    blob.with_file_name(name)
}

/// Whether a file of this name is one that only this engine makes, and only for a moment.
fn is_ours(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Files and links.
    pub(crate) files: u64,
    /// Their lengths together.
    pub(crate) bytes: u64,
}

/// Removes the temporary files and links in `folder`, not those below it, that nobody has written to for
/// `older_than` before `now`: a crash left them. One that is being written is young; by a clock that was set back all
/// are. Nothing of other names is touched, and nothing is there to remove where there is no folder.
///
/// # Errors
/// [`Error::Io`] that names the folder, or a file that cannot be removed.
pub(crate) fn sweep_temporaries(folder: &Path, older_than: Duration, now: SystemTime) -> Result<Swept> {
    let failed = |e| Error::io("list", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Swept::default()),
        other => other.map_err(failed)?,
    };
    let mut swept = Swept::default();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if !path.file_name().is_some_and(is_ours) {
            continue;
        }
        // Itself, not where it leads to. It may have got its name meanwhile.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let age = metadata.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        if metadata.is_dir() || age < older_than {
            continue;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| Error::io("remove", &path, e))?,
        }
        swept.files += 1;
        swept.bytes += if metadata.is_file() { metadata.len() } else { 0 };
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn what_a_crash_left_goes_when_it_is_old_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (_, left) = temporary(folder.path()).unwrap().keep().unwrap();
        fs::write(&left, "left").unwrap();
        // Downloads of another tool, which may be copies of ours by their names; a file of an artifact, a folder, and work
        // below.
        assert_eq!(incomplete(&at("5a"), "0123abcd"), at("5a.0123abcd.incomplete"));
        for name in ["5a.incomplete", "5a.0123abcd.incomplete", ".tmp", ".tmpAbC123", ".llm-local-x", "model.tmp"] {
            fs::write(at(name), "theirs").unwrap();
        }
        fs::create_dir(at(".llm-local-folder.tmp")).unwrap();
        fs::write(at(".llm-local-folder.tmp/.llm-local-a.tmp"), "").unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let (before, now) = (names(), SystemTime::now());
        assert_eq!(sweep_temporaries(folder.path(), DAY, now).unwrap(), Swept::default());
        // The clock was set back.
        assert_eq!(sweep_temporaries(folder.path(), DAY, now - 2 * DAY).unwrap(), Swept::default());
        assert_eq!(names(), before);
        let swept = sweep_temporaries(folder.path(), DAY, now + 2 * DAY).unwrap();
        assert_eq!(swept, Swept { files: 1, bytes: 4 });
        assert_eq!(names().len(), before.len() - 1);
        assert!(!left.exists() && at("5a.incomplete").exists());
        assert_eq!(sweep_temporaries(&at("none"), DAY, now).unwrap(), Swept::default());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_was_left_goes_and_what_it_leads_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (blob, link) = (folder.path().join("blob"), folder.path().join(".llm-local-abc.tmp"));
        fs::write(&blob, "content").unwrap();
        std::os::unix::fs::symlink(&blob, &link).unwrap();
        let swept = sweep_temporaries(folder.path(), DAY, SystemTime::now() + 2 * DAY).unwrap();
        assert_eq!((swept, blob.exists()), (Swept { files: 1, bytes: 0 }, true));
        assert!(fs::symlink_metadata(&link).is_err());
    }
}
