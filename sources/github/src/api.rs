//! What GitHub is asked.

use std::fmt;

use llm_local_core::{Error, Request, Result};
use llm_local_source_common::{
    access::Token,
    network::{Failure, Network, Response, next_page, retrying},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    answers::{Answer, Answers},
    reference::Which,
    refusal::{Asked, Listed},
    settings::Settings,
};

/// Releases that are asked for at a time: the most that GitHub gives.
const PER_PAGE: &str = "100";
/// Pages of releases that are read: GitHub's own limit is 10,000 releases.
const MOST_PAGES: usize = 100;
/// Bytes that an answer may have. A release of 1,000 assets has about 2 MB.
const LARGEST_ANSWER: usize = 32 << 20;
/// Bytes that a list of digests may have.
const LARGEST_SUMS: usize = 1 << 20;
/// The version of the API.
const VERSION: (&str, &str) = ("X-GitHub-Api-Version", "2022-11-28");
const JSON: &str = "application/vnd.github+json";
const BYTES: &str = "application/octet-stream";

/// The state of an asset that is whole.
pub(crate) const UPLOADED: &str = "uploaded";

/// A release, as far as it is read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Release {
    pub(crate) id: u64,
    /// Where the API has it: below the repository by the name that it has now.
    #[serde(default)]
    pub(crate) url: String,
    pub(crate) tag_name: String,
    #[serde(default)]
    pub(crate) draft: bool,
    #[serde(default)]
    pub(crate) assets: Vec<Asset>,
}

/// An asset of a release.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Asset {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) size: u64,
    /// `uploaded`, or what it is before.
    pub(crate) state: String,
    /// `sha256:` and 64 hex digits, for assets since June 2025.
    pub(crate) digest: Option<String>,
    pub(crate) browser_download_url: String,
}

impl Release {
    /// The `owner/repo` that it is of, where GitHub tells: another one than was asked for if that was renamed or
    /// transferred.
    pub(crate) fn repository(&self) -> Option<&str> {
        let (_, path) = self.url.split_once("/repos/")?;
        path.rsplit_once("/releases/").map(|(repository, _)| repository)
    }
}

impl Asset {
    /// # Errors
    /// [`Error::DownloadFailed`] for `reference`, which may be tried again, if it is still being uploaded.
    pub(crate) fn check_uploaded(&self, reference: &dyn fmt::Display) -> Result<()> {
        if self.state == UPLOADED {
            return Ok(());
        }
        let reason = format!("its asset `{}` is still being uploaded ({}); try again later", self.name, self.state);
        Err(Error::DownloadFailed { what: reference.to_string(), reason, retryable: true, source: None })
    }
}

/// A repository, as far as it is read.
#[derive(Debug, Deserialize)]
struct Repository {
    license: Option<License>,
}

#[derive(Debug, Deserialize)]
struct License {
    spdx_id: Option<String>,
}

/// What GitHub says of a licence that it does not know.
const NO_LICENSE: &str = "NOASSERTION";

/// The API, and what it answered before.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) settings: Settings,
    pub(crate) network: Network,
    pub(crate) answers: Answers,
}

impl Api {
    /// The release that is asked for.
    ///
    /// # Errors
    /// [`Error::NotFound`] and the other refusals, as [`Asked`] says them.
    pub(crate) async fn release(&self, asked: &Asked) -> Result<Release> {
        let id;
        let path = match &asked.at.which {
            Which::Tag(tag) => vec!["releases", "tags", tag],
            Which::Latest => vec!["releases", "latest"],
            Which::Pinned(pinned) => {
                id = pinned.release.to_string();
                vec!["releases", &id]
            }
        };
        match self.get(asked, self.url(asked, &path)).await? {
            Some(answer) => {
                let release: Release = read(asked, &answer.body)?;
                asked.warn_if_moved(release.repository());
                Ok(release)
            }
            None => Err(self.missing(asked).await),
        }
    }

    /// The SPDX id of the licence that GitHub has found in the repository, if it knows it.
    ///
    /// # Errors
    /// As [`Api::release`].
    pub(crate) async fn license(&self, asked: &Asked) -> Result<Option<String>> {
        let Some(answer) = self.get(asked, self.url(asked, &[])).await? else { return Err(asked.no_repository()) };
        let license = read::<Repository>(asked, &answer.body)?.license.and_then(|license| license.spdx_id);
        Ok(license.filter(|id| id != NO_LICENSE))
    }

    /// All releases, newest first.
    ///
    /// # Errors
    /// As [`Api::release`].
    pub(crate) async fn releases(&self, asked: &Asked) -> Result<Vec<Release>> {
        let mut releases: Vec<Release> = Vec::new();
        let first = self.releases_url(asked);
        let mut next = Some(first.clone());
        for _ in 0..MOST_PAGES {
            let Some(url) = next.take() else { break };
            let Some(answer) = self.get(asked, url).await? else { return Err(asked.no_repository()) };
            releases.extend(read::<Vec<Release>>(asked, &answer.body)?);
            next = match answer.link.as_deref().map(|link| next_page(link, &first)) {
                Some(next) => next.map_err(|failure| failure.about(&asked.reference).error)?,
                None => None,
            };
        }
        Ok(releases)
    }

    /// The text of the asset `asset`, which holds digests.
    ///
    /// # Errors
    /// As [`Api::release`]; [`Error::DownloadFailed`] if it is too long for that, no text, or a web page.
    pub(crate) async fn sums(&self, asked: &Asked, asset: &Asset) -> Result<String> {
        // By its id, and not by its tag: if that moved meanwhile, another list would tell digests of other assets.
        let request = self.asset(asked, asset.id, None);
        let what = format!("`{}` of {}", asset.name, asked.reference);
        let bytes = retrying(&self.network, &what, || async {
            let mut response = self.network.get(&request, &[]).await?;
            let kind = response.header("content-type").unwrap_or_default().trim_start().to_ascii_lowercase();
            match response.status() {
                200 if kind.starts_with("text/html") => {
                    let reason =
                        format!("{} answered with a web page; is there a login or a proxy?", response.address());
                    Err(Failure::permanent(&what, reason))
                }
                200 => response.bytes(LARGEST_SUMS).await.map_err(|failure| failure.about(&what)),
                _ => Err(refused(asked, &response, &what)),
            }
        })
        .await?;
        String::from_utf8(bytes).map_err(|_| {
            let reason = "it should list the digests of the other assets, but is no text in UTF-8";
            Failure::permanent(&what, reason).error
        })
    }

    /// The request for the bytes of an asset. With a token it goes to the API, which knows private repositories; else to
    /// where browsers get it, if that is given, which counts against no limit. That has the tag in it, and gives the asset
    /// that is there now: it is for those whose digest is told, and for large ones, which take more requests than the limit has.
    pub(crate) fn asset(&self, asked: &Asked, id: u64, browser: Option<&str>) -> Request {
        match (browser, &self.settings.token) {
            (Some(url), None) => Request::new(url),
            (_, token) => {
                let url = self.url(asked, &["releases", "assets", &id.to_string()]);
                with_token(Request::new(url).with_header("Accept", BYTES), token.as_ref())
            }
        }
    }

    /// The error where the release that is asked for is not there: it says which are, as far as one page of them tells.
    async fn missing(&self, asked: &Asked) -> Error {
        let url = self.releases_url(asked);
        // That it is not there is known. What goes wrong with the list takes nothing from that, and is not waited for.
        let listed = match self.ask(asked, &url).await {
            Ok(Some(Answer { body, link, .. })) => {
                let more = link.is_some_and(|link| !matches!(next_page(&link, &url), Ok(None)));
                read(asked, &body).map(|releases| Listed { releases, more })
            }
            Ok(None) => return asked.no_repository(),
            Err(failure) => Err(failure.error),
        };
        asked.no_release(listed)
    }

    /// What GitHub answers to `url`; `None` for 404. Tried again where that may help.
    async fn get(&self, asked: &Asked, url: String) -> Result<Option<Answer>> {
        retrying(&self.network, &asked.reference, || self.ask(asked, &url)).await
    }

    /// As [`Api::get`], tried once. An answer that was kept and is still true costs a request, but nothing of the limit.
    async fn ask(&self, asked: &Asked, url: &str) -> Result<Option<Answer>, Failure> {
        let known = self.answers.get(url).filter(Answer::leads_nowhere_else);
        let mut extra = vec![("Accept", JSON), VERSION];
        if let Some(known) = &known {
            extra.push(("If-None-Match", &known.etag));
        }
        let request = with_token(Request::new(url), self.settings.token.as_ref());
        let mut response =
            self.network.get(&request, &extra).await.map_err(|failure| failure.about(&asked.reference))?;
        match (response.status(), known) {
            (304, Some(known)) => {
                if let Err(error) = self.answers.touch(url, self.network.timer().wall()) {
                    tracing::debug!(%error, "that an answer of GitHub's was used is not noted; it may be cleaned away");
                }
                Ok(Some(known))
            }
            (304, None) => Err(asked.unreadable("it says that nothing changed, but nothing was known").into()),
            (200, _) => {
                let bytes = response.bytes(LARGEST_ANSWER).await.map_err(|failure| failure.about(&asked.reference))?;
                let body = String::from_utf8(bytes).map_err(|_| asked.unreadable("its answer is no text"))?;
                let header = |name| response.header(name).map(str::to_owned);
                let (etag, link) = (header("etag").unwrap_or_default(), header("link"));
                let answer = Answer { url: url.to_owned(), etag, link, body };
                // One that is refused is asked for anew: who answered so may be right next time.
                if !answer.etag.is_empty()
                    && answer.leads_nowhere_else()
                    && let Err(error) = self.answers.put(&answer)
                {
                    tracing::warn!(%error, "an answer of GitHub's could not be kept; asking again counts against the limit");
                }
                Ok(Some(answer))
            }
            (404, _) => Ok(None),
            _ => Err(refused(asked, &response, &asked.reference)),
        }
    }

    fn releases_url(&self, asked: &Asked) -> String {
        self.url(asked, &["releases"]) + "?per_page=" + PER_PAGE
    }

    fn url(&self, asked: &Asked, path: &[&str]) -> String {
        let mut url = format!("{}/repos/{}/{}", self.settings.api, asked.at.owner, asked.at.repo);
        for part in path {
            url.push('/');
            url += &encoded(part);
        }
        url
    }
}

fn with_token(request: Request, token: Option<&Token>) -> Request {
    match token {
        Some(token) => request.with_header("Authorization", token.header()),
        None => request,
    }
}

/// `part` of a path, percent-encoded but for what RFC 3986 leaves unreserved: a tag may hold `/` and `+`.
fn encoded(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// The failure for an answer that refuses: in GitHub's words if it is the one that was asked.
fn refused(asked: &Asked, response: &Response, what: &str) -> Failure {
    let mut failure = response.failure(what);
    match &mut failure.error {
        _ if !response.from_named_host() => failure,
        Error::RateLimited { what, .. } => {
            *what = asked.limited(&response.as_refusal());
            failure
        }
        _ => match asked.explain(&response.as_refusal()) {
            Some(error) => error.into(),
            None => failure,
        },
    }
}

fn read<T: DeserializeOwned>(asked: &Asked, body: &str) -> Result<T> {
    serde_json::from_str(body).map_err(|e| asked.unreadable(&format!("its answer is not what was expected: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_one_part_of_a_path() {
        assert_eq!(encoded("v1.0-rc_1~x"), "v1.0-rc_1~x");
        assert_eq!(encoded("a/b+c d%é"), "a%2Fb%2Bc%20d%25%C3%A9");
    }
}
