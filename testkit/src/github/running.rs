//! The running server.

use std::{net::SocketAddr, ops::Deref, sync::Arc};

use super::{
    Asset, GitHubBuilder, Release, Repository,
    routes::{Options, Site},
};
use crate::server::{Host, Listeners, Loopback, SignedUrls};

/// A server that runs until it is dropped. Faults and records are those of the [`Loopback`].
///
/// Where a method takes a repository, it is `owner/name`; where it takes a tag, the published release with that tag is
/// meant, else the newest draft. They panic where there is no such thing, since that is a mistake of the test.
#[derive(Debug)]
pub struct GitHub {
    loopback: Loopback,
    site: Arc<Site>,
}

impl Deref for GitHub {
    type Target = Loopback;

    fn deref(&self) -> &Loopback {
        &self.loopback
    }
}

/// Where it is.
impl GitHub {
    /// What a server is started with: nothing yet.
    pub fn builder() -> GitHubBuilder {
        GitHubBuilder { repositories: Vec::new(), options: Options::default() }
    }

    pub(super) fn serving(repositories: Vec<Repository>, options: Options) -> Self {
        let listeners = Listeners::bind(&[Host::Api, Host::Web, Host::Cdn]);
        let urls = Arc::new(SignedUrls::default());
        let endpoints = [Host::Api, Host::Web, Host::Cdn].map(|host| listeners.endpoint(host));
        let site = Arc::new(Site::new(endpoints, options, Arc::clone(&urls)));
        let github = Self { loopback: Loopback::start(listeners, Arc::clone(&site) as _, urls), site };
        repositories.into_iter().for_each(|repository| github.create(repository));
        github
    }

    /// Starts one without repositories: see [`create`](Self::create).
    ///
    /// # Panics
    /// If no port can be bound.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The URL of the API, for `GITHUB_API_URL`: `http://127.0.0.1:port`.
    pub fn api_url(&self) -> String {
        self.loopback.host_endpoint(Host::Api)
    }

    /// The URL of the API as a GitHub Enterprise Server has it: `http://127.0.0.1:port/api/v3`, on the web host.
    pub fn enterprise_api_url(&self) -> String {
        self.web_url() + "/api/v3"
    }

    /// The URL of the web host, for `GITHUB_SERVER_URL`: `http://127.0.0.1:port`.
    pub fn web_url(&self) -> String {
        self.loopback.host_endpoint(Host::Web)
    }

    /// The URL of the object store.
    pub fn cdn_url(&self) -> String {
        self.loopback.host_endpoint(Host::Cdn)
    }

    /// Where the API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.loopback.host_address(Host::Api)
    }

    /// Where the web host listens.
    pub fn web_address(&self) -> SocketAddr {
        self.loopback.host_address(Host::Web)
    }

    /// Where the object store listens.
    pub fn cdn_address(&self) -> SocketAddr {
        self.loopback.host_address(Host::Cdn)
    }
}

/// Repositories.
impl GitHub {
    /// Adds a repository, in the place of the one with its name.
    pub fn create(&self, repository: Repository) {
        repository.releases.iter().flat_map(|release| &release.assets).for_each(Asset::hash);
        self.site.state().create(repository);
    }

    /// Takes a repository away.
    pub fn remove(&self, repository: &str) {
        self.site.state().remove(repository);
    }

    /// Gives a repository another name. The API redirects requests for the old one to `/repositories/{id}/…`.
    pub fn rename(&self, repository: &str, name: &str) {
        self.site.state().rename(repository, name);
    }

    /// Makes a repository private or public.
    pub fn set_private(&self, repository: &str, private: bool) {
        self.site.state().repository(repository).private = private;
    }

    /// The commit that `reference` names: a tag, or the default branch. `None` if there is none.
    pub fn commit(&self, repository: &str, reference: &str) -> Option<String> {
        self.site.state().repository(repository).commit(reference)
    }
}

/// Releases and assets.
impl GitHub {
    /// Adds a release, and returns its id. One with its tag is replaced: the tag moves to the new one's commit. Without
    /// one, a tag that is there already stays where it is unless the release names a commit. A draft replaces only a
    /// draft, and makes no tag.
    pub fn publish(&self, repository: &str, release: Release) -> u64 {
        release.assets.iter().for_each(Asset::hash);
        self.site.state().publish(repository, release)
    }

    /// Changes a release, which keeps its id; assets that `change` adds to it are uploaded: see
    /// [`upload`](Self::upload). A draft is published so, by [`Release::published`].
    pub fn edit(&self, repository: &str, tag: &str, change: impl FnOnce(Release) -> Release) {
        self.site.state().edit(repository, tag, change);
    }

    /// Makes a release the latest one, as `make_latest` does it later on.
    pub fn set_latest(&self, repository: &str, tag: &str) {
        let mut state = self.site.state();
        let id = state.release(repository, tag).id;
        state.repository(repository).latest = Some(id);
    }

    /// Takes a release away. Its tag stays, as it does on GitHub.
    pub fn delete_release(&self, repository: &str, tag: &str) {
        self.site.state().delete_release(repository, tag);
    }

    /// Takes a tag away. Its release becomes a draft, as it does on GitHub.
    pub fn delete_tag(&self, repository: &str, tag: &str) {
        self.site.state().delete_tag(repository, tag);
    }

    /// Moves a tag to a commit, 40 hex digits. Its release and the assets stay as they are.
    pub fn move_tag(&self, repository: &str, tag: &str, commit: &str) {
        self.site.state().move_tag(repository, tag, commit);
    }

    /// Adds an asset to a release, and returns its id. One of its name is replaced: that is another asset then, with an
    /// id and times of its own.
    pub fn upload(&self, repository: &str, tag: &str, asset: Asset) -> u64 {
        asset.hash();
        self.site.state().upload(repository, tag, asset)
    }

    /// Brings the upload of an asset that is [`uploading`](Asset::uploading) to its end.
    pub fn finish_upload(&self, repository: &str, tag: &str, asset: &str) {
        self.site.state().finish_upload(repository, tag, asset);
    }

    /// Takes an asset away. URLs that were signed for it still lead to its bytes.
    pub fn delete_asset(&self, repository: &str, tag: &str, asset: &str) {
        self.site.state().delete_asset(repository, tag, asset);
    }

    /// The id of a release.
    pub fn release_id(&self, repository: &str, tag: &str) -> u64 {
        self.site.state().release(repository, tag).id
    }

    /// The id of an asset.
    pub fn asset_id(&self, repository: &str, tag: &str, asset: &str) -> u64 {
        self.site.state().asset(repository, tag, asset).id
    }
}

/// Rate limits.
impl GitHub {
    /// Lets no request be left, with or without a token, until [`refill_rate_limit`](Self::refill_rate_limit). The
    /// answers say that it resets at `reset`, in seconds since 1970; no clock is asked.
    pub fn exhaust_rate_limit(&self, reset: u64) {
        self.site.rate_limits().exhaust(reset);
    }

    /// Sets when the answers say that the limit resets, in seconds since 1970. Without, it is an hour after the start.
    pub fn set_rate_limit_reset(&self, reset: u64) {
        self.site.rate_limits().set_reset(reset);
    }

    /// Lets all requests be left again.
    pub fn refill_rate_limit(&self) {
        self.site.rate_limits().refill();
    }

    /// How many requests were counted, of those with `token` or of those without one.
    pub fn rate_limit_used(&self, token: Option<&str>) -> u64 {
        self.site.rate_limits().used(token)
    }
}
