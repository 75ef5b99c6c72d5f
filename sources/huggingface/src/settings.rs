//! What the source is set to: token, endpoint, cache folder, offline. From the environment as `huggingface_hub` 2.4 reads
//! it (`constants.py`, `utils/_auth.py`, `utils/_headers.py`), but for a variable that is set to nothing, which counts as
//! not set.

mod expand;

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use llm_local_source_common::access::{self, Token};

use expand::expand;

/// The Hub that is asked unless another one is named.
const ENDPOINT: &str = "https://huggingface.co";

/// The token in `text`, which is `from` there. Line breaks and the space around it are dropped; `None` if nothing else is
/// there.
///
/// # Errors
/// [`Error::InvalidSpec`] that shows none of it.
pub(crate) fn token(text: &str, from: &str) -> Result<Option<Token>> {
    Token::new(&text.replace(['\r', '\n'], ""), "Hugging Face", from)
}

/// What the source is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The token that is sent to the endpoint, and to no other host.
    pub(crate) token: Option<Token>,
    /// The Hub's URL without a slash at its end.
    pub(crate) endpoint: String,
    /// The folder of the Hub's cache, `~/.cache/huggingface/hub` or another.
    pub(crate) cache: PathBuf,
    /// The folder in which xet keeps what several files share, where it is known.
    pub(crate) xet_cache: Option<PathBuf>,
    /// Whether no request may be made.
    pub(crate) offline: bool,
}

impl Settings {
    /// The settings that the environment gives: `variable` looks one up, `home` is the user's folder. An empty variable
    /// counts as not set.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for an endpoint or token that cannot be one, [`Error::NotFound`] if the cache's folder
    /// depends on a home folder that is not known, [`Error::Io`] for a token file that cannot be read.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let text = |name: &str| set(name).map(|v| v.to_string_lossy().into_owned());
        let is_true = |value: String| ["1", "on", "yes", "true"].iter().any(|t| value.eq_ignore_ascii_case(t));
        let path = |name: &str| set(name).map(|v| expand(v, home.as_deref(), &variable));
        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| home.as_ref().map(|home| home.join(".cache").join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
            .ok_or_else(|| {
                Error::not_found("the folder of the Hugging Face cache", "the home folder is not known; set HF_HOME")
            })?;
        let xet_cache = path("HF_XET_CACHE").or_else(|| hf_home.as_ref().map(|home| home.join("xet")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|home| home.join("token")));
        // One that is not empty hides the other by its old name, even if nothing but space is in it.
        let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, text(name)?)));
        let of_variable = |(name, text): (&str, String)| token(&text, &format!("the environment variable {name}"));
        // It keeps even HF_TOKEN from being sent unasked.
        let token = if text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
            None
        } else {
            match (named.map(of_variable).transpose()?.flatten(), token_file) {
                (None, Some(file)) => token_in(&file)?,
                (token, _) => token,
            }
        };
        Ok(Self {
            token,
            endpoint: endpoint(&text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()))?,
            cache,
            xet_cache,
            offline: text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE")).is_some_and(is_true),
        })
    }
}

/// The token in `file`, if both are there.
fn token_in(file: &Path) -> Result<Option<Token>> {
    match fs::read_to_string(file) {
        Ok(text) => token(&text, &format!("the file {}", file.display())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io("read the Hugging Face token in", file, error)),
    }
}

/// Checks the URL of a Hub.
pub(crate) fn endpoint(text: &str) -> Result<String> {
    access::endpoint(text, "Hugging Face endpoint (HF_ENDPOINT)", ENDPOINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], home: Option<&Path>) -> Result<Settings> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        Settings::from_environment(variable, home.map(Path::to_owned))
    }

    #[test]
    fn the_cache_is_where_other_tools_look_for_it() {
        let home = Some(Path::new("/home/u"));
        for (variables, cache) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("HF_HOME", ""), ("HF_HUB_CACHE", "")], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/home/u/h/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(read(variables, home).unwrap().cache, Path::new(cache), "{variables:?}");
        }
        assert_eq!(read(&[], None).unwrap_err().code(), "not_found");
        assert_eq!(read(&[("HF_HUB_CACHE", "/c")], None).unwrap().cache, Path::new("/c"));
    }

    /// `expandvars(expanduser(..))` in `constants.py`, for each folder and with the defaults that others are below.
    #[test]
    fn the_home_folder_and_variables_in_paths_are_expanded() {
        for (name, below) in [
            ("HF_HUB_CACHE", ""),
            ("HUGGINGFACE_HUB_CACHE", ""),
            ("HF_HOME", "hub"),
            ("XDG_CACHE_HOME", "huggingface/hub"),
        ] {
            let variables = [(name, "~/${MINE}/$NONE"), ("MINE", "x")];
            let expected = Path::new("/home/u/x/$NONE").join(below);
            assert_eq!(read(&variables, Some(Path::new("/home/u"))).unwrap().cache, expected, "{name}");
        }
    }

    /// `_is_true` in `constants.py`.
    #[test]
    fn offline_is_what_says_so() {
        for (name, value, offline) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "Yes", true),
            ("TRANSFORMERS_OFFLINE", "on", true),
            ("HF_HUB_OFFLINE", "TRUE", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("HF_HUB_OFFLINE", "", false),
            ("HF_HUB_OFFLINE", "no", false),
            ("HF_HUB_OFFLINE", "2", false),
            ("HF_HUB_OFFLINE", " 1", false),
            ("TRANSFORMERS_OFFLINE", "y", false),
        ] {
            assert_eq!(read(&[(name, value), ("HF_HOME", "/h")], None).unwrap().offline, offline, "{name}={value}");
        }
        // `HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE`: one that is not empty hides the other.
        let both = |hub, transformers| {
            let variables = [("HF_HUB_OFFLINE", hub), ("TRANSFORMERS_OFFLINE", transformers), ("HF_HOME", "/h")];
            read(&variables, None).unwrap().offline
        };
        assert_eq!((both("0", "1"), both("", "1"), both("1", "0")), (false, true, true));
    }

    /// `get_token` in `utils/_auth.py`, and `get_token_to_send` in `utils/_headers.py`.
    #[test]
    fn the_token_is_the_variable_or_else_the_file() {
        let home = tempfile::tempdir().unwrap();
        let hf_home = home.path().join(".cache/huggingface");
        fs::create_dir_all(&hf_home).unwrap();
        let token = |variables: &[(&str, &str)]| {
            read(variables, Some(home.path())).unwrap().token.map(|t| t.secret().to_owned())
        };
        assert_eq!(token(&[]), None);
        fs::write(hf_home.join("token"), "hf_file\n").unwrap();
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", "")]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " hf_env ")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HF_TOKEN", "\r\nhf_env\n\n")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HF_TOKEN", "hf_wrapped_\nby_a_terminal")]).as_deref(), Some("hf_wrapped_by_a_terminal"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).as_deref(), Some("hf_old"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "hf_env")]).as_deref(), Some("hf_env"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "")]).as_deref(), Some("hf_old"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", " \n")]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN", " \t\n ")]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")]).as_deref(), Some("hf_file"));
        fs::write(hf_home.join("token"), " \r\n").unwrap();
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("HF_TOKEN", " ")]), None);
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let other = home.path().join("other");
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]), None);
        fs::write(&other, "hf_other").unwrap();
        assert_eq!(token(&[("HF_TOKEN_PATH", "~/other")]).as_deref(), Some("hf_other"));
        let folder = home.path().to_str().unwrap();
        assert_eq!(token(&[("HF_TOKEN_PATH", "$MINE/other"), ("MINE", folder)]).as_deref(), Some("hf_other"));
        fs::create_dir(home.path().join("huggingface")).unwrap();
        fs::write(home.path().join("huggingface/token"), "hf_xdg").unwrap();
        assert_eq!(token(&[("XDG_CACHE_HOME", "${MINE}"), ("MINE", folder)]).as_deref(), Some("hf_xdg"));
    }

    #[test]
    fn nothing_shows_the_token() {
        let settings = read(&[("HF_TOKEN", "hf_s3cret"), ("HF_HOME", "/h")], None).unwrap();
        assert_eq!(settings.token.as_ref().unwrap().header(), "Bearer hf_s3cret");
        assert!(!format!("{settings:?}").contains("s3cret"));
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            let error = read(&[(name, "hf_s3cret x"), ("HF_HOME", "/h")], None).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("s3cret"), "{error}");
        }
    }
}
