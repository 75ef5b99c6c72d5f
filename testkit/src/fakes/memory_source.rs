//! A source whose files lie in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll},
};

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Bytes, Digest, Error, FetchContext, Manifest, ManifestFile,
    ModelSource, Opened, Result, Revision, Stream, Want, async_trait,
};
use sha2::{Digest as _, Sha256};

type Files = BTreeMap<String, Bytes>;

/// A source of models and adapters whose files lie in memory, by locator. It serves them as streams of several
/// chunks, with SHA-256 digests, pins an artifact to the digest of all its files, and counts what is asked of it.
#[derive(Debug)]
pub struct MemorySource {
    scheme: String,
    artifacts: BTreeMap<String, Files>,
    chunk: usize,
    remote: bool,
    failure: Option<Error>,
    resolves: AtomicUsize,
    opens: AtomicUsize,
}

impl MemorySource {
    /// A source without files, for refs of `scheme`.
    pub fn new(scheme: impl Into<String>) -> Self {
        Self {
            scheme: scheme.into(),
            artifacts: BTreeMap::new(),
            chunk: 1024,
            remote: false,
            failure: None,
            resolves: AtomicUsize::new(0),
            opens: AtomicUsize::new(0),
        }
    }

    /// Puts a file at `path` into the artifact at `locator`.
    pub fn with_file(mut self, locator: impl Into<String>, path: impl Into<String>, content: impl Into<Bytes>) -> Self {
        self.artifacts.entry(locator.into()).or_default().insert(path.into(), content.into());
        self
    }

    /// Sets how many bytes a chunk of a stream has at most. The default is 1024.
    ///
    /// # Panics
    /// If it is 0.
    pub fn with_chunk(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a chunk has at least one byte");
        self.chunk = bytes;
        self
    }

    /// Sets whether it behaves as if its files were on a network: an offline context gets [`Error::Offline`].
    pub fn with_remote(mut self, remote: bool) -> Self {
        self.remote = remote;
        self
    }

    /// Makes every call fail with `error`.
    pub fn with_failure(mut self, error: Error) -> Self {
        self.failure = Some(error);
        self
    }

    /// How often a ref was resolved.
    pub fn resolves(&self) -> usize {
        self.resolves.load(Ordering::SeqCst)
    }

    /// How often a range was opened.
    pub fn opens(&self) -> usize {
        self.opens.load(Ordering::SeqCst)
    }

    fn check(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<()> {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.remote && cx.offline {
            return Err(Error::Offline { what: reference.to_string() });
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn files(&self, reference: &ArtifactRef) -> Result<&Files> {
        let files = self.artifacts.get(reference.locator()).ok_or_else(|| {
            let known: Vec<_> = self.artifacts.keys().map(String::as_str).collect();
            Error::not_found(reference, format!("this memory holds {}", known.join(", ")))
        })?;
        match reference.revision() {
            Some(asked) if asked != revision(files) => Err(Error::not_found(
                reference,
                format!("the only revision there is is {}; leave the revision out", revision(files)),
            )),
            _ => Ok(files),
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The digest of all paths and contents.
fn revision(files: &Files) -> String {
    let mut all = Sha256::new();
    for (path, content) in files {
        all.update(sha256(path.as_bytes()));
        all.update(sha256(content));
    }
    Digest::Sha256(all.finalize().into()).to_string().replace("sha256:", "")
}

#[async_trait]
impl ArtifactSource for MemorySource {
    fn scheme(&self) -> &str {
        &self.scheme
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        self.resolves.fetch_add(1, Ordering::SeqCst);
        self.check(reference, cx)?;
        let files = self.files(reference)?;
        let listed = files
            .iter()
            .map(|(path, content)| {
                ManifestFile::new(path, content.len() as u64).with_digest(Digest::Sha256(sha256(content)))
            })
            .collect();
        Manifest::new(reference.clone(), want, revision(files), listed)
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        self.check(&manifest.reference, cx)?;
        let content = self.files(&manifest.reference)?.get(&file.path).ok_or_else(|| {
            Error::not_found(format!("{} in {}", file.path, manifest.reference), "the artifact has no such file")
        })?;
        let ends = (usize::try_from(range.start), usize::try_from(range.end));
        match ends {
            (Ok(start), Ok(end)) if start <= end && end <= content.len() => {
                Ok(Opened::Stream(Box::pin(Chunks { rest: content.slice(start..end), size: self.chunk })))
            }
            _ => Err(Error::invalid_spec(
                "range",
                format!("{}..{} does not lie in the {} bytes of {}", range.start, range.end, content.len(), file.path),
            )),
        }
    }

    async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>> {
        self.check(reference, cx)?;
        let pinned = revision(self.files(reference)?);
        Ok(vec![Revision::new("latest", pinned)])
    }
}

impl ModelSource for MemorySource {}
impl AdapterSource for MemorySource {}

struct Chunks {
    rest: Bytes,
    size: usize,
}

impl Stream for Chunks {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let take = self.size.min(self.rest.len());
        Poll::Ready(Some(Ok(self.rest.split_to(take))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[test]
    fn a_range_comes_in_chunks_and_calls_are_counted() {
        let source = MemorySource::new("mem").with_file("a", "f", "0123456789").with_chunk(3);
        let reference: ArtifactRef = "mem:a".parse().unwrap();
        let cx = FetchContext::new();
        pollster::block_on(async {
            let manifest = source.resolve(&reference, Want::Model, &cx).await.unwrap();
            let opened = source.open(&manifest, &manifest.files[0], 1..9, &cx).await.unwrap();
            let Opened::Stream(mut stream) = opened else { panic!("a stream is served") };
            let mut chunks = Vec::new();
            while let Some(chunk) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
                chunks.push(chunk.unwrap());
            }
            assert_eq!(chunks, ["123", "456", "78"]);
            let error = source.open(&manifest, &manifest.files[0], 5..11, &cx).await.unwrap_err();
            assert!(error.to_string().contains("5..11"), "{error}");
            assert_eq!((source.resolves(), source.opens()), (1, 2));
            let pinned = reference.clone().with_revision(manifest.revision).unwrap();
            source.resolve(&pinned, Want::Model, &cx).await.unwrap();
            let other = reference.with_revision("other").unwrap();
            assert_eq!(source.resolve(&other, Want::Model, &cx).await.unwrap_err().code(), "not_found");
        });
    }

    #[test]
    fn a_remote_one_says_offline_and_a_failing_one_fails() {
        let reference: ArtifactRef = "mem:a".parse().unwrap();
        let cx = FetchContext::new().with_offline(true);
        let source = MemorySource::new("mem").with_file("a", "f", "x").with_remote(true);
        let error = pollster::block_on(source.resolve(&reference, Want::Model, &cx)).unwrap_err();
        assert_eq!(error.code(), "offline");
        let source = source.with_remote(false).with_failure(Error::Cancelled);
        let error = pollster::block_on(source.resolve(&reference, Want::Model, &cx)).unwrap_err();
        assert_eq!(error.code(), "cancelled");
    }
}
