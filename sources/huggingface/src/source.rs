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
    Placement, Refusal, Request, Result, Revision, Want, async_trait, manifest::check_relative_path,
};
use llm_local_source_common::network::{Network, NetworkConfig};

use crate::{
    api::{Api, is_unreachable},
    cache::{RepoCache, is_commit},
    cached::{self, Cached},
    choose::{Choice, choose},
    index,
    reference::{HubRef, SCHEME},
    refusal::Asked,
    settings::{Settings, Token, endpoint},
    xet::{PLAIN_LIMIT, Xet, XetFile},
};

/// The source of models and adapters on the Hugging Face Hub. Cheap to clone.
///
/// Refs are `hf:org/name`, with `@revision`, `:subfolder`, and `#file.gguf` or `#Q4_K_M` for one GGUF file. What is there
/// is found by name, without a download: config, tokenizer and safetensors of a model, or the one GGUF file; never a
/// pickle. Files are published in the Hub's own cache, from which other tools read and into which they write.
///
/// A commit that is complete in the cache is resolved without a request; so is any revision when offline, to the commit
/// that it was when it was last asked for. That also happens, with a warning, where the Hub cannot be reached.
#[derive(Clone)]
pub struct HuggingFace(Arc<Inner>);

struct Inner {
    api: Api,
    xet: Xet,
    /// Files of more bytes are read by xet if they are in it.
    plain_limit: u64,
    /// Names of today of repositories that were asked for by another one.
    renamed: Mutex<HashMap<String, String>>,
}

/// Makes a [`HuggingFace`]. What is not set is taken from the environment.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct HuggingFaceBuilder {
    token: Option<HiddenText>,
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
    offline: Option<bool>,
    network: Option<Network>,
    pub(crate) plain_limit: Option<u64>,
}

/// A text that `Debug` shows nothing of.
#[derive(Clone)]
struct HiddenText(String);

impl fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl HuggingFaceBuilder {
    /// Sets the access token; an empty one stands for none, whatever the environment has. It is sent to the endpoint and
    /// to no other host.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(HiddenText(token.into()));
        self
    }

    /// Sets the Hub's URL: `https://huggingface.co` if nothing else says so.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the folder of the Hub's cache: `~/.cache/huggingface/hub` if nothing else says so.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Sets whether no request may be made.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = Some(offline);
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
    /// [`Error::InvalidSpec`] for an endpoint or token that cannot be one, [`Error::NotFound`] if the cache's folder
    /// depends on a home folder that is not known, [`Error::Io`] for a token file that cannot be read.
    pub fn build(self) -> Result<HuggingFace> {
        // A token, endpoint or folder that is given must not fail by what the environment says of it.
        let variable = |name: &str| match name {
            "HF_TOKEN" if self.token.is_some() => Some("unused".into()),
            "HF_ENDPOINT" if self.endpoint.is_some() => None,
            "HF_HUB_CACHE" if self.cache_dir.is_some() => self.cache_dir.clone().map(PathBuf::into_os_string),
            _ => std::env::var_os(name),
        };
        let mut settings = Settings::from_environment(variable, etcetera::home_dir().ok())?;
        if let Some(HiddenText(token)) = self.token {
            settings.token = Token::new(&token, "the token given to the source")?;
        }
        if let Some(url) = self.endpoint {
            settings.endpoint = endpoint(&url)?;
        }
        if let Some(folder) = self.cache_dir {
            settings.cache = folder;
        }
        // What is recorded of a cache must mean the same in whatever folder a process is.
        settings.cache = std::path::absolute(&settings.cache).map_err(|e| Error::io("find", &settings.cache, e))?;
        if let Some(offline) = self.offline {
            settings.offline = offline;
        }
        let network = self.network.unwrap_or_else(|| Network::new(NetworkConfig::new()));
        Ok(HuggingFace(Arc::new(Inner {
            api: Api::new(settings, network),
            xet: Xet::default(),
            plain_limit: self.plain_limit.unwrap_or(PLAIN_LIMIT),
            renamed: Mutex::default(),
        })))
    }
}

impl HuggingFace {
    /// The source that the environment describes: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`,
    /// `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), `HF_XET_CACHE`, `XDG_CACHE_HOME`,
    /// `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`), and the token file of `hf auth login`.
    ///
    /// # Errors
    /// As [`HuggingFaceBuilder::build`].
    pub fn from_env() -> Result<Self> {
        Self::builder().build()
    }

    /// Starts a source with settings of its own.
    pub fn builder() -> HuggingFaceBuilder {
        HuggingFaceBuilder::default()
    }

    fn settings(&self) -> &Settings {
        self.0.api.settings()
    }

    fn cache(&self, at: &HubRef) -> RepoCache {
        RepoCache::new(&self.settings().cache, &at.repo)
    }

    fn asked(&self, reference: &ArtifactRef, at: &HubRef) -> Asked {
        Asked::new(reference, &at.repo, &at.revision, self.settings())
    }

    fn is_offline(&self, cx: &FetchContext) -> bool {
        cx.offline || self.settings().offline
    }

    /// What `future` gives, on the network's threads, unless `cx` is cancelled before.
    async fn run<T: Send + 'static>(
        &self,
        cx: &FetchContext,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let running = self.0.api.network().run(future);
        cx.cancel.run_until_cancelled(running).await.unwrap_or(Err(Error::Cancelled))
    }

    /// The manifest, as the Hub has it now.
    async fn ask(&self, reference: ArtifactRef, at: HubRef, want: Want, impatient: bool) -> Result<Manifest> {
        let (asked, cache, api) = (self.asked(&reference, &at), self.cache(&at), &self.0.api);
        let info = api.info(&asked, impatient).await?;
        if info.repo != at.repo {
            tracing::warn!(asked = at.repo, now = info.repo, "the repository has another name now; use it in refs");
            let mut renamed = self.0.renamed.lock().unwrap_or_else(PoisonError::into_inner);
            renamed.insert(at.repo.clone(), info.repo.clone());
        }
        let tree = match cache.tree(&info.commit) {
            Some(tree) => tree,
            None => {
                let tree = api.tree(&asked, &info.repo, &info.commit).await?;
                if let Err(error) = cache.write_tree(&info.commit, &tree) {
                    tracing::warn!(%error, repo = at.repo, "the list of files could not be kept in the cache");
                }
                tree
            }
        };
        let files = match choose(&reference, &at, want, &tree.files())? {
            Choice::Files(files) => files,
            Choice::Indexed(indexed) => {
                let read = index::read(api, &cache, &asked, &info, &at, indexed.index()).await?;
                indexed.by(&read)?
            }
        };
        let mut manifest = Manifest::new(reference, want, info.commit, files)?;
        (manifest.license, manifest.gated) = (info.license, info.gated);
        Ok(manifest)
    }

    /// The name of today of `repo`, as far as it was asked for.
    fn name_now(&self, repo: &str) -> String {
        let renamed = self.0.renamed.lock().unwrap_or_else(PoisonError::into_inner);
        renamed.get(repo).cloned().unwrap_or_else(|| repo.to_owned())
    }
}

#[async_trait]
impl ArtifactSource for HuggingFace {
    fn scheme(&self) -> &str {
        SCHEME
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let at = HubRef::parse(reference)?;
        let cached = cached::resolve(&self.cache(&at), reference, &at, want);
        if self.is_offline(cx) {
            return cached.map(|cached| cached.manifest);
        }
        let cached = match cached {
            Ok(cached) if cached.is_final => return Ok(cached.manifest),
            cached => cached.ok(),
        };
        let (source, asked, impatient) = (self.clone(), reference.clone(), cached.is_some());
        let asking = self.run(cx, async move { source.ask(asked, at, want, impatient).await });
        match (asking.await, cached) {
            (Err(error), Some(Cached { manifest, .. })) if is_unreachable(&error) => {
                tracing::warn!(
                    %reference, %error, commit = manifest.revision,
                    "the Hub cannot be reached; what is in the cache is used, which may not be the newest"
                );
                Ok(manifest)
            }
            (answer, _) => answer,
        }
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let at = HubRef::parse(&manifest.reference)?;
        let path = at.in_repo(&file.path);
        // A manifest may come from anywhere by now: its fields are open, and it can be stored.
        let bad = |reason| Error::invalid_spec(format!("manifest of {}", manifest.reference), reason);
        check_relative_path(&path).map_err(bad)?;
        if !is_commit(&manifest.revision) {
            return Err(bad(format!("its revision `{}` is not the id of a commit", manifest.revision.escape_debug())));
        }
        if manifest.file(&file.path).is_none() {
            return Err(Error::not_found(
                format!("`{}`", file.path),
                format!("it is not in the manifest of {}", manifest.reference),
            ));
        }
        if self.is_offline(cx) {
            return Err(Error::Offline { what: format!("`{path}` of {}", manifest.reference) });
        }
        let repo = self.name_now(&at.repo);
        if file.size > self.0.plain_limit
            && let Some(tree) = self.cache(&at).tree(&manifest.revision)
            && let Some(hash) = tree.xet_hash(&path)
        {
            let commit = manifest.revision.clone();
            let file = XetFile { repo, commit, hash: hash.to_owned(), size: file.size };
            let (asked, source) = (self.asked(&manifest.reference, &at), self.clone());
            let opening = async move { source.0.xet.open(&source.0.api, &asked, &file, range).await };
            return Ok(Opened::Stream(self.run(cx, opening).await?));
        }
        let request = Request::new(self.0.api.file_url(&repo, &manifest.revision, &path)?);
        Ok(Opened::Request(match &self.settings().token {
            Some(token) => request.with_header("Authorization", token.header()),
            None => request,
        }))
    }

    fn placement(&self, manifest: &Manifest) -> Result<Option<Placement>> {
        let at = HubRef::parse(&manifest.reference)?;
        self.cache(&at).placement(&at, manifest).map(Some)
    }

    fn explain(&self, manifest: &Manifest, file: &ManifestFile, refusal: &Refusal) -> Option<Error> {
        let at = HubRef::parse(&manifest.reference).ok()?;
        self.asked(&manifest.reference, &at).explain(refusal, Some(&at.in_repo(&file.path)))
    }

    /// Branches, then tags, in the Hub's order, which has no dates.
    async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let at = HubRef::parse(reference)?;
        if self.is_offline(cx) {
            return Err(Error::Offline { what: format!("the list of revisions of {reference}") });
        }
        let (asked, source) = (self.asked(reference, &at), self.clone());
        self.run(cx, async move { source.0.api.revisions(&asked).await }).await
    }
}

impl ModelSource for HuggingFace {}
impl AdapterSource for HuggingFace {}

impl fmt::Debug for HuggingFace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HuggingFace").field("settings", self.settings()).finish_non_exhaustive()
    }
}
