//! Names of an archive's entries, held against each other.

use std::collections::HashMap;

/// The names so far, as a file system would compare them that does not tell capital letters from small ones.
#[derive(Debug, Default)]
pub(super) struct Names {
    seen: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    spelling: String,
    is_folder: bool,
}

impl Names {
    /// Adds a file. Says with what it meets, if it does: the same name, one that differs in capital letters alone, a file
    /// where this one needs a folder, or a folder where this one is.
    pub(super) fn add_file(&mut self, path: &str) -> Result<(), String> {
        self.add_folders_above(path)?;
        match self.seen.get(&folded(path)) {
            Some(other) if other.spelling == path && !other.is_folder => Err(format!("`{path}` is in it twice")),
            Some(other) if other.is_folder => Err(format!("`{path}` is a file and `{}` a folder", other.spelling)),
            Some(other) => Err(one_name(path, &other.spelling)),
            None => {
                self.seen.insert(folded(path), Seen { spelling: path.to_owned(), is_folder: false });
                Ok(())
            }
        }
    }

    /// Adds a folder, which may be there already. Says with what it meets as [`Names::add_file`] does.
    pub(super) fn add_folder(&mut self, path: &str) -> Result<(), String> {
        self.add_folders_above(path)?;
        let new = Seen { spelling: path.to_owned(), is_folder: true };
        let seen = self.seen.entry(folded(path)).or_insert(new);
        match () {
            () if !seen.is_folder => Err(format!("`{}` is a file and `{path}` a folder", seen.spelling)),
            () if seen.spelling != path => Err(one_name(path, &seen.spelling)),
            () => Ok(()),
        }
    }

    fn add_folders_above(&mut self, path: &str) -> Result<(), String> {
        match path.rsplit_once('/') {
            Some((above, _)) => self.add_folder(above),
            None => Ok(()),
        }
    }
}

fn one_name(path: &str, other: &str) -> String {
    format!("`{path}` and `{other}` are one name on systems that do not tell capital letters")
}

/// `path` as a system sees it that does not tell capital letters from small ones. By way of the capital ones, so that
/// letters with two small forms are one.
fn folded(path: &str) -> String {
    path.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// How many bytes of each of `paths` name folders that are around all of them: 2 for `a/b` and `a/c/d`.
pub(super) fn wrapping<'a>(mut paths: impl Iterator<Item = &'a str>) -> usize {
    let Some(first) = paths.next() else { return 0 };
    let folders = |path: &str| path.rfind('/').map_or(0, |end| end + 1);
    paths.fold(folders(first), |common, path| {
        let same = first.bytes().zip(path.bytes()).take(common).take_while(|(a, b)| a == b).count();
        folders(&first[..first.floor_char_boundary(same)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_meet_by_capital_letters_and_as_file_and_folder() {
        let meet = |paths: &[&str]| {
            let mut names = Names::default();
            paths.iter().find_map(|path| match path.strip_suffix('/') {
                Some(folder) => names.add_folder(folder).err(),
                None => names.add_file(path).err(),
            })
        };
        assert_eq!(meet(&["a/", "a/b", "a/", "a/c", "d"]), None);
        for (paths, says) in [
            (&["a", "a"][..], "twice"),
            (&["a", "A"], "capital letters"),
            (&["d/a", "D/b"], "capital letters"),
            (&["d/", "D/"], "capital letters"),
            (&["ſ", "S"], "capital letters"),
            (&["straße", "STRASSE"], "capital letters"),
            (&["a", "a/b"], "a folder"),
            (&["a/b", "a"], "a folder"),
            (&["a/", "A"], "a folder"),
            (&["A", "a/"], "a folder"),
        ] {
            let reason = meet(paths).unwrap_or_else(|| panic!("{paths:?}"));
            assert!(reason.contains(says), "{paths:?}: {reason}");
        }
    }

    #[test]
    fn folders_around_everything_are_found() {
        for (paths, bytes) in [
            (&["a/b", "a/c/d"][..], 2),
            (&["a/b/x", "a/b/y", "a/b/z/w"], 4),
            (&["a/b/x"], 4),
            (&["x"], 0),
            (&["a/x", "b/x"], 0),
            (&["a/x", "y"], 0),
            (&["ab/x", "a/x"], 0),
            (&["a/bc/x", "a/bd/x"], 2),
            (&["ä/x", "å/x"], 0),
            (&[], 0),
        ] {
            assert_eq!(wrapping(paths.iter().copied()), bytes, "{paths:?}");
        }
    }
}
