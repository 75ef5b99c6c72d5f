//! What the source is set to: the token and the API, from the environment as GitHub's own tools read it.

use std::ffi::OsString;

use llm_local_core::Result;
use llm_local_source_common::access::{self, Token};

/// The API that is asked unless another one is named.
const API: &str = "https://api.github.com";
/// Whose token it is, for messages.
const GITHUB: &str = "GitHub";

/// What the source is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The token that is sent to the API, and to no other host.
    pub(crate) token: Option<Token>,
    /// The API's URL without a slash at its end.
    pub(crate) api: String,
}

impl Settings {
    /// The settings that the environment gives; `variable` looks one up. As in GitHub's `gh`, `GH_TOKEN` comes before
    /// `GITHUB_TOKEN`; `GITHUB_API_URL` is what GitHub Actions sets, on GitHub Enterprise Server too.
    ///
    /// # Errors
    /// [`llm_local_core::Error::InvalidSpec`] for a URL or token that cannot be one.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| variable(name).map(|v| v.to_string_lossy().into_owned());
        let mut token = None;
        for name in ["GH_TOKEN", "GITHUB_TOKEN"] {
            if token.is_none()
                && let Some(text) = text(name)
            {
                token = Token::new(&text, GITHUB, &format!("the environment variable {name}"))?;
            }
        }
        let api = text("GITHUB_API_URL").filter(|url| !url.trim().is_empty());
        Ok(Self { token, api: endpoint(api.as_deref().unwrap_or(API))? })
    }
}

/// The token that the application gave; none if it is empty.
pub(crate) fn given_token(text: &str) -> Result<Option<Token>> {
    Token::new(text, GITHUB, "the token given to the source")
}

/// Checks the URL of an API.
pub(crate) fn endpoint(text: &str) -> Result<String> {
    access::endpoint(text, "GitHub API (GITHUB_API_URL)", "https://github.example.com/api/v3")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_environment(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn token_and_api_are_those_of_githubs_own_tools() {
        let token = |variables: &[(&str, &str)]| read(variables).unwrap().token.map(|t| t.secret().to_owned());
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("GITHUB_TOKEN", "a")]).as_deref(), Some("a"));
        assert_eq!(token(&[("GITHUB_TOKEN", "a"), ("GH_TOKEN", " b\n")]).as_deref(), Some("b"));
        assert_eq!(token(&[("GITHUB_TOKEN", "a"), ("GH_TOKEN", " ")]).as_deref(), Some("a"));
        assert_eq!(read(&[]).unwrap().api, "https://api.github.com");
        assert_eq!(read(&[("GITHUB_API_URL", "")]).unwrap().api, "https://api.github.com");
        assert_eq!(read(&[("GITHUB_API_URL", "https://g.example/api/v3/")]).unwrap().api, "https://g.example/api/v3");
        let error = read(&[("GITHUB_TOKEN", "s3cret x")]).unwrap_err().to_string();
        assert!(error.contains("GITHUB_TOKEN") && !error.contains("s3cret"), "{error}");
        assert_eq!(read(&[("GITHUB_API_URL", "github.com")]).unwrap_err().code(), "invalid_spec");
    }
}
