//! Paths that stay below a folder, whatever a file says.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use llm_local_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A path below a folder that is known otherwise, as text with `/` between its parts, none of which is `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Below(String);

impl Below {
    /// `path` as seen from `base`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if it is not below it, or not UTF-8.
    pub(super) fn new(base: &Path, path: &Path) -> Result<Self> {
        let bad = |reason| Error::invalid_spec(format!("path {}", path.display()), reason);
        let rest = path
            .strip_prefix(base)
            .map_err(|_| bad(format!("expected a path below {}, where it is published", base.display())))?;
        let parts: Option<Vec<_>> = rest.iter().map(|part| part.to_str()).collect();
        let parts = parts.ok_or_else(|| bad("it is not UTF-8, and a record holds text".into()))?;
        Self::try_from(parts.join("/")).map_err(bad)
    }

    /// The path below `base`.
    pub(super) fn at(&self, base: &Path) -> PathBuf {
        self.0.split('/').fold(base.to_owned(), |path, part| path.join(part))
    }

    /// Its part right below `base`, if it is that far below.
    pub(super) fn part_below(&self, base: &str) -> Option<&str> {
        self.0.strip_prefix(base)?.strip_prefix('/')?.split('/').next()
    }

    /// The path as text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last part.
    pub(super) fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl TryFrom<String> for Below {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        // On Windows a part may be a drive, or several parts.
        let one = |part: &str| {
            let mut components = Path::new(part).components();
            matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        };
        if text.split('/').all(|part| plain(part) && one(part)) {
            return Ok(Self(text));
        }
        Err(format!("the path `{}` is not a plain path below a folder, without `..`", text.escape_debug()))
    }
}

impl From<Below> for String {
    fn from(below: Below) -> Self {
        below.0
    }
}

/// `path` with the links in all its folders followed, itself not: two names of one directory entry become one, whether
/// or not all of the folders are there yet.
pub(super) fn real(path: &Path) -> PathBuf {
    let there = path.ancestors().skip(1).find_map(|folder| Some((folder, fs::canonicalize(folder).ok()?)));
    match there.and_then(|(folder, real)| Some(real.join(path.strip_prefix(folder).ok()?))) {
        Some(real) => real,
        None => path.to_owned(),
    }
}

/// [`real`], if the folder is there.
///
/// # Errors
/// [`Error::InvalidSpec`] if a link in between leads out of `base`.
pub(super) fn real_inside(base: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let parent = path.parent().unwrap_or(path);
    let (base_real, folder) = match (fs::canonicalize(base), fs::canonicalize(parent)) {
        (Ok(base), Ok(folder)) => (base, folder),
        (Err(e), _) | (_, Err(e)) if gone(&e) => return Ok(None),
        (Err(e), _) => return Err(Error::io("look into", base, e)),
        (_, Err(e)) => return Err(Error::io("look into", parent, e)),
    };
    if !folder.starts_with(&base_real) {
        let reason = format!(
            "a link leads it to {}, out of {}, where nothing may be deleted; remove it by hand if it is yours",
            folder.display(),
            base_real.display()
        );
        return Err(Error::invalid_spec(format!("path {}", path.display()), reason));
    }
    Ok(path.file_name().map(|name| folder.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_from_a_record_cannot_leave_its_folder() {
        for text in ["", "/a", "../a", "a/../b", "a/..", "a//b", "./a", "a/", "..", "a\0b"] {
            assert!(Below::try_from(text.to_owned()).is_err(), "{text:?}");
            let json = serde_json::to_string(text).unwrap();
            assert!(serde_json::from_str::<Below>(&json).is_err(), "{text:?}");
        }
        let below = Below::try_from("a/b..c/.d".to_owned()).unwrap();
        assert_eq!(below.at(Path::new("x")), Path::new("x").join("a").join("b..c").join(".d"));
        assert_eq!((below.part_below("a"), below.part_below("a/b"), below.name()), (Some("b..c"), None, ".d"));
        assert!(Below::new(Path::new("/x"), Path::new("/y/a")).is_err());
        assert!(Below::new(Path::new("/x"), Path::new("/x/../y")).is_err());
        assert!(Below::new(Path::new("/x"), Path::new("/x")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_a_link_to_outside_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (base, outside) = (folder.path().join("base"), folder.path().join("outside"));
        fs::create_dir_all(base.join("in")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, base.join("out")).unwrap();
        std::os::unix::fs::symlink("in", base.join("also")).unwrap();
        let error = real_inside(&base, &base.join("out/file")).unwrap_err();
        assert!(error.to_string().contains("out of"), "{error}");
        let inside = real_inside(&base, &base.join("also/file")).unwrap().unwrap();
        assert_eq!(inside, real(&base.join("in/file")));
        assert_eq!(real_inside(&base, &base.join("gone/file")).unwrap(), None);
        assert_eq!(real(&base.join("also/gone/file")), real(&base.join("in")).join("gone").join("file"));
    }
}
