//! Numbers in the files of a control group.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use fs_err as fs;

/// What `path` holds, without the line's end; `None` where there is no such file.
pub(super) fn text(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The bytes that `text`, from `path`, says.
pub(super) fn bytes(path: &Path, text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| invalid(path, "a number of bytes", text))
}

/// The bytes that `path` says, which is there wherever a limit is.
pub(super) fn usage(path: &Path) -> io::Result<u64> {
    bytes(path, fs::read_to_string(path)?.trim_end())
}

/// A `memory.stat`: lines of a name and a number. Empty where there is none.
pub(super) struct Stat {
    path: PathBuf,
    text: String,
}

impl Stat {
    /// Of the group in the directory `group`.
    pub(super) fn of(group: &Path) -> io::Result<Self> {
        let path = group.join("memory.stat");
        let text = text(&path)?.unwrap_or_default();
        Ok(Self { path, text })
    }

    /// What stands beside `name`, where it does: kernels and emulations differ in what they count.
    pub(super) fn get(&self, name: &str) -> io::Result<Option<u64>> {
        let value = self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .map(|value| bytes(&self.path, value).map_err(|e| io::Error::new(e.kind(), format!("{e} at {name}"))))
            .transpose()
    }

    /// Page cache that the kernel can give up at once, by the counts whose names begin with `prefix`: see the
    /// [module](super). A count that is not there is nothing to give up.
    pub(super) fn reclaimable(&self, prefix: &str, [dirty, writeback]: [&str; 2]) -> io::Result<u64> {
        let get = |name: &str| Ok::<_, io::Error>(self.get(&format!("{prefix}{name}"))?.unwrap_or(0));
        let files = get("inactive_file")?.saturating_add(get("active_file")?);
        Ok(files.saturating_sub(get(dirty)?).saturating_sub(get(writeback)?))
    }
}

/// An error that says what `path` should hold, and what it holds.
pub(super) fn invalid(path: &Path, expected: &str, found: &str) -> io::Error {
    let found: String = found.chars().take(80).collect();
    io::Error::new(
        ErrorKind::InvalidData,
        format!("{}: expected {expected}, found {found:?}; is it the file of a control group?", path.display()),
    )
}
