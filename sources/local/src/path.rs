//! Refs to paths.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use llm_local_core::{ArtifactRef, Error, Result};

/// The absolute path that a `file` ref means: `~` and `~/...` are below the home folder, and what is relative is below
/// the current one.
pub(crate) fn absolute(reference: &ArtifactRef) -> Result<PathBuf> {
    if !reference.is_file() {
        return Err(Error::invalid_spec(
            format!("ref `{reference}`"),
            format!("the local source reads `file:` refs and plain paths, not `{}:`", reference.scheme()),
        ));
    }
    let path = expand(reference.locator(), || etcetera::home_dir().ok()).ok_or_else(|| {
        Error::not_found(reference, "the home folder is not known; write the whole path instead of `~`")
    })?;
    std::path::absolute(&path).map_err(|e| Error::io("find", path, e))
}

fn expand(locator: &str, home: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
    match locator.strip_prefix('~') {
        Some("") => home(),
        Some(rest) if rest.starts_with(std::path::is_separator) => {
            Some(home()?.join(rest.trim_start_matches(std::path::is_separator)))
        }
        _ => Some(PathBuf::from(locator)),
    }
}

/// What is at `path`, which `reference` means.
pub(crate) fn metadata(path: &Path, reference: &ArtifactRef) -> Result<Metadata> {
    fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            let locator = reference.locator();
            let hub = match locator.split('/').collect::<Vec<_>>()[..] {
                [owner, name] if !owner.starts_with(['.', '~']) && !owner.is_empty() && !name.is_empty() => {
                    format!("; if it is a repository of the Hugging Face Hub, write `hf:{locator}`")
                }
                _ => String::new(),
            };
            Error::not_found(
                path.display(),
                format!("there is no such file or folder on this machine; check the path{hub}"),
            )
        }
        _ => Error::io("read", path, error),
    })
}

/// The last part of a path, as text.
pub(crate) fn name(path: &Path) -> Result<String> {
    path.file_name()
        .and_then(|n| n.to_str())
        .map(str::to_owned)
        .ok_or_else(|| Error::not_found(path.display(), "the path does not end in a file name of UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder_only_at_the_start_and_alone() {
        let expand = |locator| expand(locator, || Some("/home/me".into())).unwrap();
        for (locator, path) in [
            ("~", "/home/me"),
            ("~/", "/home/me"),
            ("~/m/x.gguf", "/home/me/m/x.gguf"),
            ("~//etc", "/home/me/etc"),
            ("~other/m", "~other/m"),
            ("a/~/b", "a/~/b"),
            ("/m", "/m"),
        ] {
            assert_eq!(expand(locator), Path::new(path), "{locator}");
        }
        assert_eq!(super::expand("~/m", || None), None);
        assert_eq!(super::expand("/m", || None), Some("/m".into()));
    }

    #[test]
    fn a_relative_path_is_below_the_current_folder_and_another_scheme_is_refused() {
        let here = std::env::current_dir().unwrap();
        for text in ["models/x", "./models/x", "file:models/x"] {
            assert_eq!(absolute(&text.parse().unwrap()).unwrap(), here.join("models/x"), "{text}");
        }
        let error = absolute(&"hf:org/name".parse().unwrap()).unwrap_err();
        assert_eq!(error.code(), "invalid_spec");
    }

    #[test]
    fn what_is_not_there_is_not_found_with_a_hint_where_it_looks_like_a_repository() {
        let error = |text: &str| {
            let reference: ArtifactRef = text.parse().unwrap();
            let error = metadata(&absolute(&reference).unwrap(), &reference).unwrap_err();
            assert_eq!(error.code(), "not_found");
            error.to_string()
        };
        assert!(error("org/no-such-name").contains("`hf:org/no-such-name`"));
        for text in ["./no-such-name", "/no/such", "no-such-name", "a/b/no-such-name"] {
            assert!(!error(text).contains("hf:"), "{text}");
            assert!(error(text).contains("no-such") || error(text).contains("/no/such"), "{text}");
        }
    }
}
