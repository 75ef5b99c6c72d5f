//! Lock files: the artifacts of a spec, with revisions and digests, as TOML.

use std::path::Path;

use llm_local_core::{Error, Result, SpecLock};
use llm_local_source_common::disk::write_staged;
use serde::{Deserialize, Serialize};

/// The version of the format that is written.
const VERSION: u32 = 1;
/// What stands at its start.
const HEADER: &str = "# What a spec of llm-local meant when it was locked. Written by a program; not to be edited.\n";

#[derive(Serialize, Deserialize)]
struct LockFile {
    version: u32,
    #[serde(flatten)]
    lock: SpecLock,
}

/// The text of the lock file of `lock`.
///
/// # Errors
/// None that a lock can have: toml's are those of other types.
pub fn to_toml(lock: &SpecLock) -> Result<String> {
    let file = LockFile { version: VERSION, lock: lock.clone() };
    let text = toml::to_string(&file).map_err(|e| Error::invalid_spec("lock", e.to_string()))?;
    Ok(format!("{HEADER}{text}"))
}

/// The lock in the text of a lock file.
///
/// # Errors
/// [`Error::InvalidSpec`] for a text that is none, or of a version that is not known.
pub fn from_toml(text: &str) -> Result<SpecLock> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad =
        |e: toml::de::Error| Error::invalid_spec("lock file", format!("it cannot be read: {e}; lock the spec anew"));
    let Version { version } = toml::from_str(text).map_err(bad)?;
    if version != VERSION {
        let reason =
            format!("it is of version {version}, and {VERSION} is known; lock the spec anew, or use a newer llm-local");
        return Err(Error::invalid_spec("lock file", reason));
    }
    let lock = toml::from_str::<LockFile>(text).map_err(bad)?.lock;
    let mut files = lock.artifacts.iter().flat_map(|artifact| artifact.files.iter().map(move |file| (artifact, file)));
    match files.find(|(_, file)| file.digest.is_none()) {
        Some((artifact, file)) => {
            let reason = format!("`{}` of {} has no digest; lock the spec anew", file.path, artifact.reference);
            Err(Error::invalid_spec("lock file", reason))
        }
        None => Ok(lock),
    }
}

/// Writes `lock` to the file at `path`, in place of one that is there: all of it or nothing.
///
/// # Errors
/// [`Error::Io`] that names the file. A folder that is not there is made.
pub fn write(lock: &SpecLock, path: &Path) -> Result<()> {
    let text = to_toml(lock)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    write_staged(path, text.as_bytes(), folder)
}

/// Reads the lock file at `path`.
///
/// # Errors
/// [`Error::Io`], and as [`from_toml`]; both name the file.
pub fn read(path: &Path) -> Result<SpecLock> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the lock file", path, e))?;
    from_toml(&text).map_err(|e| match e {
        Error::InvalidSpec { reason, .. } => Error::invalid_spec(format!("lock file {}", path.display()), reason),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use llm_local_core::{Digest, LockedArtifact, Manifest, ManifestFile, Want};

    use super::*;

    fn lock() -> SpecLock {
        let file = |name: &str, byte| ManifestFile::new(name, 7).with_digest(Digest::Sha256([byte; 32]));
        let base = vec![file("config.json", 1), file("tokenizer.json", 2)];
        let base = Manifest::new("hf:org/tiny".parse().unwrap(), Want::Model, "c0ffee", base).unwrap();
        let adapter = vec![file("pirate.zip", 3)];
        let adapter = Manifest::new("github:o/r@latest".parse().unwrap(), Want::Adapter, "7~1", adapter).unwrap();
        let adapter = adapter.with_version("v1");
        SpecLock::new(vec![LockedArtifact::new(&base).unwrap(), LockedArtifact::new(&adapter).unwrap()])
    }

    #[test]
    fn a_lock_is_the_same_after_it_was_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llm-local.lock");
        std::fs::write(&path, "old").unwrap();
        write(&lock(), &path).unwrap();
        assert_eq!(read(&path).unwrap(), lock());
        let text = std::fs::read_to_string(&path).unwrap();
        for part in
            ["version = 1", "ref = \"hf:org/tiny\"", "revision = \"c0ffee\"", "tokenizer.json", "version = \"v1\""]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        // It is for others to read, too: like any file that is made here.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(folder.path().join("plain"), "").unwrap();
            let mode = |name| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode("llm-local.lock"), mode("plain"));
        }
    }

    #[test]
    fn what_is_no_lock_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        for (text, part) in [
            ("", "version"),
            ("version = 2\nartifact = []", "of version 2"),
            ("version = 1\n[[artifact]]\nref = \"hf:o/r\"", "missing field"),
            ("{", "cannot be read"),
            (
                "version = 1\n[[artifact]]\nref = \"hf:o/r\"\nwant = \"model\"\nrevision = \"1\"\n[[artifact.file]]\npath = \"a\"\nsize = 1",
                "no digest",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!(error.code(), "invalid_spec");
            assert!(error.to_string().contains(part) && error.to_string().contains("x.lock"), "{error}");
        }
        assert_eq!(read(&folder.path().join("none")).unwrap_err().code(), "io");
    }
}
