//! Everything that is served, and which host answers what.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    super::{
        Access,
        published::{PublishedAsset, PublishedRelease, PublishedRepository},
        state::State,
    },
    api, object_store,
    rate_limits::RateLimits,
    refusal,
    target::{self, Wanted, Which},
    web,
};
use crate::server::{self, Host, Request, Response, SignedUrls, Subject};

/// What is set before the start.
#[derive(Debug, Clone)]
pub(in super::super) struct Options {
    pub(in super::super) tokens: BTreeMap<String, Access>,
    /// Without a token, and with one.
    pub(in super::super) rate_limit: (u64, u64),
    pub(in super::super) rate_limit_status: u16,
    pub(in super::super) assets_from_the_api: bool,
    pub(in super::super) download_counts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tokens: BTreeMap::new(),
            rate_limit: (60, 5000),
            rate_limit_status: 403,
            assets_from_the_api: false,
            download_counts: false,
        }
    }
}

/// The three hosts.
#[derive(Debug)]
pub(in super::super) struct Site {
    api: String,
    web: String,
    cdn: String,
    options: Options,
    state: Mutex<State>,
    rate_limits: Mutex<RateLimits>,
    urls: Arc<SignedUrls>,
}

impl Site {
    /// A site at the URLs of the API, the web host and the object store.
    pub(in super::super) fn new([api, web, cdn]: [String; 3], options: Options, urls: Arc<SignedUrls>) -> Self {
        let rate_limits = Mutex::new(RateLimits::new(options.rate_limit));
        Self { api, web, cdn, options, state: Mutex::default(), rate_limits, urls }
    }

    // A method of the server that panics poisons the lock; what it guards is whole all the same.
    pub(in super::super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in super::super) fn rate_limits(&self) -> MutexGuard<'_, RateLimits> {
        self.rate_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn rate_limit_status(&self) -> u16 {
        self.options.rate_limit_status
    }

    pub(super) fn tokens(&self) -> &BTreeMap<String, Access> {
        &self.options.tokens
    }

    /// The URL of `path` on the web host.
    pub(super) fn web_url(&self, path: &str) -> String {
        format!("{}{path}", self.web)
    }

    /// A URL of the object store for an asset.
    pub(super) fn sign(
        &self,
        repository: &PublishedRepository,
        release: &PublishedRelease,
        asset: &PublishedAsset,
    ) -> String {
        self.cdn.clone() + &object_store::sign(&self.urls, repository, release, asset)
    }

    /// What the API answers for the bytes of an asset.
    pub(super) fn bytes(
        &self,
        repository: &PublishedRepository,
        release: &PublishedRelease,
        asset: &PublishedAsset,
    ) -> Response {
        if self.options.assets_from_the_api && !asset.asset.uploading {
            return Response::file(&asset.asset.content, "application/octet-stream", &asset.object());
        }
        Response::redirect(302, &self.sign(repository, release, asset))
    }

    /// Counts a download of the asset with this id.
    pub(super) fn count_download(&self, state: &mut State, id: u64) {
        if self.options.download_counts {
            let releases = state.repositories.iter_mut().flat_map(|repository| &mut repository.releases);
            let mut assets = releases.flat_map(|release| &mut release.assets);
            assets.find(|asset| asset.id == id).into_iter().for_each(|asset| asset.asset.download_count += 1);
        }
    }

    fn subject_of_the_api(&self, segments: &[String]) -> Option<Subject> {
        let (which, Wanted::Asset(id)) = target::of_the_api(segments)? else { return None };
        let state = self.state();
        let repository = state.repositories.iter().find(|repository| match &which {
            Which::Named(name) => repository.is_called(name) || repository.was_called(name),
            Which::Numbered(id) => repository.id == *id,
        })?;
        let (release, asset) = repository.asset(id)?;
        Some(object_store::subject_of(repository, release, asset))
    }

    fn subject_of_the_web(&self, segments: &[String]) -> Option<Subject> {
        let download = target::of_the_web(segments)?;
        let state = self.state();
        let repository = state.repositories.iter().find(|repository| repository.is_called(&download.repository));
        let latest = || Some(repository?.latest()?.release.tag.clone());
        Some(Subject { tag: download.tag.or_else(latest), repo: download.repository, file: download.asset })
    }
}

impl server::Site for Site {
    fn subject(&self, host: Host, request: &Request) -> Option<Subject> {
        match host {
            Host::Cdn => object_store::subject(&self.urls, request),
            Host::Web if web::path_of_the_api(request).is_some() => self.subject_of_the_api(&request.segments()[2..]),
            Host::Web => self.subject_of_the_web(&request.segments()),
            _ => self.subject_of_the_api(&request.segments()),
        }
    }

    fn answer(&self, host: Host, request: &Request) -> Response {
        match host {
            Host::Cdn => object_store::answer(&self.urls, &self.state(), request),
            Host::Web => match web::path_of_the_api(request) {
                Some(path) => api::answer(self, &self.web_url("/api/v3"), path, request),
                None => web::answer(self, request),
            },
            _ => api::answer(self, &self.api, &request.path, request),
        }
    }

    fn error(&self, host: Host, status: u16) -> Response {
        refusal::of_status(host, status)
    }
}
