//! What is made of files after they were fetched.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::manifest::check_relative_path;

/// One step from the files that a source has to the files that an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Unpack {
    /// The parts, one after the other, are the file `into`.
    Join {
        /// The parts, in order.
        parts: Vec<String>,
        /// What they are together.
        into: String,
    },
    /// The file is an archive (`.zip`, `.tar`, `.tar.gz`, `.tgz`, `.tar.zst`), and what is in it is taken instead of it.
    Archive {
        /// The archive.
        file: String,
    },
}

impl Unpack {
    /// The files that it takes.
    pub fn takes(&self) -> impl Iterator<Item = &str> {
        let (parts, file) = match self {
            Self::Join { parts, .. } => (parts.as_slice(), None),
            Self::Archive { file } => (&[][..], Some(file.as_str())),
        };
        parts.iter().map(String::as_str).chain(file)
    }

    /// Whether `steps` can be taken, in order, with files of these `names`; else why not.
    pub(crate) fn check<'a>(steps: &'a [Self], names: impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut there: BTreeSet<&str> = names.collect();
        for step in steps {
            if step.takes().next().is_none() {
                return Err("a file is to be joined of no parts".into());
            }
            for name in step.takes() {
                if !there.remove(name) {
                    return Err(format!(
                        "`{name}` is to be unpacked, but is not among the files, or was taken already"
                    ));
                }
            }
            if let Self::Join { into, .. } = step {
                check_relative_path(into)?;
                if !there.insert(into) {
                    return Err(format!("`{into}` is to be joined, but is among the files already"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(parts: &[&str], into: &str) -> Unpack {
        Unpack::Join { parts: parts.iter().map(|p| (*p).to_owned()).collect(), into: into.into() }
    }

    #[test]
    fn each_step_takes_files_that_are_there_and_no_file_is_taken_twice() {
        let archive = |file: &str| Unpack::Archive { file: file.into() };
        let check = |steps: &[Unpack]| Unpack::check(steps, ["a.1", "a.2", "b"].into_iter());
        assert_eq!(check(&[join(&["a.1", "a.2"], "a.zip"), archive("a.zip")]), Ok(()));
        assert_eq!(check(&[join(&["a.1", "a.2"], "a.1")]), Ok(()));
        for (steps, names) in [
            (vec![archive("a.zip"), join(&["a.1", "a.2"], "a.zip")], "`a.zip`"),
            (vec![join(&["a.1", "a.3"], "a")], "`a.3`"),
            (vec![join(&["a.1", "a.1"], "a")], "`a.1`"),
            (vec![join(&["a.1"], "b")], "`b`"),
            (vec![join(&["a.1"], "../a")], "../a"),
            (vec![join(&[], "a")], "no parts"),
        ] {
            let reason = check(&steps).unwrap_err();
            assert!(reason.contains(names), "{reason}");
        }
    }
}
