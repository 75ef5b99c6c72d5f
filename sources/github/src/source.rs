//! The source.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, ModelSource, Opened,
    Refusal, Result, Revision, Want, async_trait,
};
use llm_local_source_common::network::{Network, NetworkConfig};

use crate::{
    answers::Answers,
    api::{Api, Release},
    choose::choose,
    digests::Digests,
    pinned::Pinned,
    reference::{LATEST, ReleaseRef, SCHEME},
    refusal::Asked,
    settings::Settings,
};

/// The source of adapters and models in the assets of GitHub releases. Cheap to clone.
///
/// Refs are `github:owner/repo`, with `@tag` (without one, or with `@latest`, the latest release; with a revision that the
/// source gave, the assets that it then had), and `#asset` where the release has several that it could be. An asset is an archive of the folder, a `.gguf` or `.safetensors` file, the latter
/// with an `adapter_config.json` beside it, or numbered parts of one of these.
///
/// Assets are verified by the SHA-256 that GitHub tells, else by a list of digests among the assets (`SHA256SUMS`), else
/// against what was first fetched under that tag.
#[derive(Clone)]
pub struct GitHub(Arc<Inner>);

/// Largest asset without a digest that is asked for by its id where no token is given: each range of it is a request of the
/// 60 in an hour, and larger ones are fetched in many.
const LARGEST_BY_ID: u64 = 64 << 20;

struct Inner {
    api: Api,
    /// Where browsers get an asset, by its id, for those that were seen and whose digest is told: by its tag, which may be
    /// moved to other bytes. Of the others nothing would tell; they are asked for by their ids, unless they are large.
    browser: Mutex<HashMap<u64, String>>,
}

/// Makes a [`GitHub`]. What is not set is taken from the environment.
#[derive(Clone, Default)]
#[must_use]
pub struct GitHubBuilder {
    token: Option<String>,
    api: Option<String>,
    answers: Option<PathBuf>,
    network: Option<Network>,
}

impl GitHubBuilder {
    /// Sets the access token; an empty one stands for none, whatever the environment has. It is sent to the API and to no
    /// other host.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sets the URL of the API: `https://api.github.com` if nothing else says so. One at another host than the
    /// environment's is not sent the environment's token: give that by [`GitHubBuilder::token`].
    pub fn api(mut self, url: impl Into<String>) -> Self {
        self.api = Some(url.into());
        self
    }

    /// Sets the folder in which answers of the API are kept, so that asking again costs nothing of the hourly limit where
    /// nothing changed. Without one none are.
    pub fn answers(mut self, folder: impl Into<PathBuf>) -> Self {
        self.answers = Some(folder.into());
        self
    }

    /// Sets what makes the requests.
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Makes the source.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a URL or token that cannot be one.
    pub fn build(self) -> Result<GitHub> {
        let settings = Settings::new(self.token.as_deref(), self.api.as_deref(), |name| std::env::var_os(name))?;
        let network = self.network.unwrap_or_else(|| Network::new(NetworkConfig::new()));
        let api = Api { settings, network, answers: Answers(self.answers) };
        Ok(GitHub(Arc::new(Inner { api, browser: Mutex::default() })))
    }
}

impl fmt::Debug for GitHubBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubBuilder").field("api", &self.api).finish_non_exhaustive()
    }
}

impl GitHub {
    /// The source that the environment describes: `GH_TOKEN` or `GITHUB_TOKEN`, `GITHUB_API_URL`.
    ///
    /// # Errors
    /// As [`GitHubBuilder::build`].
    pub fn from_env() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a source with settings of its own.
    pub fn builder() -> GitHubBuilder {
        GitHubBuilder::default()
    }

    /// What `future` gives, on the network's threads, unless `cx` is cancelled before.
    async fn run<T: Send + 'static>(
        &self,
        cx: &FetchContext,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let running = self.0.api.network.run(future);
        cx.cancel.run_until_cancelled(running).await.unwrap_or(Err(Error::Cancelled))
    }

    fn asked(&self, reference: &ArtifactRef, at: &ReleaseRef) -> Asked {
        Asked::new(reference, at, &self.0.api.settings)
    }

    /// The artifact `want` of `release`.
    async fn manifest(
        &self,
        reference: &ArtifactRef,
        want: Want,
        any: bool,
        asked: &Asked,
        release: &Release,
    ) -> Result<Manifest> {
        let chosen = choose(reference, &asked.at, want, any, release)?;
        let mut digests = Digests::new(&self.0.api, asked, release);
        let mut files = Vec::with_capacity(chosen.assets.len());
        let mut told = Vec::new();
        for asset in &chosen.assets {
            let file = ManifestFile::new(&asset.name, asset.size);
            let digest = digests.of(asset).await?;
            if digest.is_some() || asset.size > LARGEST_BY_ID {
                told.push((asset.id, asset.browser_download_url.clone()));
            }
            files.push(match digest {
                Some(digest) => file.with_digest(digest),
                None => file,
            });
        }
        self.0.browser.lock().unwrap_or_else(PoisonError::into_inner).extend(told);
        let pinned = chosen.pinned(release).to_string();
        let manifest = Manifest::new(reference.clone(), want, pinned, files)?.with_unpack(chosen.unpack)?;
        // A tag of that name is made to move: nobody promises that it means the same for ever.
        Ok(if release.tag_name == LATEST { manifest } else { manifest.with_version(&release.tag_name) })
    }
}

#[async_trait]
impl ArtifactSource for GitHub {
    fn scheme(&self) -> &str {
        SCHEME
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let at = ReleaseRef::parse(reference)?;
        if cx.offline {
            return Err(Error::Offline { what: reference.to_string() });
        }
        let (asked, source, reference) = (self.asked(reference, &at), self.clone(), reference.clone());
        let any = cx.any_adapter;
        self.run(cx, async move {
            let release = source.0.api.release(&asked).await?;
            if release.draft {
                return Err(asked.draft(&release.tag_name));
            }
            let manifest = source.manifest(&reference, want, any, &asked, &release).await?;
            let manifest = match release.repository().and_then(|repository| repository.split('/').next()) {
                Some(owner) => manifest.with_owner(owner),
                None => manifest,
            };
            Ok(match source.0.api.license(&asked).await {
                Ok(Some(license)) => manifest.with_license(license),
                Ok(None) => manifest,
                // Asked again it may be told; without it a rule on licences would refuse what it allows, and the record
                // would never have it.
                Err(error) if error.is_retryable() => return Err(error),
                // What can be had must not fail for want of it.
                Err(error) => {
                    tracing::warn!(%reference, %error, "the licence could not be asked for");
                    manifest
                }
            })
        })
        .await
    }

    async fn open(&self, manifest: &Manifest, file: &ManifestFile, _: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        let reference = &manifest.reference;
        let at = ReleaseRef::parse(reference)?;
        let Some(id) = Pinned::asset(manifest, &file.path) else {
            return Err(Error::invalid_spec(
                format!("manifest of {reference}"),
                format!("its revision `{}` names no asset for `{}`", manifest.revision.escape_debug(), file.path),
            ));
        };
        if cx.offline {
            return Err(Error::Offline { what: format!("`{}` of {reference}", file.path) });
        }
        let browser = self.0.browser.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        Ok(Opened::Request(self.0.api.asset(&self.asked(reference, &at), id, browser.as_deref())))
    }

    fn explain(&self, manifest: &Manifest, _: &ManifestFile, refusal: &Refusal) -> Option<Error> {
        let at = ReleaseRef::parse(&manifest.reference).ok()?;
        self.asked(&manifest.reference, &at).explain(refusal)
    }

    /// The releases that have what `reference` asks for, by their tags. It does not say what it is wanted as: where some of
    /// the releases have an adapter these are listed, and those that have only a model are not; else those that have one.
    async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>> {
        let at = ReleaseRef::parse(reference)?;
        if cx.offline {
            return Err(Error::Offline { what: format!("the list of releases of {reference}") });
        }
        let (asked, source, reference) = (self.asked(reference, &at), self.clone(), reference.clone());
        let any = cx.any_adapter;
        self.run(cx, async move {
            let releases = source.0.api.releases(&asked).await?;
            let published: Vec<_> = releases.iter().filter(|release| !release.draft).collect();
            let revision = |release: &Release, want| {
                let chosen = choose(&reference, &at.at_tag(&release.tag_name), want, any, release).ok()?;
                Some(Revision::new(&release.tag_name, chosen.pinned(release).to_string()))
            };
            let of = |want| published.iter().filter_map(|release| revision(release, want)).collect::<Vec<_>>();
            let adapters = of(Want::Adapter);
            Ok(if adapters.is_empty() { of(Want::Model) } else { adapters })
        })
        .await
    }
}

impl ModelSource for GitHub {}
impl AdapterSource for GitHub {}

impl fmt::Debug for GitHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHub").field("settings", &self.0.api.settings).finish_non_exhaustive()
    }
}
