//! What the Hub means by an answer that refuses, in words that say what to do.

use llm_local_core::{Error, Refusal};

use crate::settings::Settings;

/// The header that says which of the Hub's own errors it is.
const CODE: &str = "x-error-code";
/// The header that says it in words.
const MESSAGE: &str = "x-error-message";
/// How a token is given.
const GIVE_TOKEN: &str = "give one by the environment variable HF_TOKEN, or log in with `hf auth login`";

/// What was asked of the Hub.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The ref, as text.
    pub(crate) reference: String,
    /// The repository.
    pub(crate) repo: String,
    /// The branch, tag or commit.
    pub(crate) revision: String,
    /// The Hub's URL.
    endpoint: String,
    /// Whether a token went with it.
    with_token: bool,
}

impl Asked {
    /// What the ref `reference` asks of `repo` at `revision`.
    pub(crate) fn new(reference: impl ToString, repo: &str, revision: &str, settings: &Settings) -> Self {
        Self {
            reference: reference.to_string(),
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            endpoint: settings.endpoint.clone(),
            with_token: settings.token.is_some(),
        }
    }

    /// The error for an answer that refuses to give `file`, or a listing if there is none; `None` where it is not about
    /// the repository, so that it is not for this source to say: a server in trouble, too many requests.
    pub(crate) fn explain(&self, refusal: &Refusal, file: Option<&str>) -> Option<Error> {
        let message = refusal.header(MESSAGE).unwrap_or_default();
        let what = &self.reference;
        Some(match (refusal.header(CODE).unwrap_or_default(), refusal.status) {
            ("GatedRepo", _) => self.unauthorized(self.gated()),
            ("RepoNotFound", _) => Error::not_found(what, self.missing()),
            ("RevisionNotFound", _) => Error::not_found(what, self.no_revision(&[])),
            ("EntryNotFound", _) => Error::not_found(what, self.no_entry(file)),
            (_, 401 | 403) if message.contains("is disabled") => {
                self.unauthorized(format!("the Hub has closed {}, and gives it to nobody", self.page()))
            }
            (_, 401) if self.with_token && message.to_ascii_lowercase().contains("invalid") => self.unauthorized(
                "the Hub does not know the token that was sent; it may have been revoked or have expired: make another \
                 one at https://huggingface.co/settings/tokens"
                    .to_owned(),
            ),
            (_, 401) => self.unauthorized(match self.with_token {
                true => "the token that was sent may not read it".into(),
                false => format!("no token was sent; {GIVE_TOKEN}"),
            }),
            (_, 403) => self.unauthorized(format!(
                "the Hub forbids it{}; {}",
                said(message),
                match self.with_token {
                    true => "the token that was sent lacks the permission to read it".into(),
                    false => format!("no token was sent; {GIVE_TOKEN}"),
                }
            )),
            (_, 404 | 410) => match file {
                Some(_) => Error::not_found(what, self.no_entry(file)),
                None => Error::not_found(what, self.missing()),
            },
            _ => return None,
        })
    }

    /// The error for a revision that is not there, where those in `have` are.
    pub(crate) fn revision_not_found(&self, have: &[String]) -> Error {
        Error::not_found(&self.reference, self.no_revision(have))
    }

    /// Whether `refusal` says that the revision is not there.
    pub(crate) fn is_about_revision(refusal: &Refusal) -> bool {
        refusal.header(CODE) == Some("RevisionNotFound")
    }

    fn unauthorized(&self, reason: String) -> Error {
        Error::Unauthorized { what: self.reference.clone(), reason }
    }

    /// The repository's page.
    fn page(&self) -> String {
        format!("{}/{}", self.endpoint, self.repo)
    }

    fn gated(&self) -> String {
        let page = self.page();
        match self.with_token {
            true => format!(
                "its owner grants access to those who ask: accept the conditions at {page} with the account of the token, \
                 and wait until access is granted if the owner grants it by hand (a token was sent; its account has no \
                 access, or it may not read gated repositories)"
            ),
            false => format!(
                "its owner grants access to those who ask: accept the conditions at {page}, then send the token of that \
                 account (no token was sent; {GIVE_TOKEN})"
            ),
        }
    }

    fn missing(&self) -> String {
        let token = match self.with_token {
            true => "the token that was sent may not read it".to_owned(),
            false => format!("no token was sent; {GIVE_TOKEN}"),
        };
        format!("there is no {}, or it is private ({token}); look at the name", self.page())
    }

    fn no_revision(&self, have: &[String]) -> String {
        let have = match have {
            [] => String::new(),
            have => format!("; it has {}", have.join(", ")),
        };
        format!("{} has no branch, tag or commit `{}`{have}", self.page(), self.revision)
    }

    fn no_entry(&self, file: Option<&str>) -> String {
        let file = file.map_or_else(|| "such file".to_owned(), |file| format!("file `{file}`"));
        format!("{} has no {file} at `{}`", self.page(), self.revision)
    }
}

/// The Hub's own words, as far as a message takes them.
fn said(message: &str) -> String {
    let message: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if message.is_empty() { message } else { format!(" (\"{message}\")") }
}
