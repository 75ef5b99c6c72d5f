//! What the source is set to: the token and the API, from the environment as GitHub's own tools read it.

use std::ffi::OsString;

use llm_local_core::Result;
use llm_local_source_common::{
    access::{self, Token},
    network::{is_same_origin, shown},
};

/// The API that is asked unless another one is named.
const API: &str = "https://api.github.com";
/// Whose token it is, for messages.
const GITHUB: &str = "GitHub";

/// Variables that hold a token. As in GitHub's `gh`, the first goes before the second.
const TOKENS: [&str; 2] = ["GH_TOKEN", "GITHUB_TOKEN"];

/// What the source is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The token that is sent to the API, and to no other host.
    pub(crate) token: Option<Token>,
    /// The API's URL without a slash at its end.
    pub(crate) api: String,
    /// The API that the environment's token is for, if there is one and it was not taken: it is for another host.
    pub(crate) withheld: Option<String>,
}

impl Settings {
    /// The settings that an application gives as `token`, where an empty one stands for none, and `api`; what it does not
    /// give is the environment's, in which `variable` looks one up. `GITHUB_API_URL` is what GitHub Actions sets, on GitHub
    /// Enterprise Server too. The environment's token is for its API: one at another host never gets it.
    ///
    /// # Errors
    /// [`llm_local_core::Error::InvalidSpec`] for a URL or token that is used and cannot be one.
    pub(crate) fn new(
        token: Option<&str>,
        api: Option<&str>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let text = |name: &str| variable(name).map(|v| v.to_string_lossy().into_owned());
        let of_environment =
            || text("GITHUB_API_URL").filter(|url| !url.trim().is_empty()).unwrap_or_else(|| API.into());
        let mut settings = Self { token: None, api: String::new(), withheld: None };
        settings.api = api.map_or_else(|| endpoint(&of_environment()), endpoint)?;
        if let Some(token) = token {
            settings.token = Token::new(token, GITHUB, "the token given to the source")?;
            return Ok(settings);
        }
        if api.is_some() && !endpoint(&of_environment()).is_ok_and(|url| is_same_origin(&url, &settings.api)) {
            let has_token = TOKENS.iter().any(|name| text(name).is_some_and(|token| !token.trim().is_empty()));
            settings.withheld = has_token.then(|| shown(&of_environment()));
            return Ok(settings);
        }
        for name in TOKENS {
            if settings.token.is_none()
                && let Some(text) = text(name)
            {
                settings.token = Token::new(&text, GITHUB, &format!("the environment variable {name}"))?;
            }
        }
        Ok(settings)
    }
}

/// Checks the URL of an API.
fn endpoint(text: &str) -> Result<String> {
    access::endpoint(text, "GitHub API (GITHUB_API_URL)", "https://github.example.com/api/v3")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        given(None, None, variables)
    }

    fn given(token: Option<&str>, api: Option<&str>, variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::new(token, api, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
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

    #[test]
    fn the_environments_token_goes_to_the_environments_api_alone() {
        let token = ("GH_TOKEN", "s3cret");
        let taken = |api: &str, variables: &[(&str, &str)]| {
            let settings = given(None, Some(api), variables).unwrap();
            assert!(settings.token.is_none() || settings.withheld.is_none());
            (settings.token.map(|token| token.secret().to_owned()), settings.withheld)
        };
        let (some, at) = (Some("s3cret".to_owned()), ("GITHUB_API_URL", "https://ghe.corp/api/v3"));
        assert_eq!(taken("https://API.github.com/", &[token]), (some.clone(), None));
        assert_eq!(taken("https://ghe.corp/other/", &[token, at]), (some.clone(), None));
        let withheld = |from: &str| (None, Some(from.to_owned()));
        assert_eq!(taken("https://ghe.corp/api/v3", &[token]), withheld("api.github.com/"));
        assert_eq!(
            taken("https://api.github.com.evil.test", &[("GITHUB_TOKEN", "s3cret")]),
            withheld("api.github.com/")
        );
        for api in ["https://api.github.com", "http://ghe.corp/api/v3", "https://ghe.corp:444/api/v3"] {
            assert_eq!(taken(api, &[token, at]), withheld("ghe.corp/api/v3"), "{api}");
        }
        // What is not used may be wrong.
        let broken = [("GH_TOKEN", "s3cret x"), ("GITHUB_API_URL", "ghe.corp")];
        assert_eq!(taken("https://ghe.corp", &broken).0, None);
        assert_eq!(taken("https://ghe.corp", &[("GH_TOKEN", " ")]), (None, None));
        // One that is given goes where it is told to, and an empty one is none.
        let own = given(Some("own"), Some("https://ghe.corp"), &[token]).unwrap();
        assert_eq!((own.token.unwrap().secret(), own.withheld), ("own", None));
        assert_eq!(given(Some(""), None, &[token]).unwrap().token, None);
    }
}
