//! The source.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, ModelSource, Opened,
    Placement, Refusal, Request, Result, Revision, Want, async_trait, manifest::check_relative_path,
};
use llm_local_source_common::network::Network;
use llm_local_weights::ShardIndex;

use crate::{
    api::{Api, is_unreachable},
    cache::{RepoCache, is_commit},
    cached::{self, Cached},
    choose::{Choice, choose},
    index::Index,
    reference::{HubRef, SCHEME},
    refusal::Asked,
    settings::Settings,
    xet::{Xet, XetFile},
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
    plain_limit: u64,
    /// Names of today of repositories that were asked for by another one.
    renamed: Mutex<HashMap<String, String>>,
}

impl HuggingFace {
    /// The source with these settings and this network. Files of more bytes than `plain_limit` are read by xet if they
    /// are in it.
    pub(crate) fn new(settings: Settings, network: Network, plain_limit: u64) -> Self {
        let (xet, renamed) = Default::default();
        Self(Arc::new(Inner { api: Api::new(settings, network), xet, plain_limit, renamed }))
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
    async fn ask(
        &self,
        reference: ArtifactRef,
        at: HubRef,
        (want, any): (Want, bool),
        impatient: bool,
    ) -> Result<Manifest> {
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
        let files = match choose(&reference, &at, want, any, &tree.files())? {
            Choice::Files(files) => files,
            Choice::Indexed(indexed) => {
                let (repo, commit, file) = (&info.repo, &info.commit, indexed.index());
                let index = Index { asked: &asked, repo, commit, at: &at, file };
                let read = index.read(api, &cache).await?;
                indexed.by(&read)?
            }
        };
        let mut manifest = Manifest::new(reference, want, info.commit, files)?;
        (manifest.license, manifest.gated) = (info.license, info.gated);
        Ok(manifest)
    }

    /// The bytes `range` of the index `file` of `manifest`; `None` for a part of one that is not in the cache.
    async fn index(
        &self,
        manifest: Manifest,
        at: HubRef,
        file: ManifestFile,
        range: Range<u64>,
    ) -> Result<Option<Bytes>> {
        let (cache, commit) = (self.cache(&at), &manifest.revision);
        if range == (0..file.size) {
            let (asked, repo) = (self.asked(&manifest.reference, &at), self.name_now(&at.repo));
            let index = Index { asked: &asked, repo: &repo, commit, at: &at, file: &file };
            return index.bytes(&self.0.api, &cache).await.map(Some);
        }
        let kept = cache.index(commit, &at, &file);
        Ok(kept.and_then(|(_, content)| {
            let content = content.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?;
            Some(Bytes::copy_from_slice(content))
        }))
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
        let cached = cached::resolve(&self.cache(&at), reference, &at, want, cx.any_adapter);
        if self.is_offline(cx) {
            return cached.map(|cached| cached.manifest);
        }
        let cached = match cached {
            Ok(cached) if cached.is_final => return Ok(cached.manifest),
            cached => cached.ok(),
        };
        let (source, asked, impatient) = (self.clone(), reference.clone(), cached.is_some());
        let wanted = (want, cx.any_adapter);
        let asking = self.run(cx, async move { source.ask(asked, at, wanted, impatient).await });
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
        // It is looked into before it is fetched, and need not come twice.
        if file.path == ShardIndex::FILE && file.digest.is_some() && file.size <= ShardIndex::LARGEST {
            let (source, manifest, at) = (self.clone(), manifest.clone(), at.clone());
            let (file, range) = (file.clone(), range.clone());
            let reading = async move { source.index(manifest, at, file, range).await };
            if let Some(bytes) = self.run(cx, reading).await? {
                return Ok(Opened::bytes(bytes));
            }
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

    fn at_revision(&self, reference: &ArtifactRef, revision: &str) -> Result<ArtifactRef> {
        // A subfolder may stand behind the revision.
        match reference.revision().and_then(|known| known.split_once(':')) {
            Some((_, folder)) => reference.clone().with_revision(format!("{revision}:{folder}")),
            None => reference.clone().with_revision(revision),
        }
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
