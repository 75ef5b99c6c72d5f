//! Home folder and variables in paths, as Python expands them.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// `path` with the home folder in place of `~` at its start, and then the values of variables in place of `$NAME` and
/// `${NAME}`; those that are not set stay as they are. As Python's `expandvars(expanduser(path))` on Unix, but for the
/// homes of other users (`~name`).
pub(super) fn expand(path: OsString, home: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = PathBuf::from(path);
    let path = match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    // A name that is not Unicode is taken as it is.
    let Some(mut rest) = path.to_str().filter(|text| text.contains('$')) else { return path };
    let mut expanded = OsString::new();
    while let Some(at) = rest.find('$') {
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{') {
            Some(inner) => inner.find('}').map_or(("", 0), |end| (&inner[..end], end + 2)),
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        let end = at + 1 + length;
        match Some(name).filter(|name| !name.is_empty()).and_then(&variable) {
            Some(value) => {
                expanded.push(&rest[..at]);
                expanded.push(value);
            }
            None => expanded.push(&rest[..end]),
        }
        rest = &rest[end..];
    }
    expanded.push(rest);
    PathBuf::from(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expectations are what Python 3 gives on Unix.
    #[test]
    fn paths_are_expanded_as_in_python() {
        let variables =
            [("SCRATCH", "/scratch/me"), ("USER_1", "me"), ("TILDE", "~"), ("NESTED", "$SCRATCH"), ("EMPTY", "")];
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        for (path, expanded) in [
            ("~", "/home/u"),
            ("~/a", "/home/u/a"),
            ("~a", "~a"),
            ("/x/~", "/x/~"),
            ("$SCRATCH/a", "/scratch/me/a"),
            ("${SCRATCH}b", "/scratch/meb"),
            ("/x/$USER_1-$USER_1", "/x/me-me"),
            ("/$NONE/${NONE}", "/$NONE/${NONE}"),
            ("/$/${}/$", "/$/${}/$"),
            ("/${SCRATCH", "/${SCRATCH"),
            ("~/$USER_1", "/home/u/me"),
            ("/$TILDE", "/~"),
            ("/$NESTED", "/$SCRATCH"),
            ("/$EMPTY/a", "//a"),
            ("/$\u{e9}", "/$\u{e9}"),
        ] {
            let found = expand(path.into(), Some(Path::new("/home/u")), variable);
            assert_eq!(found, Path::new(expanded), "{path}");
        }
        assert_eq!(expand("~/$USER_1".into(), None, variable), Path::new("~/me"));
    }
}
