//! Makes the files of a manifest present on this machine: files of this machine are used where they lie, streams are
//! written into the cache under their digest, verified before they are published.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt;
use llm_local_core::{
    ArtifactSource, Digest, DownloadProgress, Error, FetchContext, Manifest, ManifestFile, Opened, ProgressEvent,
    ProgressHandler, Result, source::ByteStream,
};
use sha2::{Digest as _, Sha256};

/// Files of an artifact: their paths in the manifest, and where they lie.
pub(crate) type Files = BTreeMap<String, PathBuf>;

/// How far the fetching of a whole plan is: its base and its adapters together.
pub(crate) struct Meter {
    handler: Option<Arc<dyn ProgressHandler>>,
    done: u64,
    total: u64,
}

impl Meter {
    /// Nothing is done of what `manifests` list.
    pub(crate) fn new<'a>(manifests: impl IntoIterator<Item = &'a Manifest>, cx: &FetchContext) -> Self {
        let total = manifests.into_iter().map(Manifest::total_bytes).sum();
        Self { handler: cx.progress.clone(), done: 0, total }
    }

    /// Everything is verified and in place.
    pub(crate) fn finish(self) {
        self.report(DownloadProgress::finished(self.total));
    }

    fn report(&self, progress: DownloadProgress) {
        if let Some(handler) = &self.handler {
            handler.on_progress(&ProgressEvent::Download(progress));
        }
    }
}

/// Makes every file of `manifest` present: streams are verified against size and digest before they are published. A
/// file of this machine is its owner's and used where it lies; its size is checked, its content is the source's word.
pub(crate) async fn fetch(
    source: &(impl ArtifactSource + ?Sized),
    manifest: &Manifest,
    cache: &Path,
    meter: &mut Meter,
    cx: &FetchContext,
) -> Result<Files> {
    let mut files = Files::new();
    for file in &manifest.files {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        meter.report(DownloadProgress::new(meter.done, meter.total).with_current_file(&file.path));
        let path = match cached(cache, file) {
            Some(path) => path,
            None => match source.open(manifest, file, 0..file.size, cx).await? {
                Opened::Local(path) => local(manifest, file, path)?,
                Opened::Stream(stream) => store(manifest, file, stream, cache, cx).await?,
                other => {
                    return Err(Error::unsupported(
                        format!("fetching {} of {}", file.path, manifest.reference),
                        format!("this version moves no bytes over the network, and the source answered {other:?}"),
                    ));
                }
            },
        };
        files.insert(file.path.clone(), path);
        meter.done += file.size;
    }
    Ok(files)
}

/// The files of `manifest` if they are all on this machine already. Moves nothing.
pub(crate) async fn present(
    source: &(impl ArtifactSource + ?Sized),
    manifest: &Manifest,
    cache: &Path,
    cx: &FetchContext,
) -> Result<Option<Files>> {
    let mut files = Files::new();
    for file in &manifest.files {
        let path = match cached(cache, file) {
            Some(path) => path,
            None => match source.open(manifest, file, 0..file.size, cx).await? {
                Opened::Local(path) => local(manifest, file, path)?,
                _ => return Ok(None),
            },
        };
        files.insert(file.path.clone(), path);
    }
    Ok(Some(files))
}

/// Where a file with this digest is published.
fn blob(cache: &Path, digest: &Digest) -> PathBuf {
    cache.join("blobs").join(digest.to_string().replace(':', "-"))
}

/// The published file, if it is there whole: it is only ever renamed into place after it was verified.
fn cached(cache: &Path, file: &ManifestFile) -> Option<PathBuf> {
    let path = blob(cache, file.digest.as_ref()?);
    let found = fs::metadata(&path).ok()?;
    (found.is_file() && found.len() == file.size).then_some(path)
}

fn local(manifest: &Manifest, file: &ManifestFile, path: PathBuf) -> Result<PathBuf> {
    let found = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
    if found != file.size {
        return Err(Error::IntegrityFailed {
            what: format!("{} of {} ({})", file.path, manifest.reference, path.display()),
            expected: format!("{} bytes", file.size),
            found: format!("{found} bytes; it changed since it was resolved"),
        });
    }
    Ok(path)
}

async fn store(
    manifest: &Manifest,
    file: &ManifestFile,
    mut stream: ByteStream,
    cache: &Path,
    cx: &FetchContext,
) -> Result<PathBuf> {
    let what = || format!("{} of {}", file.path, manifest.reference);
    let Some(digest @ Digest::Sha256(_)) = file.digest else {
        return Err(Error::unsupported(
            format!("fetching {}", what()),
            "its source gives no SHA-256 digest, and nothing is stored unverified",
        ));
    };
    let target = blob(cache, &digest);
    let folder = target.parent().unwrap_or(cache);
    fs::create_dir_all(folder)
        .map_err(|e| Error::io("create the cache folder (LLM_LOCAL_CACHE names another)", folder, e))?;
    // In the same folder, so that the rename is atomic; it removes itself if anything below fails.
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(|e| Error::io("write to", folder, e))?;
    let mut hasher = Sha256::new();
    let mut size = 0u64;
    while let Some(chunk) = stream.next().await {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let chunk = chunk?;
        size += chunk.len() as u64;
        if size > file.size {
            break;
        }
        hasher.update(&chunk);
        part.write_all(&chunk).map_err(|e| Error::io("write", part.path(), e))?;
    }
    if size != file.size {
        let more = if size > file.size { "or more " } else { "" };
        return Err(Error::IntegrityFailed {
            what: what(),
            expected: format!("{} bytes", file.size),
            found: format!("{size} {more}bytes"),
        });
    }
    let found = Digest::Sha256(hasher.finalize().into());
    if found != digest {
        return Err(Error::IntegrityFailed { what: what(), expected: digest.to_string(), found: found.to_string() });
    }
    part.as_file().sync_all().map_err(|e| Error::io("write", part.path(), e))?;
    part.persist(&target).map_err(|e| Error::io("write", &target, e.error))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_local_core::{ArtifactRef, Want, async_trait};
    use std::ops::Range;

    struct Source {
        bytes: &'static [u8],
    }

    #[async_trait]
    impl ArtifactSource for Source {
        fn scheme(&self) -> &str {
            "test"
        }

        async fn resolve(&self, r: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
            let digest = Digest::Sha256(Sha256::digest(b"hello").into());
            Manifest::new(r.clone(), want, "1", vec![ManifestFile::new("a.txt", 5).with_digest(digest)])
        }

        async fn open(&self, _: &Manifest, _: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
            Ok(Opened::bytes(self.bytes))
        }
    }

    fn run(source: &Source, cache: &Path) -> Result<Files> {
        pollster::block_on(async {
            let cx = FetchContext::new();
            let manifest = source.resolve(&"test:x".parse()?, Want::Model, &cx).await?;
            assert!(present(source, &manifest, cache, &cx).await?.is_none());
            let files = fetch(source, &manifest, cache, &mut Meter::new([&manifest], &cx), &cx).await?;
            assert_eq!(present(source, &manifest, cache, &cx).await?.as_ref(), Some(&files));
            Ok(files)
        })
    }

    #[test]
    fn a_stream_is_published_under_its_digest_once_it_is_verified() {
        let cache = tempfile::tempdir().unwrap();
        let files = run(&Source { bytes: b"hello" }, cache.path()).unwrap();
        assert_eq!(fs::read(&files["a.txt"]).unwrap(), b"hello");
    }

    #[test]
    fn what_was_not_promised_is_refused_and_leaves_nothing() {
        for bytes in [&b"hell"[..], b"hello!", b"jello"] {
            let cache = tempfile::tempdir().unwrap();
            let error = run(&Source { bytes }, cache.path()).unwrap_err();
            assert_eq!(error.code(), "integrity_failed", "{error}");
            assert!(error.to_string().contains("a.txt of test:x"), "{error}");
            assert_eq!(fs::read_dir(cache.path().join("blobs")).unwrap().count(), 0);
        }
    }
}
