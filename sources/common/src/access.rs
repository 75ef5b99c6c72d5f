//! What a source is told of its host: the URL, and the token for it.

use std::fmt;

use llm_local_core::{Error, Result};
use reqwest::Url;

/// An access token. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Checks that `text` can be a token; space around it is dropped. `None` if nothing else is there.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says `whose` token it is and where it is `from`, and shows none of it.
    pub fn new(text: &str, whose: &str, from: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Error::invalid_spec(
                format!("{whose} token"),
                format!("{from} holds spaces or characters that no token has; expected one line of letters and digits"),
            ));
        }
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }

    /// The value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The token itself.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Checks that `text` is the URL of a server, and takes the slashes from its end. `what` it is, and one `such_as` it, are
/// for messages.
///
/// # Errors
/// [`Error::InvalidSpec`]. What may be a secret in it is not shown.
pub fn endpoint(text: &str, what: &str, such_as: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let plain = Url::parse(text).is_ok_and(|url| {
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
        what,
        format!("expected the URL of a server without user, query or fragment, such as `{such_as}`"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_and_is_shown_nowhere() {
        let token = Token::new(" t0ken\n", "Hub", "the test").unwrap().unwrap();
        assert_eq!((token.header().as_str(), token.secret()), ("Bearer t0ken", "t0ken"));
        assert!(!format!("{token:?}").contains("t0ken"));
        assert_eq!(Token::new(" \n", "Hub", "the test").unwrap(), None);
        let error = Token::new("t0ken\nx", "Hub", "the file f").unwrap_err().to_string();
        assert!(error.contains("Hub token") && error.contains("the file f") && !error.contains("t0ken"), "{error}");
    }

    #[test]
    fn an_endpoint_is_a_plain_url() {
        let endpoint = |text| endpoint(text, "endpoint (VARIABLE)", "https://hub.example");
        assert_eq!(endpoint("https://hub.example/hf/").unwrap(), "https://hub.example/hf");
        assert_eq!(endpoint("http://127.0.0.1:80").unwrap(), "http://127.0.0.1:80");
        for text in ["", "hub.example", "ftp://h", "https://u:s3cret@h", "https://h/?t=s3cret", "https://h#x"] {
            let error = endpoint(text).unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            assert!(!error.to_string().contains("s3cret") && error.to_string().contains("VARIABLE"), "{error}");
        }
    }
}
