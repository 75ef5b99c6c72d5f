//! hf-hub: its client, and what its errors mean.

use std::time::{Duration, SystemTime};

use hf_hub::{HFClient, HFError, HFRepository, HFResult, repository::RepoTypeModel, split_id};
use llm_local_core::{Error, Refusal, Result};
use llm_local_source_common::network::{Failure, Retry, shown};
use reqwest::Url;
use serde::de::DeserializeOwned;

use super::{Api, malformed};
use crate::refusal::Asked;

/// Revisions that a message lists.
const LISTED: usize = 20;

impl Api {
    /// hf-hub's handle of `repo`.
    pub(super) fn repository(&self, repo: &str) -> Result<HFRepository<RepoTypeModel>> {
        let client = self.client.get_or_init(|| self.make_client()).clone()?;
        let (owner, name) = split_id(repo);
        Ok(client.model(owner, name))
    }

    /// hf-hub's client. It reads the environment for whatever is not given, so all is given.
    fn make_client(&self) -> Result<HFClient> {
        self.network().check_url(&self.settings().endpoint)?;
        let builder = HFClient::builder()
            .client(self.network().client()?)
            .endpoint(&self.settings().endpoint)
            .cache_dir(&self.settings().cache)
            .cache_enabled(false)
            .user_agent(&self.network().config().user_agent)
            // Ours are used, which know when the Hub wants to be asked again.
            .retry_max_attempts(0)
            .retry_base_delay(Duration::ZERO);
        let token = match &self.settings().token {
            Some(token) => token.secret(),
            // Without a token it would look for one in the environment. One that cannot be a header is never sent.
            None => "\n",
        };
        builder
            .token(token)
            .build()
            .map_err(|e| Error::unsupported("the Hugging Face Hub", format!("no client could be made for it: {e}")))
    }

    /// What `sending`, a request of hf-hub's to `url`, is answered. Like all requests it waits for the end of a pause that the
    /// Hub asked for, and begins one. Where the Hub limits the rate, it is asked once more for when that ends: hf-hub keeps
    /// one of the headers that say so, and the Hub sends others.
    pub(super) async fn answered<T: DeserializeOwned>(
        &self,
        sending: impl Future<Output = HFResult<T>>,
        url: &Url,
        asked: &Asked,
    ) -> Result<T, Failure> {
        self.network().turn(url.as_str()).await;
        match sending.await {
            Ok(answer) => Ok(answer),
            Err(HFError::RateLimited { retry_after: None, .. }) => Ok(self.get_json(url, asked).await?.0),
            Err(error) => {
                let failure = self.failure(error, asked).await;
                if let Retry::After(wait) = failure.retry {
                    self.network().pause(url.as_str(), wait);
                }
                Err(failure)
            }
        }
    }

    /// What follows from an error of hf-hub. A revision that is not there is told with some that are.
    async fn failure(&self, error: HFError, asked: &Asked) -> Failure {
        let Some(refusal) = refusal(&error) else {
            return match error {
                HFError::Request { source, .. } if source.is_decode() => {
                    malformed(&asked.reference, "the Hub did not answer with the JSON expected".to_owned()).into()
                }
                HFError::Request { source, .. } => {
                    Failure::connection(shown(&self.settings().endpoint), source).about(&asked.reference)
                }
                other => malformed(&asked.reference, other.to_string()).into(),
            };
        };
        if Asked::is_about_revision(&refusal) {
            let refs = match self.repository(&asked.repo) {
                Ok(repository) => {
                    self.network().turn(&self.settings().endpoint).await;
                    repository.list_refs().send().await.ok()
                }
                Err(_) => None,
            };
            let names = refs.into_iter().flat_map(|refs| refs.branches.into_iter().chain(refs.tags)).map(|r| r.name);
            return asked.revision_not_found(&names.take(LISTED).collect::<Vec<_>>()).into();
        }
        let wall: SystemTime = self.network().timer().wall();
        let address = shown(&self.settings().endpoint);
        asked
            .explain(&refusal, None)
            .map_or_else(|| Failure::refusal(&asked.reference, &refusal, &address, true, wall), Failure::from)
    }
}

/// The answer that an error of hf-hub is about, as far as it keeps it.
fn refusal(error: &HFError) -> Option<Refusal> {
    let (context, retry_after) = match error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            (context, &None)
        }
        HFError::RateLimited { context, retry_after } => (context, retry_after),
        HFError::RepoNotFound { context: Some(context), .. }
        | HFError::RevisionNotFound { context: Some(context), .. } => (context, &None),
        _ => return None,
    };
    let headers = [
        ("x-error-code", context.error_code.clone()),
        ("x-error-message", context.server_message.clone()),
        ("retry-after", retry_after.map(|wait| wait.as_secs().to_string())),
    ];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Some(Refusal::new(context.status.as_u16(), headers))
}
