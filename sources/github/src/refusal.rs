//! What GitHub means by an answer that refuses, in words that say what to do.

use llm_local_core::{ArtifactRef, Error, Refusal, Result};

use crate::{
    api::Release,
    reference::{ReleaseRef, Which},
    settings::Settings,
};

/// How many tags a message lists.
const LISTED: usize = 20;

/// Releases of a repository, the newest first.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) releases: Vec<Release>,
    /// Whether there are more.
    pub(crate) more: bool,
}

/// What was asked of GitHub.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The ref, as text.
    pub(crate) reference: String,
    pub(crate) at: ReleaseRef,
    /// The API's host.
    host: String,
    /// Whether a token went with it.
    with_token: bool,
    /// As [`Settings::withheld`].
    withheld: Option<String>,
}

impl Asked {
    pub(crate) fn new(reference: &ArtifactRef, at: &ReleaseRef, settings: &Settings) -> Self {
        let url = settings.api.split_once("://").map_or(settings.api.as_str(), |(_, rest)| rest);
        Self {
            reference: reference.to_string(),
            at: at.clone(),
            host: url.split('/').next().unwrap_or(url).to_owned(),
            with_token: settings.token.is_some(),
            withheld: settings.withheld.clone(),
        }
    }

    /// The error for an answer that refuses; `None` where it is not about the repository: a server in trouble, too many
    /// requests.
    pub(crate) fn explain(&self, refusal: &Refusal) -> Option<Error> {
        match refusal.status {
            401 => Some(self.unauthorized("GitHub does not know the token that was sent; it may have expired or been revoked")),
            403 | 451 if refusal.header("x-ratelimit-remaining") != Some("0") && refusal.header("retry-after").is_none() => {
                Some(self.unauthorized(match self.with_token {
                    true => "GitHub forbids it to the token that was sent; it may lack the permission to read contents, or the organisation's approval",
                    false => "GitHub forbids it, and no token was sent",
                }))
            }
            404 | 410 => Some(Error::not_found(&self.reference, format!("the asset is gone; {}", self.perhaps_private()))),
            _ => None,
        }
    }

    /// What is rate limited, and how to be less so.
    pub(crate) fn limited(&self, refusal: &Refusal) -> String {
        let is_hourly = refusal.header("x-ratelimit-remaining") == Some("0");
        let hint = match (is_hourly, self.with_token) {
            (true, true) => String::new(),
            (true, false) => {
                format!(" (60 requests an hour without a token, 5,000 with one: give it {})", self.how_to_give_one())
            }
            (false, _) => " (too many requests in a short time)".into(),
        };
        format!("{} for {}{hint}", self.host, self.reference)
    }

    /// The error where there is no such repository, or none that may be seen.
    pub(crate) fn no_repository(&self) -> Error {
        let ReleaseRef { owner, repo, .. } = &self.at;
        Error::not_found(
            &self.reference,
            format!("GitHub shows no repository {owner}/{repo}; look at the name: {}", self.perhaps_private()),
        )
    }

    /// Warns if the answer is of another repository, `now`: GitHub leads from the former name of one that was renamed or
    /// transferred to where it is, which may belong to somebody else.
    pub(crate) fn warn_if_moved(&self, now: Option<&str>) {
        let asked = format!("{}/{}", self.at.owner, self.at.repo);
        if let Some(now) = now.filter(|now| !now.eq_ignore_ascii_case(&asked)) {
            tracing::warn!(
                reference = self.reference,
                now,
                "the repository was renamed or transferred, and GitHub answers with the one of another name; if that is who \
                 you mean, change the ref"
            );
        }
    }

    /// The error where the release `tag` is a draft.
    pub(crate) fn draft(&self, tag: &str) -> Error {
        let reason = format!("the release `{}` is a draft; it can be had once it is published", tag.escape_debug());
        Error::not_found(&self.reference, reason)
    }

    /// The error where the release that is asked for is not there, but those `listed`, if they could be asked for.
    pub(crate) fn no_release(&self, listed: Result<Listed>) -> Error {
        let there = match &listed {
            Ok(listed) => self.tags(listed),
            Err(error) => format!("which it has could not be found out: {error}"),
        };
        let shown = |tag: &str| tag.escape_debug().to_string();
        let lacks = match &self.at.which {
            Which::Latest => "no release that is neither a draft nor a prerelease".to_owned(),
            Which::Tag(tag) => {
                if listed.is_ok_and(|listed| listed.releases.iter().any(|r| r.draft && r.tag_name == *tag)) {
                    return self.draft(tag);
                }
                // GitHub shows drafts to those alone who may change them.
                format!("no release `{}`, or it was deleted or is a draft", shown(tag))
            }
            Which::Pinned(pinned) => {
                format!("no release with the id {} of this revision, or it was deleted or is a draft", pinned.release)
            }
        };
        Error::not_found(&self.reference, format!("the repository has {lacks}; {there}"))
    }

    /// The error for an answer that cannot be read.
    pub(crate) fn unreadable(&self, reason: &str) -> Error {
        let reason = format!("{}: {reason}; is GITHUB_API_URL the URL of a GitHub API?", self.host);
        Error::DownloadFailed { what: self.reference.clone(), reason, retryable: false, source: None }
    }

    fn tags(&self, listed: &Listed) -> String {
        let mut tags: Vec<_> =
            listed.releases.iter().filter(|r| !r.draft).map(|r| self.at.with_tag(&r.tag_name)).collect();
        let more = tags.len().saturating_sub(LISTED);
        tags.truncate(LISTED);
        match (tags.is_empty(), more, listed.more) {
            (true, _, false) => "it has no published release".into(),
            (true, _, true) => "the newest that it has are drafts".into(),
            (_, _, true) => format!("it has {} and more", tags.join(", ")),
            (_, 0, _) => format!("it has {}", tags.join(", ")),
            (_, more, _) => format!("it has {} and {more} more", tags.join(", ")),
        }
    }

    fn perhaps_private(&self) -> String {
        match self.with_token {
            true => "if it is private, the token that was sent may not read it".into(),
            false => format!("if it is private, give a token {}", self.how_to_give_one()),
        }
    }

    fn unauthorized(&self, reason: &str) -> Error {
        let reason = format!("{reason}; give a token that may read it {}", self.how_to_give_one());
        Error::Unauthorized { what: self.reference.clone(), reason }
    }

    fn how_to_give_one(&self) -> String {
        match &self.withheld {
            None => "by the environment variable GH_TOKEN, or by GITHUB_TOKEN where that is not set".into(),
            Some(other) => {
                format!(
                    "by GitHubBuilder::token: that of the environment is for {other} and was not sent to {}",
                    self.host
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_to_give_a_token_is_said_as_it_can_be_given() {
        let reference: ArtifactRef = "github:o/r".parse().unwrap();
        let hints = |withheld: Option<&str>| {
            let api = "https://ghe.corp/api/v3".to_owned();
            let settings = Settings { token: None, api, withheld: withheld.map(str::to_owned) };
            let asked = Asked::new(&reference, &ReleaseRef::parse(&reference).unwrap(), &settings);
            let forbidden = asked.explain(&Refusal::new(403, Vec::new())).unwrap().to_string();
            let used_up = Refusal::new(403, vec![("x-ratelimit-remaining".into(), "0".into())]);
            [forbidden, asked.no_repository().to_string(), asked.limited(&used_up)]
        };
        assert!(hints(None).iter().all(|hint| hint.contains("GITHUB_TOKEN") && !hint.contains("was not sent")));
        for hint in hints(Some("api.github.com/")) {
            assert!(hint.contains("GitHubBuilder::token") && !hint.contains("GITHUB_TOKEN"), "{hint}");
            assert!(hint.contains("is for api.github.com/ and was not sent to ghe.corp"), "{hint}");
        }
    }
}
