//! What is asked of the Hub's API: a revision's commit, the list of its files, branches and tags.
//!
//! The first and the last by hf-hub. The list is read here: hf-hub 1.0.0 drops the SHA-256 of its entries (it expects the
//! name `sha256` where the API says `oid`), and would send the token to whatever host `Link` names for the next page.

mod client;

use std::sync::OnceLock;

use hf_hub::{
    HFClient,
    repository::{GitRefInfo, GitRefs, ModelInfo},
};
use llm_local_core::{Error, Request, Result, Revision};
use llm_local_source_common::network::{Failure, Network, Response, Retry, next_page, retrying};
use reqwest::Url;
use serde::de::DeserializeOwned;

use crate::{
    cache::is_commit,
    refusal::Asked,
    settings::Settings,
    tree::{ApiEntry, Tree},
};

/// Bytes that one answer of the API may have. A page of a tree has 1000 entries.
const ANSWER_LIMIT: usize = 64 << 20;
/// Pages that a listing may have.
const PAGE_LIMIT: usize = 1000;
/// What is asked about a model, so that nothing else of it is sent.
const PROPERTIES: [&str; 3] = ["sha", "gated", "cardData"];

/// A revision as the Hub knows it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Info {
    /// The repository's name, which can be another one than was asked for: it was renamed since.
    pub(crate) repo: String,
    /// The commit that the revision stands for.
    pub(crate) commit: String,
    /// The licence that the model's card names.
    pub(crate) license: Option<String>,
    /// Whether its owner grants access to those who ask.
    pub(crate) gated: Option<bool>,
}

/// Asks the Hub. Everything async in it runs on the threads of its network.
pub(crate) struct Api {
    settings: Settings,
    network: Network,
    client: OnceLock<Result<HFClient>>,
}

impl Api {
    pub(crate) fn new(settings: Settings, network: Network) -> Self {
        Self { settings, network, client: OnceLock::new() }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The commit, licence and gating of what was asked for. Where `impatient`, a host that cannot be reached is not
    /// tried again.
    pub(crate) async fn info(&self, asked: &Asked, impatient: bool) -> Result<Info> {
        let repository = self.repository(&asked.repo)?;
        let mut url = self.url(&["api", "models"], &asked.repo, &["revision", &asked.revision])?;
        url.query_pairs_mut().extend_pairs(PROPERTIES.map(|p| ("expand", p)));
        let info: ModelInfo = retrying(&self.network, &asked.reference, || async {
            let properties = PROPERTIES.map(str::to_owned).to_vec();
            let sending = repository.info().revision(&asked.revision).expand(properties).send();
            self.answered(sending, &url, asked).await.map_err(|mut failure| {
                if impatient && is_unreachable(&failure.error) {
                    failure.retry = Retry::Never;
                }
                failure
            })
        })
        .await?;
        let commit = info.sha.filter(|commit| is_commit(commit)).ok_or_else(|| {
            malformed(&asked.reference, format!("the Hub names no commit for the revision `{}`", asked.revision))
        })?;
        let license = info.card_data.as_ref().and_then(|card| license(card.get("license")?));
        let gated = info.gated.as_ref().map(|gated| gated.as_bool().unwrap_or(true));
        Ok(Info { repo: info.id, commit, license, gated })
    }

    /// The list of all files of `repo` at `commit`.
    pub(crate) async fn tree(&self, asked: &Asked, repo: &str, commit: &str) -> Result<Tree> {
        let mut entries: Vec<ApiEntry> = Vec::new();
        let mut url = self.url(&["api", "models"], repo, &["tree", commit])?;
        url.query_pairs_mut().append_pair("recursive", "true");
        for _ in 0..PAGE_LIMIT {
            let (page, next) =
                retrying(&self.network, &asked.reference, || self.get_json::<Vec<ApiEntry>>(&url, asked)).await?;
            entries.extend(page);
            match next {
                Some(next) => url = next,
                None => return Tree::from_api(entries).map_err(|reason| malformed(&asked.reference, reason)),
            }
        }
        Err(malformed(&asked.reference, format!("the list of its files has more than {PAGE_LIMIT} pages")))
    }

    /// Branches, then tags, in the Hub's order.
    pub(crate) async fn revisions(&self, asked: &Asked) -> Result<Vec<Revision>> {
        let repository = self.repository(&asked.repo)?;
        let url = self.url(&["api", "models"], &asked.repo, &["refs"])?;
        let refs: GitRefs = retrying(&self.network, &asked.reference, || async {
            self.answered(repository.list_refs().send(), &url, asked).await
        })
        .await?;
        let revision = |r: GitRefInfo| match is_commit(&r.target_commit) {
            true => Ok(Revision::new(r.name, r.target_commit)),
            false => {
                Err(malformed(&asked.reference, format!("the Hub names no commit for `{}`", r.name.escape_debug())))
            }
        };
        refs.branches.into_iter().chain(refs.tags).map(revision).collect()
    }

    /// One answer as JSON, and the URL of the page after it.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        url: &Url,
        asked: &Asked,
    ) -> Result<(T, Option<Url>), Failure> {
        let mut response = self.get(url, asked, None).await?;
        let about = |failure: Failure| failure.about(&asked.reference);
        let next = match response.header("link") {
            Some(link) => next_page(link, url.as_str()).map_err(about)?,
            None => None,
        };
        let next = next.map(|next| Url::parse(&next)).transpose();
        let next = next.map_err(|e| malformed(&asked.reference, format!("the next page has no URL: {e}")))?;
        let json = serde_json::from_slice(&response.bytes(ANSWER_LIMIT).await.map_err(about)?).map_err(|e| {
            malformed(&asked.reference, format!("{} did not answer with the JSON expected: {e}", response.address()))
        })?;
        Ok((json, next))
    }

    /// The content of the file at `path` of `repo` at `commit`, which has `size` bytes if it is right. Not tried again.
    ///
    /// # Errors
    /// [`Failure`], also for more bytes than that.
    pub(crate) async fn file(
        &self,
        asked: &Asked,
        repo: &str,
        commit: &str,
        path: &str,
        size: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut response = self.get(&self.file_url(repo, commit, path)?, asked, Some(path)).await?;
        response.bytes(size).await.map_err(|failure| failure.about(&asked.reference))
    }

    /// The answer to a request for `file`, or for a listing if there is none.
    async fn get(&self, url: &Url, asked: &Asked, file: Option<&str>) -> Result<Response, Failure> {
        let mut request = Request::new(url.as_str());
        if let Some(token) = &self.settings.token {
            request = request.with_header("Authorization", token.header());
        }
        let accept = if file.is_some() { "*/*" } else { "application/json" };
        let response = self.network.get(&request, &[("Accept", accept)]).await;
        let response = response.map_err(|failure| failure.about(&asked.reference))?;
        if response.status() == 200 {
            return Ok(response);
        }
        let explained = asked.explain(&response.as_refusal(), file).filter(|_| response.from_named_host());
        Err(explained.map_or_else(|| response.failure(&asked.reference), Failure::from))
    }

    /// The URL of the file at `path` of `repo` at `commit`.
    ///
    /// # Errors
    /// As [`Api::url`].
    pub(crate) fn file_url(&self, repo: &str, commit: &str, path: &str) -> Result<Url> {
        let after: Vec<_> = ["resolve", commit].into_iter().chain(path.split('/')).collect();
        self.url(&[], repo, &after)
    }

    /// The URL of `before`, the parts of `repo`, and `after`, each part encoded.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the endpoint cannot have a path.
    pub(crate) fn url(&self, before: &[&str], repo: &str, after: &[&str]) -> Result<Url> {
        let endpoint = &self.settings.endpoint;
        let bad = || Error::invalid_spec("Hugging Face endpoint", format!("`{endpoint}` takes no path"));
        let mut url = Url::parse(endpoint).map_err(|_| bad())?;
        url.path_segments_mut()
            .map_err(|()| bad())?
            .pop_if_empty()
            .extend(before)
            .extend(repo.split('/'))
            .extend(after);
        Ok(url)
    }
}

/// Whether `error` is of a host that gave no answer at all.
pub(crate) fn is_unreachable(error: &Error) -> bool {
    let Error::DownloadFailed { source: Some(cause), .. } = error else { return false };
    cause.downcast_ref::<reqwest::Error>().is_some_and(|e| e.is_connect() || e.is_timeout() || e.is_request())
}

/// An answer that does not mean what it must.
fn malformed(what: &str, reason: String) -> Error {
    Failure::permanent(what, reason).error
}

/// The licence as a card has it: a name, or several.
fn license(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(name) => Some(name.clone()),
        serde_json::Value::Array(names) => {
            let names: Vec<_> = names.iter().filter_map(|n| n.as_str()).collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        _ => None,
    }
}
