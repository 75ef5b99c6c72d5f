//! What the source is set to: token, endpoint, cache folder, offline. From the environment as `huggingface_hub` reads it.

use std::{
    ffi::OsString,
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};

/// The Hub that is asked unless another one is named.
const ENDPOINT: &str = "https://huggingface.co";

/// An access token. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    /// Checks that `text` can be a token; space around it is dropped. `None` if nothing else is there.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says where it is `from`, and shows none of it.
    pub(crate) fn new(text: &str, from: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Error::invalid_spec(
                "Hugging Face token",
                format!("{from} holds spaces or characters that no token has; expected one line such as `hf_...`"),
            ));
        }
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }

    /// The value of the `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The token itself.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
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
        let path = |name: &str| set(name).map(|v| expand(Path::new(&v), home.as_deref()));
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
        // As in huggingface_hub, it keeps even HF_TOKEN from being sent unasked.
        let token = if text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
            None
        } else if let Some(token) = text("HF_TOKEN") {
            Token::new(&token, "the environment variable HF_TOKEN")?
        } else {
            let file = path("HF_TOKEN_PATH").or_else(|| hf_home.map(|home| home.join("token")));
            file.map(|file| token_in(&file)).transpose()?.flatten()
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
        Ok(text) => Token::new(&text, &format!("the file {}", file.display())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io("read the Hugging Face token in", file, error)),
    }
}

/// `path` with the home folder in place of `~` at its start.
fn expand(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// Checks that `text` is the URL of a server, and takes the slashes from its end.
///
/// # Errors
/// [`Error::InvalidSpec`]. What may be a secret in it is not shown.
pub(crate) fn endpoint(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let plain = reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if plain {
        return Ok(text.to_owned());
    }
    Err(Error::invalid_spec(
        "Hugging Face endpoint (HF_ENDPOINT)",
        format!("expected the URL of a server without user, query or fragment, such as `{ENDPOINT}`"),
    ))
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
        ] {
            assert_eq!(read(&[(name, value), ("HF_HOME", "/h")], None).unwrap().offline, offline, "{name}={value}");
        }
    }

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
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let other = home.path().join("other");
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]), None);
        fs::write(&other, "hf_other").unwrap();
        assert_eq!(token(&[("HF_TOKEN_PATH", "~/other")]).as_deref(), Some("hf_other"));
    }

    #[test]
    fn nothing_shows_the_token() {
        let settings = read(&[("HF_TOKEN", "hf_s3cret"), ("HF_HOME", "/h")], None).unwrap();
        assert_eq!(settings.token.as_ref().unwrap().header(), "Bearer hf_s3cret");
        assert!(!format!("{settings:?}").contains("s3cret"));
        let error = read(&[("HF_TOKEN", "hf_s3cret\nx"), ("HF_HOME", "/h")], None).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn an_endpoint_is_a_plain_url() {
        assert_eq!(endpoint("https://hub.example/hf/").unwrap(), "https://hub.example/hf");
        assert_eq!(endpoint("http://127.0.0.1:80").unwrap(), "http://127.0.0.1:80");
        for text in ["", "huggingface.co", "ftp://h", "https://u:s3cret@h", "https://h/?t=s3cret", "https://h#x"] {
            let error = endpoint(text).unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
